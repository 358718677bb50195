//! `seawall.yaml`: read, checked as a whole, every mistake reported at once with its place.
//!
//! [`tree`] keeps where each value stands; [`load`] turns the tree into [`Config`], mending it mistake by mistake so
//! that all are found; `check` asks what no single crate can know.

mod check;
pub(crate) mod load;
mod schema;
mod teams;
pub(crate) mod tree;

pub(crate) use teams::files as route_files;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use schemars::JsonSchema;
use seawall_control::ControlConfig;
use seawall_coord::{LocksUrl, Need};
use seawall_gateway::GatewayConfig;
use seawall_proxy::Protocol;
use seawall_resilience::Policies;
use seawall_saga::{Plan, PlanConfig};
use seawall_schedule::JobConfig;
use seawall_sidecar::ServiceConfig;
use seawall_types::ServiceName;
use serde::{Deserialize, Serialize};

/// The whole file. Everything has a default; an empty file is valid.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The control node.
    pub(crate) control: ControlConfig,
    /// How services are called, by service; `default` is the base of all.
    pub(crate) policies: Policies,
    /// The front doors, by name.
    pub(crate) gateways: BTreeMap<ServiceName, GatewayConfig>,
    /// The services, by name.
    pub(crate) services: BTreeMap<ServiceName, ServiceConfig>,
    /// The sagas, by name.
    pub(crate) sagas: BTreeMap<ServiceName, PlanConfig>,
    /// What is done when, by name; run once, whatever dies.
    pub(crate) cron: BTreeMap<ServiceName, JobConfig>,
    /// Where `seawall lock`, `elect`, `locks` and `elections` find locks.
    pub(crate) coordination: CoordinationConfig,
}

/// Where locks and elections are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CoordinationConfig {
    /// Another backend than control: `etcd://`, `zookeeper://`, `postgres://`, `postgres+advisory://`, `redis://`, `redlock://`
    /// and the address. Default: control.
    #[schemars(with = "Option<String>")]
    pub(crate) backend: Option<LocksUrl>,
    /// What is needed of it: `fence`, a fencing token; `lease`, one holder as long as the backend forgets nothing; `best`, one
    /// holder most of the time. A backend that cannot give it is refused.
    #[schemars(with = "String", extend("enum" = ["fence", "lease", "best"]))]
    pub(crate) need: Need,
}

impl Config {
    /// What the services speak that do not speak HTTP/1.1.
    pub(crate) fn protocols(&self) -> HashMap<ServiceName, Protocol> {
        let services = self.services.iter().map(|(name, service)| (name.clone(), service.protocol));
        services.filter(|(_, protocol)| *protocol != Protocol::default()).collect()
    }
}

/// A checked file and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// What it says.
    pub(crate) config: Config,
    /// The file itself, absolute.
    pub(crate) file: PathBuf,
}

impl Loaded {
    /// The directory that relative paths begin at.
    pub(crate) fn base(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }

    /// The data directory, absolute.
    pub(crate) fn data(&self) -> PathBuf {
        self.base().join(&self.config.control.data)
    }

    /// The gateway of this name, or the only one.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub(crate) fn gateway(&self, name: Option<&str>) -> anyhow::Result<(&str, &GatewayConfig)> {
        let gateways = &self.config.gateways;
        let names = || gateways.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let (name, config) = match (name, gateways.len()) {
            (Some(name), _) => {
                let found = gateways.get_key_value(name);
                found.with_context(|| format!("no gateway `{name}` in the file; there is {}", names()))?
            }
            (None, 1) => gateways.iter().next().context("one gateway")?,
            (None, 0) => anyhow::bail!("the file has no gateway: add one under `gateways`"),
            (None, _) => anyhow::bail!("the file has several gateways, name one of them: {}", names()),
        };
        Ok((name.as_str(), config))
    }

    /// The plans of its sagas. They hold together: that was checked.
    pub(crate) fn plans(&self) -> Vec<Plan> {
        let plan = |(name, config): (&ServiceName, &PlanConfig)| Plan::try_new(name.as_str(), config).ok();
        self.config.sagas.iter().filter_map(plan).collect()
    }

    /// Where control can be reached from this machine.
    pub(crate) fn control_addr(&self) -> std::net::SocketAddr {
        let mut addr = self.config.control.listen;
        if addr.ip().is_unspecified() {
            addr.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        addr
    }
}
