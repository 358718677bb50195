//! The network between a process and the store: a store as the process sees it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use seawall_store::{
    CommitError, Committed, Cursor, Entry, Event, Follow, Keys, Lease, LeaseId, LeaseInfo, Limits, Query, Range,
    ReadError, Simulated, Status, Store, Txn, WatchError,
};
use seawall_types::Revision;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::server::State;
use crate::{Server, World, chance, millis};

/// How long a request is waited for.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// The latest that a request arrives which nobody waits for any more.
const LATEST: u64 = 2_500;

/// What goes wrong with how much of the traffic, from 0 to 1.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// The most that a request or an answer takes, in milliseconds.
    pub delay: u64,
    /// Requests, and answers, that take up to ten times as long.
    pub slow: f64,
    /// Answers that take up to sixty times as long: the request was done long before it is known.
    pub slow_answers: f64,
    /// Requests that never arrive.
    pub lose_request: f64,
    /// Answers that never arrive.
    pub lose_answer: f64,
    /// Requests that arrive after nobody waits for them any more.
    pub late: f64,
    /// Requests that arrive twice.
    pub twice: f64,
}

impl Weather {
    /// Nothing goes wrong, but it takes its time.
    pub const FINE: Self =
        Self { delay: 4, slow: 0.0, slow_answers: 0.0, lose_request: 0.0, lose_answer: 0.0, late: 0.0, twice: 0.0 };
    /// Some of everything.
    pub const FOUL: Self = Self {
        delay: 12,
        slow: 0.1,
        slow_answers: 0.01,
        lose_request: 0.02,
        lose_answer: 0.04,
        late: 0.02,
        twice: 0.0,
    };

    /// How long a packet is under way.
    fn way(&self) -> Duration {
        let most = if chance(self.slow) { self.delay * 10 } else { self.delay };
        millis(0, most)
    }

    fn back(&self) -> Duration {
        if chance(self.slow_answers) { millis(0, self.delay * 60) } else { self.way() }
    }
}

/// What lies between a process and the server; clones are the same one.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    weather: Mutex<Weather>,
    /// How often it was cut, and whether it is.
    cut: watch::Sender<(u64, bool)>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("cut", &*self.0.cut.borrow()).finish_non_exhaustive()
    }
}

impl Link {
    /// A link in this weather.
    pub fn new(weather: Weather) -> Self {
        Self(Arc::new(Inner { weather: Mutex::new(weather), cut: watch::Sender::new((0, false)) }))
    }

    /// Changes the weather.
    pub fn set(&self, weather: Weather) {
        *self.0.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// How it is.
    pub fn weather(&self) -> Weather {
        *self.0.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing gets through for so long, in either direction.
    pub fn cut(&self, world: &World, duration: Duration) {
        self.0.cut.send_modify(|(times, cut)| (*times, *cut) = (*times + 1, true));
        let times = self.0.cut.borrow().0;
        let link = self.clone();
        world.spawn(async move {
            sleep(duration).await;
            // Another cut meanwhile lasts as long as it lasts.
            link.0.cut.send_if_modified(|state| {
                let same = state.0 == times;
                state.1 &= !same;
                same
            });
        });
    }

    /// Heals every cut.
    pub fn heal(&self) {
        self.0.cut.send_modify(|(_, cut)| *cut = false);
    }

    fn is_cut(&self) -> bool {
        self.0.cut.borrow().1
    }
}

/// The store behind a link.
#[derive(Clone, Debug)]
pub struct Net {
    world: World,
    link: Link,
    server: Server,
}

/// A request without an answer.
enum Silence {
    /// It was not sent.
    Refused,
    /// It was sent.
    Lost,
}

impl Net {
    /// Through this link.
    pub fn new(world: &World, link: &Link, server: &Server) -> Self {
        Self { world: world.clone(), link: link.clone(), server: server.clone() }
    }

    async fn call<T: Send + 'static, F>(&self, ask: impl Fn(Server) -> F + Send + Sync + 'static) -> Result<T, Silence>
    where
        F: Future<Output = T> + Send + 'static,
    {
        if self.link.is_cut() {
            // Refused by somebody on the way, or swallowed.
            if chance(0.5) {
                sleep(millis(0, 2)).await;
                return Err(Silence::Refused);
            }
            sleep(PATIENCE).await;
            return Err(Silence::Lost);
        }
        let weather = self.link.weather();
        let (there, back) = (weather.way(), weather.back());
        let lost = chance(weather.lose_request);
        let there = if chance(weather.late) { PATIENCE + millis(0, LATEST) } else { there };
        let again = chance(weather.twice).then(|| there + millis(0, LATEST));
        let deaf = chance(weather.lose_answer);
        let (answer, answered) = oneshot::channel();
        let (link, server) = (self.link.clone(), self.server.clone());
        self.world.spawn(async move {
            let mut answer = Some(answer);
            for way in [Some(there), again].into_iter().flatten() {
                sleep(way).await;
                // The first of the two may have met a server that was away.
                if lost || link.is_cut() || !arrives(&server).await {
                    continue;
                }
                let done = ask(server.clone()).await;
                let Some(answer) = answer.take() else { continue };
                sleep(back).await;
                if !deaf && !link.is_cut() {
                    // Whoever asked may have given up.
                    let _ = answer.send(done);
                }
            }
            // Nobody says that nothing comes: it is waited for to the end.
            sleep(PATIENCE).await;
        });
        match timeout(PATIENCE, answered).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) | Err(_) => Err(Silence::Lost),
        }
    }

    async fn read<T: Send + 'static, F>(
        &self,
        ask: impl Fn(Server) -> F + Send + Sync + 'static,
    ) -> Result<T, ReadError>
    where
        F: Future<Output = Result<T, ReadError>> + Send + 'static,
    {
        let silence = |_| Err(ReadError::Unavailable("the network is silent".into()));
        self.call(ask).await.unwrap_or_else(silence)
    }

    async fn write<T: Send + 'static, F>(
        &self,
        ask: impl Fn(Server) -> F + Send + Sync + 'static,
    ) -> Result<T, CommitError>
    where
        F: Future<Output = Result<T, CommitError>> + Send + 'static,
    {
        self.call(ask).await.unwrap_or_else(|silence| {
            Err(match silence {
                Silence::Refused => CommitError::Unavailable("the network refuses".into()),
                Silence::Lost => CommitError::Unknown("the network is silent".into()),
            })
        })
    }

    /// Follows with a delay, until link or server break.
    fn follow(&self, mut cursor: Cursor) -> Cursor {
        let (to, events) = mpsc::unbounded_channel();
        let (link, server) = (self.link.clone(), self.server.clone());
        self.world.spawn(async move {
            let mut cut = link.0.cut.subscribe();
            let mut state = server.state();
            let began = (cut.borrow_and_update().0, epoch(*state.borrow_and_update()));
            loop {
                let broken = (cut.borrow_and_update().0, epoch(*state.borrow_and_update())) != began;
                if broken || matches!(*state.borrow(), State::Down(_)) {
                    // It takes a while until that is noticed.
                    return sleep(millis(0, 300)).await;
                }
                let paused = matches!(*state.borrow(), State::Paused(_));
                tokio::select! {
                    biased;
                    _ = cut.changed() => {}
                    _ = state.changed() => {}
                    () = to.closed() => return,
                    events = cursor.next(), if !paused => {
                        sleep(link.weather().way()).await;
                        let ended = events.is_err();
                        if (!link.is_cut() && to.send(events).is_err()) || ended {
                            return;
                        }
                    }
                }
            }
        });
        Cursor::new(Remote(events))
    }
}

fn epoch(state: State) -> u64 {
    let (State::Up(epoch) | State::Paused(epoch) | State::Down(epoch)) = state;
    epoch
}

/// Waits for a server that is paused; false when it is down.
async fn arrives(server: &Server) -> bool {
    let mut state = server.state();
    let now = state.wait_for(|state| !matches!(state, State::Paused(_))).await.map(|state| *state);
    matches!(now, Ok(State::Up(_)))
}

#[derive(Debug)]
struct Remote(mpsc::UnboundedReceiver<Result<Vec<Event>, WatchError>>);

#[async_trait]
impl Follow for Remote {
    async fn next(&mut self) -> Result<Vec<Event>, WatchError> {
        self.0.recv().await.unwrap_or_else(|| Err(WatchError::Unavailable("the connection is broken".into())))
    }
}

fn silent<T>(_: Silence) -> Result<T, WatchError> {
    Err(WatchError::Unavailable("the network is silent".into()))
}

#[async_trait]
impl Store for Net {
    fn limits(&self) -> Limits {
        self.server.store().limits()
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, ReadError> {
        let key = key.to_owned();
        self.read(move |server| {
            let key = key.clone();
            async move { server.store().get(&key).await }
        })
        .await
    }

    async fn query(&self, query: Query) -> Result<Range, ReadError> {
        self.read(move |server| {
            let query = query.clone();
            async move { server.store().query(query).await }
        })
        .await
    }

    async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        self.write(move |server| {
            let txn = txn.clone();
            async move { server.store().commit(txn).await }
        })
        .await
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, CommitError> {
        self.write(move |server| async move { server.store().grant(ttl).await }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CommitError> {
        self.write(move |server| async move { server.store().keep_alive(lease).await }).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, CommitError> {
        self.write(move |server| async move { server.store().revoke(lease).await }).await
    }

    async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseInfo>, ReadError> {
        self.read(move |server| async move { server.store().lease(lease).await }).await
    }

    async fn watch(&self, keys: Keys, from: Revision) -> Result<Cursor, WatchError> {
        let opened = self.call(move |server| {
            let keys = keys.clone();
            async move { Simulated::watch(server.store(), keys, from).await }
        });
        opened.await.unwrap_or_else(silent).map(|cursor| self.follow(cursor))
    }

    async fn watch_now(&self, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
        let opened = self.call(move |server| {
            let keys = keys.clone();
            async move { Simulated::watch_now(server.store(), keys).await }
        });
        opened.await.unwrap_or_else(silent).map(|(revision, cursor)| (revision, self.follow(cursor)))
    }

    async fn compact(&self, before: Revision) -> Result<(), CommitError> {
        self.write(move |server| async move { server.store().compact(before).await }).await
    }

    async fn status(&self) -> Result<Status, ReadError> {
        self.read(move |server| async move { server.store().status().await }).await
    }
}
