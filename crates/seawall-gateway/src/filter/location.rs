//! Where an answer sends its client: not to the service behind the gateway, which nobody outside can reach.

use http::Request;
use http::header::{HeaderName, HeaderValue};
use http::uri::{Authority, Uri};
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use serde::{Deserialize, Serialize};

use super::{FilterError, host, name};

/// What becomes of the place that an answer sends its client to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocationConfig {
    /// The host that stands there instead. Default: the one that the client asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Which hosts are replaced, without port; `*` is all. Default: the service's name, `localhost`, and all addresses.
    #[serde(default)]
    pub from: Vec<String>,
    /// Whether a version at the front of the path (`/v2`) is taken out: `never`, `always`, or `as_in_request`, where the client's own
    /// path does not begin with one. Default as_in_request.
    #[serde(default)]
    pub strip_version: StripVersion,
    /// In which header. Default location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// Whether a version is taken out of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StripVersion {
    /// It stays.
    Never,
    /// Where the client's own path does not begin with one.
    #[default]
    AsInRequest,
    /// It goes.
    Always,
}

#[derive(Debug)]
pub(crate) struct Location {
    host: Option<Authority>,
    from: Vec<String>,
    strip: StripVersion,
    header: HeaderName,
}

impl Location {
    pub(crate) fn try_new(config: &LocationConfig) -> Result<Self, FilterError> {
        let wrong = |text: &String| FilterError(format!("`{text}` is no host such as shop.example"));
        let host = config.host.as_ref().map(|text| text.parse().map_err(|_| wrong(text))).transpose()?;
        let header = config.header.as_ref().map_or(Ok(http::header::LOCATION), |text| name(text))?;
        let from = config.from.iter().map(|text| text.to_ascii_lowercase()).collect();
        Ok(Self { host, from, strip: config.strip_version, header })
    }

    /// What stands there instead; nothing where it stays as it is.
    fn of(&self, given: &str, asked: &Asked, service: &str) -> Option<String> {
        let uri: Uri = given.parse().ok()?;
        let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
        if !matches!(scheme, "http" | "https") || !self.is_ours(authority.host(), service) {
            return None;
        }
        let host = self.host.as_ref().map_or(asked.host.as_deref()?, Authority::as_str);
        let scheme = asked.scheme.as_deref().unwrap_or(scheme);
        let path = uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
        let strip = match self.strip {
            StripVersion::Never => false,
            StripVersion::Always => true,
            StripVersion::AsInRequest => !asked.versioned,
        };
        let path = if strip { without_version(path).unwrap_or(path) } else { path };
        // What a URI's own type leaves out.
        let fragment = given.split_once('#').map(|(_, fragment)| format!("#{fragment}")).unwrap_or_default();
        Some(format!("{scheme}://{host}{path}{fragment}"))
    }

    fn is_ours(&self, host: &str, service: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let address = || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        match &self.from[..] {
            [] => host == service || host == "localhost" || address(),
            from => from.iter().any(|own| own == "*" || *own == host),
        }
    }
}

/// The path behind its version; nothing where it has none.
fn without_version(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let rest = &rest[digits..];
    (digits > 0 && (rest.is_empty() || rest.starts_with(['/', '?']))).then_some(rest)
}

/// What the client asked for.
struct Asked {
    host: Option<String>,
    scheme: Option<String>,
    versioned: bool,
}

impl Filter for Location {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
            let scheme = request.headers().get("x-forwarded-proto").and_then(text);
            let asked = Asked {
                host: host::asked(&request).as_ref().and_then(text),
                scheme: scheme.filter(|scheme| matches!(&**scheme, "http" | "https")),
                versioned: without_version(request.uri().path()).is_some(),
            };
            let mut response = next.run(request).await;
            let given = response.headers().get(&self.header).and_then(|given| given.to_str().ok());
            let made = given.and_then(|given| self.of(given, &asked, next.service()));
            if let Some(made) = made.and_then(|made| HeaderValue::try_from(made).ok()) {
                response.headers_mut().insert(&self.header, made);
            }
            response
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_outside_can_reach_is_replaced() {
        let asked = |versioned| Asked { host: Some("shop.example".into()), scheme: Some("https".into()), versioned };
        let location = |json: &str| Location::try_new(&serde_json::from_str(json).unwrap()).unwrap();
        for (config, versioned, given, made) in [
            ("{}", false, "http://order/v2/some/7?a=b#c", Some("https://shop.example/some/7?a=b#c")),
            ("{}", true, "http://order:8080/v2/some", Some("https://shop.example/v2/some")),
            ("{}", false, "http://127.0.0.1:1/x", Some("https://shop.example/x")),
            ("{}", false, "http://[::1]:1/v10", Some("https://shop.example")),
            ("{}", false, "/v2/x", None),
            ("{}", false, "https://payments.example/x", None),
            ("{}", false, "ftp://order/x", None),
            (r#"{"from": ["*"]}"#, false, "https://payments.example/vx", Some("https://shop.example/vx")),
            (r#"{"host": "a.b:9", "strip_version": "always"}"#, true, "http://order/v2/x", Some("https://a.b:9/x")),
            (r#"{"strip_version": "never"}"#, false, "http://order/v2/x", Some("https://shop.example/v2/x")),
        ] {
            assert_eq!(location(config).of(given, &asked(versioned), "order").as_deref(), made, "{config} {given}");
        }
        assert!(Location::try_new(&LocationConfig { host: Some("a b".into()), ..LocationConfig::default() }).is_err());
    }
}
