//! The servers that are measured.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use seawall_coord::StoreBackend;
use seawall_servers::Server;
use seawall_store::{Embedded, Store};

/// All of them; they end with it.
pub(crate) struct Peers {
    control: Control,
    pub(crate) etcd: Server,
    pub(crate) redis: Server,
    pub(crate) zookeeper: Server,
    /// The embedded store in this process, on a file.
    pub(crate) embedded: Arc<dyn Store>,
}

impl Peers {
    pub(crate) async fn start(seawall: &Path, dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            control: Control::start(seawall, &dir.join("control"))?,
            etcd: Server::etcd(),
            redis: Server::redis(),
            zookeeper: Server::zookeeper(),
            embedded: Arc::new(Embedded::open(&dir.join("embedded/store.db"))?),
        })
    }

    /// Where the control node is.
    pub(crate) fn control(&self) -> SocketAddr {
        self.control.addr
    }

    /// A connection of its own to etcd.
    pub(crate) async fn etcd(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(seawall_store::open(&format!("etcd://{}/bench", self.etcd.addr()).parse()?, Path::new("unused")).await?)
    }

    /// Locks in the store of this process.
    pub(crate) async fn in_process(&self) -> anyhow::Result<StoreBackend> {
        Ok(StoreBackend::open(self.embedded.clone()).await?)
    }
}

/// `seawall control` with the embedded store.
struct Control {
    child: Child,
    addr: SocketAddr,
}

impl Control {
    fn start(seawall: &Path, dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let file = dir.join("seawall.yaml");
        std::fs::write(&file, format!("control:\n  listen: {addr}\n  data: {}\n", dir.join("data").display()))?;
        let log = std::fs::File::create(dir.join("log"))?;
        let mut command = Command::new(seawall);
        command.args(["control", "--config"]).arg(&file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut control = Self { child: command.spawn().with_context(|| format!("{}", seawall.display()))?, addr };
        let began = Instant::now();
        while std::net::TcpStream::connect(addr).is_err() {
            ensure!(began.elapsed() < Duration::from_secs(20), "control did not start: see {}", dir.display());
            ensure!(control.child.try_wait()?.is_none(), "control ended: see {}", dir.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(control)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
