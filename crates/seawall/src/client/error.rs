//! Why a call has no answer, and what that means for the caller.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use seawall_proxy::reject::{Reason, Rejection};
use seawall_proxy::{CallError, ReadError};
use seawall_types::ServiceName;

/// A call without an answer, or with one that is of no use. Three things can be asked of it: whether the service has
/// provably not seen the request ([`is_unsent`](Self::is_unsent)), whether nobody knows what the service did
/// ([`is_unknown`](Self::is_unknown)), and otherwise the [`status`](Self::status) of its answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The request itself is wrong: mend it, nothing else helps.
    Request {
        /// The URL, or the service.
        target: String,
        /// What is wrong.
        detail: String,
        /// Whether the service may have seen the request.
        sent: bool,
    },
    /// A policy turned the call away: the breaker, the bulkhead.
    Rejected(Rejected),
    /// The time was over.
    Timeout {
        /// The service.
        service: Arc<str>,
        /// Who did not do what in time.
        detail: String,
        /// Whether the service may have seen the request.
        sent: bool,
    },
    /// No instance is up, or none could be connected to.
    Unavailable {
        /// The service.
        service: Arc<str>,
        /// Which.
        detail: String,
        /// Whether the service may have seen the request, in an earlier attempt.
        sent: bool,
    },
    /// The connection broke after the request had been sent, or in the middle of the answer.
    Broken {
        /// The service.
        service: Arc<str>,
        /// How.
        detail: String,
    },
    /// The answer is larger than its reader allows.
    TooLarge {
        /// The service.
        service: Arc<str>,
        /// The most that would have been read, in bytes.
        limit: usize,
    },
    /// The answer is not the JSON that was expected.
    Decode {
        /// The service.
        service: Arc<str>,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The service answered with an error: see [`Response::error_for_status`](super::Response::error_for_status).
    Status {
        /// The service.
        service: Arc<str>,
        /// Its answer.
        status: StatusCode,
    },
}

/// A call that a policy turned away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Which policy: `breaker` or `bulkhead`.
    pub policy: &'static str,
    /// Whose policy: the service that was called.
    pub instance: Arc<str>,
    /// Why: `open`, `half-open`, `full`, `queue-full`; or what the hop that rejected says.
    pub reason: String,
    /// When it is worth trying again, where the policy knows.
    pub retry_after: Option<Duration>,
    /// Whether the service may have seen the request, in an earlier attempt.
    pub sent: bool,
}

impl Error {
    /// Whether the service may have done it, and nobody knows: the request was sent, and there is no answer that says what
    /// came of it. Ask the service, or send it again under the same idempotency key.
    pub const fn is_unknown(&self) -> bool {
        match self {
            Self::Status { .. } => false,
            _ => !self.is_unsent(),
        }
    }

    /// A promise that the service has not seen the request: it is safe to send it again, or to do without.
    pub const fn is_unsent(&self) -> bool {
        match self {
            Self::Request { sent, .. } | Self::Timeout { sent, .. } | Self::Unavailable { sent, .. } => !*sent,
            Self::Rejected(rejected) => !rejected.sent,
            Self::Broken { .. } | Self::TooLarge { .. } | Self::Decode { .. } | Self::Status { .. } => false,
        }
    }

    /// Whether the time was over.
    pub const fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    /// Whether a policy turned the call away; [`Error::rejected`] says more.
    pub const fn is_rejected(&self) -> bool {
        matches!(self, Self::Rejected(_))
    }

    /// Which policy turned the call away, why and until when.
    pub const fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            _ => None,
        }
    }

    /// The status that the service answered with, if it is that what is wrong.
    pub const fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The service that was called; for a URL that names none, the URL.
    pub fn service(&self) -> &str {
        match self {
            Self::Request { target, .. } => target,
            Self::Rejected(rejected) => &rejected.instance,
            Self::Timeout { service, .. }
            | Self::Unavailable { service, .. }
            | Self::Broken { service, .. }
            | Self::TooLarge { service, .. }
            | Self::Decode { service, .. }
            | Self::Status { service, .. } => service,
        }
    }

    pub(crate) fn reading(service: &ServiceName, error: &ReadError) -> Self {
        let service: Arc<str> = service.as_str().into();
        match error {
            ReadError::Broken(seawall_proxy::body::BodyError::Stalled(_)) | ReadError::Timeout(_) => {
                Self::Timeout { service, detail: error.to_string(), sent: true }
            }
            ReadError::Broken(_) => Self::Broken { service, detail: error.to_string() },
            ReadError::TooLarge(limit) => Self::TooLarge { service, limit: *limit },
        }
    }
}

impl From<CallError> for Error {
    fn from(CallError(rejection): CallError) -> Self {
        let Rejection { reason, service, detail, retry_after, sent, retries_left: _ } = rejection;
        match reason {
            Reason::BadRequest | Reason::SlowClient | Reason::Misdirected | Reason::NoRoute => {
                Self::Request { target: service.to_string(), detail, sent }
            }
            Reason::Timeout => Self::Timeout { service, detail, sent },
            Reason::NoInstance | Reason::Connect => Self::Unavailable { service, detail, sent },
            Reason::Reset => Self::Broken { service, detail },
            // Whatever else turns a call away is a policy.
            policy => Self::Rejected(Rejected {
                policy: policy.as_str(),
                instance: service,
                reason: detail,
                retry_after,
                sent,
            }),
        }
    }
}

/// What the caller may rely on, and what it can do.
fn advice(sent: bool) -> &'static str {
    if sent {
        "it may have been done: ask the service, or repeat it under its idempotency key"
    } else {
        "it was not sent: it is safe to try again"
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request { target, detail, .. } => write!(f, "`{target}` cannot be called like this: {detail}"),
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Timeout { service, detail, sent } => {
                write!(f, "`{service}` did not answer in time: {detail}; {}", advice(*sent))
            }
            Self::Unavailable { service, detail, sent } => {
                write!(f, "`{service}` cannot be reached: {detail}; {}", advice(*sent))
            }
            Self::Broken { service, detail } => write!(f, "`{service}` broke off: {detail}; {}", advice(true)),
            Self::TooLarge { service, limit } => {
                write!(f, "the answer of `{service}` exceeds {limit} bytes: raise `body_limit`, or read it by `chunk`")
            }
            Self::Decode { service, source } => {
                write!(f, "the answer of `{service}` is not the JSON that was expected: {source}")
            }
            Self::Status { service, status } => write!(f, "`{service}` answered {status}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Decode { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} of `{}` turned the call away: {}", self.policy, self.instance, self.reason)?;
        if let Some(after) = self.retry_after {
            write!(f, "; try again in {:.1} s", after.as_secs_f64())?;
        }
        write!(f, "; {}", advice(self.sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_the_service_knows() {
        let error = |reason, sent| {
            Error::from(CallError(Rejection { sent, ..Rejection::unsent(reason, "payment".into(), "why") }))
        };
        for reason in Reason::ALL {
            for sent in [false, true] {
                let error = error(reason, sent);
                // A connection that broke afterwards has been used.
                let sent = sent || reason == Reason::Reset;
                assert_eq!((error.is_unsent(), error.is_unknown()), (!sent, sent), "{error:?}");
                assert_eq!(error.is_timeout(), reason == Reason::Timeout);
                let others = [Reason::RateLimit, Reason::Throttle, Reason::Chaos];
                let policy = matches!(reason, Reason::Breaker | Reason::Bulkhead) || others.contains(&reason);
                assert_eq!(error.is_rejected(), policy);
                let text = error.to_string();
                assert!(error.service() == "payment" && text.contains("`payment`") && text.contains("why"), "{text}");
            }
        }
        let status = Error::Status { service: "payment".into(), status: StatusCode::CONFLICT };
        assert!(!status.is_unsent() && !status.is_unknown() && status.status() == Some(StatusCode::CONFLICT));
    }
}
