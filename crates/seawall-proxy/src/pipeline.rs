//! The way of a request. The verbs, in order; each takes the noun before it:
//!
//! ```text
//! Inbound -route-> Matched -prepare-> Prepared -[ admit -> Admitted -pick-> Attempt -send-> ]- Outcome -record-> done
//!                                               retry: the only loop
//! ```
//!
//! `route`, `prepare`, `admit` (but for a bulkhead's wait) and `pick` are pure; only `send` does I/O; nothing awaits
//! the control plane. The order of the policies is that of `seawall-resilience`: each attempt passes the breaker and
//! the bulkhead anew. Every request, rejected or not, leaves through `record`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, EXPECT, HOST};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use seawall_resilience::breaker::{self, Breaker};
use seawall_resilience::{Outcome, bulkhead};
use seawall_types::{ServiceName, header};
use tokio::time::timeout_at;

use crate::balance;
use crate::body::{RequestBody, ResponseBody};
use crate::filter::{Fallback, Filters};
use crate::headers::{self, Forwarding};
use crate::pool::{self, Connection};
use crate::reject::{Reason, Rejection, promises_unsent};
use crate::upstream::{BreakerOf, Endpoint, Upstream, View};

/// The largest request body that is kept so that it can be sent again.
const REPLAY: u64 = 64 * 1024;
/// No connection takes longer to open; a host that does not answer is as good as gone.
const CONNECT: Duration = Duration::from_secs(1);

/// Chooses a route; the gateway's table and the sidecar's two sides are the implementations. Pure.
pub trait Router: Send + Sync + 'static {
    /// The route of a request.
    ///
    /// # Errors
    /// [`RouteError`] when there is none.
    fn route(&self, request: &Parts) -> Result<Matched, RouteError>;
}

/// A request that is going nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteError {
    /// [`Reason::NoRoute`] or [`Reason::BadRequest`].
    pub reason: Reason,
    /// For people.
    pub detail: String,
}

/// What a route does to its requests.
#[derive(Debug, Default)]
pub struct Route {
    /// Its name in the file.
    pub id: Box<str>,
    /// What it changes on the way.
    pub filters: Filters,
    /// What is answered when the service cannot.
    pub fallback: Option<Fallback>,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Matched {
    /// By which route.
    pub route: Arc<Route>,
    /// To which service.
    pub service: ServiceName,
    /// The path and query that the service sees; `None` leaves them as they are.
    pub path: Option<PathAndQuery>,
}

/// A request whose headers are those of the next hop.
struct Prepared {
    upstream: Arc<Upstream>,
    request: Request<RequestBody>,
    deadline: Instant,
    /// May be sent again although it may have arrived: an idempotent method, or an `Idempotency-Key`.
    repeatable: bool,
}

/// A request that the policies let pass; holds what they gave.
struct Admitted {
    permit: Option<breaker::Permit<BreakerOf>>,
    place: Option<bulkhead::Permit>,
}

/// A request about to be sent to one endpoint. Dropped before its end, it says nothing about the endpoint.
#[derive(Debug)]
struct Attempt {
    upstream: Arc<Upstream>,
    endpoint: Option<Arc<Endpoint>>,
    permit: Option<breaker::Permit<BreakerOf>>,
    _place: Option<bulkhead::Permit>,
}

/// An attempt that failed: why, and the request if it is still whole.
struct Failed {
    rejection: Rejection,
    request: Option<Request<RequestBody>>,
}

/// One worker's pipeline.
#[derive(Debug)]
pub struct Pipeline {
    view: View,
    started: Instant,
}

impl Pipeline {
    /// A pipeline for one worker.
    pub fn new(view: View) -> Self {
        Self { view, started: Instant::now() }
    }

    /// Answers one request; never fails, whatever happens.
    ///
    /// Cancel safe: dropped when the client has gone, it gives back everything it holds.
    pub async fn handle(
        &self,
        router: &impl Router,
        request: Request<Incoming>,
        forwarding: Option<&Forwarding>,
    ) -> Response<ResponseBody> {
        let arrived = Instant::now();
        let (mut parts, body) = request.into_parts();
        let matched = match route(router, &parts) {
            Ok(matched) => matched,
            Err(RouteError { reason, detail }) => {
                tracing::debug!(%reason, method = %parts.method, path = parts.uri.path(), detail, "no route");
                return Rejection::unsent(reason, Arc::default(), detail).into_response();
            }
        };
        let host = headers::host(&parts.uri, &parts.headers);
        headers::strip_hop_by_hop(&mut parts.headers);
        if let Some(forwarding) = forwarding {
            forwarding.apply(&mut parts.headers, host);
        }
        matched.route.filters.on_request(&mut parts.headers);
        let route = matched.route.clone();
        let result = self.call(matched, Request::from_parts(parts, body.into()), arrived).await;
        answer(&route, result)
    }

    /// Calls a service under its policies: everything between the routing and the answer.
    ///
    /// # Errors
    /// A [`Rejection`] when there is no answer of the service's own; it says whether the service may have seen the
    /// request.
    pub async fn call(
        &self,
        matched: Matched,
        request: Request<RequestBody>,
        arrived: Instant,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let Some(upstream) = self.view.get(matched.service.as_str()) else {
            let rejection = no_instance(&matched.service, "no instance has ever registered");
            tracing::warn!(service = %matched.service, "{rejection}");
            return Err(rejection);
        };
        let result = match prepare(upstream.clone(), matched, request, arrived).await {
            Ok(prepared) => self.retry(prepared).await,
            Err(rejection) => Err(rejection),
        };
        self.record(&upstream, &result, arrived);
        result
    }

    /// The only loop: attempts until one is good enough, or time, attempts or budget are spent.
    async fn retry(&self, prepared: Prepared) -> Result<Response<ResponseBody>, Rejection> {
        let Prepared { mut upstream, mut request, deadline, repeatable } = prepared;
        let guard = upstream.guard.clone();
        guard.budget.deposit();
        let mut tried: Vec<SocketAddr> = Vec::new();
        for attempt in 1.. {
            let last = attempt >= guard.policy.retry.attempts;
            let spare = if last { None } else { again(&request) };
            let (result, next) = match self.attempt(&upstream, request, deadline, &mut tried).await {
                Ok(response) => {
                    let unsent = promises_unsent(response.headers());
                    let repeat = unsent || (repeatable && gateway_error(response.status()));
                    (Ok(response), spare.filter(|_| repeat))
                }
                Err(Failed { rejection, request }) => {
                    let copy = request.or(spare.filter(|_| repeatable || !rejection.sent));
                    let repeat = !last && rejection.reason.worth_repeating();
                    (Err(rejection), copy.filter(|_| repeat))
                }
            };
            let Some(next) = next else { return result };
            let delay = guard.policy.retry.delay(attempt, fastrand::f64());
            let now = Instant::now();
            if now + delay >= deadline {
                return result;
            }
            if !guard.budget.withdraw(now) {
                upstream.metrics.budget_exhausted.increment();
                return result;
            }
            drop(result);
            upstream.metrics.retries.increment();
            tokio::time::sleep(delay).await;
            // The fleet may have changed meanwhile.
            upstream = self.view.get(upstream.service.as_str()).unwrap_or(upstream);
            request = next;
        }
        unreachable!("the loop ends by its attempts")
    }

    async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        mut request: Request<RequestBody>,
        deadline: Instant,
        tried: &mut Vec<SocketAddr>,
    ) -> Result<Response<ResponseBody>, Failed> {
        let begun = Instant::now();
        let admitted = match admit(upstream, begun, deadline).await {
            Ok(admitted) => admitted,
            Err(rejection) => return Err(Failed { rejection, request: Some(request) }),
        };
        let mut attempt = pick(upstream, admitted, tried, begun);
        let Some(endpoint) = attempt.endpoint.clone() else {
            attempt.failed();
            let rejection = no_instance(&upstream.service, "no instance is up");
            return Err(Failed { rejection, request: Some(request) });
        };
        tried.push(endpoint.addr);
        let until = upstream.guard.policy.attempt_timeout.map_or(deadline, |limit| deadline.min(begun + *limit));
        headers::set_timeout(request.headers_mut(), until.saturating_duration_since(begun));
        match send(&endpoint, request, begun, until).await {
            Ok((response, connection)) => Ok(attempt.answered(response, connection, begun)),
            Err(failed) => {
                attempt.failed();
                Err(failed.of(upstream))
            }
        }
    }

    /// The one exit of every call: counts it, and logs it when Seawall itself had to answer.
    fn record(&self, upstream: &Upstream, result: &Result<Response<ResponseBody>, Rejection>, arrived: Instant) {
        let metrics = &upstream.metrics;
        metrics.latency.record(arrived.elapsed());
        match result {
            Ok(response) => metrics.response(response.status()),
            Err(rejection) => {
                let reason = rejection.reason as usize;
                metrics.rejections[reason].increment();
                if let Some(held_back) = metrics.log[reason].pass(self.started.elapsed()) {
                    tracing::warn!(policy = %rejection.reason, service = %rejection.service, held_back, "{rejection}");
                }
            }
        }
    }
}

/// Finds the route, and refuses what cannot be passed on whatever the route.
fn route(router: &impl Router, parts: &Parts) -> Result<Matched, RouteError> {
    let bad = |detail: &str| Err(RouteError { reason: Reason::BadRequest, detail: detail.to_owned() });
    if parts.method == Method::CONNECT {
        return bad("CONNECT is not supported");
    }
    if let Some(why) = headers::bad_host(parts.version, &parts.headers) {
        return bad(why);
    }
    if has_dot_segment(parts.uri.path()) {
        return bad("the path holds a `.` or `..` segment");
    }
    router.route(parts)
}

/// `/a/../b` may mean one thing to the router and another to the service; it is refused, encoded or not.
fn has_dot_segment(path: &str) -> bool {
    let dots = |segment: &str| {
        let decoded = segment.replace("%2e", ".").replace("%2E", ".");
        decoded == "." || decoded == ".."
    };
    (path.contains("/.") || path.contains("%2")) && path.split('/').any(dots)
}

/// Makes the request one for the next hop: deadline, headers, path, and a body that can be sent again if it is small.
async fn prepare(
    upstream: Arc<Upstream>,
    matched: Matched,
    request: Request<RequestBody>,
    arrived: Instant,
) -> Result<Prepared, Rejection> {
    let policy = &upstream.guard.policy;
    let (mut parts, mut body) = request.into_parts();
    let given = headers::timeout(&parts.headers).unwrap_or(Duration::MAX);
    let deadline = arrived + policy.timeout.get().min(given);
    headers::trace(&mut parts.headers);
    parts.headers.remove(EXPECT);
    parts.headers.insert(HOST, upstream.host.clone());
    let path = matched.path.or_else(|| parts.uri.path_and_query().cloned());
    parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    parts.version = Version::HTTP_11;
    let repeatable = parts.method.is_idempotent() || parts.headers.contains_key(header::IDEMPOTENCY_KEY);
    if let RequestBody::Stream(incoming) = body {
        body = if policy.retry.attempts > 1 && is_small(&parts) {
            match timeout_at(deadline.into(), incoming.collect()).await {
                Ok(Ok(whole)) => RequestBody::Whole(whole.to_bytes()),
                Ok(Err(error)) => {
                    let detail = format!("the request's body broke off: {error}");
                    return Err(Rejection::unsent(Reason::BadRequest, upstream.guard.name.clone(), detail));
                }
                Err(_) => return Err(timed_out(&upstream, "while the client sent its body", false)),
            }
        } else {
            RequestBody::Stream(incoming)
        };
    }
    Ok(Prepared { upstream, request: Request::from_parts(parts, body), deadline, repeatable })
}

fn is_small(parts: &Parts) -> bool {
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    length.is_some_and(|length| length <= REPLAY)
}

/// Asks the breaker, then the bulkhead.
async fn admit(upstream: &Arc<Upstream>, now: Instant, deadline: Instant) -> Result<Admitted, Rejection> {
    let left = deadline.saturating_duration_since(now);
    if left.is_zero() {
        return Err(timed_out(upstream, "no time is left", false));
    }
    let guard = &upstream.guard;
    let permit = match &guard.breaker {
        Some(_) => Some(Breaker::try_acquire(BreakerOf(upstream.clone()), now)?),
        None => None,
    };
    let place = match &guard.bulkhead {
        Some(bulkhead) => Some(bulkhead.acquire(left).await?),
        None => None,
    };
    Ok(Admitted { permit, place })
}

/// Chooses an endpoint and counts the call as under way there.
fn pick(upstream: &Arc<Upstream>, admitted: Admitted, tried: &[SocketAddr], now: Instant) -> Attempt {
    let endpoint = balance::pick(&upstream.endpoints, tried, now, |below| fastrand::usize(..below)).cloned();
    if let Some(endpoint) = &endpoint {
        endpoint.load.begin();
    }
    Attempt { upstream: upstream.clone(), endpoint, permit: admitted.permit, _place: admitted.place }
}

/// What went wrong on the wire.
struct SendError {
    reason: Reason,
    detail: String,
    /// Present only when it was provably not sent.
    request: Option<Request<RequestBody>>,
}

impl SendError {
    fn of(self, upstream: &Upstream) -> Failed {
        let mut rejection = Rejection::unsent(self.reason, upstream.guard.name.clone(), self.detail);
        rejection.sent = self.request.is_none();
        Failed { rejection, request: self.request }
    }
}

/// Sends one request over a kept or a new connection and waits for the head of its response.
async fn send(
    endpoint: &Endpoint,
    mut request: Request<RequestBody>,
    begun: Instant,
    until: Instant,
) -> Result<(Response<Incoming>, Connection), SendError> {
    let addr = endpoint.addr;
    loop {
        let kept = endpoint.pool.take(begun);
        let reused = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => match timeout_at(until.min(begun + CONNECT).into(), pool::connect(addr)).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => {
                    let detail = format!("cannot connect to {addr}: {error}");
                    return Err(SendError { reason: Reason::Connect, detail, request: Some(request) });
                }
                Err(_) => {
                    let detail = format!("no connection to {addr} within {:?}", until.min(begun + CONNECT) - begun);
                    return Err(SendError { reason: Reason::Connect, detail, request: Some(request) });
                }
            },
        };
        let sending = async {
            // A kept connection may still be finishing its last response.
            if !connection.is_ready() && connection.ready().await.is_err() {
                return Err((None, Some(request)));
            }
            connection.try_send_request(request).await.map_err(|mut error| {
                let request = error.take_message();
                (Some(error.into_error()), request)
            })
        };
        match timeout_at(until.into(), sending).await {
            Ok(Ok(response)) => return Ok((response, connection)),
            // The server closed the kept connection before it read anything: that costs no attempt.
            Ok(Err((_, Some(unsent)))) if reused => request = unsent,
            Ok(Err((error, unsent))) => {
                let error = error.map_or_else(|| "the connection closed".to_owned(), |error| chain(&error));
                let (reason, what) = match unsent {
                    Some(_) => (Reason::Connect, "before the request was sent"),
                    None => (Reason::Reset, "after the request was sent"),
                };
                return Err(SendError { reason, detail: format!("{addr} broke off {what}: {error}"), request: unsent });
            }
            Err(_) => {
                let detail = format!("{addr} did not answer within {:?}", until.saturating_duration_since(begun));
                return Err(SendError { reason: Reason::Timeout, detail, request: None });
            }
        }
    }
}

/// hyper keeps the cause behind the message.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Attempt {
    /// The attempt failed: that speaks against the endpoint and the service.
    fn failed(&mut self) {
        let now = Instant::now();
        if let Some(permit) = self.permit.take() {
            permit.finish(Outcome::Failure, now);
        }
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.load.end(None, now);
        }
    }

    /// The head of a response is here; what the attempt holds travels on with the body.
    fn answered(self, response: Response<Incoming>, connection: Connection, begun: Instant) -> Response<ResponseBody> {
        let head = Instant::now();
        let bad = response.status().is_server_error();
        let outcome = if bad { Outcome::Failure } else { Outcome::Success };
        let (mut parts, body) = response.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let idle = self.upstream.guard.policy.timeout.get();
        let record = Record { attempt: self, connection: Some(connection), outcome, latency: head - begun, head };
        Response::from_parts(parts, ResponseBody::stream(body, record, idle))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.load.abandon();
        }
    }
}

/// What has to be settled when a response's body has ended. Dropped before that, because the client has gone, it says
/// nothing about the service; the connection is closed then, since the rest of the body is still in it.
#[derive(Debug)]
pub struct Record {
    attempt: Attempt,
    connection: Option<Connection>,
    outcome: Outcome,
    latency: Duration,
    head: Instant,
}

impl Record {
    /// The body has passed whole.
    pub(crate) fn complete(mut self) {
        // A slow call is one whose head was slow: a long download is not.
        if let Some(permit) = self.attempt.permit.take() {
            permit.finish(self.outcome, self.head);
        }
        if let Some(endpoint) = self.attempt.endpoint.take() {
            let latency = (self.outcome == Outcome::Success).then_some(self.latency);
            endpoint.load.end(latency, self.head);
            if let Some(connection) = self.connection.take() {
                endpoint.pool.put(connection, self.head);
            }
        }
    }

    /// The body broke off.
    pub(crate) fn broken(mut self) {
        self.attempt.failed();
    }
}

/// The caller's answer: the service's own, or a fallback, or a plain rejection.
fn answer(route: &Route, result: Result<Response<ResponseBody>, Rejection>) -> Response<ResponseBody> {
    let mut response = match (result, &route.fallback) {
        (Ok(response), Some(fallback)) if response.headers().contains_key(header::REJECTED) => {
            let mut instead = fallback.response();
            for name in [header::REJECTED, "retry-after"] {
                if let Some(value) = response.headers().get(name) {
                    instead.headers_mut().insert(name, value.clone());
                }
            }
            instead
        }
        (Ok(response), _) => response,
        (Err(rejection), Some(fallback)) => {
            let mut response = fallback.response();
            rejection.mark(response.headers_mut());
            response
        }
        (Err(rejection), None) => rejection.into_response(),
    };
    route.filters.on_response(response.headers_mut());
    response
}

/// The same request again, if its body is still here.
fn again(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let body = request.body().again()?;
    let mut copy = Request::new(body);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

/// The statuses by which a hop says that the one behind it failed.
const fn gateway_error(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

fn no_instance(service: &ServiceName, detail: &str) -> Rejection {
    Rejection::unsent(Reason::NoInstance, service.as_str().into(), detail)
}

fn timed_out(upstream: &Upstream, detail: &str, sent: bool) -> Rejection {
    let mut rejection = Rejection::unsent(Reason::Timeout, upstream.guard.name.clone(), detail);
    rejection.sent = sent;
    rejection
}

impl Reason {
    /// Whether another attempt may do better. A policy that turns a call away would do it again.
    const fn worth_repeating(self) -> bool {
        matches!(self, Self::NoInstance | Self::Connect | Self::Reset | Self::Timeout)
    }
}
