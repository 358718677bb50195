//! The largest tokens that a server has seen, kept over restarts, and the turns of those who are checked by them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio::time::timeout;

use super::{FenceRejection, PATIENCE};
use crate::{CheckError, Fence, FencedFile};

/// How many requests may wait for their turn or their check, over all locks.
const WAITING: usize = 512;
/// The longest name of a file, without what [`FencedFile`] adds.
const MAX_FILE_NAME: usize = 240;

/// Fences that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep fencing tokens in {}: {why}", .path.display())]
pub struct FencesError {
    path: PathBuf,
    why: String,
}

impl FencesError {
    fn new(path: &Path) -> impl FnOnce(String) -> Self {
        move |why| Self { path: path.to_owned(), why }
    }
}

/// The state that [`FenceToken`](super::FenceToken) needs: the largest token of each lock, durable. Clones are the same one.
/// Make one for each process, for requests take turns by it.
#[derive(Clone, Debug)]
pub struct Fences {
    inner: Arc<Inner>,
    patience: Duration,
}

#[derive(Debug)]
struct Inner {
    highest: Highest,
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    waiting: Semaphore,
}

/// Where the largest tokens are kept.
#[derive(Debug)]
enum Highest {
    /// A directory with a [`FencedFile`] for each lock.
    Files(PathBuf),
    #[cfg(feature = "sqlite")]
    Sqlite(Mutex<rusqlite::Connection>),
}

impl Fences {
    /// In a directory, three small files for each lock. It is made if it is not there. Blocks.
    ///
    /// # Errors
    /// [`FencesError`].
    pub fn files(directory: impl Into<PathBuf>) -> Result<Self, FencesError> {
        let directory = directory.into();
        std::fs::create_dir_all(&directory).map_err(|error| FencesError::new(&directory)(error.to_string()))?;
        Ok(Self::new(Highest::Files(directory)))
    }

    /// In a SQLite database, in the table of [`SqliteFence`](crate::SqliteFence). The file is made if it is not there. Blocks.
    ///
    /// # Errors
    /// [`FencesError`].
    #[cfg(feature = "sqlite")]
    pub fn sqlite(file: impl AsRef<Path>) -> Result<Self, FencesError> {
        let open = || {
            let connection = rusqlite::Connection::open(&file)?;
            connection.busy_timeout(PATIENCE)?;
            crate::SqliteFence::create_table(&connection)?;
            Ok::<_, rusqlite::Error>(connection)
        };
        let connection = open().map_err(|error| FencesError::new(file.as_ref())(error.to_string()))?;
        Ok(Self::new(Highest::Sqlite(Mutex::new(connection))))
    }

    fn new(highest: Highest) -> Self {
        let inner = Inner { highest, turns: Mutex::default(), waiting: Semaphore::new(WAITING) };
        Self { inner: Arc::new(inner), patience: PATIENCE }
    }

    /// The same with another time that a request waits for its turn, and then for its check. Default 5 s each.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Waits for the turn and checks the token. The turn ends when what this gives is dropped.
    pub(super) async fn check(&self, lock: &str, fence: Fence) -> Result<OwnedMutexGuard<()>, FenceRejection> {
        let busy = |why| FenceRejection::Busy { lock: lock.to_owned(), why };
        let Ok(_place) = self.inner.waiting.try_acquire() else {
            return Err(busy(format!("{WAITING} requests wait already")));
        };
        let turn = timeout(self.patience, self.turn(lock).lock_owned()).await;
        let turn = turn.map_err(|_| busy(format!("another request had its turn for {:?}", self.patience)))?;
        let (inner, name) = (self.inner.clone(), lock.to_owned());
        // The turn goes along: a check that nobody waits for any more is done before the next begins.
        let check = tokio::task::spawn_blocking(move || inner.highest.check(&name, fence).map(|()| turn));
        let checked = timeout(self.patience, check).await;
        let checked = checked.map_err(|_| busy(format!("the check took longer than {:?}", self.patience)))?;
        checked.unwrap_or_else(|error| Err(FenceRejection::Unchecked { lock: lock.to_owned(), why: error.to_string() }))
    }

    fn turn(&self, lock: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(lock).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(lock.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

impl Highest {
    fn check(&self, lock: &str, fence: Fence) -> Result<(), FenceRejection> {
        match self {
            Self::Files(directory) => {
                let file = utf8_percent_encode(lock, NON_ALPHANUMERIC).to_string();
                if file.len() > MAX_FILE_NAME {
                    let why = format!("its name takes {} bytes as a file, more than {MAX_FILE_NAME}", file.len());
                    return Err(FenceRejection::Malformed { lock: lock.to_owned(), why });
                }
                rejected(lock, FencedFile::new(directory.join(file)).patience(PATIENCE).check(fence))
            }
            #[cfg(feature = "sqlite")]
            Self::Sqlite(connection) => {
                let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
                rejected(lock, in_sqlite(&mut connection, lock, fence))
            }
        }
    }
}

#[cfg(feature = "sqlite")]
fn in_sqlite(
    connection: &mut rusqlite::Connection,
    lock: &str,
    fence: Fence,
) -> Result<(), CheckError<rusqlite::Error>> {
    use crate::SqliteFence;
    let failed = CheckError::failed(lock);
    crate::valid(lock, fence).map_err(CheckError::Invalid)?;
    // The same holder again: nothing to write, and nothing to sync.
    if SqliteFence::highest(connection, lock).map_err(failed)? == Some(fence) {
        return Ok(());
    }
    let immediate = rusqlite::TransactionBehavior::Immediate;
    let transaction = connection.transaction_with_behavior(immediate).map_err(failed)?;
    SqliteFence::check(&transaction, lock, fence)?;
    transaction.commit().map_err(failed)
}

/// The lock's name is what callers know, not where its token is kept.
fn rejected<E: std::error::Error>(lock: &str, checked: Result<(), CheckError<E>>) -> Result<(), FenceRejection> {
    let name = || lock.to_owned();
    checked.map_err(|error| match error {
        CheckError::Stale(stale) => FenceRejection::Stale { lock: name(), seen: stale.seen, given: stale.given },
        CheckError::Invalid(why) => FenceRejection::Malformed { lock: name(), why },
        CheckError::Failed { source, .. } => FenceRejection::Unchecked { lock: name(), why: source.to_string() },
    })
}
