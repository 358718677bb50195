//! Sagas on a real control node, with participants of the test's own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::support::*;

const FILE: &str = "
control: { listen: CONTROL }
policies: { default: { timeout: 2s, retry: { attempts: 1 }, breaker: { enabled: false } } }
services: { bank: {} }
sagas:
  trip:
    steps:
      - { name: flight, call: POST bank/flight, undo: 'DELETE bank/flight/{input.trip}', patience: 2s }
      - name: hotel
        call: POST bank/hotel
        body: { trip: '{input.trip}', after: '{flight.seat}', saga: 'saga {saga.id}' }
        undo: DELETE bank/hotel/{input.trip}
        patience: 2s
        undo_patience: 2s
      - { name: pay, call: 'PUT bank/pay/{input.trip}', patience: 2s }
";

fn start(site: &Site, key: &str, input: &Value, wait: &str) -> Answer {
    let key = format!("idempotency-key: {key}");
    send(site.control, "POST", &format!("/v1/sagas/trip{wait}"), &[&key], &input.to_string())
}

fn calls(bank: &Participant) -> Vec<String> {
    bank.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
}

#[test]
fn a_saga_is_done_once_however_often_it_is_started() {
    let site = Site::new(FILE);
    let bank = Participant::start(|seen| match &*seen.path {
        "/flight" => (201, r#"{"seat":"7A"}"#.into()),
        _ => (200, "{}".into()),
    });
    let _control = site.control();
    site.register("bank", "b", bank.addr);
    let input = json!({ "trip": "t/1" });
    let first = start(&site, "k1", &input, "?wait=10s");
    assert_eq!((first.status, &first.json()["status"]), (201, &json!("completed")), "{first:?}");
    assert_eq!(calls(&bank), ["POST /flight", "POST /hotel", "PUT /pay/t%2F1"]);
    let id = first.json()["id"].as_str().unwrap().to_owned();
    let seen = bank.seen();
    assert_eq!(seen[1].key, format!("{id}/hotel"));
    let body: Value = serde_json::from_str(&seen[1].body).unwrap();
    assert_eq!(body, json!({ "trip": "t/1", "after": "7A", "saga": format!("saga {id}") }));

    let again = start(&site, "k1", &input, "?wait=10s");
    assert_eq!((again.status, again.json()["id"].as_str()), (200, Some(&*id)));
    assert_eq!(bank.seen().len(), 3, "nothing was called again");
    let other = start(&site, "k1", &json!({ "trip": "t2" }), "");
    assert!(other.status == 422 && other.body.contains("another input"), "{other:?}");

    let view = get(site.control, &format!("/v1/sagas/{id}")).json();
    assert_eq!(view["steps"][0]["attempts"], 1);
    assert!(view["steps"][0]["intended"].is_string() && view["steps"][0]["ended"].is_string());
    let shown = site.run(&["saga", "show", &id]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("completed") && text.contains("POST bank/hotel"), "{text}");
    let listed = String::from_utf8_lossy(&site.run(&["saga", "list"]).stdout).into_owned();
    assert!(listed.contains(&id) && listed.contains("k1"), "{listed}");
}

#[test]
fn a_lost_reply_is_unknown_and_undone_too() {
    let site = Site::new(FILE);
    // The hotel does its work and never answers.
    let bank = Participant::start(|seen| match (&*seen.method, &*seen.path) {
        ("POST", "/hotel") => (0, String::new()),
        _ => (200, r#"{"seat":1}"#.into()),
    });
    let _control = site.control();
    site.register("bank", "b", bank.addr);
    let answer = start(&site, "k", &json!({ "trip": "t" }), "?wait=20s").json();
    assert_eq!(answer["status"], "undone", "{answer}");
    let calls = calls(&bank);
    let attempts = calls.iter().filter(|call| *call == "POST /hotel").count();
    assert!(attempts > 1, "{calls:?}");
    assert_eq!(calls[calls.len() - 2..], ["DELETE /hotel/t", "DELETE /flight/t"]);
    let keys: Vec<_> = bank.seen().into_iter().filter(|seen| seen.path == "/hotel").map(|seen| seen.key).collect();
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "the key stays the same");
    assert_eq!(answer["steps"][1]["undo"]["status"], "done");
}

#[test]
fn an_undo_that_is_refused_is_parked_and_told() {
    let site = Site::new(FILE);
    let bank = Participant::start(|seen| match (&*seen.method, &*seen.path) {
        ("POST", _) => (200, r#"{"seat":1}"#.into()),
        ("PUT", _) => (402, "no money".into()),
        _ => (404, "never heard of it".into()),
    });
    let control = site.control();
    site.register("bank", "b", bank.addr);
    let answer = start(&site, "k", &json!({ "trip": "t" }), "?wait=10s").json();
    assert_eq!(answer["status"], "parked", "{answer}");
    assert!(answer["steps"][1]["undo"]["error"].as_str().unwrap().contains("never heard of it"));
    assert!(control.log().contains("PARKED"));
    assert_eq!(get(site.control, "/v1/sagas?status=parked").json().as_array().unwrap().len(), 1);
}

#[test]
fn kill_9_of_control_in_the_middle_ends_every_saga_all_or_nothing() {
    let site = Site::new(FILE);
    // Keeps what is done by trip and step, as the contract wants it: an undo that comes first leaves a tombstone.
    let effects: Arc<Mutex<BTreeMap<(String, String), bool>>> = Arc::default();
    let requests = Arc::new(AtomicUsize::new(0));
    let (state, counter) = (effects.clone(), requests.clone());
    let bank = Participant::start(move |seen| {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2 + (number % 5) as u64));
        let (step, trip) = match &*seen.method {
            "POST" => {
                let body: Value = serde_json::from_str(&seen.body).unwrap();
                (seen.path[1..].to_owned(), body["trip"].as_str().unwrap().to_owned())
            }
            _ => {
                let (step, trip) = seen.path[1..].split_once('/').unwrap();
                (step.to_owned(), trip.to_owned())
            }
        };
        let refused = step == "pay" && trip.ends_with('3');
        let mut effects = state.lock().unwrap();
        match (&*seen.method, effects.get(&(step.clone(), trip.clone()))) {
            ("DELETE", _) => drop(effects.insert((step, trip), false)),
            (_, Some(false)) => return (409, "undone".into()),
            _ if refused => return (402, "no".into()),
            _ => drop(effects.insert((step, trip), true)),
        }
        // Some replies are lost after the work is done.
        if number % 17 == 0 { (0, String::new()) } else { (200, r#"{"seat":1}"#.into()) }
    });
    let mut control = site.control();
    site.register("bank", "b", bank.addr);
    let mut started = 0;
    for round in 0..5 {
        for n in 0..24 {
            let trip = format!("t{round}-{n}");
            let answer = start(&site, &trip, &json!({ "trip": trip }), "");
            assert!([201, 202].contains(&answer.status), "{answer:?}");
            started += 1;
        }
        std::thread::sleep(Duration::from_millis(5 * round));
        control.kill();
        control = site.control();
    }
    let open = || {
        ["running", "undoing"].iter().map(|status| {
            get(site.control, &format!("/v1/sagas?status={status}&limit=1000")).json().as_array().unwrap().len()
        })
    };
    until("every saga has ended", || {
        // Keeps the participant registered: nobody beats for it.
        site.register("bank", "b", bank.addr);
        open().sum::<usize>() == 0
    });
    let sagas = get(site.control, "/v1/sagas?limit=1000").json();
    let sagas = sagas.as_array().unwrap();
    assert_eq!(sagas.len(), started);
    let effects = effects.lock().unwrap();
    for saga in sagas {
        let trip = saga["key"].as_str().unwrap();
        let has = |step: &str| effects.get(&(step.to_owned(), trip.to_owned())) == Some(&true);
        match saga["status"].as_str().unwrap() {
            "completed" => assert!(has("flight") && has("hotel") && has("pay"), "{saga}"),
            "undone" => assert!(!has("flight") && !has("hotel") && !has("pay"), "{saga}"),
            other => panic!("{other}: {saga}"),
        }
    }
    assert!(control.log().contains("took up unfinished sagas"));
}

#[test]
fn bad_starts_are_refused_and_start_nothing() {
    let site = Site::new(FILE);
    let _control = site.control();
    let key = "idempotency-key: k";
    for (path, headers, body, status, says) in [
        ("/v1/sagas/nope", &[key][..], "{}", 404, "no saga `nope`"),
        ("/v1/sagas/trip", &[], "{}", 400, "Idempotency-Key"),
        ("/v1/sagas/trip", &["idempotency-key: "], "{}", 400, "a key of 0 bytes"),
        ("/v1/sagas/trip", &[key], "{", 400, ""),
        ("/v1/sagas/trip?wait=5", &[key], "{}", 400, "unit"),
        ("/v1/sagas/trip?wit=5s", &[key], "{}", 400, "wit"),
    ] {
        let answer = send(site.control, "POST", path, headers, body);
        assert!(answer.status == status && answer.body.contains(says), "{path}: {answer:?}");
    }
    assert_eq!(get(site.control, "/v1/sagas").json(), json!([]));
    assert_eq!(get(site.control, "/v1/sagas/nope").status, 404);
}
