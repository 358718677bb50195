//! The connection to a Redis, and what its errors mean.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, RedisError, ScriptInvocation};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::backend::BackendError;
use crate::backend::home::Home;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// The longest time to live, unless the URL says otherwise.
const MAX_TTL: Duration = Duration::from_secs(60);

/// Which Redis, and how to say so without its password.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) client: redis::Client,
    pub(super) name: String,
    /// Nobody's lock there lives longer without being extended.
    pub(super) max_ttl: Duration,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Place {
    /// Of an URL as `redis://user:password@host:port/database?max_ttl=60s`.
    pub(super) fn parse(url: &str) -> Result<Self, BackendError> {
        let refused = |why: String| BackendError::Refused { backend: "Redis".into(), why };
        let (url, query) = url.split_once('?').unwrap_or((url, ""));
        let mut max_ttl = MAX_TTL;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("max_ttl", text)) => {
                    let period = text.parse::<seawall_types::Period>();
                    max_ttl = period.map_err(|error| refused(format!("max_ttl in the URL: {error}")))?.get();
                }
                _ => return Err(refused(format!("the URL says `{pair}`; there is only `max_ttl=60s`"))),
            }
        }
        let client = redis::Client::open(url).map_err(|error| refused(format!("the URL is none of its: {error}")))?;
        let name = format!("Redis at {}", client.get_connection_info().addr());
        Ok(Self { client, name, max_ttl })
    }

    pub(super) fn down(&self, why: impl fmt::Display) -> BackendError {
        BackendError::Down { backend: self.name.clone(), why: why.to_string() }
    }

    pub(super) fn refused(&self, why: impl fmt::Display) -> BackendError {
        BackendError::Refused { backend: self.name.clone(), why: why.to_string() }
    }

    /// What an error means for something that was sent, and whether the connection is of no more use.
    fn error(&self, doing: Doing, error: &RedisError) -> (BackendError, bool) {
        let Some(code) = error.code() else { return (self.unanswered(doing, error), true) };
        let remedy = match code {
            "READONLY" => "it is a replica, which only reads: name the primary",
            "OOM" => "its memory is full: raise maxmemory, or keep locks apart from a cache",
            "MISCONF" => "it cannot write to its disk: see its log",
            "LOADING" => "it is still reading its data",
            "NOAUTH" | "WRONGPASS" => "put user and password into the URL, as redis://user:password@host",
            "NOPERM" => "this user may not run scripts, or not touch these keys",
            "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" => "it serves nobody at the moment",
            "MOVED" | "ASK" | "CROSSSLOT" => "it is part of a cluster, which is not spoken here: name a single Redis",
            _ => "it did nothing",
        };
        let why = format!("{remedy} ({code}: {})", error.detail().unwrap_or_default());
        let again = matches!(
            code,
            "READONLY" | "OOM" | "MISCONF" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY"
        );
        (if again { self.down(why) } else { self.refused(why) }, code == "READONLY")
    }

    fn unanswered(&self, doing: Doing, why: impl fmt::Display) -> BackendError {
        match doing {
            Doing::Read => self.down(why),
            Doing::Write => BackendError::Unknown { backend: self.name.clone(), why: why.to_string() },
        }
    }
}

/// What a lost answer leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing.
    Read,
    /// Whether it was done.
    Write,
}

/// A connection that is made when it is needed, and again after it broke; clones share it. It lives on a thread of its own.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    home: Home,
    current: Arc<Mutex<Current>>,
}

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// Tells connections apart, so that a failed call closes its own and no newer one.
    number: u64,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Line {
    pub(super) fn new(home: Home, place: Place) -> Self {
        Self { place, home, current: Arc::default() }
    }

    /// Runs a script, within `patience`, a new connection included.
    pub(super) async fn run<T: FromRedisValue + Send + 'static>(
        &self,
        doing: Doing,
        patience: Duration,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, BackendError> {
        let connecting = timeout(patience, self.connection()).await;
        let (mut connection, number) =
            connecting.unwrap_or_else(|_| Err(self.place.down(format!("no connection within {patience:?}"))))?;
        let answer = timeout(patience, script.invoke_async(&mut connection)).await;
        let (error, broken) = match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => self.place.error(doing, &error),
            Err(_) => (self.place.unanswered(doing, format!("no answer within {patience:?}")), true),
        };
        if broken {
            let mut current = self.current.lock().await;
            if current.number == number {
                current.connection = None;
            }
        }
        Err(error)
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), BackendError> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok((connection.clone(), current.number));
        }
        let place = self.place.clone();
        let connecting = self.home.spawn(async move { place.connect().await });
        let connection = connecting.await.unwrap_or_else(|_| Err(self.place.down("its thread has ended")))?;
        current.number += 1;
        current.connection = Some(connection.clone());
        Ok((connection, current.number))
    }

    /// Which process it is: another after each start. Makes a connection, if there is none.
    pub(super) async fn run_id(&self, patience: Duration) -> Result<String, BackendError> {
        let connecting = timeout(patience, self.connection()).await;
        let (mut connection, _) =
            connecting.unwrap_or_else(|_| Err(self.place.down(format!("no connection within {patience:?}"))))?;
        let info = self.place.info(&mut connection).await?;
        Ok(field(&info, "run_id").unwrap_or_default().to_owned())
    }
}

impl Place {
    /// Makes a connection, and looks whether locks are in good hands there.
    async fn connect(&self) -> Result<MultiplexedConnection, BackendError> {
        // Calls have deadlines of their own.
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = match timeout(CONNECT, connecting).await {
            Ok(Ok(connection)) => connection,
            // Nothing of ours was sent.
            Ok(Err(error)) => return Err(self.error(Doing::Read, &error).0),
            Err(_) => return Err(self.down(format!("no connection within {CONNECT:?}"))),
        };
        let info = self.info(&mut connection).await?;
        self.check(&info, &mut connection).await?;
        Ok(connection)
    }

    async fn info(&self, connection: &mut MultiplexedConnection) -> Result<String, BackendError> {
        match timeout(CONNECT, redis::cmd("INFO").query_async(connection)).await {
            Ok(Ok(info)) => Ok(info),
            Ok(Err(error)) => Err(self.error(Doing::Read, &error).0),
            Err(_) => Err(self.down(format!("it accepts connections and does not answer within {CONNECT:?}"))),
        }
    }

    /// A Redis that has just started and may have forgotten locks gives none until every lock from before has ended.
    async fn check(&self, info: &str, connection: &mut MultiplexedConnection) -> Result<(), BackendError> {
        if field(info, "redis_mode") == Some("cluster") {
            return Err(self.refused("it is part of a cluster, which is not spoken here: name a single Redis"));
        }
        if field(info, "role") == Some("slave") {
            return Err(self.down("it is a replica, which only reads: name the primary"));
        }
        let Some(up) = field(info, "uptime_in_seconds").and_then(|up| up.parse().ok()) else {
            return Err(self.refused("it does not say how long it has been running (INFO), as a Redis does"));
        };
        // It counts whole seconds.
        let left = (self.max_ttl + Duration::from_secs(1)).saturating_sub(Duration::from_secs(up));
        if left.is_zero() || (field(info, "aof_enabled") == Some("1") && syncs(connection).await) {
            return Ok(());
        }
        Err(self.down(format!(
            "it has been running for {up} s and may have forgotten locks from before: it is used in {left:?} (max_ttl), or at \
             once with appendonly yes and appendfsync always"
        )))
    }
}

/// Whether it syncs every write before it answers. One that does not tell does not.
async fn syncs(connection: &mut MultiplexedConnection) -> bool {
    let mut asked = redis::cmd("CONFIG");
    asked.arg("GET").arg("appendfsync");
    let answer = timeout(CONNECT, asked.query_async::<Vec<String>>(connection)).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|pair| pair.last().is_some_and(|value| value == "always")))
}

/// A line of `INFO`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
