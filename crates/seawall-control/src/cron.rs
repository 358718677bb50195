//! Scheduled jobs over HTTP, described in `docs/api.md`, and the calls that they make.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use seawall_drain::Drain;
use seawall_proxy::Client;
use seawall_schedule::{ELECTION, JobConfig, JobView, Jobs, JobsError, Outcome, Run, RunId, RunView, Stats};
use seawall_types::header::{FENCE, IDEMPOTENCY_KEY, TIMEOUT};
use seawall_types::{Call, Period, ServiceName};
use serde::Deserialize;

use crate::api::{MAX_WAIT, Params, Problem, bad};

/// How many runs a history shows unless more are asked for.
const SHOWN: usize = 20;
/// How much of an answer is kept as the reason of a failure, in bytes.
const REASON: usize = 500;

/// What the handlers share.
#[derive(Clone, Debug)]
pub(crate) struct Cron {
    pub(crate) jobs: Jobs,
    pub(crate) stats: Arc<Stats>,
    pub(crate) drain: Drain,
}

/// The routes, to be merged into a router of any state.
pub(crate) fn router<S: Clone + Send + Sync + 'static>(cron: Cron) -> Router<S> {
    Router::new()
        .route("/v1/cron", get(list))
        .route("/v1/cron/{job}", get(show).put(add).delete(remove))
        .route("/v1/cron/{job}/runs", get(history).post(order))
        .route("/v1/cron/{job}/runs/{run}", get(run))
        .with_state(cron)
}

impl From<JobsError> for Problem {
    fn from(error: JobsError) -> Self {
        let status = match &error {
            JobsError::Invalid(_) => StatusCode::BAD_REQUEST,
            JobsError::NotFound(_) => StatusCode::NOT_FOUND,
            JobsError::FromFile(_) => StatusCode::CONFLICT,
            JobsError::Full(_) => StatusCode::UNPROCESSABLE_ENTITY,
            JobsError::Unavailable(_) | JobsError::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

fn name(text: &str) -> Result<ServiceName, Problem> {
    ServiceName::try_new(text).map_err(bad)
}

async fn list(State(cron): State<Cron>) -> Result<Json<Vec<JobView>>, Problem> {
    Ok(Json(cron.jobs.list().await?))
}

async fn show(State(cron): State<Cron>, Path(job): Path<String>) -> Result<Json<JobView>, Problem> {
    Ok(Json(cron.jobs.get(&name(&job)?).await?))
}

async fn add(
    State(cron): State<Cron>,
    Path(job): Path<String>,
    body: Result<Json<JobConfig>, JsonRejection>,
) -> Result<(StatusCode, Json<JobView>), Problem> {
    let (job, Json(config)) = (name(&job)?, body?);
    if config.call.is_none() {
        return Err(bad("`call` is missing: what is to be called, such as `POST order/reports`"));
    }
    let new = cron.jobs.put(&job, config).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(cron.jobs.get(&job).await?)))
}

async fn remove(State(cron): State<Cron>, Path(job): Path<String>) -> Result<StatusCode, Problem> {
    cron.jobs.remove(&name(&job)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    limit: Option<usize>,
}

async fn history(
    State(cron): State<Cron>,
    Path(job): Path<String>,
    Params(Limit { limit }): Params<Limit>,
) -> Result<Json<Vec<RunView>>, Problem> {
    Ok(Json(cron.jobs.history(&name(&job)?, limit.unwrap_or(SHOWN)).await?))
}

/// `?wait=30s`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    #[serde(default)]
    wait: Period,
}

impl Cron {
    async fn waited(&self, job: &ServiceName, id: RunId, wait: Period) -> Result<Json<RunView>, Problem> {
        tokio::select! {
            run = self.jobs.ended(job, id, wait.get().min(MAX_WAIT)) => Ok(Json(run?)),
            () = self.drain.signaled() => Ok(Json(self.jobs.run(job, id).await?)),
        }
    }
}

async fn order(
    State(cron): State<Cron>,
    Path(job): Path<String>,
    Params(Wait { wait }): Params<Wait>,
) -> Result<(StatusCode, Json<RunView>), Problem> {
    let job = name(&job)?;
    let id = cron.jobs.order(&job).await?;
    let run = cron.waited(&job, id, wait).await?;
    let status = if run.record.state.is_final() { StatusCode::CREATED } else { StatusCode::ACCEPTED };
    Ok((status, run))
}

async fn run(
    State(cron): State<Cron>,
    Path((job, id)): Path<(String, String)>,
    Params(Wait { wait }): Params<Wait>,
) -> Result<Json<RunView>, Problem> {
    cron.waited(&name(&job)?, id.parse().map_err(bad)?, wait).await
}

/// Makes the call of a run, once.
pub(crate) async fn call(client: Client, run: Run) -> Outcome {
    let Some(call) = run.config.call.clone() else {
        return Outcome::Failed("the job has no call: it is for a program that brings its own work".into());
    };
    let request = match request(&run, &call) {
        Ok(request) => request,
        Err(error) => return Outcome::Failed(format!("`{call}` is no request: {error}")),
    };
    match client.call(&call.service, request).await {
        Ok(response) => {
            let (status, body) = (response.status(), response.body());
            let text = String::from_utf8_lossy(&body[..body.len().min(REASON)]);
            let said = format!("{call} was answered {status}: {}", text.trim());
            match status.as_u16() {
                200..=299 => Outcome::Done,
                429 => Outcome::NotDone(said),
                408 | 425 | 500..=599 => Outcome::Unknown(said),
                _ => Outcome::Failed(said),
            }
        }
        Err(error) if error.is_unknown() => Outcome::Unknown(format!("{call}: {error}")),
        Err(error) => Outcome::NotDone(format!("{call}: {error}")),
    }
}

fn request(run: &Run, call: &Call) -> axum::http::Result<Request<axum::body::Bytes>> {
    let body = run.config.body.as_ref().map(ToString::to_string);
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(&call.path)
        .header(IDEMPOTENCY_KEY, run.key())
        .header(FENCE, format!("elect/{ELECTION}={}", run.fence))
        .header(TIMEOUT, run.left.as_millis().max(1).to_string())
        .header("cron-job", run.job.as_str())
        .header("cron-slot", run.id.slot.to_string());
    if let Some(body) = &body {
        request = request.header(axum::http::header::CONTENT_TYPE, "application/json");
        request = request.header(axum::http::header::CONTENT_LENGTH, body.len());
    }
    request.body(body.unwrap_or_default().into())
}
