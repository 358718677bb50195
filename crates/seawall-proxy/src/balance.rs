//! Balancing: the power of two choices (Mitzenmacher, 2001) on peak-EWMA latency times calls under way (Finagle).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::filter::Affinity;
use crate::upstream::Endpoint;

/// What a latency is halved by in this time without news (time constant of the moving average).
const TAU: Duration = Duration::from_secs(5);
/// What an endpoint is taken for before its first answer.
const SEED_MICROS: f32 = 5_000.0;
/// What a failure counts as, so that one that fails fast attracts nothing.
const PENALTY: Duration = Duration::from_secs(1);

/// What one worker knows of one endpoint's load. Written by that worker alone.
#[derive(Debug)]
pub struct Load {
    in_flight: AtomicU32,
    /// `micros: f32 | stamp in ms: u32`.
    latency: AtomicU64,
    base: Instant,
}

impl Load {
    /// No calls, and the latency of a stranger.
    pub fn new(now: Instant) -> Self {
        Self { in_flight: AtomicU32::new(0), latency: AtomicU64::new(pack(SEED_MICROS, 0)), base: now }
    }

    /// A call begins.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A call ends; `None` when it failed.
    pub fn end(&self, latency: Option<Duration>, now: Instant) {
        self.abandon();
        let sample = latency.unwrap_or(PENALTY).as_secs_f32() * 1e6;
        let (estimate, stamp) = self.estimate(now);
        let (held, before) = unpack(self.latency.load(Ordering::Relaxed));
        let weight = decay(stamp.saturating_sub(before));
        // A peak counts at once, an improvement little by little.
        let next = if sample > estimate { sample } else { held * weight + sample * (1.0 - weight) };
        self.latency.store(pack(next, stamp), Ordering::Relaxed);
    }

    /// A call ends and says nothing about the endpoint.
    pub fn abandon(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many calls are under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn estimate(&self, now: Instant) -> (f32, u32) {
        let stamp = now.saturating_duration_since(self.base).as_millis() as u32;
        let (micros, before) = unpack(self.latency.load(Ordering::Relaxed));
        (micros * decay(stamp.saturating_sub(before)), stamp)
    }

    fn cost(&self, weight: u16, now: Instant) -> f32 {
        let busy = self.in_flight.load(Ordering::Relaxed) as f32 + 1.0;
        // A microsecond is added so that among idle endpoints of no known latency the calls under way decide.
        (self.estimate(now).0 + 1.0) * busy * 100.0 / f32::from(weight.max(1))
    }
}

fn decay(millis: u32) -> f32 {
    if millis == 0 { 1.0 } else { (-(millis as f32) / TAU.as_millis() as f32).exp() }
}

fn pack(micros: f32, stamp: u32) -> u64 {
    u64::from(micros.to_bits()) << 32 | u64::from(stamp)
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

/// Picks an endpoint: the cheaper of two drawn at random, leaving out `tried` while there is another. Pure but for the
/// draw, which `random` makes: it returns a number below its argument.
pub fn pick<'a>(
    endpoints: &'a [std::sync::Arc<Endpoint>],
    tried: &[std::net::SocketAddr],
    now: Instant,
    mut random: impl FnMut(usize) -> usize,
) -> Option<&'a std::sync::Arc<Endpoint>> {
    let fresh = |endpoint: &&std::sync::Arc<Endpoint>| !tried.contains(&endpoint.addr);
    let count = if tried.is_empty() { endpoints.len() } else { endpoints.iter().filter(fresh).count() };
    if count == 0 {
        // All have been tried: any is better than none.
        return (!endpoints.is_empty()).then(|| &endpoints[random(endpoints.len())]);
    }
    let nth = |n: usize| {
        if tried.is_empty() { endpoints.get(n) } else { endpoints.iter().filter(fresh).nth(n) }
    };
    let first = random(count);
    if count == 1 {
        return nth(first);
    }
    let second = (first + 1 + random(count - 1)) % count;
    let (one, two) = (nth(first)?, nth(second)?);
    let cheaper = one.load.cost(one.weight, now) <= two.load.cost(two.weight, now);
    Some(if cheaper { one } else { two })
}

/// The endpoint that a call had rather go to: the one that is named, or else the one that its key falls to by weighted rendezvous
/// hashing (Thaler and Ravishankar, 1998), under which an endpoint that comes or goes moves its own share of the keys and no
/// other. Nothing when all have been tried.
pub fn prefer<'a>(
    endpoints: &'a [std::sync::Arc<Endpoint>],
    tried: &[std::net::SocketAddr],
    affinity: Affinity,
) -> Option<&'a std::sync::Arc<Endpoint>> {
    let fresh = || endpoints.iter().filter(|endpoint| !tried.contains(&endpoint.addr));
    let named = affinity.endpoint.and_then(|addr| fresh().find(|endpoint| endpoint.addr == addr));
    let score = |endpoint: &Endpoint| {
        // The fraction is above 0 and below 1, so that its logarithm is a negative number.
        let fraction = ((fall(affinity.key, endpoint.addr) >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
        -f64::from(endpoint.weight.max(1)) / fraction.ln()
    };
    named.or_else(|| fresh().max_by(|one, other| score(one).total_cmp(&score(other))))
}

/// A number for a key and an address, the same in every process: FNV-1a (Fowler, Noll, Vo), then the finalizer of SplitMix64.
fn fall(key: u64, addr: std::net::SocketAddr) -> u64 {
    let ip = match addr.ip() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(ip) => ip.octets(),
    };
    let bytes = key.to_le_bytes().into_iter().chain(ip).chain(addr.port().to_le_bytes());
    let mut z =
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn endpoints(count: u16) -> Vec<Arc<Endpoint>> {
        let now = Instant::now();
        (1..=count).map(|port| Arc::new(Endpoint::new(([127, 0, 0, 1], port).into(), 100, now))).collect()
    }

    #[test]
    fn the_busy_the_slow_and_the_failing_are_avoided() {
        let now = Instant::now();
        let later = now + Duration::from_millis(10);
        for spoil in [
            (|bad: &Load, _| bad.begin()) as fn(&Load, Instant),
            |bad, now| {
                bad.begin();
                bad.end(Some(Duration::from_millis(900)), now);
            },
            |bad, now| {
                bad.begin();
                bad.end(None, now);
            },
        ] {
            let two = endpoints(2);
            spoil(&two[0].load, later);
            for _ in 0..50 {
                assert_eq!(pick(&two, &[], later, |n| fastrand::usize(..n)).unwrap().addr, two[1].addr);
            }
        }
    }

    #[test]
    fn a_failure_is_forgiven_with_time() {
        let now = Instant::now();
        let load = Load::new(now);
        load.begin();
        load.end(None, now);
        let bad = load.cost(100, now);
        assert!(load.cost(100, now + Duration::from_secs(60)) < bad / 1000.0);
    }

    #[test]
    fn weight_counts() {
        let load = Load::new(Instant::now());
        let now = Instant::now();
        assert!(load.cost(200, now) < load.cost(100, now));
    }

    #[test]
    fn keys_keep_their_endpoint_when_others_come_and_go() {
        let five = endpoints(5);
        let four: Vec<_> = five.iter().filter(|endpoint| endpoint.addr.port() != 3).cloned().collect();
        let chosen = |all: &[Arc<Endpoint>], key| prefer(all, &[], Affinity { endpoint: None, key }).unwrap().addr;
        let mut shares = [0; 6];
        for key in 0..5_000 {
            let before = chosen(&five, key);
            shares[usize::from(before.port())] += 1;
            if before.port() != 3 {
                assert_eq!(chosen(&four, key), before, "only those of the third have to move");
            }
        }
        assert!(shares[1..].iter().all(|share| (800..1_200).contains(share)), "{shares:?}");
        let named = Affinity { endpoint: Some(five[1].addr), key: 7 };
        assert_eq!(prefer(&five, &[], named).unwrap().addr, five[1].addr);
        assert_ne!(prefer(&five, &[five[1].addr], named).unwrap().addr, five[1].addr, "it has failed this call");
        let all: Vec<_> = five.iter().map(|endpoint| endpoint.addr).collect();
        assert!(prefer(&five, &all, named).is_none());
    }

    proptest! {
        #[test]
        fn one_is_always_found_and_the_tried_are_left_out(count in 0u16..6, tried in 0usize..6, seed: u64) {
            let all = endpoints(count);
            let tried: Vec<_> = all.iter().take(tried).map(|e| e.addr).collect();
            let mut random = fastrand::Rng::with_seed(seed);
            let picked = pick(&all, &tried, Instant::now(), |n| random.usize(..n));
            prop_assert_eq!(picked.is_some(), count > 0);
            if let Some(picked) = picked {
                prop_assert!(tried.len() == all.len() || !tried.contains(&picked.addr));
            }
        }
    }
}
