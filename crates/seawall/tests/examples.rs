//! The examples hold what they claim: each asserts it by itself, and ends with 0 only then.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs an example and checks that it prints a line for each step.
fn run(name: &str, steps: &[&str]) {
    let mut running = Command::new(built(name)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while running.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            running.kill().unwrap();
            panic!("{name} did not end: {:?}", running.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = running.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}\n{out}{err}", output.status);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), steps.len(), "{out}");
    for (line, step) in lines.iter().zip(steps) {
        assert!(line.starts_with(&format!("{step}: ")), "{line:?} is not about {step:?}");
    }
}

/// `cargo test` and `cargo nextest run` have built it beside the tests; when a test is asked for by its target they have
/// not, and it is built now.
fn built(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let profile = tests.parent().and_then(std::path::Path::parent).unwrap();
    let path = profile.join("examples").join(name);
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "seawall", "--example", name]);
        build.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "cannot build {name}");
    }
    path
}

#[test]
fn payments() {
    run("payments", &["paid", "being processed", "already processed", "batch", "unknown", "resolved"]);
}

#[test]
fn leader_only() {
    run("leader_only", &["hourly", "nightly", "handed over", "once"]);
}

#[test]
fn order_with_payment() {
    run("order_with_payment", &["healthy", "slow", "failing", "recovered"]);
}

#[test]
fn order_details() {
    run(
        "order_details",
        &["healthy", "payment hangs", "recommendations drowned", "recommendations back", "recommendations absent"],
    );
}
