//! The data plane: what carries a request, used alike by the gateway, the sidecar and the saga runner.
//!
//! Read [`pipeline`] first: it lists the steps of a request in order. Around it stand [`upstream`] (what the snapshot
//! says, as one worker sees it), [`balance`], `pool`, [`headers`], [`filter`] and [`reject`]; [`server`] runs one
//! current-thread runtime per core with a listener and a pool each, and shares nothing on the way of a request but the
//! policies' own counters.

pub mod access;
mod attempt;
pub mod balance;
pub mod body;
pub mod client;
pub mod filter;
mod framing;
pub mod headers;
mod http2;
pub mod metrics;
pub mod pipeline;
mod pool;
pub mod reject;
mod send;
pub mod server;
pub mod status;
pub mod tls;
mod tunnel;
pub mod upstream;

pub use body::{RequestBody, ResponseBody};
pub use client::{Answer, CallError, Client, ReadError};
pub use pipeline::{Asked, Matched, Pipeline, Route, RouteError, Router};
pub use server::{Server, ServerConfig};
pub use upstream::{Protocol, Upstreams};
