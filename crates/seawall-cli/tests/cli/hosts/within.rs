//! The second and the third host: a real gateway and a real sidecar in the test's own process, by a manual clock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use seawall_discovery::Control;
use seawall_drain::Trigger;
use seawall_gateway::{Gateway, GatewayConfig};
use seawall_proxy::Upstreams;
use seawall_proxy::upstream::View;
use seawall_resilience::{Clock, Policies};
use seawall_sidecar::{HealthConfig, Sidecar, SidecarConfig};
use seawall_types::{Change, Instance, InstanceId, Period, Revision, ServiceName, Snapshot};
use serde_json::json;
use tokio::task::JoinHandle;

use super::trace::{SERVICE, Trace, policy};
use super::wire::{Behind, Service, Wire};

/// Which host.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Gateway,
    Sidecar,
}

/// A host that runs, and what ends it.
pub(crate) struct Running {
    pub(crate) host: Wire,
    trigger: Trigger,
    /// The sidecar's own task; the gateway has threads alone.
    task: Option<JoinHandle<()>>,
}

fn name(text: &str) -> ServiceName {
    ServiceName::try_new(text).unwrap()
}

/// A fresh host under a trace's policy. Its clock stands at zero.
pub(crate) async fn start(kind: Kind, trace: &Trace) -> Running {
    let (clock, hand) = Clock::manual();
    let policies = Policies([(name(SERVICE), policy(trace))].into());
    let upstreams = Upstreams::with_clock(policies, clock).unwrap();
    let service = Service::start().await;
    let id = InstanceId::try_new("svc-1").unwrap();
    let instance = Some(Instance::new(id.clone(), service.addr));
    let mut snapshot = Snapshot::default();
    snapshot.apply(&Change { revision: Revision(1), service: name(SERVICE), id, instance });
    upstreams.publish(Arc::new(snapshot));
    // The guard is made when it is first asked for, and a rate limit begins then: here at zero, as in the library.
    let guard = View::new(upstreams.clone()).get(SERVICE).expect("just published").guard.clone();
    let (trigger, drain) = seawall_drain::channel();
    let (addr, task) = match kind {
        Kind::Gateway => {
            // One hop is trusted, or a priority would be thrown away at the door.
            let route = json!({ "id": "svc", "match": { "path": "/svc/**" }, "filters": [{ "strip_prefix": 1 }], "to": SERVICE });
            let config = json!({ "listen": "127.0.0.1:0", "workers": 1, "trusted_hops": 1, "routes": [route] });
            let config: GatewayConfig = serde_json::from_value(config).unwrap();
            let gateway = Gateway::bind("public", config).unwrap();
            let addr = gateway.addr();
            gateway.start(&upstreams, &drain).unwrap();
            (addr, None)
        }
        Kind::Sidecar => {
            // Its own service is nobody's concern here, and it registers with a control node that is not there: the way
            // out does not depend on either.
            let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
            let config = SidecarConfig {
                service: name("caller"),
                id: InstanceId::try_new("caller-1").unwrap(),
                protocol: Default::default(),
                app: nobody,
                inbound: ([127, 0, 0, 1], 0).into(),
                outbound: ([127, 0, 0, 1], 0).into(),
                workers: 1,
                health: HealthConfig { interval: Period::secs(60), ..HealthConfig::default() },
                drain: Period::millis(30),
                version: None,
                zone: None,
            };
            let sidecar = Sidecar::bind(config).unwrap();
            let addr = sidecar.outbound();
            let run = sidecar.run(upstreams, Control::new([nobody]), drain);
            (addr, Some(tokio::spawn(async move { run.await.unwrap() })))
        }
    };
    Running { host: Wire::new(addr, SERVICE, Behind::Here { hand, guard }, service), trigger, task }
}

impl Running {
    /// Ends it; calls that never ended end now.
    pub(crate) async fn stop(self) {
        let Self { host, trigger, task } = self;
        drop(host);
        match task {
            // To leave in order it would talk to its control node; ended, it closes its two sides all the same.
            Some(task) => task.abort(),
            None => {
                let report = trigger.drain(Duration::from_secs(30)).await;
                assert!(report.is_clean(), "the gateway does not end: {report}");
            }
        }
    }
}
