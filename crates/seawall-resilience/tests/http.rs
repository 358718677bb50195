//! Guards around HTTP servers and clients, over real sockets: axum applies its layers anew for each request, and an answer
//! is over when its last byte has passed.
#![cfg(not(feature = "loom"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::error_handling::HandleErrorLayer;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use seawall_resilience::breaker::State;
use seawall_resilience::http::{Head, call, failures};
use seawall_resilience::layer::{BreakerLayer, HttpGuardLayer, errors};
use seawall_resilience::{Breaker, Bulkhead, CallError, Clock, Guard, Outcome, Policies, PolicyName, Report, deadline};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

#[expect(dead_code, reason = "its main is for those who run it by hand")]
#[path = "../examples/axum.rs"]
mod axum_example;
#[expect(dead_code, reason = "its main is for those who run it by hand")]
#[path = "../examples/reqwest.rs"]
mod reqwest_example;

/// Breakers that open at four failures of ten, and whatever else is said.
fn guard(policy: serde_json::Value) -> Arc<Guard> {
    let mut whole = serde_json::json!({ "breaker": { "window": "10 calls", "minimum_calls": 4 } });
    whole.as_object_mut().unwrap().append(&mut policy.as_object().unwrap().clone());
    let policies: Policies = serde_json::from_value(serde_json::json!({ "payment": whole })).unwrap();
    assert_eq!(policies.problems(), vec![]);
    Arc::new(Guard::new("payment".into(), policies.of("payment"), Clock::default(), Arc::default()))
}

/// Serves until the test ends; the address.
async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

/// Waits for what has to come true.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited).await.expect(what);
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// Counts how often a layer is applied.
#[derive(Clone)]
struct Counted<L>(L, Arc<AtomicU32>);

impl<S, L: Layer<S>> Layer<S> for Counted<L> {
    type Service = L::Service;

    fn layer(&self, inner: S) -> L::Service {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.layer(inner)
    }
}

/// A hundred requests that fail; how many the handler has seen, and how often the layer was applied.
async fn storm<L>(layer: L, reached: Arc<AtomicU32>, mark: bool) -> (u32, u32)
where
    L: Layer<axum::routing::Route> + Clone + Send + Sync + 'static,
    L::Service: tower::Service<axum::extract::Request, Error = Infallible> + Clone + Send + Sync + 'static,
    <L::Service as tower::Service<axum::extract::Request>>::Response: axum::response::IntoResponse + 'static,
    <L::Service as tower::Service<axum::extract::Request>>::Future: Send + 'static,
{
    let applied = Arc::new(AtomicU32::new(0));
    let app = {
        let reached = reached.clone();
        let handler = move || {
            reached.fetch_add(1, Ordering::Relaxed);
            async { StatusCode::INTERNAL_SERVER_ERROR }
        };
        Router::new().route("/", get(handler)).layer(Counted(layer, applied.clone()))
    };
    let address = serve(app).await;
    for number in 0..100 {
        // A new client each time: no connection is shared, either.
        let response = reqwest::Client::new().get(&address).send().await.unwrap();
        if number < 4 {
            assert_eq!(response.status(), 500);
        } else {
            assert_eq!(response.status(), 503);
            assert_eq!(header(&response, "seawall-rejected").starts_with("breaker; instance=\"payment\""), mark);
        }
    }
    (reached.load(Ordering::Relaxed), applied.load(Ordering::Relaxed))
}

/// tower-resilience 4, acton-service#44: inert under axum, since its state is made where the layer is applied.
#[tokio::test]
async fn axum_applies_layers_per_request_and_the_state_is_shared() {
    let guard = guard(serde_json::json!({}));
    let (reached, applied) = storm(HttpGuardLayer::new(guard.clone()), Arc::default(), true).await;
    assert_eq!((reached, guard.breaker.get().unwrap().state()), (4, State::Open));
    assert!(applied > 1, "axum has applied it {applied} times: this test is about more than one");
}

/// The same for a single layer. Its classifier is a closure, for which tower-resilience's layer is not `Clone`, so that
/// axum refuses it.
#[tokio::test]
async fn axum_takes_a_breaker_layer_with_a_closure() {
    let own = guard(serde_json::json!({}));
    let breaker: &'static Breaker = Box::leak(Box::new(Breaker::new(
        "payment".into(),
        own.policy().breaker.clone().unwrap(),
        Clock::default(),
        Box::new(|_| {}),
    )));
    let bad = StatusCode::INTERNAL_SERVER_ERROR;
    let judge = move |result: &Result<Response, CallError<Infallible>>| -> Report {
        match result {
            Ok(response) if response.status() == bad => Outcome::Failure.into(),
            _ => Outcome::Success.into(),
        }
    };
    let turned_away = |_: CallError<Infallible>| async { StatusCode::SERVICE_UNAVAILABLE };
    let layer = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(turned_away))
        .layer(BreakerLayer::new(breaker).classify(judge))
        .layer(errors())
        .into_inner();
    let (reached, applied) = storm(layer, Arc::default(), false).await;
    assert_eq!((reached, breaker.state()), (4, State::Open));
    assert!(applied > 1, "{applied}");
}

#[tokio::test]
async fn a_server_answers_for_its_guard() {
    let guard = axum_example::guard();
    let address = serve(axum_example::app(guard.clone())).await;
    let client = reqwest::Client::new();
    let ask = |path: &str| client.get(format!("{address}{path}"));
    assert_eq!(ask("/quote").send().await.unwrap().text().await.unwrap(), "42");

    // The time that is left is the smaller of what the caller says and what the policy says, and is ambient.
    let left = async |millis: &str| {
        let response = ask("/left").header("seawall-timeout-ms", millis).send().await.unwrap();
        response.text().await.unwrap().parse::<u32>().unwrap()
    };
    assert!((1..=1500).contains(&left("1500").await));
    assert!((1501..=2000).contains(&left("90000").await));
    assert!((1501..=2000).contains(&left("garbage").await));

    // Out of time: the handler may have done it.
    let response = ask("/slow").header("seawall-timeout-ms", "30").send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), header(&response, "seawall-rejected")),
        (504, "timeout; instance=\"quotes\"; sent=?1")
    );
    // That was the caller's doing, and speaks against nobody.
    let counts = guard.breaker.get().unwrap().counts();
    assert_eq!((counts.failed, counts.cancelled), (0, 1));
    // No time to begin with.
    let response = ask("/slow").header("seawall-timeout-ms", "0").send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), header(&response, "seawall-rejected")),
        (504, "timeout; instance=\"quotes\"; sent=?0")
    );

    // Two seconds are the policy's own.
    let response = ask("/slow").send().await.unwrap();
    assert_eq!((response.status().as_u16(), guard.breaker.get().unwrap().counts().failed), (504, 1));

    // Over the rate.
    let limiter = guard.rate_limit.get().unwrap();
    limiter.drain();
    let response = loop {
        let response = ask("/quote").send().await.unwrap();
        if response.status() != StatusCode::OK {
            break response;
        }
        limiter.drain();
    };
    assert_eq!((response.status().as_u16(), header(&response, "retry-after")), (429, "1"));
    assert_eq!(header(&response, "seawall-rejected"), "rate-limit; instance=\"quotes\"; retry_after=1; sent=?0");

    // Open.
    guard.breaker.get().unwrap().set(State::Open);
    until("the rate has come back", || limiter.available() > 0).await;
    let response = ask("/quote").send().await.unwrap();
    assert_eq!((response.status().as_u16(), header(&response, "retry-after")), (503, "30"));
    assert_eq!(response.text().await.unwrap(), "breaker of `quotes` rejects: open; try again in 30 s\n");
}

/// What strangers say is not taken.
#[tokio::test]
async fn strangers_decide_nothing() {
    let shares = serde_json::json!({ "concurrent": 2, "shares": { "normal": "50%" } });
    let guard = guard(serde_json::json!({ "timeout": "9s", "bulkhead": shares }));
    let _place = Bulkhead::try_acquire(guard.bulkhead.get().unwrap()).unwrap();
    let left = service_fn(|_: http::Request<Body>| async {
        let left = deadline::current().unwrap().left().as_secs();
        Ok::<_, Infallible>(Response::new(Body::from(left.to_string())))
    });
    let request = || {
        let request = http::Request::builder().header("seawall-timeout-ms", "1000");
        request.header("seawall-priority", "critical").body(Body::empty()).unwrap()
    };
    let trusted = HttpGuardLayer::new(guard.clone()).layer(left);
    let response = trusted.oneshot(request()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "0", "less than the second it had");
    let strange = HttpGuardLayer::new(guard.clone()).strangers().layer(left);
    let response = strange.oneshot(request()).await.unwrap();
    assert_eq!(response.headers()["seawall-rejected"], "bulkhead; instance=\"payment\"; sent=?0");
}

type Piece = Result<http_body::Frame<Bytes>, &'static str>;

/// A body whose pieces are sent by the test.
fn body(mut pieces: mpsc::UnboundedReceiver<Piece>) -> Body {
    Body::new(StreamBody::new(futures_util::stream::poll_fn(move |cx| pieces.poll_recv(cx))))
}

fn piece() -> Piece {
    Ok(http_body::Frame::data(Bytes::from_static(b"piece")))
}

/// A call lasts until the last byte: its place is taken till then, and how it went is decided there.
#[tokio::test]
async fn what_a_call_holds_travels_in_the_body_of_its_answer() {
    let trailers = |status: &'static str| {
        let status = ("grpc-status".parse().unwrap(), status.parse().unwrap());
        Ok(http_body::Frame::trailers([status].into_iter().collect()))
    };
    for (kind, pieces, succeeded, failed, cause) in [
        ("text/plain", vec![piece(), piece()], 1, 0, ""),
        ("text/plain", vec![piece(), Err("reset")], 0, 1, "broke off"),
        ("application/grpc", vec![piece(), trailers("0")], 1, 0, ""),
        ("application/grpc", vec![piece(), trailers("14")], 0, 1, "grpc unavailable"),
    ] {
        let guard = guard(serde_json::json!({ "bulkhead": { "concurrent": 1 } }));
        let (breaker, bulkhead) = (guard.breaker.get().unwrap(), guard.bulkhead.get().unwrap());
        let (send, receive) = mpsc::unbounded_channel();
        let receive = Arc::new(std::sync::Mutex::new(Some(receive)));
        let handler = service_fn(move |_: http::Request<Body>| {
            let body = body(receive.lock().unwrap().take().expect("it is called once"));
            let response = Response::builder().header("content-type", kind).body(body);
            std::future::ready(Ok::<_, Infallible>(response.unwrap()))
        });
        let service = HttpGuardLayer::new(guard.clone()).layer(handler);
        let response = service.clone().oneshot(http::Request::new(Body::empty())).await.unwrap();
        assert_eq!((bulkhead.in_use(), breaker.sums().calls), (1, 0), "the head is not the end");
        let full = service.oneshot(http::Request::new(Body::empty())).await.unwrap();
        assert_eq!(full.headers()["seawall-rejected"], "bulkhead; instance=\"payment\"; sent=?0");
        for piece in pieces {
            send.send(piece).unwrap();
        }
        drop(send);
        let mut body = response.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        let sums = breaker.sums();
        assert_eq!((bulkhead.in_use(), sums.calls - sums.failed, sums.failed), (0, succeeded, failed), "{cause}");
        assert_eq!(breaker.bad_calls().last().map_or("", |bad| bad.cause), cause);
    }
}

/// A server stops asking a body once it has written the length that was promised, and drops it.
#[tokio::test]
async fn a_body_of_known_length_ends_with_its_last_byte() {
    let guard = guard(serde_json::json!({ "bulkhead": { "concurrent": 1 } }));
    let handler = || async {
        let (send, receive) = mpsc::unbounded_channel();
        send.send(piece()).unwrap();
        // As long as there is a sender the body itself does not end.
        Response::builder().header("content-length", 5).extension(send).body(body(receive)).unwrap()
    };
    let keep = axum::middleware::map_response(|mut response: Response| async move {
        let send = response.extensions_mut().remove::<mpsc::UnboundedSender<Piece>>();
        std::mem::forget(send);
        response
    });
    let app = Router::new().route("/", get(handler)).layer(HttpGuardLayer::new(guard.clone())).layer(keep);
    let address = serve(app).await;
    assert_eq!(reqwest::get(&address).await.unwrap().text().await.unwrap(), "piece");
    let breaker = guard.breaker.get().unwrap();
    until("it has ended", || guard.bulkhead.get().unwrap().in_use() == 0).await;
    assert_eq!((breaker.sums().calls, breaker.counts().ignored), (1, 0));
}

/// Who leaves has not seen how it ended; but a head that was a failure's has said it.
#[tokio::test]
async fn a_reader_who_leaves_gives_back_and_hides_no_failure() {
    for (status, failed, ignored) in [(200, 0, 1), (500, 1, 0)] {
        let guard = guard(serde_json::json!({ "bulkhead": { "concurrent": 1 } }));
        let (breaker, bulkhead) = (guard.breaker.get().unwrap(), guard.bulkhead.get().unwrap());
        let (send, receive) = mpsc::unbounded_channel();
        let receive = Arc::new(std::sync::Mutex::new(Some(receive)));
        let handler = move || {
            let body = body(receive.lock().unwrap().take().expect("it is called once"));
            std::future::ready(Response::builder().status(status).body(body).unwrap())
        };
        let app = Router::new().route("/", get(handler)).layer(HttpGuardLayer::new(guard.clone()));
        let address = serve(app).await;
        let mut response = reqwest::get(&address).await.unwrap();
        send.send(piece()).unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), "piece");
        assert_eq!(bulkhead.in_use(), 1);
        drop(response);
        // The server notices when it next writes.
        until("the place is free", || {
            let _ = send.send(piece());
            bulkhead.in_use() == 0
        })
        .await;
        let counts = breaker.counts();
        assert_eq!((counts.failed, counts.ignored, counts.cancelled), (failed, ignored, 0));
    }
}

/// Answers so often with 503, then with a body that ends when the test says so.
struct Shaky {
    address: String,
    reached: Arc<AtomicU32>,
    seen: Arc<std::sync::Mutex<Vec<String>>>,
}

async fn shaky(failures: u32) -> Shaky {
    let (reached, seen) = (Arc::new(AtomicU32::new(0)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let handler = {
        let (reached, seen) = (reached.clone(), seen.clone());
        move |headers: http::HeaderMap| {
            let text = |name| headers.get(name).map_or("", |value: &http::HeaderValue| value.to_str().unwrap());
            seen.lock().unwrap().push(text("seawall-timeout-ms").to_owned());
            let number = reached.fetch_add(1, Ordering::Relaxed) + 1;
            std::future::ready(if number <= failures {
                (StatusCode::SERVICE_UNAVAILABLE, "busy".to_owned())
            } else {
                (StatusCode::OK, format!("attempt {number}"))
            })
        }
    };
    let address = serve(Router::new().route("/", get(handler))).await;
    Shaky { address, reached, seen }
}

#[tokio::test]
async fn a_reqwest_client_is_guarded_up_to_the_end_of_the_body() {
    let guard = reqwest_example::guard();
    let (breaker, bulkhead) = (guard.breaker.get().unwrap(), guard.bulkhead.get().unwrap());
    let shaky = shaky(2).await;
    let client = reqwest::Client::new();
    // Spawned: the future may go to another thread.
    let response = tokio::spawn({
        let (client, guard, url) = (client.clone(), guard.clone(), shaky.address.clone());
        async move { reqwest_example::fetch(&client, &guard, &url).await }
    });
    let response = response.await.unwrap().unwrap();
    assert_eq!((bulkhead.in_use(), breaker.counts().failed, guard.retry.counts().retries), (1, 2, 2));
    assert_eq!(response.text().await.unwrap(), "attempt 3");
    assert_eq!((bulkhead.in_use(), breaker.sums().calls, breaker.sums().failed), (0, 3, 2));
    assert!(shaky.seen.lock().unwrap().iter().all(|left| (1..=3000).contains(&left.parse().unwrap())));

    // What was read of neither head nor body is given back as well.
    drop(reqwest_example::fetch(&client, &guard, &shaky.address).await.unwrap());
    assert_eq!((bulkhead.in_use(), breaker.counts().cancelled), (0, 0));
    breaker.set(State::ForcedOpen);
    let reached = shaky.reached.load(Ordering::Relaxed);
    let error = reqwest_example::fetch(&client, &guard, &shaky.address).await.unwrap_err();
    assert_eq!(error.rejected().unwrap().policy, PolicyName::Breaker);
    assert_eq!(shaky.reached.load(Ordering::Relaxed), reached);
}

/// An answer of 503 to a call that is not repeated is an answer, and a failure to the breaker.
#[tokio::test]
async fn an_answer_of_any_status_is_an_answer() {
    let guard = guard(serde_json::json!({ "retry": { "attempts": 1 } }));
    let shaky = shaky(1).await;
    let attempt = |_| async { reqwest::get(&shaky.address).await.map(http::Response::from) };
    let response = call(&guard, attempt, failures).await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(Head::new(response.status(), response.headers()).report().outcome, Outcome::Failure);
    drop(response);
    assert_eq!(guard.breaker.get().unwrap().sums().failed, 1, "the head has said it, though nobody read the body");
}

/// A body that breaks off is a failure, though its head was a promise.
#[tokio::test]
async fn a_body_that_breaks_off_is_a_failure_of_the_call() {
    let guard = guard(serde_json::json!({}));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    };
    let client = async {
        let attempt = |_| async { reqwest::get(&url).await.map(http::Response::from) };
        let response = call(&guard, attempt, failures).await.unwrap();
        assert_eq!(guard.breaker.get().unwrap().sums().calls, 0);
        assert!(response.into_body().collect().await.is_err());
    };
    tokio::join!(server, client);
    assert_eq!(guard.breaker.get().unwrap().bad_calls().last().unwrap().cause, "broke off");
}

/// The future of a call that is dropped gives back what it took.
#[tokio::test]
async fn a_call_that_is_given_up_gives_back() {
    let guard = guard(serde_json::json!({ "bulkhead": { "concurrent": 1 } }));
    let never = |_| std::future::pending::<Result<http::Response<Body>, &'static str>>();
    assert_gives_back(&guard, call(&guard, never, failures)).await;
    let handler = service_fn(|_: http::Request<Body>| std::future::pending::<Result<Response, Infallible>>());
    let service = HttpGuardLayer::new(guard.clone()).layer(handler);
    assert_gives_back(&guard, service.oneshot(http::Request::new(Body::empty()))).await;
}

async fn assert_gives_back<F: Future>(guard: &Guard, call: F) {
    let mut call = Box::pin(call);
    assert!(futures_util::poll!(&mut call).is_pending());
    assert_eq!(guard.bulkhead.get().unwrap().in_use(), 1);
    let cancelled = guard.breaker.get().unwrap().counts().cancelled;
    drop(call);
    assert_eq!(guard.bulkhead.get().unwrap().in_use(), 0);
    assert_eq!(guard.breaker.get().unwrap().counts().cancelled, cancelled + 1);
}

/// While another attempt runs, an answer that says that the service cannot answer ends no race, and holds no place.
#[tokio::test(start_paused = true)]
async fn an_unavailable_answer_wins_no_race() {
    let guard =
        guard(serde_json::json!({ "hedge": { "delay": "10ms", "budget": "100%" }, "retry": { "attempts": 1 } }));
    let attempt = |number: u32| async move {
        tokio::time::sleep(Duration::from_millis(if number == 1 { 50 } else { 200 })).await;
        let status = if number == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let body = http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<http_body::Frame<axum::body::Bytes>, std::io::Error>,
        >());
        let mut response = http::Response::new(body);
        *response.status_mut() = status;
        Ok::<_, std::io::Error>(response)
    };
    let mut whole = std::pin::pin!(call(&guard, attempt, failures));
    let early = tokio::time::timeout(Duration::from_millis(100), whole.as_mut()).await;
    let (breaker, bulkhead) = (guard.breaker.get().unwrap(), guard.bulkhead.get().unwrap());
    assert!(
        early.is_err(),
        "{:?}",
        (guard.hedge.get().map(|h| (h.counts(), h.delay())), guard.breaker.get().unwrap().counts())
    );
    assert_eq!((bulkhead.in_use(), breaker.sums().failed), (1, 1), "the first has failed and gone");
    let response = whole.await.unwrap();
    assert_eq!((response.status(), bulkhead.in_use()), (StatusCode::OK, 1));
    drop(response);
    assert_eq!(bulkhead.in_use(), 0);
}

/// While a retry waits, what its failed attempt had is free for others, and the breaker knows.
#[tokio::test(start_paused = true)]
async fn a_pause_holds_no_place() {
    let guard = guard(serde_json::json!({
        "bulkhead": { "concurrent": 1 }, "retry": { "attempts": 2, "strategy": "fixed", "backoff": "1s", "jitter": "none" },
    }));
    let attempt = |_| async {
        let body = http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<http_body::Frame<axum::body::Bytes>, std::io::Error>,
        >());
        let mut response = http::Response::new(body);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        Ok::<_, std::io::Error>(response)
    };
    let mut whole = std::pin::pin!(call(&guard, attempt, failures));
    assert!(tokio::time::timeout(Duration::from_millis(500), whole.as_mut()).await.is_err(), "it pauses");
    assert_eq!((guard.bulkhead.get().unwrap().in_use(), guard.breaker.get().unwrap().sums().failed), (0, 1));
    assert_eq!(whole.await.unwrap().status(), 503);
    assert_eq!(guard.breaker.get().unwrap().sums().failed, 2);
}

/// Work before the first wait is the attempt's own time, and a rejection afterwards promises nothing.
#[tokio::test]
async fn an_attempt_that_works_before_it_waits_runs_out_of_its_own_time() {
    let guard =
        guard(serde_json::json!({ "timeout": "200ms", "attempt_timeout": "190ms", "retry": { "attempts": 1 } }));
    let handler = || async {
        std::thread::sleep(Duration::from_millis(40));
        std::future::pending::<&str>().await
    };
    let layer = seawall_resilience::layer::HttpGuardLayer::new(guard.clone());
    let address = serve(Router::new().route("/", get(handler)).layer(layer)).await;
    let response = reqwest::get(&address).await.unwrap();
    assert_eq!(header(&response, "seawall-rejected"), "timeout; instance=\"payment\"; sent=?1");
    assert_eq!(guard.breaker.get().unwrap().counts().failed, 1);
    let hang = |_| async {
        std::thread::sleep(Duration::from_millis(40));
        std::future::pending::<Result<(), ()>>().await
    };
    assert!(guard.call(hang).await.is_err());
    assert_eq!(guard.breaker.get().unwrap().counts().failed, 2);
}
