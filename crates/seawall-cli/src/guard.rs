//! `seawall guard PARENT -- COMMAND`: becomes COMMAND, with the wish to be told when its parent dies. `seawall up` starts
//! everything through it, so that even kill -9 of `up` leaves nothing running.

use std::os::unix::process::CommandExt;

use anyhow::Context;
use rustix::process::{Pid, Signal};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The process that this one must not outlive.
    parent: i32,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).context("cannot follow the parent")?;
    // It may have died before we asked.
    if rustix::process::getppid() != Pid::from_raw(args.parent) {
        anyhow::bail!("the parent {} is gone", args.parent);
    }
    let error = std::process::Command::new(&args.command[0]).args(&args.command[1..]).exec();
    Err(error).with_context(|| format!("cannot run `{}`", args.command.join(" ")))
}
