//! How large a request may be.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::body::BodyError;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_types::Size;
use serde::{Deserialize, Serialize};

use super::{FilterError, refused};

/// How large a request may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SizeConfig {
    /// Its body; a larger one is answered with 413, one of unknown length as soon as it has become too large. Default 5 MiB.
    #[serde(default = "body")]
    pub body: Size,
    /// All names and values of its headers together; more are answered with 431. Default 64 KiB.
    #[serde(default = "headers")]
    pub headers: Size,
}

const fn body() -> Size {
    Size::bytes(5 << 20)
}

const fn headers() -> Size {
    Size::bytes(64 << 10)
}

#[derive(Debug)]
pub(crate) struct RequestSize {
    body: u64,
    headers: u64,
}

impl RequestSize {
    pub(crate) fn try_new(config: &SizeConfig) -> Result<Self, FilterError> {
        if config.headers.get() == 0 {
            return Err(FilterError("no request is without headers: `headers` has to be above 0".to_owned()));
        }
        Ok(Self { body: config.body.get(), headers: config.headers.get() })
    }

    fn too_large(&self) -> String {
        format!("the request's body is larger than {}", Size::bytes(self.body))
    }
}

impl Filter for RequestSize {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let headers =
                request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
            if headers as u64 > self.headers {
                let detail = format!("the request's headers are larger than {}", Size::bytes(self.headers));
                return refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &detail);
            }
            let hint = request.body().size_hint();
            if hint.lower() > self.body {
                return refused(StatusCode::PAYLOAD_TOO_LARGE, &self.too_large());
            }
            // What has said its length keeps to it.
            if hint.exact().is_some() || request.headers().contains_key(CONTENT_LENGTH) {
                return next.run(request).await;
            }
            let exceeded = Arc::new(AtomicBool::new(false));
            let request = request.map(|body| {
                let limited = Limited { body, left: self.body, exceeded: exceeded.clone(), why: self.too_large() };
                RequestBody::Made(Box::pin(limited))
            });
            let response = next.run(request).await;
            if exceeded.load(Ordering::Relaxed) {
                return refused(StatusCode::PAYLOAD_TOO_LARGE, &self.too_large());
            }
            response
        })
    }
}

/// A body that breaks off where it becomes too large.
struct Limited {
    body: RequestBody,
    left: u64,
    exceeded: Arc<AtomicBool>,
    why: String,
}

impl Body for Limited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            match this.left.checked_sub(data.len() as u64) {
                Some(left) => this.left = left,
                None => {
                    this.exceeded.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err(BodyError::Filter(this.why.as_str().into()))));
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
