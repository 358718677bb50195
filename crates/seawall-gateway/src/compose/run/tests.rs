use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What each service answers: by the name of the part's service.
type World = BTreeMap<String, Result<Value, u16>>;

fn plan(parts: &Value) -> Plan {
    Plan::try_new(&serde_json::from_value(json!({ "parts": parts, "partial": "missing" })).unwrap(), &["id"]).unwrap()
}

/// Runs it to its end, the calls ending in an order that `choose` says; and the targets that were called.
fn play(plan: &Plan, world: &World, mut choose: impl FnMut(usize) -> usize) -> (Outcome, Vec<String>) {
    let known = Known { captures: vec![("id".into(), "7".into())], ..Known::default() };
    let mut run = Run::new(plan, known);
    let mut open: Vec<(usize, String)> = Vec::new();
    let mut seen = Vec::new();
    let mut effects = run.begin();
    loop {
        for effect in effects {
            match effect {
                Effect::Call(part, outgoing) => {
                    seen.push(format!("{} {}{}", outgoing.source.method, outgoing.source.service, outgoing.target));
                    open.push((part, outgoing.source.service.to_string()));
                }
                Effect::Cancel(part) => open.retain(|(called, _)| *called != part),
            }
        }
        if let Some(outcome) = run.outcome() {
            return (outcome, seen);
        }
        assert!(!open.is_empty(), "it waits for nothing: {run:?}");
        let (part, service) = open.swap_remove(choose(open.len()));
        let failed = |status: u16| Failure {
            why: Why::Status(StatusCode::from_u16(status).unwrap(), None),
            detail: status.to_string(),
        };
        effects = run.settle(part, world[&service].clone().map_err(failed));
    }
}

fn world(services: Value) -> World {
    let Value::Object(services) = services else { panic!("{services}") };
    let answer = |value: Value| value.as_u64().map_or(Ok(value), |status| Err(status as u16));
    services.into_iter().map(|(name, value)| (name, answer(value))).collect()
}

#[test]
fn graphs_come_to_their_answers() {
    let order = json!({ "name": "order", "call": "GET order/orders/{id}" });
    let user = json!({ "name": "user", "call": "GET user/users/{order.customer}", "pick": ["name"] });
    for (parts, services, answer, missing, calls) in [
        (
            json!([user, order]),
            json!({ "order": { "customer": 3 }, "user": { "name": "ann", "age": 4 } }),
            json!({ "order": { "customer": 3 }, "user": { "name": "ann" } }),
            "",
            "GET order/orders/7, GET user/users/3",
        ),
        (
            json!([order, { "name": "tips", "call": "GET tips/x", "optional": true }]),
            json!({ "order": 1.5, "tips": 503 }),
            json!({ "order": 1.5 }),
            "tips http-503 nothing",
            "GET order/orders/7, GET tips/x",
        ),
        (
            json!([{ "name": "tips", "call": "GET tips/x", "default": null }]),
            json!({ "tips": 404 }),
            json!({ "tips": null }),
            "tips http-404 default",
            "GET tips/x",
        ),
        (
            json!([{ "name": "tips", "call": "GET tips/x", "pick": ["a"], "fallback": { "call": "GET other/{id}" } }]),
            json!({ "tips": 500, "other": { "a": 1, "b": 2 } }),
            json!({ "tips": { "a": 1 } }),
            "tips http-500 fallback",
            "GET tips/x, GET other/7",
        ),
        (
            json!([{ "name": "tips", "call": "GET tips/x", "optional": true, "fallback": { "call": "GET other/y" } }]),
            json!({ "tips": 500, "other": 404 }),
            json!({}),
            "tips http-500 nothing",
            "GET tips/x, GET other/y",
        ),
        (
            // Whoever needs what has failed cannot be called.
            json!([
                { "name": "a", "call": "GET a/x", "optional": true },
                { "name": "b", "call": "GET b/{a.x}", "optional": true },
                { "name": "c", "call": "GET c/{b.x}", "default": 0 },
            ]),
            json!({ "a": 500 }),
            json!({ "c": 0 }),
            "a http-500 nothing, b needs nothing, c needs default",
            "GET a/x",
        ),
        (
            json!([order, { "name": "b", "call": "GET b/{order.nothing}", "optional": true }]),
            json!({ "order": {} }),
            json!({ "order": {} }),
            "b absent nothing",
            "GET order/orders/7",
        ),
        (
            json!([
                { "name": "one", "call": "GET one/x", "append": "list" },
                { "name": "two", "call": "GET two/x", "append": "list", "optional": true },
                { "name": "three", "call": "GET three/x", "append": "list" },
                { "name": "four", "call": "GET two/x", "append": "none", "optional": true },
            ]),
            json!({ "one": ["a"], "two": 500, "three": { "b": 1 } }),
            json!({ "list": ["a", { "b": 1 }], "none": [] }),
            "two http-500 nothing, four http-500 nothing",
            "GET one/x, GET two/x, GET three/x, GET two/x",
        ),
        (
            json!([
                { "name": "a", "call": "GET a/x", "merge": ".", "omit": ["b", "missing"] },
                { "name": "b", "call": "GET b/x", "from": "data", "merge": "b.more", "optional": true },
            ]),
            json!({ "a": { "x": 1, "b": 2, "missing": 3 }, "b": { "data": [] } }),
            json!({ "x": 1 }),
            "b form nothing",
            "GET a/x, GET b/x",
        ),
    ] {
        let plan = plan(&parts);
        let (outcome, seen) = play(&plan, &world(services), |_| 0);
        let Outcome::Answer { mut value, missing: list } = outcome else { panic!("{parts}: {outcome:?}") };
        assert_eq!(value["missing"].as_array().map(Vec::len), Some(list.len()));
        value.as_object_mut().unwrap().remove("missing");
        let said = |m: &Missing| format!("{} {} {}", plan.parts[m.part].name, m.reason, m.instead.as_str());
        let said = list.iter().map(said).collect::<Vec<_>>().join(", ");
        assert_eq!((value, &*said, &*seen.join(", ")), (answer, missing, calls), "{parts}");
    }
}

#[test]
fn what_is_no_longer_needed_is_ended() {
    // `hidden` only serves `shown`, which cannot be called without `other`.
    let plan = plan(&json!([
        { "name": "hidden", "call": "GET hidden/x", "hidden": true, "optional": true },
        { "name": "other", "call": "GET other/x", "hidden": true, "optional": true },
        { "name": "shown", "call": "GET shown/{hidden.x}/{other.x}", "optional": true },
    ]));
    let mut run = Run::new(&plan, Known::default());
    assert_eq!(run.begin().len(), 2);
    let failure = Failure { why: Why::NotJson, detail: String::new() };
    assert_eq!(run.settle(1, Err(failure.clone())), [Effect::Cancel(0)]);
    let Some(Outcome::Answer { missing, .. }) = run.outcome() else { panic!("{run:?}") };
    assert_eq!(missing.iter().map(|missing| missing.part).collect::<Vec<_>>(), [2]);
    // What comes nevertheless changes nothing.
    assert_eq!(run.settle(0, Ok(json!(1))), []);

    // A required part that fails ends all.
    let plan = self::plan(&json!([{ "name": "a", "call": "GET a/x" }, { "name": "b", "call": "GET b/x" }]));
    let mut run = Run::new(&plan, Known::default());
    run.begin();
    assert_eq!(run.settle(1, Err(failure.clone())), [Effect::Cancel(0)]);
    assert_eq!(run.outcome(), Some(Outcome::Failed { part: 1, failure }));
}

#[test]
fn the_status_is_the_parts() {
    let http = |status| Why::Status(StatusCode::from_u16(status).unwrap(), None);
    for (why, status) in [
        (http(404), 404),
        (http(429), 429),
        (http(500), 502),
        (http(503), 502),
        (http(504), 504),
        (http(302), 502),
        (Why::Rejected(Reason::Timeout), 504),
        (Why::Rejected(Reason::Breaker), 502),
        (Why::Absent { clients: true }, 400),
        (Why::Absent { clients: false }, 502),
        (Why::NotJson, 502),
    ] {
        assert_eq!(why.status(), status, "{why:?}");
    }
}

prop_compose! {
    /// A graph without circles: each part needs some of those before it.
    fn any_graph()(
        parts in proptest::collection::vec((any::<u8>(), 0..4u8, any::<bool>(), 0..3u8), 1..7),
        answers in proptest::collection::vec(0..4u8, 14),
    ) -> (Value, World) {
        let mut graph = Vec::new();
        let mut world = World::new();
        for (at, (needs, kind, hidden, place)) in parts.into_iter().enumerate() {
            let names: String = (0..at).filter(|need| needs & (1 << need) != 0).map(|need| format!("/{{p{need}.v}}")).collect();
            let mut part = json!({ "name": format!("p{at}"), "call": format!("GET s{at}/x{names}"), "pick": ["v"] });
            match place {
                0 => part["append"] = json!("list"),
                1 => {
                    part["merge"] = json!(".");
                    part["rename"] = json!({ "v": format!("v{at}") });
                }
                _ if hidden => part["hidden"] = json!(true),
                _ => {}
            }
            match kind {
                0 => part["optional"] = json!(true),
                1 => part["default"] = json!({ "v": "d" }),
                2 => {
                    part["optional"] = json!(true);
                    part["fallback"] = json!({ "call": format!("GET o{at}/x{names}") });
                }
                // Required, where nothing that it needs may be missing.
                _ if needs == 0 || at == 0 => {}
                _ => part["optional"] = json!(true),
            }
            for (service, answer) in [(format!("s{at}"), answers[2 * at % 14]), (format!("o{at}"), answers[(2 * at + 1) % 14])] {
                world.insert(service, match answer {
                    0 => Err(503),
                    1 => Ok(json!({ "other": 1 })),
                    _ => Ok(json!({ "v": at })),
                });
            }
            graph.push(part);
        }
        (Value::Array(graph), world)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// In whatever order the calls end, the same is answered; where a required part fails, one that does is named.
    #[test]
    fn the_order_in_which_calls_end_changes_nothing(
        (graph, world) in any_graph(),
        choices in proptest::collection::vec(any::<prop::sample::Index>(), 20),
    ) {
        let plan = plan(&graph);
        let (first, _) = play(&plan, &world, |_| 0);
        let mut choices = choices.into_iter().cycle();
        let (other, _) = play(&plan, &world, |open| choices.next().map_or(0, |index| index.index(open)));
        match (first, other) {
            (Outcome::Failed { part, .. }, Outcome::Failed { part: other, .. }) => {
                for part in [part, other] {
                    prop_assert!(!plan.parts[part].optional);
                }
            }
            (first, other) => prop_assert_eq!(first, other),
        }
    }
}
