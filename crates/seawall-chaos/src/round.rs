//! A round: some holders, one kind of fault, the checkers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use seawall_histories::{Append, Event, Line, Moment, Rule, Violation, fences, holds, overlaps, read, register};
use seawall_servers::Proxy;

use crate::holder::{BAIT, CAUGHT, TTL, now};
use crate::target::{Target, signal};

const HOLDERS: usize = 4;
/// After the last fault, until somebody has to have had the lock again.
const CALM: Duration = Duration::from_secs(5);
/// For somebody to hold the lock, and for another to have it after that.
const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const HEADER: &str =
    "backend    fault                  faults   holds  appends  violations  late at the register that checks no tokens";

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Whoever holds the lock, after its last look at it and right before its write, until another has written.
    StoppedBeforeAWrite,
    HoldersStopped,
    HoldersKilled,
    HoldersCutOff,
    ServerStopped,
    ServerKilled,
}

const FAULTS: [(Fault, &str); 6] = [
    (Fault::StoppedBeforeAWrite, "stopped before a write"),
    (Fault::HoldersStopped, "holders stopped"),
    (Fault::HoldersKilled, "holders killed -9"),
    (Fault::HoldersCutOff, "holders cut off"),
    (Fault::ServerStopped, "server stopped"),
    (Fault::ServerKilled, "server killed -9"),
];

/// Processes that are killed when dropped.
struct Holders {
    running: Vec<(Child, Vec<Proxy>, String)>,
    /// Of those that run.
    names: Vec<String>,
    started: usize,
    /// Which of them were killed, and when: whoever is dead holds nothing.
    dead: BTreeMap<String, Moment>,
}

impl Holders {
    fn spawn(&mut self, url: &str, dir: &Path) -> anyhow::Result<Child> {
        self.started += 1;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["holder", "--url", url, "--name", &format!("p{}", self.started), "--dir"]).arg(dir);
        Ok(command.stdin(Stdio::null()).spawn()?)
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        for (child, ..) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What all faults against one backend have come to.
pub(crate) struct Verdict {
    /// Something that must not be.
    pub(crate) wrong: bool,
    /// In words.
    pub(crate) text: String,
}

/// Every fault against one backend.
pub(crate) fn torment(backend: &str, seconds: u64) -> anyhow::Result<Verdict> {
    let mut target = Target::start(backend)?;
    let each = Duration::from_secs(seconds.max(10)) / u32::try_from(FAULTS.len())?;
    let (mut wrong, mut all, mut late) = (false, 0, 0);
    for (fault, name) in FAULTS {
        let dir = tempfile::tempdir()?;
        let (faults, healed, dead) = storm(&mut target, fault, each, dir.path())?;
        let Found { holds, appends, violations, unfenced } = judge(dir.path(), target.fenced, healed, &dead)?;
        let count = violations.len();
        (all, late) = (all + count, late + unfenced);
        println!("{backend:<10} {name:<22} {faults:>6} {holds:>7} {appends:>8} {count:>11}  {unfenced}");
        violations.iter().take(5).for_each(|violation| println!("    {violation}"));
        // The fault that every lock has to fail at, and every register that checks tokens to pass: else it has proved nothing.
        if matches!(fault, Fault::StoppedBeforeAWrite) && unfenced == 0 && target.expires {
            println!("    no holder that was stopped before a write wrote late: the fault has not bitten");
            wrong = true;
        }
        // What a backend without tokens promises is that its own clock runs evenly; it is shown and fails nothing.
        wrong |= target.fenced && !violations.is_empty();
    }
    let late = format!("{late} late writes where tokens are not checked");
    let text = match (target.fenced, all) {
        (true, 0) if !wrong => format!("{late}, none where they are; one holder at a time by every clock"),
        (true, 0) => late,
        (true, count) => format!("{count} VIOLATIONS; {late}"),
        (false, 0) => format!("{late}; it has none to check"),
        (false, count) => format!("{count} times two holders at a time, which its class does not exclude; {late}"),
    };
    Ok(Verdict { wrong, text })
}

fn storm(
    target: &mut Target,
    fault: Fault,
    duration: Duration,
    dir: &Path,
) -> anyhow::Result<(usize, Moment, BTreeMap<String, Moment>)> {
    let mut holders = Holders { running: Vec::new(), names: Vec::new(), started: 0, dead: BTreeMap::new() };
    for _ in 0..HOLDERS {
        let (proxy, url) = target.through();
        let child = holders.spawn(&url, dir)?;
        holders.running.push((child, proxy, url));
        holders.names.push(format!("p{}", holders.started));
    }
    let end = Instant::now() + duration;
    let mut faults = 0;
    let ttl = u64::try_from(TTL.as_millis())?;
    sleep(Duration::from_millis(500));
    while Instant::now() < end {
        sleep(Duration::from_millis(fastrand::u64(50..500)));
        faults += 1;
        let index = fastrand::usize(0..HOLDERS);
        let away = Duration::from_millis(fastrand::u64(ttl / 4..ttl * 2));
        match fault {
            Fault::StoppedBeforeAWrite => stop_before_a_write(dir)?,
            Fault::HoldersStopped => {
                signal(&holders.running[index].0, Signal::STOP)?;
                sleep(away);
                signal(&holders.running[index].0, Signal::CONT)?;
            }
            Fault::HoldersKilled => {
                let dead = (holders.names[index].clone(), now());
                holders.running[index].0.kill()?;
                holders.running[index].0.wait()?;
                let url = holders.running[index].2.clone();
                holders.dead.extend([dead]);
                holders.running[index].0 = holders.spawn(&url, dir)?;
                holders.names[index] = format!("p{}", holders.started);
            }
            Fault::HoldersCutOff => {
                let (proxies, cut) = (&holders.running[index].1, fastrand::bool());
                proxies.iter().for_each(|proxy| if cut { proxy.cut() } else { proxy.drop_replies() });
                sleep(away);
                proxies.iter().for_each(Proxy::heal);
            }
            Fault::ServerStopped => {
                target.pause()?;
                sleep(away);
                target.resume()?;
            }
            Fault::ServerKilled => target.restart()?,
        }
    }
    let healed = now();
    let _ = std::fs::remove_file(dir.join(BAIT));
    sleep(CALM);
    Ok((faults, healed, std::mem::take(&mut holders.dead)))
}

/// Stops the holder of the lock in the gap that no lock closes, and lets it go on when somebody else has written.
fn stop_before_a_write(dir: &Path) -> anyhow::Result<()> {
    std::fs::write(dir.join(BAIT), "")?;
    let end = Instant::now() + PATIENCE;
    let caught = || -> anyhow::Result<Option<(i32, PathBuf)>> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(pid) = name.strip_prefix(CAUGHT) {
                return Ok(Some((pid.parse()?, path)));
            }
        }
        Ok(None)
    };
    let (pid, path) = loop {
        match caught()? {
            Some(caught) => break caught,
            None if Instant::now() > end => return Ok(()),
            None => sleep(Duration::from_millis(2)),
        }
    };
    let pid = Pid::from_raw(pid).context("no process id")?;
    kill_process(pid, Signal::STOP)?;
    std::fs::remove_file(path)?;
    let written = || std::fs::metadata(dir.join("unfenced")).map_or(0, |file| file.len());
    let before = written();
    while written() == before && Instant::now() < end {
        sleep(Duration::from_millis(10));
    }
    Ok(kill_process(pid, Signal::CONT)?)
}

/// How often a holding of the lock wrote after another had written.
fn late(lines: &[Line]) -> usize {
    let mut seen = BTreeSet::new();
    let mut last = "";
    let mut late = 0;
    for line in lines {
        let by = line.value.rsplit_once('-').map_or(&*line.value, |(by, _)| by);
        if by != last {
            late += usize::from(!seen.insert(by));
            last = by;
        }
    }
    late
}

struct Found {
    holds: usize,
    appends: usize,
    violations: Vec<Violation>,
    unfenced: usize,
}

fn lines<T: for<'de> serde::Deserialize<'de>>(path: &Path) -> anyhow::Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let file = std::io::BufReader::new(std::fs::File::open(path)?);
    read(file).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))
}

fn judge(dir: &Path, fenced: bool, healed: Moment, dead: &BTreeMap<String, Moment>) -> anyhow::Result<Found> {
    let mut events: Vec<Event> = Vec::new();
    // The last word about each counts.
    let mut appends: BTreeMap<String, Append> = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("events") => events.extend(lines::<Event>(&path)?),
            Some("appends") => {
                appends.extend(lines::<Append>(&path)?.into_iter().map(|append| (append.value.clone(), append)));
            }
            _ => {}
        }
    }
    let appends: Vec<_> = appends.into_values().collect();
    let mut holds = holds(&events);
    for hold in &mut holds {
        if let Some(death) = dead.get(&hold.process) {
            hold.until = hold.until.min(*death);
        }
    }
    let mut violations = overlaps(&holds, 1);
    if fenced {
        violations.extend(fences(&holds));
        violations.extend(register(&appends, &lines::<Line>(&dir.join("fenced"))?));
    }
    if !holds.iter().any(|hold| hold.from > healed) {
        let what = format!("nobody had the lock in {CALM:?} after the faults");
        violations.push(Violation::new(Rule::WakeUp, what));
    }
    // Only late writes: whatever was written is there.
    let unfenced: Vec<Line> = lines(&dir.join("unfenced"))?;
    let (appends, unfenced) = (appends.len().max(unfenced.len()), late(&unfenced));
    Ok(Found { holds: holds.len(), appends, violations, unfenced })
}
