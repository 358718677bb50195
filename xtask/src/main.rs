//! Developer commands: `cargo xtask demo`, `test`, `bench`, `conformance`, `chaos`.

mod audit;
mod bench;
mod chaos;
mod conformance;
mod demo;
mod load;
mod machine;
mod process;
mod suite;
#[cfg(test)]
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Seawall")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything and run the shop through Seawall.
    Demo {
        /// Without a person: faults under load, an audit, a table; exit code 0 only if everything held.
        #[arg(long)]
        once: bool,
    },
    /// Install what is missing and run every test, the demo included.
    Test {
        /// Also what takes minutes: a million histories, more interleavings.
        #[arg(long)]
        long: bool,
    },
    /// Measure beside the peers, in one run, and print a table.
    Bench {
        /// Which: proxy, resilience, coord.
        name: bench::Name,
        /// How many rounds; each runs every case once, in turns.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds per case and round; the policies have samples instead.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Torment holders of locks on real backends, and check what they did: `chaos locks --seconds 300 --backend etcd,redis --seed 7`;
    /// or a gateway under load: `chaos gateway --seconds 120`.
    Chaos {
        /// What `chaos` itself takes; `chaos locks --help` shows it.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Run suites that others wrote against the real gateway, and print a table; exit code 1 when one is below what is required.
    Conformance {
        /// One suite alone, by its name.
        #[arg(long)]
        only: Option<String>,
    },
    /// The upstream that the benchmarks call; prints its address.
    #[command(hide = true)]
    Upstream,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Demo { once } => demo::run(once),
        Command::Test { long } => suite::run(long),
        Command::Bench { name, rounds, seconds } => bench::run(name, rounds, seconds),
        Command::Chaos { words } => chaos::run(&words),
        Command::Conformance { only } => conformance::run(only.as_deref()),
        Command::Upstream => bench::upstream(),
    }
}
