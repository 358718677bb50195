//! Texts and bodies with names in braces: `{id}`, `{query.page}`, `{header.accept-language}`, `{claim.sub}`, `{body.sku}`, and of an
//! earlier part `{order.items.*.sku}`.

use std::borrow::Cow;

use http::HeaderMap;
use http::HeaderName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;

use crate::auth::claims::claim;

/// What stays as it is in a path or a query (RFC 3986, 2.3: unreserved).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The first words that name something else than a part.
pub(crate) const RESERVED: [&str; 4] = ["query", "header", "claim", "body"];

/// What the templates of a plan may name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    pub(crate) parts: &'a [&'a str],
    pub(crate) captures: &'a [&'a str],
}

/// What a name in braces stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ref {
    Capture(String),
    Query(String),
    Header(HeaderName),
    Claim(String),
    Body(Field),
    /// By its number; its name is for people.
    Part(usize, String, Field),
}

/// A way into a value: `items.*.sku`; a number is an element, `*` all of them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Field(Vec<String>);

/// A text with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Ref(Ref),
}

/// A JSON value whose texts are templates.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Plain(Value),
    Text(Template),
    List(Vec<Body>),
    Object(Vec<(String, Body)>),
}

/// A path and query with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    path: Template,
    /// As they are written, encoded already.
    query: Vec<(String, Template)>,
}

/// What is known of the request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Decoded.
    pub(crate) captures: Vec<(String, String)>,
    /// Decoded.
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) claims: Option<std::sync::Arc<Value>>,
    pub(crate) body: Value,
}

/// What is known of the request and of the parts that have ended.
pub(crate) struct Context<'a> {
    pub(crate) known: &'a Known,
    /// The answers of the parts, as they came.
    pub(crate) parts: &'a [Option<&'a Value>],
}

/// A name in a path that stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Absent {
    pub(crate) what: String,
    /// It is for the client to say.
    pub(crate) clients: bool,
}

impl Field {
    pub(crate) fn try_new(text: &str) -> Result<Self, String> {
        let segments: Vec<String> = text.split('.').map(str::to_owned).collect();
        if segments.iter().any(String::is_empty) {
            return Err(format!("`{text}` is not a field such as `customer.name`"));
        }
        Ok(Self(segments))
    }

    pub(crate) fn segments(&self) -> &[String] {
        &self.0
    }

    /// What is there; of `*` a list of what each element has.
    pub(crate) fn of<'v>(&self, value: &'v Value) -> Option<Cow<'v, Value>> {
        walk(&self.0, value)
    }
}

fn walk<'v>(way: &[String], value: &'v Value) -> Option<Cow<'v, Value>> {
    let Some((first, rest)) = way.split_first() else { return Some(Cow::Borrowed(value)) };
    match value {
        Value::Object(map) => walk(rest, map.get(first)?),
        Value::Array(list) if first == "*" => {
            let each = list.iter().filter_map(|element| walk(rest, element).map(Cow::into_owned));
            Some(Cow::Owned(Value::Array(each.collect())))
        }
        Value::Array(list) => walk(rest, list.get(first.parse::<usize>().ok()?)?),
        _ => None,
    }
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

impl Ref {
    fn try_new(text: &str, names: Names<'_>) -> Result<Self, String> {
        let (first, rest) = text.split_once('.').map_or((text, None), |(first, rest)| (first, Some(rest)));
        let needs = |what: &str| rest.ok_or_else(|| format!("`{{{text}}}` names no {what}: write `{{{text}.name}}`"));
        let field = || rest.map_or(Ok(Field::default()), Field::try_new);
        if let Some(part) = names.parts.iter().position(|name| *name == first) {
            return Ok(Self::Part(part, first.to_owned(), field()?));
        }
        match first {
            "query" => Ok(Self::Query(needs("parameter")?.to_owned())),
            "claim" => Ok(Self::Claim(needs("claim")?.to_owned())),
            "body" => Ok(Self::Body(field()?)),
            "header" => {
                let name = needs("header")?;
                let header = name.parse().map_err(|_| format!("`{name}` is not the name of a header"))?;
                Ok(Self::Header(header))
            }
            _ if rest.is_none() && names.captures.contains(&first) => Ok(Self::Capture(first.to_owned())),
            _ => {
                let all = names.parts.iter().chain(names.captures).map(|name| format!("`{name}`")).collect::<Vec<_>>();
                Err(format!(
                    "`{{{text}}}` is neither a part nor what the path's pattern captures; there is {}, and `query.`, `header.`, \
                     `claim.` and `body.`",
                    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
                ))
            }
        }
    }

    fn value<'v>(&self, context: &'v Context<'_>) -> Option<Cow<'v, Value>> {
        let text = |text: &str| Cow::Owned(Value::String(text.to_owned()));
        let named = |list: &[(String, String)], name: &str| {
            list.iter().find(|(own, _)| own == name).map(|(_, value)| text(value))
        };
        let known = context.known;
        match self {
            Self::Capture(name) => named(&known.captures, name),
            Self::Query(name) => named(&known.query, name),
            Self::Header(name) => {
                let all = known.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
                let all: Vec<_> = all.collect();
                (!all.is_empty()).then(|| text(&all.join(", ")))
            }
            Self::Claim(name) => claim(known.claims.as_ref()?, name).map(Cow::Borrowed),
            Self::Body(field) => field.of(&known.body),
            Self::Part(part, _, field) => field.of(context.parts.get(*part).copied()??),
        }
    }

    fn text(&self, context: &Context<'_>) -> Result<String, Absent> {
        let absent = |why: &str| Absent { what: format!("{self} {why}"), clients: !matches!(self, Self::Part(..)) };
        let value = self.value(context).ok_or_else(|| absent("is not there"))?;
        plain(&value).ok_or_else(|| absent("is no text, number or list of them"))
    }
}

impl std::fmt::Display for Ref {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Capture(name) => write!(f, "`{name}` of the path"),
            Self::Query(name) => write!(f, "`{name}` of the query"),
            Self::Header(name) => write!(f, "the header `{name}`"),
            Self::Claim(name) => write!(f, "the claim `{name}`"),
            Self::Body(field) => write!(f, "`{field}` of the body"),
            Self::Part(_, name, field) => write!(f, "`{field}` of `{name}`"),
        }
    }
}

/// A value as text; lists with commas.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Array(list) if list.iter().all(|element| !element.is_array()) => {
            list.iter().map(plain).collect::<Option<Vec<_>>>().map(|texts| texts.join(","))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

impl Template {
    /// Reads a text; `{{` and `}}` stand for braces.
    pub(crate) fn try_new(text: &str, names: Names<'_>) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            let closed = if brace == "{" { rest.split_once('}') } else { None };
            let (name, after) = closed
                .ok_or_else(|| format!("`{text}`: a brace stands alone; write `{brace}{brace}` for `{brace}`"))?;
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(Piece::Ref(Ref::try_new(name.trim(), names)?));
            rest = after;
        }
        plain.push_str(rest);
        pieces.push(Piece::Text(plain));
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        Ok(Self(pieces))
    }

    pub(crate) fn refs(&self) -> impl Iterator<Item = &Ref> {
        self.0.iter().filter_map(|piece| if let Piece::Ref(name) = piece { Some(name) } else { None })
    }

    pub(crate) fn fill(&self, context: &Context<'_>, encode: bool) -> Result<String, Absent> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Ref(name) => {
                    let text = name.text(context)?;
                    if encode {
                        filled.extend(utf8_percent_encode(&text, ENCODED));
                    } else {
                        filled.push_str(&text);
                    }
                }
            }
        }
        Ok(filled)
    }
}

impl Target {
    pub(crate) fn try_new(text: &str, names: Names<'_>) -> Result<Self, String> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        if text.contains('#') {
            return Err(format!("`{text}`: `#` is not sent to a server"));
        }
        let plain: String = path.replace(['{', '}'], "x");
        if seawall_proxy::pipeline::has_dot_segment(&plain) {
            return Err(format!("`{path}` holds a `.` or `..` segment"));
        }
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((name.to_owned(), Template::try_new(value, names)?))
        });
        Ok(Self { path: Template::try_new(path, names)?, query: pairs.collect::<Result<_, String>>()? })
    }

    pub(crate) fn refs(&self) -> impl Iterator<Item = &Ref> {
        self.path.refs().chain(self.query.iter().flat_map(|(_, value)| value.refs()))
    }

    /// The path and query. Parameters whose value is not there are left out.
    pub(crate) fn fill(&self, context: &Context<'_>) -> Result<String, Absent> {
        let mut target = self.path.fill(context, true)?;
        let walks = target.split('/').any(|segment| segment == "." || segment == "..");
        if walks || target.contains("//") || (target.len() > 1 && target.ends_with('/') && self.ends_in_name()) {
            let clients = self.path.refs().all(|name| !matches!(name, Ref::Part(..)));
            return Err(Absent { what: format!("`{target}` has a segment that is empty or walks"), clients });
        }
        let mut mark = '?';
        for (name, value) in &self.query {
            let Ok(value) = value.fill(context, true) else { continue };
            target.push(std::mem::replace(&mut mark, '&'));
            target.push_str(name);
            target.push('=');
            target.push_str(&value);
        }
        Ok(target)
    }

    fn ends_in_name(&self) -> bool {
        matches!(self.path.0.last(), Some(Piece::Ref(_)))
    }
}

impl Body {
    pub(crate) fn try_new(value: &Value, names: Names<'_>) -> Result<Self, String> {
        Ok(match value {
            Value::String(text) => Self::Text(Template::try_new(text, names)?),
            Value::Array(list) => Self::List(list.iter().map(|v| Self::try_new(v, names)).collect::<Result<_, _>>()?),
            Value::Object(map) => {
                let fields = map.iter().map(|(key, value)| Ok((key.clone(), Self::try_new(value, names)?)));
                Self::Object(fields.collect::<Result<_, String>>()?)
            }
            plain => Self::Plain(plain.clone()),
        })
    }

    pub(crate) fn refs(&self) -> Vec<&Ref> {
        match self {
            Self::Plain(_) => Vec::new(),
            Self::Text(template) => template.refs().collect(),
            Self::List(list) => list.iter().flat_map(Self::refs).collect(),
            Self::Object(fields) => fields.iter().flat_map(|(_, value)| value.refs()).collect(),
        }
    }

    /// A text that is one name alone becomes what it stands for, of whatever type; nothing becomes `null`.
    pub(crate) fn fill(&self, context: &Context<'_>) -> Value {
        match self {
            Self::Plain(value) => value.clone(),
            Self::Text(template) => match &template.0[..] {
                [Piece::Ref(name)] => name.value(context).map_or(Value::Null, Cow::into_owned),
                _ => template.fill(context, false).map_or(Value::Null, Value::String),
            },
            Self::List(list) => Value::Array(list.iter().map(|value| value.fill(context)).collect()),
            Self::Object(fields) => {
                Value::Object(fields.iter().map(|(key, value)| (key.clone(), value.fill(context))).collect())
            }
        }
    }
}

/// A captured segment, decoded.
pub(crate) fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NAMES: Names<'_> = Names { parts: &["order", "user"], captures: &["id"] };

    fn known() -> Known {
        let mut headers = HeaderMap::new();
        headers.insert("accept-language", "de".parse().unwrap());
        Known {
            captures: vec![("id".into(), "a/b".into())],
            query: vec![("page".into(), "2 3".into()), ("way".into(), "..".into())],
            headers,
            claims: Some(std::sync::Arc::new(json!({ "sub": "ann", "a.b": 1 }))),
            body: json!({ "sku": "lamp", "tags": ["a", "b"] }),
        }
    }

    fn order() -> Value {
        json!({ "customer": 7, "items": [{ "sku": "a", "n": 1 }, { "sku": "b&c" }, {}], "up": "..", "none": null, "empty": "" })
    }

    #[test]
    fn targets_are_filled_and_nothing_gets_out_of_its_segment() {
        let (known, order) = (known(), order());
        let context = Context { known: &known, parts: &[Some(&order), None] };
        for (template, filled) in [
            ("/orders/{id}", Ok("/orders/a%2Fb")),
            ("/c/{order.customer}/x?p={query.page}&q={query.none}&r=1", Ok("/c/7/x?p=2%203&r=1")),
            ("/skus?of={order.items.*.sku}", Ok("/skus?of=a%2Cb%26c")),
            ("/skus/{order.items.0.sku}-{claim.sub}", Ok("/skus/a-ann")),
            ("/l/{header.accept-language}?x={body.tags}&flag", Ok("/l/de?x=a%2Cb&flag=")),
            ("/o/{{{id}}}", Ok("/o/{a%2Fb}")),
            ("/o/{query.none}", Err(("`none` of the query is not there", true))),
            ("/o/{query.way}", Err(("segment that is empty or walks", true))),
            ("/o/{order.up}/x", Err(("segment that is empty or walks", false))),
            ("/o/{order.empty}", Err(("segment that is empty or walks", false))),
            ("/o/{order.none}", Err(("is no text", false))),
            ("/o/{order.items}", Err(("is no text", false))),
            ("/o/{order.items.9.sku}", Err(("is not there", false))),
            ("/o/{user.name}", Err(("is not there", false))),
        ] {
            match (Target::try_new(template, NAMES).unwrap().fill(&context), filled) {
                (Ok(target), Ok(filled)) => assert_eq!(target, filled, "{template}"),
                (Err(absent), Err((says, clients))) => {
                    assert!(absent.what.contains(says) && absent.clients == clients, "{template}: {absent:?}");
                }
                (target, _) => panic!("{template}: {target:?}"),
            }
        }
    }

    #[test]
    fn bodies_keep_the_types() {
        let (known, order) = (known(), order());
        let context = Context { known: &known, parts: &[Some(&order), None] };
        let body = json!({ "n": "{order.customer}", "t": "no {order.customer}", "all": "{order.items.*.sku}", "b": ["{body.sku}", 1],
            "none": "{user}", "graph": "{{ id }}", "dotted": "{claim.a.b}" });
        let filled = Body::try_new(&body, NAMES).unwrap().fill(&context);
        let wanted = json!({ "n": 7, "t": "no 7", "all": ["a", "b&c"], "b": ["lamp", 1], "none": null, "graph": "{ id }",
            "dotted": 1 });
        assert_eq!(filled, wanted);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (template, says) in [
            ("/{nothing}", "there is `order`, `user`, `id`, and"),
            ("/{id.x}", "is neither a part"),
            ("/{query}", "write `{query.name}`"),
            ("/{header.a b}", "not the name of a header"),
            ("/{order..x}", "is not a field"),
            ("/{order", "a brace stands alone; write `{{`"),
            ("/order}", "write `}}`"),
            ("/a/../b", "segment"),
            ("/a#b", "`#`"),
        ] {
            let error = Target::try_new(template, NAMES).unwrap_err();
            assert!(error.contains(says), "{template}: {error}");
        }
    }
}
