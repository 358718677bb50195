//! Calling named services from within a process: the same pipeline without a listener in front of it.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::BodyExt;
use seawall_types::ServiceName;
use tokio::time::timeout_at;

use crate::body::ResponseBody;
use crate::pipeline::{Matched, Pipeline, Route};
use crate::reject::{Reason, Rejection, promises_unsent};
use crate::upstream::{Upstreams, View};

/// The largest response that is read.
const LIMIT: usize = 4 << 20;

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

impl CallError {
    /// Whether the service may have done it; `false` is a promise that it has not seen the request.
    pub const fn is_unknown(&self) -> bool {
        self.0.sent
    }
}

impl Client {
    /// A client of its own connections.
    pub fn new(upstreams: Upstreams) -> Self {
        Self { pipeline: Arc::new(Pipeline::new(View::new(upstreams))), route: Arc::default() }
    }

    /// Makes one call and reads the whole answer, at most 4 MiB. The policy's timeout bounds both, the body too. A dropped
    /// future has an unknown outcome.
    ///
    /// # Errors
    /// [`CallError`] when there is no answer, or only that of a hop that says that the service never saw the request.
    pub async fn call(&self, service: &ServiceName, request: Request<Bytes>) -> Result<Response<Bytes>, CallError> {
        let arrived = Instant::now();
        let matched = Matched { route: self.route.clone(), service: service.clone(), path: None };
        let request = request.map(Into::into);
        let response = self.pipeline.call(matched, request, arrived).await.map_err(CallError)?;
        let unsent = promises_unsent(response.headers(), service.as_str());
        let (parts, body) = response.into_parts();
        let limit = self.pipeline.timeout_of(service);
        let whole = match timeout_at((arrived + limit).into(), read(body)).await {
            Ok(read) => read,
            Err(_) => Err((Reason::Timeout, format!("the answer's body was not whole within {limit:?}"))),
        };
        let name: Arc<str> = service.as_str().into();
        let broken = |(reason, detail): (Reason, String)| {
            CallError(Rejection { sent: !unsent, ..Rejection::unsent(reason, name.clone(), detail) })
        };
        let whole = whole.map_err(broken)?;
        if unsent {
            let detail = String::from_utf8_lossy(&whole).trim().to_owned();
            return Err(CallError(Rejection::unsent(Reason::Connect, name, detail)));
        }
        Ok(Response::from_parts(parts, whole))
    }
}

async fn read(mut body: ResponseBody) -> Result<Bytes, (Reason, String)> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (Reason::Reset, format!("the answer broke off: {error}")))?;
        if let Some(data) = frame.data_ref() {
            whole.extend_from_slice(data);
        }
        if whole.len() > LIMIT {
            return Err((Reason::Reset, format!("the answer exceeds {LIMIT} bytes")));
        }
    }
    Ok(whole.freeze())
}
