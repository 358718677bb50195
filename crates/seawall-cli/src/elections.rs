//! `seawall elections`: who leads, in which term, and who stands; and removing a leader.

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use seawall_coord::{CandidateView, ElectionName, ElectionView};
use serde::Deserialize;

use crate::ask::Which;
use crate::locks::{Audit, Released, time};
use crate::watch;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One election, with its candidates; without it all that somebody leads.
    name: Option<ElectionName>,
    /// Say each change as it happens, until it is interrupted; of this election, or of all.
    #[arg(long, conflicts_with = "force")]
    watch: bool,
    /// Remove the leader. The next candidate leads at once, while the former leader may not have stopped: only resources
    /// that check the term are safe from it.
    #[arg(long, requires = "name", requires = "why")]
    force: bool,
    /// Why, for the record.
    #[arg(long, requires = "force")]
    why: Option<String>,
    /// Who, for the record. Default: the user's name.
    #[arg(long, env = "USER", default_value = "operator")]
    by: String,
    #[command(flatten)]
    which: Which,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.watch {
        return watch::run(&args.which, "/v1/elections", "election", |election: &ElectionView| {
            args.name.as_ref().is_none_or(|name| *name == election.name).then(|| line(election))
        });
    }
    match &args.name {
        None => list(&args.which),
        Some(name) if args.force => force(args, name),
        Some(name) => show(&args.which, name),
    }
}

#[derive(Deserialize)]
struct Shown {
    leader: Option<CandidateView>,
    candidates: Vec<CandidateView>,
    forced: Vec<Audit>,
}

fn path(name: &ElectionName) -> String {
    format!("/v1/elections/{}", utf8_percent_encode(name.as_str(), NON_ALPHANUMERIC))
}

fn since(candidate: &CandidateView) -> String {
    time(i64::try_from(candidate.since_ms).unwrap_or(i64::MAX))
}

/// A candidate with its priority, if it has any.
fn ranked(candidate: &CandidateView) -> String {
    match candidate.priority {
        0 => candidate.to_string(),
        priority => format!("{candidate}, priority {priority},"),
    }
}

fn list(which: &Which) -> anyhow::Result<()> {
    let elections: Vec<ElectionView> = which.get("/v1/elections")?;
    println!("{:<24} {:<24} {:<18} {:<22} CANDIDATES", "ELECTION", "LEADER", "TERM", "STANDS SINCE");
    for election in elections {
        let Some(leader) = &election.leader else { continue };
        let (term, candidates) = (leader.term.to_string(), election.candidates.len());
        println!("{:<24} {:<24} {term:<18} {:<22} {candidates}", election.name.as_str(), leader.owner, since(leader));
    }
    Ok(())
}

fn line(election: &ElectionView) -> String {
    let leader = election.leader.as_ref();
    let leader =
        leader.map_or_else(|| "led by nobody".to_owned(), |leader| format!("led by {leader}  {}", leader.info));
    let candidates = election.candidates.len();
    format!("{:<24} {}; {candidates} standing", election.name.as_str(), leader.trim_end())
}

fn show(which: &Which, name: &ElectionName) -> anyhow::Result<()> {
    let election: Shown = which.get(&path(name))?;
    match &election.leader {
        None => println!("nobody leads {name}"),
        Some(leader) => {
            println!("{name} is led by {}, standing since {}  {}", ranked(leader), since(leader), leader.info)
        }
    }
    for (n, candidate) in election.candidates.iter().enumerate() {
        println!("  {:>3}. stands: {} since {}  {}", n + 1, ranked(candidate), since(candidate), candidate.info);
    }
    for Audit { by, why, at_ms, holder } in &election.forced {
        println!("  {} {} was removed in term {} by {by}: {why}", time(*at_ms), holder.owner, holder.fence);
    }
    Ok(())
}

fn force(args: &Args, name: &ElectionName) -> anyhow::Result<()> {
    let body = serde_json::json!({ "by": args.by, "why": args.why });
    let path = format!("{}/force", path(name));
    let Released { released } = args.which.send(Method::POST, &path, serde_json::to_vec(&body)?)?;
    println!("{} leads {name} no more, term {} is over", released.owner, released.fence);
    Ok(())
}
