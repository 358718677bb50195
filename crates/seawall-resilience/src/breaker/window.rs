//! What a breaker looks back on: the last calls, exactly; the last seconds, in slices; or failures in a row.
//!
//! A success of the common kind costs one `fetch_add`. Nothing here locks, and no cost grows with the traffic. A thread
//! that is stopped between reading a word and adding to it, for longer than the word stays in use, misplaces the one
//! call that it was about to count.

use std::cell::Cell;

use seawall_types::Period;

use super::config::{Config, Window};
use crate::Tick;
use crate::sync::{AtomicU64, Ordering};

/// What a window adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Calls that were counted.
    pub calls: u32,
    /// How many of them failed.
    pub failed: u32,
    /// How many of them were slow.
    pub slow: u32,
}

/// A window's kind and size in one word, so that both change at once:
/// `kind:2 | log2(rows):4 | slices:8 | size:50`; the size is calls, failures, or a slice's nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape(u64);

const SIZE: u64 = (1 << 50) - 1;

impl Shape {
    pub(super) fn of(config: &Config) -> Self {
        match config.window {
            Window::Calls(size) => Self(u64::from(size)),
            Window::Time(period) => {
                let slices = if config.exact() { period.as_secs().clamp(1, 120) } else { 10 };
                Self::time(period, slices)
            }
            Window::Consecutive(failures) => {
                Self(2 << 62 | u64::from(rows(Slices::stride(1))) << 58 | 1 << 50 | u64::from(failures))
            }
        }
    }

    fn time(period: Period, slices: u64) -> Self {
        let slice = (crate::clock::nanos(*period) / slices).clamp(1, SIZE);
        Self(1 << 62 | u64::from(rows(Slices::stride(slices as usize))) << 58 | slices << 50 | slice)
    }

    pub(super) const fn word(self) -> u64 {
        self.0
    }

    #[inline]
    pub(super) const fn kind(word: u64) -> u64 {
        word >> 62
    }

    #[inline]
    pub(super) const fn size(word: u64) -> u64 {
        word & SIZE
    }

    #[inline]
    const fn slices(word: u64) -> u64 {
        word >> 50 & 0xff
    }

    #[inline]
    const fn rows(word: u64) -> usize {
        1 << (word >> 58 & 0xf)
    }
}

/// How many rows of this many words there is room and use for, as a power of two. Threads are more than cores, and come
/// and go: with four rows a core two that run at once seldom share one.
fn rows(stride: usize) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (WORDS / stride).min(4 * cores.next_power_of_two()).max(1).ilog2()
}

/// The last calls, one bit each for failed and slow, and their sums; exact and sliding.
///
/// While nothing in the window is bad, and that is nearly always, a success finds no bit to take back: it costs the
/// step of the head and one look at the sums.
#[derive(Debug)]
pub(super) struct Ring {
    /// How many calls have ever been recorded.
    head: Head,
    /// Where the head stood when the window was cleared.
    base: AtomicU64,
    /// `failed:32 | slow:32`
    sums: AtomicU64,
    failed: Box<[AtomicU64]>,
    slow: Box<[AtomicU64]>,
}

/// The one word that all cores write. Some processors fetch lines in pairs, so it gets a pair.
#[derive(Debug)]
#[repr(align(128))]
struct Head(AtomicU64);

/// Room for the longest window, so that it can change its size while it is in use.
const BITS: usize = if cfg!(feature = "loom") { 1 } else { Window::MAX.div_ceil(64) as usize };
const FAILED: u64 = 1 << 32;
const SLOW: u64 = 1;

impl Default for Ring {
    fn default() -> Self {
        let bits = || (0..BITS).map(|_| AtomicU64::new(0)).collect();
        Self {
            head: Head(AtomicU64::new(0)),
            base: AtomicU64::new(0),
            sums: AtomicU64::new(0),
            failed: bits(),
            slow: bits(),
        }
    }
}

impl Ring {
    /// Takes the place of the oldest of `size` calls.
    #[inline]
    pub(super) fn record(&self, size: u32, failed: bool, slow: bool) {
        let head = self.head.0.fetch_add(1, Ordering::AcqRel);
        if failed | slow | (self.sums.load(Ordering::Relaxed) != 0) {
            self.replace((head % u64::from(size)) as u32, failed, slow);
        }
    }

    fn replace(&self, at: u32, failed: bool, slow: bool) {
        self.set(&self.failed, FAILED, at, failed);
        self.set(&self.slow, SLOW, at, slow);
    }

    /// Whoever flips the bit moves the sum, so that the two never part.
    fn set(&self, bits: &[AtomicU64], one: u64, at: u32, on: bool) {
        let word = &bits[at as usize / 64];
        let bit = 1 << (at % 64);
        if (word.load(Ordering::Relaxed) & bit != 0) == on {
            return;
        }
        if on && word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.sums.fetch_add(one, Ordering::AcqRel);
        } else if !on && word.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
            self.sums.fetch_sub(one, Ordering::AcqRel);
        }
    }

    pub(super) fn sums(&self, size: u32) -> Sums {
        let since = self.head.0.load(Ordering::Acquire).saturating_sub(self.base.load(Ordering::Acquire));
        let calls = u32::try_from(since).unwrap_or(u32::MAX).min(size);
        let sums = self.sums.load(Ordering::Acquire);
        Sums { calls, failed: ((sums / FAILED) as u32).min(calls), slow: (sums as u32).min(calls) }
    }

    pub(super) fn total(&self) -> u64 {
        self.head.0.load(Ordering::Relaxed)
    }

    pub(super) fn clear(&self) {
        for (bits, one) in [(&self.failed, FAILED), (&self.slow, SLOW)] {
            for word in bits {
                let count = word.swap(0, Ordering::AcqRel).count_ones();
                self.sums.fetch_sub(u64::from(count) * one, Ordering::AcqRel);
            }
        }
        self.base.store(self.head.0.load(Ordering::Acquire), Ordering::Release);
    }
}

/// Words for all rows of cells: 4 KiB.
const WORDS: usize = if cfg!(feature = "loom") { 32 } else { 512 };
/// A cell is `stamp:28 | count:36`; the stamp is the number of its slice since the clock's beginning.
const COUNT: u32 = 36;
const STAMP: u64 = (1 << 28) - 1;
/// How many slices a cell may be ahead of a thread whose clock is a moment behind.
const AHEAD: u64 = 2;

/// The calls of the last slices of time. A row for each core, as far as there is room, so that cores do not write the
/// same line; the sums over the rows are exact.
///
/// A slice of a row is three cells: well, failed, slow. The last word of a row counts the calls whose cells have been
/// taken for a newer slice.
#[derive(Debug)]
pub(super) struct Slices {
    words: Box<[AtomicU64]>,
}

impl Default for Slices {
    fn default() -> Self {
        Self { words: (0..WORDS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Slices {
    /// The words of a row; rows do not share a line.
    const fn stride(slices: usize) -> usize {
        (3 * slices + 1).next_multiple_of(16)
    }

    /// Counts a call, and says whether it is the first of its kind in a slice: then the window has moved.
    #[inline]
    pub(super) fn record(&self, shape: u64, failed: bool, slow: bool, now: Tick) -> bool {
        let slices = Shape::slices(shape);
        let number = now.nanos() / Shape::size(shape);
        let stride = Self::stride(slices as usize);
        let row = (stripe() & (Shape::rows(shape) - 1)) * stride;
        let at = row + 3 * (number % slices) as usize;
        let stamp = number & STAMP;
        let spent = &self.words[row + stride - 1];
        let moved = bump(&self.words[at + usize::from(failed)], stamp, spent);
        if slow { bump(&self.words[at + 2], stamp, &AtomicU64::new(0)) | moved } else { moved }
    }

    /// Counts a call that nobody looks back on.
    #[inline]
    pub(super) fn count(&self, shape: u64) {
        let stride = Self::stride(Shape::slices(shape) as usize);
        let row = (stripe() & (Shape::rows(shape) - 1)) * stride;
        self.words[row + stride - 1].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sums(&self, shape: u64, now: Tick) -> Sums {
        let slices = Shape::slices(shape);
        let current = (now.nanos() / Shape::size(shape)) & STAMP;
        let mut sums = [0; 3];
        for row in self.words.chunks_exact(Self::stride(slices as usize)).take(Shape::rows(shape)) {
            for (at, cell) in row.iter().take(3 * slices as usize).enumerate() {
                let word = cell.load(Ordering::Acquire);
                let stamp = word >> COUNT;
                // A cell may be one slice ahead of a reader whose clock is a moment behind.
                if current.wrapping_sub(stamp) & STAMP < slices || stamp == (current + 1) & STAMP {
                    sums[at % 3] += word & ((1 << COUNT) - 1);
                }
            }
        }
        let [well, failed, slow] = sums.map(|sum| u32::try_from(sum).unwrap_or(u32::MAX));
        Sums { calls: well.saturating_add(failed), failed, slow }
    }

    pub(super) fn total(&self, shape: u64) -> u64 {
        let slices = Shape::slices(shape) as usize;
        let rows = self.words.chunks_exact(Self::stride(slices)).take(Shape::rows(shape));
        rows.map(|row| {
            let cells = row.iter().take(3 * slices).enumerate().filter(|(at, _)| at % 3 != 2);
            let live: u64 = cells.map(|(_, cell)| cell.load(Ordering::Relaxed) & ((1 << COUNT) - 1)).sum();
            live + row[row.len() - 1].load(Ordering::Relaxed)
        })
        .sum()
    }

    /// Forgets everything; answers how many calls had been counted.
    pub(super) fn clear(&self, shape: u64) -> u64 {
        let total = self.total(shape);
        for word in &self.words {
            word.store(0, Ordering::Release);
        }
        total
    }
}

/// Adds one to a cell of the slice `stamp`; takes the cell over if it is of an older slice.
#[inline]
fn bump(cell: &AtomicU64, stamp: u64, spent: &AtomicU64) -> bool {
    let word = cell.load(Ordering::Relaxed);
    if word >> COUNT == stamp {
        cell.fetch_add(1, Ordering::AcqRel);
        return false;
    }
    take_over(cell, word, stamp, spent)
}

#[cold]
fn take_over(cell: &AtomicU64, mut word: u64, stamp: u64, spent: &AtomicU64) -> bool {
    loop {
        let ahead = (word >> COUNT).wrapping_sub(stamp) & STAMP;
        if ahead <= AHEAD {
            // Another thread has taken it over, and its clock may be a moment ahead.
            cell.fetch_add(1, Ordering::AcqRel);
            return true;
        }
        match cell.compare_exchange(word, stamp << COUNT | 1, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => {
                spent.fetch_add(word & ((1 << COUNT) - 1), Ordering::Relaxed);
                return true;
            }
            Err(seen) => word = seen,
        }
    }
}

/// A number for this thread; threads that run at once rarely share one.
#[inline]
fn stripe() -> usize {
    thread_local!(static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) });
    STRIPE.with(|stripe| match stripe.get() {
        usize::MAX => {
            static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            stripe.set(number);
            number
        }
        number => number,
    })
}
