//! Locks and elections as they change, as server-sent events: the same address, asked for with `Accept: text/event-stream`.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream, StreamExt as _};
use seawall_coord::{BackendError, Followed, Following, StoreBackend};
use seawall_drain::Drain;
use serde::Serialize;

/// How often a stream that has nothing to say says so.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Whether the request is for events.
pub(super) fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accept.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/event-stream"))
}

/// All of them as they are, an event `all` when that is said, then each change. Ends when the store does not answer, or control drains.
pub(super) fn events<V: Followed + Serialize + 'static>(
    backend: StoreBackend,
    drain: Drain,
    kind: &'static str,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let state = (Following::<V>::new(backend), drain, true);
    let batches = stream::unfold(state, move |(mut following, drain, first)| async move {
        let changed: Result<Vec<V>, BackendError> = tokio::select! {
            changed = following.next() => changed,
            () = drain.signaled() => return None,
        };
        let events = changed.ok()?.into_iter().map(|view| Event::default().event(kind).json_data(view).ok());
        let mut events: Vec<_> = events.collect::<Option<_>>()?;
        if first {
            events.push(Event::default().event("all").data("{}"));
        }
        Some((stream::iter(events.into_iter().map(Ok)), (following, drain, false)))
    });
    Sse::new(batches.flatten()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}
