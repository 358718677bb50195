//! What this node remembers of locks: who had one last and how that ended, for people who ask, and counts, for metrics. In memory and
//! bounded; nothing is written for it, so a release costs no more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use seawall_coord::{Claim, ClaimError, Fence, LockName, Token};
use seawall_telemetry::metrics::{Histogram, Page};
use serde::{Deserialize, Serialize};

/// Of how many locks the last end is remembered, and of how many claims that they hold one.
const LOCKS: usize = 4096;
const CLAIMS: usize = 65_536;

/// How somebody's holding of a lock ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum End {
    /// It was given back.
    Released,
    /// Its holder ended the session, or the stream did that the session was bound to.
    Closed,
    /// No keep-alive came in time.
    Expired,
    /// An operator took it away.
    Forced {
        /// Who.
        by: String,
        /// Why.
        why: String,
    },
}

impl End {
    fn name(&self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Closed => "closed",
            Self::Expired => "expired",
            Self::Forced { .. } => "forced",
        }
    }
}

/// Somebody who held a lock, and how that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Whose session it was.
    pub owner: String,
    /// The session's number.
    pub session: String,
    /// Its fencing token.
    pub fence: Option<Fence>,
    /// Since when it held the lock, in milliseconds since 1970.
    pub since_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// How it ended.
    #[serde(flatten)]
    pub end: End,
}

#[derive(Debug)]
struct Held {
    name: LockName,
    owner: String,
    session: String,
    fence: Option<Fence>,
    since_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    inner: Mutex<Inner>,
    /// How long those waited who got it.
    waits: Histogram,
}

#[derive(Debug, Default)]
struct Inner {
    held: HashMap<Token, Held>,
    of_session: HashMap<String, HashSet<Token>>,
    /// Sessions that are being closed by their holders.
    closing: HashSet<String>,
    last: HashMap<LockName, Ended>,
    /// The names in `last`, the one that came first first.
    order: VecDeque<LockName>,
    outcomes: BTreeMap<(&'static str, &'static str), u64>,
    ends: BTreeMap<(&'static str, &'static str), u64>,
}

pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn kind(name: &LockName) -> &'static str {
    match (name.election(), name.latch()) {
        (Some(_), _) => "election",
        (_, Some(_)) => "latch",
        _ => "lock",
    }
}

impl Inner {
    fn end(&mut self, token: Token, end: &End) {
        let Some(held) = self.held.remove(&token) else { return };
        if let Some(tokens) = self.of_session.get_mut(&held.session) {
            tokens.remove(&token);
            if tokens.is_empty() {
                self.of_session.remove(&held.session);
            }
        }
        *self.ends.entry((kind(&held.name), end.name())).or_default() += 1;
        let Held { name, owner, session, fence, since_ms } = held;
        let ended = Ended { owner, session, fence, since_ms, until_ms: unix_ms(), end: end.clone() };
        if self.last.insert(name.clone(), ended).is_none() {
            self.order.push_back(name);
            if self.order.len() > LOCKS
                && let Some(oldest) = self.order.pop_front()
            {
                self.last.remove(&oldest);
            }
        }
    }

    fn end_session(&mut self, session: &str) {
        let end = if self.closing.remove(session) { End::Closed } else { End::Expired };
        for token in self.of_session.remove(session).into_iter().flatten() {
            self.end(token, &end);
        }
    }
}

impl Ledger {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request for a claim has been answered.
    pub(super) fn answered(&self, name: &LockName, waited: Duration, outcome: Result<(), &ClaimError>) {
        let outcome = match outcome {
            Ok(()) => {
                self.waits.record(waited);
                "granted"
            }
            Err(ClaimError::Busy { .. }) => "busy",
            Err(ClaimError::TimedOut { .. }) => "timed-out",
            Err(ClaimError::Lost(_)) => "session-lost",
            Err(ClaimError::Removed) => "removed",
            Err(ClaimError::Unknown(_)) => "unknown",
            Err(ClaimError::Backend(_)) => "refused",
        };
        *self.inner().outcomes.entry((kind(name), outcome)).or_default() += 1;
    }

    /// A claim holds its lock; the same again changes nothing.
    pub(super) fn granted(&self, claim: &Claim, owner: String, session: String) {
        let mut inner = self.inner();
        if inner.held.len() >= CLAIMS || inner.held.contains_key(&claim.token) {
            return;
        }
        inner.of_session.entry(session.clone()).or_default().insert(claim.token);
        let held = Held { name: claim.name.clone(), owner, session, fence: claim.fence, since_ms: unix_ms() };
        inner.held.insert(claim.token, held);
    }

    pub(super) fn released(&self, token: Token) {
        self.inner().end(token, &End::Released);
    }

    /// The claim with this fencing token was taken away.
    pub(super) fn forced(&self, name: &LockName, fence: Fence, by: &str, why: &str) {
        let mut inner = self.inner();
        let found = inner.held.iter().find(|(_, held)| held.name == *name && held.fence == Some(fence));
        if let Some(token) = found.map(|(token, _)| *token) {
            inner.end(token, &End::Forced { by: by.to_owned(), why: why.to_owned() });
        }
    }

    /// The session's holder is about to end it.
    pub(super) fn closing(&self, session: String) {
        let mut inner = self.inner();
        if inner.of_session.contains_key(&session) {
            inner.closing.insert(session);
        }
    }

    pub(super) fn sessions_ended(&self, sessions: &[String]) {
        let mut inner = self.inner();
        for session in sessions {
            inner.end_session(session);
        }
    }

    /// All others have ended.
    pub(super) fn sessions_alive(&self, alive: &BTreeSet<String>) {
        let mut inner = self.inner();
        let ended: Vec<_> = inner.of_session.keys().filter(|session| !alive.contains(*session)).cloned().collect();
        for session in ended {
            inner.end_session(&session);
        }
    }

    /// Who held the lock last and holds it no more, as far as this node knows.
    pub(super) fn last(&self, name: &LockName) -> Option<Ended> {
        self.inner().last.get(name).cloned()
    }

    pub(super) fn names(&self) -> Vec<LockName> {
        self.inner().last.keys().cloned().collect()
    }

    pub(super) fn write(&self, page: &mut Page) {
        let inner = self.inner();
        page.family("seawall_lock_claims_total", "counter", "Requests for claims that this node has answered.");
        for ((kind, outcome), count) in &inner.outcomes {
            page.sample("seawall_lock_claims_total", &[("kind", kind), ("outcome", outcome)], count);
        }
        page.family("seawall_lock_ends_total", "counter", "How holding a lock ended that this node had granted.");
        for ((kind, how), count) in &inner.ends {
            page.sample("seawall_lock_ends_total", &[("kind", kind), ("how", how)], count);
        }
        page.family("seawall_lock_wait_seconds", "histogram", "How long those waited who got their lock.");
        page.histogram("seawall_lock_wait_seconds", &[], std::iter::once(&self.waits));
    }
}

#[cfg(test)]
mod tests {
    use seawall_types::Revision;

    use super::*;

    fn claim(name: &str, fence: u64) -> Claim {
        let name = LockName::try_new(name).unwrap();
        Claim { name, token: Token::random(), created: Revision(fence), fence: Some(Fence::new(fence)) }
    }

    #[test]
    fn every_end_is_known_by_its_cause() {
        let ledger = Ledger::default();
        let hold = |name: &str, fence, session: &str| {
            let claim = claim(name, fence);
            ledger.granted(&claim, "o".into(), session.into());
            claim
        };
        let last = |name: &str| ledger.last(&LockName::try_new(name).unwrap()).map(|ended| ended.end);
        let (a, b) = (hold("a", 1, "s1"), hold("b", 2, "s1"));
        hold("c", 3, "s1");
        hold("d", 4, "s2");
        hold("e", 5, "s3");
        ledger.released(a.token);
        ledger.released(a.token);
        ledger.forced(&b.name, Fence::new(2), "ann", "it hangs");
        assert_eq!((last("a"), last("c")), (Some(End::Released), None));
        assert_eq!(last("b"), Some(End::Forced { by: "ann".into(), why: "it hangs".into() }));
        ledger.closing("s2".into());
        ledger.closing("unknown".into());
        ledger.sessions_ended(&["s1".into(), "s2".into(), "s9".into()]);
        assert_eq!((last("c"), last("d"), last("e")), (Some(End::Expired), Some(End::Closed), None));
        // What was missed is found out from who is alive.
        ledger.sessions_alive(&BTreeSet::new());
        assert_eq!(last("e"), Some(End::Expired));
        let inner = ledger.inner();
        assert_eq!((inner.held.len(), inner.of_session.len(), inner.closing.len()), (0, 0, 0));
        assert_eq!(inner.ends.values().sum::<u64>(), 5, "each once");
    }

    #[test]
    fn memory_is_bounded() {
        let ledger = Ledger::default();
        for n in 0..LOCKS as u64 + 10 {
            let claim = claim(&n.to_string(), n);
            ledger.granted(&claim, "o".into(), "s".into());
            ledger.released(claim.token);
        }
        let inner = ledger.inner();
        assert_eq!((inner.last.len(), inner.order.len(), inner.of_session.len()), (LOCKS, LOCKS, 0));
    }
}
