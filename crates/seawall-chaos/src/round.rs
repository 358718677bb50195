//! A round: some holders, one kind of fault, the checkers.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use seawall_histories::{Append, Event, Line, Rule, Violation, fences, holds, overlaps, read, register};
use seawall_servers::Proxy;

use crate::holder::{TTL, now};
use crate::target::{Target, signal};

const HOLDERS: usize = 4;
/// After the last fault, until somebody has to have had the lock again.
const CALM: Duration = Duration::from_secs(5);
pub(crate) const HEADER: &str =
    "backend    fault                  faults   holds  appends  violations  at the unfenced register";

#[derive(Clone, Copy, Debug)]
enum Fault {
    HoldersStopped,
    HoldersKilled,
    HoldersCutOff,
    ServerStopped,
    ServerKilled,
}

const FAULTS: [(Fault, &str); 5] = [
    (Fault::HoldersStopped, "holders stopped"),
    (Fault::HoldersKilled, "holders killed -9"),
    (Fault::HoldersCutOff, "holders cut off"),
    (Fault::ServerStopped, "server stopped"),
    (Fault::ServerKilled, "server killed -9"),
];

/// Processes that are killed when dropped.
struct Holders {
    running: Vec<(Child, Proxy, String)>,
    started: usize,
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

/// Every fault against one backend; true when something was wrong.
pub(crate) fn torment(backend: &str, seconds: u64) -> anyhow::Result<bool> {
    let mut target = Target::start(backend)?;
    let each = Duration::from_secs(seconds.max(10)) / u32::try_from(FAULTS.len())?;
    let mut wrong = false;
    for (fault, name) in FAULTS {
        let dir = tempfile::tempdir()?;
        let (faults, healed) = storm(&mut target, fault, each, dir.path())?;
        let Found { holds, appends, violations, unfenced } = judge(dir.path(), target.fenced, healed)?;
        let count = violations.len();
        println!("{backend:<10} {name:<22} {faults:>6} {holds:>7} {appends:>8} {count:>11}  {unfenced}");
        violations.iter().take(5).for_each(|violation| println!("    {violation}"));
        // What a backend without tokens promises is that its own clock runs evenly; it is shown and fails nothing.
        wrong |= target.fenced && !violations.is_empty();
    }
    Ok(wrong)
}

fn storm(
    target: &mut Target,
    fault: Fault,
    duration: Duration,
    dir: &Path,
) -> anyhow::Result<(usize, seawall_histories::Moment)> {
    let mut holders = Holders { running: Vec::new(), started: 0 };
    for _ in 0..HOLDERS {
        let (proxy, url) = target.through();
        let child = holders.spawn(&url, dir)?;
        holders.running.push((child, proxy, url));
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
            Fault::HoldersStopped => {
                signal(&holders.running[index].0, Signal::STOP)?;
                sleep(away);
                signal(&holders.running[index].0, Signal::CONT)?;
            }
            Fault::HoldersKilled => {
                holders.running[index].0.kill()?;
                holders.running[index].0.wait()?;
                let url = holders.running[index].2.clone();
                holders.running[index].0 = holders.spawn(&url, dir)?;
            }
            Fault::HoldersCutOff => {
                let proxy = &holders.running[index].1;
                if fastrand::bool() {
                    proxy.cut()
                } else {
                    proxy.drop_replies()
                }
                sleep(away);
                proxy.heal();
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
    sleep(CALM);
    Ok((faults, healed))
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

fn judge(dir: &Path, fenced: bool, healed: seawall_histories::Moment) -> anyhow::Result<Found> {
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
    let holds = holds(&events);
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
    let late = unfenced.windows(2).filter(|pair| pair[1].fence < pair[0].fence).count();
    Ok(Found { holds: holds.len(), appends: appends.len(), violations, unfenced: late })
}
