//! Headers that belong to one hop, and headers that the hops add.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE, UPGRADE};
use http::request::Parts;
use http::{Method, Uri, Version};
use seawall_resilience::Priority;
use seawall_telemetry::TraceContext;
use seawall_types::header::{PRIORITY, RETRIES_LEFT, TIMEOUT};

use crate::tls::Secure;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const TRANSFER_ENCODING: HeaderName = http::header::TRANSFER_ENCODING;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const TRACEPARENT: HeaderName = HeaderName::from_static(TraceContext::HEADER);
const SEAWALL_TIMEOUT: HeaderName = HeaderName::from_static(TIMEOUT);
const SEAWALL_RETRIES_LEFT: HeaderName = HeaderName::from_static(RETRIES_LEFT);
const SEAWALL_PRIORITY: HeaderName = HeaderName::from_static(PRIORITY);

/// Removes what belongs to the last hop alone (RFC 9110, 7.6.1): `Connection`, every field that it names, and those
/// that every proxy has to remove whether they are named or not. `TE: trailers` stays.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // Naming these would let a client remove what the hops rely on.
            .filter(|name| {
                let kept = [HOST, X_FORWARDED_FOR, FORWARDED, SEAWALL_TIMEOUT, SEAWALL_RETRIES_LEFT, SEAWALL_PRIORITY];
                !kept.contains(name)
            })
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHORIZATION] {
        headers.remove(name);
    }
    if let Some(te) = headers.get(TE)
        && !te.as_bytes().eq_ignore_ascii_case(b"trailers")
    {
        headers.remove(TE);
    }
}

/// What a request wants to change to, if it may (RFC 9110, 7.8): HTTP/1.1 without a body into anything but another HTTP or TLS,
/// which would go past the gateway's own eyes.
pub(crate) fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    let protocol = parts.headers.get(UPGRADE)?;
    let tokens = parts.headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked = tokens.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let first = protocol.to_str().ok()?.split(['/', ',']).next()?.trim();
    let known = ["h2c", "h2", "tls", "http"].iter().any(|known| first.eq_ignore_ascii_case(known));
    let empty = !parts.headers.contains_key(CONTENT_LENGTH) && !parts.headers.contains_key(TRANSFER_ENCODING);
    (asked && !known && empty && parts.version == Version::HTTP_11 && parts.method == Method::GET)
        .then(|| protocol.clone())
}

/// Asks for, or agrees to, another protocol.
pub(crate) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(UPGRADE, protocol);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

/// What a connection adds to each of its requests; made once for it.
#[derive(Clone, Debug)]
pub struct Forwarding {
    ip: IpAddr,
    peer: HeaderValue,
    element: String,
    secure: Option<Arc<Secure>>,
    trusted_hops: u8,
}

impl Forwarding {
    /// For requests from `peer`, by TLS if that is known. `trusted_hops` proxies in front of this one are believed; with 0 whatever the client
    /// says about itself is replaced.
    pub fn new(peer: IpAddr, trusted_hops: u8, secure: Option<Arc<Secure>>) -> Self {
        let ip = peer.to_canonical();
        let proto = if secure.is_some() { "https" } else { "http" };
        let element = match ip {
            IpAddr::V4(v4) => format!("for={v4};proto={proto}"),
            IpAddr::V6(v6) => format!("for=\"[{v6}]\";proto={proto}"),
        };
        let peer = HeaderValue::try_from(ip.to_string()).expect("an address is a valid header value");
        Self { ip, peer, element, secure, trusted_hops }
    }

    /// Who asks: the peer, or, behind so many trusted hops, the address that the farthest of them wrote down. What they did not
    /// write is not guessed: then it is the peer.
    pub fn client(&self, headers: &HeaderMap) -> IpAddr {
        if self.trusted_hops == 0 {
            return self.ip;
        }
        let values = headers.get_all(X_FORWARDED_FOR).iter().rev().filter_map(|value| value.to_str().ok());
        let mut hops = values.flat_map(|value| value.rsplit(',')).map(str::trim);
        let farthest = hops.nth(usize::from(self.trusted_hops) - 1);
        let address = |text: &str| {
            let text = text.trim_matches('"');
            let socket = || text.parse::<std::net::SocketAddr>().map(|socket| socket.ip());
            text.trim_matches(['[', ']']).parse().or_else(|_| socket()).ok()
        };
        farthest.and_then(address).map_or(self.ip, |ip: IpAddr| ip.to_canonical())
    }

    /// What TLS knows of the connection.
    pub fn secure(&self) -> Option<&Secure> {
        self.secure.as_deref()
    }

    fn proto(&self) -> HeaderValue {
        HeaderValue::from_static(if self.secure.is_some() { "https" } else { "http" })
    }

    /// Adds `X-Forwarded-For`, `-Host`, `-Proto` and `Forwarded` (RFC 7239).
    pub fn apply(&self, headers: &mut HeaderMap, host: Option<HeaderValue>) {
        let mut element = self.element.clone();
        if let Some(host) = host.as_ref().and_then(|host| host.to_str().ok()).filter(|host| plain_host(host)) {
            element.push_str(";host=\"");
            element.push_str(host);
            element.push('"');
        }
        if self.trusted_hops == 0 {
            // How long a stranger is willing to wait, and how much it thinks of itself, is no measure for the services
            // behind.
            for name in [SEAWALL_TIMEOUT, SEAWALL_RETRIES_LEFT, SEAWALL_PRIORITY] {
                headers.remove(name);
            }
            headers.insert(X_FORWARDED_FOR, self.peer.clone());
            headers.insert(X_FORWARDED_PROTO, self.proto());
            match host {
                Some(host) => drop(headers.insert(X_FORWARDED_HOST, host)),
                None => drop(headers.remove(X_FORWARDED_HOST)),
            }
            if let Ok(element) = HeaderValue::try_from(element) {
                headers.insert(FORWARDED, element);
            }
            return;
        }
        self.extend(headers, X_FORWARDED_FOR, self.peer.to_str().unwrap_or_default());
        self.extend(headers, FORWARDED, &element);
        headers.entry(X_FORWARDED_PROTO).or_insert_with(|| self.proto());
        if let Some(host) = host {
            headers.entry(X_FORWARDED_HOST).or_insert(host);
        }
    }

    /// Keeps what the trusted hops have written, the last of the list, and appends ours.
    fn extend(&self, headers: &mut HeaderMap, name: HeaderName, ours: &str) {
        let given: Vec<String> = headers
            .get_all(&name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(',').map(|part| part.trim().to_owned()))
            .collect();
        let kept = given.len().saturating_sub(usize::from(self.trusted_hops));
        let list: Vec<&str> = given[kept..].iter().map(String::as_str).chain([ours]).collect();
        if let Ok(value) = HeaderValue::try_from(list.join(", ")) {
            headers.insert(name, value);
        }
    }
}

fn plain_host(host: &str) -> bool {
    host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'_'))
}

/// Passes a valid trace on as a child of it, or starts one; returns it for the log.
pub fn trace(headers: &mut HeaderMap) -> TraceContext {
    let parent = headers.get(TRACEPARENT).and_then(|value| TraceContext::parse(value.as_bytes()));
    let context = parent.map_or_else(TraceContext::start, TraceContext::child);
    let value = HeaderValue::from_bytes(&context.to_header()).expect("hexadecimal is a valid header value");
    headers.insert(TRACEPARENT, value);
    context
}

/// The time that the caller gives this request, if it says so.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let millis: u64 = headers.get(SEAWALL_TIMEOUT)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// Tells the next hop how much time is left.
pub fn set_timeout(headers: &mut HeaderMap, left: Duration) {
    let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    headers.insert(SEAWALL_TIMEOUT, millis.into());
}

/// How many retries the caller leaves to this hop and those behind it, if it says so.
pub fn retries_left(headers: &HeaderMap) -> Option<&str> {
    headers.get(SEAWALL_RETRIES_LEFT)?.to_str().ok()
}

/// Tells the next hop how many retries are left.
pub fn set_retries_left(headers: &mut HeaderMap, left: u32) {
    headers.insert(SEAWALL_RETRIES_LEFT, left.into());
}

/// Tells the next hop how many retries are left, or the hop before what is left of what it told; with nothing to say
/// nothing is passed on of what another hop has said.
pub fn tell_retries_left(headers: &mut HeaderMap, left: Option<u32>) {
    match left {
        Some(left) => set_retries_left(headers, left),
        None => drop(headers.remove(SEAWALL_RETRIES_LEFT)),
    }
}

/// How much the request matters; what is not understood matters as much as most.
pub fn priority(headers: &HeaderMap) -> Priority {
    let word = headers.get(SEAWALL_PRIORITY).and_then(|value| value.to_str().ok());
    let all = [Priority::Critical, Priority::High, Priority::Normal, Priority::Low];
    word.and_then(|word| all.into_iter().find(|priority| priority.as_str() == word.trim())).unwrap_or_default()
}

/// A host without its port.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// The host that the client asked for, from the request line or the header.
pub fn host(uri: &Uri, headers: &HeaderMap) -> Option<HeaderValue> {
    match uri.authority() {
        Some(authority) => HeaderValue::try_from(authority.as_str()).ok(),
        None => headers.get(HOST).cloned(),
    }
}

/// What RFC 9112, 3.2 and RFC 9113, 8.3.1 demand of the host; the reason when it is not met.
pub fn bad_host(parts: &Parts) -> Option<&'static str> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    match (first, parts.uri.authority()) {
        _ if second.is_some() => Some("more than one Host header"),
        (None, _) if parts.version == Version::HTTP_11 => Some("no Host header"),
        (None, None) if parts.version == Version::HTTP_2 => Some("no :authority"),
        (Some(host), _) if !is_host(host.as_bytes()) => Some("a Host header that names no host"),
        (_, Some(authority)) if !is_host(authority.as_str().as_bytes()) => Some("a target that names no host"),
        (Some(host), Some(authority)) if !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()) => {
            Some("the target and the Host header name different hosts")
        }
        _ if parts.uri.scheme_str().is_some_and(|scheme| scheme != "http" && scheme != "https") => {
            Some("a target that is not http or https")
        }
        _ => None,
    }
}

/// Whether it is a name or an address, perhaps with a port, and nothing else. Nothing at all is one too: then nobody is meant.
fn is_host(text: &[u8]) -> bool {
    let (name, port) = match text.strip_prefix(b"[") {
        Some(rest) => match rest.iter().position(|byte| *byte == b']') {
            Some(end) if rest[..end].iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')) => {
                (&b""[..], &rest[end + 1..])
            }
            _ => return false,
        },
        None => text.split_at(text.iter().position(|byte| *byte == b':').unwrap_or(text.len())),
    };
    let port = port.is_empty() || (port[0] == b':' && port.len() <= 6 && port[1..].iter().all(u8::is_ascii_digit));
    port && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~' | b'%'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_client_is_who_the_farthest_trusted_hop_has_seen() {
        let peer: IpAddr = "10.0.0.9".parse().unwrap();
        for (trusted, given, client) in [
            (0, &["1.1.1.1"][..], "10.0.0.9"),
            (1, &["1.1.1.1, 2.2.2.2"], "2.2.2.2"),
            (2, &["1.1.1.1, 2.2.2.2"], "1.1.1.1"),
            (2, &["9.9.9.9, 1.1.1.1", "2.2.2.2"], "1.1.1.1"),
            (3, &["1.1.1.1, 2.2.2.2"], "10.0.0.9"),
            (1, &[], "10.0.0.9"),
            (1, &["unknown"], "10.0.0.9"),
            (1, &["[2001:db8::1]"], "2001:db8::1"),
            (1, &["\"[2001:db8::1]:80\""], "2001:db8::1"),
            (1, &["::ffff:3.3.3.3"], "3.3.3.3"),
            (1, &["3.3.3.3:4711"], "3.3.3.3"),
        ] {
            let fields: Vec<_> = given.iter().map(|value| ("x-forwarded-for", *value)).collect();
            assert_eq!(
                Forwarding::new(peer, trusted, None).client(&map(&fields)).to_string(),
                client,
                "{trusted} {given:?}"
            );
        }
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
        };
        let mut map = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for good in [
            "",
            "a",
            "shop.example",
            "shop.example:8080",
            "a_b-c~1",
            "xn--bcher-kva.example",
            "10.0.0.1:",
            "[::1]",
            "[::1]:80",
        ] {
            assert!(is_host(good.as_bytes()), "{good:?}");
        }
        for bad in [
            "a b", "a,b", "a@b", "a/b", "a?b", "a#b", "a:b", "a:80:81", "a:800000", "[::1", "[g]", "[::1]x",
            "http://a", "\u{e4}",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn hop_by_hop_fields_go_and_others_stay() {
        let mut headers = map(&[
            ("connection", "close, X-Mine"),
            ("connection", "host"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("host", "shop"),
            ("x-other", "2"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "shop"), ("x-other", "2")]));
        let mut headers = map(&[("te", "trailers")]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("te", "trailers")]));
    }

    #[test]
    fn a_client_cannot_choose_its_own_address() {
        let spoofed = [("x-forwarded-for", "1.1.1.1, 2.2.2.2"), ("forwarded", "for=1.1.1.1")];
        let host = Some(HeaderValue::from_static("shop.example"));
        let text = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().to_owned();

        let mut headers = map(&spoofed);
        Forwarding::new("9.9.9.9".parse().unwrap(), 0, None).apply(&mut headers, host.clone());
        assert_eq!(text(&headers, "x-forwarded-for"), "9.9.9.9");
        assert_eq!(text(&headers, "forwarded"), "for=9.9.9.9;proto=http;host=\"shop.example\"");
        assert_eq!(text(&headers, "x-forwarded-host"), "shop.example");

        let mut headers = map(&spoofed);
        Forwarding::new("::1".parse().unwrap(), 1, None).apply(&mut headers, host);
        assert_eq!(text(&headers, "x-forwarded-for"), "2.2.2.2, ::1");
        assert!(text(&headers, "forwarded").ends_with("for=\"[::1]\";proto=http;host=\"shop.example\""));
    }

    #[test]
    fn traces_are_passed_on_or_started() {
        let mut headers = map(&[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]);
        assert_eq!(trace(&mut headers).to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(!headers["traceparent"].to_str().unwrap().contains("b7ad6b7169203331"));
        let mut headers = map(&[("traceparent", "garbage")]);
        trace(&mut headers);
        assert_eq!(headers["traceparent"].len(), 55);
    }

    /// Fields whose values are read here, with whatever a client may write into them.
    fn any_fields() -> impl Strategy<Value = HeaderMap> {
        let names = [
            "connection",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "te",
            "upgrade",
            "host",
            "seawall-timeout",
            "traceparent",
            "seawall-retries-left",
            "seawall-priority",
            "keep-alive",
            "x-other",
        ];
        let pieces = [
            "for=",
            "\"[::1]:80\"",
            ",",
            ";",
            " ",
            "\"",
            "=",
            "1.2.3.4",
            "[",
            "]",
            ":",
            "close",
            "upgrade",
            "x-other",
            "host",
            "\t",
        ];
        let text = proptest::collection::vec(prop::sample::select(pieces.to_vec()), 0..8)
            .prop_map(|pieces| pieces.concat().into_bytes());
        let value = prop_oneof![text, proptest::collection::vec(any::<u8>(), 0..40)];
        let field = (prop::sample::select(names.to_vec()), value);
        proptest::collection::vec(field, 0..8).prop_map(|fields| {
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    map.append(HeaderName::from_static(name), value);
                }
            }
            map
        })
    }

    proptest! {
        #[test]
        fn whatever_a_client_writes_is_read(fields in any_fields(), trusted in 0_u8..4) {
            let (mut parts, ()) = http::Request::new(()).into_parts();
            parts.headers = fields;
            let peer: IpAddr = "10.0.0.9".parse().unwrap();
            let forwarding = Forwarding::new(peer, trusted, None);
            if trusted == 0 {
                prop_assert_eq!(forwarding.client(&parts.headers), peer);
            }
            let _ = (bad_host(&parts), upgrade(&parts), timeout(&parts.headers), retries_left(&parts.headers), priority(&parts.headers));
            let host = host(&parts.uri, &parts.headers);
            let headers = &mut parts.headers;
            strip_hop_by_hop(headers);
            for gone in [CONNECTION, KEEP_ALIVE, UPGRADE, TRANSFER_ENCODING] {
                prop_assert!(!headers.contains_key(gone));
            }
            forwarding.apply(headers, host);
            let list = headers[X_FORWARDED_FOR].to_str().unwrap();
            prop_assert!(list.ends_with("10.0.0.9") && list.split(',').count() <= usize::from(trusted) + 1, "{:?}", list);
            trace(headers);
        }
    }
}
