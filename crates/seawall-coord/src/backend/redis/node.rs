//! What one Redis is asked about a lock.

use std::time::Duration;

use super::line::{Doing, Line};
use super::scripts::{ACQUIRE, EXTEND, Names, RELEASE, STAND, UPDATE, Value};
use crate::backend::{BackendError, Released, Want};
use crate::name::{LockName, Token};

/// What all keys begin with.
const PREFIX: &str = "seawall";

/// What a try gave.
#[derive(Debug)]
pub(super) enum Answer {
    /// The lock is this claim's.
    Held(Value),
    /// Another's, for so long without being extended.
    Others(Value, Duration),
    /// The claim was withdrawn before.
    Withdrawn,
}

pub(super) fn names(name: &LockName, token: &Token) -> Names {
    Names::new(PREFIX, name, token)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Line {
    /// Tries once.
    pub(super) async fn acquire(
        &self,
        patience: Duration,
        want: &Want,
        ttl: Duration,
        about: &str,
    ) -> Result<Answer, BackendError> {
        let names = names(&want.name, &want.token);
        let stand = want.name.election().map_or_else(String::new, |_| STAND.to_string());
        let mut script = ACQUIRE.prepare_invoke();
        script.key(&names.lock).key(&names.withdrawn).key(&names.standing).key(&names.said);
        script.arg(want.token.to_string()).arg(millis(ttl)).arg(about).arg(stand);
        let answer: Vec<redis::Value> = self.run(Doing::Write, patience, &script).await?;
        let strange = || self.place.refused(format!("the key `{}` is not as it should be", names.lock));
        let number = |at: usize| match answer.get(at) {
            Some(redis::Value::Int(number)) => Ok(*number),
            _ => Err(strange()),
        };
        let value = || {
            let text = answer.get(1).and_then(|value| redis::from_redis_value_ref::<String>(value).ok());
            text.and_then(|text| Value::parse(&text)).ok_or_else(strange)
        };
        match number(0)? {
            1 => Ok(Answer::Held(value()?)),
            0 => {
                // Whoever wrote it: nothing of ours would free it.
                let value = value()?;
                Ok(Answer::Others(value, Duration::from_millis(u64::try_from(number(2)?).unwrap_or(0))))
            }
            _ => Ok(Answer::Withdrawn),
        }
    }

    /// Gives a claim back, and remembers for so many milliseconds that it was, in case it is still on its way.
    pub(super) async fn release(
        &self,
        patience: Duration,
        name: &LockName,
        token: &Token,
        remember: u64,
    ) -> Result<Released, BackendError> {
        let names = names(name, token);
        let mut script = RELEASE.prepare_invoke();
        script.key(&names.lock).key(&names.withdrawn).key(&names.standing).key(&names.said);
        script.arg(token.to_string()).arg(remember);
        let held: u8 = self.run(Doing::Write, patience, &script).await?;
        Ok(if held == 1 { Released::Now } else { Released::WasNotHeld })
    }

    /// Extends claims, and says of each whether it was held; of none, it asks whether the server is there.
    pub(super) async fn extend(
        &self,
        patience: Duration,
        claims: &[(Token, LockName)],
        ttl: Duration,
    ) -> Result<Vec<bool>, BackendError> {
        let mut script = EXTEND.prepare_invoke();
        script.arg(millis(ttl));
        for (token, name) in claims {
            script.key(names(name, token).lock).arg(token.to_string());
        }
        let held: Vec<u8> = self.run(Doing::Write, patience, &script).await?;
        if held.len() != claims.len() {
            return Err(self.place.refused("it answers for another number of locks than it was asked about"));
        }
        Ok(held.into_iter().map(|held| held == 1).collect())
    }

    /// Writes anew what a claim says of itself; false when it does not hold the lock.
    pub(super) async fn update(
        &self,
        patience: Duration,
        name: &LockName,
        token: &Token,
        about: &str,
    ) -> Result<bool, BackendError> {
        let mut script = UPDATE.prepare_invoke();
        script.key(names(name, token).lock).arg(token.to_string()).arg(about);
        let leads: u8 = self.run(Doing::Write, patience, &script).await?;
        Ok(leads == 1)
    }

    /// What is in a lock's key.
    pub(super) async fn value(&self, patience: Duration, name: &LockName) -> Result<Option<Value>, BackendError> {
        let script = redis::Script::new("return redis.call('GET', KEYS[1])");
        let script = script.key(names(name, &Token::random()).lock);
        let text: Option<String> = self.run(Doing::Read, patience, &script).await?;
        Ok(text.and_then(|text| Value::parse(&text)))
    }
}
