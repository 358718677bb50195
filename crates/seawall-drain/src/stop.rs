//! Why a service stops.

use std::fmt;

/// What begins a shutdown, or cuts it short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM.
    Terminate,
    /// SIGINT, or Ctrl-C.
    Interrupt,
    /// The program's own decision.
    Asked,
}

impl Stop {
    /// The exit code of a process whose shutdown this cut short: 143 for SIGTERM and 130 for SIGINT, as shells say it
    /// (128 and the signal's number), and 1 for the program's own decision.
    pub fn exit_code(self) -> u8 {
        match self {
            Stop::Terminate => 143,
            Stop::Interrupt => 130,
            Stop::Asked => 1,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stop::Terminate => "SIGTERM",
            Stop::Interrupt => "SIGINT",
            Stop::Asked => "the program",
        })
    }
}
