//! What is known of a caller: claims, and the headers in which services are told of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Extensions, Request};
use serde_json::{Map, Value};

use super::claims::claim;
use crate::filter::{FilterError, name};

/// Who has asked, as the last filter that knows has found. It travels with the request, among its extensions.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// A JSON object.
    pub claims: Arc<Value>,
}

impl Identity {
    /// Of a request that has passed a filter of authentication.
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }
}

/// Which claims are told in which headers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forward {
    headers: Vec<(HeaderName, String)>,
}

/// What a service is told of a caller.
pub(crate) type Told = Vec<(HeaderName, HeaderValue)>;

impl Forward {
    pub(crate) fn try_new(config: &BTreeMap<String, String>) -> Result<Self, FilterError> {
        let headers = config.iter().map(|(header, claim)| Ok((name(header)?, claim.clone())));
        Ok(Self { headers: headers.collect::<Result<_, FilterError>>()? })
    }

    /// Takes away whatever a client says of itself in these headers.
    pub(crate) fn strip(&self, headers: &mut HeaderMap) {
        strip(headers, self.headers.iter().map(|(name, _)| name));
    }

    /// The headers for these claims; a claim that is not there has none.
    ///
    /// # Errors
    /// The claim that no header can hold.
    pub(crate) fn told(&self, claims: &Value) -> Result<Told, String> {
        let present = self.headers.iter().filter_map(|(header, path)| Some((header, path, claim(claims, path)?)));
        let header = |(header, path, value): (&HeaderName, &String, &Value)| {
            let value = HeaderValue::try_from(text(value)).map_err(|_| format!("no header can hold the claim {path}"));
            Ok((header.clone(), value?))
        };
        present.filter(|(_, _, value)| !value.is_null()).map(header).collect()
    }
}

/// Takes headers away, and those that some servers take for the same: `x_user` is `X-User` to CGI and its heirs.
pub(crate) fn strip<'a>(headers: &mut HeaderMap, names: impl Iterator<Item = &'a HeaderName> + Clone) {
    for name in names.clone() {
        headers.remove(name);
    }
    let twin = |name: &HeaderName| name.as_str().contains('_') && names.clone().any(|own| same(own, name));
    let twins: Vec<HeaderName> = headers.keys().filter(|name| twin(name)).cloned().collect();
    for name in twins {
        headers.remove(name);
    }
}

/// The claims of somebody who has a name here.
pub(crate) fn claims_of(name: &str, more: &Map<String, Value>) -> Arc<Value> {
    let mut claims = more.clone();
    claims.insert("sub".to_owned(), name.into());
    Arc::new(Value::Object(claims))
}

/// Gives a request its caller.
pub(crate) fn tell<B>(request: &mut Request<B>, claims: &Arc<Value>, told: &Told) {
    for (name, value) in told {
        request.headers_mut().insert(name, value.clone());
    }
    request.extensions_mut().insert(Identity { claims: claims.clone() });
}

fn same(a: &HeaderName, b: &HeaderName) -> bool {
    let plain = |name: &HeaderName| name.as_str().bytes().map(|b| if b == b'_' { b'-' } else { b }).collect::<Vec<_>>();
    plain(a) == plain(b)
}

/// A text as it is, a list of texts with commas. Where a comma could not be told from a separator, and for all else, JSON.
fn text(value: &Value) -> String {
    let plain = |value: &Value| value.as_str().filter(|text| !text.contains(',')).map(str::to_owned);
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => {
            let texts: Option<Vec<String>> = all.iter().map(plain).collect();
            texts.map_or_else(|| value.to_string(), |texts| texts.join(","))
        }
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_become_headers_and_a_client_cannot_say_them_itself() {
        let config = [("x-user", "sub"), ("x-roles", "/realm/roles"), ("x-age", "age"), ("x-none", "none")];
        let forward = Forward::try_new(&config.map(|(a, b)| (a.into(), b.into())).into()).unwrap();
        let mut headers = HeaderMap::new();
        for name in ["x-user", "x_user", "X-Roles", "x-other", "x_none"] {
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("root"));
        }
        forward.strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
        let mut told = forward.told(&json!({ "sub": "ann", "realm": { "roles": ["a", "b"] }, "age": 7 })).unwrap();
        told.sort_by_key(|(name, _)| name.to_string());
        let told: Vec<_> = told.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(told, [("x-age", "7"), ("x-roles", "a,b"), ("x-user", "ann")]);
        // A role with a comma does not become two.
        let told = forward.told(&json!({ "realm": { "roles": ["a,admin"] } })).unwrap();
        assert_eq!(told[0].1, r#"["a,admin"]"#);
        assert_eq!(forward.told(&json!({ "sub": "a\r\nx-admin: 1" })), Err("no header can hold the claim sub".into()));
    }
}
