//! One request's way through the plan: what is called next as calls end. Pure; whatever the order in which they end, the same
//! answers make the same answer.

use http::{HeaderName, HeaderValue, Method, StatusCode};
use seawall_proxy::reject::Reason;
use serde_json::{Map, Value, json};

use super::plan::{Plan, Source};
use super::shape::Place;
use super::template::{Absent, Context, Known};

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect<'p> {
    /// Make this call for a part.
    Call(usize, Outgoing<'p>),
    /// What the part's call answers is not needed any more.
    Cancel(usize),
}

/// A call, all but its transport.
#[derive(Debug)]
pub(crate) struct Outgoing<'p> {
    pub(crate) source: &'p Source,
    pub(crate) target: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Option<Value>,
}

impl PartialEq for Outgoing<'_> {
    fn eq(&self, other: &Self) -> bool {
        let method = |outgoing: &Self| -> Method { outgoing.source.method.clone() };
        (method(self), &self.source.service, &self.target, &self.headers, &self.body)
            == (method(other), &other.source.service, &other.target, &other.headers, &other.body)
    }
}

/// Why a part has no answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) why: Why,
    /// For people.
    pub(crate) detail: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Why {
    /// The service says no; of a client's mistake also in what words.
    Status(StatusCode, Option<Box<Words>>),
    /// There is no answer of the service's own.
    Rejected(Reason),
    /// The answer broke off.
    Broken,
    /// It is larger than it may be.
    TooLarge,
    /// It is not JSON.
    NotJson,
    /// It is not of the form that is asked for.
    Form,
    /// A part that it needs has failed.
    Needs,
    /// The call cannot be made, because something is not there; the client's doing or not.
    Absent { clients: bool },
}

/// What a service says of a client's mistake.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Words {
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Option<Value>,
}

impl Why {
    /// In one word, for headers and metrics.
    pub(crate) fn word(&self) -> String {
        match self {
            Self::Status(status, ..) => format!("http-{}", status.as_u16()),
            Self::Rejected(reason) => reason.to_string(),
            Self::Broken => "broken".into(),
            Self::TooLarge => "too-large".into(),
            Self::NotJson => "not-json".into(),
            Self::Form => "form".into(),
            Self::Needs => "needs".into(),
            Self::Absent { .. } => "absent".into(),
        }
    }

    /// The status of the whole, where the part is required.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Status(status, ..) if status.is_client_error() || *status == StatusCode::GATEWAY_TIMEOUT => *status,
            Self::Rejected(Reason::Timeout) => StatusCode::GATEWAY_TIMEOUT,
            Self::Absent { clients: true } => StatusCode::BAD_REQUEST,
            _ => StatusCode::BAD_GATEWAY,
        }
    }
}

/// A part that has not answered itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Missing {
    pub(crate) part: usize,
    pub(crate) reason: String,
    pub(crate) instead: Instead,
}

/// What stands in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instead {
    Nothing,
    Default,
    Fallback,
}

impl Instead {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Default => "default",
            Self::Fallback => "fallback",
        }
    }
}

/// How it has ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Answer {
        value: Value,
        missing: Vec<Missing>,
    },
    /// A required part has failed. Of several the one that was first to.
    Failed {
        part: usize,
        failure: Failure,
    },
}

#[derive(Debug)]
enum State {
    Waiting,
    /// Whether it is the fallback that runs.
    Running {
        other: bool,
    },
    Done {
        raw: Value,
        shaped: Value,
    },
    Failed,
    /// Nobody needs it any more.
    Unneeded,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Run<'p> {
    plan: &'p Plan,
    known: Known,
    states: Vec<State>,
    missing: Vec<Option<Missing>>,
    failed: Option<(usize, Failure)>,
}

impl<'p> Run<'p> {
    pub(crate) fn new(plan: &'p Plan, known: Known) -> Self {
        let states = plan.parts.iter().map(|_| State::Waiting).collect();
        Self { plan, known, states, missing: vec![None; plan.parts.len()], failed: None }
    }

    /// The first calls.
    pub(crate) fn begin(&mut self) -> Vec<Effect<'p>> {
        let mut effects = Vec::new();
        self.advance(&mut effects);
        effects
    }

    /// A call has ended; what is to be done now.
    pub(crate) fn settle(&mut self, part: usize, result: Result<Value, Failure>) -> Vec<Effect<'p>> {
        let mut effects = Vec::new();
        let State::Running { other } = self.states[part] else { return effects };
        match result.and_then(|raw| self.shaped(part, raw)) {
            Ok(done) => self.states[part] = done,
            Err(failure) => self.attempt_failed(part, other, failure, &mut effects),
        }
        self.advance(&mut effects);
        effects
    }

    /// How it has ended, once it has.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        if let Some((part, failure)) = &self.failed {
            return Some(Outcome::Failed { part: *part, failure: failure.clone() });
        }
        let mut answer = Map::new();
        for (part, state) in self.plan.parts.iter().zip(&self.states) {
            part.place.prepare(&mut answer);
            match state {
                State::Waiting | State::Running { .. } => return None,
                // That it fits was looked at when it came.
                State::Done { shaped, .. } => part.place.put(shaped.clone(), &mut answer),
                State::Failed | State::Unneeded => {}
            }
        }
        let listed = self.listed();
        let missing: Vec<Missing> =
            self.missing.iter().flatten().filter(|missing| listed[missing.part]).cloned().collect();
        if let Some(field) = &self.plan.partial {
            let list = missing.iter().map(|missing| {
                let name = &self.plan.parts[missing.part].name;
                json!({ "part": name, "reason": missing.reason, "instead": missing.instead.as_str() })
            });
            answer.insert(field.clone(), list.collect());
        }
        Some(Outcome::Answer { value: Value::Object(answer), missing })
    }

    /// Whether the answer lacks anything for a part's sake. One that only serves others counts if one of them has used it: it may
    /// have been ended before it could fail.
    fn listed(&self) -> Vec<bool> {
        let mut listed: Vec<bool> = (0..self.states.len()).map(|part| self.for_itself(part)).collect();
        for part in self.plan.order.iter().rev().copied() {
            let defaulted = self.missing[part].as_ref().is_some_and(|missing| missing.instead == Instead::Default);
            if listed[part] && !defaulted && matches!(self.states[part], State::Done { .. }) {
                self.plan.parts[part].needs.iter().for_each(|need| listed[*need] = true);
            }
        }
        listed
    }

    fn for_itself(&self, part: usize) -> bool {
        let part = &self.plan.parts[part];
        !part.optional || !matches!(part.place, Place::Hidden)
    }

    /// Starts what can be, and ends what nobody needs.
    fn advance(&mut self, effects: &mut Vec<Effect<'p>>) {
        for at in 0..self.plan.order.len() {
            let part = self.plan.order[at];
            if self.failed.is_some() || !matches!(self.states[part], State::Waiting) {
                continue;
            }
            let needs = &self.plan.parts[part].needs;
            let lost = needs.iter().find(|need| matches!(self.states[**need], State::Failed | State::Unneeded));
            if let Some(lost) = lost {
                let detail = format!("it needs `{}`", self.plan.parts[*lost].name);
                // What the fallback needs is as lost.
                self.give_up(part, Failure { why: Why::Needs, detail });
            } else if needs.iter().all(|need| matches!(self.states[*need], State::Done { .. })) {
                self.attempt(part, false, effects);
            }
        }
        self.cancel(effects);
    }

    fn cancel(&mut self, effects: &mut Vec<Effect<'p>>) {
        let mut wanted = vec![false; self.states.len()];
        for part in self.plan.order.iter().rev().copied() {
            let open = matches!(self.states[part], State::Waiting | State::Running { .. });
            if open && self.failed.is_none() && (self.for_itself(part) || wanted[part]) {
                wanted[part] = true;
                self.plan.parts[part].needs.iter().for_each(|need| wanted[*need] = true);
            } else if open {
                if matches!(self.states[part], State::Running { .. }) {
                    effects.push(Effect::Cancel(part));
                }
                self.states[part] = State::Unneeded;
            }
        }
    }

    fn attempt(&mut self, part: usize, other: bool, effects: &mut Vec<Effect<'p>>) {
        let plan = &self.plan.parts[part];
        let source = if other { plan.other.as_ref() } else { Some(&plan.own) };
        let Some(source) = source else { return };
        match self.outgoing(source) {
            Ok(outgoing) => {
                self.states[part] = State::Running { other };
                effects.push(Effect::Call(part, outgoing));
            }
            Err(Absent { what, clients }) => {
                let failure = Failure { why: Why::Absent { clients }, detail: what };
                self.attempt_failed(part, other, failure, effects);
            }
        }
    }

    fn attempt_failed(&mut self, part: usize, other: bool, failure: Failure, effects: &mut Vec<Effect<'p>>) {
        if !other && self.plan.parts[part].other.is_some() {
            self.miss(part, &failure, Instead::Fallback);
            self.attempt(part, true, effects);
        } else {
            self.give_up(part, failure);
        }
    }

    /// The part has no answer of any service's.
    fn give_up(&mut self, part: usize, failure: Failure) {
        let plan = &self.plan.parts[part];
        match &plan.default {
            Some(default) => match self.shaped(part, default.clone()) {
                Ok(done) => {
                    self.states[part] = done;
                    self.miss(part, &failure, Instead::Default);
                }
                // It was looked at when the plan was made.
                Err(failure) => self.failed = Some((part, failure)),
            },
            None if plan.optional => {
                self.states[part] = State::Failed;
                self.miss(part, &failure, Instead::Nothing);
            }
            None => {
                self.states[part] = State::Failed;
                self.failed.get_or_insert((part, failure));
            }
        }
    }

    /// The first reason counts: that of the part's own call.
    fn miss(&mut self, part: usize, failure: &Failure, instead: Instead) {
        let reason = self.missing[part].take().map_or_else(|| failure.why.word(), |missing| missing.reason);
        self.missing[part] = Some(Missing { part, reason, instead });
    }

    fn shaped(&self, part: usize, raw: Value) -> Result<State, Failure> {
        let plan = &self.plan.parts[part];
        let shaped = plan.shape.of(&raw).and_then(|shaped| {
            plan.place.fits(&shaped)?;
            Ok(shaped)
        });
        let shaped = shaped.map_err(|detail| Failure { why: Why::Form, detail })?;
        Ok(State::Done { raw, shaped })
    }

    fn outgoing(&self, source: &'p Source) -> Result<Outgoing<'p>, Absent> {
        let raws = self.states.iter().map(|state| if let State::Done { raw, .. } = state { Some(raw) } else { None });
        let parts: Vec<Option<&Value>> = raws.collect();
        let context = Context { known: &self.known, parts: &parts };
        let target = source.target.fill(&context)?;
        let mut headers = Vec::new();
        for name in &source.pass {
            headers.extend(self.known.headers.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        }
        for (name, text) in &source.headers {
            // What is not there, or no header can hold, is left out.
            let value = text.fill(&context, false).ok().and_then(|text| HeaderValue::try_from(text).ok());
            headers.retain(|(passed, _)| value.is_none() || passed != name);
            headers.extend(value.map(|value| (name.clone(), value)));
        }
        let body = source.body.as_ref().map(|body| body.fill(&context));
        Ok(Outgoing { source, target, headers, body })
    }
}

#[cfg(test)]
mod tests;
