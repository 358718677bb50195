//! Processes that read and write the keys of a store while that is stopped and killed, and the checker over what they were
//! answered: C4, with the store's revisions.

use std::fmt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use seawall_histories::linear::{Condition, KvAnswer, KvAsk, KvModel, Operation, check};
use seawall_histories::{Moment, Violation, read};
use seawall_servers::{Proxy, Server};
use seawall_store::{CommitError, Compare, Op, Store, StoreUrl, Txn};
use seawall_types::Revision;
use serde::{Deserialize, Serialize};

use crate::holder::{STOP, TTL, append_to, now, write_line};
use crate::target::signal;

const KEYS: [&str; 3] = ["chaos/a", "chaos/b", "chaos/c"];
/// How many operations of one process are under way at a time.
const TASKS: u64 = 3;
/// Of an etcd; the embedded store belongs to one process.
const CLIENTS: usize = 3;
/// For everybody to end by itself.
const END: Duration = Duration::from_secs(60);

/// A line of a history.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    process: String,
    number: u64,
    at: Moment,
    said: Said,
}

#[derive(Debug, Serialize, Deserialize)]
enum Said {
    Asks(KvAsk),
    Is(KvAnswer),
    /// It was surely not done.
    NotDone,
}

/// Reads and writes until it is told to stop, or killed. `url` is `embedded`, or an etcd's.
pub(crate) async fn live(url: &str, name: &str, dir: &Path) -> anyhow::Result<()> {
    let url: StoreUrl = url.parse()?;
    let store = loop {
        match seawall_store::open(&url, &dir.join("store.db")).await {
            Ok(store) => break store,
            Err(error) => {
                ensure!(error.retryable(), error);
                if dir.join(STOP).exists() {
                    return Ok(());
                }
            }
        }
    };
    // A process that is started again goes by another name, so these are its own.
    let process: u64 = name.trim_start_matches(char::is_alphabetic).parse()?;
    let numbers = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let file = append_to(&dir.join(format!("{name}-{task}.keys")))?;
        let (store, dir, numbers) = (store.clone(), dir.to_owned(), numbers.clone());
        let name = format!("{name}-{task}");
        tasks.spawn(async move {
            let mut client = Client { store, name, process, numbers, file, seen: [None; KEYS.len()] };
            while !dir.join(STOP).exists() {
                client.once().await?;
                tokio::time::sleep(Duration::from_millis(fastrand::u64(2..30))).await;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

struct Client {
    store: Arc<dyn Store>,
    name: String,
    process: u64,
    numbers: Arc<AtomicU64>,
    file: std::fs::File,
    /// At which revision each key was last seen to be written.
    seen: [Option<u64>; KEYS.len()],
}

impl Client {
    async fn once(&mut self) -> anyhow::Result<()> {
        let at = fastrand::usize(..KEYS.len());
        let ask = self.choose(at);
        self.ask(at, ask).await
    }

    async fn ask(&mut self, at: usize, ask: KvAsk) -> anyhow::Result<()> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (process, moment) = (self.name.clone(), now());
        write_line(&mut self.file, &Record { process, number, at: moment, said: Said::Asks(ask.clone()) })?;
        let Some(said) = answer(&*self.store, &ask).await? else { return Ok(()) };
        match &said {
            Said::Is(KvAnswer::Got(got)) => self.seen[at] = got.map(|(_, revision)| revision),
            Said::Is(KvAnswer::Set(true, revision)) => self.seen[at] = Some(*revision),
            _ => {}
        }
        let (process, at) = (self.name.clone(), now());
        write_line(&mut self.file, &Record { process, number, at, said })
    }

    /// Half of them read. Most writes have a condition, as all that coordinates has.
    fn choose(&self, at: usize) -> KvAsk {
        let key = KEYS[at].to_owned();
        // Each value is written once, so that whoever reads it knows by whom.
        let value = self.process * 1_000_000 + self.numbers.fetch_add(1, Ordering::Relaxed);
        let when = match self.seen[at] {
            Some(revision) => vec![Condition::Modified(key.clone(), revision)],
            None => vec![Condition::Absent(key.clone())],
        };
        match fastrand::u32(..100) {
            0..50 => KvAsk::Get(key),
            50..87 => KvAsk::Set { when, then: vec![(key, Some(value))] },
            87..95 if self.seen[at].is_some() => KvAsk::Set { when, then: vec![(key, None)] },
            _ => KvAsk::Set { when: Vec::new(), then: vec![(key, Some(value))] },
        }
    }
}

/// Asks a store; nothing when it is unknown what became of it.
async fn answer(store: &dyn Store, ask: &KvAsk) -> anyhow::Result<Option<Said>> {
    let (when, then) = match ask {
        KvAsk::Get(key) => {
            let Ok(found) = store.get(key).await else { return Ok(Some(Said::NotDone)) };
            let got = found.map(|entry| anyhow::Ok((std::str::from_utf8(&entry.value)?.parse()?, entry.modified.0)));
            return Ok(Some(Said::Is(KvAnswer::Got(got.transpose()?))));
        }
        KvAsk::Set { when, then } => (when, then),
    };
    let compare = when.iter().map(|condition| match condition {
        Condition::Absent(key) => Compare::Absent(key.clone()),
        Condition::Modified(key, revision) => Compare::Modified(key.clone(), Revision(*revision)),
    });
    let then = then.iter().map(|(key, value)| match value {
        Some(value) => Op::Put { key: key.clone(), value: value.to_string().into(), lease: None },
        None => Op::Delete(key.clone()),
    });
    let txn = Txn { compare: compare.collect(), then: then.collect(), otherwise: Vec::new() };
    match store.commit(txn).await {
        Ok(committed) => Ok(Some(Said::Is(KvAnswer::Set(committed.succeeded, committed.revision.0)))),
        Err(CommitError::Unknown(_)) => Ok(None),
        Err(CommitError::Unavailable(_) | CommitError::Full(_)) => Ok(Some(Said::NotDone)),
        Err(error) => Err(error.into()),
    }
}

/// What was found.
pub(crate) struct Found {
    pub(crate) faults: usize,
    pub(crate) operations: usize,
    pub(crate) unknown: usize,
    pub(crate) violation: Option<Violation>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let are = if self.violation.is_none() { "are" } else { "are NOT" };
        let Self { faults, operations, unknown, .. } = self;
        write!(
            f,
            "{operations} operations on keys, {unknown} of them never answered, {are} linearizable ({faults} faults)"
        )
    }
}

/// Whether it is a store that locks are made of.
pub(crate) fn has_store(backend: &str) -> bool {
    ["embedded", "etcd"].contains(&backend)
}

/// Faults against a store and those who use it, then the checker; `None` for a backend that has no store.
pub(crate) fn torment(backend: &str, duration: Duration) -> anyhow::Result<Option<Found>> {
    let kept = tempfile::tempdir()?;
    let dir = kept.path();
    let mut etcd = match backend {
        "embedded" => None,
        "etcd" => Some(Server::etcd()),
        _ => return Ok(None),
    };
    let direct = etcd.as_ref().map_or_else(|| "embedded".to_owned(), |etcd| format!("etcd://{}/keys", etcd.addr()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let from = runtime.block_on(revision(&direct, dir))?;

    let proxies: Vec<Proxy> = etcd.iter().flat_map(|etcd| (0..CLIENTS).map(|_| etcd.through())).collect();
    let urls: Vec<String> = match &etcd {
        Some(_) => proxies.iter().map(|proxy| format!("etcd://{}/keys", proxy.addr())).collect(),
        None => vec![direct.clone()],
    };
    let mut started = 0;
    let mut clients = Clients(Vec::new());
    for url in &urls {
        clients.0.push(spawn(url, &mut started, dir)?);
    }
    let (mut faults, end) = (0, Instant::now() + duration);
    while Instant::now() < end {
        sleep(Duration::from_millis(fastrand::u64(100..800)));
        faults += 1;
        let index = fastrand::usize(..urls.len());
        let away = Duration::from_millis(fastrand::u64(100..u64::try_from(TTL.as_millis())? * 2));
        match (fastrand::u32(..4), &mut etcd) {
            (0, _) => {
                signal(&clients.0[index], Signal::STOP)?;
                sleep(away);
                signal(&clients.0[index], Signal::CONT)?;
            }
            (1, _) | (_, None) => {
                clients.0[index].kill()?;
                clients.0[index].wait()?;
                clients.0[index] = spawn(&urls[index], &mut started, dir)?;
            }
            (2, Some(etcd)) if fastrand::bool() => etcd.restart(),
            (2, Some(etcd)) => {
                etcd.pause();
                sleep(away);
                etcd.resume();
            }
            (_, Some(_)) => {
                // Not heard, or heard and not answered.
                if fastrand::bool() {
                    proxies[index].cut()
                } else {
                    proxies[index].drop_replies()
                }
                sleep(away);
                proxies[index].heal();
            }
        }
    }
    sleep(TTL);
    std::fs::write(dir.join(STOP), "")?;
    let end = Instant::now() + END;
    for client in &mut clients.0 {
        while client.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "a client of the store did not end when all was well");
            sleep(Duration::from_millis(20));
        }
    }
    runtime.block_on(last_word(&direct, dir))?;
    let operations = history(dir)?;
    let unknown = operations.iter().filter(|operation| operation.answered.is_none()).count();
    let violation = check(&KvModel { from }, &operations);
    if violation.is_some() {
        println!("    the history begins at revision {from} and is kept in {}", dir.display());
        let _ = kept.keep();
    }
    Ok(Some(Found { faults, operations: operations.len(), unknown, violation }))
}

/// What is there when all is over, and how far it has come: a write on a condition that nothing meets says that.
async fn last_word(url: &str, dir: &Path) -> anyhow::Result<()> {
    let store = seawall_store::open(&url.parse()?, &dir.join("store.db")).await?;
    let file = append_to(&dir.join("afterwards.keys"))?;
    let numbers = Arc::new(AtomicU64::new(0));
    let mut client = Client { store, name: "afterwards".into(), process: 0, numbers, file, seen: [None; KEYS.len()] };
    let never = Condition::Modified(KEYS[0].to_owned(), u64::from(u32::MAX));
    let gets = KEYS.iter().map(|key| KvAsk::Get((*key).to_owned()));
    for ask in gets.chain([KvAsk::Set { when: vec![never], then: vec![(KEYS[0].to_owned(), None)] }]) {
        client.ask(0, ask).await?;
    }
    Ok(())
}

/// The checker alone, over a history that was kept.
pub(crate) fn again(dir: &Path, from: u64) -> anyhow::Result<Option<Violation>> {
    Ok(check(&KvModel { from }, &history(dir)?))
}

/// What a store has come to before anything is asked of it.
async fn revision(url: &str, dir: &Path) -> anyhow::Result<u64> {
    let store = seawall_store::open(&url.parse()?, &dir.join("store.db")).await?;
    Ok(store.status().await?.revision.0)
}

/// Processes that are killed when dropped.
struct Clients(Vec<Child>);

impl Drop for Clients {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(url: &str, started: &mut usize, dir: &Path) -> anyhow::Result<Child> {
    *started += 1;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["keys", "--url", url, "--name", &format!("k{started}"), "--dir"]).arg(dir);
    Ok(command.stdin(Stdio::null()).spawn()?)
}

fn history(dir: &Path) -> anyhow::Result<Vec<Operation<KvAsk, KvAnswer>>> {
    let mut operations = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "keys") {
            continue;
        }
        let file = std::io::BufReader::new(std::fs::File::open(&path)?);
        let records: Vec<Record> = read(file).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
        operations.extend(of_one(records));
    }
    Ok(operations)
}

/// The operations of one task, which asks one thing after the other. What was surely not done is left out, as is a reading
/// without an answer.
fn of_one(records: Vec<Record>) -> Vec<Operation<KvAsk, KvAnswer>> {
    let mut operations: Vec<Operation<KvAsk, KvAnswer>> = Vec::new();
    let mut open = None;
    for Record { process, number, at, said } in records {
        match said {
            Said::Asks(ask) => {
                open = Some(number);
                operations.push(Operation { process, called: at, ask, answered: None });
            }
            Said::Is(answer) if open == Some(number) => {
                if let Some(last) = operations.last_mut() {
                    last.answered = Some((at, answer));
                }
            }
            Said::NotDone if open == Some(number) => drop(operations.pop()),
            Said::Is(_) | Said::NotDone => {}
        }
    }
    operations.retain(|operation| operation.answered.is_some() || matches!(operation.ask, KvAsk::Set { .. }));
    operations
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a real store answered to three at a time is linearizable, and any one answer that is bent is found.
    #[test]
    fn a_real_history_is_good_and_each_lie_in_it_is_found() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let from = runtime.block_on(revision("embedded", dir.path())).unwrap();
        let ended = runtime.block_on(async {
            let stop = async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                std::fs::write(dir.path().join(STOP), "").unwrap();
            };
            tokio::join!(live("embedded", "k1", dir.path()), stop).0
        });
        ended.unwrap();
        let operations = history(dir.path()).unwrap();
        assert!(operations.len() > 100, "{}", operations.len());
        let good = |operations: &[_]| check(&KvModel { from }, operations);
        assert_eq!(good(&operations), None);
        let find = |wanted: fn(&Operation<KvAsk, KvAnswer>) -> bool| {
            let found: Vec<_> = (0..operations.len()).filter(|at| wanted(&operations[*at])).collect();
            found[found.len() / 2]
        };
        let mut lies = 0;
        let mut lie = |what: &str, at: usize, bend: fn(&mut KvAnswer)| {
            let mut bent = operations.clone();
            bend(&mut bent[at].answered.as_mut().unwrap().1);
            assert!(good(&bent).is_some(), "{what} is not found: {:?}", operations[at]);
            lies += 1;
        };
        let read = find(|operation| matches!(operation.answered, Some((_, KvAnswer::Got(Some(_))))));
        lie("a value that was lost", read, |answer| *answer = KvAnswer::Got(None));
        lie("a value that nobody wrote", read, |answer| *answer = KvAnswer::Got(Some((7, 1))));
        let set = find(|operation| matches!(operation.answered, Some((_, KvAnswer::Set(true, _)))));
        let refused = find(|operation| matches!(operation.answered, Some((_, KvAnswer::Set(false, _)))));
        fn other_way(answer: &mut KvAnswer) {
            if let KvAnswer::Set(held, _) = answer {
                *held = !*held;
            }
        }
        lie("a write that is said not to have been made", set, other_way);
        lie("a write against its condition", refused, other_way);
        lie("a revision twice", set, |answer| {
            if let KvAnswer::Set(_, revision) = answer {
                *revision -= 1;
            }
        });
        assert_eq!(lies, 5);
        // A write that was acknowledged and is gone.
        let mut lost = operations.clone();
        lost.remove(set);
        assert!(good(&lost).is_some(), "a revision that nobody has made");
    }
}
