//! `cargo xtask chaos locks`: holders of a lock as processes of their own on a real backend, which are stopped, killed and cut off, as
//! is the backend; then the checkers over what they recorded, and a table.
//!
//! Every fault has a round of its own. The holders append to two registers, files on this machine: one refuses tokens smaller
//! than its latest, the other takes anything. The clock of the histories is `CLOCK_BOOTTIME`, the same for all.

mod clocks;
mod gateway;
mod holder;
mod judge;
mod keys;
mod round;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Every backend.
const ALL: &str = "embedded,etcd,zookeeper,postgres,advisory,redis,redlock";

#[derive(Parser)]
#[command(about = "Faults against holders of locks, and the checkers over what they did")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One of the processes that are tormented.
#[derive(clap::Args)]
struct Process {
    #[arg(long)]
    url: String,
    #[arg(long)]
    name: String,
    #[arg(long)]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Torments holders of a lock.
    Locks {
        /// How long there are faults, on all backends together; at least 10 on each. Between them it is looked whether all is well.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// Which: embedded, etcd, zookeeper, postgres, advisory, redis, redlock; several with commas, or all.
        #[arg(long, default_value = "all")]
        backend: String,
        /// Of the faults; a random one unless set. The processes' own timing is not in it.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Torments a store alone, and those who use it.
    Store {
        /// How long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Which: embedded or etcd.
        #[arg(long, default_value = "embedded")]
        backend: String,
        /// As above.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Torments a gateway: its routes, endpoints and binary change and what it calls is killed, under load. 1,000 reloads.
    Gateway {
        /// How long.
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// As above.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// One of those that the gateway calls.
    #[command(hide = true)]
    Upstream,
    /// Checks a history once more that was kept.
    Check {
        /// Where it is.
        dir: PathBuf,
        /// The revision at which it begins.
        #[arg(long)]
        from: u64,
    },
    /// One of the holders.
    #[command(hide = true)]
    Holder(Process),
    /// One of those who use a store.
    #[command(hide = true)]
    Keys(Process),
    /// A round in which the wall clock jumps.
    #[command(hide = true)]
    Clocks {
        #[arg(long)]
        backend: String,
        #[arg(long)]
        millis: u64,
    },
}

fn begin(seed: Option<u64>) {
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("SEAWALL_SEED={seed}");
    fastrand::seed(seed);
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Gateway { seconds, seed } => {
            begin(seed);
            let verdict = gateway::torment(seconds)?;
            print!("{}", verdict.text);
            Ok(if verdict.wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Command::Upstream => gateway::upstream().map(|()| ExitCode::SUCCESS),
        Command::Locks { seconds, backend, seed } => {
            begin(seed);
            let backends = if backend == "all" { ALL.to_owned() } else { backend };
            let mut wrong = false;
            println!("{}", round::HEADER);
            let mut verdicts = Vec::new();
            let each = seconds / u64::try_from(backends.split(',').count())?;
            for name in backends.split(',') {
                let verdict = round::torment(name, each)?;
                wrong |= verdict.wrong;
                verdicts.push((name, verdict.text));
            }
            println!();
            for (name, text) in verdicts {
                text.iter().for_each(|line| println!("{name:<10} {line}"));
            }
            Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Command::Store { seconds, backend, seed } => {
            begin(seed);
            let duration = std::time::Duration::from_secs(seconds);
            let found = keys::torment(&backend, duration)?;
            let found = found.with_context(|| format!("`{backend}` is no store: embedded or etcd"))?;
            println!("{found}");
            found.violation.iter().for_each(|violation| println!("    {violation}"));
            Ok(if found.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
        Command::Check { dir, from } => match keys::again(&dir, from)? {
            Some(violation) => {
                println!("{violation}");
                Ok(ExitCode::FAILURE)
            }
            None => Ok(ExitCode::SUCCESS),
        },
        Command::Holder(Process { url, name, dir }) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(holder::live(&url, &name, &dir))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Keys(Process { url, name, dir }) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(keys::live(&url, &name, &dir))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Clocks { backend, millis } => {
            clocks::round(&backend, std::time::Duration::from_millis(millis))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
