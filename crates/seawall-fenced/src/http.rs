//! A handler that refuses the requests of former holders.
//!
//! Checking a token and acting on it are two things: between them another request, with a larger token, could be checked and
//! done. So requests that are fenced by the same lock take turns, from the check until the handler drops its [`FenceToken`].
//! That holds within one process. Where several write to the same thing, check the token there as well, in the transaction
//! that writes: [`FenceToken::fence`] is for that.

mod fences;
mod reject;

use std::marker::PhantomData;
use std::time::Duration;

use axum::extract::{FromRef, FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use seawall_coord::{LockName, MAX_NAME};
use tokio::sync::OwnedMutexGuard;

pub use self::fences::{Fences, FencesError};
pub use self::reject::FenceRejection;
use crate::{Fence, header};

/// What a handler writes to, and which lock guards it.
pub trait Resource: Send + Sync + 'static {
    /// The lock's name. `{id}` in it stands for the path's parameter `id`: `payment-{id}`. An election's is `elect/mailer`.
    /// It is the server that says this: a token of any other lock proves nothing here.
    const LOCK: &'static str;
}

/// An extractor: the request was made by a holder of the resource's lock, and no later holder has been here. Others of the
/// same lock wait until this is dropped. Move it into whatever does the work, so that a handler that is dropped, because its
/// client has gone, does not let the next in while a thread still writes.
#[derive(Debug)]
#[must_use = "others may write when this is dropped"]
pub struct FenceToken<R> {
    lock: String,
    fence: Fence,
    _turn: OwnedMutexGuard<()>,
    resource: PhantomData<fn() -> R>,
}

impl<R> FenceToken<R> {
    /// The token, for what is written to.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// The lock's name.
    pub fn lock(&self) -> &str {
        &self.lock
    }
}

impl<S: Send + Sync, R: Resource> FromRequestParts<S> for FenceToken<R>
where
    Fences: FromRef<S>,
{
    type Rejection = FenceRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, FenceRejection> {
        let lock = lock::<R>(parts, state).await?;
        let fence = match header::read(&parts.headers, &lock) {
            Ok(Some(fence)) => fence,
            Ok(None) => return Err(FenceRejection::Missing { lock }),
            Err(why) => return Err(FenceRejection::Malformed { lock, why: why.to_string() }),
        };
        let turn = Fences::from_ref(state).check(&lock, fence).await?;
        Ok(Self { lock, fence, _turn: turn, resource: PhantomData })
    }
}

/// The name of the lock that this request needs.
async fn lock<R: Resource>(parts: &mut Parts, state: &(impl Send + Sync)) -> Result<String, FenceRejection> {
    let mut lock = String::new();
    let mut rest = R::LOCK;
    if rest.contains('{') {
        let undefined = |why: String| FenceRejection::Undefined { lock: R::LOCK, why };
        let params = RawPathParams::from_request_parts(parts, state).await;
        let params = params.map_err(|error| undefined(error.to_string()))?;
        while let Some((before, (key, after))) =
            rest.split_once('{').and_then(|(before, after)| Some((before, after.split_once('}')?)))
        {
            let value = params.iter().find(|(name, _)| *name == key).map(|(_, value)| value);
            lock += before;
            lock += value.ok_or_else(|| undefined(format!("the route has no parameter `{key}`")))?;
            rest = after;
        }
    }
    lock += rest;
    // What comes from the path may be anything.
    let checked = lock.strip_prefix("elect/").unwrap_or(&lock);
    match LockName::try_new(checked) {
        Ok(_) => Ok(lock),
        Err(why) => {
            let lock = lock.chars().take(MAX_NAME / 4).collect();
            Err(FenceRejection::Malformed { lock, why: format!("the path names no lock: {why}") })
        }
    }
}

/// How long a request waits for its turn and for the check, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);
