//! `seawall policies` and `seawall breaker`: asking gateways, sidecars and control about the policies at work in them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use http::Method;
use seawall_discovery::Control;
use serde_json::Value;

use crate::{process, up};

#[derive(clap::Args)]
pub(crate) struct Which {
    /// Where to ask: the admin address of a gateway or sidecar, or a control node. Default: every part of the running
    /// `seawall up`.
    #[arg(long, value_delimiter = ',')]
    admin: Vec<SocketAddr>,
    /// The file that `seawall up` runs.
    #[arg(long, short, default_value = "seawall.yaml")]
    config: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct PoliciesArgs {
    /// Only of this service, with the reasons.
    service: Option<String>,
    #[command(flatten)]
    which: Which,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct BreakerArgs {
    /// The service that is called.
    service: String,
    /// `closed` and `open` are a beginning from which the calls decide on; `disabled`, `forced-open` and `metrics-only`
    /// stay until another order, or a restart.
    #[arg(value_parser = ["closed", "open", "disabled", "forced-open", "metrics-only"])]
    state: String,
    #[command(flatten)]
    which: Which,
}

/// How long a part may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

impl Which {
    pub(crate) fn parts(&self) -> anyhow::Result<Vec<(String, SocketAddr)>> {
        if self.admin.is_empty() {
            return up::client::admins(&self.config);
        }
        Ok(self.admin.iter().map(|addr| (addr.to_string(), *addr)).collect())
    }
}

pub(crate) fn ask(addr: SocketAddr, method: Method, path: &str) -> anyhow::Result<bytes::Bytes> {
    let asked = Control::new([addr]);
    let answer = process::runtime()?.block_on(asked.send(method, path, Vec::new(), PATIENCE));
    answer.with_context(|| format!("cannot ask {addr}"))
}

pub(crate) fn show(args: &PoliciesArgs) -> anyhow::Result<()> {
    let mut answers = Vec::new();
    for (name, addr) in args.which.parts()? {
        match ask(addr, Method::GET, "/v1/policies") {
            Ok(answer) => answers.push((name, serde_json::from_slice::<Value>(&answer)?)),
            Err(error) => eprintln!("{name}: {error:#}"),
        }
    }
    anyhow::ensure!(!answers.is_empty(), "nobody has answered");
    if let Some(service) = &args.service {
        for (_, answer) in &mut answers {
            if let Some(guards) = answer["guards"].as_array_mut() {
                guards.retain(|guard| guard["service"] == **service);
            }
        }
        let known =
            answers.iter().any(|(_, answer)| answer["guards"].as_array().is_some_and(|guards| !guards.is_empty()));
        anyhow::ensure!(known, "`{service}` has not been called from there");
    }
    if args.json {
        let all: serde_json::Map<String, Value> = answers.into_iter().collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!(
        "{:<24} {:<14} {:<13} {:>15} {:>9} {:>10} {:>8}",
        "AT", "SERVICE", "BREAKER", "FAILED/CALLS", "REJECTED", "IN USE", "RETRIES"
    );
    for (name, answer) in &answers {
        for guard in answer["guards"].as_array().into_iter().flatten() {
            let service = guard["service"].as_str().unwrap_or_default();
            let breaker = &guard["breaker"];
            let bulkhead = &guard["bulkhead"];
            let state = breaker["state"].as_str().unwrap_or("off");
            let of = |failed: &Value, calls: &Value| {
                if failed.is_null() { "-".to_owned() } else { format!("{failed}/{calls}") }
            };
            println!(
                "{name:<24} {service:<14} {state:<13} {:>15} {:>9} {:>10} {:>8}",
                of(&breaker["failed"], &breaker["calls"]),
                breaker["rejected"].as_u64().unwrap_or(0),
                of(&bulkhead["in_use"], &bulkhead["limit"]),
                guard["retry"]["retries"].as_u64().unwrap_or(0),
            );
            if args.service.is_some() {
                why(breaker);
            }
        }
    }
    Ok(())
}

/// The last calls that went wrong.
fn why(breaker: &Value) {
    for call in breaker["bad_calls"].as_array().into_iter().flatten() {
        let took = call["took_ms"].as_f64().map(|took| format!(" after {took:.1} ms")).unwrap_or_default();
        let trace = call["trace"].as_str().map(|trace| format!(", trace {trace}")).unwrap_or_default();
        let ago = call["ago_ms"].as_u64().unwrap_or(0) as f64 / 1000.0;
        println!("  {ago:>8.1} s ago: {}{took}{trace}", call["cause"].as_str().unwrap_or_default());
    }
}

pub(crate) fn order(args: &BreakerArgs) -> anyhow::Result<()> {
    let path = format!("/v1/policies/{}/breaker/{}", args.service, args.state);
    let mut done = 0;
    let mut refused = Vec::new();
    for (name, addr) in args.which.parts()? {
        match ask(addr, Method::POST, &path) {
            Ok(_) => {
                println!("{name}: the breaker of `{}` is {}", args.service, args.state);
                done += 1;
            }
            Err(error) => refused.push((name, format!("{error:#}"))),
        }
    }
    // Where a service has never been called there is no breaker yet: that is no failure if others have one.
    if done > 0 {
        return Ok(());
    }
    let service = &args.service;
    if refused.iter().all(|(_, error)| error.contains("has not been called")) {
        let asked = refused.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
        anyhow::bail!("no breaker of `{service}`: it has not been called from there, asked were {asked}");
    }
    let refused: Vec<String> = refused.iter().map(|(name, error)| format!("{name}: {error}")).collect();
    anyhow::bail!("no breaker of `{service}` was found:\n{}", refused.join("\n"))
}
