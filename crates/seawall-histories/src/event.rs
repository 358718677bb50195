//! What is recorded: one line of JSON for each thing that a process did or learned, in the order in which it did.

use std::fmt;
use std::io::{BufRead, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment, in nanoseconds of a clock that all processes of a history share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// So long after the clock's beginning.
    pub fn after(since: Duration) -> Self {
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// So much later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(Self::after(duration).0))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} s", self.0 / 1_000_000_000, self.0 / 1_000 % 1_000_000)
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Moment,
    /// Whose; a process that was started again is another one.
    pub process: String,
    /// Which lock, or which election.
    pub lock: String,
    /// Which of the process's attempts at locks; each has a number of its own.
    pub attempt: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What a process did or learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    /// It begins to ask for the lock.
    Asks,
    /// It has the lock.
    Acquired {
        /// The fencing token, where there is one.
        fence: Option<u64>,
        /// When it will stop to believe so, if it hears nothing more.
        until: Moment,
    },
    /// It has not got the lock, and gives up.
    Failed {
        /// Why.
        why: String,
    },
    /// It has looked, and still believes that it has the lock.
    Sure {
        /// As in `Acquired`.
        until: Moment,
    },
    /// It knows that it has lost the lock.
    Lost {
        /// Why.
        why: String,
    },
    /// It begins to give the lock back, or to hand it over. From here on it does not count on it.
    Releases,
    /// The lock was given back.
    Released {
        /// Whether it was still held until then.
        held: bool,
    },
    /// An operator took the lock away from its holder, who is told no sooner than others may have it. The event's moment is
    /// the answer's.
    Forced {
        /// When the operator began.
        since: Moment,
        /// The holder's token.
        fence: u64,
    },
}

/// Where events go; clones write to the same place.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Sink>>);

enum Sink {
    Memory(Vec<Event>),
    Lines(Box<dyn Write + Send>),
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// Keeps them.
    pub fn memory() -> Self {
        Self(Arc::new(Mutex::new(Sink::Memory(Vec::new()))))
    }

    /// Writes each as a line, at once: what a killed process has done is there.
    pub fn lines(to: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Sink::Lines(Box::new(to)))))
    }

    /// Records one.
    ///
    /// # Panics
    /// When it cannot be written: a history with holes is none.
    pub fn record(&self, event: Event) {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Sink::Memory(events) => events.push(event),
            Sink::Lines(to) => {
                let mut line = serde_json::to_vec(&event).expect("plain data");
                line.push(b'\n');
                // In one write, so that no line is half there when the process is killed.
                to.write_all(&line).and_then(|()| to.flush()).expect("the history can be written");
            }
        }
    }

    /// What was kept; nothing when it was written.
    pub fn take(&self) -> Vec<Event> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Sink::Memory(events) => std::mem::take(events),
            Sink::Lines(_) => Vec::new(),
        }
    }
}

/// Reads lines of JSON. A last line without an end is left out: its process was killed while it wrote.
///
/// # Errors
/// A sentence that names the line.
pub fn read<T: for<'de> Deserialize<'de>>(mut from: impl BufRead) -> Result<Vec<T>, String> {
    let (mut all, mut line) = (Vec::new(), String::new());
    loop {
        line.clear();
        let number = all.len() + 1;
        from.read_line(&mut line).map_err(|error| format!("line {number}: {error}"))?;
        if !line.ends_with('\n') {
            return Ok(all);
        }
        all.push(serde_json::from_str(&line).map_err(|error| format!("line {number}: {error}: {line}"))?);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back_and_half_a_line_is_none() {
        let event = |what| Event { at: Moment(1_500_000_000), process: "a".into(), lock: "l".into(), attempt: 3, what };
        let events = [
            event(What::Asks),
            event(What::Acquired { fence: Some(7), until: Moment(9) }),
            event(What::Forced { since: Moment(2), fence: 7 }),
            event(What::Released { held: true }),
        ];
        let mut text = String::new();
        for event in &events {
            text += &serde_json::to_string(event).unwrap();
            text.push('\n');
        }
        assert!(text.starts_with(r#"{"at":1500000000,"process":"a","lock":"l","attempt":3,"what":"asks"}"#), "{text}");
        text += r#"{"at":15"#;
        assert_eq!(read::<Event>(text.as_bytes()).unwrap(), events);
        assert!(read::<Event>(&b"{}\n"[..]).unwrap_err().starts_with("line 1: missing field"));
        assert_eq!(Moment(1_500_000_000).to_string(), "1.500000 s");
    }
}
