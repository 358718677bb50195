//! Signed requests: HTTP Message Signatures (RFC 9421) with `hmac-sha256`, and digests of their bodies (RFC 9530).

mod nonces;
mod signature;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use ring::hmac;
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_types::{Period, Size};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq as _;

use self::nonces::{Nonces, Seen};
use self::signature::Signature;
use super::FilterError;
use crate::auth::denied::Denied;
use crate::auth::identity::{Forward, claims_of, tell};
use crate::auth::recent::key;

/// Which signed requests pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HmacConfig {
    /// The secrets, each shared with somebody.
    pub keys: Vec<SharedConfig>,
    /// What has to be signed at least, beside the digest of a body where there is one: `@method`, `@path`, `@query`,
    /// `@request-target`, `@authority`, and names of headers. Default: `["@method", "@path", "@query"]`.
    #[serde(default = "cover")]
    pub cover: Vec<String>,
    /// How old a signature may be. Default 60s; at least 1s, at most 1h.
    #[serde(default = "age")]
    pub age: Period,
    /// How far the client's clock may be from ours. Default 30s, at most 10m.
    #[serde(default = "skew")]
    pub skew: Period,
    /// The largest body; a larger one is answered with 413. It is kept in memory until it is known to be the one that was signed.
    /// Default 1 MiB.
    #[serde(default = "body")]
    pub body: Size,
    /// How many signatures are remembered, so that none passes twice. While as many could still pass, more are answered with 503.
    /// Default 100000.
    #[serde(default = "nonces")]
    #[schemars(range(min = 1, max = 10000000))]
    pub nonces: u32,
    /// The headers in which the service is told of claims; `sub` is the key's name. What a client sends in them is taken away.
    #[serde(default)]
    pub forward: BTreeMap<String, String>,
}

/// A secret that is shared with somebody.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SharedConfig {
    /// The name, which is `keyid` in signatures and becomes the claim `sub`.
    pub name: String,
    /// The secret, of at least 32 bytes. Or `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// A file with it; a line break at its end is not part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// More claims.
    #[serde(default)]
    pub claims: Map<String, Value>,
}

fn cover() -> Vec<String> {
    ["@method", "@path", "@query"].map(str::to_owned).to_vec()
}

const fn age() -> Period {
    Period::secs(60)
}

const fn skew() -> Period {
    Period::secs(30)
}

const fn body() -> Size {
    Size::bytes(1 << 20)
}

const fn nonces() -> u32 {
    100_000
}

#[derive(Debug)]
pub(crate) struct Hmac {
    keys: HashMap<String, (hmac::Key, Arc<Value>)>,
    cover: Vec<String>,
    age: u64,
    skew: u64,
    body: usize,
    nonces: Nonces,
    forward: Forward,
}

const DIGEST: &str = "content-digest";
/// How to ask instead (RFC 9421, 5.1).
const CHALLENGE: &str = "Signature";

impl Hmac {
    pub(crate) fn try_new(config: &HmacConfig) -> Result<Self, FilterError> {
        let error = |why: String| FilterError(format!("hmac: {why}"));
        let mut keys = HashMap::new();
        for SharedConfig { name, secret, file, claims } in &config.keys {
            let secret = match (secret, file) {
                (Some(secret), None) => secret.clone().into_bytes(),
                (None, Some(file)) => {
                    let read = std::fs::read(file);
                    let mut secret = read.map_err(|why| error(format!("cannot read {}: {why}", file.display())))?;
                    while secret.last().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
                        secret.pop();
                    }
                    secret
                }
                _ => return Err(error(format!("{name}: give either `secret` or `file`"))),
            };
            if secret.len() < 32 {
                return Err(error(format!("{name}: the secret has {} bytes, at least 32", secret.len())));
            }
            let entry = (hmac::Key::new(hmac::HMAC_SHA256, &secret), claims_of(name, claims));
            if keys.insert(name.clone(), entry).is_some() {
                return Err(error(format!("the name `{name}` is given twice")));
            }
        }
        if keys.is_empty() {
            return Err(error("give `keys`".to_owned()));
        }
        for (field, period, least, most) in [("age", config.age, 1, 3600), ("skew", config.skew, 0, 600)] {
            if !(least..=most).contains(&period.as_secs()) {
                let (least, most) = (Period::secs(least), Period::secs(most));
                return Err(error(format!("`{field}` is {period}, allowed is {least} to {most}")));
            }
        }
        if !(1..=10_000_000).contains(&config.nonces) {
            return Err(error(format!("`nonces` is {}, allowed is 1 to 10000000", config.nonces)));
        }
        for name in &config.cover {
            if !signature::is_component(name) {
                return Err(error(format!("`{name}` is nothing of a request that can be signed here")));
            }
        }
        Ok(Self {
            keys,
            cover: config.cover.iter().map(|name| name.to_ascii_lowercase()).collect(),
            age: config.age.as_secs(),
            skew: config.skew.as_secs(),
            body: usize::try_from(config.body.get()).unwrap_or(usize::MAX),
            nonces: Nonces::new(config.nonces as usize),
            forward: Forward::try_new(&config.forward).map_err(|FilterError(why)| error(why))?,
        })
    }

    /// Whose request it is, and the request with its whole body.
    async fn judge(
        &self,
        request: Request<RequestBody>,
        next: &Next<'_>,
    ) -> Result<(Request<RequestBody>, Arc<Value>), Denied> {
        let no = |why: &str| Denied::unauthorized(CHALLENGE, why);
        let (parts, body) = request.into_parts();
        let signature = Signature::read(&parts.headers).map_err(no)?;
        let (key, claims) = self.keys.get(&*signature.keyid).ok_or_else(|| no("the key is not known"))?;
        let now = crate::auth::now();
        self.check(&signature, now).map_err(no)?;
        let base = signature.base(&parts).map_err(no)?;
        hmac::verify(key, base.as_bytes(), &signature.bytes).map_err(|_| no("the signature is wrong"))?;
        // Only now that it is known to be of a friend is anything of it read or kept.
        let body = match body {
            RequestBody::Empty => Bytes::new(),
            RequestBody::Whole(bytes) => bytes,
            passes => self.whole(passes, next).await?,
        };
        let given = parts.headers.get(DIGEST);
        if given.is_some() || !body.is_empty() {
            if !signature.covers(DIGEST) {
                return Err(no("the body is not signed: there is no content-digest among what is"));
            }
            if !given.is_some_and(|given| is_digest(given, &body)) {
                return Err(no("the body is not the one of its content-digest"));
            }
        }
        let until = now + self.age + self.skew;
        match self.nonces.remember(crate::auth::recent::key(base.as_bytes()), until, now) {
            Seen::Never => Ok((Request::from_parts(parts, body.into()), claims.clone())),
            Seen::Before => Err(no("this request has come before")),
            Seen::Unknown => {
                Err(Denied::unknown("too many signed requests have come to tell whether this one has before"))
            }
        }
    }

    fn check(&self, signature: &Signature, now: u64) -> Result<(), &'static str> {
        if signature.alg.as_ref().is_some_and(|alg| alg != "hmac-sha256") {
            return Err("the algorithm is not hmac-sha256");
        }
        if self.cover.iter().any(|name| !signature.covers(name)) {
            return Err("not all is signed that has to be");
        }
        if signature.created > now + self.skew {
            return Err("the signature is of the future");
        }
        let until = signature.expires.unwrap_or(u64::MAX).min(signature.created.saturating_add(self.age));
        if now >= until.saturating_add(self.skew) {
            return Err("the signature is too old");
        }
        Ok(())
    }

    async fn whole(&self, body: RequestBody, next: &Next<'_>) -> Result<Bytes, Denied> {
        let denied = |status, detail: String| Denied { status, challenge: None, detail };
        match tokio::time::timeout(next.timeout(), Limited::new(body, self.body).collect()).await {
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let most = Size::bytes(self.body as u64);
                Err(denied(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {most}")))
            }
            Ok(Err(error)) => Err(Denied::bad_request(format!("the body broke off: {error}"))),
            Err(_) => Err(denied(StatusCode::REQUEST_TIMEOUT, "the client did not send its body in time".to_owned())),
        }
    }
}

/// Whether a content-digest (RFC 9530) holds the body's SHA-256. One of another kind alone is none.
fn is_digest(given: &HeaderValue, body: &[u8]) -> bool {
    let Ok(given) = given.to_str() else { return false };
    let digests = given.split(',').filter_map(|part| part.trim().strip_prefix("sha-256=:")?.strip_suffix(':'));
    let mut digests = digests.filter_map(|digest| STANDARD.decode(digest).ok());
    let digest = digests.next();
    digests.next().is_none() && digest.is_some_and(|digest| digest.ct_eq(&key(body)).into())
}

impl Filter for Hmac {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            self.forward.strip(request.headers_mut());
            let judged = self.judge(request, &next).await.and_then(|(request, claims)| {
                let told = self.forward.told(&claims).map_err(Denied::forbidden)?;
                Ok((request, claims, told))
            });
            match judged {
                Ok((mut request, claims, told)) => {
                    tell(&mut request, &claims, &told);
                    next.run(request).await
                }
                Err(denied) => denied.response("hmac", next.route()),
            }
        })
    }
}

/// The names of the headers of a signature.
const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
