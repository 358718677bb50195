//! A process that takes a lock, or a leadership, again and again, writes while it holds the lock, and records what it believes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use seawall_coord::{
    AnyLocks, ClaimError, ElectionName, Guard, Leadership, LockName, LocksUrl, Need, Owner, Session, SessionConfig,
};
use seawall_histories::{Append, Event, Line, Moment, Outcome, Recorder, What, read};
use tokio::time::sleep;

/// How long a session lives without a keep-alive: what every backend allows.
pub(crate) const TTL: Duration = Duration::from_secs(2);

/// By a clock that no jump of the wall's moves: asked of the kernel, past every library.
pub(crate) fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    Moment(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
}

/// A file that asks whoever is about to write to say so, and what it becomes then, with the process' number.
pub(crate) const BAIT: &str = "bait";
pub(crate) const CAUGHT: &str = "caught-";
/// A file that says that all is well: whoever asks now waits for as long as it takes.
pub(crate) const CALM: &str = "calm";
/// A file that asks all to end when they have what they ask for.
pub(crate) const STOP: &str = "stop";
/// How long it waits for being stopped before a write.
const LINGER: Duration = Duration::from_millis(500);
/// Longer than anybody may have to wait when all is well.
const PATIENT: Duration = Duration::from_secs(60);

struct Holder {
    name: String,
    dir: PathBuf,
    events: Recorder,
    appends: File,
    fenced: File,
    unfenced: File,
    values: u64,
}

pub(crate) fn append_to(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).read(true).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// Until it is told to stop, or killed.
pub(crate) async fn live(url: &str, name: &str, dir: &Path) -> anyhow::Result<()> {
    let url: LocksUrl = url.parse()?;
    let mut holder = Holder {
        name: name.to_owned(),
        dir: dir.to_owned(),
        events: Recorder::lines(append_to(&dir.join(format!("{name}.events")))?),
        appends: append_to(&dir.join(format!("{name}.appends")))?,
        fenced: append_to(&dir.join("fenced"))?,
        unfenced: append_to(&dir.join("unfenced"))?,
        values: 0,
    };
    let mut attempt = 0;
    while !dir.join(STOP).exists() {
        let Ok(backend) = AnyLocks::open(&url, Need::Best).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let config = SessionConfig::new(Owner::try_new(name)?).ttl(TTL);
        let Ok(session) = Session::open(backend, config).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        while session.check().is_ok() && !dir.join(STOP).exists() {
            attempt += 1;
            holder.take(&session, attempt).await?;
            sleep(Duration::from_millis(fastrand::u64(0..20))).await;
        }
        let _ = session.close().await;
    }
    Ok(())
}

/// What it has got.
enum Held {
    Lock(Guard<AnyLocks>),
    Leads(Leadership<AnyLocks>),
}

impl Held {
    fn guard(&self) -> &Guard<AnyLocks> {
        match self {
            Self::Lock(guard) => guard,
            Self::Leads(leadership) => leadership.guard(),
        }
    }

    /// What is not confirmed goes with the session.
    async fn give_back(self) {
        let _ = match self {
            Self::Lock(guard) => guard.release().await,
            Self::Leads(leadership) => leadership.resign().await,
        };
    }
}

/// Every third time it is the leadership. It writes only under the lock.
fn leads(attempt: u64) -> bool {
    attempt.is_multiple_of(3)
}

impl Holder {
    fn event(&self, attempt: u64, what: What) -> Event {
        let lock = if leads(attempt) { "leader" } else { "chaos" };
        Event { at: now(), process: self.name.clone(), lock: lock.to_owned(), attempt, what }
    }

    fn record(&self, attempt: u64, what: What) {
        self.events.record(self.event(attempt, what));
    }

    async fn ask(&self, session: &Session<AnyLocks>, attempt: u64) -> Result<Held, ClaimError> {
        let calm = self.dir.join(CALM).exists();
        let patience = if calm { PATIENT } else { Duration::from_millis(fastrand::u64(500..5_000)) };
        if leads(attempt) {
            let name = ElectionName::try_new("leader").expect("a name");
            return session.election(name).campaign(patience).await.map(Held::Leads);
        }
        let name = LockName::try_new("chaos").expect("a name");
        session.lock(name).acquire_within(patience).await.map(Held::Lock)
    }

    async fn take(&mut self, session: &Session<AnyLocks>, attempt: u64) -> anyhow::Result<()> {
        self.record(attempt, What::Asks);
        let held = match self.ask(session, attempt).await {
            Ok(held) => held,
            Err(error) => {
                self.record(attempt, What::Failed { why: error.to_string() });
                return Ok(());
            }
        };
        let fence = held.guard().token().map(seawall_coord::Fence::get);
        self.record(attempt, What::Acquired { fence, until: now().plus(held.guard().remaining()) });
        let (events, lost) = (self.events.clone(), self.event(attempt, What::Releases));
        let holds = {
            // Beside the work, which looks only now and then and is not stopped by it.
            let loss = async {
                let why = held.guard().lost().await.to_string();
                events.record(Event { at: now(), what: What::Lost { why }, ..lost });
            };
            let work = self.work(held.guard(), attempt);
            tokio::pin!(work, loss);
            tokio::select! {
                biased;
                () = &mut loss => work.await?,
                holds = &mut work => holds?,
            }
        };
        if holds {
            self.record(attempt, What::Releases);
            held.give_back().await;
        }
        Ok(())
    }

    /// Whether it still holds what it had.
    async fn work(&mut self, guard: &Guard<AnyLocks>, attempt: u64) -> anyhow::Result<bool> {
        for _ in 0..fastrand::usize(1..8) {
            match guard.check() {
                Ok(remaining) => self.record(attempt, What::Sure { until: now().plus(remaining) }),
                Err(why) => {
                    self.record(attempt, What::Lost { why: why.to_string() });
                    return Ok(false);
                }
            }
            // Between the last look and the write: the gap that no lock closes.
            sleep(Duration::from_millis(fastrand::u64(0..10))).await;
            if !leads(attempt) {
                self.linger_if_baited().await;
                self.append(guard, attempt)?;
            }
        }
        Ok(true)
    }

    /// Says that it is about to write, if that is asked for, and gives time to be stopped.
    async fn linger_if_baited(&self) {
        if std::fs::rename(self.dir.join(BAIT), self.dir.join(format!("{CAUGHT}{}", std::process::id()))).is_ok() {
            sleep(LINGER).await;
        }
    }

    fn append(&mut self, guard: &Guard<AnyLocks>, attempt: u64) -> anyhow::Result<()> {
        self.values += 1;
        // By its first part it is known which holding of the lock wrote it.
        let value = format!("{}.{attempt}-{}", self.name, self.values);
        let Some(fence) = guard.token().map(seawall_coord::Fence::get) else {
            return write_line(&mut self.unfenced, &Line { fence: 0, value });
        };
        let mut append = Append { process: self.name.clone(), fence, value, at: now(), outcome: Outcome::Unknown };
        // First as unknown: it may be killed before it knows.
        write_line(&mut self.appends, &append)?;
        let line = Line { fence, value: append.value.clone() };
        write_line(&mut self.unfenced, &line)?;
        append.outcome = if guarded(&mut self.fenced, &line)? { Outcome::Done } else { Outcome::Refused };
        write_line(&mut self.appends, &append)
    }
}

/// In one write, so that no line is half there when the process is killed.
pub(crate) fn write_line(file: &mut File, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(file.write_all(&line)?)
}

/// A write that a register refuses which has seen a larger token. All of it under the file's lock.
fn guarded(file: &mut File, line: &Line) -> anyhow::Result<bool> {
    flock(&*file, FlockOperation::LockExclusive)?;
    let mut text = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut text)?;
    let lines: Vec<Line> = read(text.as_bytes()).map_err(anyhow::Error::msg)?;
    let taken = lines.last().is_none_or(|last| last.fence <= line.fence);
    if taken {
        write_line(file, line)?;
    }
    flock(&*file, FlockOperation::Unlock)?;
    Ok(taken)
}
