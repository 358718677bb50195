//! When something is to happen: a cron expression in a time zone, every so often, or once. Purely a matter of the calendar.
//!
//! Where a zone's clocks go forward, a job for a fixed time that does not exist then runs right after the gap; one for "every"
//! hour or minute leaves the gap out. Where they go back, a fixed time runs once, at its first coming, and "every" hour or
//! minute runs in both. These are Vixie cron's rules; the search is croner's.

use std::fmt;
use std::str::FromStr;

use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use seawall_types::Period;

/// The shortest time between two runs.
const MIN_PERIOD: Period = Period::millis(100);
/// Longer texts are no times.
const MAX_TEXT: usize = 200;

/// When something is to happen. Times are whole milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub enum When {
    /// At the times of a cron expression.
    Cron(Cron),
    /// Every so often: at `anchor` and whole multiples of `period` before and after it.
    Every {
        /// At least 100 ms.
        period: Period,
        /// One of the times. Default 1970-01-01T00:00:00Z.
        anchor: Timestamp,
    },
    /// Once.
    At(Timestamp),
}

/// A cron expression in a time zone.
#[derive(Clone, Debug)]
pub struct Cron {
    expr: String,
    zone: TimeZone,
    parsed: Box<croner::Cron>,
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.expr == other.expr && self.zone == other.zone
    }
}

/// A text that says no time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    /// Nothing of the kind.
    #[error(
        "`{text}` is no time: {why}. Write a cron expression (`0 3 * * *`: minute, hour, day, month, day of the week), \
         `every 15m`, `every 24h from 2026-01-01T06:00:00Z`, or `at 2026-12-24T18:00:00Z`"
    )]
    Text {
        /// What was given, shortened.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A time zone that is not known.
    #[error("`{0}` is no time zone: write one as `Europe/Berlin`, `America/New_York` or `UTC`")]
    Zone(String),
    /// A zone where it makes no difference.
    #[error("a time zone goes with a cron expression alone; here it has no effect")]
    UselessZone,
    /// It would never happen.
    #[error("`{0}` never comes: there is no such day")]
    Never(String),
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

impl When {
    /// Reads `0 3 * * *` (five fields, or six with seconds in front, or `@daily`), `every 15m`, `every 24h from <time>`, or
    /// `at <time>`; a time is RFC 3339. `zone` is for cron expressions, UTC without one.
    ///
    /// # Errors
    /// [`WhenError`].
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, WhenError> {
        let wrong = |why: String| WhenError::Text { text: short(text), why };
        let trimmed = text.trim();
        if trimmed.is_empty() || text.len() > MAX_TEXT {
            return Err(wrong(format!("it has {} bytes, allowed are 1 to {MAX_TEXT}", text.len())));
        }
        let when = match trimmed.split_once(char::is_whitespace) {
            Some(("every", rest)) => {
                let (period, anchor) = match rest.split_once(" from ") {
                    Some((period, anchor)) => (period, time(anchor).map_err(wrong)?),
                    None => (rest, Timestamp::UNIX_EPOCH),
                };
                let period = Period::from_str(period.trim()).map_err(wrong)?;
                if period < MIN_PERIOD || !period.subsec_nanos().is_multiple_of(1_000_000) {
                    return Err(wrong(format!("a period is a whole number of milliseconds, {MIN_PERIOD} at least")));
                }
                Self::Every { period, anchor }
            }
            Some(("at", rest)) => Self::At(time(rest).map_err(wrong)?),
            _ => return Ok(Self::Cron(Cron::parse(trimmed, zone.unwrap_or("UTC"))?)),
        };
        if zone.is_some() { Err(WhenError::UselessZone) } else { Ok(when) }
    }

    /// The first time after `after`; none when there is none.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron(cron) => cron.next(after),
            Self::Every { period, anchor } => {
                let (period, anchor) = (millis(*period), anchor.as_millisecond());
                let since = after.as_millisecond().checked_sub(anchor)?;
                let next = since.div_euclid(period).checked_add(1)?.checked_mul(period)?.checked_add(anchor)?;
                Timestamp::from_millisecond(next).ok()
            }
            Self::At(at) => (*at > after).then_some(*at),
        }
    }

    /// The times after `after`, up to and including `until`, in order; of more than `most` the latest `most`.
    pub fn latest(&self, after: Timestamp, until: Timestamp, most: usize) -> Vec<Timestamp> {
        let mut times = Vec::new();
        match self {
            Self::Cron(cron) => {
                // The second after `until`: times of a cron expression are whole seconds.
                let mut before = Timestamp::from_second(until.as_second().saturating_add(1)).ok();
                while times.len() < most
                    && let Some(time) = before.and_then(|before| cron.previous(before)).filter(|time| *time > after)
                {
                    times.push(time);
                    before = Some(time);
                }
                times.reverse();
            }
            Self::Every { period, .. } => {
                // No more than `most` periods back.
                let most = i64::try_from(most).unwrap_or(i64::MAX);
                let from = until.as_millisecond().saturating_sub(most.saturating_mul(millis(*period)));
                let mut at = Timestamp::from_millisecond(from).map_or(after, |from| from.max(after));
                while let Some(time) = self.next(at).filter(|time| *time <= until) {
                    times.push(time);
                    at = time;
                }
            }
            Self::At(at) => times.extend((most > 0 && *at > after && *at <= until).then_some(*at)),
        }
        times
    }

    /// The name of the time zone; none where there is none.
    pub fn zone(&self) -> Option<&str> {
        match self {
            Self::Cron(cron) => cron.zone.iana_name(),
            Self::Every { .. } | Self::At(_) => None,
        }
    }
}

/// As [`When::parse`] reads it, without the zone.
impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cron(cron) => f.write_str(&cron.expr),
            Self::Every { period, anchor } if *anchor == Timestamp::UNIX_EPOCH => write!(f, "every {period}"),
            Self::Every { period, anchor } => write!(f, "every {period} from {anchor}"),
            Self::At(at) => write!(f, "at {at}"),
        }
    }
}

fn millis(period: Period) -> i64 {
    i64::try_from(period.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// A time since 1970, to the millisecond.
fn time(text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    let time: Timestamp = text.parse().map_err(|_| format!("`{}` is not like 2026-12-24T18:00:00Z", short(text)))?;
    match Timestamp::from_millisecond(time.as_millisecond()) {
        Ok(time) if time >= Timestamp::UNIX_EPOCH => Ok(time),
        _ => Err(format!("`{}` is before 1970", short(text))),
    }
}

impl Cron {
    fn parse(expr: &str, zone: &str) -> Result<Self, WhenError> {
        let wrong = |why: String| WhenError::Text { text: short(expr), why };
        let fields = expr.split_whitespace().count();
        if !expr.starts_with('@') && fields != 5 && fields != 6 {
            return Err(wrong(format!("a cron expression has 5 or 6 fields, this has {fields}")));
        }
        let zone = TimeZone::get(zone).map_err(|_| WhenError::Zone(short(zone)))?;
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let parsed =
            parser.parse(expr).map_err(|error| wrong(error.to_string().trim_end_matches('.').to_lowercase()))?;
        let cron = Self { expr: expr.to_owned(), zone, parsed: Box::new(parsed) };
        // From a fixed time, so that the same text is always read alike; a leap day is found from anywhere.
        if cron.next(Timestamp::UNIX_EPOCH).is_none() {
            return Err(WhenError::Never(short(expr)));
        }
        Ok(cron)
    }

    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let next = self.parsed.find_next_occurrence(&after.to_zoned(self.zone.clone()), false).ok()?;
        Some(next.timestamp())
    }

    fn previous(&self, before: Timestamp) -> Option<Timestamp> {
        let previous = self.parsed.find_previous_occurrence(&before.to_zoned(self.zone.clone()), false).ok()?;
        Some(previous.timestamp())
    }
}

#[cfg(test)]
mod tests;
