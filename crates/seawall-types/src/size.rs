//! An amount of bytes as people write it: `512 MiB`, `2 GiB`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of bytes, written with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(u64);

const UNITS: [(&str, u32); 5] = [("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

impl Size {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    /// In the largest unit of which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, shift): &&(&str, u32)| self.0.trailing_zeros() >= *shift && self.0 > 0;
        let (unit, shift) = UNITS.iter().rev().find(whole).unwrap_or(&UNITS[0]);
        write!(f, "{} {unit}", self.0 >> shift)
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.trim().find(|c: char| !c.is_ascii_digit()).unwrap_or(text.trim().len());
        let (number, unit) = text.trim().split_at(split);
        let wrong = || format!("`{text}` is not a size such as `512 MiB` or `2 GiB`");
        if unit.is_empty() && !number.is_empty() {
            return Err(format!("`{text}` has no unit: write `{text} MiB` or `{text} GiB`"));
        }
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let (_, shift) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(wrong)?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("`{text}` is too large"))
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size with its unit, such as `512 MiB` or `2 GiB`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A size with its unit: 64 KiB, 512 MiB, 2 GiB.",
            "examples": ["512 MiB", "2 GiB"],
            "pattern": r"^\s*[0-9]+\s*([KMGT]i)?B\s*$"
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_units_and_refuses_what_has_none() {
        assert_eq!("2 GiB".parse(), Ok(Size::bytes(2 << 30)));
        assert_eq!(" 512MiB ".parse(), Ok(Size::bytes(512 << 20)));
        assert_eq!("7 B".parse(), Ok(Size::bytes(7)));
        assert!("5".parse::<Size>().unwrap_err().contains("no unit"));
        for bad in ["", "GiB", "-1 GiB", "1.5 GiB", "1 GB", "99999999999 TiB", "2 GiB 3"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!(Size::bytes(2 << 30).to_string(), "2 GiB");
        assert_eq!(Size::bytes(0).to_string(), "0 B");
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(bytes: u64) {
            let size = Size::bytes(bytes);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
