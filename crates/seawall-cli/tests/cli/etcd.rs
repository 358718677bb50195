//! Control on a real etcd.

use std::time::Duration;

use seawall_servers::Server;

use super::support::*;

#[test]
fn registrations_in_etcd_outlive_control_and_its_directory() {
    let etcd = Server::etcd();
    let addr = etcd.addr();
    let site = Site::new(&format!("control: {{ listen: CONTROL, ttl: 1m, store: \"etcd://{addr}/test\" }}\n"));
    let control = site.control();
    site.register("order", "order-1", "127.0.0.1:9".parse().unwrap());
    let registered = get(site.control, "/v1/services/order").json()["instances"].clone();
    control.kill();
    assert!(!site.dir.path().join("seawall-data/store.db").exists(), "nothing of it is in a file");
    std::fs::remove_dir_all(site.dir.path().join("seawall-data")).unwrap();

    let control = site.control();
    // The revision is the cluster's, and control writes to it for itself.
    assert_eq!(get(site.control, "/v1/services/order").json()["instances"], registered);
    // Another prefix is another store.
    let other = Site::new(&format!("control: {{ listen: CONTROL, store: \"etcd://{addr}/other\" }}\n"));
    let _other = other.control();
    assert_eq!(get(other.control, "/v1/services/order").status, 404);
    assert!(control.stop().success());
}

#[test]
fn control_outlives_a_restart_of_etcd() {
    let mut etcd = Server::etcd();
    let site = Site::new(&format!("control: {{ listen: CONTROL, ttl: 1m, store: \"etcd://{}\" }}\n", etcd.addr()));
    let _control = site.control();
    site.register("order", "order-1", "127.0.0.1:9".parse().unwrap());
    etcd.kill9();
    let path = "/v1/services/order/instances/order-1/status";
    let draining = || send(site.control, "PUT", path, &[], r#"{"status":"draining"}"#);
    let answer = draining();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(get(site.control, "/v1/services/order").status, 200, "what is known is still told");
    etcd.restart();
    until("it is written again", || draining().status == 200);
    assert_eq!(get(site.control, "/v1/services/order").json()["instances"][0]["status"], "draining");
}

#[test]
fn an_etcd_that_is_not_there_is_named() {
    let addr = free_addr();
    let site = Site::new(&format!("control: {{ listen: CONTROL, store: \"etcd://{addr}\" }}\n"));
    let began = std::time::Instant::now();
    let output = site.run(&["control", "--config", "seawall.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&addr.to_string()), "{said}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());

    let site = Site::new("control:\n  store: etcd://me@host\n");
    let output = site.run(&["config", "check", "--config", "seawall.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("seawall.yaml:2") && said.contains("etcd://me@host"), "{said}");
}
