//! The range of a number, as the file's own schema has it: for who wrote something else in its place.

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
        let below = node.get("properties").and_then(|known| known.get(segment));
        let below = below.or_else(|| node.get("additionalProperties")).or_else(|| node.get("items"))?;
        node = resolve(root, below)?;
    }
    Some((node.get("minimum")?.as_f64()?, node.get("maximum").and_then(Value::as_f64)))
}

/// What a reference, alone or as an alternative to nothing, stands for.
fn resolve<'a>(root: &'a Value, mut node: &'a Value) -> Option<&'a Value> {
    loop {
        if let Some(reference) = node.get("$ref").and_then(Value::as_str) {
            node = root.pointer(reference.strip_prefix('#')?)?;
        } else if let Some(choices) = node.get("anyOf").or_else(|| node.get("allOf")).and_then(Value::as_array) {
            node = choices.iter().find(|choice| choice.get("type").and_then(Value::as_str) != Some("null"))?;
        } else {
            return Some(node);
        }
    }
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
