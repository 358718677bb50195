//! Sending copies of requests to another service, to see what it would do with them. The request itself goes its way as if there were
//! none: it is never slowed down, and the copy's answer is dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{Request, Uri};
use http_body::{Body, Frame, SizeHint};
use schemars::JsonSchema;
use seawall_proxy::body::BodyError;
use seawall_proxy::filter::{Answering, Counter, Filter, Next};
use seawall_proxy::{Client, RequestBody};
use seawall_types::{Ratio, ServiceName, Size};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::FilterError;

/// Where copies of requests go, and how many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorConfig {
    /// The service; it is called under its own policies.
    pub to: ServiceName,
    /// How many are copied. Default all.
    #[serde(default = "all")]
    pub share: Ratio,
    /// How many copies are under way at once; no more are made meanwhile. Default 64.
    #[serde(default = "concurrent")]
    #[schemars(range(min = 1, max = 100000))]
    pub concurrent: u32,
    /// The largest body that is copied; a request with a larger one is not. Default 64 KiB.
    #[serde(default = "body")]
    pub body: Size,
}

const fn all() -> Ratio {
    Ratio::percent(100)
}

const fn concurrent() -> u32 {
    64
}

const fn body() -> Size {
    Size::bytes(64 << 10)
}

#[derive(Debug)]
pub(crate) struct Mirror {
    to: ServiceName,
    share: f64,
    places: Arc<Semaphore>,
    body: usize,
}

impl Mirror {
    pub(crate) fn try_new(config: &MirrorConfig) -> Result<Self, FilterError> {
        if !(1..=100_000).contains(&config.concurrent) {
            return Err(FilterError(format!("`concurrent` is {}, allowed is 1 to 100000", config.concurrent)));
        }
        if config.body.get() > 16 << 20 {
            return Err(FilterError(format!("`body` is {}, allowed is at most 16 MiB", config.body)));
        }
        Ok(Self {
            to: config.to.clone(),
            share: config.share.get(),
            places: Arc::new(Semaphore::new(config.concurrent as usize)),
            body: config.body.get() as usize,
        })
    }
}

/// A copy that has not been sent yet.
struct Copied {
    client: Client,
    service: ServiceName,
    head: Request<()>,
    place: OwnedSemaphorePermit,
    counts: Counts,
}

/// What becomes of copies.
#[derive(Clone)]
struct Counts {
    answered: Arc<Counter>,
    failed: Arc<Counter>,
    dropped: Arc<Counter>,
}

impl Copied {
    /// Sends it, detached; the service's policy bounds how long that takes.
    fn send(self, body: Bytes) {
        let Self { client, service, head, place, counts } = self;
        tokio::spawn(async move {
            match client.send(&service, head.map(|()| body)).await {
                Ok(_) => counts.answered.increment(),
                Err(error) => {
                    tracing::debug!(%service, %error, "a mirrored request got no answer");
                    counts.failed.increment();
                }
            }
            drop(place);
        });
    }
}

impl Filter for Mirror {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        if fastrand::f64() >= self.share {
            return Box::pin(next.run(request));
        }
        let count = |outcome| {
            let labels = [("route", next.route()), ("service", self.to.as_str()), ("outcome", outcome)];
            next.counter("seawall_mirrored_total", "Copies of requests, by what became of them.", &labels)
        };
        let counts = Counts { answered: count("answered"), failed: count("failed"), dropped: count("dropped") };
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            counts.dropped.increment();
            return Box::pin(next.run(request));
        };
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        let path = next.target().or_else(|| request.uri().path_and_query());
        *head.uri_mut() = path.map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()));
        head.headers_mut().clone_from(request.headers());
        head.headers_mut().remove(CONTENT_LENGTH);
        let copy = Copied { client: next.caller(), service: self.to.clone(), head, place, counts };
        let request = request.map(|body| match body {
            RequestBody::Empty => {
                copy.send(Bytes::new());
                RequestBody::Empty
            }
            body if body.size_hint().lower() > self.body as u64 => {
                copy.counts.dropped.increment();
                body
            }
            RequestBody::Whole(bytes) => {
                copy.send(bytes.clone());
                RequestBody::Whole(bytes)
            }
            body => {
                RequestBody::Made(Box::pin(Tee { body, copy: Some(copy), seen: BytesMut::new(), limit: self.body }))
            }
        });
        Box::pin(next.run(request))
    }
}

/// A body that is copied as it passes.
struct Tee {
    body: RequestBody,
    /// Until it has been sent, or cannot be any more.
    copy: Option<Copied>,
    seen: BytesMut,
    limit: usize,
}

impl Body for Tee {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let data = frame.data_ref().filter(|_| this.copy.is_some());
                if let Some(data) = data {
                    if this.seen.len() + data.len() > this.limit {
                        this.drop_copy();
                    } else {
                        this.seen.extend_from_slice(data);
                    }
                }
            }
            Some(Err(_)) => this.drop_copy(),
            None => {}
        }
        if (frame.is_none() || this.body.is_end_stream())
            && let Some(copy) = this.copy.take()
        {
            copy.send(std::mem::take(&mut this.seen).freeze());
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

impl Tee {
    fn drop_copy(&mut self) {
        if let Some(copy) = self.copy.take() {
            copy.counts.dropped.increment();
        }
        self.seen = BytesMut::new();
    }
}

impl Drop for Tee {
    /// Nobody wanted the rest.
    fn drop(&mut self) {
        self.drop_copy();
    }
}
