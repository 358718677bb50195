//! Whether what was read of a file can be true: what every `store.db` that Seawall wrote has in common.

use std::collections::HashMap;

use seawall_types::Revision;

use crate::Event;
use crate::model::Model;

/// Why a file cannot be believed.
#[derive(Debug)]
pub(super) enum Damage {
    /// SQLite says so, or cannot read it.
    Sqlite(rusqlite::Error),
    /// It holds what Seawall never writes.
    Found(String),
}

impl From<rusqlite::Error> for Damage {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Damage {
    pub(super) fn at(place: String, what: &str) -> Self {
        Self::Found(place + ": " + what)
    }

    /// A row that does not hold what its columns are for.
    pub(super) fn row(place: String, error: &rusqlite::Error) -> Self {
        Self::Found(format!("{place}: {error}"))
    }
}

/// Holds the history against itself and against the entries, while it is read.
#[derive(Debug)]
pub(super) struct Replay {
    oldest: Revision,
    /// The revision of the last event; the one before `oldest` when there is none.
    pub(super) revision: Revision,
    gap: Option<String>,
    latest: HashMap<std::sync::Arc<str>, Event>,
}

impl Replay {
    pub(super) fn new(oldest: Revision) -> Self {
        Self { oldest, revision: Revision(oldest.0.saturating_sub(1)), gap: None, latest: HashMap::new() }
    }

    pub(super) fn event(&mut self, seq: i64, event: Event) {
        let follows = event.revision == self.revision.next();
        let goes_on = event.revision == self.revision && event.revision >= self.oldest;
        if !follows && !goes_on && self.gap.is_none() {
            let (got, after) = (event.revision, self.revision);
            self.gap = Some(format!("table `history`, row {seq}: revision {got} follows {after}"));
        }
        self.revision = event.revision;
        self.latest.insert(event.key.clone(), event);
    }

    /// Every key that the history tells of is as it was told last; every lease is there; no number is larger than the
    /// counter that it was taken from.
    pub(super) fn check(self, model: &Model) -> Result<(), Damage> {
        let wrong = |what: String| Err(Damage::Found(what));
        if let Some(gap) = self.gap {
            return wrong(gap);
        }
        if self.oldest.0 < 2 {
            return wrong(format!(
                "table `meta`, row `oldest`: there is nothing before revision 2, not {}",
                self.oldest
            ));
        }
        for entry in model.entries() {
            let place = || format!("table `entry`, key `{}`, revision {}", entry.key, entry.modified);
            if entry.created > entry.modified || entry.modified > self.revision || entry.version == 0 {
                let (created, version, end) = (entry.created, entry.version, self.revision);
                return wrong(format!("{}: created at {created}, version {version}, in a store at {end}", place()));
            }
            if let Some(lease) = entry.lease.filter(|lease| !model.has_lease(*lease)) {
                return wrong(format!("{}: its lease {lease} is not in table `lease`", place()));
            }
            if entry.modified >= self.oldest && !self.latest.contains_key(&entry.key) {
                return wrong(format!("{}: table `history` does not tell of it", place()));
            }
        }
        for (key, event) in &self.latest {
            if model.get(key) != event.entry.as_ref() {
                let there = model.get(key).map_or("is missing".into(), |e| format!("is of revision {}", e.modified));
                let told = if event.entry.is_some() { "written" } else { "deleted" };
                let at = event.revision;
                return wrong(format!("table `entry`, key `{key}`: it {there}; table `history` has it {told} at {at}"));
            }
        }
        match model.leases().next_back() {
            Some((lease, _)) if lease > model.last_lease => {
                let last = model.last_lease;
                wrong(format!("table `lease`, lease {lease}: the last one that was granted is {last}"))
            }
            _ => Ok(()),
        }
    }
}
