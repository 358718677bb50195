//! The sidecar: a proxy beside one instance of a service.
//!
//! Inbound, it stands before the service: it registers the instance once it is healthy, passes requests on, and takes
//! the instance out in order. Outbound, it is how the service calls others: `http://127.0.0.1:<port>/<service>/<path>`,
//! found, balanced and guarded by the policies of the file. The service needs no library.

pub mod app;
mod config;
mod health;
mod routers;

pub use config::{Command, HealthConfig, ServiceConfig, SidecarConfig};

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use seawall_discovery::{Control, Registration};
use seawall_drain::{Drain, Trigger};
use seawall_proxy::{Server, ServerConfig, Upstreams};

use crate::routers::{Inbound, Outbound};

/// A sidecar that could not start.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// An address.
    #[error("the sidecar of `{service}` cannot listen on {addr} ({side}): {source}")]
    Listen {
        /// The service.
        service: String,
        /// Inbound or outbound.
        side: &'static str,
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The operating system.
    #[error("the sidecar of `{service}` cannot start its workers: {source}")]
    Start {
        /// The service.
        service: String,
        /// Why.
        source: io::Error,
    },
}

/// A sidecar that has its addresses and does not serve yet.
#[derive(Debug)]
pub struct Sidecar {
    config: SidecarConfig,
    inbound: Server,
    outbound: Server,
}

impl Sidecar {
    /// Binds both sides.
    ///
    /// # Errors
    /// [`SidecarError::Listen`].
    pub fn bind(config: SidecarConfig) -> Result<Self, SidecarError> {
        let bind = |side: &'static str, listen| {
            let server = ServerConfig {
                name: format!("sidecar {side}").into(),
                listen,
                workers: usize::from(config.workers),
                connections: 10_000,
                edge: None,
                tls: None,
                access_log: None,
            };
            let service = config.service.to_string();
            Server::bind(server).map_err(|source| SidecarError::Listen { service, side, addr: listen, source })
        };
        let (inbound, outbound) = (bind("inbound", config.inbound)?, bind("outbound", config.outbound)?);
        Ok(Self { inbound, outbound, config })
    }

    /// Where others call the instance.
    pub fn inbound(&self) -> SocketAddr {
        self.inbound.addr()
    }

    /// Where the instance calls others.
    pub fn outbound(&self) -> SocketAddr {
        self.outbound.addr()
    }

    /// Serves until `drain` signals, then takes the instance out: declare it draining; wait until every live caller
    /// has acknowledged that; finish what is in flight; deregister; close the way out. The service's own
    /// process is the caller's to stop, when this has returned.
    ///
    /// # Errors
    /// [`SidecarError::Start`].
    pub async fn run(self, upstreams: Upstreams, control: Control, drain: Drain) -> Result<(), SidecarError> {
        let Self { config, inbound, outbound } = self;
        let (closing_in, watch_in) = seawall_drain::channel();
        let (closing_out, watch_out) = seawall_drain::channel();
        let (leaving, watch_leave) = seawall_drain::channel();
        let start = |source| SidecarError::Start { service: config.service.to_string(), source };
        let instance = config.instance(inbound.addr());
        let own = Upstreams::new(routers::inbound_policies()).expect("the policies of the way in are in order");
        own.speak([(config.service.clone(), config.protocol)].into());
        own.publish(Arc::new(routers::only(&config.service, config.app)));
        outbound.start(&upstreams, &watch_out, Outbound::default).map_err(start)?;
        let service = config.service.clone();
        inbound.start(&own, &watch_in, move || Inbound::new(service.clone())).map_err(start)?;

        let registration = Registration::new(control, config.service.clone(), instance);
        let beating = tokio::spawn(registration.clone().run(watch_leave));
        tokio::select! {
            () = health::watch(&config, &registration) => {}
            () = drain.signaled() => {}
        }
        let beating = Beating { leaving, task: beating };
        leave(&config, &registration, closing_in, closing_out, beating).await;
        Ok(())
    }
}

/// The heartbeats, and how to end them.
struct Beating {
    leaving: Trigger,
    task: tokio::task::JoinHandle<()>,
}

/// The way out, in order. Says what it waits for.
async fn leave(
    config: &SidecarConfig,
    registration: &Registration,
    closing_in: Trigger,
    closing_out: Trigger,
    beating: Beating,
) {
    let (service, instance) = (&config.service, &config.id);
    let deadline = config.drain.get();
    tracing::info!(%service, %instance, "draining: waiting until callers have stopped choosing this instance");
    match registration.drain(deadline / 3).await {
        Ok(applied) if applied.laggards.is_empty() => {}
        Ok(applied) => tracing::warn!(%service, %instance, laggards = ?applied.laggards, "going on without them"),
        Err(error) => tracing::warn!(%service, %instance, %error, "cannot announce the drain; going on"),
    }
    tracing::info!(%service, %instance, waiting_for = %closing_in.waiting(), "draining: finishing what is in flight");
    let report = closing_in.drain(deadline).await;
    if !report.is_clean() {
        tracing::warn!(%service, %instance, left = %report, "the drain deadline has passed");
    }
    // A heartbeat after the deregistration would be answered with "unknown", and would register the instance again.
    beating.leaving.signal();
    let _ = beating.task.await;
    if let Err(error) = registration.deregister().await {
        tracing::warn!(%service, %instance, %error, "cannot deregister; the registration ends by its time-to-live");
    }
    let report = closing_out.drain(deadline / 3).await;
    if !report.is_clean() {
        tracing::warn!(%service, %instance, left = %report, "calls to others were still open");
    }
    tracing::info!(%service, %instance, "drained");
}
