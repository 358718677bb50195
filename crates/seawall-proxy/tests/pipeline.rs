//! The whole pipeline between a raw client and raw upstreams, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/sockets.rs"]
mod sockets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use seawall_proxy::{Server, ServerConfig};
use sockets::{Proxy, fleet, header, mirror, nobody, read_request, reply, status, upstream, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn the_last_answer_of_failed_hedges_is_passed_on_whole() {
    // Too large to be in any buffer when its attempt is settled.
    let body = "x".repeat(8 << 20);
    let addr = upstream(move |mut stream, _| {
        let body = body.clone();
        async move {
            while read_request(&mut stream).await.is_some() {
                reply(&mut stream, "503 Service Unavailable", &body).await;
            }
        }
    })
    .await;
    let policy = serde_json::json!({
        "retry": { "attempts": 1 },
        "hedge": { "enabled": true, "delay": "1m", "on_error": true, "budget": "100%" },
    });
    let proxy = Proxy::start(policy, &[addr]);
    let answer = proxy.get().await;
    assert_eq!((status(&answer), answer.split("\r\n\r\n").nth(1).unwrap().len()), ("503", 8 << 20));
    let guard = proxy.upstreams.known_guard("api").unwrap();
    let sums = guard.breaker.get().unwrap().sums();
    assert_eq!((sums.calls, sums.failed), (2, 2), "each of them has failed");
}

#[tokio::test]
async fn a_request_is_passed_on_as_the_next_hop_wants_it() {
    let proxy = Proxy::start(serde_json::json!({ "timeout": "3s" }), &[mirror().await]);
    let request = "GET /a/b?c=d HTTP/1.1\r\nhost: shop.example\r\nconnection: close, x-mine\r\nx-mine: 1\r\nx-other: 2\r\n\
                   x-forwarded-for: 6.6.6.6\r\nseawall-timeout-ms: 1500\r\ntraceparent: \
                   00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";
    let answer = proxy.ask(request).await;
    assert_eq!(status(&answer), "200", "{answer}");
    let seen = answer.split("\r\n\r\n").nth(1).unwrap();
    assert!(seen.starts_with("GET /a/b?c=d HTTP/1.1\r\n"), "{seen}");
    assert_eq!((header(seen, "host"), header(seen, "x-other")), ("api", "2"));
    assert_eq!(header(seen, "x-forwarded-for"), "127.0.0.1");
    assert_eq!(header(seen, "x-forwarded-host"), "shop.example");
    assert!(header(seen, "traceparent").starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
    let left: u64 = header(seen, "seawall-timeout-ms").parse().unwrap();
    assert!((2500..=3000).contains(&left), "the policy's, not the stranger's: {left}");
    for gone in ["connection", "x-mine"] {
        assert_eq!(header(seen, gone), "", "{gone}");
    }
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    // Echoes each chunk as it comes.
    let echo = upstream(|mut stream, _| async move {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    let proxy = Proxy::start(serde_json::json!({}), &[echo]);
    let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
    stream.write_all(b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    for round in 0..200 {
        let piece = format!("piece-{round:04}-").repeat(500);
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        stream.write_all(chunk.as_bytes()).await.unwrap();
        // The piece comes back before the next is sent: nothing waits for the whole.
        let end = format!("piece-{round:04}-");
        let mut buffer = [0; 16384];
        while !seen.windows(end.len()).any(|window| window == end.as_bytes()) {
            let read = within(stream.read(&mut buffer)).await.unwrap();
            assert!(read > 0, "ended early");
            seen.extend_from_slice(&buffer[..read]);
        }
        let keep = seen.len().saturating_sub(100_000);
        seen.drain(..keep);
    }
}

#[tokio::test]
async fn connections_are_kept_and_a_stale_one_costs_nothing() {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    // Answers ten requests a connection, then closes it without a word.
    let addr = upstream(move |mut stream, number| {
        count.store(number + 1, Ordering::SeqCst);
        async move {
            for _ in 0..10 {
                let Some(_) = read_request(&mut stream).await else { return };
                reply(&mut stream, "200 OK", "ok").await;
            }
        }
    })
    .await;
    let proxy = Proxy::start(serde_json::json!({ "retry": { "attempts": 1 } }), &[addr]);
    let mut client = TcpStream::connect(proxy.addr).await.unwrap();
    for _ in 0..50 {
        client.write_all(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        let mut answer = vec![0; 4096];
        let read = within(client.read(&mut answer)).await.unwrap();
        assert_eq!(status(std::str::from_utf8(&answer[..read]).unwrap()), "200");
        // Lets the close arrive: that it may come in the very moment of sending is another test's.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(opened.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn what_was_not_sent_is_tried_elsewhere_whatever_the_method() {
    let policy = serde_json::json!({ "retry": { "attempts": 3, "budget": "100%", "backoff": "1ms" } });
    let proxy = Proxy::start(policy, &[nobody().await, mirror().await]);
    for _ in 0..20 {
        assert_eq!(status(&proxy.post("").await), "200");
    }
    let alone = Proxy::start(serde_json::json!({ "retry": { "attempts": 2 } }), &[nobody().await]);
    let answer = alone.post("").await;
    assert_eq!(status(&answer), "503");
    assert_eq!(header(&answer, "seawall-rejected"), "connect; instance=\"api\"; sent=?0");
}

/// Reads a request and breaks off, the first time; then answers.
async fn breaks_once() -> (SocketAddr, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let addr = upstream(move |mut stream, _| {
        let count = count.clone();
        async move {
            while read_request(&mut stream).await.is_some() {
                if count.fetch_add(1, Ordering::SeqCst) == 0 {
                    return;
                }
                reply(&mut stream, "200 OK", "ok").await;
            }
        }
    })
    .await;
    (addr, seen)
}

#[tokio::test]
async fn what_may_have_arrived_is_repeated_only_when_that_is_harmless() {
    for (request, wanted, times) in [
        ("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", "502", 1),
        (
            "POST /x HTTP/1.1\r\nhost: a\r\nidempotency-key: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            "200",
            2,
        ),
        ("PUT /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi", "200", 2),
        ("GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "200", 2),
    ] {
        let (addr, seen) = breaks_once().await;
        let proxy = Proxy::start(serde_json::json!({ "retry": { "attempts": 2, "backoff": "1ms" } }), &[addr]);
        let answer = proxy.ask(request).await;
        assert_eq!((status(&answer), seen.load(Ordering::SeqCst)), (wanted, times), "{request}{answer}");
        if wanted == "502" {
            assert_eq!(header(&answer, "seawall-rejected"), "reset; instance=\"api\"; sent=?1");
        }
    }
}

#[tokio::test]
async fn what_one_attempt_may_have_done_no_later_one_denies() {
    // Breaks off after the request, and is gone for good.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
    });
    let policy = serde_json::json!({ "retry": { "attempts": 2, "backoff": "1ms" } });
    let proxy = Proxy::start(policy.clone(), &[addr]);
    let answer = proxy.post("idempotency-key: 1\r\n").await;
    assert_eq!(header(&answer, "seawall-rejected"), "connect; instance=\"api\"; sent=?1", "{answer}");

    // The same, when it is the next hop's promise that comes last.
    let hop = upstream(|mut stream, number| async move {
        read_request(&mut stream).await;
        if number > 0 {
            let mark = "seawall-rejected: breaker; instance=\"api\"; sent=?0";
            let text = format!("HTTP/1.1 503 X\r\n{mark}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(text.as_bytes()).await;
        }
    })
    .await;
    let proxy = Proxy::start(policy, &[hop]);
    let answer = proxy.post("idempotency-key: 1\r\n").await;
    assert_eq!(header(&answer, "seawall-rejected"), "breaker; instance=\"api\"; sent=?1", "{answer}");
}

#[tokio::test]
async fn a_promise_about_another_service_is_no_reason_to_repeat() {
    for (instance, requests) in [("payment", 1), ("api", 2)] {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let hop = upstream(move |mut stream, _| {
            let count = count.clone();
            async move {
                while read_request(&mut stream).await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    let mark = format!("seawall-rejected: breaker; instance=\"{instance}\"; sent=?0");
                    let text = format!("HTTP/1.1 503 X\r\n{mark}\r\ncontent-length: 0\r\n\r\n");
                    let _ = stream.write_all(text.as_bytes()).await;
                }
            }
        })
        .await;
        let proxy = Proxy::start(serde_json::json!({ "retry": { "attempts": 2, "backoff": "1ms" } }), &[hop]);
        assert_eq!(status(&proxy.post("").await), "503");
        assert_eq!(seen.load(Ordering::SeqCst), requests, "{instance}");
    }
}

#[tokio::test]
async fn a_client_that_breaks_off_its_own_body_speaks_against_nobody() {
    let addr = upstream(|mut stream, _| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    })
    .await;
    let policy = serde_json::json!({ "breaker": { "window": "10 calls", "minimum_calls": 1 } });
    let proxy = Proxy::start(policy, &[addr]);
    for request in [
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 900000\r\n\r\nab",
    ] {
        let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(stream);
    }
    // They have to have ended before they can be judged.
    let settled = async {
        while proxy.trigger.waiting().to_string() != "2 listeners" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(settled).await;
    let guards = proxy.upstreams.guards();
    assert_eq!(guards[0].breaker.get().unwrap().sums(), seawall_resilience::breaker::Sums::default());
}

#[tokio::test]
async fn an_attempt_that_hangs_is_given_up_and_the_whole_has_its_end() {
    let silent = upstream(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let policy = serde_json::json!({ "timeout": "400ms", "attempt_timeout": "100ms", "retry": { "attempts": 2 } });
    let both = Proxy::start(policy.clone(), &[silent, mirror().await]);
    for _ in 0..10 {
        assert_eq!(status(&both.get().await), "200");
    }
    let alone = Proxy::start(policy, &[silent]);
    let started = Instant::now();
    let answer = alone.get().await;
    assert_eq!((status(&answer), header(&answer, "seawall-rejected")), ("504", "timeout; instance=\"api\"; sent=?1"));
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_open_breaker_answers_at_once_and_says_until_when() {
    let policy = serde_json::json!({
        "retry": { "attempts": 1 },
        "breaker": { "window": "10 calls", "minimum_calls": 5, "open_for": "30s" }
    });
    let proxy = Proxy::start(policy, &[nobody().await]);
    for _ in 0..5 {
        assert!(header(&proxy.get().await, "seawall-rejected").starts_with("connect;"));
    }
    let answer = proxy.get().await;
    assert_eq!(status(&answer), "503");
    assert_eq!(header(&answer, "seawall-rejected"), "breaker; instance=\"api\"; retry_after=30; sent=?0");
    assert_eq!(header(&answer, "retry-after"), "30");
    let page = seawall_proxy::metrics::page(&proxy.upstreams);
    for line in [
        r#"seawall_rejections_total{service="api",reason="breaker"} 1"#,
        r#"seawall_rejections_total{service="api",reason="connect"} 5"#,
        r#"seawall_breaker_transitions_total{service="api",to="open"} 1"#,
        r#"seawall_breaker_failed_total{service="api"} 5"#,
        r#"seawall_breaker_rejected_total{service="api"} 1"#,
        r#"seawall_breaker_state{service="api",state="open"} 1"#,
        r#"seawall_breaker_state{service="api",state="closed"} 0"#,
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn a_place_is_held_until_the_last_byte_or_the_callers_end() {
    // Sends half of its answer, then waits for a byte of ours, which never comes.
    let addr = upstream(|mut stream, _| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let policy = serde_json::json!({ "retry": { "attempts": 1 }, "bulkhead": { "concurrent": 1 } });
    let proxy = Proxy::start(policy, &[addr]);
    let mut first = TcpStream::connect(proxy.addr).await.unwrap();
    first.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut head = vec![0; 1024];
    assert!(within(first.read(&mut head)).await.unwrap() > 0);
    let answer = proxy.get().await;
    assert_eq!((status(&answer), header(&answer, "seawall-rejected")), ("503", "bulkhead; instance=\"api\"; sent=?0"));
    drop(first);
    let free = async {
        while proxy.upstreams.guards()[0].bulkhead.get().unwrap().available() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(free).await;
}

#[tokio::test]
async fn an_adaptive_bulkhead_learns_from_answers() {
    let (busy, idle) = (upstream_of(503).await, upstream_of(200).await);
    let policy = serde_json::json!({
        "retry": { "attempts": 1 },
        "bulkhead": { "adaptive": { "algorithm": "aimd", "initial": 2 } }
    });
    let limit = |proxy: &Proxy| proxy.upstreams.guards()[0].bulkhead.get().unwrap().limit();
    let proxy = Proxy::start(policy, &[busy]);
    assert_eq!(status(&proxy.get().await), "503");
    within(async {
        while limit(&proxy) != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    proxy.upstreams.publish(fleet(&[idle]));
    within(async {
        while limit(&proxy) == 1 {
            proxy.get().await;
        }
    })
    .await;
}

/// Answers every request with this status.
async fn upstream_of(status: u16) -> SocketAddr {
    upstream(move |mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_upstream_that_stalls_in_its_body_is_broken_off() {
    let addr = upstream(|mut stream, _| async move {
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    })
    .await;
    let proxy = Proxy::start(serde_json::json!({ "timeout": "200ms" }), &[addr]);
    let started = Instant::now();
    let answer = proxy.get().await;
    assert!(answer.ends_with("ab"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_new_fleet_is_used_by_the_next_request() {
    let proxy = Proxy::start(serde_json::json!({ "retry": { "attempts": 1 } }), &[nobody().await]);
    assert_eq!(status(&proxy.get().await), "503");
    proxy.upstreams.publish(fleet(&[mirror().await]));
    for _ in 0..20 {
        assert_eq!(status(&proxy.get().await), "200");
    }
    proxy.upstreams.publish(fleet(&[]));
    assert!(header(&proxy.get().await, "seawall-rejected").starts_with("no-instance;"));
}

#[tokio::test]
async fn bad_requests_get_a_clear_answer_and_harm_no_other() {
    let proxy = Proxy::start(serde_json::json!({}), &[mirror().await]);
    for (request, wanted) in [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        ("GET /a/../b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "400"),
        ("GET /a/%2e%2E/b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "400"),
        ("GET /a/..%2Fb HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "400"),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "400"),
        ("\0\0garbage\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n", "400"),
    ] {
        let mut stream = TcpStream::connect(proxy.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = within(stream.read(&mut answer)).await.unwrap();
        assert_eq!(status(&String::from_utf8_lossy(&answer[..read])), wanted, "{request:?}");
        assert_eq!(status(&proxy.get().await), "200");
    }
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight_and_takes_nothing_new() {
    let addr = upstream(|mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(400)).await;
            reply(&mut stream, "200 OK", "late").await;
        }
    })
    .await;
    let proxy = Proxy::start(serde_json::json!({}), &[addr]);
    let mut busy = TcpStream::connect(proxy.addr).await.unwrap();
    busy.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut idle = TcpStream::connect(proxy.addr).await.unwrap();
    // The request has to be in flight, and the idle connection accepted.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(proxy.trigger.waiting().to_string(), "2 connections, 2 listeners");
    let started = Instant::now();
    let report = proxy.trigger.drain(Duration::from_secs(10)).await;
    assert!(report.is_clean() && started.elapsed() < Duration::from_secs(5), "{report}");
    let mut answer = Vec::new();
    within(busy.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.ends_with("late") && header(&answer, "connection") == "close", "{answer}");
    assert_eq!(within(idle.read(&mut [0; 10])).await.unwrap(), 0);
    assert!(TcpStream::connect(proxy.addr).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_refused() {
    let proxy = Proxy::start(serde_json::json!({}), &[]);
    let config = ServerConfig {
        name: "second".into(),
        listen: proxy.addr,
        workers: 1,
        connections: 10,
        edge: None,
        tls: None,
        access_log: None,
    };
    assert_eq!(Server::bind(config).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}
