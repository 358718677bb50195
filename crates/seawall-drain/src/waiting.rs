//! "What are we still waiting for?", at any moment.

use std::fmt;
use std::time::Duration;

use crate::report::Report;

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has not begun.
    Running,
    /// Readiness says draining, and everything is still served.
    Lameduck,
    /// This phase.
    Phase(&'static str),
    /// It is over, or its plan was dropped.
    Ended,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Running => "running",
            Stage::Lameduck => "lameduck",
            Stage::Phase(name) => name,
            Stage::Ended => "ended",
        })
    }
}

/// What one phase waits for, or would.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PhaseHeld {
    /// The phase's name.
    pub phase: &'static str,
    /// The guards and running hooks that belong to it.
    pub held: Report,
}

/// A look at a shutdown. `{}` is a line for a log or a status page:
/// `finish requests: 2 requests (oldest 12.3s), 17.7s left, 22.7s in all`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// How far it has come.
    pub stage: Stage,
    /// How long the stage may still take; `None` while running and when ended.
    pub stage_left: Option<Duration>,
    /// How long all of it may still take; `None` while running and when ended.
    pub left: Option<Duration>,
    /// Every phase of the plan in its order, with what is held for it.
    pub phases: Vec<PhaseHeld>,
}

impl Waiting {
    /// What the phase that is under way waits for; `None` outside of phases.
    pub fn held(&self) -> Option<&Report> {
        let current = self.phases.iter().find(|phase| Stage::Phase(phase.phase) == self.stage);
        current.map(|phase| &phase.held)
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.stage)?;
        match self.held() {
            Some(held) => write!(f, "{held:#}")?,
            None => {
                let busy: Vec<_> = self.phases.iter().filter(|phase| !phase.held.is_clean()).collect();
                for (at, PhaseHeld { phase, held }) in busy.iter().enumerate() {
                    let semicolon = if at == 0 { "" } else { "; " };
                    write!(f, "{semicolon}{held:#} of `{phase}`")?;
                }
                if busy.is_empty() {
                    f.write_str("nothing")?;
                }
            }
        }
        if let (Some(stage), Some(all)) = (self.stage_left, self.left) {
            write!(f, ", {:.1}s left, {:.1}s in all", stage.as_secs_f64(), all.as_secs_f64())?;
        }
        Ok(())
    }
}
