//! What one connection of HTTP/2 may take: it is let go when nothing happens on it, and when it does nothing but begin requests
//! and give them up; an answer that its client does not read is given up behind it.
//!
//! Most bounds of frames are those of the `h2` crate: CONTINUATION without end, resets that nobody has seen yet
//! (CVE-2023-44487, CVE-2024-27316 and those before). Those of frames that serve nothing are in `frames`.

mod frames;

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

pub(crate) use self::frames::Bounded;
use crate::body::{BodyError, ResponseBody};

/// A connection without requests is let go after so long.
const IDLE: Duration = Duration::from_secs(75);
/// An answer of which the client takes nothing for longer is given up.
const STUCK: Duration = Duration::from_secs(30);
/// How often that is looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(5);
/// Requests given up by the client within a second, from which on a connection is looked at for more of them than others.
const ABORTED: u64 = 200;
const YOUNG: Duration = Duration::from_secs(1);

/// One connection.
#[derive(Debug)]
pub(crate) struct Watch {
    under_way: AtomicUsize,
    begun: AtomicU64,
    aborted: AtomicU64,
    used: Mutex<Instant>,
    answers: Mutex<Vec<Weak<Mutex<Read>>>>,
}

/// What a look at a connection says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Fine,
    /// Nothing happens.
    Idle,
    /// It begins requests only to give them up.
    Abusive,
}

impl Watch {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            under_way: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            aborted: AtomicU64::new(0),
            used: Mutex::new(Instant::now()),
            answers: Mutex::default(),
        })
    }

    /// A request begins. Dropped without [`Request::answered`], it was given up.
    pub(crate) fn request(self: &Arc<Self>) -> Request {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        Request { watch: self.clone(), begun: Instant::now(), answered: false }
    }

    /// Whether the connection abuses us; cheap, for each request.
    pub(crate) fn abusive(&self) -> bool {
        let aborted = self.aborted.load(Ordering::Relaxed);
        aborted >= ABORTED && aborted * 2 > self.begun.load(Ordering::Relaxed)
    }

    /// Looks at the connection, and gives up what its client does not read.
    pub(crate) fn look(&self, now: Instant) -> Look {
        let mut given_up = Vec::new();
        lock(&self.answers).retain(|answer| {
            let Some(answer) = answer.upgrade() else { return false };
            let mut answer = lock(&answer);
            if answer.ready.is_some_and(|since| now.saturating_duration_since(since) >= STUCK) {
                // Dropped below: it may hold other locks.
                given_up.extend(answer.body.take());
                return false;
            }
            true
        });
        drop(given_up);
        let idle = self.under_way.load(Ordering::Relaxed) == 0;
        match () {
            () if self.abusive() => Look::Abusive,
            () if idle && now.saturating_duration_since(*lock(&self.used)) >= IDLE => Look::Idle,
            () => Look::Fine,
        }
    }
}

/// A request under way, until its answer has been read.
#[derive(Debug)]
pub(crate) struct Request {
    watch: Arc<Watch>,
    begun: Instant,
    answered: bool,
}

impl Request {
    /// There is an answer; the request is under way until its body has ended.
    pub(crate) fn answered(mut self, body: ResponseBody) -> Answer {
        self.answered = true;
        let read = Arc::new(Mutex::new(Read { body: Some(body), ready: Some(Instant::now()) }));
        lock(&self.watch.answers).push(Arc::downgrade(&read));
        Answer { read, request: self }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.watch.under_way.fetch_sub(1, Ordering::Relaxed);
        *lock(&self.watch.used) = Instant::now();
        if !self.answered && self.begun.elapsed() < YOUNG {
            self.watch.aborted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An answer as its client reads it.
#[derive(Debug)]
struct Read {
    /// `None` when it was given up.
    body: Option<ResponseBody>,
    /// Since when it is the client's turn; `None` while the service's.
    ready: Option<Instant>,
}

/// The body of an answer on a watched connection.
#[derive(Debug)]
pub(crate) struct Answer {
    read: Arc<Mutex<Read>>,
    /// Ends with the body.
    #[expect(dead_code, reason = "it is there to be dropped")]
    request: Request,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut read = lock(&self.read);
        let Some(body) = &mut read.body else { return Poll::Ready(Some(Err(BodyError::Stalled(STUCK)))) };
        let polled = Pin::new(body).poll_frame(context);
        read.ready = polled.is_ready().then(Instant::now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.read).body.as_ref().is_some_and(ResponseBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.read).body.as_ref().map(ResponseBody::size_hint).unwrap_or_default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_let_go_when_nothing_happens_on_it() {
        let watch = Watch::new();
        let request = watch.request();
        tokio::time::advance(IDLE * 2).await;
        assert_eq!(watch.look(Instant::now()), Look::Fine, "a request is under way");
        drop(request);
        assert_eq!(watch.look(Instant::now()), Look::Fine);
        tokio::time::advance(IDLE).await;
        assert_eq!(watch.look(Instant::now()), Look::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_begun_to_be_given_up_are_counted() {
        let watch = Watch::new();
        for _ in 0..ABORTED - 1 {
            drop(watch.request());
        }
        assert_eq!(watch.look(Instant::now()), Look::Fine);
        let old = watch.request();
        tokio::time::advance(YOUNG).await;
        drop(old);
        assert_eq!(watch.look(Instant::now()), Look::Fine, "whoever waits for a second meant it");
        drop(watch.request());
        assert_eq!(watch.look(Instant::now()), Look::Abusive);
        for _ in 0..=ABORTED {
            drop(watch.request().answered(ResponseBody::whole("x")));
        }
        assert_eq!(watch.look(Instant::now()), Look::Fine, "most are answered");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_is_given_up() {
        let watch = Watch::new();
        let mut answer = watch.request().answered(ResponseBody::whole("x"));
        tokio::time::advance(STUCK).await;
        watch.look(Instant::now());
        let mut context = Context::from_waker(Waker::noop());
        let polled = Pin::new(&mut answer).poll_frame(&mut context);
        assert!(matches!(polled, Poll::Ready(Some(Err(_)))), "{polled:?}");
        let read = watch.request().answered(ResponseBody::whole("x"));
        tokio::time::advance(STUCK / 2).await;
        assert_eq!((watch.look(Instant::now()), read.is_end_stream()), (Look::Fine, false));
    }
}
