//! The gateways' part of the file.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use seawall_proxy::filter::{FallbackConfig, FilterConfig};
use seawall_types::{Period, ServiceName};
use serde::{Deserialize, Serialize};

/// One gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it answers `/metrics`, `/healthz`, `/readyz` and `/status`. Default: a free port of 127.0.0.1.
    #[serde(default = "loopback")]
    pub admin: SocketAddr,
    /// How many workers, each with a core's worth of requests. Default: one a core.
    #[serde(default)]
    #[schemars(range(min = 1, max = 255))]
    pub workers: Option<u8>,
    /// How many connections each worker holds; more wait. Default 10000.
    #[serde(default = "connections")]
    #[schemars(range(min = 1, max = 1000000))]
    pub connections: u32,
    /// How many proxies in front of it are believed in what they say of the client. Default 0: none.
    #[serde(default)]
    pub trusted_hops: u8,
    /// How long requests may take to finish when it stops. Default 30s.
    #[serde(default = "drain")]
    pub drain: Period,
    /// The routes; the first that matches is taken.
    #[serde(default)]
    pub routes: Vec<RouteConfig>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

const fn connections() -> u32 {
    10_000
}

const fn drain() -> Period {
    Period::secs(30)
}

/// One route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Its name, unique within the gateway.
    pub id: String,
    /// Which requests it takes.
    #[serde(rename = "match")]
    pub matches: MatchConfig,
    /// What happens to them on the way, in this order.
    #[serde(default)]
    pub filters: Vec<FilterConfig>,
    /// The service that they go to.
    pub to: ServiceName,
    /// The answer when the service cannot give one. Default: a plain 503, 504 or 502.
    #[serde(default)]
    pub fallback: Option<FallbackConfig>,
}

/// Which requests a route takes: those that meet all that is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchConfig {
    /// A path pattern: `*` and `{name}` stand for one segment, `**` at the end for any number.
    pub path: String,
    /// The methods. Default: all.
    #[serde(default)]
    pub method: Vec<String>,
    /// The hosts, without port; `*.example.com` takes every name below it. Default: all.
    #[serde(default)]
    pub host: Vec<String>,
    /// Headers that must be there with these values; `*` takes any value.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}
