//! How a shutdown went, and the exit code for it.

use std::fmt;
use std::time::Duration;

use crate::Stop;
use crate::report::Report;

/// How a phase ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing was held any more and every hook had ended.
    Done,
    /// Its own deadline, or that of the whole plan, passed while it was under way.
    Deadline,
    /// The plan's deadline had passed before it began: it was signaled, its hooks were not run.
    Skipped,
    /// The shutdown was cut short during this phase or before it. Hooks that had not begun were not run.
    CutShort,
}

/// A hook that did not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The hook's name.
    pub hook: &'static str,
    /// Its error, or that it panicked and how, or that it was not run.
    pub why: String,
}

/// How a phase went.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PhaseOutcome {
    /// The phase's name.
    pub phase: &'static str,
    /// How it ended.
    pub end: End,
    /// How long it took.
    pub took: Duration,
    /// What was still held, guards as well as hooks; clean when done.
    pub left: Report,
    /// The hooks that failed.
    pub failures: Vec<Failure>,
}

impl PhaseOutcome {
    /// Whether everything had ended, and no hook had failed. A phase that was skipped with nothing to do is clean.
    pub fn is_clean(&self) -> bool {
        self.left.is_clean() && self.failures.is_empty()
    }
}

impl fmt::Display for PhaseOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        write!(f, "{}: ", self.phase)?;
        if !self.left.is_clean() || self.failures.is_empty() {
            write!(f, "{:#} left", self.left)?;
            comma = ", ";
        }
        for Failure { hook, why } in &self.failures {
            write!(f, "{comma}hook `{hook}` {why}")?;
            comma = ", ";
        }
        Ok(())
    }
}

/// How a shutdown went.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "the outcome says what was left, and the exit code"]
pub struct Outcome {
    /// What cut it short, if anything did.
    pub cut_short: Option<Stop>,
    /// How long it took, the lameduck pause included.
    pub took: Duration,
    /// Every phase of the plan, in its order.
    pub phases: Vec<PhaseOutcome>,
}

impl Outcome {
    /// Whether it ran to its end, nothing was left and no hook failed.
    pub fn is_clean(&self) -> bool {
        self.cut_short.is_none() && self.phases.iter().all(PhaseOutcome::is_clean)
    }

    /// The exit code that says how it went:
    ///
    /// | code | |
    /// |---|---|
    /// | 0 | clean |
    /// | 1 | something was left at a deadline, or a hook failed |
    /// | 143, 130 | cut short by a second signal, SIGTERM or SIGINT |
    pub fn exit_code(&self) -> u8 {
        match self.cut_short {
            Some(stop) => stop.exit_code(),
            None => u8::from(!self.is_clean()),
        }
    }

    /// Ends the process with the exit code, at once.
    ///
    /// Returning from `main` instead drops the runtime first, and that waits for tasks that block their thread: a hook
    /// that hangs so, or `spawn_blocking`, would hang the process after all. Nothing is dropped here; do what has to be
    /// done before.
    pub fn exit(self) -> ! {
        std::process::exit(self.exit_code().into())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.took.as_secs_f64();
        match self.cut_short {
            Some(stop) => write!(f, "cut short by {stop} after {took:.1}s")?,
            None if self.is_clean() => return write!(f, "clean after {took:.1}s"),
            None => write!(f, "not clean after {took:.1}s")?,
        }
        self.phases.iter().filter(|phase| !phase.is_clean()).try_for_each(|phase| write!(f, "; {phase}"))
    }
}
