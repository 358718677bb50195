//! The control node's HTTP API, as a client sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use seawall_types::{Instance, InstanceId, Revision, ServiceName, Status};
use serde::{Deserialize, Serialize};

/// No answer of control's is larger.
const LIMIT: usize = 64 << 20;
/// How long control may take for anything that does not itself wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client of the control nodes; cheap to clone. When one node fails, the next call goes to the next.
#[derive(Clone, Debug)]
pub struct Control {
    http: Client<HttpConnector, Full<Bytes>>,
    nodes: Arc<[SocketAddr]>,
    current: Arc<AtomicUsize>,
}

/// A call to control that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Control could not be reached, or did not answer in time.
    #[error("control at {node} cannot be reached: {why}")]
    Unreachable {
        /// The node that was asked.
        node: SocketAddr,
        /// Why.
        why: String,
    },
    /// The stream of changes ended.
    #[error("the stream from control broke: {0}")]
    Broken(String),
    /// Control does not know what was asked for.
    #[error("control does not know it: {}", said(.0))]
    NotFound(String),
    /// Control refused.
    #[error("control refused with {status}: {}", said(why))]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it says.
        why: String,
    },
}

/// The words of an answer that says what is wrong, `{"error": "..."}`; one that is none is given as it is.
fn said(why: &str) -> String {
    let parsed = serde_json::from_str::<serde_json::Value>(why).ok();
    parsed.and_then(|answer| Some(answer.get("error")?.as_str()?.to_owned())).unwrap_or_else(|| why.to_owned())
}

/// What became of a change to the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The revision that it made.
    pub revision: Revision,
    /// Who had not acknowledged it when the wait was over; empty when all had, or when nobody waited.
    #[serde(default)]
    pub laggards: Vec<String>,
    /// How long a registration lasts without a heartbeat, in milliseconds.
    #[serde(default)]
    pub ttl_ms: u64,
}

impl Control {
    /// A client of one or more nodes. Without any, every call fails.
    pub fn new(nodes: impl Into<Arc<[SocketAddr]>>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(1)));
        let http = Client::builder(TokioExecutor::new()).build(connector);
        Self { http, nodes: nodes.into(), current: Arc::default() }
    }

    /// Registers an instance, or replaces it. Idempotent.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn register(&self, service: &ServiceName, instance: &Instance) -> Result<Applied, ControlError> {
        let body = serde_json::to_vec(instance).expect("an instance is plain data");
        self.json(Method::PUT, &path(service, &instance.id, ""), body, PATIENCE).await
    }

    /// Says that an instance is alive.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] when the registry does not know it: register again.
    pub async fn heartbeat(&self, service: &ServiceName, id: &InstanceId) -> Result<(), ControlError> {
        self.send(Method::POST, &path(service, id, "/heartbeat"), Vec::new(), PATIENCE).await.map(drop)
    }

    /// Changes an instance's status, and waits up to `wait` until every live subscriber has applied it.
    ///
    /// # Errors
    /// [`ControlError`]; a wait that runs out is no error, it names the laggards.
    pub async fn set_status(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        status: Status,
        wait: Duration,
    ) -> Result<Applied, ControlError> {
        let body = serde_json::to_vec(&serde_json::json!({ "status": status })).expect("plain data");
        self.json(Method::PUT, &path(service, id, &format!("/status{}", waiting(wait))), body, PATIENCE + wait).await
    }

    /// Removes an instance, and waits up to `wait` until every live subscriber has applied it.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] when it is not there (any more).
    pub async fn deregister(
        &self,
        service: &ServiceName,
        id: &InstanceId,
        wait: Duration,
    ) -> Result<Applied, ControlError> {
        self.json(Method::DELETE, &path(service, id, &waiting(wait)), Vec::new(), PATIENCE + wait).await
    }

    /// Tells control that `subscriber` acts on `revision` of `store`.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn acknowledge(&self, subscriber: &str, store: &str, revision: Revision) -> Result<(), ControlError> {
        let path = format!("/v1/watch/ack?subscriber={subscriber}&store={store}&revision={revision}");
        self.send(Method::POST, &path, Vec::new(), PATIENCE).await.map(drop)
    }

    /// Tells control that `subscriber` follows no more and acts on nothing, so that nobody waits for it.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn unsubscribe(&self, subscriber: &str) -> Result<(), ControlError> {
        let path = format!("/v1/watch?subscriber={subscriber}");
        self.send(Method::DELETE, &path, Vec::new(), Duration::from_secs(1)).await.map(drop)
    }

    /// Any other call: the body of a successful answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Bytes, ControlError> {
        let at = self.current.load(Ordering::Relaxed);
        let result = tokio::time::timeout(patience, async {
            let response = self.open(method, path, body, "application/json").await?;
            let node = self.node(at);
            let body = Limited::new(response.into_body(), LIMIT).collect().await;
            body.map(|body| body.to_bytes()).map_err(|e| ControlError::Unreachable { node, why: e.to_string() })
        });
        let result = result.await.unwrap_or_else(|_| {
            Err(ControlError::Unreachable { node: self.node(at), why: format!("no answer within {patience:?}") })
        });
        if matches!(result, Err(ControlError::Unreachable { .. })) {
            // Somebody else may have moved on already; then this changes nothing.
            let _ = self.current.compare_exchange(at, at.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
        }
        result
    }

    async fn json<T: for<'de> Deserialize<'de>>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<T, ControlError> {
        let bytes = self.send(method, path, body, patience).await?;
        serde_json::from_slice(&bytes).map_err(|error| ControlError::Refused {
            status: StatusCode::OK,
            why: format!("its answer to {path} is not understood: {error}"),
        })
    }

    /// Sends a request and returns the answer as soon as its head is there; the caller sets the deadline.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        accept: &'static str,
    ) -> Result<Response<Incoming>, ControlError> {
        let node = self.node(self.current.load(Ordering::Relaxed));
        let unreachable = |why: String| ControlError::Unreachable { node, why };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{node}{path}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, accept)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| unreachable(error.to_string()))?;
        let response = self.http.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            unreachable(format!("{error}{cause}"))
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), LIMIT).collect().await;
        let why = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
        match status {
            StatusCode::NOT_FOUND => Err(ControlError::NotFound(why)),
            _ => Err(ControlError::Refused { status, why }),
        }
    }

    /// Makes the next call go to the next node.
    pub(crate) fn next_node(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    fn node(&self, at: usize) -> SocketAddr {
        const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
        self.nodes.get(at % self.nodes.len().max(1)).copied().unwrap_or(NOBODY)
    }
}

fn path(service: &ServiceName, id: &InstanceId, rest: &str) -> String {
    format!("/v1/services/{service}/instances/{id}{rest}")
}

fn waiting(wait: Duration) -> String {
    if wait.is_zero() { String::new() } else { format!("?wait=applied&timeout={}ms", wait.as_millis()) }
}
