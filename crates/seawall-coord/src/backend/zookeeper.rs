//! Sessions and locks in ZooKeeper: the recipe of its own documentation, with the names of Curator's `InterProcessMutex`.
//!
//! A claim is an ephemeral sequential node `_c_<token>-lock-<number>` below the lock's own. The lowest number holds the lock,
//! each waiter watches the one before its own, and looks at everything again when that goes. The token finds a claim whose
//! answer was lost, together with the session that owns the node: one that an earlier session left behind is not its own.
//! The fencing token is the transaction that created the node.
//!
//! What a session sends is done in the order in which it was sent. So a withdrawal never overtakes the claim that it withdraws.

mod diagnosis;
mod elections;
mod nodes;
mod oversight;
mod queue;
mod session;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use zookeeper_client::{Client, Error, Stat};

use self::nodes::{Node, Place};
pub use self::session::ZkSession;
use self::session::{Doing, Failed, asked};
use crate::backend::home::Home;
use crate::backend::view::ClaimView;
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, Released, Terms, Want};
use crate::class::{Fence, Fenced};
use crate::name::{LockName, Token};
use crate::session::Why;
use crate::sharing::Kind;

/// Up to which number a fencing token goes through JSON.
const MAX_FENCE: u64 = 1 << 53;
/// A watch that says nothing for so long is made anew.
const QUIET: Duration = Duration::from_secs(60);

/// Sessions and locks in a ZooKeeper (3.6 or later); cheap to clone. With a thread of its own for its connections, one for each
/// session.
#[derive(Clone)]
pub struct ZooKeeper {
    home: Home,
    place: Place,
    /// Looks at elections without a session of its caller's.
    observer: Arc<tokio::sync::Mutex<Option<Client>>>,
}

impl fmt::Debug for ZooKeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ZooKeeper").field(&self.place.name).finish()
    }
}

/// What people want to know of a claim, in its node.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Value {
    owner: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    info: String,
    #[serde(default, skip_serializing_if = "crate::backend::view::is_zero")]
    priority: i32,
}

impl Value {
    fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    /// Others may queue here, too, and write what they like.
    fn read(data: &[u8]) -> Self {
        let strange = || Self { owner: "?".into(), info: String::new(), priority: 0 };
        serde_json::from_slice(data).unwrap_or_else(|_| strange())
    }
}

/// The transaction that created a node, as a number that only grows.
fn created(stat: &Stat) -> u64 {
    stat.czxid.unsigned_abs()
}

fn view(data: &[u8], stat: &Stat) -> ClaimView {
    let value = Value::read(data);
    ClaimView {
        owner: value.owner,
        session: format!("{:x}", stat.ephemeral_owner),
        fence: Some(Fence::new(created(stat))),
        since_ms: stat.ctime.unsigned_abs(),
        info: value.info,
        kind: Kind::Exclusive,
        priority: value.priority,
    }
}

impl ZooKeeper {
    /// Will connect to `zookeeper://host:port,host:port/prefix`, under whose prefix (`/seawall` unless said otherwise) all nodes
    /// are. No TLS, and everybody may do everything with the nodes.
    ///
    /// # Errors
    /// [`BackendError`], within seconds, also when nothing answers.
    pub async fn connect(url: &str) -> Result<Self, BackendError> {
        let place = Place::parse(url)?;
        let home = Home::start("seawall-zookeeper").map_err(|why| place.down(why))?;
        let this = Self { home, place, observer: Arc::default() };
        // Made now, so that who connects hears whether there is one; used by observers.
        this.observer().await?;
        Ok(this)
    }

    /// A connection of the backend's own.
    async fn observer(&self) -> Result<Client, BackendError> {
        let mut observer = self.observer.lock().await;
        if let Some(client) = observer.as_ref().filter(|client| !client.state().is_terminated()) {
            return Ok(client.clone());
        }
        let client = session::connect(&self.home, &self.place, Duration::from_secs(10)).await?;
        *observer = Some(client.clone());
        Ok(client)
    }

    /// The nodes of a queue, the first one first; none if there is no queue.
    async fn queue(&self, client: &Client, dir: &str) -> Result<Vec<Node>, BackendError> {
        match asked(Doing::Read, client.list_children(dir)).await {
            Ok(children) => Ok(nodes::sorted(dir, &children)),
            Err(Failed::Is(Error::NoNode)) => Ok(Vec::new()),
            Err(error) => Err(error.of(&self.place)),
        }
    }

    /// The same, asked again and again until somebody answers or it is too late.
    async fn queue_until(&self, client: &Client, dir: &str, until: Instant) -> Result<Vec<Node>, BackendError> {
        loop {
            let error = match self.queue(client, dir).await {
                Err(error) if error.retryable() && Instant::now() < until => error,
                answer => return answer,
            };
            tracing::debug!(%error, dir, "a look at a lock is tried again");
            let pause = Duration::from_millis(fastrand::u64(20..200));
            tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// What a node says, if it is there.
    async fn read(&self, client: &Client, path: &str) -> Result<Option<(Vec<u8>, Stat)>, BackendError> {
        match asked(Doing::Read, client.get_data(path)).await {
            Ok(found) => Ok(Some(found)),
            Err(Failed::Is(Error::NoNode)) => Ok(None),
            Err(error) => Err(error.of(&self.place)),
        }
    }

    /// The node of a claim of this session, if it is there.
    async fn own(
        &self,
        session: &ZkSession,
        client: &Client,
        dir: &str,
        token: &Token,
    ) -> Result<Option<Node>, BackendError> {
        for node in self.queue(client, dir).await?.into_iter().filter(|node| node.is_of(token)) {
            let stat = asked(Doing::Read, client.check_stat(&node.path)).await;
            let stat = stat.map_err(|error| error.of(&self.place))?;
            if stat.is_some_and(|stat| stat.ephemeral_owner == session.id()) {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    async fn holder(&self, client: &Client, first: Option<&Node>) -> Option<Box<ClaimView>> {
        let (data, stat) = self.read(client, &first?.path).await.ok()??;
        Some(Box::new(view(&data, &stat)))
    }

    /// Where a claim's node is.
    async fn find(
        &self,
        session: &ZkSession,
        client: &Client,
        name: &LockName,
        token: &Token,
    ) -> Result<Option<String>, BackendError> {
        match session.path(token) {
            Some(path) => Ok(Some(path)),
            None => Ok(self.own(session, client, &self.place.queue(name), token).await?.map(|node| node.path)),
        }
    }

    /// True if it was there.
    async fn delete(&self, client: &Client, path: &str) -> Result<bool, BackendError> {
        match asked(Doing::Write, client.delete(path, None)).await {
            Ok(()) => Ok(true),
            Err(Failed::Is(Error::NoNode)) => Ok(false),
            Err(error) => Err(error.of(&self.place)),
        }
    }
}

impl Backend for ZooKeeper {
    type Class = Fenced;
    type Lease = ZkSession;

    fn name(&self) -> String {
        self.place.name.to_string()
    }

    /// What is asked for; the server gives what it allows, 2 to 20 of its ticks unless it is told otherwise.
    fn limits(&self) -> Limits {
        Limits { min_ttl: Duration::from_millis(200), max_ttl: Duration::from_secs(3600) }
    }

    async fn open(&self, terms: &Terms) -> Result<(ZkSession, Duration), BackendError> {
        self.limits().check(terms.ttl).map_err(|why| self.place.refused(why))?;
        let client = session::connect(&self.home, &self.place, session::asked_for(terms.ttl)).await?;
        let session = ZkSession::new(&self.home, client, terms.owner.as_str());
        let ttl = session.ttl();
        Ok((session, ttl))
    }

    /// By way of the leader, which alone ends sessions: an answer of the server that this is connected to does not say that
    /// the leader hears of it.
    async fn renew(&self, lease: &ZkSession) -> Result<Duration, BackendError> {
        let client = lease.client(&self.place)?;
        asked(Doing::Read, client.sync("/")).await.map_err(|error| error.of(&self.place))?;
        lease.renewed();
        Ok(lease.ttl())
    }

    async fn close(&self, lease: &ZkSession) -> Result<(), BackendError> {
        let Some(client) = lease.take() else { return Ok(()) };
        let left = asked(Doing::Read, client.list_ephemerals(self.place.prefix())).await;
        let left = match left.map_err(|error| error.of(&self.place)) {
            Ok(left) => left,
            Err(BackendError::NoSession { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        for path in left {
            self.delete(&client, &path).await?;
        }
        // With the last clone of it the client closes its session.
        drop(client);
        Ok(())
    }

    async fn claim(&self, lease: &ZkSession, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let claimed = tokio::select! {
            biased;
            () = lease.over() => Err(ClaimError::Lost(Why::Ended)),
            claimed = self.wait(lease, want, patience) => claimed,
        };
        if let Err(ClaimError::Busy { .. } | ClaimError::TimedOut { .. }) = &claimed {
            match self.withdraw(lease, &want.name, &want.token).await {
                Ok(_) | Err(BackendError::NoSession { .. }) => {}
                // May still be in the queue.
                Err(error) => return Err(ClaimError::Unknown(error)),
            }
        }
        claimed
    }

    async fn withdraw(&self, lease: &ZkSession, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        let client = match lease.client(&self.place) {
            Ok(client) => client,
            // With the session everything went that it held.
            Err(BackendError::NoSession { .. }) => return Ok(Released::WasNotHeld),
            Err(error) => return Err(error),
        };
        let withdrawn = async {
            if let Some(path) = lease.path(token) {
                let held = self.delete(&client, &path).await?;
                lease.forget(token);
                return Ok(held);
            }
            // It may have been sent and not answered, even more than once.
            let dir = self.place.queue(name);
            asked(Doing::Read, client.sync("/")).await.map_err(|error| error.of(&self.place))?;
            let mut held = false;
            while let Some(node) = self.own(lease, &client, &dir, token).await? {
                held |= self.delete(&client, &node.path).await?;
            }
            Ok(held)
        };
        match withdrawn.await {
            Ok(true) => Ok(Released::Now),
            Ok(false) | Err(BackendError::NoSession { .. }) => Ok(Released::WasNotHeld),
            Err(error) => Err(error),
        }
    }

    async fn gone(&self, lease: &ZkSession, claim: &Claim) -> Gone {
        let watching = async {
            loop {
                let Ok(client) = lease.client(&self.place) else { return Gone::Session };
                let found = self.find(lease, &client, &claim.name, &claim.token).await;
                let path = match found {
                    Ok(Some(path)) => path,
                    Ok(None) => return Gone::Removed,
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..200))).await;
                        continue;
                    }
                };
                match asked(Doing::Read, client.get_and_watch_data(&path)).await {
                    Ok((_, stat, _)) if created(&stat) != claim.created.0 => return Gone::Removed,
                    Ok((_, _, watcher)) => {
                        // Whoever holds a client keeps its session.
                        drop(client);
                        let _ = timeout(QUIET, watcher.changed()).await;
                    }
                    Err(Failed::Is(Error::NoNode)) => return Gone::Removed,
                    Err(_) => tokio::time::sleep(Duration::from_millis(fastrand::u64(50..200))).await,
                }
            }
        };
        tokio::select! {
            biased;
            () = lease.over() => Gone::Session,
            gone = watching => if lease.ended() { Gone::Session } else { gone },
        }
    }
}
