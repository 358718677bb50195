//! The front door: a table of routes on top of the data plane.

mod auth;
mod config;
mod filter;
mod index;
mod matcher;
mod path;
mod routes;
mod table;
mod target;

pub use auth::claims::ClaimConfig;
pub use auth::credential::CredentialConfig;
pub use auth::identity::Identity;
pub use auth::jwk::Algorithm;
pub use auth::keys::KeysConfig;
pub use config::{GatewayConfig, MatchConfig, Precedence, RouteConfig, ValueConfig, WeightConfig};
pub use filter::{
    AbortConfig, AffinityConfig, AffinityCookie, ApiKeyConfig, BasicConfig, Coding, CompressConfig, ConditionConfig,
    ConsumerConfig, CorsConfig, DecompressConfig, DedupeConfig, DelayConfig, ExternalAuthConfig, FallbackConfig,
    FaultConfig, FilterConfig, FilterError, HmacConfig, IpConfig, JsonChange, JsonConfig, JwtConfig, Keep,
    LocationConfig, MirrorConfig, OidcConfig, OnFailure, RedirectConfig, Relay, RequestIdConfig, RewriteConfig,
    RewriteHeaderConfig, RewriteQueryConfig, RuleConfig, ServiceConfig, SharedConfig, SizeConfig, StripVersion,
    UserConfig,
};
pub use filter::{BodyConfig, ParameterConfig, Place, ValidateConfig};
pub use routes::{Changes, Routes};
pub use table::{RouteProblem, RouteTable, Verdict};

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use seawall_drain::Drain;
use seawall_proxy::tls::{Tls, TlsError};
use seawall_proxy::{Server, ServerConfig, Upstreams};

/// A gateway that could not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Its routes are wrong.
    #[error("gateway `{name}`: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Routes {
        /// The gateway.
        name: Arc<str>,
        /// What is wrong.
        problems: Vec<RouteProblem>,
    },
    /// Its certificates.
    #[error("gateway `{name}`: tls: {source}")]
    Tls {
        /// The gateway.
        name: Arc<str>,
        /// What is wrong.
        source: TlsError,
    },
    /// Its address.
    #[error("gateway `{name}` cannot listen on {addr}: {source}")]
    Listen {
        /// The gateway.
        name: Arc<str>,
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The operating system.
    #[error("gateway `{name}` cannot start its workers: {source}")]
    Start {
        /// The gateway.
        name: Arc<str>,
        /// Why.
        source: io::Error,
    },
}

/// A gateway that has its address and does not serve yet.
#[derive(Debug)]
pub struct Gateway {
    name: Arc<str>,
    routes: Routes,
    server: Server,
}

impl Gateway {
    /// Checks the routes and binds the address.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub fn bind(name: &str, config: GatewayConfig) -> Result<Self, GatewayError> {
        Self::on(name, config, Server::bind)
    }

    /// The same on the listeners of a gateway that serves, which are to be its own.
    ///
    /// # Errors
    /// [`GatewayError`]; [`GatewayError::Listen`] if they listen elsewhere.
    pub fn adopt(name: &str, config: GatewayConfig, listeners: Vec<TcpListener>) -> Result<Self, GatewayError> {
        Self::on(name, config, |config| Server::adopt(config, listeners))
    }

    fn on(
        name: &str,
        config: GatewayConfig,
        bind: impl FnOnce(ServerConfig) -> io::Result<Server>,
    ) -> Result<Self, GatewayError> {
        let name: Arc<str> = name.into();
        let table =
            RouteTable::of(&config).map_err(|problems| GatewayError::Routes { name: name.clone(), problems })?;
        let tls = config.tls.clone().map(Tls::start).transpose();
        let tls = tls.map_err(|source| GatewayError::Tls { name: name.clone(), source })?;
        let server = bind(ServerConfig {
            name: format!("gateway {name}").into(),
            listen: config.listen,
            workers: config.workers.map_or_else(cores, usize::from),
            connections: config.connections as usize,
            edge: Some(config.trusted_hops),
            tls,
            access_log: config.access_log.clone(),
        })
        .map_err(|source| GatewayError::Listen { name: name.clone(), addr: config.listen, source })?;
        Ok(Self { name, routes: Routes::new(config, table), server })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Its listeners once more, to be handed over.
    ///
    /// # Errors
    /// When the operating system has no more descriptors.
    pub fn listeners(&self) -> io::Result<Vec<TcpListener>> {
        self.server.listeners()
    }

    /// Its routes, to be replaced while it serves.
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// Starts the workers and returns; they end when `drain` signals and their last request is done.
    ///
    /// # Errors
    /// [`GatewayError::Start`].
    pub fn start(self, upstreams: &Upstreams, drain: &Drain) -> Result<(), GatewayError> {
        let (name, routes) = (self.name, self.routes);
        self.server.start(upstreams, drain, || routes.router()).map_err(|source| GatewayError::Start { name, source })
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
