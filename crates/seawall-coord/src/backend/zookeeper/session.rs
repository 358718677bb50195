//! A session of ZooKeeper's, and what its errors mean.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use zookeeper_client::{Client, Error};

use super::nodes::Place;
use crate::backend::BackendError;
use crate::backend::home::Home;
use crate::name::Token;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);
/// Of a session's time, the part that is not believed in. A server that is not the leader tells it of sessions that are alive
/// twice a tick; a tick is a fifth of the time at most here.
const UNSURE: u32 = 10;

/// A session there, with a connection of its own.
#[derive(Clone)]
pub struct ZkSession(Arc<Inner>);

struct Inner {
    /// Gone once it is closed; the session ends with the last clone of it.
    client: Mutex<Option<Client>>,
    id: i64,
    ttl: Duration,
    owner: String,
    /// When the last keep-alive was answered that somebody asked for.
    renewed: Mutex<Instant>,
    closed: watch::Sender<bool>,
    /// Where the claims are that were answered at the first try.
    paths: Mutex<HashMap<Token, String>>,
}

impl fmt::Debug for ZkSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ZkSession").field(&format_args!("{:x}", self.0.id)).finish()
    }
}

/// The time to ask for, so that the one that is wanted can be believed in.
pub(super) fn asked_for(ttl: Duration) -> Duration {
    let whole = ttl * UNSURE / (UNSURE - 1);
    Duration::from_millis(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX) + 1)
}

/// A client with a session of its own, served at home.
pub(super) async fn connect(home: &Home, place: &Place, ttl: Duration) -> Result<Client, BackendError> {
    let servers = place.servers.clone();
    let connecting = home.spawn(async move {
        // Allowed to be one that only reads, so that it can be told from none at all. A session that could write stays so.
        let connector = Client::connector().with_session_timeout(ttl).with_readonly(true);
        timeout(CALL, connector.connect(&servers)).await
    });
    let client = match connecting.await {
        Ok(Ok(Ok(client))) => client,
        Ok(Ok(Err(Error::Timeout | Error::ConnectionLoss | Error::NoHosts)) | Err(_)) => {
            let servers = place.servers.clone();
            let said = home.spawn(async move { super::diagnosis::of(&servers).await }).await.unwrap_or_default();
            return Err(place.down(format!("no server has opened a session within its time ({said})")));
        }
        Ok(Ok(Err(error))) => return Err(Failed::Is(error).of(place)),
        Err(_) => return Err(place.down("its thread has ended")),
    };
    if client.session().is_readonly() {
        return Err(place.down(READ_ONLY));
    }
    Ok(client)
}

const READ_ONLY: &str = "the server only reads: it has lost the majority of its ensemble";

impl ZkSession {
    /// The client says by itself that the session lives, as long as the process does. So that a session that nobody renews
    /// ends all the same, it is closed here when its time is over.
    pub(super) fn new(home: &Home, client: Client, owner: &str) -> Self {
        let (id, granted) = (client.session_id().0, client.session_timeout());
        let ttl = granted - granted / UNSURE;
        let inner = Arc::new(Inner {
            client: Mutex::new(Some(client)),
            id,
            ttl,
            owner: owner.to_owned(),
            renewed: Mutex::new(Instant::now()),
            closed: watch::Sender::new(false),
            paths: Mutex::default(),
        });
        let session = Arc::downgrade(&inner);
        home.spawn(async move {
            // Not held while it waits: with the last of it the session ends anyway.
            while let Some(end) = session.upgrade().map(|inner| *locked(&inner.renewed) + granted) {
                if Instant::now() < end {
                    tokio::time::sleep_until(end).await;
                } else if let Some(inner) = session.upgrade() {
                    inner.take();
                    return;
                }
            }
        });
        Self(inner)
    }

    /// A keep-alive was answered.
    pub(super) fn renewed(&self) {
        *locked(&self.0.renewed) = Instant::now();
    }

    pub(super) fn id(&self) -> i64 {
        self.0.id
    }

    pub(super) fn owner(&self) -> &str {
        &self.0.owner
    }

    /// How long it lives after a keep-alive, as far as that can be believed.
    pub(super) fn ttl(&self) -> Duration {
        self.0.ttl
    }

    pub(super) fn client(&self, place: &Place) -> Result<Client, BackendError> {
        let client = locked(&self.0.client).clone().filter(|client| !client.state().is_terminated());
        client.ok_or_else(|| BackendError::NoSession { backend: place.name.to_string() })
    }

    pub(super) fn take(&self) -> Option<Client> {
        self.0.take()
    }

    /// Whether it is over for good, as far as is known here.
    pub(super) fn ended(&self) -> bool {
        locked(&self.0.client).as_ref().is_none_or(|client| client.state().is_terminated())
    }

    /// Resolves when it is.
    pub(super) async fn over(&self) {
        let Some(mut states) = locked(&self.0.client).as_ref().map(Client::state_watcher) else { return };
        let mut closed = self.0.closed.subscribe();
        let terminated = async {
            while !states.state().is_terminated() {
                states.changed().await;
            }
        };
        tokio::select! {
            () = terminated => {}
            // The sender lives as long as this.
            _ = closed.wait_for(|closed| *closed) => {}
        }
    }

    pub(super) fn remember(&self, token: Token, path: String) {
        locked(&self.0.paths).insert(token, path);
    }

    pub(super) fn path(&self, token: &Token) -> Option<String> {
        locked(&self.0.paths).get(token).cloned()
    }

    pub(super) fn forget(&self, token: &Token) {
        locked(&self.0.paths).remove(token);
    }
}

impl Inner {
    fn take(&self) -> Option<Client> {
        let client = locked(&self.client).take();
        self.closed.send_replace(true);
        client
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a call does: one that only reads has done nothing when its answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Read,
    Write,
}

/// A call without an answer that helps.
#[derive(Debug)]
pub(super) enum Failed {
    /// The server, or the connection, says so.
    Is(Error),
    /// The same for a call that may have been done.
    MayBe(Error),
    /// It took too long.
    Silent(Doing),
}

impl Failed {
    pub(super) fn of(self, place: &Place) -> BackendError {
        let unknown = |why: String| BackendError::Unknown { backend: place.name.to_string(), why };
        match self {
            Self::Is(Error::SessionExpired | Error::SessionMoved | Error::ClientClosed) => {
                BackendError::NoSession { backend: place.name.to_string() }
            }
            Self::Is(Error::NotReadOnly) => place.down(READ_ONLY),
            Self::Is(error @ (Error::NoAuth | Error::AuthFailed | Error::InvalidAcl | Error::BadArguments(_))) => {
                place.refused(error)
            }
            Self::Is(error @ Error::Unimplemented) => place.refused(format!("{error}: it is older than 3.6")),
            Self::Is(error) => place.down(error),
            Self::MayBe(error) => unknown(error.to_string()),
            Self::Silent(Doing::Read) => place.down(format!("no answer within {CALL:?}")),
            Self::Silent(Doing::Write) => unknown(format!("no answer within {CALL:?}")),
        }
    }
}

/// An answer in time.
pub(super) async fn asked<T>(doing: Doing, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failed> {
    match timeout(CALL, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if doing == Doing::Write && may_be_done(&error) => Err(Failed::MayBe(error)),
        Ok(Err(error)) => Err(Failed::Is(error)),
        Err(_) => Err(Failed::Silent(doing)),
    }
}

/// Whether a write that failed so may have been done.
fn may_be_done(error: &Error) -> bool {
    matches!(
        error,
        Error::ConnectionLoss
            | Error::Timeout
            | Error::UnexpectedError(_)
            | Error::UnmarshalError { .. }
            | Error::RuntimeInconsistent
            | Error::Custom(_)
    )
}
