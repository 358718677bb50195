//! The vocabulary that every Seawall crate shares: names, calls, instances, snapshots, durations, ratios.
//!
//! Nothing here does I/O, reads a clock or knows a backend. A type lives here once a second crate needs it.

mod call;
mod instance;
mod name;
mod period;
mod ratio;
mod revision;
mod size;
mod snapshot;
mod traffic;

pub use call::Call;
pub use instance::{Instance, Status};
pub use name::{InstanceId, NameError, ServiceName};
pub use period::Period;
pub use ratio::Ratio;
pub use revision::Revision;
pub use size::Size;
pub use snapshot::{Change, Snapshot};
pub use traffic::{Shares, Traffic};

/// Header names that carry Seawall's own words between its hops.
pub mod header {
    /// The time left for the whole request, in whole milliseconds (`1500`). Relative, so clocks need not agree.
    /// Every hop shortens it; none lengthens it.
    pub const TIMEOUT: &str = "seawall-timeout-ms";
    /// Says that Seawall itself answered: `breaker; instance="payment"; retry_after=12; sent=?0`.
    /// `sent=?0` promises that the service never saw the request.
    pub const REJECTED: &str = "seawall-rejected";
    /// How many retries the whole chain of calls that this request belongs to may still make (`2`); `0` forbids them.
    /// Every hop may lower it; none raises it.
    pub const RETRIES_LEFT: &str = "seawall-retries-left";
    /// How much the request matters: `critical`, `high`, `normal` or `low`. Passed on by services as they see fit; a gateway
    /// takes it from nobody but the proxies that it trusts.
    pub const PRIORITY: &str = "seawall-priority";
    /// The key under which a service recognises a repeated request.
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// The fencing token of whoever makes the request: `payment-7=1882789882363912`. A service that keeps the largest that
    /// it has seen of a name can refuse what comes late from a former leader.
    pub const FENCE: &str = "seawall-fence";
}
