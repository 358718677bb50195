//! The Rust client beside a real control node: it follows the registry, and goes on without it.

use std::time::Duration;

use seawall::Client;
use seawall::client::{BuildError, ClientBuilder};

use super::support::*;

const FILE: &str = "control: { listen: CONTROL, ttl: 1m }\n";

fn participant(name: &'static str) -> Participant {
    Participant::start(move |_| (200, name.to_owned()))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn builder(site: &Site, name: &str) -> ClientBuilder {
    Client::builder().control([site.control]).name(name).snapshot_file(site.dir.path().join("client.json"))
}

/// Who answers, several times.
fn answers(runtime: &tokio::runtime::Runtime, client: &Client) -> Vec<String> {
    let call = async |_| client.get("http://order/who").send().await?.error_for_status()?.text().await;
    let mut answers = Vec::new();
    for n in 0..20 {
        answers.push(runtime.block_on(call(n)).unwrap_or_else(|error| error.to_string()));
    }
    answers.dedup();
    answers
}

fn remove(site: &Site, id: &str) {
    assert_eq!(send(site.control, "DELETE", &format!("/v1/services/order/instances/{id}"), &[], "").status, 200);
}

fn subscribers(site: &Site) -> Vec<String> {
    let list = get(site.control, "/v1/subscribers").json();
    list["subscribers"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_client_follows_the_registry_and_goes_on_without_control() {
    let site = Site::new(FILE);
    let (first, second, third) = (participant("first"), participant("second"), participant("third"));
    let runtime = runtime();

    let early = builder(&site, "early").start_within(Duration::from_millis(100));
    let error = runtime.block_on(early.build()).unwrap_err();
    assert!(matches!(error, BuildError::NoControl { .. }), "nothing is kept yet: {error}");

    let control = site.control();
    site.register("order", "first", first.addr);
    let client = runtime.block_on(builder(&site, "follower").build()).unwrap();
    assert_eq!(answers(&runtime, &client), ["first"], "it knows who is there as soon as it is built");

    site.register("order", "second", second.addr);
    until("it knows of the second", || answers(&runtime, &client).contains(&"second".to_owned()));
    remove(&site, "first");
    until("it has forgotten the first", || answers(&runtime, &client) == ["second"]);

    control.kill();
    assert_eq!(answers(&runtime, &client), ["second"], "control is away, and nobody notices");
    drop(client);
    // Another one starts from what the first has kept.
    let client = runtime.block_on(builder(&site, "restarted").build()).unwrap();
    assert_eq!(answers(&runtime, &client), ["second"]);

    let _control = site.control();
    site.register("order", "third", third.addr);
    remove(&site, "second");
    until("control is back, and followed again", || answers(&runtime, &client) == ["third"]);

    until("control knows it by its name", || subscribers(&site).contains(&"restarted".to_owned()));
    let clone = client.clone();
    drop(client);
    assert_eq!(answers(&runtime, &clone), ["third"], "a clone is as good");
    drop(clone);
    until("with the last clone it has stopped following", || !subscribers(&site).contains(&"restarted".to_owned()));
}
