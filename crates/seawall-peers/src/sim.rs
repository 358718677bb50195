//! Elections in a simulated network: pure, seeded, and the same again for the same seed. Links can be cut and slow, members
//! paused and killed; who believes to lead is written down at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::{Algorithm, Effect, Event, Peer, Timing};

/// A moment at which those who believe to lead were others than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// When.
    pub at: Duration,
    /// Who, in order.
    pub leaders: Vec<Peer>,
}

/// A fleet.
#[derive(Debug)]
pub struct Sim<A: Algorithm> {
    now: Duration,
    random: fastrand::Rng,
    timing: Timing,
    members: BTreeMap<Peer, Member<A>>,
    /// What is under way, by the time of its arrival and the order of its beginning.
    under_way: BTreeMap<(Duration, u64), Arrival<A::Message>>,
    sent: u64,
    latency: (Duration, Duration),
    cut: BTreeSet<(Peer, Peer)>,
    history: Vec<Moment>,
}

/// What happens to whom.
type Arrival<M> = (Peer, Event<M>);

#[derive(Debug)]
struct Member<A> {
    machine: A,
    paused: bool,
    killed: bool,
    /// What has arrived while it was paused.
    missed: Vec<u64>,
}

impl<A: Algorithm> Sim<A> {
    /// A fleet of `p1` to `pN`, at most 9, that knows of no leader. Messages take 1 to 10 ms.
    pub fn new(count: u8, timing: Timing, seed: u64) -> Self {
        let names: BTreeSet<Peer> = (1..=count.min(9)).map(peer).collect();
        let now = Duration::ZERO;
        let start = |name: &Peer| {
            let machine = A::new(name.clone(), timing, now);
            (name.clone(), Member { machine, paused: false, killed: false, missed: Vec::new() })
        };
        let members = names.iter().map(start).collect();
        let latency = (Duration::from_millis(1), Duration::from_millis(10));
        let random = fastrand::Rng::with_seed(seed);
        let (under_way, cut) = (BTreeMap::new(), BTreeSet::new());
        let history = vec![Moment { at: now, leaders: Vec::new() }];
        let mut sim = Self { now, random, timing, members, under_way, sent: 0, latency, cut, history };
        for name in &names {
            sim.give(name, Event::Members(names.clone()));
        }
        sim
    }

    /// How long messages take from now on. What takes longer than [`Timing::answer`] arrives, and counts as undelivered.
    pub fn latency(&mut self, shortest: Duration, longest: Duration) {
        self.latency = (shortest, longest.max(shortest));
    }

    /// Cuts the network in two: these on one side, all others on the other. What is under way arrives.
    pub fn partition(&mut self, side: &[u8]) {
        let side: BTreeSet<Peer> = side.iter().map(|number| peer(*number)).collect();
        let (here, there): (Vec<_>, Vec<_>) = self.members.keys().cloned().partition(|name| side.contains(name));
        for (a, b) in here.iter().flat_map(|a| there.iter().map(move |b| (a, b))) {
            self.cut.extend([(a.clone(), b.clone()), (b.clone(), a.clone())]);
        }
    }

    /// Cuts one direction between two.
    pub fn cut(&mut self, from: u8, to: u8) {
        self.cut.insert((peer(from), peer(to)));
    }

    /// Mends the network.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Stops a member's time; what is sent to it waits.
    pub fn pause(&mut self, number: u8) {
        if let Some(member) = self.members.get_mut(&peer(number)) {
            member.paused = true;
        }
    }

    /// Lets it go on.
    pub fn resume(&mut self, number: u8) {
        let name = peer(number);
        let Some(member) = self.members.get_mut(&name) else { return };
        member.paused = false;
        for order in std::mem::take(&mut member.missed) {
            if let Some(kept) = self.under_way.remove(&(Duration::MAX, order)) {
                self.under_way.insert((self.now, order), kept);
            }
        }
    }

    /// Ends a member.
    pub fn kill(&mut self, number: u8) {
        if let Some(member) = self.members.get_mut(&peer(number)) {
            member.killed = true;
        }
        self.write_down();
    }

    /// Lets a member call an election.
    pub fn call(&mut self, number: u8) {
        self.give(&peer(number), Event::Call);
    }

    /// Lets the time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.under_way.keys().next().map(|(at, _)| *at).filter(|at| *at <= end);
            let awake = self.members.iter().filter(|(_, member)| !member.paused && !member.killed);
            let wake = awake.map(|(name, member)| (member.machine.wake(), name.clone())).min();
            let wake = wake.filter(|(at, _)| *at <= end);
            match (arrival, wake) {
                (Some(at), wake) if wake.as_ref().is_none_or(|(wake, _)| at <= *wake) => {
                    let Some((key, (to, event))) = self.under_way.pop_first() else { return };
                    self.now = self.now.max(at);
                    self.arrive(key.1, &to, event);
                }
                (_, Some((at, name))) => {
                    self.now = self.now.max(at);
                    self.give(&name, Event::Tick);
                }
                (_, None) => break,
            }
        }
        self.now = end;
    }

    fn arrive(&mut self, order: u64, to: &Peer, event: Event<A::Message>) {
        let Some(member) = self.members.get_mut(to) else { return };
        if member.paused {
            member.missed.push(order);
            self.under_way.insert((Duration::MAX, order), (to.clone(), event));
        } else {
            self.give(to, event);
        }
    }

    fn give(&mut self, to: &Peer, event: Event<A::Message>) {
        let now = self.now;
        let Some(member) = self.members.get_mut(to).filter(|member| !member.killed) else { return };
        for effect in member.machine.step(event, now) {
            if let Effect::Send { to: other, message } = effect {
                self.send(to, other, message);
            }
        }
        self.write_down();
    }

    fn send(&mut self, from: &Peer, to: Peer, message: A::Message) {
        self.sent += 1;
        let (shortest, longest) = self.latency;
        let span = u64::try_from((longest - shortest).as_micros()).unwrap_or(u64::MAX);
        let takes = shortest + Duration::from_micros(self.random.u64(0..=span));
        let gone =
            self.cut.contains(&(from.clone(), to.clone())) || self.members.get(&to).is_none_or(|member| member.killed);
        let paused = self.members.get(&to).is_some_and(|member| member.paused);
        let answer_is_cut = self.cut.contains(&(to.clone(), from.clone()));
        if gone || paused || answer_is_cut || 2 * takes > self.timing.answer() {
            let event = Event::Undelivered { to: to.clone(), message: message.clone() };
            self.under_way.insert((self.now + self.timing.answer(), 2 * self.sent), (from.clone(), event));
        }
        if !gone {
            let event = Event::Message { from: from.clone(), message };
            self.under_way.insert((self.now + takes, 2 * self.sent + 1), (to, event));
        }
    }

    fn write_down(&mut self) {
        let leads = |member: &&Member<A>| !member.killed && member.machine.leads();
        let leaders: Vec<Peer> =
            self.members.values().filter(leads).map(|member| member.machine.me().clone()).collect();
        match self.history.last_mut() {
            Some(last) if last.leaders == leaders => {}
            Some(last) if last.at == self.now => last.leaders = leaders,
            _ => self.history.push(Moment { at: self.now, leaders }),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// How many messages were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Who believes to lead at this moment.
    pub fn leaders(&self) -> &[Peer] {
        self.history.last().map_or(&[], |moment| &moment.leaders)
    }

    /// Whom each living member that is not paused follows.
    pub fn followed(&self) -> BTreeMap<Peer, Option<Peer>> {
        let alive = self.members.values().filter(|member| !member.killed && !member.paused);
        alive.map(|member| (member.machine.me().clone(), member.machine.leader().cloned())).collect()
    }

    /// Every change of those who believe to lead.
    pub fn history(&self) -> &[Moment] {
        &self.history
    }

    /// For how long there were two leaders or more.
    pub fn with_two(&self) -> Duration {
        let ends = self.history.iter().skip(1).map(|moment| moment.at).chain([self.now]);
        let spans = self.history.iter().zip(ends);
        spans.filter(|(moment, _)| moment.leaders.len() > 1).map(|(moment, end)| end - moment.at).sum()
    }
}

/// The member of this number.
pub fn peer(number: u8) -> Peer {
    Peer::try_new(&format!("p{number}")).expect("a valid name")
}
