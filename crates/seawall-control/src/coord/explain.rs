//! For the person at night: who holds a lock, for how long that is sure, who waits behind whom, how the last one lost it; and who waits
//! in a circle.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use seawall_coord::{BackendError, Deadlock, LockName, LockView, SessionEnds, SessionNews, StoreBackend, deadlocks};
use seawall_drain::Drain;
use seawall_telemetry::metrics::Page;
use serde::{Deserialize, Serialize};

use super::ledger::Ended;
use super::{Coord, Problem, lock_name};

/// Between two looks for circles, as long as somebody waits.
const LOOK: Duration = Duration::from_secs(1);
/// After a look or a watch that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How many names that look like the one asked for are told.
const SIMILAR: usize = 3;

/// The circles that were there at two looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Circles(Arc<Mutex<Vec<Deadlock>>>);

impl Circles {
    fn get(&self) -> Vec<Deadlock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, circles: Vec<Deadlock>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = circles;
    }
}

/// A lock, explained.
#[derive(Debug, Serialize, Deserialize)]
pub struct Explained {
    /// As it is shown otherwise.
    #[serde(flatten)]
    pub lock: LockView,
    /// The holder's session lives for so long without another keep-alive.
    pub sure_ms: Option<u64>,
    /// Who held it before, if this node knows.
    pub last: Option<Ended>,
    /// Since when this node has been looking.
    pub since_ms: u64,
    /// Circles that it is part of.
    pub deadlocks: Vec<Deadlock>,
    /// Locks with a similar name, when nobody wants this one and nobody has.
    pub similar: Vec<LockName>,
}

pub(super) async fn explain(State(coord): State<Coord>, Path(name): Path<String>) -> Result<Json<Explained>, Problem> {
    let name = lock_name(&name)?;
    let lock = coord.backend.show(&name).await?;
    let left = match &lock.holder {
        Some(holder) => coord.backend.left(&holder.session).await?,
        None => None,
    };
    let last = coord.ledger.last(&name);
    let mut circles = coord.circles.get();
    circles.retain(|circle| circle.0.iter().any(|wait| wait.lock == name));
    let similar = if lock.holder.is_none() && last.is_none() { similar(&coord, &name).await? } else { Vec::new() };
    let sure_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    Ok(Json(Explained { lock, sure_ms, last, since_ms: coord.since_ms, deadlocks: circles, similar }))
}

async fn similar(coord: &Coord, name: &LockName) -> Result<Vec<LockName>, BackendError> {
    let mut names: BTreeSet<_> = coord.ledger.names().into_iter().filter(LockName::is_plain).collect();
    names.extend(coord.backend.list().await?.into_iter().map(|lock| lock.name));
    let score = |other: &LockName| strsim::jaro_winkler(name.as_str(), other.as_str());
    let mut names: Vec<_> = names.into_iter().filter(|other| score(other) > 0.8).collect();
    names.sort_by(|a, b| score(b).total_cmp(&score(a)));
    names.truncate(SIMILAR);
    Ok(names)
}

pub(super) async fn list(State(coord): State<Coord>) -> Json<Vec<Deadlock>> {
    Json(coord.circles.get())
}

/// Hears of sessions that end, until control drains.
pub(super) async fn follow_sessions(coord: Coord) {
    let mut ends = SessionEnds::new(coord.backend.clone());
    loop {
        let news = tokio::select! {
            news = ends.next() => news,
            () = coord.drain.signaled() => return,
        };
        match news {
            Ok(SessionNews::Alive(alive)) => coord.ledger.sessions_alive(&alive),
            Ok(SessionNews::Ended(ended)) => coord.ledger.sessions_ended(&ended),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Looks for circles as long as somebody waits here, until control drains. One that is seen twice is told, once.
pub(super) async fn look_for_circles(coord: Coord) {
    let mut before: Vec<Deadlock> = Vec::new();
    while pause(&coord.drain, LOOK).await {
        let found = if coord.somebody_waits() { circles(&coord.backend).await } else { Ok(Vec::new()) };
        // A store that does not answer says nothing.
        let Ok(found) = found else { continue };
        let told = coord.circles.get();
        let now: Vec<_> = found.iter().filter(|circle| before.contains(circle)).cloned().collect();
        for circle in now.iter().filter(|circle| !told.contains(circle)) {
            tracing::warn!(
                "a deadlock, unless one of these sessions has another task that goes on: {circle}; end one of them, or take a \
                 lock away: seawall locks NAME --force --why ..."
            );
        }
        coord.circles.set(now);
        before = found;
    }
}

async fn pause(drain: &Drain, time: Duration) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = drain.signaled() => false,
    }
}

async fn circles(backend: &StoreBackend) -> Result<Vec<Deadlock>, BackendError> {
    Ok(deadlocks(&backend.list().await?))
}

impl Coord {
    /// The metrics of locks and elections.
    pub(crate) async fn metrics(&self, page: &mut Page) {
        self.ledger.write(page);
        page.family("seawall_lock_deadlocks", "gauge", "Circles of sessions that wait for each other.");
        page.sample("seawall_lock_deadlocks", &[], self.circles.get().len());
        if let (Ok(locks), Ok(elections)) = (self.backend.list().await, self.backend.elections().await) {
            page.family(
                "seawall_locks",
                "gauge",
                "Claims of locks and elections, by whether they hold theirs or wait.",
            );
            let held = locks.iter().map(|lock| usize::from(lock.holder.is_some()) + lock.sharing.len()).sum::<usize>();
            let waiting = locks.iter().map(|lock| lock.queue.len()).sum::<usize>();
            let leaders = elections.iter().filter(|election| election.leader.is_some()).count();
            let standing = elections.iter().map(|election| election.candidates.len()).sum::<usize>();
            for (kind, state, count) in [
                ("lock", "held", held),
                ("lock", "waiting", waiting),
                ("election", "held", leaders),
                ("election", "waiting", standing),
            ] {
                page.sample("seawall_locks", &[("kind", &kind), ("state", &state)], count);
            }
        }
        if let Ok(sessions) = self.backend.sessions().await {
            page.family("seawall_sessions", "gauge", "Sessions that live.");
            page.sample("seawall_sessions", &[], sessions.len());
        }
    }
}
