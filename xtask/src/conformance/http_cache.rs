//! M. Nottingham's http-cache-tests: what a cache must, may and need not do, through Seawall, nginx and Varnish.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Row;
use crate::bench::table;
use crate::machine;
use crate::process::{self, Running};

const PACKAGE: &str = "http-cache-tests@0.4.5";
/// As many as the best published has.
const REQUIRED: usize = 141;
/// How long one run of the suite may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// A test of the suite.
struct Test {
    kind: Kind,
    depends_on: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Required,
    Optimal,
    /// Asks what a cache does, and judges nothing.
    Check,
}

/// What a cache has passed.
#[derive(Default)]
struct Score {
    required: usize,
    optimal: usize,
    /// What was required and failed, and why.
    failed: Vec<String>,
}

pub(super) fn run() -> anyhow::Result<Row> {
    machine::install(&[("node", "nodejs"), ("npm", "npm"), ("nginx", "nginx-light"), ("varnishd", "varnish")])?;
    process::run("cargo", &["build", "--package", "seawall-cli"])?;
    let dir = process::root().join("target/conformance/http-cache");
    std::fs::create_dir_all(&dir)?;
    let suite = install(&dir)?;
    let tests = tests(&suite)?;
    let [origin_port, ..] = process::free_ports::<1>()?;
    let _origin = origin(&suite, &dir, origin_port)?;
    let mut scores = Vec::new();
    for (name, start) in [("seawall", seawall as Start), ("nginx", nginx), ("varnish", varnish)] {
        let [port] = process::free_ports()?;
        let place = dir.join(name);
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir_all(&place)?;
        let running = start(&place, port, origin_port).with_context(|| format!("cannot start {name}"))?;
        answers(port).with_context(|| format!("{name} does not serve, see {}", place.display()))?;
        println!("running through {name}");
        let results = ask(&suite, &place, port)?;
        drop(running);
        scores.push((name, score(&tests, &results)?));
    }
    let count = |kind| tests.values().filter(|test| test.kind == kind).count();
    let (required, optimal) = (count(Kind::Required), count(Kind::Optimal));
    let rows = scores.iter().map(|(name, score)| {
        let of = |passed: usize, all: usize| format!("{passed} of {all}");
        vec![(*name).to_owned(), of(score.required, required), of(score.optimal, optimal)]
    });
    table::print(&["cache", "required", "optimal"], &rows.collect::<Vec<_>>());
    let (_, ours) = &scores[0];
    println!("\nrequired, and not passed by seawall:");
    for failed in &ours.failed {
        println!("  {failed}");
    }
    let sum = |score: &Score| score.required + score.optimal;
    let better = scores[1..].iter().all(|(_, other)| sum(ours) > sum(other));
    let compared = "http-cache-tests (npm), beside nginx and Varnish".to_owned();
    let required_of_us = format!("{REQUIRED} required, and more of all than they");
    let result = format!("{} of {required} required, {} of {optimal} optimal", ours.required, ours.optimal);
    Ok(Row { compared, required: required_of_us, result, ok: Some(ours.required >= REQUIRED && better) })
}

type Start = fn(&Path, u16, u16) -> anyhow::Result<Vec<Running>>;

fn install(dir: &Path) -> anyhow::Result<PathBuf> {
    let suite = dir.join("node_modules/http-cache-tests");
    if !suite.join("cli.mjs").exists() {
        let prefix = dir.display().to_string();
        let words =
            ["install", "--prefix", &prefix, "--ignore-scripts", "--no-audit", "--no-fund", "--silent", PACKAGE];
        process::run("npm", &words)?;
    }
    Ok(suite)
}

/// What the suite says of its tests.
fn tests(suite: &Path) -> anyhow::Result<BTreeMap<String, Test>> {
    const SCRIPT: &str = "import tests from './tests/index.mjs'; import more from './tests/surrogate-control.mjs';\
                          console.log(JSON.stringify([...tests, more]))";
    let output =
        Command::new("node").args(["--no-warnings", "--input-type=module", "-e", SCRIPT]).current_dir(suite).output();
    let output = output.context("cannot run node")?;
    ensure!(output.status.success(), "node: {}", String::from_utf8_lossy(&output.stderr));
    let groups: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let mut tests = BTreeMap::new();
    for test in groups.iter().flat_map(|group| group["tests"].as_array().into_iter().flatten()) {
        // It is about caches of browsers.
        if test["browser_only"] == true {
            continue;
        }
        let kind = match test["kind"].as_str() {
            None | Some("required") => Kind::Required,
            Some("optimal") => Kind::Optimal,
            _ => Kind::Check,
        };
        let depends_on = test["depends_on"].as_array().into_iter().flatten();
        let depends_on = depends_on.filter_map(|id| Some(id.as_str()?.to_owned())).collect();
        tests.insert(test["id"].as_str().context("a test without an id")?.to_owned(), Test { kind, depends_on });
    }
    Ok(tests)
}

/// Whether a test has passed, in the suite's own terms: nothing is passed that depends on something that is not.
fn passed(tests: &BTreeMap<String, Test>, results: &Value, id: &str) -> bool {
    let depends_on = tests.get(id).map(|test| &*test.depends_on).unwrap_or_default();
    results[id] == true && depends_on.iter().all(|other| passed(tests, results, other))
}

fn score(tests: &BTreeMap<String, Test>, results: &Value) -> anyhow::Result<Score> {
    let mut score = Score::default();
    for (id, test) in tests {
        ensure!(!results[id].is_null(), "the suite did not run its test `{id}`");
        match (test.kind, passed(tests, results, id)) {
            (Kind::Required, true) => score.required += 1,
            (Kind::Optimal, true) => score.optimal += 1,
            (Kind::Required, false) => {
                let why = results[id][1].as_str().unwrap_or("what it depends on has not passed");
                score.failed.push(format!("{id}: {why}"));
            }
            _ => {}
        }
    }
    Ok(score)
}

fn ask(suite: &Path, dir: &Path, port: u16) -> anyhow::Result<Value> {
    let file = dir.join("results.json");
    let mut command = Command::new("node");
    command.args(["--no-warnings", "cli.mjs"]).current_dir(suite).stdin(Stdio::null());
    command.env("npm_config_base", format!("http://127.0.0.1:{port}")).env("npm_package_config_id", "");
    command.stdout(std::fs::File::create(&file)?);
    let mut running = Running::spawn("the suite", &mut command)?;
    let end = Instant::now() + PATIENCE;
    while !running.has_ended() {
        ensure!(Instant::now() < end, "the suite took more than {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let text = std::fs::read_to_string(&file)?;
    serde_json::from_str(&text).with_context(|| format!("the suite has said no results: {text}"))
}

fn log(command: &mut Command, dir: &Path, name: &str) -> anyhow::Result<Running> {
    let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Running::spawn(name, command)
}

fn answers(port: u16) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < end, "nothing listens on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn origin(suite: &Path, dir: &Path, port: u16) -> anyhow::Result<Running> {
    let mut command = Command::new("node");
    command.args(["--no-warnings", "server/server.mjs"]).current_dir(suite);
    command.env("npm_config_protocol", "http").env("npm_config_port", port.to_string());
    command.env("npm_config_pidfile", dir.join("origin.pid"));
    let running = log(&mut command, dir, "origin")?;
    answers(port)?;
    Ok(running)
}

/// With nothing but the cache: retries, breaker and the like would answer for the origin.
fn seawall(dir: &Path, port: u16, origin: u16) -> anyhow::Result<Vec<Running>> {
    let [control] = process::free_ports()?;
    let yaml = format!(
        "control: {{ listen: 127.0.0.1:{control}, data: ./data, ttl: 1h }}\n\
         policies: {{ default: {{ timeout: 30s, retry: {{ attempts: 1 }}, breaker: {{ enabled: false }}, bulkhead: {{ enabled: false }} }} }}\n\
         gateways: {{ public: {{ listen: 127.0.0.1:{port}, routes: [ {{ id: all, match: {{}}, filters: [ {{ cache: {{}} }} ], to: origin }} ] }} }}\n\
         services: {{ origin: {{}} }}\n"
    );
    std::fs::write(dir.join("seawall.yaml"), yaml)?;
    let binary = process::root().join("target/debug/seawall");
    let start = |role: &str| log(Command::new(&binary).arg(role).current_dir(dir), dir, role);
    let node = start("control")?;
    answers(control)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let http = crate::load::Http::new(format!("http://127.0.0.1:{control}"));
        let call = crate::load::Call {
            method: http::Method::PUT,
            path: "/v1/services/origin/instances/one".to_owned(),
            key: None,
            body: serde_json::json!({ "id": "one", "address": "127.0.0.1", "port": origin }),
        };
        let answer = http.call(call, tokio::time::Instant::now()).await;
        ensure!(!answer.is_error(), "cannot register the origin: {answer:?}");
        Ok(())
    })?;
    Ok(vec![node, start("gateway")?])
}

/// As the suite's own image has it; in one process, which leaves no others behind when it is killed.
fn nginx(dir: &Path, port: u16, origin: u16) -> anyhow::Result<Vec<Running>> {
    let tmp = dir.display();
    let config = format!(
        "daemon off; master_process off; pid {tmp}/nginx.pid; error_log {tmp}/error.log; worker_processes 1;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {tmp}/body; proxy_temp_path {tmp}/temp; fastcgi_temp_path {tmp}/fastcgi;\n\
         uwsgi_temp_path {tmp}/uwsgi; scgi_temp_path {tmp}/scgi;\n\
         proxy_cache_path {tmp}/cache levels=1:2 keys_zone=all:8m max_size=1000m inactive=600m;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{origin}; proxy_cache all;\n\
         proxy_cache_revalidate on; }} }} }}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config)?;
    Ok(vec![log(Command::new(program("nginx")).arg("-c").arg(&file).current_dir(dir), dir, "nginx")?])
}

/// With the parameters of the suite's own published run: by default it stores what nothing is said of.
fn varnish(dir: &Path, port: u16, origin: u16) -> anyhow::Result<Vec<Running>> {
    let mut command = Command::new(program("varnishd"));
    command.arg("-F").arg("-n").arg(dir.join("work")).args(["-s", "malloc,256m"]);
    command.args(["-p", "default_ttl=0", "-p", "default_grace=0", "-p", "default_keep=3600"]);
    command.args(["-a", &format!("127.0.0.1:{port}"), "-b", &format!("127.0.0.1:{origin}")]);
    Ok(vec![log(&mut command, dir, "varnish")?])
}

fn program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    places.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists()).unwrap_or_else(|| name.into())
}
