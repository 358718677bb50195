//! `seawall guard PARENT -- COMMAND`: runs COMMAND and sees to it that nothing of it outlives PARENT. `seawall up` starts
//! everything through it, so that even kill -9 of `up` leaves nothing running.
//!
//! Without `--group` it becomes COMMAND, with the wish to be told when its parent dies: enough for our own roles, which
//! have no children. With `--group` it stays, as the head of a process group: a service may be a shell that has started
//! others, and those hear of no parent's death.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};
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
        let mut terminated = signal(SignalKind::terminate())?;
        // The service in its turn is told when this guard dies.
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        let mut child = command.args(words(std::process::id(), false)).args(&args.command).spawn()?;
        let ended = loop {
            tokio::select! {
                ended = child.wait() => break Some(ended?),
                _ = terminated.recv() => {
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
                    None => anyhow::bail!("`{}` has died: {ended}", args.command.join(" ")),
                }
            }
            // Nobody does: everything goes, this guard too.
            _ => Ok(rustix::process::kill_process_group(rustix::process::getpid(), Signal::KILL)?),
        }
    })
}
