//! Whoever makes the trouble.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seawall_store::DiskFault;
use tokio::time::sleep;

use crate::{Link, Process, Server, Weather, World, chance, millis};

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process cannot reach the store.
    Cut,
    /// A process is stopped, for up to three times the time to live.
    Pause,
    /// A process is killed, and another started in its place.
    Kill,
    /// A machine sleeps: its clock leaps.
    Leap,
    /// The store is stopped.
    PauseServer,
    /// The store is killed and started again.
    Restart,
    /// A sync of the store's disk fails.
    Disk,
    /// The network loses, delays and repeats more, or nothing for a while.
    Weather,
    /// What the test does itself.
    Own,
}

impl Fault {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Cut,
        Self::Pause,
        Self::Kill,
        Self::Leap,
        Self::PauseServer,
        Self::Restart,
        Self::Disk,
        Self::Weather,
        Self::Own,
    ];
}

/// Who is tormented.
pub struct Cast {
    /// The store.
    pub server: Server,
    /// Each process's way to the store, and the process that is there at the moment.
    pub processes: Vec<(Link, Arc<Mutex<Process>>)>,
    /// Starts a process anew in the place of one that was killed.
    pub revive: Box<dyn Fn(usize) -> Process + Send + Sync>,
    /// What the test does itself.
    pub own: Box<dyn Fn() + Send + Sync>,
    /// The time to live of the sessions, which the faults are as long as.
    pub ttl: Duration,
}

impl std::fmt::Debug for Cast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cast").field("processes", &self.processes).finish_non_exhaustive()
    }
}

/// Does some of `faults`, one after the other and several at a time, for so long; then all is well: every link is healed, the
/// weather is fine. Pauses that began before may go on for as long as they last, three times `ttl` at most.
pub async fn torment(world: &World, cast: &Cast, faults: &[Fault], duration: Duration) {
    let end = world.now() + duration;
    let ttl = u64::try_from(cast.ttl.as_millis()).unwrap_or(u64::MAX);
    while world.now() < end {
        sleep(millis(ttl / 20, ttl / 2)).await;
        let Some(fault) = fastrand::choice(faults) else { continue };
        let Some(index) = fastrand::choice(0..cast.processes.len()) else { continue };
        let (link, process) = &cast.processes[index];
        let current = || process.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            Fault::Cut => link.cut(world, millis(1, ttl * 2)),
            Fault::Pause => current().pause(millis(1, ttl * 3)),
            Fault::Kill => {
                current().kill();
                *current() = (cast.revive)(index);
            }
            Fault::Leap => current().leap(millis(1, ttl * 2)),
            Fault::PauseServer => cast.server.pause(world, millis(1, ttl)),
            Fault::Restart => cast.server.restart(world, millis(1, ttl)),
            Fault::Disk => {
                let disk = [DiskFault::NotWritten, DiskFault::Written, DiskFault::Lost];
                cast.server.fail(disk[fastrand::usize(0..disk.len())]);
            }
            Fault::Weather => {
                let weather = if chance(0.3) { Weather::FINE } else { Weather::FOUL };
                let slow = fastrand::f64() * 0.5;
                link.set(Weather { slow, ..weather });
            }
            Fault::Own => (cast.own)(),
        }
    }
    for (link, _) in &cast.processes {
        link.heal();
        link.set(Weather::FINE);
    }
}
