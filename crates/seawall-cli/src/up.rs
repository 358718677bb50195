//! `seawall up`: everything in a file, each part a process of its own.
//!
//! [`plan`] says which processes there are; [`supervisor`] keeps them running and takes them down in order; [`screen`]
//! shows logs and status; [`api`] lets `seawall status|stop|start|restart` reach a running `up`; [`client`] is their side.

mod api;
pub(crate) mod client;
mod plan;
mod screen;
mod supervisor;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::config::load;
use crate::process;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file.
    #[arg(default_value = "seawall.yaml")]
    file: PathBuf,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let loaded = load::load(&args.file)?;
    // One thread: the kernel sends the children their parent's death when the thread that started them ends.
    process::runtime()?.block_on(async move {
        let data = loaded.data();
        std::fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
        // Held until the end: two `up` on one directory would fight over everything.
        let lock = std::fs::File::create(data.join("up.lock"))?;
        if lock.try_lock().is_err() {
            anyhow::bail!("another `seawall up` is running on {}", data.display());
        }
        plan::free(&loaded)?;
        let plan = plan::Plan::new(&loaded)?;
        let screen = screen::Screen::new(plan.names());
        let fleet = Arc::new(supervisor::Fleet::new(plan, screen));
        let api = api::serve(fleet.clone(), &data.join("up.sock"))?;
        let show = tokio::spawn(supervisor::show(fleet.clone()));
        fleet.start().await;
        process::stopped().await?;
        let hurry = async {
            // A second signal means now.
            let _ = process::stopped().await;
            fleet.kill_all().await;
        };
        let in_order = tokio::select! {
            () = fleet.stop_all() => true,
            () = hurry => false,
        };
        show.abort();
        api.abort();
        let _ = std::fs::remove_file(data.join("up.sock"));
        anyhow::ensure!(in_order, "everything was killed, as asked; nothing was drained");
        fleet.screen().say("everything has stopped");
        Ok(())
    })
}
