//! How many retries a whole chain of calls may still make, across hops.
//!
//! Retries multiply: three hops that each make three attempts ask the last service 27 times, at the very moment at which
//! it fails (Brooker, "Timeouts, retries, and backoff with jitter", Amazon Builders' Library, 2019). A [`Chain`] is one
//! small number that travels with a request: in a task as its ambient chain, between hops in the header
//! [`RETRIES_LEFT`](seawall_types::header::RETRIES_LEFT). A hop that retries takes one out, and tells the next hop what is
//! left; at zero nobody below retries.
//!
//! # What it bounds
//!
//! **Within a process** all calls of a task share one counter, parallel ones too: a chain of `R` makes at most `R` retries,
//! whatever calls whatever.
//!
//! **Between hops** a call carries a copy. What the next hop spends of it is known here only when the answer says what was
//! left and it is handed to [`Chain::settle`].
//!
//! - With it, and with calls that are made one after the other, the bound is the same: at most `R` retries in all hops
//!   together, for as long as every answer arrives. An answer that is lost takes what it would have said with it.
//! - Without any settling, let a hop that is told `k` make `c` calls of its own below it. Its retries carry at most
//!   `k-1, k-2, .., 0`, so the number of requests that reach depth `d` is at most
//!   `N(d, k) = c·N(d-1, k) + N(d-1, k-1) + .. + N(d-1, 0)`, where `N(0, k) = 1`. For `c = 1` this is the binomial
//!   coefficient `R+d over d`: 10 requests for two retries over three hops, where unbounded hops make 27. The bound holds
//!   for calls made in parallel as well; those are the reason that settling alone cannot do better, since each of them
//!   carries away the same `k` before any comes back.

use std::future::Future;

use crate::sync::{Arc, AtomicU32, Ordering};

tokio::task_local! {
    static CURRENT: Chain;
}

/// The retries that are left for a chain of calls. Clones share one counter.
#[derive(Clone, Debug)]
pub struct Chain(Arc<Link>);

#[derive(Debug)]
struct Link {
    left: AtomicU32,
    /// The chain that this one is a part of: what it spends is spent there as well.
    around: Option<Chain>,
}

impl Chain {
    /// A chain that may make so many retries.
    pub fn new(retries: u32) -> Self {
        Self::part_of(None, retries)
    }

    fn part_of(around: Option<Self>, retries: u32) -> Self {
        Self(Arc::new(Link { left: AtomicU32::new(retries), around }))
    }

    /// The chain that a call has to be made in, where that is not the one that the task runs in already: as
    /// [`Chain::enter`] has it, but never with more than what is left around it, from which it spends too.
    pub fn narrow(told: Option<&str>, own: Option<u32>) -> Option<Self> {
        let Some(around) = Self::current() else { return Self::enter(told, own) };
        let told: Option<u32> = told.and_then(|value| value.trim().parse().ok());
        let most = told.into_iter().chain(own).min().filter(|most| *most < around.left())?;
        Some(Self::part_of(Some(around), most))
    }

    /// The chain of a request that arrives: the smaller of what it was `told` (the header's value) and what this hop's
    /// `own` configuration allows; none if neither says anything. What is not a number counts as not told.
    pub fn enter(told: Option<&str>, own: Option<u32>) -> Option<Self> {
        let told = told.and_then(|value| value.trim().parse().ok());
        match (told, own) {
            (Some(told), Some(own)) => Some(Self::new(own.min(told))),
            (one, other) => one.or(other).map(Self::new),
        }
    }

    /// The chain that this task runs in, if any. A task that is spawned is in none: give it this one's by
    /// [`Chain::scope`].
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Runs `future` in this chain. As cancel safe as `future` is.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Runs `call`, which may return a future or be a turn of one, in this chain.
    pub fn within<T>(self, call: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, call)
    }

    /// How many are left: what the header tells the next hop.
    pub fn left(&self) -> u32 {
        let own = self.0.left.load(Ordering::Relaxed);
        self.0.around.as_ref().map_or(own, |around| own.min(around.left()))
    }

    /// Takes one out, if there is one.
    pub fn take(&self) -> bool {
        let Link { left, around } = &*self.0;
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return false;
        }
        let taken = around.as_ref().is_none_or(Self::take);
        if !taken {
            left.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Puts one back that was taken for a retry that was then not made.
    pub fn put_back(&self) {
        self.0.left.fetch_add(1, Ordering::Relaxed);
        if let Some(around) = &self.0.around {
            around.put_back();
        }
    }

    /// Counts what the next hop has spent: it was `told` so many, and answers that `left` are left.
    pub fn settle(&self, told: u32, left: u32) {
        let spent = told.saturating_sub(left);
        let settled = |here: u32| (spent > 0 && here > 0).then(|| here.saturating_sub(spent));
        let _ = self.0.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, settled);
        if let Some(around) = &self.0.around {
            around.settle(told, left);
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "loom"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_part_spends_from_the_whole_and_never_has_more() {
        let whole = Chain::new(3);
        assert!(whole.clone().within(|| Chain::narrow(None, Some(3))).is_none(), "it has no more than that anyway");
        let part = whole.clone().within(|| Chain::narrow(Some("9"), Some(2))).unwrap();
        assert!(part.take() && part.take() && !part.take());
        assert_eq!((part.left(), whole.left()), (0, 1));
        part.put_back();
        assert_eq!((part.left(), whole.left()), (1, 2));
        part.settle(1, 0);
        assert_eq!((part.left(), whole.left()), (0, 1));
        assert!(whole.clone().within(|| Chain::narrow(Some("9"), Some(5))).is_none(), "and never more");
        let (pair, one) = (Chain::new(2), |pair: &Chain| pair.clone().within(|| Chain::narrow(None, Some(1))).unwrap());
        let part = one(&pair);
        assert!(pair.take() && pair.take() && !part.take(), "the whole is spent");
        pair.put_back();
        assert!(part.take() && !part.take(), "what was not to be had is still the part's own");
        let told = whole.clone().within(|| Chain::narrow(Some("0"), Some(2))).unwrap();
        assert!(!told.take() && whole.left() == 1);
        let part = Chain::new(2).within(|| Chain::narrow(None, Some(1))).unwrap();
        assert!(whole.take() && part.take() && !part.take());
        assert_eq!(Chain::narrow(None, Some(4)).map(|chain| chain.left()), Some(4));
    }

    #[test]
    fn a_hop_lowers_and_never_raises() {
        for (told, own, left) in [
            (None, None, None),
            (Some("2"), None, Some(2)),
            (None, Some(3), Some(3)),
            (Some("5"), Some(3), Some(3)),
            (Some(" 0 "), Some(3), Some(0)),
            (Some("many"), Some(3), Some(3)),
            (Some("-1"), None, None),
            (Some("99999999999"), None, None),
        ] {
            assert_eq!(Chain::enter(told, own).map(|chain| chain.left()), left, "{told:?} {own:?}");
        }
    }

    #[tokio::test]
    async fn it_is_ambient_and_shared_by_parallel_calls() {
        assert!(Chain::current().is_none());
        let take = || async { Chain::current().is_some_and(|chain| chain.take()) };
        let taken = Chain::new(2).scope(async { tokio::join!(take(), take(), take()) }).await;
        assert_eq!(taken, (true, true, false));
        let chain = Chain::new(1);
        let spawned = chain.clone().scope(async { tokio::spawn(Chain::current().unwrap().scope(take())).await });
        assert!(spawned.await.unwrap());
        assert_eq!(chain.left(), 0);
        chain.put_back();
        assert_eq!(chain.left(), 1);
    }

    #[test]
    fn settling_counts_what_the_next_hop_spent() {
        let chain = Chain::new(5);
        for (told, left, here) in [(5, 3, 3), (3, 3, 3), (3, 9, 3), (3, 0, 0), (3, 0, 0)] {
            chain.settle(told, left);
            assert_eq!(chain.left(), here);
        }
    }

    /// A request arrives at a hop with `depth` hops below it, told `told`; each makes `calls` calls in parallel, and
    /// everything fails. Returns the requests that reached the last, and what the hop says is left.
    fn storm(depth: u32, told: u32, calls: u32, settle: bool) -> (u64, u32) {
        if depth == 0 {
            return (1, told);
        }
        let chain = Chain::new(told);
        let mut reached = 0;
        let mut call = |chain: &Chain, carries: u32| {
            let (below, left) = storm(depth - 1, carries, calls, settle);
            reached += below;
            if settle {
                chain.settle(carries, left);
            }
        };
        for _ in 0..calls {
            // In parallel: all of them carry what there was at the beginning.
            call(&chain, told);
        }
        while chain.take() {
            call(&chain, chain.left());
        }
        (reached, chain.left())
    }

    fn bound(depth: u32, told: u32, calls: u32) -> u64 {
        if depth == 0 {
            return 1;
        }
        let retries: u64 = (0..told).map(|left| bound(depth - 1, left, calls)).sum();
        u64::from(calls) * bound(depth - 1, told, calls) + retries
    }

    proptest! {
        /// The documented bounds hold, and the worst case reaches them.
        #[test]
        fn the_bound_is_exact(depth in 1u32..5, told in 0u32..5, calls in 1u32..4) {
            prop_assert_eq!(storm(depth, told, calls, false).0, bound(depth, told, calls));
            prop_assert!(storm(depth, told, calls, true).0 <= bound(depth, told, calls));
            // One after the other and settled: so many retries in all, at any depth.
            prop_assert_eq!(storm(depth, told, 1, true).0, u64::from(told) + 1);
            let over = |n: u64, k: u64| (1..=k).fold(1, |product, i| product * (n - k + i) / i);
            prop_assert_eq!(bound(depth, told, 1), over(u64::from(told + depth), u64::from(depth)));
        }
    }
}
