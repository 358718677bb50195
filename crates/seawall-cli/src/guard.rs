//! `seawall guard PARENT -- COMMAND`: runs COMMAND and sees to it that nothing of it outlives PARENT. `seawall up` starts
//! everything through it, so that even kill -9 of `up` leaves nothing running.
//!
//! With `--lease` it also ends the group when the time is over that its parent holds a lock for: the parent may be stopped
//! and unable to. The parent says through a pipe how long that is, again and again.
//!
//! Without `--group` it becomes COMMAND, with the wish to be told when its parent dies: enough for our own roles, which
//! have no children. With `--group` it stays, as the head of a process group: a service may be a shell that has started
//! others, and those hear of no parent's death.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};
use seawall_coord::{Boot, Clock};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use crate::process;
use crate::sidecar::terminate;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The process that this one must not outlive.
    parent: i32,
    /// Stay, and end the whole process group with the parent.
    #[arg(long)]
    group: bool,
    /// Kill the process group at the moment that was last read from this pipe, at the pipe's end, and with the parent.
    #[arg(long, requires = "group")]
    lease: Option<i32>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// How long a service has to end by itself when its supervisor is gone.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).context("cannot follow the parent")?;
    // It may have died before we asked.
    if orphaned(args.parent) {
        anyhow::bail!("the parent {} is gone", args.parent);
    }
    if args.group {
        return stay(args);
    }
    let error = std::process::Command::new(&args.command[0]).args(&args.command[1..]).exec();
    Err(error).with_context(|| format!("cannot run `{}`", args.command.join(" ")))
}

/// The arguments by which a command is run under guard of the process `parent`.
pub(crate) fn words(parent: u32, group: bool) -> Vec<String> {
    let mut words = vec!["guard".to_owned(), parent.to_string()];
    words.extend(group.then(|| "--group".to_owned()));
    words.push("--".to_owned());
    words
}

fn orphaned(parent: i32) -> bool {
    rustix::process::getppid() != Pid::from_raw(parent)
}

fn stay(args: &Args) -> anyhow::Result<()> {
    process::runtime()?.block_on(async {
        let mut lease = Lease::open(args.lease)?;
        let mut terminated = signal(SignalKind::terminate())?;
        // The service in its turn is told when this guard dies.
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        let mut child = command.args(words(std::process::id(), false)).args(&args.command).spawn()?;
        let ended = loop {
            tokio::select! {
                ended = child.wait() => break Some(ended?),
                () = lease.over() => break None,
                _ = terminated.recv() => {
                    if args.lease.is_some() && orphaned(args.parent) {
                        // Nobody renews the lock any more; there is no time to ask politely.
                        break None;
                    }
                    if let Some(pid) = child.id() {
                        terminate(pid);
                    }
                    if orphaned(args.parent) {
                        let _ = tokio::time::timeout(PATIENCE, child.wait()).await;
                        break None;
                    }
                }
            }
        };
        match ended {
            Some(ended) if !orphaned(args.parent) => {
                // This guard is of the group too, and hears it without heeding; `up` clears up what does not.
                let _ = rustix::process::kill_process_group(rustix::process::getpid(), Signal::TERM);
                match ended.code() {
                    Some(0) => Ok(()),
                    Some(code) => std::process::exit(code),
                    // As shells say it.
                    None => {
                        eprintln!("seawall: `{}` has died: {ended}", args.command.join(" "));
                        std::process::exit(128 + ended.signal().unwrap_or(0));
                    }
                }
            }
            // Nobody does: everything goes, this guard too.
            _ => Ok(rustix::process::kill_process_group(rustix::process::getpid(), Signal::KILL)?),
        }
    })
}

/// Until when the command may run, as the parent says it.
struct Lease {
    pipe: Option<pipe::Receiver>,
    until: Option<Boot>,
    read: Vec<u8>,
}

/// How a moment is written to the pipe.
pub(crate) fn moment(at: Boot) -> [u8; 8] {
    let nanos = at.since(Boot::default()).as_nanos();
    u64::try_from(nanos).unwrap_or(u64::MAX).to_le_bytes()
}

impl Lease {
    fn open(descriptor: Option<i32>) -> anyhow::Result<Self> {
        let pipe = descriptor.map(|number| {
            // Opened anew, so that it is ours and the command does not get it.
            let path = format!("/proc/self/fd/{number}");
            pipe::OpenOptions::new().open_receiver(path).context("cannot read the pipe of the lease")
        });
        Ok(Self { pipe: pipe.transpose()?, until: None, read: Vec::new() })
    }

    /// Resolves when the time is over, or the parent has closed the pipe. Cancel safe.
    async fn over(&mut self) {
        let Some(pipe) = &mut self.pipe else { return std::future::pending().await };
        let clock = Clock::default();
        loop {
            let until = self.until;
            let over = async {
                match until {
                    Some(until) => clock.sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                read = pipe.read_buf(&mut self.read) => {
                    if !matches!(read, Ok(1..)) {
                        return;
                    }
                    // The last whole moment counts.
                    let whole = self.read.len() / 8 * 8;
                    if let Some(last) = self.read[..whole].rchunks_exact(8).next() {
                        let nanos = last.try_into().map_or(0, u64::from_le_bytes);
                        self.until = Some(Boot::after(Duration::from_nanos(nanos)));
                    }
                    self.read.drain(..whole);
                }
                () = over => return,
            }
        }
    }
}
