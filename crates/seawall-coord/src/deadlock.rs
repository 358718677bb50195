//! Sessions that wait for each other: a wait-for graph over the queues of all locks, pure.
//!
//! A session is stuck when one of its claims waits and would wait still if every session that is not stuck gave back all it has. Who
//! is stuck is the greatest set that agrees with this. So readers and permits need no edges of their own: whether a claim could
//! hold its lock behind those who are stuck says it all (the AND-OR model of Knapp's survey, 1987). A session's own claims do not
//! count against it: two tasks of one session wait for each other all the time.
//!
//! Sessions are what is known. One that has several tasks may be found stuck while another of its tasks is about to release what it
//! has: so a finding is a suspicion, and one that stays the same is a strong one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backend::view::{ClaimView, LockView};
use crate::class::Fence;
use crate::name::LockName;

/// Of so many claims of one lock it is looked whether they wait, from the front of the queue.
const LOOKED_AT: usize = 64;

/// One wait of those that make a circle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Wait {
    /// Whose session waits.
    pub owner: String,
    /// The session's number.
    pub session: String,
    /// For which lock.
    pub lock: LockName,
    /// The number of its claim.
    pub token: u64,
    /// Which session is before it there: the next one in the circle.
    pub behind: String,
    /// Whose that is.
    pub behind_owner: String,
}

/// A circle: each waits for the next, and the last for the first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Deadlock(pub Vec<Wait>);

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, wait) in self.0.iter().enumerate() {
            let and = if at == 0 { "" } else { "; " };
            let Wait { owner, session, lock, behind, behind_owner, .. } = wait;
            write!(f, "{and}{owner} (session {session}) waits for `{lock}` behind {behind_owner} (session {behind})")?;
        }
        Ok(())
    }
}

/// A claim that waits, and the claims before it.
struct Waiting<'a> {
    lock: &'a LockName,
    own: &'a ClaimView,
    before: Vec<&'a ClaimView>,
}

impl Waiting<'_> {
    /// Those before it that would be there still if all that are not stuck gave back what they have.
    fn left<'s>(&'s self, stuck: &'s BTreeSet<&str>) -> impl Iterator<Item = &'s ClaimView> {
        let others = self.before.iter().filter(|claim| claim.session != self.own.session);
        others.filter(|claim| stuck.contains(&*claim.session)).copied()
    }

    /// One of them that is in the way, by itself if there is such.
    fn behind<'s>(&'s self, stuck: &'s BTreeSet<&str>) -> Option<&'s ClaimView> {
        let alone = self.left(stuck).find(|claim| !self.own.kind.holds([claim.kind]));
        alone.or_else(|| self.left(stuck).next())
    }

    fn is_stuck(&self, stuck: &BTreeSet<&str>) -> bool {
        !self.own.kind.holds(self.left(stuck).map(|claim| claim.kind))
    }
}

/// The circles among these locks, each once: those who wait for one and are not of it are not named.
pub fn deadlocks(locks: &[LockView]) -> Vec<Deadlock> {
    let mut waits: BTreeMap<&str, Vec<Waiting<'_>>> = BTreeMap::new();
    for lock in locks {
        let claims: Vec<_> = lock.holder.iter().chain(&lock.sharing).chain(&lock.queue).take(LOOKED_AT).collect();
        let holders = claims.len().min(usize::from(lock.holder.is_some()) + lock.sharing.len());
        for at in holders..claims.len() {
            let waiting = Waiting { lock: &lock.name, own: claims[at], before: claims[..at].to_vec() };
            waits.entry(&claims[at].session).or_default().push(waiting);
        }
    }
    let mut stuck: BTreeSet<&str> = waits.keys().copied().collect();
    loop {
        let still: BTreeSet<_> =
            stuck.iter().copied().filter(|session| waits[session].iter().any(|wait| wait.is_stuck(&stuck))).collect();
        if still.len() == stuck.len() {
            break;
        }
        stuck = still;
    }
    // Whoever is stuck is so behind somebody who is; to follow that leads into a circle.
    let mut found = BTreeMap::new();
    for start in &stuck {
        let mut way: Vec<Wait> = Vec::new();
        let mut at = *start;
        let circle = loop {
            if let Some(first) = way.iter().position(|wait| wait.session == at) {
                break Some(way.split_off(first));
            }
            let wait = waits[at].iter().find(|wait| wait.is_stuck(&stuck));
            let Some((wait, next)) = wait.and_then(|wait| Some((wait, wait.behind(&stuck)?))) else { break None };
            way.push(Wait {
                owner: wait.own.owner.clone(),
                session: wait.own.session.clone(),
                lock: wait.lock.clone(),
                token: wait.own.fence.map_or(0, Fence::get),
                behind: next.session.clone(),
                behind_owner: next.owner.clone(),
            });
            at = &next.session;
        };
        let Some(mut circle) = circle else { continue };
        let first = circle.iter().enumerate().min_by_key(|(_, wait)| (*wait).clone()).map_or(0, |(at, _)| at);
        circle.rotate_left(first);
        let who: BTreeSet<_> = circle.iter().map(|wait| wait.session.clone()).collect();
        found.entry(who).or_insert(Deadlock(circle));
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sharing::Kind;

    fn lock(name: &str, claims: &[(u8, Kind)], number: &mut u64) -> LockView {
        let view = |(session, kind): &(u8, Kind)| {
            *number += 1;
            let (owner, session) = (format!("o{session}"), format!("s{session}"));
            ClaimView {
                owner,
                session,
                fence: Some(Fence::new(*number)),
                since_ms: 0,
                info: String::new(),
                kind: *kind,
                priority: 0,
            }
        };
        LockView::of(LockName::try_new(name).unwrap(), claims.iter().map(view).collect())
    }

    fn found(locks: &[(&str, &[(u8, Kind)])]) -> Vec<String> {
        let mut number = 0;
        let locks: Vec<_> = locks.iter().map(|(name, claims)| lock(name, claims, &mut number)).collect();
        deadlocks(&locks)
            .iter()
            .map(|circle| {
                circle.0.iter().map(|wait| format!("{}:{}", wait.session, wait.lock)).collect::<Vec<_>>().join(" ")
            })
            .collect()
    }

    const W: Kind = Kind::Exclusive;
    const R: Kind = Kind::Read;

    const fn p(take: u32) -> Kind {
        Kind::Permits { limit: 2, take }
    }

    #[test]
    fn circles_are_found_and_nothing_else() {
        let nothing: [String; 0] = [];
        assert_eq!(found(&[("a", &[(1, W), (2, W)]), ("b", &[(2, W), (1, W)])]), ["s1:b s2:a"]);
        assert_eq!(found(&[("a", &[(1, W), (2, W)]), ("b", &[(2, W), (3, W)])]), nothing, "a chain ends");
        // Who waits for a circle is not of it.
        let three = [("a", &[(1, W), (2, W)][..]), ("b", &[(2, W), (3, W)]), ("c", &[(3, W), (1, W), (4, W)])];
        assert_eq!(found(&three), ["s1:c s3:b s2:a"]);
        // One session's tasks wait for each other, which is no circle.
        assert_eq!(found(&[("a", &[(1, W), (1, W)])]), nothing);
        // Readers are together; through a writer that waits they are not.
        assert_eq!(found(&[("a", &[(1, R), (2, R)]), ("b", &[(2, W), (1, W)])]), nothing);
        assert_eq!(found(&[("a", &[(1, R), (3, W), (2, R)]), ("b", &[(2, W), (1, W)])]), ["s1:b s2:a s3:a"]);
        // Two want to become writers.
        assert_eq!(found(&[("a", &[(1, R), (2, R), (1, W), (2, W)])]), ["s1:a s2:a"]);
        // A permit may come from another who is not stuck.
        assert_eq!(found(&[("a", &[(1, p(1)), (3, p(1)), (2, p(1))]), ("b", &[(2, W), (1, W)])]), nothing);
        assert_eq!(found(&[("a", &[(1, p(2)), (2, p(1))]), ("b", &[(2, W), (1, W)])]), ["s1:b s2:a"]);
        // Two circles.
        let two = [
            ("a", &[(1, W), (2, W)][..]),
            ("b", &[(2, W), (1, W)]),
            ("c", &[(3, W), (4, W)]),
            ("d", &[(4, W), (3, W)]),
        ];
        assert_eq!(found(&two), ["s1:b s2:a", "s3:d s4:c"]);
    }

    /// What happens when whoever can go on does: it gives back everything that it has.
    fn runs_dry(mut locks: Vec<LockView>) -> BTreeSet<String> {
        loop {
            let waits = |session: &str| {
                locks.iter().any(|lock| {
                    let all: Vec<_> = lock.holder.iter().chain(&lock.sharing).chain(&lock.queue).collect();
                    all.iter().enumerate().any(|(at, claim)| {
                        let before = all[..at].iter().filter(|one| one.session != session);
                        claim.session == session && !claim.kind.holds(before.map(|one| one.kind))
                    })
                })
            };
            let all: BTreeSet<String> = locks
                .iter()
                .flat_map(|lock| lock.holder.iter().chain(&lock.sharing).chain(&lock.queue))
                .map(|claim| claim.session.clone())
                .collect();
            let Some(free) = all.iter().find(|session| !waits(session)) else { return all };
            locks = locks
                .into_iter()
                .map(|lock| {
                    let claims = lock.holder.into_iter().chain(lock.sharing).chain(lock.queue);
                    LockView::of(lock.name, claims.filter(|claim| claim.session != *free).collect())
                })
                .collect();
        }
    }

    proptest! {
        /// Beside a machine that lets everybody go on who can: something is left exactly when a circle is found, and all who
        /// are named are among those who are left.
        #[test]
        fn a_circle_is_found_exactly_where_the_fleet_runs_dry(
            queues in proptest::collection::vec(proptest::collection::vec((1u8..6, 0u8..6), 0..5), 1..5),
        ) {
            let mut number = 0;
            let kind = |kind: u8| match kind { 0 => R, 1 => p(1), 2 => p(2), _ => W };
            let locks: Vec<_> = queues.iter().enumerate().map(|(at, claims)| {
                let claims: Vec<_> = claims.iter().map(|(session, of)| (*session, kind(*of))).collect();
                lock(&format!("l{at}"), &claims, &mut number)
            }).collect();
            let circles = deadlocks(&locks);
            let left = runs_dry(locks);
            prop_assert_eq!(circles.is_empty(), left.is_empty(), "{:?} {:?}", circles, left);
            for wait in circles.iter().flat_map(|circle| &circle.0) {
                prop_assert!(left.contains(&wait.session));
            }
        }
    }
}
