//! The tables of keys in `docs/resilience.md` beside the code: no key is missing, none is made up, and every default is
//! the one that holds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use schemars::{JsonSchema, schema_for};
use seawall_resilience::PolicyConfig;
use seawall_resilience::pool::PoolConfig;
use serde_json::{Value, json};

/// What the document says: `key -> default`, from every row that begins with a key.
fn documented() -> BTreeMap<String, String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/resilience.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut keys = BTreeMap::new();
    let mut in_table = false;
    for line in text.lines() {
        in_table = line == "| key | default | range | |" || (in_table && line.starts_with('|'));
        let Some(row) = line.strip_prefix("| `").filter(|_| in_table) else { continue };
        let (key, rest) = row.split_once("` | ").unwrap();
        let (default, _) = rest.split_once(" | ").unwrap();
        let before = keys.insert(key.to_owned(), default.to_owned());
        assert_eq!(before, None, "`{key}` is there twice");
    }
    keys
}

/// Every key that a type takes, by its path.
fn keys_of<T: JsonSchema>() -> BTreeSet<String> {
    let schema = schema_for!(T).to_value();
    let mut found = BTreeSet::new();
    collect(&schema, &schema, "", &mut found);
    found
}

fn collect(root: &Value, schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let referred = |schema: &Value| {
        let name = schema["$ref"].as_str()?.strip_prefix("#/$defs/")?.to_owned();
        Some(root["$defs"][name].clone())
    };
    let schema = referred(schema).unwrap_or_else(|| schema.clone());
    // An `Option` of a block is that block or null.
    let blocks = schema["anyOf"].as_array().cloned().unwrap_or_default();
    let block = blocks.iter().filter_map(referred).find(|block| block["properties"].is_object());
    let schema = block.unwrap_or(schema);
    match schema["properties"].as_object() {
        Some(properties) => {
            for (name, below) in properties {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect(root, below, &path, found);
            }
        }
        None => drop(found.insert(path.to_owned())),
    }
}

#[test]
fn no_key_is_missing_and_none_is_made_up() {
    let mut real = keys_of::<PolicyConfig>();
    assert!(real.len() > 50, "{real:?}");
    // Templates have a chapter of their own.
    assert!(real.remove("extends"));
    real.extend(keys_of::<PoolConfig>().iter().map(|key| format!("pool.{key}")));
    let documented: BTreeSet<String> = documented().into_keys().collect();
    let missing: Vec<_> = real.difference(&documented).collect();
    let made_up: Vec<_> = documented.difference(&real).collect();
    assert!(missing.is_empty() && made_up.is_empty(), "missing: {missing:?}, made up: {made_up:?}");
}

/// Puts a value at a path.
fn with(mut value: Value, path: &str, put: Value) -> Value {
    *path.split('.').fold(&mut value, |below, key| &mut below[key]) = put;
    value
}

/// Defaults that are not a value: they depend on something, or there is nothing.
const WORDS: [&str; 19] = [
    "what is left of `timeout`",
    "no limit",
    "the rate's count",
    "no bound",
    "none is slow",
    "`slow_call`, or 1s",
    "5m, or `open_for`",
    "`open_for`, or twice `slow_call`",
    "as above",
    "as `concurrent`",
    "as `normal`",
    "as `high`",
    "as `critical`",
    "on if any other is given",
    "1000, or `min`",
    "`concurrent`, or 20",
    "dropped calls alone",
    "drawn, and shown",
    "kept",
];

/// To write a default down changes nothing; with all that is off by default switched on.
#[test]
fn every_default_is_the_one_that_holds() {
    let base = json!({
        "rate_limit": { "rate": "100/s" },
        "hedge": { "enabled": true },
        "throttle": { "enabled": true },
        "breaker": { "watch": {} },
        "bulkhead": { "adaptive": { "enabled": true } },
        "chaos": { "fault": "1%", "seed": 1 },
    });
    let complete = |value: Value| {
        let policy: PolicyConfig = serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"));
        assert_eq!(policy.problems(), [], "{value}");
        policy.complete()
    };
    let mut checked = 0;
    for (key, default) in documented() {
        if WORDS.contains(&default.as_str()) {
            continue;
        }
        let value = || serde_json::from_str(&default).unwrap_or_else(|_| json!(default));
        if let Some(key) = key.strip_prefix("pool.") {
            if default != "one for each processor" {
                let pool: PoolConfig = serde_json::from_value(json!({ key: value() })).unwrap();
                assert_eq!(pool.resolve(), PoolConfig::default().resolve(), "pool.{key}: {default}");
                checked += 1;
            }
            continue;
        }
        // Where the base has to say something itself, another part says it.
        let base = match key.as_str() {
            "chaos.fault" => with(base.clone(), "chaos", json!({ "latency": { "share": "1%" } })),
            // An adaptive limit begins elsewhere.
            "bulkhead.concurrent" => with(base.clone(), "bulkhead", json!({})),
            _ => base.clone(),
        };
        assert_eq!(complete(with(base.clone(), &key, value())), complete(base), "{key}: {default}");
        checked += 1;
    }
    assert!(checked >= 40, "only {checked} were checked");
}

/// The defaults that follow from others.
#[test]
fn defaults_that_depend_on_others_do_so_as_written() {
    let complete = |value: Value| serde_json::from_value::<PolicyConfig>(value).unwrap().complete();
    let same = |one: Value, other: Value| assert_eq!(complete(one.clone()), complete(other.clone()), "{one} {other}");
    let breaker = |value: Value| json!({ "breaker": value });
    same(breaker(json!({})), breaker(json!({ "cancelled_after": "1s", "max_open_for": "5m", "probe_lease": "10s" })));
    same(
        breaker(json!({ "slow_call": "2s", "open_for": "3s" })),
        breaker(json!({ "slow_call": "2s", "open_for": "3s", "cancelled_after": "2s", "probe_lease": "4s" })),
    );
    same(breaker(json!({ "open_for": "9m" })), breaker(json!({ "open_for": "9m", "max_open_for": "9m" })));
    let watch = json!({ "failure_rate": "50%", "slow_rate": "100%", "minimum_calls": 20 });
    same(breaker(json!({ "watch": {} })), breaker(json!({ "watch": watch })));
    let bulkhead = |value: Value| json!({ "bulkhead": value });
    same(bulkhead(json!({ "concurrent": 7 })), bulkhead(json!({ "concurrent": 7, "queue": 7 })));
    same(
        bulkhead(json!({ "shares": { "high": "90%", "normal": "80%" } })),
        bulkhead(json!({ "shares": { "critical": "100%", "high": "90%", "normal": "80%", "low": "80%" } })),
    );
    let adaptive = |value: Value| bulkhead(json!({ "adaptive": value }));
    same(adaptive(json!({ "min": 2000 })), adaptive(json!({ "min": 2000, "max": 2000, "initial": 2000 })));
    same(adaptive(json!({ "min": 2 })), adaptive(json!({ "min": 2, "max": 1000, "initial": 20 })));
    same(
        bulkhead(json!({ "concurrent": 30, "adaptive": { "max": 90 } })),
        bulkhead(json!({ "concurrent": 30, "queue": 90, "adaptive": { "max": 90, "initial": 30 } })),
    );
    let rate = |value: Value| json!({ "rate_limit": value });
    same(rate(json!({ "rate": "30/s" })), rate(json!({ "rate": "30/s", "burst": 30 })));
}
