//! Queues of jobs over HTTP, described in `docs/api.md`.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use seawall_coord::Owner;
use seawall_drain::Drain;
use seawall_schedule::{ATTEMPTS, ItemId, ItemView, NewItem, Place, QueueError, Queues, Retry};
use seawall_telemetry::metrics::Page;
use seawall_types::{Period, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::{MAX_WAIT, Params, Problem, bad};

/// How many jobs a list shows unless more are asked for.
const SHOWN: usize = 100;

/// What the handlers share.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) queues: Queues,
    pub(crate) drain: Drain,
}

/// The routes, to be merged into a router of any state.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(waiting: Waiting) -> Router<S> {
    const JOB: &str = "/v1/queues/{queue}/jobs/{id}";
    Router::new()
        .route("/v1/queues", get(totals))
        .route("/v1/queues/{queue}/jobs", get(list))
        .route("/v1/queues/{queue}/claim", post(claim))
        .route(JOB, get(show).put(put).delete(discard))
        .route(&format!("{JOB}/keep-alive"), post(keep_alive))
        .route(&format!("{JOB}/complete"), post(complete))
        .route(&format!("{JOB}/fail"), post(fail))
        .route(&format!("{JOB}/retry"), post(retry))
        .with_state(waiting)
}

/// Adds the families to a page.
pub(crate) async fn metrics(queues: &Queues, page: &mut Page) {
    page.family("seawall_queue_jobs", "gauge", "Jobs of queues by where they are.");
    // What cannot be read now is read the next time.
    for (queue, places) in queues.totals().await.unwrap_or_default() {
        for place in Place::ALL {
            let count = places.get(&place).copied().unwrap_or(0);
            page.sample("seawall_queue_jobs", &[("queue", &queue), ("state", &place.as_str())], count);
        }
    }
}

impl From<QueueError> for Problem {
    fn from(error: QueueError) -> Self {
        let status = match &error {
            QueueError::Invalid(_) => StatusCode::BAD_REQUEST,
            QueueError::NotFound(_) => StatusCode::NOT_FOUND,
            QueueError::Conflict(_) | QueueError::Full(_) => StatusCode::UNPROCESSABLE_ENTITY,
            QueueError::NotClaimed(_) => StatusCode::GONE,
            QueueError::Unavailable(_) | QueueError::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

fn name(text: &str) -> Result<ServiceName, Problem> {
    ServiceName::try_new(text).map_err(bad)
}

fn names((queue, id): (String, String)) -> Result<(ServiceName, ItemId), Problem> {
    Ok((name(&queue)?, id.parse().map_err(bad)?))
}

#[derive(Serialize)]
struct Totals {
    name: ServiceName,
    pending: usize,
    running: usize,
    done: usize,
    parked: usize,
}

async fn totals(State(waiting): State<Waiting>) -> Result<Json<Vec<Totals>>, Problem> {
    let totals = waiting.queues.totals().await?.into_iter().map(|(name, places)| {
        let count = |place| places.get(&place).copied().unwrap_or(0);
        let (pending, running) = (count(Place::Pending), count(Place::Running));
        Totals { name, pending, running, done: count(Place::Done), parked: count(Place::Parked) }
    });
    Ok(Json(totals.collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<Place>,
    limit: Option<usize>,
}

async fn list(
    State(waiting): State<Waiting>,
    Path(queue): Path<String>,
    Params(query): Params<ListQuery>,
) -> Result<Json<Vec<ItemView>>, Problem> {
    let (place, limit) = (query.state.unwrap_or(Place::Pending), query.limit.unwrap_or(SHOWN));
    Ok(Json(waiting.queues.list(&name(&queue)?, place, limit).await?))
}

async fn show(State(waiting): State<Waiting>, Path(path): Path<(String, String)>) -> Result<Json<ItemView>, Problem> {
    let (queue, id) = names(path)?;
    Ok(Json(waiting.queues.get(&queue, &id).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    data: Value,
    #[serde(default = "attempts")]
    max_attempts: u32,
}

const fn attempts() -> u32 {
    ATTEMPTS
}

async fn put(
    State(waiting): State<Waiting>,
    Path(path): Path<(String, String)>,
    body: Result<Json<Put>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let ((queue, id), Json(Put { data, max_attempts })) = (names(path)?, body?);
    let (state, new) = waiting.queues.put(&queue, NewItem { id: id.clone(), data, max_attempts }).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({ "id": id, "state": state }))))
}

async fn discard(State(waiting): State<Waiting>, Path(path): Path<(String, String)>) -> Result<StatusCode, Problem> {
    let (queue, id) = names(path)?;
    waiting.queues.discard(&queue, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn retry(State(waiting): State<Waiting>, Path(path): Path<(String, String)>) -> Result<StatusCode, Problem> {
    let (queue, id) = names(path)?;
    waiting.queues.retry(&queue, &id).await?;
    Ok(StatusCode::NO_CONTENT)
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
    worker: Owner,
    ttl: Period,
}

async fn claim(
    State(waiting): State<Waiting>,
    Path(queue): Path<String>,
    Params(Wait { wait }): Params<Wait>,
    body: Result<Json<NewClaim>, JsonRejection>,
) -> Result<Response, Problem> {
    let (queue, Json(NewClaim { worker, ttl })) = (name(&queue)?, body?);
    tokio::select! {
        claimed = waiting.queues.claim(&queue, &worker, ttl.get(), wait.get().min(MAX_WAIT)) => Ok(match claimed? {
            None => StatusCode::NO_CONTENT.into_response(),
            Some(claimed) => Json(json!({
                "id": claimed.id,
                "data": claimed.data,
                "attempt": claimed.attempt,
                "claim": claimed.claim.to_string(),
                "fence": claimed.fence,
                "ttl_ms": claimed.ttl.as_millis(),
            }))
            .into_response(),
        }),
        () = waiting.drain.signaled() => {
            Err(Problem(StatusCode::SERVICE_UNAVAILABLE, "control is draining; ask again".into()))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    claim: String,
}

async fn keep_alive(
    State(waiting): State<Waiting>,
    Path(path): Path<(String, String)>,
    body: Result<Json<Kept>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    let ((queue, id), Json(Kept { claim })) = (names(path)?, body?);
    let ttl = waiting.queues.keep(&queue, &id, claim.parse().map_err(bad)?).await?;
    Ok(Json(json!({ "ttl_ms": ttl.as_millis() })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Completed {
    claim: String,
    #[serde(default)]
    result: Value,
}

async fn complete(
    State(waiting): State<Waiting>,
    Path(path): Path<(String, String)>,
    body: Result<Json<Completed>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let ((queue, id), Json(Completed { claim, result })) = (names(path)?, body?);
    waiting.queues.complete(&queue, &id, claim.parse().map_err(bad)?, result).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Failed {
    claim: String,
    error: String,
    #[serde(default = "yes")]
    retry: bool,
    after: Option<Period>,
}

const fn yes() -> bool {
    true
}

async fn fail(
    State(waiting): State<Waiting>,
    Path(path): Path<(String, String)>,
    body: Result<Json<Failed>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    let ((queue, id), Json(Failed { claim, error, retry, after })) = (names(path)?, body?);
    let retry = match (retry, after) {
        (false, _) => Retry::Never,
        (true, Some(after)) => Retry::After(after.get()),
        (true, None) => Retry::Later,
    };
    let again = waiting.queues.fail(&queue, &id, claim.parse().map_err(bad)?, &error, retry).await?;
    Ok(Json(json!({ "retried": again })))
}
