//! Ends the process when its runtime no longer can.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Dropped when the shutdown is over.
pub(super) struct Watchdog {
    _over: Sender<()>,
}

/// Waits on a thread of its own, so that no blocked runtime holds it up.
pub(super) fn start(time: Duration) -> Watchdog {
    let (over, wait) = channel();
    let watch = move || {
        if wait.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
            // Not by tracing alone: its subscriber may be what hangs.
            eprintln!("the shutdown hangs: something blocks the runtime's thread; exit code 1");
            std::process::exit(1);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("shutdown watchdog".to_owned()).spawn(watch) {
        tracing::warn!(%error, "no thread for the shutdown's watchdog");
    }
    Watchdog { _over: over }
}
