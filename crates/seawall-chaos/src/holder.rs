//! A process that takes a lock again and again, writes while it holds it, and records what it believes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use rustix::time::{ClockId, clock_gettime};
use seawall_coord::{AnyLocks, Guard, LockName, LocksUrl, Need, Owner, Session, SessionConfig};
use seawall_histories::{Append, Event, Line, Moment, Outcome, Recorder, What, read};
use tokio::time::sleep;

/// How long a session lives without a keep-alive: what every backend allows.
pub(crate) const TTL: Duration = Duration::from_secs(2);

pub(crate) fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    Moment(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
}

/// A file that asks whoever is about to write to say so, and what it becomes then, with the process' number.
pub(crate) const BAIT: &str = "bait";
pub(crate) const CAUGHT: &str = "caught-";
/// How long it waits then for being stopped.
const LINGER: Duration = Duration::from_millis(500);

struct Holder {
    name: String,
    dir: PathBuf,
    events: Recorder,
    appends: File,
    fenced: File,
    unfenced: File,
    values: u64,
}

fn append_to(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).read(true).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// Until it is killed.
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
    loop {
        let Ok(backend) = AnyLocks::open(&url, Need::Best).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let config = SessionConfig::new(Owner::try_new(name)?).ttl(TTL);
        let Ok(session) = Session::open(backend, config).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        while session.check().is_ok() {
            attempt += 1;
            holder.take(&session, attempt).await?;
            sleep(Duration::from_millis(fastrand::u64(0..20))).await;
        }
    }
}

impl Holder {
    fn record(&self, attempt: u64, what: What) {
        let lock = "chaos".to_owned();
        self.events.record(Event { at: now(), process: self.name.clone(), lock, attempt, what });
    }

    async fn take(&mut self, session: &Session<AnyLocks>, attempt: u64) -> anyhow::Result<()> {
        let lock = session.lock(LockName::try_new("chaos")?);
        self.record(attempt, What::Asks);
        let guard = match lock.acquire_within(Duration::from_secs(5)).await {
            Ok(guard) => guard,
            Err(error) => {
                self.record(attempt, What::Failed { why: error.to_string() });
                return Ok(());
            }
        };
        let remaining = guard.remaining();
        let fence = guard.token().map(seawall_coord::Fence::get);
        self.record(attempt, What::Acquired { fence, until: now().plus(remaining) });
        for _ in 0..fastrand::usize(1..8) {
            match guard.check() {
                Ok(remaining) => self.record(attempt, What::Sure { until: now().plus(remaining) }),
                Err(why) => {
                    self.record(attempt, What::Lost { why: why.to_string() });
                    return Ok(());
                }
            }
            // Between the last look and the write: the gap that no lock closes.
            sleep(Duration::from_millis(fastrand::u64(0..10))).await;
            self.linger_if_baited().await;
            self.append(&guard, attempt)?;
        }
        self.record(attempt, What::Releases);
        let _ = guard.release().await;
        Ok(())
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

fn write_line(file: &mut File, value: &impl serde::Serialize) -> anyhow::Result<()> {
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
