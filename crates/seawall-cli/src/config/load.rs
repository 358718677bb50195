//! From text to [`Config`], or to everything that is wrong with it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde_path_to_error::Segment;

use super::tree::{self, Kind, Node, Place};
use super::{Config, Loaded, check, schema, teams};

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// Where it stands in the configuration: `gateways.public.routes.0.to`.
    pub(crate) path: String,
    /// What is wrong.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    pub(super) place: Place,
}

/// A file that cannot be used: every mistake in it, and in those that belong to it.
#[derive(Debug)]
pub(crate) struct ConfigError {
    sources: Sources,
    /// The mistakes, in the order of the file.
    pub(crate) mistakes: Vec<Mistake>,
}

/// The file and those that belong to it, one after the other; a place is one in all of them together.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<Source>);

#[derive(Debug)]
struct Source {
    name: String,
    text: String,
    /// After how many characters it begins.
    from: usize,
}

impl Sources {
    /// One more; says after how many characters it begins.
    pub(super) fn add(&mut self, name: String, text: String) -> usize {
        let from = self.0.last().map_or(0, |last| last.from + last.text.chars().count() + 1);
        self.0.push(Source { name, text, from });
        from
    }

    fn of(&self, range: &Range<usize>) -> Option<(&Source, Range<usize>)> {
        let source = self.0.iter().rfind(|source| source.from <= range.start)?;
        Some((source, range.start - source.from..range.end.saturating_sub(source.from)))
    }

    fn first(&self) -> &str {
        self.0.first().map_or("the file", |source| &source.name)
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl ConfigError {
    /// All mistakes with file, line, column, the offending text and a hint.
    pub(crate) fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for mistake in &self.mistakes {
            let title = Level::ERROR.primary_title(&mistake.what);
            let mut group = match &mistake.place {
                Place::File(range) => match self.sources.of(range) {
                    Some((source, range)) => {
                        let label = AnnotationKind::Primary.span(bytes(&source.text, &range)).label(&mistake.path);
                        title.element(Snippet::source(&*source.text).path(&*source.name).annotation(label))
                    }
                    None => title.element(Level::NOTE.message(mistake.path.clone())),
                },
                Place::Environment(name) => title.element(
                    Level::NOTE.message(format!("{} is set by the environment variable {name}", mistake.path)),
                ),
            };
            let hint =
                mistake.hint.as_deref().unwrap_or("docs/configuration.md shows every key and the form of its value");
            group = group.element(Level::HELP.message(hint));
            text += &renderer.render(&[group]).to_string();
            text.push_str("\n\n");
        }
        let count = self.mistakes.len();
        let plural = if count == 1 { "" } else { "s" };
        text + &format!("{}: {count} mistake{plural}; nothing was done\n", self.sources.first())
    }
}

/// A range of characters as one of bytes.
fn bytes(text: &str, range: &Range<usize>) -> Range<usize> {
    let at = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(byte, _)| byte);
    let start = at(range.start);
    // One line is enough to see where it is.
    let end = at(range.end).max(start);
    let line = text[start..end].find('\n').map_or(end, |newline| start + newline);
    start..line.max(start)
}

/// Reads and checks a file, with the overrides of the environment: `SEAWALL__CONTROL__LISTEN=127.0.0.1:7500`.
///
/// # Errors
/// [`ConfigError`] with every mistake; an unreadable file is one.
pub(crate) fn load(file: &Path) -> Result<Loaded, ConfigError> {
    let name = file.display().to_string();
    let unreadable = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "`seawall init` writes a file to begin with",
            std::io::ErrorKind::InvalidData => "a file of Seawall's is text in UTF-8",
            _ => "is it the right file, and may it be read?",
        };
        let what = format!("cannot read {name}: {error}");
        let mistake = Mistake { path: name.clone(), what, hint: Some(hint.into()), place: Place::File(0..0) };
        let mut sources = Sources::default();
        sources.add(name.clone(), String::new());
        ConfigError { sources, mistakes: vec![mistake] }
    };
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let absolute = std::path::absolute(file).map_err(unreadable)?;
    finish(name, text, absolute)
}

/// As if there were an empty file here.
///
/// # Errors
/// [`ConfigError`] for what the environment sets.
pub(crate) fn nothing() -> Result<Loaded, ConfigError> {
    let file = Path::new("seawall.yaml");
    finish("the environment".into(), String::new(), std::path::absolute(file).unwrap_or_else(|_| file.to_owned()))
}

/// A text, as it stands: the environment sets nothing.
///
/// # Errors
/// [`ConfigError`] with every mistake.
pub(crate) fn text(name: &str, text: &str) -> Result<Config, ConfigError> {
    let mut sources = Sources::default();
    sources.add(name.to_owned(), text.to_owned());
    match read(text, std::iter::empty(), Path::new("/"), &mut sources) {
        Ok(config) => Ok(config),
        Err(mistakes) => Err(ConfigError { sources, mistakes }),
    }
}

fn finish(name: String, text: String, file: PathBuf) -> Result<Loaded, ConfigError> {
    let mut sources = Sources::default();
    sources.add(name, text.clone());
    match read(&text, std::env::vars(), file.parent().unwrap_or(Path::new("/")), &mut sources) {
        Ok(config) => Ok(Loaded { config, file }),
        Err(mistakes) => Err(ConfigError { sources, mistakes }),
    }
}

/// The data directory of a file, whatever else is wrong in it: in the night in which it was spoilt, what runs by it is still
/// to be reached.
///
/// # Errors
/// [`ConfigError`] if the file cannot be read or is not YAML.
pub(crate) fn data(file: &Path) -> Result<PathBuf, ConfigError> {
    let error = match load(file) {
        Ok(loaded) => return Ok(loaded.data()),
        Err(error) => error,
    };
    let text = error.sources.0.first().map_or("", |source| &source.text);
    let Ok((mut tree, _)) = tree::parse(text) else { return Err(error) };
    let Ok(absolute) = std::path::absolute(file) else { return Err(error) };
    if text.is_empty() {
        return Err(error);
    }
    set(&mut tree, std::env::vars());
    let mut config = Config::default();
    if let Some(data) = tree.to_value()["control"]["data"].as_str() {
        config.control.data = data.into();
    }
    eprintln!("{} has mistakes, which `seawall config check` names", file.display());
    Ok(Loaded { config, file: absolute }.data())
}

const PREFIX: &str = "SEAWALL__";

/// Puts in what the environment says.
fn set(tree: &mut Node, variables: impl Iterator<Item = (String, String)>) {
    for (name, value) in variables {
        if let Some(path) = name.strip_prefix(PREFIX) {
            let path: Vec<String> = path.split("__").map(str::to_owned).collect();
            tree.set(&path, Node::from_environment(&name, &value));
        }
    }
}

/// Text and variables to a configuration, or to all mistakes in their order. Relative paths begin at `base`.
pub(super) fn read(
    text: &str,
    variables: impl Iterator<Item = (String, String)>,
    base: &Path,
    sources: &mut Sources,
) -> Result<Config, Vec<Mistake>> {
    let (mut tree, twice) = tree::parse(text).map_err(|error| {
        let path = "the file".to_owned();
        let hint = Some("look at the indentation, quotes and brackets here and just above".to_owned());
        vec![Mistake { path, what: format!("not YAML: {}", error.what), hint, place: Place::File(error.at) }]
    })?;
    set(&mut tree, variables);
    let mut mistakes: Vec<Mistake> = twice
        .into_iter()
        .map(|twice| Mistake {
            path: "the file".into(),
            what: twice.what,
            hint: Some("keep one of the two; here the first was looked at".into()),
            place: Place::File(twice.at),
        })
        .collect();
    teams::gather(&mut tree, base, sources, &mut mistakes);
    for path in schema::lists_for_blocks(&tree.to_value()) {
        mend(&mut tree, &path, "invalid type: sequence, expected a map", &mut mistakes);
    }
    let mut config = loop {
        match serde_path_to_error::deserialize::<_, Config>(tree.to_value()) {
            Ok(config) => break Some(config),
            Err(error) => {
                let path = segments(error.path());
                let message = error.into_inner().to_string();
                if !mend(&mut tree, &path, &message, &mut mistakes) {
                    break None;
                }
            }
        }
    };
    if let Some(config) = &mut config {
        config.gateways.values_mut().for_each(|gateway| gateway.resolve(base));
        mistakes.extend(check::check(config, &tree));
    }
    mistakes.sort_by_key(|mistake| match &mistake.place {
        Place::File(range) => (range.start, range.end),
        Place::Environment(_) => (usize::MAX, 0),
    });
    mistakes.dedup();
    if mistakes.is_empty() { Ok(config.unwrap_or_default()) } else { Err(mistakes) }
}

fn segments(path: &serde_path_to_error::Path) -> Vec<String> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Unknown => None,
        })
        .collect()
}

/// Notes the mistake and takes the wrong part out, so that the next one can be found. `false` when nothing is left to
/// take out.
fn mend(tree: &mut Node, path: &[String], message: &str, mistakes: &mut Vec<Mistake>) -> bool {
    // Down to the deepest part that is really there.
    let mut labels = Vec::new();
    let mut node = &*tree;
    for segment in path {
        let Some(child) = node.child(segment) else { break };
        labels.push(node.label(segment));
        node = child;
    }
    let path = &path[..labels.len()];
    let missing = quoted(message, "missing field `");
    // What is missing because we took it out has been told already.
    let ours = missing.is_some_and(|field| node.removed.iter().any(|removed| removed == field))
        || (message.contains("map with a single key") && !node.removed.is_empty());
    if !ours {
        let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
        let parent = path.split_last().map(|(last, front)| (find(tree, front), last));
        let place = match parent {
            Some((parent, last)) if unknown || missing.is_some() => parent.key_place(last).cloned(),
            _ => None,
        };
        mistakes.push(Mistake {
            path: if labels.is_empty() { "the file".into() } else { labels.join(".") },
            what: describe(message),
            hint: hint(message, node).or_else(|| schema::hint(message, path)),
            place: place.unwrap_or_else(|| node.place.clone()),
        });
    }
    let Some((last, front)) = path.split_last() else { return false };
    let mut parent = tree;
    for segment in front {
        match parent.child_mut(segment) {
            Some(child) => parent = child,
            None => return false,
        }
    }
    parent.remove(last);
    true
}

fn find<'a>(tree: &'a Node, path: &[String]) -> &'a Node {
    let mut node = tree;
    for segment in path {
        match node.child(segment) {
            Some(child) => node = child,
            None => break,
        }
    }
    node
}

/// The text between a phrase and the next backtick.
fn quoted<'a>(message: &'a str, phrase: &str) -> Option<&'a str> {
    let rest = &message[message.find(phrase)? + phrase.len()..];
    rest.split('`').next()
}

fn describe(message: &str) -> String {
    match (message.find(", expected one of"), message.find(", expected `")) {
        (Some(at), _) | (None, Some(at)) if message.starts_with("unknown") => {
            message[..at].replacen("unknown field", "unknown key", 1)
        }
        _ => plain(&message.replacen("missing field", "missing key", 1)),
    }
}

/// serde speaks of Rust's types; people do not.
fn plain(message: &str) -> String {
    let Some((front, expected)) = message.rsplit_once("expected ") else { return message.to_owned() };
    let plain = match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "f64" => "a number",
        "a string" => "a text",
        "a sequence" => "a list",
        "a map" => "a block of keys",
        "a boolean" => "true or false",
        _ if expected.starts_with("struct ") => "a block of keys",
        _ if expected.starts_with("enum ") || expected.contains("single key") => "one `name: value`",
        _ => expected,
    };
    let front = front.replace("invalid type: ", "").replace("invalid value: ", "").replace("unit value", "nothing");
    format!("{front}expected {plain}").replace("string \"", "the text \"")
}

fn hint(message: &str, node: &Node) -> Option<String> {
    if let Some(given) = quoted(message, "unknown field `").or_else(|| quoted(message, "unknown variant `")) {
        let expected: Vec<&str> = message.split(", expected").nth(1)?.split('`').skip(1).step_by(2).collect();
        return Some(match nearest(given, expected.iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here: {}", expected.join(", ")),
        });
    }
    if let Kind::Scalar(value) = &node.kind {
        if message.contains("expected a string") && !value.is_string() {
            return Some(format!("put it in quotes: \"{value}\""));
        }
        if message.contains("expected a duration") && value.is_number() {
            return Some(format!("write the unit: `{value}s` or `{value}ms`"));
        }
        if message.contains("number of calls") && value.is_number() {
            return Some(format!("write `{value} calls`"));
        }
        if message.contains("socket address") {
            return Some("write an address and a port: `127.0.0.1:8080`, or `0.0.0.0:8080` for every interface".into());
        }
        if message.contains("not a duration") {
            return Some("the units are ms, s, m and h: `250ms`, `5s`, `1m 30s`".into());
        }
    }
    if let Some(field) = quoted(message, "missing field `") {
        return Some(format!("add `{field}: ...` to this block"));
    }
    None
}

/// The known name that is meant, if one is near enough.
pub(super) fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase().replace('-', "_");
    let score = |name: &&str| strsim::jaro_winkler(&given, &name.to_lowercase().replace('-', "_"));
    known
        .map(|name| (score(&name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.8)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests;
