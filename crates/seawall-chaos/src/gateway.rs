//! A gateway under load while everything around it changes: its routes, its endpoints, its binary; and while what it calls is
//! killed. Every request has to be answered as if nothing had been.
//!
//! Clients behave as clients do: a request on a kept connection that was closed before a byte of the answer came is sent once
//! more on a new one (RFC 9112, 9.5), which is counted; a call that may not be repeated by itself has an `Idempotency-Key`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};

/// How many endpoints there are at a time.
const ENDPOINTS: usize = 4;
/// How many times the routes change in all.
const RELOADS: u64 = 1_000;
/// Between two of the other faults.
const FAULT: Duration = Duration::from_millis(700);
/// Between two upgrades of the binary.
const UPGRADE: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(15);
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(4);

/// What the clients have seen.
#[derive(Debug, Default)]
struct Seen {
    stop: AtomicBool,
    answered: AtomicU64,
    /// On a kept connection that had been closed.
    again: AtomicU64,
    failed: Mutex<Vec<String>>,
    slowest_micros: AtomicU64,
}

impl Seen {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, who: &str, began: Instant, answer: Result<(u16, String), String>) {
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.slowest_micros.fetch_max(micros, Ordering::Relaxed);
        let failure = match answer {
            Ok((200, body)) if body == "served" => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok((status, body)) => format!("{who}: {status} {}", body.trim_end()),
            Err(why) => format!("{who}: {why}"),
        };
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }
}

/// A directory, control, the gateway that serves, and what it calls.
struct Site {
    dir: tempfile::TempDir,
    seawall: PathBuf,
    control_addr: SocketAddr,
    gateway_addr: SocketAddr,
    control: Child,
    gateway: Child,
    endpoints: VecDeque<Endpoint>,
    /// Those that were told to go and may still be asked.
    leaving: Vec<(Endpoint, Instant)>,
    started: u64,
}

struct Endpoint {
    id: String,
    child: Child,
}

impl Drop for Site {
    fn drop(&mut self) {
        let all = self.endpoints.iter_mut().chain(self.leaving.iter_mut().map(|(endpoint, _)| endpoint));
        let children = all.map(|endpoint| &mut endpoint.child).chain([&mut self.gateway, &mut self.control]);
        for child in children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the chaos found.
pub(crate) struct Verdict {
    pub(crate) text: String,
    pub(crate) wrong: bool,
}

pub(crate) fn torment(seconds: u64) -> anyhow::Result<Verdict> {
    let mut site = Site::start()?;
    let seen = Arc::new(Seen::default());
    let mut clients = Vec::new();
    for number in 0..2 {
        let addr = site.gateway_addr;
        let (of_new, of_kept) = (seen.clone(), seen.clone());
        clients.push(std::thread::spawn(move || anew(&of_new, addr, number)));
        clients.push(std::thread::spawn(move || kept(&of_kept, addr, number)));
    }
    let (of_http2, addr) = (seen.clone(), site.gateway_addr);
    clients.push(std::thread::spawn(move || http2(&of_http2, addr)));

    let begun = Instant::now();
    let end = Duration::from_secs(seconds);
    let reload_every = end.checked_div(u32::try_from(RELOADS)?).unwrap_or_default();
    let (mut reloads, mut rolled, mut killed, mut upgrades) = (0_u64, 0_u64, 0_u64, 0_u64);
    let (mut next_fault, mut next_upgrade) = (FAULT, UPGRADE);
    while begun.elapsed() < end || reloads < RELOADS {
        reloads += 1;
        site.reload(reloads)?;
        let now = begun.elapsed();
        if now >= next_fault {
            next_fault = now + FAULT;
            if fastrand::bool() {
                site.roll()?;
                rolled += 1;
            } else {
                site.kill()?;
                killed += 1;
            }
        }
        if now >= next_upgrade {
            next_upgrade = now + UPGRADE;
            site.upgrade()?;
            upgrades += 1;
        }
        site.clear(false);
        let due = reload_every * u32::try_from(reloads)?;
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        ensure!(begun.elapsed() < end * 3 + Duration::from_secs(60), "the machine is too slow for {RELOADS} reloads");
    }
    seen.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().map_err(|_| anyhow::anyhow!("a client has panicked"))?;
    }
    let refused = site.refusals()?;
    let failed = seen.failed.lock().unwrap_or_else(PoisonError::into_inner);
    let answered = seen.answered.load(Ordering::SeqCst);
    let mut text = format!(
        "{reloads} reloads, {upgrades} upgrades of the binary, {rolled} endpoints replaced, {killed} killed, in {} s\n\
         {answered} requests answered, {} failed, {} sent again on a new connection; the slowest took {:.0} ms\n",
        begun.elapsed().as_secs(),
        failed.len(),
        seen.again.load(Ordering::SeqCst),
        seen.slowest_micros.load(Ordering::SeqCst) as f64 / 1e3,
    );
    for failure in failed.iter().take(20) {
        let _ = writeln!(text, "  {failure}");
    }
    if !refused.is_empty() {
        let _ = writeln!(text, "the gateway refused what was right: {refused}");
    }
    let idle = answered < 1_000 || upgrades == 0 || rolled == 0 || killed == 0;
    if idle {
        text.push_str("too little happened for a verdict: give it more seconds\n");
    }
    Ok(Verdict { wrong: idle || !failed.is_empty() || !refused.is_empty(), text })
}

impl Site {
    fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let seawall = std::env::current_exe()?.with_file_name("seawall");
        ensure!(seawall.exists(), "{} is missing: cargo build -p seawall-cli", seawall.display());
        let (control_addr, gateway_addr) = (free()?, free()?);
        write_file(dir.path(), control_addr, gateway_addr, 0)?;
        let control = run(&seawall, dir.path(), "control", &[])?;
        until("control answers", || ask(control_addr, "GET", "/healthz", "").is_ok_and(|answer| answer.0 == 200))?;
        let gateway = run(&seawall, dir.path(), "gateway", &[])?;
        let (endpoints, leaving) = (VecDeque::new(), Vec::new());
        let mut site =
            Self { dir, seawall, control_addr, gateway_addr, control, gateway, endpoints, leaving, started: 0 };
        for _ in 0..ENDPOINTS {
            site.endpoint()?;
        }
        until("the gateway serves", || ask(gateway_addr, "GET", "/api/x", "").is_ok_and(|answer| answer.0 == 200))?;
        Ok(site)
    }

    /// Starts one more, and registers it.
    fn endpoint(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("upstream").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
        self.started += 1;
        let id = format!("api-{}", self.started);
        let addr: SocketAddr = line.trim().parse()?;
        let body = format!("{{\"id\":\"{id}\",\"address\":\"{}\",\"port\":{}}}", addr.ip(), addr.port());
        let answer = ask(self.control_addr, "PUT", &format!("/v1/services/api/instances/{id}"), &body)?;
        ensure!(answer.0 < 300, "registering: {answer:?}");
        self.endpoints.push_back(Endpoint { id, child });
        Ok(())
    }

    /// A new one comes, and then the oldest goes in order: it is taken out first and ends when nobody calls it any more.
    fn roll(&mut self) -> anyhow::Result<()> {
        self.endpoint()?;
        let Some(oldest) = self.endpoints.pop_front() else { return Ok(()) };
        let path = format!("/v1/services/api/instances/{}/status", oldest.id);
        ask(self.control_addr, "PUT", &path, "{\"status\":\"draining\"}")?;
        self.leaving.push((oldest, Instant::now()));
        Ok(())
    }

    /// One is killed in the middle of whatever it does, and stays registered for a while.
    fn kill(&mut self) -> anyhow::Result<()> {
        self.endpoint()?;
        let Some(mut victim) = self.endpoints.pop_front() else { return Ok(()) };
        victim.child.kill()?;
        victim.child.wait()?;
        self.leaving.push((victim, Instant::now()));
        Ok(())
    }

    /// Those that have left for long enough are ended.
    fn clear(&mut self, all: bool) {
        let control = self.control_addr;
        self.leaving.retain_mut(|(endpoint, since)| {
            if !all && since.elapsed() < Duration::from_secs(2) {
                return true;
            }
            let _ = ask(control, "DELETE", &format!("/v1/services/api/instances/{}", endpoint.id), "");
            let _ = endpoint.child.kill();
            let _ = endpoint.child.wait();
            false
        });
    }

    fn reload(&self, number: u64) -> anyhow::Result<()> {
        write_file(self.dir.path(), self.control_addr, self.gateway_addr, number)?;
        let pid = i32::try_from(self.gateway.id()).ok().and_then(Pid::from_raw).context("a pid")?;
        Ok(kill_process(pid, Signal::HUP)?)
    }

    fn upgrade(&mut self) -> anyhow::Result<()> {
        let successor = run(&self.seawall, self.dir.path(), "gateway", &["--take-over"])?;
        let mut former = std::mem::replace(&mut self.gateway, successor);
        let mut ended = None;
        until("the former gateway ends", || {
            ended = former.try_wait().ok().flatten();
            ended.is_some()
        })?;
        ensure!(
            ended.is_some_and(|status| status.success()),
            "the former gateway ended with {ended:?}: {}",
            self.log()?
        );
        Ok(())
    }

    fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join("gateway.log"))?)
    }

    /// What the gateway has not taken of what was written; a file that is read while it is written is no file.
    fn refusals(&self) -> anyhow::Result<String> {
        let log = self.log()?;
        let lines = log.lines().filter(|line| line.contains("stay as they were") || line.contains("panicked"));
        Ok(lines.take(5).collect::<Vec<_>>().join("\n"))
    }
}

/// Other routes each time, of which that of the clients is always one.
fn write_file(dir: &Path, control: SocketAddr, gateway: SocketAddr, number: u64) -> anyhow::Result<()> {
    let mut more = String::new();
    for other in 0..number % 7 {
        let _ = writeln!(
            more,
            "      - {{ id: other-{other}, match: {{ path: /other/{number}/{other}/** }}, filters: [ {{ strip_prefix: {} }} ], to: api }}",
            number % 3 + 1
        );
    }
    let text = format!(
        "control: {{ listen: \"{control}\", ttl: 1h }}
policies:
  api: {{ timeout: 10s, attempt_timeout: 3s, retry: {{ attempts: 5, budget: 100% }}, breaker: {{ enabled: false }} }}
gateways:
  public:
    listen: \"{gateway}\"
    workers: 2
    drain: 10s
    routes:
{more}      - {{ id: api, match: {{ path: /api/** }}, filters: [ {{ set_response_header: {{ x-reload: \"{number}\" }} }} ], to: api }}
services: {{ api: {{}} }}
"
    );
    let beside = dir.join("seawall.yaml.new");
    std::fs::write(&beside, text)?;
    Ok(std::fs::rename(beside, dir.join("seawall.yaml"))?)
}

fn run(seawall: &Path, dir: &Path, role: &str, more: &[&str]) -> anyhow::Result<Child> {
    let log = std::fs::File::options().append(true).create(true).open(dir.join(format!("{role}.log")))?;
    let mut command = Command::new(seawall);
    command.arg(role).args(more).current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("cannot start {}", seawall.display()))
}

fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        ensure!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Asks on a connection of its own.
fn ask(addr: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
    let mut connection = Connection::open(addr)?;
    connection.ask(method, path, "connection: close\r\n", body).map_err(|(why, _)| anyhow::anyhow!(why))
}

struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    fn open(addr: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Status and body; or what went wrong, and whether anything of the answer had come.
    fn ask(&mut self, method: &str, path: &str, more: &str, body: &str) -> Result<(u16, String), (String, bool)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: api\r\ncontent-type: application/json\r\n{more}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.reader.get_mut().write_all(request.as_bytes()).map_err(|error| (error.to_string(), false))?;
        let mut status = 0;
        let mut length = 0;
        let mut begun = false;
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(0) => return Err(("the connection was closed".to_owned(), begun)),
                Err(error) => return Err((error.to_string(), begun)),
                Ok(_) => begun = true,
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.get(..3).and_then(|digits| digits.parse().ok()).unwrap_or(0);
            }
            if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).map_err(|error| (error.to_string(), true))?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// A client with a new connection for each request.
fn anew(seen: &Seen, addr: SocketAddr, number: u64) {
    while seen.goes_on() {
        let began = Instant::now();
        let answer = ask(addr, "GET", &format!("/api/new/{number}"), "").map_err(|error| format!("{error:#}"));
        seen.note("new connection", began, answer);
        std::thread::sleep(PAUSE);
    }
}

/// A client that keeps its connection, and writes.
fn kept(seen: &Seen, addr: SocketAddr, number: u64) {
    let mut kept: Option<Connection> = None;
    while seen.goes_on() {
        let began = Instant::now();
        let key = format!("idempotency-key: {number}-{}\r\n", fastrand::u64(..));
        let reused = kept.is_some();
        let mut answer = Err((String::new(), false));
        if let Some(connection) = &mut kept {
            answer = connection.ask("POST", "/api/kept", &key, "{}");
        }
        if reused && answer.as_ref().is_err_and(|(_, begun)| !begun) {
            seen.again.fetch_add(1, Ordering::Relaxed);
        }
        if answer.as_ref().is_err_and(|(_, begun)| !begun) {
            kept = None;
            answer = Connection::open(addr).map_err(|error| (error.to_string(), false)).and_then(|mut connection| {
                let answer = connection.ask("POST", "/api/kept", &key, "{}");
                kept = Some(connection);
                answer
            });
        }
        if answer.is_err() {
            kept = None;
        }
        seen.note("kept connection", began, answer.map_err(|(why, _)| why));
        std::thread::sleep(PAUSE);
    }
}

/// A client of HTTP/2 that has a few requests under way at a time.
fn http2(seen: &Seen, addr: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        while seen.goes_on() {
            let began = Instant::now();
            let connected = async {
                let stream = tokio::net::TcpStream::connect(addr).await.map_err(|error| error.to_string())?;
                let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
                let (send, connection) = handshake.await.map_err(|error| error.to_string())?;
                tokio::spawn(connection);
                Ok::<_, String>(send)
            };
            let send = match tokio::time::timeout(ANSWER, connected).await {
                Ok(Ok(send)) => send,
                Ok(Err(why)) => {
                    seen.note("http2", began, Err(why));
                    continue;
                }
                Err(_) => {
                    seen.note("http2", began, Err("no connection in time".to_owned()));
                    continue;
                }
            };
            while seen.goes_on() && !send.is_closed() {
                let began = Instant::now();
                let mut answers = tokio::task::JoinSet::new();
                for _ in 0..4 {
                    let mut send = send.clone();
                    answers.spawn(async move {
                        let request = http::Request::get("http://api/api/http2").body(Empty::<Bytes>::new());
                        let response = send.try_send_request(request.expect("a request")).await;
                        // One that was not sent, or that the server has not looked at, goes to the next connection.
                        let response = match response {
                            Ok(response) => response,
                            Err(mut error) => {
                                let unsent = error.take_message().is_some() || unprocessed(error.error());
                                return (!unsent).then(|| Err(error.into_error().to_string()));
                            }
                        };
                        let status = response.status().as_u16();
                        let body = response.into_body().collect().await;
                        let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
                        Some(body.map(|body| (status, body)).map_err(|error| error.to_string()))
                    });
                }
                let all = tokio::time::timeout(ANSWER, answers.join_all()).await;
                let Ok(all) = all else {
                    seen.note("http2", began, Err("no answer in time".to_owned()));
                    break;
                };
                for answer in all {
                    match answer {
                        Some(answer) => seen.note("http2", began, answer),
                        None => drop(seen.again.fetch_add(1, Ordering::Relaxed)),
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
}

fn unprocessed(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let reason = error.reason();
            return (error.is_go_away() && reason == Some(h2::Reason::NO_ERROR))
                || (error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM));
        }
        cause = error.source();
    }
    false
}

/// One of those that are called: says where it listens, and answers after a moment.
pub(crate) fn upstream() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || serve(stream));
    }
    Ok(())
}

fn serve(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(reading) = stream.try_clone() else { return };
    let mut reader = BufReader::new(reading);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if !matches!(reader.read_line(&mut line), Ok(1..)) {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap_or(0);
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(..8)));
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nserved").is_err() {
            return;
        }
    }
}
