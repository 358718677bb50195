//! Processor time of this process and of the servers that it has started.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// A hundredth of a second, in which `/proc` counts.
const TICK: Duration = Duration::from_millis(10);

/// What this process and its descendants have used so far.
pub(crate) fn used() -> Duration {
    let all: Vec<(u32, Vec<u64>)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, fields(pid)?)))
        .collect();
    let mut tree = BTreeSet::from([u64::from(std::process::id())]);
    loop {
        let before = tree.len();
        tree.extend(
            all.iter()
                .filter(|(_, fields)| tree.contains(&fields[1]))
                .map(|(pid, _)| u64::from(*pid))
                .collect::<Vec<_>>(),
        );
        if tree.len() == before {
            break;
        }
    }
    let ticks =
        all.iter().filter(|(pid, _)| tree.contains(&u64::from(*pid))).map(|(_, fields)| fields[11] + fields[12]);
    TICK * u32::try_from(ticks.sum::<u64>()).unwrap_or(u32::MAX)
}

/// The fields of `/proc/PID/stat` after the name, which may hold spaces; what is no number is 0.
fn fields(pid: u32) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<u64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    (fields.len() > 12).then_some(fields)
}
