//! Shifts of traffic: how splits are divided at the moment, otherwise than the file says, with who has said so and when. Described in
//! `docs/api.md`; what a split is, gateways know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use seawall_drain::Drain;
use seawall_store::{Compare, Entry, Op, Store, Txn};
use seawall_types::{Period, ServiceName, Shares, Traffic};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::api::{MAX_WAIT, Params, Problem, bad};

/// How many changes of a split are remembered.
const HISTORY: usize = 50;
/// The most splits that are shifted.
const SPLITS: usize = 500;
/// The most services of a split.
const SERVICES: usize = 16;
/// The largest share.
const SHARE: u32 = 1_000_000;
/// The longest text that is kept of who and why, in bytes.
const TEXT: usize = 500;
/// How long one call to the store may take.
const CALL: Duration = Duration::from_secs(5);
/// How often something is tried again that others were quicker to change.
const TRIES: usize = 20;
/// The keys.
const PREFIX: &str = "traffic/";

/// One change of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shift {
    /// How it is divided from then on; nothing: as the file says.
    pub shares: Option<Shares>,
    /// When.
    pub at: Timestamp,
    /// Who has said so; as they call themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Changes of the same name are steps of one shift, and are rolled back together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<String>,
    /// Whether it took another one back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rollback: bool,
}

/// A split that has been shifted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitView {
    /// Its name.
    pub split: ServiceName,
    /// How it is divided; nothing: as the file says.
    pub shares: Option<Shares>,
    /// What has been changed, the newest last.
    pub history: Vec<Shift>,
}

/// What is asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// As in [`Shift`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Shares>,
    /// As in [`Shift`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// As in [`Shift`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// As in [`Shift`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<String>,
}

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Shifts {
    store: Arc<dyn Store>,
    /// Counts the changes of this process.
    changes: Arc<watch::Sender<u64>>,
    /// Tells this process from those before, in versions.
    process: u64,
    drain: Drain,
}

impl std::fmt::Debug for Shifts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shifts").finish_non_exhaustive()
    }
}

/// The routes, to be merged into a router of any state.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(shifts: Shifts) -> Router<S> {
    Router::new()
        .route("/v1/traffic", get(all))
        .route("/v1/traffic/{split}", get(show).put(shift))
        .route("/v1/traffic/{split}/rollback", post(rollback))
        .with_state(shifts)
}

impl Shifts {
    pub(crate) fn new(store: Arc<dyn Store>, drain: Drain) -> Self {
        Self { store, changes: Arc::new(watch::Sender::new(0)), process: fastrand::u64(..), drain }
    }

    async fn read(&self, split: &ServiceName) -> Result<Option<(Entry, Vec<Shift>)>, Problem> {
        let entry = timeout(CALL, self.store.get(&format!("{PREFIX}{split}"))).await.map_err(|_| silent())?;
        entry.map_err(unavailable)?.map(|entry| Ok((entry.clone(), history(&entry)?))).transpose()
    }

    /// Appends what `next` makes of the history.
    async fn change(
        &self,
        split: &ServiceName,
        next: impl Fn(&[Shift]) -> Result<Shift, Problem>,
    ) -> Result<SplitView, Problem> {
        let key = format!("{PREFIX}{split}");
        for _ in 0..TRIES {
            let (condition, mut history) = match self.read(split).await? {
                Some((entry, history)) => (Compare::Modified(key.clone(), entry.modified), history),
                None => {
                    self.room().await?;
                    (Compare::Absent(key.clone()), Vec::new())
                }
            };
            let shift = next(&history)?;
            history.push(shift.clone());
            history.drain(..history.len().saturating_sub(HISTORY));
            let value = serde_json::to_vec(&history).map_err(unavailable)?;
            let put = Op::Put { key: key.clone(), value: value.into(), lease: None };
            let txn = Txn { compare: vec![condition], then: vec![put], otherwise: Vec::new() };
            if timeout(CALL, self.store.commit(txn)).await.map_err(|_| silent())?.map_err(unavailable)?.succeeded {
                self.changes.send_modify(|changes| *changes += 1);
                let shares = shift.shares.as_ref().map(|shares| format!("{shares:?}"));
                let (by, why) = (shift.by.as_deref(), shift.why.as_deref());
                tracing::info!(%split, shares, by, why, rollback = shift.rollback, "traffic is shifted");
                return Ok(view(split, history));
            }
        }
        Err(Problem(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("others change `{split}` at the same time; nothing was done"),
        ))
    }

    async fn room(&self) -> Result<(), Problem> {
        let range = timeout(CALL, self.store.range(PREFIX)).await.map_err(|_| silent())?.map_err(unavailable)?;
        if range.entries.len() < SPLITS {
            return Ok(());
        }
        let why = format!("there are {SPLITS} splits that have been shifted, and there may not be more");
        Err(Problem(StatusCode::UNPROCESSABLE_ENTITY, why))
    }

    async fn current(&self) -> Result<Traffic, Problem> {
        // Before it is read: what changes meanwhile is told again.
        let version = self.version();
        let range = timeout(CALL, self.store.range(PREFIX)).await.map_err(|_| silent())?.map_err(unavailable)?;
        let mut splits = BTreeMap::new();
        for entry in &range.entries {
            let split = entry.key.strip_prefix(PREFIX).and_then(|name| ServiceName::try_new(name).ok());
            let shares = history(entry)?.pop().and_then(|shift| shift.shares);
            splits.extend(split.zip(shares));
        }
        Ok(Traffic { version, splits })
    }

    fn version(&self) -> String {
        format!("{:016x}-{}", self.process, *self.changes.borrow())
    }
}

fn view(split: &ServiceName, history: Vec<Shift>) -> SplitView {
    SplitView { split: split.clone(), shares: history.last().and_then(|shift| shift.shares.clone()), history }
}

fn history(entry: &Entry) -> Result<Vec<Shift>, Problem> {
    let broken = |error| unavailable(format!("`{}` in the store is damaged: {error}", entry.key));
    serde_json::from_slice(&entry.value).map_err(broken)
}

fn unavailable(error: impl std::fmt::Display) -> Problem {
    Problem(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

fn silent() -> Problem {
    unavailable(format!("the store has not answered within {CALL:?}; it may have been done"))
}

fn name(text: &str) -> Result<ServiceName, Problem> {
    ServiceName::try_new(text).map_err(bad)
}

impl Order {
    fn check(&self) -> Result<(), Problem> {
        if let Some(shares) = &self.shares {
            if shares.is_empty() || shares.len() > SERVICES {
                return Err(bad(format!("`shares` names {} services, allowed are 1 to {SERVICES}", shares.len())));
            }
            if let Some((service, share)) = shares.iter().find(|(_, share)| **share > SHARE) {
                return Err(bad(format!("the share of `{service}` is {share}, allowed is 0 to {SHARE}")));
            }
            if shares.values().all(|share| *share == 0) {
                return Err(bad("no service has a share above 0, so that requests would go nowhere"));
            }
        }
        for (key, text) in [("by", &self.by), ("why", &self.why), ("shift", &self.shift)] {
            if text.as_ref().is_some_and(|text| text.len() > TEXT) {
                return Err(bad(format!("`{key}` is longer than {TEXT} bytes")));
            }
        }
        Ok(())
    }

    fn shift(self, rollback: bool) -> Shift {
        let Self { shares, by, why, shift } = self;
        let now = Timestamp::now();
        let at = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        Shift { shares, at, by, why, shift, rollback }
    }
}

/// `?after=4f0c-7&wait=20s`: waits until it is another version than that.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    after: Option<String>,
    #[serde(default)]
    wait: Period,
}

async fn all(
    State(shifts): State<Shifts>,
    Params(Wait { after, wait }): Params<Wait>,
) -> Result<Json<Traffic>, Problem> {
    if let Some(after) = after {
        let mut changes = shifts.changes.subscribe();
        let other = changes.wait_for(|_| shifts.version() != after);
        tokio::select! {
            _ = timeout(wait.get().min(MAX_WAIT), other) => {}
            () = shifts.drain.signaled() => {}
        }
    }
    Ok(Json(shifts.current().await?))
}

async fn show(State(shifts): State<Shifts>, Path(split): Path<String>) -> Result<Json<SplitView>, Problem> {
    let split = name(&split)?;
    let found = shifts.read(&split).await?;
    let (_, history) =
        found.ok_or_else(|| Problem(StatusCode::NOT_FOUND, format!("`{split}` has never been shifted")))?;
    Ok(Json(view(&split, history)))
}

async fn shift(
    State(shifts): State<Shifts>,
    Path(split): Path<String>,
    body: Result<Json<Order>, JsonRejection>,
) -> Result<Json<SplitView>, Problem> {
    let (split, Json(order)) = (name(&split)?, body?);
    order.check()?;
    Ok(Json(shifts.change(&split, |_| Ok(order.clone().shift(false))).await?))
}

async fn rollback(
    State(shifts): State<Shifts>,
    Path(split): Path<String>,
    body: Result<Json<Order>, JsonRejection>,
) -> Result<Json<SplitView>, Problem> {
    let (split, Json(order)) = (name(&split)?, body?);
    if order.shares.is_some() {
        return Err(bad("a rollback goes to the shares before: leave `shares` out"));
    }
    order.check()?;
    let back = |history: &[Shift]| {
        let shares = before(history).map_err(|why| Problem(StatusCode::CONFLICT, format!("`{split}` {why}")))?;
        Ok(Order { shares, ..order.clone() }.shift(true))
    };
    Ok(Json(shifts.change(&split, back).await?))
}

/// How it was divided before the last shift, all steps of it.
fn before(history: &[Shift]) -> Result<Option<Shares>, &'static str> {
    let last = history.last().ok_or("has never been shifted, so that nothing can be taken back")?;
    if last.rollback {
        return Err("has been rolled back already: shift it to where you want it");
    }
    let same = |shift: &&Shift| last.shift.is_some() && shift.shift == last.shift && !shift.rollback;
    let steps = history.iter().rev().take_while(same).count().max(1);
    Ok(history[..history.len() - steps].last().and_then(|shift| shift.shares.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_takes_all_steps_of_a_shift_back() {
        let shift = |canary: Option<u32>, shift: Option<&str>, rollback: bool| Shift {
            shares: canary.map(|share| [(ServiceName::try_new("canary").unwrap(), share)].into()),
            at: Timestamp::UNIX_EPOCH,
            by: None,
            why: None,
            shift: shift.map(str::to_owned),
            rollback,
        };
        let share = |shares: Option<Shares>| shares.map(|shares| *shares.values().next().unwrap());
        for (history, back) in [
            (vec![], Err("never")),
            (vec![shift(Some(5), None, false)], Ok(None)),
            (vec![shift(Some(5), None, false), shift(Some(9), None, false)], Ok(Some(5))),
            (
                vec![
                    shift(Some(1), Some("a"), false),
                    shift(Some(2), Some("b"), false),
                    shift(Some(3), Some("b"), false),
                ],
                Ok(Some(1)),
            ),
            (vec![shift(Some(2), Some("b"), false), shift(Some(3), Some("b"), false)], Ok(None)),
            (vec![shift(Some(2), Some("b"), false), shift(None, Some("b"), true)], Err("already")),
            (vec![shift(Some(2), None, true), shift(Some(3), None, false)], Ok(Some(2))),
        ] {
            match (before(&history), back) {
                (Ok(shares), Ok(back)) => assert_eq!(share(shares), back, "{history:?}"),
                (Err(why), Err(says)) => assert!(why.contains(says), "{why}"),
                (shares, _) => panic!("{history:?}: {shares:?}"),
            }
        }
    }
}
