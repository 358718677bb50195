//! A proxy between raw clients and raw upstreams.

#![allow(dead_code, reason = "each test binary uses its own part of it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seawall_drain::Trigger;
use seawall_proxy::tls::Tls;
use seawall_proxy::{Asked, Matched, Route, RouteError, Router, Server, ServerConfig, Upstreams};
use seawall_resilience::{Clock, Guard, Policies};
use seawall_types::{Change, Instance, InstanceId, Revision, ServiceName, Snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Everything goes to the service `api`.
struct ToApi(Matched);

impl Router for ToApi {
    fn route(&self, _: &Asked<'_>) -> Result<Matched, RouteError> {
        Ok(self.0.clone())
    }
}

/// A proxy in front of some addresses.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    pub(crate) upstreams: Upstreams,
    pub(crate) trigger: Trigger,
}

pub(crate) fn service() -> ServiceName {
    ServiceName::try_new("api").unwrap()
}

/// One policy for every service, without mistakes.
pub(crate) fn policies(policy: serde_json::Value) -> Policies {
    let policies =
        Policies([(ServiceName::try_new("default").unwrap(), serde_json::from_value(policy).unwrap())].into());
    assert!(policies.problems().is_empty(), "{:?}", policies.problems());
    policies
}

pub(crate) fn fleet(addrs: &[SocketAddr]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    for (number, addr) in addrs.iter().enumerate() {
        let id = InstanceId::try_new(&format!("api-{number}")).unwrap();
        let instance = Some(Instance::new(id.clone(), *addr));
        snapshot.apply(&Change { revision: Revision(1), service: service(), id, instance });
    }
    Arc::new(snapshot)
}

impl Proxy {
    /// At the edge, where no client is believed.
    pub(crate) fn start(policy: serde_json::Value, addrs: &[SocketAddr]) -> Self {
        Self::start_with(policy, addrs, Some(0), Clock::default())
    }

    /// Within the fleet, where what the caller says is believed.
    pub(crate) fn inside(policy: serde_json::Value, addrs: &[SocketAddr]) -> Self {
        Self::start_with(policy, addrs, None, Clock::default())
    }

    pub(crate) fn start_with(policy: serde_json::Value, addrs: &[SocketAddr], edge: Option<u8>, clock: Clock) -> Self {
        Self::start_by(policy, addrs, edge, clock, None)
    }

    /// At the edge, by TLS.
    pub(crate) fn secure(tls: Arc<Tls>, addrs: &[SocketAddr]) -> Self {
        Self::start_by(serde_json::json!({}), addrs, Some(0), Clock::default(), Some(tls))
    }

    fn start_by(
        policy: serde_json::Value,
        addrs: &[SocketAddr],
        edge: Option<u8>,
        clock: Clock,
        tls: Option<Arc<Tls>>,
    ) -> Self {
        let upstreams = Upstreams::with_clock(policies(policy), clock).unwrap();
        upstreams.publish(fleet(addrs));
        let config = ServerConfig {
            name: "test".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            workers: 2,
            connections: 100,
            edge,
            tls,
            access_log: None,
        };
        let (trigger, drain) = seawall_drain::channel();
        let server = Server::bind(config).unwrap();
        let addr = server.addr();
        let route =
            || ToApi(Matched { route: Arc::new(Route::default()), service: service(), path: None, answer: None });
        server.start(&upstreams, &drain, route).unwrap();
        Self { addr, upstreams, trigger }
    }

    /// The policies' state; it is there from the first request on.
    pub(crate) fn guard(&self) -> Arc<Guard> {
        self.upstreams.known_guard("api").expect("the service has been called")
    }

    /// Sends one request on a connection of its own and reads until the end.
    pub(crate) async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) async fn get(&self) -> String {
        self.ask("GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await
    }

    pub(crate) async fn post(&self, key: &str) -> String {
        let head = format!("POST /x HTTP/1.1\r\nhost: a\r\n{key}content-length: 3\r\nconnection: close\r\n\r\nabc");
        self.ask(&head).await
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("hangs")
}

/// An upstream: `serve` gets each connection and its number.
pub(crate) async fn upstream<F, T>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream, usize) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, number));
        }
    });
    addr
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Reads one request with a body of known length; `None` when the connection has ended.
pub(crate) async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await.ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(head + &String::from_utf8(body).unwrap())
}

pub(crate) async fn reply(stream: &mut TcpStream, status: &str, body: &str) {
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(text.as_bytes()).await;
}

/// Answers every request with what it got.
pub(crate) async fn mirror() -> SocketAddr {
    upstream(|mut stream, _| async move {
        while let Some(request) = read_request(&mut stream).await {
            reply(&mut stream, "200 OK", &request).await;
        }
    })
    .await
}

pub(crate) fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("")
}

pub(crate) fn header<'a>(answer: &'a str, name: &str) -> &'a str {
    let head = answer.split("\r\n\r\n").next().unwrap_or("");
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or("")
}

/// Waits for something that has to come true.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
