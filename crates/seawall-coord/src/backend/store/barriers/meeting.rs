//! What a party of a barrier does next, pure.
//!
//! Who is in is one record that does not go by itself; that a party is alive is a key of its own, which goes with its session.
//! A party that is in and has no key any more has died, and whoever sees that first breaks the barrier for all. How it ended
//! for a party is written into that party's key, so that it is told however late it looks and whoever has come since.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::barrier::Step;

/// Who is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// How many there have to be.
    pub(super) parties: u32,
    /// All of them are there and have gone in.
    pub(super) inside: bool,
    pub(super) members: Vec<Member>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    /// Which key says that it is alive.
    pub(super) key: String,
    pub(super) owner: String,
    /// It has done what there was to do inside.
    pub(super) left: bool,
}

/// Where a party stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    Entering,
    Inside,
    Leaving,
    Done,
    Broken { who: String },
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The record becomes this, or goes, and these parties stand there.
    Write {
        record: Option<Record>,
        phases: Vec<(String, Phase)>,
    },
    /// Somebody else has to do something.
    Wait,
    /// The step is made by all.
    Done,
    Broken {
        who: String,
    },
    /// The others mean another number of parties.
    Differs {
        parties: u32,
    },
    /// The own key is gone.
    Gone,
}

/// The party itself.
pub(super) struct Me<'a> {
    pub(super) key: &'a str,
    pub(super) owner: &'a str,
    pub(super) parties: u32,
}

/// `alive` is the parties' keys.
pub(super) fn next(record: Option<&Record>, alive: &BTreeMap<String, Phase>, me: &Me<'_>, step: Step) -> Next {
    let own = alive.get(me.key);
    match (own, step) {
        (Some(Phase::Broken { who }), _) => return Next::Broken { who: who.clone() },
        (Some(Phase::Inside | Phase::Leaving | Phase::Done), Step::Enter) | (Some(Phase::Done), Step::Leave) => {
            return Next::Done;
        }
        (None, Step::Leave) => return Next::Gone,
        _ => {}
    }
    let here = |member: &&Member| alive.contains_key(&member.key);
    let Some(record) = record else {
        return match own {
            None => enter(Record { parties: me.parties, inside: false, members: Vec::new() }, alive, me),
            // It was in, and whoever took the record away would have said so here.
            Some(_) => Next::Broken { who: "somebody".to_owned() },
        };
    };
    if let Some(dead) = record.members.iter().find(|member| !member.left && !alive.contains_key(&member.key)) {
        let broken = Phase::Broken { who: dead.owner.clone() };
        let phases = record.members.iter().filter(here).map(|one| (one.key.clone(), broken.clone())).collect();
        return Next::Write { record: None, phases };
    }
    match (own, step) {
        (None, _) if record.parties != me.parties => Next::Differs { parties: record.parties },
        // Those before are to leave first.
        (None, _) if record.inside => Next::Wait,
        (None, _) => enter(record.clone(), alive, me),
        (Some(Phase::Inside), Step::Leave) => {
            let mut record = record.clone();
            for member in record.members.iter_mut().filter(|member| member.key == me.key) {
                member.left = true;
            }
            if record.members.iter().all(|member| member.left) {
                let all = record.members.iter().filter(here).map(|one| (one.key.clone(), Phase::Done)).collect();
                return Next::Write { record: None, phases: all };
            }
            Next::Write { record: Some(record), phases: vec![(me.key.to_owned(), Phase::Leaving)] }
        }
        (Some(_), _) => Next::Wait,
    }
}

fn enter(mut record: Record, alive: &BTreeMap<String, Phase>, me: &Me<'_>) -> Next {
    record.members.push(Member { key: me.key.to_owned(), owner: me.owner.to_owned(), left: false });
    record.inside = u32::try_from(record.members.len()).is_ok_and(|count| count >= record.parties);
    let phase = if record.inside { Phase::Inside } else { Phase::Entering };
    let mut phases = vec![(me.key.to_owned(), phase.clone())];
    if record.inside {
        let others = record.members.iter().filter(|one| one.key != me.key && alive.contains_key(&one.key));
        phases.extend(others.map(|one| (one.key.clone(), phase.clone())));
    }
    Next::Write { record: Some(record), phases }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct World {
        record: Option<Record>,
        alive: BTreeMap<String, Phase>,
    }

    impl World {
        fn step(&mut self, key: &str, parties: u32, step: Step) -> Next {
            let me = Me { key, owner: key, parties };
            let next = next(self.record.as_ref(), &self.alive, &me, step);
            if let Next::Write { record, phases } = &next {
                self.record = record.clone();
                self.alive.extend(phases.iter().cloned());
            }
            next
        }

        /// Until it has to wait or is told something.
        fn run(&mut self, key: &str, parties: u32, step: Step) -> Next {
            for _ in 0..4 {
                match self.step(key, parties, step) {
                    Next::Write { .. } => {}
                    next => return next,
                }
            }
            panic!("in a circle")
        }
    }

    fn broken(who: &str) -> Next {
        Next::Broken { who: who.to_owned() }
    }

    #[test]
    fn all_go_in_together_and_out_together() {
        let mut world = World::default();
        assert_eq!(world.run("a", 2, Step::Enter), Next::Wait);
        assert_eq!(world.run("c", 3, Step::Enter), Next::Differs { parties: 2 });
        assert_eq!(world.run("b", 2, Step::Enter), Next::Done);
        assert_eq!(world.run("a", 2, Step::Enter), Next::Done);
        assert_eq!(world.run("c", 2, Step::Enter), Next::Wait, "the next ones wait outside");
        assert_eq!(world.run("a", 2, Step::Leave), Next::Wait);
        assert_eq!(world.run("b", 2, Step::Leave), Next::Done);
        // However late it looks, and whoever has come since.
        assert_eq!(world.run("c", 2, Step::Enter), Next::Wait);
        assert_eq!(world.run("a", 2, Step::Leave), Next::Done);
        assert_eq!(world.run("d", 2, Step::Enter), Next::Done);
        assert_eq!(world.run("c", 2, Step::Enter), Next::Done);
    }

    #[test]
    fn a_death_breaks_it_for_all_who_were_in() {
        for inside in [false, true] {
            let mut world = World::default();
            let parties = if inside { 2 } else { 3 };
            assert_eq!(world.run("a", parties, Step::Enter), Next::Wait);
            world.run("b", parties, Step::Enter);
            world.alive.remove("b");
            let step = if inside { Step::Leave } else { Step::Enter };
            assert_eq!(world.run("a", parties, step), broken("b"));
            assert_eq!(world.record, None);
            assert_eq!(world.run("a", parties, step), broken("b"), "again and again");
            assert_eq!(world.run("b", parties, Step::Leave), Next::Gone);
        }
        // Whoever has left may go.
        let mut world = World::default();
        world.run("a", 2, Step::Enter);
        world.run("b", 2, Step::Enter);
        world.run("b", 2, Step::Leave);
        world.alive.remove("b");
        assert_eq!(world.run("a", 2, Step::Leave), Next::Done);
    }

    proptest! {
        /// Whatever happens in whatever order: when everybody who lives looks, nobody waits for the dead; and nobody is inside
        /// unless all were there.
        #[test]
        fn nobody_waits_for_the_dead(moves in proptest::collection::vec((0u8..6, 0u8..4), 0..60)) {
            let mut world = World::default();
            let mut dead = std::collections::BTreeSet::new();
            for (party, what) in moves {
                let key = party.to_string();
                if dead.contains(&key) {
                    continue;
                }
                match what {
                    0 => {
                        world.alive.remove(&key);
                        dead.insert(key);
                    }
                    1 => drop(world.run(&key, 3, Step::Leave)),
                    _ => drop(world.run(&key, 3, Step::Enter)),
                }
                if let Some(record) = &world.record {
                    prop_assert_eq!(record.inside, record.members.len() == 3);
                }
                let inside = world.alive.values().filter(|phase| **phase == Phase::Inside).count();
                prop_assert!(inside <= 3 + dead.len());
            }
            let alive: Vec<_> = world.alive.keys().cloned().collect();
            for key in &alive {
                world.run(key, 3, Step::Enter);
            }
            if let Some(record) = &world.record {
                let waits_for_dead = record.members.iter().any(|one| !one.left && !world.alive.contains_key(&one.key));
                let somebody = alive.iter().any(|key| world.alive[key] == Phase::Entering);
                prop_assert!(!(waits_for_dead && somebody), "{:?}", record);
            }
        }
    }
}
