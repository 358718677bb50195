//! The routes in use, and how they are replaced while requests pass.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use seawall_proxy::{Asked, Matched, RouteError, Router};

use crate::config::{GatewayConfig, RouteConfig};
use crate::filter::Caches;
use crate::split::Splits;
use crate::table::{RouteProblem, RouteTable};

/// The routes of one gateway as they are now; cheap to clone. A request goes by the routes that were there when it came.
#[derive(Clone, Debug)]
pub struct Routes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: Mutex<(GatewayConfig, RouteTable)>,
    version: AtomicU64,
}

/// What a replacement has changed, by the routes' names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New ones.
    pub added: Vec<String>,
    /// Those that are written otherwise.
    pub changed: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
    /// The same routes stand in another order, or the filters of all, the splits or the precedence are others.
    pub other: bool,
}

impl Changes {
    /// From one configuration to another.
    pub fn between(from: &GatewayConfig, to: &GatewayConfig) -> Self {
        let find = |routes: &[RouteConfig], id: &str| routes.iter().find(|route| route.id == id).cloned();
        let mut changes = Self::default();
        for route in &to.routes {
            match find(&from.routes, &route.id) {
                None => changes.added.push(route.id.clone()),
                Some(before) if before != *route => changes.changed.push(route.id.clone()),
                Some(_) => {}
            }
        }
        let gone = from.routes.iter().filter(|route| find(&to.routes, &route.id).is_none());
        changes.removed = gone.map(|route| route.id.clone()).collect();
        let kept = |routes: &[RouteConfig], others: &[RouteConfig]| -> Vec<String> {
            let kept = routes.iter().filter(|route| find(others, &route.id).is_some());
            kept.map(|route| route.id.clone()).collect()
        };
        changes.other = from.filters != to.filters
            || from.precedence != to.precedence
            || from.splits != to.splits
            || kept(&from.routes, &to.routes) != kept(&to.routes, &from.routes);
        changes
    }

    /// Nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Routes {
    pub(crate) fn new(config: GatewayConfig, table: RouteTable) -> Self {
        let shared = Shared { current: Mutex::new((config, table)), version: AtomicU64::new(1) };
        Self { shared: Arc::new(shared) }
    }

    /// Takes these routes, filters and this precedence from now on; requests under way end as they began. What else a gateway is
    /// made of stays as it was. Says what has changed.
    ///
    /// # Errors
    /// Everything that is wrong; then all stays as it was.
    pub fn replace(&self, config: &GatewayConfig) -> Result<Changes, Vec<RouteProblem>> {
        let mut current = self.current();
        let changes = Changes::between(&current.0, config);
        if changes.is_empty() {
            return Ok(changes);
        }
        let table = RouteTable::after(config, Some(&current.1))?;
        current.0.routes.clone_from(&config.routes);
        current.0.filters.clone_from(&config.filters);
        current.0.precedence = config.precedence;
        current.0.splits.clone_from(&config.splits);
        current.1 = table;
        self.shared.version.fetch_add(1, Ordering::Release);
        Ok(changes)
    }

    /// What they store of answers.
    pub fn caches(&self) -> Caches {
        self.current().1.caches()
    }

    /// How their requests are divided, to be changed while they come. A change of what is written makes others.
    pub fn splits(&self) -> Splits {
        self.current().1.splits()
    }

    /// What is in use.
    pub fn config(&self) -> GatewayConfig {
        self.current().0.clone()
    }

    fn current(&self) -> MutexGuard<'_, (GatewayConfig, RouteTable)> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One worker's view of them.
    pub(crate) fn router(&self) -> RoutesView {
        RoutesView { routes: self.clone(), own: Mutex::default() }
    }
}

/// The routes as one worker sees them; taken anew by the first request after a change.
#[derive(Debug)]
pub(crate) struct RoutesView {
    routes: Routes,
    /// Uncontended: it belongs to one worker.
    own: Mutex<Own>,
}

#[derive(Debug, Default)]
struct Own {
    version: u64,
    table: Option<RouteTable>,
}

impl Router for RoutesView {
    fn route(&self, asked: &Asked<'_>) -> Result<Matched, RouteError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.routes.shared.version.load(Ordering::Acquire);
        if own.version != version {
            own.table = Some(self.routes.current().1.clone());
            own.version = version;
        }
        own.table.as_ref().expect("taken above").route(asked)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(routes: Value) -> GatewayConfig {
        serde_json::from_value(json!({ "listen": "127.0.0.1:0", "routes": routes })).unwrap()
    }

    fn routes(config: &GatewayConfig) -> Routes {
        Routes::new(config.clone(), RouteTable::of(config).unwrap())
    }

    #[test]
    fn changes_are_named() {
        let route = |id: &str, path: &str| json!({ "id": id, "match": { "path": path }, "to": "s" });
        let from = config(json!([route("a", "/a"), route("b", "/b"), route("c", "/c")]));
        let to = config(json!([route("d", "/d"), route("c", "/c"), route("a", "/x")]));
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (added, changed, removed) = (list(&["d"]), list(&["a"]), list(&["b"]));
        assert_eq!(Changes::between(&from, &to), Changes { added, changed, removed, other: true });
        assert!(Changes::between(&from, &from).is_empty());
    }

    #[test]
    fn what_is_wrong_changes_nothing() {
        let before = config(json!([{ "id": "a", "match": { "path": "/a" }, "to": "s" }]));
        let routes = routes(&before);
        let wrong = config(json!([{ "id": "a", "match": { "path": "nope" }, "to": "s" }]));
        assert_eq!(routes.replace(&wrong).unwrap_err()[0].path, "routes.0.match.path");
        assert_eq!(routes.config(), before);
        let view = routes.router();
        let parts = http::Request::get("/b").header("host", "h").body(()).unwrap().into_parts().0;
        assert!(view.route(&Asked::new(&parts, None)).is_err());
        routes.replace(&config(json!([{ "id": "a", "match": { "path": "/b" }, "to": "s" }]))).unwrap();
        assert!(view.route(&Asked::new(&parts, None)).is_ok(), "live for the next request");
    }

    #[test]
    fn filters_keep_what_they_know_when_they_are_written_as_before() {
        let with = |id: &str, keep: bool| {
            config(json!([
                { "id": id, "filters": [{ "request_id": { "keep": keep } }, { "request_id": { "keep": keep } }], "to": "s" }
            ]))
        };
        let steps = |routes: &Routes| {
            let view = routes.router();
            let parts = http::Request::get("/b").header("host", "h").body(()).unwrap().into_parts().0;
            view.route(&Asked::new(&parts, None)).unwrap().route.steps.clone()
        };
        let pointers = |routes: &Routes| -> Vec<_> {
            let pointer = |step: &seawall_proxy::filter::Step| match step {
                seawall_proxy::filter::Step::Around(filter) => Arc::as_ptr(filter).cast::<()>(),
                step => panic!("{step:?}"),
            };
            steps(routes).iter().map(pointer).collect()
        };
        let routes = routes(&with("a", true));
        let first = pointers(&routes);
        assert_ne!(first[0], first[1], "two that are written alike are two");
        let mut more = with("a", true);
        more.routes
            .insert(0, serde_json::from_value(json!({ "id": "x", "match": { "path": "/x" }, "to": "s" })).unwrap());
        routes.replace(&more).unwrap();
        assert_eq!(pointers(&routes), first);
        routes.replace(&with("a", false)).unwrap();
        assert!(pointers(&routes).iter().all(|pointer| !first.contains(pointer)));
    }
}
