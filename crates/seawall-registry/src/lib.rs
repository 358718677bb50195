//! The service registry: who is there, who has left, and who knows about it.
//!
//! A registration, a change of status and a departure are transactions in the store; a heartbeat is not: it only moves
//! a deadline in memory ([`lease`]). Everything that is served comes from one place, the watch on the store, so an
//! answer and an event never disagree. [`subscribers`] remembers who follows and which revision each has acknowledged;
//! that is what lets a departure end by knowledge instead of by waiting and hoping.

pub mod lease;
pub mod subscribers;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use seawall_drain::Drain;
use seawall_store::{CommitError, Compare, Cursor, Entry, Event, Keys, ReadError, Store, Txn, WatchError};
use seawall_types::{Change, Instance, InstanceId, Period, Revision, ServiceName, Snapshot, Status};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::lease::Leases;
pub use crate::subscribers::{Subscribers, Subscription};

/// Where registrations live in the store: `registry/<service>/<instance>`.
const PREFIX: &str = "registry/";
/// Names this store, so that followers of another one start afresh.
const STORE_ID: &str = "meta/store-id";
/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long a write may take to come back through the watch.
const ECHO: Duration = Duration::from_secs(5);
/// The most instances that are registered at once.
const LIMIT: usize = 100_000;

/// What a registry does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// How long an instance stays without a heartbeat.
    pub ttl: Period,
}

/// A request that the registry does not fulfil.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It is not registered.
    #[error("instance `{id}` of service `{service}` is not registered")]
    NotFound {
        /// The service.
        service: ServiceName,
        /// The instance.
        id: InstanceId,
    },
    /// What is asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] CommitError),
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The write is durable, but this node has not seen it come back.
    #[error("written at revision {0}, but this node lags behind its store")]
    Lagging(Revision),
}

/// The registry; cheap to clone.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    store: Arc<dyn Store>,
    store_id: String,
    snapshot: watch::Sender<Arc<Snapshot>>,
    leases: Mutex<Leases>,
    subscribers: Subscribers,
}

impl Registry {
    /// Reads what the store holds. Everybody found there starts with a whole time-to-live.
    ///
    /// # Errors
    /// [`RegistryError`] when the store cannot be read, or written at the very first start.
    pub async fn open(config: Config, store: Arc<dyn Store>) -> Result<Self, RegistryError> {
        let fresh = format!("{:016x}", fresh_id());
        store.commit(Txn::put(STORE_ID, fresh).when(Compare::Absent(STORE_ID.into()))).await?;
        let store_id = store.get(STORE_ID).await?.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
        let mut leases = Leases::new(config.ttl.get(), Instant::now());
        let snapshot = load(&*store).await?;
        for (service, instances) in &snapshot.services {
            for instance in instances.iter() {
                leases.beat(service.clone(), instance.id.clone(), Instant::now());
            }
        }
        let shared = Shared {
            config,
            store,
            store_id: store_id.unwrap_or_default(),
            snapshot: watch::Sender::new(Arc::new(snapshot)),
            leases: Mutex::new(leases),
            subscribers: Subscribers::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Follows the store and evicts whoever stops beating, until `drain` signals. From its start on everybody has the
    /// whole time-to-live.
    pub async fn run(self, drain: Drain) {
        // Apart: evicting waits for the disk, and the view must not.
        let evicting = tokio::spawn(self.clone().evict_all());
        let mut cursor = None;
        loop {
            tokio::select! {
                followed = self.follow(&mut cursor) => if let Err(error) = followed {
                    tracing::error!(%error, "the registry cannot follow its store; trying again");
                    tokio::time::sleep(TICK).await;
                },
                () = drain.signaled() => break,
            }
        }
        evicting.abort();
    }

    async fn evict_all(self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let expired = self.leases().tick(Instant::now());
            for (service, id) in expired {
                // Side by side, so that they share a sync; bounded by the number of instances.
                let registry = self.clone();
                tokio::spawn(async move { registry.evict(service, id).await });
            }
        }
    }

    /// Takes the next events of the store. Cancel safe.
    async fn follow(&self, cursor: &mut Option<Cursor>) -> Result<(), RegistryError> {
        let Some(watch) = cursor else {
            let from = self.snapshot().revision.next();
            match self.shared.store.watch(Keys::prefix(PREFIX), from).await {
                Ok(watch) => *cursor = Some(watch),
                Err(WatchError::Compacted { .. }) => self.reload().await?,
                Err(error) => return Err(ReadError::Unavailable(error.to_string()).into()),
            }
            return Ok(());
        };
        match watch.next().await {
            Ok(events) => self.apply(&events),
            Err(_) => *cursor = None,
        }
        Ok(())
    }

    async fn reload(&self) -> Result<(), RegistryError> {
        let snapshot = load(&*self.shared.store).await?;
        self.shared.snapshot.send_replace(Arc::new(snapshot));
        Ok(())
    }

    fn apply(&self, events: &[Event]) {
        let now = Instant::now();
        let changes: Vec<Change> = events.iter().filter_map(change).collect();
        let mut leases = self.leases();
        for change in &changes {
            match &change.instance {
                Some(_) => leases.watch(change.service.clone(), change.id.clone(), now),
                None => leases.forget(&change.service, &change.id),
            }
        }
        drop(leases);
        let last = events.last().map_or(Revision(0), |event| event.revision);
        self.shared.snapshot.send_modify(|snapshot| {
            let snapshot = Arc::make_mut(snapshot);
            changes.iter().for_each(|change| snapshot.apply(change));
            snapshot.revision = snapshot.revision.max(last);
        });
    }

    async fn evict(&self, service: ServiceName, id: InstanceId) {
        let key = key(&service, &id);
        let evicted = async {
            let Some(entry) = self.shared.store.get(&key).await? else { return Ok(None) };
            // Heard of in the meantime, it stays; written in the meantime, it is another.
            if !self.leases().is_gone(&service, &id) {
                return Ok(None);
            }
            let txn = Txn::delete(key.clone()).when(Compare::Modified(key.clone(), entry.modified));
            let done = self.shared.store.commit(txn).await?;
            Ok::<_, RegistryError>(done.succeeded.then_some(done.revision))
        };
        match evicted.await {
            Ok(Some(revision)) => {
                let ttl = self.shared.config.ttl;
                tracing::warn!(%service, instance = %id, %revision, "evicted: no heartbeat for {ttl}");
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%service, instance = %id, %error, "could not be evicted; trying again");
                self.leases().watch(service, id, Instant::now());
            }
        }
    }

    /// The fleet as it is.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.borrow().clone()
    }

    /// Resolves, again and again, when the fleet has changed.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.snapshot.subscribe()
    }

    /// Who follows.
    pub fn subscribers(&self) -> &Subscribers {
        &self.shared.subscribers
    }

    /// Names the store.
    pub fn store_id(&self) -> &str {
        &self.shared.store_id
    }

    /// How long an instance stays without a heartbeat.
    pub fn ttl(&self) -> Duration {
        self.shared.config.ttl.get()
    }

    /// The revision of the store, which may be ahead of the view.
    ///
    /// # Errors
    /// [`ReadError`] when the store cannot be read.
    pub async fn revision(&self) -> Result<Revision, ReadError> {
        Ok(self.shared.store.range(STORE_ID).await?.revision)
    }

    /// Every change from `from` on, straight from the store's history.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when that is too long ago: send the whole snapshot instead.
    pub async fn changes(&self, from: Revision) -> Result<Changes, WatchError> {
        Ok(Changes(self.shared.store.watch(Keys::prefix(PREFIX), from).await?))
    }

    /// Registers an instance, or replaces it. The same again is a heartbeat and writes nothing.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn register(&self, service: &ServiceName, instance: Instance) -> Result<Revision, RegistryError> {
        if let Some(problem) = instance.problem() {
            return Err(RegistryError::Invalid(problem));
        }
        let snapshot = self.snapshot();
        let known = snapshot.instances(service.as_str());
        if known.contains(&instance) {
            self.leases().beat(service.clone(), instance.id, Instant::now());
            return Ok(snapshot.revision);
        }
        if self.leases().len() >= LIMIT {
            return Err(RegistryError::Invalid(format!("the registry is full: {LIMIT} instances")));
        }
        // Before the write, so that no eviction of a former self comes in between.
        self.leases().beat(service.clone(), instance.id.clone(), Instant::now());
        let value = serde_json::to_vec(&instance).expect("an instance is plain data");
        let revision = self.shared.store.commit(Txn::put(key(service, &instance.id), value)).await?.revision;
        self.echo(revision).await?;
        Ok(revision)
    }

    /// Notes that an instance lives. Touches no store.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]: the client has to register again.
    pub fn heartbeat(&self, service: &ServiceName, id: &InstanceId) -> Result<(), RegistryError> {
        self.find(service, id)?;
        self.leases().beat(service.clone(), id.clone(), Instant::now());
        Ok(())
    }

    /// Changes an instance's status.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn set_status(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        status: Status,
    ) -> Result<Revision, RegistryError> {
        let key = key(service, id);
        loop {
            let not_found = || RegistryError::NotFound { service: service.clone(), id: id.clone() };
            let entry = self.shared.store.get(&key).await?.ok_or_else(not_found)?;
            let mut instance = parse(&entry).ok_or_else(not_found)?;
            if instance.status == status {
                self.echo(entry.modified).await?;
                return Ok(entry.modified);
            }
            instance.status = status;
            let value = serde_json::to_vec(&instance).expect("an instance is plain data");
            let txn = Txn::put(key.clone(), value).when(Compare::Modified(key.clone(), entry.modified));
            let done = self.shared.store.commit(txn).await?;
            if done.succeeded {
                self.echo(done.revision).await?;
                return Ok(done.revision);
            }
        }
    }

    /// Removes an instance.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn deregister(&self, service: &ServiceName, id: &InstanceId) -> Result<Revision, RegistryError> {
        let revision = self.remove(service, id).await?;
        self.echo(revision).await?;
        Ok(revision)
    }

    async fn remove(&self, service: &ServiceName, id: &InstanceId) -> Result<Revision, RegistryError> {
        let key = key(service, id);
        let done = self.shared.store.commit(Txn::delete(key.clone()).when(Compare::Exists(key))).await?;
        if done.succeeded {
            Ok(done.revision)
        } else {
            Err(RegistryError::NotFound { service: service.clone(), id: id.clone() })
        }
    }

    /// Waits until every live subscriber has acknowledged `revision`, at most for `timeout`; names those who have not.
    pub async fn applied(&self, revision: Revision, timeout: Duration) -> Vec<String> {
        self.shared.subscribers.applied(revision, timeout).await
    }

    fn find(&self, service: &ServiceName, id: &InstanceId) -> Result<(), RegistryError> {
        let snapshot = self.snapshot();
        let found = snapshot.instances(service.as_str()).binary_search_by(|instance| instance.id.cmp(id));
        found.map(drop).map_err(|_| RegistryError::NotFound { service: service.clone(), id: id.clone() })
    }

    /// Waits until our own view has reached what we wrote, so that who writes and then reads sees it.
    async fn echo(&self, revision: Revision) -> Result<(), RegistryError> {
        let mut snapshot = self.watch();
        let reached = snapshot.wait_for(|snapshot| snapshot.revision >= revision);
        match tokio::time::timeout(ECHO, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(RegistryError::Lagging(revision)),
        }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.shared.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// The changes of the fleet, in order, none missing.
#[derive(Debug)]
pub struct Changes(Cursor);

impl Changes {
    /// The next ones. Cancel safe.
    ///
    /// # Errors
    /// [`WatchError`] when the reader fell too far behind, or the store is closed.
    pub async fn next(&mut self) -> Result<Vec<Change>, WatchError> {
        Ok(self.0.next().await?.iter().filter_map(change).collect())
    }
}

fn key(service: &ServiceName, id: &InstanceId) -> String {
    format!("{PREFIX}{service}/{id}")
}

fn parse(entry: &Entry) -> Option<Instance> {
    serde_json::from_slice(&entry.value)
        .inspect_err(|error| tracing::error!(key = %entry.key, %error, "a registration in the store is not understood"))
        .ok()
}

fn change(event: &Event) -> Option<Change> {
    let (service, id) = event.key.strip_prefix(PREFIX)?.split_once('/')?;
    Some(Change {
        revision: event.revision,
        service: ServiceName::try_new(service).ok()?,
        id: InstanceId::try_new(id).ok()?,
        instance: match &event.entry {
            Some(entry) => Some(parse(entry)?),
            None => None,
        },
    })
}

async fn load(store: &dyn Store) -> Result<Snapshot, RegistryError> {
    let range = store.range(PREFIX).await?;
    let mut snapshot = Snapshot::default();
    for entry in range.entries {
        let event = Event { revision: entry.modified, key: entry.key.clone(), entry: Some(entry) };
        if let Some(change) = change(&event) {
            snapshot.apply(&change);
        }
    }
    snapshot.revision = range.revision;
    Ok(snapshot)
}

fn fresh_id() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
