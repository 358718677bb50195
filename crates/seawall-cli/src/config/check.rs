//! What no single crate can know: that names refer to something, and that nothing is taken twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use seawall_control::SERVICE as CONTROL;
use seawall_gateway::{FilterConfig, GatewayConfig, RouteTable};
use seawall_proxy::tls::Tls;
use seawall_resilience::DEFAULT;
use seawall_saga::Plan;
use seawall_schedule::Job;
use seawall_types::{Period, ServiceName, Size};

use super::Config;
use super::load::{Mistake, nearest};
use super::tree::{Node, Place};

/// Room for the history, which takes a quarter, and for a value of the largest size.
const MIN_STORE_LIMIT: Size = Size::bytes(16 << 20);

/// Every mistake that is left once each part is well-formed.
pub(super) fn check(config: &Config, tree: &Node) -> Vec<Mistake> {
    let mut checker = Checker { config, tree, mistakes: Vec::new() };
    checker.control();
    checker.policies();
    checker.gateways();
    checker.services();
    checker.sagas();
    checker.cron();
    checker.coordination();
    checker.ports();
    checker.mistakes
}

struct Checker<'a> {
    config: &'a Config,
    tree: &'a Node,
    mistakes: Vec<Mistake>,
}

impl Checker<'_> {
    /// Notes a mistake at a path; the place is that of the deepest part that the file really holds.
    fn mistake(&mut self, path: &[&str], what: String, hint: Option<String>) {
        let mut node = self.tree;
        let mut place = &node.place;
        let mut labels = Vec::new();
        for (depth, segment) in path.iter().enumerate() {
            let last = depth + 1 == path.len();
            labels.push(node.label(segment));
            let Some(child) = node.child(segment) else {
                labels.extend(path[depth + 1..].iter().map(|rest| (*rest).to_owned()));
                break;
            };
            // A whole block is shown by its key.
            place = match (&child.kind, last) {
                (super::tree::Kind::Scalar(_), _) => &child.place,
                _ => node.key_place(segment).unwrap_or(&child.place),
            };
            node = child;
        }
        let place: Place = place.clone();
        self.mistakes.push(Mistake { path: labels.join("."), what, hint, place });
    }

    fn at(&mut self, front: &[&str], rest: &str, what: String) {
        let path: Vec<&str> = front.iter().copied().chain(rest.split('.')).collect();
        let hint = if what.contains("is never reached") {
            Some("put the narrower route first, or take one of them out".to_owned())
        } else {
            None
        };
        self.mistake(&path, what, hint);
    }

    fn control(&mut self) {
        if self.config.control.ttl < Period::secs(1) {
            let what = format!("`{}` is too short: at least 1s", self.config.control.ttl);
            self.mistake(&["control", "ttl"], what, None);
        }
        if self.config.control.store_limit < MIN_STORE_LIMIT {
            let what = format!("`{}` is too small: at least {MIN_STORE_LIMIT}", self.config.control.store_limit);
            self.mistake(&["control", "store_limit"], what, None);
        }
    }

    fn policies(&mut self) {
        let policies = &self.config.policies;
        for name in policies.0.keys() {
            // One that others extend need not be a service's.
            if name.as_str() != DEFAULT && !policies.is_extended(name.as_str()) {
                self.known(&["policies", name.as_str()], name);
            }
        }
        for (name, path, what) in policies.problems() {
            let field = path.rsplit('.').next().unwrap_or(&path);
            self.at(&["policies", name.as_str()], &path, format!("`{field}` {what}"));
        }
    }

    /// A service has to be one of the file, or control itself.
    fn known(&mut self, path: &[&str], name: &ServiceName) {
        if name.as_str() == CONTROL || self.config.services.contains_key(name) {
            return;
        }
        let names = || self.config.services.keys().map(ServiceName::as_str);
        let hint = match nearest(name.as_str(), names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("name it under `services` (`{name}: {{}}` if it runs elsewhere)"),
        };
        self.mistake(path, format!("unknown service `{name}`"), Some(hint));
    }

    fn gateways(&mut self) {
        let config = self.config;
        for (name, gateway) in &config.gateways {
            let front = ["gateways", name.as_str()];
            if let Some(tls) = &gateway.tls
                && let Err(error) = Tls::try_new(tls.clone())
            {
                self.at(&front, "tls", error.to_string());
            }
            if let Err(problems) = RouteTable::of(gateway) {
                for problem in problems {
                    self.at(&front, &problem.path, problem.what);
                }
            }
            for (split, config) in &gateway.splits {
                for service in config.among.keys() {
                    let path = ["gateways", name.as_str(), "splits", split.as_str(), "among", service.as_str()];
                    self.known(&path, service);
                }
            }
            self.filters(&["gateways", name.as_str()], gateway, &gateway.filters);
            for (at, route) in gateway.routes.iter().enumerate() {
                self.filters(&["gateways", name.as_str(), "routes", &at.to_string()], gateway, &route.filters);
                if let Some(service) = &route.to {
                    self.reached(gateway, &["gateways", name.as_str(), "routes", &at.to_string(), "to"], service);
                }
                for (place, service) in route.compose.iter().flat_map(|compose| compose.services()) {
                    let at = at.to_string();
                    let path: Vec<&str> = ["gateways", name.as_str(), "routes", &at, "compose"]
                        .into_iter()
                        .chain(place.split('.'))
                        .collect();
                    self.reached(gateway, &path, service);
                }
            }
            if gateway.workers == Some(0) {
                self.at(&front, "workers", "`workers` is 0, allowed is 1 to 255".into());
            }
            if gateway.connections == 0 {
                self.at(&front, "connections", "`connections` is 0, allowed is 1 to 1000000".into());
            }
        }
    }

    /// A service that a route goes to, or a split.
    fn reached(&mut self, gateway: &GatewayConfig, path: &[&str], name: &ServiceName) {
        if !gateway.splits.contains_key(name) {
            self.known(path, name);
        }
    }

    /// The services that filters name.
    fn filters(&mut self, front: &[&str], gateway: &GatewayConfig, filters: &[FilterConfig]) {
        for (at, filter) in filters.iter().enumerate() {
            for (place, service) in filter.services() {
                let at = at.to_string();
                let path: Vec<&str> = front.iter().copied().chain(["filters", &*at]).chain(place.split('.')).collect();
                // Whatever else filters call, they call by itself.
                match filter {
                    FilterConfig::ToService(_) => self.reached(gateway, &path, service),
                    _ => self.known(&path, service),
                }
            }
        }
    }

    fn services(&mut self) {
        let config = self.config;
        for (name, service) in &config.services {
            let front = ["services", name.as_str()];
            if name.as_str() == CONTROL {
                let what = format!("`{CONTROL}` is the name of the control node itself");
                self.mistake(&front, what, Some("give the service another name".into()));
            }
            if service.replicas == 0 || service.replicas > 100 {
                self.at(&front, "replicas", format!("`replicas` is {}, allowed is 1 to 100", service.replicas));
            }
            if service.port == Some(0) {
                self.at(&front, "port", "`port` is 0: leave it out, and `seawall up` chooses a free one".into());
            }
            if service.port.is_some() && service.replicas > 1 {
                let what = format!("{} replicas cannot share the port {}", service.replicas, service.port.unwrap_or(0));
                let hint = "leave `port` out and listen on the one in the environment variable PORT".into();
                self.mistake(&["services", name.as_str(), "port"], what, Some(hint));
            }
            for (field, period) in [("interval", service.health.interval), ("timeout", service.health.timeout)] {
                if period.is_zero() {
                    self.at(&front, &format!("health.{field}"), format!("`{field}` must be longer than zero"));
                }
            }
            if let Some(path) = service.health.http.as_ref().filter(|path| !path.starts_with('/')) {
                self.at(&front, "health.http", format!("`{path}` is not a path: it must begin with `/`"));
            }
        }
    }

    fn sagas(&mut self) {
        let config = self.config;
        for (name, saga) in &config.sagas {
            let front = ["sagas", name.as_str()];
            if let Err(errors) = Plan::try_new(name.as_str(), saga) {
                for error in errors {
                    self.at(&front, &error.path, error.what);
                }
            }
            for (path, service) in Plan::services(saga) {
                let path: Vec<&str> = front.iter().copied().chain(path.split('.')).collect();
                self.known(&path, service);
            }
        }
    }

    fn cron(&mut self) {
        let config = self.config;
        for (name, job) in &config.cron {
            let front = ["cron", name.as_str()];
            for error in Job::try_new(job.clone()).err().into_iter().flatten() {
                self.at(&front, error.field, error.what);
            }
            match &job.call {
                Some(call) => self.known(&["cron", name.as_str(), "call"], &call.service),
                None => {
                    let hint = "add `call: POST <service>/<path>`".to_owned();
                    self.mistake(&front, format!("the job `{name}` has no `call`"), Some(hint));
                }
            }
        }
    }

    fn coordination(&mut self) {
        let coordination = &self.config.coordination;
        let Some(backend) = &coordination.backend else { return };
        if let Err(error) = backend.check(coordination.need) {
            let hint = "take another backend, or say `need: lease` or `need: best`, if that is enough".to_owned();
            self.mistake(&["coordination", "backend"], error.to_string(), Some(hint));
        }
    }

    fn ports(&mut self) {
        let config = self.config;
        let mut taken: BTreeMap<u16, Vec<(SocketAddr, String)>> = BTreeMap::new();
        let mut claims: Vec<(Vec<&str>, SocketAddr)> = vec![(vec!["control", "listen"], config.control.listen)];
        for (name, gateway) in &config.gateways {
            claims.push((vec!["gateways", name.as_str(), "listen"], gateway.listen));
            claims.push((vec!["gateways", name.as_str(), "admin"], gateway.admin));
        }
        for (name, service) in &config.services {
            if let Some(port) = service.port {
                claims.push((vec!["services", name.as_str(), "port"], SocketAddr::from(([127, 0, 0, 1], port))));
            }
        }
        for (path, addr) in claims.into_iter().filter(|(_, addr)| addr.port() != 0) {
            let others = taken.entry(addr.port()).or_default();
            let clash = |other: &SocketAddr| {
                other.ip() == addr.ip() || other.ip().is_unspecified() || addr.ip().is_unspecified()
            };
            if let Some((_, by)) = others.iter().find(|(other, _)| clash(other)) {
                let what = format!("port {} is used twice: `{by}` has it already", addr.port());
                self.mistake(&path, what, Some("give each its own port".into()));
            }
            others.push((addr, path.join(".")));
        }
    }
}
