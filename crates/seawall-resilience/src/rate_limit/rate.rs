//! A rate as people write it: `100/s`, `10/500ms`, `5/m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use seawall_types::Period;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// So many calls in a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    count: u32,
    per: Period,
}

impl Rate {
    /// The most calls in a period.
    pub const MAX_COUNT: u32 = 1_000_000;
    /// The shortest period.
    pub const MIN_PERIOD: Period = Period::millis(1);
    /// The longest period: thirty days.
    pub const MAX_PERIOD: Period = Period::secs(30 * 24 * 3600);

    /// `count` calls per `per`; `None` unless there are 1 to [`Rate::MAX_COUNT`] of them in [`Rate::MIN_PERIOD`] to
    /// [`Rate::MAX_PERIOD`].
    pub fn new(count: u32, per: Period) -> Option<Self> {
        let valid = (1..=Self::MAX_COUNT).contains(&count) && (Self::MIN_PERIOD..=Self::MAX_PERIOD).contains(&per);
        valid.then_some(Self { count, per })
    }

    /// How many calls.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// In which time.
    pub const fn per(self) -> Period {
        self.per
    }

    /// The time for one call, rounded up to the whole nanosecond, so that the rate is never exceeded.
    pub const fn interval(self) -> Duration {
        // Both fit: a period is at most thirty days, which is less than 2^52 nanoseconds.
        let nanos = self.per.get().as_nanos() as u64;
        Duration::from_nanos(nanos.div_ceil(self.count as u64))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = self.per.to_string();
        // `100/s`, as it is usually written, rather than `100/1s`.
        let unit = per.strip_prefix('1').filter(|unit| unit.bytes().all(|b| b.is_ascii_alphabetic()));
        write!(f, "{}/{}", self.count, unit.unwrap_or(&per))
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`{text}` is not a rate such as `100/s`, `10/500ms` or `5/m`");
        let Some((count, per)) = text.split_once('/') else {
            let count = text.trim();
            let number = !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit());
            return Err(if number { format!("`{count}` has no period: write `{count}/s`") } else { shape() });
        };
        let (count, per) = (count.trim(), per.trim());
        if count.is_empty() || !count.bytes().all(|b| b.is_ascii_digit()) || per.is_empty() {
            return Err(shape());
        }
        let period =
            if per.starts_with(|c: char| c.is_ascii_digit()) { per.parse() } else { format!("1{per}").parse() };
        let period: Period = period.map_err(|_| shape())?;
        if !(Self::MIN_PERIOD..=Self::MAX_PERIOD).contains(&period) {
            return Err(format!(
                "the period of `{text}` is {period}, allowed is {} to {}",
                Self::MIN_PERIOD,
                Self::MAX_PERIOD
            ));
        }
        // Digits that do not fit are simply too many.
        count
            .parse()
            .ok()
            .and_then(|count| Self::new(count, period))
            .ok_or_else(|| format!("the count of `{text}` is {count}, allowed is 1 to {}", Self::MAX_COUNT))
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rate such as `100/s`, `10/500ms` or `5/m`")
            }

            fn visit_u64<E: serde::de::Error>(self, count: u64) -> Result<Rate, E> {
                count.to_string().parse().map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, count: i64) -> Result<Rate, E> {
                count.to_string().parse().map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Rate, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "So many calls in a period: 100/s, 10/500ms, 5/m, 1000/h.",
            "examples": ["100/s", "10/500ms", "5/m"],
            "pattern": r"^\s*[0-9]+\s*/\s*([0-9]+(\.[0-9]+)?)?\s*[a-zµ]+(\s*[0-9]+(\.[0-9]+)?\s*[a-zµ]+)*\s*$"
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, count, per) in [
            ("100/s", 100, Period::secs(1)),
            ("10/500ms", 10, Period::millis(500)),
            (" 5 / m ", 5, Period::secs(60)),
            ("1000/h", 1000, Period::secs(3600)),
            ("3/1m 30s", 3, Period::secs(90)),
            ("1/48h", 1, Period::secs(2 * 24 * 3600)),
            ("7/ms", 7, Period::millis(1)),
        ] {
            assert_eq!(text.parse::<Rate>(), Ok(Rate::new(count, per).unwrap()), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, wrong) in [
            ("10", "`10` has no period: write `10/s`"),
            ("fast", "`fast` is not a rate such as `100/s`, `10/500ms` or `5/m`"),
            ("", "`` is not a rate such as `100/s`, `10/500ms` or `5/m`"),
            ("/s", "`/s` is not a rate such as `100/s`, `10/500ms` or `5/m`"),
            ("10/", "`10/` is not a rate such as `100/s`, `10/500ms` or `5/m`"),
            ("10/5", "`10/5` is not a rate such as `100/s`, `10/500ms` or `5/m`"),
            ("-1/s", "`-1/s` is not a rate such as `100/s`, `10/500ms` or `5/m`"),
            ("1.5/s", "`1.5/s` is not a rate such as `100/s`, `10/500ms` or `5/m`"),
            ("1/s/s", "`1/s/s` is not a rate such as `100/s`, `10/500ms` or `5/m`"),
            ("0/s", "the count of `0/s` is 0, allowed is 1 to 1000000"),
            ("99999999999/s", "the count of `99999999999/s` is 99999999999, allowed is 1 to 1000000"),
            ("1/10us", "the period of `1/10us` is 10µs, allowed is 1ms to 720h"),
            ("1/0s", "the period of `1/0s` is 0s, allowed is 1ms to 720h"),
            ("1/744h", "the period of `1/744h` is 744h, allowed is 1ms to 720h"),
        ] {
            assert_eq!(text.parse::<Rate>(), Err(wrong.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_interval_is_never_too_short() {
        assert_eq!("3/s".parse::<Rate>().unwrap().interval(), Duration::from_nanos(333_333_334));
        assert_eq!("100/s".parse::<Rate>().unwrap().interval(), Duration::from_millis(10));
        assert_eq!(Rate::new(Rate::MAX_COUNT, Rate::MIN_PERIOD).unwrap().interval(), Duration::from_nanos(1));
        assert_eq!(Rate::new(0, Rate::MIN_PERIOD), None);
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(count in 1..=Rate::MAX_COUNT, millis in 1u64..100_000_000) {
            let rate = Rate::new(count, Period::millis(millis)).unwrap();
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }
}
