//! Who passes a real gateway, and who does not.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::support::*;

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// An issuer's key.
pub(crate) struct Signer {
    kid: &'static str,
    key: EcdsaKeyPair,
}

impl Signer {
    pub(crate) fn new(kid: &'static str) -> Self {
        let (random, alg) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let document = EcdsaKeyPair::generate_pkcs8(alg, &random).unwrap();
        Self { kid, key: EcdsaKeyPair::from_pkcs8(alg, document.as_ref(), &random).unwrap() }
    }

    pub(crate) fn jwk(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (BASE64URL.encode(&point[1..33]), BASE64URL.encode(&point[33..]));
        json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "alg": "ES256", "x": x, "y": y })
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "kid": self.kid, "typ": "JWT" }).to_string();
        let message = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", BASE64URL.encode(signature))
    }
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

const JWT: &str = "
control: { listen: CONTROL }
gateways:
  public:
    listen: GATEWAY
    routes:
      - id: api
        match: { path: /api/** }
        filters:
          - jwt:
              keys: { service: auth, path: /jwks.json, refresh: 1s, cooldown: 1s, timeout: 1s }
              issuer: [ 'https://id.example' ]
              audience: [ shop ]
              forward: { x-user: sub, x-roles: roles }
        to: pages
      - id: admin
        match: { path: /admin/** }
        filters:
          - jwt:
              keys: { service: auth, path: /jwks.json }
              from: [ { cookie: token }, { query: token }, { header: x-token } ]
              require: { roles: admin }
              keep: false
        to: pages
      - id: open
        match: { path: /open/** }
        filters: [ { jwt: { keys: { url: 'http://JWKS/jwks.json' }, optional: true, forward: { x-user: sub } } } ]
        to: pages
services: { pages: {}, auth: {} }
";

#[test]
fn signed_tokens_pass_and_nothing_else_does() {
    let (first, second) = (Signer::new("one"), Signer::new("two"));
    let keys = Arc::new(Mutex::new((200, json!({ "keys": [first.jwk()] }).to_string())));
    let issuer = Participant::start({
        let keys = keys.clone();
        move |_| keys.lock().unwrap().clone()
    });
    let pages = Participant::start(|_| (200, "page".to_owned()));
    let site = Site::new(&JWT.replace("JWKS", &issuer.addr.to_string()));
    let _control = site.control();
    let gateway = site.start(&["gateway"]);
    let claims = |change: Value| {
        let mut claims = json!({
            "iss": "https://id.example", "aud": ["shop", "x"], "sub": "ann", "roles": ["user"], "exp": now() + 600
        });
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    };
    let good = first.token(&claims(json!({})));
    let get = |path: &str, headers: &[&str]| send(site.gateway, "GET", path, headers, "");

    // As long as there are no keys nobody passes, and it is not the token's fault.
    until("the gateway answers", || get("/api/x", &[]).status == 401);
    assert_eq!(get("/api/x", &[&bearer(&good)]).status, 503);
    site.register("pages", "one", pages.addr);
    site.register("auth", "one", issuer.addr);
    until("the keys are there", || get("/api/x", &[&bearer(&good)]).status == 200);

    let answer = get("/api/x", &[&bearer(&good), "x-user: root", "X-Roles: admin", "x_user: root"]);
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = pages.seen().pop().unwrap();
    assert_eq!((seen.header("x-user"), seen.header("x-roles"), seen.header("x_user")), ("ann", "user", ""), "{seen:?}");
    assert_eq!(seen.header("authorization"), format!("Bearer {good}"));

    let none = get("/api/x", &["x-user: root"]);
    assert_eq!((none.status, none.header("www-authenticate")), (401, "bearer"));
    let pem = BASE64URL.encode(first.key.public_key().as_ref());
    let unsigned = |alg: &str, signature: &str| {
        let header = BASE64URL.encode(json!({ "alg": alg, "kid": "one" }).to_string());
        format!("{header}.{}.{signature}", BASE64URL.encode(claims(json!({})).to_string()))
    };
    let wrong = [
        (first.token(&claims(json!({ "exp": now() - 60 }))), "the token has expired"),
        (first.token(&claims(json!({ "exp": null }))), "a date of the token is none"),
        (first.token(&json!({ "iss": "https://id.example", "aud": "shop" })), "the token does not expire"),
        (first.token(&claims(json!({ "nbf": now() + 60 }))), "the token is not valid yet"),
        (first.token(&claims(json!({ "aud": "shopping" }))), "the token is for somebody else"),
        (first.token(&claims(json!({ "iss": "https://id.example/" }))), "the token is of another issuer"),
        (first.token(&claims(json!({ "sub": "a\r\nb" }))), "no header can hold the claim sub"),
        (Signer { kid: "one", ..Signer::new("one") }.token(&claims(json!({}))), "the token's signature is wrong"),
        (second.token(&claims(json!({}))), "no key of that name is known"),
        (unsigned("none", ""), "the token's algorithm is not one that is used here"),
        (unsigned("HS256", &pem), "the token's algorithm is not that of its key"),
        ("nonsense".to_owned(), "the token is not a signed json web token"),
    ];
    for (token, says) in &wrong {
        let answer = get("/api/x", &[&bearer(token)]);
        let challenge = format!("bearer error=\"invalid_token\", error_description=\"{says}\"");
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, &*challenge), "{token} {answer:?}");
    }
    assert_eq!(get("/api/x", &[&bearer(&good), &bearer(&good)]).status, 400);
    // Within the skew of clocks.
    for near in [json!({ "exp": now() - 20 }), json!({ "nbf": now() + 20 })] {
        assert_eq!(get("/api/x", &[&bearer(&first.token(&claims(near)))]).status, 200);
    }

    // Elsewhere than in the header of authorization, and with a claim that is needed.
    let admin = first.token(&claims(json!({ "roles": ["user", "admin"] })));
    let forbidden = get("/admin/x", &[&format!("cookie: token={good}")]);
    assert_eq!((forbidden.status, forbidden.header("www-authenticate")), (403, "bearer error=\"insufficient_scope\""));
    assert_eq!(get("/admin/x", &[&bearer(&admin)]).status, 401);
    assert_eq!(get(&format!("/admin/x?token={admin}"), &[]).status, 200);
    assert_eq!(get("/admin/x", &[&format!("x-token: {admin}")]).status, 200);
    assert_eq!(get("/admin/x", &[&format!("cookie: a=b; token={admin}"), "x-token: x"]).status, 200);
    let seen = pages.seen().pop().unwrap();
    assert_eq!((seen.header("cookie"), seen.header("x-token")), ("a=b", ""), "the service is not given the token");

    // Where none is needed none may be wrong.
    assert_eq!(get("/open/x", &["x-user: root"]).status, 200);
    assert_eq!(pages.seen().pop().unwrap().header("x-user"), "");
    assert_eq!(get("/open/x", &[&bearer(&good)]).status, 200);
    assert_eq!(pages.seen().pop().unwrap().header("x-user"), "ann");
    assert_eq!(get("/open/x", &[&bearer(&wrong[0].0)]).status, 401);

    // Many tokens with keys that nobody knows cause few fetches.
    let fetches = issuer.seen().len();
    for _ in 0..50 {
        assert_eq!(get("/open/x", &[&bearer(&wrong[8].0)]).status, 401);
    }
    assert!(issuer.seen().len() <= fetches + 2, "{} fetches", issuer.seen().len() - fetches);

    // The issuer breaks: the last good keys stay. It rotates: the new key is found, and the old one forgotten.
    *keys.lock().unwrap() = (500, "broken".to_owned());
    until("a fetch fails", || {
        assert_eq!(get("/api/x", &[&bearer(&good)]).status, 200);
        std::thread::sleep(Duration::from_millis(100));
        gateway.log().contains("no keys could be fetched")
    });
    assert_eq!(get("/api/x", &[&bearer(&good)]).status, 200);
    *keys.lock().unwrap() = (200, json!({ "keys": [second.jwk()] }).to_string());
    let new = second.token(&claims(json!({ "sub": "ben" })));
    until("the new key is found", || get("/api/x", &[&bearer(&new)]).status == 200);
    assert_eq!(pages.seen().pop().unwrap().header("x-user"), "ben");
    assert_eq!(get("/api/x", &[&bearer(&good)]).status, 401, "it was verified once, by a key that is no more");

    let explained = site.run(&["route", "explain", "GET", "/api/x"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("a token is needed"), "{explained:?}");
}

/// What `seawall config check` says of filters.
pub(crate) fn check(filters: &str) -> String {
    let site = Site::new(&format!(
        "gateways: {{ public: {{ listen: GATEWAY, routes: [ {{ id: a, match: {{}}, filters: [ {filters} ], to: s }} ] }} }}\nservices: {{ s: {{}} }}\n"
    ));
    let output = site.run(&["config", "check"]);
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn mistakes_about_tokens_are_named() {
    let secret = "x".repeat(32);
    for (config, says) in [
        ("keys: {}", "give one of `url`, `service`"),
        ("keys: { url: 'http://a/b', file: c }", "give one of `url`, `service`"),
        ("keys: { url: '/b' }", "is not an address such as https://"),
        ("keys: { service: s, path: jwks }", "`jwks` is not a path such as"),
        ("keys: { service: other }", "unknown service `other`"),
        ("keys: { file: nowhere.json }", "nowhere.json: No such file"),
        ("keys: { secret: short }", "the secret has 5 bytes, at least 32"),
        ("keys: { keys: [ { kty: RSA } ] }", "key 0: a part of it is missing"),
        ("keys: { keys: [ { kty: RSA, use: enc } ] }", "key 0: it is not for signatures"),
        ("keys: { url: 'http://a/b', refresh: 1ms }", "`refresh` is 1ms, at least 1s"),
        ("keys: { url: 'http://a/b' }, algorithms: [ none ]", "unknown variant `none`"),
        ("keys: { url: 'http://a/b' }, algorithms: [ HS256 ]", "keys that others can fetch are not for HS256"),
        ("keys: { url: 'http://a/b' }, skew: 1h", "`skew` is 1h, at most 10m"),
        ("keys: { url: 'http://a/b' }, require: { a: { regex: '(' } }", "the claim a: `(` is no regular expression"),
        ("keys: { url: 'http://a/b' }, forward: { host: 'x y', 'a b': sub }", "`a b` is not a header name"),
    ] {
        let text = check(&format!("{{ jwt: {{ {config} }} }}"));
        assert!(text.contains(says), "{config}: {text}");
    }
    let text = check(&format!("{{ jwt: {{ keys: {{ secret: {secret} }}, algorithms: [ RS256 ] }} }}"));
    assert!(text.contains("a secret is not a key for RS256"), "{text}");
    let text = check(&format!("{{ jwt: {{ keys: {{ secret: {secret} }} }} }}"));
    assert!(!text.contains("1 mistake"), "{text}");
}

const SECURE: &str = "
gateways:
  issuer:
    listen: JWKS
    tls: { certificates: [ { chain: id.pem, key: id.key } ] }
    routes: [ { id: jwks, match: {}, filters: [ { respond: { status: 200, json: SET } } ] } ]
  public:
    listen: GATEWAY
    routes:
      - id: api
        match: {}
        filters:
          - jwt: { keys: { url: 'https://localhost:PORT/jwks.json', cooldown: 1s } }
          - respond: { status: 200, text: in }
";

#[test]
fn keys_are_fetched_over_https_from_whom_the_machine_trusts() {
    let (signer, issuer) = (Signer::new("one"), free_addr());
    let set = json!({ "keys": [signer.jwk()] }).to_string();
    let file = SECURE.replace("JWKS", &issuer.to_string()).replace("PORT", &issuer.port().to_string());
    let site = Site::new(&file.replace("SET", &set));
    for name in ["id", "other"] {
        super::tls::certificate_with(site.dir.path(), name, "localhost", "basicConstraints=critical,CA:FALSE");
    }
    let token = bearer(&signer.token(&json!({ "sub": "ann", "exp": now() + 60 })));
    let _issuer = site.start(&["gateway", "issuer"]);
    for (trusted, status) in [("other.pem", 503), ("id.pem", 200)] {
        let gateway = site.start_with(&["gateway", "public"], &[("SSL_CERT_FILE", trusted)]);
        until("the gateway serves", || get(site.gateway, "/").status == 401);
        until("the issuer is believed or not", || send(site.gateway, "GET", "/", &[&token], "").status == status);
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(send(site.gateway, "GET", "/", &[&token], "").status, status, "{}", gateway.log());
    }
}
