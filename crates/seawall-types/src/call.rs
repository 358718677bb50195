//! A call to a service as people write it: `POST payment/charges`.

use std::fmt;
use std::str::FromStr;

use http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ServiceName;

/// A call to a service: method, service, path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// The service.
    pub service: ServiceName,
    /// The path, from its `/` on; as it is written.
    pub path: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.method, self.service, self.path)
    }
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("`{text}` is not a call such as `POST payment/charges`");
        let (method, target) = text.trim().split_once(' ').ok_or_else(wanted)?;
        let method = match method {
            "GET" | "POST" | "PUT" | "PATCH" | "DELETE" => {
                Method::from_bytes(method.as_bytes()).map_err(|_| wanted())?
            }
            _ => return Err(format!("{}: `{method}` is not one of GET, POST, PUT, PATCH, DELETE", wanted())),
        };
        let target = target.trim();
        let slash = target.find('/').unwrap_or(target.len());
        let service = ServiceName::try_new(&target[..slash]).map_err(|error| format!("{}: {error}", wanted()))?;
        let path = if slash == target.len() { "/" } else { &target[slash..] };
        if path.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err(format!("{}: the path holds a space or a letter beyond ASCII", wanted()));
        }
        Ok(Self { method, service, path: path.to_owned() })
    }
}

impl Serialize for Call {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Call {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Call;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a call such as `POST payment/charges`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Call, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Call {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Call".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A call: METHOD service/path.",
            "pattern": r"^\s*(GET|POST|PUT|PATCH|DELETE)\s+[a-z0-9][a-z0-9._-]*(/\S*)?\s*$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read() {
        let call: Call = "POST payment/charges/{input.id}?x=1".parse().unwrap();
        assert_eq!(
            (call.method, call.service.as_str(), &*call.path),
            (Method::POST, "payment", "/charges/{input.id}?x=1")
        );
        assert_eq!("GET order".parse::<Call>().unwrap().path, "/");
        for bad in ["", "payment/charges", "FETCH a/b", "POST", "POST /x", "POST Pay/x", "POST a/b c", "POST a/ä"] {
            assert!(bad.parse::<Call>().is_err(), "{bad}");
        }
    }
}
