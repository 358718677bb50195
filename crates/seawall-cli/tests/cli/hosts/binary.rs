//! The real binary: control, a gateway and a sidecar as processes, by the real clock. The traces' times are seconds
//! apart where a decision hangs on them, so that a busy machine decides as an idle one does.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::support::{Site, free_addr, get, until};
use super::trace::{Trace, policy};
use super::wire::{Behind, Service, Wire};
use super::{WAITS, replay, trace};

/// The service of one trace at one host: each has its own, and so policies with a state of their own.
fn service(host: &str, number: usize) -> String {
    format!("{host}-{number}")
}

fn file(traces: &[Trace], hosts: [&str; 2]) -> String {
    let (mut policies, mut services, mut routes) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    services.insert("caller".to_owned(), json!({}));
    for (number, trace) in traces.iter().enumerate() {
        for host in hosts {
            let name = service(host, number);
            let matches = json!({ "path": format!("/{name}/**") });
            routes.push(json!({ "id": name, "match": matches, "filters": [{ "strip_prefix": 1 }], "to": name }));
            policies.insert(name.clone(), without_nulls(serde_json::to_value(policy(trace)).unwrap()));
            services.insert(name, json!({}));
        }
    }
    // What has no heartbeat stays for as long as the test.
    let file = json!({
        "control": { "listen": "CONTROL", "ttl": "10m" },
        "policies": policies,
        "gateways": { "public": { "listen": "GATEWAY", "trusted_hops": 1, "routes": routes } },
        "services": services,
    });
    file.to_string()
}

/// As somebody would write it.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let given = fields.into_iter().filter(|(_, value)| !value.is_null());
            given.map(|(name, value)| (name, without_nulls(value))).collect()
        }
        value => value,
    }
}

#[test]
fn the_real_gateway_and_sidecar_decide_as_the_traces_say() {
    let mut traces = trace::read("real-time.jsonl");
    // Where the clock of the policies may go on while somebody waits, too.
    traces.extend(trace::read(WAITS).into_iter().filter(|trace| trace.steps.iter().all(|step| step.at() == 0)));
    assert!(traces.len() >= 25);
    let site = Site::new(&file(&traces, ["gateway", "sidecar"]));
    let _control = site.control();
    let (outbound, at_gateway, at_sidecar) = (free_addr(), free_addr(), free_addr());
    let _gateway = site.start(&["gateway", "--admin", &at_gateway.to_string()]);
    // Its own service is nobody's concern here, and does not run.
    let (app, out, admin) = (free_addr().to_string(), outbound.to_string(), at_sidecar.to_string());
    let more = ["--app", &app, "--outbound", &out, "--admin", &admin, "--config", "seawall.yaml"];
    let _sidecar = site.start(&[&["sidecar", "--service", "caller"][..], &more].concat());
    super::run(async {
        let hosts = [("gateway", site.gateway, at_gateway), ("sidecar", outbound, at_sidecar)];
        let mut ready = Vec::new();
        for (host, addr, admin) in hosts {
            for (number, trace) in traces.iter().enumerate() {
                let (name, behind) = (service(host, number), Service::start().await);
                site.register(&name, "1", behind.addr);
                ready.push((host, addr, admin, name, behind, trace.clone()));
            }
        }
        for (_, _, admin) in hosts {
            until("it knows the fleet", || knows(admin, ready.iter().map(|(_, _, _, name, ..)| name.as_str())));
        }
        // Those that go by the clock have the machine for themselves; the others have time.
        let (timed, others): (Vec<_>, Vec<_>) =
            ready.into_iter().partition(|(.., trace)| trace.name.starts_with("real time"));
        for batch in [timed, others] {
            let mut running = JoinSet::new();
            for (host, addr, admin, name, service, trace) in batch {
                running.spawn(async move {
                    let behind = Behind::There { admin, begun: Instant::now() };
                    let mut wire = Wire::new(addr, &name, behind, service);
                    replay::replay(&mut wire, &format!("the real {host}"), &trace).await;
                });
            }
            while let Some(ended) = running.join_next().await {
                ended.unwrap();
            }
        }
    });
}

/// Whether a process has heard of the services.
fn knows<'a>(admin: SocketAddr, mut names: impl Iterator<Item = &'a str>) -> bool {
    let answer = get(admin, "/status");
    answer.status == 200 && {
        let page = answer.json();
        names.all(|name| page["services"][name].as_array().is_some_and(|instances| !instances.is_empty()))
    }
}
