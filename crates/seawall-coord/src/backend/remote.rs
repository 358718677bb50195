//! Sessions, locks and elections over control's HTTP API, described in `docs/api.md`.
//!
//! Every request can be sent again: a claim is recognised by its token, a session by its own secret. So a request that was
//! not answered is repeated, and what it had done is found there.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use seawall_discovery::{Control, ControlError};
use seawall_types::Revision;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::backend::view::{CandidateView, ClaimView, ElectionView, LockView};
use crate::backend::{Backend, BackendError, Claim, ClaimError, Gone, Limits, Released, Terms, Want};
use crate::barrier::{BarrierError, Barriers, Party, Step};
use crate::class::{Fence, Fenced};
use crate::election::{Elections, HandedOver};
use crate::name::{ElectionName, LockName, Token};
use crate::once::Latches;
use crate::oversight::Oversight;
use crate::session::Why;
use crate::sharing::{Manner, SharedLocks};

/// How long one call may take that does not itself wait.
const CALL: Duration = Duration::from_secs(5);
/// How long one request waits; a longer wait is several of them, which keep their place.
const WAIT: Duration = Duration::from_secs(30);

/// Locks of control nodes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Remote {
    /// For the caller's runtime.
    control: Control,
    /// For the session's thread, whose connections must not depend on a runtime that the caller may block.
    background: Control,
    nodes: Arc<[SocketAddr]>,
}

/// The answer to a new session and to a keep-alive.
#[derive(Debug, Deserialize)]
struct Granted {
    #[serde(default)]
    session: String,
    ttl_ms: u64,
}

/// The answer to a claim.
#[derive(Debug, Deserialize)]
struct Claimed {
    fence: Fence,
    created: Revision,
}

/// The answer to what went wrong.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    error: String,
    code: String,
    holder: Option<Box<ClaimView>>,
    ahead: usize,
    /// Who has broken a barrier.
    who: String,
    /// How many of a barrier's parties are there.
    there: usize,
}

fn problem(why: &str) -> Problem {
    serde_json::from_str(why).unwrap_or_else(|_| Problem { error: why.to_owned(), ..Problem::default() })
}

fn body(value: &serde_json::Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}

fn path(name: &LockName, token: &Token) -> String {
    let encoded = |name| utf8_percent_encode(name, NON_ALPHANUMERIC);
    match (name.election(), name.latch(), name.barrier()) {
        (Some(name), ..) => format!("/v1/elections/{}/candidates/{token}", encoded(name)),
        (_, Some(name), _) => format!("/v1/latches/{}/claims/{token}", encoded(name)),
        (.., Some(name)) => format!("/v1/barriers/{}/parties/{token}", encoded(name)),
        _ => format!("/v1/locks/{}/claims/{token}", encoded(name.as_str())),
    }
}

fn latch_path(name: &LockName) -> String {
    format!("/v1/latches/{}", utf8_percent_encode(name.as_str(), NON_ALPHANUMERIC))
}

impl Remote {
    /// Locks of one or more control nodes. Without any, every call fails.
    pub fn new(nodes: impl Into<Arc<[SocketAddr]>>) -> Self {
        let nodes = nodes.into();
        Self { control: Control::new(nodes.clone()), background: Control::new(nodes.clone()), nodes }
    }

    fn error(&self, error: ControlError) -> BackendError {
        let backend = self.name();
        match error {
            ControlError::Unreachable { .. } | ControlError::Broken(_) => {
                BackendError::Unknown { backend, why: error.to_string() }
            }
            ControlError::NotFound(why) => BackendError::Refused { backend, why: problem(&why).error },
            ControlError::Refused { status, why } => {
                let problem = problem(&why);
                match (status, &*problem.code) {
                    (StatusCode::GONE, _) => BackendError::NoSession { backend },
                    (_, "unknown") => BackendError::Unknown { backend, why: problem.error },
                    (status, _) if status.is_server_error() => BackendError::Down { backend, why: problem.error },
                    _ => BackendError::Refused { backend, why: problem.error },
                }
            }
        }
    }

    /// An answer that is none: whoever sent it may have done anything.
    fn read<T: for<'de> Deserialize<'de>>(&self, bytes: &[u8]) -> Result<T, BackendError> {
        serde_json::from_slice(bytes).map_err(|error| {
            let why = format!("its answer is not understood: {error}");
            BackendError::Unknown { backend: self.name(), why }
        })
    }

    /// Gives a claim back, over connections of the runtime that this runs on.
    async fn withdraw_by(
        &self,
        control: &Control,
        lease: &str,
        name: &LockName,
        token: &Token,
    ) -> Result<Released, BackendError> {
        let path = format!("{}?session={lease}", path(name, token));
        match control.send(Method::DELETE, &path, Vec::new(), CALL).await {
            Ok(_) => Ok(Released::Now),
            Err(ControlError::Refused { status: StatusCode::CONFLICT | StatusCode::GONE, .. }) => {
                Ok(Released::WasNotHeld)
            }
            Err(error) => Err(self.error(error)),
        }
    }

    /// One request for a claim. After [`ClaimError::TimedOut`] its place is kept for a moment.
    async fn ask(&self, lease: &str, want: &Want, manner: &Manner, wait: Duration) -> Result<Claim, ClaimError> {
        let path = format!("{}?wait={}ms", path(&want.name, &want.token), wait.as_millis());
        let mut asked = json!({ "session": lease, "info": want.info });
        if *manner != Manner::default() {
            asked["kind"] = json!(manner.kind);
            asked["delay"] = json!(format!("{}ms", manner.delay.as_millis()));
        }
        if want.priority != 0 {
            asked["priority"] = json!(want.priority);
        }
        let body = body(&asked);
        match self.control.send(Method::PUT, &path, body, wait + CALL).await {
            Ok(bytes) => {
                let Claimed { fence, created } = self.read(&bytes)?;
                Ok(Claim { name: want.name.clone(), token: want.token, created, fence: Some(fence) })
            }
            Err(ControlError::Refused { status: StatusCode::REQUEST_TIMEOUT, why }) => {
                let Problem { holder, ahead, .. } = problem(&why);
                Err(ClaimError::TimedOut { waited: wait, ahead, holder })
            }
            Err(ControlError::Refused { status: StatusCode::CONFLICT, why }) => {
                Err(ClaimError::Busy { holder: problem(&why).holder })
            }
            Err(ControlError::Refused { status: StatusCode::GONE, why }) => Err(match &*problem(&why).code {
                "removed" => ClaimError::Removed,
                _ => ClaimError::Lost(Why::Ended),
            }),
            Err(error) => Err(self.error(error).into()),
        }
    }
}

impl Backend for Remote {
    type Class = Fenced;
    type Lease = String;

    fn name(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().map(ToString::to_string).collect();
        format!("control at {}", nodes.join(", "))
    }

    fn limits(&self) -> Limits {
        Limits { min_ttl: Duration::from_secs(1), max_ttl: Duration::from_secs(3600) }
    }

    async fn open(&self, terms: &Terms) -> Result<(String, Duration), BackendError> {
        let body = body(&json!({ "ttl": format!("{}ms", terms.ttl.as_millis()), "owner": terms.owner }));
        let sent = self.control.send(Method::POST, "/v1/sessions", body, CALL).await;
        let bytes = sent.map_err(|error| match self.error(error) {
            // One that was opened and not answered holds nothing and ends by its time to live.
            BackendError::Unknown { backend, why } => BackendError::Down { backend, why },
            error => error,
        })?;
        let Granted { session, ttl_ms } = self.read(&bytes)?;
        Ok((session, Duration::from_millis(ttl_ms)))
    }

    async fn renew(&self, lease: &String) -> Result<Duration, BackendError> {
        let path = format!("/v1/sessions/{lease}/keep-alive");
        let bytes = self.background.send(Method::POST, &path, Vec::new(), CALL).await.map_err(|e| self.error(e))?;
        Ok(Duration::from_millis(self.read::<Granted>(&bytes)?.ttl_ms))
    }

    async fn close(&self, lease: &String) -> Result<(), BackendError> {
        let path = format!("/v1/sessions/{lease}");
        self.background.send(Method::DELETE, &path, Vec::new(), CALL).await.map(drop).map_err(|e| self.error(e))
    }

    async fn claim(&self, lease: &String, want: &Want, patience: Duration) -> Result<Claim, ClaimError> {
        self.claim_as(lease, want, &Manner::default(), patience).await
    }

    async fn withdraw(&self, lease: &String, name: &LockName, token: &Token) -> Result<Released, BackendError> {
        self.withdraw_by(&self.background, lease, name, token).await
    }

    async fn release(&self, lease: &String, claim: &Claim) -> Result<Released, BackendError> {
        self.withdraw_by(&self.control, lease, &claim.name, &claim.token).await
    }

    fn gone(&self, lease: &String, claim: &Claim) -> impl Future<Output = Gone> + Send {
        let path =
            format!("{}?session={lease}&until=gone&wait={}ms", path(&claim.name, &claim.token), WAIT.as_millis());
        async move {
            loop {
                let asked = Instant::now();
                match self.background.send(Method::GET, &path, Vec::new(), WAIT + CALL).await {
                    Ok(_) if asked.elapsed() >= WAIT / 2 => {}
                    Err(ControlError::NotFound(why)) if problem(&why).code == "not-held" => return Gone::Removed,
                    Err(ControlError::Refused { status: StatusCode::GONE, .. }) => return Gone::Session,
                    // A control node that drains answers early. Whether the session lives is for its keep-alives to find out.
                    Ok(_) | Err(_) => {
                        tokio::time::sleep(Duration::from_millis(200).mul_f64(0.5 + fastrand::f64())).await
                    }
                }
            }
        }
    }
}

impl SharedLocks for Remote {
    async fn claim_as(
        &self,
        lease: &String,
        want: &Want,
        manner: &Manner,
        patience: Duration,
    ) -> Result<Claim, ClaimError> {
        let began = Instant::now();
        let until = began + patience;
        let mut pause = Duration::from_millis(20);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Boxed: the caller carries this future about.
            match Box::pin(self.ask(lease, want, manner, left.min(WAIT))).await {
                Ok(claim) => return Ok(claim),
                Err(ClaimError::TimedOut { ahead, holder, .. }) => {
                    if Instant::now() < until {
                        continue;
                    }
                    let timed_out = ClaimError::TimedOut { waited: began.elapsed(), ahead, holder };
                    let withdrawn = self.withdraw_by(&self.control, lease, &want.name, &want.token).await;
                    return Err(withdrawn.map_or_else(ClaimError::Unknown, |_| timed_out));
                }
                Err(ClaimError::Backend(error)) if error.retryable() => {
                    let rest = pause.mul_f64(0.1 + 0.9 * fastrand::f64());
                    if Instant::now() + rest >= until {
                        return Err(ClaimError::Unknown(error));
                    }
                    tokio::time::sleep(rest).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn downgrade(&self, lease: &String, claim: &Claim) -> Result<bool, BackendError> {
        let path = format!("{}/downgrade", path(&claim.name, &claim.token));
        let body = body(&json!({ "session": lease }));
        match self.control.send(Method::POST, &path, body, CALL).await {
            Ok(_) => Ok(true),
            Err(ControlError::Refused { status: StatusCode::CONFLICT | StatusCode::GONE, .. }) => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }
}

/// The answer to a latch that is set.
#[derive(Debug, Deserialize)]
struct Set {
    value: String,
}

impl Latches for Remote {
    async fn latch(&self, name: &LockName) -> Result<Option<String>, BackendError> {
        match self.control.send(Method::GET, &latch_path(name), Vec::new(), CALL).await {
            Ok(bytes) => Ok(Some(self.read::<Set>(&bytes)?.value)),
            Err(ControlError::NotFound(why)) if problem(&why).code == "not-set" => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    async fn set_latch(&self, lease: &String, claim: &Claim, value: &str) -> Result<bool, BackendError> {
        let path = format!("{}/value", path(&claim.name, &claim.token));
        let body = body(&json!({ "session": lease, "value": value }));
        match self.control.send(Method::PUT, &path, body, CALL).await {
            Ok(_) => Ok(true),
            Err(ControlError::Refused { status: StatusCode::CONFLICT | StatusCode::GONE, .. }) => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }

    async fn reset_latch(&self, name: &LockName) -> Result<(), BackendError> {
        self.control
            .send(Method::DELETE, &latch_path(name), Vec::new(), CALL)
            .await
            .map(drop)
            .map_err(|e| self.error(e))
    }
}

impl Barriers for Remote {
    async fn meet(&self, lease: &String, party: &Party, step: Step, patience: Duration) -> Result<(), BarrierError> {
        let began = Instant::now();
        let until = began + patience;
        let body = body(&json!({ "session": lease, "parties": party.parties, "step": step }));
        let mut pause = Duration::from_millis(20);
        loop {
            let wait = until.saturating_duration_since(Instant::now()).min(WAIT);
            let path = format!("{}?wait={}ms", path(&party.claimed(), &party.token), wait.as_millis());
            let met = Box::pin(self.control.send(Method::PUT, &path, body.clone(), wait + CALL)).await;
            let error = match met {
                Ok(_) => return Ok(()),
                Err(ControlError::Refused { status: StatusCode::REQUEST_TIMEOUT, why }) => {
                    if Instant::now() < until {
                        continue;
                    }
                    let (there, parties) = (problem(&why).there, party.parties);
                    return Err(BarrierError::TimedOut { waited: began.elapsed(), there, parties });
                }
                Err(ControlError::Refused { status: StatusCode::CONFLICT, why }) => {
                    return Err(BarrierError::Broken { who: problem(&why).who });
                }
                Err(error) => match self.error(error) {
                    BackendError::NoSession { .. } => return Err(BarrierError::Lost(Why::Ended)),
                    error if !error.retryable() => return Err(error.into()),
                    error => error,
                },
            };
            let rest = pause.mul_f64(0.1 + 0.9 * fastrand::f64());
            if Instant::now() + rest >= until {
                return Err(BarrierError::Unknown(error));
            }
            tokio::time::sleep(rest).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}

/// The answer to a release by force.
#[derive(Debug, Deserialize)]
struct Forced {
    released: ClaimView,
}

impl Oversight for Remote {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let get = async |path| {
            let bytes = self.control.send(Method::GET, path, Vec::new(), CALL).await;
            bytes.map_err(|error| self.error(error))
        };
        let locks: Vec<LockView> = self.read(&get("/v1/locks").await?)?;
        let elections: Vec<ElectionView> = self.read(&get("/v1/elections").await?)?;
        let locks = locks.into_iter().map(|lock| lock.name);
        Ok(locks.chain(elections.iter().map(|election| LockName::of_election(&election.name))).collect())
    }

    async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        if let Some(election) = name.election().and_then(|name| ElectionName::try_new(name).ok()) {
            let ElectionView { leader, candidates, .. } = self.election(&election).await?;
            let claims = leader.into_iter().chain(candidates).map(CandidateView::claim);
            return Ok(LockView::of(name.clone(), claims.collect()));
        }
        let path = format!("/v1/locks/{}", utf8_percent_encode(name.as_str(), NON_ALPHANUMERIC));
        let bytes = self.control.send(Method::GET, &path, Vec::new(), CALL).await;
        self.read(&bytes.map_err(|error| self.error(error))?)
    }

    async fn force(&self, name: &LockName, by: &str, why: &str) -> Result<Option<ClaimView>, BackendError> {
        let (kind, plain) = name.election().map_or(("locks", name.as_str()), |name| ("elections", name));
        let path = format!("/v1/{kind}/{}/force", utf8_percent_encode(plain, NON_ALPHANUMERIC));
        match self.control.send(Method::POST, &path, body(&json!({ "by": by, "why": why })), CALL).await {
            Ok(bytes) => Ok(Some(self.read::<Forced>(&bytes)?.released)),
            Err(ControlError::NotFound(why)) if problem(&why).code == "not-held" => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }
}

/// The answer to a hand-over.
#[derive(Debug, Deserialize)]
struct Next {
    leader: CandidateView,
}

impl Elections for Remote {
    async fn election(&self, name: &ElectionName) -> Result<ElectionView, BackendError> {
        let path = format!("/v1/elections/{}", utf8_percent_encode(name.as_str(), NON_ALPHANUMERIC));
        let bytes = self.control.send(Method::GET, &path, Vec::new(), CALL).await;
        self.read(&bytes.map_err(|error| self.error(error))?)
    }

    async fn publish(&self, lease: &String, claim: &Claim, info: &str) -> Result<bool, BackendError> {
        let path = format!("{}/info", path(&claim.name, &claim.token));
        let body = body(&json!({ "session": lease, "info": info }));
        match self.control.send(Method::PUT, &path, body, CALL).await {
            Ok(_) => Ok(true),
            Err(ControlError::Refused { status: StatusCode::CONFLICT | StatusCode::GONE, .. }) => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }

    async fn hand_over(&self, lease: &String, claim: &Claim, to: &str) -> Result<HandedOver, BackendError> {
        let path = format!("{}/hand-over", path(&claim.name, &claim.token));
        let body = body(&json!({ "session": lease, "to": to }));
        match self.control.send(Method::POST, &path, body, CALL).await {
            Ok(bytes) => Ok(HandedOver::Now(self.read::<Next>(&bytes)?.leader)),
            Err(ControlError::NotFound(why)) if problem(&why).code == "no-candidate" => Ok(HandedOver::NoCandidate),
            Err(ControlError::Refused { status: StatusCode::CONFLICT | StatusCode::GONE, .. }) => {
                Ok(HandedOver::NotLeading)
            }
            Err(error) => Err(self.error(error)),
        }
    }

    async fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        let which = |view: &CandidateView| (view.term, view.modified);
        let mut path = format!("/v1/elections/{}", utf8_percent_encode(name.as_str(), NON_ALPHANUMERIC));
        let mut patience = CALL;
        if let Some(seen) = seen {
            let seen =
                seen.as_ref().map_or_else(|| "none".to_owned(), |view| format!("{}-{}", view.term, view.modified));
            path += &format!("?seen={seen}&wait={}ms", WAIT.as_millis());
            patience += WAIT;
        }
        loop {
            let asked = Instant::now();
            let bytes = self.control.send(Method::GET, &path, Vec::new(), patience).await;
            let leader = self.read::<ElectionView>(&bytes.map_err(|error| self.error(error))?)?.leader;
            match seen {
                Some(seen) if seen.as_ref().map(which) == leader.as_ref().map(which) => {
                    // A control node that drains answers early.
                    if asked.elapsed() < WAIT / 2 {
                        tokio::time::sleep(Duration::from_millis(200).mul_f64(0.5 + fastrand::f64())).await;
                    }
                }
                _ => return Ok(leader),
            }
        }
    }
}
