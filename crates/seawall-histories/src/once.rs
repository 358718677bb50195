//! C6: what happens once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Hold, Rule, Violation};

/// Each term of each election has one leader.
pub fn leaders(holds: &[Hold]) -> Vec<Violation> {
    let mut terms: BTreeMap<(&str, u64), &Hold> = BTreeMap::new();
    let mut found = Vec::new();
    for hold in holds {
        let Some(term) = hold.fence else { continue };
        if let Some(before) = terms.insert((&hold.lock, term), hold) {
            found.push(Violation::new(Rule::Once, format!("term {term} twice: {before}, and {hold}")));
        }
    }
    found
}

/// A leader started a job for a slot of its schedule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Start {
    /// The job.
    pub job: String,
    /// Which of its slots, however it names them.
    pub slot: String,
    /// In which term.
    pub term: u64,
}

/// Each slot of each job is started once at most.
pub fn starts(starts: &[Start]) -> Vec<Violation> {
    let mut slots: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for Start { job, slot, term } in starts {
        slots.entry((job, slot)).or_default().push(*term);
    }
    let twice = slots.into_iter().filter(|(_, terms)| terms.len() > 1);
    twice
        .map(|((job, slot), terms)| {
            Violation::new(
                Rule::Once,
                format!("`{job}` started {} times for slot {slot}, in terms {terms:?}", terms.len()),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Moment;

    #[test]
    fn terms_have_one_leader() {
        let hold = |process: &str, lock: &str, fence| Hold {
            process: process.into(),
            lock: lock.into(),
            asked: Moment(0),
            from: Moment(1),
            until: Moment(2),
            fence,
        };
        let good = [hold("a", "e", Some(1)), hold("b", "e", Some(2)), hold("b", "f", Some(1)), hold("a", "g", None)];
        assert_eq!(leaders(&good), []);
        assert_eq!(leaders(&[hold("a", "e", Some(1)), hold("b", "e", Some(1))]).len(), 1);
        // Even the same process: it led in a term, and then again in it.
        assert_eq!(leaders(&[hold("a", "e", Some(1)), hold("a", "e", Some(1))]).len(), 1);
    }

    #[test]
    fn slots_are_started_once() {
        let start = |job: &str, slot: &str, term| Start { job: job.into(), slot: slot.into(), term };
        assert_eq!(starts(&[start("a", "1", 1), start("a", "2", 1), start("b", "1", 1)]), []);
        let found = starts(&[start("a", "1", 1), start("a", "1", 2), start("a", "1", 2)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].what, "`a` started 3 times for slot 1, in terms [1, 2, 2]");
    }
}
