//! One thread that owns a file and takes whatever has queued up as one batch, so that concurrent writes share a sync.
//!
//! There is no linger: an idle writer starts at once with a batch of one; while it syncs, the next batch gathers.
//! (The idea is as old as IMS Fast Path's group commit, Gawlick 1985; Restate and PostgreSQL do the same.)

use std::time::Duration;

use tokio::sync::mpsc;

/// Hands jobs to the thread.
#[derive(Debug)]
pub struct Sender<J>(mpsc::Sender<J>);

impl<J> Clone for Sender<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the writer thread has ended")]
pub struct Closed;

impl<J> Sender<J> {
    /// Queues a job; waits while the queue is full. Cancel safe: a dropped future has queued nothing.
    ///
    /// # Errors
    /// [`Closed`] when the thread has ended.
    pub async fn send(&self, job: J) -> Result<(), Closed> {
        self.0.send(job).await.map_err(|_| Closed)
    }
}

/// The most jobs that share one sync.
pub const BATCH: usize = 1024;
/// The most jobs that wait for their turn: twice a batch, so that the next is full when this one ends.
const QUEUE: usize = 2 * BATCH;

/// Starts the thread. `commit` gets every batch, and an empty one each `tick`. The thread ends when every sender is
/// gone; whatever the closure owns (a database connection) is closed then.
///
/// # Errors
/// When the operating system refuses a thread.
pub fn spawn<J: Send + 'static>(
    name: &str,
    tick: Duration,
    mut commit: impl FnMut(&mut Vec<J>) + Send + 'static,
) -> std::io::Result<Sender<J>> {
    let (sender, mut jobs) = mpsc::channel(QUEUE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        runtime.block_on(async {
            let mut batch = Vec::with_capacity(BATCH);
            loop {
                match tokio::time::timeout(tick, jobs.recv_many(&mut batch, BATCH)).await {
                    Ok(0) => break,
                    Ok(_) | Err(_) => commit(&mut batch),
                }
                batch.clear();
            }
        });
    })?;
    Ok(Sender(sender))
}
