//! `seawall store`: backup, restore, check, status and migrate.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use seawall_store::{Report, Snapshot, StoreUrl};
use seawall_types::Size;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ask::Which;
use crate::config::Loaded;
use crate::process;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Write all of the store into a file, at one revision; while control runs, or from its files.
    Backup {
        /// The file to write; it must not be there yet.
        file: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// Put a backup in the place of the store. Control must not be running. Fencing tokens go on above all that were given,
    /// leases have their whole time again, followers read everything anew.
    Restore {
        /// The backup.
        file: PathBuf,
        /// Also when there is a store, sound or damaged: it is put aside, not deleted.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Check a file for damage, all of it: a backup, or the store's own while control does not run.
    Check {
        /// The file. Default: `store.db` in the data directory.
        file: Option<PathBuf>,
        #[command(flatten)]
        which: Which,
    },
    /// Say how the store stands.
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Move the store from its file to an etcd cluster. Control must not be running. After an interruption, the same again.
    Migrate {
        /// Where to: `etcd://host:2379,host:2379/prefix`. Nothing may be there yet.
        #[arg(long)]
        to: StoreUrl,
        /// Look whether it can be done, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        which: Which,
    },
}

/// How long control may take until it answers at all.
const CONNECT: Duration = Duration::from_secs(2);
/// How long it may take to make a backup ready.
const READY: Duration = Duration::from_secs(300);
/// How long it may send nothing of it.
const QUIET: Duration = Duration::from_secs(60);

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Backup { file, which } => backup(file, which),
        Command::Restore { file, force, which } => restore(file, *force, which),
        Command::Check { file, which } => check(file.as_deref(), which),
        Command::Status { which } => status(which),
        Command::Migrate { to, dry_run, which } => migrate(to, *dry_run, which),
    }
}

fn store_file(loaded: &Loaded) -> PathBuf {
    loaded.data().join("store.db")
}

fn backup(to: &Path, which: &Which) -> anyhow::Result<()> {
    if to.exists() {
        bail!("{} is there already; nothing was written", to.display());
    }
    let addr = which.addr()?;
    let runtime = process::runtime()?;
    let (how, snapshot) = match runtime.block_on(connect(addr)) {
        Some(stream) => {
            let part = part_of(to);
            let snapshot = runtime.block_on(fetch(stream, addr, &part)).and_then(|()| {
                let report = Snapshot::check(&part)?;
                File::open(&part)?.sync_all()?;
                std::fs::rename(&part, to)?;
                sync_directory(to)?;
                Ok(report.snapshot)
            });
            if snapshot.is_err() {
                let _ = std::fs::remove_file(&part);
            }
            (format!("from control at {addr}"), snapshot?)
        }
        None if which.is_named() => bail!("no control node answers at {addr}"),
        None => {
            let loaded = which.loaded()?;
            let snapshot = match &loaded.config.control.store {
                StoreUrl::Embedded => Snapshot::check(&store_file(&loaded))?.snapshot,
                url => runtime.block_on(async {
                    let store = seawall_store::connect(url, &store_file(&loaded), u64::MAX).await?;
                    anyhow::Ok(store.snapshot().await?)
                })?,
            };
            snapshot.write(to)?;
            ("while control does not run".into(), snapshot)
        }
    };
    println!("{}: {} ({how})", to.display(), line(&snapshot));
    Ok(())
}

fn part_of(file: &Path) -> PathBuf {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

fn sync_directory(file: &Path) -> std::io::Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn line(snapshot: &Snapshot) -> String {
    let (keys, leases) = (snapshot.entries.len(), snapshot.leases.len());
    format!("revision {}, {keys} keys, {leases} leases", snapshot.revision)
}

/// None when nobody listens there.
async fn connect(addr: SocketAddr) -> Option<TcpStream> {
    timeout(CONNECT, TcpStream::connect(addr)).await.ok()?.ok()
}

/// Takes a backup from a control node, as it comes.
async fn fetch(stream: TcpStream, addr: SocketAddr, to: &Path) -> anyhow::Result<()> {
    let mut body = ask(stream, addr, "/v1/store/snapshot").await?;
    let mut file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    loop {
        let frame = timeout(QUIET, body.frame()).await;
        let frame = frame.with_context(|| format!("control at {addr} has sent nothing for {QUIET:?}"))?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.with_context(|| format!("the backup from control at {addr} broke off"))?;
        if let Some(data) = frame.data_ref() {
            file.write_all(data).with_context(|| format!("cannot write {}", to.display()))?;
        }
    }
}

async fn ask(stream: TcpStream, addr: SocketAddr, path: &str) -> anyhow::Result<Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header(http::header::HOST, addr.to_string()).body(Empty::<Bytes>::new())?;
    let answer = timeout(READY, sender.send_request(request)).await;
    let answer = answer.with_context(|| format!("control at {addr} has not answered for {READY:?}"))?;
    let answer = answer.with_context(|| format!("control at {addr} did not answer"))?;
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer.into_body());
    }
    let body = http_body_util::Limited::new(answer.into_body(), 64 << 10).collect();
    let body = timeout(QUIET, body).await.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    bail!("control at {addr} refused with {status}: {}", String::from_utf8_lossy(&body).trim())
}

fn restore(backup: &Path, force: bool, which: &Which) -> anyhow::Result<()> {
    let loaded = which.loaded()?;
    if let url @ StoreUrl::Etcd { .. } = &loaded.config.control.store {
        bail!(
            "the store is {url}, which `etcdctl snapshot restore` restores; to go back to a file set `control.store: embedded` \
             first, and from there `seawall store migrate` leads to another prefix"
        );
    }
    let file = store_file(&loaded);
    let snapshot = Snapshot::check(backup)?.snapshot;
    let restored = seawall_store::restore(&file, snapshot, force)?;
    println!("{}: {}", file.display(), line(&restored.snapshot));
    if let Some(aside) = restored.aside {
        println!("what was there is now {}", aside.display());
    }
    println!("fencing tokens go on above all that were given; start control");
    Ok(())
}

fn check(file: Option<&Path>, which: &Which) -> anyhow::Result<()> {
    let file = match file {
        Some(file) => file.to_owned(),
        None => {
            let loaded = which.loaded()?;
            if let url @ StoreUrl::Etcd { .. } = &loaded.config.control.store {
                bail!("the store is {url}, not a file; `seawall store status` says how it stands");
            }
            store_file(&loaded)
        }
    };
    println!("{}", found(&file, &Snapshot::check(&file)?));
    Ok(())
}

fn found(file: &Path, report: &Report) -> String {
    let Report { format, snapshot, oldest, events, bytes } = report;
    let upgrade = if *format == 1 { " (without checksums; brought to the newest at the next start)" } else { "" };
    format!(
        "{}: no damage\n  format    {format}{upgrade}\n  holds     {}\n  history   {events} changes, from revision {oldest}\n  \
         size      {bytes} bytes",
        file.display(),
        line(snapshot),
    )
}

#[derive(Deserialize)]
struct Shown {
    store: StoreUrl,
    id: Option<String>,
    revision: u64,
    oldest: u64,
    keys: u64,
    leases: u64,
    bytes: u64,
    limit: Option<u64>,
    fence_base: Option<u64>,
}

fn status(which: &Which) -> anyhow::Result<()> {
    let addr = which.addr()?;
    let runtime = process::runtime()?;
    let asked = runtime.block_on(async {
        let Some(stream) = connect(addr).await else { return Ok(None) };
        let body = http_body_util::Limited::new(ask(stream, addr, "/v1/store").await?, 64 << 10).collect();
        let body = timeout(QUIET, body).await.context("control does not answer")?;
        let body = body.map_err(|error| anyhow::anyhow!("control at {addr}: {error}"))?;
        anyhow::Ok(Some(serde_json::from_slice::<Shown>(&body.to_bytes())?))
    })?;
    let Some(shown) = asked else {
        if which.is_named() {
            bail!("no control node answers at {addr}");
        }
        println!("no control node runs at {addr}");
        return check(None, which);
    };
    let limit = shown.limit.map(|limit| format!(" of {}", Size::bytes(limit))).unwrap_or_default();
    println!("{}, used by control at {addr}", shown.store);
    println!("  id        {}", shown.id.as_deref().unwrap_or("-"));
    println!("  revision  {}, history from {}", shown.revision, shown.oldest);
    println!("  holds     {} keys, {} leases", shown.keys, shown.leases);
    println!("  size      {} bytes{limit}", shown.bytes);
    println!("  fences    {}", shown.fence_base.map_or("-".into(), |base| format!("above {base}")));
    Ok(())
}

fn migrate(to: &StoreUrl, dry_run: bool, which: &Which) -> anyhow::Result<()> {
    if *to == StoreUrl::Embedded {
        bail!(
            "a store is moved to `etcd://host:2379/prefix`; back to a file leads `seawall store backup` and then `restore`"
        );
    }
    let loaded = which.loaded()?;
    let file = store_file(&loaded);
    if !file.exists() {
        bail!("there is no {}: nothing is to be moved", file.display());
    }
    let done = process::runtime()?.block_on(async {
        let limit = loaded.config.control.store_limit.get();
        let from = seawall_store::connect(&StoreUrl::Embedded, &file, limit).await?;
        let target = seawall_store::connect(to, &file, limit).await?;
        let name = to.to_string();
        let done = match dry_run {
            true => seawall_store::rehearse(&*from, &*target, &name).await,
            false => seawall_store::migrate(&*from, &*target, &name).await,
        };
        anyhow::Ok(done?)
    })?;
    let (from, what) = (file.display(), format!("{} keys with {} leases", done.entries, done.leases));
    if dry_run {
        println!("{from}: {what} can be moved to {to}; nothing was changed");
    } else {
        println!("{from}: {what} have moved from revision {} to {to}, revision {}", done.from, done.to);
        println!("set `control.store: {to}` and start control; it does not use the old file any more");
    }
    Ok(())
}
