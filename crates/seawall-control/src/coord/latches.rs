//! Latches: whose turn it is to set one is a claim like that of a lock, answered by the same handlers; here is how it is set and
//! read.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use seawall_coord::Latches;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Coord, Named, Problem, lease, lock_name};

pub(super) fn router() -> Router<Coord> {
    const CLAIM: &str = "/v1/latches/{name}/claims/{token}";
    Router::new()
        .route("/v1/latches/{name}", get(show).delete(reset))
        .route(CLAIM, put(super::claim).get(super::read).delete(super::release))
        .route(&format!("{CLAIM}/value"), put(set))
}

async fn show(State(coord): State<Coord>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let name = lock_name(&name)?;
    match coord.backend.latch(&name).await? {
        Some(value) => Ok(Json(json!({ "value": value }))),
        None => Err(Problem::new(StatusCode::NOT_FOUND, "not-set", format!("the latch `{name}` is not set"))),
    }
}

async fn reset(State(coord): State<Coord>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    let name = lock_name(&name)?;
    coord.backend.reset_latch(&name).await?;
    tracing::warn!(latch = %name, "a latch was made one that was never set");
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    session: String,
    value: String,
}

async fn set(
    State(coord): State<Coord>,
    Named(name, token): Named,
    body: Result<Json<Set>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let Json(Set { session, value }) = body?;
    let lease = lease(&session)?;
    coord.backend.session(&lease).await?;
    let not_held = || {
        let why = format!("it is not this token's turn to set `{}`; nothing was changed", name.latch().unwrap_or("?"));
        Problem::new(StatusCode::CONFLICT, "not-held", why)
    };
    let (claim, held) = coord.backend.resolve(&lease, &name, &token).await?.ok_or_else(not_held)?;
    if held && coord.backend.set_latch(&lease, &claim, &value).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(not_held())
    }
}
