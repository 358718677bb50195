//! Requests of one client go to the same endpoint of a service, while it is up.

use std::net::SocketAddr;

use http::Request;
use http::header::{COOKIE, HeaderMap, HeaderName, HeaderValue, SET_COOKIE};
use ring::hmac;
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Affinity as Hint, AnsweredBy, Answering, Filter, Next};
use seawall_types::Period;
use serde::{Deserialize, Serialize};

use super::{FilterError, name};

/// By what a client is known: one of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AffinityConfig {
    /// By a cookie that it is given with its first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<AffinityCookie>,
    /// By a header; requests without it go anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// By its address.
    #[serde(default)]
    pub address: bool,
}

/// The cookie by which a client is known again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AffinityCookie {
    /// Its name. Default seawall-affinity.
    #[serde(default = "cookie_name")]
    pub name: String,
    /// What keeps it from saying where an endpoint is, of at least 16 characters, the same at all gateways. Default: another one each
    /// time a gateway starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// How long a browser keeps it. Default: until it is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Period>,
    /// Below which path it is sent. Default /.
    #[serde(default = "root")]
    pub path: String,
    /// Whether it is sent over TLS only. Default false.
    #[serde(default)]
    pub secure: bool,
}

fn cookie_name() -> String {
    "seawall-affinity".to_owned()
}

fn root() -> String {
    "/".to_owned()
}

#[derive(Debug)]
pub(crate) enum Affinity {
    Cookie(Cookie),
    Header(HeaderName),
    Address,
}

#[derive(Debug)]
pub(crate) struct Cookie {
    name: String,
    secret: hmac::Key,
    /// What follows the value.
    attributes: String,
}

impl Affinity {
    pub(crate) fn try_new(config: &AffinityConfig) -> Result<Self, FilterError> {
        match (&config.cookie, &config.header, config.address) {
            (Some(cookie), None, false) => Cookie::try_new(cookie).map(Self::Cookie),
            (None, Some(header), false) => Ok(Self::Header(name(header)?)),
            (None, None, true) => Ok(Self::Address),
            _ => Err(FilterError("give one of `cookie: {}`, `header: NAME` and `address: true`".to_owned())),
        }
    }
}

/// What a cookie holds: a number of the client's own, and a mark of its endpoint that only a gateway can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    key: u64,
    mark: u128,
}

impl Cookie {
    fn try_new(config: &AffinityCookie) -> Result<Self, FilterError> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if config.name.is_empty() || !config.name.bytes().all(token) {
            return Err(FilterError(format!("`{}` is no name of a cookie", config.name)));
        }
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b';';
        if !config.path.starts_with('/') || !config.path.bytes().all(plain) {
            return Err(FilterError(format!("`{}` is no path of a cookie: it begins with `/`", config.path)));
        }
        let secret = match &config.secret {
            Some(secret) if secret.len() < 16 => {
                return Err(FilterError("`secret` is too short: at least 16 characters".to_owned()));
            }
            Some(secret) => hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            None => hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
                .map_err(|_| FilterError("the system gives no random numbers for a `secret`".to_owned()))?,
        };
        let age = config.max_age.map(|age| format!("; Max-Age={}", age.get().as_secs())).unwrap_or_default();
        let secure = if config.secure { "; Secure" } else { "" };
        let attributes = format!("; Path={}{age}; HttpOnly; SameSite=Lax{secure}", config.path);
        Ok(Self { name: config.name.clone(), secret, attributes })
    }

    /// What stands for an endpoint in the cookie of one client, and for another in that of another.
    fn mark(&self, key: u64, endpoint: SocketAddr) -> u128 {
        let mut context = hmac::Context::with_key(&self.secret);
        context.update(&key.to_be_bytes());
        context.update(endpoint.to_string().as_bytes());
        let tag = context.sign();
        let first: [u8; 16] = tag.as_ref()[..16].try_into().expect("a tag has 32 bytes");
        u128::from_be_bytes(first)
    }

    fn read(&self, headers: &HeaderMap) -> Option<Held> {
        let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, value) = pairs.find(|(name, _)| *name == self.name)?;
        let (key, mark) = value.split_once('.').filter(|(key, mark)| key.len() == 16 && mark.len() == 32)?;
        Some(Held { key: u64::from_str_radix(key, 16).ok()?, mark: u128::from_str_radix(mark, 16).ok()? })
    }

    fn write(&self, held: Held) -> Option<HeaderValue> {
        let Held { key, mark } = held;
        HeaderValue::try_from(format!("{}={key:016x}.{mark:032x}{}", self.name, self.attributes)).ok()
    }
}

/// The same number for the same bytes in every process: FNV-1a. It is spread when it meets an endpoint.
fn number(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let hash = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, hash)
}

impl Filter for Affinity {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        let cookie = match self {
            Self::Cookie(cookie) => cookie,
            Self::Header(name) => {
                let value = request.headers().get(name).map(|value| number(value.as_bytes().iter().copied()));
                if let Some(key) = value {
                    request.extensions_mut().insert(Hint { endpoint: None, key });
                }
                return Box::pin(next.run(request));
            }
            Self::Address => {
                if let Some(client) = next.client() {
                    let key = number(client.to_string().into_bytes());
                    request.extensions_mut().insert(Hint { endpoint: None, key });
                }
                return Box::pin(next.run(request));
            }
        };
        Box::pin(async move {
            let held = cookie.read(request.headers());
            let key = held.map_or_else(|| fastrand::u64(..), |held| held.key);
            let known = held.and_then(|held| {
                next.endpoints().into_iter().find(|endpoint| cookie.mark(key, *endpoint) == held.mark)
            });
            request.extensions_mut().insert(Hint { endpoint: known, key });
            let mut response = next.run(request).await;
            if let Some(AnsweredBy(endpoint)) = response.extensions_mut().remove() {
                let now = Held { key, mark: cookie.mark(key, endpoint) };
                // Whose endpoint is up stays there, even if another one has helped out this time.
                if known.is_none()
                    && let Some(value) = cookie.write(now)
                {
                    response.headers_mut().append(SET_COOKIE, value);
                }
            }
            response
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_says_nothing_but_to_its_gateway() {
        let config = r#"{"cookie": {"secret": "0123456789abcdef", "max_age": "1h", "secure": true, "path": "/shop"}}"#;
        let Affinity::Cookie(cookie) = Affinity::try_new(&serde_json::from_str(config).unwrap()).unwrap() else {
            panic!("it is a cookie")
        };
        let endpoint: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let held = Held { key: 7, mark: cookie.mark(7, endpoint) };
        let text = cookie.write(held).unwrap().to_str().unwrap().to_owned();
        assert!(text.starts_with("seawall-affinity=0000000000000007."), "{text}");
        assert!(text.ends_with("; Path=/shop; Max-Age=3600; HttpOnly; SameSite=Lax; Secure"), "{text}");
        assert!(!text.contains("10.0.0.1"));
        assert_ne!(cookie.mark(7, endpoint), cookie.mark(8, endpoint), "two clients cannot compare theirs");
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, format!("a=b; {}", text.split(';').next().unwrap()).parse().unwrap());
        assert_eq!(cookie.read(&headers), Some(held));
        for value in [
            "seawall-affinity=7.8",
            "seawall-affinity=",
            "x=y",
            "seawall-affinity=000000000000000g.00000000000000000000000000000000",
        ] {
            headers.insert(COOKIE, value.parse().unwrap());
            assert_eq!(cookie.read(&headers), None, "{value}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (json, says) in [
            ("{}", "give one of"),
            (r#"{"header": "a", "address": true}"#, "give one of"),
            (r#"{"cookie": {"secret": "short"}}"#, "too short"),
            (r#"{"cookie": {"name": "a b"}}"#, "no name of a cookie"),
            (r#"{"cookie": {"path": "a;b"}}"#, "no path of a cookie"),
        ] {
            let error = Affinity::try_new(&serde_json::from_str(json).unwrap()).unwrap_err().to_string();
            assert!(error.contains(says), "{json}: {error}");
        }
    }
}
