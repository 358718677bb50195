//! The backends under test, as processes that can be stopped, killed and started again.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use seawall_servers::{Proxy, Server};

pub(crate) struct Target {
    kind: Kind,
    scheme: &'static str,
    suffix: &'static str,
    /// Whether its locks come with tokens that only grow.
    pub(crate) fenced: bool,
    /// Whether the lock of a process that is stopped goes to another in time.
    pub(crate) expires: bool,
    /// Whether whoever asks first is served first.
    pub(crate) fair: bool,
    /// Whether it ends sessions by a clock that may jump.
    pub(crate) by_wall_clock: bool,
}

enum Kind {
    Control(Control),
    Server(Server),
    Several(Vec<Server>),
}

struct Control {
    dir: tempfile::TempDir,
    addr: SocketAddr,
    child: Child,
}

impl Target {
    pub(crate) fn start(name: &str) -> anyhow::Result<Self> {
        let of = |kind, scheme, suffix| Self {
            kind,
            scheme,
            suffix,
            fenced: true,
            expires: true,
            fair: true,
            by_wall_clock: false,
        };
        let unfenced = |target| Self { fenced: false, fair: false, ..target };
        Ok(match name {
            "embedded" => of(Kind::Control(Control::start()?), "control://", ""),
            "etcd" => of(Kind::Server(Server::etcd()), "etcd://", "/chaos"),
            "zookeeper" => of(Kind::Server(Server::zookeeper()), "zookeeper://", "/chaos"),
            "postgres" => {
                let target = of(Kind::Server(Server::postgres()), "postgres://postgres@", "/postgres");
                Self { by_wall_clock: true, ..target }
            }
            "advisory" => {
                let target = of(Kind::Server(Server::postgres()), "postgres+advisory://postgres@", "/postgres");
                Self { expires: false, ..unfenced(target) }
            }
            "redis" => Self { by_wall_clock: true, ..unfenced(of(Kind::Server(Server::redis()), "redis://", "")) },
            "redlock" => {
                let servers = Server::redis_several(5, &[]);
                Self { by_wall_clock: true, ..unfenced(of(Kind::Several(servers), "redlock://", "")) }
            }
            _ => bail!("`{name}` is none of embedded, etcd, zookeeper, postgres, advisory, redis, redlock"),
        })
    }

    fn addrs(&self) -> Vec<SocketAddr> {
        match &self.kind {
            Kind::Control(control) => vec![control.addr],
            Kind::Server(server) => vec![server.addr()],
            Kind::Several(servers) => servers.iter().map(Server::addr).collect(),
        }
    }

    /// Whether its clock is set by [`jump`](Self::jump). libfaketime and Redis' allocator do not go together.
    pub(crate) fn has_own_clock(&self) -> bool {
        self.scheme.starts_with("red")
    }

    /// Does to the keys of Redis what its clock does that is set so many seconds ahead, or back: they live for less, or more. Of
    /// several servers in a majority, for that is what it takes.
    pub(crate) fn jump(&self, seconds: i64) -> anyhow::Result<()> {
        const SCRIPT: &str = "for _, key in ipairs(redis.call('KEYS', 'seawall:*')) do
            local left = redis.call('PTTL', key)
            if left > 0 then redis.call('PEXPIRE', key, math.max(left - ARGV[1], 1)) end
        end";
        let millis = (seconds * 1_000).to_string();
        let addrs = self.addrs();
        for addr in &addrs[..addrs.len() / 2 + 1] {
            let mut command = Command::new("redis-cli");
            command.args(["-p", &addr.port().to_string(), "EVAL", SCRIPT, "0", &millis]);
            let output = command.output().context("cannot start redis-cli")?;
            ensure!(output.status.success(), "redis-cli: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// A way to each of its servers that can be cut, and its address through those.
    pub(crate) fn through(&self) -> (Vec<Proxy>, String) {
        let proxies: Vec<_> = self.addrs().into_iter().map(Proxy::to).collect();
        let addrs: Vec<_> = proxies.iter().map(|proxy| proxy.addr().to_string()).collect();
        let url = format!("{}{}{}", self.scheme, addrs.join(","), self.suffix);
        (proxies, url)
    }

    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        match &self.kind {
            Kind::Control(control) => signal(&control.child, Signal::STOP)?,
            Kind::Server(server) => server.pause(),
            Kind::Several(servers) => servers.iter().take(servers.len() / 2).for_each(Server::pause),
        }
        Ok(())
    }

    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        match &self.kind {
            Kind::Control(control) => signal(&control.child, Signal::CONT)?,
            Kind::Server(server) => server.resume(),
            Kind::Several(servers) => servers.iter().take(servers.len() / 2).for_each(Server::resume),
        }
        Ok(())
    }

    /// Kills it with -9 and starts it again with its files.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        match &mut self.kind {
            Kind::Control(control) => control.restart()?,
            Kind::Server(server) => server.restart(),
            Kind::Several(servers) => {
                let index = fastrand::usize(..servers.len());
                servers[index].restart();
            }
        }
        Ok(())
    }
}

pub(crate) fn signal(child: &Child, signal: Signal) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("no process id")?;
    kill_process(pid, signal).context("cannot signal")
}

impl Control {
    fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let yaml = format!("control:\n  listen: {addr}\n  data: {}\n", dir.path().join("data").display());
        std::fs::write(dir.path().join("seawall.yaml"), yaml)?;
        let child = spawn(dir.path())?;
        let mut control = Self { dir, addr, child };
        control.ready()?;
        Ok(control)
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = spawn(self.dir.path())?;
        self.ready()
    }

    fn ready(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(self.addr).is_err() {
            ensure!(Instant::now() < end && self.child.try_wait()?.is_none(), "control did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `seawall` beside this program.
fn spawn(dir: &Path) -> anyhow::Result<Child> {
    let seawall = std::env::current_exe()?.with_file_name("seawall");
    let mut command = Command::new(&seawall);
    command.args(["control", "--config", "seawall.yaml"]).current_dir(dir).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("cannot start {}: build the workspace first", seawall.display()))
}
