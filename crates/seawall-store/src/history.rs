//! The latest events, which watchers resume from: bounded by their number and by their size, whole revisions only.

use std::collections::VecDeque;

use seawall_types::Revision;

use crate::Event;

/// How much of the past is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) events: usize,
    /// Of keys and values.
    pub(crate) bytes: usize,
}

pub(crate) const BOUNDS: Bounds = Bounds { events: 16_384, bytes: 64 << 20 };

impl Bounds {
    pub(crate) fn exceeded_by(self, events: usize, bytes: usize) -> bool {
        events > self.events || bytes > self.bytes
    }
}

/// The latest events, oldest first; complete from `oldest` on.
#[derive(Debug)]
pub(crate) struct History {
    bounds: Bounds,
    oldest: Revision,
    events: VecDeque<Event>,
    bytes: usize,
}

impl History {
    pub(crate) fn new(oldest: Revision, bounds: Bounds) -> Self {
        Self { bounds, oldest, events: VecDeque::new(), bytes: 0 }
    }

    /// The oldest revision from which it is complete.
    pub(crate) fn oldest(&self) -> Revision {
        self.oldest
    }

    /// The size of what it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn push(&mut self, event: Event) {
        if event.revision < self.oldest {
            // The rest of a revision so large that its beginning has gone already.
            return;
        }
        self.bytes += size(&event);
        self.events.push_back(event);
        while self.bounds.exceeded_by(self.events.len(), self.bytes) {
            // A revision goes whole or not at all.
            let Some(gone) = self.events.front().map(|event| event.revision) else { return };
            self.forget_before(gone.next());
        }
    }

    /// Forgets what happened before `oldest`.
    pub(crate) fn forget_before(&mut self, oldest: Revision) {
        while let Some(event) = self.events.front().filter(|event| event.revision < oldest) {
            self.bytes -= size(event);
            self.events.pop_front();
        }
        self.oldest = self.oldest.max(oldest);
    }

    /// The events from a revision on.
    pub(crate) fn since(&self, from: Revision) -> impl Iterator<Item = &Event> {
        let from = self.events.partition_point(|event| event.revision < from);
        self.events.range(from..)
    }
}

/// What an event counts against [`Bounds::bytes`].
pub(crate) fn size(event: &Event) -> usize {
    event.key.len() + event.entry.as_ref().map_or(0, |entry| entry.value.len())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::Entry;

    fn event(revision: u64, bytes: usize) -> Event {
        let (revision, key) = (Revision(revision), "k".into());
        let entry = Entry {
            key: std::sync::Arc::clone(&key),
            value: Bytes::from(vec![0; bytes]),
            created: revision,
            modified: revision,
            version: 1,
            lease: None,
        };
        Event { revision, key, entry: Some(entry) }
    }

    fn revisions(history: &History) -> Vec<u64> {
        history.since(Revision(0)).map(|event| event.revision.0).collect()
    }

    #[test]
    fn its_size_is_bounded_as_well_as_its_number() {
        let mut history = History::new(Revision(2), Bounds { events: 4, bytes: 1000 });
        for revision in [2, 3, 3, 4] {
            history.push(event(revision, 1));
        }
        assert_eq!((revisions(&history), history.oldest), (vec![2, 3, 3, 4], Revision(2)));
        history.push(event(5, 1));
        assert_eq!((revisions(&history), history.oldest), (vec![3, 3, 4, 5], Revision(3)));
        history.push(event(6, 993));
        assert_eq!((revisions(&history), history.oldest), (vec![4, 5, 6], Revision(4)), "both of 3 went");
        history.push(event(7, 500));
        assert_eq!((revisions(&history), history.oldest), (vec![7], Revision(7)));
        assert_eq!(history.bytes, 501);
    }

    #[test]
    fn a_revision_that_does_not_fit_is_left_out_whole() {
        let mut history = History::new(Revision(2), Bounds { events: 10, bytes: 1000 });
        for _ in 0..3 {
            history.push(event(2, 600));
        }
        assert_eq!((revisions(&history), history.oldest, history.bytes), (vec![], Revision(3), 0));
        history.push(event(3, 600));
        assert_eq!(revisions(&history), [3]);
    }
}
