//! The two routers of a sidecar.

use std::net::SocketAddr;
use std::sync::Arc;

use http::uri::PathAndQuery;
use seawall_proxy::reject::Reason;
use seawall_proxy::{Asked, Matched, Route, RouteError, Router};
use seawall_resilience::{Policies, PolicyConfig};
use seawall_types::{Change, Instance, InstanceId, Period, Revision, ServiceName, Snapshot};

/// Everything goes to the one service beside us.
#[derive(Debug)]
pub(crate) struct Inbound {
    matched: Matched,
}

impl Inbound {
    pub(crate) fn new(service: ServiceName) -> Self {
        let route = Route { id: "inbound".into(), last_hop: true, ..Route::default() };
        Self { matched: Matched { route: Arc::new(route), service, path: None, answer: None } }
    }
}

impl Router for Inbound {
    fn route(&self, _: &Asked<'_>) -> Result<Matched, RouteError> {
        Ok(self.matched.clone())
    }
}

/// The policies of the last few micrometres: callers have retried and broken already; here a request only has its
/// deadline, and a place.
pub(crate) fn inbound_policies() -> Policies {
    let mut policy = PolicyConfig { timeout: Some(Period::secs(24 * 3600)), ..PolicyConfig::default() };
    policy.retry.attempts = Some(1);
    policy.breaker.enabled = Some(false);
    Policies([(ServiceName::try_new("default").expect("a valid name"), policy)].into())
}

/// A fleet of one.
pub(crate) fn only(service: &ServiceName, app: SocketAddr) -> Snapshot {
    let id = InstanceId::try_new("app").expect("a valid id");
    let instance = Some(Instance::new(id.clone(), app));
    let mut snapshot = Snapshot::default();
    snapshot.apply(&Change { revision: Revision(1), service: service.clone(), id, instance });
    snapshot
}

/// The first segment of the path names the service.
#[derive(Debug)]
pub(crate) struct Outbound {
    route: Arc<Route>,
}

impl Default for Outbound {
    fn default() -> Self {
        Self { route: Arc::new(Route { id: "outbound".into(), ..Route::default() }) }
    }
}

impl Router for Outbound {
    fn route(&self, asked: &Asked<'_>) -> Result<Matched, RouteError> {
        let request = asked.parts;
        let bad = |detail: String| RouteError { reason: Reason::BadRequest, detail };
        let path = request.uri.path();
        let name = path[1.min(path.len())..].split('/').next().unwrap_or_default();
        let service = ServiceName::try_new(name)
            .map_err(|error| bad(format!("call a service as /<service>/<path>, not {path}: {error}")))?;
        let rest = &path[1 + name.len()..];
        let rest = if rest.is_empty() { "/" } else { rest };
        let rest = match request.uri.query() {
            Some(query) => PathAndQuery::try_from(format!("{rest}?{query}")),
            None => PathAndQuery::try_from(rest),
        };
        let path = Some(rest.map_err(|error| bad(error.to_string()))?);
        Ok(Matched { route: self.route.clone(), service, path, answer: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segment_names_the_service() {
        let route = |uri: &str| {
            let parts = http::Request::builder().uri(uri).body(()).unwrap().into_parts().0;
            let matched = Outbound::default().route(&Asked::new(&parts, None)).map_err(|error| error.reason)?;
            Ok((matched.service.to_string(), matched.path.unwrap().to_string()))
        };
        let ok = |service: &str, path: &str| Ok((service.to_owned(), path.to_owned()));
        assert_eq!(route("/payment/charges/7?a=1"), ok("payment", "/charges/7?a=1"));
        assert_eq!(route("/payment"), ok("payment", "/"));
        assert_eq!(route("/payment?x"), ok("payment", "/?x"));
        for bad in ["/", "//x", "/Payment/x", "*"] {
            assert_eq!(route(bad), Err(Reason::BadRequest), "{bad}");
        }
    }
}
