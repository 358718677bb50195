//! What a sync costs on this disk, without anybody's store around it.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::time::Instant;

use crate::Line;

/// How many syncs the median is of.
const SYNCS: usize = 200;

/// The median of writing 8 KiB over what is there and syncing it.
pub(crate) fn probe(dir: &Path) -> anyhow::Result<Line<'static>> {
    let mut file = File::create(dir.join("probe"))?;
    let block = [7; 8192];
    file.write_all(&block)?;
    file.sync_all()?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.rewind()?;
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(Line::Fact { what: "fdatasync of 8 KiB", value: times[SYNCS / 2].as_secs_f64() * 1e6, unit: "us" })
}
