//! One client of each server. A cycle takes its lock and gives it back; a put writes a key; both durably.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use seawall_coord::{Backend, LockName, Owner, Remote, Session, SessionConfig, StoreBackend};
use seawall_store::{Compare, Keys, LeaseId, Op, OpResult, Store, Txn};

use crate::peers::Peers;

/// How long a cycle may take at most; nothing that is measured takes as long.
const PATIENCE: Duration = Duration::from_secs(30);
/// The time to live of whatever has one.
const TTL: Duration = Duration::from_secs(30);
/// What a put writes.
const VALUE: [u8; 256] = [42; 256];

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Our lock over control's HTTP API, in another process, on the embedded store.
    Control,
    /// Our lock on the embedded store in this process.
    Embedded,
    /// Our lock, fair and fenced, on etcd.
    OursOnEtcd,
    /// The least that is a lock on etcd: a transaction that puts a key that is absent, under a lease, and one that deletes it.
    Etcd,
    /// etcd as its Go client waits: the predecessor is watched from the revision that was read.
    EtcdGoWait,
    /// `SET NX PX` and a script that compares and deletes.
    Redis,
    /// An ephemeral sequential node, its siblings listed, and the node deleted.
    ZooKeeper,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Control => "seawall, control over HTTP",
            Self::Embedded => "seawall, embedded in process",
            Self::OursOnEtcd => "seawall on etcd",
            Self::Etcd => "etcd, transaction and delete",
            Self::EtcdGoWait => "etcd, waiting as its Go client does",
            Self::Redis => "Redis, AOF always",
            Self::ZooKeeper => "ZooKeeper",
        }
    }

    /// A client with a connection of its own. `lock` is the lock that it takes.
    pub(crate) async fn client(self, peers: &Peers, lock: &str) -> anyhow::Result<Client> {
        Ok(match self {
            Self::Control => Client::Control(Ours::new(Remote::new([peers.control()]), lock).await?),
            Self::Embedded => Client::Store(Ours::new(peers.in_process().await?, lock).await?),
            Self::OursOnEtcd => Client::Store(Ours::new(StoreBackend::open(peers.etcd().await?).await?, lock).await?),
            Self::Etcd => Client::Etcd(Bare::new(peers.etcd().await?, lock).await?),
            Self::EtcdGoWait => Client::EtcdGoWait(Bare::new(peers.etcd().await?, lock).await?),
            Self::Redis => Client::Redis(Redis::new(peers, lock).await?),
            Self::ZooKeeper => Client::ZooKeeper(ZooKeeper::new(peers, lock).await?),
        })
    }
}

/// A connected client.
pub(crate) enum Client {
    Control(Ours<Remote>),
    Store(Ours<StoreBackend>),
    Etcd(Bare),
    EtcdGoWait(Bare),
    Redis(Redis),
    ZooKeeper(ZooKeeper),
}

impl Client {
    /// Takes the lock and gives it back.
    pub(crate) async fn cycle(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Control(ours) => ours.cycle().await,
            Self::Store(ours) => ours.cycle().await,
            Self::Etcd(bare) => bare.cycle().await,
            Self::EtcdGoWait(bare) => bare.cycle_as_go().await,
            Self::Redis(redis) => redis.cycle().await,
            Self::ZooKeeper(zookeeper) => zookeeper.cycle().await,
        }
    }
}

/// Our lock, as a user takes it.
pub(crate) struct Ours<B: Backend> {
    session: Session<B>,
    name: LockName,
}

impl<B: Backend> Ours<B> {
    pub(crate) async fn new(backend: B, lock: &str) -> anyhow::Result<Self> {
        let config = SessionConfig::new(Owner::try_new("bench")?).ttl(TTL);
        Ok(Self { session: Session::open(backend, config).await?, name: LockName::try_new(lock)? })
    }

    async fn cycle(&self) -> anyhow::Result<()> {
        let guard = self.session.lock(self.name.clone()).acquire_within(PATIENCE).await?;
        guard.release().await?;
        Ok(())
    }
}

/// A store without a recipe: a key, and a lease for it.
pub(crate) struct Bare {
    store: Arc<dyn Store>,
    lease: LeaseId,
    lock: String,
    own: String,
}

impl Bare {
    async fn new(store: Arc<dyn Store>, lock: &str) -> anyhow::Result<Self> {
        let lease = store.grant(TTL).await?.id;
        Ok(Self { store, lease, own: format!("{lock}/{:x}", fastrand::u64(..)), lock: format!("{lock}/") })
    }

    fn put(&self) -> Txn {
        Txn {
            compare: vec![Compare::Absent(self.own.clone())],
            then: vec![Op::Put { key: self.own.clone(), value: "1".into(), lease: Some(self.lease) }],
            otherwise: Vec::new(),
        }
    }

    async fn cycle(&self) -> anyhow::Result<()> {
        ensure!(self.store.commit(self.put()).await?.succeeded, "somebody has the key");
        self.store.commit(Txn::delete(&*self.own)).await?;
        Ok(())
    }

    /// With the queue by revision, and the wait of etcd's Go client, which watches from the revision of its answer: the
    /// server serves such a watch with those that lag behind, ten times a second.
    async fn cycle_as_go(&self) -> anyhow::Result<()> {
        let mut put = self.put();
        put.then.push(Op::Get(self.own.clone()));
        let put = self.store.commit(put).await?;
        let Some(OpResult::Got(Some(own))) = put.results.last() else { anyhow::bail!("somebody has the key") };
        loop {
            let read = Txn { then: vec![Op::NewestBefore(self.lock.clone(), own.created)], ..Txn::default() };
            let read = self.store.commit(read).await?;
            let Some(OpResult::Got(Some(before))) = read.results.last() else { break };
            let mut cursor = self.store.watch(Keys::one(before.key.clone()), read.revision).await?;
            while !cursor.next().await?.iter().any(|event| event.entry.is_none()) {}
        }
        self.store.commit(Txn::delete(&*self.own)).await?;
        Ok(())
    }
}

/// Writes keys of its own, one after the other.
pub(crate) async fn put(store: &dyn Store, writer: usize, at: usize) -> anyhow::Result<()> {
    store.commit(Txn::put(format!("put/{writer}/{}", at % 100), VALUE.to_vec())).await?;
    Ok(())
}

/// A connection to Redis.
pub(crate) struct Redis {
    connection: redis::aio::MultiplexedConnection,
    key: String,
    release: redis::Script,
}

impl Redis {
    async fn new(peers: &Peers, lock: &str) -> anyhow::Result<Self> {
        let client = redis::Client::open(format!("redis://{}/", peers.redis.addr()))?;
        let connection = client.get_multiplexed_async_connection().await?;
        let release = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";
        Ok(Self { connection, key: lock.to_owned(), release: redis::Script::new(release) })
    }

    async fn cycle(&mut self) -> anyhow::Result<()> {
        let token = format!("{:x}", fastrand::u64(..));
        let mut set = redis::cmd("SET");
        set.arg(&self.key).arg(&token).arg("NX").arg("PX").arg(TTL.as_millis() as u64);
        let set: Option<String> = set.query_async(&mut self.connection).await?;
        ensure!(set.is_some(), "somebody has the key");
        let deleted: u32 = self.release.key(&self.key).arg(&token).invoke_async(&mut self.connection).await?;
        ensure!(deleted == 1, "the key was not ours");
        Ok(())
    }
}

/// A session with ZooKeeper.
pub(crate) struct ZooKeeper {
    client: zookeeper_client::Client,
    dir: String,
}

impl ZooKeeper {
    async fn new(peers: &Peers, lock: &str) -> anyhow::Result<Self> {
        let client = zookeeper_client::Client::connect(&peers.zookeeper.addr().to_string()).await?;
        let dir = format!("/{lock}");
        let options = zookeeper_client::CreateMode::Persistent.with_acls(zookeeper_client::Acls::anyone_all());
        match client.create(&dir, b"", &options).await {
            Ok(_) | Err(zookeeper_client::Error::NodeExists) => Ok(Self { client, dir }),
            Err(error) => Err(error.into()),
        }
    }

    async fn cycle(&self) -> anyhow::Result<()> {
        let acls = zookeeper_client::Acls::anyone_all();
        let options = zookeeper_client::CreateMode::EphemeralSequential.with_acls(acls);
        let (_, sequence) = self.client.create(&format!("{}/lock-", self.dir), b"", &options).await?;
        let own = format!("lock-{sequence}");
        let nodes = self.client.list_children(&self.dir).await?;
        ensure!(nodes.iter().min().context("no nodes")? == &own, "somebody is before us");
        self.client.delete(&format!("{}/{own}", self.dir), None).await?;
        Ok(())
    }
}
