//! A backup in the place of a store: the new file is complete beside the old one before anything of the old one is touched,
//! and from then on a restore that is interrupted is finished by whoever opens the store next.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::embedded;
use crate::snapshot::{BackupError, Snapshot, beside, directory, sync_directory};
use crate::sqlite::OpenError;

/// A restore that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is a store already.
    #[error("{path} is there already, {what}: with --force it is put aside and the backup takes its place")]
    Exists {
        /// The file.
        path: PathBuf,
        /// What is in it.
        what: String,
    },
    /// The store cannot be reached, or is in use.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new file.
    #[error(transparent)]
    Write(#[from] BackupError),
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Where the old files are now, if there were any.
    pub aside: Option<PathBuf>,
    /// What is in the new one.
    pub snapshot: Snapshot,
}

/// The new file, complete: from here on the restore happens.
const READY: &str = ".restored";
/// What SQLite has beside a file.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];
/// How long somebody else may take to open or to replace the store.
const PATIENCE: Duration = Duration::from_secs(5);

/// Puts a snapshot in the place of the store `path`, which no process may have open. It becomes a store of its own: fencing
/// tokens go on above those of the snapshot and of the store that was there, followers read everything anew, every lease has
/// its whole time. With `force`, what was there, sound or damaged, is put aside, not deleted.
///
/// # Errors
/// [`RestoreError`]; then the old store is still there.
pub fn restore(path: &Path, mut snapshot: Snapshot, force: bool) -> Result<Restored, RestoreError> {
    let unusable = |source| OpenError::Directory { path: path.to_owned(), source };
    fs::create_dir_all(directory(path)).map_err(unusable)?;
    let _alone = lock(path)?;
    finish(path).map_err(unusable)?;
    let mut fences = None;
    if path.exists() {
        let what = match embedded::check(path) {
            Ok(report) => {
                fences = report.snapshot.fences();
                format!("at revision {} with {} keys", report.snapshot.revision, report.snapshot.entries.len())
            }
            Err(error @ (OpenError::InUse { .. } | OpenError::TooNew { .. })) => return Err(error.into()),
            Err(_) => {
                fences = embedded::salvage_fences(path);
                "damaged".into()
            }
        };
        if !force {
            return Err(RestoreError::Exists { path: path.to_owned(), what });
        }
    }
    snapshot.succeed(fences, SystemTime::now());
    snapshot.write(&beside(path, READY))?;
    let aside = finish(path).map_err(unusable)?;
    Ok(Restored { aside, snapshot })
}

/// Keeps others from opening or replacing the store for as long as it is held; who has it open already does not hold it.
pub(crate) fn lock(path: &Path) -> Result<File, OpenError> {
    let unusable = |source| OpenError::Directory { path: path.to_owned(), source };
    let directory = File::open(directory(path)).map_err(unusable)?;
    let end = Instant::now() + PATIENCE;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
    }
}

/// Finishes a restore, if one has come so far that its new file is complete; says where the old files are. Under the lock.
/// However often it is interrupted, it goes on.
pub(crate) fn finish(path: &Path) -> io::Result<Option<PathBuf>> {
    let ready = beside(path, READY);
    let made = match fs::metadata(&ready) {
        Ok(metadata) => metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // The same name at each attempt. A log that stayed behind would be written into the new file.
    let aside = beside(path, &format!(".before-{}", made.as_millis()));
    for suffix in BESIDE.iter().copied().chain([""]) {
        match fs::rename(beside(path, suffix), beside(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sync_directory(path)?,
        }
    }
    fs::rename(ready, path)?;
    sync_directory(path)?;
    Ok(Some(aside).filter(|aside| aside.exists()))
}
