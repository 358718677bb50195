//! Login at a provider, with a browser of the test's own and a provider that it can play tricks with. The real one of others is in
//! `cargo xtask conformance --only oidc`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::auth::{Signer, check, now};
use super::support::*;

const FILE: &str = "
control: { listen: CONTROL }
gateways:
  public:
    listen: GATEWAY
    routes:
      - id: shop
        match: { path: /** }
        filters:
          - oidc:
              issuer: https://id.example
              service: id
              client_id: shop
              client_secret: 'a secret: of the shop'
              url: https://shop.example
              scopes: [ offline_access ]
              cookie_secrets: [ COOKIES ]
              forward: { x-user: sub, x-name: name }
              timeout: 1s
        to: pages
services: { pages: {}, id: {} }
";

/// What the provider does next.
struct Tricks {
    nonce: String,
    challenge: String,
    /// How long access tokens last.
    lasts: u64,
    /// The access token is so long.
    padding: usize,
    subject: &'static str,
    audience: &'static str,
    away: bool,
    refreshes: u32,
    refuses: bool,
}

struct Stage {
    site: Site,
    pages: Participant,
    id: Participant,
    tricks: Arc<Mutex<Tricks>>,
    _running: [Running; 2],
}

fn form(body: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'%' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                byte => byte,
            });
        }
        String::from_utf8(bytes).unwrap()
    };
    body.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (decode(name), decode(value))).collect()
}

fn provider(signer: &Signer, tricks: &Mutex<Tricks>, seen: &Seen) -> (u16, String) {
    let mut tricks = tricks.lock().unwrap();
    if tricks.away {
        return (503, String::new());
    }
    let path = seen.path.as_str();
    match path {
        "/.well-known/openid-configuration" => {
            let at = |path: &str| format!("https://id.example{path}");
            let document = json!({
                "issuer": "https://id.example", "authorization_endpoint": at("/auth?x=y"), "token_endpoint": at("/token"),
                "jwks_uri": at("/jwks"), "end_session_endpoint": at("/end"), "revocation_endpoint": at("/revoke")
            });
            return (200, document.to_string());
        }
        "/jwks" => return (200, json!({ "keys": [signer.jwk()] }).to_string()),
        "/revoke" => return (200, String::new()),
        "/token" => {}
        _ => return (404, String::new()),
    }
    let who = STANDARD.encode("shop:a+secret%3A+of+the+shop");
    let form = form(&seen.body);
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    let good = match field("grant_type") {
        "authorization_code" => {
            let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, field("code_verifier").as_bytes()));
            field("code") == "good code"
                && challenge == tricks.challenge
                && field("redirect_uri") == "https://shop.example/oauth2/callback"
        }
        "refresh_token" => {
            let good = field("refresh_token") == format!("refresh {}", tricks.refreshes) && !tricks.refuses;
            tricks.refreshes += u32::from(good);
            good
        }
        _ => false,
    };
    if !good || seen.header("authorization") != format!("Basic {who}") {
        return (400, json!({ "error": "invalid_grant" }).to_string());
    }
    let id = signer.token(&json!({
        "iss": "https://id.example", "aud": tricks.audience, "sub": tricks.subject, "name": "Ann", "nonce": tricks.nonce,
        "iat": now(), "exp": now() + 600
    }));
    let access = format!("access-{}-{}", tricks.refreshes, "x".repeat(tricks.padding));
    let refresh = format!("refresh {}", tricks.refreshes);
    let tokens = json!({
        "access_token": access, "token_type": "Bearer", "expires_in": tricks.lasts, "id_token": id, "refresh_token": refresh
    });
    (200, tokens.to_string())
}

impl Stage {
    fn new() -> Self {
        let site = Site::new(&FILE.replace("COOKIES", &"c".repeat(32)));
        let tricks = Arc::new(Mutex::new(Tricks {
            nonce: String::new(),
            challenge: String::new(),
            lasts: 600,
            padding: 0,
            subject: "ann",
            audience: "shop",
            away: false,
            refreshes: 0,
            refuses: false,
        }));
        let pages = Participant::start(|seen| (200, seen.path.clone()));
        let (signer, shared) = (Signer::new("one"), tricks.clone());
        let id = Participant::start(move |seen| provider(&signer, &shared, seen));
        let control = site.control();
        site.register("pages", "one", pages.addr);
        site.register("id", "one", id.addr);
        let gateway = site.start(&["gateway"]);
        let stage = Self { site, pages, id, tricks, _running: [control, gateway] };
        until("the gateway serves", || get(stage.site.gateway, "/").status != 0);
        until("the gateway knows the provider", || stage.browser().get("/").status == 303);
        stage
    }

    fn browser(&self) -> Browser {
        Browser { addr: self.site.gateway, jar: BTreeMap::new() }
    }

    fn trick(&self, change: impl FnOnce(&mut Tricks)) {
        change(&mut self.tricks.lock().unwrap());
    }

    /// Follows a browser to the provider, who lets it in, and back; the answer to that.
    fn login(&self, browser: &mut Browser, path: &str) -> Page {
        let away = browser.get(path);
        assert_eq!(away.status, 303, "{away:?}");
        let query = self.sent(&away);
        browser.get(&format!("/oauth2/callback?code=good+code&state={}&iss=https%3A%2F%2Fid.example", query["state"]))
    }

    /// What a browser takes along to the provider, who will remember it.
    fn sent(&self, away: &Page) -> BTreeMap<String, String> {
        let query = away.header("location").strip_prefix("https://id.example/auth?x=y&").unwrap();
        let query = form(query);
        self.trick(|tricks| {
            tricks.nonce.clone_from(&query["nonce"]);
            tricks.challenge.clone_from(&query["code_challenge"]);
        });
        query
    }
}

struct Browser {
    addr: SocketAddr,
    jar: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Page {
    status: u16,
    head: String,
    body: String,
}

impl Page {
    fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value).next().unwrap_or_default()
    }
}

impl Browser {
    fn get(&mut self, path: &str) -> Page {
        self.send("GET", path, "accept: text/html")
    }

    fn send(&mut self, method: &str, path: &str, header: &str) -> Page {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        let cookies = self.jar.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ");
        let cookies = if cookies.is_empty() { cookies } else { format!("cookie: {cookies}\r\n") };
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n{header}\r\n{cookies}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        for line in head.lines() {
            let Some((name, cookie)) = line.split_once(": ") else { continue };
            if name.eq_ignore_ascii_case("set-cookie") {
                assert!(cookie.ends_with("; Secure; HttpOnly; SameSite=Lax") && cookie.len() < 4096, "{cookie}");
                let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
                match cookie.contains("Max-Age=0;") {
                    true => drop(self.jar.remove(name)),
                    false => drop(self.jar.insert(name.to_owned(), value.to_owned())),
                }
            }
        }
        Page { status: head[9..12].parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
    }
}

#[test]
fn a_browser_logs_in_and_never_sees_a_token() {
    let stage = Stage::new();
    let mut browser = stage.browser();
    let away = browser.get("/orders?page=2");
    let sent = stage.sent(&away);
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "shop"),
        ("redirect_uri", "https://shop.example/oauth2/callback"),
        ("scope", "openid offline_access"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(sent[name], value);
    }
    assert!(sent["state"].len() == 43 && sent["nonce"].len() == 43 && sent["state"] != sent["nonce"]);
    let callback = format!("/oauth2/callback?code=good+code&state={}", sent["state"]);
    // Another browser cannot finish what this one has begun, and nobody with another state or another provider's answer.
    assert_eq!(stage.browser().get(&callback).status, 400);
    assert_eq!(browser.get("/oauth2/callback?code=good+code&state=other").status, 400);
    assert_eq!(browser.get(&format!("{callback}&iss=https%3A%2F%2Fevil.example")).status, 400);
    let back = browser.get(&callback);
    assert_eq!((back.status, back.header("location")), (303, "https://shop.example/orders?page=2"), "{back:?}");
    assert!(browser.jar.keys().all(|name| name.starts_with("__Host-seawall.")), "{:?}", browser.jar);
    assert!(!back.head.contains("access-"), "{back:?}");
    assert_eq!(browser.get(&callback).status, 400, "a login is finished once");

    browser.jar.insert("other".into(), "stays".into());
    let page = browser.send("POST", "/orders", "authorization: Bearer mine\r\nx-user: root");
    assert_eq!((page.status, &*page.body), (200, "/orders"));
    let seen = stage.pages.seen().pop().unwrap();
    assert_eq!(seen.header("authorization"), "Bearer access-0-");
    assert_eq!((seen.header("x-user"), seen.header("x-name"), seen.header("cookie")), ("ann", "Ann", "other=stays"));

    // Logout: the browser forgets, the provider too, and it goes to the provider's page.
    let out = browser.get("/oauth2/logout");
    let to = "https://id.example/end?client_id=shop&post_logout_redirect_uri=https%3A%2F%2Fshop.example%2F";
    assert_eq!((out.status, out.header("location")), (303, to));
    assert_eq!(browser.jar.keys().collect::<Vec<_>>(), ["other"]);
    let revoked = stage.id.seen().into_iter().rfind(|seen| seen.path == "/revoke").unwrap();
    assert_eq!(form(&revoked.body)["token"], "refresh 0");
    assert_eq!(browser.get("/orders").status, 303);
}

#[test]
fn who_has_no_session_gets_nothing() {
    let stage = Stage::new();
    let mut browser = stage.browser();
    // A script is not sent to a page of another host.
    for (method, header) in [
        ("GET", "accept: application/json"),
        ("POST", "accept: text/html"),
        ("GET", "sec-fetch-mode: cors\r\naccept: text/html"),
    ] {
        assert_eq!(browser.send(method, "/orders", header).status, 401, "{method} {header}");
    }
    for spoilt in ["1.", "1.x", "9.abc", "1.eyJhIjoxfQ", "x"] {
        browser.jar.insert("__Host-seawall.0".into(), spoilt.into());
        assert_eq!(browser.send("GET", "/orders", "x-user: root\r\nauthorization: Bearer x").status, 401, "{spoilt}");
    }
    // Not even the cookie of a login is one of a session.
    let mut browser = stage.browser();
    browser.get("/orders");
    let sealed = browser.jar.values().next().unwrap().clone();
    browser.jar.insert("__Host-seawall.0".into(), format!("1.{sealed}"));
    assert_eq!(browser.send("GET", "/orders", "accept: */*").status, 401);
    assert_eq!(stage.pages.seen().len(), 0);
    // The provider says no, or what is not meant for this gateway.
    let state = stage.sent(&browser.get("/orders"))["state"].clone();
    let denied = browser.get(&format!("/oauth2/callback?error=access_denied&state={state}"));
    assert_eq!((denied.status, &*denied.body), (403, "oidc: the provider has not let you in: access_denied\n"));
    stage.trick(|tricks| tricks.audience = "another");
    assert_eq!(stage.login(&mut browser, "/").status, 403);
    stage.trick(|tricks| tricks.audience = "shop");
    let state = stage.sent(&browser.get("/orders"))["state"].clone();
    stage.trick(|tricks| tricks.nonce = "another".to_owned());
    assert_eq!(browser.get(&format!("/oauth2/callback?code=good+code&state={state}")).status, 403);
    assert_eq!(browser.get(&format!("/oauth2/callback?code=other&state={state}")).status, 403);
    // A path is never taken for a host, and logins do not pile up.
    let back = stage.login(&mut browser, "//evil.example/x");
    assert_eq!(back.header("location"), "https://shop.example//evil.example/x");
    let mut browser = stage.browser();
    for _ in 0..20 {
        browser.get("/");
        assert!(browser.jar.len() <= 6, "{:?}", browser.jar.keys());
    }
}

#[test]
fn sessions_are_renewed_and_large_ones_are_kept_in_pieces() {
    let stage = Stage::new();
    let mut browser = stage.browser();
    stage.trick(|tricks| (tricks.lasts, tricks.padding) = (20, 6000));
    assert_eq!(stage.login(&mut browser, "/").status, 303);
    assert!(browser.jar.len() >= 3, "{:?}", browser.jar.keys());
    // The token is about to expire. Several requests of the same browser at once cause one refresh.
    stage.trick(|tricks| (tricks.lasts, tricks.padding) = (600, 0));
    let old = browser.jar.clone();
    let pages: Vec<Page> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let mut browser = Browser { addr: browser.addr, jar: old.clone() };
                scope.spawn(move || browser.get("/x"))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(pages.iter().all(|page| page.status == 200), "{pages:?}");
    assert_eq!(stage.tricks.lock().unwrap().refreshes, 1);
    assert_eq!(stage.pages.seen().pop().unwrap().header("authorization"), "Bearer access-1-");
    // The browser gets the new session, and forgets the pieces that it needs no more.
    assert_eq!(browser.get("/x").status, 200);
    assert_eq!(browser.jar.keys().collect::<Vec<_>>(), ["__Host-seawall.0"]);
    assert!(browser.get("/x").header("set-cookie").is_empty());

    // A provider that is away ends no session whose token is still good; one that says no does.
    let mut browser = stage.browser();
    stage.trick(|tricks| (tricks.lasts, tricks.refreshes) = (20, 0));
    assert_eq!(stage.login(&mut browser, "/").status, 303);
    stage.trick(|tricks| tricks.away = true);
    assert_eq!(browser.get("/x").status, 200);
    stage.trick(|tricks| (tricks.away, tricks.refuses) = (false, true));
    assert_eq!(browser.get("/x").status, 303);
    // Nor does a new id token of somebody else's renew it.
    let mut browser = stage.browser();
    stage.trick(|tricks| (tricks.refuses, tricks.refreshes) = (false, 0));
    assert_eq!(stage.login(&mut browser, "/").status, 303);
    stage.trick(|tricks| tricks.subject = "ben");
    assert_eq!(browser.get("/x").status, 303);
}

#[test]
fn mistakes_about_logins_are_named() {
    let good = [
        ("issuer", "'http://id.example'"),
        ("client_id", "shop"),
        ("url", "'https://shop.example'"),
        ("cookie_secrets", "[ cccccccccccccccccccccccccccccccc ]"),
    ];
    let filter = |name: &str, value: &str| {
        let fields: BTreeMap<&str, &str> = good.into_iter().chain([(name, value)]).collect();
        let fields = fields.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join(", ");
        check(&format!("{{ oidc: {{ {fields} }} }}"))
    };
    for (name, value, says) in [
        ("issuer", "id.example", "`issuer` is `id.example`, no address"),
        ("service", "other", "unknown service `other`"),
        ("url", "shop.example", "`url` is `shop.example`, no address"),
        ("cookie_secrets", "[ short ]", "a secret for cookies has at least 32 bytes"),
        ("cookie_secret_file", "x", "give either `cookie_secrets` or"),
        ("callback", "oauth2", "`callback` is `oauth2`, no path"),
        ("callback", "/oauth2/logout", "`callback` and `logout` are the same"),
        ("after_logout", "//evil.example", "`after_logout` is `//evil.example`, no path"),
        ("cookie", "'a b'", "`cookie` is `a b`"),
        ("session", "1s", "`session` is 1s, allowed is 1m to"),
        ("algorithms", "[ HS256 ]", "signed by keys, not by secrets"),
        ("client_secret_file", "nowhere", "nowhere: No such file"),
    ] {
        let text = filter(name, value);
        assert!(text.contains(says), "{name}: {value}: {text}");
    }
    assert!(!filter("client_id", "shop").contains("1 mistake"));
}

#[test]
fn a_test_can_read_a_form() {
    let read = form("a=b+c&d=%C3%A9&e=");
    assert_eq!(Value::from_iter(read), json!({ "a": "b c", "d": "é", "e": "" }));
}
