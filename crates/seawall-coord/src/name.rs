//! Names of locks, elections and owners, and tokens of claims, checked once at the edge.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// The longest name of a lock, in bytes.
pub const MAX_NAME: usize = 255;
/// The longest name of an owner, in bytes.
pub const MAX_OWNER: usize = 128;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or too much.
    #[error("{what} of {length} bytes: 1 to {limit} are allowed")]
    Length {
        /// What it would have named.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The most.
        limit: usize,
    },
    /// A character that it may not hold.
    #[error("{what} with the character {character:?} at byte {at}: `/` and control characters are not allowed")]
    Character {
        /// What it would have named.
        what: &'static str,
        /// The first such character.
        character: char,
        /// Where it stands.
        at: usize,
    },
}

fn checked(what: &'static str, text: &str, limit: usize) -> Result<Arc<str>, NameError> {
    if text.is_empty() || text.len() > limit {
        return Err(NameError::Length { what, length: text.len(), limit });
    }
    match text.char_indices().find(|(_, c)| *c == '/' || c.is_control()) {
        Some((at, character)) => Err(NameError::Character { what, character, at }),
        None => Ok(text.into()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and makes it a name.
            ///
            /// # Errors
            /// [`NameError`] when it is empty, too long, or holds `/` or a control character.
            pub fn try_new(text: &str) -> Result<Self, NameError> {
                checked($what, text, $limit).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
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
    /// Names a lock: 1 to 255 bytes of UTF-8 without `/` and control characters.
    LockName,
    "a lock's name",
    MAX_NAME
);
name!(
    /// Names an election: 1 to 255 bytes of UTF-8 without `/` and control characters. A lock of the same name is another thing.
    ElectionName,
    "an election's name",
    MAX_NAME
);
name!(
    /// Says to people who holds a session: 1 to 128 bytes of UTF-8 without `/` and control characters. Needs not be unique.
    Owner,
    "an owner's name",
    MAX_OWNER
);

/// Before the name of the lock that an election is decided by. No text holds it: `/` is refused.
const ELECTION: &str = "elect/";
/// The same of a latch.
const LATCH: &str = "once/";
/// The same of a barrier.
const BARRIER: &str = "barrier/";

impl LockName {
    /// The lock that an election is decided by: whoever holds it leads. No text names it, so that it is nobody's by mistake.
    pub fn of_election(name: &ElectionName) -> Self {
        Self(format!("{ELECTION}{name}").into())
    }

    /// The lock of whose turn it is to set a latch. No text names it either.
    pub fn of_latch(name: &LockName) -> Self {
        Self(format!("{LATCH}{name}").into())
    }

    /// The name of the latch that this lock belongs to, if it is one of those.
    pub fn latch(&self) -> Option<&str> {
        self.0.strip_prefix(LATCH)
    }

    /// The name of the parties of a barrier, each of which has a claim of its own. No text names it either.
    pub fn of_barrier(name: &LockName) -> Self {
        Self(format!("{BARRIER}{name}").into())
    }

    /// The name of the barrier, if it is one of those.
    pub fn barrier(&self) -> Option<&str> {
        self.0.strip_prefix(BARRIER)
    }

    /// Whether it is a lock that somebody has named, and nothing else that is made of claims.
    pub fn is_plain(&self) -> bool {
        !self.0.contains('/')
    }

    /// One that was written by this crate, an election's included.
    pub(crate) fn deserialize_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of_any(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }

    fn of_any(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix(ELECTION) {
            Some(name) => ElectionName::try_new(name).map(|name| Self::of_election(&name)),
            None => Self::try_new(text),
        }
    }

    /// A lock, or an election's, as a backend has written its name; none of anything else that is made of claims.
    #[cfg(feature = "postgres")]
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        Self::of_any(text).ok()
    }

    /// The name of the election that this lock decides, if it is one of those.
    pub fn election(&self) -> Option<&str> {
        self.0.strip_prefix(ELECTION)
    }
}

/// 128 random bits, chosen by the claimant before it sends anything: by them it recognises its own claim after a lost reply.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u128);

/// A text that is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token has 32 digits of 0-9 and a-f, this one has {length} bytes")]
pub struct TokenError {
    length: usize,
}

impl Token {
    /// A new one, from the operating system's generator.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        // Up to 256 bytes come whole or not at all, and a kernel without the call is older than the clock that we need.
        assert_eq!(filled, Ok(bytes.len()), "the operating system has a generator");
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let valid = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let token = valid.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        token.map(Self).ok_or(TokenError { length: text.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "payment 7", "zahlung-ü", &"x".repeat(255)] {
            assert_eq!(LockName::try_new(good).unwrap().as_str(), good);
        }
        for (bad, says) in [
            ("", "of 0 bytes: 1 to 255"),
            (&*"x".repeat(10_240), "of 10240 bytes: 1 to 255"),
            ("a/b", "character '/' at byte 1"),
            ("ab\0", r"character '\0' at byte 2"),
            ("a\nb", r"character '\n' at byte 1"),
        ] {
            let error = LockName::try_new(bad).unwrap_err().to_string();
            assert!(error.contains(says) && error.len() < 200, "{error}");
        }
        assert!(Owner::try_new(&"x".repeat(129)).is_err());
    }

    #[test]
    fn no_text_names_an_elections_lock() {
        let election = LockName::of_election(&ElectionName::try_new("cron").unwrap());
        assert_eq!((election.election(), LockName::try_new("cron").unwrap().election()), (Some("cron"), None));
        assert!(LockName::try_new(election.as_str()).is_err());
    }

    #[test]
    fn tokens_read_back_and_differ() {
        let token = Token::random();
        assert_eq!(token.to_string().parse(), Ok(token));
        assert_ne!(token, Token::random());
        for bad in ["", "1", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33), "+0000000000000000000000000000001"] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }
}
