//! Shifting traffic between services: at once, step by step, and back; through real gateways and a real control node.

use super::support::*;

const FILE: &str = "
control: { listen: CONTROL, ttl: 60s }
policies: { default: { retry: { attempts: 1 }, breaker: { enabled: false } } }
gateways:
  public:
    listen: GATEWAY
    splits:
      order:
        among: { order: 100, order-canary: 0 }
        when: [ { headers: { x-canary: '1' }, to: order-canary }, { cookies: { beta: '*' }, to: order-canary } ]
        sticky: { header: x-user }
    routes:
      - { id: one, match: { path: '/one/{id}' }, compose: { parts: [ { name: order, call: 'GET order/{id}' } ] } }
      - { id: orders, match: { path: /** }, to: order }
services: { order: {}, order-canary: {} }
";

fn text(site: &Site, args: &[&str]) -> (Option<i32>, String) {
    let output = site.run(args);
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// How many of a hundred requests go to the canary.
fn canaries(site: &Site) -> usize {
    (0..100).filter(|_| get(site.gateway, "/x").body.contains("canary")).count()
}

#[test]
fn traffic_is_shifted_and_rolled_back_with_one_command() {
    let site = Site::new(FILE);
    let stable = Participant::start(|_| (200, "\"stable\"".into()));
    let canary = Participant::start(|_| (200, "\"canary\"".into()));
    let control = site.control();
    site.register("order", "one", stable.addr);
    site.register("order-canary", "one", canary.addr);
    let gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/x").status == 200);
    assert_eq!(canaries(&site), 0);
    for header in ["x-canary: 1", "cookie: a=b; beta=yes"] {
        assert_eq!(send(site.gateway, "GET", "/x", &[header], "").body, "\"canary\"", "{header}");
    }
    assert_eq!(
        text(&site, &["traffic", "status"]),
        (Some(0), "order at public: order 100%, order-canary 0%\n".to_owned())
    );

    let (_, explained) = text(&site, &["route", "explain", "GET", "/x"]);
    assert!(
        explained.contains("to one of the services order, order-canary, as the split `order` is divided"),
        "{explained}"
    );

    let begun = std::time::Instant::now();
    let (code, said) = text(&site, &["traffic", "shift", "order", "order-canary=40%", "--because", "try it"]);
    assert_eq!((code, &*said), (Some(0), "order: order 60%, order-canary 40%\n"));
    until("it is shifted", || canaries(&site) > 0);
    let took = begun.elapsed();
    assert!((20..60).contains(&canaries(&site)));
    assert!(took < std::time::Duration::from_secs(3), "live after {took:?}");
    // Whoever is known stays; a composition goes the same way.
    for user in 0..20 {
        let header = format!("x-user: {user}");
        let ask = || send(site.gateway, "GET", "/x", &[&header], "").body;
        let first = ask();
        assert!((0..3).all(|_| ask() == first));
        let composed = send(site.gateway, "GET", "/one/7", &[&header], "").json();
        assert_eq!(composed["order"].to_string(), first, "{user}");
    }

    // Control is away: it stays as it is, over a restart of the gateway too.
    control.kill();
    gateway.kill();
    let gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/x").status == 200);
    assert!((20..60).contains(&canaries(&site)));
    let _control = site.control();
    site.register("order", "one", stable.addr);
    site.register("order-canary", "one", canary.addr);

    let (_, said) = text(&site, &["traffic", "shift", "order", "order-canary=100%"]);
    assert_eq!(said, "order: order 0%, order-canary 100%\n");
    until("it is shifted", || canaries(&site) == 100);
    let (code, said) = text(&site, &["traffic", "rollback", "order", "--who", "ann"]);
    assert_eq!((code, &*said), (Some(0), "order: order 60%, order-canary 40%\n"));
    until("it is rolled back", || (20..60).contains(&canaries(&site)));
    let (code, said) = text(&site, &["traffic", "rollback", "order"]);
    assert!(code == Some(1) && said.contains("rolled back already"), "{said}");
    assert_eq!(text(&site, &["traffic", "reset", "order"]).1, "order: order 100%, order-canary 0%, as the file says\n");
    until("it is as in the file", || canaries(&site) == 0);
    let (_, said) = text(&site, &["traffic", "status", "order"]);
    for says in
        ["order at public: order 100%, order-canary 0%", "rollback  order 60%, order-canary 40%", "ann", "try it"]
    {
        assert!(said.contains(says), "{says}: {said}");
    }
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.len() == 5 && lines[1].contains("as the file says"), "the newest first: {said}");
    drop(gateway);

    for (args, says) in [
        (&["shift", "orders", "a=5%"][..], "no gateway of the file has a split `orders`; there is `order`"),
        (&["shift", "order", "canary=5%"], "none of the services of the split; there is `order`, `order-canary`"),
        (&["shift", "order", "order-canary"], "not a share such as"),
        (&["shift", "order", "order-canary=5%", "--by", "5%"], "not a step and a time"),
        (&["status", "nothing"], "there is no split `nothing`"),
    ] {
        let (code, said) = text(&site, &[&["traffic"], args].concat());
        assert!(code != Some(0) && said.contains(says), "{args:?}: {said}");
    }
}

#[test]
fn a_canary_that_fails_is_taken_back() {
    let site = Site::new(FILE);
    let stable = Participant::start(|_| (200, "\"stable\"".into()));
    let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let fails = broken.clone();
    let canary = Participant::start(move |_| match fails.load(std::sync::atomic::Ordering::Relaxed) {
        true => (500, "\"canary\"".into()),
        false => (200, "\"canary\"".into()),
    });
    let _control = site.control();
    site.register("order", "one", stable.addr);
    site.register("order-canary", "one", canary.addr);
    let admin = free_addr().to_string();
    let _gateway = site.start(&["gateway", "--admin", &admin]);
    until("the gateway serves", || get(site.gateway, "/x").status == 200);
    // Customers, for as long as the test takes.
    let (over, gateway) = (std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)), site.gateway);
    let ends = over.clone();
    let customers = std::thread::spawn(move || {
        while !ends.load(std::sync::atomic::Ordering::Relaxed) {
            get(gateway, "/x");
        }
    });
    let gradual =
        |to: &str| text(&site, &["traffic", "shift", "order", to, "--by", "25%,1s", "--least", "5", "--admin", &admin]);
    let (code, said) = gradual("order-canary=50%");
    assert_eq!(code, Some(0), "{said}");
    for says in [
        "order: order 75%, order-canary 25%\n",
        "step 1 of 2: failed: 0.00% of",
        "order: order 50%, order-canary 50%\n",
    ] {
        assert!(said.contains(says), "{says}: {said}");
    }
    broken.store(true, std::sync::atomic::Ordering::Relaxed);
    let (code, said) = gradual("order-canary=100%");
    assert!(code == Some(1) && said.contains("rolled back in step 1 of 2: failed: 100.00% of"), "{said}");
    assert!(said.contains("order: order 50%, order-canary 50%\n"), "{said}");
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    customers.join().unwrap();
    let (_, said) = text(&site, &["traffic", "status", "order"]);
    assert!(said.contains("rollback  order 50%, order-canary 50%") && said.contains("failed: 100.00%"), "{said}");
    // Where nobody says how it goes, nothing is shifted.
    let nobody = free_addr().to_string();
    let (code, said) =
        text(&site, &["traffic", "shift", "order", "order-canary=90%", "--by", "25%,1s", "--admin", &nobody]);
    assert!(code == Some(1) && said.contains("no gateway says how its calls go"), "{said}");
}

#[test]
fn mistakes_in_splits_are_named_with_their_place() {
    for (splits, says) in [
        ("s: { among: { a: 0 } }", &["splits.s.among", "no service has a share above 0"][..]),
        ("s: { among: { a: 1, nobody: 1 } }", &["splits.s.among.nobody", "unknown service `nobody`"]),
        ("s: { among: { a: 1 }, when: [ { headers: { x: y }, to: b } ] }", &["splits.s.when.0", "`b` is not among"]),
        ("s: { among: { a: 1 }, sticky: {} }", &["splits.s.sticky", "give a `header` or a `cookie`"]),
        ("s: { among: { a: 1 }, stickyy: {} }", &["unknown key `stickyy`"]),
    ] {
        let site = Site::new(&format!(
            "gateways: {{ public: {{ listen: GATEWAY, splits: {{ {splits} }}, routes: [ {{ id: a, to: s }} ] }} }}\n\
             services: {{ a: {{}}, b: {{}} }}\n"
        ));
        let (code, said) = text(&site, &["config", "check"]);
        assert!(code != Some(0) && says.iter().all(|says| said.contains(says)), "{splits}: {said}");
    }
}
