//! Counting in a Redis that all gateways share: one script, one round trip, by the server's clock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError, Script};
use seawall_resilience::breaker::{Config, State, Window};
use seawall_resilience::rate_limit::Plan;
use seawall_resilience::{Breaker, Clock, Outcome};
use seawall_types::Period;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::counter::{Counter, Decision};
use crate::filter::FilterError;

/// How long a connection may take to be made; nobody waits for it longer than for an answer.
const CONNECT: Duration = Duration::from_secs(2);
/// Whole numbers are exact up to here in Redis' scripts.
const EXACT: u64 = 1 << 53;
const SCRIPT: &str = include_str!("shared.lua");

/// The counters in a Redis.
pub(super) struct Shared {
    client: redis::Client,
    place: String,
    deadline: Duration,
    script: Script,
    arguments: Vec<u64>,
    way: Way,
    breaker: Arc<Breaker>,
    current: Mutex<Option<Connection>>,
    /// Tells connections apart.
    number: AtomicU64,
}

/// How it is counted there.
#[derive(Clone, Copy, Debug)]
enum Way {
    Gcra,
    Bucket,
    Window,
    Quota(super::Calendar),
}

#[derive(Clone)]
struct Connection {
    line: MultiplexedConnection,
    number: u64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn try_new(url: &str, deadline: Duration, counter: Counter) -> Result<Self, FilterError> {
        let client = redis::Client::open(url).map_err(|error| {
            FilterError(format!("`store` is not the URL of a Redis, as redis://host:6379: {error}"))
        })?;
        let place = format!("Redis at {}", client.get_connection_info().addr());
        let (way, arguments, largest) = match counter {
            Counter::Plan(Plan::Gcra { interval, tolerance }) => (Way::Gcra, vec![interval, tolerance], tolerance),
            Counter::Plan(Plan::Bucket { period, count, burst, .. }) => {
                (Way::Bucket, vec![period / 1000, count.into(), burst.into()], 0)
            }
            Counter::Window { limit, window } => {
                (Way::Window, vec![window / 1000, limit], limit.saturating_mul(window / 1000))
            }
            Counter::Quota(quota) => (Way::Quota(quota.per), vec![quota.limit.into()], 0),
        };
        if largest > EXACT {
            return Err(FilterError(
                "the limit is too large to be counted in a Redis: shorten its time, or use a quota".into(),
            ));
        }
        // Opens after three failures in a row. Then nobody waits: what looks whether it is back does so aside.
        let config = Config {
            window: Window::Consecutive(3),
            open_for: Period::millis(500),
            open_growth: 2.0,
            max_open_for: Period::secs(5),
            half_open_calls: 1,
            probe_lease: Some(Period::secs(5)),
            ..Config::default()
        };
        let breaker = Breaker::new("rate-limit-store".into(), config, Clock::default(), Box::new(|_| ()));
        Ok(Self {
            client,
            place,
            deadline,
            script: Script::new(SCRIPT),
            arguments,
            way,
            breaker: Arc::new(breaker),
            current: Mutex::default(),
            number: AtomicU64::new(0),
        })
    }

    /// Takes `cost` of what the key has left. `None` if the server does not say within the deadline, or is known not to
    /// answer; whether it has counted is then unknown.
    pub(super) async fn take(self: &Arc<Self>, scope: &str, key: &[u8], cost: u32) -> Option<Decision> {
        let closed = self.breaker.state() == State::Closed;
        let permit = Breaker::try_acquire(self.breaker.clone()).ok()?;
        let key = name(scope, key);
        if closed {
            let answer = self.ask(&key, cost).await;
            permit.finish(if answer.is_some() { Outcome::Success } else { Outcome::Failure });
            return answer;
        }
        let this = self.clone();
        tokio::spawn(async move {
            // Costs nothing: it is another's request that would pay.
            let answer = this.ask(&key, 0).await;
            permit.finish(if answer.is_some() { Outcome::Success } else { Outcome::Failure });
        });
        None
    }

    async fn ask(self: &Arc<Self>, key: &str, cost: u32) -> Option<Decision> {
        match timeout(self.deadline, self.run(key, cost)).await {
            Ok(Ok(decision)) => Some(decision),
            Ok(Err(why)) => {
                tracing::warn!(place = %self.place, why, "a shared rate limit cannot be asked");
                None
            }
            Err(_) => {
                tracing::warn!(place = %self.place, deadline = ?self.deadline, "a shared rate limit does not answer");
                // Perhaps only this connection is dead. If another is being made, it stays.
                if let Ok(mut current) = self.current.try_lock() {
                    *current = None;
                }
                None
            }
        }
    }

    async fn run(self: &Arc<Self>, key: &str, cost: u32) -> Result<Decision, String> {
        let Connection { mut line, number } = self.connection().await?;
        let mut call = self.script.prepare_invoke();
        call.key(key);
        let way = match self.way {
            Way::Gcra => "gcra",
            Way::Bucket => "bucket",
            Way::Window => "window",
            Way::Quota(_) => "quota",
        };
        call.arg(way).arg(cost);
        for argument in &self.arguments {
            call.arg(*argument);
        }
        if let Way::Quota(per) = self.way {
            // By the server's clock it may be a little earlier or later.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let (from, to) = per.around(now);
            call.arg(per.around(from.saturating_sub(1)).0).arg(from).arg(to).arg(per.around(to).1);
        }
        let answer: Result<(u8, u64, u64, i64), RedisError> = call.invoke_async(&mut line).await;
        match answer {
            Ok((pass, remaining, reset, wait)) => Ok(Decision {
                pass: pass == 1,
                remaining,
                reset: Duration::from_micros(reset),
                retry_after: u64::try_from(wait).ok().map(Duration::from_micros),
            }),
            Err(error) => {
                // An error without a code is one of the connection.
                if error.code().is_none() {
                    let mut current = self.current.lock().await;
                    if current.as_ref().is_some_and(|current| current.number == number) {
                        *current = None;
                    }
                }
                Err(error.to_string())
            }
        }
    }

    /// The connection that all workers share; made aside, so that one that takes longer than a request may wait is there for
    /// the next.
    async fn connection(self: &Arc<Self>) -> Result<Connection, String> {
        if let Ok(current) = self.current.try_lock()
            && let Some(connection) = &*current
        {
            return Ok(connection.clone());
        }
        let this = self.clone();
        let making = tokio::spawn(async move {
            let mut current = this.current.lock().await;
            if let Some(connection) = &*current {
                return Ok(connection.clone());
            }
            let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
            let line = timeout(CONNECT, this.client.get_multiplexed_async_connection_with_config(&config)).await;
            let line =
                line.map_err(|_| format!("no connection within {CONNECT:?}"))?.map_err(|error| error.to_string())?;
            let number = this.number.fetch_add(1, Ordering::Relaxed);
            Ok(current.insert(Connection { line, number }).clone())
        });
        making.await.map_err(|error| error.to_string())?
    }
}

/// The key there. A header may be a secret, and so is not shown.
fn name(scope: &str, key: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, key);
    let digest: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("seawall:rate-limit:{scope}:{digest}")
}

#[cfg(test)]
mod tests;
