//! The OpenAPI document: it names every route that there is and no other, and what control answers is what it says.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use seawall_coord::Token;
use serde_json::{Value, json};

use super::support::*;

const FILE: &str = "
control: { listen: CONTROL, ttl: 1m }
policies: { default: { timeout: 20s, retry: { attempts: 1 } } }
services: { order: {} }
sagas: { buy: { steps: [ { name: pay, call: POST order/pay, undo: POST order/refund } ] } }
";
const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

fn document() -> Value {
    let text = include_str!("../../../seawall-control/openapi.json");
    serde_json::from_str(text).expect("JSON")
}

/// Every operation, with the path and the method that it is found by.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().iter().map(move |(method, op)| (&**path, &**method, op)))
        .collect()
}

/// Follows a reference, if it is one.
fn resolve<'a>(document: &'a Value, node: &'a Value) -> &'a Value {
    match node["$ref"].as_str() {
        Some(to) => document.pointer(&to[1..]).unwrap_or_else(|| panic!("{to} leads nowhere")),
        None => node,
    }
}

#[test]
fn the_document_holds_together() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    // Every reference leads somewhere, and everything is referred to.
    fn references<'a>(node: &'a Value, found: &mut BTreeSet<&'a str>) {
        match node {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|below| references(below, found));
            }
            Value::Array(list) => list.iter().for_each(|below| references(below, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    for kind in ["schemas", "parameters", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            let reference = format!("#/components/{kind}/{name}");
            assert!(found.remove(&*reference), "nothing refers to {reference}");
        }
    }
    assert!(found.is_empty(), "these lead nowhere: {found:?}");
    // Names are used once, what a path names is described, and tags are those of the list.
    let mut ids = BTreeSet::new();
    let tags: Vec<_> = document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    for (path, method, operation) in operations(&document) {
        assert!(METHODS.contains(&method), "{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{}", operation["operationId"]);
        assert!(operation["tags"].as_array().unwrap().iter().all(|tag| tags.contains(&tag)), "{method} {path}");
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let named: BTreeSet<_> = parameters
            .iter()
            .map(|parameter| resolve(&document, parameter))
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| parameter["name"].as_str().unwrap().to_owned())
            .collect();
        let segments = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
        assert_eq!(named, segments.map(str::to_owned).collect(), "{method} {path}");
    }
    // Its schemas are such by their own draft.
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(jsonschema::draft202012::meta::is_valid(schema), "{name}: {schema}");
    }
}

/// The paths in control's source, as they are given to its router.
fn routes() -> BTreeSet<String> {
    fn sources(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../seawall-control/src"), &mut all);
    let mut found = BTreeSet::new();
    for source in all {
        let quoted = |text: &str| text.split('"').nth(1).unwrap_or_default().to_owned();
        let constants: BTreeMap<_, _> = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix("const ")?.split_once(": &str = "))
            .map(|(name, value)| (name.to_owned(), quoted(value)))
            .collect();
        for route in source.split(".route(").skip(1) {
            let path = if route.starts_with('"') {
                quoted(route)
            } else if let Some(format) = route.strip_prefix("&format!(") {
                let text = quoted(format);
                let (name, rest) = text.strip_prefix('{').and_then(|text| text.split_once('}')).unwrap();
                format!("{}{rest}", constants[name])
            } else {
                constants[route.split(',').next().unwrap()].clone()
            };
            found.insert(path);
        }
    }
    found
}

#[test]
fn it_names_every_route_and_method_and_no_other() {
    let document = document();
    let documented: BTreeSet<_> = operations(&document).iter().map(|(path, ..)| (*path).to_owned()).collect();
    assert_eq!(documented, routes());
    let site = Site::new(FILE);
    let _control = site.control();
    for path in &documented {
        for method in METHODS {
            // Of the wrong method it says so, whatever else may be wrong.
            let concrete = path.replace(['{', '}'], "x");
            let listed = document["paths"][path].get(method).is_some();
            if listed && method == "get" {
                // A stream would not end; `HEAD` is answered by the same routes.
                continue;
            }
            let answer = send(site.control, &method.to_uppercase(), &concrete, &[], "");
            assert_eq!(answer.status == 405, !listed, "{method} {path}: {answer:?}");
            assert!(!answer.body.contains("there is no such path"), "{method} {path}");
        }
    }
}

/// Asks control, and holds the document to its word.
struct Asking {
    control: SocketAddr,
    document: Value,
    asked: RefCell<BTreeSet<String>>,
}

impl Asking {
    fn find(&self, method: &str, path: &str) -> &Value {
        let fits = |template: &str| {
            let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
            template.len() == path.len()
                && template.iter().zip(path).all(|(name, segment)| name.starts_with('{') || *name == segment)
        };
        let mut found: Vec<_> = operations(&self.document);
        found.retain(|(template, own, _)| *own == method && fits(template));
        // One that is spelt out goes before one with a name in it.
        found.sort_by_key(|(template, ..)| template.matches('{').count());
        found.first().unwrap_or_else(|| panic!("{method} {path} is not in the document")).2
    }

    /// What is wrong with a value of the form that a schema says.
    fn wrong(&self, schema: &Value, value: &Value) -> Option<String> {
        let whole = json!({ "components": self.document["components"], "allOf": [schema] });
        let validator = jsonschema::draft202012::new(&whole).unwrap();
        let errors: Vec<_> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        (!errors.is_empty()).then(|| format!("{value} is not {schema}: {errors:?}"))
    }

    /// What the document says of an answer with this status.
    fn described(&self, operation: &Value, status: u16) -> Value {
        let id = operation["operationId"].as_str().unwrap();
        let answer = operation["responses"].get(status.to_string());
        let answer = answer.unwrap_or_else(|| panic!("{id} does not say that it answers {status}"));
        self.asked.borrow_mut().insert(id.to_owned());
        resolve(&self.document, answer).clone()
    }

    fn send(&self, method: &str, path: &str, headers: &[&str], body: &Value) -> Answer {
        let (plain, query) = path.split_once('?').unwrap_or((path, ""));
        let operation = self.find(method, plain);
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let parameters: Vec<_> =
            parameters.iter().map(|parameter| resolve(&self.document, parameter).clone()).collect();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap();
            let parameter = parameters.iter().find(|parameter| parameter["in"] == "query" && parameter["name"] == name);
            let parameter = parameter.unwrap_or_else(|| panic!("{method} {path}: `{name}` is not in the document"));
            let value = value.parse::<u64>().map_or_else(|_| json!(value), |number| json!(number));
            assert_eq!(self.wrong(&parameter["schema"], &value), None);
        }
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = send(self.control, &method.to_uppercase(), path, headers, &text);
        if (200..300).contains(&answer.status) && !body.is_null() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            assert_eq!(self.wrong(schema, body), None, "{method} {path} took it");
        }
        let described = self.described(operation, answer.status);
        let content = described["content"].as_object();
        let kind = answer.header("content-type").split(';').next().unwrap_or_default().trim().to_owned();
        match content {
            None => assert_eq!(answer.body, "", "{method} {path}: {answer:?}"),
            Some(content) => {
                let form = content.get(&kind).unwrap_or_else(|| panic!("{method} {path} answers with {kind}"));
                if kind == "application/json" {
                    assert_eq!(self.wrong(&form["schema"], &answer.json()), None, "{method} {path} {}", answer.status);
                }
            }
        }
        answer
    }

    fn get(&self, path: &str) -> Answer {
        self.send("get", path, &[], &Value::Null)
    }

    fn ok(&self, status: u16, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.send(method, path, &[], body);
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap_or_default()
    }

    /// The first event of a stream.
    fn stream(&self, path: &str, first: &str) {
        let operation = self.find("get", path);
        let mut stream = TcpStream::connect(self.control).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: test\r\naccept: text/event-stream\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        let mut chunk = [0; 4096];
        while !text.contains("\ndata:") {
            let read = stream.read(&mut chunk).unwrap();
            assert!(read > 0, "{path}: {text}");
            text += &String::from_utf8_lossy(&chunk[..read]);
        }
        let described = self.described(operation, 200);
        let content = &described["content"];
        assert!(text.contains("content-type: text/event-stream") && content["text/event-stream"].is_object(), "{text}");
        assert!(text.contains(&format!("event: {first}")), "{path}: {text}");
        let named = content["text/event-stream"]["schema"]["description"].as_str().unwrap();
        assert!(named.contains(&format!("`{first}`")), "{path}: {named}");
    }
}

#[test]
fn what_control_answers_is_what_the_document_says() {
    let site = Site::new(FILE);
    let _control = site.control();
    let order = Participant::start(|seen| match &*seen.path {
        "/pay" | "/reports" => (200, "{\"paid\": true}".into()),
        _ => (404, "never heard of it".into()),
    });
    let asking = Asking { control: site.control, document: document(), asked: RefCell::default() };
    for path in
        ["/healthz", "/readyz", "/metrics", "/v1/openapi.json", "/v1/subscribers", "/v1/store", "/v1/store/snapshot"]
    {
        assert_eq!(asking.get(path).status, 200, "{path}");
    }
    assert_eq!(asking.get("/v1/openapi.json").json(), asking.document, "it is served as it is");

    registry(&asking, order.addr);
    sessions_and_locks(&asking);
    latches_and_barriers(&asking);
    elections(&asking);
    jobs(&asking);
    sagas(&asking);

    let asked = asking.asked.borrow();
    let all = operations(&asking.document);
    let unasked: Vec<_> = all.iter().map(|(.., operation)| operation["operationId"].as_str().unwrap()).collect();
    let unasked: Vec<_> = unasked.into_iter().filter(|id| !asked.contains(*id)).collect();
    assert!(unasked.is_empty(), "nobody has asked for {unasked:?}");
}

fn registry(asking: &Asking, order: SocketAddr) {
    let instance =
        json!({ "id": "o", "address": order.ip(), "port": order.port(), "zone": "eu", "metadata": { "a": "b" } });
    let path = "/v1/services/order/instances/o";
    asking.ok(200, "put", path, &instance);
    asking.ok(400, "put", "/v1/services/order/instances/p", &instance);
    asking.ok(422, "put", path, &json!({ "id": "o", "address": "10.0.0.1", "port": 1, "colour": "red" }));
    asking.ok(204, "post", &format!("{path}/heartbeat"), &Value::Null);
    asking.ok(404, "post", "/v1/services/order/instances/p/heartbeat", &Value::Null);
    asking.ok(200, "put", &format!("{path}/status?wait=applied&timeout=1s"), &json!({ "status": "up" }));
    asking.ok(400, "put", "/v1/services/O_/instances/o/status", &json!({ "status": "up" }));
    asking.ok(200, "get", "/v1/services", &Value::Null);
    asking.ok(200, "get", "/v1/services/order", &Value::Null);
    asking.ok(404, "get", "/v1/services/nobody", &Value::Null);
    asking.stream("/v1/watch", "snapshot");
    asking.ok(404, "post", "/v1/watch/ack?subscriber=me&revision=1", &Value::Null);
    asking.ok(204, "delete", "/v1/watch?subscriber=me", &Value::Null);
    asking.ok(200, "put", "/v1/services/order/instances/q", &json!({ "id": "q", "address": "10.0.0.1", "port": 1 }));
    asking.ok(200, "delete", "/v1/services/order/instances/q", &Value::Null);
    asking.ok(200, "get", "/v1/policies", &Value::Null);
}

fn session(asking: &Asking, owner: &str) -> String {
    let opened = asking.ok(201, "post", "/v1/sessions", &json!({ "ttl": "30s", "owner": owner }));
    opened["session"].as_str().unwrap().to_owned()
}

fn sessions_and_locks(asking: &Asking) {
    asking.ok(400, "post", "/v1/sessions", &json!({ "ttl": "0s", "owner": "a" }));
    asking.ok(422, "post", "/v1/sessions", &json!({ "ttl": "30s" }));
    let (a, b) = (session(asking, "a"), session(asking, "b"));
    asking.ok(200, "post", &format!("/v1/sessions/{a}/keep-alive"), &Value::Null);
    asking.ok(400, "post", "/v1/sessions/none/keep-alive", &Value::Null);
    let (first, second) = (Token::random(), Token::random());
    let claim = |token: &Token| format!("/v1/locks/x/claims/{token}");
    let of = |session: &str| json!({ "session": session, "info": "report", "delay": "1s" });
    asking.ok(200, "put", &claim(&first), &of(&a));
    asking.ok(409, "put", &claim(&second), &of(&b));
    asking.ok(408, "put", &format!("{}?wait=50ms", claim(&second)), &of(&b));
    asking.ok(200, "get", &format!("{}?session={a}&until=gone&wait=10ms", claim(&first)), &Value::Null);
    asking.ok(404, "get", &format!("{}?session={b}", claim(&Token::random())), &Value::Null);
    asking.ok(400, "put", "/v1/locks/x/claims/1", &of(&a));
    asking.ok(400, "put", &claim(&Token::random()), &json!({ "session": a, "priority": 3 }));
    asking.ok(200, "get", "/v1/locks", &Value::Null);
    asking.stream("/v1/locks", "lock");
    asking.ok(200, "get", "/v1/locks/x/explain", &Value::Null);
    asking.ok(200, "get", "/v1/deadlocks", &Value::Null);
    asking.ok(204, "post", &format!("{}/downgrade", claim(&first)), &json!({ "session": a }));
    asking.ok(409, "post", &format!("{}/downgrade", claim(&Token::random())), &json!({ "session": a }));
    // Behind the one that would have been alone and has given up, whose place is kept for a moment.
    let reads = format!("{}?wait=20s", claim(&Token::random()));
    asking.ok(200, "put", &reads, &json!({ "session": b, "kind": "read" }));
    asking.ok(200, "get", "/v1/locks/x", &Value::Null);
    asking.ok(204, "delete", &format!("{}?session={a}", claim(&first)), &Value::Null);
    asking.ok(409, "delete", &format!("{}?session={a}", claim(&first)), &Value::Null);
    let permits = json!({ "session": a, "kind": { "permits": { "limit": 5, "take": 2 } } });
    asking.ok(200, "put", &format!("/v1/locks/p/claims/{}", Token::random()), &permits);
    asking.ok(200, "post", "/v1/locks/p/force", &json!({ "by": "ann", "why": "it hangs" }));
    asking.ok(404, "post", "/v1/locks/p/force", &json!({ "by": "ann" }));
    asking.ok(200, "get", "/v1/locks/p", &Value::Null);
    asking.ok(200, "get", "/v1/locks/p/explain", &Value::Null);
    asking.ok(204, "delete", &format!("/v1/sessions/{b}"), &Value::Null);
    asking.ok(410, "put", &claim(&Token::random()), &of(&b));
    asking.stream(&format!("/v1/sessions/{a}/stream"), "bound");
}

fn latches_and_barriers(asking: &Asking) {
    let a = session(asking, "a");
    let token = Token::random();
    asking.ok(404, "get", "/v1/latches/l", &Value::Null);
    let claim = format!("/v1/latches/l/claims/{token}");
    asking.ok(409, "put", &format!("{claim}/value"), &json!({ "session": a, "value": "7" }));
    asking.ok(200, "put", &claim, &json!({ "session": a }));
    asking.ok(200, "get", &format!("{claim}?session={a}"), &Value::Null);
    asking.ok(204, "put", &format!("{claim}/value"), &json!({ "session": a, "value": "7" }));
    asking.ok(200, "get", "/v1/latches/l", &Value::Null);
    asking.ok(204, "delete", &format!("{claim}?session={a}"), &Value::Null);
    asking.ok(409, "delete", &format!("{claim}?session={a}"), &Value::Null);
    asking.ok(204, "delete", "/v1/latches/l", &Value::Null);

    asking.ok(404, "get", "/v1/barriers/b", &Value::Null);
    let party = format!("/v1/barriers/b/parties/{token}");
    let step = |step: &str, parties: u32| json!({ "session": a, "parties": parties, "step": step });
    asking.ok(408, "put", &format!("{party}?wait=50ms"), &step("enter", 2));
    asking.ok(200, "get", "/v1/barriers/b", &Value::Null);
    asking.ok(204, "delete", &format!("{party}?session={a}"), &Value::Null);
    asking.ok(400, "put", &party, &step("enter", 0));
}

fn elections(asking: &Asking) {
    let (a, b) = (session(asking, "a"), session(asking, "b"));
    let (first, second) = (Token::random(), Token::random());
    let candidate = |token: &Token| format!("/v1/elections/e/candidates/{token}");
    asking.ok(200, "get", "/v1/elections/e", &Value::Null);
    asking.stream("/v1/elections/e/observe", "nobody");
    asking.ok(200, "put", &candidate(&first), &json!({ "session": a, "info": "10.0.0.1", "priority": -2 }));
    asking.stream("/v1/elections/e/observe", "leader");
    asking.stream("/v1/elections", "election");
    asking.ok(409, "put", &candidate(&second), &json!({ "session": b }));
    asking.ok(204, "put", &format!("{}/info", candidate(&first)), &json!({ "session": a, "info": "10.0.0.2" }));
    asking.ok(409, "put", &format!("{}/info", candidate(&second)), &json!({ "session": b, "info": "10.0.0.2" }));
    asking.ok(200, "get", &format!("{}?session={a}", candidate(&first)), &Value::Null);
    asking.ok(200, "get", "/v1/elections", &Value::Null);
    asking.ok(200, "get", "/v1/elections/e?seen=1-1&wait=1s", &Value::Null);
    asking.ok(400, "get", "/v1/elections/%00", &Value::Null);
    let hand = |to: &str| json!({ "session": a, "to": to });
    asking.ok(404, "post", &format!("{}/hand-over", candidate(&first)), &hand("b"));
    let third = Token::random();
    asking.ok(408, "put", &format!("{}?wait=50ms", candidate(&third)), &json!({ "session": b }));
    // Its place is kept for a moment.
    let handed = asking.send("post", &format!("{}/hand-over", candidate(&first)), &[], &hand("b"));
    assert!([200, 404].contains(&handed.status), "{handed:?}");
    let force = asking.send("post", "/v1/elections/e/force", &[], &json!({ "by": "ann", "why": "it hangs" }));
    assert!([200, 404].contains(&force.status), "{force:?}");
    asking.ok(200, "get", "/v1/elections/e", &Value::Null);
    let gone = asking.send("delete", &format!("{}?session={a}", candidate(&second)), &[], &Value::Null);
    assert_eq!(gone.status, 409);
}

fn jobs(asking: &Asking) {
    asking.ok(404, "get", "/v1/traffic/order", &Value::Null);
    asking.ok(409, "post", "/v1/traffic/order/rollback", &json!({}));
    let order = json!({ "shares": { "order": 9, "order-canary": 1 }, "by": "ann", "why": "try", "shift": "7" });
    asking.ok(200, "put", "/v1/traffic/order", &order);
    asking.ok(400, "put", "/v1/traffic/order", &json!({ "shares": { "order": 0 } }));
    let version = asking.ok(200, "get", "/v1/traffic", &Value::Null)["version"].as_str().unwrap().to_owned();
    asking.ok(200, "get", &format!("/v1/traffic?after={version}&wait=50ms"), &Value::Null);
    let back = asking.ok(200, "post", "/v1/traffic/order/rollback", &json!({ "by": "ann" }));
    assert_eq!(back["shares"], Value::Null);
    asking.ok(409, "post", "/v1/traffic/order/rollback", &json!({}));
    asking.ok(200, "get", "/v1/traffic/order", &Value::Null);

    let job = json!({ "when": "at 2999-01-01T00:00:00Z", "call": "POST order/reports", "alarm_after": "1h" });
    asking.ok(201, "put", "/v1/cron/nightly", &job);
    asking.ok(200, "put", "/v1/cron/nightly", &job);
    asking.ok(400, "put", "/v1/cron/nightly", &json!({ "when": "never", "call": "POST order/reports" }));
    asking.ok(200, "get", "/v1/cron", &Value::Null);
    asking.ok(404, "get", "/v1/cron/weekly", &Value::Null);
    let ordered = asking.send("post", "/v1/cron/nightly/runs?wait=30s", &[], &Value::Null);
    assert!([201, 202].contains(&ordered.status), "{ordered:?}");
    let run = ordered.json()["id"].as_str().unwrap().to_owned();
    asking.ok(200, "get", &format!("/v1/cron/nightly/runs/{run}?wait=30s"), &Value::Null);
    asking.ok(200, "get", "/v1/cron/nightly/runs?limit=5", &Value::Null);
    asking.ok(200, "get", "/v1/cron/nightly", &Value::Null);
    asking.ok(204, "delete", "/v1/cron/nightly", &Value::Null);

    let path = "/v1/queues/mails/jobs/m1";
    asking.ok(201, "put", path, &json!({ "data": { "to": "ann" }, "max_attempts": 1 }));
    asking.ok(200, "put", path, &json!({ "data": { "to": "ann" }, "max_attempts": 1 }));
    asking.ok(422, "put", path, &json!({ "data": { "to": "bob" } }));
    asking.ok(200, "get", path, &Value::Null);
    asking.ok(200, "get", "/v1/queues", &Value::Null);
    asking.ok(200, "get", "/v1/queues/mails/jobs?state=pending&limit=5", &Value::Null);
    let claim = |asking: &Asking| {
        let claimed = asking.ok(200, "post", "/v1/queues/mails/claim", &json!({ "worker": "w", "ttl": "30s" }));
        json!({ "claim": claimed["claim"] })
    };
    let mut claimed = claim(asking);
    asking.ok(204, "post", "/v1/queues/mails/claim", &json!({ "worker": "w", "ttl": "30s" }));
    asking.ok(200, "post", &format!("{path}/keep-alive"), &claimed);
    claimed["error"] = json!("no such address");
    claimed["retry"] = json!(false);
    asking.ok(200, "post", &format!("{path}/fail"), &claimed);
    asking.ok(410, "post", &format!("{path}/keep-alive"), &json!({ "claim": claimed["claim"] }));
    asking.ok(204, "post", &format!("{path}/retry"), &Value::Null);
    let mut claimed = claim(asking);
    claimed["result"] = json!({ "sent": true });
    asking.ok(204, "post", &format!("{path}/complete"), &claimed);
    asking.ok(404, "get", "/v1/queues/mails/jobs/m2", &Value::Null);
    asking.ok(201, "put", "/v1/queues/mails/jobs/m3", &json!({ "data": 3 }));
    asking.ok(404, "delete", "/v1/queues/mails/jobs/m3", &Value::Null);
    let mut claimed = claim(asking);
    claimed["error"] = json!("no such address");
    claimed["retry"] = json!(false);
    asking.ok(200, "post", "/v1/queues/mails/jobs/m3/fail", &claimed);
    asking.ok(204, "delete", "/v1/queues/mails/jobs/m3", &Value::Null);
}

fn sagas(asking: &Asking) {
    assert_eq!(asking.send("post", "/v1/sagas/buy", &[], &json!({ "what": 1 })).status, 400);
    let key = ["idempotency-key: k1"];
    let started = asking.send("post", "/v1/sagas/buy?wait=30s", &key, &json!({ "what": 1 }));
    assert_eq!(started.status, 201, "{started:?}");
    assert_eq!(asking.send("post", "/v1/sagas/buy", &key, &json!({ "what": 2 })).status, 422);
    let id = started.json()["id"].as_str().unwrap().to_owned();
    asking.ok(200, "get", &format!("/v1/sagas/{id}"), &Value::Null);
    asking.ok(404, "get", "/v1/sagas/none", &Value::Null);
    asking.ok(200, "get", "/v1/sagas?status=completed&limit=3", &Value::Null);
    // It has called the service, so there is a breaker.
    assert_eq!(asking.send("post", "/v1/policies/order/breaker/forced-open", &[], &Value::Null).status, 200);
    assert_eq!(asking.send("post", "/v1/policies/order/breaker/closed", &[], &Value::Null).status, 200);
    assert_eq!(asking.send("post", "/v1/policies/order/breaker/ajar", &[], &Value::Null).status, 400);
}

/// The three lines of shell in the document on coordination, against a real control node.
#[test]
fn the_documented_shell_works() {
    let document = include_str!("../../../../docs/coordination.md");
    let script = document.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let site = Site::new(FILE);
    let _control = site.control();
    let script = format!("set -eu\n{}", script.replace("127.0.0.1:7400", &site.control.to_string()));
    let held = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(held.status.success(), "{held:?}");
    let answer: Value = serde_json::from_slice(&held.stdout).unwrap();
    assert_eq!(answer["held"], true, "{held:?}");
    assert_eq!(get(site.control, "/v1/locks").json(), json!([]), "the session has ended");
}
