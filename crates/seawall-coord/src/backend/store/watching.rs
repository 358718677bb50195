//! Watches of what a claim waits for.
//!
//! They begin before the look that finds the claim waiting, or at the same revision, so that the two together miss nothing. And
//! they begin at the present: etcd looks for watches of the past only ten times a second, which is longer than most locks are
//! held.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use seawall_store::{Cursor, Keys, WatchError};
use seawall_types::Revision;
use tokio::time::{Instant, timeout_at};

use super::StoreBackend;

/// How long nothing is asked after a watch could not begin, or has broken.
const PAUSE: Duration = Duration::from_millis(100);

/// Something that a claim waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Await {
    /// This key, as it was created then, goes.
    Gone(Arc<str>, Revision),
    /// This key is written or goes.
    Changed(Arc<str>),
    /// Any key in this directory goes.
    AnyGone(Arc<str>),
    /// Any key in this directory is written or goes.
    Touched(Arc<str>),
}

impl Await {
    fn keys(&self) -> Keys {
        match self {
            Self::Gone(key, _) | Self::Changed(key) => Keys::one(key.clone()),
            Self::AnyGone(directory) | Self::Touched(directory) => Keys::prefix(directory.clone()),
        }
    }

    /// Resolves when it happens, or the watch cannot say.
    async fn happens(&self, cursor: &mut Cursor) {
        loop {
            match cursor.next().await {
                Ok(events) => {
                    let happened = events.iter().any(|event| match self {
                        // Known by its key and its revision: the key alone may be another's by now.
                        Self::Gone(_, created) => event.entry.as_ref().is_none_or(|entry| entry.created != *created),
                        Self::Changed(_) | Self::Touched(_) => true,
                        Self::AnyGone(_) => event.entry.is_none(),
                    });
                    if happened {
                        return;
                    }
                }
                Err(WatchError::Compacted { .. }) => return,
                Err(WatchError::Closed | WatchError::Unavailable(_)) => return tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// Watches that have begun.
pub(super) struct Watching {
    /// From after this revision on they miss nothing.
    since: Revision,
    all: Vec<(Await, Cursor)>,
}

impl Watching {
    /// Whether it is these things that are watched.
    pub(super) fn are(&self, awaits: &[Await]) -> bool {
        self.all.iter().map(|(one, _)| one).eq(awaits)
    }

    /// Whether nothing can have happened between what was read at this revision and the watches' beginning.
    pub(super) fn follow(&self, revision: Revision) -> bool {
        self.since <= revision
    }

    /// Resolves when one of the things may have happened; false when none has by then.
    pub(super) async fn happens(mut self, by: Instant) -> bool {
        let mut all: Vec<_> = self.all.iter_mut().map(|(one, cursor)| Box::pin(one.happens(cursor))).collect();
        let any = poll_fn(|context| {
            let happened = all.iter_mut().any(|one| Pin::new(one).poll(context).is_ready());
            if happened { Poll::Ready(()) } else { Poll::Pending }
        });
        timeout_at(by, any).await.is_ok()
    }
}

impl StoreBackend {
    /// Begins to watch these things. `None`, after a pause, when that is not possible now.
    pub(super) async fn watch(&self, awaits: Vec<Await>, by: Instant) -> Option<Watching> {
        let begin = async {
            let mut watching = Watching { since: Revision(0), all: Vec::with_capacity(awaits.len()) };
            for one in awaits {
                let (since, cursor) = self.store.watch_now(one.keys()).await.ok()?;
                watching.since = watching.since.max(since);
                watching.all.push((one, cursor));
            }
            Some(watching)
        };
        let watching = timeout_at(by, begin).await.ok().flatten();
        if watching.is_none() {
            tokio::time::sleep_until(by.min(Instant::now() + PAUSE)).await;
        }
        watching
    }
}
