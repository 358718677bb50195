//! Where clients may come from.

use std::net::IpAddr;

use http::Request;
use ipnet::IpNet;
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use serde::{Deserialize, Serialize};

use super::FilterError;
use crate::auth::denied::Denied;
use crate::matcher::network;

/// Where clients may come from: addresses, or networks such as `10.0.0.0/8`. Behind trusted hops a client is whom the farthest of them
/// has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IpConfig {
    /// From here, and nowhere else. Default: from everywhere.
    pub allow: Vec<String>,
    /// Not from here, even if that is allowed.
    pub deny: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Ip {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

impl Ip {
    pub(crate) fn try_new(config: &IpConfig) -> Result<Self, FilterError> {
        if config.allow.is_empty() && config.deny.is_empty() {
            return Err(FilterError("ip: give `allow`, `deny`, or both".to_owned()));
        }
        let networks = |texts: &[String]| {
            let networks = texts.iter().map(|text| network(text)).collect::<Result<_, String>>();
            networks.map_err(|why| FilterError(format!("ip: {why}")))
        };
        Ok(Self { allow: networks(&config.allow)?, deny: networks(&config.deny)? })
    }

    fn allows(&self, client: Option<IpAddr>) -> bool {
        let within = |networks: &[IpNet], client: &IpAddr| networks.iter().any(|network| network.contains(client));
        client.is_some_and(|client| {
            !within(&self.deny, &client) && (self.allow.is_empty() || within(&self.allow, &client))
        })
    }
}

impl Filter for Ip {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            match self.allows(next.client()) {
                true => next.run(request).await,
                false => Denied::forbidden("not from this address").response("ip", next.route()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_denied_is_denied_whatever_is_allowed() {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let ip = |allow: &[&str], deny: &[&str]| Ip::try_new(&IpConfig { allow: list(allow), deny: list(deny) });
        for (allow, deny, client, passes) in [
            (&["10.0.0.0/8"][..], &["10.1.0.0/16"][..], "10.2.0.1", true),
            (&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.0.1", false),
            (&["10.0.0.0/8"], &[], "11.0.0.1", false),
            (&[], &["::1"], "::1", false),
            (&[], &["::1"], "::2", true),
            (&["2001:db8::/32"], &[], "10.0.0.1", false),
        ] {
            assert_eq!(ip(allow, deny).unwrap().allows(client.parse().ok()), passes, "{allow:?} {deny:?} {client}");
        }
        assert!(!ip(&["0.0.0.0/0"], &[]).unwrap().allows(None), "who is not known may not");
        assert!(ip(&[], &[]).is_err() && ip(&["10.0.0.0/40"], &[]).is_err());
    }
}
