//! A file that is read again when it has changed, while requests go on. What is wrong in the new text is said, and the last good
//! one stays.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Guard};

/// How often it is looked at, at most.
const PERIOD: Duration = Duration::from_secs(2);
/// The largest file that is read.
const LIMIT: u64 = 16 << 20;

/// What a file says.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    file: PathBuf,
    parse: fn(&str) -> Result<T, String>,
    now: ArcSwap<T>,
    looked: Mutex<(Instant, Stamp)>,
    looking: AtomicBool,
}

/// What changes when a file does.
type Stamp = (u64, Option<SystemTime>);

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// It cannot be read, or says nothing that makes sense.
    pub(crate) fn try_new(file: &Path, parse: fn(&str) -> Result<T, String>) -> Result<Self, String> {
        let (stamp, value) = read(file, parse)?;
        let looked = Mutex::new((Instant::now(), stamp));
        let now = ArcSwap::from_pointee(value);
        Ok(Self { file: file.to_owned(), parse, now, looked, looking: AtomicBool::new(false) })
    }

    /// What it says, as of some seconds ago at most; whoever asks waits for nothing.
    pub(crate) fn now(self: &Arc<Self>) -> Guard<Arc<T>> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.0.elapsed() >= PERIOD && !self.looking.swap(true, Ordering::Relaxed) {
            looked.0 = Instant::now();
            let this = self.clone();
            tokio::task::spawn_blocking(move || this.look());
        }
        drop(looked);
        self.now.load()
    }

    fn look(&self) {
        let before = self.looked.lock().unwrap_or_else(PoisonError::into_inner).1;
        let stamp = stamp(&self.file);
        if stamp.as_ref() != Ok(&before) {
            match read(&self.file, self.parse) {
                Ok((stamp, value)) => {
                    self.now.store(Arc::new(value));
                    self.looked.lock().unwrap_or_else(PoisonError::into_inner).1 = stamp;
                    tracing::info!(file = %self.file.display(), "read again");
                }
                Err(why) => tracing::warn!(%why, "a file cannot be used, what it said before stays"),
            }
        }
        self.looking.store(false, Ordering::Relaxed);
    }
}

fn stamp(file: &Path) -> Result<Stamp, String> {
    let metadata = std::fs::metadata(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok((metadata.len(), metadata.modified().ok()))
}

fn read<T>(file: &Path, parse: fn(&str) -> Result<T, String>) -> Result<(Stamp, T), String> {
    // Before the text: what changes in between is seen the next time.
    let stamp = stamp(file)?;
    if stamp.0 > LIMIT {
        return Err(format!("{} has {} bytes, at most {LIMIT}", file.display(), stamp.0));
    }
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok((stamp, parse(&text).map_err(|why| format!("{}: {why}", file.display()))?))
}

/// The lines of a file that say something: `name:rest`.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = Result<(&str, &str), String>> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(at, line)| {
        let pair = line.split_once(':').filter(|(name, _)| !name.is_empty());
        pair.ok_or_else(|| format!("line {at} is not `name:...`"))
    })
}
