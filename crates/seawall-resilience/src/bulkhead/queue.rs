//! Those who wait for a place: one list for each priority, first come, first served.
//!
//! The lists are linked through slots of one vector, so joining and leaving from anywhere cost the same however many
//! wait. A slot belongs to its waiter until that one leaves, whatever became of its turn.

use std::task::Waker;

use seawall_types::Ratio;

use super::Priority;

/// A queue that has been long gives its memory back, down to this many slots, when nobody is left in it.
const KEPT: usize = 256;

/// What became of a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Its turn has not come.
    Waits,
    /// It has been given a place; so many were taken then.
    Granted(u32),
    /// It has given way to one who matters more.
    Displaced,
}

#[derive(Debug)]
struct Slot {
    priority: Priority,
    turn: Turn,
    waker: Option<Waker>,
    before: Option<u32>,
    after: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct List {
    first: Option<u32>,
    last: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Queue {
    /// The share of the places by priority; kept here since it changes under the same lock.
    pub(super) shares: [Ratio; 4],
    slots: Vec<Slot>,
    free: Vec<u32>,
    lists: [List; 4],
    waiting: u32,
}

impl Queue {
    pub(super) fn new(shares: [Ratio; 4]) -> Self {
        Self { shares, slots: Vec::new(), free: Vec::new(), lists: [List::default(); 4], waiting: 0 }
    }

    /// How many wait for their turn.
    pub(super) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// The highest priority that anybody waits with.
    pub(super) fn highest(&self) -> Option<Priority> {
        Priority::ALL.into_iter().rev().find(|priority| self.lists[*priority as usize].first.is_some())
    }

    /// Joins at the end of its priority.
    pub(super) fn push(&mut self, priority: Priority) -> u32 {
        let last = self.lists[priority as usize].last;
        let slot = Slot { priority, turn: Turn::Waits, waker: None, before: last, after: None };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                u32::try_from(self.slots.len() - 1).expect("at most `MAX` wait and `MAX` have been given a place")
            }
        };
        let list = &mut self.lists[priority as usize];
        list.last = Some(at);
        match last {
            Some(last) => self.slots[last as usize].after = Some(at),
            None => list.first = Some(at),
        }
        self.waiting += 1;
        at
    }

    /// Notes that the first of `priority` has been given a place. Wake it after the lock is given back.
    pub(super) fn grant(&mut self, priority: Priority, in_use: u32) -> Option<Waker> {
        let first = self.lists[priority as usize].first.expect("somebody waits with this priority");
        self.settle(first, Turn::Granted(in_use))
    }

    /// Lets the youngest of the least priority below `priority` give way; `None` if there is nobody.
    pub(super) fn displace(&mut self, priority: Priority) -> Option<Option<Waker>> {
        let below = Priority::ALL.into_iter().take_while(|other| *other < priority);
        let last = below.map(|other| self.lists[other as usize].last).find(Option::is_some)?;
        last.map(|last| self.settle(last, Turn::Displaced))
    }

    pub(super) fn turn(&self, slot: u32) -> Turn {
        self.slots[slot as usize].turn
    }

    /// Notes whom to wake, and gives back a waker that is no longer needed, to be dropped outside of the lock.
    pub(super) fn register(&mut self, slot: u32, waker: &Waker) -> Option<Waker> {
        let known = &mut self.slots[slot as usize].waker;
        if known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            return None;
        }
        known.replace(waker.clone())
    }

    /// The waiter is done with its slot; says what had become of it.
    pub(super) fn leave(&mut self, slot: u32) -> Turn {
        let turn = self.turn(slot);
        if turn == Turn::Waits {
            self.unlink(slot);
        }
        self.slots[slot as usize].waker = None;
        self.free.push(slot);
        if self.free.len() == self.slots.len() {
            self.slots.clear();
            self.free.clear();
            self.slots.shrink_to(KEPT);
            self.free.shrink_to(KEPT);
        }
        turn
    }

    fn settle(&mut self, slot: u32, turn: Turn) -> Option<Waker> {
        self.unlink(slot);
        let slot = &mut self.slots[slot as usize];
        slot.turn = turn;
        slot.waker.take()
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { priority, before, after, .. } = self.slots[slot as usize];
        let list = &mut self.lists[priority as usize];
        match before {
            Some(before) => self.slots[before as usize].after = after,
            None => list.first = after,
        }
        match after {
            Some(after) => self.slots[after as usize].before = before,
            None => list.last = before,
        }
        self.waiting -= 1;
    }
}
