//! Locks on a real control node: over HTTP, from Rust, and around commands; with clients that are killed and stopped.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use seawall_coord::{LockName, Owner, Remote, Session, SessionConfig, Token, Why};
use serde_json::{Value, json};

use super::support::*;

const FILE: &str = "control: { listen: CONTROL }\n";

pub(super) fn open(control: SocketAddr, ttl: &str, owner: &str) -> String {
    let answer = send(control, "POST", "/v1/sessions", &[], &json!({ "ttl": ttl, "owner": owner }).to_string());
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()["session"].as_str().unwrap().to_owned()
}

fn claim(control: SocketAddr, session: &str, lock: &str, token: Token, wait: &str) -> Answer {
    let path = format!("/v1/locks/{lock}/claims/{token}?wait={wait}");
    send(control, "PUT", &path, &[], &json!({ "session": session }).to_string())
}

fn release(control: SocketAddr, session: &str, lock: &str, token: Token) -> Answer {
    send(control, "DELETE", &format!("/v1/locks/{lock}/claims/{token}?session={session}"), &[], "")
}

pub(super) fn waiting(control: SocketAddr, lock: &str) -> usize {
    get(control, &format!("/v1/locks/{lock}")).json()["queue"].as_array().unwrap().len()
}

#[test]
fn a_lock_goes_from_one_session_to_the_next() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let (a, b) = (open(at, "30s", "a"), open(at, "30s", "b"));
    let (mine, other) = (Token::random(), Token::random());
    let first = claim(at, &a, "x", mine, "0s");
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(claim(at, &a, "x", mine, "0s").json(), first.json(), "the same again has the same answer");
    let busy = claim(at, &b, "x", other, "0s");
    assert_eq!(
        (busy.status, &busy.json()["code"], &busy.json()["holder"]["owner"]),
        (409, &json!("busy"), &json!("a"))
    );
    let late = claim(at, &b, "x", other, "100ms");
    assert_eq!((late.status, &late.json()["code"], &late.json()["ahead"]), (408, &json!("timed-out"), &json!(1)));
    // It has kept its place for a moment.
    assert_eq!(waiting(at, "x"), 1);
    let waiter = std::thread::spawn({
        let b = b.clone();
        move || claim(at, &b, "x", other, "20s")
    });
    let path = format!("/v1/locks/x/claims/{mine}?session={a}");
    assert_eq!(get(at, &path).json()["held"], true);
    assert_eq!(release(at, &a, "x", mine).status, 204);
    let second = waiter.join().unwrap();
    assert_eq!(second.status, 200, "{second:?}");
    assert!(second.json()["fence"].as_u64() > first.json()["fence"].as_u64());
    // What is stale changes nothing.
    let stale = release(at, &a, "x", mine);
    assert_eq!((stale.status, &stale.json()["code"]), (409, &json!("not-held")));
    assert_eq!(get(at, &path).status, 404);
    // A request that was held up on its way does not bring back what was given up.
    assert_eq!(claim(at, &a, "x", mine, "1s").status, 410);
    assert_eq!(get(at, "/v1/locks").json()[0]["holder"]["owner"], "b");
    assert!(!get(at, "/v1/locks").body.contains(&b), "no secret is shown");
    // A session takes all that it holds along.
    assert_eq!(send(at, "POST", &format!("/v1/sessions/{b}/keep-alive"), &[], "").json()["ttl_ms"], 30_000);
    assert_eq!(send(at, "DELETE", &format!("/v1/sessions/{b}"), &[], "").status, 204);
    assert_eq!(send(at, "DELETE", &format!("/v1/sessions/{b}"), &[], "").status, 204);
    assert_eq!(send(at, "POST", &format!("/v1/sessions/{b}/keep-alive"), &[], "").status, 410);
    assert_eq!(claim(at, &b, "x", Token::random(), "0s").json()["code"], "session-lost");
    assert_eq!(get(at, "/v1/locks").json(), json!([]));
}

#[test]
fn a_request_that_breaks_off_keeps_its_place_for_a_moment() {
    use std::io::Write;
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let (a, b) = (open(at, "60s", "a"), open(at, "60s", "b"));
    let mine = Token::random();
    assert_eq!(claim(at, &a, "x", mine, "0s").status, 200);
    let begin = |token: Token| {
        let body = json!({ "session": b }).to_string();
        let mut stream = std::net::TcpStream::connect(at).unwrap();
        let head =
            format!("PUT /v1/locks/x/claims/{token}?wait=60s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json");
        write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        until("it waits", || waiting(at, "x") == 1);
        stream
    };
    // It comes back.
    let token = Token::random();
    drop(begin(token));
    let again = std::thread::spawn({
        let b = b.clone();
        move || claim(at, &b, "x", token, "20s")
    });
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(waiting(at, "x"), 1);
    assert_eq!(release(at, &a, "x", mine).status, 204);
    assert_eq!(again.join().unwrap().status, 200);
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(get(at, "/v1/locks/x").json()["holder"]["owner"], "b", "what was granted stays");
    // It does not.
    drop(begin(Token::random()));
    let from = Instant::now();
    until("nobody waits", || waiting(at, "x") == 0);
    assert!(from.elapsed() < Duration::from_secs(8), "only the session's end has cleared it up");
}

#[test]
fn bad_requests_about_locks_get_a_clear_answer_and_change_nothing() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let session = open(at, "30s", "a");
    let token = Token::random();
    assert_eq!(claim(at, &session, "x", token, "0s").status, 200);
    let before = get(at, "/v1/locks").json();
    let long = "n".repeat(10_240);
    let new = |ttl: &str, owner: &str| json!({ "ttl": ttl, "owner": owner }).to_string();
    let body = json!({ "session": session }).to_string();
    let path = |name: &str| format!("/v1/locks/{name}/claims/{token}");
    let other = Token::random();
    for (method, path, body, status, says) in [
        ("POST", "/v1/sessions".into(), new("0s", "a"), 400, "0ns: 1s to 3600s are allowed"),
        ("POST", "/v1/sessions".into(), new("500ms", "a"), 400, "500ms: 1s to 3600s"),
        ("POST", "/v1/sessions".into(), new("365 days", "a"), 422, "365 days"),
        ("POST", "/v1/sessions".into(), new("8760h", "a"), 400, "31536000s: 1s to 3600s"),
        ("POST", "/v1/sessions".into(), new("10", "a"), 422, "no unit"),
        ("POST", "/v1/sessions".into(), new("10s", ""), 422, "of 0 bytes: 1 to 128"),
        ("POST", "/v1/sessions".into(), r#"{"ttl":"10s","owner":"a","color":1}"#.into(), 422, "unknown field `color`"),
        ("POST", "/v1/sessions".into(), "{".into(), 400, ""),
        ("POST", "/v1/sessions/1/keep-alive".into(), String::new(), 400, "this is no session"),
        (
            "POST",
            format!("/v1/sessions/{:016x}-{other}/keep-alive", 1),
            String::new(),
            410,
            "does not know the session",
        ),
        ("PUT", path(&long), body.clone(), 400, "of 10240 bytes: 1 to 255"),
        ("PUT", path("a%2Fb"), body.clone(), 400, "character '/'"),
        ("PUT", path("a%00"), body.clone(), 400, "control characters"),
        ("PUT", "/v1/locks/x/claims/1".into(), body.clone(), 400, "32 digits"),
        ("PUT", path("x") + "?wait=5", body.clone(), 400, "no unit"),
        ("PUT", path("x") + "?hurry=1", body.clone(), 400, "unknown field `hurry`"),
        ("PUT", path("x"), "{}".into(), 422, "missing field `session`"),
        ("PUT", path("y"), json!({ "session": session, "info": "i".repeat(5_000) }).to_string(), 400, "5000 bytes"),
        ("PUT", path("y"), json!({ "session": "x".repeat(300_000) }).to_string(), 413, ""),
        ("DELETE", format!("/v1/locks/x/claims/{other}?session={session}"), String::new(), 409, "nothing was changed"),
        ("DELETE", path("x"), String::new(), 400, "missing field `session`"),
        ("GET", path("x") + &format!("?session={session}&until=late"), String::new(), 400, "`until=late` is not known"),
        ("GET", "/v1/locks/".to_owned() + &long, String::new(), 400, "of 10240 bytes"),
        ("POST", "/v1/locks/x/force".into(), "{}".into(), 422, "missing field `by`"),
        ("POST", "/v1/locks/x/force".into(), r#"{"by":""}"#.into(), 400, "1 to 128 bytes"),
        ("POST", "/v1/locks/nobody/force".into(), r#"{"by":"me"}"#.into(), 404, "nobody holds `nobody`"),
        ("PATCH", "/v1/locks/x".into(), String::new(), 405, "other methods"),
    ] {
        let answer = send(at, method, &path, &[], &body);
        let short = &path[..path.len().min(90)];
        assert!(answer.json()["error"].is_string(), "{method} {short}: {answer:?}");
        assert!(answer.status == status && answer.body.contains(says), "{method} {short}: {answer:?}");
    }
    assert_eq!(get(at, "/v1/locks").json(), before);
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(super) async fn session(at: SocketAddr, owner: &str, ttl: u64) -> Session<Remote> {
    let config = SessionConfig::new(Owner::try_new(owner).unwrap()).ttl(Duration::from_millis(ttl));
    Session::open(Remote::new([at]), config).await.unwrap()
}

fn name(text: &str) -> LockName {
    LockName::try_new(text).unwrap()
}

#[test]
fn rust_holders_exclude_each_other_and_survive_kill_9_of_control() {
    let site = Site::new(FILE);
    let control = site.control();
    let at = site.control;
    runtime().block_on(async {
        let inside = std::sync::Arc::new(tokio::sync::Mutex::new(0_u64));
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..8 {
            let (session, inside) = (session(at, &format!("s{n}"), 5_000).await, inside.clone());
            tasks.spawn(async move {
                for _ in 0..10 {
                    let lock = session.lock(name("ein Schloß"));
                    let guard = lock.acquire_within(Duration::from_secs(30)).await.unwrap();
                    let mut highest = inside.try_lock().expect("two at once");
                    assert!(guard.fence().get() > *highest);
                    *highest = guard.fence().get();
                    tokio::task::yield_now().await;
                    drop(highest);
                    guard.release().await.unwrap();
                }
            });
        }
        tasks.join_all().await;

        let (holder, next) = (session(at, "holder", 4_000).await, session(at, "next", 4_000).await);
        let guard = holder.lock(name("x")).acquire_within(Duration::from_secs(5)).await.unwrap();
        let waiting = tokio::spawn(async move {
            let guard = next.lock(name("x")).acquire_within(Duration::from_secs(30)).await.unwrap();
            guard.fence()
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let killed = tokio::task::spawn_blocking(move || {
            control.kill();
            std::thread::sleep(Duration::from_millis(1_000));
            site.control()
        });
        let _control = killed.await.unwrap();
        tokio::time::sleep(Duration::from_millis(3_000)).await;
        assert!(guard.check().is_ok(), "{:?}", guard.check());
        assert!(!waiting.is_finished());
        let fence = guard.fence();
        guard.release().await.unwrap();
        assert!(waiting.await.unwrap() > fence);
        // Taken away by force, the holder hears of it at once, and not by its next keep-alive.
        let guard = holder.lock(name("y")).acquire_within(Duration::from_secs(5)).await.unwrap();
        let forced = tokio::task::spawn_blocking(move || {
            send(at, "POST", "/v1/locks/y/force", &[], r#"{"by":"operator","why":"test"}"#)
        });
        let why = tokio::time::timeout(Duration::from_secs(1), guard.lost()).await.unwrap();
        assert_eq!((why, forced.await.unwrap().status), (Why::Removed, 200));
        assert!(holder.check().is_ok());
    });
}

/// `seawall lock` or `seawall elect` with its output in a file of its own.
pub(super) struct Holder {
    pub(super) child: Child,
    out: std::path::PathBuf,
}

impl Holder {
    fn start(site: &Site, out: &str, args: &[&str]) -> Self {
        Self::run(site, out, &[&["lock"], args].concat())
    }

    pub(super) fn run(site: &Site, out: &str, args: &[&str]) -> Self {
        let path = site.dir.path().join(out);
        let file = std::fs::File::create(&path).unwrap();
        let mut command = Command::new(SEAWALL);
        command.args(args).current_dir(site.dir.path()).stdin(Stdio::null());
        // As of another command around it, which is none of its own.
        command.env("SEAWALL_FENCING_TOKEN", "outer");
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, out: path }
    }

    pub(super) fn out(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// The number after `word=` in its output, once it is there.
    pub(super) fn number(&self, word: &str) -> u64 {
        let find = || {
            let out = self.out();
            let line = out.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix('='))?;
            line.trim().parse().ok()
        };
        until(&format!("{word} in {}", self.out.display()), || find().is_some());
        find().unwrap()
    }

    /// The exit code; fails after `within`.
    pub(super) fn ends(&mut self, within: Duration) -> Option<i32> {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < end, "it still runs: {}", self.out());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says who it is and works until it is ended; a child of its own works, too, and neither heeds SIGTERM.
const STUBBORN: &str = "trap '' TERM; sleep 300 & echo child=$!; echo pid=$$; echo token=$SEAWALL_FENCING_TOKEN; wait";
const WORKS: &str = "echo pid=$$; echo token=$SEAWALL_FENCING_TOKEN; exec sleep 300";

/// What a command says that begins while another still runs; the dead may wait for somebody to bury them.
pub(super) fn complains_of(pid: u64) -> String {
    format!("grep -qs 'State:[[:space:]]*[^ZX[:space:]]' /proc/{pid}/status && echo overlap")
}

#[test]
fn a_command_runs_under_a_lock_and_its_exit_code_is_kept() {
    let site = Site::new(FILE);
    let _control = site.control();
    let run = |args: &[&str]| {
        let output = site.run(&[&["lock"], args].concat());
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), out.trim().to_owned(), err.into_owned())
    };
    let script = "echo $SEAWALL_LOCK $SEAWALL_FENCING_TOKEN; exit 7";
    let (code, out, err) = run(&["a lock", "--", "sh", "-c", script]);
    assert_eq!(code, Some(7), "{err}");
    let first: u64 = out.strip_prefix("a lock ").unwrap().parse().unwrap();
    let (code, out, _) = run(&["a lock", "--", "sh", "-c", "echo $SEAWALL_FENCING_TOKEN"]);
    assert_eq!(code, Some(0));
    assert!(out.parse::<u64>().unwrap() > first);
    assert_eq!(run(&["x", "--", "sh", "-c", "kill -9 $$"]).0, Some(137));
    assert_ne!(run(&["x", "--", "there-is-no-such-program"]).0, Some(0));
    assert_eq!(get(site.control, "/v1/locks").json(), json!([]));

    let mut holder = Holder::start(&site, "a", &["x", "--owner", "me", "--", "sh", "-c", WORKS]);
    let (pid, token) = (holder.number("pid"), holder.number("token"));
    for how in [&["--try"][..], &["--wait", "200ms"]] {
        let (code, _, err) = run(&[&["x"], how, &["--", "true"]].concat());
        assert_eq!(code, Some(75), "{err}");
        assert!(err.contains("held by me (session") && err.contains(&token.to_string()), "{err}");
    }
    let locks = String::from_utf8(site.run(&["locks"]).stdout).unwrap();
    assert!(locks.contains("me") && locks.contains(&token.to_string()), "{locks}");
    let shown = String::from_utf8(site.run(&["locks", "x"]).stdout).unwrap();
    assert!(shown.contains("x is held by me") && shown.contains("sh -c"), "{shown}");
    assert!(String::from_utf8(site.run(&["locks", "y"]).stdout).unwrap().contains("y is free"));
    // SIGTERM goes to the command, and the lock is free at once.
    signal(holder.child.id(), Signal::TERM);
    assert_eq!(holder.ends(Duration::from_secs(5)), Some(143));
    assert!(!alive(pid as u32));
    assert_eq!(run(&["x", "--try", "--", "true"]).0, Some(0));

    for (args, says) in [
        (&["", "--", "true"][..], "of 0 bytes"),
        (&["x", "--ttl", "0s", "--", "true"], "1s to 3600s"),
        (&["x", "--ttl", "8760h", "--", "true"], "1s to 3600s"),
        (&["x", "--ttl", "10", "--", "true"], "no unit"),
        (&["x"], "required"),
        (&["x", "--try", "--wait", "1s", "--", "true"], "cannot be used with"),
    ] {
        let (code, _, err) = run(args);
        assert!(code != Some(0) && err.contains(says), "{args:?}: {err}");
    }
    let nowhere = free_addr().to_string();
    let (code, _, err) = run(&["x", "--control", &nowhere, "--", "true"]);
    assert!(code == Some(69) && err.contains(&nowhere), "{err}");
}

#[test]
fn kill_9_of_a_holder_ends_its_command_before_the_next_begins() {
    let site = Site::new(FILE);
    let _control = site.control();
    let mut first = Holder::start(&site, "first", &["x", "--ttl", "2s", "--", "sh", "-c", STUBBORN]);
    let (pid, child, token) = (first.number("pid"), first.number("child"), first.number("token"));
    let begins = format!("{}; {}; {WORKS}", complains_of(pid), complains_of(child));
    let second = Holder::start(&site, "second", &["x", "--ttl", "2s", "--", "sh", "-c", &begins]);
    until("the second waits", || waiting(site.control, "x") == 1);
    let from = Instant::now();
    signal(first.child.id(), Signal::KILL);
    first.child.wait().unwrap();
    until("the command is dead", || !alive(pid as u32) && !alive(child as u32));
    let dead = from.elapsed();
    let later = second.number("token");
    let took = from.elapsed();
    assert!(later > token);
    assert!(dead < Duration::from_secs(1), "{dead:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(!second.out().contains("overlap"), "{}", second.out());
}

#[test]
fn a_stopped_holder_loses_its_command_in_time_and_says_so_when_it_goes_on() {
    let site = Site::new(FILE);
    let _control = site.control();
    let mut first = Holder::start(&site, "first", &["x", "--ttl", "2s", "--", "sh", "-c", STUBBORN]);
    let (pid, child, token) = (first.number("pid"), first.number("child"), first.number("token"));
    let begins = format!("{}; {}; {WORKS}", complains_of(pid), complains_of(child));
    let mut second = Holder::start(&site, "second", &["x", "--ttl", "2s", "--", "sh", "-c", &begins]);
    until("the second waits", || waiting(site.control, "x") == 1);
    signal(first.child.id(), Signal::STOP);
    let later = second.number("token");
    assert!(later > token);
    assert!(!second.out().contains("overlap"), "{}", second.out());
    assert!(!alive(pid as u32) && !alive(child as u32), "its guard has ended it");
    std::thread::sleep(Duration::from_secs(2));
    let from = Instant::now();
    signal(first.child.id(), Signal::CONT);
    until("it says so", || first.out().contains("lost"));
    let told = from.elapsed();
    assert!(told < Duration::from_millis(500), "{told:?}");
    assert_eq!(first.ends(Duration::from_secs(5)), Some(70), "{}", first.out());
    assert!(first.out().contains("lock `x` is lost: the time ran out"), "{}", first.out());
    // The other has not noticed any of it.
    assert!(second.child.try_wait().unwrap().is_none());
    assert_eq!(get(site.control, "/v1/locks/x").json()["holder"]["fence"].as_u64(), Some(later));
    signal(second.child.id(), Signal::INT);
    assert_eq!(second.ends(Duration::from_secs(5)), Some(143));
}

#[test]
fn a_holder_that_cannot_reach_control_ends_its_command_by_its_own_clock() {
    let site = Site::new(FILE);
    let control = site.control();
    let mut holder = Holder::start(&site, "first", &["x", "--ttl", "2s", "--", "sh", "-c", STUBBORN]);
    let (pid, child) = (holder.number("pid"), holder.number("child"));
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(alive(pid as u32), "kept alive for longer than its time");
    signal(control.child.id(), Signal::STOP);
    let from = Instant::now();
    until("the command is dead", || !alive(pid as u32) && !alive(child as u32));
    let took = from.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}: later than control could give it away");
    assert_eq!(holder.ends(Duration::from_secs(8)), Some(70), "{}", holder.out());
    signal(control.child.id(), Signal::CONT);
}

#[test]
fn a_lock_taken_away_by_force_ends_the_command() {
    let site = Site::new(FILE);
    let _control = site.control();
    let mut holder = Holder::start(&site, "first", &["x", "--", "sh", "-c", WORKS]);
    let (pid, token) = (holder.number("pid"), holder.number("token"));
    let without = site.run(&["locks", "x", "--force"]);
    assert!(String::from_utf8_lossy(&without.stderr).contains("--why"));
    let forced = site.run(&["locks", "x", "--force", "--why", "it hangs", "--by", "ann"]);
    assert!(forced.status.success(), "{forced:?}");
    assert!(String::from_utf8_lossy(&forced.stdout).contains(&token.to_string()), "{forced:?}");
    assert_eq!(holder.ends(Duration::from_secs(5)), Some(70));
    assert!(!alive(pid as u32));
    assert!(holder.out().contains("taken away by an operator"), "{}", holder.out());
    let shown = String::from_utf8(site.run(&["locks", "x"]).stdout).unwrap();
    assert!(shown.contains("x is free") && shown.contains("by ann: it hangs"), "{shown}");
    let again = site.run(&["locks", "x", "--force", "--why", "again"]);
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("nobody holds `x`"),
        "{again:?}"
    );
    let next: Value = get(site.control, "/v1/locks/x").json();
    assert_eq!(next["forced"][0]["holder"]["fence"].as_u64(), Some(token));
}
