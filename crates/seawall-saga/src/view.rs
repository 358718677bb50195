//! What people and programs are shown of a saga.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{Leg, LegEnd, Millis, Saga, Status};
use crate::log::{LogError, Stored};

/// A saga, as `GET /v1/sagas/{id}` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SagaView {
    /// Its id.
    pub id: String,
    /// Its plan's name.
    pub name: String,
    /// The key that the client gave.
    pub key: String,
    /// Where it stands.
    pub status: Status,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// What it was started with.
    pub input: Value,
    /// The first thing that made it turn round, or the last that keeps it waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its steps; empty in a list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepView>,
}

/// One step of a saga.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// What it calls.
    pub call: String,
    /// `waiting`, `calling`, `done`, `refused`.
    pub status: String,
    /// How often it has been called.
    pub attempts: u32,
    /// When the intention to call it became durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intended: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// What the service answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// The last thing that went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its undoing, once it has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Box<StepView>>,
}

fn time(millis: Millis) -> Timestamp {
    i64::try_from(millis).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok()).unwrap_or_default()
}

fn leg(name: &str, call: String, leg: &Leg) -> StepView {
    let (status, finished, output) = match &leg.ended {
        Some((_, LegEnd::Done(output))) => ("done", 1, Some(output.clone()).filter(|output| !output.is_null())),
        Some((_, LegEnd::Refused)) => ("refused", 1, None),
        Some((_, LegEnd::Parked)) => ("parked", 1, None),
        None if leg.intended.is_some() => ("calling", 1, None),
        None => ("waiting", 0, None),
    };
    StepView {
        name: name.to_owned(),
        call,
        status: status.to_owned(),
        attempts: leg.failed + finished,
        intended: leg.intended.map(time),
        ended: leg.ended.as_ref().map(|(at, _)| time(*at)),
        output,
        error: leg.error.clone(),
        undo: None,
    }
}

impl SagaView {
    /// A saga with its steps.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when its log does not fit its plan.
    pub fn of(stored: &Stored) -> Result<Self, LogError> {
        let saga = Saga::replay(stored.id.clone(), stored.plan.clone(), stored.input.clone(), &stored.events);
        let saga = saga.map_err(|what| LogError::Damaged(format!("saga {}: {what}", stored.id)))?;
        let steps = saga.plan.steps.iter().zip(&saga.steps);
        let steps: Vec<_> = steps
            .map(|(config, step)| {
                let mut view = leg(&config.name, config.call.to_string(), &step.forward);
                if let (Some(undo), Some(_)) = (&config.undo, step.undo.intended) {
                    view.undo = Some(Box::new(leg(&config.name, undo.to_string(), &step.undo)));
                }
                view
            })
            .collect();
        let error = saga.steps.iter().find_map(|step| step.forward.error.clone());
        let completed = stored.status == Status::Completed;
        Ok(Self { steps, error: error.filter(|_| !completed), ..Self::summary(stored) })
    }

    /// A saga in a list.
    pub fn summary(stored: &Stored) -> Self {
        Self {
            id: stored.id.clone(),
            name: stored.plan.name.clone(),
            key: stored.key.clone(),
            status: stored.status,
            started: time(stored.started),
            ended: stored.ended.map(time),
            input: stored.input.clone(),
            error: None,
            steps: Vec::new(),
        }
    }
}
