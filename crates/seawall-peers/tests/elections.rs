//! When there are two leaders, and that there is one again afterwards; and a fleet of real members over HTTP.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use seawall_peers::sim::{Sim, peer};
use seawall_peers::{Algorithm, Bully, Membership, Peer, Ring, Runner, Standing, Timing};
use seawall_types::{Instance, ServiceName, Snapshot};
use tokio::sync::watch;
use tokio::time::Instant;

#[path = "../examples/two_leaders.rs"]
#[expect(dead_code, reason = "its main is not called")]
mod two_leaders;

const SECOND: Duration = Duration::from_secs(1);
const SEEDS: u64 = 200;

fn timing(answer: u64, beat: u64, silence: u64) -> Timing {
    let [answer, beat, silence] = [answer, beat, silence].map(Duration::from_millis);
    Timing::try_new(answer, beat, silence).unwrap()
}

fn started<A: Algorithm>(seed: u64) -> Sim<A> {
    let mut sim = Sim::new(5, Timing::default(), seed);
    sim.run(20 * SECOND);
    all_follow(&sim, 5, seed);
    assert_eq!(sim.with_two(), Duration::ZERO, "seed {seed}: in order, there are never two");
    sim
}

fn all_follow<A: Algorithm>(sim: &Sim<A>, leader: u8, seed: u64) {
    let leader = peer(leader);
    let followed = sim.followed();
    let all = followed.values().all(|followed| followed.as_ref() == Some(&leader));
    assert!(all && sim.leaders() == [leader.clone()], "{}, seed {seed}: {followed:?}, {:?}", A::NAME, sim.history());
}

fn the_largest_that_lives_leads<A: Algorithm>() {
    for seed in 0..SEEDS {
        let mut sim = started::<A>(seed);
        sim.kill(5);
        sim.kill(4);
        sim.run(30 * SECOND);
        all_follow(&sim, 3, seed);
        assert_eq!(sim.with_two(), Duration::ZERO, "seed {seed}");
    }
}

fn a_partition_has_a_leader_on_each_side<A: Algorithm>() {
    for seed in 0..SEEDS {
        let mut sim = started::<A>(seed);
        sim.partition(&[1, 2]);
        sim.run(30 * SECOND);
        assert_eq!(sim.leaders(), [peer(2), peer(5)], "{}, seed {seed}: as it has to be", A::NAME);
        sim.heal();
        sim.run(30 * SECOND);
        all_follow(&sim, 5, seed);
        assert!(sim.with_two() > 15 * SECOND, "seed {seed}");
    }
}

fn a_paused_leader_is_one_of_two<A: Algorithm>() {
    for seed in 0..SEEDS {
        let mut sim = started::<A>(seed);
        sim.pause(5);
        sim.run(30 * SECOND);
        assert_eq!(sim.leaders(), [peer(4), peer(5)], "{}, seed {seed}: as it has to be", A::NAME);
        sim.resume(5);
        sim.run(30 * SECOND);
        all_follow(&sim, 5, seed);
        // A pause that is shorter than the silence harms nobody.
        let with_two = sim.with_two();
        sim.pause(5);
        sim.run(3 * SECOND);
        sim.resume(5);
        sim.run(30 * SECOND);
        assert_eq!(sim.with_two(), with_two, "seed {seed}");
    }
}

fn a_slow_network_has_two_leaders_at_times<A: Algorithm>() {
    let mut two = 0;
    for seed in 0..SEEDS {
        let mut sim = started::<A>(seed);
        sim.latency(SECOND, 20 * SECOND);
        sim.run(120 * SECOND);
        two += u64::from(sim.with_two() > Duration::ZERO);
        // Messages that arrive although they count as lost must not double with each hop.
        assert!(sim.sent() < 20_000, "{}, seed {seed}: {} messages", A::NAME, sim.sent());
        sim.latency(Duration::from_millis(1), Duration::from_millis(10));
        sim.run(120 * SECOND);
        all_follow(&sim, 5, seed);
    }
    assert!(two > SEEDS / 10, "{}: only {two} of {SEEDS}: this has shown nothing", A::NAME);
}

/// Cuts, pauses and slowness at random; whatever happened, there is one leader in the end.
fn after_every_trouble_there_is_one<A: Algorithm>() {
    for seed in 0..SEEDS {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut sim = started::<A>(seed);
        for _ in 0..10 {
            match random.u8(0..5) {
                0 => sim.partition(&[random.u8(1..=5), random.u8(1..=5)]),
                1 => sim.cut(random.u8(1..=5), random.u8(1..=5)),
                2 => sim.pause(random.u8(1..=5)),
                3 => sim.resume(random.u8(1..=5)),
                _ => sim.latency(Duration::from_millis(1), Duration::from_millis(random.u64(1..5_000))),
            }
            sim.run(Duration::from_millis(random.u64(0..10_000)));
        }
        sim.heal();
        (1..=5).for_each(|number| sim.resume(number));
        sim.latency(Duration::from_millis(1), Duration::from_millis(10));
        sim.run(60 * SECOND);
        all_follow(&sim, 5, seed);
    }
}

macro_rules! both {
    ($($case:ident),+ $(,)?) => {
        mod bully { $(#[test] fn $case() { super::$case::<super::Bully>(); })+ }
        mod ring { $(#[test] fn $case() { super::$case::<super::Ring>(); })+ }
    };
}

both!(
    the_largest_that_lives_leads,
    a_partition_has_a_leader_on_each_side,
    a_paused_leader_is_one_of_two,
    a_slow_network_has_two_leaders_at_times,
    after_every_trouble_there_is_one,
);

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let mut sim = started::<Bully>(seed);
        sim.latency(SECOND, 20 * SECOND);
        sim.run(100 * SECOND);
        sim.history().to_vec()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

/// The numbers of docs/elections.md, for the election alone that the smallest calls when the largest is new: beats are counted apart.
#[test]
fn messages_are_as_many_as_the_papers_say() {
    fn cost<A: Algorithm>(members: u8) -> u64 {
        let beats = timing(500, 3_600_000, 14_400_000);
        let mut sim = Sim::<A>::new(members, beats, 1);
        // All messages take the same time, so none overtakes another.
        sim.latency(Duration::from_millis(5), Duration::from_millis(5));
        sim.run(60 * SECOND);
        let before = sim.sent();
        sim.kill(members);
        sim.call(1);
        sim.run(60 * SECOND);
        assert_eq!(sim.leaders(), [peer(members - 1)], "{:?}", sim.history());
        sim.sent() - before
    }
    for n in 3..=9 {
        let m = u64::from(n);
        // Each asks all above, the dead one too; each above that lives answers; the largest tells all.
        assert_eq!(cost::<Bully>(n), m * (m - 1) / 2 + (m - 1) * (m - 2) / 2 + (m - 1), "{n}");
    }
    for n in 3..=9 {
        let m = u64::from(n);
        let found = cost::<Ring>(n);
        assert!(found <= 4 * m, "{n}: {found}");
    }
}

#[test]
fn the_run_in_the_guide_is_this_one() {
    let guide = include_str!("../../../docs/elections.md");
    for run in [two_leaders::shown::<Bully>(1), two_leaders::shown::<Ring>(1)].concat() {
        assert!(guide.contains(&run), "docs/elections.md lacks this run, as the example prints it:\n{run}");
    }
}

#[test]
fn times_that_do_not_go_together_are_refused() {
    for (answer, beat, silence) in [(0, 100, 1_000), (100, 0, 1_000), (100, 400, 1_000), (300, 100, 1_000), (1, 1, 0)] {
        let [answer, beat, silence] = [answer, beat, silence].map(Duration::from_millis);
        let error = Timing::try_new(answer, beat, silence).unwrap_err().to_string();
        assert!(error.contains("do not go together"), "{error}");
    }
}

struct Real {
    standing: Standing,
    trigger: seawall_drain::Trigger,
    server: tokio::task::JoinHandle<()>,
}

async fn fleet<A: Algorithm>(count: u8) -> (Vec<Real>, watch::Sender<Arc<Snapshot>>, Vec<Instance>) {
    let service = ServiceName::try_new("mailer").unwrap();
    let (publish, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let (mut members, mut instances) = (Vec::new(), Vec::new());
    for number in 1..=count {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at: SocketAddr = listener.local_addr().unwrap();
        let membership = Membership { service: service.clone(), me: peer(number) };
        let (runner, router, standing) = Runner::<A>::new(membership, timing(1_000, 200, 4_000), snapshots.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let (trigger, drain) = seawall_drain::channel();
        tokio::spawn(runner.run(drain));
        members.push(Real { standing, trigger, server });
        instances.push(Instance::new(peer(number), at));
    }
    publish.send_replace(snapshot(&instances));
    (members, publish, instances)
}

fn snapshot(instances: &[Instance]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    snapshot.services.insert(ServiceName::try_new("mailer").unwrap(), Arc::new(instances.to_vec()));
    Arc::new(snapshot)
}

async fn until_all_follow(members: &[Real], leader: &Peer) {
    let end = Instant::now() + 60 * SECOND;
    while members.iter().any(|member| member.standing.leader().as_ref() != Some(leader)) {
        let found: Vec<_> = members.iter().map(|member| member.standing.leader()).collect();
        assert!(Instant::now() < end, "{found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn real_members_elect_over_http<A: Algorithm>() {
    let (mut members, publish, mut instances) = fleet::<A>(4).await;
    until_all_follow(&members, &peer(4)).await;
    assert!(members[3].standing.leads() && !members[0].standing.leads());
    // It is gone without a word, and the registry has not noticed.
    let last = members.pop().unwrap();
    last.server.abort();
    let _ = last.server.await;
    last.trigger.signal();
    until_all_follow(&members, &peer(3)).await;
    // This time the registry says so first.
    instances.truncate(2);
    let last = members.pop().unwrap();
    last.server.abort();
    last.trigger.signal();
    publish.send_replace(snapshot(&instances));
    until_all_follow(&members, &peer(2)).await;
    // Garbage changes nothing.
    let at = instances[0].clone();
    let control = seawall_discovery::Control::new([SocketAddr::new(at.address, at.port)]);
    let path = format!("/seawall/elections/{}", A::NAME);
    for body in ["", "{}", r#"{"from":"p9","message":"leads"}"#, &"x".repeat(10_000)] {
        let _ = control.send(http::Method::POST, &path, body.into(), 10 * SECOND).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    until_all_follow(&members, &peer(2)).await;
    // Whoever ends leads no longer.
    let mut standing = members[1].standing.clone();
    members[1].trigger.signal();
    while standing.changed().await.is_ok() {}
    assert_eq!(standing.leader(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bullies_elect_over_http() {
    real_members_elect_over_http::<Bully>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_elects_over_http() {
    real_members_elect_over_http::<Ring>().await;
}
