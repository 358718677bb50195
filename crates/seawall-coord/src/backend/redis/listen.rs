//! What Redis tells when a lock is given back, so that nobody has to ask all the time. It may fail to: whoever waits asks, too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::line::Place;
use crate::backend::home::Home;

/// How often a lock is looked at although nothing was told, in milliseconds: with a connection that would tell, and without.
const QUIET: (u64, u64) = (100, 500);
const DEAF: (u64, u64) = (5, 100);
/// How long subscribing may take.
const SUBSCRIBE: Duration = Duration::from_secs(2);

/// Hears; clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    shared: Arc<Shared>,
    /// Channels of which the first watch came, or the last went. One for each watch at most.
    changes: mpsc::UnboundedSender<String>,
}

#[derive(Debug, Default)]
struct Shared {
    hears: AtomicBool,
    watches: Mutex<HashMap<String, Vec<Arc<Notify>>>>,
}

impl Shared {
    fn watches(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<Notify>>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, channel: &str) {
        self.watches().get(channel).into_iter().flatten().for_each(|told| told.notify_one());
    }

    fn tell_all(&self) {
        self.watches().values().flatten().for_each(|told| told.notify_one());
    }
}

/// Is told of a lock, from the moment on that it is made.
#[derive(Debug)]
pub(super) struct Watch {
    listener: Listener,
    channel: String,
    told: Arc<Notify>,
}

impl Listener {
    /// Runs there as long as somebody has it.
    pub(super) fn start(home: &Home, place: Place) -> Self {
        let (changes, changed) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        home.spawn(serve(place, shared.clone(), changed));
        Self { shared, changes }
    }

    pub(super) fn watch(&self, channel: &str) -> Watch {
        let told = Arc::new(Notify::new());
        let mut watches = self.shared.watches();
        let same = watches.entry(channel.to_owned()).or_default();
        same.push(told.clone());
        if same.len() == 1 {
            // Without a task nothing is told, and everybody asks.
            let _ = self.changes.send(channel.to_owned());
        }
        drop(watches);
        Watch { listener: self.clone(), channel: channel.to_owned(), told }
    }
}

impl Watch {
    /// Resolves when there may be something new: it was told, or it is time to ask. Never later than `most`. Cancel safe.
    pub(super) async fn changed(&self, most: Duration) {
        let (least, longest) = if self.listener.shared.hears.load(Ordering::SeqCst) { QUIET } else { DEAF };
        let pause = Duration::from_millis(fastrand::u64(least..longest));
        let _ = timeout(pause.min(most), self.told.notified()).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = self.listener.shared.watches();
        if let Some(same) = watches.get_mut(&self.channel) {
            same.retain(|told| !Arc::ptr_eq(told, &self.told));
            if same.is_empty() {
                watches.remove(&self.channel);
                let _ = self.listener.changes.send(std::mem::take(&mut self.channel));
            }
        }
    }
}

async fn serve(place: Place, shared: Arc<Shared>, mut changed: mpsc::UnboundedReceiver<String>) {
    let mut pause = Duration::from_millis(50);
    loop {
        let heard = listen(&place, &shared, &mut changed, &mut pause).await;
        shared.hears.store(false, Ordering::SeqCst);
        // They look, and ask more often from now on.
        shared.tell_all();
        let Err(why) = heard else { return };
        tracing::debug!(backend = %place.name, %why, "nothing is told; locks are looked at more often");
        tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Hears until it cannot, and says why; or until nobody wants to hear any more.
async fn listen(
    place: &Place,
    shared: &Shared,
    changed: &mut mpsc::UnboundedReceiver<String>,
    pause: &mut Duration,
) -> Result<(), String> {
    let connecting = timeout(SUBSCRIBE, place.client.get_async_pubsub()).await;
    let connection = connecting.map_err(|_| "no connection".to_owned())?.map_err(|error| error.to_string())?;
    let (mut sink, mut stream) = connection.split();
    let mut subscribed = std::collections::HashSet::new();
    let all: Vec<String> = shared.watches().keys().cloned().collect();
    for channel in all {
        let done = timeout(SUBSCRIBE, sink.subscribe(&channel)).await;
        done.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
        subscribed.insert(channel);
    }
    *pause = Duration::from_millis(50);
    shared.hears.store(true, Ordering::SeqCst);
    // What went before was not told.
    shared.tell_all();
    loop {
        tokio::select! {
            message = stream.next() => match message {
                Some(message) => shared.tell(message.get_channel_name()),
                None => return Err("the connection was closed".into()),
            },
            channel = changed.recv() => {
                let Some(channel) = channel else { return Ok(()) };
                let wanted = shared.watches().contains_key(&channel);
                let done = match (wanted, subscribed.contains(&channel)) {
                    (true, false) => timeout(SUBSCRIBE, sink.subscribe(&channel)).await,
                    (false, true) => timeout(SUBSCRIBE, sink.unsubscribe(&channel)).await,
                    _ => continue,
                };
                done.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
                if wanted {
                    shared.tell(&channel);
                    subscribed.insert(channel);
                } else {
                    subscribed.remove(&channel);
                }
            }
        }
    }
}
