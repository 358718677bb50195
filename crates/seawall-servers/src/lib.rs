//! Real servers of other projects, for tests: each with a directory and a port of its own, gone when it is dropped.
//!
//! A program that is missing fails the test and names the Debian package that has it; no test is skipped for that.
//! Everything here panics when it fails, as a test does.

mod etcd;
mod postgres;
mod proxy;
mod redis;
mod zookeeper;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use etcd::Etcd;
use postgres::{Pooler, Postgres};
pub use proxy::Proxy;
use zookeeper::ZooKeeper;

/// How a server of some kind is started, again and again with the same files.
trait Program: std::fmt::Debug + Send + Sync {
    /// Starts it; the first time without an address, so that it may choose one, and from then on at the one it had.
    fn spawn(&self, dir: &Path, addr: Option<SocketAddr>) -> Child;

    /// Waits until it serves, and says where.
    fn ready(&self, child: &mut Child, dir: &Path) -> SocketAddr;

    /// Its processes beside the one that was started.
    fn others(&self, _dir: &Path) -> Vec<Pid> {
        Vec::new()
    }
}

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server, killed and waited for when it is dropped. Its log is printed when the test fails.
#[derive(Debug)]
pub struct Server {
    program: Box<dyn Program>,
    dir: tempfile::TempDir,
    child: Child,
    addr: SocketAddr,
}

impl Server {
    /// An etcd of one member, empty. It has a short election timeout, so that its leases may be as short as a second.
    pub fn etcd() -> Self {
        Self::etcd_with(&[])
    }

    /// The same with more arguments.
    pub fn etcd_with(args: &[&str]) -> Self {
        Self::start(Etcd::alone(args))
    }

    /// An etcd cluster, empty, with a leader.
    pub fn etcd_cluster(members: usize) -> Vec<Self> {
        Self::start_all(Etcd::cluster(members))
    }

    /// A PostgreSQL, empty: database and user `postgres`, no password.
    pub fn postgres() -> Self {
        Self::postgres_with(&[])
    }

    /// The same with settings: `name=value`.
    pub fn postgres_with(settings: &[&str]) -> Self {
        Self::start(Postgres::with(settings))
    }

    /// A pgbouncer in front of this PostgreSQL, which hands its connections around by `session` or by `transaction`.
    pub fn pooled(&self, mode: &str) -> Self {
        Self::start(Pooler::to(self.addr, mode))
    }

    /// A Redis that syncs every write, empty.
    pub fn redis() -> Self {
        Self::redis_several(1, &[]).remove(0)
    }

    /// Several that know nothing of each other, with more arguments.
    pub fn redis_several(count: usize, args: &[&str]) -> Vec<Self> {
        Self::start_all(redis::Redis::several(count, args))
    }

    /// A ZooKeeper of one member, empty. Its sessions live for 0.5 to 5 seconds.
    pub fn zookeeper() -> Self {
        Self::start(ZooKeeper::alone())
    }

    /// A ZooKeeper ensemble, empty, with a leader.
    pub fn zookeeper_ensemble(members: usize) -> Vec<Self> {
        Self::start_all(ZooKeeper::ensemble(members))
    }

    fn start(program: impl Program + 'static) -> Self {
        Self::start_all([program]).remove(0)
    }

    /// None of them is ready before there are enough.
    fn start_all<P: Program + 'static>(programs: impl IntoIterator<Item = P>) -> Vec<Self> {
        let start = |program: P| {
            let dir = tempfile::tempdir().expect("a temporary directory can be made");
            let child = program.spawn(dir.path(), None);
            Self { program: Box::new(program), dir, child, addr: SocketAddr::from(([0, 0, 0, 0], 0)) }
        };
        let mut servers: Vec<_> = programs.into_iter().map(start).collect();
        for server in &mut servers {
            server.addr = server.program.ready(&mut server.child, server.dir.path());
        }
        servers
    }

    /// Where its clients connect. It stays the same over [`restart`](Self::restart).
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops its time: it keeps its connections and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it at once; its files stay.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for other in self.program.others(self.dir.path()) {
            let _ = rustix::process::kill_process(other, Signal::KILL);
        }
    }

    /// Starts it again with its files, at the same address; kills it before if it still runs.
    pub fn restart(&mut self) {
        self.kill9();
        self.child = self.program.spawn(self.dir.path(), Some(self.addr));
        self.addr = self.program.ready(&mut self.child, self.dir.path());
    }

    /// A way to it that can be cut.
    pub fn through(&self) -> Proxy {
        Proxy::to(self.addr)
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log(self.dir.path())).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("it has a process id");
        rustix::process::kill_process(pid, signal).expect("it can be signalled");
        for other in self.program.others(self.dir.path()) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(other, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<String> = log.lines().map(|line| line.chars().take(200).collect()).collect();
            eprintln!(
                "--- the last lines of {:?}:\n{}",
                self.program,
                lines[lines.len().saturating_sub(20)..].join("\n")
            );
        }
    }
}

fn log(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// Starts a program whose output goes to the log.
fn spawn(command: &mut Command, package: &str, dir: &Path) -> Child {
    let out = std::fs::File::create(log(dir)).expect("the log can be made");
    let err = out.try_clone().expect("a file can be shared");
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    command.spawn().unwrap_or_else(|error| {
        let program = command.get_program().display();
        panic!("cannot start {program}: {error}; the Debian package is {package}, and `cargo xtask test` installs it")
    })
}

/// Looks at the log until `find` finds something in it.
fn until<T>(child: &mut Child, dir: &Path, find: impl Fn(&str) -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let log = std::fs::read_to_string(log(dir)).unwrap_or_default();
        if let Some(found) = find(&log) {
            return found;
        }
        let ended = child.try_wait().ok().flatten();
        if ended.is_some() || Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it did not start ({ended:?}):\n{log}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until somebody listens there.
fn listens(addr: SocketAddr) -> bool {
    TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_ok()
}

/// Ports that nobody uses at the moment, each another: for servers that cannot choose one themselves. Members of a cluster have to know each other's beforehand.
fn free_ports(count: usize) -> Vec<u16> {
    // Below the range that outgoing connections are given ports from; held until all are found.
    // Tests that run at the same time are processes whose numbers follow each other: each has a range of its own to begin in.
    let start = 19_000 + u16::try_from(std::process::id() % 750).unwrap_or(0) * 16;
    let held: Vec<_> =
        (start..32_000).filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).take(count).collect();
    held.iter().filter_map(|listener| Some(listener.local_addr().ok()?.port())).collect()
}
