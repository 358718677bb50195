//! When leases end: a pure type, told the time by the writer thread.
//!
//! Leases live in a time of their own, which stands still while nobody looks at it. A look adds at most [`STEP`] to it,
//! however long ago the one before was. So a store that was paused, starved, or stuck in a slow sync takes no lease's
//! time away. The price is that a lease ends later by as long as the store was away.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::LeaseId;

/// How often somebody has to look.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// The most time that passes for leases between two looks: one tick, and as much again for a late wake-up.
pub(crate) const STEP: Duration = Duration::from_millis(100);

/// Every running lease and the moment at which it is due, in the time of leases.
#[derive(Debug)]
pub(crate) struct LeaseClock {
    looked: Instant,
    /// The time of leases at `looked`.
    time: Duration,
    leases: HashMap<LeaseId, Running>,
    due: BTreeSet<(Duration, LeaseId)>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    ttl: Duration,
    due: Duration,
}

impl LeaseClock {
    pub(crate) fn new(now: Instant) -> Self {
        Self { looked: now, time: Duration::ZERO, leases: HashMap::new(), due: BTreeSet::new() }
    }

    /// Gives a lease its whole time, whether it runs already or not.
    pub(crate) fn start(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        let due = self.time(now) + ttl;
        if let Some(before) = self.leases.insert(id, Running { ttl, due }) {
            self.due.remove(&(before.due, id));
        }
        self.due.insert((due, id));
    }

    /// Gives a running lease its whole time again, and says how long that is.
    pub(crate) fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let ttl = self.leases.get(&id)?.ttl;
        self.start(id, ttl, now);
        Some(ttl)
    }

    /// The whole time of a running lease, and what is left of it.
    pub(crate) fn left(&self, id: LeaseId, now: Instant) -> Option<(Duration, Duration)> {
        let lease = self.leases.get(&id)?;
        Some((lease.ttl, lease.due.saturating_sub(self.time(now))))
    }

    /// Stops a lease that has been ended.
    pub(crate) fn stop(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.remove(&id) {
            self.due.remove(&(lease.due, id));
        }
    }

    /// Lets exactly these leases run. Those that run already keep the time that they have, the others get all of it.
    pub(crate) fn agree_with(&mut self, leases: impl Iterator<Item = (LeaseId, Duration)>, now: Instant) {
        let leases: HashMap<_, _> = leases.collect();
        let gone: Vec<_> = self.leases.keys().filter(|id| !leases.contains_key(id)).copied().collect();
        gone.into_iter().for_each(|id| self.stop(id));
        for (id, ttl) in leases {
            if !self.leases.contains_key(&id) {
                self.start(id, ttl, now);
            }
        }
    }

    /// Lets time pass, and takes out what is due: from here on it cannot be kept alive.
    pub(crate) fn look(&mut self, now: Instant) -> Vec<LeaseId> {
        self.time = self.time(now);
        self.looked = self.looked.max(now);
        let mut ended = Vec::new();
        while let Some((due, id)) = self.due.first().copied().filter(|(due, _)| *due <= self.time) {
            self.due.remove(&(due, id));
            self.leases.remove(&id);
            ended.push(id);
        }
        ended
    }

    /// How long ago the last look was.
    pub(crate) fn unseen(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.looked)
    }

    fn time(&self, now: Instant) -> Duration {
        self.time + self.unseen(now).min(STEP)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: LeaseId = LeaseId(1);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_pause_shorter_than_a_second_ends_no_short_lease() {
        let begin = Instant::now();
        let mut clock = LeaseClock::new(begin);
        clock.start(LEASE, 300 * MS, begin);
        assert_eq!(clock.left(LEASE, begin), Some((300 * MS, 300 * MS)));
        assert_eq!(clock.left(LEASE, begin + 900 * MS), Some((300 * MS, 200 * MS)));
        assert_eq!(clock.look(begin + 900 * MS), [], "only a step of it was seen");
        assert_eq!(clock.look(begin + 1000 * MS), []);
        assert_eq!(clock.look(begin + 1100 * MS), [LEASE]);
    }

    #[test]
    fn a_lease_that_is_due_cannot_be_kept_alive() {
        let begin = Instant::now();
        let mut clock = LeaseClock::new(begin);
        clock.start(LEASE, 60 * MS, begin);
        clock.start(LeaseId(2), 50 * MS, begin);
        assert_eq!(clock.look(begin + 100 * MS), [LeaseId(2), LEASE], "in the order in which they were due");
        assert_eq!(clock.keep_alive(LEASE, begin + 100 * MS), None);
        assert_eq!(clock.look(begin + 200 * MS), []);
    }

    #[test]
    fn a_stopped_lease_is_not_due() {
        let begin = Instant::now();
        let mut clock = LeaseClock::new(begin);
        clock.start(LEASE, 50 * MS, begin);
        clock.stop(LEASE);
        assert_eq!(clock.look(begin + 100 * MS), []);
        assert_eq!(clock.due.len() + clock.leases.len(), 0);
    }

    #[test]
    fn agreement_gives_time_only_to_those_that_did_not_run() {
        let begin = Instant::now();
        let mut clock = LeaseClock::new(begin);
        clock.start(LEASE, 150 * MS, begin);
        clock.start(LeaseId(2), 50 * MS, begin);
        let later = begin + 100 * MS;
        assert_eq!(clock.look(later), [LeaseId(2)]);
        clock.start(LeaseId(3), 500 * MS, later);
        clock.agree_with([(LEASE, 150 * MS), (LeaseId(2), 50 * MS)].into_iter(), later);
        let left = |id| clock.left(LeaseId(id), later).map(|(_, left)| left);
        assert_eq!([left(1), left(2), left(3)], [Some(50 * MS), Some(50 * MS), None]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Look(u64),
        KeepAlive(u64),
    }

    proptest! {
        /// However the looks fall: a lease never ends before its time has passed since it was last kept alive, nor
        /// before that much has been seen; and it ends by the first look at which so much has been seen in whole steps.
        #[test]
        fn no_lease_ends_before_its_time_was_seen(
            ttl in 1u64..2000,
            steps in prop::collection::vec(
                prop_oneof![4 => (0u64..400).prop_map(Step::Look), 1 => (0u64..400).prop_map(Step::KeepAlive)], 1..80),
        ) {
            let begin = Instant::now();
            let ttl = MS * u32::try_from(ttl).unwrap();
            let mut clock = LeaseClock::new(begin);
            clock.start(LEASE, ttl, begin);
            let (mut now, mut kept, mut looked) = (begin, begin, begin);
            // What was seen since the keep-alive: at most, and without the part of a step in which it fell.
            let (mut most, mut least) = (Duration::ZERO, Duration::ZERO);
            for step in steps {
                match step {
                    Step::KeepAlive(gap) => {
                        now += MS * u32::try_from(gap).unwrap();
                        prop_assert_eq!(clock.keep_alive(LEASE, now), Some(ttl), "it has not been reported");
                        kept = now;
                        (most, least) = (Duration::ZERO, Duration::ZERO);
                    }
                    Step::Look(gap) => {
                        now += MS * u32::try_from(gap).unwrap();
                        let seen = (now - looked).min(STEP);
                        most += seen.min(now - kept);
                        least += if kept > looked { Duration::ZERO } else { seen };
                        looked = now;
                        let ended = clock.look(now);
                        prop_assert!(ended.is_empty() || (now - kept >= ttl && most >= ttl));
                        prop_assert!(!ended.is_empty() || least < ttl);
                        if !ended.is_empty() {
                            break;
                        }
                    }
                }
            }
        }
    }
}
