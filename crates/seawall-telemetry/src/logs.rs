//! Logs: one line an event on standard error, filtered by `SEAWALL_LOG` (default `info`).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging for this process. `color` forces colours on; otherwise a terminal decides. Calling it twice does
/// nothing the second time.
pub fn init(color: bool) {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .with_env_var("SEAWALL_LOG")
        .from_env_lossy();
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(color || std::io::stderr().is_terminal())
        .with_target(false)
        .compact();
    drop(started.try_init());
}
