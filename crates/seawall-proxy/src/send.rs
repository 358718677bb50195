//! The one step of a request that does I/O: sending it to an endpoint and waiting for the head of the response.

use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Request, Response, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::timeout_at;

use crate::body::RequestBody;
use crate::pool::{self, Connection};
use crate::reject::{Reason, Rejection};
use crate::upstream::{Endpoint, Protocol, Upstream};

/// A kept connection that is not ready within this is still busy with its last request's body, and of no use.
const READY: Duration = Duration::from_millis(5);
/// No connection takes longer to open; a host that does not answer is as good as gone.
const CONNECT: Duration = Duration::from_secs(1);

/// What went wrong on the wire.
pub(crate) struct SendError {
    pub(crate) reason: Reason,
    detail: String,
    /// Whether the service may have seen it.
    sent: bool,
    /// The request, if it is still whole; only when it was not sent.
    request: Option<Request<RequestBody>>,
}

impl SendError {
    /// What the caller is told, and the request if it is still whole.
    pub(crate) fn reject(self, upstream: &Upstream) -> (Rejection, Option<Request<RequestBody>>) {
        let mut rejection = Rejection::unsent(self.reason, upstream.name.clone(), self.detail);
        rejection.sent = self.sent;
        (rejection, self.request)
    }
}

/// Sends one request over a kept or a new connection and waits for the head of its response.
pub(crate) async fn send(
    upstream: &Upstream,
    endpoint: &Endpoint,
    mut request: Request<RequestBody>,
    begun: Instant,
    until: Instant,
) -> Result<(Response<Incoming>, Connection), SendError> {
    let addr = endpoint.addr;
    let protocol = protocol(upstream, request.headers());
    loop {
        let (mut connection, reused) = match connection(endpoint, protocol, begun, until).await {
            Ok(connection) => connection,
            Err(detail) => {
                let request = Some(request);
                return Err(SendError { reason: Reason::Connect, detail, sent: false, request });
            }
        };
        let answer = match &mut connection {
            Connection::Http1(connection) => {
                if request.body().size_hint().exact().is_none() {
                    // hyper takes a GET of unknown length for one without a body.
                    request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
                timeout_at(until.into(), connection.try_send_request(request)).await
            }
            Connection::Http2(stream) => {
                name_authority(upstream, &mut request);
                timeout_at(until.into(), stream.send().try_send_request(request)).await
            }
        };
        let mut error = match answer {
            Ok(Ok(response)) => return Ok((response, connection)),
            Ok(Err(error)) => error,
            Err(_) => {
                let detail = format!("{addr} did not answer within {:?}", until.saturating_duration_since(begun));
                return Err(SendError { reason: Reason::Timeout, detail, sent: true, request: None });
            }
        };
        let unsent = error.take_message();
        let error = error.into_error();
        let untouched = unsent.is_some() || was_refused(&error);
        let (reason, what) = match &unsent {
            // The server closed the kept connection before it read anything: that costs no attempt.
            Some(_) if reused => {
                request = unsent.expect("just seen");
                continue;
            }
            Some(_) => (Reason::Connect, "before the request was sent"),
            None if untouched => (Reason::Connect, "and has not looked at the request"),
            None if error.is_user() => (Reason::BadRequest, "because the client broke off its own body"),
            None => (Reason::Reset, "after the request was sent"),
        };
        let detail = format!("{addr} broke off {what}: {}", chain(&error));
        return Err(SendError { reason, detail, sent: !untouched, request: unsent });
    }
}

/// What the endpoint is spoken to in: gRPC is HTTP/2 whatever else the service speaks, and nothing but HTTP/1.1 can be changed
/// into something else.
fn protocol(upstream: &Upstream, headers: &HeaderMap) -> Protocol {
    match upstream.protocol {
        _ if headers.contains_key(UPGRADE) => Protocol::Http1,
        Protocol::Http1 if is_grpc(headers) => Protocol::Http2,
        protocol => protocol,
    }
}

/// Whether a message is one of gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// A connection, and whether it stood before.
async fn connection(
    endpoint: &Endpoint,
    protocol: Protocol,
    begun: Instant,
    until: Instant,
) -> Result<(Connection, bool), String> {
    let limit = until.min(Instant::now() + CONNECT).into();
    if protocol == Protocol::Http2 {
        let opened = timeout_at(limit, endpoint.pool.stream(endpoint.addr, begun)).await;
        let (stream, reused) = opened_or_why(endpoint, opened)?;
        return Ok((Connection::Http2(stream), reused));
    }
    while let Some(mut kept) = endpoint.pool.take(begun) {
        // It may have been closed, or still be finishing what came before.
        if kept.is_ready() || matches!(tokio::time::timeout(READY, kept.ready()).await, Ok(Ok(()))) {
            return Ok((Connection::Http1(kept), true));
        }
    }
    let opened = opened_or_why(endpoint, timeout_at(limit, pool::open_http1(endpoint.addr)).await)?;
    Ok((Connection::Http1(opened), false))
}

fn opened_or_why<T>(
    endpoint: &Endpoint,
    opened: Result<std::io::Result<T>, tokio::time::error::Elapsed>,
) -> Result<T, String> {
    let addr = endpoint.addr;
    match opened {
        Ok(opened) => opened.map_err(|error| format!("cannot connect to {addr}: {error}")),
        Err(_) => Err(format!("cannot connect to {addr}: no answer in time")),
    }
}

/// HTTP/2 has the host in the target, and says by itself where a body ends.
fn name_authority(upstream: &Upstream, request: &mut Request<RequestBody>) {
    *request.version_mut() = Version::HTTP_2;
    if request.uri().authority().is_some() {
        return;
    }
    let host = request.headers_mut().remove(HOST);
    let other = host.filter(|host| *host != upstream.host);
    let authority = other.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.unwrap_or_else(|| upstream.authority.clone()));
    *request.uri_mut() = Uri::from_parts(parts).expect("a scheme, a host and a path make an address");
}

/// Whether the server has said that it did not look at the request (RFC 9113, 8.7).
fn was_refused(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            let reason = error.reason();
            let refused = error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM);
            let leaving = error.is_go_away() && reason == Some(h2::Reason::NO_ERROR);
            return error.is_remote() && (refused || leaving);
        }
        source = cause.source();
    }
    false
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
