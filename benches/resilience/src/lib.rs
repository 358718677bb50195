//! The policies beside their peers, in one process and in turns: nanoseconds and allocations of a call.
//!
//! `cargo xtask bench resilience` builds this, runs its two programs and prints what they write: lines of JSON, each a
//! [`Line`]. The two are apart because whoever counts allocations makes each of them slower.

pub mod call;
pub mod memory;
pub mod ours;
pub mod peers;
pub mod primitives;
pub mod sampler;
pub mod subject;

use serde::Serialize;
use subject::Subject;

/// What the programs write, one a line.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line<'a> {
    /// One round of one subject.
    Figure {
        /// Which.
        subject: &'a str,
        /// How many threads called the same instance.
        threads: u32,
        /// Median of the round's samples: nanoseconds that a thread needs for a call.
        ns: f64,
        /// How many samples there were.
        samples: usize,
        /// How often a sample was taken again because its thread had lost the core.
        retaken: usize,
        /// How many samples were kept although theirs had, because the cap was reached.
        disturbed: usize,
    },
    /// What a call allocates.
    Allocations {
        /// Which.
        subject: &'a str,
        /// How many allocations.
        count: f64,
        /// How many bytes.
        bytes: f64,
    },
    /// What an instance needs, or a future.
    Size {
        /// Of what.
        of: &'a str,
        /// How many bytes, the heap included.
        bytes: u64,
    },
}

impl Line<'_> {
    /// Writes it.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub fn write(&self) -> anyhow::Result<()> {
        use std::io::Write as _;
        let text = serde_json::to_string(self)?;
        writeln!(std::io::stdout().lock(), "{text}")?;
        Ok(())
    }
}

/// Everything that is measured, in the order of the table.
pub fn subjects() -> Vec<Subject> {
    [primitives::subjects(), ours::subjects(), peers::subjects()].into_iter().flatten().collect()
}

/// A runtime for those that want one; it does not run, it is only there.
///
/// # Errors
/// If the system has nothing left for it.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_time().build()
}
