//! What a request is told that was not let in.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::Fence;

/// A request that was not let in; the handler has seen nothing of it. As a response it is JSON: `error`, `code`, `lock`, what to
/// do as `remedy`, and for a stale one `seen` and `given`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FenceRejection {
    /// 428, `fence-missing`: without a token of this lock.
    #[error("this needs the lock `{lock}`, and the request has no token of it")]
    Missing {
        /// The lock.
        lock: String,
    },
    /// 400, `fence-malformed`.
    #[error("the lock `{lock}` cannot be checked: {why}")]
    Malformed {
        /// The lock.
        lock: String,
        /// Why.
        why: String,
    },
    /// 409, `stale`: a later holder has been here.
    #[error("stale: the token {given} of the lock `{lock}` comes after {seen}, so somebody else has the lock")]
    Stale {
        /// The lock.
        lock: String,
        /// The largest token that was seen.
        seen: Fence,
        /// The request's.
        given: Fence,
    },
    /// 503, `fence-busy`: another request of the same lock is at work.
    #[error("the lock `{lock}` was not checked: {why}")]
    Busy {
        /// The lock.
        lock: String,
        /// Why.
        why: String,
    },
    /// 503, `fence-unchecked`: the largest token can be neither read nor kept.
    #[error("the lock `{lock}` cannot be checked: {why}")]
    Unchecked {
        /// The lock.
        lock: String,
        /// Why.
        why: String,
    },
    /// 500, `fence-undefined`: the server's route does not fit its resource.
    #[error("the lock `{lock}` is not defined for this route: {why}")]
    Undefined {
        /// The lock, as the resource says it.
        lock: &'static str,
        /// Why.
        why: String,
    },
}

impl FenceRejection {
    fn parts(&self) -> (StatusCode, &'static str, &str, &'static str) {
        match self {
            Self::Missing { lock } => {
                let remedy = "acquire the lock, and send `seawall-fence: NAME=TOKEN` with its fencing token";
                (StatusCode::PRECONDITION_REQUIRED, "fence-missing", lock, remedy)
            }
            Self::Malformed { lock, .. } => {
                let remedy = "send `seawall-fence: NAME=TOKEN`, the name percent-encoded, the token as decimal digits";
                (StatusCode::BAD_REQUEST, "fence-malformed", lock, remedy)
            }
            Self::Stale { lock, .. } => {
                let remedy = "stop: the lock is lost. Do not repeat this request with another token; acquire the lock \
                              anew, and look at what its later holder has done";
                (StatusCode::CONFLICT, "stale", lock, remedy)
            }
            Self::Busy { lock, .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "fence-busy", lock, "repeat the request a little later")
            }
            Self::Unchecked { lock, .. } => {
                let remedy = "repeat the request a little later; an operator has to see to the server's disk";
                (StatusCode::SERVICE_UNAVAILABLE, "fence-unchecked", lock, remedy)
            }
            Self::Undefined { lock, .. } => {
                let remedy = "name the route's parameters in the resource's LOCK";
                (StatusCode::INTERNAL_SERVER_ERROR, "fence-undefined", lock, remedy)
            }
        }
    }
}

impl IntoResponse for FenceRejection {
    fn into_response(self) -> Response {
        let (status, code, lock, remedy) = self.parts();
        if status.is_server_error() {
            tracing::warn!(lock, code, error = %self, "a fenced request was not let in");
        }
        let mut body = json!({ "error": self.to_string(), "code": code, "lock": lock, "remedy": remedy });
        if let Self::Stale { seen, given, .. } = &self {
            body["seen"] = json!(seen);
            body["given"] = json!(given);
        }
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}
