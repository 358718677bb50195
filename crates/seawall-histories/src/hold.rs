//! Who held a lock from when to when, by its own view; C1 and C2.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::{Event, Moment, Rule, Violation, What};

/// From the answer to an acquisition until its holder begins to give the lock back, knows of its loss, or stops to believe
/// in it by its own clock, whichever is first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Whose.
    pub process: String,
    /// Which lock.
    pub lock: String,
    /// When it began to ask.
    pub asked: Moment,
    /// When it knew that it had the lock.
    pub from: Moment,
    /// From when on it did not count on it.
    pub until: Moment,
    /// The fencing token, where there is one.
    pub fence: Option<u64>,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, lock, from, until, fence, .. } = self;
        write!(f, "{process} held `{lock}` from {from} to {until}")?;
        fence.map_or(Ok(()), |fence| write!(f, " with token {fence}"))
    }
}

/// The holds of a history, in the order in which they began. Events of one process are in order; those of several may be mixed.
pub fn holds(events: &[Event]) -> Vec<Hold> {
    let mut asked = HashMap::new();
    let mut holds: BTreeMap<(&str, u64), (Hold, bool)> = BTreeMap::new();
    for Event { at, process, lock, attempt, what } in events {
        let id = (process.as_str(), *attempt);
        let end = |hold: Option<&mut (Hold, bool)>| {
            if let Some((hold, ended)) = hold.filter(|(_, ended)| !ended) {
                hold.until = hold.until.min(*at);
                *ended = true;
            }
        };
        match what {
            What::Asks => drop(asked.insert(id, *at)),
            What::Acquired { fence, until } => {
                let asked = asked.get(&id).copied().unwrap_or(*at);
                let (process, lock) = (process.clone(), lock.clone());
                holds.insert(id, (Hold { process, lock, asked, from: *at, until: *until, fence: *fence }, false));
            }
            What::Sure { until } => {
                if let Some((hold, _)) = holds.get_mut(&id).filter(|(_, ended)| !ended) {
                    hold.until = hold.until.max(*until);
                }
            }
            What::Lost { .. } | What::Releases | What::Released { .. } => end(holds.get_mut(&id)),
            What::Failed { .. } | What::Forced { .. } => {}
        }
    }
    let mut holds: Vec<_> = holds.into_values().map(|(hold, _)| hold).collect();
    for event in events {
        let What::Forced { since, fence } = event.what else { continue };
        for hold in holds.iter_mut().filter(|hold| hold.lock == event.lock && hold.fence == Some(fence)) {
            hold.until = hold.until.min(since);
        }
    }
    holds.sort_by_key(|hold| (hold.from, hold.until));
    holds
}

/// C1: at no moment more than `permits` hold the same lock. `holds` in their order.
pub fn overlaps(holds: &[Hold], permits: usize) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut active: HashMap<&str, Vec<&Hold>> = HashMap::new();
    // One that was over before its holder knew of it was never believed in.
    for hold in holds.iter().filter(|hold| hold.from < hold.until) {
        let active = active.entry(&hold.lock).or_default();
        active.retain(|before| hold.from < before.until);
        active.push(hold);
        if active.len() > permits {
            let all: Vec<_> = active.iter().map(ToString::to_string).collect();
            found.push(Violation::new(Rule::Overlap, all.join(", and ")));
        }
    }
    found
}

/// C2: of the same lock, a later hold has a larger token. `holds` in their order.
pub fn fences(holds: &[Hold]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut latest: HashMap<&str, &Hold> = HashMap::new();
    // One that was over before its holder knew of it was never believed in.
    for hold in holds.iter().filter(|hold| hold.fence.is_some() && hold.from < hold.until) {
        match latest.get(hold.lock.as_str()) {
            Some(before) if before.fence >= hold.fence => {
                found.push(Violation::new(Rule::FenceOrder, format!("{before}, then {hold}")));
            }
            _ => drop(latest.insert(&hold.lock, hold)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64, process: &str, attempt: u64, what: What) -> Event {
        Event { at: Moment(at), process: process.into(), lock: "l".into(), attempt, what }
    }

    fn acquired(at: u64, process: &str, fence: u64, until: u64) -> Event {
        event(at, process, 1, What::Acquired { fence: Some(fence), until: Moment(until) })
    }

    fn lost(at: u64, process: &str) -> Event {
        event(at, process, 1, What::Lost { why: "expired".into() })
    }

    /// How often each rule is broken.
    fn check(name: &str, events: &[Event], overlap: usize, order: usize) {
        let holds = holds(events);
        assert_eq!((overlaps(&holds, 1).len(), fences(&holds).len()), (overlap, order), "{name}: {holds:?}");
    }

    #[test]
    fn good_and_bad_histories() {
        let releases = |at, process| event(at, process, 1, What::Releases);
        let sure = |at, process, until| event(at, process, 1, What::Sure { until: Moment(until) });
        check("one after the other", &[acquired(1, "a", 1, 9), releases(5, "a"), acquired(6, "b", 2, 9)], 0, 0);
        check(
            "in the moment of the release",
            &[acquired(1, "a", 1, 9), releases(5, "a"), acquired(5, "b", 2, 9)],
            0,
            0,
        );
        check("before the release", &[acquired(1, "a", 1, 9), acquired(4, "b", 2, 9), releases(5, "a")], 1, 0);
        check(
            "the answer counts, not the question",
            &[event(1, "b", 1, What::Asks), acquired(2, "a", 1, 9), releases(5, "a"), acquired(6, "b", 2, 9)],
            0,
            0,
        );
        check("after the deadline of one that was killed", &[acquired(1, "a", 1, 9), acquired(9, "b", 2, 20)], 0, 0);
        check("before that deadline", &[acquired(1, "a", 1, 9), acquired(8, "b", 2, 20)], 1, 0);
        check("kept alive meanwhile", &[acquired(1, "a", 1, 9), sure(5, "a", 15), acquired(10, "b", 2, 20)], 1, 0);
        check(
            "lost, then a release that is late",
            &[acquired(1, "a", 1, 9), lost(9, "a"), acquired(10, "b", 2, 20), releases(11, "a")],
            0,
            0,
        );
        check(
            "sure again after the loss is no hold",
            &[acquired(1, "a", 1, 9), lost(5, "a"), sure(6, "a", 20), acquired(7, "b", 2, 8)],
            0,
            0,
        );
        check("an answer that was too old", &[acquired(1, "b", 2, 9), acquired(3, "a", 1, 3)], 0, 0);
        check(
            "taken by force",
            &[
                acquired(1, "a", 1, 9),
                event(5, "op", 0, What::Forced { since: Moment(3), fence: 1 }),
                acquired(4, "b", 2, 9),
                lost(6, "a"),
            ],
            0,
            0,
        );
        check(
            "force that took another",
            &[
                acquired(1, "a", 1, 9),
                event(5, "op", 0, What::Forced { since: Moment(3), fence: 7 }),
                acquired(4, "b", 2, 9),
            ],
            1,
            0,
        );
        check("the same token twice", &[acquired(1, "a", 5, 3), acquired(4, "b", 5, 9)], 0, 1);
        check("a smaller token", &[acquired(1, "a", 5, 3), acquired(4, "b", 4, 9)], 0, 1);
        let other = Event { lock: "m".into(), ..acquired(2, "b", 1, 9) };
        check("another lock", &[acquired(1, "a", 5, 9), other], 0, 0);
    }

    #[test]
    fn so_many_may_hold_a_semaphore() {
        let all = holds(&[acquired(1, "a", 1, 9), acquired(2, "b", 2, 9), acquired(3, "c", 3, 9)]);
        assert_eq!([1, 2, 3].map(|permits| overlaps(&all, permits).len()), [2, 1, 0]);
    }
}
