//! When Seawall itself has to answer: why, whether the service has seen the request, and what the caller is told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};
use seawall_resilience::{PolicyName, Rejected};
use seawall_types::header::REJECTED;

use crate::body::ResponseBody;

/// Why there is no answer of the service's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The request is not one that can be passed on.
    BadRequest,
    /// The client took too long to send its request.
    SlowClient,
    /// It came by a connection for another host.
    Misdirected,
    /// No route matches.
    NoRoute,
    /// The service has no instance that is up.
    NoInstance,
    /// The circuit breaker turned it away.
    Breaker,
    /// The bulkhead turned it away.
    Bulkhead,
    /// The service may not be called this often.
    RateLimit,
    /// The service turns so much away that it is asked less.
    Throttle,
    /// A fault that was ordered.
    Chaos,
    /// No time is left.
    Timeout,
    /// No instance could be connected to.
    Connect,
    /// The connection broke after the request had been sent.
    Reset,
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::BadRequest,
        Self::SlowClient,
        Self::Misdirected,
        Self::NoRoute,
        Self::NoInstance,
        Self::Breaker,
        Self::Bulkhead,
        Self::RateLimit,
        Self::Throttle,
        Self::Chaos,
        Self::Timeout,
        Self::Connect,
        Self::Reset,
    ];

    /// The word used in headers, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::SlowClient => "slow-client",
            Self::Misdirected => "misdirected",
            Self::NoRoute => "no-route",
            Self::NoInstance => "no-instance",
            Self::Breaker => "breaker",
            Self::Bulkhead => "bulkhead",
            Self::RateLimit => "rate-limit",
            Self::Throttle => "throttle",
            Self::Chaos => "chaos",
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Reset => "reset",
        }
    }

    /// Whether it is the caller's own doing: no fallback makes up for that.
    pub const fn blames_caller(self) -> bool {
        matches!(self, Self::BadRequest | Self::SlowClient | Self::Misdirected)
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::SlowClient => StatusCode::REQUEST_TIMEOUT,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::RateLimit => StatusCode::TOO_MANY_REQUESTS,
            Self::NoInstance | Self::Breaker | Self::Bulkhead | Self::Throttle | Self::Chaos | Self::Connect => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Reset => StatusCode::BAD_GATEWAY,
        }
    }

    /// The same in gRPC's numbers.
    const fn grpc_status(self) -> u16 {
        match self {
            Self::BadRequest | Self::Misdirected => 13,
            Self::SlowClient => 1,
            Self::NoRoute => 12,
            Self::RateLimit | Self::Bulkhead => 8,
            Self::Timeout => 4,
            Self::NoInstance | Self::Breaker | Self::Throttle | Self::Chaos | Self::Connect | Self::Reset => 14,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A call that got no answer of the service's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// The service that was to be called; empty when none was chosen.
    pub service: Arc<str>,
    /// More about it, for people.
    pub detail: String,
    /// When it is worth trying again, where that is known.
    pub retry_after: Option<Duration>,
    /// Whether the service may have seen the request. `false` is a promise.
    pub sent: bool,
    /// What is left of the retries that the caller allowed, if it said how many.
    pub retries_left: Option<u32>,
}

impl Rejection {
    /// A rejection of a request that was not sent.
    pub fn unsent(reason: Reason, service: Arc<str>, detail: impl Into<String>) -> Self {
        Self { reason, service, detail: detail.into(), retry_after: None, sent: false, retries_left: None }
    }

    /// The answer to the caller.
    pub fn into_response(self) -> Response<ResponseBody> {
        let text = format!("{self}\n");
        let mut response = Response::new(ResponseBody::whole(text));
        *response.status_mut() = self.reason.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        self.mark(headers);
        response
    }

    /// The answer to a caller that speaks gRPC: its clients look at trailers, which may be all there is.
    pub fn into_grpc(self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::whole(""));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", self.reason.grpc_status().into());
        let plain = |c: char| (' '..='~').contains(&c) && c != '%';
        let message: String = self.to_string().chars().map(|c| if plain(c) { c } else { '?' }).collect();
        if let Ok(message) = message.try_into() {
            headers.insert("grpc-message", message);
        }
        self.mark(headers);
        response
    }

    /// Says in the headers which policy rejected and until when.
    pub fn mark(&self, headers: &mut http::HeaderMap) {
        let mut mark = self.reason.to_string();
        if !self.service.is_empty() {
            mark += &format!("; instance=\"{}\"", self.service);
        }
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            mark += &format!("; retry_after={seconds}");
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(left) = self.retries_left {
            crate::headers::set_retries_left(headers, left);
        }
        mark += if self.sent { SENT } else { UNSENT };
        if let Ok(mark) = mark.try_into() {
            headers.insert(REJECTED, mark);
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if !self.service.is_empty() {
            write!(f, " of `{}`", self.service)?;
        }
        write!(f, ": {}", self.detail)?;
        if let Some(after) = self.retry_after {
            write!(f, "; try again in {:.1} s", after.as_secs_f64())?;
        }
        Ok(())
    }
}

impl From<Rejected> for Rejection {
    fn from(rejected: Rejected) -> Self {
        let reason = match rejected.policy {
            PolicyName::Breaker => Reason::Breaker,
            PolicyName::Bulkhead => Reason::Bulkhead,
            PolicyName::Timeout => Reason::Timeout,
            PolicyName::RateLimit => Reason::RateLimit,
            PolicyName::Throttle => Reason::Throttle,
            PolicyName::Chaos => Reason::Chaos,
        };
        let detail = rejected.reason.to_string();
        Self {
            reason,
            service: rejected.instance.as_str().into(),
            detail,
            retry_after: rejected.retry_after,
            sent: false,
            retries_left: None,
        }
    }
}

/// Whether a response from the next hop says that `service` never saw the request. The name has to be that of the service
/// that was called: one that hands on the headers of its own failed call does not speak of itself.
pub fn promises_unsent(headers: &http::HeaderMap, service: &str) -> bool {
    let Some(mark) = headers.get(REJECTED).and_then(|mark| mark.to_str().ok()) else { return false };
    mark.ends_with(UNSENT) && instance(mark) == Some(service)
}

/// What a response from the next hop says if it is a rejection of a call of `service` rather than the service's own
/// answer; the words for people are in its body.
pub fn rejected(headers: &http::HeaderMap, service: &str) -> Option<Rejection> {
    let mark = headers.get(REJECTED)?.to_str().ok()?;
    let word = mark.split("; ").next()?;
    // A word that we do not know, from a later version perhaps, still means that the service was not reached by it.
    let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == word).unwrap_or(Reason::Connect);
    let seconds = mark.split("; ").find_map(|part| part.strip_prefix("retry_after=")?.parse().ok());
    let rejection = Rejection::unsent(reason, instance(mark).filter(|name| *name == service)?.into(), "");
    Some(Rejection { retry_after: seconds.map(Duration::from_secs), sent: !mark.ends_with(UNSENT), ..rejection })
}

fn instance(mark: &str) -> Option<&str> {
    mark.split("; ").find_map(|part| part.strip_prefix("instance=\"")?.strip_suffix('"'))
}

/// Takes back the promise of the last hop, because an earlier attempt may have arrived.
pub fn withdraw_promise(headers: &mut http::HeaderMap) {
    let kept = headers.get(REJECTED).and_then(|mark| mark.to_str().ok()?.strip_suffix(UNSENT));
    if let Some(mark) = kept.and_then(|kept| HeaderValue::try_from(format!("{kept}{SENT}")).ok()) {
        headers.insert(REJECTED, mark);
    }
}

const SENT: &str = "; sent=?1";
const UNSENT: &str = "; sent=?0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_says_who_and_until_when() {
        let mut rejection = Rejection::unsent(Reason::Breaker, "payment".into(), "open");
        rejection.retry_after = Some(Duration::from_millis(11_200));
        let response = rejection.clone().into_response();
        let text = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(response.status(), 503);
        assert_eq!(text(REJECTED), "breaker; instance=\"payment\"; retry_after=12; sent=?0");
        assert_eq!(text("retry-after"), "12");
        assert!(promises_unsent(response.headers(), "payment"));
        assert!(!promises_unsent(response.headers(), "order"), "it is payment that has not seen it");
        let read = rejected(response.headers(), "payment").unwrap();
        assert_eq!((read.reason, read.retry_after, read.sent), (Reason::Breaker, Some(Duration::from_secs(12)), false));
        assert_eq!(rejected(response.headers(), "order"), None);
        let mut headers = response.headers().clone();
        withdraw_promise(&mut headers);
        assert_eq!(headers[REJECTED], "breaker; instance=\"payment\"; retry_after=12; sent=?1");
        rejection.sent = true;
        assert!(!promises_unsent(rejection.into_response().headers(), "payment"));
    }
}
