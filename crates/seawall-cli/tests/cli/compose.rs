//! Composition: the shop's own gateways for browsers, telephones and partners, with a service that dies.

use serde_json::{Value, json};

use super::support::*;

/// The example's own gateways, with free addresses.
fn shop(addrs: &[(&str, std::net::SocketAddr)]) -> String {
    let file = include_str!("../../../../examples/shop/seawall.yaml");
    let (_, gateways) = file.split_once("\ngateways:\n").unwrap();
    let (gateways, _) = gateways.split_once("\nservices:\n").unwrap();
    let gateways = addrs.iter().fold(gateways.to_owned(), |text, (port, addr)| text.replace(port, &addr.to_string()));
    // A machine that has other things to do must not look like a service that is slow.
    let slow = [
        ("timeout: 300ms", "timeout: 5s"),
        ("timeout: 150ms", "timeout: 5s"),
        ("timeout: 1s", "timeout: 9s"),
        ("timeout: 2s", "timeout: 9s"),
    ];
    let gateways = slow.iter().fold(gateways, |text, (short, long)| text.replace(short, long));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/shop/recommendations.py");
    format!(
        "control: {{ listen: CONTROL, ttl: 60s }}\npolicies: {{ default: {{ retry: {{ attempts: 1 }}, breaker: {{ enabled: false }} }} }}\ngateways:\n{gateways}\n\
         services:\n  order: {{}}\n  inventory: {{}}\n  payment: {{}}\n  shipping: {{}}\n  recommendations: {{ run: python3 \
         {script}, health: {{ http: /healthz, interval: 100ms }} }}\n"
    )
}

#[test]
fn each_kind_of_client_has_its_shape_and_a_dead_service_is_left_out() {
    let [web, mobile, partner] = [free_addr(), free_addr(), free_addr()];
    let public = free_addr();
    let site = Site::new(&shop(&[
        ("127.0.0.1:8080", public),
        ("127.0.0.1:8081", web),
        ("127.0.0.1:8082", mobile),
        ("127.0.0.1:8083", partner),
    ]));
    // They answer as the shop's do.
    let known = |seen: &Seen| seen.path.ends_with("/o-1");
    let not = |seen: &Seen| (404, json!({ "error": format!("nothing is known of {}", seen.path) }).to_string());
    let order = Participant::start(move |seen| {
        match known(seen) {
        true => (
            200,
            json!({ "order": "o-1", "status": "confirmed", "sku": "lamp", "quantity": 2, "amount": 7800, "city": "hill" })
                .to_string(),
        ),
        false => not(seen),
    }
    });
    let payment = Participant::start(move |seen| match known(seen) {
        true => (200, json!({ "order": "o-1", "amount": 7800, "status": "charged" }).to_string()),
        false => not(seen),
    });
    let shipping = Participant::start(move |seen| match known(seen) {
        true => (200, json!({ "order": "o-1", "city": "hill", "status": "booked" }).to_string()),
        false => not(seen),
    });
    let up = site.start(&["up", "seawall.yaml"]);
    until("control is ready", || get(site.control, "/readyz").status == 200);
    for (service, participant) in [("order", &order), ("payment", &payment), ("shipping", &shipping)] {
        site.register(service, "one", participant.addr);
    }
    let details = |addr, id: &str| get(addr, &format!("/api/orders/{id}/details"));
    let complete = |answer: &Answer| answer.status == 200 && answer.header("seawall-partial").is_empty();
    until("all is well", || [web, mobile, partner].into_iter().all(|addr| complete(&details(addr, "o-1"))));

    let full = json!({
        "order": { "order": "o-1", "status": "confirmed", "sku": "lamp", "quantity": 2, "amount": 7800, "city": "hill" },
        "payment": { "order": "o-1", "amount": 7800, "status": "charged" },
        "shipping": { "order": "o-1", "city": "hill", "status": "booked" },
        "recommendations": [{ "sku": "rope", "name": "Rope, 20 m" }, { "sku": "sextant", "name": "Sextant, brass" },
            { "sku": "anchor", "name": "Anchor, 8 kg" }],
        "missing": [],
    });
    let answer = details(web, "o-1");
    assert_eq!((answer.json(), answer.header("content-type")), (full.clone(), "application/json"));
    assert_eq!(get(web, "/api/orders/o-1/details?tips=1").json()["recommendations"].as_array().unwrap().len(), 1);
    let small = json!({ "id": "o-1", "status": "confirmed", "sku": "lamp", "paid": 7800, "to": "hill", "tips": ["rope", "sextant"] });
    assert_eq!(details(mobile, "o-1").json(), small);
    let carriers = json!({
        "order": { "order": "o-1", "status": "confirmed", "quantity": 2 },
        "shipping": { "order": "o-1", "city": "hill", "status": "booked" },
    });
    assert_eq!(details(partner, "o-1").json(), carriers);
    // One trace for all of them.
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    send(web, "GET", "/api/orders/o-1/details", &[trace], "");
    for participant in [&order, &payment, &shipping] {
        let seen = participant.seen();
        assert!(seen.last().unwrap().header("traceparent").contains("0af7651916cd43dd8448eb211c80319c"), "{seen:?}");
    }

    // What the order itself is not there for is the client's to know, and the part is named.
    let unknown = details(web, "o-2");
    assert_eq!((unknown.status, unknown.header("seawall-failed-part")), (404, "order"), "{unknown:?}");
    assert_eq!(unknown.json()["answer"]["error"], "nothing is known of /orders/o-2");

    // Killed, it comes again, and no order is ever not shown.
    let status =
        || -> Vec<Value> { serde_json::from_slice(&site.run(&["status", "--json"]).stdout).unwrap_or_default() };
    let row = |rows: &[Value]| rows.iter().find(|row| row["name"] == "recommendations-1").map(|row| row["pid"].clone());
    let pid = row(&status()).and_then(|pid| pid.as_u64()).unwrap();
    signal(pid as u32, rustix::process::Signal::KILL);
    let mut partial = None;
    until("it is missed", || {
        let answer = details(web, "o-1");
        assert_eq!(answer.status, 200, "{answer:?}");
        partial = Some(answer).filter(|answer| !complete(answer));
        partial.is_some()
    });
    let partial = partial.unwrap();
    assert_eq!(partial.header("cache-control"), "no-store");
    let mut without = full.clone();
    without.as_object_mut().unwrap().remove("recommendations");
    let said = partial.json();
    without["missing"] =
        json!([{ "part": "recommendations", "reason": said["missing"][0]["reason"], "instead": "nothing" }]);
    assert_eq!(said, without);
    until("it is back", || complete(&details(web, "o-1")));

    // Stopped, it is missing for as long as that.
    assert!(site.run(&["stop", "recommendations"]).status.success());
    until("it is missed", || !complete(&details(mobile, "o-1")));
    let answer = details(mobile, "o-1");
    let mut small = small;
    small["tips"] = json!([]);
    assert_eq!((answer.status, answer.json()), (200, small));
    let header = answer.header("seawall-partial");
    assert!(header.starts_with("recommendations;reason=") && header.ends_with(";instead=default"), "{header}");
    assert!(site.run(&["start", "recommendations"]).status.success());
    until("it is back", || complete(&details(mobile, "o-1")));
    assert!(up.stop().success());
}

const GRAPH: &str = "
control: { listen: CONTROL, ttl: 60s }
policies: { default: { retry: { attempts: 1 }, breaker: { enabled: false } } }
gateways:
  public:
    listen: GATEWAY
    routes:
      - id: order
        match: { path: '/orders/{id}', method: [POST] }
        compose:
          timeout: 700ms
          pass: [accept-language]
          cache_control: max-age=5
          body: 1 KiB
          parts:
            - { name: order, call: 'GET order/{id}', timeout: 500ms, limit: 2 KiB }
            - name: customer
              call: POST user/find
              headers: { x-for: '{order.customer}' }
              body: { id: '{order.customer}', note: 'for {body.note}', skus: '{order.items.*.sku}' }
              merge: .
              pick: [name]
            - { name: tips, call: 'GET tips/of?skus={order.items.*.sku}&page={query.page}', default: [], fallback: { call: GET other/tips } }
        fallback: { status: 503, json: { sorry: true } }
services: { order: {}, user: {}, tips: {}, other: {} }
";

#[test]
fn a_graph_passes_values_on_and_says_what_failed() {
    let site = Site::new(GRAPH);
    let order = Participant::start(|seen| match &*seen.path {
        "/slow" => {
            std::thread::sleep(std::time::Duration::from_secs(2));
            (200, "{}".into())
        }
        "/large" => (200, json!({ "customer": "x".repeat(3000) }).to_string()),
        "/html" => (200, "<html>".into()),
        "/gone" => (410, "no words".into()),
        "/broken" => (500, json!({ "secret": 1 }).to_string()),
        "/walks" => (200, json!({ "customer": null }).to_string()),
        _ => (200, json!({ "customer": 7, "items": [{ "sku": "a b" }, { "sku": "c" }] }).to_string()),
    });
    let user = Participant::start(|seen| (200, json!({ "name": "ann", "seen": seen.body }).to_string()));
    let other = Participant::start(|_| (200, json!(["other"]).to_string()));
    let _control = site.control();
    for (service, participant) in [("order", &order), ("user", &user), ("other", &other)] {
        site.register(service, "one", participant.addr);
    }
    let _gateway = site.start(&["gateway"]);
    let post = |id: &str, body: &str| {
        send(site.gateway, "POST", &format!("/orders/{id}?page=2"), &["accept-language: de", "cookie: secret"], body)
    };
    until("the gateway serves", || post("1", "{}").status == 200);

    // The tips' service has never been there.
    let answer = post("a%2Fb", r#"{"note": "you"}"#);
    let items = json!([{ "sku": "a b" }, { "sku": "c" }]);
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({ "order": { "customer": 7, "items": items }, "name": "ann", "tips": ["other"] }))
    );
    assert_eq!(answer.header("seawall-partial"), "tips;reason=no-instance;instead=fallback");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(order.seen().last().unwrap().path, "/a%2Fb");
    let seen = user.seen().pop().unwrap();
    assert_eq!((seen.header("x-for"), seen.header("accept-language"), seen.header("cookie")), ("7", "de", ""));
    let body: Value = serde_json::from_str(&seen.body).unwrap();
    assert_eq!(body, json!({ "id": 7, "note": "for you", "skus": ["a b", "c"] }));

    let tips = Participant::start(|seen| (200, json!([seen.path]).to_string()));
    site.register("tips", "one", tips.addr);
    until("the tips are there", || post("1", "{}").header("seawall-partial").is_empty());
    let answer = post("1", "{}");
    assert_eq!(
        (answer.json()["tips"][0].as_str(), answer.header("cache-control")),
        (Some("/of?skus=a%20b%2Cc&page=2"), "max-age=5")
    );

    // A client's mistake is passed on, whatever else has failed is the gateway's fallback to say.
    for (id, body, status, part, says) in [
        ("gone", "{}", 410, "order", "answers 410"),
        ("1", "{", 400, "", "is not JSON"),
        ("1", &"x".repeat(2000), 413, "", "larger than 1024 bytes"),
        ("slow", "{}", 503, "order", "sorry"),
        ("large", "{}", 503, "order", "sorry"),
        ("html", "{}", 503, "order", "sorry"),
        ("broken", "{}", 503, "order", "sorry"),
    ] {
        let answer = post(id, body);
        assert_eq!((answer.status, answer.header("seawall-failed-part")), (status, part), "{id}: {answer:?}");
        assert!(answer.body.contains(says) && !answer.body.contains("secret"), "{id}: {answer:?}");
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    let begun = std::time::Instant::now();
    post("slow", "{}");
    assert!(begun.elapsed().as_millis() < 1500, "the part's own timeout ends it: {:?}", begun.elapsed());

    let explained = site.run(&["route", "explain", "POST", "/orders/7"]);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(text.contains("composed of 3 parts") && text.contains("GET order/{id}"), "{text}");
}

#[test]
fn mistakes_in_compositions_are_named_with_their_place() {
    for (compose, says) in [
        ("parts: [ { name: a, call: GET s/x } ], timeout: 0s", &["routes.0.compose.timeout", "in no time"][..]),
        ("parts: [ { name: a, call: GET nobody/x } ]", &["routes.0.compose.parts.0.call", "unknown service `nobody`"]),
        (
            "parts: [ { name: a, call: 'GET s/{b.x}' }, { name: b, call: 'GET s/{a.x}' } ]",
            &["routes.0.compose.parts.0", "a needs b needs a"],
        ),
        ("parts: [ { name: a, call: 'GET s/{x}' } ]", &["routes.0.compose.parts.0.call", "`{x}` is neither a part"]),
        (
            "parts: [ { name: a, call: GET s/x, merge: . }, { name: b, call: GET s/x } ]",
            &["routes.0.compose.parts.1", "a field `b`"],
        ),
        (
            "parts: [ { name: a, call: GET s/x, requird: true } ]",
            &["routes.0.compose.parts.0", "unknown key `requird`"],
        ),
        (
            "parts: [ { name: a, call: GET s/x, fallback: { call: GET nobody/x } } ]",
            &["parts.0.fallback.call", "unknown service"],
        ),
        ("cache_control: \"a\\nb\", parts: [ { name: a, call: GET s/x } ]", &["routes.0.compose.cache_control"]),
    ] {
        let site = Site::new(&format!(
            "gateways: {{ public: {{ listen: GATEWAY, routes: [ {{ id: a, match: {{ path: '/o/{{id}}' }}, compose: {{ {compose} }} }} ] }} }}\n\
             services: {{ s: {{}} }}\n"
        ));
        let output = site.run(&["config", "check"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && says.iter().all(|says| text.contains(says)), "{compose}: {text}");
    }
    let both = Site::new(
        "gateways: { public: { listen: GATEWAY, routes: [ { id: a, to: s, compose: { parts: [ { name: a, call: GET s/x } ] } } ] } }\n\
         services: { s: {} }\n",
    );
    let output = both.run(&["config", "check"]);
    assert!(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).contains("leave one out"));
}
