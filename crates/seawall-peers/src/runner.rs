//! Runs an election among the members of a service that the registry knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use http::Method;
use seawall_discovery::Control;
use seawall_drain::Drain;
use seawall_types::{ServiceName, Snapshot, Status};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::{Algorithm, Effect, Event, Peer, Timing};

/// How many messages may wait for this member; a member says a few at a time, and what is refused is said again.
const INBOX: usize = 256;
/// How many messages may be under way from this member; more are not sent.
const OUTBOX: usize = 256;
/// The largest message.
const MAX_BODY: usize = 4096;
/// By which part of the silence a member may be later than it has to, so that not all of them call at once.
const JITTER: f64 = 0.1;

/// Who this is, and among whom it stands.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The service whose instances that are up take part.
    pub service: ServiceName,
    /// The id of this instance.
    pub me: Peer,
}

/// Who leads, as far as this member knows. There is no term and no fencing token: another may believe to lead at the same
/// moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Standing {
    me: Peer,
    leader: watch::Receiver<Option<Peer>>,
}

impl Standing {
    /// Who leads.
    pub fn leader(&self) -> Option<Peer> {
        self.leader.borrow().clone()
    }

    /// Whether this member leads, as far as it knows.
    pub fn leads(&self) -> bool {
        self.leader.borrow().as_ref() == Some(&self.me)
    }

    /// Resolves with the next leader, or with `None` when the one before is lost; ends with an `Err` when the runner has ended.
    /// Cancel safe. Changes that follow each other fast are seen as one.
    ///
    /// # Errors
    /// The runner has ended.
    pub async fn changed(&mut self) -> Result<Option<Peer>, watch::error::RecvError> {
        self.leader.changed().await?;
        Ok(self.leader.borrow_and_update().clone())
    }
}

/// A member of an election.
pub struct Runner<A: Algorithm> {
    machine: A,
    timing: Timing,
    membership: Membership,
    from: Instant,
    inbox: mpsc::Receiver<Said<A::Message>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    leader: watch::Sender<Option<Peer>>,
    peers: BTreeMap<Peer, (SocketAddr, Control)>,
    under_way: JoinSet<Option<Event<A::Message>>>,
}

impl<A: Algorithm> fmt::Debug for Runner<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// A message as it is sent.
#[derive(Debug, Serialize, Deserialize)]
struct Said<M> {
    from: Peer,
    message: M,
}

/// Where the messages of an election are posted.
fn path<A: Algorithm>() -> String {
    format!("/seawall/elections/{}", A::NAME)
}

impl<A: Algorithm> Runner<A> {
    /// A member, the route by which the others reach it, to be merged into what serves this instance's address, and who leads.
    /// `snapshots` is what a `seawall_discovery::Subscriber` publishes. Members trust each other: whoever can reach the route
    /// can disturb the election.
    pub fn new(
        membership: Membership,
        timing: Timing,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> (Self, Router, Standing) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let leader = watch::Sender::new(None);
        let standing = Standing { me: membership.me.clone(), leader: leader.subscribe() };
        let machine = A::new(membership.me.clone(), timing, Duration::ZERO);
        let (from, peers, under_way) = (Instant::now(), BTreeMap::new(), JoinSet::new());
        let runner = Self { machine, timing, membership, from, inbox, snapshots, leader, peers, under_way };
        let router = Router::new().route(&path::<A>(), post(hear::<A::Message>)).with_state(sender);
        (runner, router.layer(DefaultBodyLimit::max(MAX_BODY)), standing)
    }

    /// Takes part until `drain` signals or nobody publishes snapshots any more; then it leads no longer. The others notice by
    /// its silence, or sooner by the registry.
    pub async fn run(mut self, drain: Drain) {
        self.snapshots.mark_changed();
        loop {
            let jitter = self.timing.silence().mul_f64(JITTER * fastrand::f64());
            let wake = self.machine.wake();
            // A beat is on time, a suspicion needs not be.
            let wake = self.from + if self.machine.leads() { wake } else { wake + jitter };
            let event = tokio::select! {
                () = drain.signaled() => break,
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => self.members(),
                    Err(_) => break,
                },
                Some(Said { from, message }) = self.inbox.recv() => Event::Message { from, message },
                Some(sent) = self.under_way.join_next() => match sent {
                    Ok(Some(event)) => event,
                    _ => continue,
                },
                () = sleep_until(wake) => Event::Tick,
            };
            for effect in self.machine.step(event, self.from.elapsed()) {
                self.perform(effect);
            }
        }
        self.leader.send_replace(None);
    }

    fn members(&mut self) -> Event<A::Message> {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let up = snapshot.instances(self.membership.service.as_str()).iter();
        let addresses: BTreeMap<Peer, SocketAddr> = up
            .filter(|instance| instance.status == Status::Up && instance.id != self.membership.me)
            .map(|instance| (instance.id.clone(), SocketAddr::new(instance.address, instance.port)))
            .collect();
        self.peers.retain(|peer, (at, _)| addresses.get(peer) == Some(at));
        for (peer, at) in &addresses {
            self.peers.entry(peer.clone()).or_insert_with(|| (*at, Control::new([*at])));
        }
        let members: BTreeSet<Peer> = addresses.into_keys().chain([self.membership.me.clone()]).collect();
        Event::Members(members)
    }

    fn perform(&mut self, effect: Effect<A::Message>) {
        match effect {
            Effect::Leader(leader) => {
                let name = leader.as_ref().map_or("nobody", |leader| leader.as_str());
                tracing::info!(service = %self.membership.service, algorithm = A::NAME, leader = name, "another leader");
                self.leader.send_replace(leader);
            }
            Effect::Send { to, message } => self.send(to, message),
        }
    }

    fn send(&mut self, to: Peer, message: A::Message) {
        let peer = self.peers.get(&to).map(|(_, peer)| peer.clone()).filter(|_| self.under_way.len() < OUTBOX);
        let said = Said { from: self.membership.me.clone(), message: message.clone() };
        let answer = self.timing.answer();
        self.under_way.spawn(async move {
            let body = serde_json::to_vec(&said).expect("plain data");
            let sent = match peer {
                Some(peer) => peer.send(Method::POST, &path::<A>(), body, answer).await.map(drop),
                None => return Some(Event::Undelivered { to, message }),
            };
            let error = sent.err()?;
            tracing::debug!(%to, %error, "a message of an election was not acknowledged");
            Some(Event::Undelivered { to, message })
        });
    }
}

async fn hear<M>(
    State(inbox): State<mpsc::Sender<Said<M>>>,
    Json(said): Json<Said<M>>,
) -> (StatusCode, Json<serde_json::Value>) {
    match inbox.try_send(said) {
        Ok(()) => (StatusCode::ACCEPTED, Json(json!({}))),
        Err(_) => {
            let error = "this member takes no messages at the moment: it has too many, or has ended";
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error, "code": "busy" })))
        }
    }
}
