//! Connections to one endpoint, kept open between requests; one pool per worker and endpoint.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::body::RequestBody;

/// Fewer seconds than a server of ours waits for the next request, so that we are the one to close.
const IDLE: Duration = Duration::from_secs(15);
/// The most idle connections to one endpoint in one worker; more are closed.
const KEPT: usize = 256;

/// One connection.
pub(crate) type Connection = SendRequest<RequestBody>;

/// The idle connections. Only one worker uses it, so the lock is never waited for.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<VecDeque<(Connection, Instant)>>,
}

impl Pool {
    /// The connection that was used last, if it still stands.
    pub(crate) fn take(&self, now: Instant) -> Option<Connection> {
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
        if connection.is_closed() {
            return;
        }
        let mut idle = self.idle();
        if idle.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) > IDLE) || idle.len() >= KEPT {
            idle.pop_front();
        }
        idle.push_back((connection, now));
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<(Connection, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a connection; its driver runs as a task of the calling worker and ends with the connection.
pub(crate) async fn connect(addr: SocketAddr) -> std::io::Result<Connection> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let handshake = Builder::new().handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        // Whoever waits for a response learns of the error there; an idle connection may end as it likes.
        let _ = connection.await;
    });
    Ok(sender)
}
