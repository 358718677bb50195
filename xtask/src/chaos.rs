//! `cargo xtask chaos`: builds what is needed and runs `seawall-chaos`.

use crate::{machine, process, suite};

pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    machine::install(suite::SERVERS)?;
    machine::install(&[("faketime", "faketime"), ("redis-cli", "redis-tools")])?;
    process::run("cargo", &["build", "--package", "seawall-cli", "--package", "seawall-chaos"])?;
    let words = words.iter().map(String::as_str);
    let run = ["run", "--quiet", "--package", "seawall-chaos", "--"].into_iter().chain(words);
    process::run("cargo", &run.collect::<Vec<_>>())
}
