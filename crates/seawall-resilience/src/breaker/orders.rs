//! What people tell a breaker while calls are under way: another state, another configuration.

use std::time::Duration;

use super::control::Control;
use super::window::Shape;
use super::{Breaker, Config, FOREVER, Mode, PENDING, State, Sums, WATCHES_SLOW, micros};
use crate::sync::Ordering;

impl Breaker {
    /// Puts it where the operator wants it: closed or open as a beginning from which the calls decide on; disabled,
    /// forced open or metrics-only until this is called again. The window begins anew.
    pub fn set(&self, state: State) {
        let now = self.clock.now();
        let config = self.config.load();
        let mut word = self.hot.0.control.load(Ordering::Acquire);
        loop {
            let from = Control::unpack(word);
            if from.state == state && state != State::Closed {
                return;
            }
            let next = from.next(state);
            let wait = if state == State::Open { config.open_wait(1, fastrand::f64()) } else { Duration::ZERO };
            self.extend(next.epoch, micros(now + wait));
            match self.hot.0.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.opens.store(u32::from(state == State::Open), Ordering::Release);
                    self.clear();
                    if from.state != state {
                        self.tell(from.state, state, Sums::default(), wait);
                    }
                    return;
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// Takes over another configuration without losing state: calls under way, the state, and an open wait stay as they
    /// are; the window stays unless its own kind or size changes.
    pub fn reload(&self, config: Config) {
        let config = std::sync::Arc::new(config.bounded());
        let old = self.config.swap(config.clone());
        let hot = &self.hot.0;
        hot.slow.store(slow_nanos(&config), Ordering::Release);
        hot.flag(WATCHES_SLOW, config.slow_call.is_some());
        let shape = Shape::of(&config).word();
        if shape != hot.shape.load(Ordering::Acquire) {
            // What is under way was admitted under another window: its results would be counted in the wrong one.
            let _ = hot.control.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let control = Control::unpack(word);
                matches!(control.state, State::Closed | State::MetricsOnly).then(|| control.next(control.state).pack())
            });
            self.clear();
            hot.shape.store(shape, Ordering::Release);
        }
        let probes = |config: &Config| (config.half_open_calls, config.probe_lease, config.semantics);
        if probes(&old) != probes(&config) {
            self.probe_anew(&config);
        }
        if old.mode != config.mode {
            self.set(initial(config.mode));
        }
        // A lower minimum may make a verdict out of what is there.
        hot.flag(PENDING, true);
    }

    /// Other probes: those that were sent may be all that the new number allows, and what came back may not be enough for a
    /// verdict, so that nobody would ever be let through again; and a lease that is too long, or none, ends now.
    pub(super) fn probe_anew(&self, config: &Config) {
        let hot = &self.hot.0;
        let mut word = hot.control.load(Ordering::Acquire);
        loop {
            let control = Control::unpack(word);
            if control.state != State::HalfOpen {
                return;
            }
            let next = Control { stage: control.stage, ..control.next(State::HalfOpen) };
            let lease = config.probe_lease.map_or(FOREVER, |lease| micros(self.clock.now() + *lease));
            self.extend(next.epoch, lease);
            match hot.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }
}

pub(super) const fn initial(mode: Mode) -> State {
    match mode {
        Mode::Automatic => State::Closed,
        Mode::Disabled => State::Disabled,
        Mode::ForcedOpen => State::ForcedOpen,
        Mode::MetricsOnly => State::MetricsOnly,
    }
}

pub(super) fn slow_nanos(config: &Config) -> u64 {
    config.slow_call.map_or(u64::MAX, |slow| crate::clock::nanos(*slow))
}
