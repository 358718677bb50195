//! TLS towards clients: certificates by the name that a client asks for, read again when their files change, and the client's
//! own certificate where one is wanted.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What a client may agree on, in order.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// TLS in front of a gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificates. Which one a client gets depends on the name that it asks for, and on those in the certificates; the
    /// first is for everybody else.
    #[schemars(length(min = 1))]
    pub certificates: Vec<CertificateConfig>,
    /// The oldest version that is spoken: `1.2` or `1.3`. Default 1.2.
    #[serde(default = "oldest")]
    pub min_version: String,
    /// Clients' own certificates. Default: none are asked for.
    #[serde(default)]
    pub clients: Option<ClientsConfig>,
}

impl TlsConfig {
    /// The same with files that begin at this directory where they are relative.
    #[must_use]
    pub fn within(mut self, directory: &Path) -> Self {
        let pairs = self.certificates.iter_mut().flat_map(|one| [&mut one.chain, &mut one.key]);
        for file in pairs.chain(self.clients.as_mut().map(|clients| &mut clients.authorities)) {
            *file = directory.join(&file);
        }
        self
    }
}

fn oldest() -> String {
    "1.2".to_owned()
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateConfig {
    /// The certificate and those between it and its root, as PEM.
    pub chain: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

/// What is asked of clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientsConfig {
    /// The authorities whose certificates count, as PEM.
    pub authorities: PathBuf,
    /// Whether a client without a certificate is turned away. Default true.
    #[serde(default = "yes")]
    pub required: bool,
}

const fn yes() -> bool {
    true
}

/// What is wrong with certificates, said of the file that is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

fn wrong(file: &Path, why: impl fmt::Display) -> TlsError {
    TlsError(format!("{}: {why}", file.display()))
}

/// What is known of a connection by TLS.
#[derive(Debug)]
pub struct Secure {
    /// The name that the client asked for, if it said so.
    pub server_name: Option<String>,
    /// Whom the client's certificate is for, if it has given one.
    pub client: Option<Identity>,
    certificate: Arc<Certificate>,
}

impl Secure {
    /// Whether a request for this host may come by this connection: the host is the name that the client asked for, or one of
    /// the same certificate, or it asked for none.
    pub fn serves(&self, host: &str) -> bool {
        match &self.server_name {
            Some(name) => name.eq_ignore_ascii_case(host) || self.certificate.is_for(host),
            None => true,
        }
    }
}

/// Whom a verified certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The subject, as text.
    pub subject: String,
    /// The alternative names: hosts, addresses of mail, and URIs such as those of SPIFFE.
    pub names: Vec<String>,
    /// SHA-256 of the certificate, in hexadecimal digits.
    pub fingerprint: String,
}

impl Identity {
    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        let fingerprint = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Self { subject: parsed.subject().to_string(), names: names(&parsed), fingerprint })
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        _ => None,
    };
    alternatives.value.general_names.iter().filter_map(name).collect()
}

/// A certificate in use.
#[derive(Debug)]
struct Certificate {
    key: Arc<CertifiedKey>,
    /// The hosts that it is for, in small letters; `*.shop.example` is one.
    hosts: Vec<String>,
    /// When it ends, in seconds since 1970.
    ends: i64,
}

impl Certificate {
    fn read(config: &CertificateConfig, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let CertificateConfig { chain, key } = config;
        let certificates = CertificateDer::pem_file_iter(chain).map_err(|error| wrong(chain, error))?;
        let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|error| wrong(chain, error))?;
        let Some(first) = certificates.first() else { return Err(wrong(chain, "holds no certificate in PEM")) };
        let (_, parsed) =
            X509Certificate::from_der(first).map_err(|error| wrong(chain, format!("no X.509 certificate: {error}")))?;
        let hosts = names(&parsed).into_iter().map(|name| name.to_ascii_lowercase()).collect();
        let ends = parsed.validity().not_after.timestamp();
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error))?;
        let certified = CertifiedKey::from_der(certificates, private, provider)
            .map_err(|error| wrong(key, format!("does not go with {}: {error}", chain.display())))?;
        Ok(Self { key: Arc::new(certified), hosts, ends })
    }

    fn is_for(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.hosts.iter().any(|name| match name.strip_prefix("*.") {
            Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
            None => *name == host,
        })
    }
}

/// The certificates of a listener, by name.
#[derive(Debug, Default)]
struct Certificates {
    all: Vec<Arc<Certificate>>,
    by_name: HashMap<String, Arc<Certificate>>,
}

impl Certificates {
    fn new(all: Vec<Arc<Certificate>>) -> Self {
        let mut by_name = HashMap::new();
        for certificate in &all {
            for host in &certificate.hosts {
                by_name.entry(host.clone()).or_insert_with(|| certificate.clone());
            }
        }
        Self { all, by_name }
    }

    fn find(&self, name: Option<&str>) -> Option<&Arc<Certificate>> {
        let named = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let wild = || Some(format!("*.{}", name.split_once('.')?.1));
            self.by_name.get(&name).or_else(|| self.by_name.get(&wild()?))
        });
        named.or_else(|| self.all.first())
    }
}

/// One listener's TLS: its settings, and its certificates as they are now.
pub struct Tls {
    config: TlsConfig,
    server: Arc<rustls::ServerConfig>,
    certificates: Arc<Resolver>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("config", &self.config).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Resolver(ArcSwap<Certificates>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().find(hello.server_name()).map(|certificate| certificate.key.clone())
    }
}

impl Tls {
    /// Reads the certificates; from then on a thread looks every second whether their files have changed, as long as this is
    /// there. What cannot be read then is said once in the log, and the last good ones stay.
    ///
    /// # Errors
    /// [`TlsError`] for a file that is missing or says something else, a key of another certificate, or an unknown version.
    pub fn start(config: TlsConfig) -> Result<Arc<Self>, TlsError> {
        let tls = Arc::new(Self::try_new(config)?);
        let weak = Arc::downgrade(&tls);
        let watching = std::thread::Builder::new().name("certificates".to_owned()).spawn(move || watch(&weak));
        watching.map_err(|error| TlsError(format!("the certificates cannot be watched: {error}")))?;
        Ok(tls)
    }

    /// The same without watching: for a check.
    ///
    /// # Errors
    /// As there.
    pub fn try_new(config: TlsConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions: &[&'static rustls::SupportedProtocolVersion] = match &*config.min_version {
            "1.2" => &[&rustls::version::TLS13, &rustls::version::TLS12],
            "1.3" => &[&rustls::version::TLS13],
            other => return Err(TlsError(format!("min_version `{other}`: there is 1.2 and 1.3"))),
        };
        if config.certificates.is_empty() {
            return Err(TlsError("certificates: at least one is needed".to_owned()));
        }
        let certificates = Arc::new(Resolver(ArcSwap::from_pointee(read(&config, &provider)?)));
        let general = |error: rustls::Error| TlsError(error.to_string());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(general)?;
        let builder = match &config.clients {
            None => builder.with_no_client_auth(),
            Some(ClientsConfig { authorities, required }) => {
                let mut roots = RootCertStore::empty();
                let listed = CertificateDer::pem_file_iter(authorities).map_err(|error| wrong(authorities, error))?;
                for certificate in listed {
                    let certificate = certificate.map_err(|error| wrong(authorities, error))?;
                    roots.add(certificate).map_err(|error| wrong(authorities, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
                let verifier = if *required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(authorities, error))?)
            }
        };
        let mut server = builder.with_cert_resolver(certificates.clone());
        server.alpn_protocols = ALPN.map(<[u8]>::to_vec).into();
        server.ticketer = rustls::crypto::ring::Ticketer::new().map_err(general)?;
        server.send_tls13_tickets = 1;
        // All of the suites are good; clients that prefer the weakest of them have no say in it.
        server.ignore_client_order = true;
        Ok(Self { config, server: Arc::new(server), certificates, provider })
    }

    /// What a connection is accepted with.
    pub(crate) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        self.server.clone().into()
    }

    /// What is known of a connection that has been accepted, and whether it speaks HTTP/2.
    pub(crate) fn known(&self, connection: &rustls::ServerConnection) -> Option<(Arc<Secure>, bool)> {
        let server_name = connection.server_name().map(str::to_owned);
        let certificate = self.certificates.0.load().find(server_name.as_deref())?.clone();
        let client = connection.peer_certificates().and_then(|chain| Identity::of(chain.first()?));
        let http2 = connection.alpn_protocol() == Some(ALPN[0]);
        Some((Arc::new(Secure { server_name, client, certificate }), http2))
    }

    /// The hosts of each certificate, and when it ends in seconds since 1970.
    pub fn ends(&self) -> Vec<(String, i64)> {
        let name = |certificate: &Certificate| certificate.hosts.first().cloned().unwrap_or_default();
        self.certificates.0.load().all.iter().map(|one| (name(one), one.ends)).collect()
    }
}

fn read(config: &TlsConfig, provider: &CryptoProvider) -> Result<Certificates, TlsError> {
    let all = config.certificates.iter().map(|one| Certificate::read(one, provider).map(Arc::new));
    Ok(Certificates::new(all.collect::<Result<_, _>>()?))
}

/// When each of the files was written last; one that is not there is none.
fn written(config: &TlsConfig) -> Vec<Option<(SystemTime, u64)>> {
    let files = config.certificates.iter().flat_map(|one| [&one.chain, &one.key]);
    let file = |file: &PathBuf| std::fs::metadata(file).and_then(|about| Ok((about.modified()?, about.len()))).ok();
    files.map(file).collect()
}

fn watch(tls: &Weak<Tls>) {
    let mut seen = match tls.upgrade() {
        // What has changed since they were read is read again: this may be once for nothing.
        Some(_) => Vec::new(),
        None => return,
    };
    loop {
        let Some(tls) = tls.upgrade() else { return };
        let now = written(&tls.config);
        if now != seen {
            let first = seen.is_empty();
            seen = now;
            match read(&tls.config, &tls.provider) {
                Ok(certificates) => {
                    tls.certificates.0.store(Arc::new(certificates));
                    if !first {
                        tracing::info!(ends = ?tls.ends(), "the certificates were read again");
                    }
                }
                Err(error) => tracing::error!(%error, "the certificates stay as they were"),
            }
        }
        drop(tls);
        std::thread::sleep(LOOK);
    }
}
