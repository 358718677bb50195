//! A YAML document as a tree that remembers where each key and value stands.

use std::collections::HashMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Number, Value};

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the file, as a range of characters.
    File(Range<usize>),
    /// In an environment variable.
    Environment(String),
}

/// One value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) kind: Kind,
    /// Keys that stood here and were taken out as wrong.
    pub(crate) removed: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Scalar(Value),
    /// The items with the index that each has in the file.
    Seq(Vec<(usize, Node)>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) place: Place,
}

/// What the parser itself refuses.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) at: Range<usize>,
    pub(crate) what: String,
}

/// Nobody nests deeper by intention.
const DEPTH: usize = 64;

/// Reads one document; an empty one is an empty map. Of a key that stands twice the first counts, and the second is named.
pub(crate) fn parse(text: &str) -> Result<(Node, Vec<SyntaxError>), SyntaxError> {
    let mut reader =
        Reader { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0, twice: Vec::new() };
    let mut root = None;
    while let Some((event, span)) = reader.event()? {
        match event {
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            Event::StreamEnd => break,
            _ if root.is_some() => {
                return Err(SyntaxError { at: range(span), what: "a second document: one file holds one".into() });
            }
            event => root = Some(reader.node(event, span, 0)?),
        }
    }
    let empty = || Node { place: Place::File(0..0), kind: Kind::Map(Vec::new()), removed: Vec::new() };
    let root = match root {
        Some(Node { kind: Kind::Scalar(Value::Null), .. }) | None => empty(),
        Some(root) => root,
    };
    Ok((root, reader.twice))
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    twice: Vec<SyntaxError>,
}

impl<'a> Reader<'a> {
    fn event(&mut self) -> Result<Option<(Event<'a>, Span)>, SyntaxError> {
        self.parser.next().transpose().map_err(|error| {
            let at = error.marker().index();
            SyntaxError { at: at..at + 1, what: error.info().to_owned() }
        })
    }

    fn expect(&mut self) -> Result<(Event<'a>, Span), SyntaxError> {
        Ok(self.event()?.unwrap_or((Event::StreamEnd, Span::default())))
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, SyntaxError> {
        self.nodes += 1;
        let refuse = |what: &str| Err(SyntaxError { at: range(span), what: what.to_owned() });
        if depth > DEPTH {
            return refuse("it is nested too deeply");
        }
        // An alias copies what it stands for; copies of copies would grow without bound.
        if self.nodes > 200_000 {
            return refuse("the file is too large");
        }
        let (anchor, kind) = match event {
            Event::Scalar(text, style, anchor, _) => (anchor, Kind::Scalar(scalar(&text, style))),
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.expect()? {
                        (Event::SequenceEnd | Event::StreamEnd, _) => break,
                        (event, span) => items.push((items.len(), self.node(event, span, depth + 1)?)),
                    }
                }
                (anchor, Kind::Seq(items))
            }
            Event::MappingStart(anchor, _) => (anchor, Kind::Map(self.map(depth)?)),
            Event::Alias(id) => match self.anchors.get(&id) {
                Some(node) => {
                    self.nodes += node.count();
                    return Ok(node.clone());
                }
                None => return refuse("the alias stands for nothing"),
            },
            _ => return refuse("this is not expected here"),
        };
        let node = Node { place: Place::File(range(span)), kind, removed: Vec::new() };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, SyntaxError> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (name, at) = match self.expect()? {
                (Event::MappingEnd | Event::StreamEnd, _) => return Ok(entries),
                (Event::Scalar(name, ..), span) => (name.into_owned(), range(span)),
                (_, span) => return Err(SyntaxError { at: range(span), what: "a key must be a plain text".into() }),
            };
            let (event, span) = self.expect()?;
            let value = self.node(event, span, depth + 1)?;
            if entries.iter().any(|(key, _)| key.name == name) {
                self.twice.push(SyntaxError { at, what: format!("the key `{name}` stands here twice") });
                continue;
            }
            entries.push((Key { name, place: Place::File(at) }, value));
        }
    }
}

fn range(span: Span) -> Range<usize> {
    span.start.index()..span.end.index().max(span.start.index() + 1)
}

/// YAML 1.2's core schema: a plain scalar may be null, a truth value or a number; a quoted one is a text.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return text.into();
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        _ => {
            let number = || {
                let first = text.trim_start_matches(['-', '+']).chars().next()?;
                if let Ok(whole) = text.parse::<i64>() {
                    return Some(Value::from(whole));
                }
                let float = (first.is_ascii_digit() || first == '.').then(|| text.parse::<f64>().ok())??;
                Number::from_f64(float).map(Value::Number)
            };
            number().unwrap_or_else(|| text.into())
        }
    }
}

impl Node {
    /// A scalar from an environment variable.
    pub(crate) fn from_environment(variable: &str, text: &str) -> Self {
        let place = Place::Environment(variable.to_owned());
        Self { place, kind: Kind::Scalar(scalar(text, ScalarStyle::Plain)), removed: Vec::new() }
    }

    /// The same as a part of a longer text, which it begins in after so many characters.
    pub(crate) fn shifted(mut self, by: usize) -> Self {
        let shift = |place: &mut Place| {
            if let Place::File(range) = place {
                *range = range.start + by..range.end + by;
            }
        };
        shift(&mut self.place);
        self.kind = match self.kind {
            Kind::Scalar(value) => Kind::Scalar(value),
            Kind::Seq(items) => Kind::Seq(items.into_iter().map(|(at, item)| (at, item.shifted(by))).collect()),
            Kind::Map(entries) => {
                let entries = entries.into_iter().map(|(mut key, node)| {
                    shift(&mut key.place);
                    (key, node.shifted(by))
                });
                Kind::Map(entries.collect())
            }
        };
        self
    }

    /// The child under a key, made as an empty list or map if it is not there.
    pub(crate) fn grow(&mut self, segment: &str, empty: Kind) -> Option<&mut Self> {
        let Kind::Map(entries) = &mut self.kind else { return None };
        let at = entries.iter().position(|(key, _)| key.name == segment).unwrap_or_else(|| {
            let place = self.place.clone();
            let node = Self { place: place.clone(), kind: empty, removed: Vec::new() };
            entries.push((Key { name: segment.to_owned(), place }, node));
            entries.len() - 1
        });
        Some(&mut entries[at].1)
    }

    /// The same without places.
    pub(crate) fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::Seq(items) => Value::Array(items.iter().map(|(_, item)| item.to_value()).collect()),
            Kind::Map(entries) => {
                let entries = entries.iter().map(|(key, node)| (key.name.clone(), node.to_value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    fn count(&self) -> usize {
        1 + match &self.kind {
            Kind::Scalar(_) => 0,
            Kind::Seq(items) => items.iter().map(|(_, item)| item.count()).sum(),
            Kind::Map(entries) => entries.iter().map(|(_, node)| node.count()).sum(),
        }
    }

    /// The child under a key or an index.
    pub(crate) fn child(&self, segment: &str) -> Option<&Self> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|(key, _)| key.name == segment).map(|(_, node)| node),
            Kind::Seq(items) => items.get(segment.parse::<usize>().ok()?).map(|(_, item)| item),
            Kind::Scalar(_) => None,
        }
    }

    pub(crate) fn child_mut(&mut self, segment: &str) -> Option<&mut Self> {
        match &mut self.kind {
            Kind::Map(entries) => entries.iter_mut().find(|(key, _)| key.name == segment).map(|(_, node)| node),
            Kind::Seq(items) => items.get_mut(segment.parse::<usize>().ok()?).map(|(_, item)| item),
            Kind::Scalar(_) => None,
        }
    }

    /// What a child is called in the file: its key, or the index that it had before others were taken out.
    pub(crate) fn label(&self, segment: &str) -> String {
        match &self.kind {
            Kind::Seq(items) => {
                let item = segment.parse::<usize>().ok().and_then(|at| items.get(at));
                item.map_or_else(|| segment.to_owned(), |(index, _)| index.to_string())
            }
            Kind::Map(_) | Kind::Scalar(_) => segment.to_owned(),
        }
    }

    /// The place of the key under which a child stands, or of the child itself in a list.
    pub(crate) fn key_place(&self, segment: &str) -> Option<&Place> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|(key, _)| key.name == segment).map(|(key, _)| &key.place),
            Kind::Seq(_) | Kind::Scalar(_) => self.child(segment).map(|node| &node.place),
        }
    }

    /// Takes a child out and remembers that it was there.
    pub(crate) fn remove(&mut self, segment: &str) {
        match &mut self.kind {
            Kind::Map(entries) => entries.retain(|(key, _)| key.name != segment),
            Kind::Seq(items) => {
                if let Some(at) = segment.parse::<usize>().ok().filter(|at| *at < items.len()) {
                    items.remove(at);
                }
            }
            Kind::Scalar(_) => {}
        }
        self.removed.push(segment.to_owned());
    }

    /// Sets a value deep in the tree, making maps on the way.
    pub(crate) fn set(&mut self, path: &[String], value: Self) {
        let Some((first, rest)) = path.split_first() else { return *self = value };
        let same = |a: &str, b: &str| a.to_lowercase().replace('-', "_") == b.to_lowercase().replace('-', "_");
        if let Kind::Seq(items) = &mut self.kind {
            if let Some((_, item)) = first.parse::<usize>().ok().and_then(|at| items.get_mut(at)) {
                item.set(rest, value);
            }
            return;
        }
        if !matches!(self.kind, Kind::Map(_)) {
            self.kind = Kind::Map(Vec::new());
        }
        let Kind::Map(entries) = &mut self.kind else { return };
        let at = entries.iter().position(|(key, _)| same(&key.name, first)).unwrap_or_else(|| {
            let place = value.place.clone();
            let node = Self { place: place.clone(), kind: Kind::Map(Vec::new()), removed: Vec::new() };
            entries.push((Key { name: first.to_lowercase(), place }, node));
            entries.len() - 1
        });
        entries[at].1.set(rest, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_those_of_yaml_1_2() {
        let text = "a: 1\nb: [x, 'y', \"2\", yes, null, 1.5, -3, 0x1, .inf, 1e3]\nc: &k {d: true}\ne: *k\nf: |\n  t\n";
        let value = parse(text).unwrap().0.to_value();
        let list = json!(["x", "y", "2", "yes", null, 1.5, -3, "0x1", ".inf", 1000.0]);
        assert_eq!(value, json!({ "a": 1, "b": list, "c": { "d": true }, "e": { "d": true }, "f": "t\n" }));
        for empty in ["", "# nothing\n", "---\n", "~"] {
            assert_eq!(parse(empty).unwrap().0.to_value(), json!({}), "{empty:?}");
        }
    }

    #[test]
    fn what_is_no_yaml_is_refused_at_its_place() {
        for (text, what) in [
            ("a: [1\n", ""),
            ("a: b: c\n", ""),
            ("{[a]: 1}", "plain text"),
            ("a: 1\n---\nb: 2\n", "second document"),
            ("a: *nope\n", ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.what.contains(what), "{text:?}: {}", error.what);
        }
        let (tree, twice) = parse("a: 1\na: 2\nb: 3\nb: 4\n").unwrap();
        assert_eq!((tree.to_value(), twice.len()), (json!({ "a": 1, "b": 3 }), 2));
        assert!(parse(&format!("a: {}", "[".repeat(500))).is_err());
    }

    #[test]
    fn variables_reach_deep_values() {
        let mut tree = parse("gateways:\n  my-web: {listen: 'a', routes: [{id: x}]}\n").unwrap().0;
        let set = |tree: &mut Node, path: &[&str], text: &str| {
            let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
            tree.set(&path, Node::from_environment("V", text));
        };
        set(&mut tree, &["GATEWAYS", "MY_WEB", "LISTEN"], "b");
        set(&mut tree, &["GATEWAYS", "MY_WEB", "ROUTES", "0", "ID"], "y");
        set(&mut tree, &["CONTROL", "TTL"], "5");
        let expected =
            json!({ "gateways": { "my-web": { "listen": "b", "routes": [{ "id": "y" }] } }, "control": { "ttl": 5 } });
        assert_eq!(tree.to_value(), expected);
    }
}
