//! Another service decides who passes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use schemars::JsonSchema;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_proxy::{RequestBody, ResponseBody};
use seawall_types::{Period, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FilterError, name};
use crate::auth::denied::Denied;
use crate::auth::identity::{Told, strip, tell};
use crate::auth::place::Place;

/// Who is asked, and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalAuthConfig {
    /// The service that decides: any 2xx lets the request pass, another answer goes to the client.
    pub service: ServiceName,
    /// What is asked there. Default `/`.
    #[serde(default = "root")]
    pub path: String,
    /// By which method. Default GET. The request's own stands in `x-forwarded-method`, its path with its query in
    /// `x-forwarded-uri`.
    #[serde(default = "get")]
    pub method: String,
    /// The headers that it gets of the request. Default: `[authorization, cookie]`.
    #[serde(default = "headers")]
    pub headers: Vec<String>,
    /// The headers of its answer that the request gets. What a client sends in them is taken away.
    #[serde(default)]
    pub copy: Vec<String>,
    /// The headers of its answer that the client gets, if the request does not pass. Default: `[content-type, location,
    /// retry-after, set-cookie, www-authenticate]`.
    #[serde(default = "answer")]
    pub answer: Vec<String>,
    /// How long it may take. Default 1s.
    #[serde(default = "timeout")]
    pub timeout: Period,
    /// What becomes of a request if the service cannot be asked, takes too long, or answers with 5xx. Default deny.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// What becomes of a request when nobody can judge it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is answered with 503.
    #[default]
    Deny,
    /// It passes, as nobody's.
    Allow,
}

fn root() -> String {
    "/".to_owned()
}

fn get() -> String {
    "GET".to_owned()
}

fn headers() -> Vec<String> {
    ["authorization", "cookie"].map(str::to_owned).to_vec()
}

fn answer() -> Vec<String> {
    ["content-type", "location", "retry-after", "set-cookie", "www-authenticate"].map(str::to_owned).to_vec()
}

const fn timeout() -> Period {
    Period::secs(1)
}

#[derive(Debug)]
pub(crate) struct ExternalAuth {
    place: Place,
    method: Method,
    headers: Vec<HeaderName>,
    copy: Vec<HeaderName>,
    answer: Vec<HeaderName>,
    timeout: Duration,
    on_failure: OnFailure,
}

const METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
/// What this gateway has said about the client, and what belongs to the request's trace.
const ALWAYS: [&str; 5] = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded", "traceparent"];

impl ExternalAuth {
    pub(crate) fn try_new(config: &ExternalAuthConfig) -> Result<Self, FilterError> {
        let error = |why: String| FilterError(format!("external_auth: {why}"));
        let inner = |FilterError(why)| error(why);
        let names =
            |names: &[String]| names.iter().map(|text| name(text)).collect::<Result<Vec<_>, _>>().map_err(inner);
        let method = Method::from_bytes(config.method.as_bytes()).ok();
        let method = method.filter(|method| [Method::GET, Method::HEAD, Method::POST].contains(method));
        if config.timeout.is_zero() {
            return Err(error("`timeout` must be longer than zero".to_owned()));
        }
        Ok(Self {
            place: Place::service(&config.service, &config.path).map_err(inner)?,
            method: method.ok_or_else(|| error(format!("`{}` is not GET, HEAD or POST", config.method)))?,
            headers: names(&config.headers)?,
            copy: names(&config.copy)?,
            answer: names(&config.answer)?,
            timeout: config.timeout.get(),
            on_failure: config.on_failure,
        })
    }

    fn question(&self, request: &Request<RequestBody>) -> Request<Bytes> {
        let mut question = Request::new(Bytes::new());
        *question.method_mut() = self.method.clone();
        let headers = question.headers_mut();
        let always = ALWAYS.map(HeaderName::from_static);
        for name in
            always.iter().chain(&self.headers).filter(|name| ![HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name))
        {
            copy(request.headers(), headers, name);
        }
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        for (name, text) in [(METHOD, request.method().as_str()), (URI, target)] {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        }
        question
    }

    /// What the client gets instead of an answer of the service that it asked for.
    fn refusal(&self, answer: Response<Bytes>) -> Response<ResponseBody> {
        let (parts, body) = answer.into_parts();
        let mut response = Response::new(ResponseBody::whole(body));
        *response.status_mut() = parts.status;
        for name in &self.answer {
            copy(&parts.headers, response.headers_mut(), name);
        }
        response
    }
}

fn copy(from: &HeaderMap, to: &mut HeaderMap, name: &HeaderName) {
    to.remove(name);
    for value in from.get_all(name) {
        to.append(name, value.clone());
    }
}

impl Filter for ExternalAuth {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            strip(request.headers_mut(), self.copy.iter());
            let asked = self.place.ask(&next.caller(), self.question(&request), self.timeout).await;
            let failure = match asked {
                Ok(answer) if answer.status().is_success() => {
                    let present = self.copy.iter().filter_map(|name| Some((name, answer.headers().get(name)?)));
                    let told: Told = present.map(|(name, value)| (name.clone(), value.clone())).collect();
                    let text = |value: &HeaderValue| Value::from(String::from_utf8_lossy(value.as_bytes()));
                    let claims = told.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
                    tell(&mut request, &Arc::new(Value::Object(claims)), &told);
                    return next.run(request).await;
                }
                Ok(answer) if !answer.status().is_server_error() && answer.status() >= StatusCode::MULTIPLE_CHOICES => {
                    tracing::debug!(
                        filter = "external_auth",
                        route = next.route(),
                        status = answer.status().as_u16(),
                        "denied"
                    );
                    return self.refusal(answer);
                }
                Ok(answer) => format!("it answered {}", answer.status()),
                Err(why) => why,
            };
            tracing::warn!(from = %self.place, route = next.route(), why = failure, allowed = self.on_failure == OnFailure::Allow, "nobody could say whether a request may pass");
            match self.on_failure {
                OnFailure::Allow => next.run(request).await,
                OnFailure::Deny => Denied::unknown("it cannot be known at the moment whether this is allowed")
                    .response("external_auth", next.route()),
            }
        })
    }
}
