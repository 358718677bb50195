//! Where something is asked for that a filter needs: a service by its name, or an address of HTTP or HTTPS.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use seawall_proxy::Client;
use seawall_types::ServiceName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::filter::FilterError;

/// The most that is read of an answer.
const LIMIT: usize = 1 << 20;

/// A place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A service, under its policies.
    Service(ServiceName, PathAndQuery),
    /// An address.
    Url(Uri),
}

impl Place {
    /// A path of a service.
    ///
    /// # Errors
    /// It is no path.
    pub(crate) fn service(service: &ServiceName, path: &str) -> Result<Self, FilterError> {
        let whole = path.parse().ok().filter(|_| path.starts_with('/'));
        let whole = whole.ok_or_else(|| FilterError(format!("`{path}` is not a path such as /jwks.json")))?;
        Ok(Self::Service(service.clone(), whole))
    }

    /// An address.
    ///
    /// # Errors
    /// It is none, or not of HTTP, or this machine cannot tell servers of HTTPS from others.
    pub(crate) fn url(text: &str) -> Result<Self, FilterError> {
        let wrong = |why: &str| FilterError(format!("`{text}` {why}"));
        let uri: Uri =
            text.parse().map_err(|_| wrong("is not an address such as http://id.internal:8080/jwks.json"))?;
        let known = uri.scheme().is_some_and(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme));
        if !known || uri.host().is_none() {
            return Err(wrong("is not an address such as https://id.example/jwks.json"));
        }
        if uri.scheme() == Some(&Scheme::HTTPS) {
            authorities().map_err(wrong)?;
        }
        Ok(Self::Url(uri))
    }

    /// Asks, and reads the whole answer, at most 1 MiB. The request's own path is replaced by the place's.
    ///
    /// # Errors
    /// Why there is no answer, for people.
    pub(crate) async fn ask(
        &self,
        client: &Client,
        mut request: Request<Bytes>,
        within: Duration,
    ) -> Result<Response<Bytes>, String> {
        let asked = async {
            match self {
                Self::Service(service, path) => {
                    *request.uri_mut() = Uri::from(path.clone());
                    client.call(service, request).await.map_err(|error| error.to_string())
                }
                Self::Url(uri) => direct(uri, request).await,
            }
        };
        match timeout(within, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {within:?}")),
        }
    }

    /// What stands there.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(crate) async fn get(&self, client: &Client, within: Duration) -> Result<Bytes, String> {
        let answer = self.ask(client, Request::new(Bytes::new()), within).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status => Err(format!("it answered {status}")),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(service, path) => write!(f, "{path} of the service `{service}`"),
            Self::Url(uri) => write!(f, "{uri}"),
        }
    }
}

/// One request on a connection of its own.
async fn direct(uri: &Uri, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let (host, port) = (uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(if secure { 443 } else { 80 }));
    let name = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((name, port)).await.map_err(|error| error.to_string())?;
    if !secure {
        return exchange(stream, uri, request).await;
    }
    let server = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let connector = TlsConnector::from(authorities()?);
    exchange(connector.connect(server, stream).await.map_err(|error| error.to_string())?, uri, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
    mut request: Request<Bytes>,
) -> Result<Response<Bytes>, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Ends with the sender, at the end of this function.
    tokio::spawn(connection);
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let value = HeaderValue::try_from(authority).map_err(|error| error.to_string())?;
    request.headers_mut().insert(HOST, value);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let response = sender.send_request(request.map(Full::new)).await.map_err(|error| error.to_string())?;
    let (parts, body) = response.into_parts();
    let whole = Limited::new(body, LIMIT).collect().await.map_err(|error| error.to_string())?;
    Ok(Response::from_parts(parts, whole.to_bytes()))
}

/// Whom this machine believes that a server is who it says; read once. `SSL_CERT_FILE` names others.
fn authorities() -> Result<Arc<ClientConfig>, &'static str> {
    static AUTHORITIES: OnceLock<Result<Arc<ClientConfig>, &'static str>> = OnceLock::new();
    let read = || {
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if added == 0 {
            return Err(
                "is of https, and this machine knows no authorities: install ca-certificates, or set SSL_CERT_FILE",
            );
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|_| "is of https, and there is no TLS")?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    };
    AUTHORITIES.get_or_init(read).clone()
}
