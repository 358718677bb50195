//! PostgreSQL's advisory locks: held by a connection, and gone with it.
//!
//! A session is one connection, and nobody else's. Whatever goes wrong on it, an error or an answer that does not come in time,
//! closes the socket: then the server lets go of all that it held, and no call that was lost can hold anything any more.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seawall_types::Revision;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, Row};

use super::line::{CALL, Doing, Line, Param, Place, query};
use crate::backend::home::Home;
use crate::backend::view::{CandidateView, ClaimView, ElectionView};
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, MAX_INFO, Released, Terms, Want};
use crate::class::LeaseOnly;
use crate::election::{Elections, HandedOver};
use crate::name::{ElectionName, LockName, Token};
use crate::sharing::Kind;

/// How long the first pause between two tries is at most, and the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// Who has which lock, for people to read and so that two names of one number are noticed. The locks themselves are not here.
const TABLE: &str = "SELECT pg_advisory_xact_lock(7305808869231650153);
CREATE TABLE IF NOT EXISTS seawall_advisory (
    hash bigint PRIMARY KEY,
    name text NOT NULL,
    token text NOT NULL,
    owner text NOT NULL,
    info text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
)";
const IS_THERE: &str = "SELECT to_regclass('seawall_advisory') IS NOT NULL, pg_is_in_recovery(), pg_backend_pid()";
const TRY: &str = "SELECT hash, pg_try_advisory_lock(hash) FROM (SELECT hashtextextended($1, 0) AS hash) hashed";
const HOLDER: &str = "SELECT name FROM seawall_advisory WHERE hash = $1";
const NOTE: &str = "INSERT INTO seawall_advisory (hash, name, token, owner, info) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (hash) DO UPDATE SET name = excluded.name, token = excluded.token, owner = excluded.owner,
        info = excluded.info, since = excluded.since";
const UNNOTE: &str = "DELETE FROM seawall_advisory WHERE hash = $1 AND token = $2";
/// `name` or all: those that are really held, with the process of the connection that holds them. What a holder that died
/// had noted is left until the next one notes something.
const NOTES: &str = "SELECT a.name, a.owner, a.info, floor(extract(epoch FROM a.since) * 1000)::bigint, l.pid
    FROM seawall_advisory a JOIN pg_locks l ON l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND ((l.classid::bigint << 32) | l.objid::bigint) = a.hash
    WHERE $1::text IS NULL OR a.name = $1 ORDER BY a.name LIMIT 10000";
const UNLOCK: &str = "SELECT pg_advisory_unlock($1)";
const PID: &str = "SELECT pg_backend_pid()";

/// Locks that are advisory locks of a PostgreSQL (11 or later), by `hashtextextended(name, 0)`; cheap to clone.
///
/// They are gone within moments of a holder's death. There is no time to live at the server, though: the lock of a process
/// that is stopped, and not dead, is held until it goes on or its machine is gone.
#[derive(Clone)]
pub struct PgAdvisory {
    home: Home,
    place: Place,
}

impl fmt::Debug for PgAdvisory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PgAdvisory").field(&self.place).finish()
    }
}

/// A session there: a connection of its own.
#[derive(Clone, Debug)]
pub struct PgLine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Place,
    owner: String,
    ttl: Duration,
    pid: i32,
    /// One claim or release at a time; what is held, by the lock's number.
    held: tokio::sync::Mutex<HashMap<i64, Held>>,
    /// Gone once it is closed. The client can be used by several at once; keep-alives do not wait for claims.
    line: Mutex<Option<Arc<Line>>>,
    closed: watch::Sender<bool>,
}

/// What people can read of a lock that is held.
pub(super) struct Note {
    pub(super) name: String,
    /// Its session is the number of the connection's process.
    pub(super) view: ClaimView,
}

#[derive(Clone, Debug)]
struct Held {
    name: LockName,
    token: Token,
    number: u64,
}

/// What a try found.
enum Tried {
    Got(u64),
    /// Somebody has it.
    Busy,
}

impl PgAdvisory {
    /// Will connect to `postgres://user:password@host:port/database`, and makes a table there in which people can read who holds
    /// what. No TLS, and no pooler that gives each transaction another connection.
    ///
    /// # Errors
    /// [`BackendError`], within seconds.
    pub async fn connect(url: &str) -> Result<Self, BackendError> {
        let place = Place::parse(url)?;
        let home = Home::start("seawall-postgres").map_err(|why| place.down(why))?;
        let this = Self { home, place };
        let place = this.place.clone();
        this.at_home(async move {
            let (client, connection) = place.connect().await?;
            let line = Line::new(client, connection);
            let rows = asked(&place, CALL, query(&line.client, IS_THERE, &[])).await?;
            let [there, standby] = [0, 1].map(|at| rows.first().is_some_and(|row| row.try_get(at).unwrap_or(false)));
            if standby {
                return Err(place.down("it is a standby, whose locks are its own alone; name the primary"));
            }
            if !there {
                asked(&place, CALL, line.client.batch_execute(TABLE)).await?;
            }
            Ok(())
        })
        .await?;
        Ok(this)
    }

    /// What is noted of a lock, or of all, that is held.
    pub(super) async fn notes(&self, name: Option<&str>) -> Result<Vec<Note>, BackendError> {
        let (place, name) = (self.place.clone(), name.map(str::to_owned));
        self.at_home(async move {
            let (client, connection) = place.connect().await?;
            let line = Line::new(client, connection);
            let name: &(dyn tokio_postgres::types::ToSql + Sync) = &name;
            let rows = asked(&place, CALL, line.client.query(NOTES, &[name])).await?;
            let note = |row: &tokio_postgres::Row| {
                let since: i64 = row.try_get(3)?;
                let pid: i32 = row.try_get(4)?;
                let view = ClaimView {
                    owner: row.try_get(1)?,
                    session: pid.to_string(),
                    fence: None,
                    since_ms: since.unsigned_abs(),
                    info: row.try_get(2)?,
                    kind: Kind::Exclusive,
                    priority: 0,
                };
                Ok(Note { name: row.try_get(0)?, view })
            };
            let notes: Result<Vec<Note>, tokio_postgres::Error> = rows.iter().map(note).collect();
            notes
                .map_err(|error| place.refused(format!("the table `seawall_advisory` is not as it should be: {error}")))
        })
        .await
    }

    /// There is no way to take one lock of a session away.
    pub(super) fn holds_until_it_ends(&self, note: &Note) -> BackendError {
        let (name, holder, pid) = (&note.name, &note.view.owner, &note.view.session);
        self.place.refused(format!(
            "an advisory lock goes with its holder's connection alone. `SELECT pg_terminate_backend({pid})` takes `{name}` from \
             `{holder}`, and all that it holds beside"
        ))
    }

    fn no_elections(&self) -> BackendError {
        self.place.refused("an advisory lock says nothing of its holder: for elections use the tables, postgres://")
    }

    /// Goes on when the future is dropped.
    async fn at_home<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, BackendError>> + Send + 'static,
    ) -> Result<T, BackendError> {
        let ended = |_| Err(self.place.unanswered(Doing::Write, "its thread has ended".into()));
        self.home.spawn(task).await.unwrap_or_else(ended)
    }
}

/// An answer in time. What is not answered will not be done: the caller closes the socket.
async fn asked<T>(
    place: &Place,
    patience: Duration,
    call: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, BackendError> {
    match timeout(patience, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(place.error(&error, Doing::Read)),
        Err(_) => Err(place.down(format!("no answer within {patience:?}"))),
    }
}

/// A column of the only row.
fn only<T: for<'a> tokio_postgres::types::FromSql<'a>>(rows: &[Row], at: usize) -> Option<T> {
    rows.first().and_then(|row| row.try_get(at).ok())
}

/// Opens a connection that nobody shares.
async fn open(place: Place, owner: String, ttl: Duration) -> Result<PgLine, BackendError> {
    let (client, connection) = place.connect().await?;
    let line = Line::new(client, connection);
    // A client whose machine is gone is noticed after its own deadline, not before.
    let idle = (ttl / 3).as_secs().max(1);
    let gone = (ttl + ttl / 3).as_millis();
    let settings = format!(
        "SET tcp_keepalives_idle = {idle}; SET tcp_keepalives_interval = {idle}; SET tcp_keepalives_count = 4; \
         SET tcp_user_timeout = {gone}; SET default_transaction_isolation = 'read committed'"
    );
    asked(&place, CALL, line.client.batch_execute(&settings)).await?;
    let rows = asked(&place, CALL, query(&line.client, IS_THERE, &[])).await?;
    if only(&rows, 1) != Some(false) {
        return Err(place.down("it is a standby, whose locks are its own alone; name the primary"));
    }
    let Some(pid) = only::<i32>(&rows, 2) else { return Err(place.refused("it does not name its process")) };
    own_connection(&place, &line.client, pid).await?;
    let mut ended = line.ended();
    let (closed, _) = watch::channel(false);
    let inner = Arc::new(Inner {
        place,
        owner,
        ttl,
        pid,
        held: tokio::sync::Mutex::default(),
        line: Mutex::new(Some(Arc::new(line))),
        closed,
    });
    let weak = Arc::downgrade(&inner);
    tokio::spawn(async move {
        ended.wait().await;
        if let Some(inner) = weak.upgrade() {
            inner.close();
        }
    });
    Ok(PgLine(inner))
}

/// Refuses a pooler that lends a server's process for a transaction at a time: another transaction, open at the same time,
/// would be given the one that this connection had last, and this connection another.
async fn own_connection(place: &Place, client: &Client, pid: i32) -> Result<(), BackendError> {
    let (other, connection) = place.connect().await?;
    let other = Line::new(other, connection);
    asked(place, CALL, other.client.batch_execute("BEGIN")).await?;
    let theirs = asked(place, CALL, query(&other.client, PID, &[])).await?;
    let ours = asked(place, CALL, query(client, PID, &[])).await?;
    if only(&theirs, 0) == Some(pid) || only(&ours, 0) != Some(pid) {
        let why = "a pooler in transaction mode is between, in which nobody has a connection of its own; \
                   name the server itself, or a pool in session mode";
        return Err(place.refused(why));
    }
    Ok(())
}

impl Inner {
    fn line(&self) -> Result<Arc<Line>, BackendError> {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner).clone();
        line.filter(|line| !line.client.is_closed()).ok_or_else(|| self.place.no_session())
    }

    /// Closes the socket, whatever is under way on it.
    fn close(&self) {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(line) = line {
            line.end();
        }
        self.closed.send_replace(true);
    }

    /// Asks on this connection. Whatever goes wrong is its end.
    async fn ask(&self, patience: Duration, sql: &str, params: &[Param]) -> Result<Vec<Row>, BackendError> {
        let line = self.line()?;
        let rows = asked(&self.place, patience, query(&line.client, sql, params)).await;
        if rows.is_err() {
            self.close();
        }
        rows
    }

    async fn attempt(&self, want: &Want) -> Result<Tried, BackendError> {
        let mut held = self.held.lock().await;
        let name = want.name.as_str();
        if let Some(mine) = held.values().find(|held| held.name == want.name) {
            return Ok(if mine.token == want.token { Tried::Got(mine.number) } else { Tried::Busy });
        }
        let rows = self.ask(CALL, TRY, &[name.into()]).await?;
        let (Some(hash), Some(got)) = (only::<i64>(&rows, 0), only::<bool>(&rows, 1)) else {
            self.close();
            return Err(self.place.refused("it answers a lock with something else"));
        };
        let twin = held.get(&hash).map(|held| held.name.to_string());
        if let Some(twin) = twin {
            // The same connection has it twice now, by another name.
            if got {
                self.ask(CALL, UNLOCK, &[hash.into()]).await?;
            }
            return Err(self.collision(name, &twin));
        }
        if !got {
            let rows = self.ask(CALL, HOLDER, &[hash.into()]).await?;
            return match only::<String>(&rows, 0) {
                Some(other) if other != name => Err(self.collision(name, &other)),
                _ => Ok(Tried::Busy),
            };
        }
        let token = want.token.to_string();
        let note = [hash.into(), name.into(), token.into(), self.owner.as_str().into(), want.info.as_str().into()];
        self.ask(CALL, NOTE, &note).await?;
        // Larger than those before in this process; it is no fencing token.
        let number = NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        held.insert(hash, Held { name: want.name.clone(), token: want.token, number });
        Ok(Tried::Got(number))
    }

    fn collision(&self, name: &str, other: &str) -> BackendError {
        let why =
            format!("the locks `{name}` and `{other}` have the same hash and exclude each other: rename one of them");
        self.place.refused(why)
    }

    async fn release(&self, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        let mut held = self.held.lock().await;
        let mine = held.iter().find(|(_, held)| held.name == *name && held.token == *token).map(|(hash, _)| *hash);
        let Some(hash) = mine else { return Ok(Released::WasNotHeld) };
        // Whatever happens from here on, it is held no more: an error closes the connection.
        held.remove(&hash);
        self.ask(CALL, UNNOTE, &[hash.into(), token.to_string().into()]).await?;
        let rows = self.ask(CALL, UNLOCK, &[hash.into()]).await?;
        if only(&rows, 0) != Some(true) {
            self.close();
            return Err(self.place.refused(format!("it did not hold `{name}` for this connection")));
        }
        Ok(Released::Now)
    }
}

static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

impl Backend for PgAdvisory {
    type Class = LeaseOnly;
    type Lease = PgLine;

    fn name(&self) -> String {
        self.place.name.clone()
    }

    fn limits(&self) -> Limits {
        Limits { min_ttl: Duration::from_secs(1), max_ttl: Duration::from_secs(3600) }
    }

    async fn open(&self, terms: &Terms) -> Result<(PgLine, Duration), BackendError> {
        self.limits().check(terms.ttl).map_err(|why| self.place.refused(why))?;
        let (place, owner) = (self.place.clone(), terms.owner.as_str().to_owned());
        let lease = self.at_home(open(place, owner, terms.ttl)).await?;
        Ok((lease, terms.ttl))
    }

    async fn renew(&self, lease: &PgLine) -> Result<Duration, BackendError> {
        let inner = lease.0.clone();
        self.at_home(async move {
            // Another process would be another session: a pooler that was put between in the meantime.
            match inner.ask(inner.ttl / 6, PID, &[]).await {
                Ok(rows) if only(&rows, 0) == Some(inner.pid) => Ok(inner.ttl),
                _ => {
                    inner.close();
                    Err(inner.place.no_session())
                }
            }
        })
        .await
    }

    async fn close(&self, lease: &PgLine) -> Result<(), BackendError> {
        let inner = lease.0.clone();
        self.at_home(async move {
            let held: Vec<Held> = inner.held.lock().await.values().cloned().collect();
            for held in held {
                // Each is confirmed; what is not goes with the connection.
                if inner.release(&held.name, &held.token).await.is_err() {
                    break;
                }
            }
            inner.close();
            Ok(())
        })
        .await
    }

    async fn claim(&self, lease: &PgLine, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let began = Instant::now();
        let until = began + patience;
        if want.info.len() > MAX_INFO {
            let why = format!("an info of {} bytes: at most {MAX_INFO} are allowed", want.info.len());
            return Err(self.place.refused(why).into());
        }
        let mut pause = PAUSES.0;
        loop {
            let (inner, wanted) = (lease.0.clone(), want.clone());
            match self.at_home(async move { inner.attempt(&wanted).await }).await {
                Ok(Tried::Got(number)) => {
                    let (name, token) = (want.name.clone(), want.token);
                    return Ok(Claim { name, token, created: Revision(number), fence: None });
                }
                Ok(Tried::Busy) => {}
                Err(error) => return Err(ClaimError::of_backend(error)),
            }
            if patience.is_zero() {
                return Err(ClaimError::Busy { holder: None });
            }
            let wait = pause.mul_f64(0.1 + 0.9 * fastrand::f64());
            pause = (pause * 2).min(PAUSES.1);
            if Instant::now() + wait >= until {
                tokio::time::sleep_until(until).await;
                return Err(ClaimError::TimedOut { waited: began.elapsed(), ahead: 1, holder: None });
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn withdraw(&self, lease: &PgLine, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        let (inner, name, token) = (lease.0.clone(), name.clone(), *token);
        let released = self.at_home(async move { inner.release(&name, &token).await }).await;
        match released {
            // With the connection everything went that it held.
            Err(BackendError::NoSession { .. }) => Ok(Released::WasNotHeld),
            released => released,
        }
    }

    async fn gone(&self, lease: &PgLine, _claim: &Claim) -> Gone {
        let mut closed = lease.0.closed.subscribe();
        // The sender lives as long as the lease.
        let _ = closed.wait_for(|closed| *closed).await;
        Gone::Session
    }
}

/// An advisory lock decides who leads, and says nothing of it to anybody.
impl Elections for PgAdvisory {
    fn prioritises(&self) -> bool {
        false
    }

    async fn election(&self, _: &ElectionName) -> Result<ElectionView, BackendError> {
        Err(self.no_elections())
    }

    async fn publish(&self, _: &PgLine, _: &Claim, _: &str) -> Result<bool, BackendError> {
        Err(self.no_elections())
    }

    async fn hand_over(&self, _: &PgLine, _: &Claim, _: &str) -> Result<HandedOver, BackendError> {
        Err(self.no_elections())
    }

    async fn changed(
        &self,
        _: &ElectionName,
        _: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        Err(self.no_elections())
    }
}
