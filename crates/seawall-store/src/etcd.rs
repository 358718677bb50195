//! The store in an etcd cluster: the trait's operations are etcd's own, under a prefix of the cluster's keys.
//!
//! Every call has a deadline. What is said of a write whose answer is lost is [`CommitError::Unknown`]; a write that has
//! surely not been seen is [`CommitError::Unavailable`]. Revisions are the cluster's: others that write to it move them on.
//!
//! No TLS and no users: etcd's own port, on a network that is trusted.

mod channel;
mod messages;
mod translate;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use seawall_types::Revision;
use tokio::time::Instant;
use tonic::Code;

use crate::model::{check, writes};
use crate::{
    CommitError, Committed, Cursor, Entry, Keys, Lease, LeaseId, LeaseInfo, Limits, MAX_KEY, MAX_OPS, MAX_VALUE, Op,
    Query, Range, ReadError, Snapshot, Status, Store, StoreError, Txn, WatchError,
};
use channel::{Channel, Fault};
use messages as m;
use translate::{Namespace, lease_number, number, revision, revision_of};

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long [`Etcd::wait`] waits.
const START: Duration = Duration::from_secs(10);
/// Between two attempts to connect, when it waits.
const AGAIN: Duration = Duration::from_millis(200);

/// Entries in one answer of a long reading; each may be a megabyte.
const PAGE: i64 = 128;

const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
const SECOND: Duration = Duration::from_secs(1);

/// A store in an etcd cluster; cheap to clone. Dropping it ends nothing but its connection.
#[derive(Clone, Debug)]
pub struct Etcd {
    channel: Arc<Channel>,
    names: Namespace,
    min_ttl: Duration,
}

impl Etcd {
    /// Connects to the cluster with these members (each as `host:port`); every key is kept as `<prefix>/<key>`. Asks the
    /// cluster once, to learn its shortest lease. Cancel safe.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when no member answers within 3 s; it names them.
    pub async fn connect(endpoints: &[String], prefix: &str) -> Result<Self, ReadError> {
        let channel = Channel::new(endpoints.iter().map(|addr| Arc::from(addr.as_str())).collect(), PATIENCE);
        let mut etcd = Self { channel: Arc::new(channel), names: Namespace::new(prefix), min_ttl: SECOND };
        let unavailable = |fault: Fault| ReadError::Unavailable(fault.text());
        // The floor follows from the cluster's election timeout, which cannot be asked for.
        let shortest: m::GrantResponse = etcd
            .channel
            .unary("/etcdserverpb.Lease/LeaseGrant", m::GrantRequest { ttl: 1 })
            .await
            .map_err(unavailable)?;
        etcd.min_ttl = Duration::from_secs(number(shortest.ttl)).max(SECOND);
        // If it cannot be revoked it ends by itself.
        let _ = etcd.revoke(LeaseId(number(shortest.id))).await;
        Ok(etcd)
    }

    /// [`connect`](Self::connect), again and again for up to 10 s.
    pub(crate) async fn wait(endpoints: &[String], prefix: &str) -> Result<Self, StoreError> {
        let end = Instant::now() + START;
        loop {
            match Self::connect(endpoints, prefix).await {
                Ok(etcd) => return Ok(etcd),
                Err(ReadError::Unavailable(why)) if Instant::now() + AGAIN >= end => return Err(StoreError::Etcd(why)),
                Err(error) => tracing::info!(%error, "waiting for etcd"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn read(&self, request: m::RangeRequest) -> Result<m::RangeResponse, ReadError> {
        let answer = self.channel.unary("/etcdserverpb.KV/Range", request).await;
        answer.map_err(|fault| ReadError::Unavailable(fault.text()))
    }

    /// Which lease of a transaction etcd does not know: it does not say, and is asked for each. `None` when it knows all of
    /// them by now.
    async fn missing_lease(&self, txn: &Txn) -> Option<LeaseId> {
        let leases = |ops: &[Op]| -> Vec<LeaseId> {
            let lease = |op: &Op| if let Op::Put { lease, .. } = op { *lease } else { None };
            ops.iter().filter_map(lease).collect()
        };
        let (mut leases, otherwise) = (leases(&txn.then), leases(&txn.otherwise));
        if leases.is_empty() || (!otherwise.is_empty() && !self.holds(txn).await) {
            leases = otherwise;
        }
        let first = *leases.first()?;
        if leases.iter().all(|lease| *lease == first) {
            return Some(first);
        }
        for lease in leases {
            if self.lease(lease).await == Ok(None) {
                return Some(lease);
            }
        }
        None
    }

    /// Whether the conditions of a transaction hold, as far as can be said.
    async fn holds(&self, txn: &Txn) -> bool {
        let compare = Txn { compare: txn.compare.clone(), ..Txn::default() };
        let answer = self.channel.unary("/etcdserverpb.KV/Txn", self.names.txn(&compare)).await;
        answer.is_ok_and(|answer: m::TxnResponse| answer.succeeded)
    }

    /// Every entry, in pages that are all of one revision.
    async fn all(&self) -> Result<(Revision, Vec<Entry>), ReadError> {
        let mut page = m::RangeRequest { limit: PAGE, ..self.names.keys(&Keys::prefix("")) };
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let answer = self.read(page.clone()).await?;
            let at = revision_of(answer.header);
            for kv in answer.kvs {
                entries.push(self.names.entry(kv).map_err(ReadError::Unavailable)?);
            }
            if page.revision == 0 {
                page.revision = revision(at);
            }
            match entries.last() {
                Some(last) if answer.more => {
                    page.key = self.names.key(&last.key);
                    page.key.push(0);
                }
                _ => return Ok((Revision(number(page.revision)), entries)),
            }
        }
    }

    /// The first revision that can be watched from.
    async fn oldest(&self) -> Result<Revision, ReadError> {
        match self.watch(Keys::one(""), Revision(2)).await {
            Ok(_) => Ok(Revision(2)),
            Err(WatchError::Compacted { oldest }) => Ok(oldest),
            Err(error) => Err(ReadError::Unavailable(error.to_string())),
        }
    }
}

#[async_trait]
impl Store for Etcd {
    fn limits(&self) -> Limits {
        Limits {
            min_ttl: self.min_ttl,
            max_ttl: MAX_TTL,
            ttl_step: SECOND,
            max_key: MAX_KEY,
            max_value: MAX_VALUE,
            max_ops: MAX_OPS,
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, ReadError> {
        let answer = self.read(m::RangeRequest { key: self.names.key(key), ..Default::default() }).await?;
        let entry = answer.kvs.into_iter().next().map(|kv| self.names.entry(kv));
        entry.transpose().map_err(ReadError::Unavailable)
    }

    async fn query(&self, query: Query) -> Result<Range, ReadError> {
        let (request, nothing) = self.names.query(&query);
        let answer = self.read(m::RangeRequest { count_only: nothing, ..request }).await?;
        let entries = answer.kvs.into_iter().map(|kv| self.names.entry(kv)).collect::<Result<_, _>>();
        let entries = entries.map_err(ReadError::Unavailable)?;
        Ok(Range { revision: revision_of(answer.header), entries, more: answer.more && !nothing })
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        check(&txn)?;
        let reads = !txn.then.iter().chain(&txn.otherwise).any(writes);
        let answer: m::TxnResponse = match self.channel.unary("/etcdserverpb.KV/Txn", self.names.txn(&txn)).await {
            Ok(answer) => answer,
            // Nothing can have been written.
            Err(Fault::Lost(why)) if reads => return Err(CommitError::Unavailable(why)),
            Err(Fault::Refused(Code::NotFound, why)) => {
                let lease = self.missing_lease(&txn).await;
                return Err(lease.map_or(CommitError::Unavailable(why), CommitError::NoLease));
            }
            Err(fault) => return Err(commit_error(fault)),
        };
        let ops = if answer.succeeded { &txn.then } else { &txn.otherwise };
        let results = self.names.results(ops, answer.responses).map_err(|why| {
            // It has been done, but what came of it cannot be said.
            if reads { CommitError::Unavailable(why) } else { CommitError::Unknown(why) }
        })?;
        Ok(Committed { revision: revision_of(answer.header), succeeded: answer.succeeded, results })
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, CommitError> {
        if ttl.is_zero() || ttl > MAX_TTL {
            return Err(CommitError::Invalid(format!(
                "a lease of {ttl:?}: more than 0 and at most {MAX_TTL:?} is allowed"
            )));
        }
        let seconds = i64::try_from(ttl.as_nanos().div_ceil(SECOND.as_nanos())).unwrap_or(i64::MAX);
        let request = m::GrantRequest { ttl: seconds };
        let answer: m::GrantResponse =
            self.channel.unary("/etcdserverpb.Lease/LeaseGrant", request).await.map_err(commit_error)?;
        if !answer.error.is_empty() {
            return Err(CommitError::Unavailable(answer.error));
        }
        Ok(Lease { id: LeaseId(number(answer.id)), ttl: Duration::from_secs(number(answer.ttl)) })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
        let id = lease_number(lease);
        let ask = || -> channel::Questions<_> { Box::pin(stream::iter([m::KeepAliveRequest { id }])) };
        let (answer, _): (m::KeepAliveResponse, _) =
            self.channel.stream("/etcdserverpb.Lease/LeaseKeepAlive", ask).await.map_err(|fault| match fault {
                Fault::Refused(Code::NotFound, _) => CommitError::NoLease(lease),
                fault => commit_error(fault),
            })?;
        match number(answer.ttl) {
            0 => Err(CommitError::NoLease(lease)),
            seconds => Ok(Duration::from_secs(seconds)),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
        let request = m::RevokeRequest { id: lease_number(lease) };
        let answer: Result<m::RevokeResponse, _> = self.channel.unary("/etcdserverpb.Lease/LeaseRevoke", request).await;
        match answer {
            Ok(answer) => Ok(revision_of(answer.header)),
            Err(Fault::Refused(Code::NotFound, _)) => Err(CommitError::NoLease(lease)),
            Err(fault) => Err(commit_error(fault)),
        }
    }

    async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseInfo>, ReadError> {
        let request = m::TimeToLiveRequest { id: lease_number(lease), keys: true };
        let answer: Result<m::TimeToLiveResponse, _> =
            self.channel.unary("/etcdserverpb.Lease/LeaseTimeToLive", request).await;
        let answer = match answer {
            Ok(answer) if answer.ttl < 0 => return Ok(None),
            Ok(answer) => answer,
            Err(Fault::Refused(Code::NotFound, _)) => return Ok(None),
            Err(fault) => return Err(ReadError::Unavailable(fault.text())),
        };
        // Keys of others that go with it are theirs.
        let mut keys: Vec<Arc<str>> = answer.keys.iter().filter_map(|key| self.names.own(key).ok()).collect();
        keys.sort();
        let seconds = |count| Duration::from_secs(number(count));
        Ok(Some(LeaseInfo { id: lease, ttl: seconds(answer.granted), left: seconds(answer.ttl), keys }))
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Cursor, WatchError> {
        watch::from(self.channel.clone(), self.names.clone(), keys, from).await
    }

    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        watch::now(self.channel.clone(), self.names.clone(), keys).await
    }

    async fn compact(&self, before: Revision) -> Result<(), CommitError> {
        // etcd keeps of the revision that it compacts at only what is still there. So that `before` stays whole it is the one
        // before; revisions 0 and 1 hold nothing.
        let Some(at @ 1..) = before.0.checked_sub(1) else { return Ok(()) };
        let request = m::CompactionRequest { revision: revision(Revision(at)) };
        let answer: Result<m::CompactionResponse, _> = self.channel.unary("/etcdserverpb.KV/Compact", request).await;
        match answer {
            Err(Fault::Refused(Code::OutOfRange, why)) if why.contains("compacted") => Ok(()),
            Err(fault) => Err(commit_error(fault)),
            Ok(_) => Ok(()),
        }
    }

    async fn status(&self) -> Result<Status, ReadError> {
        let all = self.names.keys(&Keys::prefix(""));
        let all = self.read(m::RangeRequest { count_only: true, ..all }).await?;
        let unavailable = |fault: Fault| ReadError::Unavailable(fault.text());
        let leases: m::LeasesResponse =
            self.channel.unary("/etcdserverpb.Lease/LeaseLeases", m::LeasesRequest {}).await.map_err(unavailable)?;
        let status: m::StatusResponse =
            self.channel.unary("/etcdserverpb.Maintenance/Status", m::StatusRequest {}).await.map_err(unavailable)?;
        Ok(Status {
            backend: "etcd",
            revision: revision_of(all.header),
            oldest: self.oldest().await?,
            entries: number(all.count),
            leases: u64::try_from(leases.leases.len()).unwrap_or(u64::MAX),
            bytes: number(status.db_size),
        })
    }

    async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let (revision, entries) = self.all().await?;
        Snapshot::of(self, revision, entries).await
    }
}

/// What a failed call is to one who writes.
fn commit_error(fault: Fault) -> CommitError {
    match fault {
        Fault::NotDone(why) => CommitError::Unavailable(why),
        Fault::Lost(why) => CommitError::Unknown(why),
        Fault::Refused(Code::ResourceExhausted, why) if why.contains("space exceeded") => CommitError::Full(why),
        Fault::Refused(Code::ResourceExhausted, why) if why.contains("larger than max") => CommitError::Invalid(why),
        Fault::Refused(Code::InvalidArgument | Code::OutOfRange, why) => CommitError::Invalid(why),
        Fault::Refused(_, why) => CommitError::Unavailable(why),
    }
}
