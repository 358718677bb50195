//! Which service a request goes to, where it says so itself: one of those that the route names, and never an address. What a client
//! writes can therefore not make the gateway call anything else (server-side request forgery).

use http::HeaderName;
use http::request::Parts;
use schemars::JsonSchema;
use seawall_types::ServiceName;
use serde::{Deserialize, Serialize};

use super::{FilterError, name};
use crate::path::Pattern;
use crate::target::Template;

/// Which of several services a request goes to. What names none of them is answered with 400.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The name, with what the route's pattern has captured: `{tenant}-orders`. Either this or `header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The header of the client's request that holds the name; without it the request goes where the route's `to` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The services that it may be.
    pub among: Vec<ServiceName>,
}

#[derive(Debug)]
pub(crate) struct Chooser {
    from: From,
    among: Vec<ServiceName>,
}

#[derive(Debug)]
enum From {
    Name(Template),
    Header(HeaderName),
}

impl Chooser {
    pub(crate) fn try_new(config: &ServiceConfig) -> Result<Self, FilterError> {
        let from = match (&config.name, &config.header) {
            (Some(text), None) => From::Name(Template::try_new(text)?),
            (None, Some(header)) => From::Header(name(header)?),
            _ => return Err(FilterError("give either `name` or `header`".to_owned())),
        };
        if config.among.is_empty() {
            return Err(FilterError("`among` names the services that a request may go to; it is empty".to_owned()));
        }
        Ok(Self { from, among: config.among.clone() })
    }

    /// The names that are used of what a pattern has captured.
    pub(crate) fn names(&self) -> Vec<&str> {
        match &self.from {
            From::Name(template) => template.names().collect(),
            From::Header(_) => Vec::new(),
        }
    }

    /// Nothing where the request says nothing.
    pub(crate) fn of(&self, parts: &Parts, pattern: Option<&Pattern>) -> Result<Option<ServiceName>, String> {
        let path = parts.uri.path();
        let wanted = match &self.from {
            From::Name(template) => {
                let capture = |name: &str| pattern?.captures(path).find(|(own, _)| *own == name);
                template.fill(|name| capture(name).map(|(_, value)| value))
            }
            From::Header(name) => match parts.headers.get(name) {
                Some(value) => String::from_utf8_lossy(value.as_bytes()).trim().to_owned(),
                None => return Ok(None),
            },
        };
        let service = self.among.iter().find(|service| service.as_str() == wanted);
        let none = || format!("`{}` is none of the services that the route may go to", wanted.escape_debug());
        service.cloned().map(Some).ok_or_else(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_called() {
        let chooser = |json: &str| Chooser::try_new(&serde_json::from_str(json).unwrap());
        let pattern = Pattern::try_new("/{tenant}/**").unwrap();
        let by_name = chooser(r#"{"name": "{tenant}-orders", "among": ["a-orders", "b-orders"]}"#).unwrap();
        let by_header = chooser(r#"{"header": "x-shard", "among": ["one", "two"]}"#).unwrap();
        for (chooser, path, header, chosen) in [
            (&by_name, "/a/x", None, Ok(Some("a-orders"))),
            (&by_name, "/c/x", None, Err("`c-orders` is none")),
            (&by_header, "/a/x", None, Ok(None)),
            (&by_header, "/a/x", Some("two"), Ok(Some("two"))),
            (&by_header, "/a/x", Some("http://10.0.0.1/"), Err("is none")),
        ] {
            let mut request = http::Request::builder().uri(path);
            if let Some(value) = header {
                request = request.header("x-shard", value);
            }
            let parts = request.body(()).unwrap().into_parts().0;
            match (chooser.of(&parts, Some(&pattern)), chosen) {
                (Ok(service), Ok(chosen)) => assert_eq!(service.as_ref().map(ServiceName::as_str), chosen),
                (Err(why), Err(says)) => assert!(why.contains(says), "{why}"),
                (service, _) => panic!("{path}: {service:?}"),
            }
        }
        for json in [r#"{"among": ["a"]}"#, r#"{"header": "x", "among": []}"#, r#"{"header": "a b", "among": ["a"]}"#] {
            assert!(chooser(json).is_err(), "{json}");
        }
    }
}
