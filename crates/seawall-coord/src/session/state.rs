//! What a session knows and when it is over, pure: no clock, no I/O, no await.
//!
//! The deadline is the holder's own. It is computed from the moment **before** the last successful keep-alive was sent, since
//! the backend's clock for the session begins after that; it leaves room for clocks that differ in speed and for the
//! holder's own reaction. So it passes before the backend can give anything away, and needs no answer from it to pass.

use std::time::Duration;

use crate::clock::Boot;
use crate::session::Why;

/// How much faster than the backend's this clock may be said to run: one percent and two milliseconds.
const DRIFT: (u32, Duration) = (100, Duration::from_millis(2));
/// The first wait after a failed keep-alive is at most this, or a twelfth of the time to live if that is less.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The times of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    /// How long the backend keeps the session without a keep-alive.
    pub(crate) ttl: Duration,
    /// How long before that the holder stops.
    pub(crate) margin: Duration,
    /// Whether it is kept alive, or ends when its time is over.
    pub(crate) renewed: bool,
}

impl Times {
    /// The margin that nobody has chosen: a tenth, and 50 ms at least.
    pub(crate) fn default_margin(ttl: Duration) -> Duration {
        (ttl / 10).max(Duration::from_millis(50))
    }

    /// How long the holder may believe in the session after it began to send a keep-alive.
    pub(crate) fn valid(&self) -> Duration {
        (self.ttl - self.ttl / DRIFT.0).saturating_sub(DRIFT.1).saturating_sub(self.margin)
    }

    /// How long one keep-alive may take before it counts as failed.
    pub(crate) fn patience(&self) -> Duration {
        self.ttl / 3
    }
}

/// What happens to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A keep-alive that was sent at `sent` was answered: the backend keeps the session for `ttl` from then on.
    Renewed { sent: Boot, ttl: Duration },
    /// A keep-alive failed or was not answered, and the session may live or not.
    Failed,
    /// Somebody wants a keep-alive now.
    Wanted,
    /// It is over for another reason than its own deadline.
    Over(Why),
    /// Time has passed; the runner asks what there is to do.
    Look,
    /// Time has passed; a holder asks whether it is still one. Nothing else is done.
    Check,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Send a keep-alive.
    Renew,
    /// Tell every holder; comes once.
    Lose(Why),
}

/// A session.
#[derive(Clone, Debug)]
pub(crate) struct State {
    times: Times,
    deadline: Boot,
    /// When the next keep-alive is due; `None` while one is under way, and when there will be none.
    due: Option<Boot>,
    failures: u32,
    /// Somebody asked for a keep-alive and has not had one.
    wanted: bool,
    over: Option<Why>,
}

impl State {
    /// A session that the backend has opened when asked at `sent`, for the time that it says.
    pub(crate) fn new(times: Times, sent: Boot) -> Self {
        let due = times.renewed.then(|| sent + times.ttl / 3);
        Self { times, deadline: sent + times.valid(), due, failures: 0, wanted: false, over: None }
    }

    pub(crate) fn times(&self) -> &Times {
        &self.times
    }

    /// Until when the holder may believe in it.
    pub(crate) fn deadline(&self) -> Boot {
        self.deadline
    }

    /// Why it is over, if it is.
    pub(crate) fn over(&self) -> Option<Why> {
        self.over
    }

    /// When to look again if nothing happens before; `None` once it is over.
    pub(crate) fn wake(&self) -> Option<Boot> {
        self.over.is_none().then(|| self.due.map_or(self.deadline, |due| due.min(self.deadline)))
    }

    /// `jitter` is from 0 to 1.
    pub(crate) fn step(&mut self, event: Event, now: Boot, jitter: f64) -> Option<Effect> {
        if self.over.is_some() {
            return None;
        }
        // First of all: an answer that comes after the deadline is too late, a holder may have stopped already.
        if now >= self.deadline {
            return self.lose(Why::Expired);
        }
        match event {
            Event::Renewed { sent, ttl } => {
                let times = Times { ttl: ttl.min(self.times.ttl), ..self.times };
                self.deadline = self.deadline.max(sent + times.valid());
                self.failures = 0;
                self.wanted = false;
                self.due = self.times.renewed.then(|| sent + times.ttl / 3);
                None
            }
            Event::Failed => {
                self.failures = self.failures.saturating_add(1);
                self.due = (self.times.renewed || self.wanted).then(|| now + self.pause(jitter));
                None
            }
            Event::Wanted => {
                self.wanted = true;
                self.renew()
            }
            Event::Over(why) => self.lose(why),
            Event::Look if self.due.is_some_and(|due| now >= due) => self.renew(),
            Event::Look | Event::Check => None,
        }
    }

    fn renew(&mut self) -> Option<Effect> {
        self.due = None;
        Some(Effect::Renew)
    }

    fn lose(&mut self, why: Why) -> Option<Effect> {
        self.over = Some(why);
        self.due = None;
        Some(Effect::Lose(why))
    }

    /// Full jitter: a crowd of sessions that lost the same backend comes back spread out.
    fn pause(&self, jitter: f64) -> Duration {
        let first = FIRST_RETRY.min(self.times.ttl / 12);
        let most = first.saturating_mul(1 << self.failures.saturating_sub(1).min(10)).min(self.times.ttl / 6);
        // Never none at all: a backend that refuses at once is not asked in a circle.
        most.mul_f64(jitter.clamp(0.1, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn times() -> Times {
        Times { ttl: TTL, margin: Times::default_margin(TTL), renewed: true }
    }

    fn at(millis: u64) -> Boot {
        Boot::after(Duration::from_millis(millis))
    }

    #[test]
    fn the_deadline_counts_from_the_sending_and_leaves_a_margin() {
        let mut state = State::new(times(), at(0));
        assert_eq!(state.deadline(), at(10_000 - 100 - 2 - 1000));
        // Sent at 4 s, answered at 8 s: the backend may have begun at 4 s.
        assert_eq!(state.step(Event::Look, at(3_333), 1.0), None);
        assert_eq!(state.step(Event::Look, at(3_334), 1.0), Some(Effect::Renew));
        assert_eq!(state.step(Event::Renewed { sent: at(4_000), ttl: TTL }, at(8_000), 1.0), None);
        assert_eq!(state.deadline(), at(12_898));
        // The next is due a third after that sending, so at once.
        assert_eq!(state.step(Event::Look, at(8_001), 1.0), Some(Effect::Renew));
    }

    #[test]
    fn one_keep_alive_at_a_time_and_failures_are_tried_again_until_the_deadline() {
        let mut state = State::new(times(), at(0));
        assert_eq!(state.step(Event::Look, at(4_000), 1.0), Some(Effect::Renew));
        assert_eq!(state.step(Event::Look, at(5_000), 1.0), None, "one is under way");
        let (mut now, mut tries) = (5_000, 0);
        let lost = loop {
            if state.step(Event::Failed, at(now), 1.0).is_some() {
                break now;
            }
            match state.wake() {
                Some(wake) => now = wake.since(at(0)).as_millis() as u64,
                None => break now,
            }
            match state.step(Event::Look, at(now), 1.0) {
                Some(Effect::Renew) => tries += 1,
                Some(Effect::Lose(why)) => {
                    assert_eq!(why, Why::Expired);
                    break now;
                }
                None => {}
            }
        };
        assert_eq!(lost, 8_898);
        assert!((5..20).contains(&tries), "{tries}");
        assert_eq!(state.wake(), None);
    }

    #[test]
    fn an_answer_after_the_deadline_is_too_late_for_ever() {
        let mut state = State::new(times(), at(0));
        assert_eq!(state.step(Event::Look, at(8_000), 1.0), Some(Effect::Renew));
        let late = Event::Renewed { sent: at(8_000), ttl: TTL };
        assert_eq!(state.step(late, at(8_898), 1.0), Some(Effect::Lose(Why::Expired)));
        assert_eq!(state.step(late, at(8_899), 1.0), None);
        assert_eq!(state.over(), Some(Why::Expired));
    }

    #[test]
    fn a_check_begins_nothing() {
        let mut state = State::new(times(), at(0));
        assert_eq!(state.step(Event::Check, at(5_000), 1.0), None);
        assert_eq!(state.step(Event::Look, at(5_000), 1.0), Some(Effect::Renew), "the check has not swallowed it");
        assert_eq!(state.step(Event::Check, at(9_000), 1.0), Some(Effect::Lose(Why::Expired)));
    }

    #[test]
    fn without_renewal_it_ends_when_its_time_is_over() {
        let mut state = State::new(Times { renewed: false, ..times() }, at(0));
        assert_eq!(state.wake(), Some(at(8_898)));
        assert_eq!(state.step(Event::Look, at(5_000), 1.0), None);
        assert_eq!(state.step(Event::Wanted, at(5_000), 1.0), Some(Effect::Renew), "unless somebody asks");
        assert_eq!(state.step(Event::Failed, at(5_010), 1.0), None);
        assert_eq!(state.step(Event::Look, at(5_110), 1.0), Some(Effect::Renew), "and then until it succeeds");
        assert_eq!(state.step(Event::Renewed { sent: at(5_110), ttl: TTL }, at(5_111), 1.0), None);
        assert_eq!(state.wake(), Some(at(14_008)));
    }

    #[test]
    fn a_backend_that_grants_less_is_believed() {
        let mut state = State::new(times(), at(0));
        state.step(Event::Renewed { sent: at(6_000), ttl: Duration::from_secs(5) }, at(6_001), 1.0);
        assert_eq!(state.deadline(), at(6_000 + 5_000 - 50 - 2 - 1_000));
    }

    #[derive(Clone, Debug)]
    enum Move {
        /// So many milliseconds pass.
        Pass(u16),
        /// The keep-alive under way reaches the backend now (if the session lives there), and is answered after a while.
        Reach(bool),
        Check,
    }

    proptest! {
        /// Whatever is lost or late, in whatever rhythm the holder looks, and with a backend whose clock is up to one
        /// percent faster: the holder is never sure of a session that the backend has given up, and is told at most once.
        #[test]
        fn the_holder_stops_before_the_backend_does(
            moves in proptest::collection::vec(
                prop_oneof![
                    4 => (0u16..900).prop_map(Move::Pass),
                    4 => any::<bool>().prop_map(Move::Reach),
                    1 => Just(Move::Check),
                ],
                0..200,
            ),
            ttl in 200u64..5_000,
            faster in 0u32..=10,
            jitter in 0.0..1.0f64,
        ) {
            let ttl = Duration::from_millis(ttl);
            let times = Times { ttl, margin: Times::default_margin(ttl), renewed: true };
            let mut now = at(1_000);
            let mut state = State::new(times, now);
            // The backend opened it at the earliest possible moment, and its clock is faster.
            let lives = ttl.mul_f64(1.0 - f64::from(faster) / 1_000.0);
            let mut server = now + lives;
            let mut sent = None;
            let mut losses = 0;
            for one in moves {
                let effect = match one {
                    Move::Pass(millis) => {
                        now = now + Duration::from_millis(millis.into());
                        state.step(Event::Look, now, jitter)
                    }
                    Move::Reach(answered) => match sent.take() {
                        Some(sent) => {
                            if now < server {
                                server = now + lives;
                                let renewed = Event::Renewed { sent, ttl };
                                state.step(if answered { renewed } else { Event::Failed }, now, jitter)
                            } else {
                                state.step(if answered { Event::Over(Why::Ended) } else { Event::Failed }, now, jitter)
                            }
                        }
                        None => None,
                    },
                    Move::Check => state.step(Event::Check, now, jitter),
                };
                match effect {
                    Some(Effect::Renew) => {
                        prop_assert!(sent.is_none(), "two keep-alives under way");
                        sent = Some(now);
                    }
                    Some(Effect::Lose(_)) => losses += 1,
                    None => {}
                }
                if state.over().is_none() {
                    prop_assert!(state.deadline() < server, "sure until {:?}, given up at {server:?}", state.deadline());
                    prop_assert!(state.wake().is_some());
                }
                prop_assert!(losses <= 1 && (losses == 1) == state.over().is_some());
            }
        }
    }
}
