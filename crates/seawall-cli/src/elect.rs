//! `seawall elect NAME -- COMMAND`: stands for election, runs COMMAND while it leads, ends it when it leads no more, and stands
//! again. The command runs as under `seawall lock`, and ends as early.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use seawall_coord::{
    AnyLocks, BackendError, ClaimError, ElectionName, HealthConfig, Owner, Session, SessionConfig, SessionError,
};
use seawall_drain::{Signals, Stop};
use seawall_types::Period;
use tokio::sync::watch;

use crate::backend::{self, Where};
use crate::lock::{self, BUSY, Ended, Held, UNAVAILABLE, say};
use crate::process;

#[derive(clap::Args)]
#[command(
    after_help = "Exit codes: the command's own; 128 and the signal's number if it died by one, or if this was stopped while it \
did not lead; 69 control does not answer at the beginning; 75 it did not lead within --wait."
)]
pub(crate) struct Args {
    /// The election: up to 255 bytes, no `/`.
    name: ElectionName,
    /// How long others wait after this machine has died or cannot reach control; 1s to 1h.
    #[arg(long, default_value = "10s")]
    ttl: Period,
    /// How long to wait for the leadership, each time. Default: without end.
    #[arg(long)]
    wait: Option<Period>,
    /// Who it is, for those who look and for a hand-over. Default: host and process.
    #[arg(long)]
    owner: Option<Owner>,
    /// What others see of the leader, say its address. Default: the command.
    #[arg(long)]
    info: Option<String>,
    /// Who of the candidates leads next: the highest, and among equals who has stood longest. A leader stays, whoever comes,
    /// but for --preempt. Where the backend lists no candidates, as Redlock and postgres+advisory, 0 is the only one.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    priority: i32,
    /// End COMMAND and hand over once a candidate of a higher priority has stood for this long; 100ms or more. Default: never.
    #[arg(long, value_name = "TIME", value_parser = preempt)]
    preempt: Option<Period>,
    /// Stand and lead only while this shell command exits with 0. It is run again and again; one that takes longer than 2 s has
    /// failed. Who is not fit ends COMMAND and resigns, and rests for longer each time before standing again.
    #[arg(long, value_name = "CHECK")]
    health: Option<String>,
    /// From the end of one check to the next.
    #[arg(long, default_value = "2s", requires = "health", value_name = "TIME")]
    health_interval: Period,
    /// How many checks have to fail in a row.
    #[arg(long, default_value_t = 3, requires = "health", value_name = "N")]
    health_failures: u32,
    #[command(flatten)]
    place: Where,
    /// The command and its arguments. It finds the term in SEAWALL_TERM and in SEAWALL_FENCING_TOKEN, and the election's name
    /// in SEAWALL_ELECTION.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// How long one request for the leadership waits without `--wait`; then there is another.
const CAMPAIGN: Duration = Duration::from_secs(3600);
/// The longest pause before it stands again when control does not answer.
const PAUSE: Duration = Duration::from_secs(1);

fn preempt(text: &str) -> Result<Period, String> {
    let period: Period = text.parse()?;
    if period.get() < Duration::from_millis(100) {
        return Err("the leader would ask who stands all the time: 100ms is the shortest".to_owned());
    }
    Ok(period)
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = process::runtime()?;
    let code = runtime.block_on(Box::pin(stand(args)))?;
    std::process::exit(code)
}

/// What became of one session.
enum Stood {
    /// This is the end.
    Exit(i32),
    /// Control has not answered, or the session is lost.
    Again(String),
}

async fn stand(args: Args) -> anyhow::Result<i32> {
    // Before anything is held: a signal that nobody listens for ends the process.
    let mut signals = Signals::listen().context("cannot listen for SIGTERM and SIGINT")?;
    let control = match args.place.open(false).await {
        Ok(backend) => backend,
        Err(backend::Unopened::Down(why)) => return Ok(say(UNAVAILABLE, &why)),
        Err(backend::Unopened::Wrong(error)) => return Err(error),
    };
    let config = lock::config(args.owner.clone(), args.ttl.get());
    let mut health = watch_health(&args);
    let mut begun = false;
    let mut pause = Duration::from_millis(20);
    loop {
        let why = match open(&control, &config, &mut signals).await {
            Ok(session) => {
                begun = true;
                match lead(&args, session, &mut health, &mut signals).await? {
                    Stood::Exit(code) => return Ok(code),
                    Stood::Again(why) => {
                        pause = Duration::from_millis(20);
                        why
                    }
                }
            }
            Err(Unopened::Stopped(stop)) => return Ok(stop.exit_code().into()),
            Err(Unopened::Error(SessionError::Backend(error))) if error.retryable() && !begun => {
                return Ok(say(UNAVAILABLE, &error));
            }
            Err(Unopened::Error(SessionError::Backend(error))) if error.retryable() => error.to_string(),
            Err(Unopened::Error(error @ SessionError::Late { .. })) => error.to_string(),
            Err(Unopened::Error(error)) => return Err(error.into()),
        };
        tracing::debug!(why, "stands again");
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())) => {}
            stop = signals.recv() => return Ok(stop.exit_code().into()),
        }
        pause = (pause * 2).min(PAUSE);
    }
}

enum Unopened {
    Stopped(Stop),
    Error(SessionError),
}

async fn open(
    control: &AnyLocks,
    config: &SessionConfig,
    signals: &mut Signals,
) -> Result<Session<AnyLocks>, Unopened> {
    tokio::select! {
        session = Session::open(control.clone(), config.clone()) => session.map_err(Unopened::Error),
        stop = signals.recv() => Err(Unopened::Stopped(stop)),
    }
}

/// Whether this is fit to lead; always, without a check.
fn watch_health(args: &Args) -> watch::Receiver<bool> {
    let (told, health) = watch::channel(true);
    if let Some(check) = args.health.clone() {
        told.send_replace(false);
        let (interval, failures) = (args.health_interval.get(), args.health_failures);
        let config = HealthConfig { interval, failures, ..HealthConfig::default() };
        tokio::spawn(seawall_coord::watch_health(config, async move || passes(&check).await, told));
    }
    health
}

/// Runs a check; one that is given up is killed.
async fn passes(check: &str) -> bool {
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", check]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.status().await.is_ok_and(|status| status.success())
}

/// Resolves when the check says so.
async fn says(health: &mut watch::Receiver<bool>, fit: bool) {
    if health.wait_for(|now| *now == fit).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Stands and leads for as long as the session lives.
async fn lead(
    args: &Args,
    session: Session<AnyLocks>,
    health: &mut watch::Receiver<bool>,
    signals: &mut Signals,
) -> anyhow::Result<Stood> {
    let info = args.info.clone().unwrap_or_else(|| lock::shown(&args.command));
    let election = session.election(args.name.clone()).info(info).priority(args.priority);
    let what = format!("the leadership of `{}`", args.name);
    loop {
        let wait = args.wait.map_or(CAMPAIGN, Period::get);
        let mut unfit = health.clone();
        let campaign = async {
            says(health, true).await;
            tokio::select! {
                campaigned = election.campaign(wait) => Some(campaigned),
                // The place is given up in the background.
                () = says(&mut unfit, false) => None,
            }
        };
        let campaigned = tokio::select! {
            campaigned = campaign => match campaigned {
                Some(campaigned) => campaigned,
                None => continue,
            },
            stop = signals.recv() => {
                lock::close(session).await;
                return Ok(Stood::Exit(stop.exit_code().into()));
            }
        };
        let leadership = match campaigned {
            Ok(leadership) => leadership,
            Err(ClaimError::TimedOut { .. } | ClaimError::Removed) if args.wait.is_none() => continue,
            Err(ClaimError::Busy { holder } | ClaimError::TimedOut { holder, .. }) => {
                lock::close(session).await;
                let leader = holder.map(|leader| {
                    let term = leader.fence.map(|term| format!(" in term {term}")).unwrap_or_default();
                    format!(": {} leads{term}", leader.owner)
                });
                let leader = leader.unwrap_or_default();
                return Ok(Stood::Exit(say(
                    BUSY,
                    &format!("election `{}` was not won in {wait:?}{leader}", args.name),
                )));
            }
            Err(ClaimError::Backend(error @ BackendError::Refused { .. })) => return Err(error.into()),
            Err(error) => return Ok(Stood::Again(error.to_string())),
        };
        let term = leadership.guard().token().map(|term| term.to_string());
        let term = term.as_deref();
        let name = Some(args.name.as_str());
        let words = [("SEAWALL_ELECTION", name), ("SEAWALL_TERM", term), ("SEAWALL_FENCING_TOKEN", term)];
        let held = Held { guard: leadership.guard(), ttl: args.ttl.get() };
        let mut above = None;
        let given_up = async {
            let outranked = async {
                match args.preempt {
                    Some(period) => election.outranked(period.get()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = says(health, false) => "is given up: the check of its health fails".to_owned(),
                next = outranked => {
                    let why = format!("is handed over to {next}, of priority {}", next.priority);
                    above = Some(next);
                    why
                }
            }
        };
        match lock::under(&held, &what, &args.command, &words, given_up, signals).await? {
            Ended::Itself(code) => {
                if let Err(error) = leadership.resign().await {
                    eprintln!("seawall: the resignation from `{}` was not confirmed: {error}", args.name);
                }
                lock::close(session).await;
                return Ok(Stood::Exit(code));
            }
            Ended::GivenUp => {
                if let Some(above) = above {
                    // If that one has gone meanwhile, this one has resigned.
                    drop(leadership.hand_over(&above.session).await);
                } else if let Err(error) = leadership.resign().await {
                    eprintln!("seawall: the resignation from `{}` was not confirmed: {error}", args.name);
                }
            }
            Ended::Lost { stopped: Some(stop) } => return Ok(Stood::Exit(stop.exit_code().into())),
            Ended::Lost { stopped: None } => {
                eprintln!("seawall: stands for `{}` again", args.name);
                drop(leadership);
            }
        }
        if let Err(why) = session.check() {
            return Ok(Stood::Again(why.to_string()));
        }
    }
}
