//! What a route asks of a request. Pure.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use http::Method;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, COOKIE, HOST, HeaderMap, HeaderName};
use http::request::Parts;
use ipnet::IpNet;
use jiff::Timestamp;
use regex::Regex;
use seawall_proxy::Asked;

use crate::config::{MatchConfig, ValueConfig};
use crate::filter::is_preflight;
use crate::path::Pattern;

/// All that a route asks.
#[derive(Debug)]
pub(crate) struct Matcher {
    pub(crate) path: Option<Pattern>,
    path_regex: Option<Regex>,
    methods: Vec<Method>,
    pub(crate) hosts: Vec<Host>,
    headers: Vec<(HeaderName, Text)>,
    query: Vec<(String, Text)>,
    cookies: Vec<(String, Text)>,
    sources: Vec<IpNet>,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
    share: Option<Share>,
    /// A browser's question about a request (CORS) is taken for that request.
    pub(crate) preflights: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Exact(String),
    /// The part after `*`, with its dot.
    Below(String),
}

/// What a value has to be.
#[derive(Debug)]
pub(crate) enum Text {
    Any,
    Is(String),
    Fits(Regex),
}

/// Which part of a group's draws is the route's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// The group's number.
    pub(crate) group: usize,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// All shares of the group.
    pub(crate) total: u64,
}

/// What chance has said for one request: a draw for each group, the same however often it is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    /// From 0 to below `total`. Vigna's SplitMix64 of the request's number and the group's.
    fn draw(self, group: usize, total: u64) -> u64 {
        let mut z = self.0.wrapping_add((group as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % total.max(1)
    }
}

/// The first thing about a request that is not as the route asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    Path,
    PathRegex,
    Method,
    Host,
    Header(usize),
    Query(usize),
    Cookie(usize),
    Source,
    Early,
    Late,
    Share,
}

impl Text {
    pub(crate) fn try_new(config: &ValueConfig) -> Result<Self, String> {
        match config {
            ValueConfig::Is(value) if value == "*" => Ok(Self::Any),
            ValueConfig::Is(value) => Ok(Self::Is(value.clone())),
            ValueConfig::Fits { regex } => Ok(Self::Fits(whole(regex)?)),
        }
    }

    pub(crate) fn is(&self, given: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Is(value) => value.as_bytes() == given,
            Self::Fits(regex) => std::str::from_utf8(given).is_ok_and(|given| regex.is_match(given)),
        }
    }

    /// Whether every value that is `other` is this, as far as can be seen.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Is(mine), Self::Is(theirs)) => mine == theirs,
            (Self::Fits(mine), Self::Is(theirs)) => mine.is_match(theirs),
            (Self::Fits(mine), Self::Fits(theirs)) => mine.as_str() == theirs.as_str(),
            (Self::Is(_) | Self::Fits(_), _) => false,
        }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any value"),
            Self::Is(value) => write!(f, "`{value}`"),
            Self::Fits(regex) => write!(f, "what fits {regex}"),
        }
    }
}

/// An expression that has to fit from the beginning to the end. Takes time linear in the text, whatever it says.
pub(crate) fn whole(text: &str) -> Result<Regex, String> {
    let error = |error: regex::Error| format!("`{text}` is no regular expression: {error}");
    // By itself first: a parenthesis too many must not get out of those around it.
    Regex::new(text).map_err(error)?;
    Regex::new(&format!("^(?:{text})$")).map_err(error)
}

fn time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| format!("`{text}` is not a time such as 2026-12-24T18:00:00Z"))
}

pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from).ok();
    text.parse().ok().or_else(address).ok_or_else(|| format!("`{text}` is no address or network such as 10.0.0.0/8"))
}

impl Matcher {
    /// Reads what is written; says all that is wrong with it.
    pub(crate) fn try_new(
        config: &MatchConfig,
        share: Option<Share>,
        problem: &mut impl FnMut(&str, String),
    ) -> Option<Self> {
        let mut whole_path = |text: &String| whole(text).map_err(|why| problem("path_regex", why)).ok();
        let path_regex = config.path_regex.as_ref().map(&mut whole_path);
        let pattern = |text: &String| Pattern::try_new(text).map_err(|error| problem("path", error.to_string())).ok();
        let path = config.path.as_ref().map(pattern);
        let mut methods = Vec::new();
        for text in &config.method {
            match Method::from_bytes(text.as_bytes()) {
                Ok(method) if text.bytes().all(|b| b.is_ascii_uppercase()) => methods.push(method),
                _ => problem("method", format!("`{text}` is not a method such as GET")),
            }
        }
        let mut hosts = Vec::new();
        for text in &config.host {
            let text = text.to_ascii_lowercase();
            let name = text.strip_prefix("*.").unwrap_or(&text);
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
                problem("host", format!("`{text}` is not a host name such as shop.example or *.shop.example"));
            } else if name.len() < text.len() {
                hosts.push(Host::Below(text[1..].to_owned()));
            } else {
                hosts.push(Host::Exact(text));
            }
        }
        let mut headers = Vec::new();
        for (name, value) in &config.headers {
            match (HeaderName::try_from(name.as_str()), Text::try_new(value)) {
                (Ok(name), Ok(value)) => headers.push((name, value)),
                (Err(_), _) => problem("headers", format!("`{name}` is not the name of a header")),
                (_, Err(why)) => problem("headers", format!("{name}: {why}")),
            }
        }
        let mut values = |field: &str, config: &std::collections::BTreeMap<String, ValueConfig>| {
            let mut all = Vec::new();
            for (name, value) in config {
                match Text::try_new(value) {
                    Ok(value) => all.push((name.clone(), value)),
                    Err(why) => problem(field, format!("{name}: {why}")),
                }
            }
            all
        };
        let (query, cookies) = (values("query", &config.query), values("cookies", &config.cookies));
        let mut sources = Vec::new();
        for text in &config.source {
            network(text).map_or_else(|why| problem("source", why), |network| sources.push(network));
        }
        let mut moment = |field: &str, text: &Option<String>| {
            text.as_ref().and_then(|text| time(text).map_err(|why| problem(field, why)).ok())
        };
        let (after, before) = (moment("after", &config.after), moment("before", &config.before));
        if let (Some(after), Some(before)) = (after, before)
            && after >= before
        {
            problem(
                "before",
                format!("`before` is not later than `after`: no request comes between {after} and {before}"),
            );
        }
        // What is wrong was said; a matcher without it would take what it must not.
        let path = match path {
            Some(None) => return None,
            path => path.flatten(),
        };
        let path_regex = match path_regex {
            Some(None) => return None,
            regex => regex.flatten(),
        };
        Some(Self {
            path,
            path_regex,
            methods,
            hosts,
            headers,
            query,
            cookies,
            sources,
            after,
            before,
            share,
            preflights: false,
        })
    }

    /// Whether the route takes the request; the first thing that is in its way, if not.
    pub(crate) fn check(&self, asked: &Asked<'_>, chance: Chance) -> Result<(), Miss> {
        let request = asked.parts;
        let path = request.uri.path();
        let wanted = |is: bool, miss| if is { Ok(()) } else { Err(miss) };
        wanted(self.path.as_ref().is_none_or(|pattern| pattern.matches(path)), Miss::Path)?;
        // It has none of the headers that the request itself will have.
        let preflight = self.preflights && is_preflight(&request.method, &request.headers);
        let later = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| preflight);
        let method = later.map_or(request.method.as_str().as_bytes(), |method| method.as_bytes());
        let takes = |own: &Method| own.as_str().as_bytes() == method;
        wanted(self.methods.is_empty() || self.methods.iter().any(takes), Miss::Method)?;
        wanted(self.hosts.is_empty() || self.host_matches(request), Miss::Host)?;
        for (at, (name, value)) in self.headers.iter().enumerate().filter(|_| !preflight) {
            let mut given = request.headers.get_all(name).iter();
            wanted(given.any(|given| value.is(given.as_bytes())), Miss::Header(at))?;
        }
        for (at, (name, value)) in self.query.iter().enumerate() {
            let query = request.uri.query().unwrap_or_default();
            let mut given = form_urlencoded::parse(query.as_bytes());
            wanted(given.any(|(key, given)| key == *name && value.is(given.as_bytes())), Miss::Query(at))?;
        }
        for (at, (name, value)) in self.cookies.iter().enumerate().filter(|_| !preflight) {
            let mut given = cookies(&request.headers);
            wanted(given.any(|(key, given)| key == name && value.is(given.as_bytes())), Miss::Cookie(at))?;
        }
        wanted(self.path_regex.as_ref().is_none_or(|regex| regex.is_match(path)), Miss::PathRegex)?;
        if !self.sources.is_empty() {
            let client = asked.client();
            let within = |network: &IpNet| client.is_some_and(|client| network.contains(&client));
            wanted(self.sources.iter().any(within), Miss::Source)?;
        }
        if self.after.is_some() || self.before.is_some() {
            let now = Timestamp::now();
            wanted(self.after.is_none_or(|after| now >= after), Miss::Early)?;
            wanted(self.before.is_none_or(|before| now < before), Miss::Late)?;
        }
        let drawn = |Share { group, from, to, total }| (from..to).contains(&chance.draw(group, total));
        wanted(self.share.is_none_or(drawn), Miss::Share)
    }

    fn host_matches(&self, request: &Parts) -> bool {
        let Some(name) = host(request) else { return false };
        self.hosts.iter().any(|wanted| match wanted {
            Host::Exact(exact) => **exact == *name,
            Host::Below(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_str()),
        })
    }

    /// What was in a request's way, for people.
    pub(crate) fn describe(&self, miss: Miss, asked: &Asked<'_>) -> String {
        let given = |values: Vec<String>| match &values[..] {
            [] => "there is none".to_owned(),
            values => format!("it is {}", values.join(", ")),
        };
        match miss {
            Miss::Path => {
                let pattern = self.path.as_ref().map(ToString::to_string).unwrap_or_default();
                format!("the path {} does not fit {pattern}", asked.parts.uri.path())
            }
            Miss::PathRegex => {
                let regex = self.path_regex.as_ref().map(ToString::to_string).unwrap_or_default();
                format!("the path {} does not fit {regex}", asked.parts.uri.path())
            }
            Miss::Method => {
                let methods: Vec<_> = self.methods.iter().map(Method::as_str).collect();
                format!("the method {} is not {}", asked.parts.method, methods.join(" or "))
            }
            Miss::Host => {
                let wanted = self.hosts.iter().map(|host| match host {
                    Host::Exact(name) => name.clone(),
                    Host::Below(suffix) => format!("*{suffix}"),
                });
                let host = host(asked.parts).unwrap_or_else(|| "(none)".into());
                format!("the host {host} is not {}", wanted.collect::<Vec<_>>().join(" or "))
            }
            Miss::Header(at) => {
                let (name, value) = &self.headers[at];
                let all = asked.parts.headers.get_all(name).iter();
                let all = all.map(|value| format!("`{}`", String::from_utf8_lossy(value.as_bytes()))).collect();
                format!("the header {name} has to be {value}, {}", given(all))
            }
            Miss::Query(at) => {
                let (name, value) = &self.query[at];
                let query = asked.parts.uri.query().unwrap_or_default();
                let all = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| *key == *name);
                format!("the query's {name} has to be {value}, {}", given(all.map(|(_, v)| format!("`{v}`")).collect()))
            }
            Miss::Cookie(at) => {
                let (name, value) = &self.cookies[at];
                let all = cookies(&asked.parts.headers).filter(|(key, _)| key == name);
                format!("the cookie {name} has to be {value}, {}", given(all.map(|(_, v)| format!("`{v}`")).collect()))
            }
            Miss::Source => {
                let networks: Vec<_> = self.sources.iter().map(ToString::to_string).collect();
                let client = asked.client().map_or_else(|| "nobody is known".to_owned(), |client| client.to_string());
                format!("the client has to be in {}, it is {client}", networks.join(" or "))
            }
            Miss::Early => format!("it begins {}", self.after.unwrap_or_default()),
            Miss::Late => format!("it has ended {}", self.before.unwrap_or_default()),
            Miss::Share => {
                let Share { from, to, total, .. } = self.share.unwrap_or(Share { group: 0, from: 0, to: 0, total: 0 });
                format!("another route of its group was drawn: its share is {} of {total}", to - from)
            }
        }
    }

    /// Whether every request that `other` matches is matched by this one, as far as can be seen.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let hosts = self.hosts.is_empty()
            || (!other.hosts.is_empty()
                && other.hosts.iter().all(|theirs| {
                    self.hosts.iter().any(|mine| match (mine, theirs) {
                        (Host::Exact(a), Host::Exact(b)) => a == b,
                        (Host::Below(a), Host::Exact(b) | Host::Below(b)) => b.ends_with(a.as_str()),
                        (Host::Exact(_), Host::Below(_)) => false,
                    })
                }));
        let methods = self.methods.is_empty()
            || (!other.methods.is_empty() && other.methods.iter().all(|method| self.methods.contains(method)));
        let path = match (&self.path, &other.path) {
            (None, _) => true,
            (Some(mine), Some(theirs)) => mine.covers(theirs),
            (Some(_), None) => false,
        };
        let regex = match (&self.path_regex, &other.path_regex) {
            (None, _) => true,
            (Some(mine), Some(theirs)) => mine.as_str() == theirs.as_str(),
            (Some(_), None) => false,
        };
        let sources = self.sources.is_empty()
            || (!other.sources.is_empty()
                && other.sources.iter().all(|theirs| self.sources.iter().any(|mine| mine.contains(theirs))));
        let later = |mine: Option<Timestamp>, theirs: Option<Timestamp>| {
            mine.is_none_or(|mine| theirs.is_some_and(|theirs| mine <= theirs))
        };
        let sooner = |mine: Option<Timestamp>, theirs: Option<Timestamp>| {
            mine.is_none_or(|mine| theirs.is_some_and(|theirs| mine >= theirs))
        };
        path && regex
            && methods
            && hosts
            && all_cover(&self.headers, &other.headers)
            && all_cover(&self.query, &other.query)
            && all_cover(&self.cookies, &other.cookies)
            && sources
            && later(self.after, other.after)
            && sooner(self.before, other.before)
            && (self.share.is_none() || self.share == other.share)
    }

    /// How specific it is, as the Gateway API counts: the less, the sooner it is asked.
    pub(crate) fn rank(&self) -> impl Ord + use<> {
        use std::cmp::Reverse;
        let exact = self.path.as_ref().is_some_and(Pattern::is_exact);
        let length = self.path.as_ref().map_or(0, |path| path.to_string().trim_end_matches("/**").len());
        (
            Reverse(exact),
            Reverse(length),
            self.methods.is_empty(),
            Reverse(self.headers.len()),
            Reverse(self.query.len()),
        )
    }
}

/// Whether for each thing that the one asks the other asks at least as much.
fn all_cover<N: PartialEq>(mine: &[(N, Text)], theirs: &[(N, Text)]) -> bool {
    mine.iter().all(|(name, value)| theirs.iter().any(|(n, v)| n == name && value.covers(v)))
}

pub(crate) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let values = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(';')).filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        Some((name, value.trim_matches('"')))
    })
}

/// The name of the host that is asked for, in small letters and without its port.
pub(crate) fn host(request: &Parts) -> Option<Cow<'_, str>> {
    let header = || request.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = request.uri.authority().map(http::uri::Authority::as_str).or_else(header)?;
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let small = !name.bytes().any(|b| b.is_ascii_uppercase());
    Some(if small { Cow::Borrowed(name) } else { Cow::Owned(name.to_ascii_lowercase()) })
}
