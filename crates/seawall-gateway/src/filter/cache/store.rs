//! The stored answers: a bounded number of bytes, and who is fetching what.
//!
//! Evicted by CLOCK (Corbató, 1968): an answer that was used since it was last looked at is passed over once. Readers share the
//! lock; it is held to look something up, never to wait.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName};
use tokio::sync::watch;

use super::policy::{self, Facts};

/// The most answers that are kept for one URL, by what they vary with.
const VARIANTS: usize = 64;
/// What an entry takes beside its text.
const OVERHEAD: usize = 512;

/// One stored answer.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) facts: Facts,
    /// What it depends on, and what that was.
    pub(super) vary: Vec<(HeaderName, Option<String>)>,
    pub(super) tags: Vec<Box<str>>,
    pub(super) came: Instant,
    used: AtomicBool,
}

impl Entry {
    pub(super) fn new(
        key: Arc<str>,
        asked: &HeaderMap,
        (status, headers, body): (StatusCode, HeaderMap, Bytes),
        facts: Facts,
    ) -> Self {
        let vary = policy::vary(&headers).filter_map(|name| HeaderName::try_from(name).ok());
        let vary = vary.map(|name| (name.clone(), policy::normal(asked, &name))).collect();
        let tags = tags(&headers);
        Self { key, status, headers, body, facts, vary, tags, came: Instant::now(), used: AtomicBool::new(false) }
    }

    /// How long it has been here.
    pub(super) fn resident(&self) -> Duration {
        self.came.elapsed()
    }

    fn matches(&self, asked: &HeaderMap) -> bool {
        self.vary.iter().all(|(name, value)| policy::normal(asked, name) == *value)
    }

    fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        let vary: usize = self.vary.iter().map(|(_, value)| 64 + value.as_ref().map_or(0, String::len)).sum();
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 16).sum();
        OVERHEAD + self.key.len() + headers + vary + tags + self.body.len()
    }
}

/// By `Surrogate-Key`, apart by spaces, and `Cache-Tag`, apart by commas.
fn tags(headers: &HeaderMap) -> Vec<Box<str>> {
    let of = |field: &str, apart: &'static [char]| {
        let lines: Vec<_> = headers.get_all(field).iter().filter_map(|line| line.to_str().ok()).collect();
        let tags = lines.into_iter().flat_map(move |line| line.split(apart)).map(str::trim);
        tags.filter(|tag| !tag.is_empty()).map(Box::from).collect::<Vec<Box<str>>>()
    };
    let mut all = of("surrogate-key", &[' ', '\t']);
    all.extend(of("cache-tag", &[',']));
    all
}

/// What is thrown out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    /// One URL without its scheme, all its variants: `shop.example/a?b=c`; or all that begin with what stands before a `*`.
    Url(String),
    /// Everything that carries a tag.
    Tag(String),
    /// Everything.
    All,
}

impl Purge {
    /// A key is a URL, and what else tells answers apart.
    fn takes(&self, key: &str) -> bool {
        let key = key.split('\0').next().unwrap_or(key);
        match self {
            Self::All => true,
            Self::Tag(_) => false,
            Self::Url(url) => match url.strip_suffix('*') {
                Some(prefix) => key.starts_with(prefix),
                None => key == url,
            },
        }
    }
}

/// What a request finds.
pub(super) enum Found {
    /// An answer for it.
    Entry(Arc<Entry>),
    /// Answers to other variants.
    OtherVariants,
    Nothing,
}

#[derive(Debug)]
pub(super) struct Store {
    size: usize,
    entries: RwLock<Entries>,
    flights: Mutex<HashMap<Arc<str>, Vec<Arc<Flight>>>>,
    /// Bytes of answers that are on their way here.
    arriving: AtomicUsize,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: BTreeMap<Arc<str>, Vec<Arc<Entry>>>,
    hand: VecDeque<Weak<Entry>>,
    count: usize,
    bytes: usize,
}

/// Somebody fetches an answer.
#[derive(Debug)]
struct Flight {
    /// Whether what comes is no longer wanted: it was purged, or changed, on its way.
    doomed: AtomicBool,
    /// Ends with the sender.
    done: watch::Receiver<()>,
}

impl Store {
    /// For at most `size` bytes.
    pub(super) fn new(size: usize) -> Self {
        Self { size, entries: RwLock::default(), flights: Mutex::default(), arriving: AtomicUsize::new(0) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn flights(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Vec<Arc<Flight>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, key: &str, asked: &HeaderMap) -> Found {
        let entries = self.read();
        let Some(variants) = entries.by_key.get(key) else { return Found::Nothing };
        // The newest that fits: what an answer varies with may have changed.
        match variants.iter().rev().find(|entry| entry.matches(asked)) {
            Some(entry) => {
                entry.used.store(true, Ordering::Relaxed);
                Found::Entry(entry.clone())
            }
            None => Found::OtherVariants,
        }
    }

    /// Stores it in the place of those that it would answer for.
    pub(super) fn put(&self, entry: Arc<Entry>, asked: &HeaderMap) {
        let size = entry.size();
        if size > self.size {
            return;
        }
        let mut entries = self.write();
        entries.retain(&entry.key, |old| !old.matches(asked));
        let crowded = entries.by_key.get(&entry.key).filter(|variants| variants.len() >= VARIANTS);
        if let Some(oldest) = crowded.map(|variants| variants[0].clone()) {
            entries.retain(&entry.key, |old| !Arc::ptr_eq(old, &oldest));
        }
        while entries.bytes + size > self.size && entries.evict() {}
        entries.bytes += size;
        entries.count += 1;
        entries.hand.push_back(Arc::downgrade(&entry));
        entries.by_key.entry(entry.key.clone()).or_default().push(entry);
        entries.tidy();
    }

    /// Throws out one answer, if it is still there.
    pub(super) fn remove(&self, entry: &Arc<Entry>) {
        self.write().retain(&entry.key, |other| !Arc::ptr_eq(other, entry));
    }

    /// Throws out what is meant, also what is still on its way; says how many answers were there.
    pub(super) fn purge(&self, purge: &Purge) -> usize {
        for (key, flights) in self.flights().iter() {
            // What carries the tag is not known before it is here.
            if purge.takes(key) || matches!(purge, Purge::Tag(_)) {
                flights.iter().for_each(|flight| flight.doomed.store(true, Ordering::Release));
            }
        }
        let mut entries = self.write();
        let before = entries.count;
        let tagged =
            |entry: &Arc<Entry>| matches!(purge, Purge::Tag(tag) if entry.tags.iter().any(|own| **own == **tag));
        // The keys of one URL, and those with one beginning, stand together.
        let (from, beginning) = match purge {
            Purge::Url(url) => (url.strip_suffix('*').unwrap_or(url), url.strip_suffix('*')),
            Purge::Tag(_) | Purge::All => ("", Some("")),
        };
        let range = entries.by_key.range::<str, _>((Bound::Included(from), Bound::Unbounded));
        let range = range.take_while(|(key, _)| match beginning {
            Some(beginning) => key.starts_with(beginning),
            None => purge.takes(key),
        });
        let keys: Vec<_> =
            range.filter(|(key, all)| purge.takes(key) || all.iter().any(tagged)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            entries.retain(&key, |entry| !purge.takes(&key) && !tagged(entry));
        }
        before - entries.count
    }

    /// How many answers there are, and how many bytes.
    pub(super) fn sums(&self) -> (usize, usize) {
        let entries = self.read();
        (entries.count, entries.bytes)
    }

    /// Begins to fetch; if somebody is fetching the same already, `wait` is what ends with that.
    pub(super) fn lead(self: &Arc<Self>, key: &Arc<str>) -> (Lead, Option<watch::Receiver<()>>) {
        let (sender, done) = watch::channel(());
        let flight = Arc::new(Flight { doomed: AtomicBool::new(false), done });
        let mut flights = self.flights();
        let all = flights.entry(key.clone()).or_default();
        let before = all.first().map(|first| first.done.clone());
        all.push(flight.clone());
        (Lead { store: self.clone(), key: key.clone(), flight, arrived: 0, _done: sender }, before)
    }
}

impl Entries {
    fn retain(&mut self, key: &str, keep: impl Fn(&Arc<Entry>) -> bool) {
        let Some(variants) = self.by_key.get_mut(key) else { return };
        let (count, bytes) = (&mut self.count, &mut self.bytes);
        variants.retain(|entry| {
            let keep = keep(entry);
            if !keep {
                *count -= 1;
                *bytes -= entry.size();
            }
            keep
        });
        if variants.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// Throws out one that was not used of late; says whether there was any.
    fn evict(&mut self) -> bool {
        while let Some(next) = self.hand.pop_front() {
            let Some(entry) = next.upgrade() else { continue };
            if entry.used.swap(false, Ordering::Relaxed) {
                self.hand.push_back(next);
                continue;
            }
            let before = self.count;
            self.retain(&entry.key, |other| !Arc::ptr_eq(other, &entry));
            if self.count < before {
                return true;
            }
        }
        false
    }

    /// Forgets the places of those that are gone.
    fn tidy(&mut self) {
        if self.hand.len() > 2 * self.count + 64 {
            self.hand.retain(|place| place.strong_count() > 0);
        }
    }
}

/// The right to store what is fetched. Whoever waits goes on when it is dropped.
#[derive(Debug)]
pub(super) struct Lead {
    store: Arc<Store>,
    key: Arc<str>,
    flight: Arc<Flight>,
    arrived: usize,
    _done: watch::Sender<()>,
}

impl Lead {
    /// Notes that so many bytes more are held; `false` if all that are on their way together are too many.
    pub(super) fn arrive(&mut self, bytes: usize) -> bool {
        self.arrived += bytes;
        self.store.arriving.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.store.size
    }

    /// Stores it, unless it is no longer wanted.
    pub(super) fn put(self, entry: Entry, asked: &HeaderMap) -> Arc<Entry> {
        let entry = Arc::new(entry);
        // A purge dooms before it looks, and this looks after it has put: one of the two sees the other.
        self.store.put(entry.clone(), asked);
        if self.flight.doomed.load(Ordering::Acquire) {
            self.store.remove(&entry);
        }
        entry
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.store.arriving.fetch_sub(self.arrived, Ordering::Relaxed);
        let mut flights = self.store.flights();
        if let Some(all) = flights.get_mut(&self.key) {
            all.retain(|flight| !Arc::ptr_eq(flight, &self.flight));
            if all.is_empty() {
                flights.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
