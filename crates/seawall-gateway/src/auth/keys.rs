//! The keys of an issuer, kept up to date: fetched when they are needed for the first time, again when they are old, and again
//! when a token names a key that is not known. One fetch at a time, not too often, with a deadline; the last good keys stay.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use schemars::JsonSchema;
use seawall_proxy::Client;
use seawall_types::{Period, ServiceName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::jwk::{Key, KeySet};
use super::place::Place;
use crate::filter::FilterError;

/// Where keys are. One of `url`, `service` with `path`, `file`, `keys`, `secret` and `secret_file`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// An address of a key set: `https://id.example/jwks.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A service that has the key set, at `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// The path at the service. Default `/.well-known/jwks.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A file with a key set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The keys themselves, as JSON Web Keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<serde_json::Value>,
    /// A secret that the issuer has too, of at least 32 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// A file with such a secret; a line break at its end is not part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// How old keys from elsewhere may become before they are fetched again. Default 5m; at least 1s.
    pub refresh: Period,
    /// How long nothing is fetched after a fetch, whatever keys tokens name. Default 10s; at least 1s.
    pub cooldown: Period,
    /// How long a fetch may take. Default 3s.
    pub timeout: Period,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self {
            url: None,
            service: None,
            path: None,
            file: None,
            keys: Vec::new(),
            secret: None,
            secret_file: None,
            refresh: Period::secs(300),
            cooldown: Period::secs(10),
            timeout: Period::secs(3),
        }
    }
}

impl KeysConfig {
    /// The files that it names, as they are written.
    pub(crate) fn files(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.file.iter_mut().chain(&mut self.secret_file)
    }
}

/// Keys, and how to get newer ones.
#[derive(Debug)]
pub(crate) struct Keys {
    known: ArcSwap<Known>,
    origin: Origin,
    refresh: Duration,
    cooldown: Duration,
    timeout: Duration,
    /// A look at it costs nothing; whoever finds it set knows that somebody is about it.
    fetching: AtomicBool,
    /// When the last fetch began.
    begun: Mutex<Option<Instant>>,
    /// Counts the fetches that have ended.
    ended: watch::Sender<u64>,
}

#[derive(Debug)]
enum Origin {
    Fixed,
    File(PathBuf),
    Place(Place),
}

/// What is known at the moment.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) set: KeySet,
    /// Grows whenever the keys have changed; 0 as long as there are none.
    pub(crate) generation: u64,
    /// When it is time for newer ones; never, if they are fixed.
    stale_at: Option<Instant>,
}

impl Keys {
    pub(crate) fn try_new(config: &KeysConfig) -> Result<Self, FilterError> {
        let error = |why: String| FilterError(format!("keys: {why}"));
        let KeysConfig { url, service, path, file, keys, secret, secret_file, .. } = config;
        let given = [url.is_some(), service.is_some(), file.is_some(), !keys.is_empty(), secret.is_some()];
        let given = given.into_iter().filter(|given| *given).count() + usize::from(secret_file.is_some());
        if given != 1 {
            let why = "give one of `url`, `service`, `file`, `keys`, `secret` and `secret_file`, no more and no less";
            return Err(error(why.to_owned()));
        }
        if path.is_some() && service.is_none() {
            return Err(error("`path` is that of a `service`".to_owned()));
        }
        for (field, period, least) in [
            ("refresh", config.refresh, Duration::from_secs(1)),
            ("cooldown", config.cooldown, Duration::from_secs(1)),
            ("timeout", config.timeout, Duration::from_millis(1)),
        ] {
            if period.get() < least {
                return Err(error(format!("`{field}` is {period}, at least {}", Period::from(least))));
            }
        }
        let read =
            |file: &PathBuf| std::fs::read(file).map_err(|why| error(format!("cannot read {}: {why}", file.display())));
        let secret_of = |bytes: &[u8]| match bytes.len() {
            32.. => Ok(KeySet::of(Key::secret(bytes))),
            short => Err(error(format!("the secret has {short} bytes, at least 32"))),
        };
        let (origin, set) = if let Some(text) = secret {
            (Origin::Fixed, secret_of(text.as_bytes())?)
        } else if let Some(file) = secret_file {
            let bytes = read(file)?;
            let end = bytes.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |at| at + 1);
            (Origin::Fixed, secret_of(&bytes[..end])?)
        } else if !keys.is_empty() {
            let text = serde_json::json!({ "keys": keys }).to_string();
            (Origin::Fixed, KeySet::parse(text.as_bytes(), true).map_err(error)?)
        } else if let Some(file) = file {
            let set = KeySet::parse(&read(file)?, true);
            (Origin::File(file.clone()), set.map_err(|why| error(format!("{}: {why}", file.display())))?)
        } else {
            let place = match (url, service) {
                (Some(url), _) => Place::url(url),
                (None, Some(service)) => Place::service(service, path.as_deref().unwrap_or("/.well-known/jwks.json")),
                (None, None) => return Err(error("there are none".to_owned())),
            };
            (Origin::Place(place.map_err(|FilterError(why)| error(why))?), KeySet::default())
        };
        Ok(Self::new(origin, set, config))
    }

    /// Keys at a place that is known already.
    pub(crate) fn at(place: Place, config: &KeysConfig) -> Self {
        Self::new(Origin::Place(place), KeySet::default(), config)
    }

    /// Whether they are at this place.
    pub(crate) fn is_at(&self, place: &Place) -> bool {
        matches!(&self.origin, Origin::Place(own) if own == place)
    }

    fn new(origin: Origin, set: KeySet, config: &KeysConfig) -> Self {
        let first = match origin {
            Origin::Place(_) => Known { stale_at: Some(Instant::now()), ..Known::default() },
            Origin::File(_) => Known { set, generation: 1, stale_at: Some(Instant::now() + config.refresh.get()) },
            Origin::Fixed => Known { set, generation: 1, stale_at: None },
        };
        Self {
            known: ArcSwap::from_pointee(first),
            origin,
            refresh: config.refresh.get(),
            cooldown: config.cooldown.get(),
            timeout: config.timeout.get(),
            fetching: AtomicBool::new(false),
            begun: Mutex::new(None),
            ended: watch::Sender::new(0),
        }
    }

    /// What is known. If it is old a fetch begins, for which nobody waits.
    pub(crate) fn known(self: &Arc<Self>, client: impl FnOnce() -> Client) -> Guard<Arc<Known>> {
        let known = self.known.load();
        if known.stale_at.is_some_and(|at| at <= Instant::now()) && !self.fetching.load(Ordering::Relaxed) {
            self.begin(client());
        }
        known
    }

    /// What is known after a fetch, if there may be one now; as long as it takes, and no longer than its deadline.
    pub(crate) async fn renewed(self: &Arc<Self>, client: Client) -> Guard<Arc<Known>> {
        let mut ended = self.ended.subscribe();
        if !matches!(self.origin, Origin::Fixed) && self.begin(client) {
            // A fetch that is dropped with its worker has ended too.
            let _ = tokio::time::timeout(self.timeout + Duration::from_millis(100), ended.changed()).await;
        }
        self.known.load()
    }

    /// Whether a fetch is under way now.
    fn begin(self: &Arc<Self>, client: Client) -> bool {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if self.fetching.load(Ordering::Relaxed) {
            return true;
        }
        // Without any key every request is turned away, so that more is dared.
        let without = self.known.load().generation == 0;
        let cooldown = if without { self.cooldown.min(Duration::from_secs(1)) } else { self.cooldown };
        if begun.is_some_and(|begun| begun.elapsed() < cooldown) {
            return false;
        }
        *begun = Some(Instant::now());
        self.fetching.store(true, Ordering::Relaxed);
        let fetch = Fetch(self.clone());
        tokio::spawn(async move { fetch.run(&client).await });
        true
    }
}

/// A fetch under way; however it ends, the next may begin.
struct Fetch(Arc<Keys>);

impl Fetch {
    async fn run(self, client: &Client) {
        let keys = &*self.0;
        let (from, text) = match &keys.origin {
            Origin::Fixed => return,
            Origin::Place(place) => (place.to_string(), place.get(client, keys.timeout).await),
            Origin::File(file) => (file.display().to_string(), read(file.clone()).await),
        };
        let secrets = matches!(keys.origin, Origin::File(_));
        let known = keys.known.load();
        let next = match text.and_then(|text| KeySet::parse(&text, secrets)) {
            Ok(set) => {
                let changed = set != known.set;
                if changed && known.generation > 0 {
                    tracing::info!(%from, "the keys have changed");
                }
                let generation = known.generation + u64::from(changed);
                Known { set, generation, stale_at: Some(Instant::now() + keys.refresh) }
            }
            Err(why) => {
                tracing::warn!(%from, %why, kept = known.generation > 0, "no keys could be fetched");
                let stale_at = Some(Instant::now() + keys.cooldown.min(keys.refresh));
                Known { set: known.set.clone(), generation: known.generation, stale_at }
            }
        };
        keys.known.store(Arc::new(next));
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.0.fetching.store(false, Ordering::Relaxed);
        self.0.ended.send_modify(|count| *count += 1);
    }
}

async fn read(file: PathBuf) -> Result<Bytes, String> {
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    read.map_err(|error| error.to_string())?.map(Bytes::from).map_err(|error| error.to_string())
}
