//! The ring algorithm: a token goes round, takes the largest member's name along, and whoever gets its own name back leads.
//!
//! E. Chang and R. Roberts, "An improved algorithm for decentralized extrema-finding in circular configurations of processes",
//! Communications of the ACM 22(5), 1979. They assume that nobody fails. Beside the paper: a message that is not acknowledged
//! goes to the next but one, one that has gone round twice is dropped, and the leader sends its name round again and again.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Algorithm, Effect, Event, Peer, Timing};

/// What goes round. `hops` counts how often it was passed on; `number` tells one from the next of the same member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RingMessage {
    /// The largest member so far is `best`.
    Token {
        /// Its name.
        best: Peer,
        /// Which of its tokens.
        number: u64,
        /// How often it was passed on.
        hops: u32,
    },
    /// This one leads.
    Leads {
        /// Its name.
        leader: Peer,
        /// Which of its messages.
        number: u64,
        /// How often it was passed on.
        hops: u32,
    },
}

/// A member of an election by the ring algorithm.
#[derive(Clone, Debug)]
pub struct Ring {
    me: Peer,
    timing: Timing,
    members: BTreeSet<Peer>,
    phase: Phase,
    /// An election that it has taken part in should have come to an end by then.
    takes_part: Option<Duration>,
    /// What it has passed on. A message whose acknowledgement was lost goes to two members, and without this each of the two
    /// would go round, and be doubled again.
    passed: VecDeque<RingMessage>,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Calls an election at `until`, unless it hears of a leader.
    Follows { leader: Option<Peer>, until: Duration },
    /// Says so again at `beat`.
    Leads { beat: Duration },
}

/// How much of what it has passed on a member remembers.
const PASSED: usize = 64;

type Effects = Vec<Effect<RingMessage>>;

impl Algorithm for Ring {
    type Message = RingMessage;

    const NAME: &'static str = "ring";

    fn new(me: Peer, timing: Timing, now: Duration) -> Self {
        let phase = Phase::Follows { leader: None, until: now + timing.silence() };
        Self { me, timing, members: BTreeSet::new(), phase, takes_part: None, passed: VecDeque::new() }
    }

    fn step(&mut self, event: Event<RingMessage>, now: Duration) -> Effects {
        let before = self.leader().cloned();
        let mut effects = match event {
            Event::Call => self.call(now),
            Event::Tick => self.tick(now),
            Event::Members(members) => self.changed(members, now),
            Event::Message { from, message } if self.members.contains(&from) => self.heard(message, now),
            Event::Message { .. } => Vec::new(),
            Event::Undelivered { to, message } => self.pass(&to, message, now),
        };
        if self.leader() != before.as_ref() {
            effects.insert(0, Effect::Leader(self.leader().cloned()));
        }
        effects
    }

    fn wake(&self) -> Duration {
        match (&self.phase, self.takes_part) {
            (Phase::Follows { .. }, Some(over)) => over,
            (Phase::Follows { until, .. }, None) => *until,
            (Phase::Leads { beat }, over) => over.map_or(*beat, |over| over.min(*beat)),
        }
    }

    fn leader(&self) -> Option<&Peer> {
        match &self.phase {
            Phase::Follows { leader, .. } => leader.as_ref(),
            Phase::Leads { .. } => Some(&self.me),
        }
    }

    fn me(&self) -> &Peer {
        &self.me
    }
}

impl Ring {
    fn call(&mut self, now: Duration) -> Effects {
        // Whom it followed is what is in question.
        self.phase = Phase::Follows { leader: None, until: now + self.timing.silence() };
        // Twice round, each hop with its answer.
        let hops = u32::try_from(self.members.len()).unwrap_or(u32::MAX).saturating_mul(2).max(2);
        self.takes_part = Some(now + self.timing.answer().saturating_mul(hops));
        self.pass(&self.me.clone(), RingMessage::Token { best: self.me.clone(), number: number(now), hops: 0 }, now)
    }

    fn lead(&mut self, now: Duration) -> Effects {
        self.takes_part = None;
        self.phase = Phase::Leads { beat: now + self.timing.beat() };
        self.pass(&self.me.clone(), RingMessage::Leads { leader: self.me.clone(), number: number(now), hops: 0 }, now)
    }

    fn tick(&mut self, now: Duration) -> Effects {
        if self.takes_part.is_some_and(|over| now >= over) {
            return self.call(now);
        }
        match &mut self.phase {
            Phase::Leads { beat } if now >= *beat => self.lead(now),
            Phase::Follows { leader, until } if now >= *until && self.takes_part.is_none() => {
                *leader = None;
                self.call(now)
            }
            _ => Vec::new(),
        }
    }

    fn changed(&mut self, members: BTreeSet<Peer>, now: Duration) -> Effects {
        let new = members.difference(&self.members).any(|peer| *peer > self.me);
        self.members = members;
        match &mut self.phase {
            Phase::Follows { leader: Some(leader), .. } if self.members.contains(leader) => Vec::new(),
            Phase::Follows { leader, .. } => {
                *leader = None;
                self.call(now)
            }
            Phase::Leads { .. } if new => self.call(now),
            Phase::Leads { .. } => Vec::new(),
        }
    }

    /// Hands a message to whoever comes after `after`. When that is this member itself, it has gone round.
    fn pass(&mut self, after: &Peer, message: RingMessage, now: Duration) -> Effects {
        let others = || self.members.iter().filter(|peer| **peer != self.me);
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        let next = self.members.range::<Peer, _>(behind).next().or(self.members.first());
        match next.filter(|next| **next != self.me && others().next().is_some()) {
            Some(next) => vec![Effect::Send { to: next.clone(), message }],
            // Nobody else is there.
            None if message_is_of(&message, &self.me) => self.heard(message, now),
            None => Vec::new(),
        }
    }

    /// Whether this one was here before; remembers that it was.
    fn has_passed(&mut self, message: &RingMessage) -> bool {
        let mut plain = message.clone();
        let (RingMessage::Token { hops, .. } | RingMessage::Leads { hops, .. }) = &mut plain;
        *hops = 0;
        // What has gone round is judged by whom it names, each time.
        if message_is_of(message, &self.me) {
            return false;
        }
        if self.passed.contains(&plain) {
            return true;
        }
        self.passed.truncate(PASSED - 1);
        self.passed.push_front(plain);
        false
    }

    fn heard(&mut self, message: RingMessage, now: Duration) -> Effects {
        let (RingMessage::Token { hops, .. } | RingMessage::Leads { hops, .. }) = message;
        // Else one whose owner is gone would go round for ever.
        if hops as usize > 2 * self.members.len() || self.has_passed(&message) {
            return Vec::new();
        }
        let me = self.me.clone();
        match message {
            RingMessage::Token { best, .. } if best == me => self.lead(now),
            RingMessage::Token { best, number, hops } if best > me => {
                let rounds = 2 * u32::try_from(self.members.len()).unwrap_or(u32::MAX / 2);
                self.takes_part = Some(now + self.timing.answer().saturating_mul(rounds));
                self.pass(&me, RingMessage::Token { best, number, hops: hops + 1 }, now)
            }
            RingMessage::Token { .. } if self.takes_part.is_some() => Vec::new(),
            RingMessage::Token { .. } if matches!(self.phase, Phase::Leads { .. }) => self.lead(now),
            // The paper puts the own name into the token that goes on; that is the same.
            RingMessage::Token { .. } => self.call(now),
            RingMessage::Leads { leader, .. } if leader == me => Vec::new(),
            RingMessage::Leads { leader, number, hops } => match &self.phase {
                // The larger of two leaders stays; the other hears of it when its name comes round.
                Phase::Follows { leader: Some(mine), until }
                    if *mine > leader && now < *until && self.takes_part.is_none() =>
                {
                    Vec::new()
                }
                Phase::Leads { .. } if leader < me => Vec::new(),
                _ if leader > me => {
                    self.takes_part = None;
                    self.phase = Phase::Follows { leader: Some(leader.clone()), until: now + self.timing.silence() };
                    self.pass(&me, RingMessage::Leads { leader, number, hops: hops + 1 }, now)
                }
                _ if self.takes_part.is_none() => self.call(now),
                _ => Vec::new(),
            },
        }
    }
}

/// Differs from all that this member has sent for a long time, also before a restart.
fn number(now: Duration) -> u64 {
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

fn message_is_of(message: &RingMessage, me: &Peer) -> bool {
    let (RingMessage::Token { best: name, .. } | RingMessage::Leads { leader: name, .. }) = message;
    name == me
}
