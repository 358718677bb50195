//! Names of services and ids of instances, checked once at the edge.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid name: use 1 to {limit} of a-z, 0-9, `-`, `_` or `.`, starting with a letter or digit")]
pub struct NameError {
    text: String,
    limit: usize,
}

fn checked(text: &str, limit: usize) -> Result<Arc<str>, NameError> {
    let first = text.as_bytes().first().copied().unwrap_or(b'-');
    let valid = text.len() <= limit
        && (first.is_ascii_lowercase() || first.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
    if valid { Ok(text.into()) } else { Err(NameError { text: text.chars().take(80).collect(), limit }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $limit:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(#[schemars(with = "String")] Arc<str>);

        impl $name {
            /// Checks `text` and makes it a name.
            ///
            /// # Errors
            /// [`NameError`] when it is empty, too long, or holds another character than lower-case letters,
            /// digits, `-`, `_` and `.`.
            pub fn try_new(text: &str) -> Result<Self, NameError> {
                checked(text, $limit).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::try_new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// The name under which instances of one service are registered and called, at most 63 bytes.
    ServiceName,
    63
);
name!(
    /// Names one instance among those of its service, at most 128 bytes.
    InstanceId,
    128
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["order", "a", "0", "pay-ment_2.eu"] {
            assert_eq!(ServiceName::try_new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "Order", "a/b", "a b", "ö", &"x".repeat(64)] {
            assert!(ServiceName::try_new(bad).is_err(), "{bad}");
        }
    }
}
