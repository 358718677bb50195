//! What has to be on the machine, and how it gets there.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::ensure;

use crate::process;

/// Installs the Debian packages of those programs that are missing: `(program, package)`.
pub(crate) fn install(wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        wanted.iter().filter(|(program, _)| !exists(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(", "));
    let apt = |args: &[&str]| {
        let root = rustix::process::geteuid().is_root();
        let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
        if !root {
            command.args(["-n", "apt-get"]);
        }
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).status()
    };
    apt(&["update", "-qq"])?;
    let status = apt(&[&["install", "-y", "-qq", "--no-install-recommends"], &missing[..]].concat())?;
    ensure!(status.success(), "apt-get could not install {}: install it by hand", missing.join(", "));
    Ok(())
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
