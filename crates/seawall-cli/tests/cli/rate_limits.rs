//! Limits of the gateway: for each caller, of several kinds, here and together in a Redis.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use seawall_servers::Server;

use crate::support::{Participant, Site, free_addr, get, send, until};

const LIMITS: &str = "
control: { listen: CONTROL }
gateways:
  public:
    listen: GATEWAY
    admin: ADMIN
    trusted_hops: 1
    routes:
      - id: two
        match: { path: /two }
        filters:
          - rate_limit: { name: hour, rate: 5/h, headers: both, key: [ { header: x-key } ] }
          - rate_limit: { name: day, quota: 3/day, headers: both, key: [ { header: x-key }, route ] }
        to: pages
      - { id: client, match: { path: /client }, filters: [ { rate_limit: { rate: 1/h, cost: 1 } } ], to: pages }
      - { id: slow, match: { path: /slow }, filters: [ { rate_limit: { concurrent: 1, key: [ service ] } } ], to: pages }
      - { id: pass, match: { path: /pass }, filters: [ { rate_limit: { rate: 1/h, key: [ { claim: x-user } ], without_key: pass } } ], to: pages }
      - { id: shared, match: { path: /shared }, filters: [ { rate_limit: { rate: 1/h, algorithm: sliding_window, key: [ { claim: x-user } ], without_key: shared } } ], to: pages }
services: { pages: {} }
";

#[test]
fn every_caller_has_limits_of_his_own_and_is_told_of_all() {
    let admin = free_addr();
    let site = Site::new(&LIMITS.replace("ADMIN", &admin.to_string()));
    let pages = Participant::start(|seen| {
        if seen.path == "/slow" {
            std::thread::sleep(Duration::from_millis(800));
        }
        (200, seen.path.clone())
    });
    let _control = site.control();
    site.register("pages", "one", pages.addr);
    let _gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/pass").status == 200);
    let ask = |path: &str, header: &str| send(site.gateway, "GET", path, &[header], "");

    let first = ask("/two", "x-key: a");
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.header("ratelimit-policy"), "\"hour\";q=5;w=3600, \"day\";q=3;w=86400");
    assert!(first.header("ratelimit").starts_with("\"hour\";r=4;t=720, \"day\";r=2;t="), "{first:?}");
    assert_eq!((first.header("x-ratelimit-limit"), first.header("x-ratelimit-remaining")), ("3", "2"));
    assert_eq!((ask("/two", "x-key: a").status, ask("/two", "x-key: a").status), (200, 200));
    let over = ask("/two", "x-key: a");
    assert_eq!((over.status, over.header("x-ratelimit-remaining")), (429, "0"), "{over:?}");
    assert!(over.header("retry-after").parse::<u64>().is_ok_and(|after| (1..=86400).contains(&after)), "{over:?}");
    assert!(over.header("seawall-rejected").starts_with("rate-limit; instance=\"pages\""), "{over:?}");
    assert!(over.body.contains("more than 3/day (`day`)"), "{over:?}");
    assert_eq!(ask("/two", "x-key: b").status, 200);
    let keyless = get(site.gateway, "/two");
    assert_eq!((keyless.status, keyless.body.contains("x-key")), (403, true), "{keyless:?}");

    let from = |address: &str| ask("/client", &format!("x-forwarded-for: {address}")).status;
    assert_eq!((from("192.0.2.1"), from("192.0.2.1"), from("192.0.2.2")), (200, 429, 200));
    assert_eq!((from("2001:db8::1"), from("2001:db8::2"), from("2001:db8:0:1::1")), (200, 429, 200), "one network");
    assert_eq!(ask("/pass", "x-user: a").status, 200);
    assert_eq!((ask("/pass", "x-user: a").status, get(site.gateway, "/pass").status), (429, 200));
    assert_eq!((get(site.gateway, "/shared").status, get(site.gateway, "/shared").status), (200, 429));

    let slow = std::thread::spawn(move || get(site.gateway, "/slow").status);
    std::thread::sleep(Duration::from_millis(300));
    let second = get(site.gateway, "/slow");
    assert_eq!((second.status, second.header("ratelimit")), (429, "\"default\";r=0"), "{second:?}");
    assert_eq!(slow.join().unwrap(), 200);
    until("its place is free", || get(site.gateway, "/slow").status == 200);

    let page = get(admin, "/metrics").body;
    let counted = "seawall_rate_limit_requests_total{route=\"two\",limit=\"day\",result=\"limited\"} 1";
    assert!(page.contains(counted), "{page}");
    let explained = site.run(&["route", "explain", "GET", "/two"]);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(text.contains("`day`: 3/day for each x-key and route"), "{text}");
}

#[test]
fn a_place_is_taken_until_the_answer_has_ended() {
    let site = Site::new(&LIMITS.replace("ADMIN", &free_addr().to_string()));
    // A service that stops in the middle of its answer, until it is told to go on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 200 X\r\nconnection: close\r\ncontent-length: 4\r\n\r\nab");
            let _ = wait.recv_timeout(Duration::from_secs(20));
            let _ = stream.write_all(b"cd");
        }
    });
    let _control = site.control();
    site.register("pages", "one", addr);
    let _gateway = site.start(&["gateway"]);
    let mut stream = TcpStream::connect(site.gateway);
    until("the gateway serves", || {
        stream = TcpStream::connect(site.gateway);
        stream.is_ok() && get(site.gateway, "/nowhere").status == 404
    });
    let mut stream = stream.unwrap();
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"ab") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    assert_eq!(get(site.gateway, "/slow").status, 429, "the answer has not ended");
    // The client goes away in the middle.
    drop(stream);
    let (first, second) = (go.send(()), go.send(()));
    assert!(first.is_ok() && second.is_ok());
    until("its place is free", || get(site.gateway, "/slow").status == 200);
}

#[test]
fn three_gateways_keep_one_limit_together_and_outlive_their_store() {
    let mut redis = Server::redis();
    let site = Site::new("control: { listen: CONTROL }\nservices: { pages: {} }\n");
    let pages = Participant::start(|_| (200, "page".to_owned()));
    let gateways: Vec<_> = (0..3).map(|_| free_addr()).collect();
    let listening = |(at, addr): (usize, &std::net::SocketAddr)| {
        let limit = format!("{{ rate: 30/h, store: 'redis://{}', deadline: 100ms, key: [ route ] }}", redis.addr());
        let route = format!("{{ id: pages, match: {{}}, filters: [ {{ rate_limit: {limit} }} ], to: pages }}");
        format!("  g{at}: {{ listen: '{addr}', routes: [ {route} ] }}\n")
    };
    let yaml: String = gateways.iter().enumerate().map(listening).collect();
    let control = format!("control: {{ listen: '{}' }}\ngateways:\n{yaml}services: {{ pages: {{}} }}\n", site.control);
    std::fs::write(site.dir.path().join("seawall.yaml"), control).unwrap();
    let _control = site.control();
    site.register("pages", "one", pages.addr);
    let _running: Vec<_> = (0..3).map(|at| site.start(&["gateway", &format!("g{at}")])).collect();
    for gateway in &gateways {
        until("the gateway serves", || get(*gateway, "/").status != 0);
    }
    let round = || gateways.iter().map(|gateway| get(*gateway, "/").status).collect::<Vec<_>>();
    for _ in 0..30 {
        round();
    }
    assert_eq!(pages.seen().len(), 30, "together");
    assert_eq!(round(), [429; 3]);
    // Away: each has the same limit for itself.
    redis.kill9();
    let before = pages.seen().len();
    for _ in 0..40 {
        round();
    }
    let alone = pages.seen().len() - before;
    assert_eq!(alone, 3 * 30, "each by itself");
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(round(), [429; 3]);
    }
    let each = began.elapsed() / 60;
    assert!(each < Duration::from_millis(20), "{each:?} a request, connection and all, with a dead store");
}

#[test]
fn mistakes_in_limits_are_named() {
    for (limit, says) in [
        ("{}", "give exactly one of `rate`, `quota` and `concurrent`"),
        ("{ rate: 1/s, quota: 1/day }", "give exactly one of"),
        ("{ rate: 1/s, cost: 2 }", "`cost` is 2, allowed is 1 to 1"),
        ("{ rate: 1/s, key: [] }", "`key` is empty"),
        ("{ rate: 1/s, name: 'a b' }", "a name is 1 to 64"),
        ("{ rate: 1/s, deadline: 1s }", "need a `store`"),
        ("{ rate: 1/s, store: 'http://x' }", "is not the URL of a Redis"),
        ("{ concurrent: 1, store: 'redis://x' }", "by each gateway for itself"),
        ("{ rate: 1/s, algorithm: sliding_window, burst: 2 }", "has no `burst`"),
        ("{ quota: 1/year }", "is not a quota such as `1000/day`"),
        ("{ rate: 1/s, ipv6_prefix: 0 }", "`ipv6_prefix` is 0"),
        ("{ rate: 1/s } }, { rate_limit: { rate: 2/s }", "two limits are named `default`"),
    ] {
        let site = Site::new(&format!(
            "gateways: {{ public: {{ listen: GATEWAY, routes: [ {{ id: a, match: {{}}, filters: [ {{ rate_limit: {limit} }} ], to: s }} ] }} }}\nservices: {{ s: {{}} }}\n"
        ));
        let output = site.run(&["config", "check"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(says) && text.contains("filters"), "{limit}: {text}");
    }
}
