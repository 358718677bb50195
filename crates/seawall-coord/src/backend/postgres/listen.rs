//! What the server tells when a claim goes, so that nobody has to ask all the time. It may fail to: whoever waits asks, too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_postgres::AsyncMessage;

use super::line::Place;
use crate::backend::home::Home;

/// How often a claim is looked at although nothing was told: with a connection that would tell, and without.
const QUIET: (u64, u64) = (1_000, 3_000);
const DEAF: (u64, u64) = (50, 250);

/// A claim, by its lock and its number; 0 is any claim of the lock.
type Key = (Arc<str>, i64);

/// Hears; clones are the same one. The connection ends with the last.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    shared: Arc<Shared>,
    _task: Arc<Task>,
}

#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, Default)]
struct Shared {
    hears: AtomicBool,
    watches: Mutex<HashMap<Key, Vec<Weak<Notify>>>>,
}

/// Is told of a claim, from the moment on that it is made.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    key: Key,
    told: Arc<Notify>,
}

impl Listener {
    pub(super) fn start(home: &Home, place: Place) -> Self {
        let shared = Arc::new(Shared::default());
        let task = home.spawn(serve(place, shared.clone()));
        Self { shared, _task: Arc::new(Task(task.abort_handle())) }
    }

    /// Watches a claim of a lock, 0 for any.
    pub(super) fn watch(&self, name: &str, epoch: i64) -> Watch {
        let (key, told) = ((Arc::from(name), epoch), Arc::new(Notify::new()));
        self.shared.watches().entry(key.clone()).or_default().push(Arc::downgrade(&told));
        Watch { shared: self.shared.clone(), key, told }
    }
}

impl Watch {
    pub(super) fn epoch(&self) -> i64 {
        self.key.1
    }

    /// Resolves when there may be something new: it was told, or it is time to ask. Never later than `most`. Cancel safe.
    pub(super) async fn changed(&self, most: Option<Duration>) {
        let (least, longest) = if self.shared.hears.load(Ordering::SeqCst) { QUIET } else { DEAF };
        let pause = Duration::from_millis(fastrand::u64(least..longest));
        let _ = tokio::time::timeout(most.map_or(pause, |most| pause.min(most)), self.told.notified()).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = self.shared.watches();
        if let Some(same) = watches.get_mut(&self.key) {
            same.retain(|told| !std::ptr::eq(told.as_ptr(), Arc::as_ptr(&self.told)));
            if same.is_empty() {
                watches.remove(&self.key);
            }
        }
    }
}

impl Shared {
    fn watches(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Vec<Weak<Notify>>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `<number> <name>`
    fn tell(&self, text: &str) {
        let Some((epoch, name)) = text.split_once(' ') else { return };
        let epoch = epoch.parse().unwrap_or(0);
        let watches = self.watches();
        let mut key: Key = (Arc::from(name), epoch);
        for epoch in [epoch, 0] {
            key.1 = epoch;
            for told in watches.get(&key).into_iter().flatten().filter_map(Weak::upgrade) {
                told.notify_one();
            }
            if epoch == 0 {
                break;
            }
        }
    }

    fn tell_all(&self) {
        for told in self.watches().values().flatten().filter_map(Weak::upgrade) {
            told.notify_one();
        }
    }
}

async fn serve(place: Place, shared: Arc<Shared>) {
    let mut pause = Duration::from_millis(50);
    loop {
        let why = listen(&place, &shared, &mut pause).await;
        shared.hears.store(false, Ordering::SeqCst);
        // They look, and ask more often from now on.
        shared.tell_all();
        tracing::debug!(backend = %place.name, %why, "nothing is told; claims are looked at more often");
        tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Hears until it cannot, and says why.
async fn listen(place: &Place, shared: &Shared, pause: &mut Duration) -> String {
    let (client, mut connection) = match place.connect().await {
        Ok(connected) => connected,
        Err(error) => return error.to_string(),
    };
    let mut listening = std::pin::pin!(client.batch_execute("LISTEN seawall"));
    let mut listens = false;
    loop {
        // What is sent and what comes move by the same connection.
        let message = std::future::poll_fn(|context| {
            if !listens && let std::task::Poll::Ready(answer) = listening.as_mut().poll(context) {
                listens = true;
                if let Err(error) = answer {
                    return std::task::Poll::Ready(Err(error.to_string()));
                }
                *pause = Duration::from_millis(50);
                shared.hears.store(true, Ordering::SeqCst);
                // What went before was not told.
                shared.tell_all();
            }
            match connection.poll_message(context) {
                std::task::Poll::Ready(Some(Ok(message))) => std::task::Poll::Ready(Ok(message)),
                std::task::Poll::Ready(Some(Err(error))) => std::task::Poll::Ready(Err(error.to_string())),
                std::task::Poll::Ready(None) => std::task::Poll::Ready(Err("the connection was closed".to_owned())),
                std::task::Poll::Pending => std::task::Poll::Pending,
            }
        })
        .await;
        match message {
            Ok(AsyncMessage::Notification(told)) => shared.tell(told.payload()),
            Ok(_) => {}
            Err(why) => return why,
        }
    }
}
