//! What processes cost, and what others took meanwhile; read from `/proc`.

use std::collections::BTreeSet;
use std::fs;

/// Ticks of a hundredth of a second, as `/proc` counts.
const TICK_MICROS: f64 = 10_000.0;

/// A process and its descendants.
pub(crate) fn tree(root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, fields(pid)?.get(1)?.parse().ok()?)))
        .collect();
    loop {
        let before = found.len();
        found.extend(
            parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid).collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found;
        }
    }
}

/// The fields of `/proc/PID/stat` after the name, which may hold spaces.
fn fields(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// User and system time of a process tree so far, in microseconds.
pub(crate) fn cpu_micros(root: u32) -> f64 {
    let ticks = |pid: u32| {
        let fields = fields(pid)?;
        let (user, system): (f64, f64) = (fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?);
        Some(user + system)
    };
    tree(root).into_iter().filter_map(ticks).sum::<f64>() * TICK_MICROS
}

/// Resident memory of a process tree, in megabytes.
pub(crate) fn resident_megabytes(root: u32) -> f64 {
    let resident = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().split(' ').next()?.parse::<f64>().ok()
    };
    tree(root).into_iter().filter_map(resident).sum::<f64>() / 1024.0
}

/// Busy time of the whole machine so far, in microseconds.
pub(crate) fn machine_micros() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let numbers: Vec<f64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| numbers.get(*at)).sum::<f64>();
    busy * TICK_MICROS
}
