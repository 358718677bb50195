//! The model against one that is too simple to be wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use seawall_types::Revision;

use super::{Change, Model};
use crate::{Entry, Keys, LeaseId, Op, OpResult, Query, Txn};

/// Keys, some of them within others' directories.
const KEYS: [&str; 9] = ["a", "q/1", "q/2", "q/3", "q/r/1", "q/r/2", "q/r/", "q//1", "r/1"];
const DIRECTORIES: [&str; 5] = ["q/", "q/r/", "q//", "r/", "none/"];

#[derive(Clone, Debug)]
enum Step {
    Put(usize, bool),
    Delete(usize),
    DeletePrefix(usize),
    Grant,
    Revoke,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..KEYS.len(), any::<bool>()).prop_map(|(key, leased)| Step::Put(key, leased)),
        4 => (0..KEYS.len()).prop_map(Step::Delete),
        1 => (0..DIRECTORIES.len()).prop_map(Step::DeletePrefix),
        1 => Just(Step::Grant),
        1 => Just(Step::Revoke),
    ]
}

fn read(model: &Model, op: Op) -> Option<Entry> {
    let done = model.read(&Txn { then: vec![op], ..Txn::default() }).expect("it only reads").unwrap();
    let [OpResult::Got(entry)] = &done.results[..] else { panic!("{done:?}") };
    entry.clone()
}

proptest! {
    /// Entries, the order of their creation and the leases' keys are what a plain map and a scan say; and a second model that
    /// replays the changes is no different.
    #[test]
    fn it_agrees_with_a_plain_map(steps in prop::collection::vec(step(), 0..300)) {
        let (mut model, mut copy) = (Model::default(), Model::default());
        // Key to (created, lease).
        let mut plain: BTreeMap<&str, (Revision, Option<LeaseId>)> = BTreeMap::new();
        let mut lease = None;
        let mut changes = Vec::new();
        for step in steps {
            match step {
                Step::Put(key, leased) => {
                    let lease = lease.filter(|_| leased);
                    let op = Op::Put { key: KEYS[key].into(), value: Bytes::new(), lease };
                    let done = model.commit(&Txn { then: vec![op], ..Txn::default() }, &mut changes).unwrap();
                    plain.entry(KEYS[key]).or_insert((done.revision, None)).1 = lease;
                }
                Step::Delete(key) => {
                    let done = model.commit(&Txn::delete(KEYS[key]), &mut changes).unwrap();
                    prop_assert_eq!(&done.results[..], &[OpResult::Deleted(plain.remove(KEYS[key]).is_some())]);
                }
                Step::DeletePrefix(directory) => {
                    let before = plain.len();
                    plain.retain(|key, _| !key.starts_with(DIRECTORIES[directory]));
                    let op = Op::DeletePrefix(DIRECTORIES[directory].into());
                    let done = model.commit(&Txn { then: vec![op], ..Txn::default() }, &mut changes).unwrap();
                    let gone = u64::try_from(before - plain.len()).unwrap();
                    prop_assert_eq!(&done.results[..], &[OpResult::DeletedMany(gone)]);
                }
                Step::Grant => lease = Some(model.grant(std::time::Duration::from_secs(1), &mut changes)),
                Step::Revoke => {
                    let Some(ended) = lease.take() else { continue };
                    model.revoke(ended, &mut changes).unwrap();
                    plain.retain(|_, (_, of)| *of != Some(ended));
                }
            }
            changes.drain(..).for_each(|change: Change| copy.apply(&change));
            for model in [&model, &copy] {
                let all = model.query(&Query::new(Keys::prefix(""))).entries;
                let kept: Vec<_> = all.iter().map(|e| (&*e.key, (e.created, e.lease))).collect();
                prop_assert_eq!(&kept, &plain.iter().map(|(key, of)| (*key, *of)).collect::<Vec<_>>());
                for directory in DIRECTORIES {
                    let mut by_age: Vec<_> = all.iter().filter(|e| e.key.starts_with(directory)).collect();
                    by_age.sort_by_key(|entry| (entry.created, entry.key.clone()));
                    let oldest = read(model, Op::Oldest(directory.into()));
                    prop_assert_eq!(oldest.as_ref(), by_age.first().copied());
                    for (n, entry) in by_age.iter().enumerate() {
                        let before = read(model, Op::NewestBefore(directory.into(), entry.created));
                        prop_assert_eq!(before.as_ref(), n.checked_sub(1).map(|n| by_age[n]));
                    }
                }
            }
        }
        let in_none = plain.keys().all(|key| !key.contains('/'));
        prop_assert_eq!(model.ages.0.is_empty(), in_none, "nothing is left behind");
    }
}

#[test]
fn who_is_first_and_who_is_before_takes_no_scan() {
    let mut model = Model::default();
    for n in 0..50_000u64 {
        let (revision, key): (_, Arc<str>) = (Revision(n + 2), format!("q/{n}").into());
        let entry = Entry {
            key: key.clone(),
            value: Bytes::new(),
            created: revision,
            modified: revision,
            version: 1,
            lease: None,
        };
        model.apply(&Change::Event(crate::Event { revision, key, entry: Some(entry) }));
    }
    let began = std::time::Instant::now();
    for n in 1..50_000 {
        let before = read(&model, Op::NewestBefore("q/".into(), Revision(n + 2))).unwrap();
        assert_eq!(before.created, Revision(n + 1));
        assert_eq!(read(&model, Op::Oldest("q/".into())).unwrap().created, Revision(2));
    }
    // A scan each time is 2.5 billion entries.
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}
