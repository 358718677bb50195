//! What a route changes on the way through.

use std::str::FromStr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::body::ResponseBody;

/// One step of a route, as it is written: `- strip_prefix: 1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FilterConfig {
    /// Removes this many segments from the front of the path.
    StripPrefix(u8),
    /// Sets request headers, replacing what is there.
    SetHeader(BTreeMap<String, String>),
    /// Adds request headers beside what is there.
    AddHeader(BTreeMap<String, String>),
    /// Removes request headers.
    RemoveHeader(Vec<String>),
    /// Sets response headers, replacing what is there.
    SetResponseHeader(BTreeMap<String, String>),
    /// Adds response headers beside what is there.
    AddResponseHeader(BTreeMap<String, String>),
    /// Removes response headers.
    RemoveResponseHeader(Vec<String>),
}

/// The answer when the service cannot give one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FallbackConfig {
    /// The status. Default 503.
    #[serde(default = "unavailable")]
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// The body, as JSON.
    #[serde(default)]
    pub json: Option<serde_json::Value>,
    /// The body, as text.
    #[serde(default)]
    pub text: Option<String>,
    /// More headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

const fn unavailable() -> u16 {
    503
}

/// What is wrong with a filter or a fallback, said about the part that is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(String);

/// A route's filters, ready to run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters {
    /// How many segments go from the front of the path.
    pub strip_prefix: u8,
    request: Vec<HeaderOp>,
    response: Vec<HeaderOp>,
}

#[derive(Clone, Debug, PartialEq)]
enum HeaderOp {
    Set(HeaderName, HeaderValue),
    Add(HeaderName, HeaderValue),
    Remove(HeaderName),
}

impl Filters {
    /// Checks and compiles what is written.
    ///
    /// # Errors
    /// [`FilterError`] for a name or value that is not one of a header, or a header that the proxy itself keeps.
    pub fn try_new(config: &[FilterConfig]) -> Result<Self, FilterError> {
        type Make = fn(HeaderName, HeaderValue) -> HeaderOp;
        let mut filters = Self::default();
        let pairs = |map: &BTreeMap<String, String>, make: Make| {
            map.iter().map(|(n, v)| Ok(make(name(n)?, value(v)?))).collect::<Result<Vec<_>, FilterError>>()
        };
        let names =
            |list: &[String]| list.iter().map(|n| Ok(HeaderOp::Remove(name(n)?))).collect::<Result<Vec<_>, _>>();
        for filter in config {
            match filter {
                FilterConfig::StripPrefix(segments) => filters.strip_prefix += segments,
                FilterConfig::SetHeader(map) => filters.request.extend(pairs(map, HeaderOp::Set)?),
                FilterConfig::AddHeader(map) => filters.request.extend(pairs(map, HeaderOp::Add)?),
                FilterConfig::RemoveHeader(list) => filters.request.extend(names(list)?),
                FilterConfig::SetResponseHeader(map) => filters.response.extend(pairs(map, HeaderOp::Set)?),
                FilterConfig::AddResponseHeader(map) => filters.response.extend(pairs(map, HeaderOp::Add)?),
                FilterConfig::RemoveResponseHeader(list) => filters.response.extend(names(list)?),
            }
        }
        Ok(filters)
    }

    /// Changes a request's headers.
    pub fn on_request(&self, headers: &mut HeaderMap) {
        apply(&self.request, headers);
    }

    /// Changes a response's headers.
    pub fn on_response(&self, headers: &mut HeaderMap) {
        apply(&self.response, headers);
    }
}

fn apply(ops: &[HeaderOp], headers: &mut HeaderMap) {
    for op in ops {
        match op {
            HeaderOp::Set(name, value) => drop(headers.insert(name.clone(), value.clone())),
            HeaderOp::Add(name, value) => drop(headers.append(name.clone(), value.clone())),
            HeaderOp::Remove(name) => drop(headers.remove(name)),
        }
    }
}

fn name(text: &str) -> Result<HeaderName, FilterError> {
    let name = HeaderName::from_str(text).map_err(|_| FilterError(format!("`{text}` is not a header name")))?;
    // Changing these would change where a message ends.
    const FRAMING: [&str; 5] = ["content-length", "transfer-encoding", "connection", "te", "upgrade"];
    if FRAMING.contains(&name.as_str()) {
        return Err(FilterError(format!("`{text}` frames the message and cannot be changed by a filter")));
    }
    Ok(name)
}

fn value(text: &str) -> Result<HeaderValue, FilterError> {
    HeaderValue::from_str(text).map_err(|_| FilterError(format!("`{text}` is not a header value")))
}

/// A fallback, ready to be given.
#[derive(Clone, Debug)]
pub struct Fallback {
    status: StatusCode,
    headers: HeaderMap,
    body: bytes::Bytes,
}

impl Fallback {
    /// Checks and compiles what is written.
    ///
    /// # Errors
    /// [`FilterError`] for a status outside 200 to 599, a bad header, or both kinds of body.
    pub fn try_new(config: &FallbackConfig) -> Result<Self, FilterError> {
        let status = StatusCode::from_u16(config.status).ok().filter(|status| (200..600).contains(&status.as_u16()));
        let status = status.ok_or_else(|| FilterError(format!("status {} is not from 200 to 599", config.status)))?;
        let mut headers = HeaderMap::new();
        let (kind, body) = match (&config.json, &config.text) {
            (Some(_), Some(_)) => return Err(FilterError("give either `json` or `text`, not both".into())),
            (Some(json), None) => ("application/json", json.to_string()),
            (None, Some(text)) => ("text/plain; charset=utf-8", text.clone()),
            (None, None) => ("text/plain; charset=utf-8", String::new()),
        };
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
        for (field, text) in &config.headers {
            headers.insert(name(field)?, value(text)?);
        }
        Ok(Self { status, headers, body: body.into() })
    }

    /// The answer.
    pub fn response(&self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::whole(self.body.clone()));
        *response.status_mut() = self.status;
        response.headers_mut().clone_from(&self.headers);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_set_added_and_removed_in_order() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let filters = Filters::try_new(&[
            FilterConfig::AddHeader(map(&[("x-a", "2")])),
            FilterConfig::SetHeader(map(&[("x-b", "3")])),
            FilterConfig::RemoveHeader(vec!["x-c".into()]),
            FilterConfig::StripPrefix(2),
            FilterConfig::SetResponseHeader(map(&[("x-d", "4")])),
        ])
        .unwrap();
        let mut headers = HeaderMap::new();
        for name in ["x-a", "x-b", "x-c"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        filters.on_request(&mut headers);
        let all: Vec<_> = headers.get_all("x-a").iter().collect();
        assert_eq!(all, ["1", "2"]);
        assert_eq!(
            (&headers["x-b"], headers.contains_key("x-c"), filters.strip_prefix),
            (&HeaderValue::from(3), false, 2)
        );
    }

    #[test]
    fn what_would_break_a_message_is_refused() {
        for (name, value) in [("content-length", "3"), ("bad name", "x"), ("x", "a\r\nb"), ("", "x")] {
            let map = [(name.to_owned(), value.to_owned())].into();
            assert!(Filters::try_new(&[FilterConfig::SetHeader(map)]).is_err(), "{name}");
        }
        let fallback = |text: &str| Fallback::try_new(&serde_json::from_str(text).unwrap());
        assert!(fallback(r#"{"status": 99}"#).is_err());
        assert!(fallback(r#"{"json": {}, "text": ""}"#).is_err());
        assert_eq!(fallback(r#"{"json": {"a": 1}}"#).unwrap().response().status(), 503);
    }
}
