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
            log.contains("the policies stay as they were") && log.contains(part)
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
        (&["breaker", "nobody", "closed"][..], 1, "`nobody` has not been called from here"),
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
