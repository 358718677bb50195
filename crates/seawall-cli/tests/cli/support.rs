//! Processes, files and plain HTTP for the tests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

pub(crate) const SEAWALL: &str = env!("CARGO_BIN_EXE_seawall");

/// A directory with a `seawall.yaml` and ports of its own.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) control: SocketAddr,
    pub(crate) gateway: SocketAddr,
}

impl Site {
    /// Writes `yaml` with `CONTROL` and `GATEWAY` replaced by free addresses.
    pub(crate) fn new(yaml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (control, gateway) = (free_addr(), free_addr());
        let yaml = yaml.replace("CONTROL", &control.to_string()).replace("GATEWAY", &gateway.to_string());
        std::fs::write(dir.path().join("seawall.yaml"), yaml).unwrap();
        Self { dir, control, gateway }
    }

    /// Starts a long-running subcommand; its log goes to a file of its own.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        self.start_with(args, &[])
    }

    /// The same with variables of the environment.
    pub(crate) fn start_with(&self, args: &[&str], env: &[(&str, &str)]) -> Running {
        let log = self.dir.path().join(format!("{}.log", args[0]));
        let out = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(SEAWALL);
        command.args(args).envs(env.iter().copied()).current_dir(self.dir.path()).stdin(Stdio::null());
        let child = command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        Running { child, log }
    }

    pub(crate) fn control(&self) -> Running {
        let running = self.start(&["control", "--config", "seawall.yaml"]);
        until("control is ready", || get(self.control, "/readyz").status == 200);
        running
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        Command::new(SEAWALL).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    /// Registers `addr` as an instance that is up.
    pub(crate) fn register(&self, service: &str, id: &str, addr: SocketAddr) {
        let body = serde_json::json!({ "id": id, "address": addr.ip(), "port": addr.port() });
        let answer =
            send(self.control, "PUT", &format!("/v1/services/{service}/instances/{id}"), &[], &body.to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// A process that is killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    log: PathBuf,
}

impl Running {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, then waits for the end.
    pub(crate) fn stop(mut self) -> std::process::ExitStatus {
        signal(self.child.id(), Signal::TERM);
        let mut ended = None;
        until("it has stopped", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.log.display(), self.log());
        }
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub(crate) fn free_addr() -> SocketAddr {
    // Below the range of outgoing connections, so that it is still free in a moment.
    loop {
        let port = 12_000 + (rand() % 7_000) as u16;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}

fn rand() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Waits for something that has to come true.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or("")
    }
}

pub(crate) fn get(addr: SocketAddr, path: &str) -> Answer {
    send(addr, "GET", path, &[], "")
}

/// One request on a connection of its own; status 0 when there is no answer.
pub(crate) fn send(addr: SocketAddr, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(40)))?;
        let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{more}");
        let length = body.len();
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        stream.write_all(format!("{head}{kind}content-length: {length}\r\n\r\n{body}").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let Ok(bytes) = exchange() else { return Answer::default() };
    let text = String::from_utf8_lossy(&bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Answer::default() };
    let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// Follows a stream of server-sent events and hands each on as `(name, data)`.
pub(crate) fn events(addr: SocketAddr, path: &str) -> std::sync::mpsc::Receiver<(String, Value)> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n").as_bytes())
        .unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut name = String::new();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut name);
            } else if let Some(data) = line.strip_prefix("data: ")
                && sender.send((name.clone(), serde_json::from_str(data).unwrap())).is_err()
            {
                return;
            }
        }
    });
    receiver
}

/// A request as a participant sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) key: String,
    pub(crate) fence: String,
    pub(crate) body: String,
    /// The request line and all fields, as they came.
    pub(crate) head: String,
}

impl Seen {
    /// The value of a field, whose name is written in small letters; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let lines = self.head.lines();
        let values =
            lines.filter_map(|line| line.split_once(": ").filter(|(field, _)| field.eq_ignore_ascii_case(name)));
        values.map(|(_, value)| value).next().unwrap_or_default()
    }
}

/// What a participant does with a request: status and body; status 0 breaks off without an answer.
type Handler = dyn Fn(&Seen) -> (u16, String) + Send + Sync;

/// A small HTTP server of the test's own.
pub(crate) struct Participant {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
}

impl Participant {
    pub(crate) fn start(handler: impl Fn(&Seen) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, handler): (_, Arc<Handler>) = (seen.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, handler) = (log.clone(), handler.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &log, &*handler));
            }
        });
        Self { addr, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Seen>>, handler: &Handler) {
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let field = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_default().to_owned()
        };
        let mut body = vec![0; field("content-length").parse().unwrap_or(0)];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let mut words = head.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let body = String::from_utf8_lossy(&body).into_owned();
        let seen = Seen {
            method,
            path,
            key: field("idempotency-key"),
            fence: field("seawall-fence"),
            body,
            head: head.clone(),
        };
        log.lock().unwrap().push(seen.clone());
        let (status, body) = handler(&seen);
        if status == 0 {
            return;
        }
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Whether a process exists and is no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}
