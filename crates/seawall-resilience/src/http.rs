//! What an HTTP or gRPC answer means to the policies, decided at its very end.
//!
//! A head with 200 in it is a promise: the body may break off, and a gRPC call says how it went in its trailers. So a
//! response takes what its call holds along in its body ([`ObservedBody`]), which settles it when the last byte has
//! passed. The meaning of a gRPC status follows the specification of its codes; those that blame the caller do not
//! speak against the service.
//!
//! For clients there is [`call`], for servers the layer [`HttpGuardLayer`](crate::layer::HttpGuardLayer); what travels
//! between them in headers is read and written here.

mod client;
mod headers;
mod held;

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Buf;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pub use client::{call, failures};
pub(crate) use headers::{chain, trace};
pub use headers::{pass_on, priority, rejection};
pub use held::{GuardedBody, Settle};
pub(crate) use held::{Held, unobserved};

use crate::{Outcome, Report};

/// What the head of an answer says, so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    report: Report,
    /// The verdict is in the trailers.
    grpc: bool,
    /// How long the body is, where that was promised (`Content-Length`).
    length: Option<u64>,
}

impl Head {
    /// Reads a head. A status from 500 is a failure; so is a gRPC status that blames the service.
    pub fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        let grpc = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let retry_after = retry_after(headers);
        let report = match (grpc_status(headers), status.is_server_error()) {
            (Some(code), false) if grpc => grpc_report(code),
            (_, true) => Report { cause: cause(status), ..Outcome::Failure.into() },
            _ => Outcome::Success.into(),
        };
        let undecided = grpc && !status.is_server_error() && grpc_status(headers).is_none();
        let overloaded = report.overloaded || matches!(status.as_u16(), 429 | 503 | 504);
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { report: Report { retry_after, overloaded, ..report }, grpc: undecided, length }
    }

    /// What it means if the body passes whole and without trailers that say otherwise.
    pub const fn report(&self) -> Report {
        self.report
    }

    /// Takes in the trailers: a gRPC call's verdict.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if self.grpc
            && let Some(code) = grpc_status(trailers)
        {
            self.grpc = false;
            self.report = Report { retry_after: self.report.retry_after, ..grpc_report(code) };
        }
    }

    /// What it means now that the body has passed whole.
    pub fn end(&self) -> Report {
        if self.grpc { Report { cause: "no grpc-status", ..Outcome::Failure.into() } } else { self.report }
    }

    /// What it means if the body breaks off.
    pub fn broken() -> Report {
        Report { cause: "broke off", ..Outcome::Failure.into() }
    }
}

/// How long the service asks to be left alone: `Retry-After`, in seconds or as a date.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.trim().parse().ok()
}

/// The codes of the gRPC specification.
fn grpc_report(code: u32) -> Report {
    let failure = |cause| Report { cause, overloaded: matches!(code, 4 | 8 | 14), ..Outcome::Failure.into() };
    match code {
        1 => Outcome::Ignored.into(),
        2 => failure("grpc unknown"),
        4 => failure("grpc deadline exceeded"),
        8 => failure("grpc resource exhausted"),
        13 => failure("grpc internal"),
        14 => failure("grpc unavailable"),
        15 => failure("grpc data loss"),
        _ => Outcome::Success.into(),
    }
}

fn cause(status: StatusCode) -> &'static str {
    match status.as_u16() {
        500 => "status 500",
        501 => "status 501",
        502 => "status 502",
        503 => "status 503",
        504 => "status 504",
        _ => "status 5xx",
    }
}

pin_project! {
    /// A body that says how the call went when it has ended. Dropped before that, it drops `settle` uncalled: whoever
    /// waited for the answer has gone.
    #[derive(Debug)]
    pub struct ObservedBody<B, S> {
        #[pin]
        inner: B,
        head: Head,
        seen: u64,
        settle: Option<S>,
    }
}

impl<B: Body, S: FnOnce(Report)> ObservedBody<B, S> {
    /// Watches `inner`, which follows `head`.
    pub fn new(inner: B, head: Head, settle: S) -> Self {
        let mut body = Self { inner, head, seen: 0, settle: Some(settle) };
        if body.inner.is_end_stream()
            && let Some(settle) = body.settle.take()
        {
            settle(head.end());
        }
        body
    }

    /// The rest of the body is not waited for: the head decides now.
    pub(crate) fn settle(&mut self) {
        if let Some(settle) = self.settle.take() {
            settle(self.head.report());
        }
    }
}

impl<B: Body, S: FnOnce(Report)> Body for ObservedBody<B, S> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        // A panic is caught by the executor long before the body is dropped: it has to be noticed here.
        let panics = Panics(this.settle);
        let frame = this.inner.as_mut().poll_frame(cx);
        std::mem::forget(panics);
        let frame = ready!(frame);
        let report = match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.head.trailers(trailers);
                }
                *this.seen += frame.data_ref().map_or(0, |data| data.remaining() as u64);
                // A server that has written what it has promised does not ask again, whatever the body would have said.
                let whole = this.head.length.is_some_and(|length| *this.seen >= length);
                (whole || frame.is_trailers() || this.inner.is_end_stream()).then(|| this.head.end())
            }
            Some(Err(_)) => Some(Head::broken()),
            None => Some(this.head.end()),
        };
        if let Some(report) = report
            && let Some(settle) = this.settle.take()
        {
            settle(report);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Dropped by a panic of the body.
struct Panics<'a, S: FnOnce(Report)>(&'a mut Option<S>);

impl<S: FnOnce(Report)> Drop for Panics<'_, S> {
    fn drop(&mut self) {
        if let Some(settle) = self.0.take() {
            settle(Report { cause: "panicked", ..Outcome::Failure.into() });
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

    #[test]
    fn a_head_says_what_it_can() {
        let head = |status: u16, pairs: &[(&'static str, &str)]| {
            let report = Head::new(StatusCode::from_u16(status).unwrap(), &headers(pairs)).end();
            (report.outcome, report.cause)
        };
        for (status, pairs, expected) in [
            (200, &[][..], (Outcome::Success, "")),
            (404, &[], (Outcome::Success, "")),
            (429, &[], (Outcome::Success, "")),
            (503, &[], (Outcome::Failure, "status 503")),
            (599, &[], (Outcome::Failure, "status 5xx")),
            (200, &[GRPC], (Outcome::Failure, "no grpc-status")),
            (503, &[GRPC], (Outcome::Failure, "status 503")),
            (200, &[GRPC, ("grpc-status", "14")], (Outcome::Failure, "grpc unavailable")),
            (200, &[GRPC, ("grpc-status", "5")], (Outcome::Success, "")),
            (200, &[GRPC, ("grpc-status", "1")], (Outcome::Ignored, "")),
            (200, &[("grpc-status", "14")], (Outcome::Success, "")),
        ] {
            assert_eq!(head(status, pairs), expected, "{status} {pairs:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after = |value: &str| retry_after(&headers(&[("retry-after", value)]));
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!((95..=100).contains(&after(&soon).unwrap().as_secs()));
        assert_eq!((after("-1"), after("soon"), retry_after(&HeaderMap::new())), (None, None, None));
    }

    struct Frames(VecDeque<Result<Frame<&'static [u8]>, &'static str>>);

    impl Body for Frames {
        type Data = &'static [u8];
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    #[test]
    fn the_end_decides() {
        let data = || Ok(Frame::data(&b"x"[..]));
        let trailers = |code: &str| Ok(Frame::trailers(headers(&[("grpc-status", code)])));
        for (pairs, frames, cause) in [
            (&[][..], vec![data()], ""),
            (&[], vec![data(), Err("reset")], "broke off"),
            (&[], vec![data(), trailers("14")], ""),
            (&[GRPC], vec![data(), trailers("14")], "grpc unavailable"),
            (&[GRPC], vec![data(), trailers("0")], ""),
            (&[GRPC], vec![data()], "no grpc-status"),
        ] {
            let seen = RefCell::new(Vec::new());
            let head = Head::new(StatusCode::OK, &headers(pairs));
            let count = frames.len();
            let body = ObservedBody::new(Frames(frames.into()), head, |report: Report| seen.borrow_mut().push(report));
            let mut body = std::pin::pin!(body);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            for at in 0..=count {
                assert!(body.as_mut().poll_frame(&mut cx).is_ready(), "{at}");
            }
            let seen = seen.borrow();
            assert_eq!(seen.iter().map(|report| report.cause).collect::<Vec<_>>(), [cause]);
        }
        struct Broken;
        impl Body for Broken {
            type Data = &'static [u8];
            type Error = &'static str;

            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
                panic!("on purpose")
            }
        }
        let seen = RefCell::new(Vec::new());
        let head = Head::new(StatusCode::OK, &headers(&[]));
        let mut body = Box::pin(ObservedBody::new(Broken, head, |report: Report| seen.borrow_mut().push(report)));
        let mut poll = || body.as_mut().poll_frame(&mut Context::from_waker(std::task::Waker::noop())).is_ready();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut poll)).is_err());
        drop(body);
        assert_eq!(seen.borrow().iter().map(|report| report.cause).collect::<Vec<_>>(), ["panicked"]);
        let seen = RefCell::new(0);
        let frames = Frames([data(), data()].into());
        drop(ObservedBody::new(frames, Head::new(StatusCode::OK, &headers(&[])), |_| *seen.borrow_mut() += 1));
        assert_eq!(*seen.borrow(), 0, "who went away has not seen how it ended");
    }
}
