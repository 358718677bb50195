//! `seawall services` and `seawall saga`: asking a control node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use seawall_discovery::Control;
use seawall_saga::{SagaView, StepView};
use seawall_types::Snapshot;

use crate::config::Loaded;
use crate::process;

#[derive(clap::Args)]
pub(crate) struct Which {
    /// The control node. Default: the file's `control.listen`, or 127.0.0.1:7400.
    #[arg(long)]
    control: Option<SocketAddr>,
    /// The file. Default: seawall.yaml, if there is one here.
    #[arg(long, short)]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct ServicesArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(clap::Subcommand)]
pub(crate) enum SagaCommand {
    /// The latest sagas, newest first.
    List {
        #[command(flatten)]
        which: Which,
        /// Only those in this status: running, undoing, completed, undone, parked.
        #[arg(long)]
        status: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// One saga with its steps.
    Show {
        /// Its id.
        id: String,
        #[command(flatten)]
        which: Which,
    },
}

impl Which {
    /// Whether the node was named, so that no other will do.
    pub(crate) fn is_named(&self) -> bool {
        self.control.is_some()
    }

    /// The file, or all defaults.
    pub(crate) fn loaded(&self) -> anyhow::Result<Loaded> {
        process::config(self.config.as_deref())
    }

    /// The control node's address.
    pub(crate) fn addr(&self) -> anyhow::Result<SocketAddr> {
        match self.control {
            Some(addr) => Ok(addr),
            None => Ok(self.loaded()?.control_addr()),
        }
    }

    pub(crate) fn get<T: for<'de> serde::Deserialize<'de>>(&self, path: &str) -> anyhow::Result<T> {
        self.send(Method::GET, path, Vec::new())
    }

    pub(crate) fn send<T: for<'de> serde::Deserialize<'de>>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<T> {
        Ok(serde_json::from_slice(&self.exchange(method, path, body)?)?)
    }

    /// A request whose answer is that it is done.
    pub(crate) fn tell(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<()> {
        self.exchange(method, path, body).map(drop)
    }

    fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<bytes::Bytes> {
        let control = Control::new([self.addr()?]);
        let answer = control.send(method, path, body, Duration::from_secs(10));
        Ok(process::runtime()?.block_on(answer)?)
    }
}

pub(crate) fn services(args: &ServicesArgs) -> anyhow::Result<()> {
    let snapshot: Snapshot = args.which.get("/v1/services")?;
    println!("{:<16} {:<20} {:<24} {:<10} VERSION", "SERVICE", "INSTANCE", "ADDRESS", "STATUS");
    for (service, instances) in &snapshot.services {
        for instance in instances.iter() {
            let (addr, version) = (instance.addr(), instance.version.as_deref().unwrap_or("-"));
            println!(
                "{:<16} {:<20} {:<24} {:<10} {}",
                service.as_str(),
                instance.id.as_str(),
                addr,
                instance.status,
                version
            );
        }
    }
    Ok(())
}

pub(crate) fn saga(command: SagaCommand) -> anyhow::Result<()> {
    match command {
        SagaCommand::List { which, status, limit } => {
            let status = status.map(|status| format!("&status={status}")).unwrap_or_default();
            let sagas: Vec<SagaView> = which.get(&format!("/v1/sagas?limit={limit}{status}"))?;
            println!("{:<20} {:<16} {:<10} {:<24} KEY", "ID", "SAGA", "STATUS", "STARTED");
            for saga in sagas {
                let started = format!("{:.0}", saga.started);
                println!("{:<20} {:<16} {:<10} {started:<24} {}", saga.id, saga.name, saga.status.as_str(), saga.key);
            }
        }
        SagaCommand::Show { id, which } => {
            let saga: SagaView = which.get(&format!("/v1/sagas/{id}"))?;
            println!("{} {}  {}", saga.name, saga.id, saga.status.as_str());
            println!("  key      {}\n  started  {:.3}", saga.key, saga.started);
            if let Some(ended) = saga.ended {
                println!("  ended    {ended:.3}");
            }
            if let Some(error) = &saga.error {
                println!("  because  {error}");
            }
            for step in &saga.steps {
                show("", step);
                if let Some(undo) = &step.undo {
                    show("undo ", undo);
                }
            }
        }
    }
    Ok(())
}

fn show(prefix: &str, step: &StepView) {
    let took = match (step.intended, step.ended) {
        (Some(from), Some(to)) => format!("{} ms", to.duration_since(from).as_millis()),
        _ => String::new(),
    };
    let name = format!("{prefix}{}", step.name);
    println!("  {name:<16} {:<9} {} attempt(s) {took:<10} {}", step.status, step.attempts, step.call);
    if let Some(error) = step.error.as_ref().filter(|_| step.status != "done") {
        println!("  {:<16} {error}", "");
    }
}
