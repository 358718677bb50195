//! The HTTP API. Paths and answers are described in `docs/api.md`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use seawall_drain::Drain;
use seawall_proxy::{Upstreams, status};
use seawall_registry::{Changes, Registry, RegistryError, Subscription};
use seawall_saga::log::LogError;
use seawall_saga::{Runner, SagaView, StartError};
use seawall_store::{CommitError, WatchError};
use seawall_telemetry::metrics::Page;
use seawall_types::header::IDEMPOTENCY_KEY;
use seawall_types::{Change, Instance, InstanceId, Period, Revision, ServiceName, Snapshot, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::coord::{self, Coord};
use crate::cron::{self, Cron};
use crate::queues::{self, Waiting};
use crate::store_api::{self, StoreApi};
use crate::traffic;

/// How often a quiet stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// The longest that a request may wait for something to happen.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(120);
/// The largest request body.
const MAX_BODY: usize = 256 * 1024;

/// All of this API, for programs.
const OPENAPI: &str = include_str!("../openapi.json");

/// What the handlers share.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) registry: Registry,
    pub(crate) runner: Runner,
    pub(crate) upstreams: Upstreams,
    pub(crate) coord: Coord,
    pub(crate) cron: Cron,
    pub(crate) waiting: Waiting,
    pub(crate) store: StoreApi,
    pub(crate) shifts: traffic::Shifts,
    pub(crate) drain: Drain,
}

pub(crate) fn router(app: App) -> Router {
    const INSTANCE: &str = "/v1/services/{service}/instances/{id}";
    let coord = coord::router(app.coord.clone());
    let cron = cron::router(app.cron.clone());
    let queues = queues::router(app.waiting.clone());
    let store = store_api::router(app.store.clone());
    let traffic = traffic::router(app.shifts.clone());
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }))
        .route("/v1/policies", get(|State(app): State<App>| async move { Json(status::policies(&app.upstreams)) }))
        .route("/v1/policies/{service}/breaker/{state}", post(order))
        .route("/v1/services", get(services))
        .route("/v1/services/{service}", get(service))
        .route(INSTANCE, put(register).delete(deregister))
        .route(&format!("{INSTANCE}/heartbeat"), post(heartbeat))
        .route(&format!("{INSTANCE}/status"), put(set_status))
        .route("/v1/watch", get(watch).delete(leave))
        .route("/v1/watch/ack", post(acknowledge))
        .route("/v1/subscribers", get(subscribers))
        .route("/v1/sagas", get(sagas))
        .route("/v1/sagas/{name_or_id}", post(start_saga).get(saga))
        .merge(coord)
        .merge(cron)
        .merge(queues)
        .merge(store)
        .merge(traffic)
        .fallback(|| async { Problem(StatusCode::NOT_FOUND, "there is no such path; see docs/api.md".into()) })
        .method_not_allowed_fallback(|| async {
            Problem(StatusCode::METHOD_NOT_ALLOWED, "this path takes other methods; see docs/api.md".into())
        })
        .with_state(app)
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

/// A query string; one that is wrong is answered as every other mistake is.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|error| bad(error.body_text()))
    }
}

/// An answer that says what is wrong: `{"error": "..."}`.
pub(crate) struct Problem(pub(crate) StatusCode, pub(crate) String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        let status = match &error {
            RegistryError::NotFound { .. } => StatusCode::NOT_FOUND,
            RegistryError::Invalid(_) | RegistryError::Store(CommitError::Invalid(_)) => StatusCode::BAD_REQUEST,
            RegistryError::Store(_) | RegistryError::Read(_) | RegistryError::Lagging(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self(status, error.to_string())
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        let status = match &error {
            StartError::NoPlan(_) => StatusCode::NOT_FOUND,
            StartError::Invalid(_) => StatusCode::BAD_REQUEST,
            StartError::Conflict { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            StartError::Busy(_) | StartError::Log(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

pub(crate) fn bad(error: impl std::fmt::Display) -> Problem {
    Problem(StatusCode::BAD_REQUEST, error.to_string())
}

fn names(service: &str, id: &str) -> Result<(ServiceName, InstanceId), Problem> {
    Ok((ServiceName::try_new(service).map_err(bad)?, InstanceId::try_new(id).map_err(bad)?))
}

async fn ready(State(app): State<App>) -> (StatusCode, &'static str) {
    if app.drain.is_signaled() { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") } else { (StatusCode::OK, "ready\n") }
}

async fn order(
    State(app): State<App>,
    Path((service, state)): Path<(String, String)>,
) -> Result<String, (StatusCode, String)> {
    let done = status::order(&app.upstreams, &service, &state);
    done.map(|()| format!("{service}: {state}\n")).map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))
}

async fn services(State(app): State<App>) -> Json<Snapshot> {
    Json(Snapshot::clone(&app.registry.snapshot()))
}

async fn service(State(app): State<App>, Path(service): Path<String>) -> Result<Json<Value>, Problem> {
    let service = ServiceName::try_new(&service).map_err(bad)?;
    let snapshot = app.registry.snapshot();
    match snapshot.services.get(&service) {
        Some(instances) => Ok(Json(json!({ "revision": snapshot.revision, "instances": instances }))),
        None => Err(Problem(StatusCode::NOT_FOUND, format!("no instance of `{service}` has ever registered"))),
    }
}

/// `?wait=applied&timeout=5s`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    wait: Option<String>,
    timeout: Option<Period>,
}

/// The answer to a change.
#[derive(Serialize)]
struct Applied {
    revision: Revision,
    laggards: Vec<String>,
    ttl_ms: u128,
}

impl App {
    async fn applied(&self, revision: Revision, wait: &Wait) -> Result<Json<Applied>, Problem> {
        let laggards = match wait.wait.as_deref() {
            None => Vec::new(),
            Some("applied") => {
                let timeout = wait.timeout.unwrap_or(Period::secs(5)).get().min(MAX_WAIT);
                self.registry.applied(revision, timeout).await
            }
            Some(other) => return Err(bad(format!("`wait={other}` is not known; there is `wait=applied`"))),
        };
        Ok(Json(Applied { revision, laggards, ttl_ms: self.registry.ttl().as_millis() }))
    }
}

async fn register(
    State(app): State<App>,
    Path((service, id)): Path<(String, String)>,
    Params(wait): Params<Wait>,
    body: Result<Json<Instance>, JsonRejection>,
) -> Result<Json<Applied>, Problem> {
    let (service, id) = names(&service, &id)?;
    let Json(instance) = body?;
    if instance.id != id {
        return Err(bad(format!("the path names instance `{id}`, the body `{}`", instance.id)));
    }
    let revision = app.registry.register(&service, instance).await?;
    app.applied(revision, &wait).await
}

async fn heartbeat(State(app): State<App>, Path((service, id)): Path<(String, String)>) -> Result<StatusCode, Problem> {
    let (service, id) = names(&service, &id)?;
    app.registry.heartbeat(&service, &id)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewStatus {
    status: Status,
}

async fn set_status(
    State(app): State<App>,
    Path((service, id)): Path<(String, String)>,
    Params(wait): Params<Wait>,
    body: Result<Json<NewStatus>, JsonRejection>,
) -> Result<Json<Applied>, Problem> {
    let (service, id) = names(&service, &id)?;
    let revision = app.registry.set_status(&service, &id, body?.0.status).await?;
    app.applied(revision, &wait).await
}

async fn deregister(
    State(app): State<App>,
    Path((service, id)): Path<(String, String)>,
    Params(wait): Params<Wait>,
) -> Result<Json<Applied>, Problem> {
    let (service, id) = names(&service, &id)?;
    let revision = app.registry.deregister(&service, &id).await?;
    app.applied(revision, &wait).await
}

/// `?subscriber=gateway-public&store=1f0c&from=42`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Watch {
    subscriber: Option<String>,
    store: Option<String>,
    from: Option<Revision>,
}

async fn watch(
    State(app): State<App>,
    Params(watch): Params<Watch>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let subscription = match &watch.subscriber {
        None => None,
        Some(name) => {
            InstanceId::try_new(name).map_err(bad)?;
            let opened = app.registry.subscribers().open(name);
            Some(opened.ok_or_else(|| Problem(StatusCode::SERVICE_UNAVAILABLE, "too many subscribers".into()))?)
        }
    };
    let resumed = match watch.from {
        Some(from) if watch.store.as_deref().is_none_or(|store| store == app.registry.store_id()) => {
            let unavailable =
                |error: seawall_store::ReadError| Problem(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
            // From the future can only come who has followed another history.
            let next = app.registry.revision().await.map_err(unavailable)?.next();
            if from <= next { app.registry.changes(from).await.ok() } else { None }
        }
        _ => None,
    };
    let told = resumed.is_none();
    let stream = Following { app, changes: resumed, told, queue: VecDeque::new(), _subscription: subscription };
    let stream = stream::unfold(stream, |mut following| async {
        let event = following.next().await?;
        Some((Ok(event), following))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// One stream: the whole snapshot unless it is resumed, then every change.
struct Following {
    app: App,
    changes: Option<Changes>,
    /// Whether the follower knows how the stream begins.
    told: bool,
    /// Changes of one revision or a few, read together.
    queue: VecDeque<Change>,
    _subscription: Option<Subscription>,
}

impl Following {
    async fn next(&mut self) -> Option<Event> {
        if !std::mem::replace(&mut self.told, true) {
            return Event::default().event("resumed").json_data(json!({ "store": self.app.registry.store_id() })).ok();
        }
        loop {
            if let Some(change) = self.queue.pop_front() {
                return event("change", change.revision, &change);
            }
            let Some(changes) = &mut self.changes else {
                let snapshot = self.app.registry.snapshot();
                self.changes = self.app.registry.changes(snapshot.revision.next()).await.ok();
                // Compacted in this very moment: look again.
                if self.changes.is_none() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                let whole = json!({ "store": self.app.registry.store_id(), "snapshot": &*snapshot });
                return event("snapshot", snapshot.revision, &whole);
            };
            tokio::select! {
                next = changes.next() => match next {
                    Ok(next) => self.queue.extend(next),
                    Err(WatchError::Compacted { .. }) => self.changes = None,
                    Err(WatchError::Unavailable(_) | WatchError::Closed) => return None,
                },
                () = self.app.drain.signaled() => return None,
            }
        }
    }
}

fn event(name: &str, revision: Revision, data: &impl Serialize) -> Option<Event> {
    Event::default().event(name).id(revision.to_string()).json_data(data).ok()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Leave {
    subscriber: String,
}

async fn leave(State(app): State<App>, Params(leave): Params<Leave>) -> StatusCode {
    app.registry.subscribers().leave(&leave.subscriber);
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ack {
    subscriber: String,
    revision: Revision,
    /// Whose revision it is; another store's counts for nothing here.
    store: Option<String>,
}

async fn acknowledge(State(app): State<App>, Params(ack): Params<Ack>) -> Result<StatusCode, Problem> {
    if ack.store.as_deref().is_some_and(|store| store != app.registry.store_id()) {
        return Err(Problem(StatusCode::CONFLICT, "this revision belongs to another store".into()));
    }
    if app.registry.subscribers().acknowledge(&ack.subscriber, ack.revision) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem(StatusCode::NOT_FOUND, format!("`{}` has no open stream", ack.subscriber)))
    }
}

async fn subscribers(State(app): State<App>) -> Json<Value> {
    let list: Vec<_> = app
        .registry
        .subscribers()
        .list()
        .into_iter()
        .map(|(name, acknowledged)| json!({ "name": name, "acknowledged": acknowledged }))
        .collect();
    Json(json!({ "revision": app.registry.snapshot().revision, "subscribers": list }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StartQuery {
    wait: Option<Period>,
}

async fn start_saga(
    State(app): State<App>,
    Path(name): Path<String>,
    Params(query): Params<StartQuery>,
    headers: HeaderMap,
    body: Result<Json<Value>, JsonRejection>,
) -> Result<(StatusCode, Json<SagaView>), Problem> {
    let key = headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok());
    let key = key.ok_or_else(|| bad("the header `Idempotency-Key` is missing: it makes a repeated start harmless"))?;
    let Json(input) = body?;
    let started = app.runner.start(&name, key, input).await?;
    if let Some(wait) = query.wait {
        app.runner.wait(&started.id, wait.get().min(MAX_WAIT)).await;
    }
    let view = app.runner.get(&started.id).await?.ok_or_else(|| {
        Problem(StatusCode::INTERNAL_SERVER_ERROR, format!("saga {} was started and is not in the log", started.id))
    })?;
    let status = match (view.status.is_final(), started.new) {
        (false, _) => StatusCode::ACCEPTED,
        (true, true) => StatusCode::CREATED,
        (true, false) => StatusCode::OK,
    };
    Ok((status, Json(view)))
}

async fn saga(State(app): State<App>, Path(id): Path<String>) -> Result<Json<SagaView>, Problem> {
    let view = app.runner.get(&id).await?;
    view.map(Json).ok_or_else(|| Problem(StatusCode::NOT_FOUND, format!("there is no saga {id}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    status: Option<seawall_saga::engine::Status>,
    limit: Option<usize>,
}

async fn sagas(State(app): State<App>, Params(query): Params<ListQuery>) -> Result<Json<Vec<SagaView>>, Problem> {
    Ok(Json(app.runner.list(query.status, query.limit.unwrap_or(50)).await?))
}

async fn metrics(State(app): State<App>) -> Result<String, Problem> {
    let mut page = Page::default();
    let snapshot = app.registry.snapshot();
    page.family("seawall_registry_instances", "gauge", "Registered instances by service and status.");
    for (service, instances) in &snapshot.services {
        for status in [Status::Starting, Status::Up, Status::Draining, Status::Down] {
            let count = instances.iter().filter(|instance| instance.status == status).count();
            page.sample("seawall_registry_instances", &[("service", service), ("status", &status)], count);
        }
    }
    page.family("seawall_registry_revision", "gauge", "The revision of the registry.");
    page.sample("seawall_registry_revision", &[], snapshot.revision);
    page.family("seawall_registry_subscribers", "gauge", "Open subscriptions.");
    page.sample("seawall_registry_subscribers", &[], app.registry.subscribers().list().len());
    page.family("seawall_sagas", "gauge", "Sagas in the log by status.");
    for (status, count) in app.runner.counts().await? {
        page.sample("seawall_sagas", &[("status", &status)], count);
    }
    app.coord.metrics(&mut page).await;
    app.cron.stats.write(&mut page);
    queues::metrics(&app.waiting.queues, &mut page).await;
    Ok(page.into_text() + &seawall_proxy::metrics::page(&app.upstreams))
}
