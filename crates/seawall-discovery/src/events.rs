//! Server-sent events, as far as control sends them: `event`, `data`, comments.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::control::{Control, ControlError};

/// How long the head of a stream may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Control says something every second; silence for longer means that the stream is dead.
const SILENCE: Duration = Duration::from_secs(3);

/// No event is larger; the snapshot of a large fleet is some tens of megabytes.
const LIMIT: usize = 256 << 20;

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its kind; may be empty.
    pub name: String,
    /// What it says, mostly JSON.
    pub data: String,
}

/// A stream of events from a control node.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    parser: Parser,
}

impl Control {
    /// Opens a stream of server-sent events. When that fails the next call goes to the next node.
    ///
    /// # Errors
    /// [`ControlError`], at the latest after 5 s.
    pub async fn events(&self, path: &str) -> Result<Events, ControlError> {
        match tokio::time::timeout(PATIENCE, self.open(Method::GET, path, Vec::new(), "text/event-stream")).await {
            Ok(Ok(response)) => Ok(Events { body: response.into_body(), parser: Parser::default() }),
            failed => {
                // Through `send` the client would have moved on to the next node; a stream does it here.
                self.next_node();
                Err(match failed {
                    Ok(Err(error)) => error,
                    _ => dead("no answer to the subscription"),
                })
            }
        }
    }
}

fn dead(why: &str) -> ControlError {
    ControlError::Broken(why.to_owned())
}

impl Events {
    /// The events that come next, at least one; `None` when control has ended the stream. Cancel safe.
    ///
    /// # Errors
    /// [`ControlError::Broken`] when the connection breaks, or nothing at all has come for 3 s.
    pub async fn next(&mut self) -> Result<Option<Vec<Event>>, ControlError> {
        loop {
            let events: Vec<_> = std::iter::from_fn(|| self.parser.next()).collect();
            if !events.is_empty() {
                return Ok(Some(events));
            }
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await;
            let frame = match frame.map_err(|_| dead("control has been silent for too long"))? {
                None => return Ok(None),
                Some(frame) => frame.map_err(|error| dead(&error.to_string()))?,
            };
            if !self.parser.push(frame.data_ref().map_or(&[], |data| data)) {
                return Err(dead("an event is too large"));
            }
        }
    }
}

impl Parser {
    /// Takes in what has arrived; `false` when an event grows beyond all measure.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        self.buffer.extend_from_slice(bytes);
        self.buffer.len() <= LIMIT
    }

    /// The next whole event; comments and empty events are passed over.
    pub(crate) fn next(&mut self) -> Option<Event> {
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let block = String::from_utf8_lossy(&block);
            let mut event = Event { name: String::new(), data: String::new() };
            for line in block.lines() {
                if let Some(name) = line.strip_prefix("event:") {
                    name.trim().clone_into(&mut event.name);
                } else if let Some(data) = line.strip_prefix("data:") {
                    if !event.data.is_empty() {
                        event.data.push('\n');
                    }
                    event.data.push_str(data.strip_prefix(' ').unwrap_or(data));
                }
            }
            if !event.data.is_empty() {
                return Some(event);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_may_arrive_in_pieces() {
        let text = b": hello\n\nevent: change\nid: 7\ndata: {\"a\":\ndata: 1}\n\ndata: x\n\n";
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                assert!(parser.push(part));
                events.extend(std::iter::from_fn(|| parser.next()));
            }
            let all: Vec<_> = events.iter().map(|e| (e.name.as_str(), e.data.as_str())).collect();
            assert_eq!(all, [("change", "{\"a\":\n1}"), ("", "x")]);
        }
    }
}
