//! The store as a pure data structure: no clock, no disk, no await. The engine gives it transactions one at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use seawall_types::Revision;

use crate::{
    CommitError, Committed, Compare, Entry, Event, Keys, LeaseId, MAX_KEY, MAX_OPS, MAX_VALUE, Op, OpResult, Query,
    Range, Txn,
};

/// Every key and lease at one revision.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) revision: Revision,
    pub(crate) last_lease: LeaseId,
    entries: BTreeMap<Arc<str>, Entry>,
    ages: Ages,
    leases: BTreeMap<LeaseId, Lease>,
}

/// For every directory the keys in it, at any depth, by the revision that created them.
#[derive(Clone, Debug, Default)]
struct Ages(HashMap<Box<str>, BTreeSet<(Revision, Arc<str>)>>);

impl Ages {
    fn add(&mut self, key: &Arc<str>, created: Revision) {
        for directory in directories(key) {
            let keys = match self.0.get_mut(directory) {
                Some(keys) => keys,
                None => self.0.entry(directory.into()).or_default(),
            };
            keys.insert((created, key.clone()));
        }
    }

    fn remove(&mut self, key: &Arc<str>, created: Revision) {
        let age = (created, key.clone());
        for directory in directories(key) {
            let Some(keys) = self.0.get_mut(directory) else { continue };
            keys.remove(&age);
            if keys.is_empty() {
                self.0.remove(directory);
            }
        }
    }

    fn oldest(&self, directory: &str) -> Option<&Arc<str>> {
        self.0.get(directory)?.first().map(|(_, key)| key)
    }

    fn newest_before(&self, directory: &str, revision: Revision) -> Option<&Arc<str>> {
        // No key is empty, so this is before all of that revision.
        let end = (revision, Arc::from(""));
        self.0.get(directory)?.range(..end).next_back().map(|(_, key)| key)
    }
}

/// The directories that a key lies in: each of its prefixes that ends with `/`.
fn directories(key: &str) -> impl Iterator<Item = &str> {
    key.match_indices('/').map(|(at, _)| &key[..=at])
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    keys: BTreeSet<Arc<str>>,
}

/// What a commit has to make durable, and what a reader has to apply.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Event(Event),
    Granted(LeaseId, Duration),
    Ended(LeaseId),
    /// What happened before this revision is not kept any longer.
    Forgotten(Revision),
}

impl Default for Model {
    fn default() -> Self {
        // As in etcd, the empty store stands at revision 1.
        Self {
            revision: Revision(1),
            last_lease: LeaseId(0),
            entries: BTreeMap::new(),
            ages: Ages::default(),
            leases: BTreeMap::new(),
        }
    }
}

impl Model {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(crate) fn query(&self, query: &Query) -> Range {
        let first = match &query.keys {
            Keys::One(key) | Keys::Prefix(key) => &**key,
        };
        let from = match query.after.as_deref() {
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first),
        };
        let limit = query.limit.map_or(usize::MAX, |limit| usize::try_from(limit.get()).unwrap_or(usize::MAX));
        let entries = self.entries.range::<str, _>((from, Bound::Unbounded)).map(|(_, entry)| entry);
        let mut entries = entries.take_while(|entry| query.keys.contain(&entry.key));
        let read = |entry: &Entry| {
            let value = if query.keys_only { Bytes::new() } else { entry.value.clone() };
            Entry { value, ..entry.clone() }
        };
        let page = entries.by_ref().take(limit).map(read).collect();
        Range { revision: self.revision, entries: page, more: entries.next().is_some() }
    }

    pub(crate) fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.values()
    }

    pub(crate) fn leases(&self) -> impl ExactSizeIterator<Item = (LeaseId, Duration)> + DoubleEndedIterator {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    pub(crate) fn has_lease(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// The keys that go with a lease.
    pub(crate) fn keys_of(&self, id: LeaseId) -> Vec<Arc<str>> {
        self.leases.get(&id).map_or_else(Vec::new, |lease| lease.keys.iter().cloned().collect())
    }

    /// Does a transaction and says what it changed; changes nothing when it is refused.
    pub(crate) fn commit(&mut self, txn: &Txn, changes: &mut Vec<Change>) -> Result<Committed, CommitError> {
        check(txn)?;
        let (succeeded, ops) = self.branch(txn);
        // As in etcd, a lease matters only in the branch that is taken.
        let missing = ops.iter().find_map(|op| match op {
            Op::Put { lease, .. } => lease.filter(|lease| !self.has_lease(*lease)),
            _ => None,
        });
        if let Some(lease) = missing {
            return Err(CommitError::NoLease(lease));
        }
        let next = self.revision.next();
        let before = changes.len();
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Put { key, value, lease } => {
                    let old = self.entries.get(key.as_str());
                    let entry = Entry {
                        key: old.map_or_else(|| key.as_str().into(), |old| old.key.clone()),
                        value: value.clone(),
                        created: old.map_or(next, |old| old.created),
                        modified: next,
                        version: old.map_or(1, |old| old.version + 1),
                        lease: *lease,
                    };
                    self.change(Event { revision: next, key: entry.key.clone(), entry: Some(entry) }, changes);
                    OpResult::Put
                }
                Op::Delete(key) => match self.entries.get(key.as_str()).map(|entry| entry.key.clone()) {
                    Some(key) => {
                        self.change(Event { revision: next, key, entry: None }, changes);
                        OpResult::Deleted(true)
                    }
                    None => OpResult::Deleted(false),
                },
                Op::DeletePrefix(prefix) => {
                    let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
                    let keys = self.entries.range::<str, _>(from).map(|(key, _)| key);
                    let keys: Vec<_> = keys.take_while(|key| key.starts_with(prefix.as_str())).cloned().collect();
                    let count = u64::try_from(keys.len()).unwrap_or(u64::MAX);
                    for key in keys {
                        self.change(Event { revision: next, key, entry: None }, changes);
                    }
                    OpResult::DeletedMany(count)
                }
                Op::Get(_) | Op::Oldest(_) | Op::NewestBefore(..) => OpResult::Got(self.look_up(op).cloned()),
            });
        }
        if changes.len() > before {
            self.revision = next;
        }
        Ok(Committed { revision: self.revision, succeeded, results })
    }

    /// Does a transaction that only reads, without anybody's turn; `None` when it may write.
    pub(crate) fn read(&self, txn: &Txn) -> Option<Result<Committed, CommitError>> {
        if txn.then.iter().chain(&txn.otherwise).any(writes) {
            return None;
        }
        Some(check(txn).map(|()| {
            let (succeeded, ops) = self.branch(txn);
            let results = ops.iter().map(|op| OpResult::Got(self.look_up(op).cloned())).collect();
            Committed { revision: self.revision, succeeded, results }
        }))
    }

    /// Whether the conditions hold, and what is to be done then.
    fn branch<'a>(&self, txn: &'a Txn) -> (bool, &'a [Op]) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        (succeeded, if succeeded { &txn.then } else { &txn.otherwise })
    }

    /// The keys and values that a transaction would put if it were done now; None when it would put nothing.
    pub(crate) fn puts(&self, txn: &Txn) -> Option<usize> {
        let size = |op: &Op| match op {
            Op::Put { key, value, .. } => Some(key.len() + value.len()),
            _ => None,
        };
        self.branch(txn).1.iter().filter_map(size).reduce(|sum, size| sum + size)
    }

    /// What an operation that reads finds.
    fn look_up(&self, op: &Op) -> Option<&Entry> {
        let key = match op {
            Op::Get(key) => key.as_str(),
            Op::Oldest(directory) => self.ages.oldest(directory)?,
            Op::NewestBefore(directory, revision) => self.ages.newest_before(directory, *revision)?,
            Op::Put { .. } | Op::Delete(_) | Op::DeletePrefix(_) => return None,
        };
        self.entries.get(key)
    }

    pub(crate) fn grant(&mut self, ttl: Duration, changes: &mut Vec<Change>) -> LeaseId {
        let id = LeaseId(self.last_lease.0 + 1);
        let change = Change::Granted(id, ttl);
        self.apply(&change);
        changes.push(change);
        id
    }

    pub(crate) fn revoke(&mut self, id: LeaseId, changes: &mut Vec<Change>) -> Result<Revision, CommitError> {
        let lease = self.leases.get(&id).ok_or(CommitError::NoLease(id))?;
        let next = self.revision.next();
        let keys: Vec<_> = lease.keys.iter().cloned().collect();
        if !keys.is_empty() {
            self.revision = next;
        }
        for key in keys {
            self.change(Event { revision: next, key, entry: None }, changes);
        }
        let change = Change::Ended(id);
        self.apply(&change);
        changes.push(change);
        Ok(self.revision)
    }

    /// Lets the history before a revision be forgotten.
    pub(crate) fn compact(&self, before: Revision, changes: &mut Vec<Change>) -> Result<(), CommitError> {
        let next = self.revision.next();
        if before > next {
            return Err(CommitError::Invalid(format!("revision {before} is beyond {next}, the next one")));
        }
        changes.push(Change::Forgotten(before));
        Ok(())
    }

    /// Replays a change that another copy of the model has made.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Event(event) => {
                self.revision = self.revision.max(event.revision);
                self.put(&event.key, event.entry.clone());
            }
            Change::Granted(id, ttl) => {
                self.last_lease = self.last_lease.max(*id);
                self.leases.insert(*id, Lease { ttl: *ttl, keys: BTreeSet::new() });
            }
            Change::Ended(id) => drop(self.leases.remove(id)),
            // It is no part of the model.
            Change::Forgotten(_) => {}
        }
    }

    fn change(&mut self, event: Event, changes: &mut Vec<Change>) {
        self.put(&event.key, event.entry.clone());
        changes.push(Change::Event(event));
    }

    fn put(&mut self, key: &Arc<str>, entry: Option<Entry>) {
        let lease = entry.as_ref().and_then(|entry| entry.lease);
        let created = entry.as_ref().map(|entry| entry.created);
        let old = match entry {
            Some(entry) => self.entries.insert(key.clone(), entry),
            None => self.entries.remove(key),
        };
        let before = old.as_ref().map(|old| old.created);
        if before != created {
            if let Some(before) = before {
                self.ages.remove(key, before);
            }
            if let Some(created) = created {
                self.ages.add(key, created);
            }
        }
        if let Some(lease) = old.and_then(|old| old.lease).and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(key);
        }
        if let Some(lease) = lease.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.insert(key.clone());
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let entry = |key: &String| self.entries.get(key.as_str());
        match compare {
            Compare::Exists(key) => entry(key).is_some(),
            Compare::Absent(key) => entry(key).is_none(),
            Compare::Modified(key, revision) => entry(key).is_some_and(|entry| entry.modified == *revision),
            Compare::Created(key, revision) => entry(key).is_some_and(|entry| entry.created == *revision),
            Compare::Value(key, value) => entry(key).is_some_and(|entry| entry.value == value),
            Compare::Unmodified(key, revision) => entry(key).is_none_or(|entry| entry.modified <= *revision),
            Compare::Lease(key, lease) => entry(key).is_some_and(|entry| entry.lease == Some(*lease)),
            Compare::Version(key, version) => entry(key).is_some_and(|entry| entry.version == *version),
        }
    }
}

/// The key, prefix or directory of an operation.
fn subject(op: &Op) -> &str {
    match op {
        Op::Put { key: subject, .. }
        | Op::Delete(subject)
        | Op::DeletePrefix(subject)
        | Op::Get(subject)
        | Op::Oldest(subject)
        | Op::NewestBefore(subject, _) => subject,
    }
}

pub(crate) fn writes(op: &Op) -> bool {
    matches!(op, Op::Put { .. } | Op::Delete(_) | Op::DeletePrefix(_))
}

/// What is refused whatever the store holds: in either branch.
pub(crate) fn check(txn: &Txn) -> Result<(), CommitError> {
    let invalid = |why: String| Err(CommitError::Invalid(why));
    for ops in [&txn.then, &txn.otherwise] {
        if ops.len() > MAX_OPS || txn.compare.len() > MAX_OPS {
            return invalid(format!("more than {MAX_OPS} conditions or operations in one transaction"));
        }
        let mut written = BTreeSet::new();
        for op in ops {
            let key = subject(op);
            if key.is_empty() || key.len() > MAX_KEY {
                return invalid(format!("a key of {} bytes: 1 to {MAX_KEY} are allowed", key.len()));
            }
            if matches!(op, Op::Oldest(_) | Op::NewestBefore(..)) && !key.ends_with('/') {
                return invalid(format!("`{key}` is no directory: it does not end with `/`"));
            }
            if matches!(op, Op::Put { .. } | Op::Delete(_)) && !written.insert(key) {
                return invalid(format!("key `{key}` is written twice in one transaction"));
            }
            if let Op::DeletePrefix(prefix) = op {
                let put = |op: &&Op| matches!(op, Op::Put { key, .. } if key.starts_with(prefix.as_str()));
                if let Some(Op::Put { key, .. }) = ops.iter().find(put) {
                    return invalid(format!("key `{key}` is put where everything with `{prefix}` is deleted"));
                }
            }
            if let Op::Put { value, .. } = op
                && value.len() > MAX_VALUE
            {
                return invalid(format!("a value of {} bytes: at most {MAX_VALUE} are allowed", value.len()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
