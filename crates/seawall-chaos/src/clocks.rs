//! Wall clocks that jump: a round in a process of its own, in which libfaketime tells the time to it and to all that it starts.
//! Clocks that only go forwards (`CLOCK_MONOTONIC`) stay as they are, as they do when somebody sets a machine's clock. A program
//! that asks the kernel itself, as Go's do, hears the truth.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use rustix::time::{ClockId, clock_gettime};

use crate::judge::{Found, judge};
use crate::round::{Fault, storm};
use crate::target::Target;

/// Which file says by how much the clock is wrong; read anew about every second.
const FILE: &str = "FAKETIME_TIMESTAMP_FILE";

/// Debian's place for each architecture.
pub(crate) fn library() -> Option<PathBuf> {
    let mut found = std::fs::read_dir("/usr/lib").ok()?.flatten();
    found.find_map(|dir| Some(dir.path().join("faketime/libfaketimeMT.so.1")).filter(|library| library.is_file()))
}

/// The round, in another process.
pub(crate) fn torment(backend: &str, duration: Duration) -> anyhow::Result<Found> {
    let library = library().context("libfaketime is not installed (Debian: faketime)")?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("offset");
    write(&file, 0)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["clocks", "--backend", backend, "--millis", &duration.as_millis().to_string()]);
    command.env("LD_PRELOAD", library).env(FILE, file);
    command
        .env("FAKETIME_CACHE_DURATION", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1");
    command.env("FAKETIME_DONT_RESET", "1").env("SEAWALL_SEED", fastrand::u64(..).to_string());
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the round with clocks that jump: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The round itself; what was found goes to standard output.
pub(crate) fn round(backend: &str, duration: Duration) -> anyhow::Result<()> {
    if let Some(seed) = std::env::var("SEAWALL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        fastrand::seed(seed);
    }
    let mut target = Target::start(backend)?;
    let dir = tempfile::tempdir()?;
    let log = storm(&mut target, Fault::ClocksJump, duration, dir.path())?;
    println!("{}", serde_json::to_string(&judge(dir.path(), &target, Fault::ClocksJump, log)?)?);
    Ok(())
}

/// Sets everybody's wall clock so many seconds ahead, or back, and waits until it is.
pub(crate) fn set(seconds: i64) -> anyhow::Result<()> {
    write(Path::new(&std::env::var(FILE)?), seconds)?;
    let end = Instant::now() + Duration::from_secs(10);
    while ahead()? != seconds {
        ensure!(Instant::now() < end, "the clock is {} s ahead of the kernel's, and should be {seconds} s", ahead()?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// By how many seconds the clock is wrong that this process is told.
fn ahead() -> anyhow::Result<i64> {
    let told = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let kernel = clock_gettime(ClockId::Realtime);
    let (told, kernel) =
        (told.as_millis().cast_signed(), i128::from(kernel.tv_sec) * 1_000 + i128::from(kernel.tv_nsec) / 1_000_000);
    Ok(i64::try_from((told - kernel + 500).div_euclid(1_000))?)
}

/// In one step, for somebody may be reading it.
fn write(file: &Path, seconds: i64) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{seconds:+}\n"))?;
    Ok(std::fs::rename(new, file)?)
}
