//! What people and machines see of a running Seawall: logs, metrics and trace context.

pub mod logs;
pub mod metrics;
mod trace;

pub use trace::TraceContext;
