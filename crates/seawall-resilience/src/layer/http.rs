//! All policies of a service as a layer of its HTTP server.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use seawall_types::header::TIMEOUT;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::guard::Given;
use crate::http::{GuardedBody, Held, chain, priority, rejection, trace, unobserved};
use crate::sync::{AtomicBool, Ordering};
use crate::{Chain, Deadline, Guard, Outcome, Priority, Rejected, Report, deadline, timeout};

/// Puts a [`Guard`] around a service that answers HTTP requests, in a server of axum or hyper: what is turned away gets an
/// answer (503, 429 or 504) instead of an error.
///
/// - Total timeout, rate limit, throttle, breaker, bulkhead, attempt timeout and chaos apply, in this order. Nothing is
///   repeated or hedged here: a request's body is there once.
/// - The request's headers say how much time is left, how many retries its chain may still make, and how much it
///   matters: the first two are ambient in the service ([`deadline::current`], [`Chain::current`]). They are to be had
///   from callers that are trusted alone; a gateway removes those of strangers. See [`HttpGuardLayer::strangers`].
/// - A call lasts until the last byte of its answer: breaker and bulkhead learn then, from status, trailers (gRPC) or the
///   breaking off, how it went. Time limits end with the head.
///
/// `G` is how the guard is held: `&'static Guard` or `Arc<Guard>`. The state is the guard's, so axum may apply the layer
/// as often as it likes. Each request is boxed.
#[derive(Clone, Copy, Debug)]
pub struct HttpGuardLayer<G> {
    guard: G,
    strangers: bool,
}

/// A service of HTTP requests with a guard around it.
#[derive(Clone, Copy, Debug)]
pub struct HttpGuardService<S, G> {
    inner: S,
    guard: G,
    strangers: bool,
}

impl<G> HttpGuardLayer<G> {
    /// A layer of this guard.
    pub const fn new(guard: G) -> Self {
        Self { guard, strangers: false }
    }

    /// The callers are strangers: what they say about time, retries and priority is not taken.
    #[must_use]
    pub fn strangers(self) -> Self {
        Self { strangers: true, ..self }
    }
}

impl<S, G: Clone> Layer<S> for HttpGuardLayer<G> {
    type Service = HttpGuardService<S, G>;

    fn layer(&self, inner: S) -> Self::Service {
        HttpGuardService { inner, guard: self.guard.clone(), strangers: self.strangers }
    }
}

/// What a caller says of its request.
struct Told {
    deadline: Option<Deadline>,
    /// The caller has less time than the policy would give.
    ends_it: bool,
    chain: Option<Chain>,
    priority: Priority,
    trace: u128,
}

impl Told {
    fn read(headers: &http::HeaderMap, strangers: bool) -> Self {
        let trace = trace(headers);
        if strangers {
            return Self { deadline: None, ends_it: false, chain: None, priority: Priority::default(), trace };
        }
        let time = headers.get(TIMEOUT).and_then(|value| value.to_str().ok());
        let deadline = time.and_then(Deadline::from_header);
        Self { deadline, ends_it: false, chain: chain(headers), priority: priority(headers), trace }
    }
}

impl<S, G, B, RB> Service<Request<B>> for HttpGuardService<S, G>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
    B: Send + 'static,
    RB: Body + From<String> + Send + 'static,
    G: AsRef<Guard> + Clone + Send + Sync + 'static,
{
    type Response = Response<GuardedBody<RB>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, clone);
        let mut told = Told::read(request.headers(), self.strangers);
        let guard = self.guard.clone();
        let own = guard.as_ref().timeout.deadline();
        let deadline = told.deadline.map_or(own, |told| told.min(own));
        told.ends_it = [told.deadline, deadline::current()].contains(&Some(deadline));
        let (chain, priority) = (told.chain.take(), told.priority);
        let call = priority.scope(async move {
            let made = AtomicBool::new(false);
            let whole = serve(&guard, ready, request, &told, deadline, &made);
            match guard.as_ref().timeout.total(deadline, deadline::scope(deadline, whole)).await {
                Ok(result) => result,
                Err(rejected) => Ok(turned_away(&rejected, made.load(Ordering::Relaxed))),
            }
        });
        match chain {
            Some(chain) => Box::pin(chain.scope(call)),
            None => Box::pin(call),
        }
    }
}

async fn serve<S, G, B, RB>(
    guard: &G,
    mut service: S,
    request: Request<B>,
    told: &Told,
    deadline: Deadline,
    made: &AtomicBool,
) -> Result<Response<GuardedBody<RB>>, S::Error>
where
    S: Service<Request<B>, Response = Response<RB>>,
    RB: Body + From<String>,
    G: AsRef<Guard> + Clone + Send + Sync + 'static,
{
    let policies = guard.as_ref();
    let mut held = match admit(guard, told, deadline).await {
        Ok(held) => held,
        Err(rejected) => return Ok(turned_away(&rejected, false)),
    };
    held.begin();
    let begun = Instant::now();
    let call = async {
        let trouble = policies.chaos.decide();
        if let Some(delay) = trouble.delay {
            tokio::time::sleep(delay).await;
        }
        if trouble.fault {
            return Ok(Err(policies.chaos.fault()));
        }
        if let Some(status) = trouble.status.and_then(|status| http::StatusCode::from_u16(status).ok()) {
            let mut response = Response::new(RB::from(format!("{status}, which was ordered\n")));
            *response.status_mut() = status;
            return Ok(Ok(response));
        }
        made.store(true, Ordering::Relaxed);
        service.call(request).await.map(Ok)
    };
    let call = policies.timeout.scope_attempt(deadline, call);
    let given = Given::told(deadline, made, told.ends_it);
    match policies.timeout.attempt(deadline, call).await {
        // Whoever it called keeps to the caller's time as well.
        Ok(Ok(Ok(response))) if given.is_over() && response.status().is_server_error() => Ok(unobserved(response)),
        Ok(Ok(Ok(response))) => Ok(held.answered(response, begun.elapsed())),
        Ok(Ok(Err(fault))) => {
            held.finish(Report { cause: "chaos", ..Outcome::Failure.into() });
            Ok(turned_away(&fault, false))
        }
        Ok(Err(error)) => {
            if !given.is_over() {
                held.finish(Outcome::Failure.into());
            }
            Err(error)
        }
        Err(rejected) => {
            // Where the caller gave too little time the call was given up: how long it had lasted says what that means.
            if !given.ran_out(&rejected) {
                held.finish(timeout::FAILURE);
            }
            Ok(turned_away(&rejected, true))
        }
    }
}

async fn admit<G>(guard: &G, told: &Told, deadline: Deadline) -> Result<Held<G>, Rejected>
where
    G: AsRef<Guard> + Clone,
{
    if let Some(limiter) = guard.as_ref().rate_limit.get() {
        limiter.acquire(deadline.left()).await?;
    }
    Held::admit(guard, told.priority, deadline.left(), told.trace).await
}

/// The answer to a request that was turned away. Nobody waits for its end.
fn turned_away<RB: Body + From<String>>(rejected: &Rejected, sent: bool) -> Response<GuardedBody<RB>> {
    unobserved(rejection::<RB>(rejected, sent))
}
