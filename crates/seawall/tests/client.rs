//! The client against real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::stream;
use http_body_util::BodyExt;
use seawall::Client;
use seawall::client::{BuildError, ClientBuilder, Error};
use seawall::resilience::PolicyConfig;
use seawall::types::Period;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower_service::Service;

const LONG: Duration = Duration::from_secs(20);

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    addr
}

fn builder(addr: SocketAddr, policy: Value) -> ClientBuilder {
    Client::builder().service("payment", [addr]).policies_from(json!({ "payment": policy }))
}

async fn client(addr: SocketAddr, policy: Value) -> Client {
    builder(addr, policy).build().await.unwrap()
}

/// Waits for something that has to come true.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers with what it was asked.
async fn echo(method: Method, uri: Uri, headers: HeaderMap, body: String) -> axum::Json<Value> {
    let headers: BTreeMap<_, _> = headers.iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap())).collect();
    axum::Json(json!({ "method": method.as_str(), "uri": uri.to_string(), "headers": headers, "body": body }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_arrives_as_it_was_made() {
    let client = client(serve(Router::new().fallback(any(echo))).await, json!({})).await;
    let seen =
        async |request: seawall::client::RequestBuilder| request.send().await.unwrap().json::<Value>().await.unwrap();

    let all = client
        .post("http://payment/charges?a=1")
        .query(&[("b", "x y"), ("c", "ü&")])
        .header("x-one", "1")
        .header("content-length", "9000")
        .header("transfer-encoding", "chunked")
        .header("host", "elsewhere")
        .bearer_auth("secret")
        .idempotency_key("order-7/pay")
        .json(&json!({ "amount": 12 }));
    let all = seen(all).await;
    assert_eq!((&all["method"], &all["body"]), (&json!("POST"), &json!(r#"{"amount":12}"#)));
    assert_eq!(all["uri"], "/charges?a=1&b=x+y&c=%C3%BC%26");
    for (name, value) in [
        ("x-one", "1"),
        ("host", "payment"),
        ("content-length", "13"),
        ("content-type", "application/json"),
        ("authorization", "Bearer secret"),
        ("idempotency-key", "order-7/pay"),
    ] {
        assert_eq!(all["headers"][name], value, "{name}");
    }
    assert_eq!(all["headers"]["transfer-encoding"], Value::Null);
    assert!(all["headers"]["traceparent"].is_string());

    let form = seen(client.put("payment").form(&[("a", "1"), ("b", "&")])).await;
    assert_eq!((&form["uri"], &form["body"]), (&json!("/"), &json!("a=1&b=%26")));
    assert_eq!(form["headers"]["content-type"], "application/x-www-form-urlencoded");

    let mut headers = HeaderMap::new();
    headers.insert("x-one", "2".parse().unwrap());
    let other = seen(client.patch("payment/a").header("x-one", "1").headers(headers).body("raw")).await;
    assert_eq!((&other["headers"]["x-one"], &other["body"]), (&json!("2"), &json!("raw")));

    for (method, request) in [("GET", client.get("payment/x")), ("DELETE", client.delete("payment/x"))] {
        assert_eq!(seen(request).await["method"], method);
    }
    let head = client.head("payment/x").send().await.unwrap();
    assert_eq!((head.status(), head.service().as_str()), (StatusCode::OK, "payment"));
    assert_eq!(head.headers()["content-type"], "application/json");
    assert!(head.bytes().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_request_is_not_sent_and_says_why() {
    let client = client(serve(Router::new().fallback(any(echo))).await, json!({})).await;
    let bad = [(1, "a"), (2, "b")].into_iter().collect::<BTreeMap<_, _>>();
    for (request, says) in [
        (client.get("http://127.0.0.1:9000/x"), "is an address"),
        (client.get("payment/a/../b"), "`..` segment"),
        (client.get("payment/a/%2e%2e/b"), "`..` segment"),
        (client.get("payment").header("a b", "1"), "name is not valid"),
        (client.get("payment").header("a", "\n"), "value of `a`"),
        (client.get("payment").idempotency_key("\n"), "idempotency key"),
        (client.get("payment").bearer_auth("\n"), "token"),
        (client.get("payment").json(&BTreeMap::from([((1, 2), 3)])), "no JSON"),
        (client.get("payment").form(&[1]), "no form"),
        (client.get("payment").query(&[bad]), "query"),
        (client.request(Method::CONNECT, "payment"), "CONNECT"),
    ] {
        let error = request.send().await.unwrap_err();
        assert!(matches!(error, Error::Request { .. }) && error.is_unsent() && !error.is_unknown(), "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
    }
    let error = client.get("stock/1").send().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }) && error.is_unsent() && error.service() == "stock", "{error}");
}

#[tokio::test]
async fn a_mistake_in_the_configuration_makes_no_client() {
    let policy = PolicyConfig { timeout: Some(Period::secs(0)), ..PolicyConfig::default() };
    let built = Client::builder()
        .control(["localhost"])
        .service("Payment", ["127.0.0.1:9".parse().unwrap()])
        .service("order", ["127.0.0.1:0".parse().unwrap()])
        .service("stock", [])
        .policies_from(json!({ "order": { "breaker": { "window": "many" } } }))
        .policy("payment", policy)
        .name("a b")
        .build()
        .await;
    let BuildError::Invalid { problems } = built.unwrap_err() else { panic!("not the problems") };
    for (problem, says) in problems.iter().zip([
        "control: `localhost`",
        "services: `Payment`",
        "services.order: port 0",
        "services.stock: has no address",
        "policies.order.breaker.window: `many`",
        "policies.payment.timeout: must be",
        "name: `a b`",
    ]) {
        assert!(problem.starts_with(says), "{problem:?} does not start with {says:?}");
    }
    assert!(Client::builder().build().await.unwrap_err().to_string().contains("nobody to call"));
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let away = Client::builder().control([gone]).start_within(Duration::from_millis(50)).build().await.unwrap_err();
    assert!(away.to_string().contains(&gone.to_string()), "{away}");
}

#[tokio::test]
async fn answers_are_read_whole_within_a_limit_or_piece_by_piece() {
    let chunked = || async {
        let piece = || Ok::<_, Infallible>(Bytes::from(vec![b'x'; 1000]));
        Body::from_stream(stream::iter((0..10).map(move |_| piece())))
    };
    let router = Router::new()
        .route("/known", get(|| async { vec![b'x'; 10_000] }))
        .route("/chunked", get(chunked))
        .route("/text", get(|| async { "no json" }));
    let addr = serve(router).await;
    let client = builder(addr, json!({ "bulkhead": { "concurrent": 1 } })).body_limit(9_999).build().await.unwrap();
    for path in ["known", "chunked"] {
        let url = format!("http://payment/{path}");
        let error = client.get(&url).send().await.unwrap().bytes().await.unwrap_err();
        assert!(
            matches!(error, Error::TooLarge { limit: 9_999, .. }) && error.to_string().contains("payment"),
            "{error}"
        );
        assert_eq!(client.get(&url).body_limit(10_000).send().await.unwrap().bytes().await.unwrap().len(), 10_000);
        let mut response = client.get(&url).send().await.unwrap();
        let mut length = 0;
        while let Some(piece) = response.chunk().await.unwrap() {
            length += piece.len();
        }
        assert_eq!(length, 10_000);
        let body = client.get(&url).send().await.unwrap().into_body();
        let pieces: Vec<_> = futures_util::StreamExt::collect(body).await;
        assert_eq!(pieces.into_iter().map(|piece| piece.unwrap().len()).sum::<usize>(), 10_000);
    }
    let error = client.get("payment/text").send().await.unwrap().json::<Value>().await.unwrap_err();
    assert!(matches!(error, Error::Decode { .. }) && error.to_string().contains("`payment`"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
    let error = client.get("payment/nope").send().await.unwrap().error_for_status().unwrap_err();
    assert!(error.status() == Some(StatusCode::NOT_FOUND) && !error.is_unknown(), "{error}");
}

#[tokio::test]
async fn a_timeout_bounds_head_and_body_and_travels_on() {
    let slow_body = || async {
        let rest = async {
            tokio::time::sleep(LONG).await;
            Ok::<_, Infallible>(Bytes::from_static(b"late"))
        };
        Body::from_stream(stream::once(rest))
    };
    let slow_head = || async { tokio::time::sleep(LONG).await };
    let router = Router::new().route("/head", get(slow_head)).route("/body", get(slow_body)).fallback(any(echo));
    let client = client(serve(router).await, json!({ "timeout": "10s", "retry": { "attempts": 1 } })).await;
    let limit = Duration::from_millis(200);
    for path in ["head", "body"] {
        let begun = Instant::now();
        let result = async { client.get(format!("payment/{path}")).timeout(limit).send().await?.bytes().await };
        let error = result.await.unwrap_err();
        assert!(error.is_timeout() && error.is_unknown() && !error.is_unsent(), "{path}: {error:?}");
        assert!((limit..Duration::from_secs(5)).contains(&begun.elapsed()), "{path}: {:?}", begun.elapsed());
    }
    let told = async |request: seawall::client::RequestBuilder| -> u64 {
        let seen: Value = request.send().await.unwrap().json().await.unwrap();
        seen["headers"]["seawall-timeout-ms"].as_str().unwrap().parse().unwrap()
    };
    assert!(told(client.get("payment")).await > 5_000, "the policy's");
    assert!(told(client.get("payment").timeout(Duration::from_secs(5))).await <= 5_000, "the caller's");
    assert!(told(client.get("payment").timeout(LONG)).await <= 10_000, "never more than the policy's");
    let handed_on = client.get("payment").header("seawall-timeout-ms", "3000").timeout(Duration::from_secs(5));
    assert!(told(handed_on).await <= 3_000, "whoever called us gives less");
}

/// Counts its calls, and fails them on demand.
fn moody(calls: Arc<AtomicUsize>, status: Arc<AtomicUsize>) -> Router {
    Router::new().fallback(any(move || async move {
        calls.fetch_add(1, Ordering::SeqCst);
        let status = StatusCode::from_u16(status.load(Ordering::SeqCst) as u16).unwrap();
        (status, "some body that nobody reads").into_response()
    }))
}

#[tokio::test]
async fn the_breaker_hears_of_answers_that_nobody_reads() {
    let (calls, status) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(200)));
    let addr = serve(moody(calls.clone(), status.clone())).await;
    let breaker =
        json!({ "breaker": { "window": "10 calls", "minimum_calls": 10, "open_for": "300ms", "half_open_calls": 1 } });
    let client = client(addr, breaker).await;
    // Ten good answers count as such although nobody reads them; then five bad ones are half of the window.
    for _ in 0..10 {
        assert_eq!(client.post("payment").send().await.unwrap().status(), 200);
    }
    status.store(500, Ordering::SeqCst);
    for _ in 0..5 {
        assert!(client.post("payment").send().await.unwrap().error_for_status().is_err());
    }
    let error = client.post("payment").send().await.unwrap_err();
    let rejected = error.rejected().unwrap();
    assert_eq!((rejected.policy, &*rejected.instance, &*rejected.reason), ("breaker", "payment", "open"));
    assert!(rejected.retry_after.unwrap() <= Duration::from_millis(300));
    assert!(error.is_rejected() && error.is_unsent() && !error.is_timeout(), "{error:?}");
    assert!(error.to_string().contains("the breaker of `payment`") && error.to_string().contains("safe"), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 15, "an open breaker sends nothing");
    status.store(200, Ordering::SeqCst);
    until("a probe has closed it", async || client.get("payment").send().await.is_ok()).await;
    assert!(client.get("payment").send().await.is_ok());
}

#[tokio::test]
async fn a_response_holds_its_place_until_it_is_read_or_dropped() {
    let endless =
        || async { Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![0; 1000])))) };
    let router = Router::new().route("/endless", get(endless)).fallback(any(|| async { "short" }));
    let client = client(serve(router).await, json!({ "bulkhead": { "concurrent": 1 } })).await;
    for _ in 0..20 {
        let mut endless = client.get("payment/endless").send().await.unwrap();
        assert!(endless.chunk().await.unwrap().is_some());
        let error = client.get("payment").send().await.unwrap_err();
        let rejected = error.rejected().unwrap();
        assert_eq!((rejected.policy, &*rejected.instance, error.is_unsent()), ("bulkhead", "payment", true));
        drop(endless);
        // The connection whose body was left is not one that another call stumbles over.
        assert_eq!(client.get("payment").send().await.unwrap().text().await.unwrap(), "short");
    }
}

#[tokio::test]
async fn a_body_that_takes_too_long_counts_against_the_service_unless_the_caller_gives_less_time() {
    let stuck = || async { Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()) };
    let addr = serve(Router::new().fallback(any(stuck))).await;
    let breaker = json!({ "window": "1 calls", "minimum_calls": 1, "open_for": "1m" });
    let client = client(addr, json!({ "timeout": "300ms", "breaker": breaker })).await;
    let read = async |limit: Duration| client.get("payment").timeout(limit).send().await?.bytes().await;
    for _ in 0..3 {
        let error = read(Duration::from_millis(100)).await.unwrap_err();
        assert!(error.is_timeout() && error.is_unknown(), "{error}");
    }
    assert!(read(LONG).await.unwrap_err().is_timeout());
    assert_eq!(read(LONG).await.unwrap_err().rejected().unwrap().policy, "breaker");
}

#[tokio::test]
async fn the_tasks_own_deadline_and_chain_are_passed_on() {
    let client = client(serve(Router::new().fallback(echo)).await, json!({ "timeout": "10s" })).await;
    let seen = async || client.get("payment").send().await.unwrap().json::<Value>().await.unwrap()["headers"].clone();
    let near = seawall::resilience::Deadline::after(Duration::from_secs(2));
    let chain = seawall::resilience::Chain::new(3);
    let headers = seawall::resilience::deadline::scope(near, chain.scope(seen())).await;
    let left: u64 = headers["seawall-timeout-ms"].as_str().unwrap().parse().unwrap();
    assert!((1..=2000).contains(&left), "{left}");
    assert_eq!(headers["seawall-retries-left"], "3");
    assert_eq!(seen().await.get("seawall-retries-left"), None, "out of the chain");
    let over = seawall::resilience::Deadline::after(Duration::ZERO);
    let error = seawall::resilience::deadline::scope(over, client.get("payment").send()).await.unwrap_err();
    assert!(error.is_timeout() && error.is_unsent(), "{error:?}");
}

#[tokio::test]
async fn one_that_waits_for_a_place_and_is_dropped_leaves_the_queue() {
    let addr = serve(Router::new().fallback(any(|| async { "short" }))).await;
    let client =
        client(addr, json!({ "timeout": "20s", "bulkhead": { "concurrent": 1, "wait": "20s", "queue": 1 } })).await;
    let held = client.get("payment").send().await.unwrap();
    for _ in 0..3 {
        let waiting = tokio::time::timeout(Duration::from_millis(20), client.get("payment").send());
        assert!(waiting.await.is_err(), "it waits for the place, in the only place of the queue");
    }
    let (waited, ()) = tokio::join!(client.get("payment").send(), async { drop(held) });
    assert_eq!(waited.unwrap().text().await.unwrap(), "short");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_dropped_at_any_await_point_gives_back_what_it_took() {
    let two_pieces = || async {
        tokio::task::yield_now().await;
        Body::from_stream(stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            (n < 2).then(|| (Ok::<_, Infallible>(Bytes::from_static(b"piece")), n + 1))
        }))
    };
    let addr = serve(Router::new().fallback(any(two_pieces))).await;
    let policy = json!({ "timeout": "20s", "bulkhead": { "concurrent": 1 }, "breaker": { "minimum_calls": 1, "window": "1 calls", "open_for": "1ms", "half_open_calls": 1 } });
    let client = client(addr, policy).await;
    // So many polls, then no more; at last the call needs fewer than it is given. Each call finds the only place free that
    // the one before it had, or it fails.
    let mut whole = 0;
    for polls in 0.. {
        assert!(polls < 10_000, "the call never ends");
        let mut call = pin!(async { client.post("payment").body("x").send().await?.text().await });
        let mut left = polls;
        let some_polls = poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(None);
            }
            left -= 1;
            match call.as_mut().poll(context) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending if left == 0 => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        if let Some(result) = tokio::time::timeout(LONG, some_polls).await.unwrap() {
            assert_eq!(result.unwrap(), "piecepiece");
            whole += 1;
        }
        if whole > 20 {
            break;
        }
    }
    // The only place is free, and the breaker lets calls pass.
    assert_eq!(client.get("payment").send().await.unwrap().text().await.unwrap(), "piecepiece");
}

#[tokio::test]
async fn another_instance_is_tried_and_a_dead_service_is_told() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let addr = serve(Router::new().fallback(any(echo))).await;
    let client = Client::builder().service("payment", [gone, addr]).service("stock", [gone]).build().await.unwrap();
    for _ in 0..20 {
        assert_eq!(client.post("payment").body("once").send().await.unwrap().status(), 200, "never sent, so repeated");
    }
    let error = client.get("stock").send().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }) && error.is_unsent(), "{error:?}");
    assert!(
        error.to_string().contains("`stock` cannot be reached") && error.to_string().contains(&gone.to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn a_hop_that_rejects_is_no_answer() {
    let reject = |uri: Uri| async move {
        let mark = |sent: u8, who: &str| format!("breaker; instance=\"{who}\"; retry_after=3; sent=?{sent}");
        let (mark, text) = match uri.path() {
            "/unsent" => (mark(0, "payment"), "breaker of `payment`: open; try again in 3.0 s\n"),
            "/sent" => (mark(1, "payment"), ""),
            _ => (mark(0, "stock"), "payment's own answer"),
        };
        Response::builder().status(503).header("seawall-rejected", mark).body(Body::from(text)).unwrap()
    };
    let addr = serve(Router::new().fallback(any(reject))).await;
    let client = client(addr, json!({ "retry": { "attempts": 1 } })).await;
    for (path, unsent, reason) in [("unsent", true, "open"), ("sent", false, "so says a hop on the way")] {
        let error = client.get(format!("payment/{path}")).send().await.unwrap_err();
        let rejected = error.rejected().unwrap();
        assert_eq!((rejected.policy, &*rejected.instance, &*rejected.reason), ("breaker", "payment", reason));
        assert_eq!(rejected.retry_after, Some(Duration::from_secs(3)));
        assert_eq!((error.is_unsent(), error.is_unknown()), (unsent, !unsent), "{error:?}");
    }
    // Payment hands on what it was told of stock: that is its own answer.
    assert_eq!(client.get("payment/other").send().await.unwrap().status(), 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_share_connections_and_the_last_one_closes_them() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(listener.local_addr().unwrap(), json!({})).await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let mut requests = 0;
        // Each request is small enough to come in one piece, or it ends in one.
        loop {
            match stream.read(&mut buffer).await.unwrap() {
                0 => return requests,
                n if buffer[..n].ends_with(b"\r\n\r\n") => {
                    requests += 1;
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
                _ => {}
            }
        }
    });
    for n in 0..10 {
        let clone = client.clone();
        let call = tokio::spawn(async move {
            let response = clone.get("payment").send().await.unwrap();
            // An answer that is here already may be left unread without losing the connection.
            if n % 2 == 0 {
                assert_eq!(response.text().await.unwrap(), "ok");
            }
        });
        call.await.unwrap();
    }
    assert!(!server.is_finished());
    drop(client);
    assert_eq!(
        tokio::time::timeout(LONG, server).await.unwrap().unwrap(),
        10,
        "all on one connection, which is closed"
    );
}

#[tokio::test]
async fn it_is_a_tower_service() {
    let mut client = client(serve(Router::new().fallback(any(echo))).await, json!({})).await;
    poll_fn(|context| Service::<Request<&'static str>>::poll_ready(&mut client, context)).await.unwrap();
    let request = Request::put("http://payment/a?b=1").header("x-one", "1").body("text").unwrap();
    let response = client.call(request).await.unwrap();
    let seen: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((&seen["method"], &seen["uri"], &seen["body"]), (&json!("PUT"), &json!("/a?b=1"), &json!("text")));
    let refused = client.call(Request::get("http://127.0.0.1:1/").body("").unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("is an address"));
}
