//! `cargo xtask test`: everything that is needed, then every test.

use std::process::Command;

use anyhow::ensure;

use crate::{chaos, demo, machine, process};

/// How many random histories the long form replays beside the breaker's model.
const HISTORIES: &str = "1000000";
/// How often the long form lets a model's threads be interrupted; the short one does with two.
const PREEMPTIONS: &str = "3";

/// The servers that tests and benchmarks start: a program, or a file, and its package.
pub(crate) const SERVERS: &[(&str, &str)] = &[
    ("etcd", "etcd-server"),
    // Debian keeps its programs out of the path; this one is of the package that all versions share.
    ("pg_createcluster", "postgresql"),
    ("pgbouncer", "pgbouncer"),
    ("redis-server", "redis-server"),
    ("java", "default-jre-headless"),
    ("/usr/share/java/zookeeper.jar", "zookeeper"),
];

pub(crate) fn run(long: bool) -> anyhow::Result<()> {
    machine::install(&[("python3", "python3"), ("curl", "curl"), ("jq", "jq"), ("openssl", "openssl")])?;
    machine::install(SERVERS)?;
    machine::install_nextest()?;
    // The tests drive the real binaries.
    process::run("cargo", &["build", "--workspace"])?;
    process::run("cargo", &["nextest", "run", "--workspace", "--no-fail-fast"])?;
    process::run("cargo", &["test", "--workspace", "--doc", "--quiet"])?;
    println!("\nthe shared state of the policies, under every interleaving:");
    models(&[])?;
    if long {
        println!("\nthe long form: {HISTORIES} histories of the breaker, and the models with more interruptions:");
        histories()?;
        models(&[("LOOM_MAX_PREEMPTIONS", PREEMPTIONS)])?;
    }
    println!("\nlocks among real faults:");
    chaos::run(&["locks", "--seconds", "20", "--backend", "embedded,etcd"].map(str::to_owned))?;
    println!("\nthe demo, as the end-to-end test:");
    demo::run(true)?;
    println!("\nall tests passed");
    Ok(())
}

/// loom's models, which need the crate built with its feature.
fn models(env: &[(&str, &str)]) -> anyhow::Result<()> {
    let words = ["test", "--package", "seawall-resilience", "--features", "loom", "--lib", "--", "loom", "model"];
    cargo(&words, env)
}

fn histories() -> anyhow::Result<()> {
    let words = ["test", "--release", "--package", "seawall-resilience", "--lib", "--", "breaker::model"];
    cargo(&words, &[("SEAWALL_HISTORIES", HISTORIES)])
}

fn cargo(words: &[&str], env: &[(&str, &str)]) -> anyhow::Result<()> {
    let status = Command::new("cargo").args(words).envs(env.iter().copied()).current_dir(process::root()).status()?;
    ensure!(status.success(), "cargo {} failed: {status}", words.join(" "));
    Ok(())
}
