//! An answer's body, copied on its way to the client, and stored once it is whole.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use seawall_proxy::ResponseBody;
use seawall_proxy::body::BodyError;

use super::policy::Facts;
use super::store::{Entry, Lead};

/// What becomes an entry when the body is whole.
pub(super) struct Catch {
    pub(super) lead: Lead,
    /// The headers of the request.
    pub(super) asked: HeaderMap,
    pub(super) key: std::sync::Arc<str>,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) facts: Facts,
    /// The largest body that is stored.
    pub(super) limit: usize,
    /// What the answer says of its length.
    pub(super) length: Option<u64>,
    pub(super) body: BytesMut,
}

impl Catch {
    /// Copies a piece; gives up where it becomes too much.
    fn add(mut self: Box<Self>, piece: &Bytes) -> Option<Box<Self>> {
        let fits = self.body.len() + piece.len() <= self.limit && self.lead.arrive(piece.len());
        if !fits {
            return None;
        }
        self.body.extend_from_slice(piece);
        Some(self)
    }

    fn whole(self: Box<Self>) {
        let Self { lead, asked, key, status, headers, facts, length, body, .. } = *self;
        // One that broke off without an error is not the answer.
        if length.is_none_or(|length| length == body.len() as u64) {
            // As long as it is, and no longer: what is held is what is counted.
            let body = Bytes::copy_from_slice(&body);
            lead.put(Entry::new(key, &asked, (status, headers, body), facts), &asked);
        }
    }
}

/// See the module.
pub(super) struct Capture {
    body: ResponseBody,
    catch: Option<Box<Catch>>,
}

impl Capture {
    pub(super) fn new(body: ResponseBody, catch: Catch) -> Self {
        let mut capture = Self { body, catch: Some(Box::new(catch)) };
        capture.settle();
        capture
    }

    fn settle(&mut self) {
        if self.body.is_end_stream()
            && let Some(catch) = self.catch.take()
        {
            catch.whole();
        }
    }
}

impl Body for Capture {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &polled {
            Some(Ok(frame)) => {
                // Trailers are not stored, and an answer without them is another.
                let catch = self.catch.take();
                self.catch = catch.zip(frame.data_ref()).and_then(|(catch, piece)| catch.add(piece));
                self.settle();
            }
            Some(Err(_)) => self.catch = None,
            None => {
                if let Some(catch) = self.catch.take() {
                    catch.whole();
                }
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
