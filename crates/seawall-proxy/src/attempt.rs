//! What one attempt holds, and what is settled when its response has passed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::UPGRADE;
use http::{HeaderMap, Response, StatusCode, Version};
use hyper::body::Incoming;
use seawall_resilience::http::Head;
use seawall_resilience::{Outcome, Report, Tick, accepted, breaker, bulkhead, ended};

use crate::body::ResponseBody;
use crate::headers;
use crate::pool::Connection;
use crate::reject::Reason;
use crate::tunnel::Tunnel;
use crate::upstream::{Endpoint, Handle, Upstream};

/// A request about to be sent to one endpoint. Dropped before its end it says as much as its age does: a call given up
/// early says nothing.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) upstream: Arc<Upstream>,
    /// Where it goes; taken out when that is settled.
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    pub(crate) permit: Option<breaker::Permit<Handle>>,
    pub(crate) place: Option<bulkhead::Permit<Handle>>,
    pub(crate) trace: u128,
    /// When it was sent, by the clock of the policies: they judge how long it took.
    pub(crate) begun: Tick,
    /// Nothing that comes later is told.
    pub(crate) given_up: bool,
}

impl Attempt {
    /// The attempt failed: that speaks against the endpoint and the service.
    pub(crate) fn failed(&mut self, cause: &'static str) {
        let overloaded = cause == Reason::Timeout.as_str();
        self.settle(Report { cause, overloaded, ..Outcome::Failure.into() });
    }

    /// The attempt was answered as somebody has ordered: that is judged as the service's own answer would be.
    pub(crate) fn ordered(&mut self, head: &Head) {
        let took = self.upstream.guard.clock().precise().since(self.begun);
        self.settle(Report { took: Some(took), cause: "chaos", ..head.report() });
    }

    /// The attempt ended by the caller's fault: that speaks against nobody.
    pub(crate) fn ignored(&mut self) {
        self.settle(Outcome::Ignored.into());
    }

    /// The caller's time is over: nobody is told but by the age of what is given back.
    pub(crate) fn give_up(&mut self) {
        self.given_up = true;
        drop((self.permit.take(), self.place.take()));
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.load.abandon();
        }
    }

    /// Tells everybody how it ended: throttle, bulkhead, breaker and balancer.
    fn settle(&mut self, report: Report) {
        if self.given_up {
            return;
        }
        let report = Report { trace: self.trace, ..report };
        let ended = ended(&report);
        if let (Some(accepted), Some(throttle)) = (accepted(&report), self.upstream.guard.throttle.get()) {
            throttle.record(accepted);
        }
        if let Some(place) = self.place.take() {
            place.finish(ended, report.took);
        }
        if let Some(permit) = self.permit.take() {
            permit.finish(report);
        }
        if let Some(endpoint) = self.endpoint.take() {
            match report.outcome {
                Outcome::Success => endpoint.load.end(report.took, Instant::now()),
                Outcome::Failure => endpoint.load.end(None, Instant::now()),
                Outcome::Ignored => endpoint.load.abandon(),
            }
        }
    }

    /// The head of a response is here; what the attempt holds travels on with the body.
    pub(crate) fn answered(self, response: Response<Incoming>, connection: Connection) -> Response<ResponseBody> {
        let latency = self.upstream.guard.clock().precise().since(self.begun);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switched(response, connection, latency);
        }
        let (mut parts, body) = response.into_parts();
        let head = Head::new(parts.status, &parts.headers);
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let idle = self.upstream.guard.timeout.limits().0;
        let record = Record { attempt: self, connection: Some(connection), head, latency };
        Response::from_parts(parts, ResponseBody::stream(body, record, idle))
    }
}

impl Attempt {
    /// The service speaks another protocol from here on; what the attempt holds travels on with the tunnel.
    fn switched(
        self,
        response: Response<Incoming>,
        connection: Connection,
        latency: Duration,
    ) -> Response<ResponseBody> {
        let head = Head::new(response.status(), response.headers());
        let record = Record { attempt: self, connection: Some(connection), head, latency };
        let mut switched = Response::new(ResponseBody::whole(""));
        *switched.status_mut() = response.status();
        switched.headers_mut().clone_from(response.headers());
        let protocol = switched.headers().get(UPGRADE).cloned();
        headers::strip_hop_by_hop(switched.headers_mut());
        if let Some(protocol) = protocol {
            headers::set_upgrade(switched.headers_mut(), protocol);
        }
        switched.extensions_mut().insert(Tunnel::new(hyper::upgrade::on(response), record));
        switched
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.load.abandon();
        }
    }
}

/// What has to be settled when a response's body has ended. Dropped before that, because the client has gone, its head
/// decides if it was that of a failure; otherwise it says nothing about the service, however long it lasted. The
/// connection is closed then, since the rest of the body is still in it.
#[derive(Debug)]
pub(crate) struct Record {
    attempt: Attempt,
    connection: Option<Connection>,
    head: Head,
    /// Until the head: a long download is not a slow call.
    latency: Duration,
}

impl Record {
    /// Which instance answers.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.attempt.endpoint.as_ref().map(|endpoint| endpoint.addr)
    }

    /// The trailers are here: a gRPC call's verdict is in them.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        self.head.trailers(trailers);
    }

    /// The body has passed whole.
    pub(crate) fn complete(mut self) {
        let endpoint = self.attempt.endpoint.clone();
        self.attempt.settle(Report { took: Some(self.latency), ..self.head.end() });
        if let (Some(endpoint), Some(connection)) = (endpoint, self.connection.take()) {
            endpoint.pool.put(connection, Instant::now());
        }
    }

    /// The rest of the body is not wanted: the head decides.
    pub(crate) fn left(mut self) {
        let endpoint = self.attempt.endpoint.clone();
        self.attempt.settle(Report { took: Some(self.latency), ..self.head.report() });
        if let (Some(endpoint), Some(connection)) = (endpoint, self.connection.take()) {
            endpoint.pool.put(connection, Instant::now());
        }
    }

    /// The call has failed, and the rest of the answer decides nothing; where the head says so, it also says why, and
    /// when the service wants to be called again.
    pub(crate) fn refused(mut self) {
        let report = self.head.report();
        if report.outcome == Outcome::Failure {
            self.attempt.settle(Report { took: Some(self.latency), ..report });
        } else {
            self.attempt.settle(Head::broken());
        }
    }

    /// The body broke off.
    pub(crate) fn broken(mut self) {
        self.attempt.settle(Head::broken());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let report = self.head.report();
        // What has been settled has no endpoint any more.
        if report.outcome == Outcome::Failure && self.attempt.endpoint.is_some() {
            self.attempt.settle(Report { took: Some(self.latency), ..report });
        } else {
            self.attempt.ignored();
        }
    }
}
