//! Signed tokens (JSON Web Tokens, RFC 7519) as bearers send them (RFC 6750).

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, Request, Uri};
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_types::{Period, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::FilterError;
use crate::auth::claims::{ClaimConfig, Claims};
use crate::auth::credential::{Credential, CredentialConfig};
use crate::auth::denied::Denied;
use crate::auth::identity::{Forward, Told, tell};
use crate::auth::jwk::Algorithm;
use crate::auth::jws::{Flaw, Token};
use crate::auth::keys::{Keys, KeysConfig, Known};
use crate::auth::recent::{Recent, key};

/// Which tokens pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// The keys that tokens are signed with.
    pub keys: KeysConfig,
    /// How they may be signed. Default: as each key says; with a secret, HS256.
    #[serde(default)]
    pub algorithms: Vec<Algorithm>,
    /// Who may have issued them: `iss` is one of these. Default: not looked at.
    #[serde(default)]
    pub issuer: Vec<String>,
    /// For whom they have to be: `aud` holds one of these. Default: not looked at.
    #[serde(default)]
    pub audience: Vec<String>,
    /// What kind they have to be, as `typ` in the token's header says: `at+jwt`. Default: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typ: Option<String>,
    /// How far the issuer's clock may be from ours. Default 30s, at most 10m.
    #[serde(default = "skew")]
    pub skew: Period,
    /// Claims that have to be there with these values; else it is 403.
    #[serde(default)]
    pub require: BTreeMap<String, ClaimConfig>,
    /// Where a token is looked for, in this order. Default: `[ { header: authorization } ]`.
    #[serde(default)]
    pub from: Vec<CredentialConfig>,
    /// The headers in which the service is told of claims. What a client sends in them is taken away.
    #[serde(default)]
    pub forward: BTreeMap<String, String>,
    /// Whether the service gets the token too. Default true.
    #[serde(default = "yes")]
    pub keep: bool,
    /// Whether a request without a token passes, as nobody's. Default false.
    #[serde(default)]
    pub optional: bool,
    /// How many verified tokens are remembered until they expire. Default 10000.
    #[serde(default = "remember")]
    #[schemars(range(min = 1, max = 1000000))]
    pub remember: u32,
}

const fn skew() -> Period {
    Period::secs(30)
}

const fn yes() -> bool {
    true
}

const fn remember() -> u32 {
    10_000
}

/// The largest difference of clocks.
const SKEW: Period = Period::secs(600);

#[derive(Debug)]
pub(crate) struct Jwt {
    keys: Arc<Keys>,
    rules: Rules,
    from: Vec<Credential>,
    keep: bool,
    optional: bool,
    verified: Recent<Arc<Verified>>,
}

/// What is asked of a token beside its signature.
#[derive(Debug)]
pub(super) struct Rules {
    algorithms: Vec<Algorithm>,
    issuer: Vec<String>,
    audience: Vec<String>,
    typ: Option<String>,
    skew: u64,
    require: Claims,
    forward: Forward,
}

/// A token that was good.
#[derive(Debug)]
struct Verified {
    claims: Arc<Value>,
    told: Told,
    /// From then on it is no more, in seconds since 1970; the skew is in it.
    until: u64,
    /// Of the keys.
    generation: u64,
}

impl JwtConfig {
    /// The service that has the keys, if one has.
    pub(crate) fn service(&self) -> Option<&ServiceName> {
        self.keys.service.as_ref()
    }
}

impl Jwt {
    pub(crate) fn try_new(config: &JwtConfig) -> Result<Self, FilterError> {
        let error = |why: String| FilterError(format!("jwt: {why}"));
        let inner = |FilterError(why)| error(why);
        let KeysConfig { keys, secret, secret_file, file, .. } = &config.keys;
        let secret = secret.is_some() || secret_file.is_some();
        let algorithms = match (&config.algorithms[..], secret) {
            ([], true) => vec![Algorithm::HS256],
            (given, _) => given.to_vec(),
        };
        let own = keys.is_empty() && file.is_none();
        if let Some(wrong) = algorithms.iter().find(|alg| own && alg.is_symmetric() != secret) {
            let kind = if secret { "a secret is not a key for" } else { "keys that others can fetch are not for" };
            return Err(error(format!("{kind} {wrong:?}")));
        }
        if config.skew > SKEW {
            return Err(error(format!("`skew` is {}, at most {SKEW}", config.skew)));
        }
        if config.remember == 0 || config.remember > 1_000_000 {
            return Err(error(format!("`remember` is {}, allowed is 1 to 1000000", config.remember)));
        }
        let rules = Rules {
            algorithms,
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            typ: config.typ.as_ref().map(|typ| plain(typ).to_owned()),
            skew: config.skew.as_secs(),
            require: Claims::try_new(&config.require).map_err(inner)?,
            forward: Forward::try_new(&config.forward).map_err(inner)?,
        };
        Ok(Self {
            keys: Arc::new(Keys::try_new(&config.keys).map_err(inner)?),
            rules,
            from: Credential::all(&config.from, CredentialConfig::Header("authorization".into())).map_err(inner)?,
            keep: config.keep,
            optional: config.optional,
            verified: Recent::new(config.remember as usize),
        })
    }

    /// What a request's token says; nothing if it has none, and needs none.
    async fn judge(&self, headers: &HeaderMap, uri: &Uri, next: &Next<'_>) -> Result<Option<Arc<Verified>>, Denied> {
        for place in &self.from {
            let found = place.find("bearer", headers, uri);
            let found = found.map_err(|_| invalid("invalid_request", "there are two tokens in the same place"))?;
            if let Some(text) = found {
                return self.verify(&text, next).await.map(Some);
            }
        }
        match self.optional {
            true => Ok(None),
            false => Err(Denied::unauthorized("Bearer", "there is no token")),
        }
    }

    async fn verify(&self, text: &str, next: &Next<'_>) -> Result<Arc<Verified>, Denied> {
        let (now, key) = (crate::auth::now(), key(text.as_bytes()));
        let known = self.keys.known(|| next.caller());
        if let Some(verified) = self.verified.get(&key)
            && verified.generation == known.generation
        {
            return if now < verified.until { Ok(verified) } else { Err(expired()) };
        }
        let token = Token::parse(text).map_err(flawed)?;
        let result = match self.rules.check(&token, &known, now) {
            Err(Refusal::Flaw(flaw)) if may_be_newer(flaw, &token) => {
                drop(known);
                let known = self.keys.renewed(next.caller()).await;
                if known.generation == 0 {
                    return Err(Denied::unknown("the keys that tokens are verified with cannot be had at the moment"));
                }
                self.rules.check(&token, &known, now)
            }
            result => result,
        };
        let verified = Arc::new(result.map_err(|refusal| match refusal {
            Refusal::Flaw(flaw) => flawed(flaw),
            Refusal::Denied(denied) => denied,
        })?);
        self.verified.put(key, verified.clone());
        Ok(verified)
    }
}

/// Whether a key that is not known yet may have signed it.
fn may_be_newer(flaw: Flaw, token: &Token<'_>) -> bool {
    flaw == Flaw::UnknownKey || (flaw == Flaw::Signature && token.kid().is_none())
}

enum Refusal {
    Flaw(Flaw),
    Denied(Denied),
}

/// Why a token does not hold.
pub(super) struct Flawed {
    pub(super) why: String,
    /// Whether it may with keys that are newer.
    pub(super) newer: bool,
}

impl Rules {
    /// For what `issuer` has signed for `audience`.
    pub(super) fn of_issuer(algorithms: &[Algorithm], issuer: &str, audience: &str, skew: Period) -> Self {
        Self {
            algorithms: algorithms.to_vec(),
            issuer: vec![issuer.to_owned()],
            audience: vec![audience.to_owned()],
            typ: None,
            skew: skew.as_secs(),
            require: Claims::default(),
            forward: Forward::default(),
        }
    }

    /// The claims of a token that holds now.
    ///
    /// # Errors
    /// [`Flawed`].
    pub(super) fn claims(&self, text: &str, known: &Known) -> Result<Value, Flawed> {
        let flawed = |flaw: Flaw, newer| Flawed { why: flaw.to_string(), newer };
        let token = Token::parse(text).map_err(|flaw| flawed(flaw, false))?;
        let verified = self.check(&token, known, crate::auth::now()).map_err(|refusal| match refusal {
            Refusal::Flaw(flaw) => flawed(flaw, may_be_newer(flaw, &token)),
            Refusal::Denied(denied) => Flawed { why: denied.detail, newer: false },
        })?;
        Ok(Arc::unwrap_or_clone(verified.claims))
    }

    fn check(&self, token: &Token<'_>, known: &Known, now: u64) -> Result<Verified, Refusal> {
        let payload = token.verify(&known.set, &self.algorithms).map_err(Refusal::Flaw)?;
        let no = |why: &str| Refusal::Denied(invalid("invalid_token", why));
        if self.typ.as_ref().is_some_and(|typ| !token.kind().is_some_and(|kind| plain(kind).eq_ignore_ascii_case(typ)))
        {
            return Err(no("the token is not of the kind that is used here"));
        }
        let claims: Value = serde_json::from_slice(payload).map_err(|_| no("the token holds no claims"))?;
        let until = self.times(&claims, now).map_err(|why| Refusal::Denied(invalid("invalid_token", why)))?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if !self.issuer.is_empty() && !text("iss").is_some_and(|iss| self.issuer.iter().any(|own| own == iss)) {
            return Err(no("the token is of another issuer"));
        }
        let mut audience = match claims.get("aud") {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(one)) => vec![&**one],
            _ => Vec::new(),
        }
        .into_iter();
        if !self.audience.is_empty() && !audience.any(|aud| self.audience.iter().any(|own| own == aud)) {
            return Err(no("the token is for somebody else"));
        }
        if let Some(claim) = self.require.missing(&claims) {
            let detail = format!("the claim {claim} is not as it has to be");
            let challenge = "Bearer error=\"insufficient_scope\"".to_owned();
            return Err(Refusal::Denied(Denied { challenge: Some(challenge), ..Denied::forbidden(detail) }));
        }
        let told = self.forward.told(&claims).map_err(|why| no(&why))?;
        Ok(Verified { claims: Arc::new(claims), told, until, generation: known.generation })
    }

    /// Until when the claims hold.
    fn times(&self, claims: &Value, now: u64) -> Result<u64, &'static str> {
        // A date may have a fraction (RFC 7519, 2).
        let date = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().filter(|date| *date >= 0.0).map(Some).ok_or("a date of the token is none"),
        };
        let exp = date("exp")?.ok_or("the token does not expire")?;
        let until = (exp as u64).saturating_add(self.skew);
        if now >= until {
            return Err(EXPIRED);
        }
        if date("nbf")?.is_some_and(|nbf| nbf > now.saturating_add(self.skew) as f64) {
            return Err("the token is not valid yet");
        }
        Ok(until)
    }
}

impl Filter for Jwt {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            self.rules.forward.strip(request.headers_mut());
            let verified = match self.judge(request.headers(), request.uri(), &next).await {
                Ok(verified) => verified,
                Err(denied) => return denied.response("jwt", next.route()),
            };
            if let Some(verified) = verified {
                tell(&mut request, &verified.claims, &verified.told);
            }
            if !self.keep {
                self.from.iter().for_each(|place| place.remove(request.headers_mut()));
            }
            next.run(request).await
        })
    }
}

const EXPIRED: &str = "the token has expired";

fn expired() -> Denied {
    invalid("invalid_token", EXPIRED)
}

fn flawed(flaw: Flaw) -> Denied {
    invalid("invalid_token", &flaw.to_string())
}

/// The answer to a token that is none (RFC 6750, 3).
fn invalid(error: &str, why: &str) -> Denied {
    let challenge = format!("Bearer error=\"{error}\", error_description=\"{why}\"");
    match error {
        "invalid_request" => Denied { challenge: Some(challenge), ..Denied::bad_request(why) },
        _ => Denied::unauthorized(challenge, why),
    }
}

/// `application/at+jwt` and `at+jwt` are the same (RFC 7515, 4.1.9).
fn plain(typ: &str) -> &str {
    typ.strip_prefix("application/").unwrap_or(typ)
}
