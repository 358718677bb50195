//! Writing YAML: blocks, and texts in quotes wherever they could be taken for something else.

use serde_json::Value;

/// A value as a document.
pub(super) fn write(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (at, (name, value)) in members.iter().enumerate() {
                // The first member of an item stands behind its dash.
                if at > 0 || !text.ends_with("- ") {
                    text.push_str(&indent);
                }
                text.push_str(&scalar(name));
                text.push(':');
                below(value, depth, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&indent);
                text.push_str("- ");
                match item {
                    Value::Object(members) if !members.is_empty() => block(item, depth + 1, text),
                    _ => {
                        text.push_str(&flow(item));
                        text.push('\n');
                    }
                }
            }
        }
        other => {
            text.push_str(&flow(other));
            text.push('\n');
        }
    }
}

fn below(value: &Value, depth: usize, text: &mut String) {
    let small = |value: &Value| !matches!(value, Value::Object(members) if !members.is_empty()) && !value.is_array();
    match value {
        Value::Object(members) if !members.is_empty() => {
            text.push('\n');
            block(value, depth + 1, text);
        }
        Value::Array(items) if !items.is_empty() && !items.iter().all(small) => {
            text.push('\n');
            block(value, depth + 1, text);
        }
        other => {
            text.push(' ');
            text.push_str(&flow(other));
            text.push('\n');
        }
    }
}

/// On one line: what JSON and YAML have in common, but for plain texts.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| format!("{}: {}", scalar(name), flow(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// Plain where nobody could read it otherwise.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/' | '.' | '*');
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let period = unit.len() < text.len() && matches!(unit, "ms" | "s" | "m" | "h");
    let letter = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if period || (letter && !word && text.chars().all(plain)) { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for value in [
            json!({}),
            json!({ "a": { "b": [1, "x", "yes", "a: b", "-1", "1.0", "5s", "12", "/a/**", "#", "\n", "ü"], "c": {} }, "d e": null, "f": [] }),
            json!({ "routes": [{ "id": "a", "match": { "path": "/a/{x}/**" }, "filters": [{ "strip_prefix": 1 }, "b", [1, [2]]] }, {}] }),
        ] {
            let text = write(&value);
            let (read, twice) =
                crate::config::tree::parse(&text).unwrap_or_else(|error| panic!("{}: {text}", error.what));
            assert!(twice.is_empty());
            assert_eq!(read.to_value(), value, "{text}");
        }
    }
}
