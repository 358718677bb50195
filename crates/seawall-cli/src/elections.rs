//! `seawall elections`: who leads, in which term, and who stands.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use seawall_coord::{CandidateView, ElectionName, ElectionView};

use crate::ask::Which;
use crate::locks::time;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One election, with its candidates; without it all that somebody leads.
    name: Option<ElectionName>,
    #[command(flatten)]
    which: Which,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.name {
        None => list(&args.which),
        Some(name) => show(&args.which, name),
    }
}

fn since(candidate: &CandidateView) -> String {
    time(i64::try_from(candidate.since_ms).unwrap_or(i64::MAX))
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

fn show(which: &Which, name: &ElectionName) -> anyhow::Result<()> {
    let path = format!("/v1/elections/{}", utf8_percent_encode(name.as_str(), NON_ALPHANUMERIC));
    let election: ElectionView = which.get(&path)?;
    match &election.leader {
        None => println!("nobody leads {name}"),
        Some(leader) => println!("{name} is led by {leader}, standing since {}  {}", since(leader), leader.info),
    }
    for (n, candidate) in election.candidates.iter().enumerate() {
        println!("  {:>3}. stands: {candidate} since {}  {}", n + 1, since(candidate), candidate.info);
    }
    Ok(())
}
