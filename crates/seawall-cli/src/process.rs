//! What the long-running subcommands share: runtime, signals, file.

use std::path::Path;

use anyhow::Context;
use seawall_drain::Signals;
use seawall_proxy::Upstreams;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

/// SIGHUP: "read your file again".
pub(crate) struct Hangup(Signal);

impl Hangup {
    /// Listens from now on. The first thing that a part does, before it reads its file: a signal that nobody listens for
    /// ends the process, and one that comes after the file was read is about what has changed since.
    pub(crate) fn listen(runtime: &Runtime) -> anyhow::Result<Self> {
        let _context = runtime.enter();
        Ok(Self(signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?))
    }

    /// Each time it comes, reads the file again and goes on under its policies; a file with a mistake is refused, and the
    /// last good policies stay. What else has changed in it takes a restart. Ends with the process.
    pub(crate) fn reload(self, loaded: &Loaded, upstreams: Upstreams) {
        let file = loaded.file.clone();
        tokio::spawn(self.each(move || {
            let taken = read(&file).and_then(|loaded| policies(&loaded, &upstreams));
            said(&file, "policies", taken);
        }));
    }

    /// Each time it comes.
    pub(crate) async fn each(mut self, then: impl Fn()) {
        while self.0.recv().await.is_some() {
            then();
        }
    }
}

/// Reads a file again.
pub(crate) fn read(file: &Path) -> Result<Loaded, String> {
    load::load(file).map_err(|mistakes| mistakes.render(false))
}

/// Goes on under the policies of a file.
pub(crate) fn policies(loaded: &Loaded, upstreams: &Upstreams) -> Result<(), String> {
    upstreams.reload(loaded.config.policies.clone()).map_err(|invalid| invalid.to_string())
}

/// Says what came of reading a file again.
pub(crate) fn said(file: &Path, what: &str, taken: Result<(), String>) {
    match taken {
        Ok(()) => tracing::info!(file = %file.display(), "the {what} were read again"),
        Err(mistakes) => tracing::error!(file = %file.display(), "the {what} stay as they were:\n{mistakes}"),
    }
}

/// Resolves at SIGTERM or SIGINT.
pub(crate) async fn stopped() -> anyhow::Result<()> {
    Signals::listen().context("cannot listen for SIGTERM and SIGINT")?.recv().await;
    Ok(())
}
