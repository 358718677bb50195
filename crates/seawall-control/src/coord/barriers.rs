//! Barriers: a step is a request that can be repeated, and that waits until all have made it. A party that goes on, or that gives
//! up, is deleted; one whose session ends is gone with it.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use seawall_coord::{BarrierError, BarrierView, Barriers, LockName, Party, Step};
use serde::Deserialize;

use super::{Coord, MAX_WAIT, Named, Params, Problem, Wait, lease, lock_name};

pub(super) fn router() -> Router<Coord> {
    Router::new()
        .route("/v1/barriers/{name}", get(show))
        .route("/v1/barriers/{name}/parties/{token}", put(meet).delete(super::release))
}

async fn show(State(coord): State<Coord>, Path(name): Path<String>) -> Result<Json<BarrierView>, Problem> {
    let name = lock_name(&name)?;
    match coord.backend.barrier(&name).await? {
        Some(view) => Ok(Json(view)),
        None => Err(Problem::new(StatusCode::NOT_FOUND, "nobody", format!("nobody is at the barrier `{name}`"))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Meet {
    session: String,
    parties: u32,
    step: Step,
}

async fn meet(
    State(coord): State<Coord>,
    Named(name, token): Named,
    wait: Result<Params<Wait>, crate::api::Problem>,
    body: Result<Json<Meet>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let Params(Wait { wait }) = wait.map_err(|problem| Problem::invalid(problem.1))?;
    let Json(Meet { session, parties, step }) = body?;
    let lease = lease(&session)?;
    coord.backend.session(&lease).await?;
    let name = LockName::try_new(name.barrier().unwrap_or_default()).map_err(Problem::invalid)?;
    let party = Party { name, token, parties };
    tokio::select! {
        met = coord.backend.meet(&lease, &party, step, wait.get().min(MAX_WAIT)) => Ok(met.map(|()| StatusCode::NO_CONTENT)?),
        () = coord.drain.signaled() => {
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "control is draining; ask again"))
        }
    }
}

impl From<BarrierError> for Problem {
    fn from(error: BarrierError) -> Self {
        let text = error.to_string();
        match error {
            BarrierError::Broken { who } => Self { who: Some(who), ..Self::new(StatusCode::CONFLICT, "broken", text) },
            BarrierError::TimedOut { there, .. } => {
                Self { there: Some(there), ..Self::new(StatusCode::REQUEST_TIMEOUT, "timed-out", text) }
            }
            BarrierError::Lost(_) => Self::new(StatusCode::GONE, "session-lost", text),
            BarrierError::Unknown(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "unknown", text),
            BarrierError::Backend(error) => error.into(),
        }
    }
}
