//! What may be stored, for how long it is fresh, and what may be answered with it: RFC 9111, sections 3 and 4. Pure.

use std::time::{Duration, SystemTime};

use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG,
    EXPIRES, HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, PRAGMA, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VARY,
};
use http::{Method, StatusCode};

use super::directives::{Directives, SURROGATE, seconds};

/// For those who put caches between the service and the clients, RFC 9213.
const TARGETED: HeaderName = HeaderName::from_static("cdn-cache-control");
/// Without a lifetime, this part of the time since the last change is taken for one, RFC 9111, 4.2.2.
const HEURISTIC: u32 = 10;
/// And no more than this.
const LONGEST_GUESS: Duration = Duration::from_secs(24 * 3600);

/// What is known of an answer that may be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// How old it was when it came.
    age: Duration,
    /// How old it may become.
    lifetime: Duration,
    /// It has to be validated each time.
    no_cache: bool,
    /// Once stale it may not be used without validation, whatever happens.
    strict: bool,
    while_revalidate: Duration,
    if_error: Duration,
}

/// What the operator adds to what services say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extra {
    /// Whether there is a lifetime where none is given.
    pub(super) heuristic: bool,
    pub(super) while_revalidate: Duration,
    pub(super) if_error: Duration,
}

/// What a stored answer is to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It is the answer.
    Fresh,
    /// It is the answer, and a newer one should be fetched meanwhile.
    Meanwhile,
    /// It has to be validated before.
    Validate,
}

impl Facts {
    /// Whether the answer to this request may be stored; or why not.
    pub(super) fn of(
        (method, asked): (&Method, &HeaderMap),
        (status, headers): (StatusCode, &HeaderMap),
        now: SystemTime,
        delay: Duration,
        extra: Extra,
    ) -> Result<Self, &'static str> {
        let targeted = [TARGETED, SURROGATE].iter().find_map(|field| Directives::given(headers, field));
        let (said, targeted) = match targeted {
            Some(said) => (said, true),
            None => (Directives::of(headers, &CACHE_CONTROL), false),
        };
        let wanted = Directives::of(asked, &CACHE_CONTROL);
        if *method != Method::GET {
            return Err("method");
        }
        if status.is_informational() || [206, 304].contains(&status.as_u16()) {
            return Err("status");
        }
        if said.must_understand && !understood(status) {
            return Err("status is not understood");
        }
        if wanted.no_store || (said.no_store && !said.must_understand) {
            return Err("no-store");
        }
        if said.private {
            return Err("private");
        }
        let shared = said.public || said.must_revalidate || said.s_maxage.is_some();
        if asked.contains_key(AUTHORIZATION) && !shared {
            return Err("authorization");
        }
        if vary(headers).any(|name| name == "*") {
            return Err("vary");
        }
        let date = date(headers, &DATE).unwrap_or(now);
        let given = given(&said, headers, targeted, date);
        let guessed = given.is_none() && extra.heuristic && (usual(status) || said.public);
        // What is for one visitor is never guessed to be for all.
        let guessed = guessed && headers.contains_key(LAST_MODIFIED) && !headers.contains_key(SET_COOKIE);
        let validator = headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED);
        let lifetime = match given {
            Some(lifetime) => lifetime,
            None if guessed => guess(headers, date),
            None => Duration::ZERO,
        };
        let of = |given: Option<u64>, extra: Duration| given.map_or(extra, Duration::from_secs);
        let facts = Self {
            age: age(headers, date, now, delay),
            lifetime,
            no_cache: said.no_cache,
            strict: said.must_revalidate || said.proxy_revalidate || said.s_maxage.is_some() || said.no_cache,
            while_revalidate: of(said.stale_while_revalidate, extra.while_revalidate),
            if_error: of(said.stale_if_error, extra.if_error),
        };
        if given.is_none() && !guessed && !(validator && (usual(status) || said.public)) {
            return Err("no lifetime");
        }
        let stale = facts.no_cache || facts.age >= facts.lifetime;
        if stale && !validator && facts.grace().is_zero() {
            return Err("stale already");
        }
        Ok(facts)
    }

    /// How old it is, having lain here for `resident`.
    pub(super) fn age(&self, resident: Duration) -> Duration {
        self.age.saturating_add(resident)
    }

    /// How much longer it is fresh, in seconds; below zero if it is stale.
    pub(super) fn ttl(&self, resident: Duration) -> i64 {
        let whole = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        whole(self.lifetime).saturating_sub(whole(self.age(resident)))
    }

    /// How long it is of any use after it has become stale, without being validated.
    fn grace(&self) -> Duration {
        if self.strict { Duration::ZERO } else { self.while_revalidate.max(self.if_error) }
    }

    /// What it is to a request that says this about caches.
    pub(super) fn use_for(&self, asked: &HeaderMap, resident: Duration) -> Use {
        let wanted = wanted(asked);
        let age = self.age(resident);
        let fresh = self.lifetime.saturating_sub(age);
        if self.no_cache || wanted.no_cache || wanted.max_age.is_some_and(|most| age > Duration::from_secs(most)) {
            return Use::Validate;
        }
        if wanted.min_fresh.is_some_and(|least| fresh < Duration::from_secs(least)) {
            return Use::Validate;
        }
        if !fresh.is_zero() {
            return Use::Fresh;
        }
        let stale = age.saturating_sub(self.lifetime);
        if self.strict {
            Use::Validate
        } else if wanted.max_stale.is_some_and(|most| stale <= Duration::from_secs(most)) {
            Use::Fresh
        } else if wanted.max_age.is_none() && wanted.min_fresh.is_none() && stale < self.while_revalidate {
            Use::Meanwhile
        } else {
            Use::Validate
        }
    }

    /// As if it had come just now, and had to be validated the next time.
    pub(super) fn renewed(self) -> Self {
        Self { age: Duration::ZERO, lifetime: Duration::ZERO, ..self }
    }

    /// Whether it may be answered because the service fails.
    pub(super) fn despite_failure(&self, resident: Duration) -> bool {
        !self.strict && self.age(resident).saturating_sub(self.lifetime) < self.if_error
    }
}

/// What a request says about caches; `Pragma: no-cache` where it says nothing else.
pub(super) fn wanted(asked: &HeaderMap) -> Directives {
    let mut wanted = Directives::of(asked, &CACHE_CONTROL);
    if !asked.contains_key(CACHE_CONTROL) {
        wanted.no_cache = Directives::of(asked, &PRAGMA).no_cache;
    }
    wanted
}

/// Statuses whose meaning is known here, RFC 9111, 5.2.2.3.
fn understood(status: StatusCode) -> bool {
    usual(status) || [302, 303, 307, 400, 403, 500, 502, 503, 504].contains(&status.as_u16())
}

/// Statuses that may be stored without being told, RFC 9110, 15.1.
fn usual(status: StatusCode) -> bool {
    [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501].contains(&status.as_u16())
}

/// The lifetime that is given.
fn given(said: &Directives, headers: &HeaderMap, targeted: bool, date: SystemTime) -> Option<Duration> {
    if let Some(seconds) = said.s_maxage.or(said.max_age) {
        return Some(Duration::from_secs(seconds));
    }
    if targeted || !headers.contains_key(EXPIRES) {
        return None;
    }
    let mut all = headers.get_all(EXPIRES).iter();
    let first = all.next();
    // What is no date, or is said twice, has passed.
    let expires = self::date(headers, &EXPIRES).filter(|_| all.all(|other| Some(other) == first));
    Some(expires.and_then(|expires| expires.duration_since(date).ok()).unwrap_or_default())
}

fn guess(headers: &HeaderMap, date: SystemTime) -> Duration {
    let changed = self::date(headers, &LAST_MODIFIED).and_then(|changed| date.duration_since(changed).ok());
    (changed.unwrap_or_default() / HEURISTIC).min(LONGEST_GUESS)
}

/// RFC 9111, 4.2.3. An `Age` that is none, or is said more than once, is older than anything.
fn age(headers: &HeaderMap, date: SystemTime, now: SystemTime, delay: Duration) -> Duration {
    let mut ages = headers.get_all(AGE).iter();
    let said = match (ages.next(), ages.next()) {
        (None, _) => Duration::ZERO,
        (Some(age), None) if age.as_bytes().iter().all(u8::is_ascii_digit) && !age.is_empty() => {
            Duration::from_secs(age.to_str().map_or(0, seconds))
        }
        _ => return Duration::from_secs(1 << 31),
    };
    let apparent = now.duration_since(date).unwrap_or_default();
    // Dates are whole seconds: less than one is no age.
    let apparent = if apparent < Duration::from_secs(1) { Duration::ZERO } else { apparent };
    apparent.max(said.saturating_add(delay))
}

pub(super) fn date(headers: &HeaderMap, field: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(field)?.to_str().ok()?.trim()).ok()
}

/// The fields that an answer depends on.
pub(super) fn vary(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(VARY).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|name| !name.is_empty())
}

/// A field's value, as it is compared: its lines and items apart by a comma, without spaces around them.
pub(super) fn normal(headers: &HeaderMap, field: &HeaderName) -> Option<String> {
    let lines = headers.get_all(field).iter();
    let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    if lines.is_empty() {
        return None;
    }
    Some(lines.iter().flat_map(|line| line.split(',')).map(str::trim).collect::<Vec<_>>().join(","))
}

/// What is stored of an answer's headers; it has a date, of its coming if need be.
pub(super) fn stored(headers: &HeaderMap, now: SystemTime) -> HeaderMap {
    let mut kept = headers.clone();
    if let (None, Ok(now)) = (kept.get(DATE), httpdate::fmt_http_date(now).try_into()) {
        kept.insert(DATE, now);
    }
    let hop = [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, AGE];
    let more = ["keep-alive", "proxy-connection", "proxy-authentication-info", "cache-status"];
    for field in hop.iter().map(HeaderName::as_str).chain(more) {
        kept.remove(field);
    }
    for field in [TARGETED, SURROGATE, CACHE_CONTROL] {
        for field in Directives::of(headers, &field).unstored {
            kept.remove(field);
        }
    }
    kept
}

/// The headers of a stored answer after a 304, RFC 9111, 3.2: those of the new one, but for what belongs to the body.
pub(super) fn freshened(old: &HeaderMap, new: &HeaderMap, now: SystemTime) -> HeaderMap {
    let mut headers = old.clone();
    let new = stored(new, now);
    let kept = [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, ETAG];
    for field in new.keys().filter(|field| !kept.contains(field) && *field != "content-md5") {
        headers.remove(field);
        for value in new.get_all(field) {
            headers.append(field, value.clone());
        }
    }
    headers
}

/// Asks whether a stored answer is still the one.
pub(super) fn ask_whether_changed(request: &mut HeaderMap, stored: &HeaderMap) {
    for (condition, validator) in [(IF_NONE_MATCH, ETAG), (IF_MODIFIED_SINCE, LAST_MODIFIED)] {
        match stored.get(&validator) {
            Some(value) => drop(request.insert(condition, value.clone())),
            None => drop(request.remove(condition)),
        }
    }
}

/// Whether the client has this answer already, RFC 9110, 13.1.
pub(super) fn client_has_it(asked: &HeaderMap, stored: &HeaderMap) -> bool {
    if asked.contains_key(IF_NONE_MATCH) {
        let Some(etag) = stored.get(ETAG).map(|etag| weak(etag.as_bytes())) else { return false };
        let lists = asked.get_all(IF_NONE_MATCH).iter();
        return lists.flat_map(|list| tags(list.as_bytes())).any(|tag| tag == b"*" || weak(tag) == etag);
    }
    let since = date(asked, &IF_MODIFIED_SINCE);
    let changed = date(stored, &LAST_MODIFIED).or_else(|| date(stored, &DATE));
    since.zip(changed).is_some_and(|(since, changed)| changed <= since)
}

fn weak(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The entity tags of a list; commas within quotes are theirs.
fn tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    list.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
    .filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests;
