//! Which store, as a configuration says it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::migrate::{self, Unusable};
use crate::sqlite::OpenError;
use crate::{Embedded, STORE_LIMIT, Store};

/// Where a port is not given.
const ETCD_PORT: &str = "2379";
/// Where a prefix is not given.
const ETCD_PREFIX: &str = "seawall";

/// Which store: `embedded`, or `etcd://host:port,host:port/prefix`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StoreUrl {
    /// A file of this process.
    #[default]
    Embedded,
    /// Keys in an etcd cluster.
    Etcd {
        /// Its members, each as `host:port`.
        endpoints: Vec<String>,
        /// What all of Seawall's keys begin with, without the `/` that follows.
        prefix: String,
    },
}

/// A text that names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{url}` names no store: {why}; write `embedded` or `etcd://host:2379,host:2379/prefix`")]
pub struct InvalidStoreUrl {
    url: String,
    why: String,
}

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The etcd cluster does not answer, or not as one.
    #[error("{0}")]
    Etcd(String),
    /// It has moved, and is not used any more.
    #[error("{path} has moved to {to}: set `control.store` to that")]
    Moved {
        /// The file.
        path: PathBuf,
        /// Where the store is now.
        to: String,
    },
    /// A migration into it was not finished; what it comes from is used as before.
    #[error(
        "{0} is being filled by a migration that was not finished: repeat `seawall store migrate --to {0}`, or use the old \
         store, which is whole"
    )]
    Filling(StoreUrl),
    /// It was found, and then did not answer.
    #[error("{url}: {why}")]
    Unanswered {
        /// Which.
        url: StoreUrl,
        /// Why.
        why: String,
    },
    /// This program was built without the feature that it needs.
    #[error("`{0}`: this program was built without that kind of store")]
    NotBuilt(StoreUrl),
}

impl StoreError {
    /// Whether trying again may help: an etcd that does not answer may come back. A file that is damaged, a store that has moved,
    /// and one that this program was not built for stay as they are.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Etcd(_) | Self::Unanswered { .. })
    }
}

/// As [`open_within`] with [`STORE_LIMIT`].
///
/// # Errors
/// [`StoreError`].
pub async fn open(url: &StoreUrl, file: &Path) -> Result<Arc<dyn Store>, StoreError> {
    open_within(url, file, STORE_LIMIT).await
}

/// Opens the store that `url` says; `file` is where the embedded one lives, and `limit` how many bytes it may take
/// ([`Embedded::open_within`]). Waits up to 10 s for an etcd that does not answer. Cancel safe.
///
/// # Errors
/// [`StoreError`].
pub async fn open_within(url: &StoreUrl, file: &Path, limit: u64) -> Result<Arc<dyn Store>, StoreError> {
    let store = connect(url, file, limit).await?;
    // A store that has moved to where it is now may have left one step to be done.
    let at_home = || match url {
        StoreUrl::Embedded => None,
        StoreUrl::Etcd { .. } => migrate::mark_of(file),
    };
    match migrate::usable(&*store, at_home).await {
        Ok(()) => Ok(store),
        Err(Unusable::Moved(to)) => Err(StoreError::Moved { path: file.to_owned(), to }),
        Err(Unusable::Filling) => Err(StoreError::Filling(url.clone())),
        Err(Unusable::Failed(why)) => Err(StoreError::Unanswered { url: url.clone(), why }),
    }
}

/// As [`open_within`], of a store that is not to be used as one, but moved or looked at.
///
/// # Errors
/// [`StoreError`].
pub async fn connect(url: &StoreUrl, file: &Path, limit: u64) -> Result<Arc<dyn Store>, StoreError> {
    match url {
        StoreUrl::Embedded => Ok(Arc::new(Embedded::open_within(file, limit)?)),
        #[cfg(feature = "etcd")]
        StoreUrl::Etcd { endpoints, prefix } => Ok(Arc::new(crate::Etcd::wait(endpoints, prefix).await?)),
        #[cfg(not(feature = "etcd"))]
        StoreUrl::Etcd { .. } => Err(StoreError::NotBuilt(url.clone())),
    }
}

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let invalid = |why: String| InvalidStoreUrl { url: url.to_owned(), why };
        if url == "embedded" {
            return Ok(Self::Embedded);
        }
        let Some((scheme, rest)) = url.split_once("://") else { return Err(invalid("it has no scheme".into())) };
        if scheme != "etcd" {
            return Err(invalid(format!("`{scheme}` is not known")));
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let endpoints = hosts.split(',').map(|host| endpoint(host).map_err(invalid)).collect::<Result<_, _>>()?;
        let prefix = path.trim_matches('/');
        if let Some(odd) = prefix.chars().find(|c| c.is_control() || c.is_whitespace() || "?#".contains(*c)) {
            return Err(invalid(format!("the prefix has {odd:?} in it")));
        }
        let prefix = if prefix.is_empty() { ETCD_PREFIX } else { prefix }.to_owned();
        Ok(Self::Etcd { endpoints, prefix })
    }
}

fn endpoint(host: &str) -> Result<String, String> {
    if let Some(odd) = host.chars().find(|c| c.is_control() || c.is_whitespace() || "@?#\"\\<>`{|}%".contains(*c)) {
        return Err(format!("the host `{host}` has {odd:?} in it"));
    }
    // The colons of an IPv6 address are in brackets.
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, ETCD_PORT),
    };
    if name.is_empty() {
        return Err("a host is empty".into());
    }
    if name.contains(':') && !(name.starts_with('[') && name.ends_with(']')) {
        return Err(format!("the address `{name}` has to be in brackets"));
    }
    match port.parse() {
        Ok(1u16..) => Ok(format!("{name}:{port}")),
        _ => Err(format!("`{port}` is no port")),
    }
}

impl TryFrom<String> for StoreUrl {
    type Error = InvalidStoreUrl;

    fn try_from(url: String) -> Result<Self, Self::Error> {
        url.parse()
    }
}

impl From<StoreUrl> for String {
    fn from(url: StoreUrl) -> Self {
        url.to_string()
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Etcd { endpoints, prefix } => write!(f, "etcd://{}/{prefix}", endpoints.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_store_or_says_why_not() {
        let table = [
            ("embedded", Ok("embedded")),
            ("etcd://a:1", Ok("etcd://a:1/seawall")),
            ("etcd://a/", Ok("etcd://a:2379/seawall")),
            ("etcd://a:1,b.c:2/shop/eu/", Ok("etcd://a:1,b.c:2/shop/eu")),
            ("etcd://[::1],[::2]:5/x", Ok("etcd://[::1]:2379,[::2]:5/x")),
            ("", Err("no scheme")),
            ("etcd", Err("no scheme")),
            ("redis://a", Err("`redis` is not known")),
            ("etcd://", Err("a host is empty")),
            ("etcd://a,,b", Err("a host is empty")),
            ("etcd://a:", Err("`` is no port")),
            ("etcd://a:0", Err("`0` is no port")),
            ("etcd://a:65536", Err("`65536` is no port")),
            ("etcd://::1", Err("in brackets")),
            ("etcd://me:pass@a", Err("'@'")),
            ("etcd://a/b?c=d", Err("'?'")),
        ];
        for (url, expected) in table {
            match (url.parse::<StoreUrl>(), expected) {
                (Ok(url), Ok(expected)) => {
                    assert_eq!(url.to_string(), expected);
                    assert_eq!(expected.parse(), Ok(url));
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (got, expected) => panic!("{url}: {got:?}, not {expected:?}"),
            }
        }
    }
}
