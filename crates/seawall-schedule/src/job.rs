//! A scheduled job: what is to be done, when, and what happens when things go wrong.

use jiff::Timestamp;
use schemars::JsonSchema;
use seawall_types::{Call, Period};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::when::{When, WhenError};

/// The most slots that are caught up at once.
pub const MAX_CATCH_UP: u32 = 1000;
/// The largest body of a call, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// How late a slot may be and is still in time under [`CatchUp::Skip`].
pub const GRACE: Period = Period::secs(60);

/// What is done about times that have passed without a run: nobody led, or the run before was still going.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// Nothing; only a time that has passed within the last minute is still run.
    Skip,
    /// The latest of them is run, once.
    #[default]
    Latest,
    /// All of them are run, the oldest first, as far as `catch_up_max` and `catch_up_age` allow.
    All,
}

/// What happens when it is time for a run and the one before is still going.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It is waited for; then `catch_up` decides about the times that have passed.
    #[default]
    Forbid,
    /// Both go on, at most 16 of a job at once.
    Allow,
    /// The one before is given up, and recorded as failed; what it has called may go on.
    Replace,
}

/// What becomes of a run of which it is not known whether it was done: its leader died, or its call was not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// It is started again, under the same idempotency key: done at least once.
    #[default]
    Rerun,
    /// It is recorded as unknown and not started again: done at most once.
    Fail,
}

/// A job as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobConfig {
    /// When: a cron expression (`0 3 * * *`), `every 15m`, or `at 2026-12-24T18:00:00Z`.
    pub when: String,
    /// The time zone of a cron expression. Default UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What to call: `POST order/reports`. A program that brings its own work needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<Call>,
    /// The body of the call. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// What is done about times that have passed: `skip`, `latest`, `all`. Default latest.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// How many times `all` catches up at most, the latest ones; 1 to 1000. Default 100.
    #[serde(default = "catch_up_max")]
    #[schemars(range(min = 1, max = 1000))]
    pub catch_up_max: u32,
    /// Times that have passed longer ago are not caught up. Default no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch_up_age: Option<Period>,
    /// What happens when the run before is still going: `forbid`, `allow`, `replace`. Default forbid.
    #[serde(default)]
    pub overlap: Overlap,
    /// What becomes of a run that may have been done or not: `rerun`, `fail`. Default rerun.
    #[serde(default)]
    pub on_unknown: OnUnknown,
    /// How long a run may take, all its attempts together; 100ms to 24h. Default 5m.
    #[serde(default = "deadline")]
    pub deadline: Period,
    /// An alarm is raised when no run has succeeded for so long; 1s at least. Default no alarm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alarm_after: Option<Period>,
}

const fn catch_up_max() -> u32 {
    100
}

const fn deadline() -> Period {
    Period::secs(300)
}

impl JobConfig {
    /// The defaults.
    pub fn new(when: impl Into<String>) -> Self {
        Self {
            when: when.into(),
            zone: None,
            call: None,
            body: None,
            catch_up: CatchUp::default(),
            catch_up_max: catch_up_max(),
            catch_up_age: None,
            overlap: Overlap::default(),
            on_unknown: OnUnknown::default(),
            deadline: deadline(),
            alarm_after: None,
        }
    }
}

/// What is wrong with a job, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct JobError {
    /// The field.
    pub field: &'static str,
    /// What is wrong and what to do.
    pub what: String,
}

/// A job that holds together.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// As it is written.
    pub config: JobConfig,
    /// When.
    pub when: When,
}

impl Job {
    /// Checks a job.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn try_new(config: JobConfig) -> Result<Self, Vec<JobError>> {
        let mut errors = Vec::new();
        let when = When::parse(&config.when, config.zone.as_deref());
        let mut error = |field, what: String| errors.push(JobError { field, what });
        if let Err(wrong) = &when {
            let field = if matches!(wrong, WhenError::Zone(_) | WhenError::UselessZone) { "zone" } else { "when" };
            error(field, wrong.to_string());
        }
        if config.catch_up_max == 0 || config.catch_up_max > MAX_CATCH_UP {
            error("catch_up_max", format!("`catch_up_max` is {}, allowed is 1 to {MAX_CATCH_UP}", config.catch_up_max));
        }
        if config.deadline < Period::millis(100) || config.deadline > Period::secs(86_400) {
            error("deadline", format!("`deadline` is {}, allowed is 100ms to 24h", config.deadline));
        }
        if let Some(after) = config.alarm_after.filter(|after| *after < Period::secs(1)) {
            error("alarm_after", format!("`alarm_after` is {after}, allowed is 1s or more"));
        }
        if config.catch_up == CatchUp::Skip && config.catch_up_age.is_some() {
            error("catch_up_age", "`catch_up: skip` catches nothing up: leave `catch_up_age` out".into());
        }
        let body = config.body.as_ref().map_or(0, |body| body.to_string().len());
        if body > MAX_BODY {
            error("body", format!("a body of {body} bytes: at most {MAX_BODY} are allowed"));
        }
        if config.body.is_some() && config.call.is_none() {
            error("body", "there is no `call` that it could be the body of".into());
        }
        match when {
            Ok(when) if errors.is_empty() => Ok(Self { config, when }),
            _ => Err(errors),
        }
    }
}

/// What is to be started now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The times that are to be run, in order.
    pub slots: Vec<Timestamp>,
    /// How many others have passed and are not run; of more than a thousand not all are counted.
    pub skipped: usize,
}

/// What is to be started at `now`, when everything up to and including `last` has been decided. Everything up to `now` is
/// decided by it. A clock that was set back makes nothing due twice: `last` does not go back.
pub fn due(job: &Job, last: Timestamp, now: Timestamp) -> Due {
    let config = &job.config;
    let mut slots = job.when.latest(last, now, MAX_CATCH_UP as usize + 1);
    let passed = slots.len();
    let (most, age) = match config.catch_up {
        CatchUp::Skip => (1, Some(GRACE)),
        CatchUp::Latest => (1, config.catch_up_age),
        CatchUp::All => (config.catch_up_max as usize, config.catch_up_age),
    };
    slots.drain(..passed.saturating_sub(most));
    if let Some(age) = age {
        let oldest = now.as_millisecond().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        slots.retain(|slot| slot.as_millisecond() >= oldest);
    }
    Due { skipped: passed - slots.len(), slots }
}

#[cfg(test)]
mod tests;
