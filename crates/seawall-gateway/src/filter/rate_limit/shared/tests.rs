use std::time::Instant;

use seawall_resilience::rate_limit::{Algorithm, Rate};
use seawall_servers::Server;

use super::*;
use crate::filter::rate_limit::{Calendar, Quota};

const NANOS: u64 = 1_000_000_000;

fn plan(algorithm: Algorithm, count: u32, burst: u32) -> Counter {
    let rate = Rate::new(count, Period::secs(1)).expect("in range");
    let config = seawall_resilience::rate_limit::Config { algorithm, rate, burst, wait: Period::default() };
    Counter::Plan(Plan::new(&config, 0))
}

fn ways() -> [Counter; 6] {
    [
        plan(Algorithm::Gcra, 4, 6),
        plan(Algorithm::Gcra, 1_000_000, 5),
        plan(Algorithm::TokenBucket, 3, 7),
        Counter::Window { limit: 9, window: NANOS },
        Counter::Quota(Quota { limit: 5, per: Calendar::Minute }),
        Counter::Quota(Quota { limit: 9, per: Calendar::Month }),
    ]
}

fn shared(server: &Server, counter: Counter) -> Arc<Shared> {
    Arc::new(Shared::try_new(&format!("redis://{}", server.addr()), Duration::from_secs(5), counter).expect("a URL"))
}

/// The same times by the script and by what counts here. The script's clock is given to it for that.
#[tokio::test(flavor = "current_thread")]
async fn the_script_decides_as_the_gateway_itself_would() {
    let server = Server::redis();
    let fixed = SCRIPT.replace("redis.call('TIME')", "redis.call('HMGET', 'time', 's', 'us')");
    assert_ne!(fixed, SCRIPT);
    // Keys end by the real time.
    let fixed = fixed.replace("math.ceil(micros / 1000) + 1", "math.ceil(micros / 1000) + 60000");
    for counter in ways() {
        let mut shared = shared(&server, counter);
        Arc::get_mut(&mut shared).expect("nobody else has it").script = Script::new(&fixed);
        let mut line = shared.connection().await.expect("it runs").line;
        let mut state = counter.full();
        // The script's windows and buckets begin here too.
        let (base, mut now) = (1_750_000_000, 2_000_000_u64);
        for step in 0..150u64 {
            now += [0, 100_000, 333_000, 1, 2_500_000, 250_000, 700_001][fastrand::usize(..7)];
            let micros = match counter {
                // Near enough to today, for the marks of the calendar that are sent.
                Counter::Quota(_) => {
                    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60 * 60 * 1_000_000
                        + step * 90_000
                }
                _ => base * 1_000_000 + now,
            };
            redis::cmd("HSET")
                .arg(&["time", "s"])
                .arg(micros / 1_000_000)
                .arg("us")
                .arg(micros % 1_000_000)
                .exec_async(&mut line)
                .await
                .expect("it is set");
            let cost = fastrand::u32(1..3);
            let theirs = shared.run("k", cost).await.expect("it answers");
            let at = if matches!(counter, Counter::Quota(_)) { micros * 1000 } else { now * 1000 };
            let ours = counter.take(&mut state, at, cost);
            assert_eq!(
                (theirs.pass, theirs.remaining),
                (ours.pass, ours.remaining),
                "{counter:?} {step} {now} {cost} {theirs:?} {ours:?} {state:?}"
            );
            let near = |a: Duration, b: Duration| a.abs_diff(b) <= Duration::from_micros(2);
            assert!(near(theirs.reset, ours.reset), "{counter:?} {step}: {theirs:?} {ours:?}");
            assert!(
                near(theirs.retry_after.unwrap_or_default(), ours.retry_after.unwrap_or_default()),
                "{counter:?} {step}: {theirs:?} {ours:?}"
            );
        }
        redis::cmd("DEL").arg("k").exec_async(&mut line).await.expect("it is deleted");
    }
}

/// What is seen of the script's own clock, by several at once.
#[tokio::test(flavor = "current_thread")]
async fn several_gateways_stay_within_the_limit_together() {
    let server = Server::redis();
    let gateways: Vec<_> = (0..3).map(|_| shared(&server, plan(Algorithm::Gcra, 200, 20))).collect();
    // Before the first answer, to the time after the last: as long as the server may have counted.
    let began = Instant::now();
    let mut passed = 0;
    while began.elapsed() < Duration::from_millis(1500) {
        for gateway in &gateways {
            let decision = gateway.take("route:default", b"client", 1).await.expect("it answers");
            passed += u64::from(decision.pass);
        }
    }
    let most = 20 + (began.elapsed().as_secs_f64() * 200.0).ceil() as u64;
    assert!((most / 4..=most).contains(&passed), "{passed} of {most}");
    let other = gateways[0].take("route:default", b"another", 1).await.expect("it answers");
    assert_eq!(other.remaining, 19);
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_is_known_to_be_dead_is_not_waited_for() {
    let mut server = Server::redis();
    let deadline = Duration::from_millis(20);
    let url = format!("redis://{}", server.addr());
    let shared = Arc::new(Shared::try_new(&url, deadline, plan(Algorithm::Gcra, 1000, 1000)).expect("a URL"));
    let take = || async {
        let began = Instant::now();
        (shared.take("r:n", b"k", 1).await.is_some(), began.elapsed())
    };
    // The first connection may take longer than the deadline.
    for _ in 0..10 {
        if take().await.0 {
            break;
        }
    }
    assert!(take().await.0);
    for how in ["stopped", "killed"] {
        match how {
            "stopped" => server.pause(),
            _ => server.kill9(),
        }
        for _ in 0..3 {
            let (answered, took) = take().await;
            assert!(!answered && took < deadline + Duration::from_millis(100), "{how}: {took:?}");
        }
        let mut slowest = Duration::ZERO;
        for _ in 0..200 {
            let (answered, took) = take().await;
            assert!(!answered, "{how}");
            slowest = slowest.max(took);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!("{how}: a request waits {slowest:?} at most");
        assert!(slowest < Duration::from_millis(5), "{how}: {slowest:?}");
        match how {
            "stopped" => server.resume(),
            _ => server.restart(),
        }
        let back = Instant::now();
        while !take().await.0 {
            assert!(back.elapsed() < Duration::from_secs(20), "it is back and is not asked again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
