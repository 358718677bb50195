//! One run of a job: its name, its record in the store, and how its work can end.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use seawall_coord::Fence;
use seawall_types::ServiceName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::job::JobConfig;

/// The longest text that says why a run failed, in bytes; what is longer is cut.
const MAX_WHY: usize = 1000;

/// Names a run of a job: the time that it is for, or at which it was ordered by hand. As text the milliseconds since 1970, in
/// 13 digits, and `-hand` behind those that were ordered by hand; so texts are in the order of the times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId {
    /// The time.
    pub slot: Timestamp,
    /// Whether somebody has ordered it.
    pub by_hand: bool,
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hand = if self.by_hand { "-hand" } else { "" };
        write!(f, "{:013}{hand}", self.slot.as_millisecond())
    }
}

impl FromStr for RunId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, by_hand) = match text.strip_suffix("-hand") {
            Some(digits) => (digits, true),
            None => (text, false),
        };
        let digits = Some(digits).filter(|digits| digits.len() == 13 && digits.bytes().all(|b| b.is_ascii_digit()));
        let slot = digits.and_then(|digits| Timestamp::from_millisecond(digits.parse().ok()?).ok());
        let wrong = || "this names no run; one is named like `1764043200000` or `1764043200000-hand`".to_owned();
        Ok(Self { slot: slot.ok_or_else(wrong)?, by_hand })
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Ordered by hand, not yet started.
    Ordered,
    /// A leader has claimed it, and works at it or has died.
    Started,
    /// It was done.
    Done,
    /// It was refused, or given up.
    Failed,
    /// It may have been done or not, and is not started again.
    Unknown,
}

impl State {
    /// Whether nothing more happens to it.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Unknown)
    }

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Started => "started",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// A run as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// How far it has come.
    pub state: State,
    /// The term of the leader that claimed it last; none before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Fence>,
    /// Who that was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub leader: String,
    /// How many leaders have started it.
    #[serde(default)]
    pub starts: u32,
    /// When it was claimed first, by that leader's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Record {
    /// One that was ordered by hand.
    pub(crate) fn ordered() -> Self {
        let (term, leader) = (None, String::new());
        Self { state: State::Ordered, term, leader, starts: 0, started: None, ended: None, error: None }
    }

    pub(crate) fn ended(&self, state: State, error: Option<String>, now: Timestamp) -> Self {
        Self { state, ended: Some(now), error: error.map(|error| cut(&error)), ..self.clone() }
    }
}

fn cut(text: &str) -> String {
    let end = (0..=MAX_WHY.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}

/// A run with its name, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// Names it.
    pub id: RunId,
    /// The time that it is for.
    pub slot: Timestamp,
    /// Its record.
    #[serde(flatten)]
    pub record: Record,
}

/// A run that is to be done now.
#[derive(Clone, Debug)]
pub struct Run {
    /// The job.
    pub job: ServiceName,
    /// What the job says.
    pub config: JobConfig,
    /// Which run of it.
    pub id: RunId,
    /// The leader's term: larger than that of every leader before. Send it along, and let the resource refuse a smaller one
    /// than the largest that it has seen.
    pub fence: Fence,
    /// How often it is tried by this leader, this time included.
    pub attempt: u32,
    /// How much time it has.
    pub left: Duration,
}

impl Run {
    /// By which a repetition is recognised: `cron/<job>/<run>`, the same for all attempts and leaders.
    pub fn key(&self) -> String {
        format!("cron/{}/{}", self.job, self.id)
    }
}

/// How an attempt has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It is refused for good.
    Failed(String),
    /// Nothing was done; trying again may help, and is done until the run's deadline.
    NotDone(String),
    /// It may have been done or not. Tried again under [`OnUnknown::Rerun`](crate::OnUnknown::Rerun) alone.
    Unknown(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_named_in_order_and_read_back() {
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        let ids = [(0, false), (999, false), (1_764_043_200_000, false), (1_764_043_200_000, true)];
        let ids = ids.map(|(ms, by_hand)| RunId { slot: at(ms), by_hand });
        let texts = ids.map(|id| id.to_string());
        assert!(texts.is_sorted(), "{texts:?}");
        assert_eq!(texts.clone().map(|text| text.parse::<RunId>().unwrap()), ids);
        for bad in ["", "1", "1764043200000-foot", "176404320000a", "+764043200000", "17640432000000"] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn long_reasons_are_cut_between_letters() {
        assert_eq!(cut(&"ä".repeat(900)).len(), 1000);
        assert_eq!(cut(&format!("a{}", "ä".repeat(900))).len(), 999);
        assert_eq!(cut("short"), "short");
    }
}
