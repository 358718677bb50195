//! The route table: which route takes a request. Pure; the first that matches is taken.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use seawall_proxy::filter::Step;
use seawall_proxy::reject::Reason;
use seawall_proxy::{Asked, Matched, Route, RouteError, Router};
use seawall_types::ServiceName;

use crate::compose::Compose;
use crate::config::{GatewayConfig, Precedence, RouteConfig};
use crate::filter::{Caches, Filters};
use crate::index::Index;
use crate::matcher::{Chance, Matcher, Share, host};
use crate::split::{SplitConfig, Splits};

/// The routes of one gateway, in the order in which they are asked. A clone shares all but what requests count up and down:
/// that is each worker's own.
#[derive(Debug)]
pub struct RouteTable {
    compiled: Arc<Compiled>,
    /// As the entries.
    routes: Vec<Arc<Route>>,
}

#[derive(Debug)]
struct Compiled {
    /// What stands before each route's own filters.
    common: Filters,
    entries: Vec<Entry>,
    index: Index,
    /// Whether any route takes but a share.
    shares: bool,
    /// As they are written, and as they are.
    splits: (BTreeMap<ServiceName, SplitConfig>, Splits),
}

impl Clone for RouteTable {
    fn clone(&self) -> Self {
        let routes = self.routes.iter().map(|route| Arc::new(Route::clone(route))).collect();
        Self { compiled: self.compiled.clone(), routes }
    }
}

#[derive(Debug)]
struct Entry {
    /// Where it is written.
    at: usize,
    matcher: Matcher,
    /// Nothing where a filter answers, or each request has to name one.
    service: Option<ServiceName>,
    filters: Filters,
    /// Its last step answers.
    composes: bool,
    route: Arc<Route>,
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

/// What a route says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which of the routes, as they are written.
    pub at: usize,
    /// Why it does not take it; nothing when it does.
    pub why_not: Option<String>,
    /// The path and query that its service would see, where its filters change them; or why there is none.
    pub target: Result<Option<String>, String>,
}

impl RouteTable {
    /// Checks and compiles the routes of a gateway, each behind the filters that all of them have. Those keep what they know of
    /// former requests for all routes together.
    ///
    /// # Errors
    /// Everything that is wrong, a route that can never be reached included.
    pub fn of(gateway: &GatewayConfig) -> Result<Self, Vec<RouteProblem>> {
        Self::after(gateway, None)
    }

    /// The same in the place of another table: filters that are written as before, in a route of the same name, go on with what
    /// they know, and splits that are written as before with their shares.
    ///
    /// # Errors
    /// As [`RouteTable::of`].
    pub fn after(gateway: &GatewayConfig, before: Option<&Self>) -> Result<Self, Vec<RouteProblem>> {
        let mut problems = Vec::new();
        let splits = match before.map(|before| &before.compiled.splits) {
            Some((written, splits)) if *written == gateway.splits => splits.clone(),
            _ => Splits::try_new(&gateway.splits, |path, what| {
                problems.push(RouteProblem { path: format!("splits.{path}"), what });
            }),
        };
        let splits = (gateway.splits.clone(), splits);
        let nothing = Filters::default();
        let former = before.map_or(&nothing, |before| &before.compiled.common);
        let common = Filters::default().and_after(&gateway.filters, former).unwrap_or_else(|(at, error)| {
            problems.push(RouteProblem { path: format!("filters.{at}"), what: error.to_string() });
            Filters::default()
        });
        match Self::behind(common, splits, &gateway.routes, gateway.precedence, before) {
            Ok(table) if problems.is_empty() => Ok(table),
            routes => {
                problems.extend(routes.err().into_iter().flatten());
                Err(problems)
            }
        }
    }

    /// Checks and compiles routes.
    ///
    /// # Errors
    /// As [`RouteTable::of`].
    pub fn try_new(routes: &[RouteConfig], precedence: Precedence) -> Result<Self, Vec<RouteProblem>> {
        Self::behind(Filters::default(), Default::default(), routes, precedence, None)
    }

    fn behind(
        common: Filters,
        splits: (BTreeMap<ServiceName, SplitConfig>, Splits),
        routes: &[RouteConfig],
        precedence: Precedence,
        before: Option<&Self>,
    ) -> Result<Self, Vec<RouteProblem>> {
        let nothing = Filters::default();
        let former = before.into_iter().flat_map(|before| &before.compiled.entries);
        let former: HashMap<&str, &Filters> = former.map(|entry| (&*entry.route.id, &entry.filters)).collect();
        let mut entries: Vec<Entry> = Vec::new();
        let mut problems = Vec::new();
        let shares = shares(routes, &mut problems);
        for (at, (config, share)) in routes.iter().zip(&shares).enumerate() {
            let mut problem = |field: &str, what: String| {
                problems.push(RouteProblem { path: format!("routes.{at}.{field}"), what });
            };
            if let Some(twin) = routes[..at].iter().position(|other| other.id == config.id) {
                problem("id", format!("route {twin} is named `{}` too", config.id));
            }
            let filters = common
                .front()
                .at(&config.id)
                .and_after(&config.filters, former.get(&*config.id).unwrap_or(&&nothing))
                .map_err(|(at, error)| problem(&format!("filters.{at}"), error.to_string()))
                .unwrap_or_default();
            let fallback = config
                .fallback
                .as_ref()
                .and_then(|fallback| fallback.compile().map_err(|error| problem("fallback", error.to_string())).ok());
            let Some(mut matcher) = Matcher::try_new(&config.matches, *share, &mut |field, what| {
                problem(&format!("match.{field}"), what);
            }) else {
                continue;
            };
            matcher.preflights = filters.cors;
            for name in filters.captures() {
                if !matcher.path.as_ref().is_some_and(|path| path.names().any(|own| own == name)) {
                    problem("filters", format!("`{{{name}}}` is nothing that the path's pattern captures"));
                }
            }
            let mut steps = filters.steps();
            if let Some(compose) = &config.compose {
                for (is, what) in [
                    (config.to.is_some(), "`to` says one service, `compose` several calls: leave one out"),
                    (filters.answers(), "a filter answers already, so that nothing is composed: leave one out"),
                    (
                        filters.chooses(),
                        "`to_service` chooses one service, `compose` makes several calls: leave one out",
                    ),
                ] {
                    if is {
                        problem("compose", what.to_owned());
                    }
                }
                match Compose::try_new(compose, matcher.path.as_ref(), fallback.clone(), splits.1.clone()) {
                    Ok(compose) => steps.push(Step::Around(Arc::new(compose))),
                    Err(wrong) => wrong.into_iter().for_each(|(at, what)| problem(&format!("compose.{at}"), what)),
                }
            }
            let answered = filters.answers() || filters.chooses() || config.compose.is_some();
            let service = match (&config.to, answered) {
                (Some(service), _) => Some(service.clone()),
                (None, true) => None,
                (None, false) => {
                    let what =
                        "the service is missing that the requests go to (or `compose`, or a filter that answers)";
                    problem("to", what.to_owned());
                    continue;
                }
            };
            let id = config.id.as_str().into();
            let route = Arc::new(Route { id, steps, fallback, ..Route::default() });
            entries.push(Entry { at, matcher, service, filters, composes: config.compose.is_some(), route });
        }
        if precedence == Precedence::Specific {
            // Stable: among equals the first as they are written.
            entries.sort_by_cached_key(|entry| entry.matcher.rank());
        }
        let index = Index::new(entries.iter().map(|entry| &entry.matcher));
        for (place, entry) in entries.iter().enumerate() {
            let mut before =
                index.around(&entry.matcher).take_while(|other| *other < place).map(|other| &entries[other]);
            if let Some(earlier) = before.find(|earlier| earlier.matcher.covers(&entry.matcher)) {
                let what = format!(
                    "is never reached: route `{}` before it takes every request that it would",
                    earlier.route.id
                );
                problems.push(RouteProblem { path: format!("routes.{}.match", entry.at), what });
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let routes = entries.iter().map(|entry| entry.route.clone()).collect();
        let compiled = Compiled { common, entries, index, shares: shares.iter().any(Option::is_some), splits };
        Ok(Self { compiled: Arc::new(compiled), routes })
    }

    /// What the routes store of answers.
    pub fn caches(&self) -> Caches {
        Caches::of(self.compiled.entries.iter().flat_map(|entry| &entry.filters.caches))
    }

    /// How requests are divided, to be changed while they come.
    pub fn splits(&self) -> Splits {
        self.compiled.splits.1.clone()
    }

    fn chance(&self) -> Chance {
        Chance(if self.compiled.shares { fastrand::u64(..) } else { 0 })
    }

    fn find(&self, asked: &Asked<'_>, chance: Chance) -> Option<(&Entry, &Arc<Route>)> {
        let Compiled { entries, index, .. } = &*self.compiled;
        let host = if index.knows_hosts() { host(asked.parts) } else { None };
        let mut candidates = index.candidates(host.as_deref(), asked.parts.uri.path());
        let place = candidates.find(|place| entries[*place].matcher.check(asked, chance).is_ok())?;
        Some((&entries[place], &self.routes[place]))
    }

    /// What each route says, in the order in which they are asked, up to the one that takes the request. Of routes that take a
    /// share one is drawn anew each time.
    pub fn explain(&self, asked: &Asked<'_>) -> Vec<Verdict> {
        let chance = self.chance();
        let mut verdicts = Vec::new();
        for entry in &self.compiled.entries {
            let miss = entry.matcher.check(asked, chance).err();
            let why_not = miss.map(|miss| entry.matcher.describe(miss, asked));
            let takes = why_not.is_none();
            let filters = &entry.filters;
            let target = match takes && !filters.answers() {
                true => filters.target(&asked.parts.uri, entry.matcher.path.as_ref()),
                false => Ok(None),
            };
            let target = target.map(|target| target.map(|target| target.to_string()));
            verdicts.push(Verdict { at: entry.at, why_not, target });
            if takes {
                break;
            }
        }
        verdicts
    }
}

/// The part of its group's draws that is each route's.
fn shares(routes: &[RouteConfig], problems: &mut Vec<RouteProblem>) -> Vec<Option<Share>> {
    let mut groups: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let mut shares: Vec<Option<Share>> = Vec::new();
    for config in routes {
        shares.push(config.matches.weight.as_ref().map(|weight| {
            let number = groups.len();
            let (group, total) = groups.entry(&weight.group).or_insert((number, 0));
            let from = *total;
            *total += u64::from(weight.share);
            Share { group: *group, from, to: *total, total: 0 }
        }));
    }
    for (at, (share, config)) in shares.iter_mut().zip(routes).enumerate() {
        let (Some(share), Some(weight)) = (share, &config.matches.weight) else { continue };
        share.total = groups[&*weight.group].1;
        if share.total == 0 {
            let what = format!("no route of the group `{}` has a share above 0", weight.group);
            problems.push(RouteProblem { path: format!("routes.{at}.match.weight"), what });
        }
    }
    shares
}

impl Router for RouteTable {
    fn route(&self, asked: &Asked<'_>) -> Result<Matched, RouteError> {
        let request = asked.parts;
        let given = request.uri.path();
        let Some((entry, route)) = self.find(asked, self.chance()) else {
            let detail = format!("no route takes {} {given}", request.method);
            return Err(RouteError { reason: Reason::NoRoute, detail });
        };
        let wrong = |detail: String| RouteError { reason: Reason::BadRequest, detail };
        let (filters, pattern) = (&entry.filters, entry.matcher.path.as_ref());
        let answer = filters.answer(&request.uri, pattern).map_err(wrong)?;
        let path = if answer.is_some() { None } else { filters.target(&request.uri, pattern).map_err(wrong)? };
        let named = if answer.is_some() { None } else { filters.service(request, pattern).map_err(wrong)? };
        let service = match named.or_else(|| entry.service.clone()) {
            Some(service) => service,
            // Not asked, and so not looked at.
            None if answer.is_some() || entry.composes => ServiceName::try_new("none").expect("a name"),
            None => return Err(wrong("the request does not say which service it wants".to_owned())),
        };
        let service = match self.compiled.splits.1.get(&service) {
            Some(split) => split.choose(&request.headers, || fastrand::u64(..)).clone(),
            None => service,
        };
        Ok(Matched { route: route.clone(), service, path, answer })
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::request::Parts;
    use proptest::prelude::*;
    use seawall_proxy::headers::Forwarding;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::{MatchConfig, ValueConfig};

    fn table(routes: Value) -> Result<RouteTable, Vec<RouteProblem>> {
        RouteTable::try_new(&serde_json::from_value::<Vec<RouteConfig>>(routes).unwrap(), Precedence::Written)
    }

    fn route(table: &RouteTable, method: &str, uri: &str, headers: &[(&str, &str)]) -> (String, String) {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        match table.route(&Asked::new(&parts, None)) {
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
                "routes.2.id",
                "routes.2.filters.0",
                "routes.2.fallback",
                "routes.2.match.path",
                "routes.2.match.method",
                "routes.2.match.host",
                "routes.1.match"
            ]
        );
        assert!(problems[6].what.contains("`a`"), "{}", problems[6]);
    }

    fn value() -> impl Strategy<Value = ValueConfig> {
        prop_oneof![
            Just(ValueConfig::Is("*".into())),
            Just(ValueConfig::Is("1".into())),
            Just(ValueConfig::Fits { regex: "1|2".into() }),
            Just(ValueConfig::Fits { regex: ".*".into() })
        ]
    }

    fn any_match() -> impl Strategy<Value = MatchConfig> {
        let path =
            prop_oneof![Just("/a"), Just("/a/**"), Just("/*"), Just("/**"), Just("/{x}/b"), Just("/a/b"), Just("/")];
        let path = proptest::option::of(path);
        let path_regex = proptest::option::weighted(0.2, prop_oneof![Just("/a.*"), Just("/[ab](/b)?")]);
        let method = proptest::collection::vec(prop_oneof![Just("GET"), Just("POST")], 0..3);
        let host = proptest::collection::vec(prop_oneof![Just("h.e"), Just("*.e"), Just("*.h.e"), Just("o")], 0..3);
        let values = || proptest::collection::btree_map(Just("x".to_owned()), value(), 0..2);
        let source = proptest::collection::vec(prop_oneof![Just("10.0.0.0/8"), Just("10.1.0.0/16"), Just("::1")], 0..2);
        let times = prop_oneof![Just("2001-01-01T00:00:00Z"), Just("2999-01-01T00:00:00Z")];
        let after = proptest::option::weighted(0.2, times.clone());
        let before = proptest::option::weighted(0.2, Just("2999-02-01T00:00:00Z"));
        let own = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<Vec<_>>();
        (path, path_regex, method, host, (values(), values(), values()), source, after, before).prop_map(
            move |(path, path_regex, method, host, (headers, query, cookies), source, after, before)| MatchConfig {
                path: path.map(str::to_owned),
                path_regex: path_regex.map(str::to_owned),
                method: own(method),
                host: own(host),
                headers,
                query,
                cookies,
                source: own(source),
                after: after.map(str::to_owned),
                before: before.map(str::to_owned),
                weight: None,
            },
        )
    }

    prop_compose! {
        fn any_request()(
            path in prop_oneof![Just("/a"), Just("/a/b"), Just("/b/b"), Just("/"), Just("/a/b/c"), Just("/A"), Just("//")],
            query in prop_oneof![Just(""), Just("?x=1"), Just("?x=%31&x=3"), Just("?x"), Just("?y=1")],
            method in prop_oneof![Just("GET"), Just("POST"), Just("PUT")],
            host in prop_oneof![Just("h.e"), Just("H.E:80"), Just("x.h.e"), Just("e"), Just("o")],
            header in proptest::option::of(prop_oneof![Just("1"), Just("2"), Just("3")]),
            cookie in proptest::option::of(prop_oneof![Just("x=1"), Just("y=1; x=2"), Just("x")]),
            client in prop_oneof![Just("10.1.2.3"), Just("10.2.2.3"), Just("192.0.2.1"), Just("::1")],
        ) -> (Parts, Forwarding) {
            let mut request = Request::builder().method(method).uri(format!("{path}{query}")).header("host", host);
            if let Some(value) = header {
                request = request.header("x", value);
            }
            if let Some(value) = cookie {
                request = request.header("cookie", value);
            }
            (request.body(()).unwrap().into_parts().0, Forwarding::new(client.parse().unwrap(), 0, None))
        }
    }

    fn matcher(config: &MatchConfig) -> Matcher {
        Matcher::try_new(config, None, &mut |field, what| panic!("{field}: {what}")).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// A route that is called unreachable really is.
        #[test]
        fn what_covers_takes_every_request(
            (wide, narrow) in (any_match(), any_match()),
            (parts, forwarding) in any_request(),
        ) {
            let (wide, narrow) = (matcher(&wide), matcher(&narrow));
            let asked = Asked::new(&parts, Some(&forwarding));
            if wide.covers(&narrow) && narrow.check(&asked, Chance(0)).is_ok() {
                prop_assert!(wide.check(&asked, Chance(0)).is_ok());
            }
        }

        /// The index finds what asking one route after the other finds, and every route that covers another is near it.
        #[test]
        fn the_index_changes_nothing(
            configs in proptest::collection::vec(any_match(), 1..12),
            requests in proptest::collection::vec(any_request(), 1..6),
        ) {
            let matchers: Vec<_> = configs.iter().map(matcher).collect();
            let index = Index::new(&matchers);
            for (parts, forwarding) in &requests {
                let asked = Asked::new(parts, Some(forwarding));
                let takes = |place: &usize| matchers[*place].check(&asked, Chance(0)).is_ok();
                let one_by_one = (0..matchers.len()).find(takes);
                let host = host(parts);
                let candidates: Vec<_> = index.candidates(host.as_deref(), parts.uri.path()).collect();
                prop_assert!(candidates.is_sorted_by(|a, b| a < b), "{:?}", candidates);
                prop_assert_eq!(candidates.into_iter().find(takes), one_by_one);
            }
            for (place, narrow) in matchers.iter().enumerate() {
                let near: Vec<_> = index.around(narrow).collect();
                for (other, wide) in matchers.iter().enumerate() {
                    prop_assert!(!wide.covers(narrow) || near.contains(&other), "{} covers {}: {:?}", other, place, near);
                }
            }
        }
    }

    #[test]
    fn every_condition_takes_what_it_says_and_says_why_not() {
        let table = table(json!([
            { "id": "query", "match": { "path": "/q", "query": { "page": "1", "sort": { "regex": "a|d" } } }, "to": "x" },
            { "id": "cookie", "match": { "path": "/c", "cookies": { "beta": "*" } }, "to": "x" },
            { "id": "source", "match": { "path": "/s", "source": ["10.0.0.0/8", "::1"] }, "to": "x" },
            { "id": "early", "match": { "path": "/t", "after": "2999-01-01T00:00:00Z" }, "to": "x" },
            { "id": "late", "match": { "path": "/t", "before": "2001-01-01T00:00:00Z" }, "to": "x" },
            { "id": "regex", "match": { "path_regex": "/v[0-9]+/x" }, "to": "x" },
            { "id": "header", "match": { "path": "/h", "headers": { "x-v": { "regex": "2[.].*" } } }, "to": "x" },
        ]))
        .unwrap();
        let from = Forwarding::new("10.9.8.7".parse().unwrap(), 0, None);
        for (uri, headers, id, why_not) in [
            ("/q?page=1&sort=a", &[][..], Some(0), ""),
            ("/q?page=1&sort=ad", &[], None, "the query's sort has to be what fits ^(?:a|d)$, it is `ad`"),
            ("/q?sort=d", &[], None, "the query's page has to be `1`, there is none"),
            ("/c", &[("cookie", "a=b; beta=yes")], Some(1), ""),
            ("/c", &[("cookie", "a=b")], None, "the cookie beta has to be any value, there is none"),
            ("/s", &[], Some(2), ""),
            ("/t", &[], None, "it begins 2999-01-01T00:00:00Z"),
            ("/t", &[], None, "it has ended 2001-01-01T00:00:00Z"),
            ("/v12/x", &[], Some(5), ""),
            ("/v12/x/", &[], None, "the path /v12/x/ does not fit ^(?:/v[0-9]+/x)$"),
            ("/h", &[("x-v", "2.1")], Some(6), ""),
            ("/h", &[("x-v", "12.1")], None, "the header x-v has to be what fits ^(?:2[.].*)$, it is `12.1`"),
        ] {
            let mut request = Request::builder().uri(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let parts = request.body(()).unwrap().into_parts().0;
            let verdicts = table.explain(&Asked::new(&parts, Some(&from)));
            let takes = verdicts.last().filter(|last| last.why_not.is_none()).map(|last| last.at);
            assert_eq!(takes, id, "{uri}: {verdicts:?}");
            let said = |verdict: &Verdict| verdict.why_not.as_deref() == Some(why_not);
            assert!(why_not.is_empty() || verdicts.iter().any(said), "{uri}: {verdicts:?}");
        }
        let parts = Request::builder().uri("/s").body(()).unwrap().into_parts().0;
        let stranger = Forwarding::new("192.0.2.1".parse().unwrap(), 0, None);
        assert!(table.route(&Asked::new(&parts, Some(&stranger))).is_err());
    }

    #[test]
    fn shares_divide_the_requests_of_a_group() {
        let route = |id: &str, share: u32| json!({ "id": id, "match": { "weight": { "group": "g", "share": share } }, "to": id });
        let table = table(json!([route("a", 70), route("b", 30), route("c", 0)])).unwrap();
        let parts = Request::builder().uri("/").body(()).unwrap().into_parts().0;
        let mut counts = BTreeMap::<String, u32>::new();
        for seed in 0..10_000u64 {
            let entry = table.find(&Asked::new(&parts, None), Chance(seed)).unwrap();
            *counts.entry(entry.0.route.id.to_string()).or_default() += 1;
        }
        assert!((6_700..7_300).contains(&counts["a"]) && !counts.contains_key("c"), "{counts:?}");
        let problems = super::RouteTable::try_new(
            &serde_json::from_value::<Vec<RouteConfig>>(json!([route("a", 0), route("b", 0)])).unwrap(),
            Precedence::Written,
        );
        assert!(problems.unwrap_err()[0].what.contains("no route of the group `g`"));
    }

    #[test]
    fn the_more_specific_is_asked_first_if_that_is_said() {
        let routes = json!([
            { "id": "all", "match": { "path": "/**" }, "to": "x" },
            { "id": "api", "match": { "path": "/api/**" }, "to": "x" },
            { "id": "api-post", "match": { "path": "/api/**", "method": ["POST"] }, "to": "x" },
            { "id": "orders", "match": { "path": "/api/orders/**" }, "to": "x" },
            { "id": "one", "match": { "path": "/api/orders" }, "to": "x" },
            { "id": "beta", "match": { "path": "/api/**", "headers": { "beta": "*" } }, "to": "x" },
        ]);
        let routes = serde_json::from_value::<Vec<RouteConfig>>(routes).unwrap();
        assert!(RouteTable::try_new(&routes, Precedence::Written).is_err(), "as they are written the first takes all");
        let table = RouteTable::try_new(&routes, Precedence::Specific).unwrap();
        for (method, uri, headers, id) in [
            ("GET", "/x", &[][..], "all"),
            ("GET", "/api/x", &[], "api"),
            ("POST", "/api/x", &[("beta", "1")], "api-post"),
            ("GET", "/api/x", &[("beta", "1")], "beta"),
            ("GET", "/api/orders/7", &[("beta", "1")], "orders"),
            ("POST", "/api/orders", &[], "one"),
        ] {
            assert_eq!(self::route(&table, method, uri, headers).0, id, "{method} {uri}");
        }
    }
}
