//! The small server beside a gateway or a sidecar: `/healthz`, `/readyz`, `/metrics`, `/status`, `/v1/policies`.

use std::net::SocketAddr;

use anyhow::Context;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use seawall_drain::Drain;
use seawall_proxy::Upstreams;
use seawall_proxy::status::policies;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

#[derive(Clone)]
struct App {
    upstreams: Upstreams,
    drain: Drain,
}

/// Starts it; it ends with the process, so that it can be asked until the last moment.
pub(crate) async fn start(addr: SocketAddr, upstreams: Upstreams, drain: Drain) -> anyhow::Result<SocketAddr> {
    let listener =
        TcpListener::bind(addr).await.with_context(|| format!("the admin server cannot listen on {addr}"))?;
    let addr = listener.local_addr()?;
    serve(listener, upstreams, drain);
    Ok(addr)
}

/// The same on a listener; ends with the task.
pub(crate) fn serve(listener: TcpListener, upstreams: Upstreams, drain: Drain) -> JoinHandle<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(app): State<App>| async move { seawall_proxy::metrics::page(&app.upstreams) }))
        .route("/status", get(status))
        .route("/v1/policies", get(|State(app): State<App>| async move { Json(policies(&app.upstreams)) }))
        .route("/v1/policies/{service}/breaker/{state}", post(order))
        .with_state(App { upstreams, drain });
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

/// Who can be called from here, and what stands in between.
async fn status(State(app): State<App>) -> Json<Value> {
    let snapshot = app.upstreams.snapshot();
    let guards = &policies(&app.upstreams)["guards"];
    Json(json!({ "revision": snapshot.revision, "services": snapshot.services, "guards": guards }))
}
