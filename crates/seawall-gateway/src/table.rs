//! The route table: which route takes a request. Pure; the first that matches is taken.

use std::fmt;
use std::sync::Arc;

use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use seawall_proxy::filter::{Fallback, Filters};
use seawall_proxy::path::{self, Pattern};
use seawall_proxy::reject::Reason;
use seawall_proxy::{Matched, Route, RouteError, Router};
use seawall_types::ServiceName;

use crate::config::{MatchConfig, RouteConfig};

/// The routes of one gateway, in order.
#[derive(Debug)]
pub struct RouteTable {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    matcher: Matcher,
    service: ServiceName,
    route: Arc<Route>,
}

#[derive(Debug)]
struct Matcher {
    path: Pattern,
    methods: Vec<Method>,
    hosts: Vec<Host>,
    headers: Vec<(HeaderName, Option<HeaderValue>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    Exact(String),
    /// The part after `*`, with its dot.
    Below(String),
}

/// What is wrong with a route, and where below the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteProblem {
    /// The place: `routes.1.match.path`.
    pub path: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for RouteProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

impl RouteTable {
    /// Checks and compiles routes.
    ///
    /// # Errors
    /// Everything that is wrong, a route that can never be reached included.
    pub fn try_new(routes: &[RouteConfig]) -> Result<Self, Vec<RouteProblem>> {
        let mut entries: Vec<(usize, Entry)> = Vec::new();
        let mut problems = Vec::new();
        for (at, config) in routes.iter().enumerate() {
            let mut problem = |field: &str, what: String| {
                problems.push(RouteProblem { path: format!("routes.{at}.{field}"), what });
            };
            if let Some(twin) = routes[..at].iter().position(|other| other.id == config.id) {
                problem("id", format!("route {twin} is named `{}` too", config.id));
            }
            let filters = Filters::try_new(&config.filters)
                .map_err(|error| problem("filters", error.to_string()))
                .unwrap_or_default();
            let fallback = config.fallback.as_ref().and_then(|fallback| {
                Fallback::try_new(fallback).map_err(|error| problem("fallback", error.to_string())).ok()
            });
            let Some(matcher) = Matcher::try_new(&config.matches, &mut |field, what| {
                problem(&format!("match.{field}"), what);
            }) else {
                continue;
            };
            if let Some((earlier, _)) = entries.iter().find(|(_, earlier)| earlier.matcher.covers(&matcher)) {
                let id = &routes[*earlier].id;
                problem("match", format!("is never reached: route `{id}` before it takes every request that it would"));
            }
            let route = Arc::new(Route { id: config.id.as_str().into(), filters, fallback, last_hop: false });
            entries.push((at, Entry { matcher, service: config.to.clone(), route }));
        }
        if problems.is_empty() {
            Ok(Self { entries: entries.into_iter().map(|(_, entry)| entry).collect() })
        } else {
            Err(problems)
        }
    }
}

impl Router for RouteTable {
    fn route(&self, request: &Parts) -> Result<Matched, RouteError> {
        let given = request.uri.path();
        let Some(entry) = self.entries.iter().find(|entry| entry.matcher.matches(request)) else {
            let detail = format!("no route takes {} {given}", request.method);
            return Err(RouteError { reason: Reason::NoRoute, detail });
        };
        let path = match entry.route.filters.strip_prefix {
            0 => None,
            segments => Some(stripped(given, request.uri.query(), segments)?),
        };
        Ok(Matched { route: entry.route.clone(), service: entry.service.clone(), path })
    }
}

fn stripped(path: &str, query: Option<&str>, segments: u8) -> Result<PathAndQuery, RouteError> {
    let rest = path::strip_prefix(path, segments);
    let made = match query {
        Some(query) => PathAndQuery::try_from(format!("{rest}?{query}")),
        None => PathAndQuery::try_from(rest),
    };
    made.map_err(|error| RouteError { reason: Reason::BadRequest, detail: error.to_string() })
}

impl Matcher {
    fn try_new(config: &MatchConfig, problem: &mut impl FnMut(&str, String)) -> Option<Self> {
        let path = Pattern::try_new(&config.path).map_err(|error| problem("path", error.to_string())).ok();
        let mut methods = Vec::new();
        for text in &config.method {
            match Method::from_bytes(text.as_bytes()) {
                Ok(method) if text.bytes().all(|b| b.is_ascii_uppercase()) => methods.push(method),
                _ => problem("method", format!("`{text}` is not a method such as GET")),
            }
        }
        let mut hosts = Vec::new();
        for text in &config.host {
            let text = text.to_ascii_lowercase();
            let name = text.strip_prefix("*.").unwrap_or(&text);
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
                problem("host", format!("`{text}` is not a host name such as shop.example or *.shop.example"));
            } else if name.len() < text.len() {
                hosts.push(Host::Below(text[1..].to_owned()));
            } else {
                hosts.push(Host::Exact(text));
            }
        }
        let mut headers = Vec::new();
        for (name, value) in &config.headers {
            let any = value == "*";
            match (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str())) {
                (Ok(name), Ok(value)) => headers.push((name, (!any).then_some(value))),
                _ => problem("headers", format!("`{name}: {value}` is not a header")),
            }
        }
        Some(Self { path: path?, methods, hosts, headers })
    }

    fn matches(&self, request: &Parts) -> bool {
        self.path.matches(request.uri.path())
            && (self.methods.is_empty() || self.methods.contains(&request.method))
            && (self.hosts.is_empty() || self.host_matches(request))
            && self.headers.iter().all(|(name, value)| header_matches(&request.headers, name, value.as_ref()))
    }

    fn host_matches(&self, request: &Parts) -> bool {
        let header = || request.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        let Some(host) = request.uri.authority().map(http::uri::Authority::as_str).or_else(header) else {
            return false;
        };
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.to_ascii_lowercase();
        self.hosts.iter().any(|wanted| match wanted {
            Host::Exact(exact) => *exact == name,
            Host::Below(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_str()),
        })
    }

    /// Whether every request that `other` matches is matched by this one.
    fn covers(&self, other: &Self) -> bool {
        let hosts = self.hosts.is_empty()
            || (!other.hosts.is_empty()
                && other.hosts.iter().all(|theirs| {
                    self.hosts.iter().any(|mine| match (mine, theirs) {
                        (Host::Exact(a), Host::Exact(b)) => a == b,
                        (Host::Below(a), Host::Exact(b) | Host::Below(b)) => b.ends_with(a.as_str()),
                        (Host::Exact(_), Host::Below(_)) => false,
                    })
                }));
        let methods = self.methods.is_empty()
            || (!other.methods.is_empty() && other.methods.iter().all(|method| self.methods.contains(method)));
        let headers = self
            .headers
            .iter()
            .all(|(name, value)| other.headers.iter().any(|(n, v)| n == name && (value.is_none() || v == value)));
        self.path.covers(&other.path) && methods && hosts && headers
    }
}

fn header_matches(headers: &HeaderMap, name: &HeaderName, value: Option<&HeaderValue>) -> bool {
    match value {
        None => headers.contains_key(name),
        Some(value) => headers.get_all(name).iter().any(|given| given == value),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn table(routes: Value) -> Result<RouteTable, Vec<RouteProblem>> {
        RouteTable::try_new(&serde_json::from_value::<Vec<RouteConfig>>(routes).unwrap())
    }

    fn route(table: &RouteTable, method: &str, uri: &str, headers: &[(&str, &str)]) -> (String, String) {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        match table.route(&parts) {
            Ok(matched) => (matched.route.id.to_string(), matched.path.map_or(String::new(), |path| path.to_string())),
            Err(error) => (error.reason.to_string(), String::new()),
        }
    }

    #[test]
    fn the_first_that_matches_is_taken() {
        let table = table(json!([
            { "id": "new", "match": { "path": "/api/orders", "method": ["POST"] }, "to": "order" },
            { "id": "beta", "match": { "path": "/api/**", "headers": { "x-beta": "1" } }, "to": "beta" },
            { "id": "shop", "match": { "path": "/api/**", "host": ["shop.example", "*.shop.example"] },
              "filters": [{ "strip_prefix": 1 }], "to": "order" },
            { "id": "any", "match": { "path": "/api/{what}/*", "headers": { "x-any": "*" } }, "to": "order" },
        ]))
        .unwrap();
        let host = |name| [("host", name)];
        for (method, uri, headers, id, path) in [
            ("POST", "/api/orders", &[][..], "new", ""),
            ("GET", "/api/orders", &[], "no-route", ""),
            ("GET", "/api/orders", &[("x-beta", "1")], "beta", ""),
            ("GET", "/api/orders", &[("x-beta", "2")], "no-route", ""),
            ("GET", "/api/orders/7?a=b", &host("SHOP.example:8080"), "shop", "/orders/7?a=b"),
            ("GET", "/api/orders", &host("eu.shop.example"), "shop", "/orders"),
            ("GET", "/api/orders", &host("evilshop.example"), "no-route", ""),
            ("GET", "http://shop.example/api/x", &host("other"), "shop", "/x"),
            ("GET", "/api/x/y", &[("x-any", "z")], "any", ""),
        ] {
            assert_eq!(route(&table, method, uri, headers), (id.to_owned(), path.to_owned()), "{method} {uri}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let problems = table(json!([
            { "id": "a", "match": { "path": "/a/**" }, "to": "x" },
            { "id": "b", "match": { "path": "/a/b", "method": ["GET"] }, "to": "x" },
            { "id": "a", "match": { "path": "nope", "method": ["get"], "host": ["a b"] }, "to": "x",
              "filters": [{ "set_header": { "bad name": "x" } }], "fallback": { "status": 42 } },
        ]))
        .unwrap_err();
        let paths: Vec<_> = problems.iter().map(|problem| &*problem.path).collect();
        assert_eq!(
            paths,
            [
                "routes.1.match",
                "routes.2.id",
                "routes.2.filters",
                "routes.2.fallback",
                "routes.2.match.path",
                "routes.2.match.method",
                "routes.2.match.host"
            ]
        );
        assert!(problems[0].what.contains("`a`"), "{}", problems[0]);
    }

    fn any_match() -> impl Strategy<Value = MatchConfig> {
        let path = prop_oneof![Just("/a"), Just("/a/**"), Just("/*"), Just("/**"), Just("/{x}/b")];
        let method = proptest::collection::vec(prop_oneof![Just("GET"), Just("POST")], 0..3);
        let host = proptest::collection::vec(prop_oneof![Just("h.e"), Just("*.e"), Just("*.h.e")], 0..3);
        let headers = proptest::collection::btree_map(Just("x"), prop_oneof![Just("*"), Just("1")], 0..2);
        (path, method, host, headers).prop_map(|(path, method, host, headers)| MatchConfig {
            path: path.to_owned(),
            method: method.into_iter().map(str::to_owned).collect(),
            host: host.into_iter().map(str::to_owned).collect(),
            headers: headers.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        })
    }

    proptest! {
        /// A route that is called unreachable really is.
        #[test]
        fn what_covers_takes_every_request(
            wide in any_match(),
            narrow in any_match(),
            path in prop_oneof![Just("/a"), Just("/a/b"), Just("/b/b"), Just("/"), Just("/a/b/c")],
            method in prop_oneof![Just("GET"), Just("POST"), Just("PUT")],
            host in prop_oneof![Just("h.e"), Just("x.h.e"), Just("e"), Just("o")],
            header in proptest::option::of(prop_oneof![Just("1"), Just("2")]),
        ) {
            let wide = Matcher::try_new(&wide, &mut |_, _| {}).unwrap();
            let narrow = Matcher::try_new(&narrow, &mut |_, _| {}).unwrap();
            let mut request = Request::builder().method(method).uri(path).header("host", host);
            if let Some(value) = header {
                request = request.header("x", value);
            }
            let parts = request.body(()).unwrap().into_parts().0;
            if wide.covers(&narrow) && narrow.matches(&parts) {
                prop_assert!(wide.matches(&parts));
            }
        }
    }
}
