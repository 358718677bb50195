//! Which route takes a request: through a real gateway, and as `seawall route explain` says it.

use super::support::*;

const FILE: &str = "
control: { listen: CONTROL }
gateways:
  public:
    listen: GATEWAY
    trusted_hops: 1
    routes:
      - { id: paged, match: { path: /api/orders, query: { page: { regex: '[0-9]+' } } }, filters: [ { strip_prefix: 1 } ], to: pages }
      - { id: beta, match: { path: /api/**, cookies: { beta: 'yes' } }, to: beta }
      - { id: inside, match: { path: /api/**, source: [ 10.0.0.0/8 ] }, to: inside }
      - { id: versions, match: { path_regex: '/v[0-9]+/x' }, to: pages }
      - { id: canary, match: { path: /half/**, weight: { group: g, share: 1 } }, to: beta }
      - { id: stable, match: { path: /half/**, weight: { group: g, share: 1 } }, to: pages }
      - { id: all, match: { path: /api/** }, filters: [ { set_header: { x-from: gateway } } ], to: pages }
services: { pages: {}, beta: {}, inside: {} }
";

#[test]
fn requests_take_the_routes_that_are_explained() {
    let site = Site::new(FILE);
    let [pages, beta, inside] =
        ["pages", "beta", "inside"].map(|name| Participant::start(move |seen| (200, format!("{name} {}", seen.path))));
    let _control = site.control();
    for (service, participant) in [("pages", &pages), ("beta", &beta), ("inside", &inside)] {
        site.register(service, "one", participant.addr);
    }
    let _gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/api/x").status == 200);
    for (path, header, body, route) in [
        ("/api/orders?page=7", "x-a: 1", "pages /orders?page=7", "paged"),
        ("/api/orders?page=all", "x-a: 1", "pages /api/orders?page=all", "all"),
        ("/api/orders?page=all", "cookie: a=b; beta=yes", "beta /api/orders?page=all", "beta"),
        ("/api/x", "x-forwarded-for: 1.1.1.1, 10.1.2.3", "inside /api/x", "inside"),
        ("/api/x", "x-forwarded-for: 10.1.2.3, 1.1.1.1", "pages /api/x", "all"),
        ("/v12/x", "x-a: 1", "pages /v12/x", "versions"),
    ] {
        let answer = send(site.gateway, "GET", path, &[header], "");
        assert_eq!((answer.status, &*answer.body), (200, body), "{path} {header}: {answer:?}");
        let explained = site.run(&["route", "explain", "GET", path, "-H", header]);
        let text = String::from_utf8_lossy(&explained.stdout).into_owned();
        let yes = text.lines().find(|line| line.trim_start().starts_with("YES")).unwrap_or_default();
        assert!(explained.status.success() && yes.contains(route), "{path} {header}: {text}");
    }
    let halves: Vec<_> = (0..60).map(|_| get(site.gateway, "/half/x").body).collect();
    assert!(halves.iter().any(|body| body.starts_with("beta")) && halves.iter().any(|body| body.starts_with("pages")));
    assert_eq!(get(site.gateway, "/v12/x/y").status, 404);

    let explained = site.run(&["route", "explain", "POST", "/api/orders?page=x"]);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    for says in [
        "POST /api/orders?page=x at the gateway `public`, from 127.0.0.1",
        "no   paged            the query's page has to be what fits ^(?:[0-9]+)$, it is `x`",
        "no   beta             the cookie beta has to be `yes`, there is none",
        "no   inside           the client has to be in 10.0.0.0/8, it is 127.0.0.1",
        "YES  all              to the service `pages`",
        "the request's headers become `x-from: gateway`",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let none = site.run(&["route", "explain", "GET", "/nowhere"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stdout).contains("no route takes it"));
    let bad = site.run(&["route", "explain", "GET", "/x", "-H", "nonsense"]);
    assert!(String::from_utf8_lossy(&bad.stderr).contains("`nonsense` is no header"));
}

#[test]
fn mistakes_in_conditions_are_named() {
    let wrong = [
        ("path_regex: '(('", "is no regular expression"),
        ("query: { a: { regex: 'a)|(b' } }", "is no regular expression"),
        ("source: [ 10.0.0.0/40 ]", "is no address or network"),
        ("after: yesterday", "is not a time such as"),
        ("after: 2026-01-01T00:00:00Z, before: 2025-01-01T00:00:00Z", "is not later than"),
        ("weight: { group: g, share: 0 }", "has a share above 0"),
        ("querry: { a: b }", "unknown key `querry`"),
    ];
    for (condition, says) in wrong {
        let site = Site::new(&format!(
            "gateways: {{ public: {{ listen: GATEWAY, routes: [ {{ id: a, match: {{ {condition} }}, to: s }} ] }} }}\nservices: {{ s: {{}} }}\n"
        ));
        let output = site.run(&["config", "check"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && text.contains(says) && text.contains("routes.0.match"),
            "{condition}: {text}"
        );
    }
}

const FILTERS: &str = "
control: { listen: CONTROL }
gateways:
  public:
    listen: GATEWAY
    access_log: { file: access.log }
    routes:
      - id: old
        match: { path: '/old/{id}' }
        filters: [ { redirect: { to: 'https://shop.example/orders/{id}{query}', status: 308 } }, { security_headers: {} }, { request_id: { keep: true } } ]
      - { id: robots, match: { path: /robots.txt }, filters: [ { respond: { status: 200, text: none } }, { set_response_header: { x-a: b } } ] }
      - id: orders
        match: { path: '/shop/{kind}/{id}/**' }
        filters:
          - set_path: '/v1/{kind}/of/{id}'
          - set_query: { source: gateway }
          - remove_query: [ debug ]
          - request_id: {}
        to: pages
      - id: rewritten
        match: { path: /** }
        filters: [ { rewrite_path: { regex: '/x', to: '/..' } } ]
        to: pages
services: { pages: {} }
";

#[test]
fn filters_change_what_the_service_sees_and_some_answer_by_themselves() {
    let site = Site::new(FILTERS);
    let pages = Participant::start(|seen| (200, seen.path.clone()));
    let _control = site.control();
    site.register("pages", "one", pages.addr);
    let gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/shop/a/7").status == 200);
    let old = get(site.gateway, "/old/7?a=b");
    assert_eq!((old.status, old.header("location")), (308, "https://shop.example/orders/7?a=b"), "{old:?}");
    assert_eq!(old.header("x-content-type-options"), "nosniff");
    assert_eq!(old.header("x-request-id").len(), 32, "{old:?}");
    assert_eq!(send(site.gateway, "GET", "/old/7", &["x-request-id: mine"], "").header("x-request-id"), "mine");
    let robots = get(site.gateway, "/robots.txt");
    assert_eq!((robots.status, &*robots.body, robots.header("x-a")), (200, "none", "b"), "{robots:?}");
    // With a body that nobody reads, and the connection still in order.
    let put = send(site.gateway, "PUT", "/robots.txt", &[], "{}");
    assert_eq!(put.status, 200);
    assert_eq!(get(site.gateway, "/shop/tea/7/more?debug=1&x=2").body, "/v1/tea/of/7?x=2&source=gateway");
    let named = get(site.gateway, "/shop/tea/7");
    assert_eq!(pages.seen().last().unwrap().header("x-request-id"), named.header("x-request-id"));
    let walks = get(site.gateway, "/x/y");
    assert_eq!(walks.status, 400, "{walks:?}");
    // All of it is written down and counted.
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(site.dir.path().join("access.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let line = |path: &str| lines().into_iter().find(|line| line["path"] == path);
    until("the log has them", || line("/x/y").is_some());
    let tea = line("/shop/tea/7/more").unwrap();
    assert_eq!((&tea["route"], &tea["service"], &tea["status"]), (&"orders".into(), &"pages".into(), &200.into()));
    assert_eq!(tea["upstream"], pages.addr.to_string());
    assert_eq!(line("/robots.txt").unwrap()["bytes"], 4);
    let admin = gateway.log().split("admin=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    let metrics = get(admin, "/metrics").body;
    for line in [
        "seawall_route_responses_total{route=\"old\",class=\"3xx\"} 2",
        "seawall_filter_seconds_count{filter=\"RequestId\"}",
        "seawall_access_log_dropped_total 0",
    ] {
        assert!(metrics.lines().any(|own| own.starts_with(line)), "{line}: {metrics}");
    }
    let explained = site.run(&["route", "explain", "GET", "/shop/tea/7?debug=1"]);
    let text = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(text.contains("the service sees /v1/tea/of/7?source=gateway"), "{text}");
    let explained = site.run(&["route", "explain", "GET", "/old/7"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("answered here"));
    for (route, says) in [
        ("{ id: a, match: {} }", "the service is missing"),
        ("{ id: a, match: { path: '/{x}' }, filters: [ { set_path: '/{y}' } ], to: pages }", "`{y}` is nothing that"),
        ("{ id: a, match: {}, filters: [ { redirect: { to: /x, status: 201 } } ] }", "a redirect's status"),
        ("{ id: a, match: {}, filters: [ { rewrite_path: { regex: a, to: $1 } } ], to: pages }", "has no group `1`"),
    ] {
        let site = Site::new(&format!(
            "gateways: {{ public: {{ listen: GATEWAY, routes: [ {route} ] }} }}\nservices: {{ pages: {{}} }}\n"
        ));
        let output = site.run(&["config", "check"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && text.contains(says), "{route}: {text}");
    }
}
