//! Where jobs and runs are in the store: `cron/job/<job>`, and `cron/run/<job>/<run>`.

use bytes::Bytes;
use jiff::Timestamp;
use seawall_types::ServiceName;
use serde::{Deserialize, Serialize};

use crate::job::JobConfig;
use crate::run::RunId;

pub(crate) const ALL: &str = "cron/";
pub(crate) const JOBS: &str = "cron/job/";
const RUNS: &str = "cron/run/";

/// Where a job comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The HTTP API, the CLI, or a program.
    #[default]
    Api,
    /// The file; it is changed there alone.
    File,
}

/// The value of a job's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) config: JobConfig,
    #[serde(default)]
    pub(crate) source: Source,
    /// Since when it has been for these times: nothing before is due.
    pub(crate) since: Timestamp,
}

/// What a key is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Job(ServiceName),
    Run(ServiceName, RunId),
}

pub(crate) fn job(name: &ServiceName) -> String {
    format!("{JOBS}{name}")
}

/// In which all runs of a job are.
pub(crate) fn runs(name: &ServiceName) -> String {
    format!("{RUNS}{name}/")
}

pub(crate) fn run(name: &ServiceName, id: RunId) -> String {
    format!("{RUNS}{name}/{id}")
}

/// None for what is not ours.
pub(crate) fn parse(key: &str) -> Option<Key> {
    if let Some(name) = key.strip_prefix(JOBS) {
        return Some(Key::Job(ServiceName::try_new(name).ok()?));
    }
    let (name, id) = key.strip_prefix(RUNS)?.split_once('/')?;
    Some(Key::Run(ServiceName::try_new(name).ok()?, id.parse().ok()?))
}

pub(crate) fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("plain data").into()
}
