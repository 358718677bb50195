//! Requests are held against what a document says of them, by JSON Schema, before they reach their service.

use std::fmt::Write;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body::Body;
use jsonschema::{PatternOptions, Validator};
use schemars::JsonSchema;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_proxy::{RequestBody, ResponseBody};
use seawall_types::Size;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::whole::{Unread, is_json, whole};
use super::{FilterError, refused};
use crate::path::Pattern;

/// What a request has to be. One that is not is answered with 400, and what is wrong with it (RFC 9457).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidateConfig {
    /// The pattern of the client's path, if parameters are in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The parameters. Others pass.
    #[serde(default)]
    pub parameters: Vec<ParameterConfig>,
    /// The body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyConfig>,
    /// The largest body that is read; a larger one is answered with 413. Default 1 MiB.
    #[serde(default = "limit")]
    pub limit: Size,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParameterConfig {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub r#in: Place,
    /// Whether it has to be there. Default false.
    #[serde(default)]
    pub required: bool,
    /// Its JSON Schema. A number, a truth value or a list is read out of the text where its `type` says so; a list of the query is
    /// its values, or one value with commas.
    #[serde(default = "anything")]
    pub schema: Value,
}

/// The body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BodyConfig {
    /// Whether there has to be one. Default false.
    #[serde(default)]
    pub required: bool,
    /// Its JSON Schema. A body that is not JSON is answered with 415.
    pub schema: Value,
}

/// Where a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// A segment of the path that the pattern captures.
    Path,
    /// The query.
    Query,
    /// A header.
    Header,
    /// A cookie.
    Cookie,
}

const fn limit() -> Size {
    Size::bytes(1 << 20)
}

const fn anything() -> Value {
    Value::Bool(true)
}

#[derive(Debug)]
pub(crate) struct Validate {
    path: Option<Pattern>,
    parameters: Vec<Parameter>,
    body: Option<(bool, Validator)>,
    limit: u64,
}

#[derive(Debug)]
struct Parameter {
    name: String,
    place: Place,
    required: bool,
    kind: Kind,
    schema: Validator,
}

/// What a text is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Whole,
    Number,
    Truth,
    /// Of these.
    List(&'static Kind),
}

/// How much is said of what is wrong with one request.
const MISTAKES: usize = 8;

/// Patterns are those that take time linear in the text, whatever a request holds; nothing is fetched.
fn compile(schema: &Value) -> Result<Validator, FilterError> {
    let options = jsonschema::options().with_pattern_options(PatternOptions::regex());
    options.build(schema).map_err(|error| FilterError(format!("this is no JSON Schema that can be used: {error}")))
}

impl Kind {
    fn of(schema: &Value) -> Self {
        // Behind a reference within the schema.
        let target = schema["$ref"].as_str().and_then(|to| schema.pointer(to.strip_prefix('#')?));
        let schema = target.unwrap_or(schema);
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").unwrap_or(&Value::Null),
            kind => kind,
        };
        match kind.as_str() {
            Some("integer") => Self::Whole,
            Some("number") => Self::Number,
            Some("boolean") => Self::Truth,
            Some("array") => Self::List(match Self::of(&schema["items"]) {
                Self::Whole => &Self::Whole,
                Self::Number => &Self::Number,
                Self::Truth => &Self::Truth,
                Self::Text | Self::List(_) => &Self::Text,
            }),
            _ => Self::Text,
        }
    }

    /// What cannot be read so stays a text, and is not what the schema says.
    fn read(self, text: &str) -> Value {
        let read = match self {
            Self::Text => None,
            Self::Whole => text.parse::<i64>().ok().map(Value::from),
            Self::Number => {
                text.parse::<f64>().ok().and_then(|number| serde_json::Number::from_f64(number).map(Value::Number))
            }
            Self::Truth => text.parse::<bool>().ok().map(Value::from),
            Self::List(kind) => Some(text.split(',').map(|item| kind.read(item)).collect()),
        };
        read.unwrap_or_else(|| text.into())
    }
}

impl Validate {
    pub(crate) fn try_new(config: &ValidateConfig) -> Result<Self, FilterError> {
        let path = config.path.as_ref().map(|text| Pattern::try_new(text)).transpose();
        let path = path.map_err(|error| FilterError(error.to_string()))?;
        let mut parameters = Vec::new();
        for parameter in &config.parameters {
            let ParameterConfig { name, r#in: place, required, schema } = parameter;
            let captured = || path.as_ref().is_some_and(|path| path.names().any(|own| own == name));
            if *place == Place::Path && !captured() {
                return Err(FilterError(format!("the parameter `{name}` is nothing that `path` captures")));
            }
            if *place == Place::Header && HeaderName::try_from(name.as_str()).is_err() {
                return Err(FilterError(format!("`{name}` is not the name of a header")));
            }
            let compiled = compile(schema).map_err(|error| FilterError(format!("the parameter `{name}`: {error}")))?;
            let kind = Kind::of(schema);
            parameters.push(Parameter {
                name: name.clone(),
                place: *place,
                required: *required,
                kind,
                schema: compiled,
            });
        }
        let body = config.body.as_ref().map(|body| {
            let schema = compile(&body.schema).map_err(|error| FilterError(format!("the body: {error}")))?;
            Ok((body.required, schema))
        });
        Ok(Self { path, parameters, body: body.transpose()?, limit: config.limit.get() })
    }

    /// All that is wrong with the parameters.
    fn parameters(&self, uri: &Uri, headers: &HeaderMap) -> Vec<Value> {
        let mut mistakes = Vec::new();
        for parameter in &self.parameters {
            let texts = parameter.texts(self.path.as_ref(), uri, headers);
            let mut mistake = |what: String| {
                mistakes.push(json!({ "in": parameter.place, "name": parameter.name, "what": what }));
            };
            let value = match (&texts[..], parameter.kind) {
                ([], _) if parameter.required => {
                    mistake("is missing".to_owned());
                    continue;
                }
                ([], _) => continue,
                ([one], kind) => kind.read(one),
                (many, Kind::List(kind)) => many.iter().map(|text| kind.read(text)).collect(),
                (_, _) => {
                    mistake("is there more than once".to_owned());
                    continue;
                }
            };
            for error in parameter.schema.iter_errors(&value) {
                mistake(error.to_string());
            }
        }
        mistakes
    }

    /// The request again, its body read; or the answer to one that is not what it has to be.
    async fn body(
        &self,
        (required, schema): &(bool, Validator),
        request: Request<RequestBody>,
        next: &Next<'_>,
        mistakes: &mut Vec<Value>,
    ) -> Result<Request<RequestBody>, (StatusCode, String)> {
        if request.body().is_end_stream() {
            if *required {
                mistakes.push(json!({ "in": "body", "name": "", "what": "is missing" }));
            }
            return Ok(request);
        }
        if !is_json(request.headers()) || request.headers().contains_key(CONTENT_ENCODING) {
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body has to be JSON, and not compressed".to_owned()));
        }
        let (mut parts, body) = request.into_parts();
        let body = whole(body, self.limit, next.arrived() + next.timeout()).await.map_err(|unread| match unread {
            Unread::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {}", Size::bytes(self.limit)))
            }
            Unread::Late => (StatusCode::REQUEST_TIMEOUT, "the body was not sent in time".to_owned()),
            Unread::Broken(why) => (StatusCode::BAD_REQUEST, why),
        })?;
        match serde_json::from_slice::<Value>(&body) {
            Ok(value) => {
                let errors = schema.iter_errors(&value).take(MISTAKES);
                let told = errors.map(|error| json!({ "in": "body", "name": error.instance_path().to_string(), "what": error.to_string() }));
                mistakes.extend(told);
            }
            Err(error) => mistakes.push(json!({ "in": "body", "name": "", "what": format!("is not JSON: {error}") })),
        }
        parts.headers.insert(CONTENT_LENGTH, body.len().into());
        Ok(Request::from_parts(parts, body.into()))
    }
}

impl Parameter {
    /// Its values, decoded.
    fn texts(&self, path: Option<&Pattern>, uri: &Uri, headers: &HeaderMap) -> Vec<String> {
        match self.place {
            Place::Path => {
                let segment = path.and_then(|path| path.captures(uri.path()).find(|(name, _)| *name == self.name));
                let decode = |(_, text): (&str, &str)| {
                    // A plus is a plus in a path.
                    let text = text.replace('+', "%2B");
                    form_urlencoded::parse(format!("a={text}").as_bytes()).next().map(|(_, text)| text.into_owned())
                };
                segment.and_then(decode).into_iter().collect()
            }
            Place::Query => {
                let all = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
                all.filter(|(name, _)| *name == self.name).map(|(_, value)| value.into_owned()).collect()
            }
            Place::Header => {
                let all = headers.get_all(&self.name).iter();
                all.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned()).collect()
            }
            Place::Cookie => {
                let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
                let pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
                pairs.filter(|(name, _)| *name == self.name).map(|(_, value)| value.to_owned()).collect()
            }
        }
    }
}

/// What is wrong with a request, for programs (RFC 9457).
fn problem(mistakes: &[Value]) -> Response<ResponseBody> {
    let mut detail = String::new();
    for mistake in mistakes.iter().take(MISTAKES) {
        let word = |key: &str| mistake[key].as_str().unwrap_or_default();
        let separator = if detail.is_empty() { "" } else { "; " };
        // Writing to a string cannot fail.
        let _ = write!(detail, "{separator}{} {}: {}", word("in"), word("name"), word("what"));
    }
    let errors = &mistakes[..mistakes.len().min(MISTAKES)];
    let body =
        json!({ "title": "the request is not what it has to be", "status": 400, "detail": detail, "errors": errors });
    let mut response = Response::new(ResponseBody::whole(body.to_string()));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

impl Filter for Validate {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let mut mistakes = self.parameters(request.uri(), request.headers());
            // A body is not read for nothing.
            if let Some(body) = self.body.as_ref().filter(|_| mistakes.is_empty()) {
                request = match self.body(body, request, &next, &mut mistakes).await {
                    Ok(request) => request,
                    Err((status, why)) => return refused(status, &why),
                };
            }
            if mistakes.is_empty() { next.run(request).await } else { problem(&mistakes) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validate(config: Value) -> Result<Validate, String> {
        Validate::try_new(&serde_json::from_value(config).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn parameters_are_what_their_schemas_say() {
        let validate = validate(json!({
            "path": "/pets/{id}",
            "parameters": [
                { "name": "id", "in": "path", "required": true, "schema": { "type": "integer", "minimum": 1 } },
                { "name": "tag", "in": "query", "schema": { "type": "array", "items": { "type": "string", "maxLength": 3 }, "maxItems": 2 } },
                { "name": "page", "in": "query", "schema": { "$ref": "#/$defs/page", "$defs": { "page": { "type": "integer" } } } },
                { "name": "X-Mode", "in": "header", "required": true, "schema": { "enum": ["a", "b"] } },
                { "name": "beta", "in": "cookie", "schema": { "type": "boolean" } },
            ],
        }))
        .unwrap();
        for (uri, mode, cookie, wrong) in [
            ("/pets/7?tag=a&tag=b&page=3", "a", "beta=true", &[][..]),
            ("/pets/7?tag=a,b", "a", "x=y", &[]),
            ("/pets/%37", "b", "", &[]),
            ("/pets/0", "a", "", &["id"]),
            ("/pets/x?page=one", "a", "", &["id", "page"]),
            ("/pets/7?page=1&page=2", "a", "", &["page"]),
            ("/pets/7?tag=long&tag=b&tag=c", "a", "beta=1", &["tag", "tag", "beta"]),
            ("/pets/7", "c", "", &["X-Mode"]),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-mode", mode.parse().unwrap());
            headers.insert(COOKIE, cookie.parse().unwrap());
            let mistakes = validate.parameters(&uri.parse().unwrap(), &headers);
            let names: Vec<_> = mistakes.iter().map(|mistake| mistake["name"].as_str().unwrap()).collect();
            assert_eq!(names, wrong, "{uri} {mode} {cookie}: {mistakes:?}");
        }
        let missing = validate.parameters(&"/pets/7".parse().unwrap(), &HeaderMap::new());
        assert_eq!(missing[0]["what"], "is missing");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (config, says) in [
            (json!({ "parameters": [{ "name": "id", "in": "path" }] }), "nothing that `path` captures"),
            (json!({ "parameters": [{ "name": "a b", "in": "header" }] }), "not the name of a header"),
            (
                json!({ "parameters": [{ "name": "a", "in": "query", "schema": { "type": "number?" } }] }),
                "no JSON Schema",
            ),
            (json!({ "body": { "schema": { "pattern": "(?=a)" } } }), "no JSON Schema"),
            (json!({ "body": { "schema": { "$ref": "https://example.com/x" } } }), "no JSON Schema"),
        ] {
            let error = validate(config.clone()).unwrap_err();
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
