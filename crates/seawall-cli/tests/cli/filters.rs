//! Filters through a real gateway.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::*;

mod bodies;
mod detours;

/// A service that answers with whatever bytes the test wants, and reads bodies of either framing.
struct Service {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Heard>>>,
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
struct Heard {
    head: String,
    body: Vec<u8>,
}

impl Heard {
    fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_default()
    }

    fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

impl Service {
    fn start(answer: impl Fn(&Heard, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    while let Some(heard) = hear(&mut stream) {
                        log.lock().unwrap().push(heard.clone());
                        answer(&heard, &mut stream);
                    }
                });
            }
        });
        Self { addr, seen }
    }

    /// Answers 200 with these headers and this body.
    fn saying(headers: &'static str, body: &'static str) -> Self {
        Self::start(move |_, stream| reply(stream, 200, headers, body.as_bytes()))
    }

    fn last(&self) -> Heard {
        self.seen.lock().unwrap().last().cloned().unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn reply(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

fn hear(stream: &mut TcpStream) -> Option<Heard> {
    let mut byte = [0];
    let mut line = |stream: &mut TcpStream, end: &[u8]| {
        let mut read = Vec::new();
        while !read.ends_with(end) {
            stream.read_exact(&mut byte).ok()?;
            read.push(byte[0]);
        }
        Some(String::from_utf8_lossy(&read).to_lowercase().trim_end().to_owned())
    };
    let head = line(stream, b"\r\n\r\n")?;
    let mut heard = Heard { head, body: Vec::new() };
    if heard.header("transfer-encoding") == "chunked" {
        loop {
            let size = usize::from_str_radix(&line(stream, b"\r\n")?, 16).ok()?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).ok()?;
            heard.body.extend(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else {
        heard.body = vec![0; heard.header("content-length").parse().unwrap_or(0)];
        stream.read_exact(&mut heard.body).ok()?;
    }
    Some(heard)
}

/// Sends bytes as they are and reads the answer to its end, or to when nothing comes any more.
fn raw(addr: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // Who refuses early may not read it all.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// A site with these routes of `s`, which is registered, and a gateway that serves.
fn site(yaml: &str, services: &[(&str, SocketAddr)]) -> (Site, [Running; 2]) {
    let names: Vec<_> = services.iter().map(|(name, _)| format!("{name}: {{}}")).collect();
    let yaml = format!("control: {{ listen: CONTROL }}\n{yaml}\nservices: {{ {} }}\n", names.join(", "));
    let site = Site::new(&yaml);
    let control = site.control();
    for (at, (name, addr)) in services.iter().enumerate() {
        site.register(name, &format!("i{at}"), *addr);
    }
    let gateway = site.start(&["gateway"]);
    until("the gateway serves", || send(site.gateway, "GET", "/up", &[], "").status == 200);
    (site, [control, gateway])
}

/// What `seawall config check` says of a route with these filters.
fn mistakes(filters: &str) -> String {
    let site = Site::new(&format!(
        "gateways: {{ public: {{ listen: GATEWAY, routes: [ {{ id: a, match: {{ path: '/{{x}}' }}, filters: [ {filters} ], to: s }} ] }} }}\nservices: {{ s: {{}} }}\n"
    ));
    let output = site.run(&["config", "check"]);
    assert!(!output.status.success(), "{filters} is no mistake");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn heads_are_changed_as_it_is_written() {
    let service = Service::saying(
        "location: http://s/v3/orders/7\r\nvary: a\r\nvary: b\r\nvary: a\r\nx-link: /x?key=secret&a\r\n",
        "ok",
    );
    let (site, _running) = site(
        "
gateways:
  public:
    listen: GATEWAY
    filters:
      - preserve_host: true
      - add_header: { x-order: gateway }
    routes:
      - { id: up, match: { path: /up }, filters: [ { respond: { status: 200 } }, { set_status: 200 } ] }
      - { id: own, match: { path: /own/** }, filters: [ { preserve_host: false }, { rewrite_query: { name: sort, to: created } } ], to: s }
      - { id: named, match: { path: /named }, filters: [ { set_host: 'legacy.example:8443' }, { set_status: 418 } ], to: s }
      - id: all
        match: { path: /** }
        filters:
          - add_header: { x-order: route }
          - rewrite_location: {}
          - dedupe_response_header: { names: [vary], keep: unique }
          - rewrite_response_header: { name: x-link, regex: 'key=[^&]+', to: 'key=-' }
        to: s
",
        &[("s", service.addr)],
    );
    let all = get(site.gateway, "/x");
    assert_eq!(all.header("location"), "http://test/orders/7", "{all:?}");
    assert_eq!(all.header("x-link"), "/x?key=-&a");
    assert_eq!(all.head.lines().filter(|line| line.starts_with("vary")).collect::<Vec<_>>(), ["vary: a", "vary: b"]);
    let heard = service.last();
    assert_eq!(heard.header("host"), "test");
    let order: Vec<_> = heard.head.lines().filter(|line| line.starts_with("x-order")).collect();
    assert_eq!(order, ["x-order: gateway", "x-order: route"]);
    assert_eq!(get(site.gateway, "/own/x?sort=date&page=2").header("location"), "http://s/v3/orders/7");
    assert_eq!((service.last().header("host"), service.last().path()), ("s", "/own/x?sort=created&page=2"));
    assert_eq!(get(site.gateway, "/named").status, 418);
    assert_eq!(service.last().header("host"), "legacy.example:8443");
}

#[test]
fn large_requests_are_refused_whatever_their_framing() {
    let service = Service::saying("", "ok");
    let (site, _running) = site(
        "
gateways:
  public:
    listen: GATEWAY
    filters: [ { request_size: { body: 1 KiB, headers: 2 KiB } } ]
    routes: [ { id: all, match: {}, to: s } ]
",
        &[("s", service.addr)],
    );
    let status = |answer: &[u8]| String::from_utf8_lossy(answer).get(9..12).unwrap_or_default().to_owned();
    let chunked = |chunks: &[usize]| {
        let mut bytes =
            b"POST /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for size in chunks {
            bytes.extend(format!("{size:x}\r\n{}\r\n", "a".repeat(*size)).bytes());
        }
        bytes.extend(b"0\r\n\r\n");
        raw(site.gateway, &bytes)
    };
    assert_eq!(send(site.gateway, "POST", "/x", &[], &"a".repeat(1024)).status, 200);
    assert_eq!(status(&chunked(&[512, 512])), "200");
    assert_eq!(service.last().body.len(), 1024);
    let before = service.count();
    let refused = send(site.gateway, "POST", "/x", &[], &"a".repeat(1025));
    assert_eq!((refused.status, &*refused.body), (413, "the request's body is larger than 1 KiB\n"));
    let long = format!("x-long: {}", "a".repeat(2048));
    assert_eq!(send(site.gateway, "GET", "/x", &[&long], "").status, 431);
    assert_eq!(service.count(), before, "neither was sent");
    assert_eq!(status(&chunked(&[512, 512, 1])), "413");
    assert_eq!(send(site.gateway, "POST", "/x", &[], "a").status, 200, "the others are not harmed");
}

#[test]
fn a_request_may_name_its_service_among_those_of_the_route() {
    let (one, two) = (Service::saying("", "one"), Service::saying("", "two"));
    let (site, _running) = site(
        "
gateways:
  public:
    listen: GATEWAY
    routes:
      - { id: up, match: { path: /up }, filters: [ { respond: { status: 200 } } ] }
      - { id: by-name, match: { path: '/of/{tenant}' }, filters: [ { to_service: { name: '{tenant}-orders', among: [one-orders, two-orders] } } ] }
      - { id: by-header, match: { path: /h }, filters: [ { to_service: { header: x-service, among: [two-orders] } } ], to: one-orders }
",
        &[("one-orders", one.addr), ("two-orders", two.addr)],
    );
    until("both are known", || get(site.gateway, "/of/two").body == "two" && get(site.gateway, "/h").body == "one");
    for (path, header, status, body) in [
        ("/of/one", "x-a: b", 200, "one"),
        ("/of/three", "x-a: b", 400, "bad-request: `three-orders` is none of the services that the route may go to\n"),
        ("/h", "x-service: two-orders", 200, "two"),
        (
            "/h",
            "x-service: http://127.0.0.1/",
            400,
            "bad-request: `http://127.0.0.1/` is none of the services that the route may go to\n",
        ),
    ] {
        let answer = send(site.gateway, "GET", path, &[header], "");
        assert_eq!((answer.status, &*answer.body), (status, body), "{path} {header}");
    }
    for (filters, says) in [
        ("{ to_service: { name: '{y}', among: [s] } }", "`{y}` is nothing that the path's pattern captures"),
        ("{ to_service: { header: x, among: [s, t] } }", "unknown service `t`"),
        ("{ add_header: { a: b } }, { set_host: 'a b' }", "gateways.public.routes.0.filters.1"),
        ("{ request_size: { headers: 0 B } }", "has to be above 0"),
        ("{ set_status: 99 }", "from 200 to 599"),
        ("{ rewrite_response_header: { name: a, regex: '(', to: b } }", "no regular expression"),
        ("{ rewrite_location: { strip_version: perhaps } }", "perhaps"),
    ] {
        let text = mistakes(filters);
        assert!(text.contains(says), "{filters}: {text}");
    }
}

#[test]
fn pages_of_other_origins_may_do_what_is_written() {
    let service = Service::saying("access-control-allow-origin: *\r\nvary: accept\r\n", "ok");
    let (site, _running) = site(
        "
gateways:
  public:
    listen: GATEWAY
    routes:
      - { id: up, match: { path: /up }, filters: [ { respond: { status: 200 } } ] }
      - id: api
        match: { path: /api/**, method: [GET, PUT], headers: { x-version: '2' } }
        filters:
          - cors:
              origins: ['https://*.shop.example']
              methods: [GET, PUT]
              headers: [content-type, x-version]
              expose: [x-total]
              credentials: true
        to: s
      - { id: rest, match: { path: /rest/** }, to: s }
",
        &[("s", service.addr)],
    );
    let ask = |method: &str, path: &str, headers: &[&str]| send(site.gateway, method, path, headers, "");
    let page = "origin: https://www.shop.example";
    let wants = ["access-control-request-method: PUT", "access-control-request-headers: content-type, x-version"];
    let before = service.count();
    let preflight = ask("OPTIONS", "/api/x", &[page, wants[0], wants[1]]);
    assert_eq!(preflight.status, 204, "{preflight:?}");
    for (name, value) in [
        ("access-control-allow-origin", "https://www.shop.example"),
        ("access-control-allow-methods", "get, put"),
        ("access-control-allow-headers", "content-type, x-version"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
        ("vary", "origin, access-control-request-method, access-control-request-headers"),
    ] {
        assert_eq!(preflight.header(name), value, "{name}: {preflight:?}");
    }
    assert_eq!(ask("OPTIONS", "/api/x", &["origin: https://evil.example", wants[0]]).status, 403);
    assert_eq!(
        ask("OPTIONS", "/api/x", &[page, "access-control-request-method: DELETE"]).status,
        404,
        "no route takes it"
    );
    assert_eq!(service.count(), before, "the service is not asked");
    let read = ask("GET", "/api/x", &[page, "x-version: 2"]);
    let lines: Vec<_> =
        read.head.lines().filter(|line| line.starts_with("access-control-") || line.starts_with("vary")).collect();
    let wanted = [
        "vary: accept",
        "vary: origin",
        "access-control-allow-origin: https://www.shop.example",
        "access-control-allow-credentials: true",
        "access-control-expose-headers: x-total",
    ];
    assert!(lines.len() == wanted.len() && wanted.iter().all(|line| lines.contains(line)), "{lines:?}");
    let other = ask("GET", "/api/x", &["origin: https://evil.example", "x-version: 2"]);
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, ""), "its page cannot read it");
    assert_eq!(ask("OPTIONS", "/rest/x", &[page, wants[0]]).body, "ok", "a service may do it by itself");
    for (filters, says) in [
        ("{ cors: { origins: ['*'], credentials: true } }", "the origins have to be named"),
        ("{ cors: { origins: [shop.example] } }", "is no origin such as"),
        ("{ cors: { origin: ['*'] } }", "unknown key `origin`"),
    ] {
        let text = mistakes(filters);
        assert!(text.contains(says), "{filters}: {text}");
    }
}
