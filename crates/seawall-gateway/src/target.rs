//! What becomes of a request's path and query on the way to the service. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::Uri;
use http::uri::PathAndQuery;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::FilterError;
use crate::path::{Pattern, strip_prefix};

/// What becomes of the values of a parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewriteQueryConfig {
    /// The parameter.
    pub name: String,
    /// What is looked for in each of its values, decoded. Default: the whole value.
    #[serde(default = "all")]
    pub regex: String,
    /// What stands there instead: `$1` and `${name}` are the expression's groups.
    pub to: String,
}

fn all() -> String {
    "(?s)^.*$".to_owned()
}

/// The steps that change a path or a query, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    path: Vec<PathStep>,
    query: Vec<QueryStep>,
}

#[derive(Clone, Debug)]
enum PathStep {
    Strip(u8),
    Prefix(String),
    Set(Template),
    Rewrite(Regex, String),
}

#[derive(Clone, Debug)]
enum QueryStep {
    Set(String, String),
    Add(String, String),
    Remove(String),
    Rewrite(String, Regex, String),
}

/// A text with names in braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Name(String),
}

impl Template {
    pub(crate) fn try_new(text: &str) -> Result<Self, FilterError> {
        let wrong = || FilterError(format!("`{text}`: what stands in braces is a name, as in /orders/{{id}}"));
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(wrong)?;
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(wrong());
            }
            parts.extend([Part::Text(before.to_owned()), Part::Name(name.to_owned())]);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// The names in it.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| if let Part::Name(name) = part { Some(&**name) } else { None })
    }

    /// The text, with what each name stands for; nothing where it stands for nothing.
    pub(crate) fn fill<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> String {
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Name(name) => value(name).unwrap_or_default(),
        });
        parts.collect()
    }
}

/// A path that is put in by the file, and not by a client.
fn own_path(text: &str) -> Result<(), FilterError> {
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'));
    match text.starts_with('/') && plain && !seawall_proxy::pipeline::has_dot_segment(text) {
        true => Ok(()),
        false => Err(FilterError(format!(
            "`{text}` is no path: it begins with `/`, without `?`, `#`, spaces and dot segments"
        ))),
    }
}

/// A name behind `$` goes on for as long as it can, so that `$1s` is the group `1s`, and not `$1` before an `s`. One that is not
/// there would silently be nothing.
fn groups_are_there(regex: &Regex, to: &str) -> Result<(), FilterError> {
    let mut rest = to;
    while let Some((_, after)) = rest.split_once('$') {
        if let Some(after) = after.strip_prefix('$') {
            rest = after;
            continue;
        }
        let name = match after.strip_prefix('{') {
            Some(braced) => braced.split_once('}').map_or("", |(name, _)| name),
            None => &after[..after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len())],
        };
        let numbered = name.parse::<usize>().is_ok_and(|number| number < regex.captures_len());
        if !numbered && !regex.capture_names().flatten().any(|own| own == name) {
            let why = format!(
                "`{to}`: `{regex}` has no group `{name}`; write `${{1}}s` for a group before a letter, `$$` for a `$`"
            );
            return Err(FilterError(why));
        }
        rest = after;
    }
    Ok(())
}

/// An expression and what it is replaced by.
pub(crate) fn replacing(regex: &str, to: &str) -> Result<Regex, FilterError> {
    let regex =
        Regex::new(regex).map_err(|error| FilterError(format!("`{regex}` is no regular expression: {error}")))?;
    groups_are_there(&regex, to)?;
    Ok(regex)
}

impl Target {
    pub(crate) fn strip(&mut self, segments: u8) {
        self.path.push(PathStep::Strip(segments));
    }

    pub(crate) fn prefix(&mut self, prefix: &str) -> Result<(), FilterError> {
        own_path(prefix)?;
        self.path.push(PathStep::Prefix(prefix.trim_end_matches('/').to_owned()));
        Ok(())
    }

    pub(crate) fn set(&mut self, template: &str) -> Result<(), FilterError> {
        own_path(template)?;
        self.path.push(PathStep::Set(Template::try_new(template)?));
        Ok(())
    }

    pub(crate) fn rewrite(&mut self, regex: &str, to: &str) -> Result<(), FilterError> {
        self.path.push(PathStep::Rewrite(replacing(regex, to)?, to.to_owned()));
        Ok(())
    }

    pub(crate) fn rewrite_query(&mut self, config: &RewriteQueryConfig) -> Result<(), FilterError> {
        let regex = replacing(&config.regex, &config.to)?;
        self.query.push(QueryStep::Rewrite(config.name.clone(), regex, config.to.clone()));
        Ok(())
    }

    pub(crate) fn set_query(&mut self, map: &BTreeMap<String, String>) {
        self.query.extend(map.iter().map(|(name, value)| QueryStep::Set(name.clone(), value.clone())));
    }

    pub(crate) fn add_query(&mut self, map: &BTreeMap<String, String>) {
        self.query.extend(map.iter().map(|(name, value)| QueryStep::Add(name.clone(), value.clone())));
    }

    pub(crate) fn remove_query(&mut self, names: &[String]) {
        self.query.extend(names.iter().map(|name| QueryStep::Remove(name.clone())));
    }

    /// The names of captures that are used.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let templates = self.path.iter().filter_map(|step| if let PathStep::Set(to) = step { Some(to) } else { None });
        templates.flat_map(Template::names)
    }

    /// What the service gets; `None` when nothing changes.
    pub(crate) fn of(&self, uri: &Uri, pattern: Option<&Pattern>) -> Result<Option<PathAndQuery>, String> {
        if self.path.is_empty() && self.query.is_empty() {
            return Ok(None);
        }
        let given = uri.path();
        let mut path = Cow::Borrowed(given);
        for step in &self.path {
            path = match step {
                PathStep::Strip(segments) => match path {
                    Cow::Borrowed(path) => Cow::Borrowed(strip_prefix(path, *segments)),
                    Cow::Owned(path) => Cow::Owned(strip_prefix(&path, *segments).to_owned()),
                },
                PathStep::Prefix(prefix) => Cow::Owned(format!("{prefix}{path}")),
                PathStep::Set(template) => {
                    let capture = |name: &str| pattern?.captures(given).find(|(own, _)| *own == name);
                    Cow::Owned(template.fill(|name| capture(name).map(|(_, value)| value)))
                }
                PathStep::Rewrite(regex, to) => Cow::Owned(regex.replace_all(&path, to.as_str()).into_owned()),
            };
        }
        // What a client's own text was made into must not walk, either.
        if !path.starts_with('/') || seawall_proxy::pipeline::has_dot_segment(&path) {
            return Err(format!("the route makes of it `{path}`, which is no path for a service"));
        }
        let query = match uri.query() {
            query if self.query.is_empty() => query.map(Cow::Borrowed),
            query => self.queried(query.unwrap_or_default()).map(Cow::Owned),
        };
        let made = match query {
            Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
            None => PathAndQuery::try_from(&*path),
        };
        made.map(Some).map_err(|error| error.to_string())
    }

    /// The pairs that are left are passed on as they came.
    fn queried(&self, query: &str) -> Option<String> {
        let mut pairs: Vec<Cow<'_, str>> =
            query.split('&').filter(|pair| !pair.is_empty()).map(Cow::Borrowed).collect();
        let named =
            |pair: &str, name: &str| form_urlencoded::parse(pair.as_bytes()).next().is_some_and(|(own, _)| own == name);
        let written = |name: &str, value: &str| -> Cow<'_, str> {
            Cow::Owned(form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish())
        };
        for step in &self.query {
            match step {
                QueryStep::Set(name, value) => {
                    pairs.retain(|pair| !named(pair, name));
                    pairs.push(written(name, value));
                }
                QueryStep::Add(name, value) => pairs.push(written(name, value)),
                QueryStep::Remove(name) => pairs.retain(|pair| !named(pair, name)),
                QueryStep::Rewrite(name, regex, to) => {
                    for pair in pairs.iter_mut().filter(|pair| named(pair, name)) {
                        let value = form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned());
                        let value = value.unwrap_or_default();
                        *pair = written(name, &regex.replace(&value, to.as_str()));
                    }
                }
            }
        }
        Some(pairs.join("&")).filter(|query| !query.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::filter::{FilterConfig, Filters};
    use crate::path::Pattern;

    fn filters(config: Value) -> Result<Filters, String> {
        let config: Vec<FilterConfig> = serde_json::from_value(config).unwrap();
        Filters::default().and(&config).map_err(|(_, error)| error.to_string())
    }

    #[test]
    fn paths_and_queries_are_changed_in_order() {
        let pattern = Pattern::try_new("/api/{kind}/{id}/**").unwrap();
        for (config, given, made) in [
            (json!([{ "strip_prefix": 1 }]), "/api/a/7?x=1", Ok("/a/7?x=1")),
            (json!([{ "strip_prefix": 1 }, { "prefix_path": "/v1/" }]), "/api/a/7", Ok("/v1/a/7")),
            (json!([{ "prefix_path": "/v1" }, { "strip_prefix": 2 }]), "/api/a/7", Ok("/a/7")),
            (json!([{ "set_path": "/{id}/of/{kind}" }]), "/api/a/7/rest?q", Ok("/7/of/a?q")),
            (json!([{ "rewrite_path": { "regex": "^/api/([a-z]+)", "to": "/${1}s" } }]), "/api/a/7", Ok("/as/7")),
            (json!([{ "set_query": { "x": "1 2" } }]), "/api/a/7?x=3&y=%20&x=4", Ok("/api/a/7?y=%20&x=1+2")),
            (json!([{ "add_query": { "x": "1" } }]), "/api/a/7?x=3", Ok("/api/a/7?x=3&x=1")),
            (json!([{ "remove_query": ["x", "z"] }]), "/api/a/7?%78=3", Ok("/api/a/7")),
            (
                json!([{ "rewrite_query": { "name": "x", "to": "9 9" } }]),
                "/a?x=1%0A2&y=%20&x",
                Ok("/a?x=9+9&y=%20&x=9+9"),
            ),
            (
                json!([{ "rewrite_query": { "name": "x", "regex": "([0-9])", "to": "<$1>" } }]),
                "/a?x=a12&z=1",
                Ok("/a?x=a%3C1%3E2&z=1"),
            ),
            (json!([{ "set_header": { "a": "b" } }]), "/api/a/7", Ok("unchanged")),
            (json!([{ "rewrite_path": { "regex": "a", "to": ".." } }]), "/a/a/7", Err("`/../../7`")),
            (json!([{ "rewrite_path": { "regex": ".*", "to": "x" } }]), "/api/a/7", Err("no path for a service")),
        ] {
            let target = filters(config.clone()).unwrap().target(&given.parse().unwrap(), Some(&pattern));
            match (target, made) {
                (Ok(target), Ok(made)) => {
                    assert_eq!(target.map_or("unchanged".to_owned(), |target| target.to_string()), made, "{config}");
                }
                (Err(why), Err(says)) => assert!(why.contains(says), "{config}: {why}"),
                (target, _) => panic!("{config}: {target:?}"),
            }
        }
    }

    #[test]
    fn some_answer_by_themselves() {
        let pattern = Pattern::try_new("/old/{id}").unwrap();
        for (config, status, place) in [
            (
                json!({ "redirect": { "to": "https://shop.example{path}{query}" } }),
                302,
                "https://shop.example/old/7?a=b",
            ),
            (json!({ "redirect": { "to": "/new/{id}", "status": 308 } }), 308, "/new/7"),
            (json!({ "respond": { "status": 410, "text": "gone", "headers": { "location": "-" } } }), 410, "-"),
        ] {
            let filters = filters(json!([config])).unwrap();
            let answer = filters.answer(&"/old/7?a=b".parse().unwrap(), Some(&pattern)).unwrap().unwrap().response();
            assert_eq!((answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()), (status, place));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (config, says) in [
            (json!([{ "prefix_path": "v1" }]), "is no path"),
            (json!([{ "set_path": "/a/../b" }]), "is no path"),
            (json!([{ "set_path": "/{a" }]), "in braces"),
            (json!([{ "rewrite_path": { "regex": "(", "to": "" } }]), "no regular expression"),
            (json!([{ "rewrite_path": { "regex": "/(a)", "to": "/$1s" } }]), "no group `1s`; write `${1}s`"),
            (json!([{ "rewrite_path": { "regex": "/(a)", "to": "/${2}$$" } }]), "no group `2`"),
            (json!([{ "redirect": { "to": "/x", "status": 200 } }]), "a redirect's status"),
            (json!([{ "redirect": { "to": "/x" } }, { "respond": {} }]), "answered already"),
            (json!([{ "copy_header": { "a": "content-length" } }]), "frames the message"),
            (json!([{ "security_headers": { "x-frame-options": "a\nb" } }]), "is not a header value"),
        ] {
            let error = filters(config.clone()).unwrap_err();
            assert!(error.contains(says), "{config}: {error}");
        }
    }

    #[test]
    fn headers_have_defaults_and_copies() {
        let filters = filters(json!([
            { "default_header": { "x-a": "2", "x-b": "2" } },
            { "copy_header": { "x-b": "x-c", "x-none": "x-d" } },
            { "security_headers": { "X-Frame-Options": "SAMEORIGIN", "referrer-policy": "" } },
        ]))
        .unwrap();
        let mut headers = http::HeaderMap::new();
        for (name, value) in [("x-a", "1"), ("x-d", "1")] {
            headers.insert(name, value.parse().unwrap());
        }
        filters.on_request(&mut headers);
        let all: Vec<_> = ["x-a", "x-b", "x-c", "x-d"].map(|name| headers[name].to_str().unwrap()).into();
        assert_eq!(all, ["1", "2", "2", "1"]);
        let mut headers = http::HeaderMap::new();
        headers.insert("content-security-policy", "own".parse().unwrap());
        filters.on_response(&mut headers);
        assert_eq!(headers["x-frame-options"], "SAMEORIGIN");
        assert_eq!(headers["content-security-policy"], "own", "the service knows better");
        assert!(headers.contains_key("strict-transport-security") && !headers.contains_key("referrer-policy"));
    }
}
