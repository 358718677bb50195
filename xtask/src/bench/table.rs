//! The results: a Markdown table for people, JSON for programs.

use serde::Serialize;

use crate::process;

/// The figures of one case, one for each round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Minimum, median, maximum.
    pub(crate) fn spread(&self) -> (f64, f64, f64) {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        (at(0), f64::midpoint(at(last / 2), at(last.div_ceil(2))), at(last))
    }

    pub(crate) fn median(&self) -> f64 {
        self.spread().1
    }

    /// `median (min-max)`
    pub(crate) fn cell(&self, digits: usize) -> String {
        let (min, median, max) = self.spread();
        format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
    }
}

/// One comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) case: String,
    pub(crate) ours: f64,
    pub(crate) peer: f64,
    pub(crate) peer_name: String,
    pub(crate) unit: &'static str,
    pub(crate) ratio: f64,
}

/// Prints a Markdown table.
pub(crate) fn print(heads: &[&str], rows: &[Vec<String>]) {
    println!("\n| {} |", heads.join(" | "));
    println!("|{}", "---|".repeat(heads.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

/// Writes `target/bench/NAME.json`.
pub(crate) fn write(name: &str, rows: &[Comparison]) -> anyhow::Result<()> {
    let dir = process::root().join("target/bench");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_string_pretty(&serde_json::json!({ "rows": rows }))?)?;
    println!("\nwritten to {}", path.display());
    Ok(())
}
