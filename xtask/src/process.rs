//! Processes that end with us.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Runs a command to its end, in the repository's root.
pub(crate) fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(program).args(args).current_dir(root()).status();
    let status = status.with_context(|| format!("cannot run {program}"))?;
    anyhow::ensure!(status.success(), "`{program} {}` failed: {status}", args.join(" "));
    Ok(())
}

/// A child that is killed when dropped.
pub(crate) struct Running {
    child: Child,
    name: String,
}

impl Running {
    pub(crate) fn spawn(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        Ok(Self::from(command.spawn().with_context(|| format!("cannot start {name}"))?, name))
    }

    pub(crate) fn from(child: Child, name: &str) -> Self {
        Self { child, name: name.to_owned() }
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end and waits until it has.
    pub(crate) fn stop(&mut self, patience: Duration) -> anyhow::Result<std::process::ExitStatus> {
        signal(self.child.id(), Signal::TERM)?;
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            anyhow::ensure!(Instant::now() < end, "{} did not stop within {patience:?}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal.
pub(crate) fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let raw = i32::try_from(pid)?;
    let pid = Pid::from_raw(raw).context("not a process id")?;
    rustix::process::kill_process(pid, signal).with_context(|| format!("cannot signal process {raw}"))
}

/// Ports of 127.0.0.1 that nobody uses at the moment, each another.
pub(crate) fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    // Below the range that outgoing connections are given ports from; held until all are found.
    let mut held = Vec::new();
    for _ in 0..1000 {
        if held.len() == N {
            break;
        }
        held.extend(std::net::TcpListener::bind(("127.0.0.1", fastrand::u16(10_000..19_000))));
    }
    let ports: Vec<u16> = held.iter().map(|l| Ok(l.local_addr()?.port())).collect::<std::io::Result<_>>()?;
    ports.try_into().map_err(|_| anyhow::anyhow!("no free ports"))
}
