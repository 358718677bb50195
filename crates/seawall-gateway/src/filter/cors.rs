//! Which pages of other origins a browser lets read the answers: the CORS protocol of the Fetch standard.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use http::{Method, Request, Response, StatusCode};
use regex::Regex;
use schemars::JsonSchema;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_proxy::{RequestBody, ResponseBody};
use seawall_types::Period;
use serde::{Deserialize, Serialize};

use super::{FilterError, refused, vary};
use crate::config::ValueConfig;

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// What pages of other origins may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    /// The origins: `https://shop.example`, `https://*.shop.example` for every name below it, `{ regex: ... }` for what fits wholly,
    /// `*` for all of them, `null` for pages without one.
    pub origins: Vec<ValueConfig>,
    /// The methods; `*` is all. Default GET, HEAD and POST.
    #[serde(default = "methods")]
    pub methods: Vec<String>,
    /// The request headers beside those that are always allowed; `*` is all. `content-type: application/json` has to be. Default none.
    #[serde(default)]
    pub headers: Vec<String>,
    /// The response headers that the page may read beside those that it always may; `*` is all. Default none.
    #[serde(default)]
    pub expose: Vec<String>,
    /// Whether cookies and the like are sent; not with the origin `*`. Default false.
    #[serde(default)]
    pub credentials: bool,
    /// How long a browser remembers what it may do. Default 10m; browsers have limits of their own.
    #[serde(default = "max_age")]
    pub max_age: Period,
    /// Whether public pages may call a gateway in a private network. Default false.
    #[serde(default)]
    pub private_network: bool,
}

fn methods() -> Vec<String> {
    ["GET", "HEAD", "POST"].map(str::to_owned).into()
}

const fn max_age() -> Period {
    Period::secs(600)
}

#[derive(Debug)]
pub(crate) struct Cors {
    origins: Vec<Origin>,
    methods: Allowed,
    headers: Allowed,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
    private_network: bool,
}

#[derive(Debug)]
enum Origin {
    Any,
    Is(String),
    /// What stands before and behind the name's first label.
    Below(String, String),
    Fits(Regex),
}

#[derive(Debug)]
enum Allowed {
    Any,
    These(Vec<String>),
}

impl Allowed {
    fn new(list: impl Iterator<Item = String>) -> Self {
        let list: Vec<_> = list.collect();
        if list.iter().any(|one| one == "*") { Self::Any } else { Self::These(list) }
    }

    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(list) => list.iter().any(|one| one == wanted),
        }
    }
}

impl Origin {
    fn try_new(config: &ValueConfig) -> Result<Self, FilterError> {
        let text = match config {
            ValueConfig::Fits { regex } => return crate::matcher::whole(regex).map(Self::Fits).map_err(FilterError),
            ValueConfig::Is(text) => text,
        };
        let wrong = || {
            let form = "https://shop.example, https://shop.example:8443 or https://*.shop.example";
            FilterError(format!("`{text}` is no origin such as {form}"))
        };
        match text.as_str() {
            "*" => return Ok(Self::Any),
            "null" => return Ok(Self::Is(text.clone())),
            _ => {}
        }
        let (scheme, host) = text.split_once("://").ok_or_else(wrong)?;
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => (host, format!(":{port}")),
            _ => (host, String::new()),
        };
        let name = host.strip_prefix("*.").unwrap_or(host);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'[' | b']' | b':');
        let scheme_is_one =
            scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
        if name.is_empty() || scheme.is_empty() || !scheme_is_one || !name.bytes().all(plain) {
            return Err(wrong());
        }
        let (scheme, name) = (scheme.to_ascii_lowercase(), name.to_ascii_lowercase());
        Ok(match name.len() < host.len() {
            true => Self::Below(format!("{scheme}://"), format!(".{name}{port}")),
            false => Self::Is(format!("{scheme}://{name}{port}")),
        })
    }

    fn allows(&self, given: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Is(own) => own == given,
            Self::Fits(regex) => regex.is_match(given),
            Self::Below(scheme, name) => {
                let host = given.strip_prefix(scheme.as_str()).and_then(|host| host.strip_suffix(name.as_str()));
                // What stands for the star is a name: no port, no user, no further scheme.
                let label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
                host.is_some_and(|host| !host.is_empty() && host.bytes().all(label))
            }
        }
    }
}

impl Cors {
    pub(crate) fn try_new(config: &CorsConfig) -> Result<Self, FilterError> {
        let error = |text: &str| Err(FilterError(text.to_owned()));
        if config.origins.is_empty() {
            return error("`origins` is empty: name those that may read the answers");
        }
        let origins: Vec<_> = config.origins.iter().map(Origin::try_new).collect::<Result<_, _>>()?;
        if config.credentials && origins.iter().any(|origin| matches!(origin, Origin::Any)) {
            return error(
                "with `credentials` the origins have to be named: `*` would let every page act for its visitor",
            );
        }
        if config.credentials && config.expose.iter().any(|name| name == "*") {
            return error("with `credentials` browsers take `*` in `expose` for a name: name the headers");
        }
        for method in &config.methods {
            let known = method == "*" || (!method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase()));
            if !known {
                return Err(FilterError(format!("`{method}` is no method such as GET")));
            }
        }
        for name in config.headers.iter().chain(&config.expose).filter(|name| *name != "*") {
            HeaderName::try_from(name.as_str())
                .map_err(|_| FilterError(format!("`{name}` is not the name of a header")))?;
        }
        let expose = (!config.expose.is_empty()).then(|| list(&config.expose));
        Ok(Self {
            origins,
            methods: Allowed::new(config.methods.iter().cloned()),
            headers: Allowed::new(config.headers.iter().map(|name| name.to_ascii_lowercase())),
            expose,
            credentials: config.credentials,
            max_age: config.max_age.get().as_secs().into(),
            private_network: config.private_network,
        })
    }

    /// Whether every origin gets the same answer.
    fn is_open(&self) -> bool {
        !self.credentials && self.origins.iter().any(|origin| matches!(origin, Origin::Any))
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        origin.to_str().is_ok_and(|given| self.origins.iter().any(|origin| origin.allows(given)))
    }

    /// What every answer to this origin says.
    fn mark(&self, headers: &mut HeaderMap, origin: &HeaderValue) {
        let named = if self.is_open() { HeaderValue::from_static("*") } else { origin.clone() };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, named);
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    /// The answer to a browser that asks before it sends; or why it must not send.
    fn preflight(&self, asked: &HeaderMap, origin: &HeaderValue) -> Result<Response<ResponseBody>, String> {
        if !self.allows(origin) {
            return Err(format!("the origin {} is not allowed", String::from_utf8_lossy(origin.as_bytes())));
        }
        let method =
            asked.get(ACCESS_CONTROL_REQUEST_METHOD).and_then(|method| method.to_str().ok()).unwrap_or_default();
        if !self.methods.has(method) {
            return Err(format!("the method {method} is not allowed to other origins"));
        }
        let wanted = asked.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
        let wanted: Vec<_> = wanted
            .flat_map(|list| {
                String::from_utf8_lossy(list.as_bytes())
                    .split(',')
                    .map(|name| name.trim().to_lowercase())
                    .collect::<Vec<_>>()
            })
            .filter(|name| !name.is_empty())
            .collect();
        if let Some(name) =
            wanted.iter().find(|name| !self.headers.has(name) || HeaderName::try_from(name.as_str()).is_err())
        {
            return Err(format!("the header {name} is not allowed to other origins"));
        }
        let mut response = Response::new(ResponseBody::whole(""));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        self.mark(headers, origin);
        // Where all are allowed what is wanted is named: a star is none in a request with credentials.
        let method = match &self.methods {
            Allowed::Any => list(&[method.to_owned()]),
            Allowed::These(methods) => list(methods),
        };
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method);
        let named = match &self.headers {
            Allowed::Any => &wanted,
            Allowed::These(names) => names,
        };
        if !named.is_empty() {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, list(named));
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        if self.private_network && asked.get(REQUEST_PRIVATE_NETWORK).is_some_and(|wanted| wanted == "true") {
            headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
        }
        Ok(response)
    }
}

fn list(names: &[String]) -> HeaderValue {
    HeaderValue::try_from(names.join(", ")).unwrap_or(HeaderValue::from_static(""))
}

/// Whether a browser asks what it may send.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS && headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Filter for Cors {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let origin = request.headers().get(ORIGIN).cloned();
            if let Some(origin) = &origin
                && is_preflight(request.method(), request.headers())
            {
                let answer = self.preflight(request.headers(), origin);
                let mut response = answer.unwrap_or_else(|why| refused(StatusCode::FORBIDDEN, &why));
                // A cache must not give one page's answer to another.
                vary(response.headers_mut(), "origin, access-control-request-method, access-control-request-headers");
                return response;
            }
            let mut response = next.run(request).await;
            let headers = response.headers_mut();
            // The service's own word would stand beside ours, and browsers take two for none.
            for name in [
                ACCESS_CONTROL_ALLOW_ORIGIN,
                ACCESS_CONTROL_ALLOW_CREDENTIALS,
                ACCESS_CONTROL_EXPOSE_HEADERS,
                ACCESS_CONTROL_ALLOW_METHODS,
                ACCESS_CONTROL_ALLOW_HEADERS,
                ACCESS_CONTROL_MAX_AGE,
            ] {
                headers.remove(name);
            }
            if !self.is_open() {
                vary(headers, "origin");
            }
            if let Some(origin) = origin.filter(|origin| self.allows(origin)) {
                self.mark(headers, &origin);
                if let Some(expose) = &self.expose {
                    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
                }
            }
            response
        })
    }
}

#[cfg(test)]
mod tests {
    use http::header::VARY;

    use super::*;

    fn cors(json: &str) -> Result<Cors, String> {
        Cors::try_new(&serde_json::from_str(json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn origins_are_what_they_say_and_no_more() {
        let cors = cors(
            r#"{"origins": ["https://A.example", "https://*.b.example:8443", {"regex": "https://c[0-9]+\\.example"}, "null"]}"#,
        )
        .unwrap();
        for (origin, allowed) in [
            ("https://a.example", true),
            ("http://a.example", false),
            ("https://a.example:444", false),
            ("https://a.example.evil", false),
            ("https://x.b.example:8443", true),
            ("https://x.y.b.example:8443", true),
            ("https://b.example:8443", false),
            ("https://x.b.example", false),
            ("https://evil.example/.b.example:8443", false),
            ("https://evil@x.b.example:8443", false),
            ("https://c12.example", true),
            ("https://c12xexample", false),
            ("https://c1.example.evil", false),
            ("null", true),
        ] {
            assert_eq!(cors.allows(&origin.parse().unwrap()), allowed, "{origin}");
        }
    }

    #[test]
    fn a_preflight_is_answered_or_refused() {
        let named = cors(
            r#"{"origins": ["https://a.b"], "methods": ["GET", "PUT"], "headers": ["X-A", "content-type"], "credentials": true, "max_age": "1h"}"#,
        )
        .unwrap();
        let open = cors(r#"{"origins": ["*"], "methods": ["*"], "headers": ["*"], "private_network": true}"#).unwrap();
        let asked = |method: &str, names: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCESS_CONTROL_REQUEST_METHOD, method.parse().unwrap());
            headers.insert(ACCESS_CONTROL_REQUEST_HEADERS, names.parse().unwrap());
            headers.insert(REQUEST_PRIVATE_NETWORK, HeaderValue::from_static("true"));
            headers
        };
        let answer = |cors: &Cors, method, names, origin: &str| {
            let response = cors.preflight(&asked(method, names), &origin.parse().unwrap())?;
            let text =
                |name: &str| response.headers().get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
            let fields = [
                "allow-origin",
                "allow-methods",
                "allow-headers",
                "allow-credentials",
                "max-age",
                "allow-private-network",
            ];
            Ok::<_, String>(fields.map(|field| text(&format!("access-control-{field}"))).join(" | "))
        };
        let given = "https://a.b | GET, PUT | x-a, content-type | true | 3600 | -";
        assert_eq!(answer(&named, "PUT", "X-A,content-type", "https://a.b").unwrap(), given);
        assert_eq!(answer(&open, "PURGE", "x-b", "http://x").unwrap(), "* | PURGE | x-b | - | 600 | true");
        for (method, names, origin, says) in [
            ("DELETE", "", "https://a.b", "the method DELETE"),
            ("PUT", "x-b", "https://a.b", "the header x-b"),
            ("PUT", "", "https://c.d", "the origin https://c.d"),
        ] {
            let why = answer(&named, method, names, origin).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn what_browsers_would_not_take_is_a_mistake() {
        for (json, says) in [
            (r#"{"origins": []}"#, "is empty"),
            (r#"{"origins": ["*"], "credentials": true}"#, "have to be named"),
            (r#"{"origins": ["https://a.b"], "credentials": true, "expose": ["*"]}"#, "name the headers"),
            (r#"{"origins": ["a.b"]}"#, "is no origin"),
            (r#"{"origins": ["https://a.b/"]}"#, "is no origin"),
            (r#"{"origins": ["https://a.*.b"]}"#, "is no origin"),
            (r#"{"origins": [{"regex": "("}]}"#, "no regular expression"),
            (r#"{"origins": ["*"], "methods": ["get"]}"#, "no method"),
            (r#"{"origins": ["*"], "headers": ["a b"]}"#, "not the name"),
        ] {
            let error = cors(json).unwrap_err();
            assert!(error.contains(says), "{json}: {error}");
        }
    }

    #[test]
    fn vary_names_each_once() {
        let mut headers = HeaderMap::new();
        headers.insert(VARY, HeaderValue::from_static("Origin, accept"));
        vary(&mut headers, "origin, accept-encoding");
        vary(&mut headers, "accept-encoding");
        assert_eq!(headers.get_all(VARY).iter().collect::<Vec<_>>(), ["Origin, accept", "accept-encoding"]);
    }
}
