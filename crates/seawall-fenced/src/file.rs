//! A file that is replaced as a whole, and only by who holds its lock.
//!
//! Three files belong to it: `<file>.lock` is locked (`flock`) during a write and never replaced or removed, `<file>.fence`
//! keeps the largest token, and both `<file>.fence` and the file itself are replaced by renaming a complete and synced copy.
//! The token is durable before the content that came with it: a crash in between leaves the old content, and nobody who could
//! write it by a smaller token.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{CheckError, Fence, MAX_FENCE, Stale, valid};

/// How long a write waits for another, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// A file that refuses the content of former holders. Its functions block: call them from a thread that may.
#[derive(Clone, Debug)]
pub struct FencedFile {
    path: PathBuf,
    patience: Duration,
}

/// What a file can fail by.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system. The file has its old content; the token may have been kept.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has its new content, which may not survive a loss of power: writing it again is safe.
    #[error("{} is written, and may not survive a loss of power: {source}", .path.display())]
    Unsure {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another write did not end in time. Whoever makes it may be stopped; nothing was changed here.
    #[error("{} was locked by another write for {waited:?}; `fuser` names the process", .path.display())]
    Busy {
        /// The file that is locked.
        path: PathBuf,
        /// For how long this one waited.
        waited: Duration,
    },
    /// The file with the token holds none, so nobody may write.
    #[error(
        "{} holds no fencing token; write one into it that is at least the last holder's, as a decimal number and a newline",
        .path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { doing, path: path.to_owned(), source }
}

impl FencedFile {
    /// The file of this name, which needs not exist; its directory has to. A symbolic link is replaced, not followed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), patience: PATIENCE }
    }

    /// The same with another time to wait for a write that is under way. Default 10 s.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Replaces the content, durably. Readers see the old or the new.
    ///
    /// # Errors
    /// [`Stale`] when a larger token has been seen, and [`FileError`].
    pub fn write(&self, fence: Fence, content: &[u8]) -> Result<(), CheckError<FileError>> {
        self.update(fence, |_| content)
    }

    /// The same with a content that follows from the old one, which is `None` when there is no file yet. Nobody else writes
    /// in between.
    ///
    /// # Errors
    /// [`Stale`] when a larger token has been seen, and [`FileError`].
    pub fn update<C: AsRef<[u8]>>(
        &self,
        fence: Fence,
        change: impl FnOnce(Option<Vec<u8>>) -> C,
    ) -> Result<(), CheckError<FileError>> {
        self.locked(fence, || {
            let old = match std::fs::read(&self.path) {
                Ok(old) => Some(old),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(io("read", &self.path)(error)),
            };
            replace(&self.path, change(old).as_ref())
        })
    }

    /// Checks a token, and keeps it when it is the largest so far; writes nothing else. For what cannot be written here. Between
    /// this and a write elsewhere the lock may go to somebody else.
    ///
    /// # Errors
    /// [`Stale`] when a larger token has been seen, and [`FileError`].
    pub fn check(&self, fence: Fence) -> Result<(), CheckError<FileError>> {
        // Also what somebody has left who was killed between replacing and syncing.
        self.locked(fence, || sync_directory(&self.path))
    }

    /// The largest token that the file has seen.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn highest(&self) -> Result<Option<Fence>, FileError> {
        let path = self.beside(".fence");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read", &path)(error)),
        };
        let digits = text.strip_suffix(b"\n").filter(|digits| digits.iter().all(u8::is_ascii_digit));
        let number = digits.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok()).map(Fence::new);
        number.filter(|fence| *fence <= MAX_FENCE).map(Some).ok_or(FileError::Damaged { path })
    }

    /// Does the write while nobody else does one.
    fn locked(&self, fence: Fence, write: impl FnOnce() -> Result<(), FileError>) -> Result<(), CheckError<FileError>> {
        let resource = self.path.display().to_string();
        valid("a file", fence).map_err(CheckError::Invalid)?;
        if self.path.file_name().is_none() {
            return Err(CheckError::Invalid(format!("`{resource}` names no file")));
        }
        let failed = CheckError::failed(&resource);
        let _lock = self.lock().map_err(failed)?;
        let seen = self.highest().map_err(failed)?;
        if let Some(seen) = seen.filter(|seen| *seen > fence) {
            return Err(Stale { resource, seen, given: fence }.into());
        }
        if seen != Some(fence) {
            // Unsure is as bad as not: without the token nobody may write by it.
            replace(&self.beside(".fence"), format!("{fence}\n").as_bytes()).map_err(failed)?;
        }
        write().map_err(failed)
    }

    /// Unlocked when it is dropped, and when the process ends.
    fn lock(&self) -> Result<File, FileError> {
        let path = self.beside(".lock");
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io("open", &path))?;
        let from = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if from.elapsed() < self.patience => {
                    std::thread::sleep(Duration::from_micros(fastrand::u64(500..5_000)));
                }
                Err(TryLockError::WouldBlock) => return Err(FileError::Busy { path, waited: from.elapsed() }),
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(TryLockError::Error(error)) => return Err(io("lock", &path)(error)),
            }
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        with_suffix(&self.path, suffix)
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Replaces a file by a complete one. Only under the lock: the copy's name is always the same, so that a crash leaves one at most.
fn replace(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let copy = with_suffix(path, ".new");
    let mut file = File::create(&copy).map_err(io("make", &copy))?;
    file.write_all(content).map_err(io("write", &copy))?;
    if let Ok(old) = std::fs::metadata(path) {
        file.set_permissions(old.permissions()).map_err(io("set the permissions of", &copy))?;
    }
    file.sync_all().map_err(io("sync", &copy))?;
    std::fs::rename(&copy, path).map_err(io("replace", path))?;
    sync_directory(path)
}

/// Makes durable which files the directory of this one has.
fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|source| FileError::Unsure { path: path.to_owned(), source })
}
