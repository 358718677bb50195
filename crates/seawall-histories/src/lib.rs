//! What processes did to a lock, an election or a register, recorded, and checked afterwards.
//!
//! A test records [`Event`]s, in memory or as JSON lines, by one clock for all processes. The checkers know nothing of how a
//! lock is made; they look at what its holders believed and when:
//!
//! | rule | function | what has to be true |
//! |---|---|---|
//! | C1 | [`overlaps`] | holders do not overlap, each by its own view |
//! | C2 | [`fences`] | who held the lock later had a larger token |
//! | C3 | [`register`] | a register that checks tokens never goes back, and has every acknowledged append once |
//! | C4 | [`linear::check`] | the answers agree with some order of the operations, one at a time |
//! | C5 | [`wake_ups`] | once all is well again, whoever asks is served |
//! | C6 | [`leaders`], [`starts`] | one leader a term, one start a slot |
//!
//! A checker that finds nothing proves nothing about what was not recorded. So each has tables of good and bad histories, and the
//! simulation of locks and elections has mutants that have to be caught.

mod event;
mod hold;
pub mod linear;
mod once;
mod register;
mod seeds;
mod wake_up;

use std::fmt;

pub use event::{Event, Moment, Recorder, What, read};
pub use hold::{Hold, fences, holds, overlaps};
pub use once::{Start, leaders, starts};
pub use register::{Append, Line, Outcome, register};
pub use seeds::{Seeds, each_seed};
pub use wake_up::wake_ups;

/// What has to be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// C1.
    Overlap,
    /// C2.
    FenceOrder,
    /// C3.
    Register,
    /// C4.
    Linearizable,
    /// C5.
    WakeUp,
    /// C6.
    Once,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlap => "C1 holders overlap",
            Self::FenceOrder => "C2 a token does not grow",
            Self::Register => "C3 the register is wrong",
            Self::Linearizable => "C4 not linearizable",
            Self::WakeUp => "C5 never served",
            Self::Once => "C6 twice what happens once",
        })
    }
}

/// Something that was not true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What should have been.
    pub rule: Rule,
    /// Who and when.
    pub what: String,
}

impl Violation {
    /// Of this rule.
    pub fn new(rule: Rule, what: impl Into<String>) -> Self {
        Self { rule, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}
