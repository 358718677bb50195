//! Who is still beating. Pure: the clock is an argument.
//!
//! A registry that was itself asleep (paused, restarted, starved) cannot tell whose heartbeats it has missed; it gives
//! everybody the whole time again before it judges anybody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use seawall_types::{InstanceId, ServiceName};

/// The deadlines of all instances.
#[derive(Debug)]
pub struct Leases {
    ttl: Duration,
    deadlines: BTreeMap<(ServiceName, InstanceId), Instant>,
    ticked: Instant,
}

/// A gap between two ticks that means that we were asleep.
const PAUSE: Duration = Duration::from_secs(1);

impl Leases {
    /// Nobody yet.
    pub fn new(ttl: Duration, now: Instant) -> Self {
        Self { ttl, deadlines: BTreeMap::new(), ticked: now }
    }

    /// An instance has been heard of: it has the whole time again.
    pub fn beat(&mut self, service: ServiceName, id: InstanceId, now: Instant) {
        self.deadlines.insert((service, id), now + self.ttl);
    }

    /// An instance is known; if it is new it gets the whole time, if not nothing changes.
    pub fn watch(&mut self, service: ServiceName, id: InstanceId, now: Instant) {
        self.deadlines.entry((service, id)).or_insert(now + self.ttl);
    }

    /// Whether an instance that was taken out by [`Leases::tick`] has not been heard of since.
    pub fn is_gone(&self, service: &ServiceName, id: &InstanceId) -> bool {
        !self.deadlines.contains_key(&(service.clone(), id.clone()))
    }

    /// An instance has left.
    pub fn forget(&mut self, service: &ServiceName, id: &InstanceId) {
        self.deadlines.remove(&(service.clone(), id.clone()));
    }

    /// Takes out whoever has been silent for too long.
    pub fn tick(&mut self, now: Instant) -> Vec<(ServiceName, InstanceId)> {
        let gap = now.saturating_duration_since(self.ticked);
        self.ticked = now;
        if gap > PAUSE {
            self.deadlines.values_mut().for_each(|deadline| *deadline = now + self.ttl);
            return Vec::new();
        }
        let expired: Vec<_> =
            self.deadlines.iter().filter(|(_, deadline)| **deadline <= now).map(|(key, _)| key.clone()).collect();
        for key in &expired {
            self.deadlines.remove(key);
        }
        expired
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(250);

    fn key(id: &str) -> (ServiceName, InstanceId) {
        (ServiceName::try_new("order").unwrap(), InstanceId::try_new(id).unwrap())
    }

    #[test]
    fn the_silent_leave_and_the_beating_stay() {
        let mut now = Instant::now();
        let mut leases = Leases::new(Duration::from_secs(3), now);
        for id in ["a", "b"] {
            leases.beat(key(id).0, key(id).1, now);
        }
        let mut left = Vec::new();
        for _ in 0..20 {
            now += STEP;
            leases.beat(key("a").0, key("a").1, now);
            left.extend(leases.tick(now));
        }
        assert_eq!(left, [key("b")]);
        assert_eq!(leases.len(), 1);
    }

    #[test]
    fn after_an_own_pause_nobody_is_judged() {
        let mut now = Instant::now();
        let mut leases = Leases::new(Duration::from_secs(3), now);
        leases.beat(key("a").0, key("a").1, now);
        now += Duration::from_secs(60);
        assert_eq!(leases.tick(now), []);
        for _ in 0..11 {
            now += STEP;
            assert_eq!(leases.tick(now), []);
        }
        now += STEP;
        assert_eq!(leases.tick(now), [key("a")]);
    }
}
