//! Random faults for some seconds, then peace; what the holders believed all the time is checked afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use seawall_coord::{Backend, Fences, PgLease, Session, ZooKeeper};
use seawall_histories::{Event, Moment, Recorder, What, fences, holds, overlaps, wake_ups};
use seawall_servers::{Proxy, Server};

use crate::{config, name};

const HOLDERS: usize = 4;
/// How long there is trouble.
const TROUBLE: Duration = Duration::from_secs(12);
/// When everybody who asks has to have been served after it.
const SERVED: Duration = Duration::from_secs(30);
const TTL: u64 = 1_500;

/// Records what one of the holders does.
#[derive(Clone)]
struct Diary {
    recorder: Recorder,
    began: Instant,
    process: String,
    attempt: u64,
}

impl Diary {
    fn write(&self, what: What) {
        let at = Moment::after(self.began.elapsed());
        let (process, lock) = (self.process.clone(), "x".to_owned());
        self.recorder.record(Event { at, process, lock, attempt: self.attempt, what });
    }
}

/// Asks, holds and gives back, again and again, in a new session after each that was lost.
async fn hold<B: Backend<Class: Fences>>(backend: B, mut diary: Diary, calm: Arc<AtomicBool>, done: Arc<AtomicBool>) {
    while !done.load(Ordering::SeqCst) {
        let Ok(session) = Session::open(backend.clone(), config(&diary.process, TTL)).await else { continue };
        while !done.load(Ordering::SeqCst) && session.check().is_ok() {
            diary.attempt += 1;
            diary.write(What::Asks);
            let lock = session.lock(name("x"));
            // In trouble some give up, afterwards nobody has to.
            let short = !calm.load(Ordering::SeqCst) && fastrand::bool();
            let patience = if short { Duration::from_millis(fastrand::u64(100..2_000)) } else { 2 * SERVED };
            let guard = match lock.acquire_within(patience).await {
                Ok(guard) => guard,
                Err(why) => {
                    diary.write(What::Failed { why: why.to_string() });
                    continue;
                }
            };
            let until = |left: Duration| Moment::after(diary.began.elapsed() + left);
            diary.write(What::Acquired { fence: Some(guard.fence().get()), until: until(guard.remaining()) });
            // In trouble sometimes longer than the time to live.
            let end = Instant::now()
                + Duration::from_millis(if !calm.load(Ordering::SeqCst) && fastrand::u8(..) < 16 {
                    3_000
                } else {
                    fastrand::u64(..30)
                });
            let lost = loop {
                match guard.check() {
                    Ok(left) => diary.write(What::Sure { until: until(left) }),
                    Err(why) => break Some(why),
                }
                if Instant::now() > end {
                    break None;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            match lost {
                Some(why) => diary.write(What::Lost { why: why.to_string() }),
                None => diary.write(What::Releases),
            }
            drop(guard.release().await);
        }
    }
}

/// What happens in `TROUBLE`. All is well when it returns.
fn trouble(server: &mut Server, proxies: &[Proxy], random: &mut fastrand::Rng) {
    let end = Instant::now() + TROUBLE;
    while Instant::now() < end {
        let proxy = &proxies[random.usize(..proxies.len())];
        let pause = Duration::from_millis(random.u64(50..2_500));
        match random.u8(..10) {
            0..3 => proxy.cut(),
            3..6 => proxy.drop_replies(),
            6..8 => {
                server.pause();
                std::thread::sleep(pause);
                server.resume();
            }
            8 => server.restart(),
            _ => {}
        }
        std::thread::sleep(pause);
        proxy.heal();
    }
}

async fn survive<B: Backend<Class: Fences>, F: Future<Output = B>>(
    mut server: Server,
    connect: impl Fn(Proxy) -> (Proxy, F),
) {
    let seed = fastrand::u64(..);
    println!("the faults' seed is {seed}");
    let (recorder, began) = (Recorder::memory(), Instant::now());
    let (calm, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (mut proxies, mut holders) = (Vec::new(), tokio::task::JoinSet::new());
    for holder in 0..HOLDERS {
        let (proxy, backend) = connect(server.through());
        proxies.push(proxy);
        let diary = Diary { recorder: recorder.clone(), began, process: format!("holder-{holder}"), attempt: 0 };
        holders.spawn(hold(backend.await, diary, calm.clone(), done.clone()));
    }
    let (_server, _proxies) = tokio::task::spawn_blocking(move || {
        trouble(&mut server, &proxies, &mut fastrand::Rng::with_seed(seed));
        (server, proxies)
    })
    .await
    .unwrap();
    calm.store(true, Ordering::SeqCst);
    // Until those who asked before and wanted to give up have done so: their patience, and a call without an answer.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let healed = Moment::after(began.elapsed());
    tokio::time::sleep(Duration::from_secs(8)).await;
    done.store(true, Ordering::SeqCst);
    tokio::time::timeout(SERVED, holders.join_all()).await.expect("everybody comes to an end");
    let events = recorder.take();
    let held = holds(&events);
    println!("{} events, {} holds", events.len(), held.len());
    let mut violations = overlaps(&held, 1);
    violations.extend(fences(&held));
    violations.extend(wake_ups(&events, healed, SERVED));
    assert!(violations.is_empty(), "{violations:#?}");
    let after = held.iter().filter(|hold| hold.from > healed).count();
    assert!(held.len() > after && after > 0, "{} holds, {after} after the faults", held.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_in_postgres_never_overlap() {
    let connect = |proxy: Proxy| {
        let url = crate::postgres::url(proxy.addr());
        (proxy, async move { PgLease::connect(&url).await.unwrap() })
    };
    survive(Server::postgres(), connect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holders_in_zookeeper_never_overlap() {
    let connect = |proxy: Proxy| {
        let url = crate::zookeeper::url(proxy.addr());
        (proxy, async move { ZooKeeper::connect(&url).await.unwrap() })
    };
    survive(Server::zookeeper(), connect).await;
}
