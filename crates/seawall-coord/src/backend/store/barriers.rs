//! Barriers in a store: a record of who is in under `barrier/<name>/state`, and a key of each party that goes with its session.

mod meeting;

use std::collections::BTreeMap;
use std::time::Duration;

use seawall_store::{Compare, Entry, LeaseId, Op, Range, Txn};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::doubts::Settled;
use super::watching::{Await, Watching};
use super::{Backoff, StoreBackend, StoreLease, json, key, queue, reading, refused, writing};
use crate::backend::BackendError;
use crate::barrier::{BarrierError, BarrierView, Barriers, MAX_PARTIES, Party, PartyView, Step};
use crate::name::LockName;
use crate::session::Why;
use meeting::{Me, Member, Next, Phase, Record};

/// The value of a party's key.
#[derive(Debug, Serialize, Deserialize)]
struct PartyValue {
    owner: String,
    phase: Phase,
}

/// How a barrier stands, at one revision.
struct State {
    record: Option<(Record, Entry)>,
    parties: BTreeMap<String, (PartyValue, Entry)>,
}

fn state(range: &Range, record: &str) -> State {
    let mut state = State { record: None, parties: BTreeMap::new() };
    for entry in &range.entries {
        if *entry.key == *record {
            state.record = serde_json::from_slice(&entry.value).ok().map(|record| (record, entry.clone()));
        } else if let Ok(value) = serde_json::from_slice(&entry.value) {
            state.parties.insert(entry.key.to_string(), (value, entry.clone()));
        }
    }
    state
}

impl State {
    /// Writes what comes next, if nothing has changed since. The own key is new unless it is there.
    fn txn(&self, key: &str, next: (Option<Record>, Vec<(String, Phase)>), own: &Own) -> Txn {
        let (record, phases) = next;
        let mut txn = Txn::default();
        txn.compare.push(match &self.record {
            Some((_, entry)) => Compare::Modified(key.to_owned(), entry.modified),
            None => Compare::Absent(key.to_owned()),
        });
        txn.then.push(match record {
            Some(record) => Op::Put { key: key.to_owned(), value: json(&record).into(), lease: None },
            None => Op::Delete(key.to_owned()),
        });
        for (party, phase) in phases {
            let (owner, lease) = match self.parties.get(&party) {
                Some((value, entry)) => {
                    txn.compare.push(Compare::Modified(party.clone(), entry.modified));
                    (value.owner.clone(), entry.lease)
                }
                None => {
                    txn.compare.extend([Compare::Absent(party.clone()), own.condition.clone()]);
                    (own.owner.clone(), Some(own.lease))
                }
            };
            let value = json(&PartyValue { owner, phase });
            txn.then.push(Op::Put { key: party, value: value.into(), lease });
        }
        txn
    }
}

/// Of the session that a party belongs to.
struct Own {
    owner: String,
    lease: LeaseId,
    condition: Compare,
}

impl Barriers for StoreBackend {
    async fn meet(
        &self,
        lease: &StoreLease,
        party: &Party,
        step: Step,
        patience: Duration,
    ) -> Result<(), BarrierError> {
        let began = Instant::now();
        let until = began + patience;
        if party.parties == 0 || party.parties > MAX_PARTIES {
            let why = format!("a barrier of {} parties: 1 to {MAX_PARTIES} are allowed", party.parties);
            return Err(refused(why).into());
        }
        let name = party.claimed();
        let (prefix, own_key) = (queue(&name), key(&name, lease, &party.token));
        let record_key = format!("{prefix}state");
        let mut backoff = Backoff::new();
        let mut watching: Option<Watching> = None;
        loop {
            let error = match self.meet_once(lease, party, step, (&record_key, &own_key)).await {
                Ok(Met::Next(Next::Done, _)) => return Ok(()),
                Ok(Met::Next(Next::Broken { who }, _)) => return Err(BarrierError::Broken { who }),
                Ok(Met::Next(Next::Differs { parties }, _)) => {
                    let why = format!("a barrier of {} parties: the others mean {parties}", party.parties);
                    return Err(refused(why).into());
                }
                Ok(Met::Next(Next::Gone, _)) => {
                    self.session(lease).await.map_err(BarrierError::of)?;
                    return Err(BarrierError::Broken { who: "this party itself".to_owned() });
                }
                Ok(Met::Next(Next::Wait | Next::Write { .. }, there)) => {
                    // The watch begins before the look that it is waited after.
                    match watching.take() {
                        None => watching = self.watch(vec![Await::Touched(prefix.as_str().into())], until).await,
                        Some(watching) => drop(watching.happens(until).await),
                    }
                    if Instant::now() < until {
                        continue;
                    }
                    let (waited, parties) = (began.elapsed(), party.parties);
                    return Err(BarrierError::TimedOut { waited, there, parties });
                }
                // Another was faster, or it was done.
                Ok(Met::Again) => continue,
                Err(error) => error,
            };
            if !error.retryable() {
                return Err(BarrierError::of(error));
            }
            if !backoff.wait(until).await {
                return Err(BarrierError::Unknown(error));
            }
        }
    }
}

/// What a look at a barrier has come to.
enum Met {
    /// What comes next, and how many have made the step.
    Next(Next, usize),
    /// Something was written, or was to be; it has to be looked at again.
    Again,
}

impl StoreBackend {
    /// Who is at a barrier; nothing when nobody is. Who has died is there no more, though nobody has found the barrier broken yet.
    ///
    /// # Errors
    /// [`BackendError::Down`].
    pub async fn barrier(&self, name: &LockName) -> Result<Option<BarrierView>, BackendError> {
        let prefix = queue(&LockName::of_barrier(name));
        let range = reading(self.store.range(&prefix)).await?;
        let State { record, parties: alive } = state(&range, &format!("{prefix}state"));
        let Some((Record { parties, inside, members }, _)) = record else { return Ok(None) };
        let there = members.into_iter().filter(|member| member.left || alive.contains_key(&member.key));
        let there: Vec<_> = there.map(|Member { owner, left, .. }| PartyView { owner, left }).collect();
        Ok((!there.is_empty()).then_some(BarrierView { parties, inside, there }))
    }

    /// Removes the record of a barrier whose last party has gone. Where they have all died it stays until somebody comes.
    pub(super) async fn tidy_barrier(&self, party: &LockName) {
        let Ok(range) = reading(self.store.range(&queue(party))).await else { return };
        if let [record] = &range.entries[..]
            && record.key.ends_with("/state")
        {
            let condition = Compare::Modified(record.key.to_string(), record.modified);
            // Whoever comes next does it otherwise.
            let _ = writing(self.store.commit(Txn::delete(&*record.key).when(condition))).await;
        }
    }

    /// Looks at the barrier, and does what comes next.
    async fn meet_once(
        &self,
        lease: &StoreLease,
        party: &Party,
        step: Step,
        (record_key, own_key): (&str, &str),
    ) -> Result<Met, BackendError> {
        let Settled { owner, condition } = self.settled(lease).await?;
        let range = reading(self.store.range(&queue(&party.claimed()))).await?;
        let state = state(&range, record_key);
        let alive = state.parties.iter().map(|(key, (value, _))| (key.clone(), value.phase.clone())).collect();
        let me = Me { key: own_key, owner: &owner, parties: party.parties };
        let record = state.record.as_ref().map(|(record, _)| record);
        let there = record.map_or(0, |record| match step {
            Step::Enter => record.members.len(),
            Step::Leave => record.members.iter().filter(|member| member.left).count(),
        });
        match meeting::next(record, &alive, &me, step) {
            Next::Write { record, phases } => {
                let own = Own { owner, lease: lease.id, condition };
                let attempt = self.doubts.attempt(lease.id);
                let committed = writing(self.store.commit(state.txn(record_key, (record, phases), &own))).await;
                if !matches!(committed, Err(BackendError::Unknown { .. })) {
                    attempt.answered();
                }
                if !committed?.succeeded {
                    // It may have been the session's condition that did not hold.
                    self.doubts.forget(lease.id);
                }
                Ok(Met::Again)
            }
            next => Ok(Met::Next(next, there)),
        }
    }
}

impl BarrierError {
    fn of(error: BackendError) -> Self {
        match error {
            BackendError::NoSession { .. } => Self::Lost(Why::Ended),
            BackendError::Unknown { .. } => Self::Unknown(error),
            error => Self::Backend(error),
        }
    }
}
