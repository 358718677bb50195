//! The one step of a request that does I/O: sending it to an endpoint and waiting for the head of the response.

use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::timeout_at;

use crate::body::RequestBody;
use crate::pool::{self, Connection};
use crate::reject::{Reason, Rejection};
use crate::upstream::{Endpoint, Upstream};

/// A kept connection that is not ready within this is still busy with its last request's body, and of no use.
const READY: Duration = Duration::from_millis(5);
/// No connection takes longer to open; a host that does not answer is as good as gone.
const CONNECT: Duration = Duration::from_secs(1);

/// What went wrong on the wire.
pub(crate) struct SendError {
    pub(crate) reason: Reason,
    detail: String,
    /// Present only when it was provably not sent.
    request: Option<Request<RequestBody>>,
}

impl SendError {
    /// What the caller is told, and the request if it is still whole.
    pub(crate) fn reject(self, upstream: &Upstream) -> (Rejection, Option<Request<RequestBody>>) {
        let mut rejection = Rejection::unsent(self.reason, upstream.name.clone(), self.detail);
        rejection.sent = self.request.is_none();
        (rejection, self.request)
    }
}

/// Sends one request over a kept or a new connection and waits for the head of its response.
pub(crate) async fn send(
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
            Some(mut connection) => {
                // It may have been closed, or still be finishing what came before.
                let ready = connection.is_ready()
                    || matches!(tokio::time::timeout(READY, connection.ready()).await, Ok(Ok(())));
                if !ready {
                    continue;
                }
                connection
            }
            None => match open(endpoint, until).await {
                Ok(connection) => connection,
                Err(detail) => return Err(SendError { reason: Reason::Connect, detail, request: Some(request) }),
            },
        };
        let mut error = match timeout_at(until.into(), connection.try_send_request(request)).await {
            Ok(Ok(response)) => return Ok((response, connection)),
            Ok(Err(error)) => error,
            Err(_) => {
                let detail = format!("{addr} did not answer within {:?}", until.saturating_duration_since(begun));
                return Err(SendError { reason: Reason::Timeout, detail, request: None });
            }
        };
        let unsent = error.take_message();
        let error = error.into_error();
        let (reason, what) = match &unsent {
            // The server closed the kept connection before it read anything: that costs no attempt.
            Some(_) if reused => {
                request = unsent.expect("just seen");
                continue;
            }
            Some(_) => (Reason::Connect, "before the request was sent"),
            None if error.is_user() => (Reason::BadRequest, "because the client broke off its own body"),
            None => (Reason::Reset, "after the request was sent"),
        };
        let detail = format!("{addr} broke off {what}: {}", chain(&error));
        return Err(SendError { reason, detail, request: unsent });
    }
}

async fn open(endpoint: &Endpoint, until: Instant) -> Result<Connection, String> {
    let addr = endpoint.addr;
    let limit = until.min(Instant::now() + CONNECT);
    match timeout_at(limit.into(), pool::connect(addr)).await {
        Ok(connected) => connected.map_err(|error| format!("cannot connect to {addr}: {error}")),
        Err(_) => Err(format!("cannot connect to {addr}: no answer in time")),
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
