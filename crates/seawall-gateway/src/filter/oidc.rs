//! Login at an OpenID provider, for browsers: authorization code with PKCE. The browser keeps a sealed cookie and never sees a token;
//! the service gets the token.

mod cookie;
mod provider;
mod seal;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use form_urlencoded::Serializer;
use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::{Method, Request, Response, StatusCode, Uri};
use ring::digest::{SHA256, digest};
use schemars::JsonSchema;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_proxy::{Client, RequestBody, ResponseBody};
use seawall_types::{Period, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Mutex;

use self::provider::{Known, NoTokens, Provider, Tokens};
use self::seal::Seal;
use super::FilterError;
use super::jwt::{Flawed, Rules};
use crate::auth::credential::remove_cookies;
use crate::auth::denied::Denied;
use crate::auth::identity::{Forward, tell};
use crate::auth::jwk::Algorithm;
use crate::auth::recent::{Key, Recent, key};

/// Where people log in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// The provider, as its tokens name it: `https://id.example`.
    pub issuer: String,
    /// The service through which the gateway reaches the provider. Default: its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// As whom the gateway is known there.
    pub client_id: String,
    /// The secret for that. Or `client_secret_file`. Default: none, as a public client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<String>,
    /// A file with it; a line break at its end is not part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_file: Option<PathBuf>,
    /// Where browsers find the gateway: `https://shop.example`.
    pub url: String,
    /// The path that the provider sends browsers back to; the route has to take it. Default `/oauth2/callback`.
    #[serde(default = "callback")]
    pub callback: String,
    /// The path that ends a session; the route has to take it. Default `/oauth2/logout`.
    #[serde(default = "logout")]
    pub logout: String,
    /// Where a browser goes after that. Default `/`.
    #[serde(default = "root")]
    pub after_logout: String,
    /// What is asked for. `openid` is always among it. Default: that alone.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// More parameters for the provider's page: `{ prompt: login }`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// How the provider may sign. Default: as each of its keys says.
    #[serde(default)]
    pub algorithms: Vec<Algorithm>,
    /// What seals the cookies: secrets of at least 32 bytes. The first seals, all of them open. Gateways with the same
    /// secrets and `client_id` know each other's sessions. Or `cookie_secret_file`.
    #[serde(default)]
    pub cookie_secrets: Vec<String>,
    /// A file with such secrets, one a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie_secret_file: Option<PathBuf>,
    /// The cookie's name. Default `__Host-seawall`.
    #[serde(default = "cookie")]
    pub cookie: String,
    /// How long a session lasts at most. Default 12h; at most 30 days.
    #[serde(default = "session")]
    pub session: Period,
    /// Which token the service gets as a bearer's: `access`, `id` or `none`. Default access.
    #[serde(default)]
    pub relay: Relay,
    /// The headers in which the service is told of the id token's claims. What a client sends in them is taken away.
    #[serde(default)]
    pub forward: BTreeMap<String, String>,
    /// How long each call to the provider may take. Default 3s.
    #[serde(default = "timeout")]
    pub timeout: Period,
    /// How far the provider's clock may be from ours. Default 30s, at most 10m.
    #[serde(default = "skew")]
    pub skew: Period,
}

/// Which token a service gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Relay {
    /// The access token.
    #[default]
    Access,
    /// The id token.
    Id,
    /// None.
    None,
}

fn callback() -> String {
    "/oauth2/callback".to_owned()
}

fn logout() -> String {
    "/oauth2/logout".to_owned()
}

fn root() -> String {
    "/".to_owned()
}

fn cookie() -> String {
    "__Host-seawall".to_owned()
}

const fn session() -> Period {
    Period::secs(12 * 3600)
}

const fn timeout() -> Period {
    Period::secs(3)
}

const fn skew() -> Period {
    Period::secs(30)
}

/// How long a login may take.
const LOGIN: u64 = 600;
/// How many logins a browser may have begun; with more of them all are forgotten.
const LOGINS: usize = 5;
/// A token is renewed when it has so many seconds left.
const EARLY: u64 = 30;
/// How many sessions are remembered, opened.
const REMEMBERED: usize = 10_000;
/// How many refreshes go on side by side.
const STRIPES: usize = 64;
/// The longest place that a browser goes back to.
const LONGEST: usize = 1500;

#[derive(Debug)]
pub(crate) struct Oidc(Arc<Flow>);

/// All that a login needs; what must not end with the request that has begun it holds it too.
#[derive(Debug)]
struct Flow {
    provider: Provider,
    client_id: String,
    /// Without a slash at its end.
    url: String,
    callback: String,
    logout: String,
    after_logout: String,
    scope: String,
    parameters: BTreeMap<String, String>,
    rules: Rules,
    forward: Forward,
    seal: Seal,
    cookie: String,
    lasts: u64,
    relay: Relay,
    wait: Duration,
    opened: Recent<Arc<Session>>,
    /// What has become of a cookie's session: a browser sends the old one with whatever it has asked for meanwhile.
    renewed: Recent<Arc<Session>>,
    renewing: Vec<Mutex<()>>,
}

/// What the cookie holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Session {
    access: String,
    /// Kept only where it is relayed.
    id: Option<String>,
    refresh: Option<String>,
    /// When the access token expires.
    expires: u64,
    /// When the session ends, whatever else.
    ends: u64,
    claims: Arc<Value>,
}

/// What the cookie of a login holds.
#[derive(Debug, Serialize, Deserialize)]
struct Login {
    state: String,
    nonce: String,
    verifier: String,
    /// Where the browser wanted to go.
    to: String,
    until: u64,
}

const SESSION: &str = "session";

impl OidcConfig {
    /// The files that it names, as they are written.
    pub(crate) fn files(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.client_secret_file.iter_mut().chain(&mut self.cookie_secret_file)
    }
}

impl Oidc {
    pub(crate) fn try_new(config: &OidcConfig) -> Result<Self, FilterError> {
        let error = |why: String| FilterError(format!("oidc: {why}"));
        let inner = |FilterError(why)| error(why);
        let read = |file: &PathBuf| {
            let read = std::fs::read_to_string(file);
            read.map_err(|why| error(format!("cannot read {}: {why}", file.display())))
        };
        let secrets: Vec<String> = match (&config.cookie_secrets[..], &config.cookie_secret_file) {
            (given @ [_, ..], None) => given.to_vec(),
            ([], Some(file)) => read(file)?.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect(),
            _ => return Err(error("give either `cookie_secrets` or `cookie_secret_file`".to_owned())),
        };
        if secrets.is_empty() || secrets.iter().any(|secret| secret.len() < 32) {
            return Err(error("a secret for cookies has at least 32 bytes".to_owned()));
        }
        let client_secret = match (&config.client_secret, &config.client_secret_file) {
            (Some(_), Some(_)) => {
                return Err(error("give either `client_secret` or `client_secret_file`".to_owned()));
            }
            (Some(secret), None) => Some(secret.clone()),
            (None, Some(file)) => Some(read(file)?.trim_end_matches(['\r', '\n']).to_owned()),
            (None, None) => None,
        };
        let page = |text: &str, field: &str| {
            let uri: Option<Uri> = text.parse().ok();
            let known = uri.as_ref().is_some_and(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() && uri.query().is_none()
            });
            if known {
                Ok(())
            } else {
                Err(error(format!("`{field}` is `{text}`, no address such as https://shop.example")))
            }
        };
        page(&config.issuer, "issuer")?;
        page(&config.url, "url")?;
        for (field, path) in
            [("callback", &config.callback), ("logout", &config.logout), ("after_logout", &config.after_logout)]
        {
            let plain = path.starts_with('/')
                && !path.starts_with("//")
                && path.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
            if !plain || (field != "after_logout" && path.contains(['?', '#'])) {
                return Err(error(format!("`{field}` is `{path}`, no path such as /oauth2/{field}")));
            }
        }
        if config.callback == config.logout {
            return Err(error("`callback` and `logout` are the same".to_owned()));
        }
        let token = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if config.cookie.is_empty() || !config.cookie.bytes().all(token) {
            return Err(error(format!("`cookie` is `{}`: letters, digits, `-` and `_` make a name", config.cookie)));
        }
        for (field, period, least, most) in [
            ("session", config.session, Period::secs(60), Period::secs(30 * 24 * 3600)),
            ("timeout", config.timeout, Period::millis(1), Period::secs(30)),
            ("skew", config.skew, Period::secs(0), Period::secs(600)),
        ] {
            if period < least || period > most {
                return Err(error(format!("`{field}` is {period}, allowed is {least} to {most}")));
            }
        }
        if config.algorithms.iter().any(|alg| alg.is_symmetric()) {
            return Err(error("id tokens are signed by keys, not by secrets: no HS256, HS384, HS512".to_owned()));
        }
        let mut scopes = vec!["openid"];
        scopes.extend(config.scopes.iter().map(String::as_str).filter(|scope| *scope != "openid"));
        let secrets: Vec<Vec<u8>> = secrets.into_iter().map(String::into_bytes).collect();
        let wait = config.timeout.get();
        Ok(Self(Arc::new(Flow {
            provider: Provider::try_new(
                &config.issuer,
                config.service.as_ref(),
                &config.client_id,
                client_secret,
                wait,
            )
            .map_err(inner)?,
            client_id: config.client_id.clone(),
            url: config.url.trim_end_matches('/').to_owned(),
            callback: config.callback.clone(),
            logout: config.logout.clone(),
            after_logout: config.after_logout.clone(),
            scope: scopes.join(" "),
            parameters: config.parameters.clone(),
            rules: Rules::of_issuer(&config.algorithms, &config.issuer, &config.client_id, config.skew),
            forward: Forward::try_new(&config.forward).map_err(inner)?,
            seal: Seal::new(&secrets, &format!("{} {}", config.issuer, config.client_id)),
            cookie: config.cookie.clone(),
            lasts: config.session.as_secs(),
            relay: config.relay,
            wait,
            opened: Recent::new(REMEMBERED),
            renewed: Recent::new(REMEMBERED),
            renewing: (0..STRIPES).map(|_| Mutex::new(())).collect(),
        })))
    }
}

impl Flow {
    /// The session that a request's cookie holds, and the cookie's key.
    fn session(&self, headers: &HeaderMap) -> Option<(Key, Arc<Session>)> {
        let text = cookie::get(headers, &self.cookie)?;
        let key = key(text.as_bytes());
        let open = || {
            let session: Session = serde_json::from_slice(&self.seal.open(SESSION, &text)?).ok()?;
            let session = Arc::new(session);
            self.opened.put(key, session.clone());
            Some(session)
        };
        let session = self.opened.get(&key).or_else(open)?;
        (crate::auth::now() < session.ends).then_some((key, session))
    }

    /// The session with a token that is good for some seconds more. `true` where it is a new one.
    async fn current(
        self: &Arc<Self>,
        key: Key,
        session: Arc<Session>,
        client: &Client,
    ) -> Result<(Arc<Session>, bool), Denied> {
        if crate::auth::now() + EARLY < session.expires {
            return Ok((session, false));
        }
        // Whatever becomes of the request: a refresh token counts once, and its answer must not be lost.
        let renewed = tokio::spawn(self.clone().renewed(key, session, client.clone()));
        renewed.await.unwrap_or_else(|_| Err(away()))
    }

    async fn renewed(
        self: Arc<Self>,
        key: Key,
        session: Arc<Session>,
        client: Client,
    ) -> Result<(Arc<Session>, bool), Denied> {
        let stripe = &self.renewing[usize::from(key[0]) % STRIPES];
        let Ok(_renewing) = tokio::time::timeout(2 * self.wait, stripe.lock()).await else { return Err(away()) };
        let now = crate::auth::now();
        // Another request may have renewed it meanwhile, or the browser may not have taken the new cookie.
        let (session, new) = self.renewed.get(&key).map_or((session, false), |newer| (newer, true));
        if new && now + EARLY < session.expires {
            return Ok((session, true));
        }
        let Some(refresh) = &session.refresh else {
            return if now < session.expires { Ok((session, new)) } else { Err(ended()) };
        };
        let asked = async {
            let known = self.provider.known(&client).await.map_err(NoTokens::Away)?;
            let form = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
            let tokens = self.provider.tokens(&known, &client, &form).await?;
            self.renew(&session, tokens, &known, &client).await
        };
        match asked.await {
            Ok(newer) => {
                let newer = Arc::new(newer);
                self.renewed.put(key, newer.clone());
                Ok((newer, true))
            }
            Err(NoTokens::Away(why)) => {
                tracing::warn!(%why, "a session could not be renewed");
                if now < session.expires { Ok((session.clone(), new)) } else { Err(away()) }
            }
            Err(NoTokens::Refused(why)) => {
                tracing::debug!(%why, "a session was not renewed");
                Err(ended())
            }
        }
    }

    /// The session after a refresh (OpenID Connect Core, 12.2).
    async fn renew(&self, old: &Session, tokens: Tokens, known: &Known, client: &Client) -> Result<Session, NoTokens> {
        let refresh = tokens.refresh_token.clone().or_else(|| old.refresh.clone());
        let expires = expires(&tokens);
        let (id, claims) = match tokens.id_token {
            None => (old.id.clone(), old.claims.clone()),
            Some(text) => {
                let claims = self.claims(&text, known, client).await.map_err(NoTokens::Refused)?;
                if claims.get("sub") != old.claims.get("sub") {
                    return Err(NoTokens::Refused("the new id token is somebody else's".to_owned()));
                }
                (Some(text).filter(|_| self.relay == Relay::Id), Arc::new(claims))
            }
        };
        Ok(Session { access: tokens.access_token, id, refresh, expires, ends: old.ends, claims })
    }

    /// The claims of an id token (OpenID Connect Core, 3.1.3.7).
    async fn claims(&self, text: &str, known: &Known, client: &Client) -> Result<Value, String> {
        let mut keys = known.keys.known(|| client.clone());
        let mut checked = self.rules.claims(text, &keys);
        if matches!(&checked, Err(Flawed { newer: true, .. })) {
            drop(keys);
            keys = known.keys.renewed(client.clone()).await;
            checked = self.rules.claims(text, &keys);
        }
        let claims = checked.map_err(|flawed| flawed.why)?;
        let several = claims.get("aud").and_then(Value::as_array).is_some_and(|aud| aud.len() > 1);
        match claims.get("azp").and_then(Value::as_str) {
            Some(azp) if azp != self.client_id => Err("the id token was asked for by somebody else".to_owned()),
            None if several => Err("the id token does not say who has asked for it".to_owned()),
            _ if claims.get("sub").is_none_or(|sub| !sub.is_string()) => Err("the id token is nobody's".to_owned()),
            _ => Ok(claims),
        }
    }

    /// Sends a browser to the provider.
    async fn begin(&self, request: &Request<RequestBody>, client: &Client) -> Result<Response<ResponseBody>, Denied> {
        if !navigates(request) {
            return Err(Denied::unauthorized("Session", "there is no session: open the page in a browser to log in"));
        }
        let known = self.provider.known(client).await.map_err(Denied::unknown)?;
        let random = || self.seal.random().map_err(|_| Denied::unknown("there are no random numbers"));
        let to = request.uri().path_and_query().map_or("/", |to| to.as_str());
        let to = if to.len() > LONGEST { "/" } else { to };
        let until = crate::auth::now() + LOGIN;
        let login = Login { state: random()?, nonce: random()?, verifier: random()?, to: to.to_owned(), until };
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, login.verifier.as_bytes()));
        let mut query = Serializer::new(String::new());
        query.append_pair("response_type", "code").append_pair("client_id", &self.client_id);
        query.append_pair("redirect_uri", &self.redirect_uri()).append_pair("scope", &self.scope);
        query.append_pair("state", &login.state).append_pair("nonce", &login.nonce);
        query.append_pair("code_challenge", &challenge).append_pair("code_challenge_method", "S256");
        query.extend_pairs(&self.parameters);
        let mut response = redirect(&with_query(&known.authorization, &query.finish()));
        let purpose = self.login(&login.state);
        let plain = serde_json::to_vec(&login).map_err(|error| Denied::unknown(error.to_string()))?;
        let sealed = self.seal.seal(&purpose, &plain).map_err(|_| Denied::unknown("there are no random numbers"))?;
        let begun = self.logins(request.headers());
        if begun.len() >= LOGINS {
            begun.iter().for_each(|name| cookie::one(response.headers_mut(), name, "", 0));
        }
        cookie::one(response.headers_mut(), &purpose, &sealed, LOGIN);
        Ok(response)
    }

    /// A browser comes back from the provider.
    async fn finish(&self, request: &Request<RequestBody>, client: &Client) -> Result<Response<ResponseBody>, Denied> {
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let given = |name: &str| form_urlencoded::parse(query).find(|(key, _)| key == name).map(|(_, value)| value);
        let state = given("state").unwrap_or_default();
        let purpose = self.login(&state);
        let sealed = crate::matcher::cookies(request.headers()).find(|(name, _)| *name == purpose);
        let login = sealed.and_then(|(_, sealed)| self.seal.open(&purpose, sealed));
        let login: Option<Login> = login.and_then(|plain| serde_json::from_slice(&plain).ok());
        let login = login.filter(|login| login.state == *state && crate::auth::now() < login.until);
        let login =
            login.ok_or_else(|| Denied::bad_request("this login was not begun by this browser, or too long ago"))?;
        // RFC 9207: an answer of another provider is none.
        if given("iss").is_some_and(|iss| iss != self.provider.issuer) {
            return Err(Denied::bad_request("this is the answer of another provider"));
        }
        let Some(code) = given("code") else {
            let why = given("error").unwrap_or_default();
            let why: String = why.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
            return Err(Denied::forbidden(format!("the provider has not let you in: {why}")));
        };
        let known = self.provider.known(client).await.map_err(Denied::unknown)?;
        let redirect_uri = self.redirect_uri();
        let form = [
            ("grant_type", "authorization_code"),
            ("code", &*code),
            ("redirect_uri", &redirect_uri),
            ("code_verifier", &login.verifier),
        ];
        let refused = |why: String| {
            tracing::warn!(%why, "a login has failed");
            Denied::forbidden("the provider's answer is not one that lets you in")
        };
        let tokens = self.provider.tokens(&known, client, &form).await.map_err(|why| match why {
            NoTokens::Refused(why) => refused(why),
            NoTokens::Away(why) => {
                tracing::warn!(%why, "a login could not be finished");
                Denied::unknown("the provider cannot be asked at the moment")
            }
        })?;
        let id = tokens.id_token.clone().ok_or_else(|| refused("there is no id token".to_owned()))?;
        let claims = self.claims(&id, &known, client).await.map_err(refused)?;
        if claims.get("nonce").and_then(Value::as_str) != Some(&login.nonce) {
            return Err(refused("the id token has another nonce".to_owned()));
        }
        let session = Session {
            expires: expires(&tokens),
            access: tokens.access_token,
            id: Some(id).filter(|_| self.relay == Relay::Id),
            refresh: tokens.refresh_token,
            ends: crate::auth::now() + self.lasts,
            claims: Arc::new(claims),
        };
        // Absolute, so that no path is taken for a host.
        let mut response = redirect(&format!("{}{}", self.url, login.to));
        cookie::one(response.headers_mut(), &purpose, "", 0);
        self.keep(&session, request.headers(), response.headers_mut())?;
        Ok(response)
    }

    /// Ends a session, here and at the provider.
    async fn end(&self, request: &Request<RequestBody>, client: &Client) -> Response<ResponseBody> {
        let after = format!("{}{}", self.url, self.after_logout);
        let known = self.provider.known(client).await.ok();
        if let (Some(known), Some((_, session))) = (&known, self.session(request.headers()))
            && let Some(refresh) = &session.refresh
        {
            self.provider.revoke(known, client, refresh).await;
        }
        let page = known.as_ref().and_then(|known| known.end_session.as_deref());
        let to = page.map_or(after.clone(), |page| {
            let mut query = Serializer::new(String::new());
            query.append_pair("client_id", &self.client_id).append_pair("post_logout_redirect_uri", &after);
            with_query(page, &query.finish())
        });
        let mut response = redirect(&to);
        cookie::forget(request.headers(), response.headers_mut(), &self.cookie, 0);
        response
    }

    /// Gives a browser a session to keep.
    fn keep(&self, session: &Session, before: &HeaderMap, headers: &mut HeaderMap) -> Result<(), Denied> {
        let left = session.ends.saturating_sub(crate::auth::now());
        let plain = serde_json::to_vec(session).map_err(|error| Denied::unknown(error.to_string()))?;
        let sealed = self.seal.seal(SESSION, &plain).map_err(|_| Denied::unknown("there are no random numbers"))?;
        cookie::set(headers, &self.cookie, &sealed, left).map_err(|size| {
            tracing::error!(size, "the provider's tokens are too large for cookies");
            Denied::unknown("the session is too large for a browser to keep")
        })?;
        cookie::forget(before, headers, &self.cookie, cookie::pieces(&sealed));
        Ok(())
    }

    fn redirect_uri(&self) -> String {
        format!("{}{}", self.url, self.callback)
    }

    /// The cookie of a login, and what it is sealed for.
    fn login(&self, state: &str) -> String {
        let short: String = state.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
        format!("{}-login-{short}", self.cookie)
    }

    /// The logins that a browser has begun.
    fn logins(&self, headers: &HeaderMap) -> Vec<String> {
        let front = self.login("");
        let names = crate::matcher::cookies(headers).map(|(name, _)| name);
        names.filter(|name| name.starts_with(&front)).map(str::to_owned).collect()
    }

    /// What the service sees of a request with a session.
    fn tell(&self, request: &mut Request<RequestBody>, session: &Session) -> Result<(), Denied> {
        let told = self.forward.told(&session.claims).map_err(Denied::forbidden)?;
        tell(request, &session.claims, &told);
        let token = match self.relay {
            Relay::Access => Some(&session.access),
            Relay::Id => session.id.as_ref(),
            Relay::None => None,
        };
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| Denied::forbidden("no header can hold the provider's token"))?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(())
    }

    async fn answer(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
        next: Next<'_>,
    ) -> Result<Response<ResponseBody>, Denied> {
        let client = next.caller();
        match request.uri().path() {
            path if path == self.callback => return self.finish(&request, &client).await,
            path if path == self.logout => return Ok(self.end(&request, &client).await),
            _ => {}
        }
        let Some((key, session)) = self.session(request.headers()) else { return self.begin(&request, &client).await };
        let (session, new) = match self.current(key, session, &client).await {
            Ok(current) => current,
            Err(denied) if denied.status == StatusCode::UNAUTHORIZED => return self.begin(&request, &client).await,
            Err(denied) => return Err(denied),
        };
        let before = new.then(|| request.headers().clone());
        let headers = request.headers_mut();
        self.forward.strip(headers);
        headers.remove(AUTHORIZATION);
        remove_cookies(headers, |name| name.starts_with(&self.cookie));
        self.tell(&mut request, &session)?;
        let mut response = next.run(request).await;
        if let Some(before) = before {
            self.keep(&session, &before, response.headers_mut())?;
        }
        Ok(response)
    }
}

impl Filter for Oidc {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let answer = self.0.answer(request, next).await;
            answer.unwrap_or_else(|denied| denied.response("oidc", next.route()))
        })
    }
}

fn away() -> Denied {
    Denied::unknown("the login cannot be renewed at the moment")
}

fn ended() -> Denied {
    Denied::unauthorized("Session", "the session has ended")
}

/// When an access token expires; one that does not say so soon.
fn expires(tokens: &Tokens) -> u64 {
    crate::auth::now() + tokens.expires_in.unwrap_or(300).min(10 * 365 * 24 * 3600)
}

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Whether a browser shows the answer as a page: a script could not follow it to the provider.
fn navigates(request: &Request<RequestBody>) -> bool {
    let text = |name: &HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let page = match text(&SEC_FETCH_MODE) {
        Some(mode) => mode == "navigate",
        None => text(&ACCEPT).is_some_and(|accept| accept.contains("text/html")),
    };
    page && [Method::GET, Method::HEAD].contains(request.method())
}

fn with_query(page: &str, query: &str) -> String {
    let separator = if page.contains('?') { '&' } else { '?' };
    format!("{page}{separator}{query}")
}

fn redirect(to: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(""));
    *response.status_mut() = StatusCode::SEE_OTHER;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(to) = HeaderValue::try_from(to) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}
