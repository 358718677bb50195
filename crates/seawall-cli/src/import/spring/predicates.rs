//! Predicates, which become a route's `match`.

use serde_json::{Map, Value, json};

use super::{Part, Why};

/// What a route asks so far.
#[derive(Default)]
pub(super) struct Conditions {
    /// One of these.
    paths: Vec<Path>,
    rest: Map<String, Value>,
}

/// A pattern of paths, as Seawall has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Path {
    pattern: Option<String>,
    /// Where the pattern does not say it all.
    regex: Option<String>,
    /// All that it says.
    whole: String,
}

impl Conditions {
    /// Adds one; says what has to be known about it.
    pub(super) fn add(&mut self, part: &Part) -> Result<Option<String>, Why> {
        let args = &part.args;
        let need = |at, name: &str| args.get(at, name).ok_or_else(|| format!("its argument {name} is missing"));
        match part.name.as_str() {
            "Path" => {
                let mut patterns = args.all("patterns");
                patterns.retain(|pattern| !matches!(pattern.as_str(), "true" | "false"));
                if patterns.is_empty() || !self.paths.is_empty() {
                    return Err("a route has one Path, of one pattern or several".to_owned());
                }
                self.paths = patterns.iter().map(|pattern| path(pattern)).collect::<Result<_, _>>()?;
            }
            "Method" => {
                self.list("method", args.all("methods").iter().map(|method| method.to_uppercase()).collect())?
            }
            "Host" => {
                let mut hosts = Vec::new();
                let mut remark = None;
                for pattern in args.all("patterns") {
                    hosts.extend(host(&pattern, &mut remark)?);
                }
                self.list("host", hosts)?;
                return Ok(remark);
            }
            "Header" => self.value("headers", need(0, "header")?, args.get(1, "regexp"))?,
            "Query" => self.value("query", need(0, "param")?, args.get(1, "regexp"))?,
            "Cookie" => self.value("cookies", need(0, "name")?, Some(need(1, "regexp")?))?,
            "RemoteAddr" => self.list("source", args.all("sources"))?,
            "XForwardedRemoteAddr" => {
                self.list("source", args.all("sources"))?;
                return Ok(Some(
                    "`source` is who the farthest trusted proxy has seen: set `trusted_hops` of the gateway".to_owned(),
                ));
            }
            "After" => self.set("after", time(&need(0, "datetime")?)?.into())?,
            "Before" => self.set("before", time(&need(0, "datetime")?)?.into())?,
            "Between" => {
                self.set("after", time(&need(0, "datetime1")?)?.into())?;
                self.set("before", time(&need(1, "datetime2")?)?.into())?;
            }
            "Weight" => {
                let share = need(1, "weight")?;
                let share: u32 = share.parse().map_err(|_| format!("{share} is no weight"))?;
                self.set("weight", json!({ "group": need(0, "group")?, "share": share }))?;
            }
            "Version" => {
                return Err(
                    "there is no notion of a version here: match the header or the path that holds it".to_owned()
                );
            }
            "ReadBody" => return Err("it is code that reads the body".to_owned()),
            "CloudFoundryRouteService" => return Err("it is Cloud Foundry's".to_owned()),
            _ => return Err("it is none of Spring Cloud Gateway's own: a part of the program, most likely".to_owned()),
        }
        Ok(None)
    }

    /// The conditions; one for each pattern.
    pub(super) fn matches(&self) -> Vec<Value> {
        if self.paths.is_empty() {
            return vec![Value::Object(self.rest.clone())];
        }
        if self.paths.len() > 1 && self.rest.contains_key("weight") {
            // As two routes it would have its share twice.
            let any: Vec<_> = self.paths.iter().map(|path| path.whole.as_str()).collect();
            let mut all = Map::new();
            all.insert("path_regex".to_owned(), any.join("|").into());
            all.extend(self.rest.clone());
            return vec![Value::Object(all)];
        }
        let one = |path: &Path| {
            let mut all = Map::new();
            if let Some(pattern) = &path.pattern {
                all.insert("path".to_owned(), pattern.clone().into());
            }
            if let Some(regex) = &path.regex {
                all.insert("path_regex".to_owned(), regex.clone().into());
            }
            all.extend(self.rest.clone());
            Value::Object(all)
        };
        self.paths.iter().map(one).collect()
    }

    fn set(&mut self, key: &str, value: Value) -> Result<(), Why> {
        match self.rest.insert(key.to_owned(), value) {
            Some(_) => Err(format!("the route asks for `{key}` twice")),
            None => Ok(()),
        }
    }

    fn list(&mut self, key: &str, list: Vec<String>) -> Result<(), Why> {
        if list.is_empty() { Err("it has no arguments".to_owned()) } else { self.set(key, list.into()) }
    }

    fn value(&mut self, key: &str, name: String, regex: Option<String>) -> Result<(), Why> {
        let value = match regex {
            None => "*".into(),
            Some(regex) => {
                json!({ "regex": super::filters::regex(&regex)? })
            }
        };
        let fields = self.rest.entry(key.to_owned()).or_insert_with(|| json!({}));
        match fields.as_object_mut().and_then(|fields| fields.insert(name.clone(), value)) {
            Some(_) => Err(format!("the route asks for {name} twice")),
            None => Ok(()),
        }
    }
}

/// Spring's path patterns: ours have no expressions and stars within a segment, and nothing behind `**`. Those are expressions.
fn path(pattern: &str) -> Result<Path, Why> {
    let pattern = if pattern.starts_with('/') { pattern.to_owned() } else { format!("/{pattern}") };
    let segments: Vec<&str> = pattern[1..].split('/').collect();
    let (mut ours, mut regex, mut simple, mut captures) = (String::new(), String::new(), true, true);
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        let inner = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        match (*segment, inner) {
            ("**", _) if last => {
                ours += "/**";
                regex += "(/.*)?";
            }
            ("**", _) => {
                (simple, captures) = (false, false);
                regex += "(/.*)?";
            }
            ("*", _) => {
                ours += "/*";
                regex += "/[^/]+";
            }
            (_, Some(inner)) if inner.starts_with('*') && last => {
                // What it captures can be used by nobody, but it matches.
                ours += "/**";
                regex += "(/.*)?";
            }
            (_, Some(inner)) => {
                let (name, expression) =
                    inner.split_once(':').map_or((inner, None), |(name, regex)| (name, Some(regex)));
                let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                ours += &if plain { format!("/{{{name}}}") } else { "/*".to_owned() };
                let expression = expression.map(super::filters::regex).transpose()?;
                simple &= expression.is_none();
                regex += &expression.map_or("/[^/]+".to_owned(), |expression| format!("/(?:{expression})"));
            }
            (text, None) if text.contains(['*', '?', '{', '}']) => {
                if text.contains(['{', '}']) {
                    return Err(format!("{pattern}: a variable has to be a whole segment"));
                }
                simple = false;
                ours += "/*";
                let part = |c: char| match c {
                    '*' => "[^/]*".to_owned(),
                    '?' => "[^/]".to_owned(),
                    c => escape(c),
                };
                regex += &format!("/{}", text.chars().map(part).collect::<String>());
            }
            (text, None) => {
                ours += &format!("/{text}");
                regex += &format!("/{}", text.chars().map(escape).collect::<String>());
            }
        }
    }
    Ok(Path { pattern: captures.then_some(ours), regex: (!simple).then(|| regex.clone()), whole: regex })
}

fn escape(c: char) -> String {
    if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '~' | '%' | '/') { c.to_string() } else { format!("\\{c}") }
}

/// `**.a.b` is `a.b` and all below, `*.a.b` and `{sub}.a.b` are one name below.
fn host(pattern: &str, remark: &mut Option<String>) -> Result<Vec<String>, Why> {
    let pattern = pattern.split(':').next().unwrap_or(pattern);
    let (first, rest) = pattern.split_once('.').unwrap_or((pattern, ""));
    let star = |text: &str| text.contains(['*', '?', '{', '}']);
    match first {
        _ if star(rest) => Err(format!("the host {pattern}: only its first name may be any")),
        "**" => Ok(vec![rest.to_owned(), format!("*.{rest}")]),
        first if first == "*" || (first.starts_with('{') && first.ends_with('}')) => {
            *remark = Some(format!("*.{rest} takes names of several parts below {rest} too, {pattern} did not"));
            Ok(vec![format!("*.{rest}")])
        }
        first if star(first) => Err(format!("the host {pattern}: its first name is any as a whole, or none")),
        _ => Ok(vec![pattern.to_owned()]),
    }
}

/// Java's times, whose zone in brackets says nothing that the offset does not.
fn time(text: &str) -> Result<String, Why> {
    let plain = text.split('[').next().unwrap_or(text);
    let time: Result<jiff::Timestamp, _> = plain.parse();
    time.map(|time| time.to_string()).map_err(|_| format!("{text} is no time with an offset"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_converted() {
        for (given, pattern, regex) in [
            ("/red/{id}", Some("/red/{id}"), None),
            ("blue/**", Some("/blue/**"), None),
            ("/a/{*rest}", Some("/a/**"), None),
            ("/a/{id:[0-9]+}/x", Some("/a/{id}/x"), Some("/a/(?:[0-9]+)/x")),
            ("/a/*.json", Some("/a/*"), Some("/a/[^/]*\\.json")),
            ("/**/x", None, Some("(/.*)?/x")),
        ] {
            let path = path(given).unwrap();
            assert_eq!((path.pattern.as_deref(), path.regex.as_deref()), (pattern, regex), "{given}");
        }
        assert!(path("/a{x}").is_err());
        assert_eq!(time("2017-01-20T17:42:47.789-07:00[America/Denver]").unwrap(), "2017-01-21T00:42:47.789Z");
        assert_eq!(host("**.a.b", &mut None).unwrap(), ["a.b", "*.a.b"]);
        assert!(host("a.*.b", &mut None).is_err());
    }
}
