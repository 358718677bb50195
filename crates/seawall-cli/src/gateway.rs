//! `seawall gateway`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use seawall_discovery::{Control, Follower, Subscriber, SubscriberConfig};
use seawall_gateway::{Gateway, Routes};
use seawall_proxy::Upstreams;
use seawall_types::Traffic;
use tokio::net::TcpListener;

use crate::config::route_files;
use crate::process::Hangup;
use crate::{admin, handover, process};

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
    /// Take the place of the gateway of this name that serves on this machine: it hands its listeners over, finishes its requests and
    /// ends. No connection is refused.
    #[arg(long)]
    take_over: bool,
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
        upstreams.speak(loaded.config.protocols());
        let socket = handover::socket(&loaded.data(), name);
        let mut taken = args.take_over.then(|| handover::take(&socket)).transpose()?;
        let gateway = match &mut taken {
            Some(taken) => Gateway::adopt(name, config.clone(), std::mem::take(&mut taken.listeners))?,
            None => Gateway::bind(name, config.clone())?,
        };
        let listeners = gateway.listeners()?;
        let addr = gateway.addr();
        let routes = gateway.routes();
        let nodes = if args.control.is_empty() { vec![loaded.control_addr()] } else { args.control.clone() };
        let who = format!("gateway-{name}-{}", process::unique());
        let file = Some(loaded.data().join("snapshots").join(format!("gateway-{name}.json")));
        let control = Control::new(nodes);
        let subscriber = Subscriber::new(SubscriberConfig { name: who, file }, control.clone());
        let shifts = Follower::new(control, Some(loaded.data().join("snapshots").join(format!("traffic-{name}.json"))));
        let again = Again {
            file: loaded.file.clone(),
            name: name.to_owned(),
            upstreams: upstreams.clone(),
            routes,
            traffic: Arc::new(Mutex::new(shifts.last().clone())),
        };
        again.shift();
        // The last good snapshot is in use before the first request is taken.
        upstreams.publish(subscriber.snapshot());
        let addr_of_admin = args.admin.unwrap_or(config.admin);
        let admin_listener = match &taken {
            Some(taken) => taken.admin.try_clone()?,
            None => std::net::TcpListener::bind(addr_of_admin)
                .with_context(|| format!("the admin server cannot listen on {addr_of_admin}"))?,
        };
        admin_listener.set_nonblocking(true)?;
        let admin = admin_listener.local_addr()?;
        let own = admin_listener.try_clone()?;
        let serving = {
            let listener = TcpListener::from_std(admin_listener)?;
            admin::serve(listener, upstreams.clone(), drain.clone(), Some(gateway.routes()))
        };
        gateway.start(&upstreams, &drain)?;
        if let Some(taken) = taken {
            taken.ready();
        }
        let (go, mut successor) = tokio::sync::mpsc::channel(1);
        let go_on = move || {
            // Whoever does not wait any more is going already.
            let _ = go.blocking_send(());
        };
        let offer = handover::offer(&socket, listeners, own, go_on)
            .inspect_err(|error| tracing::warn!("no successor can take over: {error:#}"));
        let (leaving, follow) = seawall_drain::channel();
        let publisher = upstreams.clone();
        let following = tokio::spawn(subscriber.run(follow, move |snapshot| publisher.publish(snapshot)));
        if !config.splits.is_empty() {
            let again = again.clone();
            tokio::spawn(shifts.run(drain.clone(), move |traffic| {
                again.traffic().clone_from(traffic);
                again.shift();
            }));
        }
        tokio::spawn(again.clone().on_change(config.routes_from.clone()));
        tokio::spawn(hangup.each(move || again.read()));
        tracing::info!(gateway = %name, %addr, %admin, "ready");
        tokio::select! {
            stopped = process::stopped() => stopped?,
            Some(()) = successor.recv() => {
                // The successor answers there.
                serving.abort();
                tracing::info!(gateway = %name, "a successor serves");
            }
        }
        drop(offer);
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

/// How often a directory of routes is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What reads the file again while requests pass: policies, what services speak, and routes.
#[derive(Clone)]
struct Again {
    file: PathBuf,
    name: String,
    upstreams: Upstreams,
    routes: Routes,
    /// What control has said last of splits.
    traffic: Arc<Mutex<Traffic>>,
}

impl Again {
    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Divides requests as control says.
    fn shift(&self) {
        let splits = self.routes.splits();
        let applied = splits.apply(&self.traffic().splits);
        if splits.is_empty() {
            return;
        }
        match applied {
            Ok(()) => tracing::info!(shares = ?splits.shares(), "traffic is divided"),
            Err(why) => {
                tracing::warn!(why, shares = ?splits.shares(), "traffic is divided otherwise than control says")
            }
        }
    }

    fn read(&self) {
        let taken = process::read(&self.file).and_then(|loaded| {
            let (_, config) = loaded.gateway(Some(&self.name)).map_err(|error| error.to_string())?;
            let now = self.routes.config();
            let changes = self.routes.replace(config).map_err(|problems| {
                problems.iter().map(|problem| format!("gateways.{}.{problem}\n", self.name)).collect::<String>()
            })?;
            process::policies(&loaded, &self.upstreams)?;
            self.upstreams.speak(loaded.config.protocols());
            let (added, changed, removed) = (&changes.added, &changes.changed, &changes.removed);
            if !changes.is_empty() {
                tracing::info!(gateway = %self.name, ?added, ?changed, ?removed, "the routes have changed");
            }
            if now.splits != config.splits {
                // Those that are written anew begin as the file says.
                self.shift();
                if now.splits.is_empty() {
                    tracing::warn!(gateway = %self.name, "shifts of the first splits are followed after a restart");
                }
            }
            if (now.listen, &now.tls, now.workers, now.connections, now.trusted_hops)
                != (config.listen, &config.tls, config.workers, config.connections, config.trusted_hops)
            {
                tracing::warn!(
                    gateway = %self.name,
                    "listen, tls, workers, connections and trusted_hops stay as they were: they take a restart"
                );
            }
            Ok(())
        });
        process::said(&self.file, "routes and policies", taken);
    }

    /// Reads again when the files of a directory have changed.
    async fn on_change(self, directory: Option<PathBuf>) {
        let Some(directory) = directory else { return };
        let mut seen = written(&directory);
        loop {
            tokio::time::sleep(LOOK).await;
            let now = written(&directory);
            if now != seen {
                seen = now;
                self.read();
            }
        }
    }
}

type Written = Vec<(PathBuf, Option<SystemTime>, u64)>;

fn written(directory: &Path) -> Written {
    let file = |file: PathBuf| {
        let about = std::fs::metadata(&file).ok();
        (file, about.as_ref().and_then(|about| about.modified().ok()), about.map_or(0, |about| about.len()))
    };
    route_files(directory).unwrap_or_default().into_iter().map(file).collect()
}
