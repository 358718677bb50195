//! Watches: a task each that follows etcd, and begins again from where it was when the connection or the member fails.
//!
//! The task always reads, so that a cursor nobody asks holds up no other on the connection. When its queue is full it lets go
//! of etcd, and takes up again from the next revision when there is room: etcd is the buffer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use seawall_types::Revision;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::channel::{Answers, Channel, Fault, Questions};
use super::messages as m;
use super::translate::{Namespace, number, revision, revision_of};
use crate::{Cursor, Event, Follow, Keys, ReadError, WatchError};

/// How many batches of events wait for the reader: whole revisions, one or up to a thousand of them.
const QUEUE: usize = 32;
/// After this long without etcd the reader is told; the task goes on trying.
const PATIENCE: Duration = Duration::from_secs(10);
/// The waits between attempts: at random up to a bound that doubles from the first of these to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A stream that was open for this long counts as one.
const HELD: Duration = Duration::from_secs(1);

/// A watch from a revision on.
pub(super) async fn from(
    channel: Arc<Channel>,
    names: Namespace,
    keys: Keys,
    from: Revision,
) -> Result<Cursor, WatchError> {
    let follower = Follower { channel, names, keys, next: from.max(Revision(1)) };
    // etcd says only after a while, on the stream, that a revision is gone.
    let gone = follower.is_gone().await.map_err(|ReadError::Unavailable(why)| WatchError::Unavailable(why))?;
    let mut answers = follower.open(follower.start()).await.map_err(Stop::error)?.1;
    if gone {
        return Err(compacted(&mut answers).await);
    }
    Ok(follower.run(answers))
}

/// Waits for etcd to say of a watch from the past what is the oldest that it has.
async fn compacted(answers: &mut Answers<m::WatchResponse>) -> WatchError {
    let said = async {
        loop {
            if let Err(stop) = answers.next().await.map_err(|fault| Stop::Broken(fault.text())).and_then(sound) {
                return stop.error();
            }
        }
    };
    let silent = || WatchError::Unavailable("etcd does not say what is compacted".into());
    tokio::time::timeout(PATIENCE, said).await.unwrap_or_else(|_| silent())
}

/// A watch from now on, and when that is.
pub(super) async fn now(channel: Arc<Channel>, names: Namespace, keys: Keys) -> Result<(Revision, Cursor), WatchError> {
    let mut follower = Follower { channel, names, keys, next: Revision(1) };
    // Without a revision to start at it is among those that are told at once.
    let (created, answers) = follower.open(0).await.map_err(Stop::error)?;
    let now = revision_of(created.header);
    follower.next = now.next();
    Ok((now, follower.run(answers)))
}

/// What follows etcd.
#[derive(Debug)]
struct Follower {
    channel: Arc<Channel>,
    names: Namespace,
    keys: Keys,
    /// Everything before has been delivered, or did not touch the keys.
    next: Revision,
}

/// Why a stream has ended.
#[derive(Debug)]
enum Stop {
    Compacted { oldest: Revision },
    Broken(String),
}

impl Stop {
    fn error(self) -> WatchError {
        match self {
            Self::Compacted { oldest } => WatchError::Compacted { oldest },
            Self::Broken(why) => WatchError::Unavailable(why),
        }
    }
}

type Sender = mpsc::Sender<Result<Vec<Event>, WatchError>>;

impl Follower {
    fn run(self, answers: Answers<m::WatchResponse>) -> Cursor {
        let (sender, batches) = mpsc::channel(QUEUE);
        tokio::spawn(self.follow(answers, sender));
        Cursor::new(Watch { batches, compacted: None })
    }

    async fn follow(mut self, answers: Answers<m::WatchResponse>, sender: Sender) {
        let mut answers = Some(answers);
        let mut failing: Option<Instant> = None;
        let mut wait = BACKOFF.0;
        loop {
            let stop = match answers.take() {
                Some(mut open) => {
                    let began = Instant::now();
                    let stop = tokio::select! {
                        stop = self.read(&mut open, &sender) => stop,
                        () = sender.closed() => return,
                    };
                    // A stream that held is a success, one that broke at once is not.
                    if began.elapsed() > HELD {
                        (failing, wait) = (None, BACKOFF.0);
                    }
                    stop
                }
                None => match self.open(self.start()).await {
                    Ok((_, open)) => {
                        answers = Some(open);
                        continue;
                    }
                    Err(stop) => Err(stop),
                },
            };
            match stop {
                Ok(()) => {
                    // The stream is closed by now. A reader that is slow gets a few batches at a time.
                    if sender.reserve_many(QUEUE / 2).await.is_err() {
                        return;
                    }
                    continue;
                }
                Err(Stop::Compacted { oldest }) => {
                    let _ = sender.send(Err(WatchError::Compacted { oldest })).await;
                    return;
                }
                Err(Stop::Broken(why)) => {
                    tracing::debug!(%why, next = %self.next, "a watch on etcd begins again");
                    let since = *failing.get_or_insert_with(Instant::now);
                    // A reader that does not come for it need not hear it again.
                    if since.elapsed() > PATIENCE && sender.capacity() == sender.max_capacity() {
                        let _ = sender.try_send(Err(WatchError::Unavailable(why)));
                        failing = None;
                    }
                }
            }
            let most = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(fastrand::u64(0..=most))) => {}
                () = sender.closed() => return,
            }
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// Hands on what comes, until the stream fails, or the queue is full.
    async fn read(&mut self, answers: &mut Answers<m::WatchResponse>, sender: &Sender) -> Result<(), Stop> {
        loop {
            let answer = answers.next().await.map_err(|fault| Stop::Broken(fault.text()))?;
            let answer = sound(answer)?;
            if answer.events.is_empty() {
                // etcd says how far it is, in turn with the events.
                self.next = self.next.max(revision_of(answer.header).next());
                continue;
            }
            let before = self.next;
            let events = answer.events.into_iter().map(|event| self.names.event(event));
            let mut events = events.collect::<Result<Vec<_>, _>>().map_err(Stop::Broken)?;
            events.retain(|event| event.revision >= before);
            let Some(last) = events.last() else { continue };
            // Without fragments, which are not asked for, each answer has whole revisions.
            let next = last.revision.next();
            match sender.try_send(Ok(events)) {
                Ok(()) => self.next = next,
                // Whoever held it is gone, which `follow` sees.
                Err(TrySendError::Closed(_)) => return Err(Stop::Broken("nobody watches".into())),
                // It comes again.
                Err(TrySendError::Full(_)) => return Ok(()),
            }
        }
    }

    /// The revision that etcd is asked to begin at. Of the revision at which it was compacted etcd still tells the puts but no
    /// longer the deletions, and does not say so; asked for the one before, it does. What comes of that one is dropped.
    fn start(&self) -> i64 {
        revision(self.next).saturating_sub(1).max(1)
    }

    async fn open(&self, start_revision: i64) -> Result<(m::WatchResponse, Answers<m::WatchResponse>), Stop> {
        let range = self.names.keys(&self.keys);
        let create =
            m::WatchCreate { key: range.key, range_end: range.range_end, start_revision, progress_notify: true };
        // The stream is open as long as there may be another question.
        let ask = || -> Questions<_> {
            let create = m::WatchRequest { create: Some(create.clone()) };
            Box::pin(stream::iter([create]).chain(stream::pending()))
        };
        let opened = self.channel.stream("/etcdserverpb.Watch/Watch", ask).await;
        let (first, answers) = opened.map_err(|fault| Stop::Broken(fault.text()))?;
        Ok((sound(first)?, answers))
    }

    /// Whether etcd has compacted what the watch is to begin with.
    async fn is_gone(&self) -> Result<bool, ReadError> {
        let key = self.names.keys(&Keys::one(""));
        let request = m::RangeRequest { revision: self.start(), count_only: true, ..key };
        let answer: Result<m::RangeResponse, _> = self.channel.unary("/etcdserverpb.KV/Range", request).await;
        match answer {
            Ok(_) => Ok(false),
            // In the past or in the future.
            Err(Fault::Refused(tonic::Code::OutOfRange, why)) => Ok(why.contains("compacted")),
            Err(fault) => Err(ReadError::Unavailable(fault.text())),
        }
    }
}

/// An answer that does not end the watch.
fn sound(answer: m::WatchResponse) -> Result<m::WatchResponse, Stop> {
    if answer.compact_revision > 0 {
        return Err(Stop::Compacted { oldest: Revision(number(answer.compact_revision)).next() });
    }
    if answer.canceled {
        return Err(Stop::Broken(format!("etcd has ended the watch: {}", answer.cancel_reason)));
    }
    Ok(answer)
}

/// The reader's end.
#[derive(Debug)]
struct Watch {
    batches: mpsc::Receiver<Result<Vec<Event>, WatchError>>,
    /// It is said again each time.
    compacted: Option<WatchError>,
}

#[async_trait]
impl Follow for Watch {
    async fn next(&mut self) -> Result<Vec<Event>, WatchError> {
        if let Some(compacted) = &self.compacted {
            return Err(compacted.clone());
        }
        let next = self.batches.recv().await.unwrap_or(Err(WatchError::Closed));
        if let Err(error @ WatchError::Compacted { .. }) = &next {
            self.compacted = Some(error.clone());
        }
        next
    }
}
