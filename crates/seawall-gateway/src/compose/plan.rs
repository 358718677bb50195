//! A composition, checked and compiled.

use std::time::Duration;

use http::{HeaderName, Method};
use seawall_types::{Call, Period, ServiceName};
use serde_json::Value;

use super::config::{ComposeConfig, OtherConfig, PartConfig};
use super::shape::{Place, Shape};
use super::template::{Body, Names, RESERVED, Ref, Target, Template};
use crate::filter::name as header;

/// The most parts.
const PARTS: usize = 32;

/// What is wrong, and where below `compose`.
pub(crate) type Problems = Vec<(String, String)>;

/// The graph.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In the order in which they are written.
    pub(crate) parts: Vec<Part>,
    /// Their numbers, each behind those that it needs.
    pub(crate) order: Vec<usize>,
    /// The field that lists what is missing.
    pub(crate) partial: Option<String>,
}

/// One part.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) own: Source,
    pub(crate) other: Option<Source>,
    pub(crate) needs: Vec<usize>,
    pub(crate) shape: Shape,
    pub(crate) place: Place,
    pub(crate) optional: bool,
    pub(crate) default: Option<Value>,
    /// The largest answer, in bytes.
    pub(crate) limit: usize,
}

/// A call that can be made.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) service: ServiceName,
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) headers: Vec<(HeaderName, Template)>,
    pub(crate) pass: Vec<HeaderName>,
    pub(crate) body: Option<Body>,
    pub(crate) timeout: Option<Duration>,
}

impl Plan {
    /// Checks and compiles what is written. `captures` are the names that the route's pattern captures.
    ///
    /// # Errors
    /// All that is wrong.
    pub(crate) fn try_new(config: &ComposeConfig, captures: &[&str]) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let names: Vec<&str> = config.parts.iter().map(|part| &*part.name).collect();
        if config.parts.is_empty() || config.parts.len() > PARTS {
            problems
                .push(("parts".into(), format!("there are {} parts, allowed are 1 to {PARTS}", config.parts.len())));
        }
        if config.timeout.get().is_zero() {
            problems.push(("timeout".into(), "`timeout` is 0: nothing can be called in no time".into()));
        }
        let known = Names { parts: &names, captures };
        let mut parts = Vec::new();
        for (at, part) in config.parts.iter().enumerate() {
            let mut problem = |field: &str, what: String| problems.push((format!("parts.{at}.{field}"), what));
            check_name(at, &names, captures, &mut problem);
            parts.extend(Part::try_new(part, &config.pass, known, &mut problem));
        }
        if parts.len() < config.parts.len() {
            return Err(problems);
        }
        collisions(&parts, config.partial.as_deref(), &mut problems);
        let order = in_order(&parts).unwrap_or_else(|circle| {
            let shown: Vec<_> = circle.iter().chain(circle.first()).map(|at| &*parts[*at].name).collect();
            let what = format!("the parts need one another in a circle: {}", shown.join(" needs "));
            problems.push((format!("parts.{}", circle.first().copied().unwrap_or_default()), what));
            Vec::new()
        });
        for (at, part) in parts.iter().enumerate().filter(|(_, part)| !part.optional) {
            let may_lack = part.needs.iter().find(|need| parts[**need].optional && parts[**need].default.is_none());
            if let Some(need) = may_lack {
                let need = &parts[*need].name;
                let what = format!(
                    "`{}` is required and needs `{need}`, which is optional: make `{need}` required, give it a default, or make \
                     `{}` optional",
                    part.name, part.name
                );
                problems.push((format!("parts.{at}"), what));
            }
        }
        if problems.is_empty() { Ok(Self { parts, order, partial: config.partial.clone() }) } else { Err(problems) }
    }

    /// Whether a template asks for the request's body.
    pub(crate) fn reads_body(&self) -> bool {
        let sources = self.parts.iter().flat_map(|part| std::iter::once(&part.own).chain(&part.other));
        sources.flat_map(Source::refs).any(|name| matches!(name, Ref::Body(_)))
    }
}

fn check_name(at: usize, names: &[&str], captures: &[&str], problem: &mut impl FnMut(&str, String)) {
    let name = names[at];
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
        problem("name", format!("`{name}` is not a name of letters, digits, `_` and `-`"));
    } else if !name.as_bytes()[0].is_ascii_alphabetic() {
        problem("name", format!("`{name}` does not begin with a letter"));
    } else if RESERVED.contains(&name) {
        problem("name", format!("`{{{name}.x}}` is the request's in templates: give the part another name"));
    } else if captures.contains(&name) {
        problem("name", format!("the path's pattern captures `{name}` too: give one of them another name"));
    } else if let Some(twin) = names[..at].iter().position(|other| *other == name) {
        problem("name", format!("part {twin} is named `{name}` too"));
    }
}

fn collisions(parts: &[Part], partial: Option<&str>, problems: &mut Problems) {
    for (at, part) in parts.iter().enumerate() {
        for other in &parts[..at] {
            if let Some(why) = part.place.collides(&other.place) {
                let what = format!("`{}` and `{}` meet in the answer: {why}", part.name, other.name);
                problems.push((format!("parts.{at}"), what));
            }
        }
        if let Some(field) = partial
            && let Some(why) = Place::At(vec![field.to_owned()]).collides(&part.place)
        {
            let what = format!("the list of what is missing and `{}` meet in the answer: {why}", part.name);
            problems.push(("partial".to_owned(), what));
        }
    }
}

/// The parts, each behind those that it needs; or a circle.
fn in_order(parts: &[Part]) -> Result<Vec<usize>, Vec<usize>> {
    let mut order = Vec::new();
    while order.len() < parts.len() {
        let ready = |at: &usize| !order.contains(at) && parts[*at].needs.iter().all(|need| order.contains(need));
        match (0..parts.len()).find(ready) {
            Some(next) => order.push(next),
            None => return Err(circle(parts, &order)),
        }
    }
    Ok(order)
}

/// Every part that is left needs one that is left, so that following them comes around.
fn circle(parts: &[Part], done: &[usize]) -> Vec<usize> {
    let mut way: Vec<usize> = Vec::new();
    let mut next = (0..parts.len()).find(|at| !done.contains(at));
    while let Some(at) = next {
        if let Some(begin) = way.iter().position(|seen| *seen == at) {
            return way.split_off(begin);
        }
        way.push(at);
        next = parts[at].needs.iter().copied().find(|need| !done.contains(need));
    }
    way
}

impl Part {
    fn try_new(
        config: &PartConfig,
        pass: &[String],
        names: Names<'_>,
        problem: &mut impl FnMut(&str, String),
    ) -> Option<Self> {
        let shape = Shape::try_new(config, problem);
        let place = Place::try_new(config, &shape, problem);
        let pass: Vec<String> = pass.iter().chain(&config.pass).cloned().collect();
        let own = OtherConfig {
            call: config.call.clone(),
            headers: config.headers.clone(),
            body: config.body.clone(),
            timeout: config.timeout,
        };
        let own = Source::try_new(&own, &pass, names, problem);
        let other = config.fallback.as_ref().map(|other| {
            Source::try_new(other, &pass, names, &mut |field, what| problem(&format!("fallback.{field}"), what))
        });
        let mut needs = Vec::new();
        for need in &config.needs {
            match names.parts.iter().position(|name| name == need) {
                Some(part) => needs.push(part),
                None => problem("needs", format!("there is no part `{need}`; there is {}", names.parts.join(", "))),
            }
        }
        if let Some(default) = &config.default {
            let shaped = shape.of(default).and_then(|value| place.fits(&value));
            if let Err(why) = shaped {
                problem(
                    "default",
                    format!("the default cannot stand for an answer: {}", why.replace("its answer", "it")),
                );
            }
        }
        let (own, other) = (own?, other.map_or(Some(None), |other| other.map(Some))?);
        let named = own.refs().chain(other.iter().flat_map(|other| other.refs()));
        needs.extend(named.filter_map(|name| if let Ref::Part(part, ..) = name { Some(*part) } else { None }));
        needs.sort_unstable();
        needs.dedup();
        Some(Self {
            name: config.name.clone(),
            own,
            other,
            needs,
            shape,
            place,
            optional: config.optional || config.default.is_some(),
            default: config.default.clone(),
            limit: usize::try_from(config.limit.get()).unwrap_or(usize::MAX),
        })
    }
}

impl Source {
    fn try_new(
        config: &OtherConfig,
        pass: &[String],
        names: Names<'_>,
        problem: &mut impl FnMut(&str, String),
    ) -> Option<Self> {
        let OtherConfig { call: Call { method, service, path }, .. } = config;
        let target = Target::try_new(path, names).map_err(|why| problem("call", why)).ok();
        let mut headers = Vec::new();
        for (field, text) in &config.headers {
            match (header(field), Template::try_new(text, names)) {
                (Ok(field), Ok(text)) => headers.push((field, text)),
                (Err(error), _) => problem("headers", error.to_string()),
                (_, Err(why)) => problem("headers", why),
            }
        }
        let mut passed = Vec::new();
        for field in pass {
            match header(field) {
                Ok(field) => passed.push(field),
                Err(error) => problem("pass", error.to_string()),
            }
        }
        let body =
            config.body.as_ref().and_then(|body| Body::try_new(body, names).map_err(|why| problem("body", why)).ok());
        if body.is_some() && method == Method::GET {
            problem("body", "a GET has no body: use POST, or parameters of the query".to_owned());
        }
        if config.timeout.is_some_and(|timeout| timeout.get().is_zero()) {
            problem("timeout", "`timeout` is 0: nothing can be called in no time".to_owned());
        }
        let timeout = config.timeout.map(Period::get);
        let (service, method) = (service.clone(), method.clone());
        Some(Self { service, method, target: target?, headers, pass: passed, body, timeout })
    }

    fn refs(&self) -> impl Iterator<Item = &Ref> {
        let headers = self.headers.iter().flat_map(|(_, text)| text.refs());
        let body = self.body.iter().flat_map(Body::refs);
        self.target.refs().chain(headers).chain(body)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mistakes_are_named_with_their_place() {
        let part = |name: &str, call: &str| json!({ "name": name, "call": call });
        let with = |mut part: Value, key: &str, value: Value| {
            part[key] = value;
            part
        };
        for (parts, place, says) in [
            (json!([]), "parts", "allowed are 1 to 32"),
            (json!([part("a b", "GET s/x")]), "parts.0.name", "is not a name"),
            (json!([part("1", "GET s/x")]), "parts.0.name", "does not begin with a letter"),
            (json!([part("query", "GET s/x")]), "parts.0.name", "another name"),
            (json!([part("id", "GET s/x")]), "parts.0.name", "captures `id` too"),
            (json!([part("a", "GET s/x"), part("a", "GET s/x")]), "parts.1.name", "part 0 is named `a` too"),
            (json!([part("a", "GET s/{b.c}")]), "parts.0.call", "neither a part"),
            (json!([with(part("a", "GET s/x"), "needs", json!(["b"]))]), "parts.0.needs", "no part `b`"),
            (json!([part("a", "GET s/{a.x}")]), "parts.0", "in a circle: a needs a"),
            (
                json!([
                    part("x", "GET s/{c.y}"),
                    part("a", "GET s/{b.x}"),
                    part("b", "GET s/{c.x}"),
                    part("c", "GET s/{a.x}")
                ]),
                "parts.3",
                "in a circle: c needs a needs b needs c",
            ),
            (json!([with(part("a", "GET s/x"), "body", json!({}))]), "parts.0.body", "a GET has no body"),
            (json!([with(part("a", "GET s/x"), "timeout", json!("0s"))]), "parts.0.timeout", "in no time"),
            (json!([with(part("a", "GET s/x"), "pass", json!(["te"]))]), "parts.0.pass", "frames the message"),
            (
                json!([with(part("a", "GET s/x"), "headers", json!({ "x": "{q}" }))]),
                "parts.0.headers",
                "neither a part",
            ),
            (
                json!([with(part("a", "GET s/x"), "fallback", json!({ "call": "GET s/{q}" }))]),
                "parts.0.fallback.call",
                "neither a part",
            ),
            (
                json!([part("a", "GET s/x"), with(part("b", "GET s/x"), "at", json!("a.b"))]),
                "parts.1",
                "meet in the answer",
            ),
            (json!([with(part("a", "GET s/x"), "at", json!("missing"))]), "partial", "meet in the answer"),
            (
                json!([with(with(part("a", "GET s/x"), "merge", json!("x")), "default", json!([]))]),
                "parts.0.default",
                "it is no object",
            ),
            (
                json!([with(with(part("a", "GET s/x"), "at", json!("x")), "append", json!("y"))]),
                "parts.0.append",
                "leave one out",
            ),
            (
                json!([with(part("a", "GET s/x"), "optional", json!(true)), part("b", "GET s/{a.x}")]),
                "parts.1",
                "make `a` required, give it a default, or make `b` optional",
            ),
        ] {
            let config = serde_json::from_value(json!({ "parts": parts, "partial": "missing" })).unwrap();
            let problems = Plan::try_new(&config, &["id"]).unwrap_err();
            assert!(problems.iter().any(|(at, what)| at == place && what.contains(says)), "{parts}: {problems:?}");
        }
    }
}
