//! The results, for people and for programs.

use serde_json::json;

use crate::{Figures, Subject};

fn spread(samples: &[f64]) -> (f64, f64, f64) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted.get((share * sorted.len().saturating_sub(1) as f64) as usize).copied();
    let at = |share| at(share).unwrap_or(f64::NAN);
    (at(0.0), at(0.5), at(0.95))
}

fn cell(samples: &[f64]) -> String {
    let (min, median, most) = spread(samples);
    format!("{median:.1} ({min:.1}-{most:.1})")
}

/// Nanoseconds a call: the median, the least, and what 95% stay below; ratios to the bare service and to the peer that
/// does the same.
pub(crate) fn print(subjects: &[Subject], figures: &[Figures]) {
    let median = |name: &str| {
        let found = subjects.iter().position(|subject| subject.name == name);
        found.map_or(f64::NAN, |at| spread(&figures[at].one).1)
    };
    let bare = median("bare service");
    let peers = [median("tower-resilience breaker"), median("recloser")];
    println!("\n| | ns, one thread | ns, two threads | to the bare service | allocations | disturbed | aim |");
    println!("|---|---|---|---|---|---|---|");
    for (subject, figures) in subjects.iter().zip(figures) {
        let one = spread(&figures.one).1;
        let met = |aim: Option<f64>, value: f64| {
            aim.map(|aim| format!("{} <= {aim}", if value <= aim { "met:" } else { "NOT met:" }))
        };
        let two = spread(&figures.two).1;
        let aims: Vec<String> = [met(subject.aim.0, one), met(subject.aim.1, two)].into_iter().flatten().collect();
        println!(
            "| {}{} | {} | {} | {:.1} | {} | {} | {} |",
            if subject.ours { "**Seawall** " } else { "" },
            subject.name,
            cell(&figures.one),
            cell(&figures.two),
            one / bare,
            figures.allocations,
            figures.disturbed,
            aims.join("; "),
        );
    }
    let ours = median("breaker, 100 calls");
    println!(
        "\nOur breaker of 100 calls costs 1/{:.0} of tower-resilience's, and {:.2} of recloser's.",
        peers[0] / ours,
        ours / peers[1]
    );
}

pub(crate) fn json(subjects: &[Subject], figures: &[Figures]) -> String {
    let rows: Vec<_> = subjects
        .iter()
        .zip(figures)
        .map(|(subject, figures)| {
            let ((min, median, most), two) = (spread(&figures.one), spread(&figures.two));
            json!({
                "case": subject.name,
                "ours": subject.ours,
                "unit": "ns",
                "one": { "min": min, "median": median, "p95": most },
                "two": { "min": two.0, "median": two.1, "p95": two.2 },
                "allocations": figures.allocations,
            })
        })
        .collect();
    json!({ "rows": rows }).to_string()
}
