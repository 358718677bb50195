//! Every policy through the whole pipeline, over real sockets: what callers get, what services see, what is left behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/sockets.rs"]
mod sockets;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use seawall_proxy::status::order;
use seawall_resilience::Clock;
use seawall_resilience::breaker::State;
use seawall_resilience::clock::Manual;
use serde_json::{Value, json};
use sockets::{Proxy, header, mirror, policies, read_request, status, until, upstream, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// A service that answers as it is told, and writes down what it is asked.
struct Service {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

/// What a service does with a request.
enum Do {
    /// Sends this, and waits for the next request.
    Say(String),
    /// Sends this, and closes the connection.
    End(String),
    /// Waits first.
    Later(Duration, Box<Do>),
    /// Says nothing until the other side has gone.
    Hang,
}

impl Service {
    /// `answer` gets the number of the request among all, and the request.
    async fn new(answer: impl Fn(usize, &str) -> Do + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        let addr = upstream(move |mut stream, _| {
            let (log, answer) = (log.clone(), answer.clone());
            async move {
                while let Some(request) = read_request(&mut stream).await {
                    let number = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        log.len() - 1
                    };
                    let mut todo = answer(number, &request);
                    while let Do::Later(wait, then) = todo {
                        tokio::time::sleep(wait).await;
                        todo = *then;
                    }
                    match todo {
                        Do::Say(text) => drop(stream.write_all(text.as_bytes()).await),
                        Do::End(text) => return drop(stream.write_all(text.as_bytes()).await),
                        Do::Hang => drop(stream.read_u8().await),
                        Do::Later(..) => unreachable!("has been waited for"),
                    }
                }
            }
        })
        .await;
        Self { addr, seen }
    }

    /// The same answer to everything.
    async fn always(status: &'static str, fields: &'static str) -> Self {
        Self::new(move |_, _| say(status, fields)).await
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// A header of each request.
    fn headers(&self, name: &str) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|request| header(request, name).to_owned()).collect()
    }
}

fn say(status: &str, fields: &str) -> Do {
    Do::Say(format!("HTTP/1.1 {status}\r\n{fields}content-length: 2\r\n\r\nok"))
}

fn later(millis: u64, then: Do) -> Do {
    Do::Later(Duration::from_millis(millis), Box::new(then))
}

/// Sends a request with some header fields.
async fn with(proxy: &Proxy, fields: &str) -> String {
    proxy.ask(&format!("GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{fields}\r\n")).await
}

fn mark(answer: &str) -> &str {
    header(answer, "seawall-rejected")
}

/// A proxy whose policies' clock stands still until it is moved.
fn at_will(policy: Value, addrs: &[SocketAddr]) -> (Proxy, Manual) {
    let (clock, hand) = Clock::manual();
    hand.advance(Duration::from_secs(1000));
    (Proxy::start_with(policy, addrs, None, clock), hand)
}

fn state(proxy: &Proxy) -> State {
    proxy.guard().breaker.get().unwrap().state()
}

// --- rate limit ---

#[tokio::test]
async fn more_than_the_rate_is_told_when_to_come_back() {
    let service = Service::always("200 OK", "").await;
    for algorithm in ["gcra", "token_bucket"] {
        let before = service.count();
        let policy = json!({ "rate_limit": { "rate": "2/m", "algorithm": algorithm } });
        let (proxy, hand) = at_will(policy, &[service.addr]);
        for _ in 0..2 {
            assert_eq!(status(&proxy.get().await), "200");
        }
        let answer = proxy.get().await;
        let after = header(&answer, "retry-after").to_owned();
        assert_eq!(status(&answer), "429", "{answer}");
        assert_eq!(mark(&answer), format!("rate-limit; instance=\"api\"; retry_after={after}; sent=?0"));
        if algorithm == "gcra" {
            assert_eq!(after, "30");
        }
        assert_eq!(service.count() - before, 2, "what is turned away is not sent");
        // Who comes back then gets through, and not a moment before.
        let after: u64 = after.parse().unwrap();
        hand.advance(Duration::from_secs(after) - Duration::from_millis(1100));
        assert_eq!(status(&proxy.get().await), "429");
        hand.advance(Duration::from_millis(1100));
        assert_eq!(status(&proxy.get().await), "200");
    }
}

#[tokio::test]
async fn calls_wait_for_their_turn_but_not_in_vain() {
    let service = Service::always("200 OK", "").await;
    let policy = json!({ "rate_limit": { "rate": "20/s", "burst": 1, "wait": "2s" } });
    let proxy = Proxy::start(policy, &[service.addr]);
    let started = Instant::now();
    for _ in 0..4 {
        assert_eq!(status(&proxy.get().await), "200");
    }
    assert!(started.elapsed() >= Duration::from_millis(145), "three waits of 50ms: {:?}", started.elapsed());

    // A turn that comes after the end of the call's time is not waited for.
    let policy = json!({ "timeout": "5s", "rate_limit": { "rate": "1/m", "wait": "1h" } });
    let proxy = Proxy::start(policy, &[service.addr]);
    assert_eq!(status(&proxy.get().await), "200");
    let started = Instant::now();
    let answer = proxy.get().await;
    assert_eq!(status(&answer), "429");
    assert!(mark(&answer).starts_with("rate-limit;") && mark(&answer).ends_with("sent=?0"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_caller_that_leaves_gives_its_turn_back() {
    let service = Service::always("200 OK", "").await;
    let policy = json!({ "timeout": "2m", "rate_limit": { "rate": "1/m", "wait": "1m" } });
    let (proxy, _hand) = at_will(policy, &[service.addr]);
    assert_eq!(status(&proxy.get().await), "200");
    let guard = proxy.guard();
    let next = || guard.rate_limit.get().unwrap().try_acquire().unwrap_err().retry_after.unwrap().as_secs();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        until("it waits for its turn", || next() == 120).await;
        assert_eq!(header(&proxy.get().await, "retry-after"), "120", "nobody else can have it");
        drop(stream);
        until("it has left, and its turn is free", || next() == 60).await;
    }
}

// --- retry ---

#[tokio::test]
async fn the_pauses_between_attempts_are_those_of_the_strategy() {
    for (strategy, least) in [
        (json!({ "strategy": "fixed", "jitter": "none", "backoff": "80ms" }), 160),
        (json!({ "strategy": "exponential", "jitter": "none", "backoff": "50ms", "multiplier": 3 }), 200),
        (json!({ "strategy": "decorrelated", "backoff": "60ms" }), 120),
    ] {
        let service = Service::always("503 X", "").await;
        let mut retry = strategy.clone();
        retry["attempts"] = json!(3);
        retry["budget"] = json!("100%");
        let proxy = Proxy::start(json!({ "retry": retry }), &[service.addr]);
        let started = Instant::now();
        assert_eq!(status(&proxy.get().await), "503");
        assert_eq!(service.count(), 3);
        assert!(started.elapsed() >= Duration::from_millis(least), "{strategy}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_retry_after_is_waited_for_if_there_is_time() {
    let service = Service::new(|number, _| match number {
        0 => say("503 X", "retry-after: 1\r\n"),
        _ => say("200 OK", ""),
    })
    .await;
    let proxy = Proxy::start(json!({ "retry": { "backoff": "1ms" } }), &[service.addr]);
    let started = Instant::now();
    assert_eq!(status(&proxy.get().await), "200");
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());

    for after in ["100", "18446744073709551615", "Fri, 31 Dec 9999 23:59:59 GMT"] {
        let fields = format!("retry-after: {after}\r\n");
        let service = Service::new(move |_, _| say("503 X", &fields)).await;
        let breaker = json!({ "retry_after": true, "minimum_calls": 1, "max_open_for": "1h" });
        let proxy = Proxy::start(json!({ "timeout": "5s", "breaker": breaker }), &[service.addr]);
        let started = Instant::now();
        let answer = proxy.get().await;
        assert_eq!((status(&answer), header(&answer, "retry-after"), service.count()), ("503", after, 1));
        assert!(started.elapsed() < Duration::from_secs(4), "it is not waited for: {:?}", started.elapsed());
        let most: u64 = header(&proxy.get().await, "retry-after").parse().unwrap();
        assert!((99..=3600).contains(&most), "the breaker waits for it, up to its most: {most}");
    }

    // What cannot be read, and a past, are as nothing.
    for after in ["-5", "soon", "18446744073709551616", "1e9", "Sun, 06 Nov 1994 08:49:37 GMT", "0"] {
        let fields = format!("retry-after: {after}\r\n");
        let service = Service::new(move |_, _| say("503 X", &fields)).await;
        let proxy = Proxy::start(json!({ "retry": { "backoff": "1ms" } }), &[service.addr]);
        assert_eq!((status(&proxy.get().await), service.count()), ("503", 2), "{after}");
    }
}

#[tokio::test]
async fn a_chain_bounds_the_retries_of_all_hops() {
    let policy = |chain: Value| json!({ "retry": { "attempts": 3, "budget": "100%", "budget_floor": 100, "backoff": "1ms", "chain": chain } });
    for (own, told, carried) in [
        (Value::Null, "", vec!["", "", ""]),
        (Value::Null, "seawall-retries-left: 0\r\n", vec!["0"]),
        (Value::Null, "seawall-retries-left: 1\r\n", vec!["1", "0"]),
        (Value::Null, "seawall-retries-left: 7\r\n", vec!["7", "6", "5"]),
        (Value::Null, "seawall-retries-left: 4294967295\r\n", vec!["4294967295", "4294967294", "4294967293"]),
        (json!(5), "", vec!["5", "4", "3"]),
        (json!(5), "seawall-retries-left: 2\r\n", vec!["2", "1", "0"]),
        (json!(1), "seawall-retries-left: 1000\r\n", vec!["1", "0"]),
        (json!(0), "", vec!["0"]),
        (json!(4), "seawall-retries-left: much\r\n", vec!["4", "3", "2"]),
        (json!(4), "seawall-retries-left: 4294967296\r\n", vec!["4", "3", "2"]),
        // What cannot be read is not passed on.
        (Value::Null, "seawall-retries-left: much\r\n", vec!["", "", ""]),
    ] {
        let service = Service::always("503 X", "").await;
        let proxy = Proxy::inside(policy(own.clone()), &[service.addr]);
        assert_eq!(status(&with(&proxy, told).await), "503");
        assert_eq!(service.headers("seawall-retries-left"), carried, "own {own}, {told}");
    }
    // What the next hop says is left settles what it has spent.
    let service = Service::always("503 X", "seawall-retries-left: 1\r\n").await;
    let proxy = Proxy::inside(policy(json!(3)), &[service.addr]);
    proxy.get().await;
    assert_eq!(service.headers("seawall-retries-left"), ["3", "0"], "two of three were spent there, and one here");
}

#[tokio::test]
async fn hops_tell_each_other_what_they_have_spent() {
    let policy = |attempts: u32, chain: u32| {
        json!({ "retry": {
            "attempts": attempts, "budget": "100%", "budget_floor": 100, "backoff": "1ms", "chain": chain
        } })
    };
    // The last hop alone would make four requests of each that it gets.
    for (answers, chain, reached) in [("503 X", 2, 3), ("", 2, 3), ("503 X", 5, 6), ("503 X", 0, 1)] {
        let service = Service::new(move |_, _| match answers {
            "" => Do::End(String::new()),
            status => say(status, "seawall-retries-left: 999\r\n"),
        })
        .await;
        let inner = Proxy::inside(policy(4, 1000), &[service.addr]);
        let middle = Proxy::inside(policy(4, 3), &[inner.addr]);
        let outer = Proxy::start(policy(4, chain), &[middle.addr]);
        let answer = outer.get().await;
        assert_eq!(service.count(), reached, "{answers} {chain}: {:?}", service.headers("seawall-retries-left"));
        assert_eq!(header(&answer, "seawall-retries-left"), "", "who told nothing is told nothing");
        let answer = with(&inner, "seawall-retries-left: 9\r\n").await;
        assert_eq!(header(&answer, "seawall-retries-left"), "6");
    }
}

// --- hedge ---

#[tokio::test]
async fn a_slow_replica_is_overtaken_and_let_go() {
    let (asked, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    // Whichever replica is asked first says nothing until it is let go; the other answers at once.
    let mut replicas = Vec::new();
    for name in ["a", "b"] {
        let (asked, gone) = (asked.clone(), gone.clone());
        let serve = move |mut stream: TcpStream, _| {
            let (asked, gone) = (asked.clone(), gone.clone());
            async move {
                while read_request(&mut stream).await.is_some() {
                    if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                        assert!(stream.read_u8().await.is_err(), "nothing more comes");
                        return gone.notify_one();
                    }
                    sockets::reply(&mut stream, "200 OK", name).await;
                }
            }
        };
        replicas.push(upstream(serve).await);
    }
    let policy = json!({ "hedge": { "enabled": true, "delay": "20ms", "budget": "100%" } });
    let proxy = Proxy::start(policy, &replicas);
    let started = Instant::now();
    assert_eq!(status(&proxy.get().await), "200");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    within(gone.notified()).await;
    let counts = proxy.guard().hedge.get().unwrap().counts();
    assert_eq!((asked.load(Ordering::SeqCst), counts.hedges, counts.won), (2, 1, 1));
    let bulkhead = proxy.guard();
    until("both places are free", || bulkhead.bulkhead.get().unwrap().in_use() == 0).await;
}

#[tokio::test]
async fn only_what_may_be_done_twice_is_hedged_and_the_budget_bounds_it() {
    let service = Service::new(|_, _| later(80, say("200 OK", ""))).await;
    let policy = json!({ "hedge": { "enabled": true, "delay": "5ms", "budget": "10%" } });
    let proxy = Proxy::start(policy, &[service.addr]);
    for _ in 0..10 {
        assert_eq!(status(&proxy.post("").await), "200");
    }
    assert_eq!(service.count(), 10, "POST without a key is asked once");
    for _ in 0..20 {
        assert_eq!(status(&proxy.get().await), "200");
    }
    assert_eq!(service.count(), 32, "a tenth of twenty calls");
    let counts = proxy.guard().hedge.get().unwrap().counts();
    assert_eq!((counts.hedges, counts.refused), (2, 18));
    for _ in 0..10 {
        assert_eq!(status(&proxy.post("idempotency-key: 1\r\n").await), "200");
    }
    assert_eq!(service.count(), 43, "with a key it may");
}

#[tokio::test]
async fn a_hedged_call_promises_nothing_that_one_of_its_attempts_may_have_broken() {
    const PROMISE: &str = "seawall-rejected: breaker; instance=\"api\"; sent=?0\r\n";
    let policy = json!({
        "retry": { "attempts": 1 },
        "hedge": { "enabled": true, "delay": "20ms", "budget": "100%" }
    });
    for (what, first, second) in [
        (
            "the first breaks off, the second was not passed on",
            later(400, Do::End(String::new())),
            later(1000, say("503 X", PROMISE)),
        ),
        ("the first is still under way", Do::Hang, say("429 X", PROMISE)),
    ] {
        let answers = Mutex::new(vec![second, first]);
        let service = Service::new(move |_, _| answers.lock().unwrap().pop().unwrap()).await;
        let proxy = Proxy::start(policy.clone(), &[service.addr]);
        let answer = proxy.get().await;
        assert_eq!(service.count(), 2, "{what}");
        assert_eq!(mark(&answer), "breaker; instance=\"api\"; sent=?1", "{what}: {answer}");
    }
    // Where none was passed on it stays a promise.
    let service = Service::new(|number, _| later(400 * number as u64 + 400, say("503 X", PROMISE))).await;
    let proxy = Proxy::start(policy, &[service.addr]);
    let answer = proxy.get().await;
    assert_eq!((service.count(), mark(&answer)), (2, "breaker; instance=\"api\"; sent=?0"), "{answer}");
}

// --- throttle ---

#[tokio::test]
async fn a_service_that_refuses_all_is_asked_ever_less_and_again_when_it_is_well() {
    let well = Arc::new(AtomicBool::new(false));
    let now = well.clone();
    let service = Service::new(move |_, _| say(if now.load(Ordering::SeqCst) { "200 OK" } else { "503 X" }, "")).await;
    let policy = json!({
        "retry": { "attempts": 1 },
        "breaker": { "enabled": false },
        "throttle": { "enabled": true, "window": "2m" }
    });
    let (proxy, hand) = at_will(policy, &[service.addr]);
    let mut kept_back = 0;
    for _ in 0..10 {
        assert_eq!(mark(&proxy.get().await), "", "below the minimum none is kept back");
    }
    for _ in 0..200 {
        let answer = proxy.get().await;
        assert_eq!(status(&answer), "503");
        if !mark(&answer).is_empty() {
            assert_eq!(mark(&answer), "throttle; instance=\"api\"; sent=?0");
            kept_back += 1;
        }
    }
    // Nine tenths are kept back, with a spread of about four; one in ten is what notices that it is well again.
    assert!((140..200).contains(&kept_back), "{kept_back}");
    assert_eq!(service.count(), 210 - kept_back);
    well.store(true, Ordering::SeqCst);
    hand.advance(Duration::from_secs(121));
    for _ in 0..50 {
        assert_eq!(status(&proxy.get().await), "200");
    }
}

// --- breaker ---

const TRIPPED: &str = "breaker; instance=\"api\"; retry_after=30; sent=?0";

fn breaker(more: Value) -> Value {
    let mut breaker = json!({ "window": "10 calls", "minimum_calls": 3, "open_for": "30s", "half_open_calls": 1 });
    for (key, value) in more.as_object().unwrap() {
        breaker[key] = value.clone();
    }
    json!({ "retry": { "attempts": 1 }, "breaker": breaker })
}

fn grpc(code: u32) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\ntrailer: grpc-status\r\n\r\n\
         2\r\nab\r\n0\r\ngrpc-status: {code}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_failure_is_what_the_end_of_the_answer_says() {
    type Says = fn() -> Do;
    let failures: [(&str, Says); 6] = [
        ("status 503", || say("503 X", "")),
        ("status 500", || say("500 X", "")),
        ("broke off", || Do::End("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".into())),
        ("broke off", || Do::End("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n".into())),
        ("reset", || Do::End(String::new())),
        ("grpc unavailable", || Do::Say(grpc(14))),
    ];
    for (cause, says) in failures {
        let service = Service::new(move |_, _| says()).await;
        let (proxy, _hand) = at_will(breaker(json!({})), &[service.addr]);
        for _ in 0..3 {
            let answer = with(&proxy, "te: trailers\r\n").await;
            assert!(!mark(&answer).starts_with("breaker"), "{cause}: {answer}");
        }
        let guard = proxy.guard();
        let breaker = guard.breaker.get().unwrap();
        until(cause, || breaker.state() == State::Open).await;
        let causes: Vec<_> = breaker.bad_calls().iter().map(|call| call.cause).collect();
        assert_eq!(causes, [cause; 3]);
        assert_eq!(mark(&proxy.get().await), TRIPPED, "{cause}");
        assert_eq!(service.count(), 3);
    }
    let fine: [Says; 4] =
        [|| say("404 X", ""), || say("429 X", "retry-after: 1\r\n"), || Do::Say(grpc(0)), || Do::Say(grpc(5))];
    for says in fine {
        let service = Service::new(move |_, _| says()).await;
        let (proxy, _hand) = at_will(breaker(json!({})), &[service.addr]);
        for _ in 0..12 {
            assert_eq!(mark(&with(&proxy, "te: trailers\r\n").await), "");
        }
        assert_eq!((service.count(), state(&proxy)), (12, State::Closed));
    }
}

#[tokio::test]
async fn a_slow_head_is_slow_and_a_slow_body_is_not() {
    let slow = json!({ "slow_call": "300ms", "slow_rate": "50%" });
    let service = Service::new(|_, _| later(600, say("200 OK", ""))).await;
    let proxy = Proxy::start(breaker(slow.clone()), &[service.addr]);
    for _ in 0..3 {
        assert_eq!(status(&proxy.get().await), "200");
    }
    let answer = proxy.get().await;
    assert!(mark(&answer).starts_with("breaker;"), "{answer}");
    assert_eq!(proxy.guard().breaker.get().unwrap().bad_calls()[0].cause, "slow");

    let body = upstream(|mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await;
            tokio::time::sleep(Duration::from_millis(600)).await;
            let _ = stream.write_all(b"cd").await;
        }
    })
    .await;
    let proxy = Proxy::start(breaker(slow), &[body]);
    for _ in 0..3 {
        assert!(proxy.get().await.ends_with("abcd"));
    }
    assert_eq!(state(&proxy), State::Closed);
}

#[tokio::test]
async fn what_a_client_that_leaves_says_depends_on_how_long_it_waited() {
    for (waited, expected) in [(2, (3, 0, State::Open)), (0, (0, 3, State::Closed))] {
        let service = Service::new(|_, _| Do::Hang).await;
        let (proxy, hand) = at_will(breaker(json!({ "cancelled_after": "1s" })), &[service.addr]);
        for number in 1..=3 {
            let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
            stream.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            until("it has arrived", || service.count() == number).await;
            hand.advance(Duration::from_secs(waited));
            drop(stream);
            let guard = proxy.guard();
            let counts = || guard.breaker.get().unwrap().counts();
            until("it is known to have left", || counts().failed + counts().cancelled == number as u64).await;
        }
        let guard = proxy.guard();
        let counts = guard.breaker.get().unwrap().counts();
        assert_eq!((counts.failed, counts.cancelled, state(&proxy)), expected);
        until("no place is lost", || guard.bulkhead.get().unwrap().in_use() == 0).await;
    }
}

#[tokio::test]
async fn the_open_wait_is_the_one_that_the_service_asks_for() {
    for (after, waits) in [("120", 120), ("18446744073709551615", 300)] {
        let well = Arc::new(AtomicBool::new(false));
        let (now, fields) = (well.clone(), format!("retry-after: {after}\r\n"));
        let service = Service::new(move |_, _| match now.load(Ordering::SeqCst) {
            true => say("200 OK", ""),
            false => say("503 X", &fields),
        })
        .await;
        let (proxy, hand) = at_will(breaker(json!({ "retry_after": true })), &[service.addr]);
        for _ in 0..3 {
            assert_eq!(mark(&proxy.get().await), "");
        }
        until("it opens", || state(&proxy) == State::Open).await;
        assert_eq!(header(&proxy.get().await, "retry-after"), waits.to_string());
        well.store(true, Ordering::SeqCst);
        hand.advance(Duration::from_secs(waits - 1));
        assert_eq!(header(&proxy.get().await, "retry-after"), "1");
        hand.advance(Duration::from_secs(1));
        assert_eq!(status(&proxy.get().await), "200");
        until("it closes", || state(&proxy) == State::Closed).await;
    }
}

#[tokio::test]
async fn a_ramp_lets_more_pass_step_by_step() {
    let service = Service::new(|number, _| say(if number < 3 { "503 X" } else { "200 OK" }, "")).await;
    let (proxy, hand) = at_will(breaker(json!({ "verdict": "ramp" })), &[service.addr]);
    for _ in 0..3 {
        proxy.get().await;
    }
    until("it opens", || state(&proxy) == State::Open).await;
    hand.advance(Duration::from_secs(30));
    let mut answers = Vec::new();
    for _ in 0..400 {
        let answer = proxy.get().await;
        answers.push(answer.starts_with("HTTP/1.1 200"));
        assert!(answers.last() == Some(&true) || mark(&answer).starts_with("breaker; instance=\"api\""), "{answer}");
        if state(&proxy) == State::Closed {
            break;
        }
    }
    // The probe, one in a hundred, one in ten, one in two: each went well, so all of it passes.
    assert_eq!(state(&proxy), State::Closed);
    let passed = answers.iter().filter(|passed| **passed).count();
    assert_eq!(passed, 4, "{answers:?}");
    assert!(answers.len() - passed >= 9, "most were turned away meanwhile: {answers:?}");
    for _ in 0..20 {
        assert_eq!(status(&proxy.get().await), "200");
    }
}

#[tokio::test]
async fn metrics_only_turns_nobody_away() {
    let service = Service::always("503 X", "").await;
    let (proxy, _hand) = at_will(breaker(json!({ "mode": "metrics_only" })), &[service.addr]);
    for _ in 0..20 {
        assert_eq!(mark(&proxy.get().await), "");
    }
    let guard = proxy.guard();
    let counts = guard.breaker.get().unwrap().counts();
    assert_eq!((service.count(), counts.would_open, counts.rejected), (20, 1, 0));
    let page = seawall_proxy::metrics::page(&proxy.upstreams);
    assert!(page.contains(r#"seawall_breaker_state{service="api",state="metrics-only"} 1"#), "{page}");
}

#[tokio::test]
async fn an_order_holds_until_the_next() {
    let service = Service::always("503 X", "").await;
    let (proxy, hand) = at_will(breaker(json!({})), &[service.addr]);
    proxy.get().await;
    let order = |state: &str| order(&proxy.upstreams, "api", state);

    order("forced-open").unwrap();
    hand.advance(Duration::from_secs(100_000));
    let answer = proxy.get().await;
    assert_eq!((status(&answer), mark(&answer)), ("503", "breaker; instance=\"api\"; sent=?0"), "no end is known");
    assert_eq!(service.count(), 1);

    order("disabled").unwrap();
    for _ in 0..20 {
        assert_eq!(mark(&proxy.get().await), "");
    }
    assert_eq!(state(&proxy), State::Disabled);

    order("closed").unwrap();
    for _ in 0..3 {
        assert_eq!(mark(&proxy.get().await), "", "what came before is forgotten");
    }
    assert_eq!(mark(&proxy.get().await), TRIPPED);

    order("closed").unwrap();
    assert_eq!(mark(&proxy.get().await), "");
    order("open").unwrap();
    assert_eq!(mark(&proxy.get().await), TRIPPED);
    for unknown in ["half-open", "Open", "", "banana"] {
        let refused = order(unknown).unwrap_err().to_string();
        assert!(refused.contains("closed, open, disabled, forced-open, metrics-only"), "{refused}");
    }
    let refused = seawall_proxy::status::order(&proxy.upstreams, "nobody", "open").unwrap_err().to_string();
    assert_eq!(refused, "`nobody` has not been called from here");
}

// --- bulkhead ---

/// Clients whose requests the service does not answer.
async fn hold(proxy: &Proxy, service: &Service, count: usize) -> Vec<TcpStream> {
    let before = service.count();
    let mut held = Vec::new();
    for number in 1..=count {
        let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
        stream.write_all(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        until("it has arrived", || service.count() == before + number).await;
        held.push(stream);
    }
    held
}

async fn holding() -> Service {
    Service::new(|_, request| if request.starts_with("GET /hold") { Do::Hang } else { say("200 OK", "") }).await
}

#[tokio::test]
async fn what_matters_less_is_shed_first_where_callers_are_believed() {
    let policy = json!({ "bulkhead": { "concurrent": 4, "shares": { "low": "50%", "normal": "75%" } } });
    let low = "seawall-priority: low\r\n";
    for (edge, believed) in [(None, true), (Some(1), true), (Some(0), false)] {
        let service = holding().await;
        let proxy = Proxy::start_with(policy.clone(), &[service.addr], edge, Clock::default());
        assert_eq!(status(&with(&proxy, low).await), "200");
        assert_eq!(service.headers("seawall-priority"), [if believed { "low" } else { "" }], "{edge:?}");
        let mut held = hold(&proxy, &service, 2).await;
        let answer = with(&proxy, low).await;
        assert_eq!(status(&answer), if believed { "503" } else { "200" }, "{edge:?}");
        if believed {
            assert_eq!(mark(&answer), "bulkhead; instance=\"api\"; sent=?0");
        }
        for other in ["", "seawall-priority: banana\r\n", "seawall-priority: \r\n", "seawall-priority: \u{e9}\r\n"] {
            assert_eq!(status(&with(&proxy, other).await), "200", "{other}");
        }
        held.extend(hold(&proxy, &service, 1).await);
        for (fields, wanted) in [
            ("", "503"),
            ("seawall-priority: banana\r\n", "503"),
            ("seawall-priority: high\r\n", if believed { "200" } else { "503" }),
            ("seawall-priority: critical\r\n", if believed { "200" } else { "503" }),
        ] {
            assert_eq!(status(&with(&proxy, fields).await), wanted, "{edge:?} {fields}");
        }
        drop(held);
        let guard = proxy.guard();
        until("every place is free", || guard.bulkhead.get().unwrap().in_use() == 0).await;
        assert_eq!(status(&with(&proxy, low).await), "200");
    }
}

// --- chaos ---

#[tokio::test]
async fn the_same_seed_makes_the_same_trouble() {
    let service = Service::always("200 OK", "").await;
    let run = async |seed: u64| {
        let chaos = json!({ "seed": seed, "fault": "20%", "status": { "share": "30%", "code": 418 } });
        let policy = json!({ "retry": { "attempts": 1 }, "breaker": { "enabled": false }, "chaos": chaos });
        let proxy = Proxy::start(policy, &[service.addr]);
        let mut answers = Vec::new();
        for _ in 0..60 {
            let answer = proxy.get().await;
            let kind = match (status(&answer), mark(&answer)) {
                ("503", "chaos; instance=\"api\"; sent=?0") => 'f',
                ("418", "") => 's',
                ("200", "") => '-',
                other => panic!("{other:?}: {answer}"),
            };
            answers.push(kind);
        }
        answers.into_iter().collect::<String>()
    };
    let first = run(7).await;
    for kind in ['f', 's', '-'] {
        assert!(first.contains(kind), "{first}");
    }
    let sent = service.count();
    assert_eq!(sent, first.matches('-').count(), "trouble is made instead of the call");
    assert_eq!(run(7).await, first);
    assert_ne!(run(8).await, first);
}

#[tokio::test]
async fn trouble_meets_the_other_policies_as_real_trouble_would() {
    let service = Service::always("200 OK", "").await;
    let latency = json!({ "share": "100%", "by": "80ms" });
    let proxy = Proxy::start(json!({ "chaos": { "latency": latency } }), &[service.addr]);
    let started = Instant::now();
    assert_eq!(status(&proxy.get().await), "200");
    assert!(started.elapsed() >= Duration::from_millis(80), "{:?}", started.elapsed());
    // A delay beyond the call's time is a timeout, at its end, and the service has seen nothing.
    let latency = json!({ "share": "100%", "by": "1h" });
    let proxy = Proxy::start(json!({ "timeout": "100ms", "chaos": { "latency": latency } }), &[service.addr]);
    let answer = proxy.get().await;
    assert_eq!((status(&answer), mark(&answer)), ("504", "timeout; instance=\"api\"; sent=?0"), "{answer}");
    assert_eq!(service.count(), 1);
    // The breaker judges an ordered status as it would the service's own.
    for (code, opens) in [(503, true), (404, false), (200, false)] {
        let mut policy = breaker(json!({}));
        policy["chaos"] = json!({ "status": { "share": "100%", "code": code } });
        let (proxy, _hand) = at_will(policy, &[service.addr]);
        for _ in 0..4 {
            proxy.get().await;
        }
        assert_eq!(state(&proxy) == State::Open, opens, "{code}");
    }
}

// --- reload ---

#[tokio::test]
async fn a_reload_leaves_what_is_under_way_alone() {
    let go_on = Arc::new(Notify::new());
    let wait = go_on.clone();
    let addr = upstream(move |mut stream, _| {
        let wait = wait.clone();
        async move {
            while read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await;
                wait.notified().await;
                let _ = stream.write_all(b"cd").await;
            }
        }
    })
    .await;
    let before = json!({ "retry": { "attempts": 1 }, "timeout": "20s", "bulkhead": { "concurrent": 3 } });
    let proxy = Proxy::start(before, &[addr]);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut head = vec![0; 1024];
        let mut read = 0;
        while !head[..read].ends_with(b"ab") {
            read += within(stream.read(&mut head[read..])).await.unwrap();
        }
        streams.push(stream);
    }
    let started = Instant::now();
    let small = json!({ "retry": { "attempts": 1 }, "timeout": "10ms", "bulkhead": { "concurrent": 1 } });
    proxy.upstreams.reload(policies(small.clone())).unwrap();
    assert!(started.elapsed() < Duration::from_secs(1), "to shrink waits for nobody: {:?}", started.elapsed());
    let guard = proxy.guard();
    let bulkhead = guard.bulkhead.get().unwrap();
    assert_eq!((bulkhead.limit(), bulkhead.in_use()), (1, 3));
    assert_eq!(mark(&proxy.get().await), "bulkhead; instance=\"api\"; sent=?0");
    // Switched off and on again with calls under way, it still knows them.
    proxy.upstreams.reload(policies(json!({ "bulkhead": { "enabled": false } }))).unwrap();
    proxy.upstreams.reload(policies(small)).unwrap();
    assert_eq!(guard.bulkhead.get().unwrap().in_use(), 3);
    for mut stream in streams {
        go_on.notify_one();
        let mut rest = Vec::new();
        within(stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"cd");
    }
    until("the places are free", || guard.bulkhead.get().unwrap().in_use() == 0).await;
}

#[tokio::test]
async fn a_reload_keeps_what_was_seen() {
    let service = Service::always("503 X", "").await;
    let with_minimum = |calls: u32| breaker(json!({ "minimum_calls": calls }));
    let (proxy, hand) = at_will(with_minimum(10), &[service.addr]);
    for _ in 0..4 {
        proxy.get().await;
    }
    proxy.upstreams.reload(policies(with_minimum(5))).unwrap();
    assert_eq!(proxy.guard().breaker.get().unwrap().sums().failed, 4, "the window is kept");
    assert_eq!(mark(&proxy.get().await), "");
    assert_eq!(mark(&proxy.get().await), TRIPPED, "the fifth is enough now");
    // An open wait goes on as it began, whatever the new one is.
    let mut longer = breaker(json!({ "open_for": "1m" }));
    longer["rate_limit"] = json!({ "rate": "1000000/s" });
    hand.advance(Duration::from_secs(10));
    proxy.upstreams.reload(policies(longer)).unwrap();
    assert_eq!(header(&proxy.get().await, "retry-after"), "20");
    // A rate that is used up stays used up.
    let limited = |rate: &str| json!({ "breaker": { "enabled": false }, "rate_limit": { "rate": rate } });
    let (proxy, _hand) = at_will(limited("1/m"), &[mirror().await]);
    assert_eq!(status(&proxy.get().await), "200");
    for rate in ["1/30s", "1/m", "1/h"] {
        proxy.upstreams.reload(policies(limited(rate))).unwrap();
        assert_eq!(status(&proxy.get().await), "429", "{rate}");
    }
}

// --- all at once ---

/// Policies that are allowed and far from usual.
fn extremes() -> Vec<Value> {
    vec![
        json!({
            "timeout": "300ms",
            "retry": { "attempts": 20, "budget": "100%", "budget_floor": 1000, "backoff": "0s", "chain": 1000 },
            "hedge": { "enabled": true, "delay": "1ms", "max": 5, "budget": "100%", "on_error": true },
            "breaker": { "window": "10ms", "minimum_calls": 1, "open_for": "1ms", "half_open_calls": 1000 },
            "bulkhead": { "concurrent": 1, "wait": "100ms", "queue": 1000000 },
            "rate_limit": { "rate": "1000000/s" }
        }),
        json!({
            "timeout": "1s", "attempt_timeout": "20ms",
            "breaker": { "window": "10000 calls", "minimum_calls": 10000, "verdict": "ramp", "open_for": "1ms" },
            "throttle": { "enabled": true, "k": 1, "window": "1s", "minimum_calls": 1 },
            "bulkhead": { "concurrent": 1000000, "shares": { "low": "0.0001%" } },
            "rate_limit": { "rate": "1/ms", "algorithm": "token_bucket", "burst": 1000000, "wait": "1h" }
        }),
        json!({
            "timeout": "1ms",
            "hedge": { "enabled": true, "delay": "p50", "delay_floor": "0s", "minimum_calls": 20, "max": 5 },
            "breaker": { "window": "1 consecutive", "open_for": "1ms", "open_growth": 10, "open_jitter": "100%",
                "half_open_calls": 1, "verdict": "all", "slow_call": "1ms", "retry_after": true },
            "bulkhead": { "concurrent": 3, "wait": "1h", "queue": 1 },
            "chaos": { "fault": "10%", "status": { "share": "10%" }, "latency": { "share": "10%", "by": "1ms", "jitter": "1ms" } }
        }),
        json!({
            "breaker": { "window": "1h", "semantics": "seawall", "watch": { "failure_rate": "1%" }, "mode": "metrics_only" },
            "bulkhead": { "enabled": false },
            "retry": { "strategy": "decorrelated", "backoff": "1ms", "max_backoff": "1ms", "attempts": 20, "chain": 0 }
        }),
        json!({
            "breaker": { "window": "120s", "semantics": "resilience4j", "minimum_calls": 1, "open_for": "1ms" },
            "bulkhead": { "concurrent": 2, "wait": "5ms", "adaptive": { "min": 1, "max": 3 } },
            "rate_limit": { "rate": "1/h", "wait": "1h" }
        }),
        json!({ "breaker": { "enabled": false } }),
    ]
}

/// What a hostile caller says of itself.
const HOSTILE: [&str; 14] = [
    "",
    "seawall-timeout-ms: 0\r\n",
    "seawall-timeout-ms: 1\r\n",
    "seawall-timeout-ms: 18446744073709551615\r\n",
    "seawall-timeout-ms: 18446744073709551616\r\n",
    "seawall-timeout-ms: -1\r\n",
    "seawall-timeout-ms: NaN\r\nseawall-timeout-ms: 5\r\n",
    "seawall-retries-left: 4294967295\r\n",
    "seawall-retries-left: 0\r\n",
    "seawall-priority: banana\r\n",
    "seawall-priority: low\r\n",
    "seawall-rejected: breaker; instance=\"api\"; sent=?0\r\n",
    "connection: seawall-timeout-ms, seawall-retries-left, seawall-priority\r\nseawall-timeout-ms: 3\r\n",
    "traceparent: 00-00000000000000000000000000000000-0000000000000000-00\r\n",
];

/// What a hostile service answers.
fn hostile(number: usize) -> Do {
    match number % 13 {
        0 => say("503 X", "retry-after: 18446744073709551615\r\n"),
        1 => say("503 X", "retry-after: 0\r\nseawall-retries-left: 4294967295\r\n"),
        2 => say("429 X", "retry-after: -1\r\nseawall-retries-left: much\r\n"),
        3 => Do::End("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".into()),
        4 => Do::End(String::new()),
        5 => Do::Say(grpc(14)),
        6 => Do::Say(grpc(4_294_967_295)),
        7 => later(5, say("200 OK", "")),
        8 => later(60, say("200 OK", "")),
        9 => say("503 X", "seawall-rejected: breaker; instance=\"api\"; retry_after=18446744073709551615; sent=?0\r\n"),
        10 => Do::End("HTTP/1.1 999 \r\n\r\n".into()),
        _ => say("200 OK", ""),
    }
}

/// How many panics there were on the proxies' own threads.
fn count_panics() -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let (seen, usual) = (count.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name().is_some_and(|name| name.starts_with("test ")) {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        usual(info);
    }));
    count
}

#[tokio::test]
async fn reloads_orders_and_hostile_callers_at_once_leave_nothing_behind() {
    let panics = count_panics();
    let service = Service::new(|number, _| hostile(number)).await;
    let proxy = Arc::new(Proxy::inside(extremes().remove(0), &[service.addr, sockets::nobody().await]));
    proxy.get().await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..24)
        .map(|number| {
            let (proxy, stop) = (proxy.clone(), stop.clone());
            tokio::spawn(async move {
                let mut asked = 0;
                for round in number.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let fields = HOSTILE[round % HOSTILE.len()];
                    let method = ["GET", "POST", "PUT"][round % 3];
                    let head = format!(
                        "{method} /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n{fields}\r\nhi"
                    );
                    if round % 7 == 0 {
                        // Leaves after a while, wherever its call is.
                        let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
                        stream.write_all(head.as_bytes()).await.unwrap();
                        tokio::time::sleep(Duration::from_millis((round % 11) as u64)).await;
                    } else {
                        let answer = proxy.ask(&head).await;
                        assert!(answer.starts_with("HTTP/1.1 "), "{fields}: {answer}");
                        // Whatever else it says, it says what a promise is in one of two ways.
                        assert!(mark(&answer).is_empty() || mark(&answer).contains("; sent=?"), "{answer}");
                    }
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(4);
    let states = ["open", "closed", "forced-open", "closed", "disabled", "metrics-only", "closed"];
    for round in 0.. {
        if Instant::now() > end {
            break;
        }
        let all = extremes();
        proxy.upstreams.reload(policies(all[round % all.len()].clone())).unwrap();
        // Without a breaker there is none to be ordered about.
        let _ = order(&proxy.upstreams, "api", states[round % states.len()]);
        let view = seawall_proxy::status::policies(&proxy.upstreams);
        assert!(view["guards"][0]["service"] == "api" && seawall_proxy::metrics::page(&proxy.upstreams).len() > 100);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The last has no wait that is longer than the test.
    proxy.upstreams.reload(policies(json!({ "timeout": "2s", "bulkhead": { "concurrent": 5 } }))).unwrap();
    order(&proxy.upstreams, "api", "closed").unwrap();
    stop.store(true, Ordering::SeqCst);
    let mut asked = 0;
    for caller in callers {
        asked += within(caller).await.unwrap();
    }
    assert!(asked > 200, "{asked}");
    until("the last has left", || proxy.trigger.waiting().to_string() == "2 listeners").await;
    let guard = proxy.guard();
    let bulkhead = guard.bulkhead.get().unwrap();
    until("every place is free, and nobody waits", || (bulkhead.in_use(), bulkhead.waiting()) == (0, 0)).await;
    assert_eq!((bulkhead.limit(), bulkhead.available()), (5, 5));
    assert_eq!(panics.load(Ordering::SeqCst), 0);
    // It works as it would have at the beginning.
    order(&proxy.upstreams, "api", "disabled").unwrap();
    let well = mirror().await;
    proxy.upstreams.publish(sockets::fleet(&[well]));
    proxy
        .upstreams
        .reload(policies(json!({ "breaker": { "window": "10 calls", "minimum_calls": 3, "open_for": "30s" } })))
        .unwrap();
    order(&proxy.upstreams, "api", "closed").unwrap();
    for _ in 0..30 {
        assert_eq!(status(&proxy.get().await), "200");
    }
    let sums = guard.breaker.get().unwrap().sums();
    assert_eq!((sums.calls, sums.failed, sums.slow, state(&proxy)), (10, 0, 0, State::Closed));
}

/// The next hop is told the caller's time, rounded down, and says first that it is over: that accuses nobody either.
#[tokio::test]
async fn a_hop_that_keeps_to_the_callers_time_is_not_blamed_for_it() {
    let addr = upstream(|mut stream, _| async move {
        while let Some(request) = read_request(&mut stream).await {
            let told = request.lines().find_map(|line| line.strip_prefix("seawall-timeout-ms: ")).unwrap();
            tokio::time::sleep(Duration::from_millis(told.parse().unwrap())).await;
            let _ = stream.write_all(b"HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let policy =
        json!({ "retry": { "attempts": 1 }, "breaker": { "window": "2 consecutive", "cancelled_after": "5s" } });
    let proxy = Proxy::inside(policy, &[addr]);
    for _ in 0..6 {
        assert_eq!(status(&with(&proxy, "seawall-timeout-ms: 150\r\n").await), "504");
    }
    let guard = proxy.guard();
    let breaker = guard.breaker.get().unwrap();
    until("all of it is told", || breaker.counts().cancelled == 6).await;
    assert_eq!((breaker.state(), breaker.counts().failed), (State::Closed, 0));
}
