//! What is asked of claims.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::ValueConfig;
use crate::filter::FilterError;
use crate::matcher::Text;

/// What a claim has to be: one value, or any of several. `*` is any; of a claim that is a list, and of the words of `scope`,
/// one has to be it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ClaimConfig {
    /// This.
    One(ValueConfig),
    /// Any of these.
    Any(Vec<ValueConfig>),
}

/// Conditions on claims, all of which have to hold.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    conditions: Vec<(String, Vec<Text>)>,
}

impl Claims {
    pub(crate) fn try_new(config: &BTreeMap<String, ClaimConfig>) -> Result<Self, FilterError> {
        let condition = |(path, wanted): (&String, &ClaimConfig)| {
            let wanted = match wanted {
                ClaimConfig::One(one) => std::slice::from_ref(one),
                ClaimConfig::Any(any) => any,
            };
            let texts = wanted.iter().map(Text::try_new).collect::<Result<Vec<_>, String>>();
            Ok((path.clone(), texts.map_err(|why| FilterError(format!("the claim {path}: {why}")))?))
        };
        Ok(Self { conditions: config.iter().map(condition).collect::<Result<_, FilterError>>()? })
    }

    /// The first claim that is not as it has to be.
    pub(crate) fn missing(&self, claims: &Value) -> Option<&str> {
        let holds = |(path, wanted): &&(String, Vec<Text>)| {
            claim(claims, path).is_some_and(|value| wanted.iter().any(|wanted| is(value, path, wanted)))
        };
        self.conditions.iter().find(|condition| !holds(condition)).map(|(path, _)| &**path)
    }
}

/// A claim by its name, or by a JSON pointer that begins with `/`.
pub(crate) fn claim<'a>(claims: &'a Value, path: &str) -> Option<&'a Value> {
    if path.starts_with('/') { claims.pointer(path) } else { claims.get(path) }
}

fn is(value: &Value, path: &str, wanted: &Text) -> bool {
    match value {
        Value::Null => false,
        Value::Array(all) => all.iter().any(|one| !one.is_array() && is(one, "", wanted)),
        Value::String(text) if path == "scope" => text.split(' ').any(|word| wanted.is(word.as_bytes())),
        Value::String(text) => wanted.is(text.as_bytes()),
        other => wanted.is(other.to_string().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_as_they_have_to_be_or_not() {
        let claims = json!({
            "sub": "ann", "roles": ["user", "admin"], "scope": "read write", "paid": true, "level": 3, "nothing": null,
            "realm": { "roles": ["x"] }, "https://shop.example/tenant": "eu"
        });
        for (config, missing) in [
            (json!({}), None),
            (json!({ "sub": "ann", "roles": "admin" }), None),
            (json!({ "sub": "*", "roles": { "regex": "adm.*" } }), None),
            (json!({ "roles": ["root", "user"] }), None),
            (json!({ "roles": ["root"] }), Some("roles")),
            (json!({ "roles": [] }), Some("roles")),
            (json!({ "scope": "write" }), None),
            (json!({ "scope": "read write" }), Some("scope")),
            (json!({ "sub": "an" }), Some("sub")),
            (json!({ "sub": { "regex": "an" } }), Some("sub")),
            (json!({ "paid": "true", "level": "3" }), None),
            (json!({ "nothing": "*" }), Some("nothing")),
            (json!({ "/realm/roles": "x" }), None),
            (json!({ "realm": "x" }), Some("realm")),
            (json!({ "https://shop.example/tenant": "eu" }), None),
        ] {
            let config: BTreeMap<String, ClaimConfig> = serde_json::from_value(config).unwrap();
            assert_eq!(Claims::try_new(&config).unwrap().missing(&claims), missing, "{config:?}");
        }
    }
}
