//! What a claim of permits waits for, pure.
//!
//! Permits are given in the order of the queue, so what is before a claim decides, and not who is. The first who waits is
//! woken by whoever of the holders goes; everybody else by the one before it, which says so when it has its permits. So a
//! release wakes one waiter, and another only if there is something left for it.

use crate::sharing::Kind;

/// How a claim of permits stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has its permits.
    Held,
    /// A claim before it means another limit.
    Differs(u32),
    /// It waits for any of those before it to go.
    BehindAll,
    /// It waits for the one right before it to go or to get its permits.
    BehindLast,
}

/// `before` is the kinds of the claims before it, the oldest first.
pub(super) fn standing(before: &[Kind], limit: u32, take: u32) -> Standing {
    let other = before.iter().find_map(|kind| match kind {
        Kind::Permits { limit: other, .. } if *other != limit => Some(*other),
        _ => None,
    });
    if let Some(other) = other {
        return Standing::Differs(other);
    }
    if (Kind::Permits { limit, take }).holds(before.iter().copied()) {
        return Standing::Held;
    }
    match before.split_last() {
        Some((last @ Kind::Permits { .. }, others)) if last.holds(others.iter().copied()) => Standing::BehindAll,
        _ => Standing::BehindLast,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u32 = 4;

    /// A queue whose members look again only when what they wait for wakes them.
    #[derive(Default)]
    struct Queue {
        claims: Vec<Member>,
        next: u32,
        wakes: usize,
    }

    struct Member {
        id: u32,
        kind: Kind,
        /// `None` for one that has not looked yet.
        standing: Option<Standing>,
        /// Whose change it waits for.
        last: Option<u32>,
    }

    impl Queue {
        fn look(&mut self, at: usize) {
            let before: Vec<_> = self.claims[..at].iter().map(|member| member.kind).collect();
            let last = self.claims[..at].last().map(|member| member.id);
            let (kind, had) = (self.claims[at].kind, self.claims[at].standing);
            let standing = match kind {
                Kind::Permits { limit, take } => standing(&before, limit, take),
                kind if kind.holds(before) => Standing::Held,
                _ => Standing::BehindLast,
            };
            (self.claims[at].standing, self.claims[at].last) = (Some(standing), last);
            // It says so to the one behind it.
            if standing == Standing::Held && had != Some(Standing::Held) {
                self.changed(self.claims[at].id, false);
            }
        }

        fn changed(&mut self, id: u32, gone: bool) {
            let woken = |member: &Member| match member.standing {
                Some(Standing::BehindAll) => gone,
                Some(Standing::BehindLast) => member.last == Some(id),
                _ => false,
            };
            let woken: Vec<_> = self.claims.iter().filter(|one| woken(one)).map(|one| one.id).collect();
            for id in woken {
                self.wakes += 1;
                if let Some(at) = self.claims.iter().position(|one| one.id == id) {
                    self.look(at);
                }
            }
        }

        fn arrive(&mut self, kind: Kind) {
            self.next += 1;
            self.claims.push(Member { id: self.next, kind, standing: None, last: None });
            self.look(self.claims.len() - 1);
        }

        fn leave(&mut self, at: usize) {
            let gone = self.claims.remove(at);
            self.changed(gone.id, true);
        }
    }

    proptest! {
        /// Whoever comes and goes: everybody who can hold does, no more than there are, and in the order of the queue.
        #[test]
        fn whoever_can_hold_is_woken_and_nobody_else_holds(
            moves in proptest::collection::vec((any::<bool>(), 0u32..8, 0usize..100), 0..100),
        ) {
            let mut queue = Queue::default();
            for (arrives, kind, which) in moves {
                if arrives || queue.claims.is_empty() {
                    queue.arrive(match kind {
                        0 => Kind::Exclusive,
                        take => Kind::Permits { limit: LIMIT, take: take.min(LIMIT) },
                    });
                } else {
                    let at = which % queue.claims.len();
                    queue.leave(at);
                }
                let mut taken = 0;
                for at in 0..queue.claims.len() {
                    let before = queue.claims[..at].iter().map(|member| member.kind);
                    let holds = queue.claims[at].standing == Some(Standing::Held);
                    prop_assert_eq!(holds, queue.claims[at].kind.holds(before), "{} of {}", at, queue.claims.len());
                    if let (true, Kind::Permits { take, .. }) = (holds, queue.claims[at].kind) {
                        taken += take;
                    }
                }
                prop_assert!(taken <= LIMIT);
            }
        }
    }

    #[test]
    fn a_release_wakes_one_waiter() {
        let mut queue = Queue::default();
        for _ in 0..1_000 {
            queue.arrive(Kind::Permits { limit: LIMIT, take: 1 });
        }
        queue.wakes = 0;
        for _ in 0..100 {
            queue.leave(2);
        }
        // The first waiter, and the one behind it that becomes the first.
        assert!(queue.wakes <= 200, "{}", queue.wakes);
    }

    #[test]
    fn another_limit_is_named() {
        let permits = |limit| Kind::Permits { limit, take: 1 };
        assert_eq!(standing(&[permits(3), permits(3)], 5, 1), Standing::Differs(3));
        assert_eq!(standing(&[Kind::Read], 5, 1), Standing::BehindLast);
    }
}
