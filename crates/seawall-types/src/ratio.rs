//! A share between 0 and 1, written as `20%` or `0.2`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A share from 0 to 1 inclusive; never NaN.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(f64);

impl Ratio {
    /// A whole number of percent; more than 100 counts as 100.
    pub const fn percent(percent: u8) -> Self {
        Self(if percent > 100 { 1.0 } else { percent as f64 / 100.0 })
    }

    /// The share as a number from 0 to 1, or `None` outside of it.
    pub fn try_new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// From 0 to 1.
    pub const fn get(self) -> f64 {
        self.0
    }

    /// The smallest count out of `of` that is at least this share, at least 1.
    pub fn count_of(self, of: u32) -> u32 {
        // Rounded first so that 0.3 * 10 is 3 and not 3.0000000000000004.
        let exact = (self.0 * f64::from(of) * 1e9).round() / 1e9;
        (exact.ceil() as u32).max(1)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = (self.0 * 1e8).round() / 1e6;
        write!(f, "{percent}%")
    }
}

impl std::str::FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, divisor) = match text.trim().strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text, 1.0),
        };
        number
            .trim()
            .parse::<f64>()
            .ok()
            .and_then(|number| Self::try_new(number / divisor))
            .ok_or_else(|| format!("`{text}` is not a share from `0%` to `100%`"))
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Ratio;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share such as `20%`, or a number from 0 to 1")
            }

            fn visit_f64<E: serde::de::Error>(self, share: f64) -> Result<Ratio, E> {
                Ratio::try_new(share)
                    .ok_or_else(|| E::custom(format!("`{share}` is not from 0 to 1: write `{share}%` for percent")))
            }

            fn visit_u64<E: serde::de::Error>(self, share: u64) -> Result<Ratio, E> {
                self.visit_f64(share as f64)
            }

            fn visit_i64<E: serde::de::Error>(self, share: i64) -> Result<Ratio, E> {
                self.visit_f64(share as f64)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Ratio, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Ratio {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Ratio".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A share: 20% or 0.2.",
            "anyOf": [
                { "type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*%\s*$" },
                { "type": "number", "minimum": 0, "maximum": 1 }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_percent_and_fraction() {
        assert_eq!("20%".parse(), Ok(Ratio::percent(20)));
        assert_eq!("0.2".parse(), Ok(Ratio::percent(20)));
        assert_eq!(Ratio::percent(30).to_string(), "30%");
        for bad in ["120%", "-1%", "NaN", "20", "much"] {
            assert!(bad.parse::<Ratio>().is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_round_up_and_are_never_zero() {
        assert_eq!(Ratio::percent(30).count_of(10), 3);
        assert_eq!(Ratio::percent(50).count_of(5), 3);
        assert_eq!(Ratio::percent(0).count_of(5), 1);
        assert_eq!(Ratio::percent(100).count_of(100), 100);
    }
}
