//! A composition at work: makes the calls of a run, all at the same time, and answers.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use seawall_proxy::filter::{Answering, Filter, Fixed, Next};
use seawall_proxy::reject::Reason;
use seawall_proxy::{Client, ReadError, RequestBody, ResponseBody, headers};
use seawall_resilience::Chain;
use seawall_telemetry::metrics::Counter;
use seawall_types::ServiceName;
use seawall_types::header::PRIORITY;
use serde_json::{Value, json};
use tokio::time::timeout_at;

use super::config::ComposeConfig;
use super::plan::{Plan, Problems};
use super::run::{Effect, Failure, Instead, Missing, Outcome, Outgoing, Run, Why, Words};
use super::template::{Known, decoded};
use crate::auth::identity::Identity;
use crate::path::Pattern;
use crate::split::Splits;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// Lists the parts that are missing or replaced (RFC 9651, a list of tokens).
const PARTIAL: HeaderName = HeaderName::from_static("seawall-partial");
/// Names the part for whose sake there is no answer.
const FAILED: HeaderName = HeaderName::from_static("seawall-failed-part");
/// The most of a client error's own words that is passed on.
const WORDS: usize = 64 << 10;
/// What tells who a request is for and how much it matters.
const ALWAYS: [&str; 8] = [
    "traceparent",
    "tracestate",
    PRIORITY,
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

/// A route's composition.
#[derive(Debug)]
pub(crate) struct Compose {
    plan: Plan,
    pattern: Option<Pattern>,
    timeout: Duration,
    cache_control: Option<HeaderValue>,
    /// The largest body of a request that is read; none where no template asks.
    body: Option<usize>,
    /// What is answered instead of a 5xx.
    fallback: Option<Fixed>,
    splits: Splits,
    /// How often each part has failed.
    failures: Vec<OnceLock<Arc<Counter>>>,
}

type Calls<'a> = Vec<(usize, Pin<Box<dyn Future<Output = Result<Value, Failure>> + Send + 'a>>)>;

impl Compose {
    /// Checks and compiles what is written, for requests whose path fits `pattern`.
    ///
    /// # Errors
    /// All that is wrong.
    pub(crate) fn try_new(
        config: &ComposeConfig,
        pattern: Option<&Pattern>,
        fallback: Option<Fixed>,
        splits: Splits,
    ) -> Result<Self, Problems> {
        let captures: Vec<&str> = pattern.into_iter().flat_map(Pattern::names).collect();
        let plan = Plan::try_new(config, &captures);
        let cache_control = config.cache_control.as_deref().map(HeaderValue::from_str).transpose();
        let cache_control = cache_control.map_err(|_| {
            vec![("cache_control".to_owned(), "this is not the value of a header such as `max-age=5`".to_owned())]
        });
        let (plan, cache_control) = match (plan, cache_control) {
            (Ok(plan), Ok(cache_control)) => (plan, cache_control),
            (plan, cache_control) => {
                return Err(plan.err().into_iter().chain(cache_control.err()).flatten().collect());
            }
        };
        let limit = usize::try_from(config.body.get()).unwrap_or(usize::MAX);
        Ok(Self {
            body: plan.reads_body().then_some(limit),
            failures: plan.parts.iter().map(|_| OnceLock::new()).collect(),
            plan,
            pattern: pattern.cloned(),
            timeout: config.timeout.get(),
            cache_control,
            fallback,
            splits,
        })
    }

    async fn compose(&self, request: Request<RequestBody>, next: Next<'_>) -> Response<ResponseBody> {
        let (mut parts, body) = request.into_parts();
        let given = headers::timeout(&parts.headers).unwrap_or(Duration::MAX);
        let until = next.arrived() + self.timeout.min(given);
        // All parts are of one trace, whether or not the client has begun it.
        headers::trace(&mut parts.headers);
        let body = match self.body {
            None => Value::Null,
            Some(limit) => match read(body, limit, until).await {
                Ok(body) => body,
                Err((status, why)) => return told(status, &json!({ "error": why })),
            },
        };
        let path = parts.uri.path();
        let captures = self.pattern.iter().flat_map(|pattern| pattern.captures(path));
        let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let known = Known {
            captures: captures.map(|(name, value)| (name.to_owned(), decoded(value))).collect(),
            query: query.into_owned().collect(),
            claims: Identity::of(&parts.extensions).map(|identity| identity.claims.clone()),
            headers: parts.headers.clone(),
            body,
        };
        let chain = Chain::narrow(headers::retries_left(&parts.headers), None);
        let client = next.caller();
        let outcome = self.run(Run::new(&self.plan, known), &client, &parts.headers, until, next);
        let (outcome, left) = match chain {
            Some(chain) => (chain.clone().scope(outcome).await, Some(chain.left())),
            None => (outcome.await, None),
        };
        let mut response = self.answer(outcome);
        headers::tell_retries_left(response.headers_mut(), left);
        response
    }

    /// The effects of a run. Dropped with all its calls when the client has gone.
    async fn run<'a>(
        &'a self,
        mut run: Run<'a>,
        client: &'a Client,
        given: &'a HeaderMap,
        until: Instant,
        next: Next<'_>,
    ) -> Outcome {
        let mut calls: Calls<'a> = Vec::new();
        let mut effects = run.begin();
        loop {
            for effect in effects {
                match effect {
                    Effect::Cancel(part) => calls.retain(|(called, _)| *called != part),
                    Effect::Call(part, outgoing) => {
                        let limit = self.plan.parts[part].limit;
                        let named = &outgoing.source.service;
                        let split = self.splits.get(named);
                        let service = split.map_or(named, |split| split.choose(given, || fastrand::u64(..))).clone();
                        calls.push((part, Box::pin(call(client, service, outgoing, given, limit, until))));
                    }
                }
            }
            if let Some(outcome) = run.outcome() {
                return outcome;
            }
            let (part, result) = first(&mut calls).await;
            if let Err(failure) = &result {
                let name = &self.plan.parts[part].name;
                tracing::debug!(route = next.route(), part = %name, why = %failure.why.word(), "{}", failure.detail);
                self.failures[part]
                    .get_or_init(|| {
                        const FAMILY: &str = "seawall_compose_failed_total";
                        const HELP: &str = "Calls of a composition's parts that have failed.";
                        next.counter(FAMILY, HELP, &[("route", next.route()), ("part", name)])
                    })
                    .increment();
            }
            effects = run.settle(part, result);
        }
    }

    fn answer(&self, outcome: Outcome) -> Response<ResponseBody> {
        match outcome {
            Outcome::Answer { value, missing } => {
                let mut response = told(StatusCode::OK, &value);
                let headers = response.headers_mut();
                headers.remove(CACHE_CONTROL);
                if missing.is_empty() {
                    headers.extend(self.cache_control.clone().map(|value| (CACHE_CONTROL, value)));
                } else {
                    headers.insert(CACHE_CONTROL, NO_STORE);
                    headers.extend(self.partial(&missing).map(|value| (PARTIAL, value)));
                }
                response
            }
            Outcome::Failed { part, failure } => self.failed(part, failure),
        }
    }

    /// `recommendations;reason=timeout;instead=default`
    fn partial(&self, missing: &[Missing]) -> Option<HeaderValue> {
        let item = |missing: &Missing| {
            let Missing { part, reason, instead } = missing;
            let instead =
                if *instead == Instead::Nothing { String::new() } else { format!(";instead={}", instead.as_str()) };
            format!("{};reason={reason}{instead}", self.plan.parts[*part].name)
        };
        HeaderValue::try_from(missing.iter().map(item).collect::<Vec<_>>().join(", ")).ok()
    }

    fn failed(&self, part: usize, failure: Failure) -> Response<ResponseBody> {
        let name = &self.plan.parts[part].name;
        let status = failure.why.status();
        let mut response = match &self.fallback {
            Some(fallback) if status.is_server_error() => fallback.response(),
            _ => {
                let mut body = json!({
                    "error": format!("the part `{name}` failed: {}", failure.detail),
                    "part": name,
                    "reason": failure.why.word(),
                });
                let mut more = Vec::new();
                if let Why::Status(_, Some(words)) = failure.why {
                    more = words.headers;
                    if let Some(words) = words.body {
                        body["answer"] = words;
                    }
                }
                let mut response = told(status, &body);
                response.headers_mut().extend(more);
                response
            }
        };
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, NO_STORE);
        headers.extend(HeaderValue::from_str(name).ok().map(|name| (FAILED, name)));
        response
    }
}

impl Filter for Compose {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(self.compose(request, next))
    }
}

fn told(status: StatusCode, value: &Value) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
    response
}

/// The first call that ends, without it. There are few, and each wakes all.
async fn first(calls: &mut Calls<'_>) -> (usize, Result<Value, Failure>) {
    poll_fn(|context| {
        for at in 0..calls.len() {
            if let Poll::Ready(result) = calls[at].1.as_mut().poll(context) {
                let (part, _) = calls.swap_remove(at);
                return Poll::Ready((part, result));
            }
        }
        Poll::Pending
    })
    .await
}

/// One call, bounded in time and size.
async fn call(
    client: &Client,
    service: ServiceName,
    outgoing: Outgoing<'_>,
    given: &HeaderMap,
    limit: usize,
    until: Instant,
) -> Result<Value, Failure> {
    let Outgoing { source, target, headers: own, body } = outgoing;
    let fail = |why: Why, detail: String| Failure { why, detail };
    let request = Request::builder().method(&source.method).uri(target).body(Bytes::new());
    let mut request =
        request.map_err(|error| fail(Why::Absent { clients: true }, format!("its address is none: {error}")))?;
    let fields = request.headers_mut();
    for name in ALWAYS {
        for value in given.get_all(name) {
            fields.append(name, value.clone());
        }
    }
    fields.insert(ACCEPT, JSON);
    for (at, (name, value)) in own.iter().enumerate() {
        if own[..at].iter().any(|(before, _)| before == name) {
            fields.append(name, value.clone());
        } else {
            fields.insert(name, value.clone());
        }
    }
    let left = until.saturating_duration_since(Instant::now());
    headers::set_timeout(fields, source.timeout.map_or(left, |timeout| timeout.min(left)));
    if let Some(body) = body {
        fields.insert(CONTENT_TYPE, JSON);
        *request.body_mut() = body.to_string().into();
    }
    let response =
        client.send(&service, request).await.map_err(|error| fail(Why::Rejected(error.0.reason), error.to_string()))?;
    let status = response.status();
    let (head, body) = response.into_parts();
    if !status.is_success() {
        let mut words = None;
        if status.is_client_error() {
            let named = [RETRY_AFTER, WWW_AUTHENTICATE].into_iter();
            let named = named.filter_map(|name| head.headers.get(&name).map(|value| (name, value.clone())));
            let body = body.whole(limit.min(WORDS)).await.ok().and_then(|body| serde_json::from_slice(&body).ok());
            words = Some(Box::new(Words { headers: named.collect(), body }));
        }
        let detail = format!("`{}` answers {}", service, status.as_u16());
        return Err(fail(Why::Status(status, words), detail));
    }
    let body = body.whole(limit).await.map_err(|error| {
        let why = match error {
            ReadError::Timeout(_) => Why::Rejected(Reason::Timeout),
            ReadError::TooLarge(_) => Why::TooLarge,
            ReadError::Broken(_) => Why::Broken,
        };
        fail(why, format!("`{}`: {error}", service))
    })?;
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body)
        .map_err(|error| fail(Why::NotJson, format!("the answer of `{}` is not JSON: {error}", service)))
}

/// The request's own body, as JSON.
async fn read(body: RequestBody, limit: usize, until: Instant) -> Result<Value, (StatusCode, String)> {
    let whole = match timeout_at(until.into(), Limited::new(body, limit).collect()).await {
        Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time".into())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("the request's body is larger than {limit} bytes")));
        }
        Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, format!("the request's body broke off: {error}"))),
        Ok(Ok(whole)) => whole.to_bytes(),
    };
    if whole.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&whole)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("the request's body is not JSON: {error}")))
}
