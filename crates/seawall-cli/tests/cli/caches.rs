//! The gateway's cache: what it stores, validates, shares, gives while the service fails, and throws out.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Answer, Running, Site, free_addr, get, send, until};

const FILE: &str = "
control: { listen: CONTROL }
policies: { default: { retry: { attempts: 1 }, breaker: { enabled: false } } }
gateways:
  public:
    listen: GATEWAY
    admin: ADMIN
    routes:
      - id: small
        match: { path: /small/** }
        filters: [ { cache: { size: 64 KiB, max_object: 1 KiB, coalesce: 0s } } ]
        to: pages
      - id: tenants
        match: { path: /tenants/** }
        filters: [ { cache: { by: [ x-tenant ], obey_clients: false } } ]
        to: pages
      - { id: pages, match: {}, filters: [ { cache: { stale_if_error: 60s } } ], to: pages }
services: { pages: {} }
";

/// A service that says what it is told to, and notes what it is asked.
struct Origin {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    fn start(answer: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut stream: TcpStream = stream.unwrap();
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read(&mut byte) {
                            Ok(1) => head.push(byte[0]),
                            _ => return,
                        }
                    }
                    let head = String::from_utf8_lossy(&head).to_lowercase();
                    let count = {
                        let mut log = log.lock().unwrap();
                        log.push(head.clone());
                        log.len()
                    };
                    let _ = stream.write_all(answer(&head, count).as_bytes());
                });
            }
        });
        Self { addr, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(fields: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 X\r\nconnection: close\r\ncontent-length: {length}\r\n{fields}\r\n\r\n{body}")
}

fn start(origin: &Origin) -> (Site, SocketAddr, Running, Running) {
    let admin = free_addr();
    let site = Site::new(&FILE.replace("ADMIN", &admin.to_string()));
    let control = site.control();
    site.register("pages", "one", origin.addr);
    let gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(admin, "/readyz").status == 200);
    until("the service is known", || get(site.gateway, "/ready").status == 200);
    (site, admin, control, gateway)
}

fn status(answer: &Answer) -> &str {
    answer.header("cache-status")
}

#[test]
fn answers_are_stored_validated_and_thrown_out() {
    let origin = Origin::start(|head, count| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if head.contains("if-none-match: \"v1\"") {
            return "HTTP/1.1 304 X\r\nconnection: close\r\netag: \"v1\"\r\nx-count: new\r\ncache-control: max-age=60\r\n\r\n".to_owned();
        }
        match path {
            "/fresh" => {
                answer("cache-control: max-age=60\r\nvary: x-a\r\nsurrogate-key: shop all", &format!("{path} {count}"))
            }
            "/stale" => {
                answer("cache-control: max-age=0\r\netag: \"v1\"\r\nx-count: old\r\ncache-tag: all, b", "stale")
            }
            "/private" => answer("cache-control: private, max-age=60", &format!("{count}")),
            "/small/large" => answer("cache-control: max-age=60", &"x".repeat(2000)),
            "/small/at-once" => {
                "HTTP/1.1 200 X\r\nconnection: close\r\ncache-control: max-age=60\r\n\r\nno length".to_owned()
            }
            "/tenants/a" => answer("cache-control: max-age=60", &format!("{count}")),
            _ => answer("cache-control: no-store", path),
        }
    });
    let (site, admin, _control, _gateway) = start(&origin);
    let ask = |path: &str, fields: &[&str]| send(site.gateway, "GET", path, fields, "");

    let first = get(site.gateway, "/fresh");
    assert_eq!(status(&first), "seawall; fwd=uri-miss; stored", "{first:?}");
    let second = get(site.gateway, "/fresh");
    assert_eq!((&*second.body, second.header("age")), (&*first.body, "0"), "{second:?}");
    assert!(status(&second).starts_with("seawall; hit; ttl=60") || status(&second).starts_with("seawall; hit; ttl=59"));
    let other = ask("/fresh", &["x-a: 1"]);
    assert_eq!(status(&other), "seawall; fwd=vary-miss; stored");
    assert_ne!(other.body, first.body);
    let asked_for_newer = ask("/fresh", &["cache-control: no-cache"]);
    assert_eq!((status(&asked_for_newer), asked_for_newer.body == first.body), ("seawall; fwd=stale; stored", false));
    let only = ask("/nothing", &["cache-control: only-if-cached"]);
    assert_eq!(only.status, 504);
    let part = ask("/fresh", &["range: bytes=1-3"]);
    assert_eq!((part.status, &*part.body, part.header("content-range")), (206, "fre", "bytes 1-3/8"), "{part:?}");

    assert_eq!(status(&get(site.gateway, "/stale")), "seawall; fwd=uri-miss; stored");
    let validated = get(site.gateway, "/stale");
    assert_eq!(
        (status(&validated), &*validated.body),
        ("seawall; fwd=stale; fwd-status=304", "stale"),
        "{validated:?}"
    );
    assert_eq!(validated.header("x-count"), "new");
    let has_it = ask("/stale", &["if-none-match: \"v0\", W/\"v1\""]);
    assert_eq!((has_it.status, &*has_it.body, has_it.header("etag")), (304, "", "\"v1\""), "{has_it:?}");

    assert_eq!(status(&get(site.gateway, "/private")), "seawall; fwd=uri-miss; detail=\"private\"");
    assert_ne!(get(site.gateway, "/private").body, get(site.gateway, "/private").body);
    assert_eq!(status(&get(site.gateway, "/small/large")), "seawall; fwd=uri-miss; detail=\"too large\"");
    get(site.gateway, "/small/at-once");
    assert!(status(&get(site.gateway, "/small/at-once")).starts_with("seawall; hit"));
    assert_eq!(status(&get(site.gateway, "/x")), "seawall; fwd=uri-miss; detail=\"no-store\"");

    let tenant = |name: &str| ask("/tenants/a", &[&format!("x-tenant: {name}"), "cache-control: no-cache"]).body;
    let one = tenant("one");
    assert_eq!(tenant("one"), one, "the client does not decide");
    assert_ne!(tenant("two"), one);

    // What changes something.
    assert!(status(&get(site.gateway, "/fresh")).contains("hit"));
    assert_eq!(status(&send(site.gateway, "POST", "/fresh", &[], "{}")), "seawall; fwd=method");
    assert_eq!(status(&get(site.gateway, "/fresh")), "seawall; fwd=uri-miss; stored");

    let shown = site.run(&["cache", "show", "--admin", &admin.to_string()]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.lines().any(|line| line.contains("tenants") && line.contains(" 2 ")), "{text}");
    let purge = |words: &[&str]| {
        let output = site.run(&[&["cache", "purge", "--admin", &admin.to_string()], words].concat());
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let says = purge(&["--tag", "all"]);
    assert!(says.contains(": 2 answers thrown out"), "{says}");
    assert_eq!(status(&get(site.gateway, "/fresh")), "seawall; fwd=uri-miss; stored");
    let says = purge(&["--url", "https://TEST/tenants/*"]);
    assert!(says.contains(": 2 answers thrown out"), "{says}");
    assert!(purge(&["--url", "test/nowhere"]).contains(": 0 answers"));
    assert!(purge(&["--all"]).contains(": 2 answers"), "/fresh and /small/at-once");
    assert!(purge(&[]).contains("--url"));
    let page = get(admin, "/metrics").body;
    assert!(page.contains("seawall_cache_requests_total{route=\"pages\",result=\"validated\"} 1"), "{page}");
}

#[test]
fn many_who_ask_the_same_ask_once_and_failures_are_covered() {
    let down = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_down = down.clone();
    let origin = Origin::start(move |head, count| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if is_down.load(std::sync::atomic::Ordering::Relaxed) {
            return "HTTP/1.1 503 X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned();
        }
        match path {
            "/crowd" => {
                std::thread::sleep(Duration::from_millis(700));
                answer("cache-control: max-age=60", &format!("{count}"))
            }
            "/uncrowded" => {
                std::thread::sleep(Duration::from_millis(300));
                answer("cache-control: private", &format!("{count}"))
            }
            "/old" => answer("cache-control: max-age=1", &format!("{count}")),
            "/strict" => answer("cache-control: max-age=1, must-revalidate\r\netag: \"x\"", &format!("{count}")),
            "/meanwhile" => answer("cache-control: max-age=1, stale-while-revalidate=60", &format!("{count}")),
            "/broken" => "HTTP/1.1 200 X\r\ncontent-length: 10\r\ncache-control: max-age=60\r\n\r\nfive!".to_owned(),
            _ => answer("cache-control: no-store", path),
        }
    });
    let (site, _admin, _control, _gateway) = start(&origin);
    let asked = |path: &str| origin.seen().iter().filter(|head| head.starts_with(&format!("get {path} "))).count();
    let crowd = |path: &'static str| {
        let gateway = site.gateway;
        let crowd: Vec<_> = (0..20).map(|_| std::thread::spawn(move || get(gateway, path))).collect();
        crowd.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    };
    let answers = crowd("/crowd");
    assert_eq!(asked("/crowd"), 1);
    assert!(answers.iter().all(|one| one.status == 200 && one.body == answers[0].body));
    assert!(answers.iter().any(|one| status(one) == "seawall; fwd=uri-miss; collapsed"));
    // Nobody is given another's.
    let answers = crowd("/uncrowded");
    let bodies: std::collections::BTreeSet<_> = answers.iter().map(|one| &one.body).collect();
    assert_eq!((bodies.len(), asked("/uncrowded")), (20, 20));

    // One that breaks off is not stored.
    get(site.gateway, "/broken");
    get(site.gateway, "/broken");
    assert_eq!(asked("/broken"), 2);

    let (old, meanwhile) = (get(site.gateway, "/old").body, get(site.gateway, "/meanwhile").body);
    assert_eq!(get(site.gateway, "/strict").status, 200);
    std::thread::sleep(Duration::from_millis(1200));
    let stale = get(site.gateway, "/meanwhile");
    assert_eq!(stale.body, meanwhile);
    assert!(status(&stale).ends_with("detail=stale-while-revalidate"), "{stale:?}");
    until("it is renewed in the background", || get(site.gateway, "/meanwhile").body != meanwhile);
    assert!(asked("/meanwhile") >= 2);
    down.store(true, std::sync::atomic::Ordering::Relaxed);
    let instead = get(site.gateway, "/old");
    assert_eq!((instead.status, &instead.body), (200, &old), "{instead:?}");
    assert_eq!(status(&instead), "seawall; fwd=stale; fwd-status=503; detail=stale-if-error");
    assert_eq!(get(site.gateway, "/strict").status, 503, "not what has to be validated");
}

#[test]
fn mistakes_in_caches_are_named() {
    for (cache, says) in [
        ("{ size: 1 KiB, max_object: 2 KiB }", "`max_object` is 2 KiB, which does not fit into `size`, 1 KiB"),
        ("{ coalesce: 2m }", "at most 60s is allowed"),
        ("{ by: [ 'a b' ] }", "`a b` is not a header name"),
        ("{ sise: 1 KiB }", "sise"),
    ] {
        let site = Site::new(&format!(
            "gateways: {{ public: {{ listen: GATEWAY, routes: [ {{ id: a, match: {{}}, filters: [ {{ cache: {cache} }} ], to: s }} ] }} }}\nservices: {{ s: {{}} }}\n"
        ));
        let output = site.run(&["config", "check"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(says), "{cache}: {text}");
    }
}
