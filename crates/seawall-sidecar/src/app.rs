//! Running the service itself, for `seawall sidecar -- my-app`.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::{Child, Command};

/// The service's process. Dropping it kills the process.
#[derive(Debug)]
pub struct App {
    child: Child,
}

impl App {
    /// Starts it.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        Ok(Self { child: command.kill_on_drop(true).spawn()? })
    }

    /// Resolves when it ends by itself. Cancel safe.
    ///
    /// # Errors
    /// When the operating system cannot say.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to end, through `terminate`, which gets its pid; kills it when `patience` is over.
    ///
    /// # Errors
    /// When the operating system cannot say.
    pub async fn stop(mut self, patience: Duration, terminate: impl FnOnce(u32)) -> io::Result<ExitStatus> {
        if let Some(pid) = self.child.id() {
            terminate(pid);
        }
        if let Ok(ended) = tokio::time::timeout(patience, self.child.wait()).await {
            return ended;
        }
        self.child.kill().await?;
        self.child.wait().await
    }
}
