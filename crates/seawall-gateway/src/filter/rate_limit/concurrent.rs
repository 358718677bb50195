//! Requests that are under way, for each key.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use seawall_proxy::ResponseBody;
use seawall_proxy::body::BodyError;

/// Who has requests under way, and how many. Nobody else has an entry, so there is nothing to throw out.
#[derive(Debug)]
pub(super) struct Concurrent {
    limit: u32,
    keys: usize,
    under_way: Mutex<HashMap<Box<[u8]>, u32>>,
}

impl Concurrent {
    /// At most `limit` for each key, and at most `keys` keys at a time.
    pub(super) fn new(limit: u32, keys: usize) -> Self {
        Self { limit, keys, under_way: Mutex::default() }
    }

    /// A place, and how many are left after it.
    pub(super) fn take(self: &Arc<Self>, key: &[u8]) -> Option<(Place, u64)> {
        let mut under_way = self.lock();
        let count = under_way.get(key).copied().unwrap_or(0);
        if count >= self.limit || (count == 0 && under_way.len() >= self.keys) {
            return None;
        }
        let count = count + 1;
        under_way.insert(key.into(), count);
        Some((Place { of: self.clone(), key: key.into() }, (self.limit - count).into()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, u32>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Concurrent>,
    key: Box<[u8]>,
}

impl Place {
    /// Is kept until the body has ended.
    pub(super) fn until(self, body: ResponseBody) -> ResponseBody {
        if body.is_end_stream() { body } else { ResponseBody::made(Kept { body, place: Some(self) }) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.of.lock();
        if let Some(count) = under_way.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.key);
            }
        }
    }
}

struct Kept {
    body: ResponseBody,
    place: Option<Place>,
}

impl Body for Kept {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream() {
            self.place = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_leave_nothing_behind() {
        let concurrent = Arc::new(Concurrent::new(2, 2));
        let (one, left) = concurrent.take(b"a").expect("there is one");
        assert_eq!(left, 1);
        let (_two, left) = concurrent.take(b"a").expect("there is one");
        assert_eq!(left, 0);
        assert!(concurrent.take(b"a").is_none());
        let other = concurrent.take(b"b").expect("another key");
        assert!(concurrent.take(b"c").is_none(), "too many keys");
        drop((one, other));
        assert_eq!(concurrent.lock().len(), 1);
        let (place, _) = concurrent.take(b"a").expect("it was given back");
        drop(place.until(ResponseBody::whole("x")));
        assert_eq!(concurrent.lock().values().sum::<u32>(), 1);
        let (place, _) = concurrent.take(b"a").expect("it was given back");
        let body = place.until(ResponseBody::whole(""));
        assert_eq!(concurrent.lock().values().sum::<u32>(), 1, "an empty body has ended");
        drop(body);
    }
}
