//! `seawall control`

use std::path::PathBuf;
use std::time::Duration;

use seawall_control::Control;

use crate::process::{self, Hangup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file; without it, all defaults.
    #[arg(long, short)]
    config: Option<PathBuf>,
}

/// How long requests and saga steps may take to finish.
const DRAIN: Duration = Duration::from_secs(20);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let hangup = Hangup::listen(&runtime)?;
    let loaded = process::config(args.config.as_deref())?;
    seawall_telemetry::logs::init(false);
    let mut config = loaded.config.control.clone();
    config.data = loaded.data();
    runtime.block_on(async {
        let (trigger, drain) = seawall_drain::channel();
        let control = Control::bind(config, loaded.config.policies.clone(), loaded.plans()).await?;
        let control = control.cron(loaded.config.cron.clone()).protocols(loaded.config.protocols());
        hangup.reload(&loaded, control.upstreams());
        let mut served = tokio::spawn(control.run(drain));
        tokio::select! {
            ended = &mut served => return Ok(ended??),
            stopped = process::stopped() => stopped?,
        }
        tracing::info!(waiting_for = %trigger.waiting(), "control is draining");
        let report = trigger.drain(DRAIN).await;
        if !report.is_clean() {
            tracing::warn!(left = %report, "the drain deadline has passed; their sagas go on after the next start");
        }
        match tokio::time::timeout(DRAIN, served).await {
            Ok(ended) => ended??,
            Err(_) => tracing::warn!("some clients did not let go in time"),
        }
        tracing::info!("control has stopped");
        Ok(())
    })
}
