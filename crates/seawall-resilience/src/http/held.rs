//! What a call holds until its answer's last byte has passed.

use std::fmt;
use std::time::Duration;

use http::Response;
use http_body::Body;

use super::{Head, ObservedBody};
use crate::{Breaker, Bulkhead, Guard, Outcome, Priority, Rejected, Report, accepted, breaker, bulkhead, ended};

/// Settles a call when its body has ended.
pub type Settle = Box<dyn FnOnce(Report) + Send + Sync>;

/// A body that holds what its call was given, and gives it back at its end: the place in the bulkhead, and the permit of
/// the breaker, which learns then how the call went. One that is dropped before its end says nothing about the service,
/// unless the head was that of a failure already.
pub type GuardedBody<B> = ObservedBody<B, Settle>;

/// A response of which nobody waits for the end.
pub(crate) fn unobserved<B: Body>(response: Response<B>) -> Response<GuardedBody<B>> {
    let (parts, body) = response.into_parts();
    let head = Head::new(parts.status, &parts.headers);
    Response::from_parts(parts, ObservedBody::new(body, head, Box::new(|_| {})))
}

/// The policies of a guard by way of a handle to it.
#[derive(Clone)]
pub(crate) struct Part<G>(G);

impl<G: AsRef<Guard>> AsRef<Breaker> for Part<G> {
    fn as_ref(&self) -> &Breaker {
        self.0.as_ref().breaker.kept().expect("made only where there is a breaker")
    }
}

impl<G: AsRef<Guard>> AsRef<Bulkhead> for Part<G> {
    fn as_ref(&self) -> &Bulkhead {
        self.0.as_ref().bulkhead.kept().expect("made only where there is a bulkhead")
    }
}

/// What one attempt was given, and can be taken anywhere. Dropped, it gives all of it back.
pub(crate) struct Held<G: AsRef<Guard>> {
    guard: G,
    throttled: bool,
    breaker: Option<breaker::Permit<Part<G>>>,
    place: Option<bulkhead::Permit<Part<G>>>,
    /// What the head said, once it is there.
    head: Option<Report>,
    trace: u128,
}

impl<G: AsRef<Guard> + Clone> Held<G> {
    /// Asks throttle, breaker and bulkhead, as [`Guard::admit`] does.
    ///
    /// # Errors
    /// [`Rejected`] by the first that turns the call away; then nothing was taken.
    pub(crate) async fn admit(guard: &G, priority: Priority, limit: Duration, trace: u128) -> Result<Self, Rejected> {
        let mut held = Self { guard: guard.clone(), throttled: false, breaker: None, place: None, head: None, trace };
        let policies = guard.as_ref();
        if let Some(throttle) = policies.throttle.get() {
            // The permit holds nothing.
            throttle.admit().map(drop)?;
            held.throttled = true;
        }
        if policies.breaker.get().is_some() {
            held.breaker = Some(Breaker::try_acquire(Part(guard.clone()))?.waiting());
        }
        if policies.bulkhead.get().is_some() {
            match Bulkhead::acquire_as(Part(guard.clone()), priority, limit).await {
                Ok(place) => held.place = Some(place),
                Err(rejected) => {
                    held.settle(Outcome::Ignored.into());
                    return Err(rejected);
                }
            }
        }
        Ok(held)
    }
}

impl<G: AsRef<Guard>> Held<G> {
    /// The call is made now.
    pub(crate) fn begin(&mut self) {
        if let Some(permit) = &mut self.breaker {
            permit.begin();
        }
    }

    /// The call has ended.
    pub(crate) fn finish(mut self, report: Report) {
        self.settle(report);
    }

    fn settle(&mut self, report: Report) {
        let trace = if self.trace == 0 { report.trace } else { self.trace };
        let report = Report { trace, ..report };
        self.head = None;
        if std::mem::take(&mut self.throttled)
            && let (Some(throttle), Some(accepted)) = (self.guard.as_ref().throttle.kept(), accepted(&report))
        {
            throttle.record(accepted);
        }
        if let Some(place) = self.place.take() {
            place.finish(ended(&report), report.took);
        }
        if let Some(permit) = self.breaker.take() {
            permit.finish(report);
        }
    }
}

impl<G: AsRef<Guard> + Send + Sync + 'static> Held<G> {
    /// The head of the answer is here, after `took`; what is held travels on in the body.
    pub(crate) fn answered<B: Body>(mut self, response: Response<B>, took: Duration) -> Response<GuardedBody<B>> {
        let (parts, body) = response.into_parts();
        let head = Head::new(parts.status, &parts.headers);
        self.head = Some(Report { took: Some(took), ..head.report() });
        // Until the head: a long download is not a slow call.
        let settle: Settle = Box::new(move |report| self.finish(Report { took: Some(took), ..report }));
        Response::from_parts(parts, ObservedBody::new(body, head, settle))
    }
}

impl<G: AsRef<Guard>> Drop for Held<G> {
    fn drop(&mut self) {
        // Without a head the call was given up, and its age speaks.
        if let Some(head) = self.head.take() {
            let report = if head.outcome == Outcome::Failure { head } else { Outcome::Ignored.into() };
            self.settle(report);
        }
    }
}

impl<G: AsRef<Guard>> fmt::Debug for Held<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("breaker", &self.breaker).field("place", &self.place).finish_non_exhaustive()
    }
}
