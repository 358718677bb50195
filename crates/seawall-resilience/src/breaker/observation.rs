//! What the results of calls do: counted in the window, or as probes, they move the breaker to another state.

use std::time::Duration;

use super::control::{Control, RAMP};
use super::permit::UNSTARTED;
use super::window::{Shape, Slices};
use super::{BadCall, Breaker, Config, Event, Limits, PENDING, State, Sums, VERBOSE, Verdict, WATCHES_SLOW, Window};
use super::{control, micros};
use crate::sync::Ordering;
use crate::{Outcome, Report, Tick};

impl Breaker {
    /// Takes the result of a call that was admitted in `epoch`, at a time that the caller knows or now.
    ///
    /// The report goes to the cold parts by value: a reference would have it written out for every call.
    #[inline(always)]
    pub(super) fn observe(&self, epoch: u32, started: u64, report: Report, at: Option<Tick>) {
        let hot = &self.hot.0;
        let word = hot.control.load(Ordering::Acquire);
        let flags = hot.flags.load(Ordering::Relaxed);
        let usual = Control::is_closed_in(word, epoch) && report.outcome == Outcome::Success;
        if !usual || flags & VERBOSE != 0 {
            return self.observe_unusual(word, epoch, started, report, at);
        }
        let shape = hot.shape.load(Ordering::Relaxed);
        let mut time = at;
        let mut now = || *time.get_or_insert_with(|| self.clock.now());
        let slow = flags & WATCHES_SLOW != 0 && took(&report, started, &mut now) > hot.slow.load(Ordering::Relaxed);
        if slow {
            return self.observe_slow(shape, epoch, started, report, now());
        }
        if self.record(shape, false, false, &mut now) | (flags & PENDING != 0) {
            self.judge(epoch, now());
        }
    }

    /// A success that took too long.
    #[cold]
    pub(super) fn observe_slow(&self, shape: u64, epoch: u32, started: u64, report: Report, now: Tick) {
        self.record_unusual(shape, false, true, now);
        self.remember(&report, started, now);
        self.judge(epoch, now);
    }

    #[cold]
    pub(super) fn observe_unusual(&self, word: u64, epoch: u32, started: u64, report: Report, at: Option<Tick>) {
        if report.given_up {
            return self.cancelled(epoch, started);
        }
        let control = Control::unpack(word);
        if self.hot.0.has(VERBOSE) {
            (self.listener)(&Event::Call(report));
        }
        if control.state == State::Disabled {
            return;
        }
        let now = at.unwrap_or_else(|| self.clock.now());
        let lapsed = control.state == State::HalfOpen && self.lapse(control, &self.config.load(), now);
        if control.epoch != epoch || lapsed {
            // A late result never decides a newer state.
            self.tally.late.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if report.outcome == Outcome::Ignored {
            self.tally.ignored.fetch_add(1, Ordering::Relaxed);
            return self.release(epoch);
        }
        let failed = report.outcome == Outcome::Failure;
        let slow_after = self.hot.0.slow.load(Ordering::Relaxed);
        let slow = slow_after != u64::MAX && took(&report, started, || now) > slow_after;
        if failed && let Some(after) = report.retry_after {
            self.want(micros(now + after), now);
        }
        if failed || slow {
            self.remember(&report, started, now);
        }
        match control.state {
            State::Closed | State::MetricsOnly => {
                let shape = self.hot.0.shape.load(Ordering::Relaxed);
                let moved = self.record_unusual(shape, failed, slow, now);
                if failed || slow || moved || self.hot.0.has(PENDING) {
                    self.judge(epoch, now);
                }
            }
            State::HalfOpen => self.observe_probe(epoch, failed, slow, now),
            State::Open | State::Disabled | State::ForcedOpen => {}
        }
    }

    /// [`Breaker::record`], away from the way of the usual calls.
    #[cold]
    pub(super) fn record_unusual(&self, shape: u64, failed: bool, slow: bool, now: Tick) -> bool {
        self.record(shape, failed, slow, || now)
    }

    /// Counts a call in the window; answers whether the window has moved, and a verdict may have changed with it.
    #[inline(always)]
    pub(super) fn record(&self, shape: u64, failed: bool, slow: bool, now: impl FnOnce() -> Tick) -> bool {
        let size = Shape::size(shape);
        match Shape::kind(shape) {
            0 => {
                self.ring.get_or_init(Box::default).record(size as u32, failed, slow);
                false
            }
            1 => self.slices.get_or_init(Slices::default).record(shape, failed, slow, now()),
            _ => {
                self.slices.get_or_init(Slices::default).count(shape);
                if failed || slow {
                    self.busy.0.streak.fetch_add(1, Ordering::AcqRel);
                } else if self.busy.0.streak.load(Ordering::Relaxed) != 0 {
                    self.busy.0.streak.store(0, Ordering::Release);
                    self.wanted.store(0, Ordering::Release);
                }
                false
            }
        }
    }

    pub(super) fn remember(&self, report: &Report, started: u64, now: Tick) {
        let failed = report.outcome == Outcome::Failure;
        let known = report.took.is_some() || started != UNSTARTED;
        let duration = known.then(|| Duration::from_nanos(took(report, started, || now)));
        if failed {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
        }
        let slow_after = self.hot.0.slow.load(Ordering::Relaxed);
        if duration.is_some_and(|duration| crate::clock::nanos(duration) > slow_after) {
            self.tally.slow.fetch_add(1, Ordering::Relaxed);
        }
        let cause = if failed { report.cause } else { "slow" };
        self.history.push(BadCall { at: now, took: duration, failed, cause, trace: report.trace });
    }

    /// The cold part of the watched states: runs after a failure, a slow call, when the window has moved, and while bad
    /// calls wait for the minimum. In between no verdict can change: a success makes no rate worse.
    #[cold]
    pub(super) fn judge(&self, epoch: u32, now: Tick) {
        let config = self.config.load();
        let sums = self.sums_at(now);
        let bad = exceeded(&config, &config.limits, sums);
        let fewest = config.watch.map_or(0, |watch| watch.minimum_calls).max(config.limits.minimum_calls);
        let pending =
            sums.failed + sums.slow > 0 && sums.calls < fewest && !matches!(config.window, Window::Consecutive(_));
        self.hot.0.flag(PENDING, pending);
        let control = Control::unpack(self.hot.0.control.load(Ordering::Acquire));
        if control.epoch != epoch {
            return;
        }
        let watched = config.watch.is_some_and(|limits| exceeded(&config, &limits, sums));
        let would = watched || (bad && control.state == State::MetricsOnly);
        if self.tally.would.load(Ordering::Relaxed) != would
            && self.tally.would.swap(would, Ordering::AcqRel) != would
            && would
        {
            self.tally.would_open.fetch_add(1, Ordering::Relaxed);
            (self.listener)(&Event::WouldOpen(sums));
        }
        if bad && control.state == State::Closed {
            self.open(Control::new(State::Closed, epoch).pack(), &config, sums, now);
        }
    }

    pub(super) fn observe_probe(&self, epoch: u32, failed: bool, slow: bool, now: Tick) {
        let config = self.config.load();
        let Some((failures, slows)) = self.count_probe(epoch, failed, slow) else {
            // The state has moved on since the caller looked.
            self.tally.late.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.tally.probed.fetch_add(1, Ordering::Relaxed);
        let needed = config.probes_needed();
        let mut word = self.hot.0.control.load(Ordering::Acquire);
        loop {
            let control = Control::unpack(word);
            if control.epoch != epoch {
                return;
            }
            let done = u32::from(control.done) + 1;
            let sums = Sums { calls: done, failed: failures, slow: slows };
            let last = done >= needed;
            let bad = match config.verdict {
                Verdict::All => failures > 0 || (config.slow_call.is_some() && slows > 0),
                // Enough bad ones settle it before the last probe is back; the exact mode waits for it.
                Verdict::Rate | Verdict::Ramp => {
                    let of = if config.exact() { done } else { needed };
                    (last || !config.exact()) && too_many(&config, &config.limits, Sums { calls: of, ..sums })
                }
            };
            if bad {
                return self.open(word, &config, sums, now);
            }
            let ramp = config.verdict == Verdict::Ramp && usize::from(control.stage) < RAMP.len();
            let next = match (last, ramp) {
                (true, true) => Control { stage: control.stage + 1, ..control.next(State::HalfOpen) },
                (true, false) => {
                    // Nobody records calls while it is half open.
                    self.clear();
                    control.next(State::Closed)
                }
                (false, _) => Control { done: control.done.saturating_add(1), ..control },
            };
            match self.hot.0.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if next.state == State::Closed => {
                    self.opens.store(0, Ordering::Release);
                    return self.tell(State::HalfOpen, State::Closed, sums, Duration::ZERO);
                }
                Ok(_) => return,
                Err(seen) => word = seen,
            }
        }
    }

    /// Adds one probe to the counts of its own stage; those of an earlier one are replaced, those of a later one are not:
    /// then there is nothing to count.
    pub(super) fn count_probe(&self, epoch: u32, failed: bool, slow: bool) -> Option<(u32, u32)> {
        const MASK: u64 = (1 << 17) - 1;
        let add = |word: u64| {
            let counted = (word >> 34) as u32;
            if control::is_later(counted, epoch) {
                return None;
            }
            let base = if counted == epoch { word } else { u64::from(epoch) << 34 };
            Some(base + (u64::from(failed) << 17) + u64::from(slow))
        };
        let before = self.probes.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        let after = add(before)?;
        Some(((after >> 17 & MASK) as u32, (after & MASK) as u32))
    }

    /// A failed call has said when the service wants to be called again.
    fn want(&self, until: u64, now: Tick) {
        let stale = !self.wish_holds(&self.config.load(), now);
        if stale || until >= self.wanted.load(Ordering::Acquire) {
            self.wanted.store(until, Ordering::Release);
            self.wanted_at.store(self.position(now), Ordering::Release);
        }
    }

    /// Whether the call that has said so is still in the window: what it asked for has nothing to do with a later trouble.
    fn wish_holds(&self, config: &Config, now: Tick) -> bool {
        let since = self.position(now).saturating_sub(self.wanted_at.load(Ordering::Acquire));
        match config.window {
            Window::Calls(size) => since <= u64::from(size),
            Window::Time(period) => since < micros(Tick::default() + *period),
            // A success has cleared it.
            Window::Consecutive(_) => true,
        }
    }

    /// How far the window has moved, in what it is measured by.
    fn position(&self, now: Tick) -> u64 {
        match Shape::kind(self.hot.0.shape.load(Ordering::Relaxed)) {
            0 => self.ring.get().map_or(0, |ring| ring.total()),
            _ => micros(now),
        }
    }

    /// Moves from `word` to open; does nothing when somebody else has moved on already.
    pub(super) fn open(&self, mut word: u64, config: &Config, sums: Sums, now: Tick) {
        let from = Control::unpack(word);
        let opens = self.opens.load(Ordering::Acquire).saturating_add(1);
        let mut wait = config.open_wait(opens, fastrand::f64());
        let holds = self.wish_holds(config, now);
        let wanted = self.wanted.swap(0, Ordering::AcqRel).saturating_sub(micros(now));
        if config.retry_after && holds && wanted > 0 {
            wait = Duration::from_micros(wanted).min(*config.max_open_for);
        }
        let next = from.next(State::Open);
        // To the exact mode the last moment of the wait still belongs to it.
        self.extend(next.epoch, micros(now + wait).saturating_add(u64::from(config.exact())));
        loop {
            match self.hot.0.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.opens.store(opens, Ordering::Release);
                    self.clear();
                    return self.tell(from.state, State::Open, sums, wait);
                }
                // In the half-open state the counts may have moved under us; the verdict stands.
                Err(seen) if Control::unpack(seen).epoch == from.epoch => word = seen,
                Err(_) => return,
            }
        }
    }

    #[cold]
    pub(super) fn cancelled(&self, epoch: u32, started: u64) {
        if std::thread::panicking() {
            let report = Report { cause: "panicked", ..Outcome::Failure.into() };
            return self.observe(epoch, started, report, None);
        }
        let config = self.config.load();
        let age = if started == UNSTARTED { 0 } else { self.clock.now().nanos().saturating_sub(started) };
        if age >= crate::clock::nanos(*config.cancelled_after) && !config.exact() {
            let report = Report { cause: "given up", ..Outcome::Failure.into() };
            return self.observe(epoch, started, report, None);
        }
        self.tally.cancelled.fetch_add(1, Ordering::Relaxed);
        self.release(epoch);
    }
}

/// Nanoseconds that the service took; zero if nobody knows.
#[inline]
pub(super) fn took(report: &Report, started: u64, now: impl FnOnce() -> Tick) -> u64 {
    match report.took {
        Some(took) => crate::clock::nanos(took),
        None if started == UNSTARTED => 0,
        None => now().nanos().saturating_sub(started),
    }
}

pub(super) fn exceeded(config: &Config, limits: &Limits, sums: Sums) -> bool {
    match config.window {
        Window::Consecutive(failures) => sums.failed >= failures,
        Window::Calls(size) => sums.calls >= limits.minimum_calls.min(size) && too_many(config, limits, sums),
        Window::Time(_) => sums.calls >= limits.minimum_calls && too_many(config, limits, sums),
    }
}

pub(super) fn too_many(config: &Config, limits: &Limits, sums: Sums) -> bool {
    sums.failed >= limits.failure_rate.count_of(sums.calls)
        || (config.slow_call.is_some() && sums.slow >= limits.slow_rate.count_of(sums.calls))
}
