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

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, EXPECT, HOST};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use seawall_resilience::http::Head;
use seawall_resilience::retry::NoRetry;
use seawall_resilience::{Breaker, Bulkhead, Chain, Hedge, Outcome, Priority, breaker, bulkhead, deadline};
use seawall_telemetry::metrics::Counter;
use seawall_telemetry::metrics::Histogram;
use seawall_types::{ServiceName, header};
use tokio::time::timeout_at;

use crate::access::AccessLog;
use crate::attempt::Attempt;
use crate::balance;
use crate::body::{RequestBody, ResponseBody};
use crate::filter::{Affinity, AnsweredBy, CalledBy, Exchange, Fixed, Next, Step};
use crate::headers::{self, Forwarding};
use crate::metrics::RouteMetrics;
use crate::reject::{self, Reason, Rejection, promises_unsent};
use crate::send::{is_grpc, send};
use crate::upstream::{Handle, Upstream, View};

/// The largest request body that is kept so that it can be sent again.
const REPLAY: u64 = 64 * 1024;

/// Chooses a route; the gateway's table and the sidecar's two sides are the implementations. Pure.
pub trait Router: Send + Sync + 'static {
    /// The route of a request.
    ///
    /// # Errors
    /// [`RouteError`] when there is none.
    fn route(&self, request: &Asked<'_>) -> Result<Matched, RouteError>;
}

/// A request that looks for its route.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its head, as it came.
    pub parts: &'a Parts,
    forwarding: Option<&'a Forwarding>,
}

impl<'a> Asked<'a> {
    /// `forwarding` is that of its connection, at the edge.
    pub fn new(parts: &'a Parts, forwarding: Option<&'a Forwarding>) -> Self {
        Self { parts, forwarding }
    }

    /// Whose it is: the address that the connection comes from, or, behind proxies that are believed, the one that the farthest
    /// of them has seen. Nobody's inside the fleet. Worked out anew each time.
    pub fn client(&self) -> Option<IpAddr> {
        self.forwarding.map(|forwarding| forwarding.client(&self.parts.headers))
    }
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
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Its name in the file.
    pub id: Box<str>,
    /// What stands between it and its service.
    pub steps: Vec<Step>,
    /// What is answered when the service cannot.
    pub fallback: Option<Fixed>,
    /// Its counters in this worker; each clone counts for itself from its first request on.
    pub metrics: Counted,
    /// The next hop is the service itself, in whose mouth Seawall's own words mean nothing.
    pub last_hop: bool,
}

/// A place for a route's counters.
#[derive(Debug, Default)]
pub struct Counted(OnceLock<Arc<RouteMetrics>>);

impl Clone for Counted {
    fn clone(&self) -> Self {
        Self::default()
    }
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
    /// The answer, for a request that needs no service; then the service is not asked.
    pub answer: Option<Arc<Fixed>>,
}

/// A request whose headers are those of the next hop.
struct Prepared {
    upstream: Arc<Upstream>,
    request: Request<RequestBody>,
    call: Call,
    /// May be sent again although it may have arrived: an idempotent method, or an `Idempotency-Key`.
    repeatable: bool,
}

/// What the attempts of one call have in common.
struct Call {
    deadline: Deadline,
    priority: Priority,
    trace: u128,
    affinity: Option<Affinity>,
    /// Where it has been sent already; hedged attempts ask side by side.
    tried: Mutex<Vec<SocketAddr>>,
}

impl Call {
    fn tried(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the call has to be over.
#[derive(Clone, Copy)]
struct Deadline {
    at: Instant,
    /// The caller gives less time than the policy would.
    callers: bool,
}

impl Deadline {
    fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// A request that the policies let pass; holds what they gave.
struct Admitted {
    permit: Option<breaker::Permit<Handle>>,
    place: Option<bulkhead::Permit<Handle>>,
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
    log: Option<AccessLog>,
    /// Requests without a route.
    nowhere: Counted,
    /// By kind of filter; the lock is never waited for.
    filters: Mutex<HashMap<&'static str, Arc<Histogram>>>,
}

impl Pipeline {
    /// A pipeline for one worker.
    pub fn new(view: View) -> Self {
        Self::logging(view, None)
    }

    /// The same, with an access log.
    pub fn logging(view: View, log: Option<AccessLog>) -> Self {
        let (nowhere, filters) = (Counted::default(), Mutex::default());
        Self { view, started: Instant::now(), log, nowhere, filters }
    }

    /// What one filter has taken for one request.
    pub(crate) fn filtered(&self, name: &'static str, took: Duration) {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = filters.entry(name).or_insert_with(|| self.view.upstreams().metrics().times(name));
        histogram.record(took);
    }

    fn count(&self, counted: &Counted, id: &str, status: StatusCode, arrived: Instant) {
        let metrics = counted.0.get_or_init(|| self.view.upstreams().metrics().route(id));
        metrics.latency.record(arrived.elapsed());
        if let Some(counter) = metrics.responses.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            counter.increment();
        }
    }

    /// Answers one request; never fails, whatever happens.
    ///
    /// Cancel safe: dropped when the client has gone, it gives back everything it holds.
    pub async fn handle(
        self: &Arc<Self>,
        router: &impl Router,
        request: Request<Incoming>,
        forwarding: Option<&Forwarding>,
    ) -> Response<ResponseBody> {
        let arrived = Instant::now();
        let (mut parts, body) = request.into_parts();
        let mut line = self.log.as_ref().map(|log| {
            let trace = headers::trace(&mut parts.headers);
            log.begin(&parts, forwarding.map(|forwarding| forwarding.client(&parts.headers)), trace, arrived)
        });
        let (mut response, route) = match route(router, &Asked::new(&parts, forwarding)) {
            Ok(matched) => {
                let route = matched.route.clone();
                line.iter_mut().for_each(|line| line.routed(&route, matched.service.as_str()));
                (self.filter(matched, &route, parts, body, forwarding, arrived).await, Some(route))
            }
            Err(RouteError { reason, detail }) => {
                tracing::debug!(%reason, method = %parts.method, path = parts.uri.path(), detail, "no route");
                let rejection = Rejection::unsent(reason, Arc::default(), detail);
                let grpc = is_grpc(&parts.headers);
                (if grpc { rejection.into_grpc() } else { rejection.into_response() }, None)
            }
        };
        match &route {
            Some(route) => self.count(&route.metrics, &route.id, response.status(), arrived),
            None => self.count(&self.nowhere, "-", response.status(), arrived),
        }
        if let Some(mut line) = line {
            let rejected = response.headers().get(header::REJECTED).cloned();
            line.answered(response.status(), rejected, response.body().endpoint());
            response.body_mut().note(line);
        }
        response
    }

    /// From the route on: the filters, and what is after them.
    async fn filter(
        self: &Arc<Self>,
        matched: Matched,
        route: &Route,
        mut parts: Parts,
        body: Incoming,
        forwarding: Option<&Forwarding>,
        arrived: Instant,
    ) -> Response<ResponseBody> {
        // Worked out before the headers are ours, and only for those who may ask.
        let waits = route.steps.iter().any(|step| matches!(step, Step::Around(_)));
        let client = forwarding.filter(|_| waits).map(|forwarding| forwarding.client(&parts.headers));
        let host = headers::host(&parts.uri, &parts.headers);
        let upgrade = headers::upgrade(&parts);
        headers::strip_hop_by_hop(&mut parts.headers);
        if let Some(protocol) = upgrade {
            headers::set_upgrade(&mut parts.headers, protocol);
        }
        if let Some(forwarding) = forwarding {
            forwarding.apply(&mut parts.headers, host);
        }
        let exchange = Exchange { matched, arrived, client, after: AtomicU64::new(0) };
        let next = Next { pipeline: self, exchange: &exchange, steps: &route.steps, filtered: false };
        next.run(Request::from_parts(parts, body.into())).await
    }

    /// What is after the last step: the service, or the answer that stands for it.
    pub(crate) async fn end(&self, exchange: &Exchange, request: Request<RequestBody>) -> Response<ResponseBody> {
        let Exchange { matched, arrived, .. } = exchange;
        if let Some(answer) = &matched.answer {
            return answer.response();
        }
        let grpc = is_grpc(request.headers());
        answer(&matched.route, grpc, self.call(matched, request, *arrived).await)
    }

    /// Calls a service under its policies: everything between the routing and the answer.
    ///
    /// # Errors
    /// A [`Rejection`] when there is no answer of the service's own; it says whether the service may have seen the
    /// request.
    pub async fn call(
        &self,
        matched: &Matched,
        request: Request<RequestBody>,
        arrived: Instant,
    ) -> Result<Response<ResponseBody>, Rejection> {
        let Some(upstream) = self.view.get(matched.service.as_str()) else {
            let rejection = no_instance(&matched.service, "no instance has ever registered");
            tracing::warn!(service = %matched.service, "{rejection}");
            return Err(rejection);
        };
        let last_hop = matched.route.last_hop;
        let mut result = match prepare(upstream.clone(), matched, request, arrived).await {
            Ok(prepared) => self.retry(prepared).await,
            Err(rejection) => Err(rejection),
        };
        if let Ok(response) = &mut result
            && last_hop
        {
            response.headers_mut().remove(header::REJECTED);
        }
        self.record(&upstream, &result, arrived);
        result
    }

    /// How long the policy gives a whole call of `service`.
    pub fn timeout_of(&self, service: &ServiceName) -> Duration {
        self.view.get(service.as_str()).map_or(Duration::ZERO, |upstream| upstream.guard.timeout.limits().0)
    }

    /// Where the instances of `service` are that are up.
    pub(crate) fn endpoints_of(&self, service: &ServiceName) -> Vec<SocketAddr> {
        let upstream = self.view.get(service.as_str());
        upstream.map_or_else(Vec::new, |upstream| upstream.endpoints.iter().map(|endpoint| endpoint.addr).collect())
    }

    /// See [`Next::counter`].
    pub(crate) fn counter(
        &self,
        family: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Arc<Counter> {
        self.view.upstreams().metrics().counter(family, help, labels)
    }

    /// Asks for the rate, then makes the attempts, in the chain of calls that the request belongs to.
    async fn retry(&self, prepared: Prepared) -> Result<Response<ResponseBody>, Rejection> {
        let guard = &prepared.upstream.guard;
        if let Some(limiter) = guard.rate_limit.get() {
            limiter.acquire(prepared.call.deadline.left()).await?;
        }
        // Only who calls the service earns a share of a retry.
        guard.retry.budget().deposit();
        // A caller in this process may be in a chain already.
        let told = headers::retries_left(prepared.request.headers());
        let Some(chain) = Chain::narrow(told, guard.retry.config().chain) else { return self.attempts(prepared).await };
        let told: Option<u32> = told.and_then(|told| told.trim().parse().ok());
        let before = chain.left();
        // Boxed, so that those who are in none do not carry it.
        let mut result = Box::pin(chain.clone().scope(self.attempts(prepared))).await;
        // The hop before counts in its own number, which may be more than what this one allows.
        let left = told.map(|told| told - (before - chain.left()));
        match &mut result {
            Ok(response) => headers::tell_retries_left(response.headers_mut(), left),
            Err(rejection) => rejection.retries_left = left,
        }
        result
    }

    /// The only loop: attempts until one is good enough, or time, attempts, chain or budget are spent.
    async fn attempts(&self, prepared: Prepared) -> Result<Response<ResponseBody>, Rejection> {
        let Prepared { mut upstream, mut request, call, repeatable } = prepared;
        let guard = upstream.guard.clone();
        let clock = guard.clock();
        let until = clock.precise() + call.deadline.left();
        // What one attempt may have done stays done, whatever becomes of the next.
        let mut sent = false;
        let mut backoff = Duration::ZERO;
        for attempt in 1.. {
            let last = attempt >= guard.retry.config().attempts;
            let spare = if last { None } else { again(&request) };
            let twice = repeatable && !request.body().passes();
            let (result, arrived) = match guard.hedge.get().filter(|_| twice) {
                Some(hedge) => Box::pin(self.hedged(hedge, &upstream, request, &call)).await,
                None => (self.attempt(&upstream, request, &call).await, false),
            };
            sent |= arrived;
            let mut after = None;
            let (mut result, next) = match result {
                Ok(response) => {
                    let unsent = promises_unsent(response.headers(), guard.name().as_str());
                    let repeat = unsent || (repeatable && gateway_error(response.status()));
                    sent |= !unsent;
                    if repeat {
                        after = seawall_resilience::http::retry_after(response.headers());
                    }
                    (Ok(response), spare.filter(|_| repeat))
                }
                Err(Failed { rejection, request }) => {
                    let copy = request.or(spare.filter(|_| repeatable || !rejection.sent));
                    let repeat = !last && rejection.reason.worth_repeating();
                    sent |= rejection.sent;
                    (Err(rejection), copy.filter(|_| repeat))
                }
            };
            match &mut result {
                Err(rejection) => rejection.sent = sent,
                Ok(response) if sent => reject::withdraw_promise(response.headers_mut()),
                Ok(_) => {}
            }
            let Some(next) = next else { return result };
            let charge = match guard.retry.again(attempt, backoff, Some(until), after) {
                Ok(charge) => charge,
                Err(why) => {
                    if why == NoRetry::Budget {
                        upstream.metrics.budget_exhausted.increment();
                    }
                    return result;
                }
            };
            if let Ok(response) = result {
                response.into_body().give_up();
            }
            tokio::time::sleep(charge.pause).await;
            backoff = charge.backoff;
            charge.spend();
            upstream.metrics.retries.increment();
            // The fleet may have changed meanwhile.
            upstream = self.view.get(upstream.service.as_str()).unwrap_or(upstream);
            request = next;
        }
        unreachable!("the loop ends by its attempts")
    }

    /// One attempt, and others beside it when it takes long; the first good answer counts. Also says whether any of them
    /// may have arrived, whichever it is that counts.
    async fn hedged(
        &self,
        hedge: &Hedge,
        upstream: &Arc<Upstream>,
        request: Request<RequestBody>,
        call: &Call,
    ) -> (Result<Response<ResponseBody>, Failed>, bool) {
        let template = again(&request);
        let mut first = Some(request);
        // Attempts that may have arrived: all that were made, but for those that are known not to have.
        let arrived = AtomicU32::new(0);
        let attempt = |_| {
            let next = first.take().or_else(|| template.as_ref().and_then(again));
            let request = next.expect("what passes once is not hedged");
            let arrived = &arrived;
            async move {
                arrived.fetch_add(1, Ordering::Relaxed);
                let result = self.attempt(upstream, request, call).await;
                let unsent = match &result {
                    Ok(response) => promises_unsent(response.headers(), upstream.service.as_str()),
                    Err(failed) => !failed.rejection.sent,
                };
                if unsent {
                    arrived.fetch_sub(1, Ordering::Relaxed);
                }
                match result {
                    // An answer that would be asked for again is none that ends the race. While others run it waits to
                    // be the last one, or to be dropped: its own attempt has failed now.
                    Ok(mut response) if gateway_error(response.status()) => {
                        response.body_mut().refuse();
                        Err(Ok(response))
                    }
                    Ok(response) => Ok(response),
                    Err(failed) => Err(Err(failed)),
                }
            }
        };
        let result = match hedge.call(attempt).await {
            Ok(response) => Ok(response),
            Err(failed) => failed,
        };
        (result, arrived.into_inner() > 0)
    }

    async fn attempt(
        &self,
        upstream: &Arc<Upstream>,
        mut request: Request<RequestBody>,
        call: &Call,
    ) -> Result<Response<ResponseBody>, Failed> {
        let deadline = call.deadline;
        let admitted = match admit(upstream, call).await {
            Ok(admitted) => admitted,
            Err(rejection) => return Err(Failed { rejection, request: Some(request) }),
        };
        // Waiting for a place is not the endpoint's time, and the fleet may have changed meanwhile.
        let begun = Instant::now();
        let upstream = &self.view.get(upstream.service.as_str()).unwrap_or_else(|| upstream.clone());
        let mut attempt = pick(upstream, admitted, call, begun);
        let Some(endpoint) = attempt.endpoint.clone() else {
            attempt.failed("no instance");
            let rejection = no_instance(&upstream.service, "no instance is up");
            return Err(Failed { rejection, request: Some(request) });
        };
        let limit = upstream.guard.timeout.limits().1.map_or(deadline.at, |limit| begun + limit);
        let until = limit.min(deadline.at);
        headers::set_timeout(request.headers_mut(), until.saturating_duration_since(begun));
        let told = Chain::current().map(|chain| chain.left());
        // Without a chain nothing was told, or nothing that could be read: that is not passed on.
        headers::tell_retries_left(request.headers_mut(), told);
        let fail = |mut attempt: Attempt, reason: Reason| match reason {
            // A caller that breaks off its own body says nothing about the service.
            Reason::BadRequest => attempt.ignored(),
            // One that gives too little time has given up: how long it had lasted says what that means.
            Reason::Timeout if deadline.callers && until == deadline.at => drop(attempt),
            reason => attempt.failed(reason.as_str()),
        };
        let sent = match trouble(upstream, until).await {
            Trouble::None => send(upstream, &endpoint, request, begun, until).await,
            Trouble::Answer(status) => {
                let response = Response::builder().status(status).body(ResponseBody::whole("chaos answers\n"));
                let response = response.expect("a status of its range makes a response");
                attempt.ordered(&Head::new(response.status(), response.headers()));
                return Ok(response);
            }
            // What chaos makes too late is too late as the service's own would be.
            Trouble::Fault(rejection) => {
                fail(attempt, rejection.reason);
                return Err(Failed { rejection, request: Some(request) });
            }
        };
        match sent {
            Ok((response, connection)) => {
                let left = headers::retries_left(response.headers()).and_then(|left| left.parse().ok());
                if let (Some(chain), Some(told), Some(left)) = (Chain::current(), told, left) {
                    chain.settle(told, left);
                }
                // The next hop keeps to the caller's time as well, and may be first to say that it is over.
                let over = until.saturating_duration_since(Instant::now()) <= deadline::EARLY;
                if deadline.callers && until == deadline.at && over && response.status().is_server_error() {
                    attempt.give_up();
                }
                let mut response = attempt.answered(response, connection);
                if call.affinity.is_some() {
                    response.extensions_mut().insert(AnsweredBy(endpoint.addr));
                }
                Ok(response)
            }
            Err(error) => {
                fail(attempt, error.reason);
                let (rejection, request) = error.reject(upstream);
                Err(Failed { rejection, request })
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
fn route(router: &impl Router, asked: &Asked<'_>) -> Result<Matched, RouteError> {
    let parts = asked.parts;
    let bad = |detail: &str| Err(RouteError { reason: Reason::BadRequest, detail: detail.to_owned() });
    if parts.method == Method::CONNECT {
        return bad("CONNECT is not supported");
    }
    if let Some(why) = headers::bad_host(parts) {
        return bad(why);
    }
    if let Some(secure) = asked.forwarding.and_then(Forwarding::secure) {
        let host = headers::host(&parts.uri, &parts.headers);
        let host = host.as_ref().and_then(|host| host.to_str().ok()).map(headers::without_port).unwrap_or_default();
        if !secure.serves(host) {
            let detail = format!("`{host}` is not the host that the connection was made to");
            return Err(RouteError { reason: Reason::Misdirected, detail });
        }
    }
    if has_dot_segment(parts.uri.path()) {
        return bad("the path holds a `.` or `..` segment");
    }
    router.route(asked)
}

/// `/a/../b` may mean one thing to the router and another to the service; it is refused, its dots or slashes encoded or not.
pub fn has_dot_segment(path: &str) -> bool {
    let walks = |path: &str| path.split('/').any(|segment| segment == "." || segment == "..");
    if !path.contains("%2") {
        return path.contains("/.") && walks(path);
    }
    let decoded = path.replace("%2e", ".").replace("%2E", ".").replace("%2f", "/").replace("%2F", "/");
    walks(&decoded)
}

/// Makes the request one for the next hop: deadline, headers, path, and a body that can be sent again if it is small.
async fn prepare(
    upstream: Arc<Upstream>,
    matched: &Matched,
    request: Request<RequestBody>,
    arrived: Instant,
) -> Result<Prepared, Rejection> {
    let (mut parts, mut body) = request.into_parts();
    let given = headers::timeout(&parts.headers).unwrap_or(Duration::MAX);
    let own = upstream.guard.timeout.limits().0;
    let deadline = Deadline { at: arrived + own.min(given), callers: given < own };
    let trace = headers::trace(&mut parts.headers).trace_id();
    let priority = headers::priority(&parts.headers);
    parts.headers.remove(EXPECT);
    let called_by = parts.extensions.remove().map_or_else(|| upstream.host.clone(), |CalledBy(host)| host);
    parts.headers.insert(HOST, called_by);
    let affinity = parts.extensions.remove::<Affinity>();
    let path = matched.path.clone().or_else(|| parts.uri.path_and_query().cloned());
    parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    parts.version = Version::HTTP_11;
    let repeatable = parts.method.is_idempotent() || parts.headers.contains_key(header::IDEMPOTENCY_KEY);
    if body.passes() {
        body = if upstream.guard.may_repeat() && is_small(&parts) {
            match timeout_at(deadline.at.into(), body.collect()).await {
                Ok(Ok(whole)) => RequestBody::Whole(whole.to_bytes()),
                Ok(Err(error)) => {
                    let detail = format!("the request's body broke off: {error}");
                    return Err(Rejection::unsent(Reason::BadRequest, upstream.name.clone(), detail));
                }
                Err(_) => {
                    let detail = "the client did not send its body in time";
                    return Err(Rejection::unsent(Reason::SlowClient, upstream.name.clone(), detail));
                }
            }
        } else {
            body
        };
    }
    let call = Call { deadline, priority, trace, affinity, tried: Mutex::default() };
    Ok(Prepared { upstream, request: Request::from_parts(parts, body), call, repeatable })
}

fn is_small(parts: &Parts) -> bool {
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    length.is_some_and(|length| length <= REPLAY)
}

/// Asks throttle, breaker and bulkhead.
async fn admit(upstream: &Arc<Upstream>, call: &Call) -> Result<Admitted, Rejection> {
    let left = call.deadline.left();
    if left.is_zero() {
        return Err(Rejection::unsent(Reason::Timeout, upstream.name.clone(), "no time is left"));
    }
    let guard = &upstream.guard;
    if let Some(throttle) = guard.throttle.get() {
        // What came of it is told when it has ended.
        let _ = throttle.admit()?;
    }
    let handle = || Handle(upstream.clone());
    let permit = match guard.breaker.get() {
        Some(_) => Some(Breaker::try_acquire(handle())?.waiting()),
        None => None,
    };
    let place = match guard.bulkhead.get() {
        Some(_) => match Bulkhead::acquire_as(handle(), call.priority, left).await {
            Ok(place) => Some(place),
            Err(rejected) => {
                // However long it waited: that says nothing about the service.
                if let Some(permit) = permit {
                    permit.finish(Outcome::Ignored);
                }
                return Err(rejected.into());
            }
        },
        None => None,
    };
    Ok(Admitted { permit, place })
}

/// Chooses an endpoint and counts the call as under way there.
fn pick(upstream: &Arc<Upstream>, admitted: Admitted, call: &Call, now: Instant) -> Attempt {
    let mut tried = call.tried();
    let endpoints = &upstream.endpoints;
    let wanted = call.affinity.and_then(|affinity| balance::prefer(endpoints, &tried, affinity));
    let picked = wanted.or_else(|| balance::pick(endpoints, &tried, now, |below| fastrand::usize(..below)));
    let endpoint = picked.cloned();
    if let Some(endpoint) = &endpoint {
        endpoint.load.begin();
        tried.push(endpoint.addr);
    }
    let Admitted { mut permit, place } = admitted;
    if let Some(permit) = &mut permit {
        permit.begin();
    }
    let begun = upstream.guard.clock().precise();
    Attempt { upstream: upstream.clone(), endpoint, permit, place, trace: call.trace, begun, given_up: false }
}

/// What chaos makes of an attempt.
enum Trouble {
    None,
    Answer(u16),
    Fault(Rejection),
}

/// Waits, and fails, as it was ordered; nothing where nothing was.
async fn trouble(upstream: &Upstream, until: Instant) -> Trouble {
    let chaos = &upstream.guard.chaos;
    let trouble = chaos.decide();
    if let Some(delay) = trouble.delay {
        let over = Instant::now() + delay;
        tokio::time::sleep_until(over.min(until).into()).await;
        if over > until {
            let rejection = Rejection::unsent(Reason::Timeout, upstream.name.clone(), "chaos took all the time");
            return Trouble::Fault(rejection);
        }
    }
    match trouble.status {
        _ if trouble.fault => Trouble::Fault(chaos.fault().into()),
        Some(status) => Trouble::Answer(status),
        None => Trouble::None,
    }
}

/// The caller's answer: the service's own, or a fallback, or a plain rejection.
fn answer(route: &Route, grpc: bool, result: Result<Response<ResponseBody>, Rejection>) -> Response<ResponseBody> {
    match (result, &route.fallback) {
        (Ok(response), Some(fallback)) if response.headers().contains_key(header::REJECTED) => {
            let (given, body) = response.into_parts();
            body.give_up();
            let mut instead = fallback.response();
            for name in [header::REJECTED, header::RETRIES_LEFT, "retry-after"] {
                if let Some(value) = given.headers.get(name) {
                    instead.headers_mut().insert(name, value.clone());
                }
            }
            instead
        }
        (Ok(response), _) => response,
        (Err(rejection), Some(fallback)) if !rejection.reason.blames_caller() => {
            let mut response = fallback.response();
            rejection.mark(response.headers_mut());
            response
        }
        (Err(rejection), _) if grpc => rejection.into_grpc(),
        (Err(rejection), _) => rejection.into_response(),
    }
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

impl Reason {
    /// Whether another attempt may do better. A policy that turns a call away would do it again.
    const fn worth_repeating(self) -> bool {
        matches!(self, Self::NoInstance | Self::Connect | Self::Reset | Self::Timeout | Self::Chaos)
    }
}
