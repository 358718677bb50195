//! How requests of one key are counted. Pure: a state of two words, a time, and what it comes to.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use seawall_resilience::rate_limit::Plan;
use serde::{Deserialize, Serialize};

/// The state of one key. Zeroes are those of one that was never seen, but for [`Counter::full`].
pub(super) type State = [u64; 2];

/// What a request is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// Whether it passes.
    pub(super) pass: bool,
    /// How many more would pass at once.
    pub(super) remaining: u64,
    /// When there will be more, or all again; from now.
    pub(super) reset: Duration,
    /// When this one would pass if no other came; from now.
    pub(super) retry_after: Option<Duration>,
}

/// A way of counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counter {
    /// Of the resilience crate: GCRA, and buckets with whole refills.
    Plan(Plan),
    /// This many in a window that slides: what the window before has counted weighs as much as it overlaps with the last
    /// `window` nanoseconds.
    Window { limit: u64, window: u64 },
    /// This many between two marks of the calendar, in UTC.
    Quota(Quota),
}

impl Counter {
    /// The state of a key that was never seen.
    pub(super) fn full(self) -> State {
        match self {
            Self::Plan(plan) => [plan.full(), 0],
            Self::Window { .. } | Self::Quota(_) => [0, 0],
        }
    }

    /// Takes `cost`, if there is so much. `now` is in nanoseconds: since 1970 for a quota, else since the limit began.
    pub(super) fn take(self, state: &mut State, now: u64, cost: u32) -> Decision {
        match self {
            Self::Plan(plan) => {
                let taken = plan.take(state[0], now, cost);
                let pass = taken.wait == 0;
                if pass {
                    state[0] = taken.value;
                }
                Decision {
                    pass,
                    remaining: plan.available(state[0], now).into(),
                    reset: Duration::from_nanos(plan.reset(state[0], now)),
                    retry_after: (taken.wait != Plan::NEVER).then(|| Duration::from_nanos(taken.wait)),
                }
            }
            Self::Window { limit, window } => slide(state, limit, window, now, cost.into()),
            Self::Quota(quota) => quota.take(state, now, cost.into()),
        }
    }
}

/// The state: the number of the window, and the counts of the one before (high) and of itself (low).
fn slide(state: &mut State, limit: u64, window: u64, now: u64, cost: u64) -> Decision {
    let (number, elapsed) = (now / window, now % window);
    let (mut before, mut current) = (state[1] >> 32, state[1] & u64::from(u32::MAX));
    match number - state[0].min(number) {
        0 => {}
        1 => (before, current) = (current, 0),
        _ => (before, current) = (0, 0),
    }
    let wide = |a: u64, b: u64| u128::from(a) * u128::from(b);
    let narrow = |nanos: u128| u64::try_from(nanos).unwrap_or(u64::MAX);
    // In units of one request and one nanosecond.
    let used = wide(before, window - elapsed) + wide(current, window);
    let pass = used + wide(cost, window) <= wide(limit, window);
    let retry_after = if pass {
        Some(0)
    } else if cost > limit {
        None
    } else if current + cost <= limit {
        // When the window before overlaps with no more than what is free.
        Some(
            (window - elapsed).saturating_sub(narrow(wide(limit - cost - current, window) / u128::from(before.max(1)))),
        )
    } else {
        let next = window - narrow(wide(limit - cost, window) / u128::from(current)).min(window);
        Some((window - elapsed).saturating_add(next))
    };
    if pass {
        current += cost;
    }
    *state = [number, before << 32 | current];
    let used = wide(before, window - elapsed) + wide(current, window);
    Decision {
        pass,
        remaining: narrow(wide(limit, window).saturating_sub(used) / u128::from(window)),
        reset: Duration::from_nanos(window - elapsed),
        retry_after: retry_after.map(Duration::from_nanos),
    }
}

/// So many in a minute, hour, day or month of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// How many.
    pub limit: u32,
    /// In which time.
    pub per: Calendar,
}

/// From one mark of the calendar to the next, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calendar {
    /// From second 0.
    Minute,
    /// From minute 0.
    Hour,
    /// From midnight.
    Day,
    /// From midnight of the first.
    Month,
}

const NANOS: u64 = 1_000_000_000;

impl Calendar {
    const ALL: [(&'static str, Self); 4] =
        [("minute", Self::Minute), ("hour", Self::Hour), ("day", Self::Day), ("month", Self::Month)];

    /// Its length in seconds, where that is always the same.
    pub(super) const fn seconds(self) -> Option<u64> {
        match self {
            Self::Minute => Some(60),
            Self::Hour => Some(3600),
            Self::Day => Some(24 * 3600),
            Self::Month => None,
        }
    }

    /// The marks around `second` of the Unix time: at or before it, and after it.
    pub(super) fn around(self, second: u64) -> (u64, u64) {
        if let Some(length) = self.seconds() {
            let from = second - second % length;
            return (from, from + length);
        }
        let unix = i64::try_from(second).unwrap_or(i64::MAX).min(Timestamp::MAX.as_second() - 32 * 24 * 3600);
        let today = Timestamp::from_second(unix).unwrap_or_default().to_zoned(TimeZone::UTC).date();
        let (this, next) = (today.first_of_month(), today.last_of_month().saturating_add(jiff::Span::new().days(1)));
        let second = |date: Date| date.to_zoned(TimeZone::UTC).map_or(0, |zoned| zoned.timestamp().as_second());
        (second(this).unsigned_abs(), second(next).unsigned_abs())
    }
}

impl Quota {
    /// The state: when the time that it counts in began, in seconds, and what has been used.
    fn take(self, state: &mut State, now: u64, cost: u64) -> Decision {
        let (from, to) = self.per.around(now / NANOS);
        // A clock that is put back gives nothing back.
        if from > state[0] {
            *state = [from, 0];
        }
        let limit = u64::from(self.limit);
        let pass = state[1] + cost <= limit;
        if pass {
            state[1] += cost;
        }
        let reset = Duration::from_nanos((to * NANOS).saturating_sub(now));
        Decision {
            pass,
            remaining: limit - state[1].min(limit),
            reset,
            retry_after: if pass { Some(Duration::ZERO) } else { Some(reset).filter(|_| cost <= limit) },
        }
    }
}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, own)| own == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.limit, self.per)
    }
}

impl FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || {
            format!("`{text}` is not a quota such as `1000/day`: a number of 1 or more, and minute, hour, day or month")
        };
        let (limit, per) = text.split_once('/').ok_or_else(shape)?;
        let limit = limit.trim().parse().ok().filter(|limit| *limit > 0).ok_or_else(shape)?;
        let (_, per) = Calendar::ALL.into_iter().find(|(name, _)| *name == per.trim()).ok_or_else(shape)?;
        Ok(Self { limit, per })
    }
}

impl Serialize for Quota {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quota {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Quota {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quota".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+/(minute|hour|day|month)$", "examples": ["1000/day"] })
    }
}

#[cfg(test)]
mod tests;
