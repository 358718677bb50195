//! What one attempt holds, and what is settled when its response has passed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Response, Version};
use hyper::body::Incoming;
use seawall_resilience::breaker;
use seawall_resilience::{Outcome, Report, bulkhead};

use crate::body::ResponseBody;
use crate::headers;
use crate::pool::Connection;
use crate::upstream::{BreakerOf, BulkheadOf, Endpoint, Upstream};

/// A request about to be sent to one endpoint. Dropped before its end, it says nothing about the endpoint.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) upstream: Arc<Upstream>,
    /// Where it goes; taken out when that is settled.
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    pub(crate) permit: Option<breaker::Permit<BreakerOf>>,
    pub(crate) _place: Option<bulkhead::Permit<BulkheadOf>>,
}

impl Attempt {
    /// The attempt failed: that speaks against the endpoint and the service.
    pub(crate) fn failed(&mut self) {
        let now = Instant::now();
        if let Some(permit) = self.permit.take() {
            permit.finish(Outcome::Failure);
        }
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.load.end(None, now);
        }
    }

    /// The attempt ended by the caller's fault: that speaks against nobody.
    pub(crate) fn ignored(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.finish(Outcome::Ignored);
        }
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.load.abandon();
        }
    }

    /// The head of a response is here; what the attempt holds travels on with the body.
    pub(crate) fn answered(
        self,
        response: Response<Incoming>,
        connection: Connection,
        begun: Instant,
    ) -> Response<ResponseBody> {
        let head = Instant::now();
        let bad = response.status().is_server_error();
        let outcome = if bad { Outcome::Failure } else { Outcome::Success };
        let (mut parts, body) = response.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let idle = self.upstream.guard.policy.timeout.get();
        let record = Record { attempt: self, connection: Some(connection), outcome, latency: head - begun };
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
pub(crate) struct Record {
    attempt: Attempt,
    connection: Option<Connection>,
    outcome: Outcome,
    /// Until the head: a long download is not a slow call.
    latency: Duration,
}

impl Record {
    /// The body has passed whole.
    pub(crate) fn complete(mut self) {
        let now = Instant::now();
        if let Some(permit) = self.attempt.permit.take() {
            permit.finish(Report { took: Some(self.latency), ..self.outcome.into() });
        }
        if let Some(endpoint) = self.attempt.endpoint.take() {
            let latency = (self.outcome == Outcome::Success).then_some(self.latency);
            endpoint.load.end(latency, now);
            if let Some(connection) = self.connection.take() {
                endpoint.pool.put(connection, now);
            }
        }
    }

    /// The body broke off.
    pub(crate) fn broken(mut self) {
        self.attempt.failed();
    }
}
