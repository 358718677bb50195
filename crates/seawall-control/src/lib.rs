//! The control node: the registry, locks, the saga runner, the scheduler and the HTTP API in front of them, on one store.

mod api;
mod coord;
mod cron;
mod queues;
mod store_api;
mod traffic;

pub use coord::{End, Ended, Explained};
pub use traffic::{Order, Shift, SplitView};

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use seawall_coord::{BackendError, Owner, StoreBackend};
use seawall_drain::Drain;
use seawall_proxy::{Client, Protocol, Upstreams};
use seawall_registry::{Registry, RegistryError};
use seawall_resilience::{InvalidPolicies, Policies};
use seawall_saga::log::{Log, LogError};
use seawall_saga::{Plan, Runner, RunnerConfig};
use seawall_schedule::{JobConfig, Jobs, JobsError, QueueError, Queues, Scheduler, SchedulerConfig};
use seawall_store::sqlite::OpenError;
use seawall_store::{STORE_LIMIT, StoreError, StoreUrl};
use seawall_types::{Instance, InstanceId, Period, ServiceName, Size};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use store_api::StoreApi;

/// The name under which control itself is registered, so that services can call its API through their sidecar.
pub const SERVICE: &str = "control";

/// The control node's part of the file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Where its HTTP API listens. Default 127.0.0.1:7400.
    pub listen: SocketAddr,
    /// The directory that everything durable lives in. Default ./seawall-data.
    pub data: PathBuf,
    /// Where registrations are kept: `embedded`, in the data directory, or `etcd://host:port,host:port/prefix`, which no
    /// other control node may use. Sagas stay in the data directory. Default embedded.
    #[schemars(with = "String")]
    pub store: StoreUrl,
    /// How large the embedded store may become, at least 16 MiB; then it takes deletions alone. Default 2 GiB.
    pub store_limit: Size,
    /// How long an instance stays registered without a heartbeat; at least 1s. Default 6s.
    pub ttl: Period,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            data: "./seawall-data".into(),
            store: StoreUrl::Embedded,
            store_limit: Size::bytes(STORE_LIMIT),
            ttl: Period::secs(6),
        }
    }
}

/// A control node that could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address.
    #[error("control cannot listen on {addr}: {source}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The store of the registrations.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file of the saga log.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Sessions and locks.
    #[error(transparent)]
    Coord(#[from] BackendError),
    /// The saga log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The scheduled jobs of the file.
    #[error("the scheduled jobs could not be put into the store: {0}")]
    Cron(#[from] JobsError),
    /// The queues.
    #[error(transparent)]
    Queues(#[from] QueueError),
    /// The policies.
    #[error(transparent)]
    Policies(#[from] InvalidPolicies),
    /// The server.
    #[error("the API server failed: {0}")]
    Serve(io::Error),
}

/// A control node that has opened its files and its address and does not serve yet.
#[derive(Debug)]
pub struct Control {
    listener: TcpListener,
    addr: SocketAddr,
    registry: Registry,
    locks: StoreBackend,
    jobs: Jobs,
    queues: Queues,
    cron: BTreeMap<ServiceName, JobConfig>,
    upstreams: Upstreams,
    log: Log,
    plans: Vec<Plan>,
    store: StoreApi,
}

impl Control {
    /// Opens the store and the saga log, and binds the address.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn bind(config: ControlConfig, policies: Policies, plans: Vec<Plan>) -> Result<Self, ControlError> {
        let addr = config.listen;
        let listen = |source| ControlError::Listen { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let upstreams = Upstreams::new(policies)?;
        let (file, limit) = (config.data.join("store.db"), config.store_limit.get());
        let store = seawall_store::open_within(&config.store, &file, limit).await?;
        let log = Log::open(&config.data.join("sagas.db"))?;
        let registry = Registry::open(seawall_registry::Config { ttl: config.ttl }, store.clone()).await?;
        let locks = StoreBackend::open(store.clone()).await?;
        let queues = Queues::open(store.clone()).await?;
        let (jobs, cron) = (Jobs::new(store.clone()), BTreeMap::new());
        let store = StoreApi::new(store, config.store, limit, config.data);
        Ok(Self { listener, addr, registry, locks, jobs, queues, cron, upstreams, log, plans, store })
    }

    /// The same where some services that sagas call speak something else than HTTP/1.1.
    #[must_use]
    pub fn protocols(self, protocols: HashMap<ServiceName, Protocol>) -> Self {
        self.upstreams.speak(protocols);
        self
    }

    /// The same with the scheduled jobs of a file. Those of a former file that are not among them are removed.
    #[must_use]
    pub fn cron(mut self, jobs: BTreeMap<ServiceName, JobConfig>) -> Self {
        self.cron = jobs;
        self
    }

    /// Whom the saga runner calls, and under which policies.
    pub fn upstreams(&self) -> Upstreams {
        self.upstreams.clone()
    }

    /// Where the API listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `drain` signals; then finishes the requests and saga steps under way and returns. Sagas that have
    /// not ended go on when a control node opens their log again.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn run(self, drain: Drain) -> Result<(), ControlError> {
        let Self { listener, addr, registry, locks, jobs, queues, cron, upstreams, log, plans, store } = self;
        upstreams.publish(registry.snapshot());
        tokio::spawn(publish(registry.clone(), upstreams.clone(), drain.clone()));
        let client = Client::new(upstreams.clone());
        let runner = Runner::new(RunnerConfig::default(), plans, log, client.clone(), drain.clone());
        runner.recover().await?;
        // Nobody could beat until now; nobody is judged for that.
        tokio::spawn(registry.clone().run(drain.clone()));
        register_self(&registry, addr).await?;
        tokio::spawn(beat_self(registry.clone(), addr, drain.clone()));
        jobs.declare(&cron).await?;
        let owner = Owner::try_new(own_name(addr).1.as_str()).expect("an instance's name is an owner's, too");
        let scheduler = Scheduler::new(jobs.clone(), locks.clone(), SchedulerConfig::new(owner));
        let cron = cron::Cron { jobs, stats: scheduler.stats(), drain: drain.clone() };
        let scheduling = tokio::spawn(schedule(scheduler, client, drain.clone()));
        let waiting = queues::Waiting { queues: queues.clone(), drain: drain.clone() };
        let sweeping = drain.clone();
        tokio::spawn(async move { queues.sweep(sweeping).await });
        tracing::info!(%addr, "control is ready");
        let coord = coord::Coord::new(locks, drain.clone());
        let shifts = traffic::Shifts::new(store.store(), drain.clone());
        let app = api::router(api::App {
            registry,
            runner,
            upstreams,
            coord,
            cron,
            waiting,
            store,
            shifts,
            drain: drain.clone(),
        });
        let served = axum::serve(listener, app).with_graceful_shutdown(async move { drain.signaled().await });
        served.await.map_err(ControlError::Serve)?;
        // Runs under way have ended by now, or will not in time; what is left is to resign.
        let _ = tokio::time::timeout(RESIGN, scheduling).await;
        Ok(())
    }
}

/// How long the scheduler may take to hand over after the last request.
const RESIGN: Duration = Duration::from_secs(15);

async fn schedule(scheduler: Scheduler, client: Client, drain: Drain) {
    if let Err(error) = scheduler.run(drain, move |run| cron::call(client.clone(), run)).await {
        tracing::error!(%error, "scheduled jobs are not run by this node");
    }
}

/// The saga runner's own client follows the registry in this very process.
async fn publish(registry: Registry, upstreams: Upstreams, drain: Drain) {
    let Some(_subscription) = registry.subscribers().open("control") else { return };
    let mut snapshots = registry.watch();
    snapshots.mark_changed();
    loop {
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = drain.signaled() => return,
        }
        let snapshot = snapshots.borrow_and_update().clone();
        let revision = snapshot.revision;
        upstreams.publish(snapshot);
        registry.subscribers().acknowledge("control", revision);
    }
}

fn own_name(addr: SocketAddr) -> (ServiceName, InstanceId) {
    let id = format!("control-{}", addr.port());
    (ServiceName::try_new(SERVICE).expect("a valid name"), InstanceId::try_new(&id).expect("a valid id"))
}

async fn register_self(registry: &Registry, addr: SocketAddr) -> Result<(), ControlError> {
    let (service, id) = own_name(addr);
    let mut reachable = addr;
    if addr.ip().is_unspecified() {
        reachable.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    // The registry's own view moves only while it runs; it does by now.
    registry.register(&service, Instance::new(id, reachable)).await?;
    Ok(())
}

async fn beat_self(registry: Registry, addr: SocketAddr, drain: Drain) {
    let (service, id) = own_name(addr);
    let mut beat = tokio::time::interval((registry.ttl() / 3).max(Duration::from_millis(100)));
    loop {
        tokio::select! {
            _ = beat.tick() => if registry.heartbeat(&service, &id).is_err()
                && let Err(error) = register_self(&registry, addr).await
            {
                tracing::warn!(%error, "control cannot register itself; trying again");
            },
            () = drain.signaled() => return,
        }
    }
}
