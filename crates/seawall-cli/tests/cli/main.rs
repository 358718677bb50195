//! The real binary, as a user runs it.

mod config;
mod control;
mod fleet;
mod saga;
mod support;
