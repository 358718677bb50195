//! Leading for as long as the process runs: to stand for election again after every loss, and to do the work only meanwhile.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::backend::view::CandidateView;
use crate::backend::{BackendError, ClaimError};
use crate::election::{Election, Elections, Leadership};
use crate::health::says;
use crate::name::ElectionName;
use crate::session::{Session, SessionConfig, SessionError, Why};

/// The first pause between two tries to stand again is at most so long, and the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long one campaign waits before it looks again whether its session lives.
const CAMPAIGN: Duration = Duration::from_secs(3600);

/// For what [`lead`] stands.
#[derive(Clone, Debug)]
pub struct Candidacy {
    /// The election.
    pub name: ElectionName,
    /// Shown to those who ask who leads; at most 4 KiB, may be empty.
    pub info: String,
    /// How its sessions are opened; there is a new one after each that was lost.
    pub session: SessionConfig,
    /// See [`Election::priority`]. Default 0.
    pub priority: i32,
    /// After how long it steps down for a candidate of a higher priority: the work is dropped, **then** it hands over. The
    /// candidate has stood for at least that long, and for less than twice as long; 100 ms at least. Default never.
    pub preempt: Option<Duration>,
}

impl Candidacy {
    /// For an election, with nothing to say and no priority.
    pub fn new(name: ElectionName, session: SessionConfig) -> Self {
        Self { name, info: String::new(), session, priority: 0, preempt: None }
    }
}

/// Stands for election again and again, and does the work each time it leads. On a loss the work is dropped where it stands,
/// **then** it stands anew, in a new session if the old one is lost; so two calls of the work never overlap. When the work
/// ends by itself, it resigns: with `Break` this returns, with `Continue` it stands again. A backend that does not answer is
/// tried again, at growing random intervals of 1 s at most, without end. Cancel safe: when the future is dropped, the work is,
/// and the leadership is given up in the background. The work is not to keep the handle beyond its own end: it would lead on.
///
/// # Errors
/// [`SessionError`] when the times do not go together, there is no thread, or the backend refuses.
pub async fn lead<B, F, T>(
    backend: B,
    candidacy: Candidacy,
    work: impl FnMut(Arc<Leadership<B>>) -> F,
) -> Result<T, SessionError>
where
    B: Elections,
    F: Future<Output = ControlFlow<T>>,
{
    let (_always, healthy) = watch::channel(true);
    lead_while(backend, candidacy, healthy, work).await
}

/// As [`lead`], but only while `healthy` is true: until then it does not stand, and when it is true no longer, it gives up its place,
/// or drops the work where it stands and **then** resigns. [`watch_health`](crate::watch_health) makes such a channel of a check.
///
/// # Errors
/// As [`lead`].
pub async fn lead_while<B, F, T>(
    backend: B,
    candidacy: Candidacy,
    mut healthy: watch::Receiver<bool>,
    mut work: impl FnMut(Arc<Leadership<B>>) -> F,
) -> Result<T, SessionError>
where
    B: Elections,
    F: Future<Output = ControlFlow<T>>,
{
    let Candidacy { name, info, session: config, priority, preempt } = candidacy;
    let mut pause = PAUSES.0;
    loop {
        let failed = match Session::open(backend.clone(), config.clone()).await {
            Ok(session) => {
                let election = session.election(name.clone()).info(info.clone()).priority(priority);
                loop {
                    let leadership = match stand(&election, &mut healthy).await {
                        Ok(leadership) => leadership,
                        Err(Unelected::Again) => continue,
                        Err(Unelected::Anew(why)) => break why,
                        Err(Unelected::Refused(error)) => return Err(error.into()),
                    };
                    pause = PAUSES.0;
                    if let Some(value) = reign(&election, leadership, preempt, &mut healthy, &mut work).await {
                        return Ok(value);
                    }
                }
            }
            Err(SessionError::Backend(error)) if error.retryable() => error.to_string(),
            Err(error @ SessionError::Late { .. }) => error.to_string(),
            Err(error) => return Err(error),
        };
        tracing::debug!(election = %name, why = failed, "stands again");
        tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Why a campaign has no leadership, and so what comes next.
enum Unelected {
    /// It stands again, in the same session.
    Again,
    /// It stands in a new session.
    Anew(String),
    /// It never will lead.
    Refused(BackendError),
}

/// Stands while this is healthy.
async fn stand<B: Elections>(
    election: &Election<B>,
    healthy: &mut watch::Receiver<bool>,
) -> Result<Leadership<B>, Unelected> {
    says(healthy, true).await;
    let campaigned = tokio::select! {
        campaigned = election.campaign(CAMPAIGN) => campaigned,
        // The place is given up in the background.
        () = says(healthy, false) => return Err(Unelected::Again),
    };
    campaigned.map_err(|error| match error {
        ClaimError::TimedOut { .. } | ClaimError::Busy { .. } | ClaimError::Removed => Unelected::Again,
        ClaimError::Lost(why) => Unelected::Anew(why.to_string()),
        ClaimError::Unknown(error) => Unelected::Anew(error.to_string()),
        ClaimError::Backend(error) if error.retryable() => Unelected::Anew(error.to_string()),
        ClaimError::Backend(BackendError::NoSession { .. }) => Unelected::Anew(Why::Ended.to_string()),
        ClaimError::Backend(error) => Unelected::Refused(error),
    })
}

/// Why a reign is over.
enum Over<T> {
    Done(ControlFlow<T>),
    Lost(Why),
    Unhealthy,
    Outranked(CandidateView),
}

/// Works until the leadership is lost, or given up. In any case the work is over before another leads. A value when that is
/// the end.
async fn reign<B, F, T>(
    election: &Election<B>,
    leadership: Leadership<B>,
    preempt: Option<Duration>,
    healthy: &mut watch::Receiver<bool>,
    work: &mut impl FnMut(Arc<Leadership<B>>) -> F,
) -> Option<T>
where
    B: Elections,
    F: Future<Output = ControlFlow<T>>,
{
    let leadership = Arc::new(leadership);
    let outranked = async {
        match preempt {
            Some(period) => election.outranked(period).await,
            None => std::future::pending().await,
        }
    };
    let over = tokio::select! {
        done = leadership.run(work(leadership.clone())) => done.map_or_else(Over::Lost, Over::Done),
        () = says(healthy, false) => Over::Unhealthy,
        above = outranked => Over::Outranked(above),
    };
    let name = election.name();
    if let Over::Lost(why) = &over {
        tracing::info!(election = %name, %why, "leads no more");
        return None;
    }
    let Some(leadership) = Arc::into_inner(leadership) else {
        // Whoever keeps a clone of it keeps leading.
        tracing::warn!(election = %name, "the work has ended and still leads");
        return if let Over::Done(ControlFlow::Break(value)) = over { Some(value) } else { None };
    };
    match over {
        Over::Lost(_) => {}
        Over::Done(next) => {
            drop(leadership.resign().await);
            return next.break_value();
        }
        Over::Unhealthy => {
            tracing::warn!(election = %name, "is not healthy, and resigns");
            drop(leadership.resign().await);
        }
        Over::Outranked(above) => {
            tracing::info!(election = %name, to = %above, "steps down for a candidate of a higher priority");
            // If that one has gone meanwhile, it is resigned, and this one stands as everybody does.
            drop(leadership.hand_over(&above.session).await);
        }
    }
    None
}
