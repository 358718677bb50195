//! Changing bodies of JSON on their way: taking out, renaming, adding, or making another of them.

use std::collections::BTreeMap;
use std::time::Instant;

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, IF_RANGE, RANGE};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use schemars::JsonSchema;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_proxy::{RequestBody, ResponseBody};
use seawall_types::Size;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::whole::{Unread, is_json, whole};
use super::{FilterError, refused};

/// How bodies of JSON are changed. Others pass as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonConfig {
    /// Those of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<JsonChange>,
    /// Those of answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<JsonChange>,
    /// The largest body that is read; of a larger one the request is answered with 413, the answer with 502. Default 1 MiB.
    #[serde(default = "limit")]
    pub limit: Size,
}

/// What is done to a body, in this order. A place is the name of a member, or a JSON pointer (`/order/lines/*/price`), in which `*`
/// stands for every item or member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonChange {
    /// Takes out what is at these places.
    #[serde(default)]
    pub remove: Vec<String>,
    /// Takes out the members of these names, however deep.
    #[serde(default)]
    pub remove_everywhere: Vec<String>,
    /// Gives the members at these places other names.
    #[serde(default)]
    pub rename: BTreeMap<String, String>,
    /// Puts values at these places, replacing what is there; objects on the way are made.
    #[serde(default)]
    pub add: BTreeMap<String, Value>,
    /// What the body becomes: a text `${/order/id}` in it is what is at that place, of whatever kind; within a longer text, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Value>,
}

const fn limit() -> Size {
    Size::bytes(1 << 20)
}

#[derive(Debug)]
pub(crate) struct Json {
    request: Option<Change>,
    response: Option<Change>,
    limit: u64,
}

/// A place in a body: the steps to it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    All,
}

#[derive(Debug)]
struct Change {
    remove: Vec<Place>,
    remove_everywhere: Vec<String>,
    rename: Vec<(Place, String)>,
    add: Vec<(Place, Value)>,
    template: Option<Value>,
}

impl Place {
    fn try_new(text: &str) -> Result<Self, FilterError> {
        let Some(pointer) = text.strip_prefix('/') else {
            return match text {
                "" => {
                    Err(FilterError("a place is a name, or a JSON pointer such as /order/id; this one is empty".into()))
                }
                name => Ok(Self(vec![Step::Name(name.to_owned())])),
            };
        };
        let step = |part: &str| match part {
            "*" => Step::All,
            part => Step::Name(part.replace("~1", "/").replace("~0", "~")),
        };
        Ok(Self(pointer.split('/').map(step).collect()))
    }

    /// Calls `act` with everything that holds what is at the place, and the name under which it does.
    fn each(&self, body: &mut Value, act: &mut impl FnMut(&mut Value, &str)) {
        let Some((last, way)) = self.0.split_last() else { return };
        walk(body, way, &mut |holder| match last {
            Step::Name(name) => act(holder, name),
            Step::All => {
                let names: Vec<String> = match &*holder {
                    Value::Object(members) => members.keys().cloned().collect(),
                    // From the last, so that taking one out does not move the others.
                    Value::Array(items) => (0..items.len()).rev().map(|at| at.to_string()).collect(),
                    _ => Vec::new(),
                };
                names.iter().for_each(|name| act(holder, name));
            }
        });
    }
}

fn walk(value: &mut Value, way: &[Step], act: &mut impl FnMut(&mut Value)) {
    let Some((first, rest)) = way.split_first() else { return act(value) };
    match (first, value) {
        (Step::Name(name), Value::Object(members)) => {
            if let Some(value) = members.get_mut(name) {
                walk(value, rest, act);
            }
        }
        (Step::Name(name), Value::Array(items)) => {
            if let Some(value) = name.parse::<usize>().ok().and_then(|at| items.get_mut(at)) {
                walk(value, rest, act);
            }
        }
        (Step::All, Value::Object(members)) => members.values_mut().for_each(|value| walk(value, rest, act)),
        (Step::All, Value::Array(items)) => items.iter_mut().for_each(|value| walk(value, rest, act)),
        _ => {}
    }
}

fn remove(holder: &mut Value, name: &str) {
    match holder {
        Value::Object(members) => drop(members.shift_remove(name)),
        Value::Array(items) => {
            if let Some(at) = name.parse().ok().filter(|at| *at < items.len()) {
                items.remove(at);
            }
        }
        _ => {}
    }
}

fn remove_everywhere(value: &mut Value, names: &[String]) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !names.contains(name));
            members.values_mut().for_each(|value| remove_everywhere(value, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| remove_everywhere(value, names)),
        _ => {}
    }
}

fn rename(holder: &mut Value, from: &str, to: &str) {
    let Value::Object(members) = holder else { return };
    if from == to || !members.contains_key(from) {
        return;
    }
    // Where it stood, and instead of what had the name.
    members.shift_remove(to);
    let moved = std::mem::take(members).into_iter();
    *members = moved.map(|(name, value)| if name == from { (to.to_owned(), value) } else { (name, value) }).collect();
}

/// Puts a value where the place says; nowhere, where something else than an object is in its way.
fn put(value: &mut Value, way: &[Step], new: &Value) {
    let Some((first, rest)) = way.split_first() else {
        *value = new.clone();
        return;
    };
    match (first, value) {
        (Step::Name(name), Value::Object(members)) => {
            let below = || if rest.is_empty() { Value::Null } else { Value::Object(Map::new()) };
            put(members.entry(name.clone()).or_insert_with(below), rest, new);
        }
        (Step::Name(name), Value::Array(items)) => {
            if let Some(value) = name.parse::<usize>().ok().and_then(|at| items.get_mut(at)) {
                put(value, rest, new);
            }
        }
        (Step::All, Value::Object(members)) => members.values_mut().for_each(|value| put(value, rest, new)),
        (Step::All, Value::Array(items)) => items.iter_mut().for_each(|value| put(value, rest, new)),
        _ => {}
    }
}

/// A template with what its texts stand for.
fn fill(template: &Value, body: &Value) -> Value {
    match template {
        Value::String(text) => text_of(text, body),
        Value::Array(items) => items.iter().map(|item| fill(item, body)).collect(),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(name, value)| (name.clone(), fill(value, body))).collect())
        }
        other => other.clone(),
    }
}

fn text_of(text: &str, body: &Value) -> Value {
    let whole = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    if let Some(pointer) = whole.filter(|pointer| !pointer.contains('}')) {
        return body.pointer(pointer).cloned().unwrap_or(Value::Null);
    }
    let (mut made, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let Some((pointer, after)) = after.split_once('}') else { break };
        made += before;
        match body.pointer(pointer) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => made += text,
            Some(other) => made += &other.to_string(),
        }
        rest = after;
    }
    Value::String(made + rest)
}

/// What stands in a template is a pointer, and is closed.
fn check_template(template: &Value) -> Result<(), FilterError> {
    match template {
        Value::String(text) => {
            for part in text.split("${").skip(1) {
                let pointer = part.split_once('}').map(|(pointer, _)| pointer);
                if !pointer.is_some_and(|pointer| pointer.is_empty() || pointer.starts_with('/')) {
                    let why = format!("`{text}`: what stands in `${{...}}` is a JSON pointer such as `${{/order/id}}`");
                    return Err(FilterError(why));
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(check_template),
        Value::Object(members) => members.values().try_for_each(check_template),
        _ => Ok(()),
    }
}

impl Change {
    fn try_new(config: &JsonChange) -> Result<Self, FilterError> {
        let places = |list: &[String]| list.iter().map(|text| Place::try_new(text)).collect::<Result<Vec<_>, _>>();
        let rename = config.rename.iter().map(|(from, to)| Ok((Place::try_new(from)?, to.clone())));
        let add = config.add.iter().map(|(place, value)| {
            check_template(value)?;
            Ok((Place::try_new(place)?, value.clone()))
        });
        config.template.iter().try_for_each(check_template)?;
        let change = Self {
            remove: places(&config.remove)?,
            remove_everywhere: config.remove_everywhere.clone(),
            rename: rename.collect::<Result<_, FilterError>>()?,
            add: add.collect::<Result<_, FilterError>>()?,
            template: config.template.clone(),
        };
        Ok(change)
    }

    fn apply(&self, body: &mut Value) {
        for place in &self.remove {
            place.each(body, &mut remove);
        }
        if !self.remove_everywhere.is_empty() {
            remove_everywhere(body, &self.remove_everywhere);
        }
        for (place, to) in &self.rename {
            place.each(body, &mut |holder, from| rename(holder, from, to));
        }
        for (place, value) in &self.add {
            let value = fill(value, body);
            put(body, &place.0, &value);
        }
        if let Some(template) = &self.template {
            *body = fill(template, body);
        }
    }
}

impl Json {
    pub(crate) fn try_new(config: &JsonConfig) -> Result<Self, FilterError> {
        if config.request.is_none() && config.response.is_none() {
            return Err(FilterError("say what is changed: `request`, `response` or both".to_owned()));
        }
        Ok(Self {
            request: config.request.as_ref().map(Change::try_new).transpose()?,
            response: config.response.as_ref().map(Change::try_new).transpose()?,
            limit: config.limit.get(),
        })
    }

    /// The request with its body changed; or with what one is answered that cannot be.
    async fn change_request(
        &self,
        change: &Change,
        request: Request<RequestBody>,
        until: Instant,
    ) -> Result<Request<RequestBody>, (StatusCode, String)> {
        if !is_json(request.headers()) || request.body().is_end_stream() {
            return Ok(request);
        }
        if is_encoded(request.headers()) {
            let detail = "the body is compressed: what is in it cannot be changed";
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, detail.to_owned()));
        }
        let (mut parts, body) = request.into_parts();
        let refuse = |status, detail: String| Err((status, detail));
        let body = match whole(body, self.limit, until).await {
            Ok(body) => body,
            Err(Unread::TooLarge) => {
                let detail = format!("the body is larger than {}", Size::bytes(self.limit));
                return refuse(StatusCode::PAYLOAD_TOO_LARGE, detail);
            }
            Err(Unread::Late) => {
                return refuse(StatusCode::REQUEST_TIMEOUT, "the body was not sent in time".to_owned());
            }
            Err(Unread::Broken(why)) => return refuse(StatusCode::BAD_REQUEST, why),
        };
        let mut value: Value = match serde_json::from_slice(&body) {
            Ok(value) => value,
            Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")),
        };
        change.apply(&mut value);
        parts.headers.remove(CONTENT_LENGTH);
        Ok(Request::from_parts(parts, bytes::Bytes::from(value.to_string()).into()))
    }

    async fn change_response(
        &self,
        change: &Change,
        response: Response<ResponseBody>,
        until: Instant,
    ) -> Response<ResponseBody> {
        let bodiless = matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if bodiless || !is_json(response.headers()) {
            return response;
        }
        // What was to be taken out must not pass because it could not be read.
        let refuse = |detail: String| refused(StatusCode::BAD_GATEWAY, &detail);
        if is_encoded(response.headers()) {
            return refuse("the service's answer is compressed though that was not asked for".to_owned());
        }
        let (mut parts, body) = response.into_parts();
        let body = match whole(body, self.limit, until).await {
            Ok(body) if body.is_empty() => body,
            Ok(body) => match serde_json::from_slice::<Value>(&body) {
                Ok(mut value) => {
                    change.apply(&mut value);
                    value.to_string().into()
                }
                Err(error) => return refuse(format!("the service's answer is not JSON: {error}")),
            },
            Err(Unread::TooLarge) => {
                return refuse(format!("the service's answer is larger than {}", Size::bytes(self.limit)));
            }
            Err(Unread::Late) => return refuse("the service's answer was not whole in time".to_owned()),
            Err(Unread::Broken(why)) => return refuse(format!("the service's answer broke off: {why}")),
        };
        for name in [CONTENT_LENGTH.as_str(), "content-digest", "repr-digest", "digest", "content-md5", "accept-ranges"]
        {
            parts.headers.remove(name);
        }
        Response::from_parts(parts, ResponseBody::whole(body))
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

impl Filter for Json {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            if let Some(change) = &self.request {
                request = match self.change_request(change, request, next.arrived() + next.timeout()).await {
                    Ok(request) => request,
                    Err((status, why)) => return refused(status, &why),
                };
            }
            let Some(change) = &self.response else { return next.run(request).await };
            // Neither compressed nor a part: it has to be read.
            for name in [ACCEPT_ENCODING, RANGE, IF_RANGE] {
                request.headers_mut().remove(name);
            }
            let head = request.method() == Method::HEAD;
            let mut response = next.run(request).await;
            if head {
                response.headers_mut().remove(CONTENT_LENGTH);
                return response;
            }
            self.change_response(change, response, Instant::now() + next.timeout()).await
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn change(config: Value) -> Result<Change, String> {
        let config: JsonChange = serde_json::from_value(config).unwrap();
        Change::try_new(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn bodies_are_changed() {
        let given = json!({ "id": 7, "who": { "name": "a", "password": "x" }, "lines": [{ "id": 1, "cost": 2 }, { "id": 2 }], "a/b": 1 });
        for (config, made) in [
            (
                json!({ "remove": ["id", "who", "/lines/*/cost", "/a~1b", "none", "/lines/9"] }),
                json!({ "lines": [{ "id": 1 }, { "id": 2 }] }),
            ),
            (json!({ "remove": ["/lines/0", "/who/*", "a/b"] }), json!({ "id": 7, "who": {}, "lines": [{ "id": 2 }] })),
            (json!({ "remove": ["/lines/*", "who", "a/b"] }), json!({ "id": 7, "lines": [] })),
            (
                json!({ "remove_everywhere": ["id", "password"], "remove": ["a/b"] }),
                json!({ "who": { "name": "a" }, "lines": [{ "cost": 2 }, {}] }),
            ),
            (
                json!({ "remove": ["who", "a/b"], "rename": { "id": "number", "/lines/*/id": "line", "x": "y" } }),
                json!({ "number": 7, "lines": [{ "line": 1, "cost": 2 }, { "line": 2 }] }),
            ),
            (
                json!({ "remove": ["who", "lines", "a/b"], "add": { "/x/y": true, "/id/z": 1, "copy": "${/id}" } }),
                json!({ "id": 7, "x": { "y": true }, "copy": 7 }),
            ),
            (
                json!({ "template": { "order": "${/id}", "text": "${/id} of ${/who/name}${/none}", "all": ["${/lines}", "${/none}"] } }),
                json!({ "order": 7, "text": "7 of a", "all": [[{ "id": 1, "cost": 2 }, { "id": 2 }], null] }),
            ),
            (json!({ "template": "${/who}" }), json!({ "name": "a", "password": "x" })),
        ] {
            let mut body = given.clone();
            change(config.clone()).unwrap().apply(&mut body);
            assert_eq!(body, made, "{config}");
        }
        let mut body = given.clone();
        change(json!({ "rename": { "id": "number" }, "remove": ["a/b"] })).unwrap().apply(&mut body);
        assert!(body.to_string().starts_with(r#"{"number":7,"who":"#), "it stays where it stood: {body}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (config, says) in [
            (json!({ "remove": [""] }), "this one is empty"),
            (json!({ "template": ["${id}"] }), "is a JSON pointer"),
            (json!({ "template": "${/id" }), "is a JSON pointer"),
            (json!({ "add": { "a": "${x}" } }), "is a JSON pointer"),
        ] {
            let error = change(config.clone()).unwrap_err();
            assert!(error.contains(says), "{config}: {error}");
        }
        assert!(Json::try_new(&serde_json::from_str("{}").unwrap()).is_err());
    }
}
