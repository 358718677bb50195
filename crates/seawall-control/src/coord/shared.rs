//! Locks that several hold: who claims one is answered by the handlers of every claim; here is how a writer becomes a reader.

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use seawall_coord::SharedLocks;
use serde::Deserialize;

use super::{Coord, Named, Problem, lease};

pub(super) fn router() -> Router<Coord> {
    Router::new().route("/v1/locks/{name}/claims/{token}/downgrade", post(downgrade))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Downgrade {
    session: String,
}

async fn downgrade(
    State(coord): State<Coord>,
    Named(name, token): Named,
    body: Result<Json<Downgrade>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let Json(Downgrade { session }) = body?;
    let lease = lease(&session)?;
    coord.backend.session(&lease).await?;
    let not_held = || {
        let why = format!("this token does not hold `{name}` alone; nothing was changed");
        Problem::new(StatusCode::CONFLICT, "not-held", why)
    };
    let (claim, held) = coord.backend.resolve(&lease, &name, &token).await?.ok_or_else(not_held)?;
    if held && coord.backend.downgrade(&lease, &claim).await? { Ok(StatusCode::NO_CONTENT) } else { Err(not_held()) }
}
