//! Routes change while requests pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use super::support::*;

const FILE: &str = "
control: { listen: CONTROL }
gateways:
  public:
    listen: GATEWAY
    routes_from: routes.d
    routes: [ { id: own, match: { path: /own }, to: pages } ]
services: { pages: {} }
";

fn write(site: &Site, file: &str, text: &str) {
    std::fs::create_dir_all(site.dir.path().join("routes.d")).unwrap();
    std::fs::write(site.dir.path().join("routes.d").join(file), text).unwrap();
}

fn check(site: &Site) -> String {
    let output = site.run(&["config", "check"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    format!("{} {text}", output.status.success())
}

#[test]
fn teams_have_files_of_their_own_and_a_change_is_live() {
    let site = Site::new(FILE);
    write(
        &site,
        "a.yaml",
        "routes: [ { id: a, match: { path: /a/** }, filters: [ { strip_prefix: 1 } ], to: pages } ]\n",
    );
    write(&site, "b.yaml", "services: { other: {} }\nroutes: [ { id: b, match: { path: /b }, to: other } ]\n");
    let [pages, other] =
        ["pages", "other"].map(|name| Participant::start(move |seen| (200, format!("{name} {}", seen.path))));
    let _control = site.control();
    site.register("pages", "one", pages.addr);
    site.register("other", "one", other.addr);
    let gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/a/x").status == 200);
    assert_eq!((get(site.gateway, "/a/x").body, get(site.gateway, "/b").body), ("pages /x".into(), "other /b".into()));
    // Under load: every change is taken, and no request notices.
    let load = Load::start(site.gateway, "/own", 1);
    write(
        &site,
        "c.yaml",
        "routes: [ { id: c, match: { path: /c }, filters: [ { respond: { status: 200, text: new } } ] } ]\n",
    );
    until("a new file is live", || get(site.gateway, "/c").body == "new");
    // What is wrong changes nothing, and is said.
    write(&site, "c.yaml", "routes: [ { id: a, match: { path: /c }, to: nobody } ]\n");
    until("it is refused", || gateway.log().contains("stay as they were"));
    assert_eq!((get(site.gateway, "/c").body, get(site.gateway, "/a/x").status), ("new".into(), 200));
    std::fs::remove_file(site.dir.path().join("routes.d/c.yaml")).unwrap();
    until("what is gone is gone", || get(site.gateway, "/c").status == 404);
    let text = FILE.replace("path: /own }", "path: /own/** }").replace("CONTROL", &site.control.to_string());
    let text = text.replace("GATEWAY", &site.gateway.to_string());
    std::fs::write(site.dir.path().join("seawall.yaml"), text).unwrap();
    signal(gateway.child.id(), Signal::HUP);
    until("the file itself is read again at SIGHUP", || get(site.gateway, "/own/x").status == 200);
    assert!(load.end() > 10);
}

#[test]
fn conflicts_between_teams_are_named_with_their_files() {
    for (file, says, place) in [
        ("routes: [ { id: own, match: { path: /x }, to: pages } ]", "is named `own` too", "routes.d/z.yaml:1"),
        (
            "routes:\n- { id: z, match: { path: /own }, to: pages }",
            "is never reached: route `own`",
            "routes.d/z.yaml:2",
        ),
        ("routes: [ { id: z, match: { path: /x }, to: page } ]", "did you mean `pages`?", "routes.d/z.yaml:1"),
        ("services: { pages: {} }", "`services.pages` is written in another file too", "routes.d/z.yaml:1"),
        ("route: []", "unknown key `route`", "routes.d/z.yaml:1"),
        ("routes: { a: b }", "`routes` has to be a list of routes", "routes.d/z.yaml:1"),
        ("routes: [ { id: z, match: { pth: /x }, to: pages } ]", "did you mean `path`?", "routes.d/z.yaml:1"),
        ("routes: [", "not YAML", "routes.d/z.yaml:"),
        ("[ 1 ]", "it has to be a block of keys", "routes.d/z.yaml:1"),
    ] {
        let site = Site::new(FILE);
        write(&site, "a.yaml", "# nothing\n");
        write(&site, "z.yaml", file);
        let text = check(&site);
        assert!(text.starts_with("false") && text.contains(says) && text.contains(place), "{file}: {text}");
    }
    let site = Site::new(FILE);
    let text = check(&site);
    assert!(text.starts_with("false") && text.contains("cannot read the directory"), "{text}");
}

/// Asks all the time, on connections of its own, until it is dropped; every answer has to be there.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    askers: Vec<std::thread::JoinHandle<u64>>,
}

impl Load {
    pub(super) fn start(addr: std::net::SocketAddr, path: &'static str, askers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asker = || {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut asked = 0;
                while !stop.load(Ordering::SeqCst) {
                    let answer = get(addr, path);
                    assert_eq!(answer.status, 200, "{answer:?}");
                    asked += 1;
                }
                asked
            })
        };
        let askers = (0..askers).map(|_| asker()).collect();
        Self { stop, askers }
    }

    pub(super) fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.askers.into_iter().map(|asker| asker.join().unwrap()).sum()
    }
}

#[test]
fn a_successor_takes_the_listeners_over_and_nobody_notices() {
    let site = Site::new(
        "control: { listen: CONTROL }
gateways: { public: { listen: GATEWAY, workers: 2, drain: 5s, routes: [ { id: all, match: {}, to: pages } ] } }
services: { pages: {} }
",
    );
    let pages = Participant::start(|_| (200, "x".into()));
    let _control = site.control();
    site.register("pages", "one", pages.addr);
    let nobody = site.run(&["gateway", "--take-over"]);
    let text = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(!nobody.status.success() && text.contains("no gateway hands its listeners over"), "{text}");
    let mut gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/").status == 200);
    let load = Load::start(site.gateway, "/", 4);
    for round in 0..3 {
        if round == 1 {
            // One that dies before it serves changes nothing.
            let file = std::fs::read_to_string(site.dir.path().join("seawall.yaml")).unwrap();
            let other = file.replace(&site.gateway.to_string(), "127.0.0.1:1");
            std::fs::write(site.dir.path().join("other.yaml"), other).unwrap();
            let failed = site.run(&["gateway", "--take-over", "--config", "other.yaml"]);
            let text = String::from_utf8_lossy(&failed.stderr).into_owned();
            assert!(!failed.status.success() && text.contains("listens on"), "{text}");
        }
        let successor = site.start(&["gateway", "--take-over"]);
        let mut former = std::mem::replace(&mut gateway, successor);
        let mut ended = None;
        until("the former one ends", || {
            ended = former.child.try_wait().unwrap();
            ended.is_some()
        });
        assert!(ended.unwrap().success(), "{}", former.log());
        assert!(former.log().contains("a successor serves"), "{}", former.log());
    }
    assert!(load.end() > 20);
    let addr = site.gateway;
    assert!(gateway.stop().success());
    assert!(std::net::TcpStream::connect(addr).is_err(), "nobody listens any more");
}
