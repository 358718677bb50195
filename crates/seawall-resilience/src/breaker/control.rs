//! The state of a breaker in one word, so that a transition is one exchange and a decision one load.

use std::fmt;

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Calls pass and are watched.
    Closed = 0,
    /// Calls are turned away.
    Open = 1,
    /// A few probes pass and decide.
    HalfOpen = 2,
    /// Somebody has decided that every call passes and none is watched.
    Disabled = 3,
    /// Somebody has decided that no call passes.
    ForcedOpen = 4,
    /// Somebody has decided that every call passes and is only watched.
    MetricsOnly = 5,
}

impl State {
    /// All of them, in order.
    pub const ALL: [Self; 6] =
        [Self::Closed, Self::Open, Self::HalfOpen, Self::Disabled, Self::ForcedOpen, Self::MetricsOnly];

    /// The word used in headers, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
            Self::Disabled => "disabled",
            Self::ForcedOpen => "forced-open",
            Self::MetricsOnly => "metrics-only",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The control word, unpacked: `state:3 | stage:2 | epoch:27 | issued:16 | done:16`.
///
/// The epoch changes with every transition, so that a result of an earlier one can be told. The counts are those of the
/// probes of one stage of the half-open state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) state: State,
    pub(super) stage: u8,
    pub(super) epoch: u32,
    pub(super) issued: u16,
    pub(super) done: u16,
}

const EPOCH: u32 = (1 << 27) - 1;

/// Whether an epoch comes after another; they go round.
pub(super) const fn is_later(epoch: u32, other: u32) -> bool {
    let ahead = epoch.wrapping_sub(other) & EPOCH;
    ahead != 0 && ahead <= EPOCH / 2
}

impl Control {
    pub(super) const fn new(state: State, epoch: u32) -> Self {
        Self { state, stage: 0, epoch: epoch & EPOCH, issued: 0, done: 0 }
    }

    /// What follows it: another state, and another epoch.
    pub(super) const fn next(self, state: State) -> Self {
        Self::new(state, self.epoch.wrapping_add(1))
    }

    pub(super) const fn pack(self) -> u64 {
        (self.state as u64) << 61
            | (self.stage as u64) << 59
            | (self.epoch as u64) << 32
            | (self.issued as u64) << 16
            | self.done as u64
    }

    /// Whether a packed word is that of the closed state of this epoch; the counts of probes are nobody's business there.
    #[inline(always)]
    pub(super) const fn is_closed_in(word: u64, epoch: u32) -> bool {
        word >> 32 == epoch as u64
    }

    pub(super) const fn unpack(word: u64) -> Self {
        let state = match word >> 61 {
            0 => State::Closed,
            1 => State::Open,
            2 => State::HalfOpen,
            3 => State::Disabled,
            4 => State::ForcedOpen,
            _ => State::MetricsOnly,
        };
        Self {
            state,
            stage: (word >> 59) as u8 & 3,
            epoch: (word >> 32) as u32 & EPOCH,
            issued: (word >> 16) as u16,
            done: word as u16,
        }
    }
}

/// The shares of the traffic that have to go well, after the probes, before all of it passes: one call in so many.
pub(super) const RAMP: [u32; 3] = [100, 10, 2];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_holds_all_of_it() {
        for state in State::ALL {
            let control = Control { state, stage: 3, epoch: EPOCH, issued: u16::MAX, done: 7 };
            assert_eq!(Control::unpack(control.pack()), control);
            assert_eq!(control.next(State::Open), Control::new(State::Open, 0), "the epoch goes round");
            assert!(!Control::is_closed_in(control.pack(), EPOCH), "stage 3 is not closed");
            let plain = Control { issued: 1, done: 2, ..Control::new(state, 5) }.pack();
            assert_eq!(Control::is_closed_in(plain, 5), state == State::Closed);
            assert!(!Control::is_closed_in(plain, 4));
        }
    }
}
