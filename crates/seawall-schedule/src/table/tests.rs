use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// The store, as far as the table needs one, and what has happened in it.
#[derive(Default)]
struct World {
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    events: Vec<Event>,
    /// How often each run was started.
    starts: BTreeMap<RunId, u32>,
}

impl World {
    fn put(&mut self, key: &str, value: bytes::Bytes) {
        self.revision = self.revision.next();
        let created = self.entries.get(key).map_or(self.revision, |entry| entry.created);
        let entry = Entry { key: key.into(), value, created, modified: self.revision, version: 1, lease: None };
        self.entries.insert(key.to_owned(), entry.clone());
        self.events.push(Event { revision: self.revision, key: Arc::from(key), entry: Some(entry) });
    }

    fn delete(&mut self, key: &str) {
        self.entries.remove(key);
        self.revision = self.revision.next();
        self.events.push(Event { revision: self.revision, key: Arc::from(key), entry: None });
    }

    fn put_job(&mut self, config: JobConfig, since: Timestamp) {
        let stored = Stored { config, source: keys::Source::Api, since };
        self.put(&keys::job(&name()), keys::json(&stored));
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.entries.contains_key(key),
            Compare::Modified(key, revision) => self.entries.get(key).is_some_and(|entry| entry.modified == *revision),
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, claim: &Claim) -> Option<Revision> {
        if !claim.compare.iter().all(|compare| self.holds(compare)) {
            return None;
        }
        let mut revision = None;
        for op in &claim.then {
            match op {
                Op::Put { key, value, .. } => {
                    self.put(key, value.clone());
                    revision = Some(self.revision);
                }
                Op::Delete(key) => self.delete(key),
                other => panic!("{other:?}"),
            }
        }
        if claim.record.state == State::Started {
            *self.starts.entry(claim.id).or_default() += 1;
        }
        revision
    }

    fn entries(&self) -> Vec<Entry> {
        self.entries.values().cloned().collect()
    }

    fn records(&self) -> BTreeMap<RunId, Record> {
        let record = |entry: &Entry| match keys::parse(&entry.key)? {
            Key::Run(_, id) => Some((id, serde_json::from_slice(&entry.value).unwrap())),
            Key::Job(_) => None,
        };
        self.entries.values().filter_map(record).collect()
    }
}

fn name() -> ServiceName {
    ServiceName::try_new("job").unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_780_000_000 + seconds).unwrap()
}

/// One leader after the other.
struct Leading {
    table: Table,
    seen: usize,
    claims: Vec<Claim>,
    works: Vec<(Claim, Revision)>,
}

impl Leading {
    fn begin(world: &World, term: u64) -> Self {
        let mut table = Table::new(Leader { term: Fence::new(term), name: format!("leader-{term}") });
        table.load(&world.entries());
        Self { table, seen: world.events.len(), claims: Vec::new(), works: Vec::new() }
    }

    fn look(&mut self, now: Timestamp) -> Vec<Step> {
        let mut others = Vec::new();
        for step in self.table.steps(now) {
            match step {
                Step::Claim(claim) => self.claims.push(*claim),
                other => others.push(other),
            }
        }
        others
    }

    fn hear(&mut self, world: &World, most: usize) {
        for event in world.events[self.seen..].iter().take(most) {
            self.table.apply(event);
            self.seen += 1;
        }
    }

    /// Commits one of the claims.
    fn claim(&mut self, world: &mut World, nth: usize) {
        if self.claims.is_empty() {
            return;
        }
        let claim = self.claims.remove(nth % self.claims.len());
        match world.commit(&claim) {
            Some(revision) => {
                self.table.claimed(&claim, revision);
                if claim.record.state == State::Started {
                    self.works.push((claim, revision));
                }
            }
            None => {
                self.table.not_claimed(&claim);
                self.table.load(&world.entries());
                self.seen = world.events.len();
            }
        }
    }

    /// Ends one of the works.
    fn end(&mut self, world: &mut World, nth: usize, now: Timestamp) {
        if self.works.is_empty() {
            return;
        }
        let (claim, revision) = self.works.remove(nth % self.works.len());
        let key = keys::run(&claim.job, claim.id);
        let record = claim.record.ended(State::Done, None, now);
        let held = world.holds(&Compare::Modified(key.clone(), revision));
        if held {
            world.put(&key, keys::json(&record));
        }
        self.table.ended(&claim.job, claim.id, held.then_some((record, world.revision)));
    }
}

#[derive(Clone, Debug)]
enum Act {
    Wait(i64),
    Look,
    Hear(usize),
    Claim(usize),
    End(usize),
    Die,
    Order,
    Change,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0_i64..25).prop_map(Act::Wait),
        6 => Just(Act::Look),
        4 => (0_usize..10).prop_map(Act::Hear),
        6 => (0_usize..10).prop_map(Act::Claim),
        5 => (0_usize..10).prop_map(Act::End),
        1 => Just(Act::Die),
        1 => Just(Act::Order),
        1 => Just(Act::Change),
    ];
    prop::collection::vec(act, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens in whatever order, with leaders that die at any moment and learn late of what is in the store.
    #[test]
    fn every_slot_is_started_once_and_none_is_lost(
        acts in acts(),
        overlap in prop::sample::select(&[Overlap::Forbid, Overlap::Allow, Overlap::Replace][..]),
        on_unknown in prop::sample::select(&[OnUnknown::Rerun, OnUnknown::Fail][..]),
    ) {
        let mut config = JobConfig {
            catch_up: CatchUp::All, catch_up_max: 1000, overlap, on_unknown, ..JobConfig::new("every 10s")
        };
        let (mut world, mut now, mut term) = (World::default(), at(0), 1);
        world.put_job(config.clone(), now);
        let mut leading = Leading::begin(&world, term);
        let mut deaths = 0;
        let mut cancels: Vec<RunId> = Vec::new();
        for act in acts {
            match act {
                Act::Wait(seconds) => now = Timestamp::from_second(now.as_second() + seconds).unwrap(),
                Act::Look => {
                    for step in leading.look(now) {
                        if let Step::Cancel(_, id) = step {
                            cancels.push(id);
                        }
                    }
                    if overlap == Overlap::Forbid {
                        let live = leading.claims.iter().chain(leading.works.iter().map(|(claim, _)| claim));
                        let live = live.filter(|claim| claim.record.state == State::Started && claim.record.starts == 1);
                        prop_assert!(live.count() <= 1);
                    }
                }
                Act::Hear(most) => leading.hear(&world, most),
                Act::Claim(nth) => leading.claim(&mut world, nth),
                Act::End(nth) => leading.end(&mut world, nth, now),
                Act::Die => {
                    deaths += 1;
                    term += 1;
                    leading = Leading::begin(&world, term);
                }
                Act::Order => {
                    let id = RunId { slot: now, by_hand: true };
                    if !world.entries.contains_key(&keys::run(&name(), id)) {
                        world.put(&keys::run(&name(), id), keys::json(&Record::ordered()));
                    }
                }
                Act::Change => {
                    config.deadline = Period::secs(config.deadline.as_secs() % 1000 + 1);
                    world.put_job(config.clone(), at(0));
                }
            }
        }
        // From here on nobody dies, and everything is told.
        for _ in 0..2000 {
            leading.hear(&world, usize::MAX);
            leading.look(now);
            leading.claim(&mut world, 0);
            leading.end(&mut world, 0, now);
        }
        prop_assert!(leading.claims.is_empty() && leading.works.is_empty());
        let records = world.records();
        for (id, count) in &world.starts {
            let most = if on_unknown == OnUnknown::Fail { 1 } else { 1 + deaths };
            prop_assert!(*count <= most, "{id}: {count}");
        }
        prop_assert!(records.values().all(|record| record.state.is_final()), "{records:?}");
        prop_assert!(records.len() <= HISTORY);
        let started: Vec<_> = world.starts.keys().filter(|id| !id.by_hand).map(|id| id.slot).collect();
        prop_assert_eq!(started, Job::try_new(config).unwrap().when.latest(at(0), now, 10_000));
        let _ = cancels;
    }
}

/// A leader of a job that nobody else changes, with the job in the store.
fn alone(config: JobConfig) -> (World, Leading) {
    let mut world = World::default();
    world.put_job(config, at(0));
    let leading = Leading::begin(&world, 7);
    (world, leading)
}

#[test]
fn what_a_dead_leader_has_left_is_started_again_or_not_as_it_is_wanted() {
    for (on_unknown, state, starts) in [(OnUnknown::Rerun, State::Started, 2), (OnUnknown::Fail, State::Unknown, 1)] {
        let (mut world, mut first) = alone(JobConfig { on_unknown, ..JobConfig::new("every 10s") });
        first.look(at(10));
        first.claim(&mut world, 0);
        let id = first.works[0].0.id;
        let mut second = Leading::begin(&world, 8);
        second.look(at(11));
        second.claim(&mut world, 0);
        let record = world.records()[&id].clone();
        assert_eq!((record.state, record.starts), (state, starts));
        assert!(on_unknown == OnUnknown::Rerun || record.error.unwrap().contains("leader-7 (term 7) died"));
        // The first is not dead, and comes too late.
        first.end(&mut world, 0, at(12));
        assert_eq!(world.records()[&id].state, state);
    }
}

#[test]
fn a_run_that_kills_its_leaders_is_given_up() {
    let (mut world, mut leading) = alone(JobConfig::new("every 10s"));
    for term in 0..2 * u64::from(MAX_STARTS) {
        leading.look(at(10));
        leading.claim(&mut world, 0);
        leading = Leading::begin(&world, term);
    }
    let record = world.records().into_values().next().unwrap();
    assert_eq!((record.state, record.starts), (State::Unknown, MAX_STARTS));
    assert!(record.error.unwrap().contains("as 9 others did"));
}

#[test]
fn runs_that_overlap() {
    // Forbidden: it is waited for, then the latest is run.
    let (mut world, mut leading) = alone(JobConfig::new("every 10s"));
    leading.look(at(10));
    leading.claim(&mut world, 0);
    assert!(leading.look(at(35)).is_empty() && leading.claims.is_empty());
    leading.end(&mut world, 0, at(36));
    assert_eq!(leading.look(at(36)), [Step::Skipped(name(), 1)]);
    assert_eq!(leading.claims[0].id.slot, at(30));
    // Allowed: side by side.
    let config = JobConfig { overlap: Overlap::Allow, ..JobConfig::new("every 10s") };
    let (mut world, mut leading) = alone(config);
    for n in 1..30 {
        leading.look(at(10 * n));
        leading.claim(&mut world, 0);
    }
    assert_eq!(leading.works.len(), PARALLEL);
    // Replaced: the one before has to have ended.
    let config = JobConfig { overlap: Overlap::Replace, ..JobConfig::new("every 10s") };
    let (mut world, mut leading) = alone(config);
    leading.look(at(10));
    leading.claim(&mut world, 0);
    let id = leading.works[0].0.id;
    assert_eq!(leading.look(at(20)), [Step::Cancel(name(), id)]);
    assert!(leading.look(at(20)).is_empty() && leading.claims.is_empty());
    leading.end(&mut world, 0, at(21));
    leading.look(at(21));
    assert_eq!(leading.claims[0].id.slot, at(20));
}

#[test]
fn a_job_that_succeeds_no_more_is_told_once() {
    let config = JobConfig { alarm_after: Some(Period::secs(25)), ..JobConfig::new("every 10s") };
    let (mut world, mut leading) = alone(config.clone());
    let alarms = |steps: Vec<Step>| steps.iter().filter(|step| matches!(step, Step::Alarm(..))).count();
    assert_eq!(alarms(leading.look(at(25))), 0);
    assert_eq!(alarms(leading.look(at(26))), 1);
    assert_eq!(alarms(leading.look(at(27))), 0);
    leading.claim(&mut world, 0);
    leading.end(&mut world, 0, at(30));
    assert_eq!(alarms(leading.look(at(31))), 0);
    assert_eq!(alarms(leading.look(at(56))), 1);
}

#[test]
fn a_job_for_other_times_begins_anew_and_one_that_is_gone_is_not_run() {
    let (mut world, mut leading) = alone(JobConfig::new("every 10s"));
    world.put_job(JobConfig::new("every 7s"), at(12));
    leading.hear(&world, 9);
    leading.look(at(20));
    leading.claim(&mut world, 0);
    let slots: Vec<_> = world.records().keys().map(|id| id.slot).collect();
    assert!(slots.len() == 1 && slots[0] > at(12), "{slots:?}");
    // Decided under what it said before.
    leading.end(&mut world, 0, at(20));
    leading.look(at(40));
    world.put_job(JobConfig { deadline: Period::secs(1), ..JobConfig::new("every 7s") }, at(12));
    let id = leading.claims[0].id;
    leading.claim(&mut world, 0);
    assert!(!world.starts.contains_key(&id));
    leading.look(at(40));
    assert_eq!((leading.claims[0].id, leading.claims[0].config.deadline), (id, Period::secs(1)));
    world.delete(&keys::job(&name()));
    leading.claim(&mut world, 0);
    assert!(!world.starts.contains_key(&id) && leading.look(at(60)).is_empty() && leading.claims.is_empty());
}

#[test]
fn the_history_is_bounded_and_what_was_decided_stays_known() {
    let (mut world, mut leading) = alone(JobConfig::new("every 10s"));
    leading.look(at(10));
    leading.claim(&mut world, 0);
    leading.end(&mut world, 0, at(10));
    let first = *world.records().keys().next().unwrap();
    for n in 0..2 * i64::try_from(HISTORY).unwrap() {
        let id = RunId { slot: Timestamp::from_millisecond(at(11).as_millisecond() + n).unwrap(), by_hand: true };
        world.put(&keys::run(&name(), id), keys::json(&Record::ordered()));
        leading.hear(&world, 9);
        leading.look(at(12));
        leading.claim(&mut world, 0);
        leading.end(&mut world, 0, at(12));
    }
    let records = world.records();
    assert!(records.len() <= HISTORY + 1, "{}", records.len());
    assert!(records.contains_key(&first));
    let mut next = Leading::begin(&world, 8);
    assert!(next.look(at(15)).is_empty() && next.claims.is_empty(), "nothing is run twice");
}
