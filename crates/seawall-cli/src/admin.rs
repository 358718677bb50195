//! The small server beside a gateway or a sidecar: `/healthz`, `/readyz`, `/metrics`, `/status`, `/v1/policies`,
//! and a gateway's `/v1/cache`.

use std::net::SocketAddr;

use anyhow::Context;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use seawall_drain::Drain;
use seawall_gateway::{Caches, Purge, Routes};
use seawall_proxy::Upstreams;
use seawall_proxy::status::policies;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

#[derive(Clone)]
struct App {
    upstreams: Upstreams,
    drain: Drain,
    /// Of a gateway.
    routes: Option<Routes>,
}

impl App {
    /// What the routes in use store of answers.
    fn caches(&self) -> Caches {
        self.routes.as_ref().map(Routes::caches).unwrap_or_default()
    }
}

/// Starts it; it ends with the process, so that it can be asked until the last moment.
pub(crate) async fn start(
    addr: SocketAddr,
    upstreams: Upstreams,
    drain: Drain,
    routes: Option<Routes>,
) -> anyhow::Result<SocketAddr> {
    let listener =
        TcpListener::bind(addr).await.with_context(|| format!("the admin server cannot listen on {addr}"))?;
    let addr = listener.local_addr()?;
    serve(listener, upstreams, drain, routes);
    Ok(addr)
}

/// The same on a listener; ends with the task.
pub(crate) fn serve(
    listener: TcpListener,
    upstreams: Upstreams,
    drain: Drain,
    routes: Option<Routes>,
) -> JoinHandle<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(app): State<App>| async move { seawall_proxy::metrics::page(&app.upstreams) }))
        .route("/status", get(status))
        .route("/v1/policies", get(|State(app): State<App>| async move { Json(policies(&app.upstreams)) }))
        .route("/v1/policies/{service}/breaker/{state}", post(order))
        .route("/v1/cache", get(cache))
        .route("/v1/cache/purge", post(purge))
        .with_state(App { upstreams, drain, routes });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::warn!(%error, "the admin server has ended");
        }
    })
}

async fn ready(State(app): State<App>) -> (StatusCode, &'static str) {
    if app.drain.is_signaled() { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") } else { (StatusCode::OK, "ready\n") }
}

async fn order(
    State(app): State<App>,
    Path((service, state)): Path<(String, String)>,
) -> Result<String, (StatusCode, String)> {
    let done = seawall_proxy::status::order(&app.upstreams, &service, &state);
    done.map(|()| format!("{service}: {state}\n")).map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))
}

async fn cache(State(app): State<App>) -> Json<Value> {
    let caches = app.caches();
    let sums = caches.sums();
    let one = |(route, answers, bytes)| json!({ "route": route, "answers": answers, "bytes": bytes });
    Json(json!({ "caches": sums.into_iter().map(one).collect::<Vec<_>>() }))
}

/// Which answers are thrown out of the caches: exactly one of them.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    url: Option<String>,
    tag: Option<String>,
    all: Option<bool>,
}

async fn purge(State(app): State<App>, Query(which): Query<Which>) -> Result<Json<Value>, (StatusCode, String)> {
    let purge = match which {
        Which { url: Some(url), tag: None, all: None } => {
            let url = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).unwrap_or(&url);
            let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
            Purge::Url(format!("{}{}", host.to_ascii_lowercase(), if path.is_empty() { "/" } else { path }))
        }
        Which { url: None, tag: Some(tag), all: None } => Purge::Tag(tag),
        Which { url: None, tag: None, all: Some(true) } => Purge::All,
        _ => {
            let what = "say exactly one: ?url=shop.example/a (a `*` at its end is any rest), ?tag=..., or ?all=true\n";
            return Err((StatusCode::BAD_REQUEST, what.to_owned()));
        }
    };
    Ok(Json(json!({ "purged": app.caches().purge(&purge) })))
}

/// Who can be called from here, and what stands in between.
async fn status(State(app): State<App>) -> Json<Value> {
    let snapshot = app.upstreams.snapshot();
    let guards = &policies(&app.upstreams)["guards"];
    Json(json!({ "revision": snapshot.revision, "services": snapshot.services, "guards": guards }))
}
