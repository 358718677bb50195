//! Sessions and locks in PostgreSQL: in tables ([`PgLease`]), or as its advisory locks ([`PgAdvisory`]).

pub(crate) mod advisory;
mod elections;
pub(crate) mod lease;
mod line;
mod listen;
mod oversight;
mod sql;

pub use advisory::{PgAdvisory, PgLine};
pub use lease::{PgLease, PgSession};
