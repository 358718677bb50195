//! Starting PostgreSQL.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// The package that has it.
const PACKAGE: &str = "postgresql";
/// Who runs it when the tests run as root, which it refuses to be.
const USER: &str = "postgres";
/// What it writes when it serves.
const READY: &str = "database system is ready to accept connections";
/// How long the processes of one that was killed may take to notice.
const ORPHANS: Duration = Duration::from_secs(10);

/// How one is started.
#[derive(Clone, Debug)]
pub(crate) struct Postgres {
    port: u16,
    more: Vec<String>,
}

impl Postgres {
    /// An empty one with these settings beside its defaults: `name=value`.
    pub(crate) fn with(settings: &[&str]) -> Self {
        let port = super::free_ports(1)[0];
        Self { port, more: settings.iter().flat_map(|setting| ["-c".into(), (*setting).to_owned()]).collect() }
    }
}

impl super::Program for Postgres {
    fn spawn(&self, dir: &Path, addr: Option<SocketAddr>) -> Child {
        let data = dir.join("data");
        if addr.is_none() {
            copy(&template(), &data);
            own(dir);
        }
        // The children of one that was killed go by themselves, and another cannot start before.
        let end = Instant::now() + ORPHANS;
        while let Some(pid) = inhabitants(&data).first() {
            if Instant::now() > end {
                let _ = rustix::process::kill_process(*pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut command = as_user(&program("postgres"));
        command.arg("-D").arg(&data).args(["-p", &self.port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories="] {
            command.args(["-c", setting]);
        }
        command.args(&self.more).current_dir(dir);
        super::spawn(&mut command, PACKAGE, dir)
    }

    fn ready(&self, child: &mut Child, dir: &Path) -> SocketAddr {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port));
        super::until(child, dir, |log| (log.contains(READY) && super::listens(addr)).then_some(addr))
    }

    /// Each of its connections has a process of its own.
    fn others(&self, dir: &Path) -> Vec<Pid> {
        inhabitants(&dir.join("data"))
    }
}

/// A pooler between: pgbouncer, which hands the connections of a server around.
#[derive(Clone, Debug)]
pub(crate) struct Pooler {
    to: SocketAddr,
    port: u16,
    mode: String,
}

impl Pooler {
    /// Hands them around by `session`, `transaction` or `statement`.
    pub(crate) fn to(to: SocketAddr, mode: &str) -> Self {
        Self { to, port: super::free_ports(1)[0], mode: mode.to_owned() }
    }
}

impl super::Program for Pooler {
    fn spawn(&self, dir: &Path, _addr: Option<SocketAddr>) -> Child {
        let Self { to, port, mode } = self;
        let config = format!(
            "[databases]\n* = host={} port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = any\npool_mode = {mode}\nunix_socket_dir =\n",
            to.ip(),
            to.port()
        );
        let file = dir.join("pgbouncer.ini");
        std::fs::write(&file, config).expect("its configuration can be written");
        own(dir);
        let mut command = as_user(Path::new("pgbouncer"));
        command.arg(file).current_dir(dir);
        super::spawn(&mut command, "pgbouncer", dir)
    }

    fn ready(&self, child: &mut Child, dir: &Path) -> SocketAddr {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port));
        super::until(child, dir, |_| super::listens(addr).then_some(addr))
    }
}

/// One of its programs; Debian keeps them out of the path.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> =
        versions.map(|dir| dir.path().join("bin").join(name)).filter(|path| path.is_file()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(name))
}

/// A command that does not run as root.
fn as_user(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups", "--"]).arg(program);
    command
}

/// Gives a directory with all that is in it to whoever runs the server.
fn own(dir: &Path) {
    if rustix::process::geteuid().is_root() {
        run(Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(dir));
    }
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to));
}

/// An initialised data directory: made once, for all tests of this user. To make one takes seconds, to copy it does not.
fn template() -> PathBuf {
    let version = program("initdb").to_string_lossy().replace('/', "-");
    let template = std::env::temp_dir().join(format!("seawall{version}-{}", rustix::process::geteuid().as_raw()));
    if !template.exists() {
        let fresh = tempfile::tempdir().expect("a temporary directory can be made");
        own(fresh.path());
        let data = fresh.path().join("data");
        let mut command = as_user(&program("initdb"));
        command.args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"]).arg(&data);
        run(command.current_dir(fresh.path()));
        // The one that comes later finds a directory that is not empty, and takes that.
        let _ = std::fs::rename(&data, &template);
    }
    let owner = std::fs::metadata(&template).expect("the template is there").uid();
    let mine = [rustix::process::geteuid().as_raw(), uid()];
    assert!(mine.contains(&owner), "{} belongs to somebody else (user {owner})", template.display());
    template
}

/// Who runs it, as a number.
fn uid() -> u32 {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find_map(|line| line.strip_prefix("postgres:"));
    line.and_then(|line| line.split(':').nth(1)?.parse().ok()).unwrap_or(u32::MAX)
}

/// The processes that work in a directory.
fn inhabitants(dir: &Path) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let here = processes.filter(|process| std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == dir));
    here.filter_map(|process| Pid::from_raw(process.file_name().to_str()?.parse().ok()?)).collect()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| {
        let program = command.get_program().display();
        panic!("cannot start {program}: {error}; the Debian package is {PACKAGE}, and `cargo xtask test` installs it")
    });
    assert!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(test)]
mod tests {
    use crate::Server;

    #[test]
    fn it_starts_again_at_the_same_address() {
        let mut server = Server::postgres();
        let addr = server.addr();
        server.restart();
        assert_eq!(server.addr(), addr);
        assert!(super::super::listens(addr));
        server.kill9();
        assert!(!super::super::listens(addr));
    }
}
