//! SIGTERM and SIGINT.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Stop;

/// The signals that ask a service to stop.
///
/// From [`Signals::listen`] on, and for the rest of the process's life, they end it no longer by themselves: somebody has
/// to [`recv`](Signals::recv) them.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Begins to listen. Call it early: a signal before it ends the process at once, and one after it is kept until
    /// received. Needs a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// When the operating system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves at the next signal, or at once when one has come since the last call; equal ones that came together
    /// count once. Cancel safe.
    pub async fn recv(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Terminate,
            _ = self.interrupt.recv() => Stop::Interrupt,
        }
    }
}
