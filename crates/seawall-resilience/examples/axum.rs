//! An axum server behind a guard: `cargo run -p seawall-resilience --example axum`, then
//! `curl -i localhost:8080/quote`, and `curl -i -H 'seawall-timeout-ms: 100' localhost:8080/slow`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use seawall_resilience::layer::HttpGuardLayer;
use seawall_resilience::{Guard, Policies, Registry, deadline};

/// Opens at half of ten, lets four requests in at once, and a hundred a second.
const POLICIES: &str = r#"{
    "quotes": {
        "timeout": "2s",
        "rate_limit": { "rate": "100/s" },
        "breaker": { "window": "10 calls", "minimum_calls": 4, "open_for": "30s" },
        "bulkhead": { "concurrent": 4 }
    }
}"#;

/// What is served, behind `guard`.
pub(crate) fn app(guard: Arc<Guard>) -> Router {
    Router::new()
        .route("/quote", get(|| async { "42" }))
        .route("/broken", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "it broke") }))
        .route("/left", get(left))
        .route("/slow", get(slow))
        // axum makes a service of the layer for each route and request. All of them are of the one guard.
        .layer(HttpGuardLayer::new(guard))
}

/// The guard of [`POLICIES`].
pub(crate) fn guard() -> Arc<Guard> {
    let policies: Policies = serde_json::from_str(POLICIES).expect("the policies are in order");
    Registry::new(policies).expect("and without a contradiction").guard("quotes")
}

/// How much time the caller has left, in milliseconds. Calls that are made from here are under the same deadline.
async fn left() -> String {
    deadline::current().expect("the guard has set one").left().as_millis().to_string()
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_secs(60)).await;
    "at last"
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    axum::serve(listener, app(guard())).await
}
