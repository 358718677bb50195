//! The socket by which `seawall status|stop|start|restart|reload` reach a running `up`: HTTP on a Unix socket in the data
//! directory, so that only who may read that directory may use it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::supervisor::{Fleet, Row};

#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    kill: bool,
}

pub(crate) fn serve(fleet: Arc<Fleet>, socket: &Path) -> anyhow::Result<JoinHandle<()>> {
    // What a killed `up` has left behind; a living one holds the lock.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let app = Router::new()
        .route("/status", get(status))
        .route("/services/{name}/{action}", post(change))
        .route("/reload", post(reload))
        .with_state(fleet);
    Ok(tokio::spawn(async move {
        let _ = axum::serve(listener, app).await;
    }))
}

async fn status(State(fleet): State<Arc<Fleet>>) -> Json<Vec<Row>> {
    Json(fleet.rows().await)
}

async fn reload(State(fleet): State<Arc<Fleet>>) -> String {
    fleet.screen().say("asked to read the policies again");
    format!("asked {} to read the policies again", fleet.reload().join(", "))
}

async fn change(
    State(fleet): State<Arc<Fleet>>,
    UrlPath((name, action)): UrlPath<(String, String)>,
    Query(options): Query<Options>,
) -> Result<String, (StatusCode, String)> {
    fleet.screen().say(&format!("asked to {action} {name}"));
    let done = match action.as_str() {
        "stop" => fleet.stop(&name, options.kill).await,
        "start" => fleet.start_service(&name).await,
        "restart" => fleet.restart(&name).await,
        other => Err(format!("`{other}` is not known; there is stop, start, restart")),
    };
    done.map(|()| format!("{action} {name}: done")).map_err(|why| (StatusCode::BAD_REQUEST, why))
}
