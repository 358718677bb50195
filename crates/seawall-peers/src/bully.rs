//! The bully algorithm: whoever hears nothing from those above it leads, and says so to all.
//!
//! H. Garcia-Molina, "Elections in a Distributed Computing System", IEEE Transactions on Computers C-31(1), 1982. His
//! assumptions are that every message arrives within a known time and that nobody pauses; the election is safe under those and
//! under no others. Beside the paper: the leader repeats that it leads, in place of being asked.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Algorithm, Effect, Event, Peer, Timing};

/// What bullies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BullyMessage {
    /// To those above: I call an election, are you there?
    Call,
    /// To who is below: I am, leave it to me.
    Alive,
    /// To all: I lead.
    Leads,
}

/// A member of an election by the bully algorithm.
#[derive(Clone, Debug)]
pub struct Bully {
    me: Peer,
    timing: Timing,
    members: BTreeSet<Peer>,
    phase: Phase,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Calls an election at `until`, unless it hears of a leader.
    Follows { leader: Option<Peer>, until: Duration },
    /// Has asked those above, and leads at `until`.
    Calls { until: Duration },
    /// Somebody above lives, and should lead before `until`.
    Waits { until: Duration },
    /// Says so again at `beat`.
    Leads { beat: Duration },
}

type Effects = Vec<Effect<BullyMessage>>;

impl Algorithm for Bully {
    type Message = BullyMessage;

    const NAME: &'static str = "bully";

    fn new(me: Peer, timing: Timing, now: Duration) -> Self {
        let phase = Phase::Follows { leader: None, until: now + timing.silence() };
        Self { me, timing, members: BTreeSet::new(), phase }
    }

    fn step(&mut self, event: Event<BullyMessage>, now: Duration) -> Effects {
        let before = self.leader().cloned();
        let mut effects = match event {
            Event::Call => self.call(now),
            Event::Tick if now < self.wake() => Vec::new(),
            Event::Tick => match self.phase {
                Phase::Follows { .. } | Phase::Waits { .. } => self.call(now),
                Phase::Calls { .. } | Phase::Leads { .. } => self.lead(now),
            },
            Event::Members(members) => self.changed(members, now),
            Event::Message { from, message } if self.members.contains(&from) => self.heard(from, message, now),
            // Those above have their time to answer either way.
            Event::Message { .. } | Event::Undelivered { .. } => Vec::new(),
        };
        if self.leader() != before.as_ref() {
            effects.insert(0, Effect::Leader(self.leader().cloned()));
        }
        effects
    }

    fn wake(&self) -> Duration {
        match self.phase {
            Phase::Follows { until, .. } | Phase::Calls { until } | Phase::Waits { until } => until,
            Phase::Leads { beat } => beat,
        }
    }

    fn leader(&self) -> Option<&Peer> {
        match &self.phase {
            Phase::Follows { leader, .. } => leader.as_ref(),
            Phase::Leads { .. } => Some(&self.me),
            Phase::Calls { .. } | Phase::Waits { .. } => None,
        }
    }

    fn me(&self) -> &Peer {
        &self.me
    }
}

impl Bully {
    fn call(&mut self, now: Duration) -> Effects {
        let above: Vec<Peer> = self.members.iter().filter(|peer| **peer > self.me).cloned().collect();
        if above.is_empty() {
            return self.lead(now);
        }
        self.phase = Phase::Calls { until: now + self.timing.answer() };
        above.into_iter().map(|to| Effect::Send { to, message: BullyMessage::Call }).collect()
    }

    fn lead(&mut self, now: Duration) -> Effects {
        self.phase = Phase::Leads { beat: now + self.timing.beat() };
        let others = self.members.iter().filter(|peer| **peer != self.me).cloned();
        others.map(|to| Effect::Send { to, message: BullyMessage::Leads }).collect()
    }

    fn changed(&mut self, members: BTreeSet<Peer>, now: Duration) -> Effects {
        let new = members.difference(&self.members).any(|peer| *peer > self.me);
        self.members = members;
        match &self.phase {
            Phase::Follows { leader: Some(leader), .. } if self.members.contains(leader) => Vec::new(),
            Phase::Leads { .. } if !new => Vec::new(),
            Phase::Calls { .. } | Phase::Waits { .. } if !new => Vec::new(),
            _ => self.call(now),
        }
    }

    fn heard(&mut self, from: Peer, message: BullyMessage, now: Duration) -> Effects {
        let answer = |message| vec![Effect::Send { to: from.clone(), message }];
        match (message, &self.phase) {
            (BullyMessage::Call, Phase::Leads { .. }) => answer(BullyMessage::Leads),
            // It takes over. From above it would be out of place: who is above asks nobody below.
            (BullyMessage::Call, Phase::Follows { .. }) if from < self.me => {
                let mut effects = answer(BullyMessage::Alive);
                effects.extend(self.call(now));
                effects
            }
            (BullyMessage::Call, _) if from < self.me => answer(BullyMessage::Alive),
            (BullyMessage::Alive, Phase::Calls { .. }) if from > self.me => {
                // Its own call takes an answer, and what follows from that a little more.
                self.phase = Phase::Waits { until: now + 3 * self.timing.answer() };
                Vec::new()
            }
            (BullyMessage::Leads, Phase::Follows { leader: Some(leader), until }) if from < *leader && now < *until => {
                // The larger of two leaders stays; it will hear of it from the other.
                Vec::new()
            }
            (BullyMessage::Leads, _) if from > self.me => {
                self.phase = Phase::Follows { leader: Some(from), until: now + self.timing.silence() };
                Vec::new()
            }
            (BullyMessage::Leads, Phase::Leads { .. }) => answer(BullyMessage::Leads),
            // This is where the name comes from.
            (BullyMessage::Leads, Phase::Follows { .. }) => self.call(now),
            _ => Vec::new(),
        }
    }
}
