//! Elections on a real control node: over HTTP, from Rust, and around commands; with leaders that are killed and cut off.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use seawall_coord::{
    Candidacy, ElectionName, Fence, HandOverError, Observer, Owner, Remote, SessionConfig, Token, Why, lead,
};
use serde_json::{Value, json};

use super::locks::{Holder, complains_of, open, runtime, session};
use super::support::*;

const FILE: &str = "control: { listen: CONTROL }\n";

fn campaign(control: SocketAddr, session: &str, token: Token, wait: &str) -> Answer {
    let path = format!("/v1/elections/e/candidates/{token}?wait={wait}");
    send(control, "PUT", &path, &[], &json!({ "session": session, "info": "first" }).to_string())
}

/// Every election but those of control itself.
fn elections(control: SocketAddr) -> Value {
    let mut all = get(control, "/v1/elections").json();
    all.as_array_mut().unwrap().retain(|one| one["name"] != "seawall-cron");
    all
}

fn standing(control: SocketAddr) -> usize {
    get(control, "/v1/elections/e").json()["candidates"].as_array().unwrap().len()
}

#[test]
fn a_leader_publishes_hands_over_and_resigns_and_all_of_it_is_observed() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let observed = events(at, "/v1/elections/e/observe");
    let next = || observed.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(next().0, "nobody");
    let (a, b, c) = (open(at, "30s", "a"), open(at, "30s", "b"), open(at, "30s", "c"));
    let (first, second, third) = (Token::random(), Token::random(), Token::random());
    let leads = campaign(at, &a, first, "0s");
    assert_eq!((leads.status, &leads.json()["held"]), (200, &json!(true)), "{leads:?}");
    let term = leads.json()["fence"].as_u64().unwrap();
    let (event, leader) = next();
    assert_eq!((&*event, leader["term"].as_u64(), &leader["info"]), ("leader", Some(term), &json!("first")));
    assert_eq!(campaign(at, &b, second, "0s").json()["code"], "busy");
    let late = campaign(at, &b, second, "50ms");
    assert_eq!((late.status, &late.json()["holder"]["owner"]), (408, &json!("a")));

    let info = |token: Token, session: &str| {
        let body = json!({ "session": session, "info": "second" }).to_string();
        send(at, "PUT", &format!("/v1/elections/e/candidates/{token}/info"), &[], &body)
    };
    assert_eq!(info(first, &a).status, 204);
    assert_eq!(info(Token::random(), &a).status, 409);
    assert_eq!(info(first, &b).status, 409, "it is another's");
    let (_, leader) = next();
    assert_eq!((leader["term"].as_u64(), &leader["info"]), (Some(term), &json!("second")));

    // A wait for a change is answered by one.
    let path = format!("/v1/elections/e?seen={term}-{}", leader["modified"]);
    let from = Instant::now();
    assert_eq!(get(at, &format!("{path}&wait=300ms")).json()["leader"], leader);
    assert!(from.elapsed() >= Duration::from_millis(300));
    assert_eq!(get(at, "/v1/elections/e?seen=none&wait=20s").json()["leader"], leader);
    let changed = std::thread::spawn(move || get(at, &format!("{path}&wait=20s")));

    let waiter = |session: &str, token: Token| {
        let session = session.to_owned();
        std::thread::spawn(move || campaign(at, &session, token, "20s"))
    };
    let (waits_b, waits_c) = (waiter(&b, second), {
        until("b stands", || standing(at) == 1);
        waiter(&c, third)
    });
    until("c stands", || standing(at) == 2);
    let hand_over = |session: &str, token: Token, to: &str| {
        let body = json!({ "session": session, "to": to }).to_string();
        send(at, "POST", &format!("/v1/elections/e/candidates/{token}/hand-over"), &[], &body)
    };
    let nobody = hand_over(&a, first, "nobody");
    assert_eq!((nobody.status, &nobody.json()["code"]), (404, &json!("no-candidate")));
    assert_eq!(hand_over(&b, second, "c").status, 409, "b does not lead");
    let handed = hand_over(&a, first, "c");
    assert_eq!((handed.status, &handed.json()["leader"]["owner"]), (200, &json!("c")), "{handed:?}");
    let now = waits_c.join().unwrap();
    assert_eq!(now.status, 200);
    assert!(now.json()["fence"].as_u64() > Some(term));
    assert_eq!(next().1["owner"], "c");
    assert_eq!(changed.join().unwrap().json()["leader"]["owner"], "c");
    // b was passed over, and has to stand anew.
    let passed = waits_b.join().unwrap();
    assert_eq!((passed.status, &passed.json()["code"]), (410, &json!("removed")));
    assert_eq!(campaign(at, &a, first, "0s").status, 410, "a held-up request of the former leader");

    let resign = format!("/v1/elections/e/candidates/{third}?session={c}");
    assert_eq!(get(at, &resign).json()["held"], true);
    assert_eq!(send(at, "DELETE", &resign, &[], "").status, 204);
    assert_eq!(send(at, "DELETE", &resign, &[], "").status, 409);
    assert_eq!(next().0, "nobody");
    assert_eq!(elections(at), json!([]));
}

#[test]
fn bad_requests_get_a_clear_answer_and_elections_are_no_locks() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let session = open(at, "30s", "a");
    assert_eq!(campaign(at, &session, Token::random(), "0s").status, 200);
    assert_eq!(get(at, "/v1/locks").json(), json!([]));
    let before = elections(at);
    let body = json!({ "session": session }).to_string();
    let token = Token::random();
    let path = |name: &str| format!("/v1/elections/{name}/candidates/{token}");
    for (method, path, body, status, says) in [
        ("PUT", path("a%2Fb"), body.clone(), 400, "an election's name with the character '/'"),
        ("PUT", path(&"x".repeat(300)), body.clone(), 400, "of 300 bytes: 1 to 255"),
        ("PUT", "/v1/elections/x/candidates/1".into(), body.clone(), 400, "32 digits"),
        ("PUT", path("x"), "{}".into(), 422, "missing field `session`"),
        ("PUT", path("x") + "/info", body.clone(), 422, "missing field `info`"),
        ("POST", path("x") + "/hand-over", body.clone(), 422, "missing field `to`"),
        ("DELETE", path("x") + &format!("?session={session}"), String::new(), 409, "no claim of `x`"),
        ("GET", "/v1/elections/a%2Fb".into(), String::new(), 400, "character '/'"),
        ("GET", "/v1/elections/a%2Fb/observe".into(), String::new(), 400, "character '/'"),
        ("GET", "/v1/elections/x?seen=5".into(), String::new(), 400, "`seen=5` is not known"),
        ("GET", "/v1/elections/x?until=gone".into(), String::new(), 400, "unknown field `until`"),
        ("POST", "/v1/elections/x/force".into(), r#"{"by":"me"}"#.into(), 404, "nobody leads `x`"),
        ("PATCH", "/v1/elections/x".into(), String::new(), 405, ""),
        ("PUT", "/v1/locks/elect%2Fe/claims/".to_owned() + &token.to_string(), body.clone(), 400, "character '/'"),
    ] {
        let answer = send(at, method, &path, &[], &body);
        assert!(answer.status == status && answer.body.contains(says), "{method} {path}: {answer:?}");
    }
    assert_eq!(elections(at), before);
}

#[test]
fn rust_candidates_follow_each_other_over_kill_9_of_control() {
    let site = Site::new(FILE);
    let control = site.control();
    let at = site.control;
    let name = || ElectionName::try_new("e").unwrap();
    runtime().block_on(async {
        let mut observer = Observer::new(Remote::new([at]), name());
        assert_eq!(observer.next().await.unwrap(), None);
        let (a, b, c) = (session(at, "a", 4_000).await, session(at, "b", 4_000).await, session(at, "c", 4_000).await);
        let leads = a.election(name()).info("here").campaign(Duration::from_secs(5)).await.unwrap();
        let seen = observer.next().await.unwrap().unwrap();
        assert_eq!((seen.term, &*seen.info), (leads.term(), "here"));
        leads.publish("there").await.unwrap();
        assert_eq!(observer.next().await.unwrap().unwrap().info, "there");

        let killed = tokio::task::spawn_blocking(move || {
            control.kill();
            std::thread::sleep(Duration::from_millis(1_000));
            site.control()
        });
        let _control = killed.await.unwrap();
        assert!(leads.check().is_ok(), "{:?}", leads.check());
        let stand = |session: seawall_coord::Session<Remote>| {
            tokio::spawn(async move { session.election(name()).campaign(Duration::from_secs(30)).await.unwrap() })
        };
        let count = |count: usize| async move {
            while tokio::task::spawn_blocking(move || standing(at)).await.unwrap() != count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let b_session = b.clone();
        let waits_b = stand(b);
        count(1).await;
        let waits_c = stand(c);
        count(2).await;
        let Err(HandOverError::NoCandidate { leadership: leads, .. }) = leads.hand_over("nobody").await else {
            panic!("nobody")
        };
        let term = leads.term();
        let next = leads.hand_over("c").await.unwrap();
        let leads_c = waits_c.await.unwrap();
        assert_eq!(next.term, leads_c.term());
        // b was passed over and has queued anew by itself.
        let seen = observer.next().await.unwrap().unwrap();
        assert!(seen.owner == "c" && seen.term > term);
        count(1).await;
        leads_c.resign().await.unwrap();
        let leads_b = waits_b.await.unwrap();
        assert!(leads_b.term() > next.term);
        assert_eq!(observer.next().await.unwrap().unwrap().term, leads_b.term());
        // Its session's end is its own.
        let (lost, closed) = tokio::join!(leads_b.lost(), b_session.close());
        assert_eq!((lost, closed), (Why::Closed, Ok(())));
        assert_eq!(observer.next().await.unwrap(), None);
    });
}

/// Says in which term it works, and works until it is ended.
const WORKS: &str = "echo pid=$$; echo term=$SEAWALL_TERM; exec sleep 300";
/// The same with a child, and neither heeds SIGTERM.
const STUBBORN: &str = "trap '' TERM; sleep 300 & echo child=$!; echo pid=$$; echo term=$SEAWALL_TERM; wait";

fn elect(site: &Site, out: &str, ttl: &str, script: &str) -> Holder {
    Holder::run(site, out, &["elect", "e", "--owner", out, "--ttl", ttl, "--", "sh", "-c", script])
}

#[test]
fn a_command_runs_while_it_leads_and_the_next_follows_its_end() {
    let site = Site::new(FILE);
    let _control = site.control();
    let run = |args: &[&str]| {
        let output = site.run(args);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let script = "test $SEAWALL_TERM = $SEAWALL_FENCING_TOKEN && echo $SEAWALL_ELECTION; exit 7";
    let (code, out, err) = run(&["elect", "an election", "--", "sh", "-c", script]);
    assert_eq!((code, out.trim()), (Some(7), "an election"), "{err}");
    assert_eq!(elections(site.control), json!([]), "it has resigned");

    let mut first = elect(&site, "first", "10s", WORKS);
    let (pid, term) = (first.number("pid"), first.number("term"));
    let second = elect(&site, "second", "10s", WORKS);
    until("the second stands", || standing(site.control) == 1);
    let (code, _, err) = run(&["elect", "e", "--wait", "100ms", "--", "true"]);
    assert!(code == Some(75) && err.contains(&format!("first leads in term {term}")), "{err}");
    let (_, list, _) = run(&["elections"]);
    assert!(list.contains("first") && list.contains(&term.to_string()), "{list}");
    let (_, shown, _) = run(&["elections", "e"]);
    assert!(shown.contains("e is led by first") && shown.contains("1. stands: second"), "{shown}");
    assert!(run(&["elections", "x"]).1.contains("nobody leads x"));
    // SIGTERM goes to the command; the other leads at once, long before the time to live is over.
    let from = Instant::now();
    signal(first.child.id(), Signal::TERM);
    assert_eq!(first.ends(Duration::from_secs(5)), Some(143));
    assert!(second.number("term") > term);
    assert!(from.elapsed() < Duration::from_secs(3), "{:?}", from.elapsed());
    assert!(!alive(pid as u32));
    // One that does not lead stops at once, and leaves the queue.
    let mut third = elect(&site, "third", "10s", WORKS);
    until("the third stands", || standing(site.control) == 1);
    signal(third.child.id(), Signal::TERM);
    assert_eq!(third.ends(Duration::from_secs(5)), Some(143));
    until("it stands no more", || standing(site.control) == 0);

    let nowhere = free_addr().to_string();
    let (code, _, err) = run(&["elect", "e", "--control", &nowhere, "--", "true"]);
    assert!(code == Some(69) && err.contains(&nowhere), "{err}");
    let (code, _, err) = run(&["elect", "e", "--ttl", "0s", "--", "true"]);
    assert!(code == Some(1) && err.contains("1s to 3600s"), "{err}");
}

#[test]
fn kill_9_of_the_leader_ends_its_command_before_the_next_begins() {
    let site = Site::new(FILE);
    let _control = site.control();
    let mut first = elect(&site, "first", "2s", STUBBORN);
    let (pid, child, term) = (first.number("pid"), first.number("child"), first.number("term"));
    let begins = format!("{}; {}; {WORKS}", complains_of(pid), complains_of(child));
    let second = elect(&site, "second", "2s", &begins);
    until("the second stands", || standing(site.control) == 1);
    let from = Instant::now();
    signal(first.child.id(), Signal::KILL);
    first.child.wait().unwrap();
    until("the command is dead", || !alive(pid as u32) && !alive(child as u32));
    let dead = from.elapsed();
    let later = second.number("term");
    let took = from.elapsed();
    assert!(later > term);
    assert!(dead < Duration::from_secs(1), "{dead:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(!second.out().contains("overlap"), "{}", second.out());
}

#[test]
fn a_leader_that_is_cut_off_ends_its_command_and_stands_again() {
    let site = Site::new(FILE);
    let control = site.control();
    let leader = elect(&site, "first", "2s", &format!("date +%s%N; {STUBBORN}"));
    let (pid, child, term) = (leader.number("pid"), leader.number("child"), leader.number("term"));
    signal(control.child.id(), Signal::STOP);
    let from = Instant::now();
    until("the command is dead", || !alive(pid as u32) && !alive(child as u32));
    assert!(from.elapsed() < Duration::from_secs(2), "{:?}: later than another could lead", from.elapsed());
    assert!(leader.out().contains("the leadership of `e` is lost"), "{}", leader.out());
    std::thread::sleep(Duration::from_secs(1));
    signal(control.child.id(), Signal::CONT);
    // It leads again, in another term.
    let again = || leader.out().lines().filter_map(|line| line.strip_prefix("term=")?.parse::<u64>().ok()).max();
    until("it leads again", || again() > Some(term));
}

#[test]
fn a_leader_that_is_removed_by_force_stands_again_behind_the_others() {
    let site = Site::new(FILE);
    let _control = site.control();
    let first = elect(&site, "first", "10s", WORKS);
    let (pid, term) = (first.number("pid"), first.number("term"));
    let second = elect(&site, "second", "10s", WORKS);
    until("the second stands", || standing(site.control) == 1);
    let forced = site.run(&["elections", "e", "--force", "--why", "it hangs", "--by", "ann"]);
    let said = String::from_utf8_lossy(&forced.stdout);
    assert!(said.contains(&format!("first leads e no more, term {term} is over")), "{forced:?}");
    assert!(second.number("term") > term);
    until("its command is ended", || !alive(pid as u32));
    until("the first stands again", || standing(site.control) == 1);
    assert!(first.out().contains("taken away by an operator"), "{}", first.out());
    let shown = String::from_utf8(site.run(&["elections", "e"]).stdout).unwrap();
    assert!(shown.contains("e is led by second") && shown.contains("1. stands: first"), "{shown}");
    assert!(shown.contains(&format!("first was removed in term {term} by ann: it hangs")), "{shown}");
}

#[test]
fn work_in_rust_ends_by_its_own_clock_and_begins_again_when_control_is_back() {
    let site = Site::new(FILE);
    let control = site.control();
    let at = site.control;
    runtime().block_on(async {
        let (said, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let session = SessionConfig::new(Owner::try_new("a").unwrap()).ttl(Duration::from_secs(1));
        let candidacy = Candidacy::new(ElectionName::try_new("e").unwrap(), session);
        /// Says when it is dropped.
        struct Work(tokio::sync::mpsc::UnboundedSender<Option<Fence>>);
        impl Drop for Work {
            fn drop(&mut self) {
                let _ = self.0.send(None);
            }
        }
        let standing = tokio::spawn(lead(Remote::new([at]), candidacy, move |leadership| {
            said.send(Some(leadership.term())).unwrap();
            let work = Work(said.clone());
            async move {
                std::future::pending::<()>().await;
                drop(work);
                ControlFlow::<()>::Continue(())
            }
        }));
        let first = hears.recv().await.unwrap().expect("leads");
        let killed = tokio::task::spawn_blocking(move || control.kill());
        killed.await.unwrap();
        let from = Instant::now();
        assert_eq!(hears.recv().await.unwrap(), None);
        assert!(from.elapsed() < Duration::from_secs(1), "{:?}", from.elapsed());
        // For longer than its time to live.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(!standing.is_finished() && hears.is_empty());
        let _control = tokio::task::spawn_blocking(move || site.control()).await.unwrap();
        let second = tokio::time::timeout(Duration::from_secs(10), hears.recv()).await.unwrap().unwrap();
        assert!(second > Some(first), "{second:?} after {first}");
        standing.abort();
        assert_eq!(hears.recv().await.unwrap(), None);
    });
}

#[test]
fn who_is_not_healthy_does_not_lead_and_stands_again_when_it_is() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let leader = || get(at, "/v1/elections/e").json()["leader"]["owner"].clone();
    let start = |owner: &str| {
        let health = format!("test -e {owner}.fit");
        let work =
            format!("trap 'echo ended >> {owner}.log; exit 0' TERM; echo leads >> {owner}.log; sleep 600 & wait");
        let args = [
            "elect",
            "e",
            "--owner",
            owner,
            "--health",
            &health,
            "--health-interval",
            "100ms",
            "--health-failures",
            "2",
            "--",
            "sh",
            "-c",
            &work,
        ];
        Holder::run(&site, &format!("{owner}.out"), &args)
    };
    let fit = |owner: &str, fit: bool| {
        let file = site.dir.path().join(format!("{owner}.fit"));
        if fit { std::fs::write(file, "").unwrap() } else { std::fs::remove_file(file).unwrap() }
    };
    let log = |owner: &str| std::fs::read_to_string(site.dir.path().join(format!("{owner}.log"))).unwrap_or_default();
    let (a, _b) = (start("a"), start("b"));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(leader(), json!(null), "nobody is fit");
    fit("a", true);
    until("a leads", || leader() == "a" && log("a") == "leads\n");
    fit("b", true);
    until("b stands", || standing(at) == 1);
    fit("a", false);
    until("b leads", || leader() == "b" && log("b") == "leads\n");
    // It was ended before the other began, and by itself.
    assert_eq!(log("a"), "leads\nended\n");
    assert!(a.out().contains("the check of its health fails"), "{}", a.out());
    assert_eq!(standing(at), 0, "a does not stand");
    fit("a", true);
    until("a stands again", || standing(at) == 1);
}

#[test]
fn the_highest_priority_leads_next_and_a_leader_may_step_down_for_it() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let leader = || get(at, "/v1/elections/e").json()["leader"]["owner"].clone();
    let start = |owner: &str, more: &[&str]| {
        let work =
            format!("trap 'echo ended >> {owner}.log; exit 0' TERM; echo leads >> {owner}.log; sleep 600 & wait");
        let args = [&["elect", "e", "--owner", owner][..], more, &["--", "sh", "-c", &work]].concat();
        Holder::run(&site, &format!("{owner}.out"), &args)
    };
    let log = |owner: &str| std::fs::read_to_string(site.dir.path().join(format!("{owner}.log"))).unwrap_or_default();
    let a = start("a", &[]);
    until("a leads", || leader() == "a" && log("a") == "leads\n");
    let _b = start("b", &["--preempt", "200ms", "--priority", "-1"]);
    until("b stands", || standing(at) == 1);
    let c = start("c", &["--priority", "5"]);
    until("c stands", || standing(at) == 2);
    let shown = site.run(&["elections", "e"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("priority 5") && shown.contains("priority -1"), "{shown}");
    assert_eq!(leader(), "a", "nobody is deposed");
    signal(a.child.id(), Signal::TERM);
    until("c leads, over the head of b", || leader() == "c" && log("c") == "leads\n");
    assert_eq!(log("b"), "", "nothing was done in the moment in which b led");
    signal(c.child.id(), Signal::TERM);
    until("b leads", || leader() == "b" && log("b") == "leads\n");
    let d = start("d", &[]);
    until("d leads, for b steps down", || leader() == "d" && log("d") == "leads\n");
    assert_eq!(log("b"), "leads\nended\n");
    until("b stands again", || standing(at) == 1);
    let mut hasty = Holder::run(&site, "hasty.out", &["elect", "e", "--preempt", "1ms", "--", "true"]);
    assert_eq!(hasty.ends(Duration::from_secs(20)), Some(2));
    assert!(hasty.out().contains("100ms"), "{}", hasty.out());
    drop(d);
}
