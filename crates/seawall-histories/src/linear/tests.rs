use super::*;
use crate::{Seeds, each_seed};

fn lock(called: u64, ask: LockAsk, answered: Option<(u64, LockAnswer)>) -> Operation<LockAsk, LockAnswer> {
    let answered = answered.map(|(at, answer)| (Moment(at), answer));
    Operation { process: format!("p{called}"), called: Moment(called), ask, answered }
}

#[test]
fn good_and_bad_locks() {
    use LockAnswer::{Acquired, Busy, NotHeld, Released};
    use LockAsk::{Acquire, Release};
    let check = |name: &str, operations: &[_], good: bool| {
        let found = check(&LockModel, operations);
        assert_eq!(found.is_none(), good, "{name}: {found:?}");
    };
    let acquire = |called, at, fence| lock(called, Acquire, Some((at, Acquired(fence))));
    check("nothing", &[], true);
    check("in turns", &[acquire(1, 2, 1), lock(3, Release(1), Some((4, Released))), acquire(5, 6, 2)], true);
    check("a wait", &[acquire(1, 2, 1), acquire(1, 6, 2), lock(3, Release(1), Some((5, Released)))], true);
    check("two at once", &[acquire(1, 2, 1), acquire(3, 4, 2)], false);
    check("expired at some time", &[acquire(1, 2, 1), lock(3, Release(1), None), acquire(4, 5, 2)], true);
    check("expired after the next", &[acquire(1, 2, 1), acquire(4, 5, 2), lock(6, Release(1), None)], false);
    check("a smaller token", &[acquire(1, 2, 5), lock(3, Release(5), Some((4, Released))), acquire(5, 6, 4)], false);
    check("busy", &[acquire(1, 2, 1), lock(3, Acquire, Some((4, Busy)))], true);
    check("busy for nothing", &[lock(3, Acquire, Some((4, Busy)))], false);
    check("busy in the moment before", &[acquire(1, 5, 1), lock(3, Acquire, Some((4, Busy)))], true);
    check("a late release", &[acquire(1, 2, 7), lock(3, Release(6), Some((4, NotHeld)))], true);
    check("a release of another's", &[acquire(1, 2, 7), lock(3, Release(6), Some((4, Released)))], false);
}

#[test]
fn good_and_bad_keys() {
    let ask = |called, at: Option<u64>, ask, answer| Operation {
        process: format!("p{called}"),
        called: Moment(called),
        ask,
        answered: at.map(|at| (Moment(at), answer)),
    };
    let put = |value| KvAsk::Set { when: vec![], then: vec![("k".to_owned(), Some(value))] };
    let cas = |revision, value| KvAsk::Set {
        when: vec![Condition::Modified("k".to_owned(), revision)],
        then: vec![("k".to_owned(), Some(value)), ("l".to_owned(), None)],
    };
    let get = || KvAsk::Get("k".to_owned());
    let check = |name: &str, operations: &[_], good: bool| {
        let found = check(&KvModel::default(), operations);
        assert_eq!(found.is_none(), good, "{name}: {found:?}");
    };
    let wrote = |revision| KvAnswer::Set(true, revision);
    let first = ask(1, Some(2), put(7), wrote(1));
    check("read back", &[first.clone(), ask(3, Some(4), get(), KvAnswer::Got(Some((7, 1))))], true);
    check("stale", &[first.clone(), ask(3, Some(4), get(), KvAnswer::Got(None))], false);
    check("at the same time", &[first.clone(), ask(2, Some(4), get(), KvAnswer::Got(None))], true);
    check("compared", &[first.clone(), ask(3, Some(4), cas(1, 8), wrote(2))], true);
    check("compared in vain", &[first.clone(), ask(3, Some(4), cas(9, 8), KvAnswer::Set(false, 1))], true);
    check("compared, and done nevertheless", &[first.clone(), ask(3, Some(4), cas(9, 8), wrote(2))], false);
    check("a skipped revision", &[first.clone(), ask(3, Some(4), put(8), wrote(3))], false);
    let unknown = ask(3, None, put(8), wrote(0));
    let later = |value, revision| ask(6, Some(7), get(), KvAnswer::Got(Some((value, revision))));
    check("unknown and done", &[first.clone(), unknown.clone(), later(8, 2)], true);
    check("unknown and not done", &[first.clone(), unknown.clone(), later(7, 1)], true);
    check(
        "unknown and undone again",
        &[first, unknown, later(8, 2), ask(8, Some(9), get(), KvAnswer::Got(Some((7, 1))))],
        false,
    );
}

#[test]
fn each_object_by_itself() {
    let get = |key: &str| Operation {
        process: "p".into(),
        called: Moment(1),
        ask: KvAsk::Get(key.into()),
        answered: Some((Moment(2), KvAnswer::Got(None))),
    };
    let parts = partition([get("a"), get("b"), get("a")], |ask| match ask {
        KvAsk::Get(key) => key.clone(),
        KvAsk::Set { .. } => String::new(),
    });
    assert_eq!(parts.values().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
}

/// Tries every order; what the search has to agree with.
fn brute<M: Model>(model: &M, operations: &[Operation<M::Ask, M::Answer>]) -> bool {
    fn go<M: Model>(model: &M, all: &[Operation<M::Ask, M::Answer>], state: &M::State, done: u32) -> bool {
        let open = |index: usize| done & (1 << index) == 0;
        if (0..all.len()).all(|index| !open(index) || all[index].answered.is_none()) {
            return true;
        }
        // Whoever is next was called before every operation that is left was answered.
        let answered = (0..all.len()).filter(|index| open(*index)).filter_map(|index| all[index].answered.as_ref());
        let first = answered.map(|(at, _)| *at).min();
        (0..all.len()).filter(|index| open(*index) && first.is_none_or(|first| all[*index].called <= first)).any(
            |index| {
                let answer = all[index].answered.as_ref().map(|(_, answer)| answer);
                let after = model.step(state, &all[index].ask, answer);
                after.is_some_and(|after| go(model, all, &after, done | (1 << index)))
            },
        )
    }
    go(model, operations, &model.first(), 0)
}

/// Operations with random times whose answers some order gives, and are then sometimes spoilt.
fn times(random: &mut fastrand::Rng, count: usize) -> Vec<(u64, u64, u64)> {
    let mut times: Vec<_> = (0..count)
        .map(|_| {
            let called = random.u64(0..20);
            let took = random.u64(0..12);
            (called, called + random.u64(0..=took), called + took)
        })
        .collect();
    times.sort_by_key(|(_, done, _)| *done);
    times
}

fn random_lock(random: &mut fastrand::Rng) -> Vec<Operation<LockAsk, LockAnswer>> {
    let (mut held, mut last) = (None, 0);
    let count = random.usize(1..=7);
    let mut operations = Vec::new();
    for (called, _, answered) in times(random, count) {
        let (ask, answer) = match (random.bool(), held) {
            (true, None) => {
                last += random.u64(1..3);
                held = Some(last);
                (LockAsk::Acquire, LockAnswer::Acquired(last))
            }
            (true, Some(_)) => (LockAsk::Acquire, LockAnswer::Busy),
            (false, Some(fence)) => {
                held = None;
                (LockAsk::Release(fence), LockAnswer::Released)
            }
            (false, None) => (LockAsk::Release(last), LockAnswer::NotHeld),
        };
        let spoilt = match random.u8(0..20) {
            0 => LockAnswer::Busy,
            1 => LockAnswer::Acquired(random.u64(1..6)),
            2 => LockAnswer::Released,
            3 => LockAnswer::NotHeld,
            _ => answer,
        };
        let answered = (random.u8(0..8) != 0).then_some((answered, spoilt));
        operations.push(lock(called, ask, answered));
    }
    operations
}

fn random_keys(random: &mut fastrand::Rng) -> Vec<Operation<KvAsk, KvAnswer>> {
    let mut state = KvModel::default().first();
    let mut operations = Vec::new();
    let count = random.usize(1..=7);
    for (called, _, answered) in times(random, count) {
        let key = |random: &mut fastrand::Rng| if random.bool() { "a".to_owned() } else { "b".to_owned() };
        let ask = match random.u8(0..3) {
            0 => KvAsk::Get(key(random)),
            _ => {
                let condition = match random.u8(0..3) {
                    0 => vec![Condition::Absent(key(random))],
                    1 => vec![Condition::Modified(key(random), random.u64(0..4))],
                    _ => vec![],
                };
                let value = (random.u8(0..4) != 0).then(|| random.u64(0..3));
                KvAsk::Set { when: condition, then: vec![(key(random), value)] }
            }
        };
        let answers = [
            KvAnswer::Got(None),
            KvAnswer::Got(Some((random.u64(0..3), random.u64(0..4)))),
            KvAnswer::Set(random.bool(), random.u64(0..4)),
        ];
        let answer = match &ask {
            KvAsk::Get(key) => KvAnswer::Got(state.keys_at(key)),
            KvAsk::Set { .. } => {
                let before = state.clone();
                state = KvModel::default().step(&before, &ask, None).expect("what has no answer is always right");
                // Right unless the conditions failed, which the model says.
                let held = KvAnswer::Set(true, state.revision_now());
                let right = KvModel::default().step(&before, &ask, Some(&held)).is_some();
                if right { held } else { KvAnswer::Set(false, state.revision_now()) }
            }
        };
        let answer = if random.u8(0..20) == 0 { answers[random.usize(0..3)].clone() } else { answer };
        let answered = (random.u8(0..8) != 0).then_some((Moment(answered), answer));
        operations.push(Operation { process: format!("p{called}"), called: Moment(called), ask, answered });
    }
    operations
}

#[test]
fn it_agrees_with_trying_every_order() {
    let counts = [const { std::sync::atomic::AtomicU64::new(0) }; 2];
    each_seed(Seeds::from_env(40_000), |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let operations = random_lock(&mut random);
        let (brute_says, says) = (brute(&LockModel, &operations), check(&LockModel, &operations));
        if brute_says != says.is_none() {
            return Err(format!("a lock is {brute_says} by force, and {says:?}: {operations:#?}"));
        }
        counts[usize::from(brute_says)].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let operations = random_keys(&mut random);
        let (brute_says, says) = (brute(&KvModel::default(), &operations), check(&KvModel::default(), &operations));
        if brute_says != says.is_none() {
            return Err(format!("keys are {brute_says} by force, and {says:?}: {operations:#?}"));
        }
        counts[usize::from(brute_says)].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    });
    if std::env::var_os("SEAWALL_SEED").is_none() {
        // Both kinds are there in numbers, or nothing is compared.
        let counts = counts.map(std::sync::atomic::AtomicU64::into_inner);
        assert!(counts.iter().all(|count| *count > 10_000), "{counts:?}");
    }
}
