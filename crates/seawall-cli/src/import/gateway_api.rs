//! HTTPRoutes of Kubernetes' Gateway API, v1.

use serde_json::{Map, Value, json};

use super::{Document, Import, items, slug, text};
use crate::config::tree::Node;

/// Everything that is in the documents.
pub(super) fn import(documents: &[Document], partial: bool) -> Import {
    let mut import = Import { specific: true, ..Import::default() };
    let mut ids = Vec::new();
    for document in documents {
        let kind = child(&document.root, &["kind"]).and_then(text).unwrap_or_default();
        let place = document.place(&document.root);
        match kind.as_str() {
            "HTTPRoute" => Reader { document, import: &mut import, ids: &mut ids, partial }.route(),
            "" => import.notes.push(format!("{place}: a document without a kind")),
            kind => import.remark(format!("{place}: the {kind} is not looked at: HTTPRoutes are")),
        }
    }
    import
}

fn child<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Node> {
    path.iter().try_fold(node, |node, step| node.child(step))
}

fn string(node: &Node, path: &[&str]) -> Option<String> {
    child(node, path).and_then(text)
}

fn list<'a>(node: &'a Node, path: &[&str]) -> Vec<&'a Node> {
    child(node, path).map(items).unwrap_or_default()
}

struct Reader<'a> {
    document: &'a Document,
    import: &'a mut Import,
    ids: &'a mut Vec<String>,
    partial: bool,
}

/// A condition, and the prefix that it asks for.
struct Condition {
    value: Map<String, Value>,
    prefix: Option<String>,
}

impl Reader<'_> {
    fn note(&mut self, node: &Node, what: &str) {
        let place = self.document.place(node);
        self.import.notes.push(format!("{place}: {what}"));
    }

    /// What becomes of a rule of which a part is missing.
    const fn instead(&self) -> &'static str {
        if self.partial { "goes without" } else { "answers 501" }
    }

    fn route(&mut self) {
        let document = self.document;
        let root = &document.root;
        let name = string(root, &["metadata", "name"]).unwrap_or_else(|| "route".to_owned());
        let hosts: Vec<String> = list(root, &["spec", "hostnames"]).into_iter().filter_map(text).collect();
        for (number, rule) in list(root, &["spec", "rules"]).into_iter().enumerate() {
            let rule_name = string(rule, &["name"]).unwrap_or_else(|| (number + 1).to_string());
            let label = slug(&format!("{name}-{rule_name}"));
            let mut conditions = Vec::new();
            let matches = list(rule, &["matches"]);
            let mut complete = true;
            let everything = Condition { value: Map::new(), prefix: Some("/".to_owned()) };
            if matches.is_empty() {
                conditions.push(everything);
            }
            for node in matches {
                match condition(node) {
                    Ok(condition) => conditions.push(condition),
                    Err(why) => self.note(node, &format!("of the rule {label}, a match: {why}")),
                }
            }
            let backends = self.backends(rule, &label, &mut complete);
            self.policies(rule, &backends);
            for (at, condition) in conditions.iter().enumerate() {
                let mut whole = complete;
                let filters = self.filters(rule, &label, condition, &hosts, &mut whole);
                // Requests must not fall to a route that asks less.
                let refused =
                    [json!({ "respond": { "status": 501, "text": format!("the rule {label} was not converted\n") } })];
                let whole = whole || self.partial;
                let filters = if whole { filters } else { refused.to_vec() };
                let id = if conditions.len() > 1 { format!("{label}-{}", at + 1) } else { label.clone() };
                self.write(&id, condition, &hosts, &filters, &backends);
            }
        }
    }

    /// The services of a rule, with their shares and filters of their own.
    fn backends(&mut self, rule: &Node, label: &str, complete: &mut bool) -> Vec<(String, u64, Vec<Value>)> {
        let mut backends = Vec::new();
        for backend in list(rule, &["backendRefs"]) {
            let kind = string(backend, &["kind"]).unwrap_or_else(|| "Service".to_owned());
            let weight = string(backend, &["weight"]).and_then(|weight| weight.parse().ok()).unwrap_or(1);
            let Some(name) = string(backend, &["name"]).filter(|_| kind == "Service") else {
                self.note(
                    backend,
                    &format!("the rule {label} {}, for its backend: a {kind} is no service", self.instead()),
                );
                *complete = false;
                continue;
            };
            let condition = Condition { value: Map::new(), prefix: None };
            let own = self.filters(backend, label, &condition, &[], complete);
            let service = self.import.service(&name);
            backends.push((service, weight, own));
        }
        backends
    }

    /// What a rule says of time and retries is the policy of its services.
    fn policies(&mut self, rule: &Node, backends: &[(String, u64, Vec<Value>)]) {
        let mut all: Vec<(&str, &str, Value)> = Vec::new();
        for (path, key) in [(["timeouts", "request"], "timeout"), (["timeouts", "backendRequest"], "attempt_timeout")] {
            let Some(node) = child(rule, &path) else { continue };
            match text(node).map(|text| text.parse::<seawall_types::Period>()) {
                Some(Ok(period)) if !period.is_zero() => all.push((path[0], key, period.to_string().into())),
                Some(Ok(_)) => self.note(node, "a time of 0 is none at all: every call of Seawall's has one"),
                _ => self.note(node, "this is no duration such as 10s"),
            }
        }
        if let Some(retry) = child(rule, &["retry"]) {
            let mut policy = Map::new();
            if let Some(attempts) = string(retry, &["attempts"]).and_then(|attempts| attempts.parse::<u32>().ok()) {
                policy.insert("attempts".into(), (attempts + 1).into());
            }
            let backoff = string(retry, &["backoff"]).and_then(|text| text.parse::<seawall_types::Period>().ok());
            if let Some(backoff) = backoff {
                policy.insert("backoff".into(), backoff.to_string().into());
            }
            if child(retry, &["codes"]).is_some() {
                self.note(retry, "retry.codes: what is tried again are 502, 503, 504 and failed connections");
            }
            all.push(("retry", "retry", policy.into()));
        }
        for (block, key, value) in all {
            let place = child(rule, &[block]).map(|node| self.document.place(node)).unwrap_or_default();
            for (service, ..) in backends {
                self.import.policy(&place, service, key, value.clone());
            }
        }
    }

    fn filters(
        &mut self,
        node: &Node,
        label: &str,
        condition: &Condition,
        hosts: &[String],
        whole: &mut bool,
    ) -> Vec<Value> {
        let mut filters = Vec::new();
        for filter in list(node, &["filters"]) {
            match self.filter(filter, condition, hosts) {
                Ok(made) => filters.extend(made),
                Err(why) => {
                    let kind = string(filter, &["type"]).unwrap_or_default();
                    self.note(filter, &format!("the rule {label} {}, for its filter {kind}: {why}", self.instead()));
                    *whole = false;
                }
            }
        }
        if let Some(session) = child(node, &["sessionPersistence"]) {
            match persistence(session) {
                Ok(affinity) => filters.push(affinity),
                Err(why) => {
                    self.note(
                        session,
                        &format!("the rule {label} {}, for its sessionPersistence: {why}", self.instead()),
                    );
                    *whole = false;
                }
            }
        }
        filters
    }

    fn filter(&mut self, filter: &Node, condition: &Condition, hosts: &[String]) -> Result<Vec<Value>, String> {
        let kind = string(filter, &["type"]).unwrap_or_default();
        match kind.as_str() {
            "RequestHeaderModifier" => {
                Ok(headers(filter, "requestHeaderModifier", ["set_header", "add_header", "remove_header"]))
            }
            "ResponseHeaderModifier" => Ok(headers(
                filter,
                "responseHeaderModifier",
                ["set_response_header", "add_response_header", "remove_response_header"],
            )),
            "URLRewrite" => {
                let mut made = Vec::new();
                if let Some(host) = string(filter, &["urlRewrite", "hostname"]) {
                    made.push(json!({ "set_host": host }));
                }
                if let Some(path) = child(filter, &["urlRewrite", "path"]) {
                    made.push(rewrite(path, condition)?);
                }
                Ok(made)
            }
            "RequestRedirect" => {
                let redirect = child(filter, &["requestRedirect"]).ok_or("it says nothing")?;
                redirected(redirect, hosts).map(|made| vec![made])
            }
            "RequestMirror" => {
                let mirror = child(filter, &["requestMirror"]).ok_or("it says nothing")?;
                let name = string(mirror, &["backendRef", "name"]).ok_or("it names no service")?;
                let mut made = Map::new();
                made.insert("to".into(), self.import.service(&name).into());
                if let Some(percent) = string(mirror, &["percent"]) {
                    made.insert("share".into(), format!("{percent}%").into());
                }
                if let Some(fraction) = child(mirror, &["fraction"]) {
                    let number = |path: &str| string(fraction, &[path]).and_then(|text| text.parse::<f64>().ok());
                    let share = number("numerator").unwrap_or(0.0) / number("denominator").unwrap_or(100.0);
                    made.insert("share".into(), share.into());
                }
                Ok(vec![json!({ "mirror": made })])
            }
            "CORS" => Ok(vec![cors(filter)]),
            "ExtensionRef" | "ExternalAuth" => {
                Err("it is something of the cluster's that this file does not hold".to_owned())
            }
            other => Err(format!("{other} is no filter of HTTPRoute v1")),
        }
    }

    fn write(
        &mut self,
        id: &str,
        condition: &Condition,
        hosts: &[String],
        filters: &[Value],
        backends: &[(String, u64, Vec<Value>)],
    ) {
        let mut matches = condition.value.clone();
        if let Some(prefix) = condition.prefix.as_ref().filter(|prefix| *prefix != "/") {
            matches.insert("path".into(), format!("{}/**", prefix.trim_end_matches('/')).into());
        }
        if !hosts.is_empty() {
            matches.insert("host".into(), hosts.to_vec().into());
        }
        let answers = |filter: &Value| filter.get("redirect").is_some() || filter.get("respond").is_some();
        let answers = filters.iter().any(answers);
        let shared: Vec<_> = backends.iter().filter(|(_, weight, _)| *weight > 0).collect();
        if answers || shared.is_empty() {
            // What goes nowhere is answered with 500, as the Gateway API has it.
            let mut filters = filters.to_vec();
            if !answers {
                filters.push(json!({ "respond": { "status": 500, "text": "no backend\n" } }));
            }
            self.push(id.to_owned(), matches, &filters, None);
            return;
        }
        for (at, (service, weight, own)) in shared.iter().enumerate() {
            let mut matches = matches.clone();
            let mut id = id.to_owned();
            if shared.len() > 1 {
                matches.insert("weight".into(), json!({ "group": id, "share": weight }));
                id = format!("{id}-{}", at + 1);
            }
            let filters: Vec<Value> = filters.iter().chain(own).cloned().collect();
            self.push(id, matches, &filters, Some(service));
        }
    }

    fn push(&mut self, mut id: String, matches: Map<String, Value>, filters: &[Value], to: Option<&String>) {
        while self.ids.contains(&id) {
            id.push('x');
        }
        self.ids.push(id.clone());
        let mut route = Map::new();
        route.insert("id".into(), id.into());
        route.insert("match".into(), matches.into());
        if !filters.is_empty() {
            route.insert("filters".into(), filters.to_vec().into());
        }
        if let Some(to) = to {
            route.insert("to".into(), to.clone().into());
        }
        self.import.routes.push(route.into());
    }
}

fn condition(node: &Node) -> Result<Condition, String> {
    let mut value = Map::new();
    let mut prefix = None;
    let path = string(node, &["path", "value"]).unwrap_or_else(|| "/".to_owned());
    match string(node, &["path", "type"]).as_deref() {
        None | Some("PathPrefix") => prefix = Some(path),
        Some("Exact") => drop(value.insert("path".into(), path.into())),
        Some("RegularExpression") => drop(value.insert("path_regex".into(), path.into())),
        Some(other) => return Err(format!("{other} is no kind of path")),
    }
    if let Some(method) = string(node, &["method"]) {
        value.insert("method".into(), json!([method]));
    }
    for (theirs, ours) in [("headers", "headers"), ("queryParams", "query")] {
        let mut fields = Map::new();
        for field in list(node, &[theirs]) {
            let name = string(field, &["name"]).ok_or("a condition has no name")?;
            let given = string(field, &["value"]).unwrap_or_default();
            let wanted = match string(field, &["type"]).as_deref() {
                // A star is any value here.
                None | Some("Exact") if given == "*" => json!({ "regex": "\\*" }),
                None | Some("Exact") => given.into(),
                Some("RegularExpression") => json!({ "regex": given }),
                Some(other) => return Err(format!("{other} is no kind of condition")),
            };
            // The first of a name counts.
            fields.entry(if ours == "headers" { name.to_lowercase() } else { name }).or_insert(wanted);
        }
        if !fields.is_empty() {
            value.insert(ours.into(), fields.into());
        }
    }
    Ok(Condition { value, prefix })
}

fn headers(filter: &Node, block: &str, names: [&str; 3]) -> Vec<Value> {
    let mut made = Vec::new();
    for (theirs, ours) in [("set", names[0]), ("add", names[1])] {
        let pairs = list(filter, &[block, theirs]).into_iter();
        let pairs: Map<String, Value> =
            pairs.filter_map(|pair| Some((string(pair, &["name"])?, string(pair, &["value"])?.into()))).collect();
        if !pairs.is_empty() {
            made.push(json!({ ours: pairs }));
        }
    }
    let removed: Vec<String> = list(filter, &[block, "remove"]).into_iter().filter_map(text).collect();
    if !removed.is_empty() {
        made.push(json!({ names[2]: removed }));
    }
    made
}

fn rewrite(path: &Node, condition: &Condition) -> Result<Value, String> {
    if let Some(full) = string(path, &["replaceFullPath"]) {
        return Ok(json!({ "set_path": full }));
    }
    let to = string(path, &["replacePrefixMatch"]).ok_or("its path says nothing")?;
    let Some(prefix) = &condition.prefix else {
        return Err("ReplacePrefixMatch needs a match by PathPrefix".to_owned());
    };
    let (prefix, to) = (prefix.trim_end_matches('/'), to.trim_end_matches('/').replace('$', "$$"));
    let escaped: String = prefix
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "/_-%~".contains(c) { c.to_string() } else { format!("\\{c}") })
        .collect();
    // What is left begins with its slash; what is nothing at all is the root.
    Ok(match (prefix, to.as_str()) {
        ("", "") => json!({ "rewrite_path": { "regex": "^/", "to": "/" } }),
        ("", to) => json!({ "prefix_path": to }),
        (_, "") => json!({ "rewrite_path": { "regex": format!("^{escaped}/?"), "to": "/" } }),
        (_, to) => json!({ "rewrite_path": { "regex": format!("^{escaped}"), "to": to } }),
    })
}

fn redirected(redirect: &Node, hosts: &[String]) -> Result<Value, String> {
    let path = match child(redirect, &["path"]) {
        None => "{path}".to_owned(),
        Some(path) => string(path, &["replaceFullPath"])
            .ok_or("of a redirect's path, only the whole can be replaced: make a route for each place")?,
    };
    let status: u16 = string(redirect, &["statusCode"]).and_then(|status| status.parse().ok()).unwrap_or(302);
    let (scheme, port) = (string(redirect, &["scheme"]), string(redirect, &["port"]));
    let host = string(redirect, &["hostname"]).or_else(|| match hosts {
        [only] if !only.starts_with('*') => Some(only.clone()),
        _ => None,
    });
    let to = match (host, scheme, port) {
        (None, None, None) => format!("{path}{{query}}"),
        (None, ..) => {
            return Err("it leads to the host that was asked for, and the route has not exactly one".to_owned());
        }
        (Some(host), scheme, port) => {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{host}{port}{path}{{query}}", scheme.unwrap_or_else(|| "http".to_owned()))
        }
    };
    Ok(json!({ "redirect": { "to": to, "status": status } }))
}

fn cors(filter: &Node) -> Value {
    let mut cors = Map::new();
    for (theirs, ours) in [
        ("allowOrigins", "origins"),
        ("allowMethods", "methods"),
        ("allowHeaders", "headers"),
        ("exposeHeaders", "expose"),
    ] {
        let values: Vec<String> = list(filter, &["cors", theirs]).into_iter().filter_map(text).collect();
        if !values.is_empty() {
            cors.insert(ours.into(), values.into());
        }
    }
    if string(filter, &["cors", "allowCredentials"]).as_deref() == Some("true") {
        cors.insert("credentials".into(), true.into());
    }
    if let Some(age) = string(filter, &["cors", "maxAge"]) {
        cors.insert("max_age".into(), format!("{age}s").into());
    }
    json!({ "cors": cors })
}

fn persistence(session: &Node) -> Result<Value, String> {
    let name = string(session, &["sessionName"]);
    match string(session, &["type"]).as_deref() {
        None | Some("Cookie") => {
            let mut cookie = Map::new();
            if let Some(name) = name {
                cookie.insert("name".into(), name.into());
            }
            let lasts = string(session, &["cookieConfig", "lifetimeType"]).as_deref() == Some("Permanent");
            if let Some(age) = string(session, &["absoluteTimeout"]).filter(|_| lasts) {
                cookie.insert("max_age".into(), age.into());
            }
            Ok(json!({ "affinity": { "cookie": cookie } }))
        }
        Some(other) => Err(format!("{other}: a session is kept by a cookie")),
    }
}
