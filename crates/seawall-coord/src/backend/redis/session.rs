//! A session: the claims of one holder, which are extended together. The servers know only these.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::scripts::About;
use crate::backend::{ClaimError, MAX_INFO, Terms, Want};
use crate::name::{LockName, Token};
use crate::session::Why;

/// A session in Redis; clones are the same one.
#[derive(Clone, Debug)]
pub struct RedisSession(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: String,
    owner: String,
    ttl: Duration,
    claims: Mutex<Claims>,
}

/// The claims, also those that were asked for and not answered: whatever the servers may hold is extended, so that no claim
/// ends before the session's own deadline, which is that of the last keep-alive.
#[derive(Debug, Default)]
struct Claims {
    closed: bool,
    /// How many keep-alives were begun.
    beats: u64,
    all: HashMap<Token, One>,
}

#[derive(Debug)]
struct One {
    name: LockName,
    held: bool,
    gone: watch::Sender<bool>,
}

impl RedisSession {
    pub(super) fn new(terms: &Terms) -> Self {
        let (number, owner) = (Token::random().to_string(), terms.owner.as_str().to_owned());
        Self(Arc::new(Inner { number, owner, ttl: terms.ttl, claims: Mutex::default() }))
    }

    pub(super) fn ttl(&self) -> Duration {
        self.0.ttl
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.0.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a claim says of itself, as it is written; none that is too long.
    pub(super) fn about(&self, info: &str, priority: i32) -> Result<String, String> {
        if info.len() > MAX_INFO {
            return Err(format!("an info of {} bytes: at most {MAX_INFO} are allowed", info.len()));
        }
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let (owner, session) = (self.0.owner.clone(), self.0.number.clone());
        Ok(serde_json::to_string(&About { owner, session, since_ms, info: info.to_owned(), priority })
            .expect("plain data"))
    }

    /// A claim is about to be asked for. Says how many keep-alives were begun before.
    pub(super) fn enter(&self, want: &Want) -> Result<u64, ClaimError> {
        let mut claims = self.claims();
        if claims.closed {
            return Err(ClaimError::Lost(Why::Ended));
        }
        let one = || One { name: want.name.clone(), held: false, gone: watch::Sender::new(false) };
        claims.all.entry(want.token).or_insert_with(one);
        Ok(claims.beats)
    }

    /// A claim holds its lock. Says how many keep-alives were begun meanwhile.
    pub(super) fn held(&self, token: &Token) -> u64 {
        let mut claims = self.claims();
        if let Some(one) = claims.all.get_mut(token) {
            one.held = true;
        }
        claims.beats
    }

    pub(super) fn is_held(&self, token: &Token) -> bool {
        self.claims().all.get(token).is_some_and(|one| one.held)
    }

    /// A claim was given back.
    pub(super) fn leave(&self, token: &Token) {
        if let Some(one) = self.claims().all.remove(token) {
            one.gone.send_replace(true);
        }
    }

    /// A keep-alive found that a claim is not there. One that was not answered yet may come.
    pub(super) fn missing(&self, token: &Token) {
        if self.is_held(token) {
            self.leave(token);
        }
    }

    /// What a keep-alive has to extend; nothing any more once the session is closed.
    pub(super) fn beat(&self) -> Option<Vec<(Token, LockName)>> {
        let mut claims = self.claims();
        claims.beats += 1;
        (!claims.closed).then(|| claims.all.iter().map(|(token, one)| (*token, one.name.clone())).collect())
    }

    /// Ends the session here, and says what it leaves at the servers.
    pub(super) fn close(&self) -> Vec<(Token, LockName)> {
        let mut claims = self.claims();
        claims.closed = true;
        claims.all.iter().map(|(token, one)| (*token, one.name.clone())).collect()
    }

    /// Turns true when a claim is known to be gone.
    pub(super) fn gone(&self, token: &Token) -> Option<watch::Receiver<bool>> {
        self.claims().all.get(token).map(|one| one.gone.subscribe())
    }
}
