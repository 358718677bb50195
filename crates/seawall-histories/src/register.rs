//! C3: a register that takes appends with fencing tokens.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Moment, Rule, Violation};

/// What the writer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is there.
    Done,
    /// It was refused: a larger token was there before.
    Refused,
    /// Nothing; it may be there or not.
    Unknown,
}

/// A holder appended something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// Who.
    pub process: String,
    /// With which token.
    pub fence: u64,
    /// What; no two are the same.
    pub value: String,
    /// When.
    pub at: Moment,
    /// What it was told.
    pub outcome: Outcome,
}

/// A line of the register, as it is found in the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The writer's token.
    pub fence: u64,
    /// What it wrote.
    pub value: String,
}

/// Tokens never fall; each acknowledged append is there once, no refused one, none that nobody made. Of a register that does
/// not check tokens, the first says how often a former holder wrote late.
pub fn register(appends: &[Append], lines: &[Line]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut say = |what: String| found.push(Violation::new(Rule::Register, what));
    let mut highest: Option<&Line> = None;
    for line in lines {
        match highest {
            Some(before) if line.fence < before.fence => {
                let Line { fence, value } = before;
                say(format!("`{}` with token {} comes after `{value}` with token {fence}", line.value, line.fence));
            }
            _ => highest = Some(line),
        }
    }
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lines {
        *times.entry(&line.value).or_default() += 1;
    }
    let mut made = BTreeSet::new();
    for Append { process, fence, value, outcome, at } in appends {
        made.insert(value.as_str());
        let times = times.get(value.as_str()).copied().unwrap_or(0);
        let right = match outcome {
            Outcome::Done => times == 1,
            Outcome::Refused => times == 0,
            Outcome::Unknown => times <= 1,
        };
        if !right {
            say(format!(
                "{process}'s `{value}` with token {fence} at {at} was {outcome:?}, and is there {times} times"
            ));
        }
    }
    for value in times.keys().filter(|value| !made.contains(**value)) {
        say(format!("`{value}` is there, and nobody wrote it"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, appends: &[(u64, &str, Outcome)], lines: &[(u64, &str)], violations: usize) {
        let append = |(fence, value, outcome): &(u64, &str, Outcome)| Append {
            process: "p".into(),
            fence: *fence,
            value: (*value).into(),
            at: Moment(0),
            outcome: *outcome,
        };
        let line = |(fence, value): &(u64, &str)| Line { fence: *fence, value: (*value).into() };
        let appends: Vec<_> = appends.iter().map(append).collect();
        let lines: Vec<_> = lines.iter().map(line).collect();
        let found = register(&appends, &lines);
        assert_eq!(found.len(), violations, "{name}: {found:?}");
    }

    #[test]
    fn good_and_bad_registers() {
        use Outcome::{Done, Refused, Unknown};
        check("nothing", &[], &[], 0);
        check("in order", &[(1, "a", Done), (1, "b", Done), (4, "c", Done)], &[(1, "a"), (1, "b"), (4, "c")], 0);
        check("a late one was refused", &[(4, "b", Done), (1, "a", Refused)], &[(4, "b")], 0);
        check("a late one was taken", &[(4, "b", Done), (1, "a", Done)], &[(4, "b"), (1, "a")], 1);
        check("two late ones", &[(4, "b", Done), (1, "a", Done), (2, "c", Done)], &[(4, "b"), (1, "a"), (2, "c")], 2);
        check("an acknowledged one is missing", &[(1, "a", Done), (2, "b", Done)], &[(2, "b")], 1);
        check("one is there twice", &[(1, "a", Done)], &[(1, "a"), (1, "a")], 1);
        check("an unknown one is there", &[(1, "a", Unknown)], &[(1, "a")], 0);
        check("or not", &[(1, "a", Unknown)], &[], 0);
        check("but not twice", &[(1, "a", Unknown)], &[(1, "a"), (1, "a")], 1);
        check("a refused one is there", &[(1, "a", Refused)], &[(1, "a")], 1);
        check("out of nowhere", &[], &[(1, "a")], 1);
    }
}
