//! `seawall elections`: who leads, in which term, and who stands; and removing a leader.

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use seawall_coord::{CandidateView, ClaimView, ElectionName, ElectionView, LockName};
use serde::Deserialize;

use crate::backend::Where;
use crate::elsewhere::Elsewhere;
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
    /// Who, for the record, which control and stores keep. Default: the user's name.
    #[arg(long, env = "USER", default_value = "operator")]
    by: String,
    #[command(flatten)]
    place: Where,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let which = args.place.control();
    if let Some((url, _)) = args.place.other()? {
        return elsewhere(args, &Elsewhere::open(&url)?);
    }
    if args.watch {
        return watch::run(which, "/v1/elections", "election", |election: &ElectionView| {
            args.name.as_ref().is_none_or(|name| *name == election.name).then(|| line(election))
        });
    }
    match &args.name {
        None => print_all(&which.get::<Vec<ElectionView>>("/v1/elections")?),
        Some(name) if args.force => {
            let body = serde_json::json!({ "by": args.by, "why": args.why });
            let path = format!("{}/force", path(name));
            let Released { released } = which.send(Method::POST, &path, serde_json::to_vec(&body)?)?;
            removed(name, &released);
        }
        Some(name) => print(name, &which.get(&path(name))?),
    }
    Ok(())
}

/// Where it is not control that keeps them.
fn elsewhere(args: &Args, backend: &Elsewhere) -> anyhow::Result<()> {
    if args.watch {
        return backend.watch_elections(args.name.as_ref(), line);
    }
    match &args.name {
        None => print_all(&backend.elections()?),
        Some(name) if args.force => {
            let (lock, why) = (LockName::of_election(name), args.why.as_deref().unwrap_or_default());
            match backend.force(&lock, &args.by, why)? {
                Some(released) => removed(name, &released),
                None => anyhow::bail!("nobody leads `{name}`"),
            }
        }
        Some(name) => {
            let ElectionView { name: _, leader, candidates } = backend.election(name)?;
            print(name, &Shown { leader, candidates, forced: Vec::new() });
        }
    }
    Ok(())
}

fn removed(name: &ElectionName, leader: &ClaimView) {
    let term = leader.fence.map(|term| format!(", term {term} is over")).unwrap_or_default();
    println!("{} leads {name} no more{term}", leader.owner);
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
        priority => format!("{candidate}, priority {priority}"),
    }
}

fn print_all(elections: &[ElectionView]) {
    println!("{:<24} {:<24} {:<18} {:<22} CANDIDATES", "ELECTION", "LEADER", "TERM", "STANDS SINCE");
    for election in elections {
        let Some(leader) = &election.leader else { continue };
        let (term, candidates) = (leader.term.to_string(), election.candidates.len());
        println!("{:<24} {:<24} {term:<18} {:<22} {candidates}", election.name.as_str(), leader.owner, since(leader));
    }
}

fn line(election: &ElectionView) -> String {
    let leader = election.leader.as_ref();
    let leader =
        leader.map_or_else(|| "led by nobody".to_owned(), |leader| format!("led by {leader}  {}", leader.info));
    let candidates = election.candidates.len();
    format!("{:<24} {}; {candidates} standing", election.name.as_str(), leader.trim_end())
}

fn print(name: &ElectionName, election: &Shown) {
    match &election.leader {
        None => println!("nobody leads {name}"),
        Some(leader) => {
            println!("{name} is led by {}, standing since {}  {}", ranked(leader), since(leader), leader.info)
        }
    }
    for (n, candidate) in election.candidates.iter().enumerate() {
        println!("  {:>3}. stands: {}, since {}  {}", n + 1, ranked(candidate), since(candidate), candidate.info);
    }
    for Audit { by, why, at_ms, holder } in &election.forced {
        let term = holder.fence.unwrap_or_default();
        println!("  {} {} was removed in term {term} by {by}: {why}", time(*at_ms), holder.owner);
    }
}
