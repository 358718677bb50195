//! Sessions and claims as rows. The recipe is the store's: the claim with the smallest number holds the lock, each waiter
//! waits for the one before its own, and reads everything again when that goes. See `sql` for what makes it safe.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seawall_types::Revision;
use tokio::time::Instant;

use super::line::{Doing, Param, Place, Pool};
use super::listen::{Listener, Watch};
use super::sql;
use crate::backend::home::Home;
use crate::backend::view::ClaimView;
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, MAX_INFO, Released, Terms, Want};
use crate::class::{Fence, Fenced};
use crate::name::{LockName, Token};
use crate::session::Why;
use crate::sharing::Kind;

/// How many connections there are for claims, and for keep-alives, which never wait behind claims.
const CLAIMS: usize = 6;
const BEATS: usize = 1;

/// Sessions and locks in the tables of a PostgreSQL (11 or later); cheap to clone. With a thread of its own for its
/// connections, of which there are up to eight.
#[derive(Clone)]
pub struct PgLease {
    pub(super) pool: Pool,
    beats: Pool,
    pub(super) listener: Listener,
    /// Claims that were sent and not, or never, answered: how many times each. What was withdrawn is forgotten.
    sent: Arc<Mutex<HashMap<Token, usize>>>,
}

impl fmt::Debug for PgLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PgLease").field(self.pool.place()).finish()
    }
}

/// A session there: a row, and a secret that only its owner knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgSession {
    id: i64,
    secret: Token,
}

impl PgSession {
    fn params(&self) -> Vec<Param> {
        vec![self.id.into(), self.secret.to_string().into()]
    }
}

/// A claim as it was read.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) token: String,
    pub(super) epoch: i64,
    pub(super) modified: i64,
    pub(super) view: ClaimView,
    /// How long its session lives on without a keep-alive, in milliseconds; less than nothing when its time is over.
    left_ms: i64,
}

impl Row {
    pub(super) fn read(row: &tokio_postgres::Row, from: usize) -> Result<Self, tokio_postgres::Error> {
        let epoch: i64 = row.try_get(from + 1)?;
        let session: i64 = row.try_get(from + 5)?;
        let since: i64 = row.try_get(from + 6)?;
        let view = ClaimView {
            owner: row.try_get(from + 4)?,
            session: session.to_string(),
            fence: Some(Fence::new(epoch.unsigned_abs())),
            since_ms: since.unsigned_abs(),
            info: row.try_get(from + 3)?,
            kind: Kind::Exclusive,
            priority: row.try_get(from + 8)?,
        };
        let (token, modified, left_ms) = (row.try_get(from)?, row.try_get(from + 2)?, row.try_get(from + 7)?);
        Ok(Self { token, epoch, modified, view, left_ms })
    }

    /// Whether its session's time is not over.
    pub(super) fn lives(&self) -> bool {
        self.left_ms > 0
    }
}

/// Where a claim stands.
struct Look {
    own: Option<Row>,
    first: Option<Row>,
    before: Option<Row>,
}

impl PgLease {
    /// Connects to `postgres://user:password@host:port/database` and makes the tables, if they are not there, in the first
    /// schema of the user's search path. Of several hosts the one that can write is taken. No TLS.
    ///
    /// # Errors
    /// [`BackendError`], within seconds.
    pub async fn connect(url: &str) -> Result<Self, BackendError> {
        let place = Place::parse(url)?;
        let home = Home::start("seawall-postgres").map_err(|why| place.down(why))?;
        let pool = Pool::new(home.clone(), place.clone(), CLAIMS, sql::GREETING);
        let beats = Pool::new(home.clone(), place.clone(), BEATS, sql::GREETING);
        let there = pool.query(Doing::Read, sql::ARE_THERE, Vec::new()).await?;
        if !there.first().is_some_and(|row| row.try_get(0).unwrap_or(false)) {
            pool.batch(sql::TABLES).await?;
        }
        let listener = Listener::start(&home, place);
        Ok(Self { pool, beats, listener, sent: Arc::default() })
    }

    pub(super) async fn rows(&self, sql: &'static str, params: Vec<Param>) -> Result<Vec<Row>, BackendError> {
        let rows = self.pool.query(Doing::Read, sql, params).await?;
        rows.iter().map(|row| Row::read(row, 0)).collect::<Result<_, _>>().map_err(|error| self.strange(&error))
    }

    /// An answer that does not fit the question: somebody else's tables.
    pub(super) fn strange(&self, error: &tokio_postgres::Error) -> BackendError {
        self.pool.place().refused(format!("the tables `seawall_*` are not as they should be: {error}"))
    }

    async fn lives(&self, lease: &PgSession) -> Result<bool, BackendError> {
        Ok(!self.pool.query(Doing::Read, sql::LIVES, lease.params()).await?.is_empty())
    }

    fn sent(&self) -> std::sync::MutexGuard<'_, HashMap<Token, usize>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One look at a lock, after sessions in the way whose time is over have been ended.
    async fn look(&self, name: &LockName, token: &str) -> Result<Look, BackendError> {
        self.look_on(name, token, None).await
    }

    /// The same, beginning with what was read a moment ago.
    async fn look_on(&self, name: &LockName, token: &str, mut read: Option<Vec<Row>>) -> Result<Look, BackendError> {
        let mut reaped = false;
        loop {
            let rows = match read.take() {
                Some(rows) => rows,
                None => self.rows(sql::LOOK, vec![name.as_str().into(), token.into()]).await?,
            };
            let own = rows.iter().find(|row| row.token == token).cloned();
            let before = rows.iter().rfind(|row| own.as_ref().is_none_or(|own| row.epoch < own.epoch)).cloned();
            if !reaped && before.as_ref().is_some_and(|row| row.left_ms <= 0) {
                // Once: what is just being kept alive is not waited for.
                self.pool.query(Doing::Write, sql::REAP, vec![name.as_str().into()]).await?;
                reaped = true;
                continue;
            }
            return Ok(Look { own, before, first: rows.into_iter().next() });
        }
    }

    /// Who holds a lock.
    pub(super) async fn first(&self, name: &LockName) -> Result<Option<Row>, BackendError> {
        Ok(self.look(name, "").await?.first)
    }

    /// Puts the claim into the queue, unless it is there; and what was read after that.
    async fn enqueue(&self, lease: &PgSession, want: &Want, until: Instant) -> Result<Option<Vec<Row>>, ClaimError> {
        let token = want.token.to_string();
        let params: Vec<Param> = vec![
            want.name.as_str().into(),
            token.clone().into(),
            lease.id.into(),
            lease.secret.to_string().into(),
            want.info.clone().into(),
            i64::from(want.priority).into(),
        ];
        let mut pause = Duration::from_millis(10);
        loop {
            *self.sent().entry(want.token).or_default() += 1;
            let look = vec![want.name.as_str().into(), token.clone().into()];
            let error = match self.pool.query_then((sql::ENQUEUE, params.clone()), (sql::LOOK, look)).await {
                Ok((_, read)) => {
                    self.answered(&want.token);
                    let rows = read.map(|rows| rows.iter().map(|row| Row::read(row, 0)).collect::<Result<_, _>>());
                    return rows.transpose().map_err(|error| self.strange(&error).into());
                }
                Err(error) => error,
            };
            if !matches!(error, BackendError::Unknown { .. }) {
                self.answered(&want.token);
            }
            if !error.retryable() {
                return Err(ClaimError::of_backend(error));
            }
            let wait = pause.mul_f64(0.1 + 0.9 * fastrand::f64());
            pause = (pause * 2).min(Duration::from_millis(500));
            if Instant::now() + wait < until {
                // Safe whatever became of the last try: a token that is there is left as it is.
                tokio::time::sleep(wait).await;
                continue;
            }
            // The last word: is it there?
            return match (self.look(&want.name, &token).await, error) {
                (Ok(Look { own: Some(_), .. }), _) => Ok(None),
                (_, error @ BackendError::Unknown { .. }) => Err(ClaimError::Unknown(error)),
                (_, error) => Err(error.into()),
            };
        }
    }

    fn answered(&self, token: &Token) {
        let mut sent = self.sent();
        if let Some(count) = sent.get_mut(token) {
            *count -= 1;
            if *count == 0 {
                sent.remove(token);
            }
        }
    }

    /// As [`Backend::claim`], but a wait that runs out leaves the claim in the queue.
    async fn wait(&self, lease: &PgSession, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let began = Instant::now();
        let until = began + patience;
        if want.info.len() > MAX_INFO {
            let why = format!("an info of {} bytes: at most {MAX_INFO} are allowed", want.info.len());
            return Err(self.pool.place().refused(why).into());
        }
        let (name, token) = (want.name.as_str(), want.token.to_string());
        if patience.is_zero() {
            // Nothing is written for a lock that is held anyway.
            let look = self.look(&want.name, &token).await?;
            if look.own.is_none() && look.first.is_some() {
                return Err(ClaimError::Busy { holder: holder(look.first) });
            }
        }
        let mut read = self.enqueue(lease, want, until).await?;
        let mut watch: Option<Watch> = None;
        let mut created = None;
        loop {
            let look = match self.look_on(&want.name, &token, read.take()).await {
                Ok(look) => look,
                // The claim is in the queue and may come to hold the lock.
                Err(error) if Instant::now() >= until => return Err(ClaimError::Unknown(error)),
                Err(error) => {
                    tracing::debug!(%error, lock = %want.name, "a look at a lock is tried again");
                    let pause = Duration::from_millis(fastrand::u64(20..200));
                    tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
                    continue;
                }
            };
            let Some(own) = look.own.filter(|own| *created.get_or_insert(own.epoch) == own.epoch) else {
                return Err(match self.lives(lease).await {
                    Ok(true) => ClaimError::Removed,
                    Ok(false) => ClaimError::Lost(Why::Ended),
                    Err(error) => ClaimError::Unknown(error),
                });
            };
            let Some(before) = look.before else { return Ok(claim_of(&want.name, &want.token, own.epoch)) };
            if patience.is_zero() {
                return Err(ClaimError::Busy { holder: holder(look.first) });
            }
            if Instant::now() >= until {
                let ahead = self.pool.query(Doing::Read, sql::AHEAD, vec![name.into(), own.epoch.into()]).await;
                let ahead = ahead.ok().and_then(|rows| rows.first()?.try_get::<_, i64>(0).ok());
                let ahead = ahead.and_then(|ahead| usize::try_from(ahead).ok()).unwrap_or(1);
                return Err(ClaimError::TimedOut { waited: began.elapsed(), ahead, holder: holder(look.first) });
            }
            match watch.as_ref().filter(|watch| watch.epoch() == before.epoch) {
                // It was watched before this look, so nothing is missed.
                Some(watch) => {
                    let ends = Duration::from_millis(before.left_ms.max(0).unsigned_abs() + fastrand::u64(1..20));
                    let left = until.saturating_duration_since(Instant::now());
                    watch.changed(Some(ends.min(left))).await;
                }
                None => watch = Some(self.listener.watch(name, before.epoch)),
            }
        }
    }
}

fn holder(first: Option<Row>) -> Option<Box<ClaimView>> {
    first.map(|row| Box::new(row.view))
}

fn claim_of(name: &LockName, token: &Token, epoch: i64) -> Claim {
    let number = epoch.unsigned_abs();
    Claim { name: name.clone(), token: *token, created: Revision(number), fence: Some(Fence::new(number)) }
}

/// The number of a claim in its table.
pub(super) fn epoch(claim: &Claim) -> i64 {
    i64::try_from(claim.created.0).unwrap_or(i64::MAX)
}

impl Backend for PgLease {
    type Class = Fenced;
    type Lease = PgSession;

    fn name(&self) -> String {
        self.pool.place().name.clone()
    }

    fn limits(&self) -> Limits {
        Limits { min_ttl: Duration::from_millis(200), max_ttl: Duration::from_secs(3600) }
    }

    async fn open(&self, terms: &Terms) -> Result<(PgSession, Duration), BackendError> {
        self.limits().check(terms.ttl).map_err(|why| self.pool.place().refused(why))?;
        let secret = Token::random();
        let ttl = i64::try_from(terms.ttl.as_millis()).unwrap_or(i64::MAX);
        let params = vec![ttl.into(), secret.to_string().into(), terms.owner.as_str().into()];
        let rows = self.beats.query(Doing::Write, sql::OPEN, params).await?;
        let id = rows.first().map(|row| row.try_get(0)).transpose().map_err(|error| self.strange(&error))?;
        let Some(id) = id else { return Err(self.pool.place().refused("a row was not inserted")) };
        for sweep in [sql::SWEEP_SESSIONS, sql::SWEEP_LOCKS] {
            // In the background; the next session does it if this fails.
            let pool = self.pool.clone();
            tokio::spawn(async move { drop(pool.query(Doing::Write, sweep, Vec::new()).await) });
        }
        // Whole milliseconds are kept; less is never said.
        Ok((PgSession { id, secret }, Duration::from_millis(ttl.unsigned_abs())))
    }

    async fn renew(&self, lease: &PgSession) -> Result<Duration, BackendError> {
        let rows = self.beats.query(Doing::Write, sql::RENEW, lease.params()).await?;
        let ttl = rows.first().map(|row| row.try_get::<_, i64>(0)).transpose().map_err(|error| self.strange(&error))?;
        ttl.map(|ttl| Duration::from_millis(ttl.unsigned_abs())).ok_or_else(|| self.pool.place().no_session())
    }

    async fn close(&self, lease: &PgSession) -> Result<(), BackendError> {
        self.beats.query(Doing::Write, sql::CLOSE, lease.params()).await.map(drop)
    }

    async fn claim(&self, lease: &PgSession, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        let claimed = self.wait(lease, want, patience).await;
        if let Err(ClaimError::Busy { .. } | ClaimError::TimedOut { .. }) = &claimed {
            match self.withdraw(lease, &want.name, &want.token).await {
                Ok(_) | Err(BackendError::NoSession { .. }) => {}
                // May still be in the queue.
                Err(error) => return Err(ClaimError::Unknown(error)),
            }
        }
        claimed
    }

    async fn withdraw(&self, lease: &PgSession, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        let under_way = self.sent().contains_key(token);
        let mut params = vec![name.as_str().into(), token.to_string().into()];
        params.extend(lease.params());
        let held = if under_way {
            let rows = self.pool.query(Doing::Write, sql::FORESTALL, params).await?;
            self.sent().remove(token);
            rows.first().is_some_and(|row| row.try_get(0).unwrap_or(true))
        } else {
            !self.pool.query(Doing::Write, sql::WITHDRAW, params).await?.is_empty()
        };
        Ok(if held { Released::Now } else { Released::WasNotHeld })
    }

    async fn gone(&self, lease: &PgSession, claim: &Claim) -> Gone {
        let watch = self.listener.watch(claim.name.as_str(), epoch(claim));
        let params: Vec<Param> = vec![claim.name.as_str().into(), claim.token.to_string().into(), epoch(claim).into()];
        loop {
            if let Ok(rows) = self.pool.query(Doing::Read, sql::THERE, params.clone()).await
                && rows.is_empty()
            {
                match self.lives(lease).await {
                    Ok(true) => return Gone::Removed,
                    Ok(false) => return Gone::Session,
                    Err(_) => {}
                }
            }
            watch.changed(None).await;
        }
    }
}
