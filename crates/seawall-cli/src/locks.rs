//! `seawall locks`: who holds what and who waits, and taking a lock away.

use std::time::Duration;

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use seawall_control::{End, Ended, Explained};
use seawall_coord::{ClaimView, Deadlock, Kind, LockName, LockView};
use serde::Deserialize;

use crate::ask::Which;
use crate::backend::Where;
use crate::elsewhere::Elsewhere;
use crate::watch;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// One lock, with its queue; without it all that are held.
    name: Option<LockName>,
    /// Say each change as it happens, until it is interrupted; of this lock, or of all.
    #[arg(long, conflicts_with = "force")]
    watch: bool,
    /// Take the lock away from its holder. The next in the queue has it at once, while the former holder may not have
    /// stopped: only resources that check the fencing token are safe from it.
    #[arg(long, requires = "name", requires = "why")]
    force: bool,
    /// Why, for the record.
    #[arg(long, requires = "force")]
    why: Option<String>,
    /// Who, for the record, which control and stores keep. Default: the user's name.
    #[arg(long, env = "USER", default_value = "operator")]
    by: String,
    #[command(flatten)]
    place: Where,
}

#[derive(clap::Subcommand)]
enum What {
    /// Who holds a lock and for how long that is sure, who waits behind whom, how the last holder lost it, and who waits in a
    /// circle. (A lock of the name `explain` is shown by `seawall locks -- explain`.)
    Explain {
        /// The lock.
        name: LockName,
        /// As control says it.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Where,
    },
}

#[derive(Deserialize)]
pub(crate) struct Audit {
    pub(crate) by: String,
    pub(crate) why: String,
    pub(crate) at_ms: i64,
    pub(crate) holder: ClaimView,
}

#[derive(Deserialize)]
struct Shown {
    holder: Option<ClaimView>,
    #[serde(default)]
    sharing: Vec<ClaimView>,
    queue: Vec<ClaimView>,
    forced: Vec<Audit>,
}

#[derive(Deserialize)]
pub(crate) struct Released {
    pub(crate) released: ClaimView,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(What::Explain { name, json, place }) = &args.what {
        if let Some((url, _)) = place.other()? {
            anyhow::bail!("{url} keeps no account of its locks: `seawall locks {name}` shows what it knows");
        }
        return if *json { raw(place.control(), name) } else { explain(place.control(), name) };
    }
    let which = args.place.control();
    if let Some((url, _)) = args.place.other()? {
        return elsewhere(args, &Elsewhere::open(&url)?);
    }
    if args.watch {
        return watch::run(which, "/v1/locks", "lock", |lock: &LockView| {
            args.name.as_ref().is_none_or(|name| *name == lock.name).then(|| line(lock))
        });
    }
    match &args.name {
        None => {
            print_all(&which.get::<Vec<LockView>>("/v1/locks")?);
            for circle in which.get::<Vec<Deadlock>>("/v1/deadlocks")? {
                println!("deadlock: {circle}");
            }
        }
        Some(name) if args.force => force(args, which, name)?,
        Some(name) => print(name, &which.get(&path(name))?),
    }
    Ok(())
}

/// Where it is not control that keeps them.
fn elsewhere(args: &Args, backend: &Elsewhere) -> anyhow::Result<()> {
    if args.watch {
        return backend.watch_locks(args.name.as_ref(), line);
    }
    match &args.name {
        None => print_all(&backend.locks()?),
        Some(name) if args.force => match backend.force(name, &args.by, args.why.as_deref().unwrap_or_default())? {
            Some(released) => println!("{name} was taken away from {released}"),
            None => anyhow::bail!("nobody holds `{name}`"),
        },
        Some(name) => {
            let LockView { name: _, holder, sharing, queue } = backend.lock(name)?;
            print(name, &Shown { holder, sharing, queue, forced: Vec::new() });
            if !backend.knows_who_waits() {
                println!("  who waits is written down nowhere");
            }
        }
    }
    Ok(())
}

fn path(name: &LockName) -> String {
    format!("/v1/locks/{}", utf8_percent_encode(name.as_str(), NON_ALPHANUMERIC))
}

pub(crate) fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |at| format!("{at:.0}"))
}

fn millis(ms: u64) -> String {
    time(i64::try_from(ms).unwrap_or(i64::MAX))
}

fn since(claim: &ClaimView) -> String {
    millis(claim.since_ms)
}

/// How much of the lock.
fn held(claim: &ClaimView) -> String {
    match claim.kind {
        Kind::Exclusive => "alone".to_owned(),
        Kind::Read => "to read".to_owned(),
        permits @ Kind::Permits { .. } => permits.to_string(),
    }
}

fn print_all(locks: &[LockView]) {
    println!("{:<24} {:<24} {:<18} {:<22} {:<16} WAITING", "LOCK", "HOLDER", "TOKEN", "SINCE", "HELD");
    for lock in locks {
        // Each holder has a line of its own, and those who wait are counted on the first.
        for (n, holder) in lock.holder.iter().chain(&lock.sharing).enumerate() {
            let token = holder.fence.map_or_else(|| "-".to_owned(), |fence| fence.to_string());
            let (name, owner) = (lock.name.as_str(), &holder.owner);
            let waiting = if n == 0 { lock.queue.len().to_string() } else { String::new() };
            let line =
                format!("{name:<24} {owner:<24} {token:<18} {:<22} {:<16} {waiting}", since(holder), held(holder));
            println!("{}", line.trim_end());
        }
    }
}

fn raw(which: &Which, name: &LockName) -> anyhow::Result<()> {
    let explained: serde_json::Value = which.get(&format!("{}/explain", path(name)))?;
    println!("{}", serde_json::to_string_pretty(&explained)?);
    Ok(())
}

fn explain(which: &Which, name: &LockName) -> anyhow::Result<()> {
    let Explained { lock, sure_ms, last, since_ms, deadlocks, similar } =
        which.get(&format!("{}/explain", path(name)))?;
    match (&lock.holder, &last) {
        (None, None) => {
            println!("nobody holds `{name}`, nor has since {}, when this control node began", millis(since_ms))
        }
        (None, Some(_)) => println!("nobody holds `{name}`"),
        (Some(holder), _) => {
            for holder in std::iter::once(holder).chain(&lock.sharing) {
                println!("`{name}` is held by {holder} {}; queued {}  {}", held(holder), since(holder), holder.info);
            }
            if let Some(sure) = sure_ms {
                println!(
                    "  its session lives for {:.1} s more without a keep-alive",
                    Duration::from_millis(sure).as_secs_f64()
                );
            }
        }
    }
    let mut before = lock.sharing.last().or(lock.holder.as_ref());
    for (n, waiter) in lock.queue.iter().enumerate() {
        let behind = before.map(|before| format!(" behind {}", before.owner)).unwrap_or_default();
        println!("  {:>3}. {waiter} {} waits{behind} since {}  {}", n + 1, held(waiter), since(waiter), waiter.info);
        before = Some(waiter);
    }
    if let Some(Ended { owner, session, fence, since_ms, until_ms, end }) = last {
        let token = fence.map_or_else(String::new, |fence| format!(", token {fence}"));
        let how = match end {
            End::Released => "gave it back".to_owned(),
            End::Closed => "ended its session".to_owned(),
            End::Expired => {
                "lost it: its session was not kept alive in time (it died, was stopped, or was cut off)".to_owned()
            }
            End::Forced { by, why } => format!("lost it: {by} took it away: {why}"),
        };
        let (since, until) = (millis(since_ms), millis(until_ms));
        println!("  before: {owner} (session {session}{token}) held it from {since} to {until} and {how}");
    }
    for circle in deadlocks {
        println!("  deadlock: {circle}");
        println!("            end one of these sessions, or: seawall locks {name} --force --why ...");
    }
    if !similar.is_empty() {
        let similar: Vec<_> = similar.iter().map(|name| format!("`{name}`")).collect();
        println!("  similar names: {}", similar.join(", "));
    }
    Ok(())
}

fn line(lock: &LockView) -> String {
    let holders = lock.holder.iter().chain(&lock.sharing);
    let holders: Vec<_> = holders.map(|holder| format!("{holder} {}", held(holder))).collect();
    let holders = if holders.is_empty() { "free".to_owned() } else { format!("held by {}", holders.join(", ")) };
    match lock.queue.len() {
        0 => format!("{:<24} {holders}", lock.name.as_str()),
        waiting => format!("{:<24} {holders}; {waiting} waiting", lock.name.as_str()),
    }
}

fn print(name: &LockName, shown: &Shown) {
    match &shown.holder {
        None => println!("{name} is free"),
        Some(holder) => {
            for holder in std::iter::once(holder).chain(&shown.sharing) {
                println!("{name} is held by {holder} {} since {}  {}", held(holder), since(holder), holder.info);
            }
        }
    }
    for (n, waiter) in shown.queue.iter().enumerate() {
        println!("  {:>3}. waits: {waiter} {} since {}  {}", n + 1, held(waiter), since(waiter), waiter.info);
    }
    for Audit { by, why, at_ms, holder } in &shown.forced {
        println!("  {} taken away from {holder} by {by}: {why}", time(*at_ms));
    }
}

fn force(args: &Args, which: &Which, name: &LockName) -> anyhow::Result<()> {
    let body = serde_json::json!({ "by": args.by, "why": args.why });
    let path = format!("{}/force", path(name));
    let Released { released } = which.send(Method::POST, &path, serde_json::to_vec(&body)?)?;
    println!("{name} was taken away from {released}");
    Ok(())
}
