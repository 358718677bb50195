//! `seawall gateway`

use std::net::SocketAddr;
use std::path::PathBuf;

use seawall_discovery::{Control, Subscriber, SubscriberConfig};
use seawall_gateway::Gateway;
use seawall_proxy::Upstreams;

use crate::process::Hangup;
use crate::{admin, process};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which gateway of the file; needed only when there are several.
    name: Option<String>,
    /// The file.
    #[arg(long, short, default_value = "seawall.yaml")]
    config: PathBuf,
    /// The control nodes. Default: the file's `control.listen` on this machine.
    #[arg(long, value_delimiter = ',')]
    control: Vec<SocketAddr>,
    /// Where `/metrics` and `/status` are answered. Default: the file's `admin`.
    #[arg(long)]
    admin: Option<SocketAddr>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = process::runtime()?;
    let hangup = Hangup::listen(&runtime)?;
    let loaded = process::config(Some(&args.config))?;
    seawall_telemetry::logs::init(false);
    let (name, config) = loaded.gateway(args.name.as_deref())?;
    runtime.block_on(async {
        let (trigger, drain) = seawall_drain::channel();
        let upstreams = Upstreams::new(loaded.config.policies.clone())?;
        hangup.reload(&loaded, upstreams.clone());
        upstreams.speak(loaded.config.protocols());
        let gateway = Gateway::bind(name, config.clone())?;
        let addr = gateway.addr();
        let nodes = if args.control.is_empty() { vec![loaded.control_addr()] } else { args.control.clone() };
        let who = format!("gateway-{name}-{}", process::unique());
        let file = Some(loaded.data().join("snapshots").join(format!("gateway-{name}.json")));
        let subscriber = Subscriber::new(SubscriberConfig { name: who, file }, Control::new(nodes));
        // The last good snapshot is in use before the first request is taken.
        upstreams.publish(subscriber.snapshot());
        let admin = admin::start(args.admin.unwrap_or(config.admin), upstreams.clone(), drain.clone()).await?;
        gateway.start(&upstreams, &drain)?;
        let (leaving, follow) = seawall_drain::channel();
        let publisher = upstreams.clone();
        let following = tokio::spawn(subscriber.run(follow, move |snapshot| publisher.publish(snapshot)));
        tracing::info!(gateway = %name, %addr, %admin, "ready");
        process::stopped().await?;
        tracing::info!(gateway = %name, waiting_for = %trigger.waiting(), "draining");
        let report = trigger.drain(config.drain.get()).await;
        if !report.is_clean() {
            tracing::warn!(gateway = %name, left = %report, "the drain deadline has passed");
        }
        leaving.signal();
        let _ = following.await;
        tracing::info!(gateway = %name, "stopped");
        Ok(())
    })
}
