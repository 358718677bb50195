//! HTTP calls of a client under a guard.

use std::future::Future;

use http::{Response, StatusCode};
use http_body::Body;
use tokio::time::Instant;

use super::{GuardedBody, Held, retry_after, unobserved};
use crate::guard::{Given, Panics};
use crate::layer::{Classify, Usual, completed};
use crate::retry::{self, Decision};
use crate::sync::{AtomicBool, Ordering};
use crate::{CallError, Guard, Hedge, Priority, deadline, timeout};

/// What of HTTP is worth another attempt: what [`retry::failures`] says of errors, and the answers 502, 503 and 504, after
/// the time that they ask for. Only for calls that may be done twice.
pub fn failures<B, E>(result: &Result<Response<B>, CallError<E>>) -> Decision {
    match result {
        Ok(response) if unavailable(response.status()) => Decision::Again { after: retry_after(response.headers()) },
        Ok(_) => Decision::Stop,
        Err(_) => retry::failures(result),
    }
}

/// The service, or what stands before it, says that it cannot answer now.
const fn unavailable(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// Makes an HTTP call under all policies of `guard`, as [`Guard::call`] does, where the answer's head, body and trailers
/// say how it went: what the call holds is given back when the body has ended. `make(1)` makes the first attempt,
/// `again` says what is repeated: [`failures`], if the call may be done twice.
///
/// `make` may tell the next hop of deadline and chain by [`pass_on`](super::pass_on). The time limits end with the head;
/// a body that stops midway is the reader's to give up.
///
/// With reqwest (see `examples/reqwest.rs`):
///
/// ```
/// # use std::sync::Arc;
/// # use seawall_resilience::{CallError, Guard, http};
/// # async fn fetch(client: reqwest::Client, guard: Arc<Guard>, url: &str) -> Result<(), CallError<reqwest::Error>> {
/// let attempt = |_| async { client.get(url).send().await.map(::http::Response::from) };
/// let response = http::call(&guard, attempt, http::failures).await?;
/// let response = reqwest::Response::from(response.map(reqwest::Body::wrap));
/// # Ok(()) }
/// ```
///
/// Cancel safe: a dropped future gives back exactly what it took.
///
/// # Errors
/// As for [`Guard::call`]. An answer of any status is `Ok`.
pub async fn call<G, F, A, B, E, D>(guard: &G, make: F, mut again: D) -> Result<Response<GuardedBody<B>>, CallError<E>>
where
    G: AsRef<Guard> + Clone + Send + Sync + 'static,
    F: Fn(u32) -> A,
    A: Future<Output = Result<Response<B>, E>>,
    B: Body,
    D: FnMut(&Result<Response<GuardedBody<B>>, CallError<E>>) -> Decision,
{
    let policies = guard.as_ref();
    let deadline = policies.timeout.deadline();
    let made = AtomicBool::new(false);
    let given = Given::new(deadline, &made);
    let whole = async {
        if let Some(limiter) = policies.rate_limit.get() {
            limiter.acquire(deadline.left()).await?;
        }
        let until = policies.clock().precise() + deadline.left();
        let make = &make;
        let number = async |number| match policies.hedge.get() {
            None => attempt(guard, number, make, given).await,
            Some(hedge) => Box::pin(hedged(hedge, |beside| attempt(guard, number + beside - 1, make, given))).await,
        };
        let again = |result: &_| {
            let panics = Panics(policies);
            let decision = again(result);
            std::mem::forget(panics);
            decision
        };
        policies.retry.call(Some(until), number, again).await
    };
    let result = policies.timeout.total(deadline, deadline::scope(deadline, whole)).await;
    completed(result.unwrap_or_else(|rejected| Err(rejected.into())), made.load(Ordering::Relaxed))
}

/// The first good answer counts. One that says that the service cannot answer ends no race while another call runs: its
/// own attempt has failed now, and it waits to be the last, or to be dropped.
async fn hedged<A, B, E>(hedge: &Hedge, attempt: impl Fn(u32) -> A) -> Result<Response<GuardedBody<B>>, CallError<E>>
where
    A: Future<Output = Result<Response<GuardedBody<B>>, CallError<E>>>,
    B: Body,
{
    let attempt = async |number| match attempt(number).await {
        Ok(mut response) if unavailable(response.status()) => {
            response.body_mut().settle();
            Err(Ok(response))
        }
        Ok(response) => Ok(response),
        Err(error) => Err(Err(error)),
    };
    hedge.call(attempt).await.or_else(|failed| failed)
}

async fn attempt<G, F, A, B, E>(
    guard: &G,
    number: u32,
    make: &F,
    given: Given<'_>,
) -> Result<Response<GuardedBody<B>>, CallError<E>>
where
    G: AsRef<Guard> + Clone + Send + Sync + 'static,
    F: Fn(u32) -> A,
    A: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    let policies = guard.as_ref();
    let mut held = Held::admit(guard, Priority::current(), given.deadline.left(), 0).await?;
    held.begin();
    let begun = Instant::now();
    let call = async {
        let trouble = policies.chaos.decide();
        if let Some(delay) = trouble.delay {
            tokio::time::sleep(delay).await;
        }
        // Nobody knows how to put a status in a body of this kind: it is a fault like the other.
        if trouble.fault || trouble.status.is_some() {
            return Err(policies.chaos.fault().into());
        }
        given.made.store(true, Ordering::Relaxed);
        make(number).await.map_err(CallError::Inner)
    };
    let call = policies.timeout.scope_attempt(given.deadline, call);
    let result = match policies.timeout.attempt(given.deadline, call).await {
        Ok(result) => result,
        // If the attempt was given up what is held is dropped.
        Err(rejected) => {
            if !given.ran_out(&rejected) {
                held.finish(timeout::FAILURE);
            }
            return Err(rejected.into());
        }
    };
    match result {
        Ok(response) if given.is_over() && response.status().is_server_error() => {
            drop(held);
            Ok(unobserved(response))
        }
        Ok(response) => {
            let mut response = held.answered(response, begun.elapsed());
            // What may be repeated holds nothing while the retry waits; such a head has said how it went.
            let status = response.status();
            if policies.retry.may_repeat() && (status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS) {
                response.body_mut().settle();
            }
            Ok(response)
        }
        Err(error) => {
            let failed = Err(error);
            if !given.is_over() {
                held.finish(Usual.classify(&failed));
            }
            failed
        }
    }
}
