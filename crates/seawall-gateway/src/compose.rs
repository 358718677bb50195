//! Composition: one request becomes a graph of calls, and their answers one answer.
//!
//! `config` is what is written, `plan` what it is compiled to, with everything that can be found wrong found then. `run` decides what
//! is next as calls end, and is pure; `filter` makes the calls. Between them stand `template` (what a call is made of) and `shape`
//! (what becomes of its answer).

mod config;
mod filter;
mod plan;
mod run;
mod shape;
mod template;

pub use self::config::{ComposeConfig, OtherConfig, PartConfig};
pub(crate) use self::filter::Compose;
