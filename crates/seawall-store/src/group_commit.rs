//! One thread that owns a file and takes whatever has queued up as one batch, so that concurrent writes share a sync.
//!
//! There is no linger: an idle writer starts at once with a batch of one; while it syncs, the next batch gathers.
//! (The idea is as old as IMS Fast Path's group commit, Gawlick 1985; Restate and PostgreSQL do the same.)

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Hands jobs to the thread.
#[derive(Debug)]
pub struct Sender<J>(mpsc::Sender<J>);

impl<J> Clone for Sender<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A job without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It was not queued: nothing is written.
    #[error("{0}")]
    NotQueued(String),
    /// It was queued and not answered: it may be written, or may yet be.
    #[error("{0}")]
    Unanswered(String),
}

/// How long a job waits for its turn, and then for the disk.
const PATIENCE: Duration = Duration::from_secs(10);

impl<J> Sender<J> {
    /// Queues the job that `job` makes of its reply's sender, and waits for the reply; for the queue and for the reply ten
    /// seconds each. A dropped future leaves the outcome unknown.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> J) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        match timeout(PATIENCE, self.0.send(job(reply))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(AskError::NotQueued("it is closed".into())),
            Err(_) => return Err(AskError::NotQueued(format!("its queue has been full for {PATIENCE:?}"))),
        }
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(AskError::Unanswered("the writer thread died".into())),
            Err(_) => Err(AskError::Unanswered(format!("the disk has not answered for {PATIENCE:?}"))),
        }
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
