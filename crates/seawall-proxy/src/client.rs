//! Calling named services from within a process: the same pipeline without a listener in front of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use seawall_resilience::deadline;
use seawall_types::ServiceName;
use tokio::time::timeout_at;

use crate::body::{BodyError, ResponseBody};
use crate::headers;
use crate::pipeline::{Matched, Pipeline, Route, has_dot_segment};
use crate::reject::{Reason, Rejection, promises_unsent, rejected};
use crate::upstream::{Upstreams, View};

/// The largest response that [`Client::call`] reads.
const LIMIT: usize = 4 << 20;
/// The most that is read of what another hop says about its rejection.
const EXPLANATION: usize = 4 << 10;

/// Calls services by name, under their policies. Cheap to clone; all clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    pipeline: Arc<Pipeline>,
    route: Arc<Route>,
}

/// A call that got no answer of the service's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CallError(pub Rejection);

/// The body of an answer, read whole or piece by piece. Until it has ended or is dropped the call is under way: it keeps
/// its place in the bulkhead and its connection.
#[derive(Debug)]
pub struct Answer {
    body: ResponseBody,
    until: Instant,
    /// How long that was from the beginning.
    limit: Duration,
    /// The caller gave less time than the policy does.
    callers: bool,
}

/// An answer that could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It broke off, or fell silent.
    #[error("the answer broke off: {0}")]
    Broken(BodyError),
    /// It was not whole when the call's time was over.
    #[error("the answer's body was not whole within {0:?}")]
    Timeout(Duration),
    /// It is larger than the reader allows.
    #[error("the answer exceeds {0} bytes")]
    TooLarge(usize),
}

impl CallError {
    /// Whether the service may have done it; `false` is a promise that it has not seen the request.
    pub const fn is_unknown(&self) -> bool {
        self.0.sent
    }
}

impl Client {
    /// A client of its own connections.
    pub fn new(upstreams: Upstreams) -> Self {
        Self::of(Arc::new(Pipeline::new(View::new(upstreams))))
    }

    /// A client of a worker's connections.
    pub(crate) fn of(pipeline: Arc<Pipeline>) -> Self {
        Self { pipeline, route: Arc::default() }
    }

    /// Makes one call and reads the whole answer, at most 4 MiB. The policy's timeout bounds both, the body too. A dropped
    /// future has an unknown outcome.
    ///
    /// # Errors
    /// [`CallError`] when there is no answer, or only that of a hop that says that the service never saw the request.
    pub async fn call(&self, service: &ServiceName, request: Request<Bytes>) -> Result<Response<Bytes>, CallError> {
        let response = self.head(service, request).await?;
        if promises_unsent(response.headers(), service.as_str()) {
            let detail = explanation(response.into_body()).await;
            return Err(CallError(Rejection::unsent(Reason::Connect, service.as_str().into(), detail)));
        }
        let (parts, body) = response.into_parts();
        let whole = body.whole(LIMIT).await.map_err(|error| {
            let reason = if matches!(error, ReadError::Timeout(_)) { Reason::Timeout } else { Reason::Reset };
            let rejection = Rejection::unsent(reason, service.as_str().into(), error.to_string());
            CallError(Rejection { sent: true, ..rejection })
        })?;
        Ok(Response::from_parts(parts, whole))
    }

    /// Makes one call up to the head of the answer. The time is the policy's, or what the request's `seawall-timeout-ms`
    /// says if that is less. Dropped before its end it gives back what it holds, and its outcome is unknown.
    ///
    /// # Errors
    /// [`CallError`] when there is no answer, or only that of a hop on the way that names `service`.
    pub async fn send(&self, service: &ServiceName, request: Request<Bytes>) -> Result<Response<Answer>, CallError> {
        if has_dot_segment(request.uri().path()) {
            let detail = "the path holds a `.` or `..` segment";
            return Err(CallError(Rejection::unsent(Reason::BadRequest, service.as_str().into(), detail)));
        }
        let response = self.head(service, request).await?;
        let Some(rejection) = rejected(response.headers(), service.as_str()) else { return Ok(response) };
        let text = explanation(response.into_body()).await;
        // A hop of ours says in front and at the end what the rejection says by itself.
        let ours = format!("{} of `{service}`: ", rejection.reason);
        let detail =
            text.strip_prefix(&*ours).and_then(|rest| rest.split("; try again").next()).unwrap_or(&text).into();
        Err(CallError(Rejection { detail, ..rejection }))
    }

    async fn head(&self, service: &ServiceName, mut request: Request<Bytes>) -> Result<Response<Answer>, CallError> {
        let arrived = Instant::now();
        let mut given = headers::timeout(request.headers()).unwrap_or(Duration::MAX);
        // Whoever calls for somebody else has no more time than that one has left.
        if let Some(deadline) = deadline::current() {
            given = given.min(deadline.left());
            headers::set_timeout(request.headers_mut(), given);
        }
        let matched = Matched { route: self.route.clone(), service: service.clone(), path: None, answer: None };
        let response = self.pipeline.call(&matched, request.map(Into::into), arrived).await.map_err(CallError)?;
        let own = self.pipeline.timeout_of(service);
        let limit = own.min(given);
        Ok(response.map(|body| Answer { body, until: arrived + limit, limit, callers: given < own }))
    }
}

/// What another hop says in its own words.
async fn explanation(body: Answer) -> String {
    let text = body.whole(EXPLANATION).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    if text.is_empty() { "so says a hop on the way".to_owned() } else { text }
}

impl Answer {
    /// The whole body, at most `limit` bytes, within what is left of the call's time.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn whole(mut self, limit: usize) -> Result<Bytes, ReadError> {
        if self.body.size_hint().lower() > limit as u64 {
            return Err(ReadError::TooLarge(limit));
        }
        match timeout_at(self.until.into(), Limited::new(&mut self.body, limit).collect()).await {
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(error)) => Err(match error.downcast::<BodyError>() {
                Ok(error) => ReadError::Broken(*error),
                Err(error) => {
                    debug_assert!(error.is::<LengthLimitError>(), "the only other error is the limit's");
                    ReadError::TooLarge(limit)
                }
            }),
            Err(_) => {
                let body = std::mem::replace(&mut self.body, ResponseBody::whole(Bytes::new()));
                // A caller that gives too little time says nothing about the service.
                if self.callers {
                    drop(body);
                } else {
                    body.give_up();
                }
                Err(ReadError::Timeout(self.limit))
            }
        }
    }
}

impl Drop for Answer {
    /// A caller that looks at the status alone is no caller that has gone: the breaker has to hear of what it saw.
    fn drop(&mut self) {
        self.body.leave();
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
