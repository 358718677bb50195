//! `cargo xtask test`: everything that is needed, then every test.

use crate::{demo, machine, process};

pub(crate) fn run() -> anyhow::Result<()> {
    machine::install(&[("python3", "python3")])?;
    machine::install_nextest()?;
    // The tests drive the real binaries.
    process::run("cargo", &["build", "--workspace"])?;
    process::run("cargo", &["nextest", "run", "--workspace", "--no-fail-fast"])?;
    process::run("cargo", &["test", "--workspace", "--doc", "--quiet"])?;
    println!("\nthe demo, as the end-to-end test:");
    demo::run(true)?;
    println!("\nall tests passed");
    Ok(())
}
