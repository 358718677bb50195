//! The store, as a server that can be paused, restarted, and whose disk fails.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use seawall_store::{DiskFault, Simulated};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::{World, millis};

/// A store; clones are the same one.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    store: Simulated,
    state: watch::Sender<State>,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It answers; since how many restarts.
    Up(u64),
    /// What is asked of it waits.
    Paused(u64),
    /// What is asked of it is lost.
    Down(u64),
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", *self.0.state.borrow())
    }
}

impl Server {
    /// An empty one.
    pub fn new(world: &World) -> Self {
        let store = Simulated::new(|| Instant::now().into_std());
        let server = Self(Arc::new(Inner { store, state: watch::Sender::new(State::Up(0)) }));
        let ticking = server.clone();
        world.spawn(async move {
            loop {
                sleep(millis(45, 60)).await;
                if matches!(*ticking.0.state.borrow(), State::Up(_)) {
                    ticking.0.store.tick();
                }
            }
        });
        server
    }

    /// What it holds, past every network.
    pub fn store(&self) -> &Simulated {
        &self.0.store
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// The next sync of its disk that has something to write goes wrong.
    pub fn fail(&self, fault: DiskFault) {
        self.0.store.fail(fault);
    }

    /// Stops it for so long. Does nothing when it is stopped or down already.
    pub fn pause(&self, world: &World, duration: Duration) {
        let State::Up(epoch) = *self.0.state.borrow() else { return };
        self.0.state.send_replace(State::Paused(epoch));
        let server = self.clone();
        world.spawn(async move {
            sleep(duration).await;
            server.0.state.send_if_modified(|state| {
                let paused = *state == State::Paused(epoch);
                if paused {
                    *state = State::Up(epoch);
                }
                paused
            });
        });
    }

    /// Kills it, and starts it again after so long. Does nothing when it is down already.
    pub fn restart(&self, world: &World, away: Duration) {
        let (State::Up(epoch) | State::Paused(epoch)) = *self.0.state.borrow() else { return };
        self.0.state.send_replace(State::Down(epoch));
        let server = self.clone();
        world.spawn(async move {
            sleep(away).await;
            server.0.store.restart();
            server.0.state.send_replace(State::Up(epoch + 1));
        });
    }
}
