//! Scheduled jobs on real control nodes: added by CLI, HTTP and file, run once, with control killed in the middle of a run, and
//! two control nodes on one etcd that are killed again and again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use seawall_servers::Server;
use serde_json::{Value, json};

use super::support::*;

const FILE: &str = "
control: { listen: CONTROL, ttl: 1m }
policies: { default: { timeout: 20s, retry: { attempts: 1 }, breaker: { enabled: false } } }
services: { order: {} }
";

/// Never due by itself.
const FAR: &str = "at 2999-01-01T00:00:00Z";

fn put(site: &Site, name: &str, job: &Value) -> Answer {
    send(site.control, "PUT", &format!("/v1/cron/{name}"), &[], &job.to_string())
}

fn runs(site: &Site, name: &str) -> Vec<Value> {
    let answer = get(site.control, &format!("/v1/cron/{name}/runs?limit=1000"));
    if answer.status == 200 { answer.json().as_array().unwrap().clone() } else { Vec::new() }
}

fn out(site: &Site, args: &[&str]) -> String {
    let output = site.run(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_job_is_added_ordered_shown_and_removed() {
    let site = Site::new(FILE);
    let order = Participant::start(|seen| match &*seen.path {
        "/reports?full=yes" => (200, "{}".into()),
        _ => (404, "never heard of it".into()),
    });
    let _control = site.control();
    site.register("order", "o", order.addr);
    let added = out(
        &site,
        &[
            "cron",
            "add",
            "nightly",
            "0 3 * * *",
            "--zone",
            "Europe/Berlin",
            "--catch-up",
            "latest",
            "--overlap",
            "forbid",
            "--alarm-after",
            "25h",
            "call",
            "POST",
            "order/reports?full=yes",
            "--body",
            r#"{"kind":"daily"}"#,
        ],
    );
    assert!(added.starts_with("nightly: next 2"), "{added}");
    let listed = out(&site, &["cron", "list"]);
    assert!(listed.contains("Europe/Berlin") && listed.contains("POST order/reports?full=yes"), "{listed}");
    let ran = out(&site, &["cron", "run-now", "nightly"]);
    assert!(ran.contains("is done"), "{ran}");
    let seen = order.seen().remove(0);
    assert_eq!((&*seen.method, &*seen.body), ("POST", r#"{"kind":"daily"}"#));
    let run = runs(&site, "nightly").remove(0);
    assert_eq!(seen.key, format!("cron/nightly/{}", run["id"].as_str().unwrap()));
    assert_eq!(seen.fence, format!("elect/seawall-cron={}", run["term"]));
    assert_eq!((&run["state"], &run["starts"]), (&json!("done"), &json!(1)));
    let history = out(&site, &["cron", "history", "nightly"]);
    assert!(history.contains("done") && history.contains("-hand"), "{history}");

    out(&site, &["cron", "add", "wrong", FAR, "call", "GET", "order/nowhere"]);
    let failed = site.run(&["cron", "run-now", "wrong"]);
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(failed.status.code() == Some(1) && said.contains("404") && said.contains("never heard of it"), "{said}");
    assert!(out(&site, &["cron", "list"]).contains("failed 2"));

    assert_eq!(out(&site, &["cron", "remove", "nightly"]), "nightly is removed\n");
    let gone = site.run(&["cron", "history", "nightly"]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("there is no job `nightly`"), "{gone:?}");
    let elections = get(site.control, "/v1/elections/seawall-cron").json();
    assert!(elections["leader"]["owner"].as_str().unwrap().starts_with("control-"), "{elections}");
}

#[test]
fn a_schedule_is_kept_and_what_fails_raises_an_alarm() {
    let site = Site::new(FILE);
    let order = Participant::start(|seen| if seen.path == "/good" { (200, String::new()) } else { (400, "no".into()) });
    let control = site.control();
    site.register("order", "o", order.addr);
    assert_eq!(put(&site, "good", &json!({ "when": "every 200ms", "call": "GET order/good" })).status, 201);
    let bad = json!({ "when": "* * * * * *", "zone": "Asia/Tokyo", "call": "GET order/bad", "alarm_after": "1s" });
    assert_eq!(put(&site, "bad", &bad).status, 201);
    until("both have run", || runs(&site, "good").len() > 5 && runs(&site, "bad").len() > 2);
    until("the alarm is raised", || control.log().contains("ALARM: no run has succeeded for 1s"));
    assert_eq!(get(site.control, "/v1/cron/bad").json()["alarm"], true);
    assert_eq!(get(site.control, "/v1/cron/good").json()["alarm"], false);
    let metrics = get(site.control, "/metrics").body;
    for says in [
        "seawall_cron_leading 1",
        "seawall_cron_runs_total{job=\"good\",result=\"done\"}",
        "seawall_cron_runs_total{job=\"bad\",result=\"failed\"}",
        "seawall_cron_missed_total{job=\"bad\"} 1",
    ] {
        assert!(metrics.contains(says), "{says}: {metrics}");
    }
    let good = runs(&site, "good");
    let slots: BTreeSet<_> = good.iter().map(|run| run["id"].as_str().unwrap().parse::<i64>().unwrap()).collect();
    assert_eq!(slots.len(), good.len());
    assert!(slots.iter().all(|slot| slot % 200 == 0), "{slots:?}");
}

#[test]
fn kill_9_between_start_and_done_is_rerun_or_unknown_as_the_job_wants_it() {
    let site = Site::new(FILE);
    // Hangs at first, and answers those that come after.
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    let order = Participant::start(move |_| {
        if counter.fetch_add(1, Ordering::SeqCst) < 2 {
            std::thread::sleep(Duration::from_secs(15));
        }
        (200, String::new())
    });
    let control = site.control();
    site.register("order", "o", order.addr);
    for on_unknown in ["rerun", "fail"] {
        let job = json!({ "when": FAR, "call": format!("POST order/{on_unknown}"), "on_unknown": on_unknown });
        assert_eq!(put(&site, on_unknown, &job).status, 201);
        let ordered = send(site.control, "POST", &format!("/v1/cron/{on_unknown}/runs"), &[], "");
        assert_eq!(ordered.status, 202, "{ordered:?}");
    }
    until("both are called", || order.seen().len() == 2);
    assert!(runs(&site, "rerun")[0]["state"] == "started" && runs(&site, "fail")[0]["state"] == "started");
    control.kill();
    let _control = site.control();
    let state = |name: &str| runs(&site, name)[0]["state"].as_str().unwrap().to_owned();
    until("both have ended", || state("rerun") == "done" && state("fail") == "unknown");
    let called = |path: &str| order.seen().into_iter().filter(|seen| seen.path == path).collect::<Vec<_>>();
    let (again, once) = (called("/rerun"), called("/fail"));
    assert_eq!((again.len(), once.len()), (2, 1));
    assert_eq!(again[0].key, again[1].key, "the service can tell");
    let term = |seen: &Seen| seen.fence.strip_prefix("elect/seawall-cron=").unwrap().parse::<u64>().unwrap();
    assert!(term(&again[0]) < term(&again[1]), "and tell late ones from later ones");
    assert_eq!(runs(&site, "rerun")[0]["starts"], 2);
    let error = runs(&site, "fail")[0]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("its leader control-") && error.contains("died"), "{error}");
}

#[test]
fn control_that_stops_finishes_its_runs_and_what_was_missed_is_caught_up() {
    let site = Site::new(FILE);
    let order = Participant::start(|_| {
        std::thread::sleep(Duration::from_millis(700));
        (200, String::new())
    });
    let control = site.control();
    site.register("order", "o", order.addr);
    let job = json!({ "when": "every 500ms", "call": "POST order/x", "catch_up": "all", "overlap": "allow" });
    assert_eq!(put(&site, "all", &job).status, 201);
    until("it is called", || order.seen().len() > 2);
    assert!(control.stop().success());
    let called = order.seen().len();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(order.seen().len(), called);
    let _control = site.control();
    until("it goes on", || runs(&site, "all").len() > called + 5);
    let mut ids: Vec<i64> = runs(&site, "all").iter().map(|run| run["id"].as_str().unwrap().parse().unwrap()).collect();
    ids.reverse();
    assert!(ids.windows(2).all(|pair| pair[1] - pair[0] == 500), "{ids:?}");
    let ended = runs(&site, "all").iter().filter(|run| run["state"] == "done" && run["starts"] == 1).count();
    assert!(ended >= called, "those under way were finished");
}

#[test]
fn jobs_of_the_file_come_and_go_with_it() {
    let with =
        format!("{FILE}cron:\n  report:\n    when: 0 3 * * *\n    zone: Europe/Berlin\n    call: POST order/x\n");
    let site = Site::new(&with);
    let control = site.control();
    let shown = get(site.control, "/v1/cron/report").json();
    assert_eq!((&shown["source"], &shown["zone"]), (&json!("file"), &json!("Europe/Berlin")));
    let job = json!({ "when": "0 4 * * *", "call": "POST order/x" });
    let refused = put(&site, "report", &job);
    assert!(refused.status == 409 && refused.body.contains("seawall.yaml"), "{refused:?}");
    assert_eq!(send(site.control, "DELETE", "/v1/cron/report", &[], "").status, 409);
    assert_eq!(put(&site, "other", &job).status, 201);
    assert!(control.stop().success());
    let file = site.dir.path().join("seawall.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.split("cron:").next().unwrap()).unwrap();
    let _control = site.control();
    let names: Vec<_> =
        get(site.control, "/v1/cron").json().as_array().unwrap().iter().map(|job| job["name"].clone()).collect();
    assert_eq!(names, ["other"]);
}

#[test]
fn mistakes_are_named_and_change_nothing() {
    let file = "
services: { order: {} }
cron:
  a: { when: 0 3 * *, call: POST order/x }
  b: { when: every 5m, zone: Europe/Berlin, call: POST ordr/x }
  c: { when: every 5m, catch_up: sometimes, call: POST order/x }
  d: { when: every 5m, catch_up_max: 0 }
";
    let site = Site::new(file);
    let checked = site.run(&["config", "check"]);
    let said = String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.code(), Some(2), "{said}");
    for says in [
        "5 or 6 fields, this has 4",
        "cron.b.zone",
        "did you mean `order`?",
        "unknown variant `sometimes`",
        "`catch_up_max` is 0",
        "has no `call`",
    ] {
        assert!(said.contains(says), "{says}: {said}");
    }
    let site = Site::new(FILE);
    let _control = site.control();
    for (job, says) in [
        (json!({ "when": "0 25 * * *", "call": "POST order/x" }), "out of bounds"),
        (json!({ "when": "0 3 * * *", "zone": "Mars", "call": "POST order/x" }), "`Mars` is no time zone"),
        (json!({ "when": "0 0 30 2 *", "call": "POST order/x" }), "never comes"),
        (json!({ "when": "0 3 * * *" }), "`call` is missing"),
        (json!({ "when": "0 3 * * *", "call": "order/x" }), "is not a call"),
        (json!({ "when": "0 3 * * *", "call": "POST order/x", "colour": 1 }), "colour"),
        (json!({ "when": "x".repeat(10_000), "call": "POST order/x" }), "10000 bytes"),
    ] {
        let answer = put(&site, "a", &job);
        assert!((400..500).contains(&answer.status) && answer.body.contains(says), "{answer:?}");
        assert!(answer.body.len() < 1_000, "{answer:?}");
    }
    let good = json!({ "when": "0 3 * * *", "call": "POST order/x" });
    assert_eq!(put(&site, "UPPER", &good).status, 400);
    for (method, path, status) in [
        ("GET", "/v1/cron/none", 404),
        ("DELETE", "/v1/cron/none", 404),
        ("GET", "/v1/cron/none/runs", 404),
        ("POST", "/v1/cron/none/runs", 404),
        ("GET", "/v1/cron/none/runs/1764043200000", 404),
        ("GET", "/v1/cron/none/runs/last", 400),
    ] {
        assert_eq!(send(site.control, method, path, &[], "").status, status, "{method} {path}");
    }
    assert_eq!(get(site.control, "/v1/cron").json(), json!([]));
    for args in [
        &["cron", "add", "a", "0 3 * *", "call", "POST", "order/x"][..],
        &["cron", "add", "a", "0 3 * * *", "--overlap", "maybe", "call", "POST", "order/x"],
        &["cron", "add", "a", "0 3 * * *", "call", "FETCH", "order/x"],
        &["cron", "add", "a", "0 3 * * *", "call", "POST", "order/x", "--body", "{"],
        &["cron", "add", "a", "0 3 * * *"],
        &["cron", "run-now", "a"],
    ] {
        assert!(!site.run(args).status.success(), "{args:?}");
    }
    assert_eq!(get(site.control, "/v1/cron").json(), json!([]));
}

#[test]
fn two_control_nodes_that_are_killed_and_paused_run_every_slot_once() {
    let etcd = Server::etcd();
    let order = Participant::start(|_| (200, String::new()));
    let file = FILE.replace("ttl: 1m", &format!("ttl: 1m, store: \"etcd://{}/cron\"", etcd.addr()));
    let sites = [Site::new(&file), Site::new(&file)];
    let mut controls = [sites[0].control(), sites[1].control()];
    sites[0].register("order", "o", order.addr);
    let job = json!({ "when": "every 500ms", "call": "POST order/x", "catch_up": "all", "catch_up_max": 1000, "on_unknown": "fail" });
    assert_eq!(put(&sites[0], "tick", &job).status, 201);
    let leader = || {
        let elections = get(sites[0].control, "/v1/elections/seawall-cron").json();
        let owner = elections["leader"]["owner"].as_str().unwrap_or_default().to_owned();
        sites.iter().position(|site| owner == format!("control-{}", site.control.port()))
    };
    let mut kills = 0;
    let end = Instant::now() + Duration::from_secs(26);
    while Instant::now() < end {
        let before = order.seen().len();
        until("it runs", || order.seen().len() > before + 2);
        let Some(at) = leader() else { continue };
        if kills % 3 == 1 {
            // For longer than its time to live: the other leads when it goes on.
            signal(controls[at].child.id(), Signal::STOP);
            std::thread::sleep(Duration::from_secs(7));
            signal(controls[at].child.id(), Signal::CONT);
        } else {
            let again = sites[at].start(&["config", "schema"]);
            std::mem::replace(&mut controls[at], again).kill();
            controls[at] = sites[at].control();
        }
        kills += 1;
    }
    let [first, second] = controls;
    assert!(first.stop().success());
    let history = runs(&sites[1], "tick");
    assert!(second.stop().success());
    assert!(kills >= 2, "{kills}");
    let seen: Vec<_> = order.seen().into_iter().map(|seen| seen.key).collect();
    let once: BTreeSet<_> = seen.iter().cloned().collect();
    assert_eq!(once.len(), seen.len(), "called twice");
    let ids: Vec<i64> = history.iter().rev().map(|run| run["id"].as_str().unwrap().parse().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[1] - pair[0] == 500), "none is lost: {ids:?}");
    assert!(ids.len() < 100 && ids.len() > 20, "{}", ids.len());
    for run in &history {
        let called = once.contains(&format!("cron/tick/{}", run["id"].as_str().unwrap()));
        match run["state"].as_str().unwrap() {
            "done" => assert!(called, "{run}"),
            "unknown" | "started" => {}
            other => panic!("{other}: {run}"),
        }
    }
    let unknown = history.iter().filter(|run| run["state"] == "unknown").count();
    assert!(unknown <= kills, "{unknown} of {kills}");
}
