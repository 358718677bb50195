//! What a leader knows of jobs and runs, and what it has to do next. Pure: it is told what is in the store, and says what
//! is to be written there; who writes, and does the work, is [`crate::scheduler`].
//!
//! The slots of a job are claimed one after the other. So the newest claimed slot in the store says that all before it have been
//! decided, whenever a leader dies.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use seawall_coord::Fence;
use seawall_store::{Compare, Entry, Event, Op};
use seawall_types::{Period, Revision, ServiceName};

use crate::job::{CatchUp, Job, JobConfig, OnUnknown, Overlap, due};
use crate::jobs::{HISTORY, is_silent};
use crate::keys::{self, Key, Stored};
use crate::run::{Record, RunId, State};

/// How many runs of a job may be under way at once, where that is allowed.
const PARALLEL: usize = 16;
/// How many runs may be under way at once, of all jobs.
const LIVE: usize = 256;
/// How many leaders may start a run: one that kills each of them is given up at last.
const MAX_STARTS: u32 = 10;
/// How many old runs are forgotten in one transaction at most.
const FORGET: usize = 20;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// A record to be written, conditionally; then, if it says `started`, the work to be done.
    Claim(Box<Claim>),
    /// A run to be given up, for the one that is due.
    Cancel(ServiceName, RunId),
    /// So many times have passed and are not run.
    Skipped(ServiceName, usize),
    /// No run has succeeded for too long.
    Alarm(ServiceName, Period),
}

/// A record that a leader writes for a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claim {
    pub(crate) job: ServiceName,
    pub(crate) config: JobConfig,
    pub(crate) id: RunId,
    pub(crate) record: Record,
    pub(crate) compare: Vec<Compare>,
    pub(crate) then: Vec<Op>,
}

/// Who leads.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) term: Fence,
    pub(crate) name: String,
}

/// A job and its runs.
#[derive(Debug)]
struct Tracked {
    job: Job,
    revision: Revision,
    since: Timestamp,
    /// Everything up to then is decided.
    decided: Timestamp,
    /// The next time after that.
    next: Option<Timestamp>,
    runs: BTreeMap<RunId, (Record, Revision)>,
    /// Those that this leader claims or works at.
    live: BTreeSet<RunId>,
    /// The slot that is being claimed.
    claiming: Option<RunId>,
    cancelled: BTreeSet<RunId>,
    alarmed: bool,
}

#[derive(Debug)]
pub(crate) struct Table {
    leader: Leader,
    jobs: BTreeMap<ServiceName, Tracked>,
}

impl Table {
    pub(crate) fn new(leader: Leader) -> Self {
        Self { leader, jobs: BTreeMap::new() }
    }

    /// Everything that is in the store, read at one revision.
    pub(crate) fn load(&mut self, entries: &[Entry]) {
        let mut before = std::mem::take(&mut self.jobs);
        // Jobs come before runs, by their keys.
        for entry in entries {
            self.put(entry);
        }
        for (name, tracked) in &mut self.jobs {
            if let Some(before) = before.remove(name) {
                tracked.live = before.live;
                tracked.claiming = before.claiming;
                tracked.cancelled = before.cancelled;
                tracked.alarmed = before.alarmed;
                tracked.decide(before.decided);
            }
        }
    }

    pub(crate) fn apply(&mut self, event: &Event) {
        match (&event.entry, keys::parse(&event.key)) {
            (Some(entry), _) => self.put(entry),
            (None, Some(Key::Job(name))) => drop(self.jobs.remove(&name)),
            (None, Some(Key::Run(name, id))) => {
                if let Some(tracked) = self.jobs.get_mut(&name)
                    && tracked.runs.get(&id).is_some_and(|(_, revision)| *revision < event.revision)
                {
                    tracked.runs.remove(&id);
                }
            }
            (None, None) => {}
        }
    }

    fn put(&mut self, entry: &Entry) {
        match keys::parse(&entry.key) {
            Some(Key::Job(name)) => {
                let stored = serde_json::from_slice::<Stored>(&entry.value).map_err(|error| error.to_string());
                let job = stored.and_then(|stored| match Job::try_new(stored.config) {
                    Ok(job) => Ok((job, stored.since)),
                    Err(errors) => Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
                });
                match job {
                    Ok((job, since)) => self.put_job(name, job, since, entry.modified),
                    Err(error) => {
                        tracing::error!(job = %name, error, "this job in the store makes no sense here, and is not run");
                        self.jobs.remove(&name);
                    }
                }
            }
            Some(Key::Run(name, id)) => {
                if let Ok(record) = serde_json::from_slice(&entry.value) {
                    self.record(&name, id, record, entry.modified);
                }
            }
            None => {}
        }
    }

    fn put_job(&mut self, name: ServiceName, job: Job, since: Timestamp, revision: Revision) {
        match self.jobs.get_mut(&name) {
            Some(tracked) => {
                tracked.revision = revision;
                tracked.job = job;
                tracked.since = since;
                tracked.decide(since);
            }
            None => {
                let next = job.when.next(since);
                let (runs, live, cancelled) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
                let (claiming, alarmed, decided) = (None, false, since);
                let tracked = Tracked { job, revision, since, decided, next, runs, live, claiming, cancelled, alarmed };
                self.jobs.insert(name, tracked);
            }
        }
    }

    fn record(&mut self, name: &ServiceName, id: RunId, record: Record, revision: Revision) {
        let Some(tracked) = self.jobs.get_mut(name) else { return };
        if tracked.runs.get(&id).is_none_or(|(_, known)| *known < revision) {
            tracked.runs.insert(id, (record, revision));
            if !id.by_hand && id.slot > tracked.decided {
                tracked.decide(id.slot);
            }
        }
    }

    /// The claim is in the store.
    pub(crate) fn claimed(&mut self, claim: &Claim, revision: Revision) {
        self.record(&claim.job, claim.id, claim.record.clone(), revision);
        let Some(tracked) = self.jobs.get_mut(&claim.job) else { return };
        tracked.claiming = tracked.claiming.filter(|id| *id != claim.id);
        if claim.record.state.is_final() {
            tracked.live.remove(&claim.id);
            tracked.cancelled.remove(&claim.id);
        }
    }

    /// The claim is not in the store: something has changed there, which is to be loaded after this.
    pub(crate) fn not_claimed(&mut self, claim: &Claim) {
        let Some(tracked) = self.jobs.get_mut(&claim.job) else { return };
        tracked.live.remove(&claim.id);
        if tracked.claiming == Some(claim.id) {
            tracked.claiming = None;
            // To be decided again, under what the job says by now.
            let before = Timestamp::from_millisecond(claim.id.slot.as_millisecond() - 1).unwrap_or(tracked.decided);
            let known = tracked.runs.keys().rev().find(|id| !id.by_hand).map_or(tracked.since, |id| id.slot);
            tracked.decided = before.min(tracked.decided).max(known).max(tracked.since);
            tracked.next = tracked.job.when.next(tracked.decided);
        }
    }

    /// The work is over. Without a record, what became of it could not be written.
    pub(crate) fn ended(&mut self, name: &ServiceName, id: RunId, record: Option<(Record, Revision)>) {
        if let Some((record, revision)) = record {
            self.record(name, id, record, revision);
        }
        if let Some(tracked) = self.jobs.get_mut(name) {
            tracked.live.remove(&id);
            tracked.cancelled.remove(&id);
        }
    }

    /// Everything that is to be done now.
    pub(crate) fn steps(&mut self, now: Timestamp) -> Vec<Step> {
        let mut live: usize = self.jobs.values().map(|tracked| tracked.live.len()).sum();
        let mut steps = Vec::new();
        for (name, tracked) in &mut self.jobs {
            while live < LIVE
                && let Some(step) = tracked.step(&self.leader, name, now)
            {
                live += usize::from(matches!(step, Step::Claim(_)));
                steps.push(step);
            }
            let silent = tracked.is_silent(now);
            if std::mem::replace(&mut tracked.alarmed, silent) != silent && silent {
                steps.push(Step::Alarm(name.clone(), tracked.job.config.alarm_after.unwrap_or_default()));
            }
        }
        steps
    }

    /// The next time of any job that is not due yet.
    pub(crate) fn wake(&self, now: Timestamp) -> Option<Timestamp> {
        self.jobs.values().filter_map(|tracked| tracked.next).filter(|next| *next > now).min()
    }

    /// The latest time at which a run was started, by whoever's clock.
    pub(crate) fn latest_start(&self) -> Option<Timestamp> {
        self.jobs.values().flat_map(|tracked| tracked.runs.values()).filter_map(|(record, _)| record.started).max()
    }
}

impl Tracked {
    fn decide(&mut self, until: Timestamp) {
        if until > self.decided {
            self.decided = until;
        }
        self.next = self.job.when.next(self.decided);
    }

    fn is_silent(&self, now: Timestamp) -> bool {
        let done = self.runs.values().map(|(record, _)| record).filter(|record| record.state == State::Done);
        is_silent(&self.job.config, self.since, done.filter_map(|record| record.ended).max(), now)
    }

    fn step(&mut self, leader: &Leader, name: &ServiceName, now: Timestamp) -> Option<Step> {
        // What former leaders have left.
        let orphan = |(id, (record, _)): &(&RunId, &(Record, Revision))| {
            record.state == State::Started && !self.live.contains(*id)
        };
        if let Some(id) = self.runs.iter().find(orphan).map(|(id, _)| *id) {
            return Some(self.take_up(leader, name, id, now));
        }
        let full = match self.job.config.overlap {
            Overlap::Forbid => !self.live.is_empty(),
            Overlap::Allow => self.live.len() >= PARALLEL,
            Overlap::Replace => self.claiming.is_some(),
        };
        if full || self.claiming.is_some() {
            return None;
        }
        let ordered =
            self.runs.iter().find(|(id, (record, _))| record.state == State::Ordered && !self.live.contains(id));
        if let Some((id, (record, revision))) = ordered {
            let (id, record, revision) = (*id, record.clone(), *revision);
            if let Some(cancel) = self.cancel(name) {
                return Some(cancel);
            }
            if self.job.config.overlap == Overlap::Replace && !self.live.is_empty() {
                return None;
            }
            let compare = vec![Compare::Modified(keys::run(name, id), revision)];
            return Some(self.claim(leader, name, id, record, compare, now));
        }
        if self.next.is_none_or(|next| next > now) {
            return None;
        }
        let due = due(&self.job, self.decided, now);
        if due.skipped > 0 {
            // All that are skipped come before the first that is not.
            let until = due.slots.first().map_or(now, |first| before(*first));
            self.decide(until);
            return Some(Step::Skipped(name.clone(), due.skipped));
        }
        let Some(slot) = due.slots.first().copied() else {
            self.decide(now);
            return None;
        };
        if let Some(cancel) = self.cancel(name) {
            return Some(cancel);
        }
        if self.job.config.overlap == Overlap::Replace && !self.live.is_empty() {
            return None;
        }
        self.decide(if self.job.config.catch_up == CatchUp::All { slot } else { now });
        let id = RunId { slot, by_hand: false };
        self.claiming = Some(id);
        let compare = vec![Compare::Absent(keys::run(name, id)), Compare::Modified(keys::job(name), self.revision)];
        Some(self.claim(leader, name, id, Record::ordered(), compare, now))
    }

    /// The next run to be given up for one that is due, where that is wanted.
    fn cancel(&mut self, name: &ServiceName) -> Option<Step> {
        let replace = self.job.config.overlap == Overlap::Replace;
        let id = self.live.iter().find(|id| replace && !self.cancelled.contains(id)).copied()?;
        self.cancelled.insert(id);
        Some(Step::Cancel(name.clone(), id))
    }

    fn take_up(&mut self, leader: &Leader, name: &ServiceName, id: RunId, now: Timestamp) -> Step {
        let (record, revision) = self.runs[&id].clone();
        let compare = vec![Compare::Modified(keys::run(name, id), revision)];
        let term = record.term.map_or(0, Fence::get);
        let why = format!("its leader {} (term {term}) died in the middle of it", record.leader);
        let error = match self.job.config.on_unknown {
            OnUnknown::Rerun if record.starts < MAX_STARTS => {
                tracing::warn!(job = %name, run = %id, "is started again: {why}");
                return self.claim(leader, name, id, record, compare, now);
            }
            OnUnknown::Rerun => format!("{why}, as {} others did", record.starts.saturating_sub(1)),
            OnUnknown::Fail => why,
        };
        self.live.insert(id);
        let record = record.ended(State::Unknown, Some(error), now);
        self.write(name, id, record, compare)
    }

    fn claim(
        &mut self,
        leader: &Leader,
        name: &ServiceName,
        id: RunId,
        before: Record,
        compare: Vec<Compare>,
        now: Timestamp,
    ) -> Step {
        self.live.insert(id);
        let record = Record {
            state: State::Started,
            term: Some(leader.term),
            leader: leader.name.clone(),
            starts: before.starts + 1,
            started: before.started.or(Some(now)),
            ended: None,
            error: None,
        };
        self.write(name, id, record, compare)
    }

    fn write(&self, name: &ServiceName, id: RunId, record: Record, compare: Vec<Compare>) -> Step {
        let mut then = vec![Op::Put { key: keys::run(name, id), value: keys::json(&record), lease: None }];
        then.extend(self.forgettable(id).map(|id| Op::Delete(keys::run(name, id))));
        let (job, config) = (name.clone(), self.job.config.clone());
        Step::Claim(Box::new(Claim { job, config, id, record, compare, then }))
    }

    /// The oldest runs that are more than are remembered. Not the newest of the schedule, by which is known what was decided.
    fn forgettable(&self, new: RunId) -> impl Iterator<Item = RunId> {
        let more = (self.runs.len() + usize::from(!self.runs.contains_key(&new))).saturating_sub(HISTORY);
        let newest = self.runs.keys().rev().find(|id| !id.by_hand).copied();
        let old = self
            .runs
            .iter()
            .filter(move |(id, (record, _))| record.state.is_final() && **id != new && Some(**id) != newest);
        old.map(|(id, _)| *id).take(more.min(FORGET))
    }
}

fn before(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond() - 1).unwrap_or(time)
}

#[cfg(test)]
mod tests;
