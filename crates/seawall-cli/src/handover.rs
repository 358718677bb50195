//! A gateway hands its listeners over to its successor, so that not a connection is refused while a new binary takes its place.
//!
//! The one that serves listens on a socket in the data directory. The successor asks there, and gets the listening sockets
//! themselves: from then on both accept. When it serves, it says so, and the first one drains and ends. A successor that dies
//! before changes nothing.

use std::fs::Permissions;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// How long the other side may take for the sockets.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a successor may take until it serves.
const READY: Duration = Duration::from_secs(60);
/// The kernel passes no more at a time.
const MOST: usize = 253;

/// Where a gateway of this name is asked.
pub(crate) fn socket(data: &Path, gateway: &str) -> PathBuf {
    data.join(format!("gateway-{gateway}.sock"))
}

/// What a predecessor has given.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Those of the gateway.
    pub(crate) listeners: Vec<TcpListener>,
    /// That of `/metrics` and the like.
    pub(crate) admin: TcpListener,
    predecessor: UnixStream,
}

/// Asks the gateway that serves for its sockets.
///
/// # Errors
/// There is none, or it does not answer within 5 s.
pub(crate) fn take(socket: &Path) -> anyhow::Result<Taken> {
    let take = || -> io::Result<(Vec<OwnedFd>, UnixStream)> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut received = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(&stream, &mut parts, &mut received, RecvFlags::CMSG_CLOEXEC)?;
        let sockets = received.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => sockets.collect(),
            _ => Vec::new(),
        });
        Ok((sockets.collect(), stream))
    };
    let taken = take().with_context(|| format!("no gateway hands its listeners over at {}", socket.display()));
    let (sockets, predecessor) = taken?;
    let mut listeners: Vec<_> = sockets.into_iter().map(TcpListener::from).collect();
    let admin = listeners.pop().context("the gateway that serves has handed nothing over")?;
    ensure!(!listeners.is_empty(), "the gateway that serves has handed no listener over");
    Ok(Taken { listeners, admin, predecessor })
}

impl Taken {
    /// Tells the predecessor that it may go.
    pub(crate) fn ready(mut self) {
        if let Err(error) = self.predecessor.write_all(b"!") {
            tracing::warn!(%error, "the predecessor does not hear that it may go");
        }
    }
}

/// The listeners, offered to a successor; withdrawn when dropped.
#[derive(Debug)]
pub(crate) struct Offer(Arc<Mutex<Option<Sockets>>>);

#[derive(Debug)]
struct Sockets {
    listeners: Vec<TcpListener>,
    admin: TcpListener,
}

impl Drop for Offer {
    fn drop(&mut self) {
        // As long as one of them is open the kernel takes connections.
        drop(lock(&self.0).take());
    }
}

/// Listens for successors, in a thread of its own, which ends with the process. `go` is called once, when one serves.
///
/// # Errors
/// The socket cannot be made.
pub(crate) fn offer(
    socket: &Path,
    listeners: Vec<TcpListener>,
    admin: TcpListener,
    go: impl FnOnce() + Send + 'static,
) -> anyhow::Result<Offer> {
    ensure!(listeners.len() < MOST, "{} workers are too many to be handed over", listeners.len());
    // Made beside and moved over: that of a predecessor, or of one that died, makes room.
    let beside = socket.with_extension("sock.new");
    let make = || -> io::Result<UnixListener> {
        std::fs::create_dir_all(socket.parent().unwrap_or(Path::new("/")))?;
        let _ = std::fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside)?;
        std::fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
        std::fs::rename(&beside, socket)?;
        Ok(listener)
    };
    let listener = make().with_context(|| format!("cannot listen on {}", socket.display()))?;
    let sockets = Arc::new(Mutex::new(Some(Sockets { listeners, admin })));
    let offer = Offer(sockets.clone());
    std::thread::Builder::new().name("handover".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            match stream.and_then(|stream| hand(stream, &sockets)) {
                Ok(true) => return go(),
                Ok(false) => tracing::warn!("a successor has taken the listeners and died before it served"),
                Err(error) => tracing::warn!(%error, "the listeners could not be handed over"),
            }
        }
    })?;
    Ok(offer)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the successor serves.
fn hand(mut stream: UnixStream, sockets: &Mutex<Option<Sockets>>) -> io::Result<bool> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(READY))?;
    {
        let sockets = lock(sockets);
        let Some(Sockets { listeners, admin }) = &*sockets else { return Err(io::Error::other("it drains already")) };
        let sockets: Vec<BorrowedFd<'_>> = listeners.iter().chain([admin]).map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut sent = SendAncillaryBuffer::new(&mut space);
        if !sent.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::Error::other("there are too many of them"));
        }
        rustix::net::sendmsg(&stream, &[IoSlice::new(b"!")], &mut sent, SendFlags::empty())?;
    }
    let mut byte = [0];
    Ok(stream.read(&mut byte)? == 1)
}
