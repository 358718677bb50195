//! Claims that have just been granted. Most are given back within milliseconds, and a watch costs as much as the lock itself,
//! a wake-up of the session's thread hardly less. So the thread looks here now and then, as long as something is here, and
//! watches what has been held for a while. A claim that was taken away before is found when its watch begins.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::backend::Claim;
use crate::session::Why;

/// How long a lock is held before it is watched, at least; at most twice as long.
pub(crate) const SETTLED: Duration = Duration::from_millis(20);

/// A claim, and whom to tell that it is lost.
pub(crate) type Held = (Claim, watch::Sender<Option<Why>>);

/// As long as it is not empty, the session's thread is going to look. Holds at most what was granted in twice [`SETTLED`].
#[derive(Debug, Default)]
pub(crate) struct Settling(Mutex<Vec<(Instant, Held)>>);

impl Settling {
    /// Adds a claim. True when the thread has to be told to begin to look.
    pub(crate) fn add(&self, held: Held) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((Instant::now(), held));
        all.len() == 1
    }

    /// Takes out what has been held for long enough and is held still, and forgets what was given back. The second is true when
    /// there is something left to look at later.
    pub(crate) fn look(&self, now: Instant) -> (Vec<Held>, bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut settled = Vec::new();
        for (since, held) in std::mem::take(&mut *all) {
            match now.duration_since(since) >= SETTLED {
                _ if held.1.is_closed() => {}
                true => settled.push(held),
                false => all.push((since, held)),
            }
        }
        (settled, !all.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use seawall_types::Revision;

    use super::*;
    use crate::name::{LockName, Token};

    #[test]
    fn only_what_is_held_for_a_while_is_watched() {
        let settling = Settling::default();
        let held = |receivers: &mut Vec<_>| {
            let (lost, receiver) = watch::channel(None);
            receivers.push(receiver);
            let (name, token) = (LockName::try_new("a").unwrap(), Token::random());
            (Claim { name, token, created: Revision(1), fence: None }, lost)
        };
        let mut receivers = Vec::new();
        assert!(settling.add(held(&mut receivers)), "the thread begins to look");
        assert!(!settling.add(held(&mut receivers)), "it looks already");
        let soon = Instant::now();
        let (settled, more) = settling.look(soon);
        assert!(settled.is_empty() && more);
        receivers.pop();
        let (settled, more) = settling.look(soon + SETTLED);
        assert!(settled.len() == 1 && !more, "one was given back");
        assert!(settling.add(held(&mut receivers)), "the thread looks no more");
        receivers.clear();
        let (settled, more) = settling.look(Instant::now());
        assert!(settled.is_empty() && !more);
    }
}
