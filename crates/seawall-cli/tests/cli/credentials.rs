//! Keys, passwords, signed requests, addresses, rules and other services as judges, at a real gateway.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, hmac};

use super::auth::{check, now};
use super::support::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(text: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, text.as_bytes())
}

const FILE: &str = "
control: { listen: CONTROL }
gateways:
  public:
    listen: GATEWAY
    trusted_hops: 1
    routes:
      - id: keys
        match: { path: /keys/** }
        filters:
          - api_key:
              keys: [ { name: shop, sha256: SHOP, claims: { roles: [ writer ] } } ]
              file: keys.txt
              from: [ { header: x-api-key }, { query: key } ]
              forward: { x-consumer: sub }
              optional: true
          - authorize:
              - allow: { method: [ GET ], path: /keys/public/** }
              - deny: { path: /keys/secret/** }
              - allow: { method: [ POST ], claims: { roles: [ writer, admin ] } }
              - allow: { method: [ GET ], claims: { sub: '*' } }
        to: pages
      - id: passwords
        match: { path: /passwords/** }
        filters: [ { basic: { users: [ { name: ann, hash: 'sha256:ANN' } ], file: users.txt, forward: { x-user: sub } } } ]
        to: pages
      - id: signed
        match: { path: /signed/** }
        filters: [ { hmac: { keys: [ { name: bank, file: secret.txt } ], body: 1 KiB, forward: { x-user: sub } } } ]
        to: pages
      - id: inside
        match: { path: /inside/** }
        filters: [ { ip: { allow: [ 10.0.0.0/8 ], deny: [ 10.9.0.0/16 ] } } ]
        to: pages
      - id: judged
        match: { path: /judged/** }
        filters: [ { external_auth: { service: judge, path: /check, copy: [ x-user ], timeout: 500ms } } ]
        to: pages
      - id: lenient
        match: { path: /lenient/** }
        filters: [ { external_auth: { service: judge, path: /check, copy: [ x-user ], timeout: 500ms, on_failure: allow } } ]
        to: pages
services: { pages: {}, judge: {} }
";

struct Stage {
    site: Site,
    pages: Participant,
    judge: Participant,
    _running: [Running; 2],
}

impl Stage {
    fn new() -> Self {
        let ann = hex(sha256("password").as_ref());
        let site = Site::new(&FILE.replace("SHOP", &hex(sha256("shop-key").as_ref())).replace("ANN", &ann));
        let write = |name: &str, text: &str| std::fs::write(site.dir.path().join(name), text).unwrap();
        write("keys.txt", &format!("# of partners\npartner:{}\n", hex(sha256("partner-key").as_ref())));
        write("users.txt", &format!("ben:{}\n", bcrypt("secret")));
        write("secret.txt", &format!("{}\n", "s".repeat(32)));
        let pages = Participant::start(|seen| (200, seen.body.clone()));
        let judge = Participant::start(|seen| match seen.header("authorization") {
            "good" => (200, String::new()),
            "slow" => {
                std::thread::sleep(Duration::from_secs(2));
                (200, String::new())
            }
            "broken" => (500, String::new()),
            _ => (402, "pay first".to_owned()),
        });
        let control = site.control();
        site.register("pages", "one", pages.addr);
        site.register("judge", "one", judge.addr);
        let gateway = site.start(&["gateway"]);
        until("the gateway serves", || get(site.gateway, "/keys/public/x").status == 200);
        Self { site, pages, judge, _running: [control, gateway] }
    }

    fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> u16 {
        send(self.site.gateway, method, path, headers, body).status
    }

    fn last(&self) -> Seen {
        self.pages.seen().pop().unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.site.dir.path().join(name), text).unwrap();
    }
}

/// As htpasswd writes it.
fn bcrypt(password: &str) -> String {
    bcrypt::hash(password, 4).unwrap()
}

#[test]
fn keys_pass_as_the_rules_say() {
    let stage = Stage::new();
    let spoofed = ["x-consumer: root", "x_consumer: root"];
    assert_eq!(stage.send("GET", "/keys/public/x", &spoofed, ""), 200);
    assert_eq!((stage.last().header("x-consumer"), stage.last().header("x_consumer")), ("", ""));
    for (method, path, header, status) in [
        ("GET", "/keys/x", "x-a: b", 403),
        ("GET", "/keys/x", "x-api-key: shop-key", 200),
        ("GET", "/keys/x", "x-api-key: partner-key", 200),
        ("GET", "/keys/x", "x-api-key: shop-ke", 401),
        ("GET", "/keys/public/x", "x-api-key: wrong", 401),
        ("GET", "/keys/x?key=shop-key", "x-a: b", 200),
        ("POST", "/keys/x", "x-api-key: shop-key", 200),
        ("POST", "/keys/x", "x-api-key: partner-key", 403),
        ("DELETE", "/keys/x", "x-api-key: shop-key", 403),
        ("GET", "/keys/secret/x", "x-api-key: shop-key", 403),
        ("GET", "/keys/%73ecret/x", "x-api-key: shop-key", 403),
        ("GET", "/keys//secret/x", "x-api-key: shop-key", 403),
        ("GET", "/keys/secret;a=b/x", "x-api-key: shop-key", 403),
    ] {
        assert_eq!(stage.send(method, path, &[header], ""), status, "{method} {path} {header}");
    }
    assert_eq!(stage.send("GET", "/keys/x", &["x-api-key: partner-key", "x-consumer: root"], ""), 200);
    assert_eq!((stage.last().header("x-consumer"), stage.last().header("x-api-key")), ("partner", ""));
    assert_eq!(stage.send("GET", "/keys/x", &["x-api-key: shop-key", "x-api-key: shop-key"], ""), 400);

    // The file changes: first it is spoilt, and what it said stays; then the key is another.
    stage.write("keys.txt", "partner");
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(stage.send("GET", "/keys/x", &["x-api-key: partner-key"], ""), 200);
    until("it is said", || stage._running[1].log().contains("line 1 is not `name:...`"));
    stage.write("keys.txt", &format!("partner:{}\n", hex(sha256("new-key").as_ref())));
    until("the new key passes", || stage.send("GET", "/keys/x", &["x-api-key: new-key"], "") == 200);
    assert_eq!(stage.send("GET", "/keys/x", &["x-api-key: partner-key"], ""), 401);
}

#[test]
fn passwords_pass_and_are_hashed_once() {
    let stage = Stage::new();
    let basic = |text: &str| format!("authorization: Basic {}", BASE64.encode(text));
    let none = get(stage.site.gateway, "/passwords/x");
    assert_eq!((none.status, none.header("www-authenticate")), (401, "basic realm=\"restricted\", charset=\"utf-8\""));
    for (text, status) in [
        ("ann:password", 200),
        ("ann:passwore", 401),
        ("ann:", 401),
        ("nobody:password", 401),
        ("ben:secret", 200),
        ("ben:secret", 200),
        ("ben:password", 401),
        ("ann", 401),
    ] {
        assert_eq!(stage.send("GET", "/passwords/x", &[&basic(text), "x-user: root"], ""), status, "{text}");
    }
    assert_eq!(stage.send("GET", "/passwords/x", &["authorization: Basic ***"], ""), 401);
    let seen = stage.pages.seen();
    let users: Vec<_> = seen.iter().map(|seen| seen.header("x-user")).skip(1).collect();
    assert_eq!(users, ["ann", "ben", "ben"], "{seen:?}");
    assert_eq!(stage.last().header("authorization"), "");
    // A remembered password ends with the hash that it fitted.
    stage.write("users.txt", &format!("ben:{}\n", bcrypt("other")));
    until("the new password passes", || stage.send("GET", "/passwords/x", &[&basic("ben:other")], "") == 200);
    assert_eq!(stage.send("GET", "/passwords/x", &[&basic("ben:secret")], ""), 401);
}

/// A request as its signer has made it.
struct Signed {
    created: u64,
    nonce: &'static str,
    secret: char,
    keyid: &'static str,
    cover: &'static str,
    digest_of: &'static str,
}

const SIGNED: Signed = Signed {
    created: 0,
    nonce: "",
    secret: 's',
    keyid: "bank",
    cover: r#""@method" "@path" "@query" "content-digest""#,
    digest_of: "{}",
};

impl Signed {
    fn headers(&self) -> [String; 3] {
        let digest = format!("sha-256=:{}:", BASE64.encode(sha256(self.digest_of)));
        let Self { created, nonce, keyid, cover, .. } = self;
        let params = format!(r#"({cover});created={created};nonce="{nonce}";keyid="{keyid}""#);
        let values = [
            ("@method", "POST"),
            ("@path", "/signed/x"),
            ("@query", "?a=b"),
            ("content-digest", &*digest),
            ("x-none", ""),
        ];
        let line = |name: &str| {
            values.iter().find(|(own, _)| *own == name).map(|(name, value)| format!("\"{name}\": {value}\n"))
        };
        let lines: String = cover.split(' ').filter_map(|name| line(name.trim_matches('"'))).collect();
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.to_string().repeat(32).as_bytes());
        let tag = hmac::sign(&key, format!("{lines}\"@signature-params\": {params}").as_bytes());
        [
            format!("signature-input: sig1={params}"),
            format!("signature: sig1=:{}:", BASE64.encode(tag)),
            format!("content-digest: {digest}"),
        ]
    }
}

#[test]
fn signed_requests_pass_once() {
    let stage = Stage::new();
    let now = now();
    let post = |signed: Signed, path: &str, body: &str| {
        let headers = signed.headers();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = send(stage.site.gateway, "POST", path, &headers, body);
        (answer.status, answer.body.trim_end().strip_prefix("hmac: ").unwrap_or(&answer.body).to_owned())
    };
    let at = |created: u64, nonce| Signed { created, nonce, ..SIGNED };
    assert_eq!(post(at(now, "1"), "/signed/x?a=b", "{}"), (200, "{}".to_owned()));
    assert_eq!(stage.last().header("x-user"), "bank");
    for (signed, path, body, status, says) in [
        (at(now, "1"), "/signed/x?a=b", "{}", 401, "this request has come before"),
        (at(now, "2"), "/signed/y?a=b", "{}", 401, "the signature is wrong"),
        (at(now, "3"), "/signed/x?a=c", "{}", 401, "the signature is wrong"),
        (at(now, "4"), "/signed/x?a=b", "[]", 401, "the body is not the one of its content-digest"),
        (Signed { secret: 't', ..at(now, "5") }, "/signed/x?a=b", "{}", 401, "the signature is wrong"),
        (Signed { keyid: "other", ..at(now, "6") }, "/signed/x?a=b", "{}", 401, "the key is not known"),
        (at(now - 100, "7"), "/signed/x?a=b", "{}", 401, "the signature is too old"),
        (at(now + 60, "8"), "/signed/x?a=b", "{}", 401, "the signature is of the future"),
        (at(now, ""), "/signed/x?a=b", "{}", 401, "the signature has no nonce"),
        (
            Signed { cover: r#""@method" "@path""#, ..at(now, "9") },
            "/signed/x?a=b",
            "{}",
            401,
            "not all is signed that has to be",
        ),
        (
            Signed { cover: r#""@method" "@path" "@query""#, ..at(now, "10") },
            "/signed/x?a=b",
            "{}",
            401,
            "the body is not signed: there is no content-digest among what is",
        ),
        (
            Signed { cover: r#""@method" "@path" "@query" "x-none""#, ..at(now, "11") },
            "/signed/x?a=b",
            "{}",
            401,
            "something is signed that the request does not have",
        ),
    ] {
        assert_eq!(post(signed, path, body), (status, says.to_owned()));
    }
    // Within the clocks' difference, and with a body that is too large.
    assert_eq!(post(at(now + 20, "12"), "/signed/x?a=b", "{}").0, 200);
    assert_eq!(post(at(now, "13"), "/signed/x?a=b", &"x".repeat(2000)).0, 413);
    assert_eq!(stage.send("POST", "/signed/x?a=b", &[], "{}"), 401);
}

#[test]
fn addresses_pass_or_not() {
    let stage = Stage::new();
    for (from, status) in [("10.1.2.3", 200), ("10.9.2.3", 403), ("192.0.2.1", 403), ("9.9.9.9, 10.1.2.3", 200)] {
        assert_eq!(stage.send("GET", "/inside/x", &[&format!("x-forwarded-for: {from}")], ""), status, "{from}");
    }
}

#[test]
fn another_service_judges() {
    let stage = Stage::new();
    let get = |path: &str, token: &str| {
        send(stage.site.gateway, "GET", path, &[&format!("authorization: {token}"), "x-user: root", "x-b: 1"], "")
    };
    assert_eq!(get("/judged/x?a=b", "good").status, 200);
    let asked = stage.judge.seen().pop().unwrap();
    assert_eq!((&*asked.method, &*asked.path), ("GET", "/check"));
    assert_eq!((asked.header("x-forwarded-method"), asked.header("x-forwarded-uri")), ("GET", "/judged/x?a=b"));
    assert_eq!((asked.header("authorization"), asked.header("x-b")), ("good", ""), "{asked:?}");
    // The judge has not said who it is, so that nobody has.
    assert_eq!(stage.last().header("x-user"), "");
    let refused = get("/judged/x", "bad");
    assert_eq!((refused.status, &*refused.body), (402, "pay first"));
    for (path, token, status) in [
        ("/judged/x", "broken", 503),
        ("/judged/x", "slow", 503),
        ("/lenient/x", "broken", 200),
        ("/lenient/x", "slow", 200),
        ("/lenient/x", "bad", 402),
    ] {
        let begun = Instant::now();
        assert_eq!(get(path, token).status, status, "{path} {token}");
        assert!(begun.elapsed() < Duration::from_millis(1900), "{path} {token}");
        assert_eq!(stage.last().header("x-user"), "");
    }
}

#[test]
fn mistakes_about_credentials_are_named() {
    let s32 = "s".repeat(32);
    for (filter, says) in [
        ("api_key: {}", "give `keys`, or a `file`"),
        ("api_key: { keys: [ { name: a, sha256: abc } ] }", "a: `sha256` is not 64 hexadecimal digits"),
        ("api_key: { file: nowhere.txt }", "nowhere.txt: No such file"),
        ("basic: {}", "give `users`, or a `file`"),
        ("basic: { users: [ { name: a, hash: secret } ] }", "a: what stands for the password is no hash"),
        ("basic: { users: [ { name: 'a:b', hash: '$2b$04$' } ] }", "is no hash"),
        ("hmac: { keys: [] }", "give `keys`"),
        ("hmac: { keys: [ { name: a, secret: short } ] }", "a: the secret has 5 bytes, at least 32"),
        ("hmac: { keys: [ { name: a } ] }", "a: give either `secret` or `file`"),
        (
            &format!("hmac: {{ keys: [ {{ name: a, secret: {s32} }} ], cover: [ '@status' ] }}"),
            "`@status` is nothing of",
        ),
        (&format!("hmac: {{ keys: [ {{ name: a, secret: {s32} }} ], age: 2h }}"), "`age` is 2h, allowed is 1s to 1h"),
        ("ip: {}", "give `allow`, `deny`, or both"),
        ("ip: { allow: [ here ] }", "`here` is no address"),
        ("external_auth: { service: other }", "unknown service `other`"),
        ("external_auth: { service: s, path: check }", "`check` is not a path"),
        ("external_auth: { service: s, method: PUT }", "`PUT` is not GET, HEAD or POST"),
        ("external_auth: { service: s, copy: [ 'a b' ] }", "`a b` is not a header name"),
        ("authorize: []", "nobody would pass"),
        ("authorize: [ { allow: { path: x } } ]", "rule 0: `x` is not a path pattern"),
    ] {
        let text = check(&format!("{{ {filter} }}"));
        assert!(text.contains(says) && text.contains("filters"), "{filter}: {text}");
    }
}
