//! An answer: its head is here, its body is still on the way.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, StatusCode, response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use seawall_proxy::{Answer, ReadError};
use seawall_types::ServiceName;
use serde::de::DeserializeOwned;

use super::Error;

/// The answer of a service. Until it is read to its end or dropped the call is under way and keeps its place in the
/// bulkhead; so read it, or drop it.
#[derive(Debug)]
pub struct Response {
    parts: response::Parts,
    body: Body,
    limit: usize,
}

/// The body of an answer, piece by piece: a stream of bytes, and an [`http_body::Body`]. It may last as long as it likes,
/// but silence for longer than the policy's `timeout` breaks it off.
#[derive(Debug)]
pub struct Body {
    service: ServiceName,
    /// `None` once it has failed.
    answer: Option<Answer>,
}

impl Response {
    pub(crate) fn new(service: ServiceName, answer: http::Response<Answer>, limit: usize) -> Self {
        let (parts, answer) = answer.into_parts();
        Self { parts, body: Body { service, answer: Some(answer) }, limit }
    }

    /// Its status.
    pub const fn status(&self) -> StatusCode {
        self.parts.status
    }

    /// Its headers.
    pub const fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The service that answered.
    pub const fn service(&self) -> &ServiceName {
        &self.body.service
    }

    /// Makes a status of 400 and more an error.
    ///
    /// # Errors
    /// [`Error::Status`].
    pub fn error_for_status(self) -> Result<Self, Error> {
        let status = self.status();
        if status.is_client_error() || status.is_server_error() {
            return Err(Error::Status { service: self.service().as_str().into(), status });
        }
        Ok(self)
    }

    /// The whole body, at most as much as `body_limit` allows, within the time of the call.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Timeout`] and [`Error::Broken`].
    pub async fn bytes(self) -> Result<Bytes, Error> {
        let Self { body: Body { service, answer }, limit, .. } = self;
        match answer {
            Some(answer) => answer.whole(limit).await.map_err(|error| Error::reading(&service, &error)),
            None => Err(Error::Broken { service: service.as_str().into(), detail: "it broke off before".into() }),
        }
    }

    /// The whole body as text; bytes that are no UTF-8 are replaced. Bounded as [`Response::bytes`] is.
    ///
    /// # Errors
    /// Those of [`Response::bytes`].
    pub async fn text(self) -> Result<String, Error> {
        let bytes = self.bytes().await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The whole body, read as JSON. Bounded as [`Response::bytes`] is.
    ///
    /// # Errors
    /// Those of [`Response::bytes`], and [`Error::Decode`].
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let service = self.service().clone();
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Decode { service: service.as_str().into(), source })
    }

    /// The next piece of the body; `None` at its end. Bounded as [`Body`] is. Cancel safe: a piece is returned or still
    /// to come.
    ///
    /// # Errors
    /// [`Error::Timeout`] and [`Error::Broken`]; after an error the body is at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The body alone, to be read as a stream.
    pub fn into_body(self) -> Body {
        self.body
    }
}

impl From<Response> for http::Response<Body> {
    fn from(Response { parts, body, .. }: Response) -> Self {
        Self::from_parts(parts, body)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let Some(answer) = &mut this.answer else { return Poll::Ready(None) };
        Poll::Ready(match ready!(Pin::new(answer).poll_frame(context)) {
            Some(Err(error)) => {
                this.answer = None;
                Some(Err(Error::reading(&this.service, &ReadError::Broken(error))))
            }
            Some(Ok(frame)) => Some(Ok(frame)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.answer.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

impl Stream for Body {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(http_body::Body::poll_frame(self.as_mut(), context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Trailers are no bytes.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}
