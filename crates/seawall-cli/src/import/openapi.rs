//! OpenAPI documents, 3.0 and 3.1: a route for each operation, which lets pass what the document allows.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Document, Import, slug, text};
use crate::config::tree::{Kind, Node};

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];
const SCHEMAS: &str = "#/components/schemas/";
/// What refers to itself is not followed for ever.
const DEPTH: usize = 32;

/// Everything that is in a document.
///
/// # Errors
/// It is no OpenAPI document of version 3.
pub(super) fn import(documents: &[Document], service: Option<&str>) -> anyhow::Result<Import> {
    let mut import = Import { specific: true, ..Import::default() };
    for document in documents {
        let version = document.root.child("openapi").and_then(text).unwrap_or_default();
        anyhow::ensure!(
            version.starts_with("3."),
            "{}: this is no OpenAPI document of version 3: it says `openapi: {version}`",
            document.place(&document.root)
        );
        let whole = document.root.to_value();
        let title = whole["info"]["title"].as_str().unwrap_or("api");
        let service = import.service(service.unwrap_or(title));
        let base = base(&whole);
        if whole["servers"].as_array().is_some_and(|servers| servers.len() > 1) {
            import.remark("of several servers the first one's path is taken".to_owned());
        }
        if whole.get("security").is_some() || whole["components"].get("securitySchemes").is_some() {
            import.remark(
                "the document says who may call (security): that is a filter of its own, docs/configuration.md"
                    .to_owned(),
            );
        }
        let mut reader =
            Reader { document, whole, service, base, legacy: version.starts_with("3.0"), import: &mut import };
        reader.paths();
    }
    Ok(import)
}

/// The path of the first server, without a slash at its end.
fn base(whole: &Value) -> String {
    let url = whole["servers"][0]["url"].as_str().unwrap_or_default();
    let path = match url.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => url,
    };
    path.trim_end_matches('/').to_owned()
}

struct Reader<'a> {
    document: &'a Document,
    whole: Value,
    service: String,
    base: String,
    /// 3.0, whose schemas are not quite JSON Schema.
    legacy: bool,
    import: &'a mut Import,
}

impl Reader<'_> {
    fn paths(&mut self) {
        let document = self.document;
        let Some(Node { kind: Kind::Map(paths), .. }) = document.root.child("paths") else {
            let place = document.place(&document.root);
            self.import.notes.push(format!("{place}: there are no paths"));
            return;
        };
        let mut ids = BTreeSet::new();
        for (key, item) in paths {
            let Kind::Map(operations) = &item.kind else { continue };
            let shared = self.whole["paths"][&key.name]["parameters"].clone();
            for (method, node) in operations.iter().filter(|(method, _)| METHODS.contains(&method.name.as_str())) {
                let operation = self.whole["paths"][&key.name][&method.name].clone();
                let label = operation["operationId"]
                    .as_str()
                    .map_or_else(|| slug(&format!("{} {}", method.name, key.name)), slug);
                let mut id = label.clone();
                while !ids.insert(id.clone()) {
                    id.push('x');
                }
                match self.route(&id, &key.name, &method.name, &operation, &shared) {
                    Ok(route) => self.import.routes.push(route),
                    Err(why) => {
                        let place = document.place(node);
                        self.import.notes.push(format!("{place}: {} {}: {why}", method.name.to_uppercase(), key.name));
                    }
                }
            }
        }
    }

    fn route(
        &mut self,
        id: &str,
        path: &str,
        method: &str,
        operation: &Value,
        shared: &Value,
    ) -> Result<Value, String> {
        let path = format!("{}{path}", self.base);
        let mut matches = Map::new();
        let (pattern, regex) = pattern(&path)?;
        matches.insert("path".into(), pattern.clone().into());
        if let Some(regex) = regex {
            matches.insert("path_regex".into(), regex.into());
        }
        matches.insert("method".into(), json!([method.to_uppercase()]));
        let mut validate = Map::new();
        let parameters = self.parameters(&pattern, operation, shared)?;
        if parameters.iter().any(|parameter| parameter["in"] == "path") {
            validate.insert("path".into(), pattern.into());
        }
        if !parameters.is_empty() {
            validate.insert("parameters".into(), parameters.into());
        }
        if let Some(body) = operation.get("requestBody") {
            let body = self.resolve(body)?;
            let json = body["content"].as_object().and_then(|kinds| {
                kinds.iter().find(|(kind, _)| {
                    kind.starts_with("application/json")
                        || kind.split(';').next().is_some_and(|kind| kind.ends_with("+json"))
                })
            });
            match json {
                // Others may be sent as well: then it is not for JSON alone.
                Some((_, kind)) if body["content"].as_object().is_some_and(|kinds| kinds.len() == 1) => {
                    let required = body["required"].as_bool().unwrap_or(false);
                    let schema = self.schema(kind.get("schema").unwrap_or(&Value::Bool(true)))?;
                    validate.insert("body".into(), json!({ "required": required, "schema": schema }));
                }
                _ => self.import.remark(format!(
                    "{}: the body of {id} is not, or not only, JSON: it is not looked at",
                    self.document.file
                )),
            }
        }
        let mut route = Map::new();
        route.insert("id".into(), id.into());
        route.insert("match".into(), matches.into());
        if validate.contains_key("parameters") || validate.contains_key("body") {
            route.insert("filters".into(), json!([{ "validate": validate }]));
        }
        route.insert("to".into(), self.service.clone().into());
        Ok(route.into())
    }

    /// Those of the operation, and those of its path that it does not say otherwise.
    fn parameters(&mut self, pattern: &str, operation: &Value, shared: &Value) -> Result<Vec<Value>, String> {
        let mut made: Vec<Value> = Vec::new();
        let own = operation["parameters"].as_array().into_iter().flatten();
        for given in own.chain(shared.as_array().into_iter().flatten()) {
            let given = self.resolve(given)?;
            let (name, place) = (given["name"].clone(), given["in"].clone());
            if made.iter().any(|other| other["name"] == name && other["in"] == place) {
                continue;
            }
            let (Some(name), Some(place)) = (name.as_str(), place.as_str()) else {
                return Err("a parameter has no name, or is nowhere".to_owned());
            };
            // What the standard says of them is said elsewhere.
            if place == "header" && ["accept", "content-type", "authorization"].contains(&name.to_lowercase().as_str())
            {
                continue;
            }
            if place == "path" && !pattern.contains(&format!("{{{name}}}")) {
                let file = &self.document.file;
                self.import.remark(format!(
                    "{file}: the parameter {name} of {pattern} is no segment with a plain name: it is not looked at"
                ));
                continue;
            }
            let mut parameter = Map::new();
            parameter.insert("name".into(), name.into());
            parameter.insert("in".into(), place.into());
            let required = given["required"].as_bool().unwrap_or(place == "path");
            if required {
                parameter.insert("required".into(), true.into());
            }
            let style = given["style"].as_str().unwrap_or("form");
            match given.get("schema") {
                Some(schema) if matches!(style, "form" | "simple") => {
                    let schema = self.schema(schema)?;
                    if is_object(&schema) {
                        self.import.remark(format!(
                            "{}: the parameter {name} is an object: it is only asked for, not looked at",
                            self.document.file
                        ));
                    } else {
                        parameter.insert("schema".into(), schema);
                    }
                }
                Some(_) | None => {
                    self.import.remark(format!("{}: the parameter {name} is written in a way of its own ({style}): it is only asked for, not looked at", self.document.file));
                }
            }
            made.push(parameter.into());
        }
        Ok(made)
    }

    /// What a reference stands for.
    fn resolve(&self, value: &Value) -> Result<Value, String> {
        let mut value = value.clone();
        for _ in 0..DEPTH {
            let Some(target) = value["$ref"].as_str() else { return Ok(value) };
            let found = target.strip_prefix('#').and_then(|pointer| self.whole.pointer(pointer));
            value = found.cloned().ok_or_else(|| format!("{target} is not in this document"))?;
        }
        Err("a reference leads to itself".to_owned())
    }

    /// A schema that stands by itself: with all that it refers to.
    fn schema(&self, schema: &Value) -> Result<Value, String> {
        let mut needed = BTreeSet::new();
        let mut made = self.plain(schema, &mut needed, 0)?;
        let mut definitions = Map::new();
        while let Some(name) = needed.iter().find(|name| !definitions.contains_key(*name)).cloned() {
            let given = self.whole["components"]["schemas"].get(&name);
            let given = given.ok_or_else(|| format!("{SCHEMAS}{name} is not in this document"))?;
            let definition = self.plain(given, &mut needed, 0)?;
            definitions.insert(name, definition);
        }
        if let (false, Some(schema)) = (definitions.is_empty(), made.as_object_mut()) {
            schema.insert("$defs".into(), definitions.into());
        }
        Ok(made)
    }

    /// A schema as JSON Schema has it, its references beside it.
    fn plain(&self, schema: &Value, needed: &mut BTreeSet<String>, depth: usize) -> Result<Value, String> {
        if depth > DEPTH {
            return Err("a schema is nested too deeply".to_owned());
        }
        match schema {
            Value::Array(items) => items.iter().map(|item| self.plain(item, needed, depth + 1)).collect(),
            Value::Object(members) => {
                let mut made = Map::new();
                for (key, value) in members {
                    match key.as_str() {
                        "$ref" => {
                            let target = value.as_str().unwrap_or_default();
                            let name = target.strip_prefix(SCHEMAS).filter(|name| !name.contains('/'));
                            let name =
                                name.ok_or_else(|| format!("{target} is no schema of this document's components"))?;
                            needed.insert(name.to_owned());
                            made.insert(key.clone(), format!("#/$defs/{name}").into());
                        }
                        // For readers and programs that write clients.
                        "example" | "examples" | "xml" | "externalDocs" | "discriminator" | "deprecated"
                        | "description" | "title" => {}
                        // As they stand: what is in them are values.
                        "enum" | "const" | "default" | "required" => drop(made.insert(key.clone(), value.clone())),
                        "properties" | "patternProperties" | "$defs" => {
                            let mut below = Map::new();
                            for (name, schema) in value.as_object().into_iter().flatten() {
                                below.insert(name.clone(), self.plain(schema, needed, depth + 1)?);
                            }
                            made.insert(key.clone(), below.into());
                        }
                        _ => drop(made.insert(key.clone(), self.plain(value, needed, depth + 1)?)),
                    }
                }
                if self.legacy {
                    modern(&mut made);
                }
                Ok(made.into())
            }
            other => Ok(other.clone()),
        }
    }
}

/// Whether it is an object by its type.
fn is_object(schema: &Value) -> bool {
    let target = schema["$ref"].as_str().and_then(|to| schema.pointer(to.strip_prefix('#')?));
    target.unwrap_or(schema)["type"] == "object"
}

/// What 3.0 says in other words than JSON Schema does now.
fn modern(schema: &mut Map<String, Value>) {
    if schema.remove("nullable") == Some(Value::Bool(true)) {
        if let Some(kind) = schema.get("type").filter(|kind| kind.is_string()).cloned() {
            schema.insert("type".into(), json!([kind, "null"]));
        }
        if let Some(Value::Array(values)) = schema.get_mut("enum")
            && !values.contains(&Value::Null)
        {
            values.push(Value::Null);
        }
    }
    for (flag, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        if let Some(Value::Bool(exclusive)) = schema.get(flag).cloned() {
            schema.remove(flag);
            if let Some(limit) = exclusive.then(|| schema.remove(bound)).flatten() {
                schema.insert(flag.into(), limit);
            }
        }
    }
}

/// A path's template as a pattern; where a variable is not a whole segment, an expression beside it.
fn pattern(path: &str) -> Result<(String, Option<String>), String> {
    let (mut pattern, mut regex, mut simple) = (String::new(), String::new(), true);
    for segment in path.trim_start_matches('/').split('/') {
        let inner =
            segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).filter(|name| !name.contains(['{', '}']));
        if let Some(name) = inner {
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            pattern += &if plain { format!("/{{{name}}}") } else { "/*".to_owned() };
            regex += "/[^/]+";
        } else if segment.contains('{') {
            simple = false;
            pattern += "/*";
            regex.push('/');
            let mut rest = segment;
            while let Some((before, after)) = rest.split_once('{') {
                let (_, after) = after.split_once('}').ok_or_else(|| format!("{path}: a variable is not closed"))?;
                regex += &format!("{}[^/]+?", escape(before));
                rest = after;
            }
            regex += &escape(rest);
        } else {
            pattern += &format!("/{segment}");
            regex += &format!("/{}", escape(segment));
        }
    }
    Ok((pattern, (!simple).then_some(regex)))
}

fn escape(text: &str) -> String {
    let one = |c: char| if c.is_ascii_alphanumeric() || "_-%~".contains(c) { c.to_string() } else { format!("\\{c}") };
    text.chars().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_patterns() {
        for (path, made, regex) in [
            ("/pets/{id}", "/pets/{id}", None),
            ("/pets/{pet-id}/x", "/pets/*/x", None),
            ("/a/{x}.{y}", "/a/*", Some("/a/[^/]+?\\.[^/]+?")),
            ("/", "/", None),
        ] {
            let (pattern, own) = pattern(path).unwrap();
            assert_eq!((pattern.as_str(), own.as_deref()), (made, regex), "{path}");
        }
        assert_eq!(base(&json!({ "servers": [{ "url": "https://a.b/v1/" }] })), "/v1");
        assert_eq!(base(&json!({ "servers": [{ "url": "/v2" }] })), "/v2");
        assert_eq!(base(&json!({})), "");
    }
}
