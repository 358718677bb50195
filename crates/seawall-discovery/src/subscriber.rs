//! Following the fleet.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use seawall_drain::Drain;
use seawall_types::{Change, Revision, Snapshot};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::control::{Control, ControlError};
use crate::events::Event;

/// The longest pause before a new stream, on average. Together with the silence after which one counts as dead this is less than
/// control waits for a subscriber whose stream broke.
const PAUSE: Duration = Duration::from_secs(1);

/// Who follows, and where it remembers.
#[derive(Clone, Debug)]
pub struct SubscriberConfig {
    /// Names this process among all subscribers; appears where control names laggards. Letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// The file that the last good snapshot is kept in; `None` keeps it in memory alone.
    pub file: Option<PathBuf>,
}

/// Follows the registry and hands every new snapshot on.
#[derive(Debug)]
pub struct Subscriber {
    config: SubscriberConfig,
    control: Control,
    state: State,
}

/// What survives a restart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// Names the store that the revision belongs to; another store's revisions mean nothing here.
    store: String,
    snapshot: Arc<Snapshot>,
}

/// A revision that is acted on, and the store that it belongs to.
type Held = (String, Revision);

/// The first event of a stream that cannot be resumed.
#[derive(Debug, Deserialize)]
struct Whole {
    store: String,
    snapshot: Snapshot,
}

impl Subscriber {
    /// Reads the last good snapshot from the file, if there is one. A file that cannot be read is as good as none.
    pub fn new(config: SubscriberConfig, control: Control) -> Self {
        let state = config.file.as_deref().and_then(|file| match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .inspect_err(|error| tracing::warn!(file = %file.display(), %error, "the kept snapshot is damaged"))
                .ok(),
            Err(_) => None,
        });
        Self { config, control, state: state.unwrap_or_default() }
    }

    /// The last good snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.state.snapshot.clone()
    }

    /// Calls `publish` with each new snapshot, then acknowledges its revision. Reconnects for ever, with jittered
    /// backoff. When `drain` signals it tells control that it follows no more, and ends: signal it last, when nothing is
    /// called any more.
    pub async fn run(mut self, drain: Drain, publish: impl Fn(Arc<Snapshot>)) {
        publish(self.state.snapshot.clone());
        let (acknowledged, acks) = watch::channel(None);
        let acks = acknowledge(self.control.clone(), self.config.name.clone(), acks);
        let follow = async {
            let mut pause = Duration::from_millis(50);
            let mut away = false;
            loop {
                let before = self.state.snapshot.revision;
                let error = match self.follow(&publish, &acknowledged, &mut away).await {
                    Ok(()) => "the stream ended".to_owned(),
                    Err(error) => error.to_string(),
                };
                if self.state.snapshot.revision > before {
                    pause = Duration::from_millis(50);
                }
                if !std::mem::replace(&mut away, true) {
                    let revision = self.state.snapshot.revision;
                    tracing::warn!(error, %revision, "lost control; going on with the last good snapshot");
                }
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                pause = (pause * 2).min(PAUSE);
            }
        };
        tokio::select! {
            () = follow => {}
            () = acks => {}
            () = drain.signaled() => {}
        }
        if let Err(error) = self.control.unsubscribe(&self.config.name).await {
            tracing::debug!(%error, "could not unsubscribe; control finds out by itself");
        }
    }

    async fn follow(
        &mut self,
        publish: &impl Fn(Arc<Snapshot>),
        acknowledged: &watch::Sender<Option<Held>>,
        away: &mut bool,
    ) -> Result<(), ControlError> {
        let (name, store) = (&self.config.name, &self.state.store);
        let mut path = format!("/v1/watch?subscriber={name}");
        if !store.is_empty() {
            path += &format!("&store={store}&from={}", self.state.snapshot.revision.next());
        }
        let mut events = self.control.events(&path).await?;
        if std::mem::take(away) {
            tracing::info!("control is back");
        }
        while let Some(events) = events.next().await? {
            for event in events {
                let applied = self.apply(&event);
                applied.map_err(|error| ControlError::Broken(format!("an event is not understood: {error}")))?;
            }
            publish(self.state.snapshot.clone());
            acknowledged.send_replace(Some((self.state.store.clone(), self.state.snapshot.revision)));
            self.keep();
        }
        Ok(())
    }

    fn apply(&mut self, event: &Event) -> serde_json::Result<()> {
        match event.name.as_str() {
            "snapshot" => {
                let Whole { store, snapshot } = serde_json::from_str(&event.data)?;
                self.state = State { store, snapshot: Arc::new(snapshot) };
            }
            "change" => {
                let change: Change = serde_json::from_str(&event.data)?;
                Arc::make_mut(&mut self.state.snapshot).apply(&change);
            }
            // "resumed": what we hold is the latest of this very store; a later control may say more than we know.
            _ => {}
        }
        Ok(())
    }

    fn keep(&self) {
        let Some(file) = &self.config.file else { return };
        let bytes = serde_json::to_vec(&self.state).expect("plain data");
        if let Err(error) = replace(file, &bytes) {
            tracing::warn!(file = %file.display(), %error, "cannot keep the snapshot on disk");
        }
    }
}

/// Acknowledges the newest revision, and again whenever there is a newer one. One request at a time: while it is under
/// way newer revisions replace one another.
async fn acknowledge(control: Control, name: String, mut acks: watch::Receiver<Option<Held>>) {
    while acks.changed().await.is_ok() {
        let Some((store, revision)) = acks.borrow_and_update().clone() else { continue };
        if let Err(error) = control.acknowledge(&name, &store, revision).await {
            // The next stream acknowledges anew.
            tracing::debug!(%error, %revision, "could not acknowledge");
        }
    }
}

/// A reader sees the old file or the new one, never half of it.
pub(crate) fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(temporary, file)
}
