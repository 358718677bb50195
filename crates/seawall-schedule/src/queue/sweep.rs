//! Puts back what nobody works at: running jobs whose claim has ended, and failed ones whose pause is over.
//!
//! Any number of sweepers may do it, as each move is a transaction that only one of them wins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use seawall_drain::Drain;
use seawall_store::{Compare, Entry, Event, Keys, Op, Query, Txn};
use seawall_types::ServiceName;

use super::item::{self, CLAIMS, Item, ItemId, Place, claim_key};
use super::{QueueError, Queues, claim, reading, writing};
use crate::jobs::now;
use crate::keys::json;

/// How often it is looked for what is over, if no claim ends before.
const LOOK: Duration = Duration::from_secs(1);

type Name = (ServiceName, ItemId);

/// What is running, and what is claimed.
#[derive(Default)]
struct Mirror {
    running: BTreeMap<Name, Entry>,
    claims: BTreeSet<Name>,
}

impl Mirror {
    fn apply(&mut self, event: &Event) {
        if let Some(name) = claim::parse(&event.key) {
            match event.entry {
                Some(_) => drop(self.claims.insert(name)),
                None => drop(self.claims.remove(&name)),
            }
        } else if let Some((Place::Running, queue, id)) = item::parse(&event.key) {
            match &event.entry {
                Some(entry) => drop(self.running.insert((queue, id), entry.clone())),
                None => drop(self.running.remove(&(queue, id))),
            }
        }
    }
}

impl Queues {
    /// Puts back what nobody works at, until `drain` signals. One process at least has to do this; `control` does.
    pub async fn sweep(&self, drain: Drain) {
        loop {
            tokio::select! {
                ended = self.follow() => {
                    if let Err(error) = ended {
                        tracing::warn!(%error, "cannot follow the queues; trying again");
                    }
                    tokio::time::sleep(LOOK.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
                }
                () = drain.signaled() => return,
            }
        }
    }

    /// Follows until it cannot. Without an error its place in the history was compacted.
    async fn follow(&self) -> Result<(), QueueError> {
        let mut mirror = Mirror::default();
        let (_, mut claims) = reading(self.store.watch_now(Keys::prefix(CLAIMS))).await?;
        let (_, mut running) = reading(self.store.watch_now(Keys::prefix(Place::Running.prefix()))).await?;
        for (prefix, keys_only) in [(CLAIMS, true), (Place::Running.prefix(), false)] {
            let query = Query { keys_only, ..Query::new(Keys::prefix(prefix)) };
            for entry in reading(self.store.query(query)).await?.entries {
                let (revision, key) = (entry.modified, entry.key.clone());
                mirror.apply(&Event { revision, key, entry: Some(entry) });
            }
        }
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // What was read first may be told again, older; a move under a condition that does not hold does nothing.
            let ended = tokio::select! {
                events = claims.next() => {
                    let events = events?;
                    events.iter().for_each(|event| mirror.apply(event));
                    events.iter().any(|event| event.entry.is_none())
                }
                events = running.next() => {
                    events?.iter().for_each(|event| mirror.apply(event));
                    false
                }
                _ = look.tick() => true,
            };
            if ended {
                for (name, entry) in mirror.running.iter().filter(|(name, _)| !mirror.claims.contains(*name)) {
                    self.put_back(name, entry).await?;
                }
            }
        }
    }

    async fn put_back(&self, (queue, id): &Name, entry: &Entry) -> Result<(), QueueError> {
        let Ok(item) = serde_json::from_slice::<Item>(&entry.value) else { return Ok(()) };
        if item.resume.is_some_and(|resume| resume > now()) {
            return Ok(());
        }
        let (place, item) = match item.resume {
            Some(_) => (Place::Pending, Item { resume: None, ..item }),
            None => {
                let error = Some(format!("{} claimed it and has not said what became of it", item.worker));
                if item.attempts >= item.max_attempts {
                    (Place::Parked, Item { error, ended: Some(now()), ..item })
                } else {
                    (Place::Pending, Item { error, ..item })
                }
            }
        };
        let running = entry.key.to_string();
        let txn = Txn {
            compare: vec![Compare::Modified(running.clone(), entry.modified), Compare::Absent(claim_key(queue, id))],
            then: vec![Op::Delete(running), Op::Put { key: place.key(queue, id), value: json(&item), lease: None }],
            ..Txn::default()
        };
        match writing(self.store.commit(txn)).await {
            Ok(committed) if committed.succeeded && place == Place::Parked => {
                tracing::error!(%queue, job = %id, "PARKED, needs an operator: it was tried {} times", item.attempts);
            }
            // It is seen again if it was not done.
            Ok(_) | Err(QueueError::Unknown(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
