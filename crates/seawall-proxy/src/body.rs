//! The bodies that pass through: streamed, or whole when they may have to be sent again.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::access::Line;
use crate::attempt::Record;

/// A body that could not be passed on.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The other side broke off.
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    /// The upstream sent nothing for too long in the middle of a body.
    #[error("no data for {0:?}")]
    Stalled(Duration),
    /// A filter could make nothing of it.
    #[error("{0}")]
    Filter(Box<dyn std::error::Error + Send + Sync>),
}

/// A request's body that a filter has made.
pub type MadeRequest = Pin<Box<dyn Body<Data = Bytes, Error = BodyError> + Send + Sync>>;
type MadeResponse = Pin<Box<dyn Body<Data = Bytes, Error = BodyError> + Send>>;

/// What is sent upstream.
#[derive(Default)]
pub enum RequestBody {
    /// Nothing.
    #[default]
    Empty,
    /// All of it is here and can be sent again.
    Whole(Bytes),
    /// It passes through once.
    Stream(Incoming),
    /// A filter makes it on its way.
    Made(MadeRequest),
}

impl RequestBody {
    /// The same body again, if that is possible.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Whole(bytes) => Some(Self::Whole(bytes.clone())),
            Self::Stream(_) | Self::Made(_) => None,
        }
    }

    /// Whether it passes but once.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::Made(_))
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
            Self::Made(_) => f.write_str("Made"),
        }
    }
}

impl From<Bytes> for RequestBody {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Whole(bytes) }
    }
}

impl From<Incoming> for RequestBody {
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::Empty } else { Self::Stream(incoming) }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Stream(incoming) => Pin::new(incoming).poll_frame(context).map_err(BodyError::from),
            Self::Made(body) => body.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(_) => false,
            Self::Stream(incoming) => incoming.is_end_stream(),
            Self::Made(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(incoming) => incoming.size_hint(),
            Self::Made(body) => body.size_hint(),
        }
    }
}

/// What goes back to the caller. It carries the call's [`Record`], so that permits are held, the connection is kept
/// and the outcome is written down until the last byte has passed, or the caller is gone.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    record: Option<Record>,
    /// Runs only while the upstream is silent.
    stall: Option<Pin<Box<Sleep>>>,
    idle: Duration,
    /// Which instance answers.
    endpoint: Option<SocketAddr>,
    line: Option<Line>,
}

enum Source {
    Whole(Option<Bytes>),
    Stream(Incoming),
    Made(MadeResponse),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole(_) => "Whole",
            Self::Stream(_) => "Stream",
            Self::Made(_) => "Made",
        })
    }
}

impl ResponseBody {
    /// An answer of Seawall's own.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let source = Source::Whole((!bytes.is_empty()).then_some(bytes));
        Self { source, record: None, stall: None, idle: Duration::MAX, endpoint: None, line: None }
    }

    /// A body that a filter makes, of another one as a rule: that one's call is under way until it is dropped or has ended.
    pub fn made(body: impl Body<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self {
            source: Source::Made(Box::pin(body)),
            record: None,
            stall: None,
            idle: Duration::MAX,
            endpoint: None,
            line: None,
        }
    }

    /// An upstream's answer; `record` is told of its end, and a silence longer than `idle` breaks it off.
    pub(crate) fn stream(incoming: Incoming, record: Record, idle: Duration) -> Self {
        let endpoint = record.endpoint();
        let source = Source::Stream(incoming);
        let mut body = Self { source, record: Some(record), stall: None, idle, endpoint, line: None };
        body.settle();
        body
    }

    /// Which instance answers, where it is one.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// Has a line of the access log written at its end.
    pub(crate) fn note(&mut self, mut line: Line) {
        if self.is_end_stream() {
            line.ended();
        }
        self.line = Some(line);
    }

    /// The response will not be passed on: whatever it was, the call has failed.
    pub(crate) fn give_up(mut self) {
        self.refuse();
    }

    /// The call has failed, and gives back what it holds, whether or not the answer will be passed on.
    pub(crate) fn refuse(&mut self) {
        if let Some(record) = self.record.take() {
            record.refused();
        }
    }

    /// The rest is not wanted: the head decides how the call went. hyper drains what little is left, or closes the
    /// connection; a kept one that is not ready is passed over.
    pub(crate) fn leave(&mut self) {
        if let Some(record) = self.record.take() {
            record.left();
        }
    }

    /// Hands the record over once the body has ended.
    fn settle(&mut self) {
        if self.is_end_stream()
            && let Some(record) = self.record.take()
        {
            record.complete();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = this.poll_source(context);
        if let (Some(line), Poll::Ready(frame)) = (&mut this.line, &polled) {
            match frame {
                Some(Ok(frame)) => line.passed(frame.data_ref().map_or(0, Bytes::len)),
                Some(Err(_)) => {}
                None => line.ended(),
            }
            if matches!(frame, Some(Ok(_))) && this.is_end_stream() {
                this.line.iter_mut().for_each(Line::ended);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Made(body) => body.is_end_stream(),
            Source::Stream(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Made(body) => body.size_hint(),
            Source::Stream(incoming) => incoming.size_hint(),
        }
    }
}

impl ResponseBody {
    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self;
        let incoming = match &mut this.source {
            Source::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Made(body) => return body.as_mut().poll_frame(context),
            Source::Stream(incoming) => incoming,
        };
        match Pin::new(incoming).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                this.stall = None;
                if let (Some(trailers), Some(record)) = (frame.trailers_ref(), &mut this.record) {
                    record.trailers(trailers);
                }
                this.settle();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(record) = this.record.take() {
                    record.broken();
                }
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                if let Some(record) = this.record.take() {
                    record.complete();
                }
                Poll::Ready(None)
            }
            Poll::Pending => {
                let idle = this.idle;
                let stall = this.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline(idle))));
                ready!(stall.as_mut().poll(context));
                if let Some(record) = this.record.take() {
                    record.broken();
                }
                Poll::Ready(Some(Err(BodyError::Stalled(idle))))
            }
        }
    }
}

fn deadline(after: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(366 * 24 * 3600);
    Instant::now() + after.min(FAR)
}
