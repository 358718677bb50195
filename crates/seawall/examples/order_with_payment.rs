//! An order service that calls payment behind a circuit breaker, with a time limit and a fallback.
//!
//! Whatever becomes of payment, an order is taken: `paid` when payment says so, else `payment pending`, to be settled
//! later under the same idempotency key. Payment is first well, then slow, then failing, then well again; each time the
//! example asserts what the customer sees, and how many calls reach payment.
//!
//! ```console
//! $ cargo run -p seawall --example order_with_payment
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use seawall::Client;
use seawall::client::Error;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// An order waits no longer for payment.
const LIMIT: Duration = Duration::from_millis(400);

/// The order service: this is the part to copy.
#[derive(Clone)]
struct Shop {
    client: Client,
    next: Arc<AtomicU64>,
}

impl Shop {
    async fn new(payment: SocketAddr) -> anyhow::Result<Self> {
        // In a fleet this is `.control(["127.0.0.1:7400"])`; the policies are those of `seawall.yaml`.
        let client = Client::builder()
            .service("payment", [payment])
            .policies_from(json!({
                "payment": {
                    "timeout": "400ms",
                    "retry": { "attempts": 1 },
                    "breaker": { "failure_rate": "50%", "window": "10 calls", "minimum_calls": 5, "open_for": "1s", "half_open_calls": 1 }
                }
            }))
            .build()
            .await?;
        Ok(Self { client, next: Arc::default() })
    }

    /// Charges, or says why the charge is pending.
    async fn charge(&self, order: u64) -> Result<Value, Error> {
        let request = self.client.post("http://payment/charges").json(&json!({ "order": order, "amount": 1200 }));
        let response = request.idempotency_key(format!("order-{order}/pay")).send().await?;
        response.error_for_status()?.json().await
    }
}

async fn place(State(shop): State<Shop>) -> (StatusCode, Json<Value>) {
    let order = shop.next.fetch_add(1, Ordering::Relaxed);
    match shop.charge(order).await {
        Ok(charge) => (StatusCode::CREATED, Json(json!({ "order": order, "status": "paid", "charge": charge["id"] }))),
        // The fallback. It knows what failed: after `unsent` payment knows nothing of the charge, otherwise it may.
        Err(error) => {
            let why = match &error {
                Error::Rejected(rejected) => rejected.policy,
                error if error.is_timeout() => "timeout",
                _ => "failure",
            };
            let charged = if error.is_unsent() { "no" } else { "perhaps" };
            let order = json!({ "order": order, "status": "payment pending", "why": why, "charged": charged });
            (StatusCode::ACCEPTED, Json(order))
        }
    }
}

/// How payment feels.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    Slow,
    Failing,
}

/// A payment service that can be made ill, and counts what reaches it.
#[derive(Clone)]
struct Payment {
    mood: watch::Sender<Mood>,
    calls: Arc<AtomicUsize>,
}

impl Payment {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn charge(State(payment): State<Payment>) -> (StatusCode, Json<Value>) {
    let id = payment.calls.fetch_add(1, Ordering::SeqCst);
    let mood = *payment.mood.borrow();
    match mood {
        Mood::Well => (StatusCode::OK, Json(json!({ "id": id }))),
        Mood::Failing => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": "out of order" }))),
        Mood::Slow => {
            // Slow until it is well again, or nobody waits any more.
            let _ = payment.mood.subscribe().wait_for(|mood| *mood != Mood::Slow).await;
            (StatusCode::OK, Json(json!({ "id": id })))
        }
    }
}

async fn serve(router: Router) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(addr)
}

/// A customer's order: what is answered, and after how long.
async fn order(customer: &Client) -> anyhow::Result<(Value, Duration)> {
    let begun = Instant::now();
    let response = customer.post("http://order/orders").send().await?.error_for_status()?;
    Ok((response.json().await?, begun.elapsed()))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let payment = Payment { mood: watch::Sender::new(Mood::Well), calls: Arc::default() };
    let router = Router::new().route("/charges", post(charge)).with_state(payment.clone());
    let shop = Shop::new(serve(router).await?).await?;
    let shop = serve(Router::new().route("/orders", post(place)).with_state(shop)).await?;
    let customer = Client::builder().service("order", [shop]).build().await?;

    let (answer, took) = order(&customer).await?;
    ensure!(answer["status"] == "paid", "payment is well, yet: {answer}");
    println!("healthy: {answer} after {took:.1?}");

    payment.mood.send_replace(Mood::Slow);
    let (answer, took) = order(&customer).await?;
    ensure!(answer["why"] == "timeout" && answer["charged"] == "perhaps", "no time limit was hit: {answer}");
    ensure!((LIMIT..LIMIT * 5).contains(&took), "the limit of {LIMIT:?} was hit after {took:?}");
    println!("slow: {answer} after {took:.1?}");

    payment.mood.send_replace(Mood::Failing);
    let before = payment.calls();
    let opened = async {
        loop {
            let (answer, took) = order(&customer).await?;
            ensure!(answer["status"] == "payment pending", "payment fails, yet: {answer}");
            if answer["why"] == "breaker" {
                return Ok((answer, took));
            }
        }
    };
    let (answer, took) = tokio::time::timeout(Duration::from_secs(10), opened).await.context("never open")??;
    let failed = payment.calls() - before;
    ensure!(failed <= 10, "a window of 10 calls let {failed} failures through");
    ensure!(answer["charged"] == "no" && took < LIMIT, "open, the fallback is immediate: {answer} after {took:?}");
    println!("failing: {failed} calls failed, then the breaker opened: {answer} after {took:.1?}");

    payment.mood.send_replace(Mood::Well);
    let recovered = async {
        loop {
            let (answer, _) = order(&customer).await?;
            if answer["status"] == "paid" {
                return anyhow::Ok(answer);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), recovered).await.context("never closed")??;
    // The first paid order was the probe; with it the breaker is closed.
    let before = payment.calls();
    for _ in 0..10 {
        let (answer, _) = order(&customer).await?;
        ensure!(answer["status"] == "paid", "payment has recovered, yet: {answer}");
    }
    ensure!(payment.calls() == before + 10, "each order is charged once");
    println!("recovered: {answer}");
    Ok(())
}
