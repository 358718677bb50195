//! `seawall cache`: what gateways have stored of answers.

use http::Method;
use serde_json::Value;

use crate::policies::{self, Which};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Show how many answers are stored, and how many bytes they take.
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Throw answers out, also those that are on their way to be stored.
    Purge {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct What {
    /// Those of one URL as clients ask for it, as `shop.example/a?b=c`; or of all that begin so, as `shop.example/a*`.
    #[arg(long)]
    url: Option<String>,
    /// Those that carry this tag, in `Surrogate-Key` or `Cache-Tag`.
    #[arg(long)]
    tag: Option<String>,
    /// All of them.
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Show { which } => {
            println!("{:<24} {:<24} {:>10} {:>14}", "AT", "ROUTE", "ANSWERS", "BYTES");
            for (name, answer) in each(which, Method::GET, "/v1/cache")? {
                for cache in answer["caches"].as_array().into_iter().flatten() {
                    let route = cache["route"].as_str().filter(|route| !route.is_empty()).unwrap_or("(all)");
                    println!("{name:<24} {route:<24} {:>10} {:>14}", cache["answers"], cache["bytes"]);
                }
            }
        }
        Command::Purge { what, which } => {
            let pair = match what {
                What { url: Some(url), .. } => ("url", &**url),
                What { tag: Some(tag), .. } => ("tag", &**tag),
                What { .. } => ("all", "true"),
            };
            let query = form_urlencoded::Serializer::new(String::new()).append_pair(pair.0, pair.1).finish();
            for (name, answer) in each(which, Method::POST, &format!("/v1/cache/purge?{query}"))? {
                println!("{name}: {} answers thrown out", answer["purged"]);
            }
        }
    }
    Ok(())
}

/// What every gateway says; an error if any of them does not, for it may still have what is meant to be gone.
fn each(which: &Which, method: Method, path: &str) -> anyhow::Result<Vec<(String, Value)>> {
    let mut answers = Vec::new();
    let mut missing = Vec::new();
    let gateways =
        which.parts()?.into_iter().filter(|(name, addr)| *name == addr.to_string() || name.starts_with("gateway "));
    for (name, addr) in gateways {
        match policies::ask(addr, method.clone(), path) {
            Ok(answer) => answers.push((name, serde_json::from_slice(&answer)?)),
            Err(error) => missing.push(format!("{name}: {error:#}")),
        }
    }
    anyhow::ensure!(missing.is_empty(), "{}", missing.join("\n"));
    anyhow::ensure!(!answers.is_empty(), "there is no gateway to ask");
    Ok(answers)
}
