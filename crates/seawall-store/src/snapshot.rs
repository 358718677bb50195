//! All of a store at one revision: for backups, and for moving to another backend.
//!
//! As a file it is a `store.db` without a history, so that one format is documented and one program checks both. What takes
//! the place of a store is made by [`Snapshot::succeed`]: its fencing tokens go on where those of its predecessor ended, and
//! nobody takes it for the same store.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use seawall_types::Revision;

use crate::embedded;
use crate::fence::next_fence_base;
use crate::sqlite::OpenError;
use crate::{Entry, FENCE_BASE, LeaseId, ReadError, Store};

/// The key that names a store for those who follow it; whoever finds another one there has to read everything anew.
pub const STORE_ID: &str = "meta/store-id";
/// What all keys begin with that a store has for itself.
pub(crate) const OWN: &str = "meta/";

/// All of a store at one revision. Its history is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision at which all of it was true.
    pub revision: Revision,
    /// The last lease that was granted, for a backend that counts them.
    pub last_lease: LeaseId,
    /// Every lease that a key goes with, and in an embedded store every other, with its whole time.
    pub leases: BTreeMap<LeaseId, Duration>,
    /// Every key, in their order.
    pub entries: Vec<Entry>,
}

/// A backup that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file could not be written.
    #[error("the backup {path} cannot be written: {why}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// What was found in a file that is sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The format of the file; older ones are brought to the newest when they are opened.
    pub format: i64,
    /// All that it holds.
    pub snapshot: Snapshot,
    /// The oldest revision that can be watched from.
    pub oldest: Revision,
    /// How many changes its history has.
    pub events: usize,
    /// The size of the file.
    pub bytes: u64,
}

impl Snapshot {
    /// Of entries that were all there at one revision, for a store that does not count its leases.
    pub(crate) async fn of<S: Store + ?Sized>(
        store: &S,
        revision: Revision,
        mut entries: Vec<Entry>,
    ) -> Result<Self, ReadError> {
        let ids: BTreeSet<LeaseId> = entries.iter().filter_map(|entry| entry.lease).collect();
        let mut leases = BTreeMap::new();
        for id in ids {
            if let Some(lease) = store.lease(id).await? {
                leases.insert(id, lease.ttl);
            }
        }
        entries.retain(|entry| entry.lease.is_none_or(|lease| leases.contains_key(&lease)));
        let last_lease = LeaseId(0);
        Ok(Self { revision, last_lease, leases, entries })
    }

    /// Checks a `store.db` or a backup as [`Embedded::open`](crate::Embedded::open) does, and reads it. The file stays as it
    /// is, but for what a process that was killed has left in the log beside it, which is written in its place.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::InUse`] while a control node has it.
    pub fn check(path: &Path) -> Result<Report, OpenError> {
        embedded::check(path)
    }

    /// Writes a new `store.db` with this in it, synced; under another name first, so that `path` is whole or absent. A file
    /// that is there is replaced.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn write(&self, path: &Path) -> Result<(), BackupError> {
        let failed = |why: String| BackupError::Write { path: path.to_owned(), why };
        let part = beside(path, ".part");
        let _ = fs::remove_file(&part);
        let written = embedded::write(&self.counted(), &part).map_err(|error| error.to_string());
        let put_in_place = || -> io::Result<()> {
            File::open(&part)?.sync_all()?;
            fs::rename(&part, path)?;
            sync_directory(path)
        };
        let written = written.and_then(|()| put_in_place().map_err(|error| error.to_string()));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written.map_err(failed)
    }

    /// With leases that are counted, as an embedded store needs it; an etcd has numbers of its own, far from these. Whoever keeps
    /// one of those alive keeps none of these alive.
    fn counted(&self) -> Cow<'_, Self> {
        if self.leases.keys().next_back().is_none_or(|last| *last <= self.last_lease) {
            return Cow::Borrowed(self);
        }
        let first = self.last_lease.0 + 1;
        let names: BTreeMap<LeaseId, LeaseId> = self.leases.keys().copied().zip((first..).map(LeaseId)).collect();
        let mut counted = self.clone();
        counted.leases = self.leases.iter().filter_map(|(id, ttl)| Some((*names.get(id)?, *ttl))).collect();
        for entry in &mut counted.entries {
            entry.lease = entry.lease.and_then(|id| names.get(&id).copied());
        }
        counted.last_lease = names.into_values().next_back().unwrap_or(self.last_lease);
        Cow::Owned(counted)
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| (*entry.key).cmp(key)).ok().and_then(|at| self.entries.get(at))
    }

    /// What fencing tokens are added to, and the revision that they can have come to; None when there were none.
    pub fn fences(&self) -> Option<(u64, Revision)> {
        let base = std::str::from_utf8(&self.get(FENCE_BASE)?.value).ok()?.parse().ok()?;
        Some((base, self.revision))
    }

    /// Makes it what takes the place of a store: without its name, and with a fence base from which fencing tokens are larger
    /// than all that this one gave, or any of `others`. It is one revision later.
    pub fn succeed(&mut self, others: impl IntoIterator<Item = (u64, Revision)>, now: SystemTime) {
        let given =
            self.fences().into_iter().chain(others).max_by_key(|(base, revision)| base.saturating_add(revision.0));
        self.entries.retain(|entry| !entry.key.starts_with(OWN));
        self.revision = self.revision.next();
        // A lease that the store gave after this was taken must not be given to somebody else.
        self.last_lease = self.last_lease.max(LeaseId(next_fence_base(None, now)));
        let Some(given) = given else { return };
        let base = next_fence_base(Some(given), now).to_string();
        let (created, modified) = (self.revision, self.revision);
        let entry =
            Entry { key: FENCE_BASE.into(), value: Bytes::from(base), created, modified, version: 1, lease: None };
        let at = self.entries.partition_point(|entry| &*entry.key < FENCE_BASE);
        self.entries.insert(at, entry);
    }
}

/// A file whose name is that of another and a suffix.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes a rename durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

pub(crate) fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
