//! The store as a whole, over HTTP: how it stands, and a backup of it while it is used.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use seawall_store::{FENCE_BASE, STORE_ID, Snapshot, Store, StoreUrl};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use crate::api::Problem;

/// What is read of a backup at one time.
const CHUNK: usize = 64 << 10;
/// Chunks that are read ahead of the client.
const AHEAD: usize = 4;
/// How long a client may take none.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct StoreApi {
    store: Arc<dyn Store>,
    url: StoreUrl,
    limit: u64,
    data: PathBuf,
    /// One backup at a time: each takes the room of the store once more.
    turn: Arc<Semaphore>,
}

impl std::fmt::Debug for StoreApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreApi").field("url", &self.url).finish_non_exhaustive()
    }
}

impl StoreApi {
    pub(crate) fn new(store: Arc<dyn Store>, url: StoreUrl, limit: u64, data: PathBuf) -> Self {
        Self { store, url, limit, data, turn: Arc::new(Semaphore::new(1)) }
    }

    /// The store itself.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// Writes a snapshot where the other files are, and gives it without its name: it goes with its last reader.
    async fn file(&self) -> Result<(Snapshot, File, u64), Problem> {
        let unavailable = |why: String| Problem(StatusCode::SERVICE_UNAVAILABLE, why);
        let snapshot = self.store.snapshot().await.map_err(|error| unavailable(error.to_string()))?;
        let path = self.data.join(format!("backup-{}.tmp", std::process::id()));
        let written = tokio::task::spawn_blocking(move || {
            let open = || -> io::Result<(File, u64)> {
                let file = File::open(&path)?;
                std::fs::remove_file(&path)?;
                let length = file.metadata()?.len();
                Ok((file, length))
            };
            snapshot.write(&path).map_err(|error| error.to_string())?;
            let (file, length) = open().map_err(|error| format!("{}: {error}", path.display()))?;
            Ok((snapshot, file, length))
        });
        written.await.unwrap_or_else(|error| Err(error.to_string())).map_err(unavailable)
    }
}

pub(crate) fn router<S>(api: StoreApi) -> Router<S> {
    Router::new().route("/v1/store", get(status)).route("/v1/store/snapshot", get(snapshot)).with_state(api)
}

async fn status(State(api): State<StoreApi>) -> Result<Json<Value>, Problem> {
    let unavailable = |error: seawall_store::ReadError| Problem(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
    let status = api.store.status().await.map_err(unavailable)?;
    let text = async |key| -> Result<Option<String>, Problem> {
        let entry = api.store.get(key).await.map_err(unavailable)?;
        Ok(entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()))
    };
    let fence_base = text(FENCE_BASE).await?.and_then(|base| base.parse::<u64>().ok());
    let limit = Some(api.limit).filter(|_| api.url == StoreUrl::Embedded);
    Ok(Json(json!({
        "store": api.url, "id": text(STORE_ID).await?, "revision": status.revision, "oldest": status.oldest,
        "keys": status.entries, "leases": status.leases, "bytes": status.bytes, "limit": limit, "fence_base": fence_base,
    })))
}

async fn snapshot(State(api): State<StoreApi>) -> Result<Response, Problem> {
    let busy = "another backup is being taken; try again when it is done";
    let turn = api.turn.clone().try_acquire_owned();
    let turn = turn.map_err(|_| Problem(StatusCode::SERVICE_UNAVAILABLE, busy.into()))?;
    let (snapshot, file, length) = api.file().await?;
    tracing::info!(revision = %snapshot.revision, bytes = length, "a backup is being taken");
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(pump(file, sender, turn));
    let body = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let head =
        [(header::CONTENT_TYPE, "application/vnd.sqlite3".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    Ok((head, Body::from_stream(body)).into_response())
}

/// Reads a file into a channel, for as long as somebody takes it. A client that gets less than it was told of has no backup.
async fn pump(mut file: File, to: mpsc::Sender<io::Result<Bytes>>, _turn: OwnedSemaphorePermit) {
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; CHUNK];
            let read = file.read(&mut chunk).map(|length| {
                chunk.truncate(length);
                Bytes::from(chunk)
            });
            (file, read)
        });
        let Ok((same, read)) = read.await else { return };
        file = same;
        let last = read.as_ref().map_or(true, Bytes::is_empty);
        if !matches!(&read, Ok(chunk) if chunk.is_empty())
            && !matches!(timeout(PATIENCE, to.send(read)).await, Ok(Ok(())))
        {
            return;
        }
        if last {
            return;
        }
    }
}
