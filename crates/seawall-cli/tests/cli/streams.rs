//! Locks as they change, sessions that end with their stream, and all of it through a sidecar and from another language.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use seawall_coord::Token;
use serde_json::json;

use super::locks::{Holder, open};
use super::support::*;

const FILE: &str = "control: { listen: CONTROL }\n";

fn acquire(at: SocketAddr, base: &str, session: &str, lock: &str, wait: &str) -> (Token, Answer) {
    let token = Token::random();
    let path = format!("{base}/v1/locks/{lock}/claims/{token}?wait={wait}");
    (token, send(at, "PUT", &path, &[], &json!({ "session": session }).to_string()))
}

fn release(at: SocketAddr, session: &str, lock: &str, token: Token) -> u16 {
    send(at, "DELETE", &format!("/v1/locks/{lock}/claims/{token}?session={session}"), &[], "").status
}

fn held(at: SocketAddr, lock: &str) -> bool {
    !get(at, &format!("/v1/locks/{lock}")).json()["holder"].is_null()
}

#[test]
fn locks_and_elections_are_watched_and_control_may_go_away() {
    let site = Site::new(FILE);
    let control = site.control();
    let at = site.control;
    let session = open(at, "60s", "web-3");
    let (token, _) = acquire(at, "", &session, "report", "0s");
    let all = Holder::run(&site, "all", &["locks", "--watch"]);
    let one = Holder::run(&site, "one", &["locks", "other", "--watch"]);
    let elections = Holder::run(&site, "elections", &["elections", "--watch"]);
    let says = |holder: &Holder, what: &str| until(what, || holder.out().contains(what));
    says(&all, "report                   held by web-3 (session ");
    let other = open(at, "60s", "web-4");
    let waiter = std::thread::spawn(move || acquire(at, "", &other, "report", "20s").1.status);
    says(&all, " alone; 1 waiting");
    assert_eq!(release(at, &session, "report", token), 204);
    says(&all, "report                   held by web-4 (session ");
    assert_eq!(waiter.join().unwrap(), 200);
    let (token, _) = acquire(at, "", &session, "other", "0s");
    says(&one, "other                    held by web-3");
    assert_eq!(release(at, &session, "other", token), 204);
    says(&one, "other                    free");
    assert!(!one.out().contains("report"));
    let campaign = format!("/v1/elections/mailer/candidates/{}?wait=0s", Token::random());
    assert_eq!(send(at, "PUT", &campaign, &[], &json!({ "session": session }).to_string()).status, 200);
    says(&elections, "mailer                   led by web-3 (session ");
    control.kill();
    says(&all, "waiting for control");
    let _control = site.control();
    let before = all.out().matches("held by web-4").count();
    until("all is said anew", || all.out().matches("held by web-4").count() > before);
    let nobody = site.run(&["locks", "--watch", "--control", &free_addr().to_string()]);
    assert!(
        !nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("cannot be reached"),
        "{nobody:?}"
    );
}

#[test]
fn a_lock_and_those_of_all_are_events() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let session = open(at, "60s", "a");
    let (token, _) = acquire(at, "", &session, "x", "0s");
    let observed = events(at, "/v1/locks");
    let next = || observed.recv_timeout(Duration::from_secs(10)).unwrap();
    let (event, lock) = next();
    assert_eq!((&*event, &lock["name"], &lock["holder"]["owner"]), ("lock", &json!("x"), &json!("a")));
    assert_eq!(next().0, "all");
    assert_eq!(release(at, &session, "x", token), 204);
    let (event, lock) = next();
    assert_eq!((&*event, &lock["name"], &lock["holder"]), ("lock", &json!("x"), &json!(null)));
}

/// The stream that a session is bound to, and its first event.
fn bind(at: SocketAddr, session: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(format!("GET /v1/sessions/{session}/stream HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
    let first = event(&stream);
    (stream, first)
}

fn event(stream: &TcpStream) -> String {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.find_map(|line| line.strip_prefix("event: ").map(str::to_owned)).unwrap_or_default()
}

#[test]
fn a_session_ends_with_its_stream_and_not_with_control() {
    let site = Site::new(FILE);
    let control = site.control();
    let at = site.control;
    let bound = open(at, "60s", "bound");
    let (stream, first) = bind(at, &bound);
    assert_eq!(first, "bound");
    assert_eq!(acquire(at, "", &bound, "x", "0s").1.status, 200);
    let from = Instant::now();
    drop(stream);
    until("the lock is free", || !held(at, "x"));
    assert!(from.elapsed() < Duration::from_secs(20), "long before its time to live is over");
    let late = acquire(at, "", &bound, "x", "0s").1;
    assert_eq!((late.status, &late.json()["code"]), (410, &json!("session-lost")));
    // One that ends otherwise is told so.
    let closed = open(at, "60s", "closed");
    let (stream, _) = bind(at, &closed);
    assert_eq!(send(at, "DELETE", &format!("/v1/sessions/{closed}"), &[], "").status, 204);
    assert_eq!(event(&stream), "lost");
    // A control node that goes away ends nobody's session, whether it is stopped or dies.
    let stays = open(at, "60s", "stays");
    let (stream, _) = bind(at, &stays);
    assert_eq!(acquire(at, "", &stays, "x", "0s").1.status, 200);
    assert!(control.stop().success());
    let control = site.control();
    assert!(held(at, "x"));
    drop(stream);
    let (_stream, first) = bind(at, &stays);
    assert_eq!(first, "bound");
    control.kill();
    let _control = site.control();
    assert!(held(at, "x"));
    let unknown = get(at, &format!("/v1/sessions/{closed}/stream"));
    assert_eq!((unknown.status, &unknown.json()["code"]), (410, &json!("session-lost")));
}

#[test]
fn a_program_in_another_language_holds_a_lock_through_its_sidecar() {
    let site = Site::new(FILE);
    let _control = site.control();
    let (app, outbound) = (free_addr().to_string(), free_addr());
    let _sidecar = site.start(&[
        "sidecar",
        "--service",
        "pages",
        "--app",
        &app,
        "--outbound",
        &outbound.to_string(),
        "--config",
        "seawall.yaml",
        "--",
        "sh",
        "-c",
        "exec python3 -m http.server $PORT --bind 127.0.0.1",
    ]);
    until("the sidecar reaches control", || get(outbound, "/control/v1/locks").status == 200);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/lock.py");
    let url = format!("http://{outbound}/control");
    let start = |name: &str| {
        let mut program = Command::new("python3");
        program.args([script, &url, name]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        program.spawn().unwrap()
    };
    let refused = start(&"x".repeat(1000)).wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("1000 bytes"), "{refused:?}");
    let mut program = start("nightly-report");
    let mut said = String::new();
    BufReader::new(program.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    let holder = get(site.control, "/v1/locks/nightly-report").json()["holder"].clone();
    assert_eq!(holder["owner"], "lock.py");
    assert!(said.starts_with(&format!("token {}, ", holder["fence"])), "{said}");
    // Another waits through the sidecar, and sees it all as events.
    let observed = events(outbound, "/control/v1/locks");
    let next = || observed.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!((next().1["holder"]["owner"].clone(), next().0), (json!("lock.py"), "all".to_owned()));
    let session = open(site.control, "60s", "other");
    let waiter = std::thread::spawn(move || acquire(outbound, "/control", &session, "nightly-report", "8s").1);
    until("it waits", || next().1["queue"][0]["owner"] == "other");
    // A stream that is silent for longer than a request may take is not cut off.
    std::thread::sleep(Duration::from_secs(4));
    drop(program.stdin.take());
    assert!(program.wait().unwrap().success());
    assert_eq!(waiter.join().unwrap().status, 200);
    until("it is seen", || next().1["holder"]["owner"] == "other");
}
