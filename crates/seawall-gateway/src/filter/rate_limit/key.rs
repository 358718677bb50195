//! By what requests are told apart.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::HeaderName;
use schemars::JsonSchema;
use seawall_proxy::filter::Next;
use serde::{Deserialize, Serialize};

use super::super::{FilterError, name};

/// A part of the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyConfig {
    /// The client's address; of IPv6 the first bits, `ipv6_prefix`.
    Client,
    /// A request header.
    Header(String),
    /// A request header in which a filter before passes on what it knows of the caller. Written apart from `header` to say
    /// that the client cannot choose it.
    Claim(String),
    /// The route.
    Route,
    /// The service.
    Service,
}

#[derive(Debug)]
pub(super) struct Key {
    parts: Vec<Part>,
    ipv6_mask: u128,
}

#[derive(Debug)]
enum Part {
    Client,
    Header(HeaderName),
    Route,
    Service,
}

impl Key {
    pub(super) fn try_new(parts: &[KeyConfig], ipv6_prefix: u8) -> Result<Self, FilterError> {
        if parts.is_empty() {
            return Err(FilterError(
                "`key` is empty: write `[route]` to limit all requests of the route together".into(),
            ));
        }
        if !(1..=128).contains(&ipv6_prefix) {
            return Err(FilterError(format!("`ipv6_prefix` is {ipv6_prefix}, allowed is 1 to 128")));
        }
        let part = |part: &KeyConfig| {
            Ok(match part {
                KeyConfig::Client => Part::Client,
                KeyConfig::Header(field) | KeyConfig::Claim(field) => Part::Header(name(field)?),
                KeyConfig::Route => Part::Route,
                KeyConfig::Service => Part::Service,
            })
        };
        let parts = parts.iter().map(part).collect::<Result<_, FilterError>>()?;
        Ok(Self { parts, ipv6_mask: u128::MAX << (128 - u32::from(ipv6_prefix)) })
    }

    /// The key of a request; or the part that it does not have.
    pub(super) fn of(&self, headers: &HeaderMap, next: &Next<'_>) -> Result<Vec<u8>, &str> {
        let mut key = Vec::with_capacity(48);
        // With its length before it, so that no two lists of parts are the same key.
        let mut push = |bytes: &[u8]| {
            key.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            key.extend_from_slice(bytes);
        };
        for part in &self.parts {
            match part {
                Part::Client => match next.client().map(|client| client.to_canonical()) {
                    Some(IpAddr::V4(client)) => push(&client.octets()),
                    Some(IpAddr::V6(client)) => push(&(client.to_bits() & self.ipv6_mask).to_be_bytes()),
                    None => return Err("client address"),
                },
                Part::Header(name) => {
                    let mut values = headers.get_all(name).iter().filter(|value| !value.is_empty()).peekable();
                    if values.peek().is_none() {
                        return Err(name.as_str());
                    }
                    values.for_each(|value| push(value.as_bytes()));
                    push(&[]);
                }
                Part::Route => push(next.route().as_bytes()),
                Part::Service => push(next.service().as_bytes()),
            }
        }
        Ok(key)
    }
}
