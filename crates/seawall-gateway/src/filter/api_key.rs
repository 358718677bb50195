//! Keys of programs: long random texts, of which only the hashes are written down.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use http::Request;
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::FilterError;
use crate::auth::credential::{Credential, CredentialConfig};
use crate::auth::denied::Denied;
use crate::auth::identity::{Forward, claims_of, tell};
use crate::auth::recent::{Key, key};
use crate::auth::watched::{Watched, lines};

/// Which keys pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyConfig {
    /// The keys.
    #[serde(default)]
    pub keys: Vec<ConsumerConfig>,
    /// A file with more of them, `name:sha256` a line; read again when it has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Where a key is looked for, in this order. Default: `[ { header: x-api-key } ]`.
    #[serde(default)]
    pub from: Vec<CredentialConfig>,
    /// The headers in which the service is told of claims; `sub` is the name. What a client sends in them is taken away.
    #[serde(default)]
    pub forward: BTreeMap<String, String>,
    /// Whether the service gets the key too. One in the query it gets in any case. Default false.
    #[serde(default)]
    pub keep: bool,
    /// Whether a request without a key passes, as nobody's. Default false.
    #[serde(default)]
    pub optional: bool,
}

/// Who has a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsumerConfig {
    /// The name, which becomes the claim `sub`.
    pub name: String,
    /// The SHA-256 of the key, in 64 hexadecimal digits.
    pub sha256: String,
    /// More claims.
    #[serde(default)]
    pub claims: Map<String, Value>,
}

type Consumers = HashMap<Key, Arc<Value>>;

#[derive(Debug)]
pub(crate) struct ApiKey {
    keys: Consumers,
    file: Option<Arc<Watched<Consumers>>>,
    from: Vec<Credential>,
    forward: Forward,
    keep: bool,
    optional: bool,
}

impl ApiKey {
    pub(crate) fn try_new(config: &ApiKeyConfig) -> Result<Self, FilterError> {
        let error = |why: String| FilterError(format!("api_key: {why}"));
        let mut keys = Consumers::new();
        for ConsumerConfig { name, sha256, claims } in &config.keys {
            let hash =
                sha256_of(sha256).ok_or_else(|| error(format!("{name}: `sha256` is not 64 hexadecimal digits")))?;
            if keys.insert(hash, claims_of(name, claims)).is_some() {
                return Err(error(format!("{name} has the same key as another")));
            }
        }
        let file = config.file.as_deref().map(|file| Watched::try_new(file, parse).map(Arc::new));
        let file = file.transpose().map_err(error)?;
        if keys.is_empty() && file.is_none() {
            return Err(error("give `keys`, or a `file` with some".to_owned()));
        }
        let inner = |FilterError(why)| error(why);
        let from = Credential::all(&config.from, CredentialConfig::Header("x-api-key".into())).map_err(inner)?;
        let forward = Forward::try_new(&config.forward).map_err(inner)?;
        Ok(Self { keys, file, from, forward, keep: config.keep, optional: config.optional })
    }

    /// Whose key a request has; nobody's, if it has none and needs none.
    fn judge(&self, request: &Request<RequestBody>) -> Result<Option<Arc<Value>>, Denied> {
        for place in &self.from {
            let found = place.find("apikey", request.headers(), request.uri());
            let found = found.map_err(|_| Denied::bad_request("there are two keys in the same place"))?;
            if let Some(text) = found {
                // Whoever can guess at hashes cannot choose them: an ordinary map does.
                let key = key(text.as_bytes());
                let own = || self.keys.get(&key).cloned();
                let from_file = || self.file.as_ref().and_then(|file| file.now().get(&key).cloned());
                let found = own().or_else(from_file);
                return found.map(Some).ok_or_else(|| Denied::unauthorized(CHALLENGE, "the key is not known"));
            }
        }
        match self.optional {
            true => Ok(None),
            false => Err(Denied::unauthorized(CHALLENGE, "there is no key")),
        }
    }
}

/// No scheme of the registry is for keys; this is what others say.
const CHALLENGE: &str = "ApiKey";

/// The bytes of a SHA-256 in hexadecimal digits.
pub(super) fn sha256_of(text: &str) -> Option<Key> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn parse(text: &str) -> Result<Consumers, String> {
    let consumer = |line: Result<(&str, &str), String>| {
        let (name, hash) = line?;
        let hash = sha256_of(hash.trim()).ok_or_else(|| format!("{name}: not 64 hexadecimal digits"))?;
        Ok((hash, claims_of(name, &Map::new())))
    };
    lines(text).map(consumer).collect()
}

impl Filter for ApiKey {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            self.forward.strip(request.headers_mut());
            let told = self.judge(&request).and_then(|claims| {
                let Some(claims) = claims else { return Ok(None) };
                let told = self.forward.told(&claims).map_err(Denied::forbidden)?;
                Ok(Some((claims, told)))
            });
            match told {
                Ok(Some((claims, told))) => tell(&mut request, &claims, &told),
                Ok(None) => {}
                Err(denied) => return denied.response("api_key", next.route()),
            }
            if !self.keep {
                self.from.iter().for_each(|place| place.remove(request.headers_mut()));
            }
            next.run(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_keys_are_read_or_their_mistakes_said() {
        let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let read = parse(&format!("# keys\n\nshop: {hash}\n")).unwrap();
        assert_eq!(read[&key(b"secret")]["sub"], "shop");
        assert_eq!(parse("shop\n").unwrap_err(), "line 1 is not `name:...`");
        assert_eq!(parse("\nshop:abc\n").unwrap_err(), "shop: not 64 hexadecimal digits");
        assert!(sha256_of(&"é".repeat(32)).is_none());
    }
}
