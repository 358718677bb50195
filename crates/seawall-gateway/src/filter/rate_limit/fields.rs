//! What a client is told of its limits, in the answer's headers.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::counter::Decision;

/// In which headers a client is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeadersConfig {
    /// `RateLimit` and `RateLimit-Policy`, of the IETF's draft: a list, of which every limit is an item.
    #[default]
    Standard,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining`, `X-RateLimit-Reset` (in seconds from now): those of the limit that has
    /// the least left.
    Legacy,
    /// All of them.
    Both,
    /// None, but for `Retry-After`.
    None,
}

/// The headers of one limit.
#[derive(Debug)]
pub(super) struct Fields {
    kind: HeadersConfig,
    name: String,
    policy: String,
    limit: u64,
}

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_LEFT: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

impl Fields {
    /// `parameters` are those of the policy after its quota: `;w=60`.
    pub(super) fn new(kind: HeadersConfig, name: &str, limit: u64, parameters: &str) -> Self {
        Self { kind, name: name.to_owned(), policy: format!("\"{name}\";q={limit}{parameters}"), limit }
    }

    /// Says it beside what other limits have said.
    pub(super) fn tell(&self, headers: &mut HeaderMap, decision: &Decision, resets: bool) {
        let (left, reset) = (decision.remaining, seconds(decision.reset));
        if matches!(self.kind, HeadersConfig::Standard | HeadersConfig::Both) {
            let reset = if resets { format!(";t={reset}") } else { String::new() };
            before(headers, POLICY, self.policy.clone());
            before(headers, LEFT, format!("\"{}\";r={left}{reset}", self.name));
        }
        if matches!(self.kind, HeadersConfig::Legacy | HeadersConfig::Both) {
            let said = headers.get(&X_LEFT).and_then(|left| left.to_str().ok()?.trim().parse::<u64>().ok());
            if said.is_none_or(|said| left < said) {
                headers.insert(X_LIMIT, self.limit.into());
                headers.insert(X_LEFT, left.into());
                headers.remove(&X_RESET);
                if resets {
                    headers.insert(X_RESET, reset.into());
                }
            }
        }
    }
}

/// Puts an item before those of a list: answers pass the last filter first.
fn before(headers: &mut HeaderMap, name: HeaderName, mut item: String) {
    for other in headers.get_all(&name).iter().filter_map(|other| other.to_str().ok()) {
        item = item + ", " + other;
    }
    if let Ok(item) = HeaderValue::try_from(item) {
        headers.insert(name, item);
    }
}

/// Whole seconds, and rather one too many.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_limits_stand_beside_each_other() {
        let decision =
            |remaining| Decision { pass: true, remaining, reset: Duration::from_millis(1500), retry_after: None };
        let mut headers = HeaderMap::new();
        Fields::new(HeadersConfig::Both, "day", 1000, ";w=86400").tell(&mut headers, &decision(7), true);
        Fields::new(HeadersConfig::Both, "second", 10, ";w=1").tell(&mut headers, &decision(9), true);
        Fields::new(HeadersConfig::Standard, "at-once", 5, ";qu=\"concurrent-requests\"").tell(
            &mut headers,
            &decision(4),
            false,
        );
        assert_eq!(headers[LEFT], "\"at-once\";r=4, \"second\";r=9;t=2, \"day\";r=7;t=2");
        assert_eq!(
            headers[POLICY],
            "\"at-once\";q=5;qu=\"concurrent-requests\", \"second\";q=10;w=1, \"day\";q=1000;w=86400"
        );
        assert_eq!((&headers[X_LIMIT], &headers[X_LEFT], &headers[X_RESET]), (&1000.into(), &7.into(), &2.into()));
    }
}
