//! Whether new work may be sent here, for load balancers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a service says of itself at `/readyz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does not serve yet.
    Starting,
    /// Send work.
    Ready,
    /// It is about to stop. What comes is still served, but send nothing new.
    Draining,
}

impl State {
    /// The HTTP status that load balancers and Kubernetes expect: 200 when ready, else 503.
    pub fn http_status(self) -> u16 {
        if self == State::Ready { 200 } else { 503 }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Ready => "ready",
            State::Draining => "draining",
        })
    }
}

/// A shared [`State`]: one atomic to read, cheap to clone, made by [`Shutdown::readiness`](crate::Shutdown::readiness).
///
/// It moves forward only, from starting to ready to draining: who drains never becomes ready again.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    state: Arc<AtomicU8>,
}

impl Readiness {
    /// Starting. For a [`Shutdown`](crate::Shutdown) take the plan's own instead.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that work may be sent. Without effect once draining.
    pub fn ready(&self) {
        self.state.fetch_max(State::Ready as u8, Ordering::SeqCst);
    }

    /// Says that nothing new may be sent. [`Shutdown`](crate::Shutdown) does this itself, before all else.
    pub fn draining(&self) {
        self.state.fetch_max(State::Draining as u8, Ordering::SeqCst);
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::Starting,
            1 => State::Ready,
            _ => State::Draining,
        }
    }

    /// Whether it is [`State::Ready`].
    pub fn is_ready(&self) -> bool {
        self.state() == State::Ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_moves_forward_only() {
        let readiness = Readiness::new();
        let seen = readiness.clone();
        assert_eq!((seen.state(), seen.state().http_status()), (State::Starting, 503));
        readiness.ready();
        assert_eq!((seen.state(), seen.state().http_status()), (State::Ready, 200));
        readiness.draining();
        readiness.ready();
        assert_eq!((seen.state().to_string(), seen.state().http_status()), ("draining".to_owned(), 503));
        assert!(!seen.is_ready());
    }
}
