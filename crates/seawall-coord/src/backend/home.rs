//! A thread with a runtime for the connections of a backend, so that they outlive the runtime that opened them and are served
//! while a program blocks its own.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The thread; clones are the same one. It ends with the last of them, and all that runs on it. What runs on it holds none.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    handle: Handle,
    _end: Arc<oneshot::Sender<()>>,
}

impl Home {
    /// Starts the thread.
    pub(crate) fn start(name: &str) -> Result<Self, String> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let run = move || {
            // Never sent, only dropped.
            let _: Result<(), _> = runtime.block_on(ended);
        };
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        started.map_err(|error| error.to_string())?;
        Ok(Self { handle, _end: Arc::new(end) })
    }

    /// Runs there, whatever becomes of the handle.
    pub(crate) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.handle.spawn(task)
    }
}
