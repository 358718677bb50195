//! The real binary, as a user runs it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod auth;
mod backends;
mod client;
mod config;
mod control;
mod credentials;
mod cron;
mod elections;
mod etcd;
mod explain;
mod fenced;
mod filters;
mod fleet;
mod hosts;
mod import;
mod latches;
mod locks;
mod oidc;
mod openapi;
mod orders;
mod policies;
mod queue;
mod reload;
mod routes;
mod saga;
mod shared_locks;
mod store;
mod streams;
mod support;
mod tls;
