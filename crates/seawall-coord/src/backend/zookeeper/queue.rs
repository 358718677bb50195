//! A place in a queue, and the wait for its first.

use std::time::Duration;

use seawall_types::Revision;
use tokio::time::{Instant, timeout_at};
use zookeeper_client::{Acls, Client, CreateMode, Error};

use super::session::{Doing, Failed, ZkSession, asked};
use super::{MAX_FENCE, QUIET, Value, ZooKeeper, created, nodes};
use crate::backend::{BackendError, Claim, ClaimError, MAX_INFO, Want};
use crate::class::Fence;
use crate::session::Why;

impl ZooKeeper {
    /// Puts the claim into the queue, or finds it there.
    async fn enqueue(
        &self,
        session: &ZkSession,
        client: &Client,
        want: &Want,
        until: Instant,
    ) -> Result<String, ClaimError> {
        let dir = self.place.queue(&want.name);
        let prefix = nodes::prefix(&dir, &want.token);
        let (owner, info) = (session.owner().to_owned(), want.info.clone());
        let data = Value { owner, info, priority: want.priority }.bytes();
        let mut pause = Duration::from_millis(10);
        let mut made = 0;
        loop {
            let options = CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
            let failed = match asked(Doing::Write, client.create(&prefix, &data, &options)).await {
                Ok((_, sequence)) => {
                    let path = format!("{prefix}{sequence}");
                    session.remember(want.token, path.clone());
                    return Ok(path);
                }
                Err(Failed::Is(Error::NoNode)) => match self.make(client, &dir).await {
                    // It may have gone by itself again, as an empty one does after a while.
                    Ok(()) if made < 3 => {
                        made += 1;
                        continue;
                    }
                    Ok(()) => self.place.down("the lock's node vanishes again and again"),
                    Err(error) => error,
                },
                Err(error) => error.of(&self.place),
            };
            if !failed.retryable() {
                return Err(ClaimError::of_backend(failed));
            }
            // Is it there? What was sent before this was done before this, or will not be.
            let found = match asked(Doing::Read, client.sync(&dir)).await {
                Ok(()) | Err(Failed::Is(Error::NoNode)) => self.own(session, client, &dir, &want.token).await,
                Err(error) => Err(error.of(&self.place)),
            };
            let wait = pause.mul_f64(0.1 + 0.9 * fastrand::f64());
            pause = (pause * 2).min(Duration::from_millis(500));
            match found {
                // Not remembered: there may be two, and its withdrawal is to look for both.
                Ok(Some(node)) => return Ok(node.path),
                Ok(None) | Err(_) if Instant::now() + wait < until => tokio::time::sleep(wait).await,
                Ok(None) | Err(_) => return Err(ClaimError::Unknown(failed)),
            }
        }
    }

    /// Makes the node of a lock, which goes by itself when it is empty, and those above it, which stay.
    async fn make(&self, client: &Client, dir: &str) -> Result<(), BackendError> {
        let (above, _) = dir.rsplit_once('/').unwrap_or_default();
        let made = async {
            client.mkdir(above, &CreateMode::Persistent.with_acls(Acls::anyone_all())).await?;
            match client.create(dir, &[], &CreateMode::Container.with_acls(Acls::anyone_all())).await {
                Ok(_) | Err(Error::NodeExists) => Ok(()),
                Err(error) => Err(error),
            }
        };
        // Whoever is not answered makes them again.
        asked(Doing::Read, made).await.map_err(|error| error.of(&self.place))
    }

    /// As [`Backend::claim`], but a wait that runs out leaves the claim in the queue.
    pub(super) async fn wait(&self, session: &ZkSession, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let began = Instant::now();
        let until = began + patience;
        if want.info.len() > MAX_INFO {
            let why = format!("an info of {} bytes: at most {MAX_INFO} are allowed", want.info.len());
            return Err(self.place.refused(why).into());
        }
        let client = session.client(&self.place).map_err(ClaimError::of_backend)?;
        let dir = self.place.queue(&want.name);
        let queue = self.queue_until(&client, &dir, until).await.map_err(ClaimError::of_backend)?;
        // Most often there is none with this token, and nobody has to be asked whose it is.
        let mine = match queue.iter().any(|node| node.is_of(&want.token)) {
            true => self.own(session, &client, &dir, &want.token).await.map_err(ClaimError::of_backend)?,
            false => None,
        };
        let path = match mine {
            Some(node) => node.path,
            // Nothing is written for a lock that is held anyway.
            None if patience.is_zero() && !queue.is_empty() => {
                return Err(ClaimError::Busy { holder: self.holder(&client, queue.first()).await });
            }
            None => self.enqueue(session, &client, want, until).await?,
        };
        loop {
            let queue = match self.queue_until(&client, &dir, until).await {
                Ok(queue) => queue,
                // The claim is in the queue and may come to hold the lock.
                Err(error) if error.retryable() => return Err(ClaimError::Unknown(error)),
                Err(error) => return Err(ClaimError::of_backend(error)),
            };
            let Some(at) = queue.iter().position(|node| node.path == path) else {
                return Err(if session.ended() { ClaimError::Lost(Why::Ended) } else { ClaimError::Removed });
            };
            let Some(before) = at.checked_sub(1).map(|at| &queue[at]) else {
                return self.claim_of(session, &client, want, &path).await;
            };
            if patience.is_zero() {
                return Err(ClaimError::Busy { holder: self.holder(&client, queue.first()).await });
            }
            if Instant::now() >= until {
                let holder = self.holder(&client, queue.first()).await;
                return Err(ClaimError::TimedOut { waited: began.elapsed(), ahead: at, holder });
            }
            match asked(Doing::Read, client.get_and_watch_data(&before.path)).await {
                Ok((_, _, watcher)) => {
                    let quiet = QUIET.mul_f64(0.5 + 0.5 * fastrand::f64());
                    let _ = timeout_at(until.min(Instant::now() + quiet), watcher.changed()).await;
                }
                Err(Failed::Is(Error::NoNode)) => {}
                Err(error) => {
                    tracing::debug!(error = %error.of(&self.place), lock = %want.name, "a watch is tried again");
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(20..200))).await;
                }
            }
        }
    }

    /// The claim of a node that is the first.
    async fn claim_of(
        &self,
        session: &ZkSession,
        client: &Client,
        want: &Want,
        path: &str,
    ) -> Result<Claim, ClaimError> {
        let stat = asked(Doing::Read, client.check_stat(path)).await;
        let stat = match stat.map_err(|error| error.of(&self.place)) {
            Ok(stat) => stat.filter(|stat| stat.ephemeral_owner == session.id()),
            Err(error @ BackendError::NoSession { .. }) => return Err(ClaimError::of_backend(error)),
            Err(error) => return Err(ClaimError::Unknown(error)),
        };
        let Some(stat) = stat else {
            return Err(if session.ended() { ClaimError::Lost(Why::Ended) } else { ClaimError::Removed });
        };
        let number = created(&stat);
        if number >= MAX_FENCE {
            return Err(self.place.refused(format!("the fencing token {number} is larger than JSON carries")).into());
        }
        let (name, token) = (want.name.clone(), want.token);
        Ok(Claim { name, token, created: Revision(number), fence: Some(Fence::new(number)) })
    }
}
