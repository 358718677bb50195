//! Server-sent events, as far as control sends them: `event`, `data`, comments.

/// No event is larger; the snapshot of a large fleet is some tens of megabytes.
const LIMIT: usize = 256 << 20;

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
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
