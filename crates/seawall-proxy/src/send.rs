//! The one step of a request that does I/O: sending it to an endpoint and waiting for the head of the response.

use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::timeout_at;

use crate::body::RequestBody;
use crate::pool::{self, Connection};
use crate::reject::{Reason, Rejection};
use crate::upstream::{Endpoint, Upstream};

/// No connection takes longer to open; a host that does not answer is as good as gone.
const CONNECT: Duration = Duration::from_secs(1);

/// What went wrong on the wire.
pub(crate) struct SendError {
    reason: Reason,
    detail: String,
    /// Present only when it was provably not sent.
    request: Option<Request<RequestBody>>,
}

impl SendError {
    /// What the caller is told, and the request if it is still whole.
    pub(crate) fn reject(self, upstream: &Upstream) -> (Rejection, Option<Request<RequestBody>>) {
        let mut rejection = Rejection::unsent(self.reason, upstream.guard.name.clone(), self.detail);
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
