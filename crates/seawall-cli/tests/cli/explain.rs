//! Locks explained on a real control node: who lost them and why, and who waits in a circle.

use std::net::SocketAddr;

use seawall_coord::Token;
use serde_json::{Value, json};

use super::locks::{Holder, open};
use super::support::*;

const FILE: &str = "control: { listen: CONTROL }\n";

fn claim(at: SocketAddr, session: &str, lock: &str, wait: &str) -> Answer {
    let path = format!("/v1/locks/{lock}/claims/{}?wait={wait}", Token::random());
    send(at, "PUT", &path, &[], &json!({ "session": session }).to_string())
}

fn explained(at: SocketAddr, lock: &str) -> Value {
    get(at, &format!("/v1/locks/{lock}/explain")).json()
}

fn said(site: &Site, args: &[&str]) -> String {
    let output = site.run(&[&["locks"], args].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_is_said_who_lost_a_lock_and_why() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    assert!(said(&site, &["explain", "report"]).contains("nobody holds `report`, nor has since "));
    let a = open(at, "60s", "web-3");
    let token = Token::random();
    let path = format!("/v1/locks/report/claims/{token}");
    assert_eq!(send(at, "PUT", &path, &[], &json!({ "session": a, "info": "monthly" }).to_string()).status, 200);
    let waiter = {
        let b = open(at, "60s", "web-4");
        std::thread::spawn(move || claim(at, &b, "report", "20s").status)
    };
    until("web-4 waits", || explained(at, "report")["queue"][0]["owner"] == "web-4");
    let now = explained(at, "report");
    assert!(now["sure_ms"].as_u64().unwrap() > 30_000 && now["last"].is_null(), "{now}");
    let text = said(&site, &["explain", "report"]);
    assert!(text.contains("`report` is held by web-3 (session ") && text.contains("  monthly"), "{text}");
    assert!(text.contains("s more without a keep-alive") && text.contains("waits behind web-3"), "{text}");
    // Released.
    assert_eq!(send(at, "DELETE", &format!("{path}?session={a}"), &[], "").status, 204);
    assert_eq!(waiter.join().unwrap(), 200);
    assert!(said(&site, &["explain", "report"]).contains("before: web-3 (session "));
    assert_eq!(explained(at, "report")["last"]["how"], "released");
    // Taken away.
    assert!(said(&site, &["report", "--force", "--why", "it hangs", "--by", "ann"]).contains("was taken away"));
    assert!(said(&site, &["explain", "report"]).contains("and lost it: ann took it away: it hangs"));
    // Closed, and expired: a holder that is killed with -9.
    let c = open(at, "60s", "closes");
    assert_eq!(claim(at, &c, "report", "5s").status, 200);
    assert_eq!(send(at, "DELETE", &format!("/v1/sessions/{c}"), &[], "").status, 204);
    until("it is known", || explained(at, "report")["last"]["how"] == "closed");
    let mut holder = Holder::run(&site, "dies", &["lock", "report", "--ttl", "1s", "--", "sleep", "60"]);
    until("it is held", || explained(at, "report")["holder"].is_object());
    holder.child.kill().unwrap();
    until("its session has ended", || explained(at, "report")["last"]["how"] == "expired");
    assert!(said(&site, &["explain", "report"]).contains("its session was not kept alive in time"));
    assert!(said(&site, &["explain", "reports"]).contains("similar names: `report`"));
    let json: Value = serde_json::from_str(&said(&site, &["explain", "report", "--json"])).unwrap();
    assert_eq!(json["last"]["how"], "expired");
    let page = get(at, "/metrics").body;
    for line in [
        r#"seawall_lock_ends_total{kind="lock",how="expired"} 1"#,
        r#"seawall_lock_ends_total{kind="lock",how="forced"} 1"#,
        r#"seawall_lock_claims_total{kind="lock",outcome="granted"} 4"#,
        r#"seawall_locks{kind="lock",state="held"} 0"#,
        r#"seawall_locks{kind="election",state="held"} 1"#,
        "seawall_lock_wait_seconds_count 4",
        "seawall_lock_deadlocks 0",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[test]
fn two_who_wait_for_each_other_are_told() {
    let site = Site::new(FILE);
    let control = site.control();
    let at = site.control;
    // Each takes a lock and then, within it, the other's.
    let inner = |other: &str| format!("sleep 1; exec {SEAWALL} lock {other} --wait 60s -- true");
    let start = |out: &str, own: &str, other: &str| {
        Holder::run(&site, out, &["lock", own, "--ttl", "30s", "--", "sh", "-c", &inner(other)])
    };
    // As processes these are four sessions, of which two hold and two others wait: no circle that anybody could see.
    let (one, two) = (start("one", "x", "y"), start("two", "y", "x"));
    until("both wait", || ["x", "y"].iter().all(|lock| explained(at, lock)["queue"][0].is_object()));
    drop((one, two));
    // As two sessions they are one.
    let (a, b) = (open(at, "60s", "a"), open(at, "60s", "b"));
    assert_eq!((claim(at, &a, "left", "0s").status, claim(at, &b, "right", "0s").status), (200, 200));
    let wait = |session: &str, lock: &'static str| {
        let session = session.to_owned();
        std::thread::spawn(move || claim(at, &session, lock, "20s").status)
    };
    let (waits_a, waits_b) = (wait(&a, "right"), wait(&b, "left"));
    until("it is found", || get(at, "/v1/deadlocks").json().as_array().is_some_and(|all| all.len() == 1));
    let circle = get(at, "/v1/deadlocks").json();
    let owners: Vec<_> = circle[0].as_array().unwrap().iter().map(|wait| wait["owner"].as_str().unwrap()).collect();
    assert!(owners == ["a", "b"] || owners == ["b", "a"], "{circle}");
    let names = "a (session ";
    assert!(said(&site, &["explain", "left"]).contains("deadlock: ") && said(&site, &[]).contains("deadlock: "));
    assert!(control.log().contains("a deadlock, unless") && control.log().contains(names), "{}", control.log());
    assert!(get(at, "/metrics").body.contains("seawall_lock_deadlocks 1"));
    // It is for the operator to break.
    assert!(said(&site, &["left", "--force", "--why", "deadlock", "--by", "ann"]).contains("was taken away from a"));
    assert_eq!(waits_b.join().unwrap(), 200);
    assert_eq!(send(at, "DELETE", &format!("/v1/sessions/{b}"), &[], "").status, 204);
    assert_eq!(waits_a.join().unwrap(), 200);
    until("it is forgotten", || get(at, "/v1/deadlocks").json() == json!([]));
}
