//! C5: once all is well again, nobody waits for ever.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Event, Moment, Rule, Violation, What};

/// Whoever asks after `healed`, or has asked before and still waits then, has the lock at most `within` after that; the caller
/// chooses it for the longest queue. Processes in which nothing is recorded after `healed` were dead by then.
pub fn wake_ups(events: &[Event], healed: Moment, within: Duration) -> Vec<Violation> {
    let mut waiting: BTreeMap<(&str, u64), &Event> = BTreeMap::new();
    let mut found = Vec::new();
    let mut alive = std::collections::BTreeSet::new();
    for event in events {
        let id = (event.process.as_str(), event.attempt);
        if event.at >= healed {
            alive.insert(event.process.as_str());
        }
        match &event.what {
            What::Asks => drop(waiting.insert(id, event)),
            What::Acquired { .. } | What::Failed { .. } => {
                let Some(asked) = waiting.remove(&id) else { continue };
                let waited = event.at.0.saturating_sub(asked.at.max(healed).0);
                let late = event.at >= healed && waited > Moment::after(within).0;
                if let What::Failed { why } = &event.what
                    && asked.at >= healed
                {
                    let (process, lock) = (&event.process, &event.lock);
                    found.push(Violation::new(
                        Rule::WakeUp,
                        format!("{process} asked for `{lock}` at {}, gave up at {}: {why}", asked.at, event.at),
                    ));
                } else if late {
                    let (process, lock) = (&event.process, &event.lock);
                    found.push(Violation::new(
                        Rule::WakeUp,
                        format!("{process} asked for `{lock}` at {}, had it at {} only", asked.at, event.at),
                    ));
                }
            }
            _ => {}
        }
    }
    for ((process, _), asked) in waiting {
        if alive.contains(process) || asked.at >= healed {
            let what = format!("{process} asked for `{}` at {} and waits to this day", asked.lock, asked.at);
            found.push(Violation::new(Rule::WakeUp, what));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, events: &[(u64, &str, u64, What)], violations: usize) {
        let event = |(at, process, attempt, what): &(u64, &str, u64, What)| Event {
            at: Moment(*at),
            process: (*process).into(),
            lock: "l".into(),
            attempt: *attempt,
            what: what.clone(),
        };
        let events: Vec<_> = events.iter().map(event).collect();
        let found = wake_ups(&events, Moment(100), Duration::from_nanos(10));
        assert_eq!(found.len(), violations, "{name}: {found:?}");
    }

    #[test]
    fn good_and_bad_ends() {
        let got = || What::Acquired { fence: None, until: Moment(1000) };
        let gave_up = || What::Failed { why: "unavailable".into() };
        check("served", &[(101, "a", 1, What::Asks), (110, "a", 1, got())], 0);
        check("late", &[(101, "a", 1, What::Asks), (112, "a", 1, got())], 1);
        check("never", &[(101, "a", 1, What::Asks)], 1);
        check("had asked before", &[(50, "a", 1, What::Asks), (109, "a", 1, got())], 0);
        check("was woken late", &[(50, "a", 1, What::Asks), (111, "a", 1, got())], 1);
        check("was not woken", &[(50, "a", 1, What::Asks), (101, "a", 2, What::Asks), (102, "a", 2, got())], 1);
        check("had died before", &[(50, "a", 1, What::Asks)], 0);
        check("a failure in the faults", &[(50, "a", 1, What::Asks), (60, "a", 1, gave_up())], 0);
        check("a failure after them", &[(101, "a", 1, What::Asks), (102, "a", 1, gave_up())], 1);
    }
}
