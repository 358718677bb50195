//! Calls to etcd: one connection at a time, a deadline for each call, and what is known of a call that failed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

/// A connection on which nothing has come for this long is asked for a sign of life, which has `PONG` to come. etcd breaks
/// connections that ask more often than every 5 s.
const PING: Duration = Duration::from_secs(6);
const PONG: Duration = Duration::from_secs(3);

/// A call that has failed.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// etcd has not seen it, or has said that it did nothing for want of something that may come back.
    NotDone(String),
    /// etcd has refused it as it stands; nothing was done.
    Refused(Code, String),
    /// etcd may have seen it, and done it or not.
    Lost(String),
}

impl Fault {
    pub(super) fn text(self) -> String {
        match self {
            Self::NotDone(text) | Self::Refused(_, text) | Self::Lost(text) => text,
        }
    }
}

/// The way to a cluster.
#[derive(Debug)]
pub(super) struct Channel {
    endpoints: Vec<Arc<str>>,
    patience: Duration,
    current: Mutex<Current>,
    /// Numbers the connections.
    made: AtomicU64,
}

#[derive(Debug, Default)]
struct Current {
    connection: Option<Connection>,
    /// The endpoint to try first.
    next: usize,
}

#[derive(Clone, Debug)]
struct Connection {
    number: u64,
    addr: Arc<str>,
    send: SendRequest<Body>,
}

/// The source of a [`Status`] for a request that was never sent.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unsent(String);

impl Channel {
    pub(super) fn new(endpoints: Vec<Arc<str>>, patience: Duration) -> Self {
        Self { endpoints, patience, current: Mutex::default(), made: AtomicU64::new(0) }
    }

    /// One question, one answer, by the deadline.
    pub(super) async fn unary<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Fault>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let call = move |connection: Connection, request: Request<Q>| async move {
            let answer: Response<A> = grpc(connection).unary(request, route(path), ProstCodec::default()).await?;
            Ok(answer.into_inner())
        };
        self.call(call, || Request::new(message.clone())).await
    }

    /// One question, and a stream of answers that ends with its questions or the connection. The deadline is for the first.
    pub(super) async fn stream<Q, A>(
        &self,
        path: &'static str,
        questions: impl Fn() -> Questions<Q>,
    ) -> Result<(A, Answers<A>), Fault>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let call = move |connection: Connection, request: Request<Questions<Q>>| async move {
            let addr = connection.addr.clone();
            let answers = grpc(connection).streaming(request, route(path), ProstCodec::default()).await?;
            let mut answers: Streaming<A> = answers.into_inner();
            let first = answers.message().await?;
            let first = first.ok_or_else(|| Status::unavailable("it ended the stream without an answer"))?;
            Ok((first, Answers { addr, answers }))
        };
        self.call(call, || Request::new(questions())).await
    }

    async fn call<R, A, F: Future<Output = Result<A, Status>>>(
        &self,
        call: impl Fn(Connection, Request<R>) -> F,
        request: impl Fn() -> Request<R>,
    ) -> Result<A, Fault> {
        let deadline = Instant::now() + self.patience;
        // A connection that turns out to be closed has not been used: once more, on a new one.
        let mut again = true;
        loop {
            let connection = match timeout_at(deadline, self.connection()).await {
                Ok(connection) => connection?,
                Err(_) => return Err(Fault::NotDone(self.name(&format!("no connection within {:?}", self.patience)))),
            };
            let (number, addr) = (connection.number, connection.addr.clone());
            let mut request = request();
            // A member that has no leader says so, instead of waiting for one.
            request.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
            let fault = match timeout_at(deadline, call(connection, request)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => fault(&addr, &status),
                Err(_) => Fault::Lost(format!("etcd {addr}: no answer within {:?}", self.patience)),
            };
            match fault {
                Fault::Refused(..) => return Err(fault),
                Fault::NotDone(_) if again => again = false,
                Fault::NotDone(_) | Fault::Lost(_) => {
                    self.leave(number).await;
                    return Err(fault);
                }
            }
            self.leave(number).await;
        }
    }

    /// The connection in use, or a new one to the first endpoint that takes it.
    async fn connection(&self) -> Result<Connection, Fault> {
        let mut current = self.current.lock().await;
        if let Some(connection) = current.connection.as_ref().filter(|connection| !connection.send.is_closed()) {
            return Ok(connection.clone());
        }
        current.connection = None;
        let mut why = Vec::new();
        // Each has its part of the time.
        let part = self.patience / u32::try_from(self.endpoints.len() + 1).unwrap_or(u32::MAX);
        for offset in 0..self.endpoints.len() {
            let index = (current.next + offset) % self.endpoints.len();
            let addr = &self.endpoints[index];
            match timeout(part, self.connect(addr)).await {
                Ok(Ok(connection)) => {
                    current.next = index;
                    current.connection = Some(connection.clone());
                    return Ok(connection);
                }
                Ok(Err(error)) => why.push(format!("{addr}: {error}")),
                Err(_) => why.push(format!("{addr}: no connection within {part:?}")),
            }
        }
        Err(Fault::NotDone(format!("etcd {}", why.join("; "))))
    }

    async fn connect(&self, addr: &Arc<str>) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&**addr).await?;
        stream.set_nodelay(true)?;
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .handshake(TokioIo::new(stream))
            .await?;
        let of_task = addr.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(addr = %of_task, %error, "the connection to etcd has broken");
            }
        });
        Ok(Connection { number: self.made.fetch_add(1, Ordering::Relaxed), addr: addr.clone(), send })
    }

    /// The next call goes to another endpoint.
    async fn leave(&self, number: u64) {
        let mut current = self.current.lock().await;
        if current.connection.as_ref().is_some_and(|connection| connection.number == number) {
            current.connection = None;
            current.next = (current.next + 1) % self.endpoints.len();
        }
    }

    fn name(&self, what: &str) -> String {
        format!("etcd {}: {what}", self.endpoints.join(", "))
    }
}

/// What is asked on a stream.
pub(super) type Questions<Q> = Pin<Box<dyn Stream<Item = Q> + Send>>;

/// What comes on a stream after the first answer.
#[derive(Debug)]
pub(super) struct Answers<A> {
    addr: Arc<str>,
    answers: Streaming<A>,
}

impl<A> Answers<A> {
    /// The next one. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<A, Fault> {
        match self.answers.message().await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Fault::Lost(format!("etcd {}: it has ended the stream", self.addr))),
            Err(status) => Err(fault(&self.addr, &status)),
        }
    }
}

fn grpc(connection: Connection) -> Grpc<Connection> {
    // The server has its own bounds; a range may be as large as it likes.
    Grpc::new(connection).max_decoding_message_size(usize::MAX)
}

fn route(path: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(path)
}

/// What a status says about the call.
fn fault(addr: &str, status: &Status) -> Fault {
    let text = |what: &str| format!("etcd {addr}: {what}");
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<Unsent>() {
            return Fault::NotDone(text(&error.to_string()));
        }
        source = error.source();
    }
    let said = status.message().strip_prefix("etcdserver: ").unwrap_or(status.message());
    if matches!(said, "no leader" | "too many requests" | "not capable") {
        return Fault::NotDone(text(said));
    }
    let from_server = std::error::Error::source(status).is_none();
    match status.code() {
        // etcd says these of what it has not done.
        code @ (Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented)
            if from_server =>
        {
            Fault::Refused(code, text(said))
        }
        _ if said.is_empty() => Fault::Lost(text(status.code().description())),
        _ => Fault::Lost(text(said)),
    }
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // HTTP/2 wants to know whom it is talking to.
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let uri = http::Uri::builder().scheme("http").authority(&*self.addr).path_and_query(path).build();
        let uri = match uri {
            Ok(uri) => uri,
            Err(error) => return Box::pin(async move { Err(Unsent(error.to_string()).into()) }),
        };
        *request.uri_mut() = uri;
        let sent = self.send.try_send_request(request);
        Box::pin(async move {
            sent.await.map_err(|mut error| {
                let unsent = error.take_message().is_some();
                let error = error.into_error();
                if unsent { Unsent(chain(&error)).into() } else { chain(&error).into() }
            })
        })
    }
}

/// An error with all of its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
