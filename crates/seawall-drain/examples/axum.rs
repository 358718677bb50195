//! A small axum server that goes in order.
//!
//! ```console
//! $ cargo run -p seawall-drain --example axum
//! $ curl -i http://127.0.0.1:8081/readyz
//! $ curl -i 'http://127.0.0.1:8081/slow?seconds=20' &
//! $ kill -TERM "$(pgrep -x axum)"
//! ```
//!
//! `LISTEN` is where it listens, `LAMEDUCK` and `DEADLINE` are the pause and the time for requests to finish, in seconds.

use std::collections::HashMap;
use std::error::Error;
use std::io::IsTerminal;
use std::str::FromStr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{any, get};
use seawall_drain::{Drain, Kind, Readiness, Shutdown, Signals};
use tokio::net::TcpListener;

const ACCEPT: &str = "stop accepting";
const FINISH: &str = "finish requests";
const CLOSE: &str = "close connections to the database";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    // First of all: until now a signal ends the process at once.
    let signals = Signals::listen()?;

    let mut shutdown = Shutdown::new()
        .lameduck(Duration::from_secs_f64(setting("LAMEDUCK", 5.0)?))
        .phase(ACCEPT, Duration::from_secs(1))
        .phase(FINISH, Duration::from_secs_f64(setting("DEADLINE", 30.0)?))
        .phase(CLOSE, Duration::from_secs(5));
    let readiness = shutdown.readiness();
    let accepting = shutdown.drain(ACCEPT);
    let finishing = shutdown.drain(FINISH);
    shutdown.hook(CLOSE, "pool", async { tracing::info!("the pool is closed") });

    let app = Router::new()
        .route("/slow", any(slow))
        // Around what is above it, but not around what is below: nobody has to wait for a check.
        .layer(from_fn_with_state(finishing.kind("request"), hold))
        .route("/readyz", get(readyz))
        .with_state(readiness.clone());
    let listener = TcpListener::bind(setting("LISTEN", "127.0.0.1:8081".to_owned())?).await?;
    println!("listening on {}", listener.local_addr()?);
    tokio::spawn(serve(listener, app, accepting, finishing));
    readiness.ready();

    shutdown.run_on(signals).await.exit()
}

/// Serves until `accepting` signals. axum then closes the listener, lets requests finish, and closes idle connections.
async fn serve(listener: TcpListener, app: Router, accepting: Drain, finishing: Drain) {
    // Held until the last connection is closed, and so until the last byte of the last response is written.
    let _server = finishing.guard("server");
    let served = axum::serve(listener, app).with_graceful_shutdown(async move { accepting.signaled().await });
    if let Err(error) = served.await {
        tracing::error!(%error, "cannot serve");
    }
}

/// Says how many requests are in flight, and since when.
async fn hold(State(kind): State<Kind>, request: Request, next: Next) -> Response {
    let _request = kind.guard();
    next.run(request).await
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let state = readiness.state();
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{state}\n"))
}

/// Takes the body as slowly as it comes, and then its time.
async fn slow(Query(query): Query<HashMap<String, String>>, body: Bytes) -> Result<String, StatusCode> {
    let seconds = query.get("seconds").map_or(Ok(5.0), |seconds| seconds.parse());
    let pause = seconds.ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    tokio::time::sleep(pause.ok_or(StatusCode::BAD_REQUEST)?).await;
    Ok(format!("done, with a body of {} bytes\n", body.len()))
}

fn setting<T: FromStr>(name: &str, default: T) -> Result<T, Box<dyn Error>> {
    let Ok(value) = std::env::var(name) else {
        return Ok(default);
    };
    value.parse().map_err(|_| format!("cannot read {name}: `{value}`").into())
}
