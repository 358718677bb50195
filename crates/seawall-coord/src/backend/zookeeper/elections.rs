//! Elections in ZooKeeper.

use std::time::Duration;

use seawall_types::Revision;
use zookeeper_client::{Error, MultiWriteError, Stat};

use super::session::{Doing, Failed, ZkSession, asked};
use super::{QUIET, Value, ZooKeeper, view};
use crate::backend::view::{CandidateView, ElectionView};
use crate::backend::{BackendError, Claim, MAX_INFO};
use crate::election::{Elections, HandedOver};
use crate::name::{ElectionName, LockName};

fn candidate(data: &[u8], stat: &Stat) -> CandidateView {
    CandidateView::of(view(data, stat), Revision(stat.mzxid.unsigned_abs()))
}

impl Elections for ZooKeeper {
    async fn election(&self, name: &ElectionName) -> Result<ElectionView, BackendError> {
        let client = self.observer().await?;
        asked(Doing::Read, client.sync("/")).await.map_err(|error| error.of(&self.place))?;
        let queue = self.queue(&client, &self.place.queue(&LockName::of_election(name))).await?;
        let mut candidates = Vec::with_capacity(queue.len());
        for node in queue {
            if let Some((data, stat)) = self.read(&client, &node.path).await? {
                candidates.push(candidate(&data, &stat));
            }
        }
        Ok(ElectionView::of(name.clone(), candidates))
    }

    async fn publish(&self, lease: &ZkSession, claim: &Claim, info: &str) -> Result<bool, BackendError> {
        if info.len() > MAX_INFO {
            let why = format!("an info of {} bytes: at most {MAX_INFO} are allowed", info.len());
            return Err(self.place.refused(why));
        }
        let client = match lease.client(&self.place) {
            Ok(client) => client,
            Err(BackendError::NoSession { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        // The path holds its token and its number, so it is nobody else's, ever.
        let Some(path) = self.find(lease, &client, &claim.name, &claim.token).await? else { return Ok(false) };
        let Some((said, _)) = self.read(&client, &path).await? else { return Ok(false) };
        // Nobody else writes here.
        let value = Value { info: info.to_owned(), ..Value::read(&said) };
        match asked(Doing::Write, client.set_data(&path, &value.bytes(), None)).await {
            Ok(_) => Ok(true),
            Err(Failed::Is(Error::NoNode | Error::SessionExpired)) => Ok(false),
            Err(error) => Err(error.of(&self.place)),
        }
    }

    async fn hand_over(&self, lease: &ZkSession, claim: &Claim, to: &str) -> Result<HandedOver, BackendError> {
        let client = match lease.client(&self.place) {
            Ok(client) => client,
            Err(BackendError::NoSession { .. }) => return Ok(HandedOver::NotLeading),
            Err(error) => return Err(error),
        };
        asked(Doing::Read, client.sync("/")).await.map_err(|error| error.of(&self.place))?;
        let queue = self.queue(&client, &self.place.queue(&claim.name)).await?;
        if !queue.first().is_some_and(|first| first.is_of(&claim.token)) {
            return Ok(HandedOver::NotLeading);
        }
        let mut next = None;
        for (at, node) in queue.iter().enumerate().skip(1) {
            let Some((data, stat)) = self.read(&client, &node.path).await? else { continue };
            let shown = candidate(&data, &stat);
            if shown.owner == to || shown.session == to {
                next = Some((at, shown, stat.version));
                break;
            }
        }
        let Some((at, shown, version)) = next else { return Ok(HandedOver::NoCandidate) };
        let mut all = client.new_multi_writer();
        let arguments = |error: Error| self.place.refused(error);
        // Terms are in the order of the queue. So those who are passed over go, and queue anew behind it.
        for node in &queue[..at] {
            all.add_delete(&node.path, None).map_err(arguments)?;
        }
        all.add_check_version(&queue[at].path, version).map_err(arguments)?;
        let done = asked(Doing::Write, async {
            match all.commit().await {
                Ok(_) => Ok(None),
                Err(MultiWriteError::OperationFailed { index, .. }) => Ok(Some(index)),
                Err(MultiWriteError::RequestFailed { source }) => Err(source),
            }
        });
        match done.await.map_err(|error| error.of(&self.place))? {
            None => Ok(HandedOver::Now(shown)),
            Some(0) => Ok(HandedOver::NotLeading),
            // Somebody has gone, or has published something, in this very moment; nothing was changed.
            Some(_) => Ok(HandedOver::NoCandidate),
        }
    }

    async fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        let dir = self.place.queue(&LockName::of_election(name));
        let mut client = self.observer().await?;
        asked(Doing::Read, client.sync("/")).await.map_err(|error| error.of(&self.place))?;
        loop {
            // The watch begins with the look, so that the two miss nothing together.
            let children = match asked(Doing::Read, client.list_and_watch_children(&dir)).await {
                Ok((children, watcher)) => Some((super::nodes::sorted(&dir, &children), watcher)),
                Err(Failed::Is(Error::NoNode)) => None,
                Err(error) => return Err(error.of(&self.place)),
            };
            let (queue, watcher) = match children {
                Some((queue, watcher)) => (queue, watcher),
                None => match asked(Doing::Read, client.check_and_watch_stat(&dir)).await {
                    Ok((None, watcher)) => (Vec::new(), watcher),
                    // Made in this very moment.
                    Ok((Some(_), _)) => continue,
                    Err(error) => return Err(error.of(&self.place)),
                },
            };
            let leader = match queue.first() {
                Some(first) => match asked(Doing::Read, client.get_and_watch_data(&first.path)).await {
                    Ok((data, stat, published)) => Some((candidate(&data, &stat), published)),
                    Err(Failed::Is(Error::NoNode)) => continue,
                    Err(error) => return Err(error.of(&self.place)),
                },
                None => None,
            };
            let (leader, published) =
                leader.map_or((None, None), |(leader, published)| (Some(leader), Some(published)));
            let which = |view: &CandidateView| (view.term, view.modified);
            if seen.is_none_or(|seen| seen.as_ref().map(which) != leader.as_ref().map(which)) {
                return Ok(leader);
            }
            let published = async {
                match published {
                    Some(published) => drop(published.changed().await),
                    None => std::future::pending().await,
                }
            };
            let quiet = QUIET.mul_f64(0.5 + 0.5 * fastrand::f64());
            tokio::select! {
                _ = watcher.changed() => {}
                () = published => {}
                () = tokio::time::sleep(quiet) => {}
            }
            if client.state().is_terminated() {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(20..200))).await;
                client = self.observer().await?;
            }
        }
    }
}
