//! The engine: pure. What has happened is a list of [`Event`]s; a [`Saga`] is what they add up to; [`Saga::next`] says
//! what to do now, and [`Saga::observe`] turns the outcome of a call into the events to be made durable.
//!
//! ```text
//! begin -> [Started, Intent] -commit-> next() = Call -> outcome -> observe() -> [Done, Intent] -commit-> ... -> Ended
//! ```

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use seawall_types::ServiceName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::{Plan, Scope, StepConfig};

/// Milliseconds since 1970; the log's clock.
pub type Millis = u64;

/// Forward, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The step itself.
    Do,
    /// Its undoing.
    Undo,
}

impl Direction {
    /// The word used in headers and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Do => "do",
            Self::Undo => "undo",
        }
    }
}

/// What a saga's log holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A step is going to be called. Durable before the first byte leaves.
    Intent {
        /// The step.
        step: usize,
        /// Forward, or back.
        direction: Direction,
    },
    /// An attempt was not answered; it will be repeated.
    Failed {
        /// The step.
        step: usize,
        /// Forward, or back.
        direction: Direction,
        /// Whether the service may have done it all the same.
        unknown: bool,
        /// What happened.
        why: String,
    },
    /// The service has done it.
    Done {
        /// The step.
        step: usize,
        /// Forward, or back.
        direction: Direction,
        /// What it answered.
        output: Value,
    },
    /// The service has said no; or the step was repeated for so long that we give up. The saga turns round.
    Refused {
        /// The step.
        step: usize,
        /// Whether the service may have done it all the same.
        unknown: bool,
        /// What happened.
        why: String,
    },
    /// An undo cannot be completed; an operator has to look.
    Parked {
        /// The step.
        step: usize,
        /// What happened.
        why: String,
    },
    /// It is over.
    Ended {
        /// How.
        status: Status,
    },
}

impl Event {
    fn step(&self) -> Option<usize> {
        match self {
            Self::Intent { step, .. }
            | Self::Failed { step, .. }
            | Self::Done { step, .. }
            | Self::Refused { step, .. }
            | Self::Parked { step, .. } => Some(*step),
            Self::Ended { .. } => None,
        }
    }
}

/// Where a saga stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Steps are being done.
    Running,
    /// Steps are being undone.
    Undoing,
    /// All steps are done.
    Completed,
    /// Every step that was done, or may have been, has been undone.
    Undone,
    /// An undo could not be completed; needs attention.
    Parked,
}

impl Status {
    /// Whether nothing more happens by itself.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Undone | Self::Parked)
    }

    /// The word used in the API, the log and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Undoing => "undoing",
            Self::Completed => "completed",
            Self::Undone => "undone",
            Self::Parked => "parked",
        }
    }
}

/// One direction of one step, as far as it has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Leg {
    /// When the intention became durable.
    pub intended: Option<Millis>,
    /// Attempts that were not answered.
    pub failed: u32,
    /// Whether one of them may have been done.
    pub unknown: bool,
    /// When a later runner took it up.
    pub taken_up: Option<Millis>,
    /// When it ended, and how.
    pub ended: Option<(Millis, LegEnd)>,
    /// The last thing that went wrong.
    pub error: Option<String>,
}

/// How a leg ended.
#[derive(Clone, Debug, PartialEq)]
pub enum LegEnd {
    /// Done, with this answer.
    Done(Value),
    /// Refused, or given up.
    Refused,
    /// Parked.
    Parked,
}

/// One step, there and back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The step itself.
    pub forward: Leg,
    /// Its undoing.
    pub undo: Leg,
}

/// A saga: its plan, its input, and what its log adds up to.
#[derive(Clone, Debug, PartialEq)]
pub struct Saga {
    /// Its id.
    pub id: String,
    /// The plan that it began with; a later file does not change it.
    pub plan: Arc<Plan>,
    /// What it was started with.
    pub input: Value,
    /// Where it stands.
    pub status: Status,
    /// Its steps, in the plan's order.
    pub steps: Vec<Step>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Make this call; the intention is durable.
    Call(CallOut),
    /// Nothing: it is over.
    Ended(Status),
}

/// A call to make.
#[derive(Clone, Debug, PartialEq)]
pub struct CallOut {
    /// The step.
    pub step: usize,
    /// Forward, or back.
    pub direction: Direction,
    /// The same for every attempt: `<saga>/<step>`, or `<saga>/<step>/undo`.
    pub key: String,
    /// What to call; `Err` when a reference has no value.
    pub request: Result<Outgoing, String>,
}

/// The request of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// The method.
    pub method: Method,
    /// The service.
    pub service: ServiceName,
    /// The path.
    pub path: String,
    /// The body.
    pub body: Value,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The service has done it, and answered this.
    Done(Value),
    /// The service has definitely not done it, and will not.
    Rejected(String),
    /// The service has never seen it.
    NotSent(String),
    /// Nobody knows.
    Unknown(String),
}

impl Leg {
    /// For how long it has been tried without interruption.
    fn age(&self, now: Millis) -> Duration {
        let since = self.taken_up.max(self.intended).unwrap_or(now);
        Duration::from_millis(now.saturating_sub(since))
    }
}

impl Saga {
    /// A saga at its start, with the events that its log begins with.
    pub fn begin(id: String, plan: Arc<Plan>, input: Value) -> (Self, Vec<Event>) {
        let saga = Self::empty(id, plan, input);
        (saga, vec![Event::Intent { step: 0, direction: Direction::Do }])
    }

    /// A saga as its log tells it.
    ///
    /// # Errors
    /// What is wrong with a log that does not fit the plan, or that leaves nothing to do and does not end.
    pub fn replay(id: String, plan: Arc<Plan>, input: Value, events: &[(Millis, Event)]) -> Result<Self, String> {
        let mut saga = Self::empty(id, plan, input);
        for (number, (at, event)) in events.iter().enumerate() {
            if event.step().is_some_and(|step| step >= saga.steps.len()) {
                return Err(format!("event {number} speaks of a step that the plan does not have"));
            }
            saga.apply(event, *at);
        }
        if !saga.status.is_final() && saga.open().is_none() {
            return Err("the log neither ends nor says what to do next".into());
        }
        Ok(saga)
    }

    /// Goes on after an absence: the step that was under way may have been done, and its patience begins anew, since it
    /// was not the service that was away.
    pub fn take_up(&mut self, now: Millis) {
        if let Some((step, direction)) = self.open() {
            let leg = self.leg(step, direction);
            leg.unknown = true;
            leg.taken_up = Some(now);
        }
    }

    fn empty(id: String, plan: Arc<Plan>, input: Value) -> Self {
        let steps = vec![Step::default(); plan.steps.len()];
        Self { id, plan, input, status: Status::Running, steps }
    }

    /// Takes in an event that is durable.
    pub fn apply(&mut self, event: &Event, at: Millis) {
        match event {
            Event::Intent { step, direction } => {
                let leg = self.leg(*step, *direction);
                leg.intended.get_or_insert(at);
                if *direction == Direction::Undo {
                    self.status = Status::Undoing;
                }
            }
            Event::Failed { step, direction, unknown, why } => {
                let leg = self.leg(*step, *direction);
                leg.failed += 1;
                leg.unknown |= unknown;
                leg.error = Some(why.clone());
            }
            Event::Done { step, direction, output } => {
                self.leg(*step, *direction).ended = Some((at, LegEnd::Done(output.clone())));
            }
            Event::Refused { step, unknown, why } => {
                let leg = self.leg(*step, Direction::Do);
                leg.ended = Some((at, LegEnd::Refused));
                leg.unknown |= unknown;
                leg.error = Some(why.clone());
                self.status = Status::Undoing;
            }
            Event::Parked { step, why } => {
                let leg = self.leg(*step, Direction::Undo);
                leg.ended = Some((at, LegEnd::Parked));
                leg.error = Some(why.clone());
            }
            Event::Ended { status } => self.status = *status,
        }
    }

    fn leg(&mut self, step: usize, direction: Direction) -> &mut Leg {
        let step = &mut self.steps[step];
        match direction {
            Direction::Do => &mut step.forward,
            Direction::Undo => &mut step.undo,
        }
    }

    /// What to do now: the one leg that is intended and has not ended, or nothing.
    pub fn next(&self) -> Next {
        if self.status.is_final() {
            return Next::Ended(self.status);
        }
        let (step, direction) = self.open().expect("replay checks it, and every outcome leads on or ends");
        Next::Call(self.call(step, direction))
    }

    /// The leg that is intended and has not ended.
    fn open(&self) -> Option<(usize, Direction)> {
        let open = |leg: &Leg| leg.intended.is_some() && leg.ended.is_none();
        let legs = self.steps.iter().enumerate();
        let undo = legs.clone().find(|(_, step)| open(&step.undo)).map(|(at, _)| (at, Direction::Undo));
        undo.or_else(|| legs.clone().find(|(_, step)| open(&step.forward)).map(|(at, _)| (at, Direction::Do)))
    }

    fn call(&self, at: usize, direction: Direction) -> CallOut {
        let step = &self.plan.steps[at];
        let key = match direction {
            Direction::Do => format!("{}/{}", self.id, step.name),
            Direction::Undo => format!("{}/{}/undo", self.id, step.name),
        };
        CallOut { step: at, direction, key, request: self.outgoing(step, direction) }
    }

    fn outgoing(&self, step: &StepConfig, direction: Direction) -> Result<Outgoing, String> {
        let mut scope = Scope::new(&self.id, &self.input);
        for (config, state) in self.plan.steps.iter().zip(&self.steps) {
            if let Some((_, LegEnd::Done(output))) = &state.forward.ended {
                scope.add(&config.name, output.clone());
            }
        }
        let (call, body) = match direction {
            Direction::Do => (&step.call, &step.body),
            Direction::Undo => (step.undo.as_ref().ok_or("the step has no undo")?, &step.undo_body),
        };
        Ok(Outgoing {
            method: call.method.clone(),
            service: call.service.clone(),
            path: scope.fill_path(&call.path)?,
            body: body.as_ref().map_or_else(|| Ok(self.input.clone()), |body| scope.fill(body))?,
        })
    }

    /// Turns an outcome into events. They are to be made durable together, then applied.
    pub fn observe(&self, step: usize, direction: Direction, outcome: Outcome, now: Millis) -> Vec<Event> {
        match (direction, outcome) {
            (Direction::Do, Outcome::Done(output)) => {
                let mut events = vec![Event::Done { step, direction, output }];
                events.push(match step + 1 {
                    next if next < self.steps.len() => Event::Intent { step: next, direction: Direction::Do },
                    _ => Event::Ended { status: Status::Completed },
                });
                events
            }
            (Direction::Do, Outcome::Rejected(why)) => self.turn_round(step, false, why),
            (Direction::Do, Outcome::NotSent(why)) => self.repeat_or_turn(step, false, why, now),
            (Direction::Do, Outcome::Unknown(why)) => self.repeat_or_turn(step, true, why, now),
            (Direction::Undo, Outcome::Done(output)) => {
                vec![Event::Done { step, direction, output }, self.undo_before(step)]
            }
            (Direction::Undo, Outcome::Rejected(why)) => self.park(step, why),
            (Direction::Undo, Outcome::NotSent(why)) => self.repeat_or_park(step, false, why, now),
            (Direction::Undo, Outcome::Unknown(why)) => self.repeat_or_park(step, true, why, now),
        }
    }

    fn repeat_or_turn(&self, step: usize, unknown: bool, why: String, now: Millis) -> Vec<Event> {
        if self.steps[step].forward.age(now) < self.plan.steps[step].patience.get() {
            vec![Event::Failed { step, direction: Direction::Do, unknown, why }]
        } else {
            self.turn_round(step, unknown, why)
        }
    }

    fn repeat_or_park(&self, step: usize, unknown: bool, why: String, now: Millis) -> Vec<Event> {
        if self.steps[step].undo.age(now) < self.plan.steps[step].undo_patience.get() {
            vec![Event::Failed { step, direction: Direction::Undo, unknown, why }]
        } else {
            self.park(step, why)
        }
    }

    /// The saga fails at `step`: undo it too if it may have been done, and everything before it.
    fn turn_round(&self, step: usize, unknown: bool, why: String) -> Vec<Event> {
        let doubtful = unknown || self.steps[step].forward.unknown;
        let from = if doubtful { step + 1 } else { step };
        vec![Event::Refused { step, unknown: doubtful, why }, self.undo_before(from)]
    }

    fn park(&self, step: usize, why: String) -> Vec<Event> {
        vec![Event::Parked { step, why }, Event::Ended { status: Status::Parked }]
    }

    /// The next undo below `step`, in reverse; steps that have none are passed over.
    fn undo_before(&self, step: usize) -> Event {
        match (0..step).rev().find(|at| self.plan.steps[*at].undo.is_some()) {
            Some(step) => Event::Intent { step, direction: Direction::Undo },
            None => Event::Ended { status: Status::Undone },
        }
    }

    /// How long to wait before the next attempt of the open leg: doubling from 100 ms to 5 s, with full jitter above a
    /// floor of 20 ms. `random` is uniform in 0..1.
    pub fn pause(&self, step: usize, direction: Direction, random: f64) -> Duration {
        let step = &self.steps[step];
        let failed = match direction {
            Direction::Do => step.forward.failed,
            Direction::Undo => step.undo.failed,
        };
        let most = Duration::from_millis(100 << failed.saturating_sub(1).min(6)).min(Duration::from_secs(5));
        Duration::from_millis(20) + most.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests;
