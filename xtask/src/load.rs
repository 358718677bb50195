//! Load: requests at a fixed rate whatever the answers do, each timed from when it was due.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A client of one base address; cheap to clone.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: Option<StatusCode>,
    pub(crate) rejected: Option<String>,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

impl Answer {
    /// A client would call this an error.
    pub(crate) fn is_error(&self) -> bool {
        self.status.is_none_or(|status| status.is_server_error())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// One request to make.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) key: Option<String>,
    pub(crate) body: Value,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), key: None, body: Value::Null }
    }
}

impl Http {
    pub(crate) fn new(base: impl Into<String>) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), base: base.into() }
    }

    /// One request; `took` counts from `due`.
    pub(crate) async fn call(&self, call: Call, due: Instant) -> Answer {
        let result = tokio::time::timeout(Duration::from_secs(60), self.send(call)).await;
        let took = due.elapsed();
        match result {
            Ok(Ok((status, rejected, body))) => Answer { status: Some(status), rejected, body, took },
            Ok(Err(error)) => Answer { status: None, rejected: None, body: format!("{error:#}"), took },
            Err(_) => Answer { status: None, rejected: None, body: "no answer within 60 s".into(), took },
        }
    }

    /// One request now.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Call::get(path), Instant::now()).await
    }

    async fn send(&self, call: Call) -> anyhow::Result<(StatusCode, Option<String>, String)> {
        let bytes = if call.body.is_null() { Bytes::new() } else { Bytes::from(call.body.to_string()) };
        let mut request = Request::builder().method(call.method).uri(format!("{}{}", self.base, call.path));
        if !bytes.is_empty() {
            request = request.header("content-type", "application/json");
        }
        if let Some(key) = call.key {
            request = request.header("idempotency-key", key);
        }
        let response = self.client.request(request.body(Full::new(bytes))?).await?;
        let status = response.status();
        let rejected = response.headers().get("seawall-rejected").and_then(|mark| mark.to_str().ok());
        let rejected = rejected.map(str::to_owned);
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, rejected, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// Makes `count` calls, `rate` a second, or all at once when the rate is 0; returns when all are answered.
pub(crate) async fn run(http: &Http, rate: u32, count: u32, make: impl Fn(u32) -> Call) -> Vec<Answer> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let due = if rate == 0 { start } else { start + Duration::from_secs(1) * number / rate };
        tokio::time::sleep_until(due).await;
        let (http, call) = (http.clone(), make(number));
        tasks.spawn(async move { http.call(call, due).await });
    }
    tasks.join_all().await
}

/// Makes calls, `rate` a second, until `stop` resolves; returns when all are answered.
pub(crate) async fn until(
    http: &Http,
    rate: u32,
    stop: impl Future<Output = ()>,
    make: impl Fn(u32) -> Call,
) -> Vec<Answer> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    for number in 0.. {
        let due = start + Duration::from_secs(1) * number / rate;
        tokio::select! {
            () = &mut stop => break,
            () = tokio::time::sleep_until(due) => {}
        }
        let (http, call) = (http.clone(), make(number));
        tasks.spawn(async move { http.call(call, due).await });
    }
    tasks.join_all().await
}

/// The value below which a share of the durations lies.
pub(crate) fn percentile(answers: &[Answer], share: f64) -> Duration {
    let mut took: Vec<Duration> = answers.iter().map(|answer| answer.took).collect();
    took.sort();
    let at = ((took.len() as f64 * share).ceil() as usize).clamp(1, took.len().max(1)) - 1;
    took.get(at).copied().unwrap_or_default()
}
