//! Filters that hold requests up, copy them, or say where they go.

use std::collections::BTreeSet;
use std::time::Instant;

use super::*;

#[test]
fn faults_are_made_as_ordered_and_within_the_time_of_the_call() {
    let service = Service::saying("", "ok");
    let (site, _running) = site(
        "
policies: { s: { timeout: 700ms, retry: { attempts: 3 } } }
gateways:
  public:
    listen: GATEWAY
    routes:
      - { id: up, match: { path: /up }, filters: [ { respond: { status: 200 } } ] }
      - { id: half, match: { path: /half }, filters: [ { fault: { abort: { status: 502, share: 50% } } } ], to: s }
      - { id: slow, match: { path: /slow }, filters: [ { fault: { delay: { by: 1m } } } ], to: s }
      - { id: asked, match: { path: /asked }, filters: [ { fault: { header: x-fault } } ], to: s }
",
        &[("s", service.addr)],
    );
    until("the service is known", || get(site.gateway, "/asked").status == 200);
    let before = service.count();
    let halves: Vec<_> = (0..60).map(|_| get(site.gateway, "/half").status).collect();
    let good = halves.iter().filter(|status| **status == 200).count();
    assert!((10..=50).contains(&good) && halves.iter().all(|status| [200, 502].contains(status)), "{halves:?}");
    assert_eq!(service.count() - before, good, "the others went to no service, and were not tried again");
    let begun = Instant::now();
    assert_eq!(get(site.gateway, "/slow").status, 504);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let asked = send(site.gateway, "GET", "/asked", &["x-fault: delay=200ms, abort=404"], "");
    assert!(asked.status == 404 && begun.elapsed() >= Duration::from_millis(200), "{asked:?}");
    assert_eq!(get(site.gateway, "/asked").status, 200);
    for (filters, says) in
        [("{ fault: {} }", "say what happens"), ("{ fault: { abort: { status: 20 } } }", "from 400 to 599")]
    {
        let text = mistakes(filters);
        assert!(text.contains(says), "{filters}: {text}");
    }
}

#[test]
fn copies_go_to_another_service_and_slow_nobody_down() {
    let service = Service::saying("", "ok");
    let shadow = Service::start(|heard, stream| {
        if heard.path().starts_with("/slow") {
            std::thread::sleep(Duration::from_secs(3));
        }
        reply(stream, 500, "", b"nobody reads this");
    });
    let admin = free_addr();
    let (site, _running) = site(
        &"
gateways:
  public:
    listen: GATEWAY
    admin: ADMIN
    routes:
      - { id: up, match: { path: /up }, filters: [ { respond: { status: 200 } } ] }
      - { id: all, match: { path: /api/** }, filters: [ { mirror: { to: shadow, concurrent: 2, body: 1 KiB } }, { strip_prefix: 1 } ], to: s }
"
        .replace("ADMIN", &admin.to_string()),
        &[("s", service.addr), ("shadow", shadow.addr)],
    );
    until("both are known", || get(site.gateway, "/api/x").status == 200 && shadow.count() > 0);
    let posted = send(site.gateway, "POST", "/api/orders?a=b", &["x-a: 1"], "{\"a\":1}");
    assert_eq!((posted.status, &*posted.body), (200, "ok"));
    until("the copy has come", || shadow.last().path() == "/orders?a=b");
    let (copy, own) = (shadow.last(), service.last());
    assert_eq!((&copy.body, copy.header("x-a"), copy.header("host")), (&own.body, "1", "shadow"));
    let chunked = b"PUT /api/chunks HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";
    raw(site.gateway, chunked);
    until("the copy has come", || shadow.last().path() == "/chunks");
    assert_eq!(shadow.last().body, b"abcdef");
    let before = shadow.count();
    assert_eq!(send(site.gateway, "POST", "/api/x", &[], &"a".repeat(2000)).status, 200);
    assert_eq!(service.last().body.len(), 2000, "its own service has it all");
    let begun = Instant::now();
    for _ in 0..6 {
        assert_eq!(get(site.gateway, "/api/slow").status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(shadow.count() - before, 2, "no more are under way, and the large one is not copied");
    let page = get(admin, "/metrics").body;
    let dropped = "seawall_mirrored_total{route=\"all\",service=\"shadow\",outcome=\"dropped\"} 5";
    assert!(page.contains(dropped), "{page}");
    for (filters, says) in [
        ("{ mirror: { to: t } }", "unknown service `t`"),
        ("{ mirror: { to: s, concurrent: 0 } }", "allowed is 1 to 100000"),
        ("{ mirror: { to: s, share: 200% } }", "is not a share"),
    ] {
        let text = mistakes(filters);
        assert!(text.contains(says), "{filters}: {text}");
    }
}

#[test]
fn a_client_stays_at_its_endpoint_while_that_is_up() {
    let endpoints: Vec<_> = ["0", "1", "2", "3"].iter().map(|name| Service::saying("", name)).collect();
    let services: Vec<_> = endpoints.iter().map(|endpoint| ("s", endpoint.addr)).collect();
    let yaml = "
control: { listen: CONTROL }
gateways:
  public:
    listen: GATEWAY
    trusted_hops: 1
    routes:
      - { id: up, match: { path: /up }, filters: [ { respond: { status: 200 } } ] }
      - { id: cookie, match: { path: /cookie }, filters: [ { affinity: { cookie: { secret: 0123456789abcdef } } } ], to: s }
      - { id: header, match: { path: /header }, filters: [ { affinity: { header: x-user } } ], to: s }
      - { id: address, match: { path: /address }, filters: [ { affinity: { address: true } } ], to: s }
services: { s: {} }
";
    let site = Site::new(yaml);
    let _control = site.control();
    for (at, (name, addr)) in services.iter().enumerate() {
        site.register(name, &format!("i{at}"), *addr);
    }
    let _gateway = site.start(&["gateway"]);
    let ask = |path: &str, header: &str| send(site.gateway, "GET", path, &[header], "");
    until("all are known", || {
        let bodies: BTreeSet<_> = (0..40).map(|_| ask("/cookie", "x-a: b").body).collect();
        bodies.len() == 4
    });
    let first = ask("/cookie", "x-a: b");
    let cookie = first.header("set-cookie").split(';').next().unwrap_or_default().to_owned();
    assert!(cookie.starts_with("seawall-affinity=") && first.head.contains("httponly; samesite=lax"), "{first:?}");
    let own = format!("cookie: {cookie}");
    for _ in 0..20 {
        let again = ask("/cookie", &own);
        assert_eq!((&*again.body, again.header("set-cookie")), (&*first.body, ""));
    }
    for (path, name) in [("/header", "x-user"), ("/address", "x-forwarded-for")] {
        let mut used = BTreeSet::new();
        for user in 0..20 {
            let header = format!("{name}: 10.0.0.{user}");
            let body = ask(path, &header).body;
            assert!((0..3).all(|_| ask(path, &header).body == body), "{path} {header}");
            used.insert(body);
        }
        assert!(used.len() >= 3, "{path}: {used:?}");
    }
    let gone = first.body.parse::<usize>().unwrap();
    let removed = send(site.control, "DELETE", &format!("/v1/services/s/instances/i{gone}"), &[], "");
    assert!((200..300).contains(&removed.status), "{removed:?}");
    let mut moved = Answer::default();
    until("it is gone", || {
        moved = ask("/cookie", &own);
        moved.status == 200 && moved.body != first.body
    });
    let cookie = moved.header("set-cookie").split(';').next().unwrap_or_default().to_owned();
    assert!(!cookie.is_empty(), "it is told where it is now: {moved:?}");
    // Its old endpoint comes back; it stays where it is.
    site.register("s", &format!("i{gone}"), endpoints[gone].addr);
    until("it is back", || (0..40).any(|_| ask("/cookie", "x-a: b").body == first.body));
    for _ in 0..10 {
        assert_eq!(ask("/cookie", &format!("cookie: {cookie}")).body, moved.body);
    }
    let text = mistakes("{ affinity: { cookie: { secret: short } } }");
    assert!(text.contains("too short"), "{text}");
}
