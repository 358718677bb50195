//! Locks that several hold, on a real control node: over HTTP, from Rust, and around commands.

use std::net::SocketAddr;
use std::time::Duration;

use seawall_coord::{ClaimError, LockName, Token};
use serde_json::{Value, json};

use super::locks::{Holder, open, runtime, session};
use super::support::*;

const FILE: &str = "control: { listen: CONTROL }\n";
const SOON: Duration = Duration::from_secs(20);

fn claim(control: SocketAddr, session: &str, lock: &str, token: Token, more: Value) -> Answer {
    let mut body = json!({ "session": session });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    send(control, "PUT", &format!("/v1/locks/{lock}/claims/{token}?wait=0s"), &[], &body.to_string())
}

fn release(control: SocketAddr, session: &str, lock: &str, token: Token) -> Answer {
    send(control, "DELETE", &format!("/v1/locks/{lock}/claims/{token}?session={session}"), &[], "")
}

#[test]
fn readers_and_permits_over_http() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let (a, b) = (open(at, "30s", "a"), open(at, "30s", "b"));
    let read = json!({ "kind": "read" });
    let (one, two, other) = (Token::random(), Token::random(), Token::random());
    let first = claim(at, &a, "x", one, read.clone());
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(claim(at, &a, "x", one, read.clone()).json(), first.json(), "the same again has the same answer");
    assert_eq!(claim(at, &b, "x", two, read.clone()).status, 200);
    let busy = claim(at, &b, "x", other, json!({ "kind": "exclusive" }));
    assert_eq!(
        (busy.status, &busy.json()["code"], &busy.json()["holder"]["kind"]),
        (409, &json!("busy"), &json!("read"))
    );
    let shown = get(at, "/v1/locks/x").json();
    assert_eq!((&shown["holder"]["owner"], &shown["sharing"][0]["owner"]), (&json!("a"), &json!("b")));
    let path = format!("/v1/locks/x/claims/{two}?session={b}");
    assert_eq!(get(at, &path).json()["held"], true);
    assert_eq!((release(at, &a, "x", one).status, release(at, &b, "x", two).status), (204, 204));
    assert_eq!((release(at, &b, "x", two).status, get(at, &path).status), (409, 404));
    // A writer becomes a reader, once it has the lock.
    let writer = Token::random();
    let downgrade = |session: &str, token: Token| {
        let path = format!("/v1/locks/x/claims/{token}/downgrade");
        send(at, "POST", &path, &[], &json!({ "session": session }).to_string()).status
    };
    assert_eq!(downgrade(&a, writer), 409);
    assert_eq!(claim(at, &a, "x", writer, json!({})).status, 200);
    assert_eq!(claim(at, &b, "x", Token::random(), read.clone()).status, 409);
    assert_eq!((downgrade(&b, writer), downgrade(&a, writer), downgrade(&a, writer)), (409, 204, 204));
    assert_eq!(claim(at, &b, "x", Token::random(), read).status, 200);
    assert_eq!(release(at, &a, "x", writer).status, 204);

    let permits = |limit: u32, take: u32| json!({ "kind": { "permits": { "limit": limit, "take": take } } });
    assert_eq!(claim(at, &a, "p", Token::random(), permits(3, 2)).status, 200);
    assert_eq!(claim(at, &b, "p", Token::random(), permits(3, 2)).status, 409);
    assert_eq!(claim(at, &b, "p", Token::random(), permits(3, 1)).status, 200);
    let holder = &get(at, "/v1/locks/p").json()["holder"];
    assert_eq!(holder["kind"], json!({ "permits": { "limit": 3, "take": 2 } }));
    let before = get(at, "/v1/locks").json();
    for (more, status, says) in [
        (permits(5, 1), 400, "a limit of 3"),
        (permits(3, 4), 400, "4 of 3 permits: 1 to 3 can be taken"),
        (permits(0, 0), 400, "a limit of 0"),
        (json!({ "kind": "some" }), 422, "unknown variant `some`"),
        (json!({ "kind": "read", "delay": "5s" }), 400, "only exclusive ones"),
        (json!({ "delay": "2m" }), 400, "at most 60s"),
    ] {
        let answer = claim(at, &b, "p", Token::random(), more.clone());
        assert!(answer.status == status && answer.body.contains(says), "{more}: {answer:?}");
    }
    let body = json!({ "session": a, "kind": "read" }).to_string();
    let elected = send(at, "PUT", &format!("/v1/elections/e/candidates/{}", Token::random()), &[], &body);
    assert!(elected.status == 400 && elected.body.contains("won by one alone"), "{elected:?}");
    assert_eq!(get(at, "/v1/locks").json(), before, "what was refused has changed nothing");
}

#[test]
fn rust_holders_share_over_http() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let name = LockName::try_new("x").unwrap();
    runtime().block_on(async {
        let (a, b) = (session(at, "a", 5_000).await, session(at, "b", 5_000).await);
        let writer = a.rw_lock(name.clone()).write_within(SOON).await.unwrap();
        let reading = tokio::spawn({
            let lock = b.rw_lock(name.clone());
            async move { lock.read_within(SOON).await.unwrap() }
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let fence = writer.fence();
        let reader = writer.downgrade().await.unwrap();
        let beside = tokio::time::timeout(SOON, reading).await.unwrap().unwrap();
        assert!(reader.fence() == fence && beside.fence() > fence);
        assert!(a.lock(name.clone()).try_acquire().await.unwrap().is_none());
        reader.release().await.unwrap();
        beside.release().await.unwrap();

        let (mine, theirs) = (a.semaphore(name.clone(), 2), b.semaphore(name.clone(), 2));
        let held = mine.acquire_within(2, SOON).await.unwrap();
        let late = theirs.acquire_within(1, Duration::from_millis(200)).await;
        assert!(matches!(&late, Err(ClaimError::TimedOut { ahead: 1, .. })), "{late:?}");
        let error = b.semaphore(name.clone(), 3).acquire_within(1, SOON).await.unwrap_err();
        assert!(error.to_string().contains("a limit of 2"), "{error}");
        held.release().await.unwrap();
        let both = (mine.try_acquire(1).await.unwrap(), theirs.try_acquire(1).await.unwrap());
        assert!(both.0.is_some() && both.1.is_some());
    });
    until("all is given back", || get(at, "/v1/locks").json() == json!([]));
}

#[test]
fn commands_run_together_under_a_lock_to_read_and_under_permits() {
    const WORKS: &str = "echo token=$SEAWALL_FENCING_TOKEN; exec sleep 300";
    let site = Site::new(FILE);
    let _control = site.control();
    let run = |args: &[&str]| {
        let output = site.run(&[&["lock"], args, &["--", "true"]].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let start = |out: &str, args: &[&str]| {
        let holder = Holder::run(&site, out, &[&["lock"], args, &["--", "sh", "-c", WORKS]].concat());
        holder.number("token");
        holder
    };
    let readers = [start("r1", &["x", "--read", "--owner", "ann"]), start("r2", &["x", "--read", "--owner", "bob"])];
    assert_eq!(run(&["x", "--read", "--try"]).0, Some(0));
    for writes in [&["x", "--try"][..], &["x", "--write", "--try"]] {
        let (code, err) = run(writes);
        assert!(code == Some(75) && err.contains("held by ann"), "{err}");
    }
    let permits = start("p", &["p", "--permits", "3", "--take", "2"]);
    assert_eq!(run(&["p", "--permits", "3", "--try"]).0, Some(0));
    assert_eq!(run(&["p", "--permits", "3", "--take", "2", "--try"]).0, Some(75));
    let (code, err) = run(&["p", "--permits", "4", "--try"]);
    assert!(code == Some(1) && err.contains("a limit of 3"), "{err}");
    let listed = String::from_utf8(site.run(&["locks"]).stdout).unwrap();
    let line = |word: &str| listed.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("{listed}"));
    assert!(line("ann").contains("to read") && line("bob").contains("to read"), "{listed}");
    assert!(line("2 of 3 permits").starts_with("p "), "{listed}");
    let shown = String::from_utf8(site.run(&["locks", "x"]).stdout).unwrap();
    assert_eq!(shown.matches("x is held by").count(), 2, "{shown}");
    drop((readers, permits));
    // A holder that is killed leaves a delay.
    let mut killed = start("d", &["d", "--ttl", "1s", "--delay", "3s"]);
    killed.child.kill().unwrap();
    let from = std::time::Instant::now();
    assert_eq!(run(&["d", "--wait", "30s"]).0, Some(0));
    assert!(from.elapsed() >= Duration::from_secs(3), "{:?}", from.elapsed());
    assert_eq!(run(&["d", "--try"]).0, Some(0));
    for (args, says) in [
        (&["x", "--read", "--write"][..], "cannot be used with"),
        (&["x", "--take", "2"], "--permits"),
        (&["x", "--permits", "0"], "a limit of 0"),
        (&["x", "--permits", "2", "--take", "3"], "3 of 2 permits"),
        (&["x", "--read", "--delay", "5s"], "cannot be used with"),
        (&["x", "--delay", "61s"], "at most 60s"),
    ] {
        let (code, err) = run(args);
        assert!(code != Some(0) && err.contains(says), "{args:?}: {err}");
    }
}
