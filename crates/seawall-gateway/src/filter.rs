//! What is written between a route and its service, and the steps that it becomes.

mod affinity;
mod api_key;
mod authorize;
mod basic;
mod compress;
mod cors;
mod decompress;
mod external_auth;
mod fault;
mod hmac;
mod host;
mod ip;
mod json;
mod jwt;
mod location;
mod mirror;
mod oidc;
mod request_id;
mod response_header;
mod service;
mod size;
mod validate;
mod whole;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Response, StatusCode, Uri};
use schemars::JsonSchema;
use seawall_proxy::ResponseBody;
use seawall_proxy::filter::{Filter, Fixed, HeaderOp, Step};
use seawall_types::ServiceName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

pub use self::affinity::{AffinityConfig, AffinityCookie};
pub use self::api_key::{ApiKeyConfig, ConsumerConfig};
pub use self::authorize::{ConditionConfig, RuleConfig};
pub use self::basic::{BasicConfig, UserConfig};
pub use self::compress::{Coding, CompressConfig};
pub use self::cors::CorsConfig;
pub(crate) use self::cors::is_preflight;
pub use self::decompress::DecompressConfig;
pub use self::external_auth::{ExternalAuthConfig, OnFailure};
pub use self::fault::{AbortConfig, DelayConfig, FaultConfig};
pub use self::hmac::{HmacConfig, SharedConfig};
use self::host::Host;
pub use self::ip::IpConfig;
pub use self::json::{JsonChange, JsonConfig};
pub use self::jwt::JwtConfig;
pub use self::location::{LocationConfig, StripVersion};
pub use self::mirror::MirrorConfig;
pub use self::oidc::{OidcConfig, Relay};
pub use self::request_id::RequestIdConfig;
use self::response_header::Head;
pub use self::response_header::{DedupeConfig, Keep, RewriteHeaderConfig};
use self::service::Chooser;
pub use self::service::ServiceConfig;
pub use self::size::SizeConfig;
pub use self::validate::{BodyConfig, ParameterConfig, Place, ValidateConfig};
use crate::path::Pattern;
pub use crate::target::RewriteQueryConfig;
use crate::target::{Target, Template};

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
    /// Sets request headers that are not there.
    DefaultHeader(BTreeMap<String, String>),
    /// Gives the request the header on the right with the values of the one on the left, if that is there.
    CopyHeader(BTreeMap<String, String>),
    /// Sets response headers that are not there, those that keep browsers from harm: which, and to what, may be said; nothing but
    /// `~` or an empty text leaves one out.
    SecurityHeaders(BTreeMap<String, String>),
    /// Puts segments before the path: `/v1`.
    PrefixPath(String),
    /// Replaces the path: `/orders/{id}`, with what the route's pattern has captured.
    SetPath(String),
    /// Replaces what a regular expression finds in the path.
    RewritePath(RewriteConfig),
    /// Sets parameters of the query, replacing what is there.
    SetQuery(BTreeMap<String, String>),
    /// Adds parameters beside those that are there.
    AddQuery(BTreeMap<String, String>),
    /// Removes parameters.
    RemoveQuery(Vec<String>),
    /// Replaces what a regular expression finds in the values of a parameter.
    RewriteQuery(RewriteQueryConfig),
    /// The `Host` that the service is called by, instead of its own name.
    SetHost(String),
    /// Whether the service is called by the `Host` that the client asked for.
    PreserveHost(bool),
    /// Replaces what a regular expression finds in the values of a response header.
    RewriteResponseHeader(RewriteHeaderConfig),
    /// Of several values of a response header, keeps the first, the last, or each once.
    DedupeResponseHeader(DedupeConfig),
    /// Replaces the service's host, where an answer sends the client there, by the one that the client knows.
    RewriteLocation(LocationConfig),
    /// The status of every answer, whatever the service's is.
    SetStatus(u16),
    /// Which pages of other origins may read the answers, by the CORS protocol of the Fetch standard; answers its preflights.
    Cors(CorsConfig),
    /// Compresses the answer for clients that take it.
    Compress(CompressConfig),
    /// Decompresses the request's body for services that do not.
    Decompress(DecompressConfig),
    /// Lets pass what a document allows.
    Validate(Box<ValidateConfig>),
    /// Changes bodies of JSON.
    Json(Box<JsonConfig>),
    /// Holds requests up, and answers some as if something had gone wrong.
    Fault(FaultConfig),
    /// Sends copies of requests to another service.
    Mirror(MirrorConfig),
    /// Lets the requests of a client go to the same endpoint.
    Affinity(AffinityConfig),
    /// How large a request may be.
    RequestSize(SizeConfig),
    /// Which of several services a request goes to, by its path or a header.
    ToService(ServiceConfig),
    /// Names each request in a header, for the service and for the client.
    RequestId(RequestIdConfig),
    /// Lets pass who has a signed token, a JSON Web Token.
    Jwt(Box<JwtConfig>),
    /// Lets pass who has a key, as programs do.
    ApiKey(ApiKeyConfig),
    /// Lets pass who has a name and its password.
    Basic(BasicConfig),
    /// Lets pass what is signed with a secret that both sides have.
    Hmac(HmacConfig),
    /// Lets pass who comes from where it is allowed.
    Ip(IpConfig),
    /// Lets pass what another service allows.
    ExternalAuth(ExternalAuthConfig),
    /// Lets browsers log in at an OpenID provider.
    Oidc(Box<OidcConfig>),
    /// Lets pass what the first of these rules allows that applies; where none does, nothing.
    Authorize(Vec<RuleConfig>),
    /// Sends the client elsewhere. Nothing else is asked.
    Redirect(RedirectConfig),
    /// Answers by itself. Nothing else is asked.
    Respond(FallbackConfig),
}

/// Where a client is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedirectConfig {
    /// `https://shop.example{path}{query}`: with `{path}`, `{query}` (its `?` included) and what the pattern has captured.
    pub to: String,
    /// 301, 302, 303, 307 or 308. Default 302.
    #[serde(default = "found")]
    pub status: u16,
}

const fn found() -> u16 {
    302
}

/// What becomes of a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewriteConfig {
    /// What is looked for, everywhere in the path.
    pub regex: String,
    /// What stands there instead: `$1` and `${name}` are its groups.
    pub to: String,
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
pub struct FilterError(pub(crate) String);

/// A route's filters, ready to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filters {
    target: Target,
    steps: Vec<Step>,
    /// Those that may know something of former requests, as they were written.
    kept: Vec<(FilterConfig, Step)>,
    answer: Option<Direct>,
    chooser: Option<Arc<Chooser>>,
    /// Browsers ask here what pages of other origins may do.
    pub(crate) cors: bool,
}

/// An answer without a service.
#[derive(Clone, Debug)]
enum Direct {
    Redirect(StatusCode, Template),
    Respond(Arc<Fixed>),
}

impl Filters {
    /// The beginning of each route's own, which keeps nothing for all of them.
    pub(crate) fn front(&self) -> Self {
        Self { kept: Vec::new(), ..self.clone() }
    }

    #[cfg(test)]
    pub(crate) fn and(self, config: &[FilterConfig]) -> Result<Self, (usize, FilterError)> {
        self.and_after(config, &Self::default())
    }

    /// Checks and compiles what is written, to stand behind what there is already. Those that stood in `before` as they are
    /// written now go on with what they know.
    ///
    /// # Errors
    /// [`FilterError`] for a name or value that is not one of a header, or a header that the proxy itself keeps, and whatever else
    /// is wrong with a filter; and which of them it is.
    pub(crate) fn and_after(mut self, config: &[FilterConfig], before: &Self) -> Result<Self, (usize, FilterError)> {
        let mut before: Vec<_> = before.kept.iter().collect();
        for (at, filter) in config.iter().enumerate() {
            if let Some(same) = before.iter().position(|(written, _)| written == filter) {
                // Each but once: two that are written alike are two.
                let (written, step) = before.remove(same);
                self.steps.push(step.clone());
                self.kept.push((written.clone(), step.clone()));
                continue;
            }
            let stood = self.steps.len();
            self.add(filter).map_err(|error| (at, error))?;
            if let Some(step @ Step::Around(_)) = self.steps[stood..].last() {
                self.kept.push((filter.clone(), step.clone()));
            }
        }
        Ok(self)
    }

    fn add(&mut self, filter: &FilterConfig) -> Result<(), FilterError> {
        type Make = fn(HeaderName, HeaderValue) -> HeaderOp;
        let pairs = |map: &BTreeMap<String, String>, make: Make| {
            map.iter().map(|(n, v)| Ok(make(name(n)?, value(v)?))).collect::<Result<Vec<_>, FilterError>>()
        };
        let names =
            |list: &[String]| list.iter().map(|n| Ok(HeaderOp::Remove(name(n)?))).collect::<Result<Vec<_>, _>>();
        match filter {
            FilterConfig::StripPrefix(segments) => self.target.strip(*segments),
            FilterConfig::PrefixPath(prefix) => self.target.prefix(prefix)?,
            FilterConfig::SetPath(template) => self.target.set(template)?,
            FilterConfig::RewritePath(RewriteConfig { regex, to }) => self.target.rewrite(regex, to)?,
            FilterConfig::SetQuery(map) => self.target.set_query(map),
            FilterConfig::AddQuery(map) => self.target.add_query(map),
            FilterConfig::RemoveQuery(names) => self.target.remove_query(names),
            FilterConfig::DefaultHeader(map) => self.request(pairs(map, HeaderOp::Default)?),
            FilterConfig::CopyHeader(map) => {
                for (from, to) in map {
                    self.request(vec![HeaderOp::Copy(name(from)?, name(to)?)]);
                }
            }
            FilterConfig::Jwt(config) => self.around(jwt::Jwt::try_new(config)?),
            FilterConfig::ApiKey(config) => self.around(api_key::ApiKey::try_new(config)?),
            FilterConfig::Basic(config) => self.around(basic::Basic::try_new(config)?),
            FilterConfig::Hmac(config) => self.around(hmac::Hmac::try_new(config)?),
            FilterConfig::Ip(config) => self.around(ip::Ip::try_new(config)?),
            FilterConfig::ExternalAuth(config) => self.around(external_auth::ExternalAuth::try_new(config)?),
            FilterConfig::Oidc(config) => self.around(oidc::Oidc::try_new(config)?),
            FilterConfig::Authorize(rules) => self.around(authorize::Authorize::try_new(rules)?),
            FilterConfig::RequestId(config) => self.around(request_id::RequestId::try_new(config)?),
            FilterConfig::SecurityHeaders(own) => self.response(security(own)?),
            FilterConfig::Redirect(_) | FilterConfig::Respond(_) if self.answer.is_some() => {
                return Err(FilterError("the request is answered already by a filter before".to_owned()));
            }
            FilterConfig::Redirect(RedirectConfig { to, status }) => {
                let known = [301, 302, 303, 307, 308].contains(status);
                let status = StatusCode::from_u16(*status).ok().filter(|_| known);
                let status =
                    status.ok_or_else(|| FilterError("a redirect's status is 301, 302, 303, 307 or 308".into()))?;
                self.answer = Some(Direct::Redirect(status, Template::try_new(to)?));
            }
            FilterConfig::Respond(answer) => {
                self.answer = Some(Direct::Respond(Arc::new(answer.compile()?)));
            }
            FilterConfig::SetHeader(map) => self.request(pairs(map, HeaderOp::Set)?),
            FilterConfig::AddHeader(map) => self.request(pairs(map, HeaderOp::Add)?),
            FilterConfig::RemoveHeader(list) => self.request(names(list)?),
            FilterConfig::SetResponseHeader(map) => self.response(pairs(map, HeaderOp::Set)?),
            FilterConfig::AddResponseHeader(map) => self.response(pairs(map, HeaderOp::Add)?),
            FilterConfig::RemoveResponseHeader(list) => self.response(names(list)?),
            FilterConfig::RewriteQuery(config) => self.target.rewrite_query(config)?,
            FilterConfig::SetHost(host) => self.around(Host::set(host)?),
            FilterConfig::PreserveHost(keep) => self.around(Host::keep(*keep)),
            FilterConfig::RewriteResponseHeader(config) => self.around(Head::rewrite(config)?),
            FilterConfig::DedupeResponseHeader(config) => self.around(Head::dedupe(config)?),
            FilterConfig::RewriteLocation(config) => self.around(location::Location::try_new(config)?),
            FilterConfig::SetStatus(status) => self.around(Head::status(*status)?),
            FilterConfig::Cors(config) => {
                self.cors = true;
                self.around(cors::Cors::try_new(config)?);
            }
            FilterConfig::Compress(config) => self.around(compress::Compress::try_new(config)?),
            FilterConfig::Decompress(config) => self.around(decompress::Decompress::try_new(config)?),
            FilterConfig::Validate(config) => self.around(validate::Validate::try_new(config)?),
            FilterConfig::Json(config) => self.around(json::Json::try_new(config)?),
            FilterConfig::Fault(config) => self.around(fault::Fault::try_new(config)?),
            FilterConfig::Mirror(config) => self.around(mirror::Mirror::try_new(config)?),
            FilterConfig::Affinity(config) => self.around(affinity::Affinity::try_new(config)?),
            FilterConfig::RequestSize(config) => self.around(size::RequestSize::try_new(config)?),
            FilterConfig::ToService(config) => self.chooser = Some(Arc::new(Chooser::try_new(config)?)),
        }
        Ok(())
    }

    /// Which service a request goes to, where that is not always the same.
    ///
    /// # Errors
    /// What the request asks for is none of those that it may.
    pub(crate) fn service(&self, parts: &Parts, pattern: Option<&Pattern>) -> Result<Option<ServiceName>, String> {
        self.chooser.as_ref().map_or(Ok(None), |chooser| chooser.of(parts, pattern))
    }

    /// Whether a request that names no service has one.
    pub(crate) fn chooses(&self) -> bool {
        self.chooser.is_some()
    }

    /// Whether a request is answered here, and needs no service.
    pub(crate) fn answers(&self) -> bool {
        self.answer.is_some()
    }

    /// The names that are used of what a pattern has captured; `path` and `query` are known without one.
    pub(crate) fn captures(&self) -> impl Iterator<Item = &str> {
        let answer = match &self.answer {
            Some(Direct::Redirect(_, template)) => Some(template),
            Some(Direct::Respond(_)) | None => None,
        };
        let own = answer.into_iter().flat_map(Template::names).filter(|name| !["path", "query"].contains(name));
        let chosen = self.chooser.iter().flat_map(|chooser| chooser.names());
        self.target.names().chain(own).chain(chosen)
    }

    /// The path and query that the service gets; `None` when they stay as they are.
    ///
    /// # Errors
    /// What is made of the request's is none.
    pub(crate) fn target(&self, uri: &Uri, pattern: Option<&Pattern>) -> Result<Option<PathAndQuery>, String> {
        self.target.of(uri, pattern)
    }

    /// The answer to a request that goes to no service.
    ///
    /// # Errors
    /// What is made of the request is no place.
    pub(crate) fn answer(&self, uri: &Uri, pattern: Option<&Pattern>) -> Result<Option<Arc<Fixed>>, String> {
        let (status, template) = match &self.answer {
            None => return Ok(None),
            Some(Direct::Respond(answer)) => return Ok(Some(answer.clone())),
            Some(Direct::Redirect(status, template)) => (*status, template),
        };
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let place = template.fill(|name| match name {
            "path" => Some(uri.path()),
            "query" => Some(&query),
            name => pattern?.captures(uri.path()).find(|(own, _)| *own == name).map(|(_, value)| value),
        });
        let place = HeaderValue::try_from(place).map_err(|error| error.to_string())?;
        let mut headers = HeaderMap::new();
        headers.insert(http::header::LOCATION, place);
        Ok(Some(Arc::new(Fixed { status, headers, ..Fixed::default() })))
    }

    /// The steps, in their order.
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.steps.clone()
    }

    fn around(&mut self, filter: impl Filter) {
        self.steps.push(Step::Around(Arc::new(filter)));
    }

    /// What the steps make of a request's headers.
    #[cfg(test)]
    pub(crate) fn on_request(&self, headers: &mut HeaderMap) {
        for step in &self.steps {
            if let Step::Request(op) = step {
                op.apply(headers);
            }
        }
    }

    /// What the steps make of an answer's headers.
    #[cfg(test)]
    pub(crate) fn on_response(&self, headers: &mut HeaderMap) {
        for step in self.steps.iter().rev() {
            if let Step::Response(op) = step {
                op.apply(headers);
            }
        }
    }

    fn request(&mut self, ops: Vec<HeaderOp>) {
        self.steps.extend(ops.into_iter().map(Step::Request));
    }

    fn response(&mut self, ops: Vec<HeaderOp>) {
        self.steps.extend(ops.into_iter().map(Step::Response));
    }
}

impl FilterConfig {
    /// The services that are named in it, and where below it.
    pub fn services(&self) -> Vec<(String, &ServiceName)> {
        match self {
            Self::ToService(config) => {
                let among = config.among.iter().enumerate();
                among.map(|(at, service)| (format!("to_service.among.{at}"), service)).collect()
            }
            Self::Jwt(config) => {
                config.service().map(|service| ("jwt.keys.service".to_owned(), service)).into_iter().collect()
            }
            Self::Mirror(config) => vec![("mirror.to".to_owned(), &config.to)],
            Self::Oidc(config) => config.service.iter().map(|service| ("oidc.service".to_owned(), service)).collect(),
            Self::ExternalAuth(config) => vec![("external_auth.service".to_owned(), &config.service)],
            _ => Vec::new(),
        }
    }

    /// Lets the paths of files that it names begin at `base`.
    pub(crate) fn resolve(&mut self, base: &Path) {
        let files: Vec<&mut PathBuf> = match self {
            Self::Jwt(config) => config.keys.files().collect(),
            Self::ApiKey(config) => config.file.iter_mut().collect(),
            Self::Basic(config) => config.file.iter_mut().collect(),
            Self::Oidc(config) => config.files().collect(),
            Self::Hmac(config) => config.keys.iter_mut().filter_map(|key| key.file.as_mut()).collect(),
            _ => Vec::new(),
        };
        for file in files {
            *file = base.join(&*file);
        }
    }
}

/// An answer of a filter's own to a request that it does not let pass.
fn refused(status: StatusCode, detail: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::whole(format!("{detail}\n")));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// Adds names to `Vary` that are not in it.
fn vary(headers: &mut HeaderMap, names: &'static str) {
    let given: Vec<_> = headers.get_all(http::header::VARY).iter().filter_map(|value| value.to_str().ok()).collect();
    let given = given.join(", ");
    let has = |name: &str| given.split(',').map(str::trim).any(|own| own == "*" || own.eq_ignore_ascii_case(name));
    let missing: Vec<_> = names.split(", ").filter(|name| !has(name)).collect();
    if let Ok(missing) = HeaderValue::try_from(missing.join(", "))
        && !missing.is_empty()
    {
        headers.append(http::header::VARY, missing);
    }
}

/// What keeps browsers from harm, unless the service says otherwise: the OWASP Secure Headers Project's, which break no page that
/// is served by https.
const SECURITY: [(&str, &str); 6] = [
    ("strict-transport-security", "max-age=31536000; includeSubDomains"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("content-security-policy", "default-src 'self'; object-src 'none'; frame-ancestors 'none'"),
    ("x-permitted-cross-domain-policies", "none"),
];

fn security(own: &BTreeMap<String, String>) -> Result<Vec<HeaderOp>, FilterError> {
    let given = |field: &str| own.keys().any(|key| key.eq_ignore_ascii_case(field));
    let usual = SECURITY.iter().filter(|(field, _)| !given(field)).map(|(field, text)| (*field, *text));
    let own = own.iter().map(|(field, text)| (&**field, &**text)).filter(|(_, text)| !matches!(*text, "" | "~"));
    usual.chain(own).map(|(field, text)| Ok(HeaderOp::Default(name(field)?, value(text)?))).collect()
}

pub(crate) fn name(text: &str) -> Result<HeaderName, FilterError> {
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

impl FallbackConfig {
    /// Checks and compiles what is written.
    ///
    /// # Errors
    /// [`FilterError`] for a status outside 200 to 599, a bad header, or both kinds of body.
    pub fn compile(&self) -> Result<Fixed, FilterError> {
        let status = StatusCode::from_u16(self.status).ok().filter(|status| (200..600).contains(&status.as_u16()));
        let status = status.ok_or_else(|| FilterError(format!("status {} is not from 200 to 599", self.status)))?;
        let mut headers = HeaderMap::new();
        let (kind, body) = match (&self.json, &self.text) {
            (Some(_), Some(_)) => return Err(FilterError("give either `json` or `text`, not both".into())),
            (Some(json), None) => ("application/json", json.to_string()),
            (None, Some(text)) => ("text/plain; charset=utf-8", text.clone()),
            (None, None) => ("text/plain; charset=utf-8", String::new()),
        };
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
        for (field, text) in &self.headers {
            headers.insert(name(field)?, value(text)?);
        }
        Ok(Fixed { status, headers, body: body.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_set_added_and_removed_in_order() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let filters = Filters::default()
            .and(&[
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
        assert_eq!((&headers["x-b"], headers.contains_key("x-c")), (&HeaderValue::from(3), false));
        let target = filters.target(&"/a/b/c?d".parse().unwrap(), None).unwrap();
        assert_eq!(target.unwrap(), "/c?d");
    }

    #[test]
    fn what_would_break_a_message_is_refused() {
        for (name, value) in [("content-length", "3"), ("bad name", "x"), ("x", "a\r\nb"), ("", "x")] {
            let map = [(name.to_owned(), value.to_owned())].into();
            assert!(Filters::default().and(&[FilterConfig::SetHeader(map)]).is_err(), "{name}");
        }
        let fallback = |text: &str| serde_json::from_str::<FallbackConfig>(text).unwrap().compile();
        assert!(fallback(r#"{"status": 99}"#).is_err());
        assert!(fallback(r#"{"json": {}, "text": ""}"#).is_err());
        assert_eq!(fallback(r#"{"json": {"a": 1}}"#).unwrap().response().status(), 503);
    }
}
