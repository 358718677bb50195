//! Calling other services: plain HTTP to the sidecar, which finds, balances, retries and guards.

use std::time::Duration;

use axum::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::service::Problem;

/// The sidecar keeps better deadlines; this one is for a sidecar that is gone.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Services {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl Services {
    pub(crate) fn from_env() -> Self {
        let base = std::env::var("SEAWALL_URL").unwrap_or_else(|_| "http://127.0.0.1:7401".into());
        Self { http: Client::builder(TokioExecutor::new()).build_http(), base }
    }

    /// Calls `<service>/<path>`; the trace of the request that it is for goes along.
    pub(crate) async fn call(
        &self,
        method: Method,
        target: &str,
        key: Option<&str>,
        trace: &HeaderMap,
        body: &Value,
    ) -> Result<(StatusCode, Value), Problem> {
        let mut request = Request::builder().method(method).uri(format!("{}/{target}", self.base));
        for name in ["traceparent", "seawall-timeout-ms"] {
            if let Some(value) = trace.get(name) {
                request = request.header(name, value);
            }
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = request.header("content-type", "application/json").body(Full::new(bytes));
        let unavailable = |why: String| Problem(StatusCode::SERVICE_UNAVAILABLE, why);
        let request = request.map_err(|error| unavailable(error.to_string()))?;
        let answer = async {
            let response = self.http.request(request).await.map_err(|error| unavailable(error.to_string()))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| unavailable(error.to_string()))?;
            let bytes = body.to_bytes();
            let value = serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).trim().to_owned()));
            Ok((status, value))
        };
        let late = |_| unavailable(format!("{target} did not answer in time"));
        tokio::time::timeout(PATIENCE, answer).await.map_err(late)?
    }
}
