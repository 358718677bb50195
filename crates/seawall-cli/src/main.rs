//! The binary `seawall`: one subcommand a file. It reads the configuration, builds the parts, runs and drains them.

mod admin;
mod ask;
mod backend;
mod cache;
mod config;
mod control;
mod cron;
mod elect;
mod elections;
mod elsewhere;
mod gateway;
mod guard;
mod handover;
mod import;
mod init;
mod lock;
mod locks;
mod policies;
mod process;
mod queue;
mod route;
mod sidecar;
mod store;
mod traffic;
mod up;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::load::ConfigError;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Registry, gateway, sidecar and sagas for a fleet of services: one file, one binary.
#[derive(Parser)]
#[command(name = "seawall", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in a file: control, gateways, and every service behind its sidecar.
    Up(up::Args),
    /// Run the control node: registry, saga runner, HTTP API.
    Control(control::Args),
    /// Run one gateway of a file.
    Gateway(gateway::Args),
    /// Say which route takes a request, and why not the others.
    #[command(subcommand)]
    Route(route::Command),
    /// What gateways have stored of answers: look at it, throw it out.
    #[command(subcommand)]
    Cache(cache::Command),
    /// How requests are divided among the services of a split: look, shift, roll back.
    #[command(subcommand)]
    Traffic(traffic::Command),
    /// Run a sidecar beside one instance of a service, and the service itself if a command is given.
    Sidecar(sidecar::Args),
    /// Check a file, or print its JSON Schema.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Convert routes that were written for others.
    #[command(subcommand)]
    Import(import::Command),
    /// Write a commented file to begin with.
    Init(init::Args),
    /// Look at sagas.
    #[command(subcommand)]
    Saga(ask::SagaCommand),
    /// Show every registered instance.
    Services(ask::ServicesArgs),
    /// Show what a running `seawall up` runs.
    Status(up::client::StatusArgs),
    /// Stop a service of a running `seawall up`.
    Stop(up::client::ServiceArgs),
    /// Start a service of a running `seawall up` again.
    Start(up::client::ServiceArgs),
    /// Restart a service of a running `seawall up`, one replica after the other, or a gateway, without a refused connection.
    Restart(up::client::ServiceArgs),
    /// Let the parts of a running `seawall up` read the policies of its file again; no state is lost.
    Reload(up::client::ReloadArgs),
    /// Show the policies where they are at work: breakers and why they opened, bulkheads, budgets.
    Policies(policies::PoliciesArgs),
    /// Put the breaker of a service into a state by hand, or let the calls decide again.
    Breaker(policies::BreakerArgs),
    /// Run a command while holding a lock; it is ended when the lock is lost.
    Lock(lock::Args),
    /// Show who holds which lock and who waits; take a lock away by force.
    Locks(locks::Args),
    /// Stand for election, and run a command while leading; it is ended when the leadership is lost, then it stands again.
    Elect(elect::Args),
    /// Show who leads what, in which term, and who stands for it; remove a leader by force.
    Elections(elections::Args),
    /// Scheduled jobs: add, list, remove, look at their runs, order one.
    #[command(subcommand)]
    Cron(cron::CronCommand),
    /// Queues of jobs: put, list, do them by a command, try parked ones again.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Back up, restore, check and move the store in which registrations and locks are kept.
    #[command(subcommand)]
    Store(store::Command),
    /// Run a command that ends with its parent.
    #[command(hide = true)]
    Guard(guard::Args),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a file; exit code 2 when there are mistakes.
    Check {
        /// The file.
        #[arg(default_value = "seawall.yaml")]
        file: PathBuf,
        /// The same, as the other commands have it.
        #[arg(long, short, hide = true, conflicts_with = "file")]
        config: Option<PathBuf>,
    },
    /// Print the JSON Schema of the file, for editors.
    Schema,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Up(args) => up::run(args),
        Command::Control(args) => control::run(&args),
        Command::Gateway(args) => gateway::run(&args),
        Command::Route(command) => route::run(&command),
        Command::Cache(command) => cache::run(&command),
        Command::Traffic(command) => traffic::run(command),
        Command::Sidecar(args) => sidecar::run(args),
        Command::Config(ConfigCommand::Check { file, config }) => check(config.as_ref().unwrap_or(&file)),
        Command::Config(ConfigCommand::Schema) => schema(),
        Command::Import(command) => import::run(&command),
        Command::Init(args) => init::run(&args),
        Command::Saga(command) => ask::saga(command),
        Command::Services(args) => ask::services(&args),
        Command::Status(args) => up::client::status(&args),
        Command::Stop(args) => up::client::service("stop", &args),
        Command::Start(args) => up::client::service("start", &args),
        Command::Restart(args) => up::client::service("restart", &args),
        Command::Reload(args) => up::client::reload(&args),
        Command::Policies(args) => policies::show(&args),
        Command::Breaker(args) => policies::order(&args),
        Command::Lock(args) => lock::run(args),
        Command::Locks(args) => locks::run(&args),
        Command::Elect(args) => elect::run(args),
        Command::Elections(args) => elections::run(&args),
        Command::Cron(command) => cron::run(command),
        Command::Queue(command) => queue::run(command),
        Command::Store(command) => store::run(&command),
        Command::Guard(args) => guard::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<ConfigError>() {
            Some(mistakes) => {
                let color = std::io::IsTerminal::is_terminal(&std::io::stderr());
                eprint!("{}", mistakes.render(color));
                ExitCode::from(2)
            }
            None => {
                eprintln!("seawall: {}", whole(&error));
                ExitCode::FAILURE
            }
        },
    }
}

/// An error with its causes, each said once: some of them name their own cause already.
fn whole(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    text
}

fn check(file: &std::path::Path) -> anyhow::Result<()> {
    config::load::load(file)?;
    println!("{}: no mistakes", file.display());
    Ok(())
}

fn schema() -> anyhow::Result<()> {
    use std::io::Write;
    let text = serde_json::to_string_pretty(&schemars::schema_for!(config::Config))?;
    // A reader that closes the pipe early, as `head` does, has seen enough.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}
