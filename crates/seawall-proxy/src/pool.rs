//! Connections to one endpoint, kept open between requests; one pool per worker and endpoint. One of HTTP/1.1 carries a request
//! at a time, one of HTTP/2 many.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::body::RequestBody;

/// Fewer seconds than a server of ours waits for the next request, so that we are the one to close.
const IDLE: Duration = Duration::from_secs(15);
/// The most idle connections to one endpoint in one worker; more are closed.
const KEPT: usize = 256;
/// Requests on one connection of HTTP/2; more open another. Servers allow a hundred as a rule.
const STREAMS: usize = 100;
/// An HTTP/2 connection with requests on it on which nothing has come for this long is asked for a sign of life, which has
/// `PONG` to come.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(5);
/// What a response may send ahead of its reader, on one stream and on the whole connection.
const WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A place for one request on a connection.
#[derive(Debug)]
pub(crate) enum Connection {
    /// The connection is this request's until its response has been read.
    Http1(http1::SendRequest<RequestBody>),
    /// One among others.
    Http2(Stream),
}

/// A place on a connection of HTTP/2; given back when dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    send: http2::SendRequest<RequestBody>,
    shared: Arc<Shared>,
}

impl Stream {
    pub(crate) fn send(&mut self) -> &mut http2::SendRequest<RequestBody> {
        &mut self.send
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.under_way.fetch_sub(1, Ordering::Relaxed);
        *self.shared.used() = Instant::now();
    }
}

#[derive(Debug)]
struct Multiplexed {
    send: http2::SendRequest<RequestBody>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    under_way: AtomicUsize,
    used: Mutex<Instant>,
}

impl Shared {
    fn used(&self) -> MutexGuard<'_, Instant> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Multiplexed {
    fn under_way(&self) -> usize {
        self.shared.under_way.load(Ordering::Relaxed)
    }

    fn stream(&self) -> Stream {
        self.shared.under_way.fetch_add(1, Ordering::Relaxed);
        Stream { send: self.send.clone(), shared: self.shared.clone() }
    }
}

/// The connections that stand. Only one worker uses them, so no lock is waited for but that of opening.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<VecDeque<(http1::SendRequest<RequestBody>, Instant)>>,
    multiplexed: Mutex<Vec<Multiplexed>>,
    /// Held while a connection of HTTP/2 is being opened: those who come meanwhile share it.
    opening: tokio::sync::Mutex<()>,
}

impl Pool {
    /// The connection of HTTP/1.1 that was used last, if it still stands.
    pub(crate) fn take(&self, now: Instant) -> Option<http1::SendRequest<RequestBody>> {
        let mut idle = self.idle();
        while let Some((connection, since)) = idle.pop_back() {
            if now.saturating_duration_since(since) > IDLE {
                // The ones before it are older still.
                idle.clear();
                return None;
            }
            if !connection.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose response has been read to its end.
    pub(crate) fn put(&self, connection: Connection, now: Instant) {
        let Connection::Http1(connection) = connection else { return };
        if connection.is_closed() {
            return;
        }
        let mut idle = self.idle();
        if idle.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) > IDLE) || idle.len() >= KEPT {
            idle.pop_front();
        }
        idle.push_back((connection, now));
    }

    /// A place on the least busy connection of HTTP/2, or on a new one; and whether the connection stood before.
    pub(crate) async fn stream(&self, addr: SocketAddr, now: Instant) -> std::io::Result<(Stream, bool)> {
        if let Some(stream) = self.least_busy(now) {
            return Ok((stream, true));
        }
        let _opening = self.opening.lock().await;
        if let Some(stream) = self.least_busy(now) {
            return Ok((stream, true));
        }
        let send = open_http2(addr).await?;
        let shared = Shared { under_way: AtomicUsize::new(0), used: Mutex::new(now) };
        let opened = Multiplexed { send, shared: Arc::new(shared) };
        let stream = opened.stream();
        self.multiplexed().push(opened);
        Ok((stream, false))
    }

    fn least_busy(&self, now: Instant) -> Option<Stream> {
        let mut multiplexed = self.multiplexed();
        // One that nobody has used for a while may be closed by the other side at any moment.
        multiplexed.retain(|one| {
            let idle = one.under_way() == 0 && now.saturating_duration_since(*one.shared.used()) > IDLE;
            !one.send.is_closed() && !idle
        });
        let free = multiplexed.iter().filter(|one| one.under_way() < STREAMS);
        free.min_by_key(|one| one.under_way()).map(Multiplexed::stream)
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<(http1::SendRequest<RequestBody>, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn multiplexed(&self) -> MutexGuard<'_, Vec<Multiplexed>> {
        self.multiplexed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a connection of HTTP/1.1; its driver runs as a task of the calling worker and ends with the connection.
pub(crate) async fn open_http1(addr: SocketAddr) -> std::io::Result<http1::SendRequest<RequestBody>> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        // Whoever waits for a response learns of the error there; an idle connection may end as it likes.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

async fn open_http2(addr: SocketAddr) -> std::io::Result<http2::SendRequest<RequestBody>> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake.map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
