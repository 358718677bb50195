//! Policies through the real binary: reloaded under load, looked at, overruled by hand, and refused when they are wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::support::*;

const FILE: &str = "
control: { listen: CONTROL, ttl: 10m }
policies:
  default: { timeout: 3s, retry: { attempts: 1 } }
  careful: { breaker: { window: 10 calls, minimum_calls: 3, open_for: 5m }, bulkhead: { concurrent: 40 } }
  payment: { extends: careful }
gateways:
  public:
    listen: GATEWAY
    admin: ADMIN
    routes:
      - id: payment
        match: { path: /payment/** }
        to: payment
        fallback: { status: 203, text: paid later }
      - { id: order, match: { path: /order/** }, to: order }
services: { payment: {}, order: {} }
";

/// A site whose gateway's admin address is known, and its file.
fn site() -> (Site, std::net::SocketAddr, String) {
    let admin = free_addr();
    let site = Site::new(&FILE.replace("ADMIN", &admin.to_string()));
    let text = std::fs::read_to_string(site.dir.path().join("seawall.yaml")).unwrap();
    (site, admin, text)
}

fn write(site: &Site, text: &str) {
    // In one step: whoever reads it sees the old one or the new one.
    let new = site.dir.path().join("new.yaml");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, site.dir.path().join("seawall.yaml")).unwrap();
}

/// A service with a status that can be changed.
fn service(status: u16) -> (Participant, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(status));
    let current = status.clone();
    (Participant::start(move |_| (current.load(Ordering::SeqCst), "real".into())), status)
}

fn guard(admin: std::net::SocketAddr, service: &str) -> Value {
    let all = get(admin, "/v1/policies").json();
    let guards = all["guards"].as_array().unwrap();
    guards.iter().find(|guard| guard["service"] == service).cloned().unwrap_or_default()
}

fn text(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Fails often enough for the breaker to open.
fn trip(site: &Site) {
    let trace = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01");
    until("the breaker is open", || {
        let answer = send(site.gateway, "GET", "/payment/x", &[&trace], "");
        assert!([203, 503].contains(&answer.status), "{answer:?}");
        answer.status == 203 && answer.header("seawall-rejected").starts_with("breaker")
    });
}

#[test]
fn a_reload_under_load_loses_nothing() {
    let (site, admin, yaml) = site();
    let (payment, status) = service(503);
    let (order, _) = service(200);
    let up = site.start(&["up", "seawall.yaml"]);
    until("control is ready", || get(site.control, "/readyz").status == 200);
    site.register("payment", "p", payment.addr);
    site.register("order", "o", order.addr);
    until("the gateway knows them", || get(site.gateway, "/order/x").status == 200);
    until("both", || get(site.gateway, "/payment/x").status == 503);
    trip(&site);
    status.store(200, Ordering::SeqCst);

    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, sent, gateway) = (stop.clone(), sent.clone(), site.gateway);
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let answer = get(gateway, "/order/x");
                    assert_eq!((answer.status, &*answer.body), (200, "real"), "{answer:?}");
                    let answer = get(gateway, "/payment/x");
                    assert_eq!(
                        (answer.status, &*answer.body),
                        (203, "paid later"),
                        "the breaker stays open: {answer:?}"
                    );
                    sent.fetch_add(2, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for round in 0..8 {
        let places = 50 + round;
        write(&site, &yaml.replace("concurrent: 40", &format!("concurrent: {places}")));
        let output = site.run(&["reload"]);
        assert!(output.status.success() && text(&output).contains("gateway public"), "{}", text(&output));
        until("the gateway has read it", || guard(admin, "payment")["bulkhead"]["limit"] == places);
    }
    let enough = sent.load(Ordering::SeqCst) + 100;
    until("the load went on", || sent.load(Ordering::SeqCst) >= enough);
    stop.store(true, Ordering::SeqCst);
    for thread in load {
        thread.join().unwrap();
    }
    let payment = guard(admin, "payment");
    assert_eq!((&payment["breaker"]["state"], &payment["bulkhead"]["in_use"]), (&"open".into(), &0.into()));

    // What is wrong reaches nobody.
    write(&site, &yaml.replace("minimum_calls: 3", "minimum_calls: 300"));
    let output = site.run(&["reload"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in ["seawall.yaml:5:", "policies.careful.breaker.minimum_calls", "more than the window of 10 calls"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(guard(admin, "payment")["bulkhead"]["limit"], 57);
    // But what runs can still be looked at, and given orders.
    for command in [&["status"][..], &["policies", "payment"], &["breaker", "payment", "open"]] {
        let output = site.run(command);
        let said = text(&output);
        assert!(output.status.success() && said.contains("seawall.yaml has mistakes"), "{command:?}: {said}");
    }
    assert!(!up.log().contains("stay as they were"), "nobody was asked");
    assert!(up.stop().success());

    write(&site, &yaml);
    let output = site.run(&["reload"]);
    assert!(
        output.status.code() == Some(1) && text(&output).contains("no `seawall up` is running"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_bad_file_at_sighup_leaves_the_policies_at_work() {
    let (site, admin, yaml) = site();
    let (payment, _) = service(503);
    let _control = site.control();
    site.register("payment", "p", payment.addr);
    let gateway = site.start(&["gateway", "public"]);
    until("it serves", || get(site.gateway, "/payment/x").status == 503);
    trip(&site);
    for (bad, part) in [
        (yaml.replace("open_for: 5m", "open_for: 5"), "write the unit: `5s`"),
        (yaml.replace("extends: careful", "extends: nobody"), "names no policy: `nobody`"),
        ("policies: [".to_owned(), "not YAML"),
        (String::from("policies: { payment: { breakr: {} } }"), "breaker"),
    ] {
        write(&site, &bad);
        signal(gateway.child.id(), Signal::HUP);
        until("it says what is wrong", || {
            let log = gateway.log();
            log.contains("policies stay as they were") && log.contains(part)
        });
        assert_eq!(get(site.gateway, "/payment/x").status, 203, "still open");
        assert_eq!(guard(admin, "payment")["bulkhead"]["limit"], 40);
    }
    write(&site, &yaml.replace("concurrent: 40", "concurrent: 41"));
    signal(gateway.child.id(), Signal::HUP);
    until("the next good one is taken", || guard(admin, "payment")["bulkhead"]["limit"] == 41);
    assert_eq!(get(site.gateway, "/payment/x").status, 203, "still open");
    assert!(gateway.stop().success());
}

#[test]
fn an_operator_sees_why_and_overrules() {
    let (site, admin, _) = site();
    let (payment, status) = service(503);
    let _control = site.control();
    site.register("payment", "p", payment.addr);
    let gateway = site.start(&["gateway", "public"]);
    until("it serves", || get(site.gateway, "/payment/x").status == 503);
    trip(&site);
    let admin_text = admin.to_string();
    let run = |args: &[&str]| {
        let args: Vec<&str> = args.iter().copied().chain(["--admin", &admin_text]).collect();
        let output = site.run(&args);
        (output.status.code(), text(&output))
    };

    let (code, table) = run(&["policies"]);
    let line = table.lines().find(|line| line.contains("payment")).unwrap_or_else(|| panic!("{table}"));
    assert!(code == Some(0) && line.contains(" open ") && line.contains("0/40"), "{table}");
    let (code, why) = run(&["policies", "payment"]);
    assert!(code == Some(0) && why.contains("status 503") && why.contains(&format!("trace {TRACE}")), "{why}");
    let (_, json) = run(&["policies", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let guards = json[&admin_text]["guards"].as_array().unwrap();
    let breaker = &guards.iter().find(|guard| guard["service"] == "payment").unwrap()["breaker"];
    assert_eq!(breaker["state"], "open", "{json}");
    let bad = breaker["bad_calls"].as_array().unwrap();
    assert!(bad.iter().any(|call| call["trace"] == TRACE && call["cause"] == "status 503"), "{json}");

    // Closed by hand they get through, although the wait is not over.
    status.store(200, Ordering::SeqCst);
    let (code, said) = run(&["breaker", "payment", "closed"]);
    assert!(code == Some(0) && said.contains("the breaker of `payment` is closed"), "{said}");
    let answer = get(site.gateway, "/payment/x");
    assert_eq!((answer.status, &*answer.body), (200, "real"));
    // Forced open they get the fallback at once, although the service is well.
    assert_eq!(run(&["breaker", "payment", "forced-open"]).0, Some(0));
    let (seen, started) = (payment.seen().len(), Instant::now());
    for _ in 0..20 {
        let answer = get(site.gateway, "/payment/x");
        assert_eq!((answer.status, &*answer.body), (203, "paid later"), "{answer:?}");
        assert!(answer.header("seawall-rejected").starts_with("breaker;"), "{answer:?}");
        assert_eq!(answer.header("retry-after"), "", "nobody knows until when");
    }
    assert_eq!(payment.seen().len(), seen);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(run(&["policies"]).1.contains(" forced-open "));
    assert_eq!(run(&["breaker", "payment", "closed"]).0, Some(0));
    assert_eq!(get(site.gateway, "/payment/x").status, 200);

    for (args, code, part) in [
        (&["breaker", "nobody", "closed"][..], 1, "no breaker of `nobody`: it has not been called"),
        (&["breaker", "payment", "half-open"], 2, "forced-open, metrics-only"),
        (&["breaker", "payment", "banana"], 2, "forced-open, metrics-only"),
        (&["policies", "nobody"], 1, "nobody"),
        (&["breaker", "../..", "closed"], 1, "no breaker of `../..`"),
        (&["breaker", "", "closed"], 1, "no breaker of ``"),
        (&["breaker", "a b?c#d%00", "closed"], 1, "no breaker of"),
    ] {
        let (exit, said) = run(args);
        assert!(exit == Some(code) && said.contains(part), "{args:?}: {exit:?} {said}");
    }
    let silent = free_addr().to_string();
    for args in [&["policies", "--admin", &silent][..], &["breaker", "payment", "open", "--admin", &silent]] {
        let output = site.run(args);
        let said = text(&output);
        assert!(output.status.code() == Some(1) && said.contains(&silent), "{args:?}: {said}");
    }
    let output = site.run(&["policies"]);
    assert!(!output.status.success() && text(&output).contains("no `seawall up` is running"), "{}", text(&output));
    assert!(gateway.stop().success());
}

/// What is wrong for each kind of value, beside what is said of it.
const PERIODS: [(&str, &str); 9] = [
    ("-5s", "duration"),
    ("5", "write the unit"),
    ("'5'", "no unit"),
    ("5 parsecs", "duration"),
    (".nan", "duration"),
    (".inf", "duration"),
    ("9000h", "longer than a year"),
    ("99999999999999999999h", "duration"),
    ("[5s]", "duration"),
];
const SHARES: [(&str, &str); 9] = [
    ("-1%", "from `0%` to `100%`"),
    ("101%", "from `0%` to `100%`"),
    ("-0.1", "from 0 to 1"),
    ("50", "write `50%`"),
    (".nan", "from `0%` to `100%`"),
    ("-.inf", "from `0%` to `100%`"),
    ("NaN%", "from `0%` to `100%`"),
    ("1e400", "from `0%` to `100%`"),
    ("much", "from `0%` to `100%`"),
];

/// Every key of a policy that takes a time, and whether zero is one.
const TIMES: [(&str, bool); 19] = [
    ("timeout", false),
    ("attempt_timeout", false),
    ("rate_limit.wait", true),
    ("retry.backoff", true),
    ("retry.max_backoff", true),
    ("hedge.delay", false),
    ("hedge.delay_floor", true),
    ("throttle.window", false),
    ("breaker.window", false),
    ("breaker.slow_call", false),
    ("breaker.cancelled_after", false),
    ("breaker.open_for", false),
    ("breaker.max_open_for", false),
    ("breaker.probe_lease", false),
    ("bulkhead.wait", true),
    ("bulkhead.adaptive.latency", false),
    ("chaos.latency.by", false),
    ("chaos.latency.jitter", true),
    ("rate_limit.rate", false),
];

/// Every key that takes a share, and whether nothing is one.
const RATIOS: [(&str, bool); 15] = [
    ("retry.budget", true),
    ("hedge.budget", false),
    ("throttle.max_reject", false),
    ("breaker.failure_rate", false),
    ("breaker.slow_rate", false),
    ("breaker.open_jitter", true),
    ("breaker.watch.failure_rate", false),
    ("breaker.watch.slow_rate", false),
    ("bulkhead.shares.low", false),
    ("bulkhead.shares.normal", false),
    ("bulkhead.shares.high", false),
    ("bulkhead.shares.critical", false),
    ("chaos.fault", true),
    ("chaos.latency.share", true),
    ("chaos.status.share", true),
];

/// Every key that takes a number, from and to which.
const NUMBERS: [(&str, u64, u64); 17] = [
    ("rate_limit.burst", 1, 1_000_000),
    ("retry.attempts", 1, 20),
    ("retry.multiplier", 1, 10),
    ("retry.budget_floor", 0, 1000),
    ("retry.chain", 0, 1000),
    ("hedge.minimum_calls", 20, 2000),
    ("hedge.max", 1, 5),
    ("throttle.k", 1, 100),
    ("throttle.minimum_calls", 1, 1_000_000),
    ("breaker.minimum_calls", 1, 10_000),
    ("breaker.watch.minimum_calls", 1, 10_000),
    ("breaker.open_growth", 1, 10),
    ("breaker.half_open_calls", 1, 1000),
    ("bulkhead.concurrent", 1, 1_000_000),
    ("bulkhead.queue", 0, 1_000_000),
    ("bulkhead.adaptive.max", 1, 1_000_000),
    ("chaos.status.code", 200, 599),
];

/// A policy with one key.
fn one(path: &str, value: &str) -> String {
    let keys: Vec<&str> = path.split('.').collect();
    let inner = keys.iter().rev().fold(value.to_owned(), |inner, key| format!("{{ {key}: {inner} }}"));
    format!("policies:\n  default: {inner}\n")
}

#[test]
fn every_value_that_is_out_of_its_range_is_refused_where_it_stands() {
    let mut table: Vec<(String, String, String)> = Vec::new();
    let mut bad =
        |path: &str, value: &str, said: &str| table.push((path.to_owned(), one(path, value), said.to_owned()));
    for (path, zero) in TIMES {
        let plain = !["breaker.window", "rate_limit.rate", "hedge.delay"].contains(&path);
        for (value, said) in PERIODS {
            bad(path, value, if plain { said } else { "" });
        }
        if !zero {
            bad(path, "0s", "");
        }
    }
    for (path, zero) in RATIOS {
        for (value, said) in SHARES {
            bad(path, value, said);
        }
        if !zero {
            bad(path, "0%", "more than 0%");
        }
    }
    for (path, low, high) in NUMBERS {
        let range = format!("{low} to {high}");
        if low > 0 {
            bad(path, &(low - 1).to_string(), &range);
        }
        bad(path, &(high + 1).to_string(), &range);
        for value in ["-1", ".nan", ".inf", "-.inf", "99999999999999999999", "1e300", "much", "[1]", "''"] {
            bad(path, value, &range);
        }
    }
    for (path, value, said) in [
        ("rate_limit.rate", "0/s", "1 to 1000000"),
        ("rate_limit.rate", "1000001/s", "1 to 1000000"),
        ("rate_limit.rate", "99999999999999999999/s", "1 to 1000000"),
        ("rate_limit.rate", "-1/s", "not a rate"),
        ("rate_limit.rate", "1/0s", "1ms to"),
        ("rate_limit.rate", "1/1us", "1ms to"),
        ("rate_limit.rate", "1/721h", "1ms to"),
        ("rate_limit.rate", "100", "write `100/s`"),
        ("rate_limit.wait", "61m", "0s to 1h"),
        ("rate_limit.algorithm", "gcar", "gcra"),
        ("retry.strategy", "exponental", "exponential"),
        ("retry.jitter", "fulll", "full"),
        ("hedge.delay", "p49", "p50 to p99.9"),
        ("hedge.delay", "p100", "not a percentile"),
        ("hedge.delay", "pNaN", "not a percentile"),
        ("hedge.delay", "p-1", "not a percentile"),
        ("throttle.window", "999ms", "1s to 1h"),
        ("throttle.window", "2h", "1s to 1h"),
        ("breaker.window", "0 calls", "`1 calls` to `10000 calls`"),
        ("breaker.window", "10001 calls", "`1 calls` to `10000 calls`"),
        ("breaker.window", "-1 calls", "`1 calls` to `10000 calls`"),
        ("breaker.window", "0 consecutive", "`1 consecutive` to `10000 consecutive`"),
        ("breaker.window", "9ms", "from 10ms to 1h"),
        ("breaker.window", "61m", "from 10ms to 1h"),
        ("breaker.mode", "forced-open", "forced_open"),
        ("breaker.verdict", "most", "rate"),
        ("breaker.semantics", "hystrix", "resilience4j"),
        ("bulkhead.adaptive.algorithm", "vegan", "vegas"),
        ("chaos.latency.by", "61m", "1h"),
        ("chaos.seed", "-1", ""),
        ("breaker.enabled", "maybe", ""),
        ("breaker.retry_after", "2", ""),
        ("extends", "nobody", "names no policy"),
        ("extends", "default", ""),
    ] {
        bad(path, value, said);
    }
    // What contradicts something beside it, and is named where it stands.
    for (path, policy, said) in [
        ("attempt_timeout", "timeout: 1s, attempt_timeout: 2s", "longer than timeout of 1s"),
        ("retry.backoff", "retry: { backoff: 2s, max_backoff: 1s }", "longer than max_backoff of 1s"),
        // The same with what is there by default.
        ("attempt_timeout", "attempt_timeout: 11s", "longer than timeout of 10s"),
        ("retry.backoff", "retry: { backoff: 2s }", "longer than max_backoff of 1s"),
        ("hedge.delay", "hedge: { delay: 500us }", "shorter than delay_floor of 1ms"),
        ("breaker.minimum_calls", "breaker: { minimum_calls: 101 }", "more than the window of 100 calls"),
        ("breaker.open_for", "breaker: { max_open_for: 9s }", "longer than max_open_for of 9s"),
        ("chaos.latency.jitter", "chaos: { latency: { jitter: 1s } }", "longer than by of 100ms"),
        ("retry.multiplier", "retry: { strategy: fixed, multiplier: 2 }", "means nothing here"),
        ("retry.jitter", "retry: { strategy: decorrelated, jitter: full }", "means nothing here"),
        ("hedge.delay", "hedge: { delay: 1ms, delay_floor: 2ms }", "shorter than delay_floor"),
        ("rate_limit.burst", "rate_limit: { rate: 1/h, burst: 10000 }", "more than a year"),
        (
            "breaker.minimum_calls",
            "breaker: { window: 10 calls, minimum_calls: 11 }",
            "more than the window of 10 calls",
        ),
        ("breaker.window", "breaker: { window: 5 consecutive, failure_rate: 50% }", "failures in a row"),
        ("breaker.window", "breaker: { window: 5 consecutive, slow_rate: 50%, slow_call: 1s }", "failures in a row"),
        ("breaker.window", "breaker: { window: 5 consecutive, watch: { failure_rate: 50% } }", "failures in a row"),
        (
            "breaker.watch.minimum_calls",
            "breaker: { watch: { minimum_calls: 101 } }",
            "more than the window of 100 calls",
        ),
        ("retry.backoff", "retry: { max_backoff: 1ms }", "of 25ms is longer than max_backoff of 1ms"),
        ("bulkhead.adaptive.initial", "bulkhead: { adaptive: { initial: 2000 } }", "more than max of 1000"),
        ("bulkhead.adaptive.initial", "bulkhead: { concurrent: 5000, adaptive: { min: 5 } }", "more than max of 1000"),
        ("bulkhead.adaptive.min", "bulkhead: { concurrent: 5, adaptive: { min: 50 } }", "more than initial of 5"),
        ("breaker.slow_call", "breaker: { slow_call: 11s }", "longer than timeout of 10s"),
        ("hedge.delay", "hedge: { delay: 11s }", "longer than timeout of 10s"),
        ("breaker.probe_lease", "breaker: { probe_lease: 1ns }", "1ms to"),
        ("hedge.delay_floor", "hedge: { delay_floor: 1m }", "longer than timeout of 10s"),
        ("retry.backoff", "retry: { backoff: 1h, max_backoff: 2h }", "longer than timeout of 10s"),
        ("hedge.minimum_calls", "hedge: { delay: 5ms, minimum_calls: 50 }", "has no effect without"),
        // What would have no effect.
        ("bulkhead.adaptive.latency", "bulkhead: { adaptive: { latency: 1s } }", "no effect without `algorithm: aimd`"),
        ("bulkhead.wait", "bulkhead: { wait: 1s, queue: 0 }", "`queue` of 0 lets nobody wait"),
        ("bulkhead.queue", "bulkhead: { queue: 5 }", "has no effect without `wait`"),
        // A list is no block of keys, whatever its order.
        ("breaker", "breaker: [false]", "expected a block of keys"),
        ("retry", "retry: [7]", "expected a block of keys"),
        ("chaos.latency", "chaos: { fault: 1%, latency: [] }", "expected a block of keys"),
        ("breaker.slow_rate", "breaker: { slow_rate: 50% }", "has no effect without `slow_call`"),
        (
            "breaker.watch.slow_rate",
            "breaker: { watch: { slow_rate: 50% } }",
            "has no effect without `breaker.slow_call`",
        ),
        ("rate_limit.burst", "rate_limit: { burst: 5 }", "has no effect without `rate`"),
        ("rate_limit.wait", "rate_limit: { wait: 1s }", "has no effect without `rate`"),
        ("chaos.latency.by", "chaos: { latency: { by: 1s } }", "has no effect without `share`"),
        ("chaos.status.code", "chaos: { status: { code: 500 } }", "has no effect without `share`"),
        ("breaker.window", "breaker: { window: 1500ms, semantics: resilience4j }", "whole seconds"),
        ("breaker.open_for", "breaker: { open_for: 2m, max_open_for: 1m }", "longer than max_open_for of 1m"),
        ("bulkhead.shares.low", "bulkhead: { shares: { low: 60%, normal: 50% } }", "more than the 50%"),
        ("bulkhead.adaptive.min", "bulkhead: { adaptive: { min: 9, max: 8 } }", "more than max of 8"),
        ("bulkhead.adaptive.initial", "bulkhead: { adaptive: { initial: 9, max: 8 } }", "more than max of 8"),
        ("chaos.latency.jitter", "chaos: { latency: { by: 1ms, jitter: 2ms } }", "longer than by of 1ms"),
    ] {
        table.push((path.to_owned(), format!("policies:\n  default: {{ {policy} }}\n"), said.to_owned()));
    }
    // A key that there is not, in every part.
    for part in [
        "",
        "rate_limit",
        "retry",
        "hedge",
        "throttle",
        "breaker",
        "breaker.watch",
        "bulkhead",
        "bulkhead.shares",
        "bulkhead.adaptive",
        "chaos",
        "chaos.latency",
        "chaos.status",
    ] {
        let path = if part.is_empty() { "enabeld".to_owned() } else { format!("{part}.enabeld") };
        table.push((path.clone(), one(&path, "true"), "unknown key `enabeld`".to_owned()));
    }

    let site = Site::new("");
    let mut wrong = Vec::new();
    for (number, (path, yaml, part)) in table.iter().enumerate() {
        let name = format!("{number}.yaml");
        std::fs::write(site.dir.path().join(&name), yaml).unwrap();
        let output = site.run(&["config", "check", &name]);
        let said = text(&output);
        let place = format!("policies.default.{path}");
        let good = output.status.code() == Some(2)
            && said.contains(&place)
            && said.contains(&format!("{name}:2:"))
            && said.contains(part.as_str())
            && said.contains("1 mistake;");
        if !good {
            wrong.push(format!("{yaml}wanted {part:?} at {place}, exit {:?}: {said}\n", output.status.code()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), table.len(), wrong.concat());
}
