//! `seawall cron`: scheduled jobs of a control node.

use anyhow::{Context, bail};
use http::Method;
use jiff::Timestamp;
use seawall_schedule::{CatchUp, JobConfig, JobView, OnUnknown, Overlap, RunView, State};
use seawall_types::{Call, Period, ServiceName};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde_json::Value;

use crate::ask::Which;

#[derive(clap::Subcommand)]
pub(crate) enum CronCommand {
    /// Add a job, or replace one: `seawall cron add nightly "0 3 * * *" --zone Europe/Berlin call POST order/reports`.
    Add(Box<AddArgs>),
    /// Every job: when it is due next, and how its last run ended.
    List {
        #[command(flatten)]
        which: Which,
    },
    /// The runs of a job, the latest first.
    History {
        /// The job.
        name: ServiceName,
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: usize,
        #[command(flatten)]
        which: Which,
    },
    /// Remove a job and its history.
    Remove {
        /// The job.
        name: ServiceName,
        #[command(flatten)]
        which: Which,
    },
    /// Run a job now, beside its schedule; exit code 1 unless it is done.
    RunNow {
        /// The job.
        name: ServiceName,
        /// How long to wait for its end.
        #[arg(long, default_value = "60s")]
        wait: Period,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(clap::Args)]
pub(crate) struct AddArgs {
    /// Its name.
    name: ServiceName,
    /// When: a cron expression of 5 fields, or 6 with seconds in front, `every 15m`, or `at 2026-12-24T18:00:00Z`.
    when: String,
    /// The time zone of a cron expression. Default UTC.
    #[arg(long)]
    zone: Option<String>,
    /// What is done about times that have passed: skip, latest, all.
    #[arg(long, value_parser = word::<CatchUp>, default_value = "latest")]
    catch_up: CatchUp,
    /// How many times `all` catches up at most.
    #[arg(long)]
    catch_up_max: Option<u32>,
    /// Times that have passed longer ago are not caught up.
    #[arg(long)]
    catch_up_age: Option<Period>,
    /// What happens when the run before is still going: forbid, allow, replace.
    #[arg(long, value_parser = word::<Overlap>, default_value = "forbid")]
    overlap: Overlap,
    /// What becomes of a run that may have been done or not: rerun, fail.
    #[arg(long, value_parser = word::<OnUnknown>, default_value = "rerun")]
    on_unknown: OnUnknown,
    /// How long a run may take, all its attempts together.
    #[arg(long)]
    deadline: Option<Period>,
    /// Raise an alarm when no run has succeeded for so long.
    #[arg(long)]
    alarm_after: Option<Period>,
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Call a service through the registry.
    Call {
        /// GET, POST, PUT, PATCH or DELETE.
        method: String,
        /// The service and the path: `order/reports`.
        target: String,
        /// The body, JSON.
        #[arg(long)]
        body: Option<String>,
    },
}

/// A word of the file's.
fn word<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    let word: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
    T::deserialize(word).map_err(|error| error.to_string())
}

pub(crate) fn run(command: CronCommand) -> anyhow::Result<()> {
    match command {
        CronCommand::Add(args) => add(*args),
        CronCommand::List { which } => list(&which),
        CronCommand::History { name, limit, which } => history(&which, &name, limit),
        CronCommand::Remove { name, which } => {
            which.tell(Method::DELETE, &format!("/v1/cron/{name}"), Vec::new())?;
            println!("{name} is removed");
            Ok(())
        }
        CronCommand::RunNow { name, wait, which } => run_now(&which, &name, wait),
    }
}

fn add(args: AddArgs) -> anyhow::Result<()> {
    let What::Call { method, target, body } = args.what;
    let call: Call = format!("{method} {target}").parse().map_err(anyhow::Error::msg)?;
    let body: Option<Value> = match body {
        Some(text) => Some(serde_json::from_str(&text).with_context(|| format!("the body `{text}` is not JSON"))?),
        None => None,
    };
    let defaults = JobConfig::new(args.when);
    let job = JobConfig {
        zone: args.zone,
        call: Some(call),
        body,
        catch_up: args.catch_up,
        catch_up_max: args.catch_up_max.unwrap_or(defaults.catch_up_max),
        catch_up_age: args.catch_up_age,
        overlap: args.overlap,
        on_unknown: args.on_unknown,
        deadline: args.deadline.unwrap_or(defaults.deadline),
        alarm_after: args.alarm_after,
        ..defaults
    };
    let path = format!("/v1/cron/{}", args.name);
    let job: JobView = args.which.send(Method::PUT, &path, serde_json::to_vec(&job)?)?;
    println!("{}: next {}", job.name, time(job.next));
    Ok(())
}

fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"))
}

fn list(which: &Which) -> anyhow::Result<()> {
    let jobs: Vec<JobView> = which.get("/v1/cron")?;
    println!("{:<20} {:<18} {:<18} {:<22} {:<30} CALL", "JOB", "WHEN", "ZONE", "NEXT", "LAST");
    for job in jobs {
        let last = job.last.as_ref().map_or_else(
            || "-".to_owned(),
            |last| format!("{} {}", last.record.state.as_str(), time(last.record.ended.or(last.record.started))),
        );
        let zone = job.config.zone.as_deref().unwrap_or("-");
        let call = job.config.call.as_ref().map(ToString::to_string).unwrap_or_default();
        let alarm = if job.alarm { "  ALARM" } else { "" };
        let (name, when, next) = (job.name.as_str(), &job.config.when, time(job.next));
        println!("{name:<20} {when:<18} {zone:<18} {next:<22} {last:<30} {call}{alarm}");
    }
    Ok(())
}

fn history(which: &Which, name: &ServiceName, limit: usize) -> anyhow::Result<()> {
    let runs: Vec<RunView> = which.get(&format!("/v1/cron/{name}/runs?limit={limit}"))?;
    println!("{:<24} {:<18} {:<8} {:<22} {:<10} ERROR", "FOR", "RUN", "STATE", "STARTED", "TOOK");
    for RunView { id, slot, record } in runs {
        let took = match (record.started, record.ended) {
            (Some(from), Some(to)) => format!("{} ms", to.as_millisecond() - from.as_millisecond()),
            _ => String::new(),
        };
        let (state, started) = (record.state.as_str(), time(record.started));
        let error = record.error.unwrap_or_default();
        println!("{:<24} {id:<18} {state:<8} {started:<22} {took:<10} {error}", slot.to_string());
    }
    Ok(())
}

fn run_now(which: &Which, name: &ServiceName, wait: Period) -> anyhow::Result<()> {
    let path = format!("/v1/cron/{name}/runs");
    let mut run: RunView = which.send(Method::POST, &path, Vec::new())?;
    let until = std::time::Instant::now() + wait.get();
    while !run.record.state.is_final() {
        if std::time::Instant::now() >= until {
            bail!(
                "run {} of {name} is {} after {wait}; `seawall cron history {name}` shows it",
                run.id,
                run.record.state.as_str()
            );
        }
        run = which.get(&format!("{path}/{}?wait=5s", run.id))?;
    }
    let error = run.record.error.as_deref().unwrap_or("no reason was given");
    match run.record.state {
        State::Done => println!("run {} of {name} is done", run.id),
        state => bail!("run {} of {name} has ended as {}: {error}", run.id, state.as_str()),
    }
    Ok(())
}
