//! The services that can be called, as a snapshot and the policies describe them.
//!
//! [`Upstreams`] is shared by the process: the latest snapshot behind an atomic pointer and one [`Guard`] for each
//! service. A [`View`] belongs to one worker: it is compiled from the snapshot when a request notices a new version,
//! and keeps the worker's own loads and connections across versions.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use http::HeaderValue;
use http::uri::Authority;
use schemars::JsonSchema;
use seawall_resilience::Breaker;
use seawall_resilience::{Bulkhead, Clock, Events, Guard, InvalidPolicies, Policies, breaker};
use seawall_types::{ServiceName, Snapshot, Status};
use serde::{Deserialize, Serialize};

use crate::balance::Load;
use crate::metrics::{Registry, ServiceMetrics};
use crate::pool::Pool;

/// What a service's instances are spoken to in, behind their sidecars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1; gRPC and nothing else by HTTP/2.
    #[default]
    Http1,
    /// HTTP/2, in clear text with prior knowledge (RFC 9113, 3.3); upgrades and nothing else by HTTP/1.1.
    Http2,
}

/// Everything that this process knows about whom it can call; cheap to clone.
#[derive(Clone, Debug)]
pub struct Upstreams {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// Counts publications; a worker compares it to the one that its view was compiled from.
    version: AtomicU64,
    policies: seawall_resilience::Registry,
    metrics: Registry,
    /// Of the services that do not speak the usual one.
    protocols: ArcSwap<HashMap<ServiceName, Protocol>>,
}

impl Upstreams {
    /// Nobody to call yet.
    ///
    /// # Errors
    /// [`InvalidPolicies`].
    pub fn new(policies: Policies) -> Result<Self, InvalidPolicies> {
        Self::with_clock(policies, Clock::default())
    }

    /// [`Upstreams::new`] whose policies go by another clock.
    ///
    /// # Errors
    /// As there.
    pub fn with_clock(policies: Policies, clock: Clock) -> Result<Self, InvalidPolicies> {
        let policies = seawall_resilience::Registry::with_clock(policies, clock)?;
        policies.events().observe(Box::new(|event| match event.what {
            breaker::Event::Moved(_) | breaker::Event::WouldOpen(_) => {
                tracing::warn!(policy = "breaker", service = %event.instance, "{event}");
            }
            breaker::Event::Call(_) | breaker::Event::Rejected(_) => {
                tracing::debug!(policy = "breaker", service = %event.instance, "{event}");
            }
        }));
        Ok(Self {
            shared: Arc::new(Shared {
                snapshot: ArcSwap::default(),
                version: AtomicU64::new(1),
                policies,
                metrics: Registry::default(),
                protocols: ArcSwap::default(),
            }),
        })
    }

    /// Replaces the snapshot. When this returns, no request that begins will pick what the snapshot leaves out.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.shared.snapshot.store(snapshot);
        self.shared.version.fetch_add(1, Ordering::Release);
    }

    /// Says what services speak; one that is not named speaks HTTP/1.1.
    pub fn speak(&self, protocols: HashMap<ServiceName, Protocol>) {
        self.shared.protocols.store(Arc::new(protocols));
        self.shared.version.fetch_add(1, Ordering::Release);
    }

    /// The latest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// The guards of the services that have been called from here.
    pub fn guards(&self) -> Vec<Arc<Guard>> {
        self.shared.policies.guards()
    }

    /// The guard of a service that has been called from here.
    pub fn known_guard(&self, service: &str) -> Option<Arc<Guard>> {
        self.guards().into_iter().find(|guard| guard.name().as_str() == service)
    }

    /// Goes on under other policies. No guard loses its state, and calls under way end as they began.
    ///
    /// # Errors
    /// [`InvalidPolicies`]; then everything stays as it was.
    pub fn reload(&self, policies: Policies) -> Result<(), InvalidPolicies> {
        self.shared.policies.reload(policies)
    }

    /// What happens to the policies.
    pub fn events(&self) -> Arc<Events> {
        self.shared.policies.events()
    }

    /// Where the workers' counters are collected.
    pub fn metrics(&self) -> &Registry {
        &self.shared.metrics
    }

    fn guard(&self, service: &ServiceName) -> Arc<Guard> {
        self.shared.policies.guard(service.as_str())
    }
}

/// One service as one worker sees it at one version.
#[derive(Debug)]
pub struct Upstream {
    /// The service.
    pub service: ServiceName,
    /// The same, for rejections.
    pub(crate) name: Arc<str>,
    /// Its policies with their state, shared by all workers.
    pub guard: Arc<Guard>,
    /// The instances that are up.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// This worker's counters.
    pub metrics: Arc<ServiceMetrics>,
    /// What its instances are called by: the service's name.
    pub(crate) host: HeaderValue,
    /// The same for HTTP/2.
    pub(crate) authority: Authority,
    pub(crate) protocol: Protocol,
}

/// Lets a permit reach its policy by way of the worker's own `Arc`, whose count no other core touches.
#[derive(Clone, Debug)]
pub struct Handle(pub(crate) Arc<Upstream>);

impl AsRef<Breaker> for Handle {
    fn as_ref(&self) -> &Breaker {
        self.0.guard.breaker.kept().expect("made only where there is a breaker")
    }
}

impl AsRef<Bulkhead> for Handle {
    fn as_ref(&self) -> &Bulkhead {
        self.0.guard.bulkhead.kept().expect("made only where there is a bulkhead")
    }
}

/// One instance as one worker sees it.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub addr: SocketAddr,
    /// Its share relative to its peers.
    pub weight: u16,
    /// What this worker has under way there.
    pub load: Load,
    pub(crate) pool: Pool,
}

impl Endpoint {
    /// An endpoint without history.
    pub fn new(addr: SocketAddr, weight: u16, now: Instant) -> Self {
        Self { addr, weight, load: Load::new(now), pool: Pool::default() }
    }
}

/// One worker's view, compiled anew when the version has moved.
#[derive(Debug)]
pub struct View {
    upstreams: Upstreams,
    compiled: Mutex<Compiled>,
}

#[derive(Debug, Default)]
struct Compiled {
    version: u64,
    services: HashMap<ServiceName, Arc<Upstream>>,
}

impl View {
    /// A view for one more worker.
    pub fn new(upstreams: Upstreams) -> Self {
        Self { upstreams, compiled: Mutex::default() }
    }

    /// The process-wide part.
    pub fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    /// The service as the latest snapshot has it; `None` when it has never been registered.
    pub fn get(&self, service: &str) -> Option<Arc<Upstream>> {
        // Uncontended: the lock belongs to one worker.
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.upstreams.shared.version.load(Ordering::Acquire);
        if compiled.version != version {
            compiled.version = version;
            let snapshot = self.upstreams.snapshot();
            compiled.services = self.compile(&snapshot, &compiled.services);
        }
        compiled.services.get(service).cloned()
    }

    fn compile(
        &self,
        snapshot: &Snapshot,
        old: &HashMap<ServiceName, Arc<Upstream>>,
    ) -> HashMap<ServiceName, Arc<Upstream>> {
        let now = Instant::now();
        let protocols = self.upstreams.shared.protocols.load();
        let compile = |(service, instances): (&ServiceName, &Arc<Vec<seawall_types::Instance>>)| {
            let before = old.get(service);
            let up = instances.iter().filter(|instance| instance.status == Status::Up);
            let endpoints = up.map(|instance| {
                let same = |e: &&Arc<Endpoint>| e.addr == instance.addr() && e.weight == instance.weight;
                let known = before.and_then(|before| before.endpoints.iter().find(same));
                known.cloned().unwrap_or_else(|| Arc::new(Endpoint::new(instance.addr(), instance.weight, now)))
            });
            let upstream = Upstream {
                endpoints: endpoints.collect(),
                service: service.clone(),
                name: service.as_str().into(),
                host: HeaderValue::from_str(service.as_str()).expect("a service's name is a valid header value"),
                authority: Authority::try_from(service.as_str()).expect("a service's name is a valid host"),
                protocol: protocols.get(service).copied().unwrap_or_default(),
                guard: before.map_or_else(|| self.upstreams.guard(service), |before| before.guard.clone()),
                metrics: before
                    .map_or_else(|| self.upstreams.shared.metrics.worker(service), |before| before.metrics.clone()),
            };
            (service.clone(), Arc::new(upstream))
        };
        snapshot.services.iter().map(compile).collect()
    }
}

#[cfg(test)]
mod tests {
    use seawall_types::{Change, Instance, InstanceId, Revision};

    use super::*;

    #[test]
    fn a_view_follows_the_snapshot_and_keeps_what_stayed() {
        let upstreams = Upstreams::new(Policies::default()).unwrap();
        let view = View::new(upstreams.clone());
        assert!(view.get("order").is_none());
        let mut snapshot = Snapshot::default();
        let mut put = |revision, id: &str, port: u16, status| {
            let id = InstanceId::try_new(id).unwrap();
            let mut instance = Instance::new(id.clone(), ([127, 0, 0, 1], port).into());
            instance.status = status;
            let service = ServiceName::try_new("order").unwrap();
            snapshot.apply(&Change { revision: Revision(revision), service, id, instance: Some(instance) });
            upstreams.publish(Arc::new(snapshot.clone()));
        };
        put(1, "a", 1, Status::Up);
        put(2, "b", 2, Status::Up);
        let before = view.get("order").unwrap();
        put(3, "b", 2, Status::Draining);
        let after = view.get("order").unwrap();
        assert_eq!((before.endpoints.len(), after.endpoints.len()), (2, 1));
        assert!(Arc::ptr_eq(&before.endpoints[0], &after.endpoints[0]), "load and connections are kept");
        assert!(Arc::ptr_eq(&before.guard, &after.guard));
        assert!(Arc::ptr_eq(&after, &view.get("order").unwrap()), "nothing is compiled without need");
    }
}
