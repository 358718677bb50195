use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn plan(steps: usize, without_undo: Option<usize>) -> Arc<Plan> {
    let step = |at: usize| {
        let mut step =
            json!({ "name": format!("s{at}"), "call": "POST svc/do", "patience": "10s", "undo_patience": "60s" });
        if without_undo != Some(at) {
            step["undo"] = "POST svc/undo".into();
        }
        step
    };
    let config = json!({ "steps": (0..steps).map(step).collect::<Vec<_>>() });
    Arc::new(Plan::try_new("test", &serde_json::from_value(config).unwrap()).unwrap())
}

/// Drives a saga against `service`, which is asked for every call; returns the calls that were made.
fn drive(saga: &mut Saga, events: Vec<Event>, mut service: impl FnMut(&CallOut, Millis) -> Outcome) -> Vec<String> {
    let mut now = 1_000;
    let mut calls = Vec::new();
    events.iter().for_each(|event| saga.apply(event, now));
    while let Next::Call(call) = saga.next() {
        now += 1_000;
        calls.push(call.key.clone());
        let outcome = service(&call, now);
        for event in saga.observe(call.step, call.direction, outcome, now) {
            saga.apply(&event, now);
        }
        assert!(calls.len() < 1_000, "does not end");
    }
    calls
}

fn run(steps: usize, service: impl FnMut(&CallOut, Millis) -> Outcome) -> (Status, Vec<String>) {
    let (mut saga, events) = Saga::begin("x".into(), plan(steps, None), json!({}));
    let calls = drive(&mut saga, events, service);
    (saga.status, calls)
}

fn done() -> Outcome {
    Outcome::Done(Value::Null)
}

#[test]
fn all_steps_in_order() {
    assert_eq!(run(3, |_, _| done()), (Status::Completed, vec!["x/s0".into(), "x/s1".into(), "x/s2".into()]));
}

#[test]
fn a_rejected_step_is_not_undone_and_those_before_it_are_in_reverse() {
    let service = |call: &CallOut, _| match &*call.key {
        "x/s2" => Outcome::Rejected("no stock".into()),
        _ => done(),
    };
    let (status, calls) = run(3, service);
    assert_eq!(status, Status::Undone);
    assert_eq!(calls, ["x/s0", "x/s1", "x/s2", "x/s1/undo", "x/s0/undo"]);
}

#[test]
fn an_unknown_step_is_repeated_with_its_key_then_undone_too() {
    let service = |call: &CallOut, _| match &*call.key {
        "x/s1" => Outcome::Unknown("no reply".into()),
        _ => done(),
    };
    let (status, calls) = run(2, service);
    assert_eq!(status, Status::Undone);
    assert_eq!(calls.iter().filter(|key| *key == "x/s1").count(), 10, "for as long as its patience lasts");
    assert_eq!(calls[calls.len() - 2..], ["x/s1/undo", "x/s0/undo"]);
}

#[test]
fn a_step_never_sent_is_not_undone_and_one_lost_reply_is_enough_to_undo() {
    let (_, calls) = run(1, |_, _| Outcome::NotSent("breaker is open".into()));
    assert!(!calls.contains(&"x/s0/undo".to_owned()));
    let mut first = true;
    let (status, calls) = run(1, |call, _| match (call.direction, std::mem::take(&mut first)) {
        (Direction::Do, true) => Outcome::Unknown("no reply".into()),
        (Direction::Do, false) => Outcome::Rejected("the service lies about what it did".into()),
        (Direction::Undo, _) => done(),
    });
    assert_eq!((status, &*calls[2]), (Status::Undone, "x/s0/undo"));
}

#[test]
fn what_was_under_way_at_a_crash_may_have_been_done() {
    let plan = plan(1, None);
    let (_, events) = Saga::begin("x".into(), plan.clone(), json!({}));
    let log: Vec<_> = events.into_iter().map(|event| (0, event)).collect();
    let mut saga = Saga::replay("x".into(), plan, json!({}), &log).unwrap();
    // Away for an hour, then the service cannot be reached until patience, counted anew, is over.
    let back = 3_600_000;
    saga.take_up(back);
    let mut undone = false;
    for second in 0.. {
        let Next::Call(call) = saga.next() else { break };
        undone |= call.direction == Direction::Undo;
        let outcome = if undone { done() } else { Outcome::NotSent("no instance".into()) };
        assert!(undone || second <= 10);
        for event in saga.observe(call.step, call.direction, outcome, back + second * 1_000) {
            saga.apply(&event, back + second * 1_000);
        }
    }
    assert!(undone && saga.status == Status::Undone);
}

#[test]
fn a_log_that_does_not_fit_is_named() {
    let replay = |events: &[(Millis, Event)]| Saga::replay("x".into(), plan(2, None), json!({}), events);
    let direction = Direction::Do;
    let beyond = Event::Intent { step: 2, direction };
    let open = Event::Done { step: 0, direction, output: Value::Null };
    assert!(replay(&[(0, beyond)]).unwrap_err().contains("event 0"));
    assert!(replay(&[(0, Event::Intent { step: 0, direction }), (1, open)]).is_err());
    assert!(replay(&[]).is_err());
}

#[test]
fn an_undo_that_fails_is_repeated_and_in_the_end_parked() {
    let mut left = 5;
    let (status, calls) = run(2, |call, _| match (call.step, call.direction) {
        (1, Direction::Do) => Outcome::Rejected("no".into()),
        (0, Direction::Undo) if left > 0 => {
            left -= 1;
            Outcome::Unknown("no reply".into())
        }
        _ => done(),
    });
    assert_eq!((status, calls.iter().filter(|key| key.ends_with("undo")).count()), (Status::Undone, 6));
    for outcome in [Outcome::Unknown("no reply".into()), Outcome::Rejected("404".into())] {
        let (status, _) = run(2, |call, _| match (call.step, call.direction) {
            (1, Direction::Do) => Outcome::Rejected("no".into()),
            (0, Direction::Undo) => outcome.clone(),
            _ => done(),
        });
        assert_eq!(status, Status::Parked);
    }
}

#[test]
fn steps_without_undo_are_passed_over() {
    let (mut saga, events) = Saga::begin("x".into(), plan(3, Some(1)), json!({}));
    let calls = drive(&mut saga, events, |call, _| match (call.step, call.direction) {
        (2, Direction::Do) => Outcome::Rejected("no".into()),
        _ => done(),
    });
    assert_eq!(calls, ["x/s0", "x/s1", "x/s2", "x/s0/undo"]);
}

#[test]
fn the_pause_grows_and_is_bounded() {
    let (mut saga, events) = Saga::begin("x".into(), plan(1, None), json!({}));
    events.iter().for_each(|event| saga.apply(event, 0));
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let failed = Event::Failed { step: 0, direction: Direction::Do, unknown: false, why: String::new() };
        saga.apply(&failed, 0);
        pauses.push(saga.pause(0, Direction::Do, 1.0).as_millis());
    }
    assert_eq!(pauses, [120, 220, 420, 820, 1620, 3220, 5020, 5020, 5020]);
    assert_eq!(saga.pause(0, Direction::Do, 0.0).as_millis(), 20);
}

/// A participant as the contract wants it: a key is done once, and an undo that comes first leaves a tombstone.
#[derive(Default)]
struct Participant {
    effects: BTreeMap<usize, bool>,
}

impl Participant {
    fn receive(&mut self, call: &CallOut) -> Outcome {
        match (call.direction, self.effects.get(&call.step)) {
            (Direction::Do, Some(false)) => return Outcome::Rejected("undone already".into()),
            (Direction::Do, _) => self.effects.insert(call.step, true),
            (Direction::Undo, _) => self.effects.insert(call.step, false),
        };
        done()
    }
}

proptest! {
    /// Whatever is lost, refused or delayed, and wherever the runner crashes and replays its log: when the saga is
    /// completed every step has had its effect, when it is undone none has.
    #[test]
    fn every_end_is_all_or_nothing(
        steps in 1usize..5,
        faults in proptest::collection::vec(0u8..12, 0..80),
        crashes in proptest::collection::vec(any::<bool>(), 0..80),
    ) {
        let plan = plan(steps, None);
        let (mut saga, begin) = Saga::begin("x".into(), plan.clone(), json!({}));
        let mut participant = Participant::default();
        let mut now = 1_000;
        let mut log: Vec<(Millis, Event)> = begin.into_iter().map(|event| (now, event)).collect();
        log.iter().for_each(|(at, event)| saga.apply(event, *at));
        let mut round = 0;
        while let Next::Call(call) = saga.next() {
            now += 700;
            let fault = faults.get(round).copied().unwrap_or(11);
            let crash = crashes.get(round).copied().unwrap_or(false);
            round += 1;
            let outcome = match fault {
                0 => Outcome::NotSent("refused".into()),
                1 => Outcome::Unknown("lost on the way".into()),
                2 => { participant.receive(&call); Outcome::Unknown("the reply was lost".into()) }
                3 if call.direction == Direction::Do && !matches!(participant.effects.get(&call.step), Some(true)) =>
                    Outcome::Rejected("business says no".into()),
                _ => participant.receive(&call),
            };
            // A crash between the call and the commit: the outcome is forgotten.
            if !crash {
                let events = saga.observe(call.step, call.direction, outcome, now);
                log.extend(events.into_iter().map(|event| (now, event)));
            }
            saga = Saga::replay("x".into(), plan.clone(), json!({}), &log).unwrap();
            if crash {
                saga.take_up(now);
            }
            prop_assert!(round < 2_000);
        }
        let done = participant.effects.values().filter(|done| **done).count();
        match saga.status {
            Status::Completed => prop_assert_eq!(done, steps),
            Status::Undone => prop_assert_eq!(done, 0),
            other => prop_assert!(false, "ended as {:?}", other),
        }
    }

    /// A log read back from its text is the same log.
    #[test]
    fn events_survive_their_text(step in 0usize..9, unknown: bool, why in ".*") {
        for event in [
            Event::Intent { step, direction: Direction::Undo },
            Event::Failed { step, direction: Direction::Do, unknown, why: why.clone() },
            Event::Done { step, direction: Direction::Do, output: json!({ "why": why }) },
            Event::Refused { step, unknown, why: why.clone() },
            Event::Parked { step, why: why.clone() },
            Event::Ended { status: Status::Undone },
        ] {
            let text = serde_json::to_string(&event).unwrap();
            prop_assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        }
    }
}
