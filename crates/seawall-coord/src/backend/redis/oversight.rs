//! What an operator sees of the locks in one Redis, or in several.

use super::fenced::RedlockFenced;
use super::redlock::Redlock;
use super::scripts::{DEAD, Value};
use super::single::{CALL, Redis};
use crate::backend::view::{ClaimView, LockView};
use crate::backend::{Backend, BackendError, Released};
use crate::name::{LockName, Token};
use crate::oversight::Oversight;

/// Who waits asks now and then, and is nowhere written down.
fn view(name: &LockName, value: Option<Value>) -> LockView {
    LockView::of(name.clone(), value.map(Value::claim).into_iter().collect())
}

/// Redis would have to look at all that it holds, and may hold a cache beside.
fn no_names(backend: String) -> BackendError {
    let why = "it is not searched for locks, for that holds up everybody else: name one".to_owned();
    BackendError::Refused { backend, why }
}

impl Oversight for Redis {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        Err(no_names(self.name()))
    }

    async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        Ok(view(name, self.line.value(CALL, name).await?))
    }

    async fn force(&self, name: &LockName, _by: &str, _why: &str) -> Result<Option<ClaimView>, BackendError> {
        let Some(value) = self.line.value(CALL, name).await? else { return Ok(None) };
        let Ok(token) = value.token.parse::<Token>() else { return Ok(None) };
        // One that has gone meanwhile is not taken from whoever follows.
        let released = self.line.release(CALL, name, &token, DEAD).await?;
        Ok((released == Released::Now).then(|| value.claim()))
    }

    fn knows_who_waits(&self) -> bool {
        false
    }
}

impl Oversight for Redlock {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        Err(no_names(self.name()))
    }

    async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        Ok(view(name, self.holder(name).await?))
    }

    async fn force(&self, name: &LockName, _by: &str, _why: &str) -> Result<Option<ClaimView>, BackendError> {
        let Some(value) = self.holder(name).await? else { return Ok(None) };
        let Ok(token) = value.token.parse::<Token>() else { return Ok(None) };
        Ok((self.release_everywhere(name, &token, DEAD).await? == Released::Now).then(|| value.claim()))
    }

    fn knows_who_waits(&self) -> bool {
        false
    }
}

impl Oversight for RedlockFenced {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        self.redlock.names().await
    }

    async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        self.redlock.show(name).await
    }

    async fn force(&self, name: &LockName, by: &str, why: &str) -> Result<Option<ClaimView>, BackendError> {
        self.redlock.force(name, by, why).await
    }

    fn knows_who_waits(&self) -> bool {
        false
    }
}
