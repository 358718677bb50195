//! The provider: what it says of itself (OpenID Connect Discovery), and the calls that are made there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use form_urlencoded::Serializer;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use seawall_proxy::Client;
use seawall_types::ServiceName;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::auth::keys::{Keys, KeysConfig};
use crate::auth::place::Place;
use crate::filter::FilterError;

/// How old what it says of itself may become.
const FRESH: Duration = Duration::from_secs(3600);
/// How long it is left alone when it could not be asked.
const PAUSE: Duration = Duration::from_secs(1);

/// How to find a provider, and as whom to ask it.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) issuer: String,
    service: Option<ServiceName>,
    discovery: Place,
    client_id: String,
    client_secret: Option<String>,
    timeout: Duration,
    known: ArcSwapOption<Known>,
    /// When it was asked last, whatever came of it; whoever asks holds it.
    asked: Mutex<Option<Instant>>,
}

/// What it says of itself.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) authorization: String,
    pub(super) end_session: Option<String>,
    pub(super) keys: Arc<Keys>,
    token: Place,
    revocation: Option<Place>,
    at: Instant,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    end_session_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
}

/// What it gives for a code, or for a refresh token.
#[derive(Debug, Deserialize)]
pub(super) struct Tokens {
    pub(super) access_token: String,
    pub(super) id_token: Option<String>,
    pub(super) refresh_token: Option<String>,
    pub(super) expires_in: Option<u64>,
    token_type: String,
}

/// No tokens.
#[derive(Debug)]
pub(super) enum NoTokens {
    /// It says no; for people.
    Refused(String),
    /// It cannot be asked.
    Away(String),
}

impl Provider {
    pub(super) fn try_new(
        issuer: &str,
        service: Option<&ServiceName>,
        client_id: &str,
        client_secret: Option<String>,
        timeout: Duration,
    ) -> Result<Self, FilterError> {
        let text = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let discovery = place(&text, service)?;
        Ok(Self {
            issuer: issuer.to_owned(),
            service: service.cloned(),
            discovery,
            client_id: client_id.to_owned(),
            client_secret,
            timeout,
            known: ArcSwapOption::empty(),
            asked: Mutex::new(None),
        })
    }

    /// What it says of itself; old news rather than none.
    ///
    /// # Errors
    /// There has never been any.
    pub(super) async fn known(&self, client: &Client) -> Result<Arc<Known>, String> {
        let known = self.known.load_full();
        if let Some(known) = known.as_ref().filter(|known| known.at.elapsed() < FRESH) {
            return Ok(known.clone());
        }
        let away = || "the provider cannot be asked at the moment".to_owned();
        let asked = timeout(self.timeout, self.asked.lock()).await.map_err(|_| away());
        let mut asked = match (asked, known) {
            (Ok(asked), _) => asked,
            (Err(_), Some(old)) => return Ok(old),
            (Err(why), None) => return Err(why),
        };
        // Another may have asked meanwhile.
        let known = self.known.load_full();
        let fresh = known.as_ref().is_some_and(|known| known.at.elapsed() < FRESH);
        if fresh || asked.is_some_and(|asked| asked.elapsed() < PAUSE) {
            return known.ok_or_else(away);
        }
        *asked = Some(Instant::now());
        match self.discover(client, known.as_deref()).await {
            Ok(new) => {
                let new = Arc::new(new);
                self.known.store(Some(new.clone()));
                Ok(new)
            }
            Err(why) => {
                tracing::warn!(from = %self.discovery, %why, kept = known.is_some(), "the provider does not say what it is");
                known.ok_or_else(away)
            }
        }
    }

    async fn discover(&self, client: &Client, before: Option<&Known>) -> Result<Known, String> {
        let text = self.discovery.get(client, self.timeout).await?;
        let document: Document = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        if document.issuer != self.issuer {
            return Err(format!("it is the issuer `{}`, not `{}`", document.issuer, self.issuer));
        }
        let place = |text: &str| place(text, self.service.as_ref()).map_err(|error| error.to_string());
        for page in std::iter::once(&document.authorization_endpoint).chain(&document.end_session_endpoint) {
            let uri: Option<Uri> = page.parse().ok();
            let scheme = uri.as_ref().and_then(Uri::scheme_str);
            if !scheme.is_some_and(|scheme| ["http", "https"].contains(&scheme)) {
                return Err(format!("`{page}` is no page that a browser could be sent to"));
            }
        }
        let config = KeysConfig { timeout: self.timeout.into(), ..KeysConfig::default() };
        let keys = place(&document.jwks_uri)?;
        let keys = match before.filter(|before| before.keys.is_at(&keys)) {
            Some(before) => before.keys.clone(),
            None => Arc::new(Keys::at(keys, &config)),
        };
        Ok(Known {
            authorization: document.authorization_endpoint,
            end_session: document.end_session_endpoint,
            keys,
            token: place(&document.token_endpoint)?,
            revocation: document.revocation_endpoint.as_deref().map(place).transpose()?,
            at: Instant::now(),
        })
    }

    /// Asks for tokens (RFC 6749, 4.1.3 and 6).
    ///
    /// # Errors
    /// [`NoTokens`].
    pub(super) async fn tokens(
        &self,
        known: &Known,
        client: &Client,
        form: &[(&str, &str)],
    ) -> Result<Tokens, NoTokens> {
        let answer = known.token.ask(client, self.form(form), self.timeout).await.map_err(NoTokens::Away)?;
        if answer.status() != StatusCode::OK {
            // Its words are for the log; the client is told none of them.
            let text = String::from_utf8_lossy(answer.body()).chars().take(200).collect::<String>();
            let why = format!("{}: {text}", answer.status());
            let refused = answer.status().is_client_error() && answer.status() != StatusCode::TOO_MANY_REQUESTS;
            return Err(if refused { NoTokens::Refused(why) } else { NoTokens::Away(why) });
        }
        let tokens: Tokens =
            serde_json::from_slice(answer.body()).map_err(|error| NoTokens::Refused(error.to_string()))?;
        match tokens.token_type.eq_ignore_ascii_case("bearer") {
            true => Ok(tokens),
            false => Err(NoTokens::Refused(format!("tokens of the type `{}` are not known here", tokens.token_type))),
        }
    }

    /// Lets a refresh token end (RFC 7009), if that can be done.
    pub(super) async fn revoke(&self, known: &Known, client: &Client, refresh: &str) {
        if let Some(place) = &known.revocation {
            let form = self.form(&[("token", refresh), ("token_type_hint", "refresh_token")]);
            if let Err(why) = place.ask(client, form, self.timeout).await {
                tracing::warn!(from = %place, %why, "a refresh token could not be revoked");
            }
        }
    }

    /// A form with who asks.
    fn form(&self, pairs: &[(&str, &str)]) -> Request<Bytes> {
        let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let mut form = Serializer::new(String::new());
        form.extend_pairs(pairs);
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = Method::POST;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        match &self.client_secret {
            Some(secret) => {
                let pair = STANDARD.encode(format!("{}:{}", encode(&self.client_id), encode(secret)));
                if let Ok(mut value) = HeaderValue::try_from(format!("Basic {pair}")) {
                    value.set_sensitive(true);
                    request.headers_mut().insert(AUTHORIZATION, value);
                }
            }
            None => drop(form.append_pair("client_id", &self.client_id)),
        }
        *request.body_mut() = Bytes::from(form.finish());
        request
    }
}

/// Where something of the provider's is asked for: at its address, or through a service, at the same path.
fn place(text: &str, service: Option<&ServiceName>) -> Result<Place, FilterError> {
    let Some(service) = service else { return Place::url(text) };
    let uri: Uri = text.parse().map_err(|_| FilterError(format!("`{text}` is no address")))?;
    Place::service(service, uri.path_and_query().map_or("/", |path| path.as_str()))
}
