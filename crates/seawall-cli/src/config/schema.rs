//! What the file's own schema says of a place in it: the range of a number, and where a block of keys belongs.

use serde_json::Value;

/// What may stand at `path`, if that is a number with bounds of its own.
pub(super) fn hint(message: &str, path: &[String]) -> Option<String> {
    let number =
        ["expected u", "expected i", "expected f", "expected nonzero"].iter().any(|kind| message.contains(kind));
    if !number {
        return None;
    }
    let schema = schemars::schema_for!(super::Config).to_value();
    let (low, high) = bounds(&schema, path)?;
    Some(match high {
        Some(high) => format!("allowed is {low} to {high}"),
        None => format!("allowed is {low} or more"),
    })
}

fn bounds(root: &Value, path: &[String]) -> Option<(f64, Option<f64>)> {
    let mut node = resolve(root, root)?;
    for segment in path {
        node = resolve(root, below(node, segment).or_else(|| node.get("items"))?)?;
    }
    Some((node.get("minimum")?.as_f64()?, node.get("maximum").and_then(Value::as_f64)))
}

/// What a reference, alone or as an alternative to nothing, stands for.
fn resolve<'a>(root: &'a Value, mut node: &'a Value) -> Option<&'a Value> {
    loop {
        if let Some(reference) = node.get("$ref").and_then(Value::as_str) {
            node = root.pointer(reference.strip_prefix('#')?)?;
        } else if let Some(choices) = node.get("anyOf").or_else(|| node.get("allOf")).and_then(Value::as_array) {
            let mut choices =
                choices.iter().filter(|choice| choice.get("type").and_then(Value::as_str) != Some("null"));
            node = choices.next()?;
            if choices.next().is_some() {
                return None;
            }
        } else {
            return Some(node);
        }
    }
}

/// Where a list stands in the place of a block of keys. To serde it would be the block's values in their order.
pub(super) fn lists_for_blocks(value: &Value) -> Vec<Vec<String>> {
    fn walk(root: &Value, schema: &Value, value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
        let Some(schema) = resolve(root, schema) else { return };
        match value {
            Value::Array(_) if schema.get("type").and_then(Value::as_str) == Some("object") => found.push(path.clone()),
            Value::Array(items) => {
                let Some(below) = schema.get("items") else { return };
                for (at, item) in items.iter().enumerate() {
                    path.push(at.to_string());
                    walk(root, below, item, path, found);
                    path.pop();
                }
            }
            Value::Object(keys) => {
                for (key, value) in keys {
                    if let Some(below) = below(schema, key) {
                        path.push(key.clone());
                        walk(root, below, value, path, found);
                        path.pop();
                    }
                }
            }
            _ => {}
        }
    }
    let schema = schemars::schema_for!(super::Config).to_value();
    let mut found = Vec::new();
    walk(&schema, &schema, value, &mut Vec::new(), &mut found);
    found
}

/// The schema of what stands under a key.
fn below<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    let known = schema.get("properties").and_then(|known| known.get(key));
    known.or_else(|| schema.get("additionalProperties"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_file_have_their_ranges() {
        let hint = |path: &str| hint("expected u32", &path.split('.').map(str::to_owned).collect::<Vec<_>>());
        for (path, range) in [
            ("policies.default.retry.attempts", "1 to 20"),
            ("policies.default.retry.multiplier", "1 to 10"),
            ("policies.any.breaker.half_open_calls", "1 to 1000"),
            ("policies.any.chaos.status.code", "200 to 599"),
        ] {
            assert_eq!(hint(path), Some(format!("allowed is {range}")), "{path}");
        }
        assert_eq!((hint("policies.default.timeout"), hint("nowhere")), (None, None));
    }
}
