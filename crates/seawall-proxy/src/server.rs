//! Listening: one current-thread runtime per worker, each with a listener (SO_REUSEPORT) and a pipeline of its own.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use seawall_drain::{Drain, Guard};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_io_timeout::TimeoutWriter;

use crate::access::{AccessLog, AccessLogConfig};
use crate::framing::Strict;
use crate::headers::Forwarding;
use crate::http2::{Bounded, LOOK, Look, Watch};
use crate::pipeline::{Pipeline, Router};
use crate::tls::{Secure, Tls};
use crate::tunnel::Tunnel;
use crate::upstream::{Upstreams, View};

/// A client that takes longer to send its headers, or that is silent for longer between requests, is let go.
const HEAD: Duration = Duration::from_secs(30);
/// A client that takes nothing of its answer for longer is let go, and with it whatever its request holds.
const STUCK: Duration = Duration::from_secs(30);
/// How long a new connection has for its first request when the server begins to drain.
const YOUNG: Duration = Duration::from_millis(250);
/// How long the two sides may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What HTTP/2 begins with (RFC 9113, 3.4), as far as no method of HTTP/1.1 does.
const PREFACE: &[u8; 4] = b"PRI ";
/// Between two looks at a connection that has sent a part of that and no more.
const PREFACE_LOOK: Duration = Duration::from_millis(5);
/// The longest head of a request, in bytes; larger ones are refused with 431.
const MAX_HEAD: usize = 64 * 1024;
/// Requests that one connection of HTTP/2 may have under way, and what they may send ahead: each, and together.
const STREAMS: u32 = 128;
const WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is kept of an answer that its client has not taken yet, in bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// A connection of HTTP/2 on which nothing has come for so long is asked for a sign of life, which has `PONG` to come.
const PING: Duration = Duration::from_secs(20);
const PONG: Duration = Duration::from_secs(10);

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
    /// TLS, or clear text.
    pub tls: Option<Arc<Tls>>,
    /// Where requests are written down.
    pub access_log: Option<AccessLogConfig>,
}

/// A bound server that does not accept yet.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    /// Those of each worker.
    listeners: Vec<Vec<std::net::TcpListener>>,
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
        let listeners = (0..config.workers.max(1)).map(|_| Ok(vec![listener(addr)?]));
        Ok(Self { listeners: listeners.collect::<io::Result<_>>()?, addr, config })
    }

    /// Takes the listeners that another process has on the same address, so that no connection is refused while this one takes
    /// its place. With fewer workers than listeners a worker has several.
    ///
    /// # Errors
    /// They listen elsewhere.
    pub fn adopt(config: ServerConfig, adopted: Vec<std::net::TcpListener>) -> io::Result<Self> {
        let addr = adopted.first().ok_or(io::ErrorKind::InvalidInput)?.local_addr()?;
        let other = addr.ip() != config.listen.ip() || ![0, addr.port()].contains(&config.listen.port());
        if other {
            return Err(io::Error::other(format!("what was handed over listens on {addr}")));
        }
        let mut listeners: Vec<Vec<_>> = (0..config.workers.max(1)).map(|_| Vec::new()).collect();
        let workers = listeners.len();
        for (number, adopted) in adopted.into_iter().enumerate() {
            adopted.set_nonblocking(true)?;
            listeners[number % workers].push(adopted);
        }
        for own in listeners.iter_mut().filter(|own| own.is_empty()) {
            own.push(listener(addr)?);
        }
        Ok(Self { listeners, addr, config })
    }

    /// The same sockets once more, to be handed over.
    ///
    /// # Errors
    /// When the operating system has no more descriptors.
    pub fn listeners(&self) -> io::Result<Vec<std::net::TcpListener>> {
        self.listeners.iter().flatten().map(std::net::TcpListener::try_clone).collect()
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
        let log = self.config.access_log.as_ref().map(|config| {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("access_log {}: {error}", config.file.display()))
            };
            AccessLog::start(config, upstreams).map_err(named)
        });
        let log = log.transpose()?;
        for (number, listeners) in self.listeners.into_iter().enumerate() {
            let worker = Arc::new(Worker {
                pipeline: Arc::new(Pipeline::logging(View::new(upstreams.clone()), log.clone())),
                router: router(),
                connections: Arc::new(Semaphore::new(self.config.connections.max(1))),
                limit: self.config.connections.max(1) as u32,
                edge: self.config.edge,
                tls: self.config.tls.clone(),
                name: self.config.name.clone(),
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            // Until it has stopped accepting: a connection in the kernel's queue is nobody's yet.
            let accepting = drain.guard("listener");
            let drain = drain.clone();
            let name = format!("{} {number}", self.config.name);
            std::thread::Builder::new()
                .name(name)
                .spawn(move || runtime.block_on(worker.run(listeners, drain, accepting)))?;
        }
        Ok(())
    }
}

fn listener(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket(addr, true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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
    tls: Option<Arc<Tls>>,
    name: Arc<str>,
}

/// One connection.
struct Connection<'a> {
    peer: SocketAddr,
    forwarding: Option<Forwarding>,
    accepted: Instant,
    drain: &'a Drain,
}

impl<R: Router> Worker<R> {
    async fn run(self: Arc<Self>, listeners: Vec<std::net::TcpListener>, drain: Drain, accepting: Guard) {
        let accepting = Arc::new(accepting);
        let each =
            listeners.into_iter().map(|listener| self.clone().listen(listener, drain.clone(), accepting.clone()));
        futures_util::future::join_all(each).await;
        drop(accepting);
        // The runtime has to live until the last connection is done.
        let _ = self.connections.acquire_many(self.limit).await;
    }

    async fn listen(self: Arc<Self>, listener: std::net::TcpListener, drain: Drain, accepting: Arc<Guard>) {
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

    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, drain: Drain) {
        let _ = stream.set_nodelay(true);
        let accepted = Instant::now();
        let http2 = match self.tls {
            // It is agreed on below.
            Some(_) => false,
            None => tokio::select! {
                begins = begins_http2(&stream) => match begins {
                    Ok(http2) => http2,
                    Err(_) => return,
                },
                // It says nothing.
                () = patience(accepted, HEAD, &drain) => return,
            },
        };
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(STUCK));
        let stream = Box::pin(stream);
        let ended = match &self.tls {
            None => {
                let connection = self.connection(peer, accepted, &drain, None);
                self.speak(stream, http2, connection).await
            }
            Some(tls) => {
                let stream = tokio::select! {
                    accepted = tls.acceptor().accept(stream) => match accepted {
                        Ok(stream) => stream,
                        Err(error) => return tracing::debug!(server = %self.name, %peer, %error, "no TLS"),
                    },
                    () = patience(accepted, HANDSHAKE, &drain) => {
                        return tracing::debug!(server = %self.name, %peer, "no TLS in time");
                    }
                };
                let Some((secure, http2)) = tls.known(stream.get_ref().1) else { return };
                let connection = self.connection(peer, accepted, &drain, Some(secure));
                self.speak(Box::new(stream), http2, connection).await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(server = %self.name, %peer, %error, "a connection ended with an error");
        }
    }

    fn connection<'a>(
        &self,
        peer: SocketAddr,
        accepted: Instant,
        drain: &'a Drain,
        secure: Option<Arc<Secure>>,
    ) -> Connection<'a> {
        let forwarding = self.edge.map(|trusted| Forwarding::new(peer.ip(), trusted, secure));
        Connection { peer, forwarding, accepted, drain }
    }

    async fn speak<S>(self: &Arc<Self>, stream: S, http2: bool, connection: Connection<'_>) -> Result<(), hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if http2 { self.http2(stream, connection).await } else { self.http1(stream, connection).await }
    }

    async fn http1<S>(&self, stream: S, connection: Connection<'_>) -> Result<(), hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Connection { forwarding, accepted, drain, .. } = &connection;
        let tunneled = Arc::new(AtomicBool::new(false));
        let stream = TokioIo::new(Strict::new(stream, tunneled.clone()));
        let tunneled = &tunneled;
        let service = service_fn(|mut request: Request<Incoming>| async {
            let connect = request.method() == Method::CONNECT;
            let changes = request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
            let mut response = self.pipeline.handle(&self.router, request, forwarding.as_ref()).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS
                && let (Some(tunnel), Some(client)) = (response.extensions_mut().remove::<Tunnel>(), changes)
            {
                tunneled.store(true, Ordering::Relaxed);
                let guard = drain.guard("tunnel");
                tokio::spawn(async move {
                    tunnel.run(client).await;
                    drop(guard);
                });
            }
            if connect {
                // What follows was meant for somebody else.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(MAX_HEAD)
            .serve_connection(stream, service)
            .with_upgrades();
        let mut serving = pin!(serving);
        let mut signaled = pin!(drain.signaled());
        tokio::select! {
            biased;
            ended = serving.as_mut() => ended,
            () = &mut signaled => {
                // Who has only just connected is about to send: hyper would close the connection unread.
                let young = timeout_at(*accepted + YOUNG, serving.as_mut()).await;
                match young {
                    Ok(ended) => ended,
                    Err(_) => {
                        serving.as_mut().graceful_shutdown();
                        serving.await
                    }
                }
            }
        }
    }

    async fn http2<S>(self: &Arc<Self>, stream: S, connection: Connection<'_>) -> Result<(), hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Connection { peer, forwarding, drain, .. } = connection;
        let watch = Watch::new();
        let forwarding = Arc::new(forwarding);
        // Requests are tasks of their own here.
        let service = service_fn(|request: Request<Incoming>| {
            let (worker, forwarding, under_way) = (self.clone(), forwarding.clone(), watch.request());
            async move {
                let response = worker.pipeline.handle(&worker.router, request, forwarding.as_ref().as_ref()).await;
                Ok::<_, std::convert::Infallible>(response.map(|body| under_way.answered(body)))
            }
        });
        let serving = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEAD as u32)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .serve_connection(TokioIo::new(Bounded::new(stream)), service);
        let mut serving = pin!(serving);
        let mut signaled = pin!(drain.signaled());
        let mut look = tokio::time::interval(LOOK);
        let mut leaving = false;
        loop {
            tokio::select! {
                biased;
                ended = serving.as_mut() => return ended,
                () = &mut signaled, if !leaving => {
                    leaving = true;
                    serving.as_mut().graceful_shutdown();
                }
                _ = look.tick() => match watch.look(Instant::now()) {
                    Look::Fine => {}
                    Look::Idle if leaving => {}
                    Look::Idle => {
                        leaving = true;
                        serving.as_mut().graceful_shutdown();
                    }
                    Look::Abusive => {
                        tracing::warn!(server = %self.name, %peer, "a client begins requests and gives them up: its connection is closed");
                        return Ok(());
                    }
                },
            }
        }
    }
}

/// Until a client that has connected at this time should have begun; when the server drains, it has less time.
async fn patience(accepted: Instant, limit: Duration, drain: &Drain) {
    let young = async {
        drain.signaled().await;
        sleep_until(accepted + YOUNG).await;
    };
    tokio::select! {
        () = sleep_until(accepted + limit) => {}
        () = young => {}
    }
}

/// Whether a client that has connected speaks HTTP/2 without being asked; nothing of what it has sent is taken.
async fn begins_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        match &first[..seen] {
            [] => return Err(io::ErrorKind::UnexpectedEof.into()),
            whole if whole == PREFACE => return Ok(true),
            part if !PREFACE.starts_with(part) => return Ok(false),
            // What is there already makes it ready at once.
            _ => tokio::time::sleep(PREFACE_LOOK).await,
        }
    }
}
