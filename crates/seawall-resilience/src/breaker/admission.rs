//! Who may call: closed, everybody; open, nobody before the wait is over; half open, the probes.

use std::time::Duration;

use super::control::{Control, RAMP};
use super::{Breaker, Config, Event, FOREVER, Refused, State, Sums, VERBOSE, micros};
use crate::sync::Ordering;
use crate::{PolicyName, Reason, Rejected, Tick};

impl Breaker {
    #[inline(always)]
    pub(super) fn admit(&self, now: impl FnOnce() -> Tick) -> Result<u32, Refused> {
        let control = Control::unpack(self.hot.0.control.load(Ordering::Acquire));
        match control.state {
            State::Closed | State::Disabled | State::MetricsOnly => Ok(control.epoch),
            State::Open => self.admit_open(now()),
            State::HalfOpen | State::ForcedOpen => self.admit_probe(now()),
        }
    }

    #[inline]
    pub(super) fn admit_open(&self, now: Tick) -> Result<u32, Refused> {
        match self.left(now) {
            0 => self.admit_probe(now),
            left => Err(self.reject(Reason::Open, Some(left))),
        }
    }

    /// The cold part: the wait is over, it is half open, or somebody has forced it.
    #[cold]
    pub(super) fn admit_probe(&self, now: Tick) -> Result<u32, Refused> {
        let config = self.config.load();
        let mut word = self.hot.0.control.load(Ordering::Acquire);
        loop {
            let control = Control::unpack(word);
            let first = Control { issued: 1, ..control.next(State::HalfOpen) };
            let next = match control.state {
                State::Closed | State::Disabled | State::MetricsOnly => return Ok(control.epoch),
                State::ForcedOpen => return Err(self.reject(Reason::ForcedOpen, None)),
                State::Open => match self.left(now) {
                    0 => first,
                    left => return Err(self.reject(Reason::Open, Some(left))),
                },
                State::HalfOpen if control.stage > 0 => {
                    let one_in = RAMP[usize::from(control.stage) - 1];
                    if !self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in) {
                        return Err(self.reject(Reason::HalfOpen, None));
                    }
                    return Ok(control.epoch);
                }
                State::HalfOpen if control.issued < config.half_open_calls && !self.lapsed(&config, now) => {
                    Control { issued: control.issued + 1, ..control }
                }
                State::HalfOpen if self.lapse(control, &config, now) => {
                    word = self.hot.0.control.load(Ordering::Acquire);
                    continue;
                }
                // Probes that do not come back, such as endless streams, decide nothing: others are sent.
                State::HalfOpen => match (config.probe_lease, self.left(now)) {
                    (Some(_), 0) => first,
                    (lease, left) => {
                        return Err(self.reject(Reason::HalfOpen, lease.map(|_| left)));
                    }
                },
            };
            if next.epoch != control.epoch {
                // Before the state is visible, or somebody would find its time over already.
                self.extend(next.epoch, config.probe_lease.map_or(FOREVER, |lease| micros(now + *lease)));
            }
            match self.hot.0.control.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if control.state == State::Open {
                        let probe = Unsent(self, next.epoch);
                        self.tell(State::Open, State::HalfOpen, Sums::default(), Duration::ZERO);
                        std::mem::forget(probe);
                    }
                    return Ok(next.epoch);
                }
                Err(seen) => word = seen,
            }
        }
    }

    /// In the exact mode a half-open state whose lease is over has opened, at that very moment.
    pub(super) fn lapsed(&self, config: &Config, now: Tick) -> bool {
        config.exact() && config.probe_lease.is_some() && self.left(now) == 0
    }

    /// Opens it if it has lapsed, and says so.
    #[cold]
    pub(super) fn lapse(&self, control: Control, config: &Config, now: Tick) -> bool {
        if control.state != State::HalfOpen || !self.lapsed(config, now) {
            return false;
        }
        let over = Tick::from_nanos((self.hot.0.until.load(Ordering::Acquire) & FOREVER) * 1000);
        let word = self.hot.0.control.load(Ordering::Acquire);
        if Control::unpack(word).epoch == control.epoch {
            self.open(word, config, Sums::default(), over);
        }
        true
    }

    /// Microseconds until the open wait or the probes' lease is over.
    #[inline]
    pub(super) fn left(&self, now: Tick) -> u64 {
        (self.hot.0.until.load(Ordering::Acquire) & FOREVER).saturating_sub(micros(now))
    }

    /// Sets the end of the wait of the state with this epoch, unless a newer state has set its own.
    pub(super) fn extend(&self, epoch: u32, until: u64) {
        let tag = epoch as u16;
        let word = u64::from(tag) << 48 | until.min(FOREVER);
        let newer = |seen: u64| (seen >> 48) as u16 != tag && ((seen >> 48) as u16).wrapping_sub(tag) < 1 << 15;
        let update = |seen| (!newer(seen)).then_some(word);
        let _ = self.hot.0.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }

    /// Gives a probe's place back; changes nothing unless this very half-open state still lasts.
    pub(super) fn release(&self, epoch: u32) {
        let _ = self.hot.0.control.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let control = Control::unpack(word);
            (control.epoch == epoch && control.state == State::HalfOpen && control.stage == 0)
                .then(|| Control { issued: control.issued.saturating_sub(1), ..control }.pack())
        });
    }

    #[inline]
    pub(super) fn reject(&self, reason: Reason, left: Option<u64>) -> Refused {
        self.busy.0.rejected.fetch_add(1, Ordering::Relaxed);
        if self.hot.0.has(VERBOSE) {
            (self.listener)(&Event::Rejected(reason));
        }
        Refused { reason, left: left.unwrap_or(Refused::UNKNOWN) }
    }

    /// What the caller is told of it.
    #[inline]
    pub(super) fn rejected(&self, refused: Refused) -> Rejected {
        let Refused { reason, left } = refused;
        let retry_after = (left != Refused::UNKNOWN).then(|| Duration::from_micros(left));
        Rejected { policy: PolicyName::Breaker, instance: self.name, reason, retry_after, begun: false }
    }
}

/// Dropped by a panic of the listener: the probe is not sent, and its place is free again.
struct Unsent<'a>(&'a Breaker, u32);

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.0.release(self.1);
    }
}
