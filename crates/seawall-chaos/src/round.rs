//! A round: some holders, one kind of fault, the checkers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use seawall_histories::Moment;
use seawall_servers::Proxy;

use crate::clocks;
use crate::holder::{BAIT, CALM, CAUGHT, STOP, TTL, now};
use crate::judge::{Figures, Found, judge};
use crate::keys;
use crate::target::{Target, signal};

const HOLDERS: usize = 4;
/// After the last fault, until whoever asks has to be served in time: for sessions to end, and connections to be made again.
const SETTLES: Duration = Duration::from_secs(3);
/// For how long it is looked after that.
const CALM_FOR: Duration = Duration::from_secs(2);
/// For all holders to end by themselves when all is well.
const END: Duration = Duration::from_secs(70);
/// For somebody to hold the lock, and for another to have it after that.
const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const HEADER: &str =
    "backend    fault                  faults   holds  appends  violations  late at the register that checks no tokens";
/// Of what a store is asked, beside the locks.
const KEYS_NAME: &str = "store under all of them";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Whoever holds the lock, after its last look at it and right before its write, until another has written.
    StoppedBeforeAWrite,
    HoldersStopped,
    HoldersKilled,
    HoldersCutOff,
    ServerStopped,
    ServerKilled,
    /// Everybody's wall clock leaps, to and fro, in a process of its own.
    ClocksJump,
}

const FAULTS: [(Fault, &str); 7] = [
    (Fault::StoppedBeforeAWrite, "stopped before a write"),
    (Fault::HoldersStopped, "holders stopped"),
    (Fault::HoldersKilled, "holders killed -9"),
    (Fault::HoldersCutOff, "holders cut off"),
    (Fault::ServerStopped, "server stopped"),
    (Fault::ServerKilled, "server killed -9"),
    (Fault::ClocksJump, "clocks jump"),
];

/// Processes that are killed when dropped.
struct Holders {
    running: Vec<(Child, Vec<Proxy>, String)>,
    /// Of those that run.
    names: Vec<String>,
    started: usize,
    log: Log,
}

/// What was done to holders, by their names.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) faults: usize,
    /// Killed: whoever is dead holds nothing.
    pub(crate) dead: BTreeMap<String, Moment>,
    /// Let go on, after they had been stopped.
    pub(crate) continued: Vec<(String, Moment)>,
    /// From when on all is well, and whoever asks is to be served.
    pub(crate) healed: Moment,
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
    pub(crate) text: Vec<String>,
}

/// Every fault against one backend.
pub(crate) fn torment(backend: &str, seconds: u64) -> anyhow::Result<Verdict> {
    let mut target = Target::start(backend)?;
    let rounds = u32::try_from(FAULTS.len() + usize::from(keys::has_store(backend)))?;
    let each = Duration::from_secs(seconds.max(10)) / rounds;
    let (mut wrong, mut all, mut late, mut figures) = (false, 0, 0, Figures::default());
    let mut text = Vec::new();
    for (fault, name) in FAULTS {
        let found = if fault == Fault::ClocksJump && !target.has_own_clock() {
            clocks::torment(backend, each)?
        } else {
            let dir = tempfile::tempdir()?;
            let log = storm(&mut target, fault, each, dir.path())?;
            judge(dir.path(), &target, fault, log)?
        };
        let Found { faults, holds, appends, late: unfenced, violations, forbidden, .. } = &found;
        let count = violations.len();
        println!("{backend:<10} {name:<22} {faults:>6} {holds:>7} {appends:>8} {count:>11}  {unfenced}");
        violations.iter().take(5).for_each(|violation| println!("    {violation}"));
        // The fault that every lock has to fail at, and every register that checks tokens to pass: else it has proved nothing.
        if fault == Fault::StoppedBeforeAWrite && *unfenced == 0 && target.expires {
            println!("    no holder that was stopped before a write wrote late: the fault has not bitten");
            wrong = true;
        }
        wrong |= forbidden;
        (all, late) = (all + count, late + unfenced);
        figures.add(found.figures);
    }
    let late = format!("{late} late writes where tokens are not checked");
    text.push(match (target.fenced, all) {
        (true, 0) if !wrong => {
            format!("{late}, none where they are; one holder at a time by every clock, one leader a term")
        }
        (true, 0) => late,
        (true, count) if wrong => format!("{count} VIOLATIONS; {late}"),
        (true, count) => {
            format!("{count} times two holders by a clock that jumped, none at the register that checks tokens; {late}")
        }
        (false, 0) => format!("{late}; it has none to check"),
        (false, count) => format!("{count} violations, which its class does not exclude; {late}"),
    });
    text.push(figures.to_string());
    if let Some(found) = keys::torment(backend, each)? {
        let keys::Found { faults, operations, unknown, violation } = &found;
        let count = usize::from(violation.is_some());
        println!("{backend:<10} {KEYS_NAME:<22} {faults:>6} {operations:>7} {unknown:>8} {count:>11}  -");
        violation.iter().for_each(|violation| println!("    {violation}"));
        wrong |= violation.is_some();
        text.push(found.to_string());
    }
    Ok(Verdict { wrong, text })
}

pub(crate) fn storm(target: &mut Target, fault: Fault, duration: Duration, dir: &Path) -> anyhow::Result<Log> {
    let mut holders = Holders { running: Vec::new(), names: Vec::new(), started: 0, log: Log::default() };
    for _ in 0..HOLDERS {
        let (proxy, url) = target.through();
        let child = holders.spawn(&url, dir)?;
        holders.running.push((child, proxy, url));
        holders.names.push(format!("p{}", holders.started));
    }
    let end = Instant::now() + duration;
    sleep(Duration::from_millis(500));
    while Instant::now() < end {
        sleep(Duration::from_millis(fastrand::u64(50..500)));
        holders.log.faults += 1;
        let index = fastrand::usize(0..HOLDERS);
        holders.suffer(target, fault, index, dir)?;
    }
    if fault == Fault::ClocksJump && !target.has_own_clock() {
        clocks::set(0)?;
    }
    let _ = std::fs::remove_file(dir.join(BAIT));
    std::fs::write(dir.join(CALM), "")?;
    sleep(SETTLES);
    holders.log.healed = now();
    sleep(CALM_FOR);
    std::fs::write(dir.join(STOP), "")?;
    // Whoever does not end waits for a lock that nobody has, which its history will show.
    let end = Instant::now() + END;
    for (child, ..) in &mut holders.running {
        while child.try_wait()?.is_none() && Instant::now() < end {
            sleep(Duration::from_millis(10));
        }
    }
    Ok(std::mem::take(&mut holders.log))
}

impl Holders {
    /// One fault.
    fn suffer(&mut self, target: &mut Target, fault: Fault, index: usize, dir: &Path) -> anyhow::Result<()> {
        let ttl = u64::try_from(TTL.as_millis())?;
        let away = Duration::from_millis(fastrand::u64(ttl / 4..ttl * 2));
        match fault {
            Fault::StoppedBeforeAWrite => {
                if let Some(pid) = stop_before_a_write(dir)? {
                    let of = |child: &Child| i32::try_from(child.id()).is_ok_and(|id| id == pid.as_raw_nonzero().get());
                    let index =
                        self.running.iter().position(|(child, ..)| of(child)).context("a stranger was caught")?;
                    self.log.continued.push((self.names[index].clone(), now()));
                    kill_process(pid, Signal::CONT)?;
                }
            }
            Fault::HoldersStopped => {
                signal(&self.running[index].0, Signal::STOP)?;
                sleep(away);
                self.log.continued.push((self.names[index].clone(), now()));
                signal(&self.running[index].0, Signal::CONT)?;
            }
            Fault::HoldersKilled => {
                self.log.dead.insert(self.names[index].clone(), now());
                self.running[index].0.kill()?;
                self.running[index].0.wait()?;
                let url = self.running[index].2.clone();
                self.running[index].0 = self.spawn(&url, dir)?;
                self.names[index] = format!("p{}", self.started);
                // At times long enough for what the dead one had to be another's, at times not.
                sleep(if fastrand::bool() { TTL + TTL / 4 } else { Duration::ZERO });
            }
            Fault::HoldersCutOff => {
                let (proxies, cut) = (&self.running[index].1, fastrand::bool());
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
            Fault::ClocksJump => {
                // Up to three times as far as a session lives, forwards or back.
                let far = i64::try_from(3 * TTL.as_secs())?;
                let ahead = fastrand::i64(-far..=far);
                if target.has_own_clock() {
                    target.jump(ahead)?
                } else {
                    clocks::set(ahead)?
                }
                sleep(away);
            }
        }
        Ok(())
    }
}

/// Stops the holder of the lock in the gap that no lock closes, until somebody else has written.
fn stop_before_a_write(dir: &Path) -> anyhow::Result<Option<Pid>> {
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
            None if Instant::now() > end => return Ok(None),
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
    Ok(Some(pid))
}
