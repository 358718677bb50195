//! What the long-running subcommands share: runtime, signals, file.

use std::path::Path;

use anyhow::Context;
use seawall_drain::Signals;

use crate::config::{Loaded, load};

/// Reads the file that is given, or `seawall.yaml` if there is one here; without either, all defaults.
pub(crate) fn config(file: Option<&Path>) -> anyhow::Result<Loaded> {
    let here = Path::new("seawall.yaml");
    match file.or_else(|| here.exists().then_some(here)) {
        Some(file) => Ok(load::load(file)?),
        None => Ok(load::nothing()?),
    }
}

/// Tells this process from every other one of the same name, on this machine or another.
pub(crate) fn unique() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:08x}", RandomState::new().hash_one(std::process::id()) as u32)
}

/// One thread for what is not on the way of a request.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

/// Resolves at SIGTERM or SIGINT.
pub(crate) async fn stopped() -> anyhow::Result<()> {
    Signals::listen().context("cannot listen for SIGTERM and SIGINT")?.recv().await;
    Ok(())
}
