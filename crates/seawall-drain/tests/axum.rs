//! The axum example as a process: real signals, real connections, real exit codes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// For whatever should come soon; a loaded machine may take its time.
const SOON: Duration = Duration::from_secs(20);

struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    /// Starts the example on a free port.
    fn start(lameduck: &str, deadline: &str) -> Self {
        let mut child = Command::new(example())
            .envs([("LISTEN", "127.0.0.1:0"), ("LAMEDUCK", lameduck), ("DEADLINE", deadline)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut server = Self { child, addr: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let (said, line) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = said.send(line);
        });
        let line = line.recv_timeout(SOON).expect("it says where it listens in time");
        server.addr = line.trim().strip_prefix("listening on ").expect("it says where it listens").parse().unwrap();
        server.until("ready", || server.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")));
        server
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.addr, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(stream)
    }

    /// The whole answer, on a connection of its own.
    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = self.connect()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// A request that is being handled, and stays so until the client sends the two bytes of its body.
    fn in_flight(&self) -> TcpStream {
        let mut stream = self.connect().unwrap();
        let head = "POST /slow?seconds=0 HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        // It comes when the handler asks for the body.
        let mut answer = [0; 25];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 100 Continue\r\n\r\n");
        stream
    }

    fn is_draining(&self) -> bool {
        self.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 503") && answer.ends_with("draining\n"))
    }

    fn refuses(&self) -> bool {
        self.connect().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds() {
            assert!(Instant::now() < deadline, "not {what} in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its exit code and what it has logged.
    fn exit(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only a test that has failed leaves one behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Cargo builds the examples beside the tests: target/<profile>/examples next to target/<profile>/deps.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let path = profile.join("examples").join("axum");
    assert!(path.exists(), "{} is missing: `cargo test` without `--test` builds the examples too", path.display());
    path
}

#[test]
fn a_request_in_flight_is_finished() {
    let server = Server::start("1", "30");
    let mut slow = server.in_flight();
    server.signal(Signal::TERM);
    // Lameduck: not ready, and still served.
    server.until("draining", || server.is_draining());
    server.until("refusing", || server.refuses());
    slow.write_all(b"ok").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("a body of 2 bytes\n"), "{answer}");
    let (code, log) = server.exit();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("by=SIGTERM") && log.contains("the pool is closed"), "{log}");
    assert!(log.contains("outcome=clean after"), "{log}");
}

#[test]
fn a_request_that_outlives_the_deadline_is_named() {
    let server = Server::start("0", "0.5");
    let _slow = server.in_flight();
    let signaled = Instant::now();
    server.signal(Signal::TERM);
    let (code, log) = server.exit();
    let took = signaled.elapsed();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("finish requests: 1 request (oldest"), "{log}");
    // The phases after it have had their turn.
    assert!(log.contains("the pool is closed"), "{log}");
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_second_signal_stops_at_once() {
    for (second, expected) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let server = Server::start("600", "600");
        let _slow = server.in_flight();
        server.signal(Signal::TERM);
        // Two equal signals that come together count as one.
        server.until("draining", || server.is_draining());
        let signaled = Instant::now();
        server.signal(second);
        let (code, log) = server.exit();
        assert_eq!(code, Some(expected), "{log}");
        assert!(log.contains("cut short by") && log.contains("1 request (oldest"), "{log}");
        assert!(!log.contains("the pool is closed"), "{log}");
        assert!(signaled.elapsed() < Duration::from_secs(10));
    }
}

/// Nobody of a crowd is lost.
#[test]
fn a_crowd_of_requests_is_finished() {
    let server = Server::start("0.3", "30");
    let crowd: Vec<_> = (0..50).map(|_| server.in_flight()).collect();
    server.signal(Signal::TERM);
    server.until("refusing", || server.refuses());
    for mut slow in crowd {
        slow.write_all(b"ok").unwrap();
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    let (code, log) = server.exit();
    assert_eq!(code, Some(0), "{log}");
}
