//! Benchmarks beside the peers.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Name {
    Proxy,
}
pub(crate) fn run(_: Name, _: usize, _: u64) -> anyhow::Result<()> {
    Ok(())
}
pub(crate) fn upstream() -> anyhow::Result<()> {
    Ok(())
}
