//! Sessions, locks and elections over HTTP, described in `docs/api.md`. A session lives by its keep-alives alone.
//!
//! A request for a claim can be repeated: the claim is recognised by its token. One whose connection breaks, or whose wait is
//! over, keeps its place in the queue for [`LINGER`], so that a repetition finds it there; then it is withdrawn. A token that
//! was withdrawn is refused for ever after, or nearly: a request that was held up on its way must not bring back what its
//! sender has given up.

mod barriers;
mod elections;
mod explain;
mod latches;
mod ledger;
mod observing;
mod shared;
mod streams;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use seawall_coord::{
    Audit, Backend, BackendError, Claim, ClaimError, ClaimView, ElectionName, Gone, Kind, Limits, LockName, LockView,
    Manner, Owner, Released, StoreBackend, StoreLease, Terms, Token, Want,
};
use seawall_drain::Drain;
use seawall_types::Period;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{MAX_WAIT, Params};

pub use explain::Explained;
pub use ledger::{End, Ended};

/// How long a claim keeps its place without a request that waits for it.
const LINGER: Duration = Duration::from_secs(2);
/// How many tokens are remembered as withdrawn, and how many as granted.
const REMEMBERED: usize = 16_384;
/// What a session's time to live may be. Shorter than a second, a hiccup of the network would end it.
const LIMITS: Limits = Limits { min_ttl: Duration::from_secs(1), max_ttl: Duration::from_secs(3600) };

/// What the handlers share.
#[derive(Clone, Debug)]
pub(crate) struct Coord {
    backend: StoreBackend,
    places: Arc<Mutex<Places>>,
    ledger: Arc<ledger::Ledger>,
    circles: explain::Circles,
    /// When this node began, in milliseconds since 1970.
    since_ms: u64,
    drain: Drain,
    /// For what a dropped request leaves to be done, wherever it is dropped.
    runtime: tokio::runtime::Handle,
}

impl Coord {
    /// Has to be called on the runtime that serves.
    pub(crate) fn new(backend: StoreBackend, drain: Drain) -> Self {
        let (ledger, circles) = (Arc::default(), explain::Circles::default());
        let (since_ms, runtime) = (ledger::unix_ms(), tokio::runtime::Handle::current());
        let coord = Self { backend, places: Arc::default(), ledger, circles, since_ms, drain, runtime };
        tokio::spawn(explain::follow_sessions(coord.clone()));
        tokio::spawn(explain::look_for_circles(coord.clone()));
        coord
    }

    /// Whether two requests or more wait, or have just waited, for locks.
    fn somebody_waits(&self) -> bool {
        self.places().waiting.len() > 1
    }
}

/// The routes, to be merged into a router of any state.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(coord: Coord) -> Router<S> {
    Router::new()
        .route("/v1/sessions", post(open))
        .route("/v1/sessions/{session}", axum::routing::delete(close))
        .route("/v1/sessions/{session}/keep-alive", post(keep_alive))
        .route("/v1/sessions/{session}/stream", get(streams::bind))
        .route("/v1/locks", get(list))
        .route("/v1/locks/{name}", get(show))
        .route("/v1/locks/{name}/explain", get(explain::explain))
        .route("/v1/deadlocks", get(explain::list))
        .route("/v1/locks/{name}/force", post(force))
        .route("/v1/locks/{name}/claims/{token}", put(claim).get(read).delete(release))
        .merge(shared::router())
        .merge(elections::router())
        .merge(latches::router())
        .merge(barriers::router())
        .with_state(coord)
}

/// The latest tokens of some kind.
#[derive(Debug, Default)]
struct Remembered {
    set: HashSet<Token>,
    order: VecDeque<Token>,
}

impl Remembered {
    fn insert(&mut self, token: Token) {
        if self.set.insert(token) {
            self.order.push_back(token);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.set.remove(&oldest);
            }
        }
    }
}

/// Who waits, as far as this process knows. Bounded by the requests under way and those of the last [`LINGER`].
#[derive(Debug, Default)]
struct Places {
    /// By token: the requests that wait for it, or since which departure there are none.
    waiting: HashMap<Token, Waiting>,
    departures: u64,
    granted: Remembered,
    withdrawn: Remembered,
}

#[derive(Debug)]
enum Waiting {
    Requests(u32),
    Left(u64),
}

impl Places {
    /// A request begins to wait; false when the token was withdrawn.
    fn enter(&mut self, token: Token) -> bool {
        if self.withdrawn.set.contains(&token) {
            return false;
        }
        let waiting = self.waiting.entry(token).or_insert(Waiting::Requests(0));
        *waiting = match waiting {
            Waiting::Requests(count) => Waiting::Requests(*count + 1),
            Waiting::Left(_) => Waiting::Requests(1),
        };
        true
    }

    /// A request waits no more. Says what is to be done about the claim.
    fn leave(&mut self, token: Token, left: Left) -> After {
        if left == Left::Granted {
            self.granted.insert(token);
        }
        let others = match self.waiting.get_mut(&token) {
            Some(Waiting::Requests(count)) if *count > 1 => {
                *count -= 1;
                true
            }
            _ => false,
        };
        if others {
            return After::Nothing;
        }
        self.waiting.remove(&token);
        if self.withdrawn.set.contains(&token) {
            // While it was under way, so that it may have come behind its own withdrawal.
            return After::Withdraw;
        }
        if left == Left::Nothing || self.granted.set.contains(&token) {
            return After::Nothing;
        }
        self.departures += 1;
        self.waiting.insert(token, Waiting::Left(self.departures));
        After::Linger(self.departures)
    }

    /// Whether nobody has come back since that departure; then the token is withdrawn.
    fn expire(&mut self, token: Token, departure: u64) -> bool {
        let left = matches!(self.waiting.get(&token), Some(Waiting::Left(left)) if *left == departure);
        if left {
            self.waiting.remove(&token);
            self.withdrawn.insert(token);
        }
        left
    }
}

/// What a request leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// A claim that holds the lock, and a caller who knows it.
    Granted,
    /// A claim that may be in the queue.
    Queued,
    /// Nothing.
    Nothing,
}

#[derive(Debug, PartialEq, Eq)]
enum After {
    Nothing,
    Linger(u64),
    Withdraw,
}

impl Coord {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits for a claim, until it is answered or its connection breaks.
struct Request {
    coord: Coord,
    lease: StoreLease,
    name: LockName,
    token: Token,
    left: Left,
}

impl Drop for Request {
    fn drop(&mut self) {
        let after = self.coord.places().leave(self.token, self.left);
        let (coord, lease, name, token) = (self.coord.clone(), self.lease, self.name.clone(), self.token);
        let runtime = coord.runtime.clone();
        match after {
            After::Nothing => {}
            After::Withdraw => drop(runtime.spawn(async move { coord.withdraw(lease, name, token).await })),
            After::Linger(departure) => drop(runtime.spawn(async move {
                tokio::time::sleep(LINGER).await;
                let left = coord.places().expire(token, departure);
                if left {
                    coord.withdraw(lease, name, token).await;
                }
            })),
        }
    }
}

impl Coord {
    /// Withdraws until the store confirms it or the session is over.
    async fn withdraw(&self, lease: StoreLease, name: LockName, token: Token) {
        let mut pause = Duration::from_millis(20);
        while let Err(error) = self.backend.withdraw(&lease, &name, &token).await {
            if !error.retryable() || matches!(self.backend.session(&lease).await, Err(BackendError::NoSession { .. })) {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

/// An answer that says what is wrong, in words and as a code.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    code: &'static str,
    error: String,
    holder: Option<Box<ClaimView>>,
    ahead: Option<usize>,
    /// Who has broken a barrier.
    who: Option<String>,
    /// How many are at a barrier.
    there: Option<usize>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, error: impl ToString) -> Self {
        Self { status, code, error: error.to_string(), holder: None, ahead: None, who: None, there: None }
    }

    fn invalid(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.error, "code": self.code });
        if let Some(holder) = &self.holder {
            body["holder"] = json!(holder);
        }
        if let Some(ahead) = self.ahead {
            body["ahead"] = json!(ahead);
        }
        if let Some(who) = &self.who {
            body["who"] = json!(who);
        }
        if let Some(there) = self.there {
            body["there"] = json!(there);
        }
        (self.status, Json(body)).into_response()
    }
}

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Self {
        let (status, code) = match &error {
            BackendError::Down { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            BackendError::Unknown { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unknown"),
            BackendError::NoSession { .. } => (StatusCode::GONE, "session-lost"),
            BackendError::Refused { .. } => (StatusCode::BAD_REQUEST, "invalid"),
        };
        Self::new(status, code, error)
    }
}

impl From<ClaimError> for Problem {
    fn from(error: ClaimError) -> Self {
        let text = error.to_string();
        let (status, code) = match &error {
            ClaimError::Busy { .. } => (StatusCode::CONFLICT, "busy"),
            ClaimError::TimedOut { .. } => (StatusCode::REQUEST_TIMEOUT, "timed-out"),
            ClaimError::Lost(_) => (StatusCode::GONE, "session-lost"),
            ClaimError::Removed => (StatusCode::GONE, "removed"),
            ClaimError::Unknown(_) => (StatusCode::SERVICE_UNAVAILABLE, "unknown"),
            ClaimError::Backend(error) => return error.clone().into(),
        };
        let mut problem = Self::new(status, code, text);
        match error {
            ClaimError::Busy { holder } => problem.holder = holder,
            ClaimError::TimedOut { holder, ahead, .. } => {
                problem.holder = holder;
                problem.ahead = Some(ahead);
            }
            _ => {}
        }
        problem
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "invalid", rejection.body_text())
    }
}

fn lock_name(name: &str) -> Result<LockName, Problem> {
    LockName::try_new(name).map_err(Problem::invalid)
}

fn lease(session: &str) -> Result<StoreLease, Problem> {
    session.parse().map_err(Problem::invalid)
}

/// The lock and the token in a claim's path; of an election, a latch or a barrier the name that its claims go by.
struct Named(LockName, Token);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((name, token)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Problem::new(rejection.status(), "invalid", rejection.body_text()))?;
        let path = parts.uri.path();
        let name = if path.starts_with("/v1/elections/") {
            LockName::of_election(&ElectionName::try_new(&name).map_err(Problem::invalid)?)
        } else if path.starts_with("/v1/latches/") {
            LockName::of_latch(&lock_name(&name)?)
        } else if path.starts_with("/v1/barriers/") {
            LockName::of_barrier(&lock_name(&name)?)
        } else {
            lock_name(&name)?
        };
        Ok(Self(name, token.parse().map_err(Problem::invalid)?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewSession {
    ttl: Period,
    owner: Owner,
}

#[derive(Serialize)]
struct Granted {
    session: String,
    ttl_ms: u128,
}

async fn open(
    State(coord): State<Coord>,
    body: Result<Json<NewSession>, JsonRejection>,
) -> Result<(StatusCode, Json<Granted>), Problem> {
    let Json(NewSession { ttl, owner }) = body?;
    LIMITS.check(ttl.get()).map_err(Problem::invalid)?;
    let (lease, ttl) = coord.backend.open(&Terms { ttl: ttl.get(), owner }).await?;
    Ok((StatusCode::CREATED, Json(Granted { session: lease.to_string(), ttl_ms: ttl.as_millis() })))
}

async fn keep_alive(State(coord): State<Coord>, Path(session): Path<String>) -> Result<Json<Value>, Problem> {
    let ttl = coord.backend.renew(&lease(&session)?).await?;
    Ok(Json(json!({ "ttl_ms": ttl.as_millis() })))
}

async fn close(State(coord): State<Coord>, Path(session): Path<String>) -> Result<StatusCode, Problem> {
    let lease = lease(&session)?;
    coord.ledger.closing(lease.number());
    coord.backend.close(&lease).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list(State(coord): State<Coord>, headers: HeaderMap) -> Result<Response, Problem> {
    if observing::wants_events(&headers) {
        return Ok(observing::events::<LockView>(coord.backend, coord.drain, "lock").into_response());
    }
    Ok(Json(coord.backend.list().await?).into_response())
}

/// A lock, and when it was taken away by force.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    lock: LockView,
    forced: Vec<Audit>,
}

async fn show(State(coord): State<Coord>, Path(name): Path<String>) -> Result<Json<Shown>, Problem> {
    let name = lock_name(&name)?;
    let lock = coord.backend.show(&name).await?;
    let mut forced = coord.backend.audits().await?;
    forced.retain(|audit| audit.lock == name);
    Ok(Json(Shown { lock, forced }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Force {
    by: String,
    #[serde(default)]
    why: String,
}

async fn force(
    State(coord): State<Coord>,
    Path(name): Path<String>,
    body: Result<Json<Force>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    force_from(&coord, &lock_name(&name)?, body).await
}

/// Takes a lock, or the lock that decides an election, from its holder.
async fn force_from(
    coord: &Coord,
    name: &LockName,
    body: Result<Json<Force>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    let Json(Force { by, why }) = body?;
    match coord.backend.force(name, &by, &why).await? {
        Some(holder) => {
            if let Some(fence) = holder.fence {
                coord.ledger.forced(name, fence, &by, &why);
            }
            Ok(Json(json!({ "released": holder })))
        }
        None => {
            let what = name.election().map_or_else(|| format!("holds `{name}`"), |name| format!("leads `{name}`"));
            Err(Problem::new(StatusCode::NOT_FOUND, "not-held", format!("nobody {what}")))
        }
    }
}

/// `?wait=30s`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    #[serde(default)]
    wait: Period,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewClaim {
    session: String,
    #[serde(default)]
    info: String,
    #[serde(default)]
    kind: Kind,
    #[serde(default)]
    delay: Period,
    #[serde(default)]
    priority: i32,
}

fn claimed(claim: &Claim, held: bool) -> Json<Value> {
    Json(json!({ "fence": claim.fence, "created": claim.created, "held": held }))
}

async fn claim(
    State(coord): State<Coord>,
    Named(name, token): Named,
    wait: Result<Params<Wait>, crate::api::Problem>,
    body: Result<Json<NewClaim>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    let Params(Wait { wait }) = wait.map_err(|problem| Problem::invalid(problem.1))?;
    let Json(NewClaim { session, info, kind, delay, priority }) = body?;
    if priority != 0 && name.election().is_none() {
        return Err(Problem::invalid(
            "a `priority` is for candidates of an election: locks are first come, first served",
        ));
    }
    let lease = lease(&session)?;
    let owner = coord.backend.session(&lease).await?;
    if !coord.places().enter(token) {
        return Err(Problem::new(StatusCode::GONE, "removed", "a claim with this token was withdrawn"));
    }
    let mut request = Request { coord: coord.clone(), lease, name: name.clone(), token, left: Left::Queued };
    let want = Want { name, token, info, priority };
    let manner = Manner { kind, delay: delay.get() };
    let began = std::time::Instant::now();
    tokio::select! {
        outcome = coord.backend.wait_as(&lease, &want, &manner, wait.get().min(MAX_WAIT)) => {
            coord.ledger.answered(&want.name, began.elapsed(), outcome.as_ref().map(|_| ()));
            let claim = match outcome {
                Ok(claim) => claim,
                Err(error) => {
                    if let ClaimError::Busy { .. } | ClaimError::Backend(BackendError::Refused { .. }) = &error {
                        // It may have been written: in a race with another's claim, or before it was seen to be of another
                        // limit.
                        coord.backend.withdraw(&lease, &want.name, &token).await?;
                        request.left = Left::Nothing;
                    }
                    return Err(error.into());
                }
            };
            request.left = Left::Granted;
            coord.ledger.granted(&claim, owner, lease.number());
            Ok(claimed(&claim, true))
        }
        () = coord.drain.signaled() => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "control is draining; ask again"))
        }
    }
}

/// `?session=...`, or `?session=...&until=gone&wait=30s`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    session: String,
    until: Option<String>,
    #[serde(default)]
    wait: Period,
}

async fn read(
    State(coord): State<Coord>,
    Named(name, token): Named,
    whose: Result<Params<Whose>, crate::api::Problem>,
) -> Result<Json<Value>, Problem> {
    let Params(Whose { session, until, wait }) = whose.map_err(|problem| Problem::invalid(problem.1))?;
    let lease = lease(&session)?;
    coord.backend.session(&lease).await?;
    let not_held = || Problem::new(StatusCode::NOT_FOUND, "not-held", "there is no claim with this token");
    let (claim, held) = coord.backend.resolve(&lease, &name, &token).await?.ok_or_else(not_held)?;
    match until.as_deref() {
        None => {}
        Some("gone") => tokio::select! {
            gone = coord.backend.gone(&lease, &claim) => match gone {
                Gone::Removed => return Err(not_held()),
                Gone::Session => return Err(BackendError::NoSession { backend: "the store".into() }.into()),
            },
            () = tokio::time::sleep(wait.get().min(MAX_WAIT)) => {}
            () = coord.drain.signaled() => {}
        },
        Some(other) => return Err(Problem::invalid(format!("`until={other}` is not known; there is `until=gone`"))),
    }
    Ok(claimed(&claim, held))
}

async fn release(
    State(coord): State<Coord>,
    Named(name, token): Named,
    whose: Result<Params<Whose>, crate::api::Problem>,
) -> Result<StatusCode, Problem> {
    let Params(Whose { session, .. }) = whose.map_err(|problem| Problem::invalid(problem.1))?;
    let lease = lease(&session)?;
    coord.backend.session(&lease).await?;
    // First: a request that is still on its way must not come after.
    coord.places().withdrawn.insert(token);
    match coord.backend.withdraw(&lease, &name, &token).await? {
        Released::Now => {
            coord.ledger.released(token);
            Ok(StatusCode::NO_CONTENT)
        }
        Released::WasNotHeld | Released::Shared => {
            let of = name.election().unwrap_or(name.as_str());
            let why = format!("this token holds no claim of `{of}`; nothing was changed");
            Err(Problem::new(StatusCode::CONFLICT, "not-held", why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_lingers_until_somebody_comes_back_or_nobody_does() {
        let (mut places, token) = (Places::default(), Token::random());
        assert!(places.enter(token) && places.enter(token));
        assert_eq!(places.leave(token, Left::Queued), After::Nothing, "another waits");
        let After::Linger(first) = places.leave(token, Left::Queued) else { panic!("lingers") };
        assert!(places.enter(token), "it came back");
        assert!(!places.expire(token, first));
        let After::Linger(second) = places.leave(token, Left::Queued) else { panic!("lingers") };
        assert!(!places.expire(token, first) && places.expire(token, second));
        assert!(!places.enter(token), "withdrawn for good");
        assert!(places.waiting.is_empty());
        // A try that found the lock held has left nothing, and may come again.
        let token = Token::random();
        assert!(places.enter(token));
        assert_eq!(places.leave(token, Left::Nothing), After::Nothing);
        assert!(places.enter(token));
    }

    #[test]
    fn what_was_granted_is_not_withdrawn_by_a_broken_repetition() {
        let (mut places, token) = (Places::default(), Token::random());
        assert!(places.enter(token));
        assert_eq!(places.leave(token, Left::Granted), After::Nothing);
        assert!(places.enter(token));
        assert_eq!(places.leave(token, Left::Queued), After::Nothing);
        // Released while a repetition was under way, which may have claimed it once more.
        assert!(places.enter(token));
        places.withdrawn.insert(token);
        assert_eq!(places.leave(token, Left::Granted), After::Withdraw);
        assert!(places.waiting.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut remembered = Remembered::default();
        let first = Token::random();
        remembered.insert(first);
        for _ in 0..REMEMBERED {
            remembered.insert(Token::random());
        }
        assert_eq!((remembered.set.len(), remembered.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!remembered.set.contains(&first));
    }
}
