//! Sessions that are bound to a stream: a connection that breaks ends its session at once, and not only when the time to live is
//! over. The stream keeps nothing alive: that a connection stands says nothing of the program behind it, which may be stopped.

use std::convert::Infallible;

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use seawall_coord::{Backend as _, StoreLease};
use serde_json::json;

use super::observing::KEEP_ALIVE;
use super::{Coord, Problem, lease};

/// Ends the session when it is dropped.
struct Bound {
    coord: Coord,
    lease: StoreLease,
    ends: bool,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // A control node that drains breaks connections; that is not the clients' doing.
        if self.ends && !self.coord.drain.is_signaled() {
            let (coord, lease) = (self.coord.clone(), self.lease);
            let runtime = coord.runtime.clone();
            coord.ledger.closing(lease.number());
            runtime.spawn(async move {
                // What cannot be ended now ends with its time to live.
                match coord.backend.close(&lease).await {
                    Ok(()) => tracing::info!(session = %lease.number(), "a session ended with its stream"),
                    Err(error) => {
                        tracing::warn!(session = %lease.number(), %error, "a session whose stream broke goes on")
                    }
                }
            });
        }
    }
}

enum Next {
    Bound,
    Wait,
    Over,
}

/// An event `bound`, and an event `lost` when the session ends otherwise.
pub(super) async fn bind(
    State(coord): State<Coord>,
    Path(session): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let lease = lease(&session)?;
    let owner = coord.backend.session(&lease).await?;
    let state = (Bound { coord, lease, ends: true }, owner, Next::Bound);
    let events = stream::unfold(state, |(mut bound, owner, next)| async move {
        let (event, next) = match next {
            Next::Bound => (Event::default().event("bound").json_data(json!({ "owner": owner })).ok()?, Next::Wait),
            Next::Wait => {
                let drain = bound.coord.drain.clone();
                tokio::select! {
                    () = bound.coord.backend.ended(&bound.lease) => {}
                    () = drain.signaled() => return None,
                }
                bound.ends = false;
                (Event::default().event("lost").data("{}"), Next::Over)
            }
            Next::Over => return None,
        };
        Some((Ok(event), (bound, owner, next)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}
