//! Latches and barriers on a real control node: over HTTP and from Rust.

use std::time::Duration;

use seawall_coord::{BarrierError, LockName, Token};
use serde_json::json;

use super::locks::{open, runtime, session};
use super::support::*;

const FILE: &str = "control: { listen: CONTROL }\n";
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_latch_is_set_once_over_http() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    let (a, b) = (open(at, "30s", "a"), open(at, "30s", "b"));
    let (own, other) = (Token::random(), Token::random());
    let claim = |session: &str, token: Token| {
        let path = format!("/v1/latches/x/claims/{token}?wait=0s");
        send(at, "PUT", &path, &[], &json!({ "session": session }).to_string()).status
    };
    let set = |session: &str, token: Token, value: &str| {
        let path = format!("/v1/latches/x/claims/{token}/value");
        send(at, "PUT", &path, &[], &json!({ "session": session, "value": value }).to_string())
    };
    let unset = get(at, "/v1/latches/x");
    assert_eq!((unset.status, &unset.json()["code"]), (404, &json!("not-set")));
    assert_eq!((claim(&a, own), claim(&b, other)), (200, 409), "one at a time");
    assert_eq!(set(&b, other, "b").status, 409);
    assert_eq!((set(&a, own, "v1").status, set(&a, own, "v1").status), (204, 204), "it can be repeated");
    assert_eq!(set(&a, own, "v2").status, 409, "and not changed");
    assert_eq!(get(at, "/v1/latches/x").json()["value"], "v1");
    let long = set(&a, own, &"x".repeat(5000));
    assert!(long.status == 400 && long.body.contains("5000 bytes"), "{long:?}");
    let release = format!("/v1/latches/x/claims/{own}?session={a}");
    assert_eq!(send(at, "DELETE", &release, &[], "").status, 204);
    assert_eq!(get(at, "/v1/latches/x").json()["value"], "v1", "it stays");
    assert_eq!(send(at, "DELETE", "/v1/latches/x", &[], "").status, 204);
    assert_eq!(get(at, "/v1/latches/x").status, 404, "an operator may make it one that was never set");
    let bad = get(at, &format!("/v1/latches/{}", "x".repeat(10_000)));
    assert!(bad.status == 400 && bad.body.contains("10000"), "{bad:?}");
}

#[test]
fn work_is_done_once_over_control_from_rust() {
    let site = Site::new(FILE);
    let _control = site.control();
    runtime().block_on(async {
        let (a, b) = (session(site.control, "a", 10_000).await, session(site.control, "b", 10_000).await);
        let name = || LockName::try_new("schema").unwrap();
        let (first, second) = (a.once(name()), b.once(name()));
        let slow = first.get_or_run(SOON, async |guard| {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok::<_, String>(format!("by {}", guard.fence()))
        });
        let late = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            second.get_or_run(SOON, async |_| Err("it is done by the first".to_owned())).await
        };
        let (slow, late) = tokio::join!(slow, late);
        assert!(slow.is_ok() && slow == late, "{slow:?} {late:?}");
        second.reset().await.unwrap();
        assert_eq!(first.get().await, Ok(None));
    });
}

#[test]
fn parties_meet_over_control_and_hear_of_a_death() {
    let site = Site::new(FILE);
    let _control = site.control();
    let at = site.control;
    runtime().block_on(async {
        let (a, b) = (session(at, "a", 10_000).await, session(at, "b", 10_000).await);
        let barrier = |session: &seawall_coord::Session<seawall_coord::Remote>| {
            session.barrier(LockName::try_new("start").unwrap(), 2)
        };
        let (one, two) = (barrier(&a), barrier(&b));
        for _ in 0..3 {
            let (first, second) = tokio::join!(one.enter_within(SOON), two.enter_within(SOON));
            let (first, second) = (first.unwrap(), second.unwrap());
            let shown = tokio::task::spawn_blocking(move || get(at, "/v1/barriers/start").json()).await.unwrap();
            assert_eq!((&shown["inside"], shown["there"].as_array().unwrap().len()), (&json!(true), 2));
            let (first, second) = tokio::join!(first.leave_within(SOON), second.leave_within(SOON));
            assert_eq!((first, second), (Ok(()), Ok(())));
        }
        let early = one.enter_within(Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(early, BarrierError::TimedOut { there: 1, parties: 2, .. }), "{early}");
        // A party by hand, which dies: its session is closed.
        let raw = tokio::task::spawn_blocking(move || {
            let session = open(at, "30s", "raw");
            let meet = json!({ "session": session, "parties": 3, "step": "enter" }).to_string();
            let path = format!("/v1/barriers/start/parties/{}?wait=0s", Token::random());
            let answer = send(at, "PUT", &path, &[], &meet);
            assert_eq!((answer.status, &answer.json()["there"]), (408, &json!(1)), "{answer:?}");
            let bad =
                send(at, "PUT", &path, &[], &json!({ "session": session, "parties": 3, "step": "go" }).to_string());
            assert!(bad.status == 422 && bad.body.contains("unknown variant `go`"), "{bad:?}");
            session
        });
        let session = raw.await.unwrap();
        let three = a.barrier(LockName::try_new("start").unwrap(), 3);
        let waiting = tokio::spawn(async move { three.enter_within(SOON).await.map(drop) });
        let closed = tokio::task::spawn_blocking(move || {
            until("both are there", || get(at, "/v1/barriers/start").json()["there"][1].is_object());
            send(at, "DELETE", &format!("/v1/sessions/{session}"), &[], "").status
        });
        assert_eq!(closed.await.unwrap(), 204);
        assert_eq!(waiting.await.unwrap(), Err(BarrierError::Broken { who: "raw".to_owned() }));
        let nobody = tokio::task::spawn_blocking(move || get(at, "/v1/barriers/start")).await.unwrap();
        assert_eq!((nobody.status, &nobody.json()["code"]), (404, &json!("nobody")));
    });
}
