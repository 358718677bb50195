//! The gateways' part of the file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use seawall_proxy::access::AccessLogConfig;
use seawall_proxy::tls::TlsConfig;
use seawall_types::{Period, ServiceName};
use serde::{Deserialize, Serialize};

use crate::compose::ComposeConfig;
use crate::filter::{FallbackConfig, FilterConfig};
use crate::split::SplitConfig;

/// One gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// TLS on `listen`. Default: clear text.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Where requests are written down, one line of JSON each. Default: nowhere.
    #[serde(default)]
    pub access_log: Option<AccessLogConfig>,
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
    /// Which route takes a request that several match: `written`, the first, or `specific`, as the Gateway API has it. Default
    /// written.
    #[serde(default)]
    pub precedence: Precedence,
    /// Names that routes go to instead of a service, each for several services among which requests are divided.
    #[serde(default)]
    pub splits: BTreeMap<ServiceName, SplitConfig>,
    /// What happens to the requests of every route, before the route's own filters.
    #[serde(default)]
    pub filters: Vec<FilterConfig>,
    /// The routes.
    #[serde(default)]
    pub routes: Vec<RouteConfig>,
    /// A directory of files that hold more of them, one a team perhaps: every `*.yaml` in it, by name, after those above. A change
    /// of the files is live within a second or two. Default none.
    #[serde(default)]
    pub routes_from: Option<PathBuf>,
}

impl GatewayConfig {
    /// Lets the paths of files that its filters name begin at `base`.
    pub fn resolve(&mut self, base: &Path) {
        let routes = self.routes.iter_mut().flat_map(|route| &mut route.filters);
        self.filters.iter_mut().chain(routes).for_each(|filter| filter.resolve(base));
        self.routes_from = self.routes_from.take().map(|directory| base.join(directory));
        if let Some(log) = self.access_log.as_mut().filter(|log| log.file != Path::new("-")) {
            log.file = base.join(&log.file);
        }
        self.tls = self.tls.take().map(|tls| tls.within(base));
    }
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
    #[serde(rename = "match", default)]
    pub matches: MatchConfig,
    /// What happens to them on the way, in this order.
    #[serde(default)]
    pub filters: Vec<FilterConfig>,
    /// The service that they go to, or a split; needless where a filter answers, or `compose` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<ServiceName>,
    /// Instead of `to`: the calls that the answer is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compose: Option<ComposeConfig>,
    /// The answer when the service cannot give one. Default: a plain 503, 504 or 502.
    #[serde(default)]
    pub fallback: Option<FallbackConfig>,
}

/// Which requests a route takes: those that meet all that is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchConfig {
    /// A path pattern: `*` and `{name}` stand for one segment, `**` at the end for any number. Default: every path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A regular expression that the whole path fits, beside or instead of a pattern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_regex: Option<String>,
    /// The methods. Default: all.
    #[serde(default)]
    pub method: Vec<String>,
    /// The hosts, without port; `*.example.com` takes every name below it. Default: all.
    #[serde(default)]
    pub host: Vec<String>,
    /// Headers that must be there with these values; `*` takes any value, `{ regex: ... }` what fits it wholly.
    #[serde(default)]
    pub headers: BTreeMap<String, ValueConfig>,
    /// Parameters of the query, decoded, with such values.
    #[serde(default)]
    pub query: BTreeMap<String, ValueConfig>,
    /// Cookies with such values.
    #[serde(default)]
    pub cookies: BTreeMap<String, ValueConfig>,
    /// Where the client is: addresses, or networks such as `10.0.0.0/8`. Behind trusted hops it is who the farthest of them has
    /// seen. Default: anywhere.
    #[serde(default)]
    pub source: Vec<String>,
    /// From when on: `2026-12-24T18:00:00Z`. Default: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// A share of the requests, of those that the routes of the same group divide among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<WeightConfig>,
}

/// What a value has to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ValueConfig {
    /// This; `*` is any.
    Is(String),
    /// What fits this regular expression wholly.
    Fits {
        /// The expression.
        regex: String,
    },
}

/// A share of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightConfig {
    /// The group. Each request is drawn for one of its routes, before anything else is looked at.
    pub group: String,
    /// Its share, in proportion to those of the others.
    #[schemars(range(min = 0, max = 1000000))]
    pub share: u32,
}

/// Which of several routes takes a request that they all match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precedence {
    /// The first as they are written.
    #[default]
    Written,
    /// As the Gateway API has it: a path that is exact, then the longest, a method, the most headers, the most parameters of
    /// the query; among equals the first as they are written.
    Specific,
}
