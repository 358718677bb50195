//! `cargo xtask bench proxy`: the gateway beside nginx and HAProxy, each with one worker on a core of its own; load and
//! upstreams share the other.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::noise;
use super::table::{self, Comparison, Samples};
use crate::machine;
use crate::process::{self, Running};

/// Connections that the generator keeps open.
const CONNECTIONS: &str = "64";
/// How many routes the gateway has that has many.
const ROUTES: usize = 10_000;
/// What it has to keep of the throughput of one with a route alone.
const KEPT: f64 = 0.95;
/// Foreign processor time, as a share of one core, above which a run says little.
const NOISY: f64 = 0.10;

/// One proxy under test.
struct Case {
    name: &'static str,
    url: String,
    process: Running,
    figures: Figures,
}

#[derive(Default)]
struct Figures {
    cpu: Samples,
    rate: Samples,
    p50: Samples,
    p99: Samples,
    memory: Samples,
    foreign: Samples,
}

pub(crate) fn run(rounds: usize, seconds: u64) -> anyhow::Result<()> {
    machine::install(&[("nginx", "nginx-light"), ("haproxy", "haproxy"), ("wrk", "wrk"), ("taskset", "util-linux")])?;
    process::run("cargo", &["build", "--release", "--package", "seawall-cli"])?;
    let dir = process::root().join("target/bench/proxy");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;

    let (first, first_addr) = upstream()?;
    let (second, second_addr) = upstream()?;
    let upstreams = [first_addr, second_addr];
    let control = Control::start(&dir, &upstreams)?;
    let many =
        Gateway { name: "seawall, 10,000 routes", log: "seawall-many", file: &control.many, port: control.many_port };
    let one = Gateway { name: "seawall gateway", log: "seawall", file: &control.file, port: control.gateway };
    let mut cases = vec![one.start(&dir)?, nginx(&dir, &upstreams)?, haproxy(&dir, &upstreams)?, many.start(&dir)?];
    for case in &cases {
        reachable(&case.url).with_context(|| format!("{} does not serve", case.name))?;
        load(&case.url, 1)?;
    }
    for round in 1..=rounds {
        for case in &mut cases {
            println!("round {round} of {rounds}: {}", case.name);
            measure(case, seconds, &[first.id(), second.id()])?;
        }
    }
    report(&cases, rounds, seconds)?;
    drop((cases, control, first, second));
    Ok(())
}

fn report(cases: &[Case], rounds: usize, seconds: u64) -> anyhow::Result<()> {
    println!(
        "\nHTTP/1.1 keep-alive, {CONNECTIONS} connections, 1 KB bodies, one worker each; {rounds} rounds of {seconds} s \
         in turns; median (minimum-maximum)."
    );
    let rows = cases.iter().map(|case| {
        let f = &case.figures;
        let ratio = cases[0].figures.cpu.median() / f.cpu.median();
        vec![
            case.name.to_owned(),
            f.cpu.cell(1),
            format!("{ratio:.2}x"),
            f.rate.cell(0),
            f.p50.cell(2),
            f.p99.cell(2),
            f.memory.cell(1),
        ]
    });
    let heads = ["proxy", "CPU us/request", "seawall / it", "requests/s", "p50 ms", "p99 ms", "resident MB"];
    table::print(&heads, &rows.collect::<Vec<_>>());
    let noisy: Vec<f64> = cases.iter().map(|case| case.figures.foreign.spread().2).filter(|s| *s > NOISY).collect();
    if noisy.is_empty() {
        println!("\nNo run lost more than {:.0}% of a core to other processes.", NOISY * 100.0);
    } else {
        let worst = noisy.iter().copied().fold(0.0, f64::max) * 100.0;
        println!("\nToo noisy to be sure: other processes took up to {worst:.0}% of a core during a run.");
    }
    let (ours, many) = (&cases[0].figures, &cases[3].figures);
    // Its worker has a core for itself, so that it serves as many as the time for each allows; the rate has the noise of others.
    let kept = ours.cpu.median() / many.cpu.median();
    let met = if kept >= KEPT { "met" } else { "NOT met" };
    println!(
        "\n{ROUTES} routes keep {:.1}% of the throughput of one; the aim of {:.0}% is {met}.",
        kept * 100.0,
        KEPT * 100.0
    );
    let compare = |unit, pick: fn(&Figures) -> &Samples| {
        cases[1..].iter().map(move |case| {
            let (ours, peer) = (pick(ours).median(), pick(&case.figures).median());
            let (case_name, peer_name) = (format!("plain proxy, {unit}"), case.name.to_owned());
            Comparison { case: case_name, ours, peer, peer_name, unit, ratio: ours / peer }
        })
    };
    let rows = compare("CPU us/request", |f| &f.cpu)
        .chain(compare("requests/s", |f| &f.rate))
        .chain(compare("p50 ms", |f| &f.p50))
        .chain(compare("p99 ms", |f| &f.p99))
        .chain(compare("resident MB", |f| &f.memory));
    table::write("proxy", &rows.collect::<Vec<_>>())
}

/// One run of one case.
fn measure(case: &mut Case, seconds: u64, upstreams: &[u32]) -> anyhow::Result<()> {
    let pid = case.process.id();
    let known = |root: &[u32]| root.iter().map(|pid| noise::cpu_micros(*pid)).sum::<f64>();
    let before = (noise::cpu_micros(pid), known(upstreams), noise::machine_micros(), Instant::now());
    let run = load(&case.url, seconds)?;
    let cpu = noise::cpu_micros(pid) - before.0;
    let elapsed = before.3.elapsed().as_micros() as f64;
    let machine = noise::machine_micros() - before.2;
    let foreign = (machine - cpu - (known(upstreams) - before.1) - run.cpu_micros) / elapsed;
    ensure!(run.errors == 0, "{}: {} errors under load", case.name, run.errors);
    let figures = &mut case.figures;
    figures.cpu.push(cpu / run.requests);
    figures.rate.push(run.rate);
    figures.p50.push(run.p50);
    figures.p99.push(run.p99);
    figures.memory.push(noise::resident_megabytes(pid));
    figures.foreign.push(foreign.max(0.0));
    Ok(())
}

/// What the generator says.
struct Run {
    requests: f64,
    rate: f64,
    p50: f64,
    p99: f64,
    errors: u64,
    cpu_micros: f64,
}

fn load(url: &str, seconds: u64) -> anyhow::Result<Run> {
    let duration = format!("-d{seconds}s");
    let usage = || {
        let children = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> = children.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
        (ticks(13) + ticks(14)) * 10_000.0
    };
    let before = usage();
    let output = Command::new("taskset")
        .args(["-c", "1", "wrk", "-t1", &format!("-c{CONNECTIONS}"), &duration, "--latency", url])
        .output()
        .context("cannot run wrk")?;
    let cpu_micros = usage() - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    let after = |label: &str| -> Option<String> {
        let line = text.lines().find(|line| line.trim_start().starts_with(label))?;
        Some(line.trim_start()[label.len()..].trim().to_owned())
    };
    let number = |label: &str| after(label).and_then(|value| value.parse::<f64>().ok());
    let millis = |label: &str| after(label).and_then(|value| to_millis(&value));
    let requests = text
        .lines()
        .find(|line| line.contains(" requests in "))
        .and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    let errors = after("Socket errors:")
        .map_or(0, |line| line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).sum())
        + after("Non-2xx or 3xx responses:").and_then(|n| n.parse().ok()).unwrap_or(0);
    let understood = || format!("wrk's output is not understood:\n{text}");
    Ok(Run {
        requests: requests.with_context(understood)?,
        rate: number("Requests/sec:").with_context(understood)?,
        p50: millis("50%").with_context(understood)?,
        p99: millis("99%").with_context(understood)?,
        errors,
        cpu_micros,
    })
}

/// `1.23ms`, `456.00us` or `1.20s` in milliseconds.
fn to_millis(text: &str) -> Option<f64> {
    let (number, factor) = match text {
        _ if text.ends_with("us") => (text.strip_suffix("us")?, 0.001),
        _ if text.ends_with("ms") => (text.strip_suffix("ms")?, 1.0),
        _ => (text.strip_suffix('s')?, 1000.0),
    };
    Some(number.parse::<f64>().ok()? * factor)
}

fn upstream() -> anyhow::Result<(Running, String)> {
    let program = std::env::current_exe()?;
    let mut command = Command::new("taskset");
    command.args(["-c", "1"]).arg(program).arg("upstream").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start an upstream")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    Ok((Running::from(child, "an upstream"), line.trim().to_owned()))
}

fn reachable(url: &str) -> anyhow::Result<()> {
    let addr = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    let end = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(addr).is_err() {
        ensure!(Instant::now() < end, "nothing listens on {addr}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts a proxy on the core that no one else uses.
fn pinned(name: &'static str, log: &str, program: &Path, args: &[&str], dir: &Path) -> anyhow::Result<Running> {
    let log = std::fs::File::create(dir.join(format!("{log}.log")))?;
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(program).args(args).current_dir(dir);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Running::spawn(name, &mut command)
}

fn program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    places.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// The control node that tells the gateway of the two upstreams.
struct Control {
    file: PathBuf,
    gateway: u16,
    /// The same with many routes.
    many: PathBuf,
    many_port: u16,
    _process: Running,
}

impl Control {
    fn start(dir: &Path, upstreams: &[String]) -> anyhow::Result<Self> {
        let [listen, gateway, many_port] = process::free_ports()?;
        let (file, many) = (dir.join("seawall.yaml"), dir.join("seawall-many.yaml"));
        let yaml = |gateway: u16, more: &str| {
            format!(
                "control: {{ listen: 127.0.0.1:{listen}, data: ./data, ttl: 1h }}\n\
                 policies:\n  default: {{ timeout: 5s, retry: {{ attempts: 2 }}, breaker: {{ failure_rate: 50% }} }}\n\
                 gateways:\n  bench:\n    listen: 127.0.0.1:{gateway}\n    workers: 1\n    routes:\n{more}      \
                 - {{ id: all, match: {{ path: /api/** }}, filters: [{{ strip_prefix: 1 }}], to: api }}\n\
                 services: {{ api: {{}} }}\n"
            )
        };
        std::fs::write(&file, yaml(gateway, ""))?;
        // Under the path that is asked for, before the one that takes it.
        let more = |n| format!("      - {{ id: r{n}, match: {{ path: /api/team-{n}/things/** }}, to: api }}\n");
        std::fs::write(&many, yaml(many_port, &(1..ROUTES).map(more).collect::<String>()))?;
        let log = std::fs::File::create(dir.join("control.log"))?;
        let mut command = Command::new("taskset");
        command.args(["-c", "1"]).arg(process::root().join("target/release/seawall"));
        command.arg("control").arg("--config").arg(&file);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = Running::spawn("seawall control", &mut command)?;
        let base = format!("http://127.0.0.1:{listen}");
        reachable(&base)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let http = crate::load::Http::new(base);
            for (number, upstream) in upstreams.iter().enumerate() {
                let (address, port) = upstream.rsplit_once(':').context("an address")?;
                let id = format!("api-{number}");
                let call = crate::load::Call {
                    method: http::Method::PUT,
                    path: format!("/v1/services/api/instances/{id}"),
                    key: None,
                    body: serde_json::json!({ "id": id, "address": address, "port": port.parse::<u16>()? }),
                };
                let answer = http.call(call, tokio::time::Instant::now()).await;
                ensure!(!answer.is_error(), "cannot register the upstream: {answer:?}");
            }
            Ok(())
        })?;
        Ok(Self { file, gateway, many, many_port, _process: process })
    }
}

/// One of ours.
struct Gateway<'a> {
    name: &'static str,
    log: &'static str,
    file: &'a Path,
    port: u16,
}

impl Gateway<'_> {
    fn start(&self, dir: &Path) -> anyhow::Result<Case> {
        let binary = process::root().join("target/release/seawall");
        let file = self.file.display().to_string();
        let process = pinned(self.name, self.log, &binary, &["gateway", "bench", "--config", &file], dir)?;
        let url = format!("http://127.0.0.1:{}/api/x", self.port);
        Ok(Case { name: self.name, url, process, figures: Figures::default() })
    }
}

fn nginx(dir: &Path, upstreams: &[String]) -> anyhow::Result<Case> {
    let [port] = process::free_ports()?;
    let servers: String = upstreams.iter().map(|addr| format!("server {addr};\n")).collect();
    let config = dir.join("nginx.conf");
    let tmp = dir.display();
    std::fs::write(
        &config,
        format!(
            "worker_processes 1; daemon off; pid {tmp}/nginx.pid; error_log {tmp}/nginx-error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {tmp}; proxy_temp_path {tmp};\n\
             fastcgi_temp_path {tmp}; uwsgi_temp_path {tmp}; scgi_temp_path {tmp};\n\
             upstream api {{ {servers} keepalive 256; keepalive_requests 100000000; }}\n\
             server {{ listen 127.0.0.1:{port}; location /api/ {{ proxy_pass http://api/; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; }} }} }}\n"
        ),
    )?;
    let file = config.display().to_string();
    let process =
        pinned("nginx", "nginx", &program("nginx"), &["-c", &file, "-e", &format!("{tmp}/nginx-error.log")], dir)?;
    Ok(Case { name: "nginx", url: format!("http://127.0.0.1:{port}/api/x"), process, figures: Figures::default() })
}

fn haproxy(dir: &Path, upstreams: &[String]) -> anyhow::Result<Case> {
    let [port] = process::free_ports()?;
    let servers = upstreams.iter().enumerate();
    let servers: String = servers.map(|(n, addr)| format!("    server s{n} {addr} pool-max-conn 256\n")).collect();
    let config = dir.join("haproxy.cfg");
    std::fs::write(
        &config,
        format!(
            "global\n    nbthread 1\n    maxconn 4096\ndefaults\n    mode http\n    timeout connect 1s\n    \
             timeout client 30s\n    timeout server 30s\n    http-reuse always\nfrontend f\n    \
             bind 127.0.0.1:{port}\n    default_backend b\nbackend b\n    balance roundrobin\n{servers}"
        ),
    )?;
    let file = config.display().to_string();
    let process = pinned("haproxy", "haproxy", &program("haproxy"), &["-db", "-f", &file], dir)?;
    Ok(Case { name: "HAProxy", url: format!("http://127.0.0.1:{port}/api/x"), process, figures: Figures::default() })
}
