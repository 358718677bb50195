//! `seawall queue`: jobs that are put once and done by whoever claims them; here by a command.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, StatusCode};
use rustix::process::Signal;
use seawall_coord::{Boot, Clock, Owner};
use seawall_discovery::{Control, ControlError};
use seawall_drain::{Signals, Stop};
use seawall_schedule::{ATTEMPTS, ItemId, ItemView, Place};
use seawall_types::{Period, ServiceName};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ask::Which;
use crate::lock::{Leased, code, margin, owner};
use crate::process;

#[derive(clap::Subcommand)]
pub(crate) enum QueueCommand {
    /// Put a job into a queue, once for each key.
    Put {
        /// The queue.
        queue: ServiceName,
        /// The key: the same again is the same job. 1 to 128 letters without blanks and `/`.
        key: ItemId,
        /// What is to be done, JSON.
        #[arg(long, default_value = "null")]
        data: String,
        /// How often it is tried before it is parked.
        #[arg(long, default_value_t = ATTEMPTS)]
        max_attempts: u32,
        #[command(flatten)]
        which: Which,
    },
    /// How many jobs are where; of one queue, the jobs.
    List {
        /// The queue.
        queue: Option<ServiceName>,
        /// Those that are pending, running, done or parked.
        #[arg(long, default_value = "pending", requires = "queue")]
        state: String,
        /// How many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        which: Which,
    },
    /// Let a parked job be tried again.
    Retry {
        /// The queue.
        queue: ServiceName,
        /// The job.
        key: ItemId,
        #[command(flatten)]
        which: Which,
    },
    /// Forget a parked job.
    Discard {
        /// The queue.
        queue: ServiceName,
        /// The job.
        key: ItemId,
        #[command(flatten)]
        which: Which,
    },
    /// Claim jobs, one after the other, and run a command for each.
    Work(WorkArgs),
}

#[derive(clap::Args)]
#[command(
    after_help = "The command's exit code says what becomes of the job: 0 done; 65 parked at once; any other, or a \
signal, tried again in a while, until it was tried often enough."
)]
pub(crate) struct WorkArgs {
    /// The queue.
    queue: ServiceName,
    /// How long a job stays claimed after this machine has died or cannot reach control; 1s to 1h.
    #[arg(long, default_value = "10s")]
    ttl: Period,
    /// Stop when there is nothing to do, instead of waiting for more.
    #[arg(long)]
    until_empty: bool,
    /// Who it is, for those who look. Default: host and process.
    #[arg(long)]
    worker: Option<Owner>,
    #[command(flatten)]
    which: Which,
    /// The command and its arguments. It finds the job in SEAWALL_JOB and SEAWALL_JOB_DATA (JSON), which attempt it is in
    /// SEAWALL_JOB_ATTEMPT, and a fencing token in SEAWALL_FENCING_TOKEN.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// The job cannot be done by trying again (`EX_DATAERR`).
const FOR_GOOD: i32 = 65;
/// How long one request for a job waits.
const WAIT: Duration = Duration::from_secs(20);
/// The longest pause before control is asked again that did not answer.
const PAUSE: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Totals {
    name: ServiceName,
    pending: usize,
    running: usize,
    done: usize,
    parked: usize,
}

pub(crate) fn run(command: QueueCommand) -> anyhow::Result<()> {
    match command {
        QueueCommand::Put { queue, key, data, max_attempts, which } => {
            let data: Value = serde_json::from_str(&data).with_context(|| format!("the data `{data}` is not JSON"))?;
            let body = serde_json::to_vec(&json!({ "data": data, "max_attempts": max_attempts }))?;
            let answer: Value = which.send(Method::PUT, &path(&queue, &key), body)?;
            println!("{key} is {}", answer["state"].as_str().unwrap_or("there"));
        }
        QueueCommand::List { queue: None, which, .. } => {
            let totals: Vec<Totals> = which.get("/v1/queues")?;
            println!("{:<24} {:>8} {:>8} {:>8} {:>8}", "QUEUE", "PENDING", "RUNNING", "DONE", "PARKED");
            for Totals { name, pending, running, done, parked } in totals {
                println!("{:<24} {pending:>8} {running:>8} {done:>8} {parked:>8}", name.as_str());
            }
        }
        QueueCommand::List { queue: Some(queue), state, limit, which } => {
            let known = Place::ALL.map(Place::as_str);
            if !known.contains(&&*state) {
                bail!("there is no state `{state}`; there are {}", known.join(", "));
            }
            let jobs: Vec<ItemView> = which.get(&format!("/v1/queues/{queue}/jobs?state={state}&limit={limit}"))?;
            println!("{:<32} {:<8} {:<22} {:<24} ERROR", "JOB", "ATTEMPTS", "PUT", "WORKER");
            for ItemView { id, item, .. } in jobs {
                let (put, error) = (format!("{:.0}", item.put), item.error.unwrap_or_default());
                println!("{:<32} {:<8} {put:<22} {:<24} {error}", id.as_str(), item.attempts, item.worker);
            }
        }
        QueueCommand::Retry { queue, key, which } => {
            which.tell(Method::POST, &format!("{}/retry", path(&queue, &key)), Vec::new())?;
            println!("{key} is pending");
        }
        QueueCommand::Discard { queue, key, which } => {
            which.tell(Method::DELETE, &path(&queue, &key), Vec::new())?;
            println!("{key} is gone");
        }
        QueueCommand::Work(args) => {
            let code = process::runtime()?.block_on(Box::pin(work(args)))?;
            std::process::exit(code)
        }
    }
    Ok(())
}

fn path(queue: &ServiceName, key: &ItemId) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    format!("/v1/queues/{queue}/jobs/{}", utf8_percent_encode(key.as_str(), NON_ALPHANUMERIC))
}

#[derive(Deserialize)]
struct Claimed {
    id: ItemId,
    data: Value,
    attempt: u32,
    claim: String,
    fence: u64,
}

/// A queue at a control node.
struct Worker {
    control: Control,
    args: WorkArgs,
    worker: Owner,
}

async fn work(args: WorkArgs) -> anyhow::Result<i32> {
    // Before anything is claimed: a signal that nobody listens for ends the process.
    let mut signals = Signals::listen().context("cannot listen for SIGTERM and SIGINT")?;
    let control = Control::new([args.which.addr()?]);
    let worker = args.worker.clone().unwrap_or_else(owner);
    let worker = Worker { control, args, worker };
    let mut pause = Duration::from_millis(100);
    loop {
        let claimed = tokio::select! {
            claimed = worker.claim() => claimed,
            stop = signals.recv() => return Ok(stop.exit_code().into()),
        };
        match claimed {
            Ok(Some(claimed)) => {
                pause = Duration::from_millis(100);
                if let Some(stop) = worker.attempt(&claimed, &mut signals).await? {
                    return Ok(stop.exit_code().into());
                }
                continue;
            }
            Ok(None) if worker.args.until_empty => return Ok(0),
            Ok(None) => continue,
            Err(error) if may_help(&error) => eprintln!("seawall: {error}; asking again"),
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())) => {}
            stop = signals.recv() => return Ok(stop.exit_code().into()),
        }
        pause = (pause * 2).min(PAUSE);
    }
}

/// Whether the same request may succeed later.
fn may_help(error: &ControlError) -> bool {
    match error {
        ControlError::Unreachable { .. } | ControlError::Broken(_) => true,
        ControlError::Refused { status, .. } => status.is_server_error(),
        ControlError::NotFound(_) => false,
    }
}

impl Worker {
    async fn claim(&self) -> Result<Option<Claimed>, ControlError> {
        let wait = if self.args.until_empty { Duration::ZERO } else { WAIT };
        let path = format!("/v1/queues/{}/claim?wait={}", self.args.queue, Period::from(wait));
        let body = json!({ "worker": self.worker, "ttl": self.args.ttl });
        let answer = self.send(&path, &body, wait + Duration::from_secs(10)).await?;
        if answer.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&answer).map(Some).map_err(|error| ControlError::Broken(error.to_string()))
    }

    async fn send(&self, path: &str, body: &Value, patience: Duration) -> Result<Bytes, ControlError> {
        self.control.send(Method::POST, path, body.to_string().into_bytes(), patience).await
    }

    /// Until when the command may run after a keep-alive that was sent then: a margin before others can have the job.
    fn until(&self, sent: Boot) -> Boot {
        let ttl = self.args.ttl.get();
        sent + ttl.mul_f64(0.99).saturating_sub(Duration::from_millis(2)).saturating_sub(margin(ttl) / 2)
    }

    /// Runs the command for one job, and says what became of it. The signal that was to stop all, if there was one.
    async fn attempt(&self, claimed: &Claimed, signals: &mut Signals) -> anyhow::Result<Option<Stop>> {
        let base = path(&self.args.queue, &claimed.id);
        let (told, mut kept) = watch::channel(None);
        let keeping = self.keep(&base, &claimed.claim, &told);
        tokio::pin!(keeping);
        // The claim may have been made long before it was answered; what counts is the first keep-alive.
        tokio::select! {
            () = &mut keeping => {
                eprintln!("seawall: the claim of {} was lost before the command was started", claimed.id);
                return Ok(None);
            }
            _ = kept.wait_for(Option::is_some) => {}
        }
        let first = (*kept.borrow()).unwrap_or_else(|| Clock::default().now());
        let (data, attempt, fence) = (claimed.data.to_string(), claimed.attempt.to_string(), claimed.fence.to_string());
        let words = [
            ("SEAWALL_QUEUE", Some(self.args.queue.as_str())),
            ("SEAWALL_JOB", Some(claimed.id.as_str())),
            ("SEAWALL_JOB_DATA", Some(&*data)),
            ("SEAWALL_JOB_ATTEMPT", Some(&*attempt)),
            ("SEAWALL_FENCING_TOKEN", Some(&*fence)),
        ];
        let mut leased = Leased::spawn(&self.args.command, &words, self.until(first))?;
        let mut stopped = None;
        let ended = loop {
            tokio::select! {
                biased;
                ended = leased.child.wait() => break Some(code(ended?)),
                () = &mut keeping => break None,
                Ok(()) = kept.changed() => {
                    if let Some(sent) = *kept.borrow_and_update() {
                        leased.allow(self.until(sent));
                    }
                }
                stop = signals.recv() => {
                    stopped = Some(stop);
                    leased.signal(Signal::TERM);
                }
            }
        };
        let Some(code) = ended else {
            eprintln!("seawall: the claim of {} is lost; the command is ended", claimed.id);
            leased.signal(Signal::TERM);
            let _ = tokio::time::timeout(margin(self.args.ttl.get()) / 4, leased.child.wait()).await;
            leased.kill();
            leased.child.wait().await?;
            return Ok(stopped);
        };
        let (verb, body) = match code {
            0 => ("complete", json!({ "claim": claimed.claim })),
            code => {
                let error = format!("the command has ended with {code}");
                ("fail", json!({ "claim": claimed.claim, "error": error, "retry": code != FOR_GOOD }))
            }
        };
        // It is kept alive until it is told; whether it was in time, the answer says.
        let late = async {
            keeping.await;
            tokio::time::sleep(self.args.ttl.get()).await;
        };
        let path = format!("{base}/{verb}");
        tokio::select! {
            told = self.tell(&path, &body) => match (told, code) {
                (Ok(()), 0) => println!("{} done", claimed.id),
                (Ok(()), code) => println!("{} failed ({code})", claimed.id),
                (Err(error), _) => eprintln!("seawall: what became of {} could not be told: {error}", claimed.id),
            },
            () = late => eprintln!("seawall: what became of {} could not be told in time", claimed.id),
        }
        Ok(stopped)
    }

    /// Keeps a claim alive, and tells when each answered keep-alive was sent; ends when the claim is lost, or may be.
    async fn keep(&self, base: &str, claim: &str, told: &watch::Sender<Option<Boot>>) {
        let ttl = self.args.ttl.get();
        let clock = Clock::default();
        let (mut last, began) = (None, Instant::now());
        loop {
            let sent = clock.now();
            let body = json!({ "claim": claim });
            match self.send(&format!("{base}/keep-alive"), &body, ttl / 3).await {
                Ok(_) => {
                    last = Some(sent);
                    told.send_replace(last);
                    tokio::time::sleep(ttl / 3).await;
                }
                Err(ControlError::Refused { status: StatusCode::GONE, .. }) => return,
                Err(error) => {
                    let over = last.map_or(began.elapsed() > ttl, |last| {
                        // Before the guard kills it: half of the margin is for the command to end by itself.
                        (self.until(last)).since(clock.now()) <= margin(ttl) / 4
                    });
                    if over {
                        return;
                    }
                    tracing::debug!(%error, "a keep-alive was not answered");
                    tokio::time::sleep((ttl / 20).mul_f64(0.5 + 0.5 * fastrand::f64())).await;
                }
            }
        }
    }

    /// Says what became of a job, again and again until it is known.
    async fn tell(&self, path: &str, body: &Value) -> Result<(), ControlError> {
        let mut pause = Duration::from_millis(50);
        loop {
            match self.send(path, body, Duration::from_secs(10)).await {
                Ok(_) => return Ok(()),
                Err(error) if may_help(&error) => tracing::debug!(%error, "not told yet"),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}
