//! What a trace is: a policy, and what happens under it in order of time, with every decision that has to come of it.
//! `tests/traces/README.md` describes the file.

use std::collections::BTreeMap;
use std::fmt;

use seawall_resilience::PolicyConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The service of a trace of its own; in the real binary's file every trace has one.
pub(crate) const SERVICE: &str = "svc";

/// One line of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trace {
    pub(crate) name: String,
    /// As in `seawall.yaml`, so that it is read as it is there.
    pub(crate) policy: Value,
    pub(crate) steps: Vec<Step>,
}

/// What happens, and what has to come of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub(crate) enum Step {
    /// A call asks.
    Ask { at: u64, call: u64, priority: Option<String>, then: Expected },
    /// What the service does with the attempt that it has, or that the client has gone.
    End { at: u64, call: u64, outcome: Outcome, then: Expected },
    /// What becomes of a call that has waited.
    Hear { at: u64, call: u64, then: Expected },
    /// How the policies stand.
    Look { at: u64, state: String, counts: BTreeMap<String, u64> },
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    /// With the `Retry-After` of the answer, in seconds.
    Failure(Option<u64>),
    /// In a way that says nothing about the service.
    Ignored,
    /// The client has gone.
    GivenUp,
    /// It does not end: the host waits for it, until it does something about that.
    Silence,
}

impl Outcome {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure(_) => "failure",
            Self::Ignored => "ignored",
            Self::GivenUp => "given-up",
            Self::Silence => "silence",
        }
    }
}

/// What a host made of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// `admitted`: an attempt has reached the service; `waits`: it stands in the queue of the bulkhead; `ended`: the caller has the service's answer, or has gone;
    /// `breaker:open` and the like: the policy that turned the attempt away, and its reason; of `timeout` none, since
    /// over HTTP its words are for people alone.
    pub(crate) what: String,
    /// In how many whole seconds it is worth trying again, rounded up; only of a rejection.
    pub(crate) after: Option<u64>,
}

impl Decision {
    pub(crate) fn of(what: &str) -> Self {
        Self { what: what.to_owned(), after: None }
    }
}

/// What a trace demands of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// A decision; `rejected` stands for a rejection by whichever reason of the breaker.
    pub(crate) what: String,
    /// Not looked at where the trace does not say.
    pub(crate) after: Option<u64>,
}

impl Expected {
    pub(crate) fn met_by(&self, decision: &Decision) -> bool {
        let what = match self.what.as_str() {
            "rejected" => decision.what.starts_with("breaker:"),
            what => decision.what == what,
        };
        what && (self.after.is_none() || self.after == decision.after)
    }
}

impl From<Decision> for Expected {
    fn from(Decision { what, after }: Decision) -> Self {
        Self { what, after }
    }
}

/// How the policies of a service stand: the state of the breaker, and numbers by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) state: String,
    pub(crate) counts: BTreeMap<String, u64>,
}

impl Trace {
    /// Whether it has hedges, a chain of retries, limits of time or chaos: only whole calls make them, and the parts
    /// alone do not.
    pub(crate) fn is_for_calls(&self) -> bool {
        let of_calls = ["hedge", "timeout", "attempt_timeout", "chaos"];
        of_calls.iter().any(|part| !self.policy[part].is_null()) || !self.policy["retry"]["chain"].is_null()
    }

    /// Whether some call is of another priority than `normal`.
    pub(crate) fn has_priorities(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Ask { priority: Some(_), .. }))
    }
}

impl Step {
    pub(crate) const fn at(&self) -> u64 {
        match self {
            Self::Ask { at, .. } | Self::End { at, .. } | Self::Hear { at, .. } | Self::Look { at, .. } => *at,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Value::from(self.clone()).fmt(f)
    }
}

impl From<Step> for Value {
    fn from(step: Step) -> Self {
        let mut more = serde_json::Map::new();
        let mut note = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                more.insert(name.to_owned(), value);
            }
        };
        let mut words = match step {
            Step::Ask { at, call, priority, then } => {
                note("priority", priority.map(Value::from));
                note("after", then.after.map(Value::from));
                vec![json!("?"), json!(at), json!(call), json!(then.what)]
            }
            Step::End { at, call, outcome, then } => {
                if let Outcome::Failure(asked) = outcome {
                    note("retry_after", asked.map(Value::from));
                }
                note("then", (then.what != "ended").then(|| then.what.into()));
                note("after", then.after.map(Value::from));
                vec![json!("!"), json!(at), json!(call), json!(outcome.as_str())]
            }
            Step::Hear { at, call, then } => {
                note("after", then.after.map(Value::from));
                vec![json!(":"), json!(at), json!(call), json!(then.what)]
            }
            Step::Look { at, state, counts } => {
                more.extend(counts.into_iter().map(|(name, count)| (name, count.into())));
                vec![json!("="), json!(at), json!(state)]
            }
        };
        if !more.is_empty() {
            words.push(more.into());
        }
        Self::Array(words)
    }
}

impl TryFrom<Value> for Step {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let bad = || format!("no step: {value}");
        let words = value.as_array().ok_or_else(bad)?;
        let number = |index: usize| words.get(index).and_then(Value::as_u64).ok_or_else(bad);
        let word = |index: usize| words.get(index).and_then(Value::as_str).ok_or_else(bad);
        let kind = word(0)?;
        let fixed = if kind == "=" { 3 } else { 4 };
        let more = match (words.len(), words.get(fixed)) {
            (_, None) => serde_json::Map::new(),
            (len, Some(Value::Object(more))) if len == fixed + 1 => more.clone(),
            _ => return Err(bad()),
        };
        let known: &[&str] = match kind {
            "?" => &["priority", "after"],
            "!" => &["retry_after", "then", "after"],
            ":" => &["after"],
            _ => &COUNTS,
        };
        if more.keys().any(|key| !known.contains(&key.as_str())) {
            return Err(bad());
        }
        let text = |name: &str| more.get(name).and_then(Value::as_str).map(str::to_owned);
        let count = |name: &str| more.get(name).and_then(Value::as_u64);
        Ok(match kind {
            "?" => Self::Ask {
                at: number(1)?,
                call: number(2)?,
                priority: text("priority"),
                then: Expected { what: word(3)?.to_owned(), after: count("after") },
            },
            "!" => Self::End {
                at: number(1)?,
                call: number(2)?,
                outcome: match word(3)? {
                    "success" => Outcome::Success,
                    "failure" => Outcome::Failure(count("retry_after")),
                    "ignored" => Outcome::Ignored,
                    // `cancelled` is the word of Resilience4j's traces.
                    "given-up" | "cancelled" => Outcome::GivenUp,
                    "silence" => Outcome::Silence,
                    _ => return Err(bad()),
                },
                then: Expected { what: text("then").unwrap_or_else(|| "ended".to_owned()), after: count("after") },
            },
            ":" => Self::Hear {
                at: number(1)?,
                call: number(2)?,
                then: Expected { what: word(3)?.to_owned(), after: count("after") },
            },
            "=" => {
                let counts = more.iter().map(|(name, count)| Some((name.clone(), count.as_u64()?)));
                let counts = counts.collect::<Option<_>>().ok_or_else(bad)?;
                Self::Look { at: number(1)?, state: word(2)?.to_owned(), counts }
            }
            _ => return Err(bad()),
        })
    }
}

/// What a look may count.
pub(crate) const COUNTS: [&str; 7] = ["calls", "failed", "slow", "would_open", "in_use", "waiting", "retries"];

/// The traces of a file of `tests/traces`.
pub(crate) fn read(file: &str) -> Vec<Trace> {
    let path = format!("{}/tests/traces/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{file}:{}: {error}: {line}", number + 1))
    };
    text.lines().enumerate().map(parse).collect()
}

/// Every fifth of the traces that were recorded from Resilience4j, and all of those written for one edge. Only the calls
/// of the longer ones' first part: an edge is near the beginning as often as later.
pub(crate) fn resilience4j() -> Vec<Trace> {
    let mut taken = Vec::new();
    for file in ["resilience4j.jsonl", "resilience4j-probe-lease.jsonl"] {
        let path = format!("{}/../seawall-resilience/tests/traces/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        for (number, line) in text.lines().enumerate() {
            let mut line: Value = serde_json::from_str(line).unwrap();
            let name = line["name"].as_str().unwrap().to_owned();
            if !number.is_multiple_of(5) && !name.contains("edge") {
                continue;
            }
            let policy = json!({ "breaker": line["breaker"].take() });
            let mut steps: Vec<Step> = serde_json::from_value(line["steps"].take()).unwrap();
            steps.truncate(120);
            taken.push(Trace { name, policy, steps });
        }
    }
    taken
}

/// The policy of a trace over what all traces share: no retry unless it says so, and time enough on a slow machine,
/// since the time for a call is real.
pub(crate) fn policy(trace: &Trace) -> PolicyConfig {
    let base = json!({ "timeout": "1h", "retry": { "attempts": 1, "backoff": "0ms", "jitter": "none" } });
    let base: PolicyConfig = serde_json::from_value(base).unwrap();
    let own: PolicyConfig = serde_json::from_value(trace.policy.clone())
        .unwrap_or_else(|error| panic!("the policy of `{}`: {error}", trace.name));
    let policy = own.or(&base);
    let problems = policy.problems();
    assert!(problems.is_empty(), "the policy of `{}`: {problems:?}", trace.name);
    policy
}
