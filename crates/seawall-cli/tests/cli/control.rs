//! The registry over its API, on a real control node.

use std::time::{Duration, Instant};

use super::support::*;

const FILE: &str = "control: { listen: CONTROL, ttl: 2s }\n";

/// Follows the stream and hands each event on as `(name, data)`.
fn follow(site: &Site, query: &str) -> std::sync::mpsc::Receiver<(String, serde_json::Value)> {
    events(site.control, &format!("/v1/watch{query}"))
}

#[test]
fn instances_come_and_go_and_followers_see_it_in_order() {
    let site = Site::new(FILE);
    let control = site.control();
    let addr = "127.0.0.1:9".parse().unwrap();
    let events = follow(&site, "?subscriber=test");
    let (name, first) = events.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(name, "snapshot");
    let store = first["store"].as_str().unwrap().to_owned();

    site.register("order", "order-1", addr);
    let path = "/v1/services/order/instances/order-1";
    let status = send(site.control, "PUT", &format!("{path}/status"), &[], r#"{"status":"draining"}"#);
    assert_eq!(status.status, 200);
    assert_eq!(get(site.control, "/v1/services/order").json()["instances"][0]["status"], "draining");
    assert_eq!(send(site.control, "DELETE", path, &[], "").status, 200);
    assert_eq!(send(site.control, "DELETE", path, &[], "").status, 404);
    let changes: Vec<_> = (0..3).map(|_| events.recv_timeout(Duration::from_secs(5)).unwrap().1).collect();
    let statuses: Vec<_> = changes.iter().map(|change| change["instance"]["status"].clone()).collect();
    assert_eq!(statuses, ["up".into(), "draining".into(), serde_json::Value::Null]);

    // Resumed after the first change, the other two come again; from another store everything does.
    let from = changes[0]["revision"].as_u64().unwrap() + 1;
    let resumed = follow(&site, &format!("?store={store}&from={from}"));
    assert_eq!(resumed.recv_timeout(Duration::from_secs(5)).unwrap().0, "resumed");
    for change in &changes[1..] {
        assert_eq!(resumed.recv_timeout(Duration::from_secs(5)).unwrap(), ("change".into(), change.clone()));
    }
    for other in [format!("?store=other&from={from}"), format!("?store={store}&from=999999")] {
        assert_eq!(follow(&site, &other).recv_timeout(Duration::from_secs(5)).unwrap().0, "snapshot");
    }
    assert!(control.stop().success());
}

#[test]
fn a_change_that_waits_is_answered_when_all_have_acknowledged_it() {
    let site = Site::new(&FILE.replace("2s", "1m"));
    let _control = site.control();
    site.register("order", "order-1", "127.0.0.1:9".parse().unwrap());
    let events = follow(&site, "?subscriber=slow");
    events.recv_timeout(Duration::from_secs(5)).unwrap();
    let path = "/v1/services/order/instances/order-1/status?wait=applied&timeout=6500ms";
    let late = send(site.control, "PUT", path, &[], r#"{"status":"draining"}"#);
    assert_eq!(late.json()["laggards"], serde_json::json!(["slow"]));

    let control = site.control;
    let waiting = std::thread::spawn(move || {
        let path = "/v1/services/order/instances/order-1/status?wait=applied&timeout=20s";
        (send(control, "PUT", path, &[], r#"{"status":"up"}"#), Instant::now())
    });
    let revision = loop {
        let (_, change) = events.recv_timeout(Duration::from_secs(5)).unwrap();
        if change["instance"]["status"] == "up" {
            break change["revision"].clone();
        }
    };
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    let acknowledged = Instant::now();
    let ack = format!("/v1/watch/ack?subscriber=slow&revision={revision}");
    assert_eq!(send(site.control, "POST", &ack, &[], "").status, 204);
    let (answer, answered) = waiting.join().unwrap();
    assert_eq!(answer.json()["laggards"], serde_json::json!([]));
    assert!(answered - acknowledged < Duration::from_secs(2));
}

#[test]
fn the_silent_are_evicted_and_the_beating_stay() {
    let site = Site::new(FILE);
    let _control = site.control();
    // Control stands for election itself, once, in the same store.
    until("somebody leads", || !get(site.control, "/v1/elections/seawall-cron").json()["leader"].is_null());
    for id in ["a", "b"] {
        site.register("order", id, "127.0.0.1:9".parse().unwrap());
    }
    let ids = || {
        let list = get(site.control, "/v1/services/order").json();
        list["instances"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(), ["a", "b"]);
    let revision = || get(site.control, "/v1/services").json()["revision"].as_u64().unwrap();
    let before = revision();
    until("the silent one is evicted", || {
        assert_eq!(send(site.control, "POST", "/v1/services/order/instances/a/heartbeat", &[], "").status, 204);
        ids() == ["a"]
    });
    assert_eq!(revision(), before + 1, "a heartbeat writes nothing");
    assert_eq!(send(site.control, "POST", "/v1/services/order/instances/b/heartbeat", &[], "").status, 404);
}

#[test]
fn kill_9_of_control_forgets_nobody() {
    let site = Site::new(FILE);
    let control = site.control();
    for n in 0..20 {
        site.register("order", &format!("o-{n}"), "127.0.0.1:9".parse().unwrap());
    }
    control.kill();
    // Away for longer than the time-to-live: that is not the instances' fault.
    std::thread::sleep(Duration::from_millis(2500));
    let _again = site.control();
    assert_eq!(get(site.control, "/v1/services/order").json()["instances"].as_array().unwrap().len(), 20);
    assert_eq!(send(site.control, "POST", "/v1/services/order/instances/o-7/heartbeat", &[], "").status, 204);
}

#[test]
fn bad_requests_get_a_clear_answer() {
    let site = Site::new(FILE);
    let _control = site.control();
    let instance = |id: &str, rest: &str| format!(r#"{{"id":"{id}","address":"127.0.0.1","port":1{rest}}}"#);
    for (method, path, body, status, says) in [
        ("PUT", "/v1/services/Order/instances/a", instance("a", ""), 400, "not a valid name"),
        ("PUT", "/v1/services/order/instances/a", instance("b", ""), 400, "the body `b`"),
        ("PUT", "/v1/services/order/instances/a", instance("a", r#","weight":0"#), 400, "weight 0"),
        ("PUT", "/v1/services/order/instances/a", instance("a", r#","colour":1"#), 422, "unknown field `colour`"),
        ("PUT", "/v1/services/order/instances/a", "{".into(), 400, ""),
        ("PUT", "/v1/services/order/instances/a", "x".repeat(300_000), 413, ""),
        ("PUT", "/v1/services/order/instances/a/status", r#"{"status":"up"}"#.into(), 404, "not registered"),
        ("PUT", "/v1/services/order/instances/a/status", r#"{"status":"ill"}"#.into(), 422, "unknown variant"),
        ("GET", "/v1/services/nobody", String::new(), 404, "no instance of `nobody`"),
        ("POST", "/v1/services", String::new(), 405, "other methods"),
        ("GET", "/v1/sagas?status=ill", String::new(), 400, "unknown variant"),
        ("GET", "/v1/nope", String::new(), 404, "no such path"),
        ("POST", "/v1/watch/ack?subscriber=x&revision=1", String::new(), 404, "no open stream"),
        ("POST", "/v1/watch/ack?subscriber=x&revision=1&store=y", String::new(), 409, "another store"),
        ("DELETE", "/v1/services/order/instances/a?wait=soon", String::new(), 404, ""),
        ("GET", "/v1/watch?subscriber=a%20b", String::new(), 400, "not a valid name"),
    ] {
        let answer = send(site.control, method, path, &[], &body);
        assert!(answer.json()["error"].is_string(), "{answer:?}");
        assert!(answer.status == status && answer.body.contains(says), "{method} {path}: {answer:?}");
    }
}

#[test]
fn a_data_directory_belongs_to_one_control() {
    let site = Site::new(FILE);
    let _control = site.control();
    std::fs::write(site.dir.path().join("other.yaml"), format!("control: {{ listen: {} }}", free_addr())).unwrap();
    let second = site.run(&["control", "--config", "other.yaml"]);
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("in use by another process"), "{text}");
    let third = site.run(&["control", "--config", "seawall.yaml"]);
    let text = String::from_utf8_lossy(&third.stderr);
    assert!(!third.status.success() && text.contains(&site.control.to_string()), "{text}");
}
