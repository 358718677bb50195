//! C4: whether a history is linearizable: whether there is an order of its operations, one at a time, each between its call and
//! its answer, in which every answer is right.
//!
//! The search is Wing and Gong's ("Testing and verifying concurrent objects", 1993) with Lowe's memory of what has been tried
//! ("Testing for linearizability", 2017): a set of operations done and the state that they led to is not looked at twice. It
//! takes exponential time in the number of operations that overlap, so ask for one object at a time, see [`partition`].

mod models;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

pub use models::{Condition, Held, KvAnswer, KvAsk, KvModel, KvState, LockAnswer, LockAsk, LockModel, lock_operations};

use crate::{Moment, Rule, Violation};

/// What the operations are done to.
pub trait Model {
    /// What it is at a moment.
    type State: Clone + Eq + Hash + Debug;
    /// What is asked of it.
    type Ask: Debug;
    /// What it answers.
    type Answer: Debug;

    /// What it is in the beginning.
    fn first(&self) -> Self::State;

    /// What it is after an operation; `None` when it would not have answered so. Without an answer the operation was done and
    /// nobody knows what came of it.
    fn step(&self, state: &Self::State, ask: &Self::Ask, answer: Option<&Self::Answer>) -> Option<Self::State>;

    /// How far it has come, by a number that never goes back. With it the search gives up whatever has gone too far: else each
    /// set of operations without an answer is tried at each moment. Default 0.
    fn reached(&self, _state: &Self::State) -> u64 {
        0
    }

    /// How far it had come at most before it answered so. Default any.
    fn at_most(&self, _ask: &Self::Ask, _answer: &Self::Answer) -> u64 {
        u64::MAX
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<Q, A> {
    /// Who did it.
    pub process: String,
    /// When it was asked for.
    pub called: Moment,
    /// What was asked.
    pub ask: Q,
    /// When it was answered, and how. Without an answer it may have been done at any time since, or never.
    pub answered: Option<(Moment, A)>,
}

/// How many states are remembered before the search is given up: some hundred megabytes.
const MOST: usize = 1 << 20;

/// Nothing, when the history is linearizable; otherwise the operation before which every order failed, of those that came
/// furthest. A history that takes too long to search is a violation, too: it has not been shown to be none.
pub fn check<M: Model>(model: &M, operations: &[Operation<M::Ask, M::Answer>]) -> Option<Violation> {
    Search::new(model, operations).run().err().map(|what| Violation::new(Rule::Linearizable, what))
}

/// The operations of each object by themselves, in their order.
pub fn partition<Q, A, K: Ord>(
    operations: impl IntoIterator<Item = Operation<Q, A>>,
    object: impl Fn(&Q) -> K,
) -> BTreeMap<K, Vec<Operation<Q, A>>> {
    let mut parts: BTreeMap<K, Vec<_>> = BTreeMap::new();
    for operation in operations {
        parts.entry(object(&operation.ask)).or_default().push(operation);
    }
    parts
}

/// Calls and answers in the order of time, as a list from which operations are taken and put back. Node 0 is before all.
struct Search<'a, M: Model> {
    model: &'a M,
    operations: &'a [Operation<M::Ask, M::Answer>],
    /// Which operation a node belongs to, and whether it is the answer.
    nodes: Vec<(usize, bool)>,
    /// Of each operation's call and answer, the nodes; 0 for no answer.
    places: Vec<(usize, usize)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// How far the model may have come at most before each answered operation, the least first.
    bounds: Vec<(u64, usize)>,
    /// Of each operation, where it is among those.
    bounded: Vec<usize>,
    /// All before this one are done.
    bound: usize,
}

/// An operation's own, as good as drawn at random. Vigna's SplitMix64, twice.
fn number(index: usize) -> u128 {
    let half = |seed: u64| {
        let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u128::from(z ^ (z >> 31))
    };
    let seed = 2 * index as u64 + 1;
    half(seed) << 64 | half(seed + 1)
}

/// The end of the list.
const END: usize = usize::MAX;

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, operations: &'a [Operation<M::Ask, M::Answer>]) -> Self {
        let mut order = Vec::with_capacity(2 * operations.len());
        for (index, operation) in operations.iter().enumerate() {
            order.push((operation.called, false, index));
            if let Some((at, _)) = &operation.answered {
                order.push((*at.max(&operation.called), true, index));
            }
        }
        // In the same moment a call comes before an answer: they overlap.
        order.sort_unstable();
        let nodes: Vec<_> =
            std::iter::once((0, false)).chain(order.into_iter().map(|(_, answer, index)| (index, answer))).collect();
        let mut places = vec![(0, 0); operations.len()];
        for (node, (index, answer)) in nodes.iter().enumerate().skip(1) {
            if *answer {
                places[*index].1 = node;
            } else {
                places[*index].0 = node;
            }
        }
        let count = nodes.len();
        let next = (1..=count).map(|node| if node == count { END } else { node }).collect();
        let previous = (0..count).map(|node| node.saturating_sub(1)).collect();
        let answered = operations.iter().enumerate();
        let bound = |(index, operation): (usize, &Operation<_, _>)| {
            let (_, answer) = operation.answered.as_ref()?;
            Some((model.at_most(&operation.ask, answer), index))
        };
        let mut bounds: Vec<_> = answered.filter_map(bound).collect();
        bounds.sort_unstable();
        let mut bounded = vec![END; operations.len()];
        bounds.iter().enumerate().for_each(|(at, (_, index))| bounded[*index] = at);
        Self { model, operations, nodes, places, next, previous, bounds, bounded, bound: 0 }
    }

    fn run(mut self) -> Result<(), String> {
        let mut state = self.model.first();
        let mut done = vec![0u64; self.operations.len().div_ceil(64)];
        // Of the operations that are done: each adds its own number, and takes it out again (Zobrist, 1970). Two sets that are not
        // the same have the same sum once in 2^128.
        let mut sum = 0u128;
        let mut tried = HashSet::new();
        let mut stack: Vec<(usize, M::State)> = Vec::new();
        let mut left = self.operations.iter().filter(|operation| operation.answered.is_some()).count();
        let mut furthest = (left + 1, String::new());
        let mut node = self.next[0];
        while left > 0 {
            let call = (node != END && !self.nodes[node].1).then(|| self.nodes[node].0);
            let Some(index) = call else {
                // An answer whose operation is not done yet, or the end: what was done before was wrong.
                if left < furthest.0 {
                    furthest = (left, self.stuck(node, &state));
                }
                let Some((index, before)) = stack.pop() else { return Err(furthest.1) };
                state = before;
                done[index / 64] &= !(1 << (index % 64));
                sum ^= number(index);
                self.bound = self.bound.min(self.bounded[index]);
                left += usize::from(self.operations[index].answered.is_some());
                self.put_back(index);
                node = self.next[self.places[index].0];
                continue;
            };
            let operation = &self.operations[index];
            let answer = operation.answered.as_ref().map(|(_, answer)| answer);
            let after = self.model.step(&state, &operation.ask, answer).filter(|after| {
                if self.model.reached(after) > self.least_bound(&done, index) {
                    return false;
                }
                tried.insert((sum ^ number(index), after.clone()))
            });
            let Some(after) = after else {
                node = self.next[node];
                continue;
            };
            done[index / 64] |= 1 << (index % 64);
            sum ^= number(index);
            if tried.len() > MOST {
                return Err(format!("too many orders to try after {} operations", stack.len()));
            }
            stack.push((index, std::mem::replace(&mut state, after)));
            left -= usize::from(answer.is_some());
            self.take(index);
            node = self.next[0];
        }
        Ok(())
    }

    /// How far the model may have come once this operation is done, too, for the others that are still to be answered.
    fn least_bound(&mut self, done: &[u64], index: usize) -> u64 {
        let is_done = |index: usize| done[index / 64] >> (index % 64) & 1 == 1;
        while self.bounds.get(self.bound).is_some_and(|(_, index)| is_done(*index)) {
            self.bound += 1;
        }
        let mut others = self.bounds[self.bound.min(self.bounds.len())..].iter();
        let least = others.find(|(_, other)| *other != index && !is_done(*other));
        least.map_or(u64::MAX, |(bound, _)| *bound)
    }

    fn stuck(&self, node: usize, state: &M::State) -> String {
        let Some((index, _)) = self.nodes.get(node) else { return format!("no order in state {state:?}") };
        let Operation { process, called, ask, answered } = &self.operations[*index];
        format!("{process} asked {ask:?} at {called}, was answered {answered:?}: not in state {state:?}")
    }

    fn take(&mut self, index: usize) {
        let (call, answer) = self.places[index];
        for node in [call, answer].into_iter().filter(|node| *node != 0) {
            let (previous, next) = (self.previous[node], self.next[node]);
            self.next[previous] = next;
            if next != END {
                self.previous[next] = previous;
            }
        }
    }

    /// In the reverse order of taking.
    fn put_back(&mut self, index: usize) {
        let (call, answer) = self.places[index];
        for node in [answer, call].into_iter().filter(|node| *node != 0) {
            let (previous, next) = (self.previous[node], self.next[node]);
            self.next[previous] = node;
            if next != END {
                self.previous[next] = node;
            }
        }
    }
}
