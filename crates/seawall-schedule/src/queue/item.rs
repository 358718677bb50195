//! A job of a queue: its key, its places, its record.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use seawall_types::ServiceName;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The longest key of a job, in bytes.
const MAX_ID: usize = 128;

/// Names a job in its queue: 1 to 128 bytes of printable ASCII without `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ItemId(Arc<str>);

impl ItemId {
    /// One that nobody else has.
    pub fn random() -> Self {
        Self(seawall_coord::Token::random().to_string().into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ItemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ItemId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_ID {
            return Err(format!("a job's key of {} bytes: 1 to {MAX_ID} are allowed", text.len()));
        }
        match text.chars().find(|c| !c.is_ascii_graphic() || *c == '/') {
            Some(c) => Err(format!("a job's key with {c:?}: printable ASCII without `/` and blanks is allowed")),
            None => Ok(Self(text.into())),
        }
    }
}

impl<'de> Deserialize<'de> for ItemId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// It waits for somebody who does it.
    Pending,
    /// Somebody has claimed it; or it has failed and is pending again in a while.
    Running,
    /// It was done.
    Done,
    /// It has failed too often, or for good; somebody has to look at it.
    Parked,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Running, Self::Done, Self::Parked];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Parked => "parked",
        }
    }

    /// In which its jobs of all queues are.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Pending => "queue/p/",
            Self::Running => "queue/r/",
            Self::Done => "queue/d/",
            Self::Parked => "queue/f/",
        }
    }

    pub(super) fn directory(self, queue: &ServiceName) -> String {
        format!("{}{queue}/", self.prefix())
    }

    pub(super) fn key(self, queue: &ServiceName, id: &ItemId) -> String {
        format!("{}{queue}/{id}", self.prefix())
    }
}

/// In which claims are.
pub(super) const CLAIMS: &str = "queue/c/";

pub(super) fn claim_key(queue: &ServiceName, id: &ItemId) -> String {
    format!("{CLAIMS}{queue}/{id}")
}

/// The job that a key is about, if it is one of these.
pub(super) fn parse(key: &str) -> Option<(Place, ServiceName, ItemId)> {
    let place = Place::ALL.into_iter().find(|place| key.starts_with(place.prefix()))?;
    let (queue, id) = key.strip_prefix(place.prefix())?.split_once('/')?;
    Some((place, ServiceName::try_new(queue).ok()?, id.parse().ok()?))
}

/// A job as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// What is to be done; null once it is done.
    pub data: Value,
    /// How often it was claimed.
    pub attempts: u32,
    /// How often it is tried before it is parked.
    pub max_attempts: u32,
    /// When it was put.
    pub put: Timestamp,
    /// Who has claimed it last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub worker: String,
    /// When that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it was done or parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// When it is pending again, if it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Timestamp>,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// The claim under which it was ended or failed last; its holder's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) claim: Option<String>,
}

impl Item {
    pub(super) fn new(data: Value, max_attempts: u32, now: Timestamp) -> Self {
        Self {
            data,
            attempts: 0,
            max_attempts,
            put: now,
            worker: String::new(),
            started: None,
            ended: None,
            resume: None,
            error: None,
            result: None,
            claim: None,
        }
    }

    pub(super) fn shown(self, id: ItemId, state: Place) -> ItemView {
        ItemView { id, state, item: Self { claim: None, ..self } }
    }
}

/// A job as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemView {
    /// Names it.
    pub id: ItemId,
    /// Where it is.
    pub state: Place,
    /// Its record.
    #[serde(flatten)]
    pub item: Item,
}
