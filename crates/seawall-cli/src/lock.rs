//! `seawall lock NAME -- COMMAND`: runs COMMAND while it holds the lock NAME, and ends it when the lock is lost.
//!
//! The command runs under `seawall guard --group --lease`, a process of its own. So it is dead before the lock can go to
//! somebody else even when this process is stopped (Ctrl-Z, SIGSTOP) or killed with -9: the guard knows until when the
//! command may run, and hears of its parent's death.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use seawall_coord::{
    AnyLocks, BackendError, Boot, ClaimError, Clock, Guard, LockName, Owner, Session, SessionConfig, SessionError,
};
use seawall_drain::{Signals, Stop};
use seawall_types::Period;
use tokio::process::Child;

use crate::backend::{Unopened, Where};
use crate::{guard, process};

#[derive(clap::Args)]
#[command(
    after_help = "Exit codes: the command's own; 128 and the signal's number if it died by one; 69 control, or the backend, does \
not answer; 70 the lock was lost and the command ended; 75 the lock was not free in time."
)]
pub(crate) struct Args {
    /// The lock: up to 255 bytes, no `/`.
    name: LockName,
    /// How long others wait after this machine has died or cannot reach control; 1s to 1h.
    #[arg(long, default_value = "10s")]
    ttl: Period,
    /// How long to wait for the lock.
    #[arg(long, default_value = "30s", conflicts_with = "try")]
    wait: Period,
    /// Do not wait: run the command only if the lock is free.
    #[arg(long)]
    r#try: bool,
    /// Hold it to read: together with others who read.
    #[arg(long, group = "how")]
    read: bool,
    /// Hold it alone, as without a word.
    #[arg(long, group = "how")]
    write: bool,
    /// Hold some of so many permits of it; everybody has to say the same number.
    #[arg(long, group = "how", value_name = "N")]
    permits: Option<u32>,
    /// How many of the permits.
    #[arg(long, default_value_t = 1, requires = "permits", value_name = "K")]
    take: u32,
    /// How long the next holder waits if this one is lost instead of releasing the lock, for what the command has under way; up
    /// to 60s.
    #[arg(long, conflicts_with_all = ["read", "permits"])]
    delay: Option<Period>,
    /// Who it is, for those who look. Default: host and process.
    #[arg(long)]
    owner: Option<Owner>,
    #[command(flatten)]
    place: Where,
    /// The command and its arguments. It finds its fencing token in SEAWALL_FENCING_TOKEN, if the backend has any, and the lock's
    /// name in SEAWALL_LOCK.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// Control does not answer (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: i32 = 69;
/// The lock was lost (`EX_SOFTWARE`).
const LOST: i32 = 70;
/// The lock was not free (`EX_TEMPFAIL`).
pub(crate) const BUSY: i32 = 75;

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = process::runtime()?;
    // Ends by itself, when everything is given back.
    let code = runtime.block_on(Box::pin(hold(args)))?;
    std::process::exit(code)
}

/// A session for a command.
pub(crate) fn config(who: Option<Owner>, ttl: Duration) -> SessionConfig {
    SessionConfig { margin: Some(margin(ttl)), ..SessionConfig::new(who.unwrap_or_else(owner)).ttl(ttl) }
}

pub(crate) fn owner() -> Owner {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("{}-{}", host.trim(), std::process::id());
    Owner::try_new(&name).or_else(|_| Owner::try_new("somebody")).expect("a valid name")
}

async fn hold(args: Args) -> anyhow::Result<i32> {
    // Before anything is held: a signal that nobody listens for ends the process.
    let mut signals = Signals::listen().context("cannot listen for SIGTERM and SIGINT")?;
    let ttl = args.ttl.get();
    let config = config(args.owner.clone(), ttl);
    let manner = args.read || args.permits.is_some() || args.delay.is_some();
    let backend = match args.place.open(manner).await {
        Ok(backend) => backend,
        Err(Unopened::Down(why)) => return Ok(say(UNAVAILABLE, &why)),
        Err(Unopened::Wrong(error)) => return Err(error),
    };
    let session = match Session::open(backend, config).await {
        Ok(session) => session,
        Err(SessionError::Backend(error)) if error.retryable() => return Ok(say(UNAVAILABLE, &error)),
        Err(error) => return Err(error.into()),
    };
    let wait = if args.r#try { Duration::ZERO } else { args.wait.get() };
    let claimed = tokio::select! {
        claimed = claim(&session, &args, wait) => claimed,
        stop = signals.recv() => {
            close(session).await;
            return Ok(stop.exit_code().into());
        }
    };
    let held = match claimed {
        Ok(held) => held,
        Err(error) => {
            close(session).await;
            let code = match &error {
                ClaimError::Busy { .. } | ClaimError::TimedOut { .. } => BUSY,
                ClaimError::Lost(_) | ClaimError::Removed => LOST,
                ClaimError::Backend(BackendError::Refused { .. }) => 1,
                ClaimError::Unknown(_) | ClaimError::Backend(_) => UNAVAILABLE,
            };
            return Ok(say(code, &format!("lock `{}`: {error}", args.name)));
        }
    };
    let fence = held.token().map(|fence| fence.to_string());
    let words = [("SEAWALL_LOCK", Some(args.name.as_str())), ("SEAWALL_FENCING_TOKEN", fence.as_deref())];
    let what = format!("lock `{}`", args.name);
    let code =
        match under(&Held { guard: &held, ttl }, &what, &args.command, &words, std::future::pending(), &mut signals)
            .await?
        {
            Ended::Itself(code) => {
                if let Err(error) = held.release().await {
                    eprintln!("seawall: the release of `{}` was not confirmed: {error}", args.name);
                }
                code
            }
            Ended::Lost { .. } | Ended::GivenUp => {
                drop(held);
                LOST
            }
        };
    close(session).await;
    Ok(code)
}

/// Claims the lock in the manner that was asked for.
async fn claim(session: &Session<AnyLocks>, args: &Args, wait: Duration) -> Result<Guard<AnyLocks>, ClaimError> {
    let (name, info) = (args.name.clone(), shown(&args.command));
    if let Some(limit) = args.permits {
        return session.semaphore(name, limit).info(info).acquire_within(args.take, wait).await;
    }
    if args.read {
        return session.rw_lock(name).info(info).read_within(wait).await;
    }
    let lock = session.lock(name).info(info);
    match args.delay {
        Some(delay) => lock.delay(delay.get()).acquire_within(wait).await,
        None => lock.acquire_within(wait).await,
    }
}

/// How a command ended.
pub(crate) enum Ended {
    /// By itself, or by a signal that was passed on: its exit code.
    Itself(i32),
    /// Because what it ran under was lost.
    Lost {
        /// Whether it had been asked to stop before.
        stopped: Option<Stop>,
    },
    /// Because it was to be given up.
    GivenUp,
}

/// How long a command has for ending by itself when what it runs under is given up, and not lost.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What a command runs under.
pub(crate) struct Held<'a> {
    /// Held.
    pub(crate) guard: &'a Guard<AnyLocks>,
    /// The time to live of its session.
    pub(crate) ttl: Duration,
}

/// How long before the end of a session the command has to be told: half of it is for it to end by SIGTERM, the other half
/// for whatever comes late.
pub(crate) fn margin(ttl: Duration) -> Duration {
    (ttl / 5).max(Duration::from_millis(50))
}

/// A variable of a command's environment. One without a value is taken out: it would be that of another `seawall lock` around this.
pub(crate) type Word<'a> = (&'static str, Option<&'a str>);

/// Runs a command for as long as this is held, and ends it when it is lost, or to be given up. Signals are passed on to it.
pub(crate) async fn under(
    held: &Held<'_>,
    what: &str,
    command: &[String],
    words: &[Word<'_>],
    give_up: impl Future<Output = String>,
    signals: &mut Signals,
) -> anyhow::Result<Ended> {
    let mut give_up = std::pin::pin!(give_up);
    let mut gives_up: Option<tokio::time::Instant> = None;
    let Held { guard: held, ttl } = *held;
    let margin = margin(ttl);
    // The clock is read first, so that it is none too long.
    let may_run_until = || Clock::default().now() + held.remaining() + margin / 2;
    let mut leased = Leased::spawn(command, words, may_run_until())?;
    let beat = ttl / 20;
    let mut stopped = None;
    let (why, until) = loop {
        let until = may_run_until();
        if held.check().is_ok() {
            leased.allow(until);
        }
        tokio::select! {
            biased;
            why = held.lost() => break (why, until),
            ended = leased.child.wait() => {
                let ended = ended?;
                if gives_up.is_none() || stopped.is_some() {
                    return Ok(Ended::Itself(code(ended)));
                }
                // What it has started is not to go on either.
                leased.kill();
                return Ok(Ended::GivenUp);
            }
            why = &mut give_up, if gives_up.is_none() => {
                eprintln!("seawall: {what} {why}; the command is ended");
                gives_up = Some(tokio::time::Instant::now() + GIVE_UP);
                leased.signal(Signal::TERM);
            }
            () = tokio::time::sleep_until(gives_up.unwrap_or_else(tokio::time::Instant::now)), if gives_up.is_some() => {
                leased.kill();
                gives_up = Some(tokio::time::Instant::now() + GIVE_UP);
            }
            stop = signals.recv() => {
                stopped = Some(stop);
                leased.signal(Signal::TERM);
            }
            () = tokio::time::sleep(beat) => {}
        }
    };
    eprintln!("seawall: {what} is lost: {why}; the command is ended");
    // What was taken away by force is somebody else's already; there is only less patience left.
    let patience = until.since(Clock::default().now()).min(margin / 2);
    leased.signal(Signal::TERM);
    let _ = tokio::time::timeout(patience, leased.child.wait()).await;
    leased.kill();
    leased.child.wait().await?;
    Ok(Ended::Lost { stopped })
}

pub(crate) fn say(code: i32, what: &impl std::fmt::Display) -> i32 {
    eprintln!("seawall: {what}");
    code
}

/// The command as others see it, of bounded length.
pub(crate) fn shown(command: &[String]) -> String {
    command.join(" ").chars().take(200).collect()
}

pub(crate) fn code(ended: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or(0))
}

/// What is not confirmed ends by its time to live.
pub(crate) async fn close(session: Session<AnyLocks>) {
    if let Err(error) = session.close().await {
        eprintln!("seawall: the end of the session was not confirmed, it ends by itself: {error}");
    }
}

/// The command under its guard.
pub(crate) struct Leased {
    /// The guard.
    pub(crate) child: Child,
    pipe: std::fs::File,
}

impl Leased {
    /// Starts it; it may run until then.
    pub(crate) fn spawn(command: &[String], words: &[Word<'_>], until: Boot) -> anyhow::Result<Self> {
        // Inherited by the guard, which opens it anew; this end is not.
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).context("no pipe for the guard")?;
        rustix::io::fcntl_setfd(&write, FdFlags::CLOEXEC)?;
        let mut child = tokio::process::Command::new(std::env::current_exe()?);
        let mut call = guard::words(std::process::id(), true);
        let at = call.len() - 1;
        call.insert(at, format!("--lease={}", read.as_raw_fd()));
        // Of a group of its own, so that all of it can be ended, and Ctrl-C reaches this process alone.
        child.args(call).args(command).process_group(0);
        for (name, value) in words {
            match value {
                Some(value) => child.env(name, value),
                None => child.env_remove(name),
            };
        }
        // Before it starts: this process may be stopped right after.
        let mut pipe = std::fs::File::from(write);
        pipe.write_all(&guard::moment(until))?;
        let child = child.spawn().context("cannot start the guard of the command")?;
        Ok(Self { child, pipe })
    }

    /// Lets the command run until then.
    pub(crate) fn allow(&mut self, until: Boot) {
        // A pipe that is full has a guard that is stopped; it will find later moments when it goes on, or none.
        let _ = self.pipe.write_all(&guard::moment(until));
    }

    fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()))
    }

    /// Sends a signal to the guard, which passes it on to the command.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Ends the whole group.
    pub(crate) fn kill(&self) {
        if let Some(pid) = self.pid() {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}
