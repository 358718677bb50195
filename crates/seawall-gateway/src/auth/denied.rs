//! The answers to those who may not pass.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use seawall_proxy::ResponseBody;

/// Why a request does not pass. Nothing in it is secret: the client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) status: StatusCode,
    /// How to ask instead.
    pub(crate) challenge: Option<String>,
    pub(crate) detail: String,
}

impl Denied {
    /// Nobody is known to have asked.
    pub(crate) fn unauthorized(challenge: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, challenge: Some(challenge.into()), detail: detail.into() }
    }

    /// Whoever asked may not.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, challenge: None, detail: detail.into() }
    }

    /// It cannot be known at the moment whether it may pass.
    pub(crate) fn unknown(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, challenge: None, detail: detail.into() }
    }

    /// The request is not one that can be judged.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, challenge: None, detail: detail.into() }
    }

    /// The answer. `filter` is its name in the file.
    pub(crate) fn response(self, filter: &str, route: &str) -> Response<ResponseBody> {
        tracing::debug!(filter, route, status = self.status.as_u16(), detail = %self.detail, "denied");
        let mut response = Response::new(ResponseBody::whole(format!("{filter}: {}\n", self.detail)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(challenge) = self.challenge.and_then(|challenge| HeaderValue::try_from(challenge).ok()) {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
