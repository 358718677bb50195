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

impl Behind {
    /// Between two looks: another process has to make a page for each.
    const fn pause(&self) -> Duration {
        Duration::from_millis(match self {
            Self::Here { .. } => 1,
            Self::There { .. } => 20,
        })
    }
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
    /// Calls in the queue of the bulkhead.
    waiting: HashMap<u64, TcpStream>,
    /// Attempts of calls that have waited, until the trace asks for them.
    early: HashMap<u64, oneshot::Sender<String>>,
}

/// A call whose attempt is at the service.
struct Call {
    client: TcpStream,
    answer: oneshot::Sender<String>,
}

impl Wire {
    /// `addr` passes `/name/…` on to `service`, as `/…`.
    pub(crate) fn new(addr: SocketAddr, name: &str, behind: Behind, service: Service) -> Self {
        let (calls, waiting, early) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { addr, name: name.to_owned(), behind, service, calls, silent: Vec::new(), waiting, early }
    }

    /// Waits until an attempt of this call has reached the service, or the host has answered.
    async fn outcome(&mut self, number: u64, mut client: TcpStream) -> Decision {
        let mut text = Vec::new();
        loop {
            if let Some(answer) = self.early.remove(&number) {
                assert_eq!(text.len(), 0, "an answer before the service has given one");
                self.calls.insert(number, Call { client, answer });
                return Decision::of("admitted");
            }
            tokio::select! {
                // What is read when an arrival comes in between stays in the text.
                read = timeout(PATIENCE, client.read_to_end(&mut text)) => {
                    read.expect("neither an answer nor a request at the service").expect("the host does not break off");
                    return decision(&String::from_utf8_lossy(&text));
                }
                arrival = self.service.arrivals.recv() => {
                    let Arrival { call, answer } = arrival.expect("the service lasts as long as the host");
                    let known = call == number || self.waiting.contains_key(&call);
                    assert!(known, "another call's attempt has reached the service");
                    self.early.insert(call, answer);
                }
            }
        }
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

    async fn ask(&mut self, call: u64, priority: Option<&str>, waits: bool) -> Decision {
        let before = if waits { self.count("waiting").await } else { 0 };
        let mut client = TcpStream::connect(self.addr).await.unwrap();
        let priority = priority.map(|priority| format!("seawall-priority: {priority}\r\n")).unwrap_or_default();
        let name = &self.name;
        let request = format!("GET /{name}/{call} HTTP/1.1\r\nhost: test\r\n{priority}connection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        if waits {
            let end = Instant::now() + PATIENCE;
            while self.count("waiting").await <= before {
                assert!(Instant::now() < end, "the call does not wait");
                tokio::time::sleep(self.behind.pause()).await;
            }
            self.waiting.insert(call, client);
            return Decision::of("waits");
        }
        self.outcome(call, client).await
    }

    async fn end(&mut self, number: u64, outcome: Outcome) -> Decision {
        if let Some(client) = self.waiting.remove(&number) {
            assert_eq!(outcome, Outcome::GivenUp, "the service has nothing of a call that waits");
            self.leave(client, "waiting").await;
            return Decision::of("ended");
        }
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
                // The place is given back after everything else that the attempt held. The service holds still
                // meanwhile: an answer from it would be another end.
                self.leave(client, "in_use").await;
                drop(answer);
                return Decision::of("ended");
            }
        };
        answer.send(text).unwrap_or_else(|_| panic!("the host has left call {number}"));
        self.outcome(number, client).await
    }

    async fn hear(&mut self, number: u64) -> Decision {
        let client = self.waiting.remove(&number).expect("a call that waits");
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
    async fn count(&mut self, name: &str) -> u64 {
        *self
            .standing()
            .await
            .counts
            .get(name)
            .expect("a call waits, or can be given up, only where there is a bulkhead")
    }

    /// The client goes away; returns when the host has noticed, and one less is counted.
    async fn leave(&mut self, client: TcpStream, name: &str) {
        let before = self.count(name).await;
        drop(client);
        let end = Instant::now() + PATIENCE;
        while self.count(name).await >= before {
            assert!(Instant::now() < end, "the host does not notice that its client has gone");
            tokio::time::sleep(self.behind.pause()).await;
        }
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
        ("waiting", &guard["bulkhead"]["waiting"]),
        ("retries", &guard["retry"]["retries"]),
    ];
    let counts: BTreeMap<_, _> =
        counts.iter().filter_map(|(name, count)| Some(((*name).to_owned(), count.as_u64()?))).collect();
    Standing { state: breaker["state"].as_str().unwrap_or("off").to_owned(), counts }
}
