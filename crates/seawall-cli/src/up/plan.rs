//! Which processes a file asks for, on which ports.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use seawall_types::ServiceName;

use crate::config::Loaded;

/// One process.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) dir: PathBuf,
    /// May start processes of its own.
    pub(crate) group: bool,
    /// How long it may take to stop before it is killed.
    pub(crate) patience: Duration,
    /// What a person opens.
    pub(crate) open: Option<String>,
    /// Where `/healthz` is answered, for what has one.
    pub(crate) ready: Option<SocketAddr>,
}

/// One copy of a service: the service, and the sidecar that stands before it.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) id: String,
    pub(crate) app: Spec,
    pub(crate) sidecar: Spec,
}

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) control: Spec,
    pub(crate) control_addr: SocketAddr,
    pub(crate) gateways: Vec<Spec>,
    pub(crate) services: BTreeMap<ServiceName, Vec<Replica>>,
}

impl Plan {
    pub(crate) fn new(loaded: &Loaded) -> anyhow::Result<Self> {
        let seawall = std::env::current_exe().context("cannot find this program")?;
        let seawall = seawall.to_string_lossy().into_owned();
        let file = loaded.file.to_string_lossy().into_owned();
        let mut ports = Ports::new(loaded);
        let spec = |name: String, command: Vec<String>, patience: Duration| Spec {
            name,
            command,
            env: BTreeMap::new(),
            dir: loaded.base().to_owned(),
            group: false,
            patience,
            open: None,
            ready: None,
        };
        let role = |words: &[&str]| -> Vec<String> {
            [&[&*seawall], words, &["--config", &*file]].concat().into_iter().map(str::to_owned).collect()
        };
        let mut control = spec("control".into(), role(&["control"]), Duration::from_secs(45));
        let control_addr = loaded.control_addr();
        control.ready = Some(control_addr);
        control.open = Some(format!("http://{control_addr}/v1/services"));

        let mut gateways = Vec::new();
        for (name, gateway) in &loaded.config.gateways {
            let admin = if gateway.admin.port() == 0 { ports.free()? } else { gateway.admin };
            let command = role(&["gateway", name.as_str(), "--admin", &admin.to_string()]);
            let patience = gateway.drain.get() + Duration::from_secs(5);
            let mut gateway_spec = spec(format!("gateway {name}"), command, patience);
            gateway_spec.ready = Some(admin);
            gateway_spec.open = Some(format!("http://{}", gateway.listen));
            gateways.push(gateway_spec);
        }

        let mut services = BTreeMap::new();
        for (name, service) in &loaded.config.services {
            let Some(run) = &service.run else { continue };
            let mut replicas = Vec::new();
            for number in 1..=service.replicas {
                let id = format!("{name}-{number}");
                let app_addr = match service.port {
                    Some(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                    None => ports.free()?,
                };
                let (outbound, admin) = (ports.free()?, ports.free()?);
                let port = app_addr.port().to_string();
                let words = run.0.iter().map(|word| word.replace("${PORT}", &port)).collect();
                let mut app = spec(id.clone(), words, Duration::from_secs(10));
                app.group = true;
                app.env = service.env.clone();
                app.env.insert("PORT".into(), port);
                app.env.insert("SEAWALL_URL".into(), format!("http://{outbound}"));
                let sidecar = role(&[
                    "sidecar",
                    "--service",
                    name.as_str(),
                    "--id",
                    &id,
                    "--app",
                    &app_addr.to_string(),
                    "--outbound",
                    &outbound.to_string(),
                    "--admin",
                    &admin.to_string(),
                ]);
                // Announcing, draining and closing each have their part of the deadline.
                let patience = service.drain.get() * 2 + Duration::from_secs(10);
                let mut sidecar = spec(format!("{id} sidecar"), sidecar, patience);
                sidecar.ready = Some(admin);
                replicas.push(Replica { id, app, sidecar });
            }
            services.insert(name.clone(), replicas);
        }
        Ok(Self { control, control_addr, gateways, services })
    }

    /// The names of all processes.
    pub(crate) fn names(&self) -> Vec<String> {
        let replicas = self.services.values().flatten();
        let replicas = replicas.flat_map(|replica| [&replica.app.name, &replica.sidecar.name]);
        let rest = [&self.control].into_iter().chain(&self.gateways).map(|spec| &spec.name);
        rest.chain(replicas).cloned().collect()
    }
}

/// Says which of the file's own addresses somebody else listens on, before anything is started: the parts of this fleet
/// would talk to strangers.
pub(crate) fn free(loaded: &Loaded) -> anyhow::Result<()> {
    let config = &loaded.config;
    let gateways = config.gateways.iter().map(|(name, gateway)| (format!("gateways.{name}.listen"), gateway.listen));
    let services = config.services.iter().filter_map(|(name, service)| {
        let port = service.port.filter(|_| service.run.is_some())?;
        Some((format!("services.{name}.port"), SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
    });
    let control = ("control.listen".to_owned(), config.control.listen);
    let taken = [control].into_iter().chain(gateways).chain(services).filter_map(|(key, addr)| {
        let error = TcpListener::bind(addr).err()?;
        Some(format!("\n  {key}: cannot listen on {addr}: {error}"))
    });
    let taken: String = taken.collect();
    anyhow::ensure!(taken.is_empty(), "nothing was started:{taken}\nstop what listens there, or change the file");
    Ok(())
}

/// Hands out ports below the range from which the kernel takes those of outgoing connections, so that a part can come
/// back to its port after a restart.
struct Ports {
    next: u16,
    left: u16,
    taken: Vec<u16>,
}

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

impl Ports {
    fn new(loaded: &Loaded) -> Self {
        let config = &loaded.config;
        let gateways = config.gateways.values().flat_map(|gateway| [gateway.listen.port(), gateway.admin.port()]);
        let fixed = config.services.values().filter_map(|service| service.port);
        let taken = gateways.chain(fixed).chain([config.control.listen.port()]).collect();
        // Begins anywhere, so that two fleets on one machine seldom try the same.
        Self { next: fastrand_port(), left: COUNT, taken }
    }

    fn free(&mut self) -> anyhow::Result<SocketAddr> {
        while self.left > 0 {
            let port = FIRST + self.next % COUNT;
            self.next = (self.next + 1) % COUNT;
            self.left -= 1;
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if !self.taken.contains(&port) && TcpListener::bind(addr).is_ok() {
                return Ok(addr);
            }
        }
        anyhow::bail!("no free port from {FIRST} to {}", FIRST + COUNT - 1)
    }
}

fn fastrand_port() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(std::process::id()) % u64::from(COUNT)) as u16
}
