//! After an upgrade: bytes in both directions, which nobody looks at.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep_until, timeout};

use crate::attempt::Record;

/// How long the two sides may take to change to the other protocol after the head of the answer.
const SWITCH: Duration = Duration::from_secs(10);
/// A tunnel through which nothing has passed for this long is closed.
const IDLE: Duration = Duration::from_secs(600);

/// The service's side of a connection that speaks another protocol from now on, in the extensions of its answer.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel(Arc<Mutex<Option<(OnUpgrade, Record)>>>);

impl Tunnel {
    pub(crate) fn new(service: OnUpgrade, record: Record) -> Self {
        Self(Arc::new(Mutex::new(Some((service, record)))))
    }

    /// Passes everything on until both sides have ended, or one has broken off, or neither says anything for 10 minutes.
    pub(crate) async fn run(self, client: OnUpgrade) {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((service, record)) = taken else { return };
        let both = async { tokio::try_join!(client, service) };
        let (client, service) = match timeout(SWITCH, both).await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => return tracing::debug!(%error, "an upgrade came to nothing"),
            Err(_) => return tracing::debug!("an upgrade came to nothing within {SWITCH:?}"),
        };
        let seen = Arc::new(Seen { began: Instant::now(), millis: AtomicU64::new(0) });
        let watched = |io| Watched { io: TokioIo::new(io), seen: seen.clone() };
        let (mut client, mut service) = (watched(client), watched(service));
        tokio::select! {
            passed = copy_bidirectional(&mut client, &mut service) => {
                if let Err(error) = passed {
                    tracing::debug!(%error, "a tunnel has broken");
                }
            }
            () = seen.silence(IDLE) => tracing::debug!("a tunnel was silent for {IDLE:?}"),
        }
        record.complete();
    }
}

/// When anything has passed last.
struct Seen {
    began: Instant,
    millis: AtomicU64,
}

impl Seen {
    fn now(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    async fn silence(&self, limit: Duration) {
        loop {
            let over = self.began + Duration::from_millis(self.millis.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= over {
                return;
            }
            sleep_until(over).await;
        }
    }
}

struct Watched {
    io: TokioIo<Upgraded>,
    seen: Arc<Seen>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buf);
        if read.is_ready() {
            self.seen.now();
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
