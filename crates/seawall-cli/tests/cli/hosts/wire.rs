//! A host that is asked over HTTP, with a scripted service behind it. Nothing here waits for a time to pass: an ask
//! waits until its request has reached the service or was answered, an end until its answer is here whole. The host
//! settles what a call held before it hands on the answer's last byte.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use seawall_resilience::clock::Manual;
use seawall_resilience::{Guard, Tick};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};

use super::library;
use super::replay::Host;
use super::trace::{Decision, Outcome, Standing};

/// Nothing that is waited for takes longer, or it does not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The service: every request waits here until the trace says how it is answered.
pub(crate) struct Service {
    pub(crate) addr: SocketAddr,
    arrivals: mpsc::Receiver<Arrival>,
    task: JoinHandle<()>,
}

/// An attempt that has reached the service.
struct Arrival {
    call: u64,
    answer: oneshot::Sender<String>,
}

impl Service {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        // One at a time is under way to here; more than one would be the host's mistake.
        let (arrived, arrivals) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, arrived.clone()));
            }
        });
        Self { addr, arrivals, task }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection; it ends when the other side closes it, or when nobody is going to say how to answer.
async fn serve(mut stream: TcpStream, arrived: mpsc::Sender<Arrival>) {
    let mut buffer = Vec::new();
    loop {
        while !buffer.ends_with(b"\r\n\r\n") {
            match stream.read_buf(&mut buffer).await {
                Ok(1..) => {}
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&buffer).into_owned();
        buffer.clear();
        let path = head.split_whitespace().nth(1).unwrap_or_default();
        let call = path.trim_start_matches('/').parse().unwrap_or_else(|_| panic!("no call's path: {head}"));
        let (answer, answered) = oneshot::channel();
        if arrived.send(Arrival { call, answer }).await.is_err() {
            return;
        }
        let Ok(answer) = answered.await else { return };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Where the host's policies are, and by which clock they go.
pub(crate) enum Behind {
    /// In this process, by a clock that the trace moves.
    Here { hand: Manual, guard: Arc<Guard> },
    /// In a process of its own, which answers at its admin address; by the real clock.
    There { admin: SocketAddr, begun: Instant },
}

/// A gateway or a sidecar.
pub(crate) struct Wire {
    addr: SocketAddr,
    name: String,
    behind: Behind,
    service: Service,
    calls: HashMap<u64, Call>,
    /// Attempts that are never answered: dropped, their connections would close.
    silent: Vec<oneshot::Sender<String>>,
}

/// A call whose attempt is at the service.
struct Call {
    client: TcpStream,
    answer: oneshot::Sender<String>,
}

impl Wire {
    /// `addr` passes `/name/…` on to `service`, as `/…`.
    pub(crate) fn new(addr: SocketAddr, name: &str, behind: Behind, service: Service) -> Self {
        Self { addr, name: name.to_owned(), behind, service, calls: HashMap::new(), silent: Vec::new() }
    }

    /// Waits until an attempt of this call has reached the service, or the host has answered.
    async fn outcome(&mut self, number: u64, mut client: TcpStream) -> Decision {
        let mut answer = Vec::new();
        let came = tokio::select! {
            read = timeout(PATIENCE, client.read_to_end(&mut answer)) => {
                read.expect("neither an answer nor a request at the service").expect("the host does not break off");
                None
            }
            arrival = self.service.arrivals.recv() => arrival,
        };
        let Some(arrival) = came else { return decision(&String::from_utf8_lossy(&answer)) };
        assert_eq!((arrival.call, answer.len()), (number, 0), "another call's attempt has reached the service");
        self.calls.insert(number, Call { client, answer: arrival.answer });
        Decision::of("admitted")
    }
}

/// What an answer says about the host's decision: a rejection, or that the service answered.
fn decision(answer: &str) -> Decision {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {answer:?}"));
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let Some(mark) = field("seawall-rejected") else { return Decision::of("ended") };
    let policy = mark.split("; ").next().unwrap_or_default();
    // The mark names the policy, the words for people its reason.
    let why = body.split_once(": ").map_or("", |(_, why)| why.split(';').next().unwrap_or_default()).trim();
    let after = field("retry-after").map(|seconds| seconds.parse().expect("whole seconds"));
    let what = if policy == "timeout" { policy.to_owned() } else { format!("{policy}:{why}") };
    Decision { what, after }
}

impl Host for Wire {
    async fn go(&mut self, at: u64) {
        match &self.behind {
            Behind::Here { hand, .. } => hand.set(Tick::from_millis(at)),
            // This is the trace's own time.
            Behind::There { begun, .. } => tokio::time::sleep_until(*begun + Duration::from_millis(at)).await,
        }
    }

    async fn ask(&mut self, call: u64, priority: Option<&str>) -> Decision {
        let mut client = TcpStream::connect(self.addr).await.unwrap();
        let priority = priority.map(|priority| format!("seawall-priority: {priority}\r\n")).unwrap_or_default();
        let name = &self.name;
        let request = format!("GET /{name}/{call} HTTP/1.1\r\nhost: test\r\n{priority}connection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        self.outcome(call, client).await
    }

    async fn end(&mut self, number: u64, outcome: Outcome) -> Decision {
        let Call { client, answer } = self.calls.remove(&number).expect("a call that was admitted");
        let text = match outcome {
            Outcome::Success => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwell\n".to_owned(),
            Outcome::Failure(after) => {
                let after = after.map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
                format!("HTTP/1.1 503 Service Unavailable\r\n{after}content-length: 4\r\n\r\nill\n")
            }
            // gRPC's CANCELLED: the call ended because its caller wanted it to.
            Outcome::Ignored => "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 1\r\n\
                                 content-length: 0\r\n\r\n"
                .to_owned(),
            Outcome::Silence => {
                self.silent.push(answer);
                return self.outcome(number, client).await;
            }
            Outcome::GivenUp => {
                let before = self.in_use().await;
                drop(client);
                let end = Instant::now() + PATIENCE;
                // The place is given back after everything else that the attempt held. The service holds still
                // meanwhile: an answer from it would be another end.
                while self.in_use().await >= before {
                    assert!(Instant::now() < end, "the host does not notice that its client has gone");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                drop(answer);
                return Decision::of("ended");
            }
        };
        answer.send(text).unwrap_or_else(|_| panic!("the host has left call {number}"));
        self.outcome(number, client).await
    }

    async fn standing(&mut self) -> Standing {
        match &self.behind {
            Behind::Here { guard, .. } => library::standing(guard),
            Behind::There { admin, .. } => there(*admin, &self.name).await,
        }
    }
}

impl Wire {
    async fn in_use(&mut self) -> u64 {
        *self.standing().await.counts.get("in_use").expect("a call can be given up only where there is a bulkhead")
    }
}

/// How a guard in another process stands.
async fn there(admin: SocketAddr, name: &str) -> Standing {
    let mut client = TcpStream::connect(admin).await.unwrap();
    client.write_all(b"GET /v1/policies HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, client.read_to_string(&mut answer)).await.expect("no answer").unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let page: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("not JSON: {answer}"));
    let guard = page["guards"].as_array().unwrap().iter().find(|guard| guard["service"] == name);
    let guard = guard.unwrap_or_else(|| panic!("nothing about {name}: {page}"));
    let breaker = &guard["breaker"];
    let counts = [
        ("calls", &breaker["calls"]),
        ("failed", &breaker["failed"]),
        ("slow", &breaker["slow"]),
        ("would_open", &breaker["would_open"]),
        ("in_use", &guard["bulkhead"]["in_use"]),
        ("retries", &guard["retry"]["retries"]),
    ];
    let counts: BTreeMap<_, _> =
        counts.iter().filter_map(|(name, count)| Some(((*name).to_owned(), count.as_u64()?))).collect();
    Standing { state: breaker["state"].as_str().unwrap_or("off").to_owned(), counts }
}
