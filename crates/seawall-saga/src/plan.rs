//! Plans: the steps of a saga with their undoing, as a file describes them.

use schemars::JsonSchema;
use seawall_types::{Call, Period, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A saga as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanConfig {
    /// The steps, in order.
    pub steps: Vec<StepConfig>,
}

/// One step as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepConfig {
    /// Names the step; later steps refer to its answer by it: `{reserve.id}`.
    pub name: String,
    /// What to call: `POST inventory/reservations`.
    pub call: Call,
    /// The body of the call. Default: the saga's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// How to undo it: `DELETE inventory/reservations/{input.order}`. It has to work, as a no-op, for a step that was
    /// never done, and after it the step must not be done any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Call>,
    /// The body of the undo. Default: the saga's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_body: Option<Value>,
    /// How long the step is repeated, while it is not answered, before the saga is undone. Default 30s.
    #[serde(default = "patience")]
    pub patience: Period,
    /// How long the undo is repeated before it is parked for an operator. Default 1h.
    #[serde(default = "undo_patience")]
    pub undo_patience: Period,
}

const fn patience() -> Period {
    Period::secs(30)
}

const fn undo_patience() -> Period {
    Period::secs(3600)
}

/// A plan that holds together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The saga's name in the file.
    pub name: String,
    /// The steps, in order.
    pub steps: Vec<StepConfig>,
}

/// What is wrong with a plan, and where below it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct PlanError {
    /// The place: `steps.2.undo`.
    pub path: String,
    /// What is wrong and what to do.
    pub what: String,
}

/// Words that references begin with and that no step may be named.
const RESERVED: [&str; 2] = ["input", "saga"];

impl Plan {
    /// Checks a plan: names, references, and that an undo needs nothing that may not be known.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn try_new(name: &str, config: &PlanConfig) -> Result<Self, Vec<PlanError>> {
        let mut errors = Vec::new();
        let mut error = |path: String, what: String| errors.push(PlanError { path, what });
        if config.steps.is_empty() {
            error("steps".into(), "a saga needs at least one step".into());
        }
        for (at, step) in config.steps.iter().enumerate() {
            let place = |field: &str| format!("steps.{at}.{field}");
            let earlier: Vec<&str> = config.steps[..at].iter().map(|step| step.name.as_str()).collect();
            if ServiceName::try_new(&step.name).is_err() || step.name.contains('.') {
                error(place("name"), format!("`{}` is not a step name: use a-z, 0-9, `-` and `_`", step.name));
            } else if RESERVED.contains(&step.name.as_str()) {
                error(place("name"), format!("`{}` is reserved for references", step.name));
            } else if earlier.contains(&step.name.as_str()) {
                error(place("name"), format!("two steps are named `{}`", step.name));
            }
            let empty = Value::Null;
            let texts = [
                ("call", Value::String(step.call.path.clone())),
                ("body", step.body.clone().unwrap_or_else(|| empty.clone())),
                ("undo", step.undo.as_ref().map_or_else(|| empty.clone(), |undo| undo.path.clone().into())),
                ("undo_body", step.undo_body.clone().unwrap_or_else(|| empty.clone())),
            ];
            for (field, value) in texts {
                for root in references(&value) {
                    if root == step.name && field.starts_with("undo") {
                        let what = format!(
                            "an undo cannot use `{{{root}...}}`, its own step's answer: after a lost reply there is \
                             none. Let the step take an id from `{{input...}}` or `{{saga.id}}` and undo by that"
                        );
                        error(place(field), what);
                    } else if !RESERVED.contains(&root.as_str()) && !earlier.contains(&root.as_str()) {
                        let what = format!("`{{{root}...}}` refers to no earlier step; there is `input`, `saga`");
                        let known = earlier.iter().map(|name| format!(", `{name}`")).collect::<String>();
                        error(place(field), what + &known);
                    }
                }
            }
            if step.undo_body.is_some() && step.undo.is_none() {
                error(place("undo_body"), "there is no `undo` that it could be the body of".into());
            }
        }
        if errors.is_empty() { Ok(Self { name: name.to_owned(), steps: config.steps.clone() }) } else { Err(errors) }
    }

    /// The services that it calls, with the place of each: `steps.0.call`.
    pub fn services(config: &PlanConfig) -> impl Iterator<Item = (String, &ServiceName)> {
        config.steps.iter().enumerate().flat_map(|(at, step)| {
            let undo = step.undo.as_ref().map(|undo| (format!("steps.{at}.undo"), &undo.service));
            [(format!("steps.{at}.call"), &step.call.service)].into_iter().chain(undo)
        })
    }
}

/// The first words of all references in a value.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => placeholders(text).map(|(_, path)| root(path).to_owned()).collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        Value::Object(map) => map.values().flat_map(references).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

fn root(path: &str) -> &str {
    path.split('.').next().unwrap_or(path)
}

/// Every `{a.b}` of a text with its place.
fn placeholders(text: &str) -> impl Iterator<Item = (std::ops::Range<usize>, &str)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + text[from..].find('{')?;
        let end = start + text[start..].find('}')?;
        from = end + 1;
        Some((start..end + 1, &text[start + 1..end]))
    })
}

/// What references can refer to.
#[derive(Clone, Debug, Default)]
pub struct Scope(Map<String, Value>);

impl Scope {
    /// The saga's id and input.
    pub fn new(id: &str, input: &Value) -> Self {
        let saga = serde_json::json!({ "id": id });
        Self([("input".to_owned(), input.clone()), ("saga".to_owned(), saga)].into_iter().collect())
    }

    /// Adds a step's answer.
    pub fn add(&mut self, step: &str, output: Value) {
        self.0.insert(step.to_owned(), output);
    }

    fn find(&self, path: &str) -> Result<&Value, String> {
        let mut parts = path.split('.');
        let missing = || format!("`{{{path}}}` has no value");
        let mut value = self.0.get(parts.next().unwrap_or_default()).ok_or_else(missing)?;
        for part in parts {
            let inner = match value {
                Value::Object(map) => map.get(part),
                Value::Array(items) => part.parse().ok().and_then(|at: usize| items.get(at)),
                _ => None,
            };
            value = inner.ok_or_else(missing)?;
        }
        Ok(value)
    }

    /// A body with its references replaced. A text that is one reference alone takes the type of what it refers to.
    ///
    /// # Errors
    /// The reference that has no value.
    pub fn fill(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => {
                let whole = placeholders(text).next().filter(|(range, _)| *range == (0..text.len()));
                match whole {
                    Some((_, path)) => self.find(path)?.clone(),
                    None => self.fill_text(text, |part| part)?.into(),
                }
            }
            Value::Array(items) => Value::Array(items.iter().map(|item| self.fill(item)).collect::<Result<_, _>>()?),
            Value::Object(map) => {
                let filled = map.iter().map(|(key, value)| Ok((key.clone(), self.fill(value)?)));
                Value::Object(filled.collect::<Result<_, String>>()?)
            }
            other => other.clone(),
        })
    }

    /// A path with its references replaced, each escaped so that it stays within its segment.
    ///
    /// # Errors
    /// The reference that has no value, or whose value is not a text, number or truth value.
    pub fn fill_path(&self, path: &str) -> Result<String, String> {
        self.fill_text(path, |part| escape(&part))
    }

    fn fill_text(&self, text: &str, escape: impl Fn(String) -> String) -> Result<String, String> {
        let mut filled = String::new();
        let mut from = 0;
        for (range, path) in placeholders(text) {
            filled.push_str(&text[from..range.start]);
            from = range.end;
            filled.push_str(&escape(match self.find(path)? {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(truth) => truth.to_string(),
                other => return Err(format!("`{{{path}}}` is {other}, which cannot stand in a text")),
            }));
        }
        filled.push_str(&text[from..]);
        Ok(filled)
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters; a lone `.` or `..` too, which would walk up the path.
fn escape(part: &str) -> String {
    if part == "." || part == ".." {
        return part.replace('.', "%2E");
    }
    let mut text = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            text.push(byte as char);
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(steps: Value) -> Result<Plan, Vec<PlanError>> {
        Plan::try_new("test", &serde_json::from_value(json!({ "steps": steps })).unwrap())
    }

    #[test]
    fn plans_are_checked() {
        assert!(plan(json!([
            { "name": "a", "call": "POST x/a", "undo": "DELETE x/a/{saga.id}" },
            { "name": "b", "call": "POST x/b/{a.id}", "body": { "n": ["{input.n}", "{a.m}"] }, "undo": "DELETE x/{a.id}" },
        ]))
        .is_ok());
        for (steps, path) in [
            (json!([]), "steps"),
            (json!([{ "name": "input", "call": "GET x" }]), "steps.0.name"),
            (json!([{ "name": "a b", "call": "GET x" }]), "steps.0.name"),
            (json!([{ "name": "a", "call": "GET x" }, { "name": "a", "call": "GET x" }]), "steps.1.name"),
            (json!([{ "name": "a", "call": "GET x/{b.id}" }, { "name": "b", "call": "GET x" }]), "steps.0.call"),
            (json!([{ "name": "a", "call": "GET x", "undo": "DELETE x/{a.id}" }]), "steps.0.undo"),
            (json!([{ "name": "a", "call": "GET x", "body": [{ "k": "{nope}" }] }]), "steps.0.body"),
            (json!([{ "name": "a", "call": "GET x", "undo_body": 1 }]), "steps.0.undo_body"),
        ] {
            let errors = plan(steps.clone()).unwrap_err();
            assert_eq!(errors.iter().map(|e| &*e.path).collect::<Vec<_>>(), [path], "{steps}");
        }
    }

    #[test]
    fn references_are_filled() {
        let mut scope = Scope::new("s1", &json!({ "n": 3, "who": "a/b c", "dots": "..", "list": [{ "x": true }] }));
        scope.add("pay", json!({ "id": "p9" }));
        let body =
            json!({ "whole": "{input.n}", "text": "n={input.n} {pay.id}", "deep": ["{input.list.0.x}"], "k": 1 });
        let filled = json!({ "whole": 3, "text": "n=3 p9", "deep": [true], "k": 1 });
        assert_eq!(scope.fill(&body).unwrap(), filled);
        assert_eq!(scope.fill_path("/o/{input.who}/{saga.id}").unwrap(), "/o/a%2Fb%20c/s1");
        assert_eq!(scope.fill_path("/o/{input.dots}").unwrap(), "/o/%2E%2E");
        assert!(scope.fill_path("/{input.nope}").unwrap_err().contains("no value"));
        assert!(scope.fill_path("/{input.list}").is_err());
    }
}
