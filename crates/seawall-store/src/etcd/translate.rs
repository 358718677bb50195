//! The trait's words in etcd's, and back.

use std::sync::Arc;

use bytes::Bytes;
use seawall_types::Revision;

use super::messages as m;
use crate::{Compare, Entry, Event, Keys, LeaseId, Op, OpResult, Query, Txn};

/// The part of the cluster's keys that is ours.
#[derive(Clone, Debug)]
pub(super) struct Namespace(Arc<str>);

/// No lease of etcd has this number, and it is not the one for "without a lease".
const NO_SUCH_LEASE: i64 = -1;

impl Namespace {
    pub(super) fn new(prefix: &str) -> Self {
        Self(format!("{prefix}/").into())
    }

    /// A key as etcd has it.
    pub(super) fn key(&self, key: &str) -> Vec<u8> {
        [self.0.as_bytes(), key.as_bytes()].concat()
    }

    /// A key of etcd's as we have it.
    pub(super) fn own(&self, key: &[u8]) -> Result<Arc<str>, String> {
        let own = key.strip_prefix(self.0.as_bytes()).and_then(|key| std::str::from_utf8(key).ok());
        let foreign =
            || format!("the key {} in etcd was not written by Seawall", Bytes::copy_from_slice(key).escape_ascii());
        own.map(Arc::from).ok_or_else(foreign)
    }

    pub(super) fn entry(&self, kv: m::KeyValue) -> Result<Entry, String> {
        Ok(Entry {
            key: self.own(&kv.key)?,
            value: kv.value,
            created: Revision(number(kv.create_revision)),
            modified: Revision(number(kv.mod_revision)),
            version: number(kv.version),
            lease: lease_id(kv.lease),
        })
    }

    pub(super) fn event(&self, event: m::Event) -> Result<Event, String> {
        let kv = event.kv.ok_or("an event of etcd's has no key")?;
        let (revision, key) = (Revision(number(kv.mod_revision)), self.own(&kv.key)?);
        let entry = if event.kind == m::DELETED { None } else { Some(self.entry(kv)?) };
        Ok(Event { revision, key, entry })
    }

    /// The range of some keys.
    pub(super) fn keys(&self, keys: &Keys) -> m::RangeRequest {
        let (key, range_end) = match keys {
            Keys::One(key) => (self.key(key), Vec::new()),
            Keys::Prefix(prefix) => (self.key(prefix), self.end(prefix)),
        };
        m::RangeRequest { key, range_end, ..Default::default() }
    }

    /// The first key after those that begin with `prefix`.
    fn end(&self, prefix: &str) -> Vec<u8> {
        let mut end = self.key(prefix);
        // Text has no byte that is 255, and the namespace is not empty.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end
    }

    /// A query, and whether it is known beforehand to find nothing.
    pub(super) fn query(&self, query: &Query) -> (m::RangeRequest, bool) {
        let mut request = self.keys(&query.keys);
        request.limit = query.limit.map_or(0, |limit| i64::from(limit.get()));
        request.keys_only = query.keys_only;
        let Some(after) = query.after.as_deref() else { return (request, false) };
        match &query.keys {
            Keys::One(key) => (request, *after >= **key),
            Keys::Prefix(prefix) if *after < **prefix => (request, false),
            Keys::Prefix(_) => {
                request.key = self.key(after);
                request.key.push(0);
                let nothing = request.key >= request.range_end;
                if nothing {
                    request = self.keys(&query.keys);
                }
                (request, nothing)
            }
        }
    }

    pub(super) fn txn(&self, txn: &Txn) -> m::TxnRequest {
        let ops = |ops: &[Op]| ops.iter().map(|op| m::RequestOp { request: Some(self.op(op)) }).collect();
        m::TxnRequest {
            compare: txn.compare.iter().map(|compare| self.compare(compare)).collect(),
            success: ops(&txn.then),
            failure: ops(&txn.otherwise),
        }
    }

    fn op(&self, op: &Op) -> m::Request {
        let directory = |directory: &str, sort_order, max_create_revision| {
            m::Request::Range(m::RangeRequest {
                limit: 1,
                sort_order,
                sort_target: m::BY_CREATION,
                max_create_revision,
                ..self.keys(&Keys::prefix(directory))
            })
        };
        match op {
            Op::Put { key, value, lease } => m::Request::Put(m::PutRequest {
                key: self.key(key),
                value: value.clone(),
                lease: lease.map_or(0, lease_number),
            }),
            Op::Delete(key) => {
                m::Request::DeleteRange(m::DeleteRangeRequest { key: self.key(key), range_end: Vec::new() })
            }
            Op::DeletePrefix(prefix) => {
                m::Request::DeleteRange(m::DeleteRangeRequest { key: self.key(prefix), range_end: self.end(prefix) })
            }
            Op::Get(key) => m::Request::Range(self.keys(&Keys::one(key.as_str()))),
            Op::Oldest(of) => directory(of, m::ASCENDING, 0),
            // No key was created at revision 1; 0 would be no bound.
            Op::NewestBefore(of, before) => directory(of, m::DESCENDING, revision(*before).saturating_sub(1).max(1)),
        }
    }

    fn compare(&self, compare: &Compare) -> m::Compare {
        let (key, result, with) = match compare {
            Compare::Exists(key) => (key, m::GREATER, m::Target::Version(0)),
            Compare::Absent(key) => (key, m::EQUAL, m::Target::Version(0)),
            Compare::Value(key, value) => (key, m::EQUAL, m::Target::Value(value.clone())),
            Compare::Modified(key, at) => equal(key, at.0, m::Target::Mod),
            Compare::Created(key, at) => equal(key, at.0, m::Target::Create),
            Compare::Version(key, version) => equal(key, *version, m::Target::Version),
            Compare::Lease(key, lease) => equal(key, lease.0, m::Target::Lease),
            Compare::Unmodified(key, at) => match revision(*at).checked_add(1) {
                Some(bound) => (key, m::LESS, m::Target::Mod(bound)),
                None => (key, m::GREATER, m::Target::Version(-1)),
            },
        };
        let target = match with {
            m::Target::Version(_) => m::VERSION,
            m::Target::Create(_) => m::CREATE,
            m::Target::Mod(_) => m::MOD,
            m::Target::Value(_) => m::VALUE,
            m::Target::Lease(_) => m::LEASE,
        };
        m::Compare { result, target, key: self.key(key), with: Some(with) }
    }

    /// The answers to the operations of the branch that was taken.
    pub(super) fn results(&self, ops: &[Op], responses: Vec<m::ResponseOp>) -> Result<Vec<OpResult>, String> {
        let odd = || "etcd's answer does not fit the transaction".to_owned();
        if ops.len() != responses.len() {
            return Err(odd());
        }
        let result = |(op, response): (&Op, m::ResponseOp)| match (op, response.response) {
            (Op::Put { .. }, Some(m::Response::Put(_))) => Ok(OpResult::Put),
            (Op::Delete(_), Some(m::Response::DeleteRange(done))) => Ok(OpResult::Deleted(done.deleted > 0)),
            (Op::DeletePrefix(_), Some(m::Response::DeleteRange(done))) => {
                Ok(OpResult::DeletedMany(number(done.deleted)))
            }
            (Op::Get(_) | Op::Oldest(_) | Op::NewestBefore(..), Some(m::Response::Range(found))) => {
                let entry = found.kvs.into_iter().next().map(|kv| self.entry(kv));
                Ok(OpResult::Got(entry.transpose()?))
            }
            _ => Err(odd()),
        };
        ops.iter().zip(responses).map(result).collect()
    }
}

/// The condition that a number of a key is this one. An absent key's numbers are all 0 in etcd, and ours has none.
fn equal(key: &String, value: u64, target: impl Fn(i64) -> m::Target) -> (&String, i32, m::Target) {
    match i64::try_from(value) {
        Ok(value @ 1..) => (key, m::EQUAL, target(value)),
        // Never.
        _ => (key, m::LESS, m::Target::Version(0)),
    }
}

/// What etcd counts is never below 0.
pub(super) fn number(of: i64) -> u64 {
    u64::try_from(of).unwrap_or(0)
}

pub(super) fn revision(of: Revision) -> i64 {
    i64::try_from(of.0).unwrap_or(i64::MAX)
}

pub(super) fn revision_of(header: Option<m::Header>) -> Revision {
    Revision(header.map_or(0, |header| number(header.revision)))
}

pub(super) fn lease_number(lease: LeaseId) -> i64 {
    match i64::try_from(lease.0) {
        Ok(number @ 1..) => number,
        _ => NO_SUCH_LEASE,
    }
}

fn lease_id(number: i64) -> Option<LeaseId> {
    u64::try_from(number).ok().filter(|number| *number > 0).map(LeaseId)
}
