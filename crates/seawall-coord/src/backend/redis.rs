//! Sessions and locks in Redis: in one ([`Redis`]), or in the majority of several that know nothing of each other
//! ([`Redlock`]).
//!
//! A lock is a key that holds the claim's token and goes after its time to live; it is made only where there is none, and
//! extended and deleted only by a script that finds the own token in it. A session is the claims of one holder, which are
//! extended together. A Redis forgets: what it has not synced, at a crash; what a replica had not got, at a failover. And its
//! keys end by its wall clock. So there is no fencing token here: a counter would be forgotten with the locks.
//!
//! Sources: the page "Distributed Locks with Redis" of Redis' documentation, and M. Kleppmann, "How to do distributed
//! locking", 2016, on what it cannot do.

mod elections;
mod fenced;
mod line;
mod listen;
mod node;
mod oversight;
mod redlock;
mod scripts;
mod session;
mod single;

pub use fenced::RedlockFenced;
pub use redlock::Redlock;
pub use session::RedisSession;
pub use single::Redis;
