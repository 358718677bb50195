//! What an election among peers is made of: pure, without clock, network or randomness.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use seawall_types::InstanceId;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A member of the fleet. The largest by the order of texts is meant to lead.
pub type Peer = InstanceId;

/// How patient a member is. Fields are checked by [`Timing::try_new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    answer: Duration,
    beat: Duration,
    silence: Duration,
}

/// Times that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an answer within {answer:?}, a beat every {beat:?} and {silence:?} of silence do not go together: none may be zero, and \
     the silence has to be at least three beats and four answers"
)]
pub struct TimingError {
    answer: Duration,
    beat: Duration,
    silence: Duration,
}

impl Default for Timing {
    /// An answer within 500 ms, a beat each second, 5 s of silence.
    fn default() -> Self {
        let [answer, beat, silence] = [500, 1_000, 5_000].map(Duration::from_millis);
        Self { answer, beat, silence }
    }
}

impl Timing {
    /// A peer answers within `answer`, or counts as gone; a leader says so each `beat`; who hears no leader for `silence` calls
    /// an election. A ring takes an `answer` for each member that it has to pass over: give it more silence.
    ///
    /// # Errors
    /// [`TimingError`].
    pub fn try_new(answer: Duration, beat: Duration, silence: Duration) -> Result<Self, TimingError> {
        let most = Duration::from_secs(24 * 3600);
        if answer.is_zero() || beat.is_zero() || silence > most || silence / 3 < beat || silence / 4 < answer {
            return Err(TimingError { answer, beat, silence });
        }
        Ok(Self { answer, beat, silence })
    }

    /// How long a peer may take to answer.
    pub fn answer(&self) -> Duration {
        self.answer
    }

    /// How often a leader says that it leads.
    pub fn beat(&self) -> Duration {
        self.beat
    }

    /// How long it may be silent.
    pub fn silence(&self) -> Duration {
        self.silence
    }
}

/// What happens to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<M> {
    /// It is to call an election.
    Call,
    /// The time of [`Algorithm::wake`] may have come.
    Tick,
    /// These are the members now, itself among them or not.
    Members(BTreeSet<Peer>),
    /// Somebody says something. What is said by who is no member is ignored.
    Message {
        /// Who.
        from: Peer,
        /// What.
        message: M,
    },
    /// A message was not acknowledged within [`Timing::answer`]. It may have arrived.
    Undelivered {
        /// To whom.
        to: Peer,
        /// Which.
        message: M,
    },
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<M> {
    /// Send this.
    Send {
        /// To whom; never the member itself.
        to: Peer,
        /// What.
        message: M,
    },
    /// As far as this member knows, this one leads now, or nobody.
    Leader(Option<Peer>),
}

/// An election as one member sees it.
pub trait Algorithm: fmt::Debug + Send + 'static {
    /// What members say to each other.
    type Message: Clone + fmt::Debug + Serialize + DeserializeOwned + Send + 'static;

    /// Its name in paths and messages.
    const NAME: &'static str;

    /// A member that knows of no leader. `now` is the time since any moment that stays the same.
    fn new(me: Peer, timing: Timing, now: Duration) -> Self;

    /// Lets something happen.
    fn step(&mut self, event: Event<Self::Message>, now: Duration) -> Vec<Effect<Self::Message>>;

    /// When it wants a [`Event::Tick`] at the latest.
    fn wake(&self) -> Duration;

    /// Who leads, as far as it knows.
    fn leader(&self) -> Option<&Peer>;

    /// The member itself.
    fn me(&self) -> &Peer;

    /// Whether it believes that it leads itself.
    fn leads(&self) -> bool {
        self.leader() == Some(self.me())
    }
}
