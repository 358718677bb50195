//! One running copy of a service, as the registry knows it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::InstanceId;

/// Where an instance stands in its life. Only `Up` receives new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Registered, not yet healthy.
    Starting,
    /// Takes requests.
    Up,
    /// Finishes what it has, takes nothing new.
    Draining,
    /// Known and unhealthy.
    Down,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Down => "down",
        })
    }
}

/// One running copy of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Unique within its service; registering it again replaces it.
    pub id: InstanceId,
    /// Where callers reach it.
    pub address: IpAddr,
    /// Where callers reach it.
    pub port: u16,
    /// Where it stands in its life. Default: up.
    #[serde(default = "up")]
    pub status: Status,
    /// Its share of the traffic relative to its peers, 1 to 1000. Default 100.
    #[serde(default = "full_weight")]
    pub weight: u16,
    /// The version that runs, as the service names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The failure domain that it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Free-form labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

const fn up() -> Status {
    Status::Up
}

const fn full_weight() -> u16 {
    100
}

impl Instance {
    /// An instance that is up, with every other field at its default.
    pub fn new(id: InstanceId, addr: SocketAddr) -> Self {
        Self {
            id,
            address: addr.ip(),
            port: addr.port(),
            status: Status::Up,
            weight: full_weight(),
            version: None,
            zone: None,
            metadata: BTreeMap::new(),
        }
    }

    /// Address and port as one.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// What is wrong with it, if anything: limits that keep one client from filling the registry.
    pub fn problem(&self) -> Option<String> {
        let labels: usize = self.metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
        let texts = [&self.version, &self.zone].into_iter().flatten().map(String::len).max().unwrap_or(0);
        if self.port == 0 {
            Some("port 0 cannot be called: register the port that the service listens on".into())
        } else if !(1..=1000).contains(&self.weight) {
            Some(format!("weight {} is outside 1 to 1000", self.weight))
        } else if labels > 4096 {
            Some(format!("metadata of {labels} bytes exceeds 4096"))
        } else if texts > 128 {
            Some(format!("version or zone of {texts} bytes exceeds 128"))
        } else {
            None
        }
    }
}
