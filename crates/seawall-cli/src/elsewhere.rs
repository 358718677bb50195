//! Locks and elections that another backend than control keeps, as `seawall locks` and `seawall elections` show them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context;
use seawall_coord::{
    AnyLocks, Backend, BackendError, ClaimView, ElectionName, ElectionView, Elections, LockName, LockView, LocksUrl,
    Need, Oversight,
};

use crate::process;

/// Between two looks of a watch.
const LOOK: Duration = Duration::from_secs(1);

/// A backend and what asks it.
pub(crate) struct Elsewhere {
    backend: AnyLocks,
    runtime: tokio::runtime::Runtime,
}

impl Elsewhere {
    /// Whoever only looks needs nothing of it.
    pub(crate) fn open(url: &LocksUrl) -> anyhow::Result<Self> {
        let runtime = process::runtime()?;
        let backend = runtime.block_on(AnyLocks::open(url, Need::Best))?;
        Ok(Self { backend, runtime })
    }

    pub(crate) fn locks(&self) -> anyhow::Result<Vec<LockView>> {
        self.runtime.block_on(self.all_locks()).context("the locks cannot be listed")
    }

    pub(crate) fn lock(&self, name: &LockName) -> anyhow::Result<LockView> {
        Ok(self.runtime.block_on(Oversight::show(&self.backend, name))?)
    }

    pub(crate) fn elections(&self) -> anyhow::Result<Vec<ElectionView>> {
        self.runtime.block_on(self.all_elections()).context("the elections cannot be listed")
    }

    pub(crate) fn election(&self, name: &ElectionName) -> anyhow::Result<ElectionView> {
        Ok(self.runtime.block_on(self.backend.election(name))?)
    }

    /// Whether an empty queue means that nobody waits.
    pub(crate) fn knows_who_waits(&self) -> bool {
        self.backend.knows_who_waits()
    }

    /// Whose lock it was.
    pub(crate) fn force(&self, name: &LockName, by: &str, why: &str) -> anyhow::Result<Option<ClaimView>> {
        Ok(self.runtime.block_on(Oversight::force(&self.backend, name, by, why))?)
    }

    /// Prints a line for each lock as it is, and whenever it has changed; of one lock, or of all.
    pub(crate) fn watch_locks(
        &self,
        name: Option<&LockName>,
        line: impl Fn(&LockView) -> String,
    ) -> anyhow::Result<()> {
        let free = |name: &LockName| {
            let (holder, sharing, queue) = (None, Vec::new(), Vec::new());
            LockView { name: name.clone(), holder, sharing, queue }
        };
        self.watch(
            async || {
                let locks = match name {
                    Some(name) => vec![Oversight::show(&self.backend, name).await?],
                    None => self.all_locks().await?,
                };
                Ok(locks.iter().map(|lock| (lock.name.clone(), line(lock))).collect())
            },
            |name| line(&free(name)),
        )
    }

    /// The same of elections.
    pub(crate) fn watch_elections(
        &self,
        name: Option<&ElectionName>,
        line: impl Fn(&ElectionView) -> String,
    ) -> anyhow::Result<()> {
        let nobody = |name: &ElectionName| ElectionView { name: name.clone(), leader: None, candidates: Vec::new() };
        self.watch(
            async || {
                let elections = match name {
                    Some(name) => vec![self.backend.election(name).await?],
                    None => self.all_elections().await?,
                };
                Ok(elections.iter().map(|election| (election.name.clone(), line(election))).collect())
            },
            |name| line(&nobody(name)),
        )
    }

    async fn all_locks(&self) -> Result<Vec<LockView>, BackendError> {
        let mut locks = Vec::new();
        for name in Oversight::names(&self.backend).await?.iter().filter(|name| name.is_plain()) {
            locks.push(Oversight::show(&self.backend, name).await?);
        }
        Ok(locks)
    }

    async fn all_elections(&self) -> Result<Vec<ElectionView>, BackendError> {
        let mut elections = Vec::new();
        for name in Oversight::names(&self.backend).await? {
            if let Some(name) = name.election().and_then(|name| ElectionName::try_new(name).ok()) {
                elections.push(self.backend.election(&name).await?);
            }
        }
        Ok(elections)
    }

    /// Looks again and again: not every backend says by itself what has changed. Ends when nobody reads any more.
    fn watch<N: Ord + Clone>(
        &self,
        look: impl AsyncFn() -> Result<BTreeMap<N, String>, BackendError>,
        gone: impl Fn(&N) -> String,
    ) -> anyhow::Result<()> {
        let mut told: Option<BTreeMap<N, String>> = None;
        let mut down = false;
        self.runtime.block_on(async {
            loop {
                match look().await {
                    Ok(now) => {
                        let before = told.take().unwrap_or_default();
                        let ended =
                            before.iter().filter(|(name, line)| !now.contains_key(name) && gone(name) != **line);
                        let ended: Vec<_> = ended.map(|(name, _)| gone(name)).collect();
                        let changed = now.iter().filter(|(name, line)| before.get(name) != Some(line));
                        for line in ended.iter().chain(changed.map(|(_, line)| line)) {
                            let mut out = std::io::stdout().lock();
                            if writeln!(out, "{:.0}  {line}", jiff::Timestamp::now())
                                .and_then(|()| out.flush())
                                .is_err()
                            {
                                return Ok(());
                            }
                        }
                        told = Some(now);
                        down = false;
                    }
                    Err(error) if error.retryable() && told.is_some() => {
                        if !std::mem::replace(&mut down, true) {
                            eprintln!("{error}; waiting for {}", self.backend.name());
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
                tokio::time::sleep(LOOK.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            }
        })
    }
}
