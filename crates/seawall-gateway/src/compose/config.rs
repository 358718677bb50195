//! A composition as it is written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use seawall_types::{Call, Period, ServiceName, Size};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A graph of calls that answers a request, instead of one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ComposeConfig {
    /// How long all of it may take; what is optional and not there by then is missing. A caller that is believed may give less.
    /// Default 10s.
    #[serde(default = "timeout")]
    pub timeout: Period,
    /// The request's headers that every part passes on, beside the trace. Default: none.
    #[serde(default)]
    pub pass: Vec<String>,
    /// The `cache-control` of an answer that is complete; one that is not has `no-store`. Default: none is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// The field of the answer that lists the parts which are missing or replaced; always there, empty when all is well. Default:
    /// none, and only the header `seawall-partial` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<String>,
    /// The largest body of a request, where a template uses it. Default 1 MiB.
    #[serde(default = "limit")]
    pub body: Size,
    /// The calls, at most 32. Those that need nothing of one another are made at the same time.
    pub parts: Vec<PartConfig>,
}

/// One call, and where its answer goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartConfig {
    /// Its name: letters, digits, `_` and `-`.
    pub name: String,
    /// The call: `GET order/orders/{id}?full={query.full}`.
    pub call: Call,
    /// Headers that it sends, from templates.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Headers of the request that it passes on, beside those of all parts.
    #[serde(default)]
    pub pass: Vec<String>,
    /// The body that it sends, JSON whose texts are templates. Default: none.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// Parts that have to have ended well before it begins, beside those that its templates name.
    #[serde(default)]
    pub needs: Vec<String>,
    /// What of the answer counts: `data.items`. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The fields that are kept, of each element where it is a list: `id`, `customer.name`. Default: all.
    #[serde(default)]
    pub pick: Vec<String>,
    /// The fields that are left out.
    #[serde(default)]
    pub omit: Vec<String>,
    /// Fields with other names, the old one on the left.
    #[serde(default)]
    pub rename: BTreeMap<String, String>,
    /// Where it goes in the answer: `order`, `order.payment`. Default: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Instead of `at`: the object that its fields go into; `.` is the whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<String>,
    /// Instead of `at`: the list that its elements are appended to, in the order of the parts. What is no list is one element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Instead of `at`: it only serves other parts. Default false.
    #[serde(default)]
    pub hidden: bool,
    /// Whether there is an answer without it. Default false, and true where there is a `default`.
    #[serde(default)]
    pub optional: bool,
    /// What stands for it when it fails, as if it had been its answer.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// The call that is made when it fails; what that answers is treated as its own answer would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<OtherConfig>,
    /// How long its call may take. Default: what the service's policy says. Never longer than what is left of the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Period>,
    /// The largest answer. Default 1 MiB.
    #[serde(default = "limit")]
    pub limit: Size,
}

/// The call that stands in for another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OtherConfig {
    /// The call.
    pub call: Call,
    /// Headers that it sends, from templates.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body that it sends. Default: none.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// How long it may take. Default: what the service's policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Period>,
}

impl ComposeConfig {
    /// The services that are called, and where below it they are named.
    pub fn services(&self) -> impl Iterator<Item = (String, &ServiceName)> {
        self.parts.iter().enumerate().flat_map(|(at, part)| {
            let own = (format!("parts.{at}.call"), &part.call.service);
            let other = part.fallback.as_ref().map(|other| (format!("parts.{at}.fallback.call"), &other.call.service));
            std::iter::once(own).chain(other)
        })
    }
}

const fn timeout() -> Period {
    Period::secs(10)
}

const fn limit() -> Size {
    Size::bytes(1 << 20)
}

/// `null` is a value, too.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}
