//! Names and passwords (RFC 7617).

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argon2::{Argon2, PasswordHash, PasswordVerifier};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use http::header::AUTHORIZATION;
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;

use super::FilterError;
use super::api_key::sha256_of;
use crate::auth::credential::Credential;
use crate::auth::denied::Denied;
use crate::auth::identity::{Forward, claims_of, tell};
use crate::auth::recent::{Recent, key};
use crate::auth::watched::{Watched, lines};

/// Who passes with which password.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BasicConfig {
    /// The users.
    #[serde(default)]
    pub users: Vec<UserConfig>,
    /// A file with more of them, `name:hash` a line, as htpasswd writes it; read again when it has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// What browsers say when they ask for the password. Default `restricted`.
    #[serde(default = "realm")]
    pub realm: String,
    /// The headers in which the service is told of claims; `sub` is the name. What a client sends in them is taken away.
    #[serde(default)]
    pub forward: BTreeMap<String, String>,
    /// Whether the service gets the password too. Default false.
    #[serde(default)]
    pub keep: bool,
    /// Whether a request without a name and password passes, as nobody's. Default false.
    #[serde(default)]
    pub optional: bool,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// The name, which becomes the claim `sub`.
    pub name: String,
    /// The hash of the password: `$argon2id$...`, `$2b$...` (bcrypt), or, for one that is long and random, `sha256:` and 64
    /// hexadecimal digits.
    pub hash: String,
    /// More claims.
    #[serde(default)]
    pub claims: Map<String, Value>,
}

fn realm() -> String {
    "restricted".to_owned()
}

/// How many passwords are hashed at once, however many workers there are: it takes a core each for some tens of milliseconds.
const AT_ONCE: usize = 2;
/// How many wait for that.
const QUEUE: usize = 64;
/// How long they do.
const WAIT: Duration = Duration::from_secs(3);
/// How many names with passwords are remembered.
const REMEMBERED: usize = 10_000;

#[derive(Clone, Debug)]
struct User {
    hash: Arc<str>,
    claims: Arc<Value>,
}

type Users = HashMap<String, User>;

#[derive(Debug)]
pub(crate) struct Basic {
    users: Users,
    file: Option<Arc<Watched<Users>>>,
    challenge: String,
    forward: Forward,
    keep: bool,
    optional: bool,
    /// Which hash a name with its password fits.
    verified: Recent<Arc<str>>,
    hashing: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Basic {
    pub(crate) fn try_new(config: &BasicConfig) -> Result<Self, FilterError> {
        let error = |why: String| FilterError(format!("basic: {why}"));
        let mut users = Users::new();
        for UserConfig { name, hash, claims } in &config.users {
            let user = User { hash: known(name, hash).map_err(error)?, claims: claims_of(name, claims) };
            if name.contains(':') || users.insert(name.clone(), user).is_some() {
                return Err(error(format!("the name `{name}` is given twice, or holds a colon")));
            }
        }
        let file = config.file.as_deref().map(|file| Watched::try_new(file, parse).map(Arc::new));
        let file = file.transpose().map_err(error)?;
        if users.is_empty() && file.is_none() {
            return Err(error("give `users`, or a `file` with some".to_owned()));
        }
        if !config.realm.bytes().all(|b| b == b' ' || (b.is_ascii_graphic() && b != b'"' && b != b'\\')) {
            return Err(error("`realm` is of letters of ASCII, without quotes".to_owned()));
        }
        let forward = Forward::try_new(&config.forward).map_err(|FilterError(why)| error(why))?;
        Ok(Self {
            users,
            file,
            challenge: format!("Basic realm=\"{}\", charset=\"UTF-8\"", config.realm),
            forward,
            keep: config.keep,
            optional: config.optional,
            verified: Recent::new(REMEMBERED),
            hashing: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: AtomicUsize::new(0),
        })
    }

    fn denied(&self, why: &str) -> Denied {
        Denied::unauthorized(self.challenge.clone(), why)
    }

    fn user(&self, name: &str) -> Option<User> {
        let from_file = || self.file.as_ref().and_then(|file| file.now().get(name).cloned());
        self.users.get(name).cloned().or_else(from_file)
    }

    /// Who a request is from; nobody, if it does not say so and need not.
    async fn judge(&self, request: &Request<RequestBody>) -> Result<Option<Arc<Value>>, Denied> {
        let place = Credential::Header(AUTHORIZATION);
        let found = place.find("basic", request.headers(), request.uri());
        let found = found.map_err(|_| Denied::bad_request("there are two headers of authorization"))?;
        let Some(text) = found else {
            return if self.optional { Ok(None) } else { Err(self.denied("there is no password")) };
        };
        let wrong = || self.denied("the name or the password is wrong");
        let (name, password) = read(&text).ok_or_else(wrong)?;
        let key = key(text.as_bytes());
        let user = self.user(&name);
        if let Some(user) = &user
            && self.verified.get(&key).is_some_and(|hash| hash == user.hash)
        {
            return Ok(Some(user.claims.clone()));
        }
        // A name that nobody has takes as long as one that somebody has.
        let hash = match &user {
            Some(user) => user.hash.clone(),
            None => self.any_hash(),
        };
        let fits = self.fits(&hash, password).await?;
        let user = user.filter(|_| fits).ok_or_else(wrong)?;
        self.verified.put(key, user.hash);
        Ok(Some(user.claims))
    }

    fn any_hash(&self) -> Arc<str> {
        let of_file = || self.file.as_ref().and_then(|file| file.now().values().next().map(|user| user.hash.clone()));
        let own = self.users.values().next().map(|user| user.hash.clone());
        own.or_else(of_file).unwrap_or_else(|| "sha256:".into())
    }

    /// Whether the password is that of the hash, found out beside the worker if it takes long.
    async fn fits(&self, hash: &Arc<str>, password: String) -> Result<bool, Denied> {
        if let Some(digest) = hash.strip_prefix(SHA256) {
            let digest = sha256_of(digest).unwrap_or_default();
            return Ok(digest.ct_eq(&crate::auth::recent::key(password.as_bytes())).into());
        }
        let busy = || Denied::unknown("too many passwords are looked at already");
        let place = Waiting::new(&self.waiting).ok_or_else(busy)?;
        let permit = tokio::time::timeout(WAIT, self.hashing.clone().acquire_owned()).await;
        let permit = permit.ok().and_then(Result::ok).ok_or_else(busy)?;
        drop(place);
        let hash = hash.clone();
        let fits = tokio::task::spawn_blocking(move || {
            let fits = fits(&hash, password.as_bytes());
            drop(permit);
            fits
        });
        fits.await.map_err(|_| busy())
    }
}

/// A place among those who wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Option<Self> {
        let place = Self(count);
        if count.fetch_add(1, Ordering::Relaxed) < QUEUE { Some(place) } else { None }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

const SHA256: &str = "sha256:";

fn fits(hash: &str, password: &[u8]) -> bool {
    if hash.starts_with("$2") {
        return bcrypt::verify(password, hash).unwrap_or(false);
    }
    PasswordHash::new(hash).is_ok_and(|parsed| Argon2::default().verify_password(password, &parsed).is_ok())
}

/// A hash of a kind that is known.
fn known(name: &str, hash: &str) -> Result<Arc<str>, String> {
    let known = match hash.strip_prefix(SHA256) {
        Some(digest) => sha256_of(digest).is_some(),
        None if hash.starts_with("$2") => hash.len() == 60 && hash.parse::<bcrypt::HashParts>().is_ok(),
        None => hash.starts_with("$argon2") && PasswordHash::new(hash).is_ok(),
    };
    let what = "is no hash of argon2 (`$argon2id$...`), bcrypt (`$2b$...`), or `sha256:` with 64 hexadecimal digits";
    known.then(|| hash.into()).ok_or_else(|| format!("{name}: what stands for the password {what}"))
}

fn parse(text: &str) -> Result<Users, String> {
    let user = |line: Result<(&str, &str), String>| {
        let (name, hash) = line?;
        Ok((name.to_owned(), User { hash: known(name, hash)?, claims: claims_of(name, &Map::new()) }))
    };
    lines(text).map(user).collect()
}

/// Name and password.
fn read(text: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    Some((name.to_owned(), password.to_owned()))
}

impl Filter for Basic {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            self.forward.strip(request.headers_mut());
            let told = self.judge(&request).await.and_then(|claims| {
                let Some(claims) = claims else { return Ok(None) };
                let told = self.forward.told(&claims).map_err(Denied::forbidden)?;
                Ok(Some((claims, told)))
            });
            match told {
                Ok(Some((claims, told))) => {
                    tell(&mut request, &claims, &told);
                    if !self.keep {
                        request.headers_mut().remove(AUTHORIZATION);
                    }
                }
                Ok(None) => {}
                Err(denied) => return denied.response("basic", next.route()),
            }
            next.run(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn passwords_fit_their_hashes_and_no_others() {
        let argon2 =
            "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Q4FuNSXEKWB+4mcnTTJxuRAoFYULWuiiRW9vbAsUqxA";
        let bcrypt = bcrypt::hash("secret", 4).unwrap();
        for hash in [argon2, &*bcrypt] {
            assert!(known("ann", hash).is_ok(), "{hash}");
            assert!(!fits(hash, b"other"));
        }
        assert!(fits(&bcrypt, b"secret"));
        for hash in ["secret", "$1$abc", "{SHA}abc", "sha256:abc", "$2b$short", "$argon2id$nothing", ""] {
            assert!(known("ann", hash).unwrap_err().starts_with("ann: "), "{hash}");
        }
        let users = parse(&format!("# users\nann:{bcrypt}\n")).unwrap();
        assert!(users.contains_key("ann") && parse("ann:secret").is_err());
    }

    #[test]
    fn argon2_hashes_of_other_programs_fit() {
        use argon2::PasswordHasher as _;
        let hash = Argon2::default().hash_password_with_salt(b"secret", b"a salt of its own").unwrap().to_string();
        assert!(known("ann", &hash).is_ok() && fits(&hash, b"secret") && !fits(&hash, b"secreT"));
    }

    #[test]
    fn names_and_passwords_are_read() {
        let read = |text: &str| super::read(&STANDARD.encode(text));
        assert_eq!(read("ann:a:b"), Some(("ann".into(), "a:b".into())));
        assert_eq!(read("ann"), None);
        assert_eq!(super::read("***"), None);
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_sends_is_too_much(text in "\\PC{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = super::read(&text);
            let _ = super::read(&STANDARD.encode(&bytes));
            let _ = known("n", &text);
            let _ = parse(&text);
        }
    }
}
