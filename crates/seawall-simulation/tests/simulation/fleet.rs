//! A fleet that works with locks, or stands for elections, in a storm; afterwards everybody has to get everything once more.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use seawall_coord::{
    Candidacy, ClaimError, ElectionName, Elections, Fenced, Guard, HandOverError, Leadership, LockName, Owner, Session,
    SessionConfig, StoreBackend, lead,
};
use seawall_histories::{
    Event, Recorder, Rule, Violation, What, fences, holds, leaders, linear, overlaps, register, wake_ups,
};
use seawall_simulation::{Cast, Fault, Link, Net, Process, Registers, Server, Weather, World, chance, millis, torment};
use seawall_store::{FENCE_BASE, Store, Txn};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long everybody waits after the storm until the last late request has arrived.
const CALM: Duration = Duration::from_millis(4_200);
/// How long somebody may wait for a lock after that.
const SERVED: Duration = Duration::from_secs(3);

/// What is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) processes: usize,
    pub(crate) locks: usize,
    /// Whether they stand for elections, or take locks.
    pub(crate) elections: bool,
    /// The longest that a lock is held, in milliseconds.
    pub(crate) hold: u64,
    pub(crate) storm: Duration,
    pub(crate) weather: Weather,
    pub(crate) faults: &'static [Fault],
}

impl Plan {
    pub(crate) const LOCKS: Self = Self {
        processes: 3,
        locks: 2,
        elections: false,
        hold: 200,
        storm: Duration::from_millis(2_000),
        weather: Weather::FOUL,
        faults: Fault::ALL,
    };
    pub(crate) const ELECTIONS: Self = Self { locks: 1, elections: true, ..Self::LOCKS };
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) events: Vec<Event>,
    pub(crate) violations: Vec<Violation>,
    /// Those of the register that takes anything: what the tokens have prevented.
    pub(crate) prevented: usize,
    pub(crate) holds: usize,
}

impl Report {
    pub(crate) fn clean(&self) -> Result<(), String> {
        if self.violations.is_empty() {
            return Ok(());
        }
        let all: Vec<_> = self.violations.iter().map(ToString::to_string).collect();
        Err(all.join("\n"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Storm,
    Calm,
    /// Everybody takes everything twice.
    Last,
    Over,
}

/// Makes a backend of the real one; of a mutant, what is wrong.
pub(crate) type Make<B> = Arc<dyn Fn(Arc<dyn Store>, StoreBackend, usize) -> B + Send + Sync>;
/// Makes a store of the real one.
pub(crate) type Around = fn(Arc<dyn Store>) -> Arc<dyn Store>;

struct Fleet<B> {
    plan: Plan,
    ttl: Duration,
    world: World,
    server: Server,
    recorder: Recorder,
    registers: Vec<Registers>,
    phase: watch::Sender<Phase>,
    finished: AtomicUsize,
    values: AtomicU64,
    around: Around,
    make: Make<B>,
}

/// Runs a plan with the real code.
pub(crate) fn run(seed: u64, plan: Plan) -> Report {
    run_with(seed, plan, |store| store, Arc::new(|_, backend, _| backend))
}

/// The same with something in between.
pub(crate) fn run_with<B: Elections<Class = Fenced>>(seed: u64, plan: Plan, around: Around, make: Make<B>) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime can be made");
    World::run(seed, &runtime, move |world| async move {
        let server = Server::new(&world);
        // Tokens are revisions then, and do not depend on the day.
        server.store().commit(Txn::put(FENCE_BASE, "0")).await.expect("it is empty and up");
        let fleet = Arc::new(Fleet {
            plan,
            ttl: millis(250, 800),
            world,
            server,
            recorder: Recorder::memory(),
            registers: (0..plan.locks).map(|_| Registers::default()).collect(),
            phase: watch::Sender::new(Phase::Storm),
            finished: AtomicUsize::new(0),
            values: AtomicU64::new(0),
            around,
            make,
        });
        fleet.story().await
    })
}

impl<B: Elections<Class = Fenced>> Fleet<B> {
    async fn story(self: Arc<Self>) -> Report {
        let links: Vec<_> = (0..self.plan.processes).map(|_| Link::new(self.plan.weather)).collect();
        let starts = AtomicU64::new(0);
        let (fleet, of_revive) = (self.clone(), links.clone());
        let revive = Box::new(move |index: usize| {
            fleet.clone().start(index, starts.fetch_add(1, Ordering::Relaxed), of_revive[index].clone())
        });
        let processes: Vec<_> =
            links.into_iter().enumerate().map(|(index, link)| (link, Arc::new(Mutex::new(revive(index))))).collect();
        let operator = self.clone();
        let own = Box::new(move || operator.world.spawn(operator.clone().force()));
        let cast = Cast { server: self.server.clone(), processes, revive, own, ttl: self.ttl };
        torment(&self.world, &cast, self.plan.faults, self.plan.storm).await;
        self.phase.send_replace(Phase::Calm);
        sleep(CALM).await;
        let healed = self.world.moment();
        self.phase.send_replace(Phase::Last);
        // Whoever is not served by then is reported.
        let patience = SERVED * 10;
        let _ = timeout(patience, async {
            while self.finished.load(Ordering::Relaxed) < self.plan.processes {
                sleep(millis(20, 20)).await;
            }
        })
        .await;
        sleep(millis(300, 300)).await;
        let mut left = Vec::new();
        for prefix in ["lock/", "elect/"] {
            left.extend(self.server.store().range(prefix).await.expect("it is up").entries);
        }
        self.phase.send_replace(Phase::Over);
        self.judge(healed, &left)
    }

    fn judge(&self, healed: seawall_histories::Moment, left: &[seawall_store::Entry]) -> Report {
        let events = self.recorder.take();
        if std::env::var_os("SEAWALL_TRACE").is_some() {
            for event in &events {
                eprintln!("{}", serde_json::to_string(event).expect("plain data"));
            }
        }
        let holds = holds(&events);
        let mut violations = overlaps(&holds, 1);
        violations.extend(fences(&holds));
        violations.extend(leaders(&holds));
        violations.extend(wake_ups(&events, healed, SERVED));
        let mut of_lock: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for hold in &holds {
            of_lock.entry(&hold.lock).or_default().push(hold.clone());
        }
        for holds in of_lock.values() {
            violations.extend(linear::check(&linear::LockModel, &linear::lock_operations(holds)));
        }
        let mut prevented = 0;
        for registers in &self.registers {
            let (fenced, unfenced) = (registers.fenced(), registers.unfenced());
            violations.extend(register(&fenced.appends, &fenced.lines));
            prevented += register(&unfenced.appends, &unfenced.lines).len();
        }
        for entry in left {
            let what = format!("`{}`, created at {}, is left when nobody wants anything", entry.key, entry.created);
            violations.push(Violation::new(Rule::WakeUp, what));
        }
        Report { violations, prevented, holds: holds.len(), events }
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn name(&self, lock: usize) -> String {
        format!("{}{lock}", if self.plan.elections { "e" } else { "l" })
    }

    /// A lock is taken from its holder, whoever that is.
    async fn force(self: Arc<Self>) {
        let Ok(backend) = StoreBackend::open(self.direct()).await else { return };
        let lock = fastrand::usize(0..self.plan.locks);
        let name = self.lock_name(lock);
        let since = self.world.moment();
        let why = format!("at {since}");
        let fence = match backend.force(&name, "operator", &why).await {
            Ok(None) => None,
            Ok(Some(holder)) => holder.fence,
            // The record says whether it was done; not at once, for a store whose disk failed reads it again at its next tick.
            Err(_) => {
                let mut found = None;
                let mut readings = 0;
                while found.is_none() && readings < 2 {
                    sleep(millis(150, 150)).await;
                    if let Ok(audits) = backend.audits().await {
                        found = audits.iter().find(|audit| audit.why == why).and_then(|audit| audit.holder.fence);
                        readings += 1;
                    }
                }
                found
            }
        };
        if let Some(fence) = fence {
            let what = What::Forced { since, fence: fence.get() };
            self.recorder.record(Event {
                at: self.world.moment(),
                process: "operator".into(),
                lock: self.name(lock),
                attempt: 0,
                what,
            });
        }
    }

    fn direct(&self) -> Arc<dyn Store> {
        let at_once = Weather { delay: 0, ..Weather::FINE };
        Arc::new(Net::new(&self.world, &Link::new(at_once), &self.server))
    }

    fn lock_name(&self, lock: usize) -> LockName {
        if self.plan.elections {
            return LockName::of_election(&self.election_name(lock));
        }
        LockName::try_new(&self.name(lock)).expect("a short name")
    }

    fn election_name(&self, lock: usize) -> ElectionName {
        ElectionName::try_new(&self.name(lock)).expect("a short name")
    }

    fn start(self: Arc<Self>, index: usize, number: u64, link: Link) -> Process {
        let process = self.world.process(0.99 + 0.02 * fastrand::f64());
        let attempts = AtomicU64::new(0);
        let client =
            Client { fleet: self, index, name: format!("p{index}.{number}"), process: process.clone(), link, attempts };
        process.run(Arc::new(client).live());
        process
    }
}

struct Client<B> {
    fleet: Arc<Fleet<B>>,
    index: usize,
    /// Each process that is started has another.
    name: String,
    process: Process,
    link: Link,
    attempts: AtomicU64,
}

/// One of a client's attempts at a lock.
struct Attempt<'a, B> {
    client: &'a Client<B>,
    lock: usize,
    number: u64,
}

impl<B: Elections<Class = Fenced>> Attempt<'_, B> {
    fn record(&self, what: What) {
        self.client.fleet.recorder.record(Event {
            at: self.client.fleet.world.moment(),
            process: self.client.name.clone(),
            lock: self.client.fleet.name(self.lock),
            attempt: self.number,
            what,
        });
    }

    /// Works for a while, as long as it holds the lock; whether it holds it still.
    async fn work(&self, guard: &Guard<B>, most: Duration) -> bool {
        let fleet = &self.client.fleet;
        let fence = guard.fence().get();
        let end = fleet.world.now() + most;
        while fleet.world.now() < end {
            match guard.check() {
                Ok(remaining) => self.record(What::Sure { until: self.client.process.moment_after(remaining) }),
                Err(why) => {
                    self.record(What::Lost { why: why.to_string() });
                    return false;
                }
            }
            if chance(0.3) {
                let value = format!("v{}", fleet.values.fetch_add(1, Ordering::Relaxed));
                let (registers, weather) = (&fleet.registers[self.lock], self.client.link.weather());
                registers.append(&fleet.world, &self.client.name, fence, value, weather).await;
            }
            sleep(millis(1, 40)).await;
        }
        true
    }

    fn acquired(&self, guard: &Guard<B>) {
        let until = self.client.process.moment_after(guard.remaining());
        self.record(What::Acquired { fence: Some(guard.fence().get()), until });
    }
}

impl<B: Elections<Class = Fenced>> Client<B> {
    fn attempt(&self, lock: usize) -> Attempt<'_, B> {
        let number = self.attempts.fetch_add(1, Ordering::Relaxed);
        let attempt = Attempt { client: self, lock, number };
        attempt.record(What::Asks);
        attempt
    }

    fn config(&self) -> SessionConfig {
        let owner = Owner::try_new(&format!("p{}", self.index)).expect("a short name");
        let mut config = SessionConfig::new(owner).ttl(self.fleet.ttl);
        config.clock = self.process.clock();
        config
    }

    async fn backend(&self) -> Option<B> {
        let net: Arc<dyn Store> = Arc::new(Net::new(&self.fleet.world, &self.link, &self.fleet.server));
        let store = (self.fleet.around)(net);
        let backend = StoreBackend::open(store.clone()).await.ok()?;
        Some((self.fleet.make)(store, backend, self.index))
    }

    async fn live(self: Arc<Self>) {
        sleep(millis(0, 50)).await;
        let mut finished = false;
        loop {
            if let Some(backend) = self.backend().await {
                if self.fleet.plan.elections && self.index == 0 && self.fleet.phase() == Phase::Storm {
                    self.lead(backend.clone()).await;
                }
                if let Ok(session) = Session::open(backend, self.config()).await {
                    finished = self.with_session(&session, finished).await;
                }
            }
            if self.fleet.phase() == Phase::Over {
                return;
            }
            sleep(millis(1, 100)).await;
        }
    }

    /// As long as the session lives.
    async fn with_session(&self, session: &Session<B>, mut finished: bool) -> bool {
        while session.check().is_ok() {
            match self.fleet.phase() {
                Phase::Storm => {
                    let lock = fastrand::usize(0..self.fleet.plan.locks);
                    if self.fleet.plan.elections {
                        self.stand(session, lock).await;
                    } else {
                        self.take(session, lock).await;
                    }
                    sleep(millis(0, 60)).await;
                }
                Phase::Last if !finished => {
                    // Twice in a row: whoever queues anew is behind the others.
                    for lock in (0..self.fleet.plan.locks).flat_map(|lock| [lock, lock]) {
                        self.take_last(session, lock).await;
                    }
                    finished = true;
                    self.fleet.finished.fetch_add(1, Ordering::Relaxed);
                }
                // The session lives on: what it has left behind does not go with it.
                Phase::Calm | Phase::Last => sleep(millis(20, 60)).await,
                Phase::Over => return finished,
            }
        }
        finished
    }

    async fn take(&self, session: &Session<B>, lock: usize) {
        let attempt = self.attempt(lock);
        let handle = session.lock(self.fleet.lock_name(lock));
        let acquired = if chance(0.2) {
            timeout(millis(0, 200), handle.acquire_within(Duration::from_secs(10)))
                .await
                .unwrap_or_else(|_| Err(ClaimError::TimedOut { waited: Duration::ZERO, ahead: 0, holder: None }))
        } else {
            let patience = if chance(0.2) { Duration::ZERO } else { millis(50, 2_000) };
            handle.acquire_within(patience).await
        };
        let guard = match acquired {
            Ok(guard) => guard,
            Err(error) => return attempt.record(What::Failed { why: error.to_string() }),
        };
        attempt.acquired(&guard);
        if attempt.work(&guard, millis(0, self.fleet.plan.hold)).await {
            attempt.record(What::Releases);
        }
        if chance(0.3) {
            return drop(guard);
        }
        if let Ok(released) = guard.release().await {
            attempt.record(What::Released { held: released == seawall_coord::Released::Now });
        }
    }

    async fn take_last(&self, session: &Session<B>, lock: usize) {
        let attempt = self.attempt(lock);
        match session.lock(self.fleet.lock_name(lock)).acquire_within(SERVED * 5).await {
            Ok(guard) => {
                attempt.acquired(&guard);
                attempt.work(&guard, millis(1, 20)).await;
                attempt.record(What::Releases);
                let _ = guard.release().await;
            }
            Err(error) => attempt.record(What::Failed { why: error.to_string() }),
        }
    }

    async fn stand(&self, session: &Session<B>, lock: usize) {
        let attempt = self.attempt(lock);
        let election = session.election(self.fleet.election_name(lock)).info("first");
        let leadership = match election.campaign(millis(50, 2_000)).await {
            Ok(leadership) => leadership,
            Err(error) => return attempt.record(What::Failed { why: error.to_string() }),
        };
        attempt.acquired(leadership.guard());
        if chance(0.3) {
            let _ = leadership.publish("second").await;
        }
        if attempt.work(leadership.guard(), millis(0, self.fleet.plan.hold)).await {
            attempt.record(What::Releases);
        }
        if chance(0.5) {
            let to = format!("p{}", fastrand::usize(0..self.fleet.plan.processes));
            match leadership.hand_over(&to).await {
                Ok(_) | Err(HandOverError::Lost(_)) => {}
                Err(HandOverError::NoCandidate { leadership, .. } | HandOverError::Backend { leadership, .. }) => {
                    drop(leadership.resign().await);
                }
            }
        } else {
            drop(leadership.resign().await);
        }
    }

    /// Stands for election with `lead` until the storm is over.
    async fn lead(self: &Arc<Self>, backend: B) {
        let candidacy = Candidacy::new(self.fleet.election_name(0), self.config());
        let work = |leadership: Arc<Leadership<B>>| {
            let client = self.clone();
            async move {
                let attempt = client.attempt(0);
                attempt.acquired(leadership.guard());
                let dropped = Dropped(&attempt);
                attempt.work(leadership.guard(), millis(0, 300)).await;
                drop(dropped);
                ControlFlow::<()>::Continue(())
            }
        };
        let mut phase = self.fleet.phase.subscribe();
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Storm) => {}
            _ = lead(backend, candidacy, work) => {}
        }
    }
}

/// Work that ends or is dropped relies on nothing from then on.
struct Dropped<'a, B: Elections<Class = Fenced>>(&'a Attempt<'a, B>);

impl<B: Elections<Class = Fenced>> Drop for Dropped<'_, B> {
    fn drop(&mut self) {
        self.0.record(What::Releases);
    }
}
