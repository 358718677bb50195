//! Whom a URL means: a service by its name, and the path that the service sees.
//!
//! A URL library would read the service `7` as the address 0.0.0.7, so the few rules are here; what remains is checked by
//! `http`.

use std::net::IpAddr;

use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use seawall_types::ServiceName;

use super::Error;

/// What may not stand in a path or query as it is. `%` stays: what is encoded already is left alone.
const ENCODED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// A service and a path.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) service: ServiceName,
    pub(crate) path: PathAndQuery,
}

impl Target {
    /// Reads `http://service/path` or `service/path`.
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let refused =
            |why: String| Error::Request { target: url.chars().take(200).collect(), detail: why, sent: false };
        let scheme = url.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?', '#']));
        let rest = match scheme {
            None => url,
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => {
                return Err(refused(format!("services are called by `http://`, not `{scheme}://`")));
            }
        };
        let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if host.contains(['[', ':', '@']) || host.parse::<IpAddr>().is_ok() {
            let why = format!(
                "`{host}` is an address; write the name of a service, whose addresses come from the \
                 registry or from the builder's `service`"
            );
            return Err(refused(why));
        }
        let service = ServiceName::try_new(host).map_err(|error| refused(error.to_string()))?;
        if path.contains('#') {
            return Err(refused("a fragment is nothing that a service sees; write `#` as `%23`".into()));
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        let path = format!("{slash}{}", utf8_percent_encode(path, ENCODED));
        let path = PathAndQuery::try_from(path).map_err(|error| refused(format!("its path is not valid: {error}")))?;
        Ok(Self { service, path })
    }

    /// Appends pairs that are encoded already.
    pub(crate) fn add_query(&mut self, pairs: &str) -> Result<(), String> {
        if pairs.is_empty() {
            return Ok(());
        }
        let between = match self.path.query() {
            None => "?",
            Some("") => "",
            Some(_) => "&",
        };
        let path = format!("{}{between}{pairs}", self.path);
        self.path = path.try_into().map_err(|error| format!("the query is not valid: {error}"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_service() {
        for (url, service, path) in [
            ("http://payment/charges/7", "payment", "/charges/7"),
            ("payment/charges/7", "payment", "/charges/7"),
            ("HTTP://payment", "payment", "/"),
            ("payment", "payment", "/"),
            ("payment?id=7", "payment", "/?id=7"),
            ("7/x", "7", "/x"),
            ("pay-ment_2.eu/a?to=http://x/", "pay-ment_2.eu", "/a?to=http://x/"),
            ("payment/a b/ü?q={x}", "payment", "/a%20b/%C3%BC?q=%7Bx%7D"),
            ("payment/a%20b", "payment", "/a%20b"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.service.as_str(), target.path.as_str()), (service, path), "{url}");
        }
        for (url, says) in [
            ("https://payment/", "not `https://`"),
            ("http://127.0.0.1/", "is an address"),
            ("http://127.0.0.1:9000/", "is an address"),
            ("http://[::1]:9000/", "is an address"),
            ("::1", "is an address"),
            ("http://payment:9000/", "is an address"),
            ("http://me@payment/", "is an address"),
            ("http:///x", "not a valid name"),
            ("/x", "not a valid name"),
            ("http://Payment/x", "not a valid name"),
            ("payment/a#b", "%23"),
        ] {
            let error = Target::parse(url).unwrap_err();
            assert!(error.is_unsent() && error.to_string().contains(says), "{url}: {error}");
        }
    }

    #[test]
    fn queries_are_appended() {
        let mut target = Target::parse("order/list").unwrap();
        for (pairs, path) in [("", "/list"), ("a=1", "/list?a=1"), ("b=2", "/list?a=1&b=2")] {
            target.add_query(pairs).unwrap();
            assert_eq!(target.path.as_str(), path);
        }
    }
}
