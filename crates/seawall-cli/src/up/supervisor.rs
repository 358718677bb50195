//! Keeping the processes running, and taking them down in order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use seawall_discovery::Control;
use seawall_types::{ServiceName, Snapshot, Status};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::plan::{Plan, Replica, Spec};
use super::screen::Screen;
use crate::guard;
use crate::sidecar::terminate;

/// The first pause before a process that died is started again; it doubles.
const BACKOFF: Duration = Duration::from_millis(100);
/// The longest.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Who has run for this long has earned the first pause again.
const STABLE: Duration = Duration::from_secs(10);
/// How long a service may take to become healthy before a rolling restart gives up.
const HEALTHY: Duration = Duration::from_secs(60);

/// How long a part may take to say that it is well.
const ANSWER: Duration = Duration::from_millis(800);

/// What a process should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    /// Let a successor take its place.
    Replace,
    /// Ask it to end, and kill it when its patience is over.
    Stop,
    /// Kill it at once.
    Kill,
}

/// How a process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
}

/// One supervised process; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    spec: Arc<Spec>,
    wanted: watch::Sender<Wanted>,
    state: watch::Sender<State>,
}

impl Process {
    fn new(spec: Spec, screen: Screen) -> Self {
        let state = State { pid: None, restarts: 0 };
        let process =
            Self { spec: Arc::new(spec), wanted: watch::Sender::new(Wanted::Stop), state: watch::Sender::new(state) };
        tokio::spawn(process.clone().supervise(screen));
        process
    }

    fn start(&self) {
        self.wanted.send_replace(Wanted::Run);
    }

    /// Ends it and waits until it has ended.
    async fn stop(&self, how: Wanted) {
        self.wanted.send_replace(how);
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| state.pid.is_none()).await;
    }

    /// Lets a successor take its listeners over, and waits until it has.
    async fn replace(&self) -> Result<(), String> {
        let mut state = self.state.subscribe();
        let before = state.borrow_and_update().pid.ok_or_else(|| format!("{} does not run", self.spec.name))?;
        self.wanted.send_replace(Wanted::Replace);
        let mut wanted = self.wanted.subscribe();
        // It is wanted to run again once the one or the other has ended.
        let limit = self.spec.patience + HEALTHY;
        let done = tokio::time::timeout(limit, wanted.wait_for(|wanted| *wanted != Wanted::Replace)).await;
        let replaced = self.state.borrow().pid.is_some_and(|pid| pid != before);
        match done {
            Ok(_) if replaced => Ok(()),
            Ok(_) => Err(format!("the successor of {} has died; the one that served goes on", self.spec.name)),
            Err(_) => Err(format!("{} was not replaced within {limit:?}", self.spec.name)),
        }
    }

    async fn supervise(self, screen: Screen) {
        let mut wanted = self.wanted.subscribe();
        let mut pause = BACKOFF;
        loop {
            if wanted.wait_for(|wanted| matches!(wanted, Wanted::Run | Wanted::Replace)).await.is_err() {
                return;
            }
            let started = Instant::now();
            let name = &self.spec.name;
            match self.spawn(&screen, &[]) {
                Ok(mut child) => {
                    self.state.send_modify(|state| state.pid = child.id());
                    let asked = self.wait(&mut child, &mut wanted, &screen).await;
                    self.state.send_modify(|state| state.pid = None);
                    if asked {
                        pause = BACKOFF;
                        continue;
                    }
                }
                Err(error) => screen.say(&format!("cannot start {name}: {error}")),
            }
            if started.elapsed() > STABLE {
                pause = BACKOFF;
            }
            screen.say(&format!("{name} is started again in {pause:?}"));
            self.state.send_modify(|state| state.restarts += 1);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = wanted.wait_for(|wanted| !matches!(wanted, Wanted::Run | Wanted::Replace)) => {}
            }
            pause = (pause * 2).min(MAX_BACKOFF);
        }
    }

    fn spawn(&self, screen: &Screen, more: &[&str]) -> std::io::Result<Child> {
        let spec = &self.spec;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(guard::words(std::process::id(), spec.group)).args(&spec.command).args(more);
        command.envs(&spec.env).current_dir(&spec.dir).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Of its own group, so that Ctrl-C reaches us alone and we stop it when its turn has come.
        command.process_group(0);
        let mut child = command.spawn()?;
        if let Some(out) = child.stdout.take() {
            tokio::spawn(read(out, spec.name.clone(), screen.clone()));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(read(err, spec.name.clone(), screen.clone()));
        }
        Ok(child)
    }

    /// Waits for its end, and brings it about when that is wanted. Says whether it was.
    async fn wait(&self, child: &mut Child, wanted: &mut watch::Receiver<Wanted>, screen: &Screen) -> bool {
        let mut group = group(child);
        let asked = loop {
            let ended = tokio::select! {
                ended = child.wait() => Some(ended),
                _ = wanted.wait_for(|wanted| *wanted != Wanted::Run) => None,
            };
            if ended.is_some() || *wanted.borrow_and_update() != Wanted::Replace {
                break self.end(child, ended, wanted, screen).await;
            }
            match self.successor(child, wanted, screen).await {
                Ok(successor) => {
                    *child = successor;
                    group = self::group(child);
                    self.state.send_modify(|state| state.pid = child.id());
                }
                Err(why) => screen.say(&why),
            }
            self.wanted.send_if_modified(|wanted| {
                let replaces = *wanted == Wanted::Replace;
                if replaces {
                    *wanted = Wanted::Run;
                }
                replaces
            });
        };
        // Whatever the service has started belongs to its group, and goes with it.
        if let Some(group) = group {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait().await;
        asked
    }

    /// Starts another that takes over, and waits until the first has ended because of it.
    async fn successor(
        &self,
        child: &mut Child,
        wanted: &mut watch::Receiver<Wanted>,
        screen: &Screen,
    ) -> Result<Child, String> {
        let name = &self.spec.name;
        let spawned = self.spawn(screen, &["--take-over"]);
        let mut successor = spawned.map_err(|error| format!("cannot start the successor of {name}: {error}"))?;
        tokio::select! {
            _ = child.wait() => return Ok(successor),
            ended = successor.wait() => {
                let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                return Err(format!("the successor of {name} has died: {how}; the one that served goes on"));
            }
            _ = wanted.wait_for(|wanted| *wanted != Wanted::Replace) => {}
        }
        let _ = successor.kill().await;
        Err(format!("the successor of {name} is not wanted any more"))
    }

    async fn end(
        &self,
        child: &mut Child,
        ended: Option<std::io::Result<std::process::ExitStatus>>,
        wanted: &mut watch::Receiver<Wanted>,
        screen: &Screen,
    ) -> bool {
        let name = &self.spec.name;
        if let Some(ended) = ended {
            let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            screen.say(&format!("{name} has died: {how}"));
            return !matches!(*wanted.borrow(), Wanted::Run | Wanted::Replace);
        }
        if *wanted.borrow() == Wanted::Stop {
            if let Some(pid) = child.id() {
                terminate(pid);
            }
            tokio::select! {
                ended = tokio::time::timeout(self.spec.patience, child.wait()) => if ended.is_err() {
                    screen.say(&format!("{name} did not stop within {:?} and is killed", self.spec.patience));
                },
                _ = wanted.wait_for(|wanted| *wanted == Wanted::Kill) => {}
            }
        }
        true
    }
}

fn group(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw)
}

/// Copies lines to the screen; a line without end is cut.
async fn read(from: impl AsyncRead + Unpin, name: String, screen: Screen) {
    const LONGEST: usize = 16 * 1024;
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        let (taken, ended) = match reader.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(bytes) => match bytes.iter().position(|byte| *byte == b'\n') {
                Some(at) => {
                    line.extend_from_slice(&bytes[..at]);
                    (at + 1, true)
                }
                None => {
                    line.extend_from_slice(bytes);
                    (bytes.len(), false)
                }
            },
        };
        reader.consume(taken);
        if ended || line.len() > LONGEST {
            screen.line(&name, String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    }
    if !line.is_empty() {
        screen.line(&name, &String::from_utf8_lossy(&line));
    }
}

/// A replica's two processes.
#[derive(Debug)]
struct Pair {
    id: String,
    app: Process,
    sidecar: Process,
}

impl Pair {
    fn start(&self) {
        self.app.start();
        self.sidecar.start();
    }

    async fn stop(&self, how: Wanted) {
        // The sidecar drains while the service still works.
        self.sidecar.stop(how).await;
        self.app.stop(how).await;
    }
}

/// Everything that a file asks for.
#[derive(Debug)]
pub(crate) struct Fleet {
    screen: Screen,
    control_addr: SocketAddr,
    control: Process,
    gateways: Vec<Process>,
    services: BTreeMap<ServiceName, Vec<Pair>>,
    /// One change to a service at a time.
    changing: tokio::sync::Mutex<()>,
    seen: Mutex<Snapshot>,
}

/// One line of the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) open: Option<String>,
}

impl Fleet {
    pub(crate) fn new(plan: Plan, screen: Screen) -> Self {
        let process = |spec: Spec| Process::new(spec, screen.clone());
        let pair =
            |replica: Replica| Pair { id: replica.id, app: process(replica.app), sidecar: process(replica.sidecar) };
        let services = plan.services.into_iter();
        Self {
            control_addr: plan.control_addr,
            control: process(plan.control),
            gateways: plan.gateways.into_iter().map(process).collect(),
            services: services.map(|(name, replicas)| (name, replicas.into_iter().map(pair).collect())).collect(),
            changing: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            screen: screen.clone(),
        }
    }

    pub(crate) fn screen(&self) -> &Screen {
        &self.screen
    }

    /// Starts everything; control first, the others do not depend on it to start.
    pub(crate) async fn start(&self) {
        self.control.start();
        self.services.values().flatten().for_each(Pair::start);
        self.gateways.iter().for_each(Process::start);
    }

    /// Drains everything in order: nothing new comes in, then the services, then what they lean on.
    pub(crate) async fn stop_all(&self) {
        for gateway in &self.gateways {
            self.screen.say(&format!("stopping {}: waiting for its requests", gateway.spec.name));
            gateway.stop(Wanted::Stop).await;
        }
        for (service, pairs) in &self.services {
            self.screen.say(&format!("stopping {service}: waiting for its callers and its requests"));
            for pair in pairs {
                pair.stop(Wanted::Stop).await;
            }
        }
        self.screen.say("stopping control: waiting for saga steps under way");
        self.control.stop(Wanted::Stop).await;
    }

    pub(crate) async fn kill_all(&self) {
        self.screen.say("killing everything");
        let all = self.processes();
        for process in &all {
            process.wanted.send_replace(Wanted::Kill);
        }
        for process in all {
            process.stop(Wanted::Kill).await;
        }
    }

    fn processes(&self) -> Vec<&Process> {
        let pairs = self.services.values().flatten().flat_map(|pair| [&pair.app, &pair.sidecar]);
        [&self.control].into_iter().chain(&self.gateways).chain(pairs).collect()
    }

    /// Asks our own parts to read the policies again; answers who they are.
    pub(crate) fn reload(&self) -> Vec<String> {
        let sidecars = self.services.values().flatten().map(|pair| &pair.sidecar);
        let parts = [&self.control].into_iter().chain(&self.gateways).chain(sidecars);
        let asked = parts.filter(|part| {
            let pid = part.state.borrow().pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
            pid.is_some_and(|pid| rustix::process::kill_process(pid, Signal::HUP).is_ok())
        });
        asked.map(|part| part.spec.name.clone()).collect()
    }

    fn service(&self, name: &str) -> Result<&[Pair], String> {
        let names = || self.services.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let found = self.services.get(name).map(Vec::as_slice);
        found.ok_or_else(|| format!("no service `{name}` is run here; there is {}", names()))
    }

    /// Stops every replica of a service; `kill` does it without draining.
    pub(crate) async fn stop(&self, name: &str, kill: bool) -> Result<(), String> {
        let pairs = self.service(name)?;
        let _one = self.changing.lock().await;
        let how = if kill { Wanted::Kill } else { Wanted::Stop };
        if kill {
            // All at once, as when a machine goes.
            for pair in pairs {
                pair.sidecar.wanted.send_replace(how);
                pair.app.wanted.send_replace(how);
            }
        }
        for pair in pairs {
            pair.stop(how).await;
        }
        Ok(())
    }

    /// Starts every replica of a service and waits until it is registered as up.
    pub(crate) async fn start_service(&self, name: &str) -> Result<(), String> {
        let pairs = self.service(name)?;
        let _one = self.changing.lock().await;
        // A service that was killed may still be registered where it was.
        let stale = self.look().await.unwrap_or_default();
        for pair in pairs {
            pair.start();
        }
        for pair in pairs {
            self.healthy(name, &pair.id, &stale).await?;
        }
        Ok(())
    }

    /// Restarts a service, one replica after the other, each only when the one before is up again; or a gateway, whose successor
    /// takes its listeners over.
    pub(crate) async fn restart(&self, name: &str) -> Result<(), String> {
        let gateway = |process: &&Process| process.spec.name.strip_prefix("gateway ").is_some_and(|own| own == name);
        if let (Err(_), Some(gateway)) = (self.service(name), self.gateways.iter().find(gateway)) {
            let _one = self.changing.lock().await;
            return gateway.replace().await;
        }
        let pairs = self.service(name)?;
        let _one = self.changing.lock().await;
        for pair in pairs {
            pair.stop(Wanted::Stop).await;
            let stale = self.look().await.unwrap_or_default();
            pair.start();
            self.healthy(name, &pair.id, &stale).await?;
        }
        Ok(())
    }

    /// Waits until an instance is up at another address than in `stale`.
    async fn healthy(&self, service: &str, id: &str, stale: &Snapshot) -> Result<(), String> {
        let find = |snapshot: &Snapshot| {
            let found = snapshot.instances(service).iter().find(|i| i.id.as_str() == id && i.status == Status::Up);
            found.map(seawall_types::Instance::addr)
        };
        let before = stale.instances(service).iter().find(|i| i.id.as_str() == id).map(seawall_types::Instance::addr);
        let up = |snapshot: &Snapshot| find(snapshot).is_some_and(|addr| Some(addr) != before);
        let wait = async {
            loop {
                if self.look().await.is_some_and(|snapshot| up(&snapshot)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let limited = tokio::time::timeout(HEALTHY, wait).await;
        limited.map_err(|_| format!("{id} did not become healthy within {HEALTHY:?}"))
    }

    /// Asks control for the fleet.
    async fn look(&self) -> Option<Snapshot> {
        let control = Control::new([self.control_addr]);
        let asked = control.send(http::Method::GET, "/v1/services", Vec::new(), Duration::from_secs(1)).await;
        let snapshot: Snapshot = serde_json::from_slice(&asked.ok()?).ok()?;
        self.seen().clone_from(&snapshot);
        Some(snapshot)
    }

    fn seen(&self) -> MutexGuard<'_, Snapshot> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs, where, and how it is.
    pub(crate) async fn rows(&self) -> Vec<Row> {
        let (snapshot, answering) = tokio::join!(self.look(), self.answering());
        let row = |process: &Process, status: &str| {
            let state = process.state.borrow().clone();
            let silent = process.spec.ready.is_some_and(|addr| !answering.contains(&addr));
            let status = match state.pid {
                None => "stopped",
                Some(_) if silent => "no answer",
                Some(_) => status,
            };
            Row {
                name: process.spec.name.clone(),
                status: status.to_owned(),
                pid: state.pid,
                restarts: state.restarts,
                admin: process.spec.ready,
                open: process.spec.open.clone(),
            }
        };
        let mut rows = vec![row(&self.control, "healthy")];
        rows.extend(self.gateways.iter().map(|gateway| row(gateway, "healthy")));
        let snapshot = snapshot.unwrap_or_else(|| self.seen().clone());
        for (service, pairs) in &self.services {
            for pair in pairs {
                let found = snapshot.instances(service.as_str()).iter().find(|i| i.id.as_str() == pair.id);
                let status = match found.map(|instance| instance.status) {
                    Some(Status::Up) => "healthy".to_owned(),
                    Some(other) => other.to_string(),
                    None => "unregistered".to_owned(),
                };
                rows.push(row(&pair.app, &status));
                rows.push(row(&pair.sidecar, "healthy"));
            }
        }
        rows
    }

    /// Which of those that can be asked say that they are well; all are asked at once.
    async fn answering(&self) -> BTreeSet<SocketAddr> {
        let mut asked = JoinSet::new();
        for addr in self.processes().iter().filter_map(|process| process.spec.ready) {
            asked.spawn(async move {
                let asked = Control::new([addr]);
                let answer = asked.send(http::Method::GET, "/healthz", Vec::new(), ANSWER).await;
                answer.ok().map(|_| addr)
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }
}

/// Keeps the status on the screen.
pub(crate) async fn show(fleet: Arc<Fleet>) {
    loop {
        let rows = fleet.rows().await;
        fleet.screen.status(&table(&rows, true));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The status as a table; sidecars are folded into their service unless `brief` is off.
pub(crate) fn table(rows: &[Row], brief: bool) -> String {
    let mut text = format!("{:<24} {:<13} {:>8} {:>9}  {}", "PROCESS", "STATUS", "PID", "RESTARTS", "OPEN");
    for row in rows {
        if brief && row.name.ends_with(" sidecar") && row.status == "healthy" {
            continue;
        }
        let pid = row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let open = row.open.as_deref().unwrap_or_default();
        let line = format!("{:<24} {:<13} {pid:>8} {:>9}  {open}", row.name, row.status, row.restarts);
        text.push('\n');
        text.push_str(line.trim_end());
    }
    text
}
