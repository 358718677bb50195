//! What the holders of a round have recorded, and the checkers over it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use seawall_histories::{
    Append, Event, Hold, Line, Moment, Rule, Violation, What, fences, holds, leaders, overlaps, read, register,
    wake_ups,
};
use serde::{Deserialize, Serialize};

use crate::round::{Fault, Log};
use crate::target::Target;

/// When all is well, whoever asks is served in this time: behind three others, on a busy machine. Where nobody queues it is chance.
const SERVED: Duration = Duration::from_secs(15);

/// What a round has come to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) faults: usize,
    pub(crate) holds: usize,
    pub(crate) appends: usize,
    /// In words.
    pub(crate) violations: Vec<String>,
    /// Whether there is one among them that must not be, by the backend's class.
    pub(crate) forbidden: bool,
    /// How often a holding of the lock wrote after another had written.
    pub(crate) late: usize,
    pub(crate) figures: Figures,
}

/// Times, in milliseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// From the death of a holder until another has what it had.
    followed: Vec<f64>,
    /// From when a holder goes on, whose time was over meanwhile, until it knows.
    knew: Vec<f64>,
    /// How long the longest wait took when all was well.
    waited: f64,
}

impl Figures {
    pub(crate) fn add(&mut self, other: Self) {
        self.followed.extend(other.followed);
        self.knew.extend(other.knew);
        self.waited = self.waited.max(other.waited);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |times: &[f64]| {
            let mut times = times.to_vec();
            times.sort_by(f64::total_cmp);
            match times.last() {
                Some(longest) => format!("{:.0} ms, at most {longest:.0} ms ({})", times[times.len() / 2], times.len()),
                None => "never seen".to_owned(),
            }
        };
        let Self { followed, knew, waited } = self;
        write!(
            f,
            "a dead holder is followed after {}; one that goes on knows of its loss after {}; the longest wait in peace {waited:.0} ms",
            told(followed),
            told(knew)
        )
    }
}

fn millis(from: Moment, to: Moment) -> f64 {
    Duration::from_nanos(to.0.saturating_sub(from.0)).as_secs_f64() * 1e3
}

fn lines<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let file = std::io::BufReader::new(std::fs::File::open(path)?);
    read(file).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))
}

pub(crate) fn judge(dir: &Path, target: &Target, fault: Fault, log: Log) -> anyhow::Result<Found> {
    let mut events: Vec<Event> = Vec::new();
    // The last word about each counts.
    let mut appends: BTreeMap<String, Append> = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("events") => events.extend(lines::<Event>(&path)?),
            Some("appends") => {
                appends.extend(lines::<Append>(&path)?.into_iter().map(|append| (append.value.clone(), append)));
            }
            _ => {}
        }
    }
    let appends: Vec<_> = appends.into_values().collect();
    let mut holds = holds(&events);
    for hold in &mut holds {
        if let Some(death) = log.dead.get(&hold.process) {
            hold.until = hold.until.min(*death);
        }
    }
    let mut violations = overlaps(&holds, 1);
    if target.fenced {
        violations.extend(fences(&holds));
        violations.extend(leaders(&holds));
        violations.extend(register(&appends, &lines::<Line>(&dir.join("fenced"))?));
    }
    violations.extend(wake_ups(&events, log.healed, SERVED));
    for lock in ["chaos", "leader"] {
        if !holds.iter().any(|hold| hold.from > log.healed && hold.lock == lock) {
            violations.push(Violation::new(Rule::WakeUp, format!("nobody had `{lock}` after the faults")));
        }
    }
    let forbidden = violations.iter().any(|violation| match violation.rule {
        // Tokens are there for that: two may believe in it when the clock that counts has jumped.
        Rule::Overlap if fault == Fault::ClocksJump => target.fenced && !target.by_wall_clock,
        // Whoever does not queue is served by chance.
        Rule::WakeUp => target.fair,
        _ => target.fenced,
    });
    // Only late writes: whatever was written is there.
    let unfenced: Vec<Line> = lines(&dir.join("unfenced"))?;
    Ok(Found {
        faults: log.faults,
        holds: holds.len(),
        appends: appends.len().max(unfenced.len()),
        violations: violations.iter().map(ToString::to_string).collect(),
        forbidden,
        late: late(&unfenced),
        figures: figures(&events, &holds, &log),
    })
}

/// How often a holding of the lock wrote after another had written.
fn late(lines: &[Line]) -> usize {
    let mut seen = BTreeSet::new();
    let mut last = "";
    let mut late = 0;
    for line in lines {
        let by = line.value.rsplit_once('-').map_or(&*line.value, |(by, _)| by);
        if by != last {
            late += usize::from(!seen.insert(by));
            last = by;
        }
    }
    late
}

fn figures(events: &[Event], holds: &[Hold], log: &Log) -> Figures {
    // Who held something when it died, and who had it next.
    let followed = holds.iter().filter_map(|hold| {
        let death = *log.dead.get(&hold.process).filter(|death| hold.until == **death && hold.from < **death)?;
        let next = holds.iter().find(|next| next.lock == hold.lock && next.from > death)?;
        Some(millis(death, next.from))
    });
    let knew = log.continued.iter().filter_map(|(process, at)| {
        let mut own = events.iter().filter(|event| event.process == *process);
        // The last that it believed before it was stopped, if that is over.
        let before = own.by_ref().take_while(|event| event.at < *at).last()?;
        let (What::Acquired { until, .. } | What::Sure { until }) = &before.what else { return None };
        let lost = events.iter().find(|event| {
            event.process == *process
                && event.attempt == before.attempt
                && event.at >= *at
                && matches!(event.what, What::Lost { .. })
        });
        lost.filter(|_| until < at).map(|lost| millis(*at, lost.at))
    });
    let mut asked = BTreeMap::new();
    let mut waited: f64 = 0.0;
    for event in events {
        let id = (event.process.as_str(), event.attempt);
        match event.what {
            What::Asks => drop(asked.insert(id, event.at)),
            What::Acquired { .. } if event.at > log.healed => {
                let from = asked.get(&id).copied().unwrap_or(event.at).max(log.healed);
                waited = waited.max(millis(from, event.at));
            }
            _ => {}
        }
    }
    Figures { followed: followed.collect(), knew: knew.collect(), waited }
}
