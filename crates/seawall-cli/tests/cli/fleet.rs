//! Gateways, sidecars and `seawall up`.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::reload::Load;
use super::support::*;

const FILE: &str = "
control: { listen: CONTROL, ttl: 3s }
policies: { default: { timeout: 3s, retry: { attempts: 3, budget: 100% } } }
gateways:
  public:
    listen: GATEWAY
    routes:
      - id: pages
        match: { path: /pages/** }
        filters: [{ strip_prefix: 1 }, { set_response_header: { x-by: seawall } }]
        to: pages
        fallback: { status: 503, json: { error: \"no pages\" }, headers: { x-fallback: \"yes\" } }
services:
  pages: { run: 'python3 -m http.server ${PORT} --bind 127.0.0.1', replicas: 2, health: { http: / }, drain: 5s }
";

fn rows(site: &Site) -> Vec<Value> {
    let output = site.run(&["status", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn pid(site: &Site, name: &str) -> u32 {
    let rows = rows(site);
    let row = rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name} in {rows:?}"));
    row["pid"].as_u64().unwrap_or(0) as u32
}

fn healthy(site: &Site) {
    until("everything is healthy", || {
        let rows = rows(site);
        rows.len() == 6 && rows.iter().all(|row| row["status"] == "healthy")
    });
}

#[test]
fn up_runs_everything_restarts_what_dies_and_stops_in_order() {
    let site = Site::new(FILE);
    let up = site.start(&["up", "seawall.yaml"]);
    healthy(&site);
    let answer = get(site.gateway, "/pages/seawall.yaml");
    assert_eq!((answer.status, answer.header("x-by")), (200, "seawall"), "{answer:?}");
    assert!(answer.body.contains("set_response_header"));
    assert_eq!(get(site.gateway, "/other").status, 404);

    // Whatever is killed comes back, and meanwhile the other copy answers.
    for victim in ["pages-1", "pages-1 sidecar", "control", "gateway public"] {
        let before = pid(&site, victim);
        signal(before, Signal::KILL);
        if victim != "gateway public" {
            for _ in 0..20 {
                assert_eq!(get(site.gateway, "/pages/").status, 200, "after {victim} was killed");
            }
        }
        until("it is started again", || ![0, before].contains(&pid(&site, victim)));
        healthy(&site);
        until("it serves again", || get(site.gateway, "/pages/").status == 200);
    }

    // A second `up` on the same data is refused.
    let second = site.run(&["up", "seawall.yaml"]);
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `seawall up` is running"));

    // The whole service is stopped: the fallback answers; started again, it serves.
    assert!(site.run(&["stop", "pages"]).status.success());
    let answer = get(site.gateway, "/pages/");
    assert_eq!((answer.status, answer.header("x-fallback"), answer.header("x-by")), (503, "yes", "seawall"));
    assert!(answer.header("seawall-rejected").starts_with("no-instance") && answer.body.contains("no pages"));
    assert!(site.run(&["start", "pages"]).status.success());
    until("it serves again", || get(site.gateway, "/pages/").status == 200);
    let unknown = site.run(&["stop", "nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no service `nobody`"));

    let pids: Vec<u32> = rows(&site).iter().map(|row| row["pid"].as_u64().unwrap() as u32).collect();
    let log = site.dir.path().join("up.log");
    assert!(up.stop().success());
    assert!(pids.iter().all(|pid| !alive(*pid)), "something outlived it");
    let log = std::fs::read_to_string(log).unwrap();
    let place = |text: &str| log.rfind(text).unwrap_or_else(|| panic!("`{text}` is not in the log"));
    assert!(place("stopping gateway public") < place("stopping pages"));
    assert!(place("stopping pages") < place("stopping control"));
    assert!(place("stopping control") < place("everything has stopped"));
}

#[test]
fn up_starts_nothing_when_an_address_is_taken() {
    let site = Site::new(FILE);
    let _stranger = std::net::TcpListener::bind(site.control).unwrap();
    let output = site.run(&["up", "seawall.yaml"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(&format!("control.listen: cannot listen on {}", site.control)));
    assert!(text.contains("nothing was started"), "{text}");
}

#[test]
fn kill_9_of_up_leaves_nothing_running() {
    let site = Site::new(FILE);
    let up = site.start(&["up", "seawall.yaml"]);
    healthy(&site);
    let pids: Vec<u32> = rows(&site).iter().map(|row| row["pid"].as_u64().unwrap() as u32).collect();
    assert_eq!(pids.len(), 6);
    up.kill();
    until("all of them have ended", || pids.iter().all(|pid| !alive(*pid)));
    // And what it left behind does not keep the next one from starting.
    let again = site.start(&["up", "seawall.yaml"]);
    healthy(&site);
    assert!(again.stop().success());
}

/// A service that is a shell with a child of its own, as `npm start` is.
const NESTED: &str = "
control: { listen: CONTROL }
services:
  web:
    run: [sh, -c, 'echo $$ > shell.pid; python3 -m http.server $PORT --bind 127.0.0.1 & echo $! > inner.pid; wait']
";

#[test]
fn what_a_service_has_started_goes_with_it() {
    let site = Site::new(NESTED);
    let inner = || {
        let text = std::fs::read_to_string(site.dir.path().join("inner.pid")).unwrap_or_default();
        text.trim().parse::<u32>().unwrap_or(0)
    };
    let up = site.start(&["up", "seawall.yaml"]);
    let up_and_well = || rows(&site).iter().filter(|row| row["status"] == "healthy").count() == 3;
    until("it is healthy", up_and_well);
    let mut before = inner();
    for victim in ["web-1", "shell"] {
        let shell = || std::fs::read_to_string(site.dir.path().join("shell.pid")).unwrap().trim().parse().unwrap();
        signal(if victim == "shell" { shell() } else { pid(&site, victim) }, Signal::KILL);
        until("the inner process goes with it", || !alive(before));
        until("it is started again and healthy", || ![0, before].contains(&inner()) && up_and_well());
        before = inner();
    }
    up.kill();
    until("the inner process goes with `up`", || !alive(before));

    let up = site.start(&["up", "seawall.yaml"]);
    until("it is healthy", up_and_well);
    before = inner();
    assert!(up.stop().success());
    assert!(!alive(before), "a clean stop leaves nothing");
}

#[test]
fn start_waits_for_the_new_process() {
    let site = Site::new(&FILE.replace("replicas: 2", "replicas: 1").replace(
        "run: 'python3 -m http.server ${PORT} --bind 127.0.0.1'",
        "run: [sh, -c, 'sleep 1; exec python3 -m http.server $PORT --bind 127.0.0.1']",
    ));
    let _up = site.start(&["up", "seawall.yaml"]);
    until("it serves", || get(site.gateway, "/pages/").status == 200);
    assert!(site.run(&["stop", "pages", "--kill"]).status.success());
    // It is still registered where it was; that is not what is asked for.
    assert!(site.run(&["start", "pages"]).status.success());
    assert_eq!(get(site.gateway, "/pages/").status, 200);
}

#[test]
fn status_tells_who_does_not_answer() {
    let site = Site::new(FILE);
    let _up = site.start(&["up", "seawall.yaml"]);
    healthy(&site);
    let gateway = pid(&site, "gateway public");
    signal(gateway, Signal::STOP);
    let status = |name: &str| {
        let rows = rows(&site);
        rows.iter().find(|row| row["name"] == name).unwrap()["status"].as_str().unwrap().to_owned()
    };
    until("the gateway is seen to be silent", || status("gateway public") == "no answer");
    assert_eq!(status("control"), "healthy");
    signal(gateway, Signal::CONT);
    healthy(&site);
}

#[test]
fn a_rolling_restart_fails_no_request() {
    let site = Site::new(FILE);
    let _up = site.start(&["up", "seawall.yaml"]);
    healthy(&site);
    let before = (pid(&site, "pages-1"), pid(&site, "pages-2"));
    let gateway = site.gateway;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let load = std::thread::spawn(move || {
        let mut answers = Vec::new();
        while stopped.try_recv().is_err() {
            answers.push(get(gateway, "/pages/").status);
            std::thread::sleep(Duration::from_millis(3));
        }
        answers
    });
    let output = site.run(&["restart", "pages"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stop.send(()).unwrap();
    let answers = load.join().unwrap();
    assert!(answers.len() > 20 && answers.iter().all(|status| *status == 200), "{answers:?}");
    let after = (pid(&site, "pages-1"), pid(&site, "pages-2"));
    assert!(before.0 != after.0 && before.1 != after.1);
}

#[test]
fn a_gateway_is_restarted_without_a_refused_connection() {
    let site = Site::new(FILE);
    let _up = site.start(&["up", "seawall.yaml"]);
    healthy(&site);
    until("it serves", || get(site.gateway, "/pages/").status == 200);
    let load = Load::start(site.gateway, "/pages/", 2);
    for _ in 0..2 {
        let before = pid(&site, "gateway public");
        let output = site.run(&["restart", "public"]);
        assert!(output.status.success(), "{output:?}");
        let after = pid(&site, "gateway public");
        assert!(after != before && !alive(before) && alive(after));
    }
    // One whose file is wrong by now does not get there; the one that serves goes on.
    let before = pid(&site, "gateway public");
    let file = site.dir.path().join("seawall.yaml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("to: ", "two: ")).unwrap();
    let socket = site.dir.path().join("seawall-data/up.sock");
    let mut up = std::os::unix::net::UnixStream::connect(socket).unwrap();
    std::io::Write::write_all(
        &mut up,
        b"POST /services/public/restart HTTP/1.1\r\nhost: up\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    )
    .unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut up, &mut answer).unwrap();
    assert!(answer.contains("the successor of gateway public has died"), "{answer}");
    std::fs::write(&file, good).unwrap();
    assert_eq!(pid(&site, "gateway public"), before);
    assert!(load.end() > 10);
}

#[test]
fn a_gateway_goes_on_without_control_even_when_it_starts_anew() {
    let site = Site::new(FILE);
    let pages = Participant::start(|_| (200, "page".into()));
    let control = site.control();
    site.register("pages", "pages-1", pages.addr);
    let gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/pages/x").body == "page");
    control.kill();
    for _ in 0..20 {
        assert_eq!(get(site.gateway, "/pages/x").status, 200);
    }
    gateway.kill();
    // From the snapshot on disk, before it has ever reached control.
    let gateway = site.start(&["gateway"]);
    until("the gateway is back", || get(site.gateway, "/pages/x").status != 0);
    for _ in 0..20 {
        assert_eq!(get(site.gateway, "/pages/x").status, 200);
    }
    assert!(gateway.log().contains("lost control"));
    // And it follows again when control is back.
    let _control = site.control();
    let other = Participant::start(|_| (200, "other".into()));
    site.register("pages", "pages-1", other.addr);
    until("the gateway follows", || get(site.gateway, "/pages/x").body == "other");
}

#[test]
fn a_sidecar_runs_a_service_registers_it_and_takes_it_out() {
    let site = Site::new(FILE);
    let _control = site.control();
    let (app, outbound) = (free_addr(), free_addr());
    let (app_text, outbound_text) = (app.to_string(), outbound.to_string());
    let script = "import http.server, os; http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), \
                  http.server.SimpleHTTPRequestHandler).serve_forever()";
    let sidecar = site.start(&[
        "sidecar",
        "--service",
        "pages",
        "--id",
        "p1",
        "--app",
        &app_text,
        "--outbound",
        &outbound_text,
        "--config",
        "seawall.yaml",
        "--",
        "python3",
        "-c",
        script,
    ]);
    let instance = || get(site.control, "/v1/services/pages").json()["instances"][0].clone();
    until("it is registered as up", || {
        get(site.control, "/v1/services/pages").status == 200 && instance()["status"] == "up"
    });
    // Through the way out, balanced to itself; an unknown service is said so.
    assert_eq!(get(outbound, "/pages/seawall.yaml").status, 200);
    let unknown = get(outbound, "/nobody/x");
    assert!(unknown.status == 503 && unknown.body.contains("no instance has ever registered"), "{unknown:?}");
    assert_eq!(get(outbound, "/").status, 400);
    assert!(sidecar.stop().success());
    assert_eq!(get(site.control, "/v1/services/pages").json()["instances"], serde_json::json!([]));
    assert_eq!(get(app, "/").status, 0, "the service was stopped too");
}

#[test]
fn a_killed_sidecar_takes_its_service_along() {
    let site = Site::new(FILE);
    let _control = site.control();
    let app = free_addr();
    let script = "echo $$ > app.pid; python3 -m http.server $PORT --bind 127.0.0.1 & echo $! > inner.pid; wait";
    let sidecar = site.start(&[
        "sidecar",
        "--service",
        "pages",
        "--app",
        &app.to_string(),
        "--config",
        "seawall.yaml",
        "--",
        "sh",
        "-c",
        script,
    ]);
    until("the service answers", || get(app, "/").status == 200);
    let pid = |name: &str| std::fs::read_to_string(site.dir.path().join(name)).unwrap().trim().parse().unwrap();
    let (outer, inner): (u32, u32) = (pid("app.pid"), pid("inner.pid"));
    sidecar.kill();
    until("all of it has ended", || !alive(outer) && !alive(inner));
}

#[test]
fn an_unhealthy_instance_gets_no_requests_until_it_is_well() {
    let site = Site::new(&FILE.replace("health: { http: / }", "health: { http: /well, interval: 50ms, failures: 2 }"));
    let _control = site.control();
    let well = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let answer = well.clone();
    let pages = Participant::start(move |_| {
        if answer.load(std::sync::atomic::Ordering::SeqCst) { (200, "ok".into()) } else { (500, "ill".into()) }
    });
    let addr = pages.addr.to_string();
    let _sidecar = site.start(&["sidecar", "--service", "pages", "--app", &addr, "--config", "seawall.yaml"]);
    let status = || {
        let services = get(site.control, "/v1/services").json();
        services["services"]["pages"][0]["status"].as_str().unwrap_or_default().to_owned()
    };
    until("it is up", || status() == "up");
    well.store(false, std::sync::atomic::Ordering::SeqCst);
    until("it is down", || status() == "down");
    well.store(true, std::sync::atomic::Ordering::SeqCst);
    until("it is up again", || status() == "up");
}
