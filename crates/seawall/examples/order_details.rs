//! Order details, composed from four services that are called at once, each behind a bulkhead of its own.
//!
//! The order itself has to be there. Recommendations are optional: absent, slow or rejected, the answer is complete
//! without them and says so. Payment's part is bounded to one second, after which it is marked as unavailable. And a
//! service that is drowned in calls slows none of the others: its bulkhead is full, theirs are not.
//!
//! ```console
//! $ cargo run -p seawall --example order_details
//! ```

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use seawall::Client;
use seawall::client::Error;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The time that payment gets.
const PAYMENT: Duration = Duration::from_secs(1);
/// The places in the bulkhead of recommendations.
const PLACES: usize = 4;

/// How the four are called: this and [`details`] are the part to copy.
fn policies() -> Value {
    json!({
        "default": { "timeout": "10s", "bulkhead": { "concurrent": 100, "wait": "1s" } },
        "payment": { "timeout": "1s" },
        "recommendations": { "bulkhead": { "concurrent": PLACES, "wait": "0s" } },
    })
}

async fn part(client: &Client, service: &str, id: u64) -> Result<Value, Error> {
    client.get(format!("http://{service}/orders/{id}")).send().await?.error_for_status()?.json().await
}

/// A part that the page can do without: the word for why it is missing stands in its place.
fn or_unavailable(part: Result<Value, Error>) -> Value {
    part.unwrap_or_else(|error| {
        let why = match &error {
            Error::Rejected(rejected) => rejected.policy,
            error if error.is_timeout() => "timeout",
            _ => "failure",
        };
        json!({ "unavailable": why })
    })
}

async fn details(State(client): State<Client>, Path(id): Path<u64>) -> Result<Json<Value>, (StatusCode, String)> {
    let (order, payment, shipping, recommendations) = tokio::join!(
        part(&client, "order", id),
        part(&client, "payment", id),
        part(&client, "shipping", id),
        part(&client, "recommendations", id),
    );
    // Without the order there is nothing to show.
    let order = order.map_err(|error| (StatusCode::BAD_GATEWAY, error.to_string()))?;
    Ok(Json(json!({
        "order": order,
        "payment": or_unavailable(payment),
        "shipping": or_unavailable(shipping),
        "recommendations": or_unavailable(recommendations),
    })))
}

/// A service that can be made to hang.
#[derive(Clone)]
struct Dependency {
    name: &'static str,
    hangs: watch::Sender<bool>,
    under_way: watch::Sender<usize>,
}

impl Dependency {
    fn new(name: &'static str) -> Self {
        Self { name, hangs: watch::Sender::new(false), under_way: watch::Sender::new(0) }
    }

    async fn start(&self) -> anyhow::Result<SocketAddr> {
        serve(Router::new().route("/orders/{id}", get(answer)).with_state(self.clone())).await
    }
}

async fn answer(State(dependency): State<Dependency>, Path(id): Path<u64>) -> Json<Value> {
    dependency.under_way.send_modify(|count| *count += 1);
    let _ = dependency.hangs.subscribe().wait_for(|hangs| !*hangs).await;
    Json(json!({ "from": dependency.name, "order": id }))
}

async fn serve(router: Router) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(addr)
}

/// The page as a customer sees it, and how long it took.
async fn page(customer: &Client) -> anyhow::Result<(Value, Duration)> {
    let begun = Instant::now();
    let page = customer.get("http://details/orders/7").send().await?.error_for_status()?.json().await?;
    Ok((page, begun.elapsed()))
}

/// Whether every part but those named is there.
fn complete_but(page: &Value, missing: &[(&str, &str)]) -> anyhow::Result<()> {
    for name in ["order", "payment", "shipping", "recommendations"] {
        match missing.iter().find(|(who, _)| *who == name) {
            None => ensure!(page[name]["from"] == name, "{name} is missing: {page}"),
            Some((_, why)) => ensure!(page[name]["unavailable"] == *why, "{name} is not marked as {why}: {page}"),
        }
    }
    Ok(())
}

/// The page's service, with its dependencies where they are said to be.
async fn start(dependencies: &[(&str, SocketAddr)]) -> anyhow::Result<Client> {
    let mut builder = Client::builder().policies_from(policies());
    for (name, addr) in dependencies {
        builder = builder.service(name, [*addr]);
    }
    let details = serve(Router::new().route("/orders/{id}", get(details)).with_state(builder.build().await?)).await?;
    Ok(Client::builder().service("details", [details]).build().await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let [order, payment, shipping, recommendations] =
        ["order", "payment", "shipping", "recommendations"].map(Dependency::new);
    let mut addrs = Vec::new();
    for dependency in [&order, &payment, &shipping, &recommendations] {
        addrs.push((dependency.name, dependency.start().await?));
    }
    let customer = start(&addrs).await?;

    let (answer, took) = page(&customer).await?;
    complete_but(&answer, &[])?;
    println!("healthy: all four parts after {took:.1?}");

    payment.hangs.send_replace(true);
    let (answer, took) = page(&customer).await?;
    complete_but(&answer, &[("payment", "timeout")])?;
    // The limit is exact; the rest is what a busy machine may need to notice.
    ensure!((PAYMENT..PAYMENT * 2).contains(&took), "payment has {PAYMENT:?}, the page took {took:?}");
    println!("payment hangs: marked as unavailable after {took:.1?}, the rest intact");
    payment.hangs.send_replace(false);

    // As many pages as recommendations has places, and each waits in its place.
    recommendations.hangs.send_replace(true);
    let before = *recommendations.under_way.borrow();
    let drowned: Vec<_> = (0..PLACES)
        .map(|_| {
            let customer = customer.clone();
            tokio::spawn(async move { page(&customer).await })
        })
        .collect();
    let full =
        async { recommendations.under_way.subscribe().wait_for(|count| *count == before + PLACES).await.map(drop) };
    tokio::time::timeout(Duration::from_secs(10), full).await.context("the bulkhead never filled")??;
    let others: Vec<_> = (0..40)
        .map(|_| {
            let customer = customer.clone();
            tokio::spawn(async move { page(&customer).await })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for other in others {
        let (answer, took) = other.await??;
        complete_but(&answer, &[("recommendations", "bulkhead")])?;
        slowest = slowest.max(took);
    }
    ensure!(slowest < Duration::from_secs(2), "recommendations hang, and slow a page down to {slowest:?}");
    let reached = *recommendations.under_way.borrow() - before;
    ensure!(reached == PLACES, "{reached} calls reached recommendations, which has {PLACES} places");
    println!("recommendations drowned: 40 pages complete without them, the slowest after {slowest:.1?}");
    recommendations.hangs.send_replace(false);
    for page in drowned {
        complete_but(&page.await??.0, &[])?;
    }
    println!("recommendations back: the pages that had a place are whole");

    // Nobody listens at an address that was free a moment ago.
    let nobody = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let gone: Vec<_> =
        addrs.iter().map(|(name, addr)| (*name, if *name == "recommendations" { nobody } else { *addr })).collect();
    let (answer, took) = page(&start(&gone).await?).await?;
    complete_but(&answer, &[("recommendations", "failure")])?;
    println!("recommendations absent: complete without them after {took:.1?}");
    Ok(())
}
