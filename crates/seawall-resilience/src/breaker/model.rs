//! The breaker once more, as plainly as can be: it keeps every call, counts anew after each, and judges each time.
//! Any history has to go the same way in both.

use proptest::prelude::*;

use seawall_types::{Period, Ratio};

use super::control::RAMP;
use super::*;

#[derive(Clone, Copy, Debug)]
struct Ended {
    at: u64,
    failed: bool,
    slow: bool,
}

/// Times are milliseconds.
struct Model {
    config: Config,
    state: State,
    epoch: u32,
    ended: Vec<Ended>,
    issued: u32,
    probes: Vec<Ended>,
    stage: usize,
    asked: u32,
    until: u64,
    opens: u32,
}

impl Model {
    fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Closed,
            epoch: 0,
            ended: Vec::new(),
            issued: 0,
            probes: Vec::new(),
            stage: 0,
            asked: 0,
            until: 0,
            opens: 0,
        }
    }

    fn go(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
        self.ended.clear();
        (self.issued, self.stage) = (0, 0);
        self.probes.clear();
    }

    fn open(&mut self, now: u64) {
        self.opens += 1;
        self.go(State::Open);
        self.until = now + self.config.open_wait(self.opens, 0.5).as_millis() as u64;
    }

    fn ask(&mut self, now: u64) -> Option<u32> {
        let lease = self.config.probe_lease.map(|lease| lease.as_millis() as u64);
        let over = now >= self.until;
        match self.state {
            State::Closed => return Some(self.epoch),
            State::Open if !over => return None,
            State::HalfOpen if self.stage > 0 => {
                self.asked += 1;
                let turn = (self.asked - 1).is_multiple_of(RAMP[self.stage - 1]);
                return turn.then_some(self.epoch);
            }
            State::HalfOpen if self.issued < u32::from(self.config.half_open_calls) => {}
            State::HalfOpen if lease.is_none() || !over => return None,
            _ => {
                self.go(State::HalfOpen);
                self.until = now + lease.unwrap_or(1 << 40);
            }
        }
        self.issued += 1;
        Some(self.epoch)
    }

    fn end(&mut self, epoch: u32, started: u64, now: u64, outcome: Option<Outcome>) {
        let age = now - started;
        let outcome = match outcome {
            None if age >= self.config.cancelled_after.as_millis() as u64 => Some(Outcome::Failure),
            outcome => outcome,
        };
        if epoch != self.epoch {
            return;
        }
        let failed = match outcome {
            None | Some(Outcome::Ignored) => {
                if self.state == State::HalfOpen && self.stage == 0 {
                    self.issued -= 1;
                }
                return;
            }
            Some(outcome) => outcome == Outcome::Failure,
        };
        let slow = self.config.slow_call.is_some_and(|limit| age > limit.as_millis() as u64);
        let ended = Ended { at: now, failed, slow };
        match self.state {
            State::Closed => {
                self.ended.push(ended);
                if self.bad_window(now) {
                    self.open(now);
                }
            }
            State::HalfOpen => {
                self.probes.push(ended);
                self.probed(now);
            }
            _ => {}
        }
    }

    fn sums(&self, now: u64) -> Sums {
        let seen: Vec<Ended> = match self.config.window {
            Window::Calls(size) => self.ended.iter().rev().take(size as usize).copied().collect(),
            Window::Time(period) => {
                let slice = period.as_millis() as u64 / 10;
                self.ended.iter().filter(|call| now / slice - call.at / slice < 10).copied().collect()
            }
            Window::Consecutive(_) => {
                self.ended.iter().rev().take_while(|call| call.failed || call.slow).copied().collect()
            }
        };
        let count = |pick: fn(&Ended) -> bool| seen.iter().filter(|call| pick(call)).count() as u32;
        if let Window::Consecutive(_) = self.config.window {
            // A slow call in the row is as bad as a failed one.
            return Sums { calls: seen.len() as u32, failed: seen.len() as u32, slow: 0 };
        }
        Sums { calls: seen.len() as u32, failed: count(|call| call.failed), slow: count(|call| call.slow) }
    }

    fn bad_window(&self, now: u64) -> bool {
        let sums = self.sums(now);
        match self.config.window {
            Window::Consecutive(limit) => sums.calls >= limit,
            Window::Calls(size) => sums.calls >= self.config.limits.minimum_calls.min(size) && self.bad(sums),
            Window::Time(_) => sums.calls >= self.config.limits.minimum_calls && self.bad(sums),
        }
    }

    fn bad(&self, sums: Sums) -> bool {
        let share = |count: u32| f64::from(count) / f64::from(sums.calls) + 1e-9;
        (sums.failed > 0 && share(sums.failed) >= self.config.limits.failure_rate.get())
            || (self.config.slow_call.is_some()
                && sums.slow > 0
                && share(sums.slow) >= self.config.limits.slow_rate.get())
    }

    fn probed(&mut self, now: u64) {
        let needed = u32::from(self.config.half_open_calls);
        let count = |pick: fn(&Ended) -> bool| self.probes.iter().filter(|call| pick(call)).count() as u32;
        let (failed, slow) = (count(|call| call.failed), count(|call| call.slow));
        let bad = match self.config.verdict {
            Verdict::All => failed + slow > 0,
            Verdict::Rate | Verdict::Ramp => self.bad(Sums { calls: needed, failed, slow }),
        };
        if bad {
            self.open(now);
        } else if self.probes.len() as u32 >= needed {
            if self.config.verdict == Verdict::Ramp && self.stage < 3 {
                let stage = self.stage + 1;
                self.go(State::HalfOpen);
                self.stage = stage;
            } else {
                self.opens = 0;
                self.go(State::Closed);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask,
    /// Ends the call that was admitted so many calls ago; none is given up.
    End(u8, Option<Outcome>),
    Wait(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        4 => Just(Some(Outcome::Success)),
        4 => Just(Some(Outcome::Failure)),
        1 => Just(Some(Outcome::Ignored)),
        1 => Just(None),
    ];
    let step = prop_oneof![
        5 => Just(Step::Ask),
        5 => (0u8..6, outcome).prop_map(|(back, outcome)| Step::End(back, outcome)),
        1 => (0u16..40).prop_map(Step::Wait),
        1 => (0u16..1500).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..300)
}

fn configs() -> impl Strategy<Value = Config> {
    let window = prop_oneof![
        (1u32..30).prop_map(Window::Calls),
        (1u64..100).prop_map(|ms| Window::Time(Period::millis(ms * 10))),
        (1u32..6).prop_map(Window::Consecutive),
    ];
    let verdict = prop_oneof![Just(Verdict::All), Just(Verdict::Rate), Just(Verdict::Ramp)];
    let slow = proptest::option::of((1u64..50).prop_map(Period::millis));
    let numbers = (1u32..20, 1u8..=100, 1u8..=100, 1u64..600, 1u16..6, 1u64..400, 1u64..600);
    (window, verdict, slow, numbers, 1.0..3.0f64).prop_map(|(window, verdict, slow_call, numbers, open_growth)| {
        let (minimum_calls, failed, slow, open_for, half_open_calls, cancelled, lease) = numbers;
        Config {
            window,
            verdict,
            slow_call,
            limits: Limits { failure_rate: Ratio::percent(failed), slow_rate: Ratio::percent(slow), minimum_calls },
            open_for: Period::millis(open_for),
            // Whole numbers keep the waits of both in whole milliseconds.
            open_growth: open_growth.round(),
            max_open_for: Period::secs(5),
            half_open_calls,
            cancelled_after: Period::millis(cancelled),
            probe_lease: (lease > 100).then(|| Period::millis(lease)),
            ..Config::default()
        }
    })
}

/// How many histories: a thousand, or as many as the long form asks for.
fn cases() -> u32 {
    std::env::var("SEAWALL_HISTORIES").ok().and_then(|count| count.parse().ok()).unwrap_or(1000)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn any_history_goes_as_in_the_model(config in configs(), steps in steps()) {
        let (clock, hand) = Clock::manual();
        let breaker = Breaker::new("model".into(), config.clone(), clock, Box::new(|_| {}));
        let mut model = Model::new(config);
        let mut now = 0;
        let mut open = Vec::new();
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Wait(ms) => {
                    now += u64::from(ms);
                    hand.set(Tick::from_millis(now));
                }
                Step::Ask => {
                    let (ours, theirs) = (Breaker::try_acquire(&breaker), model.ask(now));
                    prop_assert_eq!(ours.is_ok(), theirs.is_some(), "step {}: {:?}", at, breaker);
                    if let (Ok(permit), Some(epoch)) = (ours, theirs) {
                        open.push((permit, epoch, now));
                    }
                }
                Step::End(back, outcome) => {
                    let Some(at) = open.len().checked_sub(usize::from(back) + 1) else { continue };
                    let (permit, epoch, started) = open.remove(at);
                    match outcome {
                        Some(outcome) => permit.finish(outcome),
                        None => drop(permit),
                    }
                    model.end(epoch, started, now, outcome);
                }
            }
            prop_assert_eq!(breaker.state(), model.state, "step {}: {:?}", at, step);
            if model.state == State::Closed {
                prop_assert_eq!(breaker.sums(), model.sums(now), "step {}: {:?}", at, step);
            }
        }
    }
}
