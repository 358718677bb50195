//! `cargo xtask chaos`: builds what is needed and runs `seawall-chaos`.

use crate::{machine, process};

/// The programs whose locks are tested, and their packages.
const SERVERS: &[(&str, &str)] = &[("etcd", "etcd-server"), ("redis-server", "redis-server")];

pub(crate) fn run(words: &[String]) -> anyhow::Result<()> {
    machine::install(SERVERS)?;
    process::run("cargo", &["build", "--package", "seawall-cli", "--package", "seawall-chaos"])?;
    let words = words.iter().map(String::as_str);
    let run = ["run", "--quiet", "--package", "seawall-chaos", "--"].into_iter().chain(words);
    process::run("cargo", &run.collect::<Vec<_>>())
}
