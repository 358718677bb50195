//! Tokens checked by real resources: SQLite files, a PostgreSQL, files that are written by processes that are killed, and
//! handlers behind a router.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod file;
mod http;
mod postgres;
mod sqlite;

use seawall_fenced::{CheckError, Fence, Stale};

fn fence(number: u64) -> Fence {
    Fence::new(number)
}

fn is_stale<T: std::fmt::Debug, E: std::error::Error>(result: Result<T, CheckError<E>>, seen: u64, given: u64) {
    let error = result.unwrap_err();
    let Some(Stale { seen: s, given: g, .. }) = error.stale() else { panic!("{error}") };
    assert_eq!((s.get(), g.get()), (seen, given), "{error}");
}
