//! Listening: one current-thread runtime per worker, each with a listener (SO_REUSEPORT) and a pipeline of its own.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use seawall_drain::{Drain, Guard};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_io_timeout::TimeoutWriter;

use crate::headers::Forwarding;
use crate::pipeline::{Pipeline, Router};
use crate::upstream::{Upstreams, View};

/// A client that takes longer to send its headers, or that is silent for longer between requests, is let go.
const HEAD: Duration = Duration::from_secs(30);
/// A client that takes nothing of its answer for longer is let go, and with it whatever its request holds.
const STUCK: Duration = Duration::from_secs(30);
/// How long a new connection has for its first request when the server begins to drain.
const YOUNG: Duration = Duration::from_millis(250);
/// Connections that the kernel holds until a worker takes them.
const BACKLOG: i32 = 1024;

/// Where and how to listen.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// What it is, for logs: `gateway public`, `sidecar inbound`.
    pub name: Arc<str>,
    /// Where; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// How many runtimes; at least 1.
    pub workers: usize,
    /// How many connections each worker holds; more wait in the kernel.
    pub connections: usize,
    /// At the edge: how many proxies in front of this one are believed. Elsewhere the headers are left alone.
    pub edge: Option<u8>,
}

/// A bound server that does not accept yet.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    listeners: Vec<std::net::TcpListener>,
    addr: SocketAddr,
}

impl Server {
    /// Binds every worker's listener.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub fn bind(config: ServerConfig) -> io::Result<Self> {
        // SO_REUSEPORT alone would let two servers share a port unnoticed; this one asks first whether it is free.
        let mut addr = config.listen;
        {
            let probe = socket(addr, false)?;
            addr = probe.local_addr()?.as_socket().unwrap_or(addr);
        }
        let listeners = (0..config.workers.max(1)).map(|_| {
            let socket = socket(addr, true)?;
            socket.listen(BACKLOG)?;
            Ok(std::net::TcpListener::from(socket))
        });
        Ok(Self { listeners: listeners.collect::<io::Result<_>>()?, addr, config })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts the workers and returns. They stop accepting when `drain` signals and end with their last connection;
    /// until then `drain` reports the connections. `router` makes each worker a router of its own.
    ///
    /// # Errors
    /// When the operating system refuses a thread or a runtime.
    pub fn start<R: Router>(self, upstreams: &Upstreams, drain: &Drain, router: impl Fn() -> R) -> io::Result<()> {
        for (number, listener) in self.listeners.into_iter().enumerate() {
            let worker = Arc::new(Worker {
                pipeline: Arc::new(Pipeline::new(View::new(upstreams.clone()))),
                router: router(),
                connections: Arc::new(Semaphore::new(self.config.connections.max(1))),
                limit: self.config.connections.max(1) as u32,
                edge: self.config.edge,
                name: self.config.name.clone(),
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            // Until it has stopped accepting: a connection in the kernel's queue is nobody's yet.
            let accepting = drain.guard("listener");
            let drain = drain.clone();
            let name = format!("{} {number}", self.config.name);
            std::thread::Builder::new()
                .name(name)
                .spawn(move || runtime.block_on(worker.run(listener, drain, accepting)))?;
        }
        Ok(())
    }
}

fn socket(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&addr.into())?;
    if !shared {
        // With SO_REUSEADDR a bind alone succeeds beside another listener's; to listen does not.
        socket.listen(1)?;
    }
    Ok(socket)
}

struct Worker<R> {
    pipeline: Arc<Pipeline>,
    router: R,
    connections: Arc<Semaphore>,
    limit: u32,
    edge: Option<u8>,
    name: Arc<str>,
}

impl<R: Router> Worker<R> {
    async fn run(self: Arc<Self>, listener: std::net::TcpListener, drain: Drain, accepting: Guard) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(server = %self.name, %error, "cannot listen"),
        };
        let mut signaled = pin!(drain.signaled());
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&listener) => accepted,
                () = &mut signaled => break,
            };
            self.clone().spawn(accepted, &drain);
        }
        // Who is in the kernel's queue by now has connected while we still listened: closing would reset them.
        while let Ok(accepted) = tokio::time::timeout(Duration::ZERO, self.accept(&listener)).await {
            self.clone().spawn(accepted, &drain);
        }
        drop((listener, accepting));
        // The runtime has to live until the last connection is done.
        let _ = self.connections.acquire_many(self.limit).await;
    }

    async fn accept(&self, listener: &TcpListener) -> (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit) {
        loop {
            let permit = self.connections.clone().acquire_owned().await.expect("never closed");
            match listener.accept().await {
                Ok((stream, peer)) => return (stream, peer, permit),
                Err(error) => {
                    // Out of file descriptors, most likely: let some connections end first.
                    tracing::warn!(server = %self.name, %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn spawn(
        self: Arc<Self>,
        (stream, peer, permit): (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit),
        drain: &Drain,
    ) {
        let guard = drain.guard("connection");
        let drain = drain.clone();
        tokio::spawn(async move {
            self.serve(stream, peer, drain).await;
            drop((permit, guard));
        });
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr, drain: Drain) {
        let _ = stream.set_nodelay(true);
        let forwarding = self.edge.map(|trusted| Forwarding::new(peer.ip(), trusted));
        let service = service_fn(|request| async {
            let response = self.pipeline.handle(&self.router, request, forwarding.as_ref()).await;
            Ok::<_, std::convert::Infallible>(response)
        });
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(STUCK));
        let accepted = Instant::now();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let mut connection = pin!(connection);
        let mut signaled = pin!(drain.signaled());
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = &mut signaled => {
                // Who has only just connected is about to send: hyper would close the connection unread.
                let young = timeout_at(accepted + YOUNG, connection.as_mut()).await;
                match young {
                    Ok(ended) => ended,
                    Err(_) => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(server = %self.name, %peer, %error, "a connection ended with an error");
        }
    }
}
