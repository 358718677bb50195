//! What has to be on the machine, and how it gets there.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, ensure};

use crate::process;

/// Installs the Debian packages of those programs that are missing: `(program, package)`. What is no program is named by its
/// whole path.
pub(crate) fn install(wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        wanted.iter().filter(|(program, _)| !exists(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(", "));
    root("apt-get", &["update", "-qq"])?;
    let quiet = Quiet::begin()?;
    let status = root("apt-get", &[&["install", "-y", "-qq", "--no-install-recommends"], &missing[..]].concat())?;
    drop(quiet);
    ensure!(status.success(), "apt-get could not install {}: install it by hand", missing.join(", "));
    Ok(())
}

/// Debian starts a daemon as soon as it is installed, unless this file says no. The tests start their own.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// As long as it lives, what is installed is not started.
struct Quiet {
    /// Whether the policy was made for this, not found.
    made: bool,
}

impl Quiet {
    fn begin() -> anyhow::Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { made: false });
        }
        let mut policy = tempfile::NamedTempFile::new()?;
        policy.write_all(b"#!/bin/sh\nexit 101\n")?;
        let from = policy.path().to_str().context("the temporary directory has a strange name")?;
        let status = root("install", &["-m", "755", from, POLICY])?;
        ensure!(status.success(), "cannot write {POLICY}, which keeps Debian from starting what is installed");
        Ok(Self { made: true })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.made && !root("rm", &[POLICY]).is_ok_and(|status| status.success()) {
            eprintln!("cannot remove {POLICY}: remove it, or Debian starts no service any more");
        }
    }
}

/// Runs a command as root.
fn root(program: &str, args: &[&str]) -> std::io::Result<ExitStatus> {
    let mut command = Command::new(program);
    if !rustix::process::geteuid().is_root() {
        command = Command::new("sudo");
        command.args(["-n", program]);
    }
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).status()
}

pub(crate) fn install_nextest() -> anyhow::Result<()> {
    let found =
        Command::new("cargo").args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    println!("installing cargo-nextest");
    process::run("cargo", &["install", "--locked", "cargo-nextest"])
}

fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(program)).any(|file: std::path::PathBuf| Path::new(&file).is_file())
}
