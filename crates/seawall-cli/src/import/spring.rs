//! Spring Cloud Gateway's `application.yml`: both prefixes, shortcuts and named arguments.

mod filters;
mod predicates;

use serde_json::{Value, json};

use super::{Document, Import, items, slug, text};
use crate::config::tree::{Kind, Node};

/// Where its configuration begins: up to 4.2, and since 4.3.
const PREFIXES: [&[&str]; 2] = [&["spring", "cloud", "gateway", "server", "webflux"], &["spring", "cloud", "gateway"]];

/// Everything that is in the documents of a file.
pub(super) fn import(documents: &[Document], partial: bool) -> Import {
    let mut import = Import::default();
    let mut routes: Vec<(i64, Vec<Value>)> = Vec::new();
    let mut found = false;
    for document in documents {
        let keys = ["routes", "default-filters", "globalcors", "httpclient", "discovery", "trusted-proxies"];
        let Some(prefix) = PREFIXES
            .iter()
            .find(|prefix| keys.iter().any(|key| find(&document.root, &[prefix, &[*key][..]].concat()).is_some()))
        else {
            continue;
        };
        found = true;
        let profile = find(&document.root, &["spring", "config", "activate", "on-profile"]);
        let profile =
            profile.or_else(|| find(&document.root, &["spring", "profiles"]).filter(|node| text(node).is_some()));
        if let Some(profile) = profile {
            let place = document.place(profile);
            import.notes.push(format!(
                "{place}: what holds for the profile {} only: Seawall has no profiles, convert each into a file of its own",
                text(profile).unwrap_or_default()
            ));
            continue;
        }
        let mut reader = Reader { document, prefix, import: &mut import, partial };
        reader.globals();
        if let Some(list) = reader.at(&["routes"]) {
            let mut ids: Vec<String> = Vec::new();
            for (at, route) in items(list).into_iter().enumerate() {
                if let Some(made) = reader.route(route, at, &mut ids) {
                    routes.push(made);
                }
            }
        }
    }
    if !found {
        let file = documents.first().map_or("the file", |document| &document.file);
        import.notes.push(format!("{file}: there is nothing below spring.cloud.gateway"));
    }
    // By their order; among equals as they are written.
    routes.sort_by_key(|(order, _)| *order);
    import.routes = routes.into_iter().flat_map(|(_, routes)| routes).collect();
    import
}

/// A node by its path, with Spring's relaxed names, and keys that hold several steps (`spring.cloud.gateway:`).
fn find<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Node> {
    if path.is_empty() {
        return Some(node);
    }
    let Kind::Map(entries) = &node.kind else { return None };
    entries.iter().find_map(|(key, value)| {
        let steps: Vec<&str> = key.name.split('.').collect();
        let same =
            steps.len() <= path.len() && steps.iter().zip(path).all(|(one, other)| relaxed(one) == relaxed(other));
        if same { find(value, &path[steps.len()..]) } else { None }
    })
}

fn relaxed(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect()
}

/// A predicate or a filter: its name and its arguments.
struct Part {
    name: String,
    args: Args,
}

/// Arguments, by their names or in their order.
enum Args {
    Listed(Vec<String>),
    /// A name stands once for each of its values.
    Named(Vec<(String, String)>),
}

impl Args {
    /// One argument, by its place in a shortcut or its name.
    fn get(&self, at: usize, name: &str) -> Option<String> {
        match self {
            Self::Listed(list) => list.get(at).cloned(),
            Self::Named(pairs) => {
                pairs.iter().find(|(own, _)| relaxed(own) == relaxed(name)).map(|(_, value)| value.clone())
            }
        }
    }

    /// All of a list, by its name; a name may carry its index (`patterns.0`, `patterns[0]`).
    fn all(&self, name: &str) -> Vec<String> {
        match self {
            Self::Listed(list) => list.clone(),
            Self::Named(pairs) => {
                let base = |own: &str| {
                    relaxed(own.split(['.', '[']).next().unwrap_or(own).trim_end_matches(|c: char| c.is_ascii_digit()))
                };
                let own = pairs
                    .iter()
                    .filter(|(own, _)| base(own) == relaxed(name) || relaxed(name).trim_end_matches('s') == base(own));
                own.flat_map(|(_, value)| value.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>())
                    .collect()
            }
        }
    }
}

/// Why something cannot be converted.
type Why = String;

struct Reader<'a> {
    document: &'a Document,
    prefix: &'a [&'a str],
    import: &'a mut Import,
    partial: bool,
}

impl<'a> Reader<'a> {
    /// What is below the prefix.
    fn at(&self, path: &[&str]) -> Option<&'a Node> {
        let document: &'a Document = self.document;
        find(&document.root, &[self.prefix, path].concat())
    }

    fn note(&mut self, node: &Node, what: &str) {
        let place = self.document.place(node);
        self.import.notes.push(format!("{place}: {what}"));
    }

    fn remark(&mut self, node: &Node, what: &str) {
        let place = self.document.place(node);
        self.import.remark(format!("{place}: {what}"));
    }

    /// What holds for all routes.
    fn globals(&mut self) {
        if let Some(list) = self.at(&["default-filters"]) {
            for node in items(list) {
                match self.part(node).and_then(|part| filters::convert(&part, &mut Scope::default())) {
                    Ok(made) => self.import.filters.extend(made.filters),
                    Err(why) => self.note(node, &format!("the default filter {}: {why}", self::name(node))),
                }
            }
        }
        if let Some(cors) = self.at(&["globalcors", "cors-configurations"]) {
            self.cors(cors);
        }
        if let Some(timeout) = self.at(&["httpclient", "response-timeout"]) {
            match text(timeout).and_then(|text| duration(&text)) {
                Some(period) => {
                    let place = self.document.place(timeout);
                    self.import.policy(&place, "default", "timeout", period.into());
                }
                None => self.note(timeout, "httpclient.response-timeout: this is no duration such as 5s"),
            }
        }
        if let Some(connect) = self.at(&["httpclient", "connect-timeout"]) {
            self.remark(connect, "httpclient.connect-timeout has no counterpart: a connection that takes more than 1s to open has failed");
        }
        if let Some(hops) = self.at(&["trusted-proxies"]) {
            self.remark(hops, "trusted-proxies is a pattern of addresses; say how many proxies are in front: `trusted_hops` of the gateway");
        }
        if let Some(locator) =
            self.at(&["discovery", "locator", "enabled"]).filter(|node| text(node).as_deref() == Some("true"))
        {
            self.note(locator, "discovery.locator makes routes of whatever is registered: write a route for each service that is to be reached");
        }
    }

    fn cors(&mut self, node: &Node) {
        let Kind::Map(entries) = &node.kind else { return };
        for (key, config) in entries {
            let pattern = key.name.trim_matches(['[', ']', '\'', '"']);
            if !matches!(pattern, "/**" | "**") {
                self.note(config, &format!("globalcors for {pattern}: write a `cors` filter at the routes below it"));
                continue;
            }
            let list = |name: &str| -> Vec<Value> {
                let found = find(config, &[name]);
                found.map_or_else(Vec::new, |node| items(node).into_iter().filter_map(text).map(Value::from).collect())
            };
            let mut cors = serde_json::Map::new();
            let mut origins = list("allowed-origins");
            origins.extend(list("allowed-origin-patterns"));
            cors.insert("origins".into(), origins.into());
            for (theirs, ours) in
                [("allowed-methods", "methods"), ("allowed-headers", "headers"), ("exposed-headers", "expose")]
            {
                let list = list(theirs);
                if !list.is_empty() {
                    cors.insert(ours.into(), list.into());
                }
            }
            if find(config, &["allow-credentials"]).and_then(text).as_deref() == Some("true") {
                cors.insert("credentials".into(), true.into());
            }
            if let Some(age) = find(config, &["max-age"]).and_then(text).and_then(|age| seconds(&age)) {
                cors.insert("max_age".into(), age.into());
            }
            self.import.filters.push(json!({ "cors": cors }));
        }
    }

    /// `Name=a,b`, or `name` and `args`.
    fn part(&self, node: &Node) -> Result<Part, Why> {
        if let Some(shortcut) = text(node) {
            let shortcut = placeholders(&shortcut)?;
            let (name, args) = shortcut.split_once('=').unwrap_or((&shortcut, ""));
            let args =
                if args.is_empty() { Vec::new() } else { args.split(',').map(|arg| arg.trim().to_owned()).collect() };
            return Ok(Part { name: name.trim().to_owned(), args: Args::Listed(args) });
        }
        let name = find(node, &["name"]).and_then(text).ok_or("it has no name")?;
        let mut pairs = Vec::new();
        let mut listed = Vec::new();
        match find(node, &["args"]).map(|args| &args.kind) {
            Some(Kind::Map(entries)) => {
                for (key, value) in entries {
                    collect(&key.name, value, &mut pairs)?;
                }
            }
            Some(Kind::Seq(items)) => {
                for (_, item) in items {
                    listed.push(placeholders(&text(item).ok_or("an argument is no text")?)?);
                }
            }
            Some(Kind::Scalar(_)) | None => {}
        }
        let generated = !pairs.is_empty() && pairs.iter().all(|(name, _)| name.starts_with("_genkey_"));
        let args = match listed.is_empty() && !generated {
            true => Args::Named(pairs),
            false => Args::Listed(listed.into_iter().chain(pairs.into_iter().map(|(_, value)| value)).collect()),
        };
        Ok(Part { name, args })
    }

    /// A route: its order, and what it becomes; several where it has several patterns of paths.
    fn route(&mut self, node: &Node, at: usize, ids: &mut Vec<String>) -> Option<(i64, Vec<Value>)> {
        let id = find(node, &["id"]).and_then(text).unwrap_or_else(|| format!("route-{at}"));
        if find(node, &["enabled"]).and_then(text).as_deref() == Some("false") {
            self.remark(node, &format!("the route {id} is not enabled, and left out"));
            return None;
        }
        let mut scope = Scope::default();
        let mut complete = true;
        let mut conditions = predicates::Conditions::default();
        for predicate in find(node, &["predicates"]).map(items).unwrap_or_default() {
            let converted = self.part(predicate).and_then(|part| conditions.add(&part));
            match converted {
                Ok(remark) => remark.into_iter().for_each(|remark| self.remark(predicate, &remark)),
                Err(why) => {
                    self.note(predicate, &format!("the route {id}, for its predicate {}: {why}", name(predicate)));
                    complete = false;
                }
            }
        }
        if !complete {
            return None;
        }
        let target = find(node, &["uri"])
            .and_then(text)
            .map_or_else(|| Err("it has no uri".to_owned()), |uri| placeholders(&uri));
        let service = match target.and_then(|uri| target_of(&uri)) {
            Ok(Target::Service(name, address)) => {
                let service = self.import.service(&name);
                if let Some(address) = address {
                    self.import
                        .remark(format!("the service `{service}` has to be registered: it was called at {address}"));
                }
                Some(service)
            }
            Ok(Target::None) => None,
            Err(why) => {
                self.note(node, &format!("the route {id}: {why}"));
                return None;
            }
        };
        scope.service.clone_from(&service);
        let mut made = Vec::new();
        for filter in find(node, &["filters"]).map(items).unwrap_or_default() {
            match self.part(filter).and_then(|part| filters::convert(&part, &mut scope)) {
                Ok(converted) => {
                    made.extend(converted.filters);
                    converted.remark.into_iter().for_each(|remark| self.remark(filter, &remark));
                }
                Err(why) => {
                    let left = if self.partial { "goes without" } else { "answers 501, for" };
                    self.note(filter, &format!("the route {id} {left} its filter {}: {why}", name(filter)));
                    complete = false;
                }
            }
        }
        // Requests must not fall to a route after it, which may protect its service less.
        if !complete && !self.partial {
            made = vec![json!({ "respond": { "status": 501, "text": format!("the route {id} was not converted\n") } })];
            scope.answers = true;
        }
        let place = self.document.place(node);
        if let Some(service) = &service {
            for (key, value) in scope.policies {
                self.import.policy(&place, service, key, value);
            }
        }
        self.metadata(node, service.as_deref());
        let order = find(node, &["order"]).and_then(text).and_then(|order| order.parse().ok()).unwrap_or(0);
        let mut routes = Vec::new();
        let matches = conditions.matches();
        for (number, condition) in matches.iter().enumerate() {
            let mut own = slug(&id);
            if matches.len() > 1 {
                own = format!("{own}-{}", number + 1);
            }
            while ids.contains(&own) {
                own.push('x');
            }
            ids.push(own.clone());
            let mut route = serde_json::Map::new();
            route.insert("id".into(), own.into());
            route.insert("match".into(), condition.clone());
            if !made.is_empty() {
                route.insert("filters".into(), made.clone().into());
            }
            match (&service, scope.answers) {
                (Some(service), false) => drop(route.insert("to".into(), service.clone().into())),
                (None, false) => {
                    // A route to nowhere answers with nothing.
                    let mut all = made.clone();
                    all.push(json!({ "respond": { "status": 200 } }));
                    route.insert("filters".into(), all.into());
                }
                _ => {}
            }
            routes.push(Value::Object(route));
        }
        Some((order, routes))
    }

    fn metadata(&mut self, node: &Node, service: Option<&str>) {
        let Some(metadata) = find(node, &["metadata"]) else { return };
        let Kind::Map(entries) = &metadata.kind else { return };
        for (key, value) in entries {
            match (relaxed(&key.name).as_str(), service) {
                ("responsetimeout", Some(service)) => match text(value).and_then(|text| text.parse::<i64>().ok()) {
                    Some(millis) if millis > 0 => {
                        let place = self.document.place(value);
                        self.import.policy(&place, service, "timeout", format!("{millis}ms").into());
                    }
                    Some(_) => self
                        .note(value, "a response-timeout below 0 is none at all: every call of Seawall's has a time"),
                    None => self.note(value, "response-timeout: this is no number of milliseconds"),
                },
                ("connecttimeout", _) => self.remark(
                    value,
                    "connect-timeout has no counterpart: a connection that takes more than 1s to open has failed",
                ),
                _ => self.remark(value, &format!("the metadata {} has no meaning here", key.name)),
            }
        }
    }
}

/// What the filters of a route say beside being filters.
#[derive(Default)]
struct Scope {
    service: Option<String>,
    policies: Vec<(&'static str, Value)>,
    /// A filter answers, and no service is asked.
    answers: bool,
}

/// What a filter becomes.
#[derive(Default)]
struct Converted {
    filters: Vec<Value>,
    remark: Option<String>,
}

fn collect(name: &str, node: &Node, pairs: &mut Vec<(String, String)>) -> Result<(), Why> {
    match &node.kind {
        Kind::Scalar(_) => {
            if let Some(value) = text(node) {
                pairs.push((name.to_owned(), placeholders(&value)?));
            }
        }
        Kind::Seq(items) => {
            for (_, item) in items {
                collect(name, item, pairs)?;
            }
        }
        Kind::Map(entries) => {
            for (key, value) in entries {
                // Lists that are written as maps of their indices.
                let below = key.name.bytes().all(|byte| byte.is_ascii_digit());
                collect(&if below { name.to_owned() } else { format!("{name}.{}", key.name) }, value, pairs)?;
            }
        }
    }
    Ok(())
}

/// What a predicate or a filter is called.
fn name(node: &Node) -> String {
    let shortcut = text(node).map(|text| text.split('=').next().unwrap_or_default().trim().to_owned());
    shortcut.or_else(|| find(node, &["name"]).and_then(text)).unwrap_or_default()
}

/// `${NAME:default}` is the default; `$\{` is no placeholder.
fn placeholders(text: &str) -> Result<String, Why> {
    let (mut made, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let (inner, after) = after.split_once('}').ok_or("a placeholder is not closed")?;
        let Some((_, default)) = inner.split_once(':') else {
            return Err(format!("`${{{inner}}}` has no default: put its value in"));
        };
        made += before;
        made += default;
        rest = after;
    }
    if text.contains("#{") {
        return Err("what stands in `#{...}` is code".to_owned());
    }
    Ok(made + rest)
}

enum Target {
    /// A service, and where it was if that was said.
    Service(String, Option<String>),
    /// None is asked.
    None,
}

fn target_of(uri: &str) -> Result<Target, Why> {
    let (scheme, rest) =
        uri.split_once("://").or_else(|| uri.split_once(':')).ok_or_else(|| format!("the uri {uri} has no scheme"))?;
    let authority = rest.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default();
    match scheme {
        "lb" => Ok(Target::Service(authority.trim_start_matches("ws:").to_owned(), None)),
        "no" => Ok(Target::None),
        "http" | "https" | "ws" | "wss" if !authority.is_empty() => {
            let host = authority.split(':').next().unwrap_or(authority);
            let address = host.parse::<std::net::Ipv4Addr>().is_ok() || host == "localhost";
            let name = if address {
                authority.replace([':', '.'], "-")
            } else {
                host.split('.').next().unwrap_or(host).to_owned()
            };
            Ok(Target::Service(name, Some(uri.to_owned())))
        }
        "forward" => Err(format!("{uri} goes to a handler in the gateway's own program: make a service of it")),
        _ => Err(format!("the uri {uri} is of no kind that Seawall calls")),
    }
}

/// Spring's durations: `500ms`, `5s`, `PT5S`, and milliseconds without a unit.
fn duration(text: &str) -> Option<String> {
    if let Ok(millis) = text.parse::<u64>() {
        return Some(format!("{millis}ms"));
    }
    let text = text.to_ascii_lowercase();
    let text = text.strip_prefix("pt").unwrap_or(&text);
    text.parse::<seawall_types::Period>().ok().map(|period| period.to_string())
}

/// As [`duration`], of seconds without a unit.
fn seconds(text: &str) -> Option<String> {
    text.parse::<u64>().map_or_else(|_| duration(text), |seconds| Some(format!("{seconds}s")))
}

/// Spring's sizes: `5MB` (which are 1024 KB each), `10KB`, bytes without a unit.
fn size(text: &str) -> Option<String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => "B",
        "KB" => "KiB",
        "MB" => "MiB",
        "GB" => "GiB",
        "TB" => "TiB",
        _ => return None,
    };
    Some(format!("{number} {unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_spring_does() {
        for (given, made) in [("5s", Some("5s")), ("PT1M30S", Some("1m 30s")), ("200", Some("200ms")), ("x", None)] {
            assert_eq!(duration(given).as_deref(), made, "{given}");
        }
        for (given, made) in [("5MB", Some("5 MiB")), ("5000", Some("5000 B")), ("5XB", None)] {
            assert_eq!(size(given).as_deref(), made, "{given}");
        }
        assert_eq!(placeholders("http://${HOST:a}:${PORT:80}$\\{x}").unwrap(), "http://a:80$\\{x}");
        assert!(placeholders("${HOST}").unwrap_err().contains("put its value in"));
        for (uri, name) in [("lb://ORDER", "ORDER"), ("http://a.b.c:1/x", "a"), ("http://localhost:80", "localhost-80")]
        {
            assert!(matches!(target_of(uri), Ok(Target::Service(own, _)) if own == name), "{uri}");
        }
        assert!(target_of("forward:/x").is_err());
    }
}
