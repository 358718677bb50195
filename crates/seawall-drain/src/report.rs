//! What is still held: names, counts, and the age of the oldest.

use std::fmt;
use std::time::Duration;

/// The guards of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The name that the guards were taken under.
    pub what: &'static str,
    /// How many of them are held.
    pub count: usize,
    /// How long the oldest has been held.
    pub oldest: Duration,
}

/// What was still held, by name. `{}` says `2 requests, 1 stream`; `{:#}` adds ages: `2 requests (oldest 3.2s)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    held: Vec<Held>,
}

impl Report {
    pub(crate) fn new(held: Vec<Held>) -> Self {
        Self { held }
    }

    /// Whether everything had ended.
    pub fn is_clean(&self) -> bool {
        self.held.is_empty()
    }

    /// Each name with what is held under it, in the order of the names.
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// How many guards are held in all.
    pub fn count(&self) -> usize {
        self.held.iter().map(|held| held.count).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return f.write_str("nothing");
        }
        for (at, Held { what, count, oldest }) in self.held.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let plural = if *count == 1 { "" } else { "s" };
            write!(f, "{comma}{count} {what}{plural}")?;
            if f.alternate() {
                write!(f, " (oldest {:.1}s)", oldest.as_secs_f64())?;
            }
        }
        Ok(())
    }
}
