//! `seawall sidecar`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};
use seawall_discovery::{Control, Subscriber, SubscriberConfig};
use seawall_proxy::Upstreams;
use seawall_sidecar::app::App;
use seawall_sidecar::{Sidecar, SidecarConfig};
use seawall_types::{InstanceId, ServiceName};

use crate::process::Hangup;
use crate::{admin, guard, process};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The service that it stands beside.
    #[arg(long)]
    service: ServiceName,
    /// Where the service itself listens.
    #[arg(long)]
    app: SocketAddr,
    /// The file, for policies and health checks; without it, all defaults.
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// The instance's id, unique within the service. Default: made from the address.
    #[arg(long)]
    id: Option<InstanceId>,
    /// Where others call the service.
    #[arg(long, default_value = "127.0.0.1:0")]
    inbound: SocketAddr,
    /// Where the service calls others: http://ADDRESS/<service>/<path>.
    #[arg(long, default_value = "127.0.0.1:0")]
    outbound: SocketAddr,
    /// The control nodes. Default: the file's `control.listen` on this machine.
    #[arg(long, value_delimiter = ',')]
    control: Vec<SocketAddr>,
    /// Where `/metrics` and `/status` are answered.
    #[arg(long, default_value = "127.0.0.1:0")]
    admin: SocketAddr,
    /// Workers on each side.
    #[arg(long, default_value_t = 1)]
    workers: u8,
    /// The service's command, started and stopped with the sidecar.
    #[arg(last = true)]
    command: Vec<String>,
}

/// How long the service has to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = process::runtime()?;
    let hangup = Hangup::listen(&runtime)?;
    let loaded = process::config(args.config.as_deref())?;
    seawall_telemetry::logs::init(false);
    let service = loaded.config.services.get(&args.service).cloned().unwrap_or_default();
    let id = match args.id {
        Some(id) => id,
        None => InstanceId::try_new(&format!("{}-{}", args.service, args.app.port()))?,
    };
    runtime.block_on(async {
        let (trigger, drain) = seawall_drain::channel();
        let config = SidecarConfig {
            service: args.service.clone(),
            id: id.clone(),
            app: args.app,
            protocol: service.protocol,
            inbound: args.inbound,
            outbound: args.outbound,
            workers: args.workers,
            health: service.health,
            drain: service.drain,
            version: service.version,
            zone: service.zone,
        };
        let upstreams = Upstreams::new(loaded.config.policies.clone())?;
        upstreams.speak(loaded.config.protocols());
        hangup.reload(&loaded, upstreams.clone());
        let sidecar = Sidecar::bind(config)?;
        let (inbound, outbound) = (sidecar.inbound(), sidecar.outbound());
        let nodes = if args.control.is_empty() { vec![loaded.control_addr()] } else { args.control };
        let control = Control::new(nodes);
        let name = format!("sidecar-{}-{id}-{}", args.service, process::unique());
        let file = loaded.data().join("snapshots").join(format!("sidecar-{}-{id}.json", args.service));
        let subscriber = Subscriber::new(SubscriberConfig { name, file: Some(file) }, control.clone());
        upstreams.publish(subscriber.snapshot());
        let admin = admin::start(args.admin, upstreams.clone(), drain.clone(), None).await?;
        let (leaving, follow) = seawall_drain::channel();
        let publisher = upstreams.clone();
        let following = tokio::spawn(subscriber.run(follow, move |snapshot| publisher.publish(snapshot)));
        tracing::info!(service = %args.service, instance = %id, %inbound, %outbound, %admin, app = %args.app, "sidecar is ready");

        let mut app = start_app(&args.command, args.app, outbound)?;
        let mut running = tokio::spawn(sidecar.run(upstreams, control, drain));
        let outcome = tokio::select! {
            ended = &mut running => return Ok(ended??),
            stopped = process::stopped() => stopped,
            ended = app_ended(&mut app) => Err(anyhow::anyhow!("the service has ended: {}", ended?)),
        };
        trigger.signal();
        running.await??;
        leaving.signal();
        let _ = following.await;
        if let Some(app) = app {
            app.stop(PATIENCE, terminate).await.context("cannot stop the service")?;
        }
        outcome
    })
}

fn start_app(command: &[String], app: SocketAddr, outbound: SocketAddr) -> anyhow::Result<Option<App>> {
    if command.is_empty() {
        return Ok(None);
    }
    let port = app.port().to_string();
    let mut child = tokio::process::Command::new(std::env::current_exe()?);
    // Of a group of its own, so that Ctrl-C reaches the sidecar alone, which stops the service when its turn has come.
    child.args(guard::words(std::process::id(), true)).process_group(0);
    child.args(command.iter().map(|word| word.replace("${PORT}", &port)));
    child.env("PORT", &port).env("SEAWALL_URL", format!("http://{outbound}"));
    Ok(Some(App::spawn(child).with_context(|| format!("cannot run `{}`", command.join(" ")))?))
}

async fn app_ended(app: &mut Option<App>) -> std::io::Result<std::process::ExitStatus> {
    match app {
        Some(app) => app.ended().await,
        None => std::future::pending().await,
    }
}

/// Sends SIGTERM; a process that is gone already needs none.
pub(crate) fn terminate(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
}
