//! `cargo xtask conformance`: suites that others wrote, and such of our own as others could run, against the real gateway.
//!
//! A suite is a program in `xtask/conformance/` and a row below. It gets `SEAWALL`, the binary, and `DIR`, a directory in
//! `target/conformance/` for its logs, starts what it needs on loopback ports, and writes `report.json` into the directory. It
//! and whatever it has started is ended when its time is over.

mod http_cache;

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use serde::Deserialize;

use crate::{bench, machine, process};

/// A suite: a row of the table of all.
struct Suite {
    name: &'static str,
    /// The program, in `xtask/conformance/`.
    program: &'static str,
    /// What it needs: programs and their Debian packages, packages of PyPI and of npm.
    debian: &'static [(&'static str, &'static str)],
    pypi: &'static [&'static str],
    npm: &'static [&'static str],
    /// What it may take at most.
    limit: Duration,
}

const SUITES: &[Suite] = &[
    Suite {
        name: "grpc",
        program: "grpc_calls.py",
        debian: &[OPENSSL],
        pypi: &["grpcio==1.85.*"],
        npm: &[],
        limit: Duration::from_secs(240),
    },
    Suite {
        name: "smuggling",
        program: "smuggling.py",
        debian: &[OPENSSL, ("nginx", "nginx-light"), ("haproxy", "haproxy")],
        pypi: &["hpack==4.*"],
        npm: &[],
        limit: Duration::from_secs(400),
    },
    Suite {
        name: "http2",
        program: "http2_abuse.py",
        debian: &[OPENSSL, ("h2load", "nghttp2-client")],
        pypi: &["hpack==4.*"],
        npm: &[],
        limit: Duration::from_secs(400),
    },
    Suite {
        name: "websocket",
        program: "websocket.py",
        debian: &[OPENSSL],
        pypi: &[],
        npm: &[],
        limit: Duration::from_secs(1200),
    },
    Suite {
        name: "tls",
        program: "tls_audit.py",
        debian: &[OPENSSL, ("testssl", "testssl.sh"), ("slowhttptest", "slowhttptest"), ("hexdump", "bsdextrautils")],
        pypi: &[],
        npm: &[],
        limit: Duration::from_secs(800),
    },
    Suite {
        name: "http1",
        program: "http1_abuse.py",
        debian: &[OPENSSL],
        pypi: &[],
        npm: &[],
        limit: Duration::from_secs(500),
    },
    Suite {
        name: "oidc",
        program: "oidc.py",
        debian: &[("node", "nodejs")],
        pypi: &[],
        npm: &["oidc-provider@9"],
        limit: Duration::from_secs(120),
    },
];

type Run = fn() -> anyhow::Result<Row>;

/// Suites that are written here rather than as programs.
const OWN: &[(&str, Run)] = &[("http-cache", http_cache::run)];

/// Makes the certificates of every suite.
const OPENSSL: (&str, &str) = ("openssl", "openssl");

/// A line of a suite's report.
#[derive(Deserialize)]
struct Row {
    compared: String,
    required: String,
    result: String,
    /// Nothing, where it was not run.
    ok: Option<bool>,
}

/// Runs the suites, or the one that is named, and prints what came out.
///
/// # Errors
/// When one is below what is required, or did not come to its end.
pub(crate) fn run(only: Option<&str>) -> anyhow::Result<()> {
    let all = || SUITES.iter().map(|suite| suite.name).chain(OWN.iter().map(|(name, _)| *name));
    let names = || all().collect::<Vec<_>>().join(", ");
    let wanted: Vec<&Suite> = SUITES.iter().filter(|suite| only.is_none_or(|only| only == suite.name)).collect();
    let own = OWN.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
    if only.is_some_and(|only| all().all(|name| name != only)) {
        bail!("no suite of that name; there are {}", names());
    }
    let dir = process::root().join("target/conformance");
    std::fs::create_dir_all(&dir)?;
    machine::install(&[("python3", "python3")])?;
    for suite in &wanted {
        machine::install(suite.debian)?;
        pypi(&dir, suite.pypi)?;
        npm(&dir, suite.npm)?;
    }
    process::run("cargo", &["build", "--package", "seawall-cli"])?;
    let mut table = Vec::new();
    let mut below = 0;
    let mut row = |suite: &str, row: Row| {
        below += usize::from(row.ok == Some(false));
        let verdict = match row.ok {
            Some(true) => "met",
            Some(false) => "BELOW",
            None => "not run",
        };
        table.push(vec![suite.to_owned(), row.compared, row.required, row.result, verdict.to_owned()]);
    };
    for suite in wanted {
        println!("{}, {} s at most; logs in target/conformance/{}", suite.name, suite.limit.as_secs(), suite.name);
        for line in suite.run(&dir).with_context(|| format!("the suite {}", suite.name))? {
            row(suite.name, line);
        }
    }
    for (name, run) in own {
        println!("{name}");
        row(name, run().with_context(|| format!("the suite {name}"))?);
    }
    println!();
    bench::table::print(&["suite", "what is compared", "required", "result", "verdict"], &table);
    anyhow::ensure!(below == 0, "{below} of {} results are below what is required", table.len());
    Ok(())
}

impl Suite {
    fn run(&self, dir: &Path) -> anyhow::Result<Vec<Row>> {
        let logs = dir.join(self.name);
        let _ = std::fs::remove_dir_all(&logs);
        std::fs::create_dir_all(&logs)?;
        let log = std::fs::File::create(logs.join("suite.log"))?;
        let programs = process::root().join("xtask/conformance");
        let mut command = Command::new(dir.join("venv/bin/python"));
        command.arg("-B").arg(programs.join(self.program)).current_dir(&logs);
        command.env("SEAWALL", process::root().join("target/debug/seawall")).env("DIR", &logs);
        // Debian keeps servers where the path of a user does not lead.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command.env("NODE_PATH", dir.join("npm/node_modules"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A group of its own, so that what it has started ends with it.
        let mut group = Group(command.process_group(0).spawn().context("cannot start")?);
        let ended = group.wait(self.limit)?;
        drop(group);
        let mut rows = report(&logs)?;
        if !ended.is_some_and(|good| good) {
            let why = if ended.is_some() { "it failed".to_owned() } else { format!("{:?} were over", self.limit) };
            rows.push(Row {
                compared: "the suite itself".to_owned(),
                required: "comes to its end".to_owned(),
                result: format!("{why}: see target/conformance/{}/suite.log", self.name),
                ok: Some(false),
            });
        }
        Ok(rows)
    }
}

/// What a suite has reported; nothing, if it did not come so far.
fn report(logs: &Path) -> anyhow::Result<Vec<Row>> {
    let file = logs.join("report.json");
    if !file.exists() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&std::fs::read(&file)?).with_context(|| format!("{} is no report", file.display()))
}

/// A process and its descendants, killed when dropped.
struct Group(Child);

impl Group {
    /// Whether it ended well; `None` when it did not end in time.
    fn wait(&mut self, limit: Duration) -> anyhow::Result<Option<bool>> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status.success()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(None)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Also when the first process has ended: others of the group may not have.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Installs packages of PyPI into an environment of their own.
fn pypi(dir: &Path, packages: &[&str]) -> anyhow::Result<()> {
    let venv = dir.join("venv");
    if !venv.join("bin/python").exists() {
        machine::install(&[("/usr/share/doc/python3-venv", "python3-venv")])?;
        process::run("python3", &["-m", "venv", text(&venv)?])?;
    }
    if packages.is_empty() {
        return Ok(());
    }
    let pip = venv.join("bin/pip");
    process::run(text(&pip)?, &[&["install", "--quiet", "--disable-pip-version-check"], packages].concat())
}

/// Installs packages of npm below the directory.
fn npm(dir: &Path, packages: &[&str]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    machine::install(&[("node", "nodejs"), ("npm", "npm")])?;
    let prefix = dir.join("npm");
    std::fs::create_dir_all(&prefix)?;
    process::run(
        "npm",
        &[&["install", "--silent", "--no-audit", "--no-fund", "--prefix", text(&prefix)?], packages].concat(),
    )
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}
