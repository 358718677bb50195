//! A shared cache of a route's answers, by RFC 9111.
//!
//! A request finds a stored answer that is fresh; or has a stale one validated; or fetches one, for all who ask for the same
//! meanwhile. What the service says decides; the operator may add to it.

mod capture;
mod directives;
mod policy;
mod range;
mod store;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use http::header::{
    AGE, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, ETAG, HOST, HeaderMap, HeaderName, HeaderValue, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, LOCATION, RANGE, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Uri};
use schemars::JsonSchema;
use seawall_proxy::filter::{Answering, Filter, Later, Next};
use seawall_proxy::metrics::Counter;
use seawall_proxy::{RequestBody, ResponseBody};
use seawall_types::header::REJECTED;
use seawall_types::{Period, Size};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use self::capture::{Capture, Catch};
use self::policy::{Extra, Facts, Use};
pub use self::store::Purge;
use self::store::{Entry, Found, Lead, Store};
use super::{FilterError, name, refused};

/// What is kept of a route's answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// How much memory all stored answers may take. Default 64 MiB.
    pub size: Size,
    /// The largest body that is stored; at most `size`. Default 1 MiB.
    pub max_object: Size,
    /// Request headers whose values tell answers apart, whatever the service says of them.
    pub by: Vec<String>,
    /// Whether answers without a lifetime are fresh for a tenth of the time since they last changed, a day at most. Default true.
    pub heuristic: bool,
    /// The longest that a request waits for another that fetches the same, at most 60s; 0s fetches at once. Default 5s.
    pub coalesce: Period,
    /// How long a stale answer may be given while a new one is fetched, where the service does not say. Default 0s.
    pub stale_while_revalidate: Period,
    /// How long a stale answer may be given when the service fails, where it does not say. Default 0s.
    pub stale_if_error: Period,
    /// Whether the client's `Cache-Control` is obeyed; otherwise only the service's. Default true.
    pub obey_clients: bool,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            size: Size::bytes(64 << 20),
            max_object: Size::bytes(1 << 20),
            by: Vec::new(),
            heuristic: true,
            coalesce: Period::secs(5),
            stale_while_revalidate: Period::default(),
            stale_if_error: Period::default(),
            obey_clients: true,
        }
    }
}

/// How long nobody waits for a URL whose answer could not be stored.
const PASS: Duration = Duration::from_secs(10);
/// How many such URLs are remembered.
const PASSES: usize = 1024;
/// What is held of a body at first.
const FIRST: u64 = 16 << 10;
/// How many answers are renewed in the background at a time.
const RENEWALS: usize = 64;

/// The cache of a route, or of a gateway where it stands among its filters.
#[derive(Clone, Debug)]
pub(crate) struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    limit: usize,
    by: Vec<HeaderName>,
    coalesce: Duration,
    extra: Extra,
    obey_clients: bool,
    passes: Mutex<std::collections::HashMap<Arc<str>, Instant>>,
    renewals: tokio::sync::Semaphore,
    counters: OnceLock<[Arc<Counter>; Outcome::ALL.len()]>,
    place: String,
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Hit,
    Stale,
    Validated,
    Miss,
    Bypass,
}

impl Outcome {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Hit, "hit"),
        (Self::Stale, "stale"),
        (Self::Validated, "validated"),
        (Self::Miss, "miss"),
        (Self::Bypass, "bypass"),
    ];
}

impl Cache {
    pub(crate) fn try_new(config: &CacheConfig, place: &str) -> Result<Self, FilterError> {
        let bytes = |size: Size| usize::try_from(size.get()).unwrap_or(usize::MAX);
        if config.max_object.get() > config.size.get() || config.size.get() == 0 {
            let what =
                format!("`max_object` is {}, which does not fit into `size`, {}", config.max_object, config.size);
            return Err(FilterError(what));
        }
        if config.coalesce > Period::secs(60) {
            return Err(FilterError(format!("`coalesce` is {}, at most 60s is allowed", config.coalesce)));
        }
        let extra = Extra {
            heuristic: config.heuristic,
            while_revalidate: config.stale_while_revalidate.get(),
            if_error: config.stale_if_error.get(),
        };
        Ok(Self(Arc::new(Inner {
            store: Arc::new(Store::new(bytes(config.size))),
            limit: bytes(config.max_object),
            by: config.by.iter().map(|field| name(field)).collect::<Result<_, _>>()?,
            coalesce: config.coalesce.get(),
            extra,
            obey_clients: config.obey_clients,
            passes: Mutex::default(),
            renewals: tokio::sync::Semaphore::new(RENEWALS),
            counters: OnceLock::new(),
            place: place.to_owned(),
        })))
    }
}

/// The caches of a gateway: to look at them, and to throw out what is stored.
#[derive(Clone, Debug, Default)]
pub struct Caches(Vec<Cache>);

impl Caches {
    /// Of many, each once.
    pub(crate) fn of<'a>(all: impl Iterator<Item = &'a Cache>) -> Self {
        let mut caches: Vec<Cache> = Vec::new();
        for cache in all {
            if !caches.iter().any(|other| Arc::ptr_eq(&other.0, &cache.0)) {
                caches.push(cache.clone());
            }
        }
        Self(caches)
    }

    /// Throws out what is meant, also what is on its way to be stored. Says how many answers were stored.
    pub fn purge(&self, purge: &Purge) -> usize {
        self.0.iter().map(|cache| cache.0.store.purge(purge)).sum()
    }

    /// For each cache its route (nothing where it is that of the whole gateway), how many answers it has, and how many bytes.
    pub fn sums(&self) -> Vec<(&str, usize, usize)> {
        let sums = |cache: &'_ Cache| cache.0.store.sums();
        self.0.iter().map(|cache| (&*cache.0.place, sums(cache).0, sums(cache).1)).collect()
    }
}

impl Filter for Cache {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(self.0.answer(request, next))
    }
}

impl Inner {
    async fn answer(self: &Arc<Self>, mut request: Request<RequestBody>, next: Next<'_>) -> Response<ResponseBody> {
        if !self.obey_clients {
            request.headers_mut().remove(http::header::CACHE_CONTROL);
            request.headers_mut().remove(http::header::PRAGMA);
        }
        let key = self.key(&request, next);
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return self.pass_other(&key, request, next).await;
        }
        let asked = request.headers();
        let wanted = policy::wanted(asked);
        let conditions = [IF_MATCH, IF_UNMODIFIED_SINCE, IF_RANGE, UPGRADE];
        if wanted.no_store
            || !matches!(request.body(), RequestBody::Empty)
            || conditions.iter().any(|c| asked.contains_key(c))
        {
            return self.pass(request, next, "fwd=request").await;
        }
        let mut found = self.store.find(&key, asked);
        if let Some(answer) = self.stored(&found, &request, next, false) {
            return answer;
        }
        if wanted.only_if_cached {
            self.count(next, Outcome::Miss);
            return refused(StatusCode::GATEWAY_TIMEOUT, "nothing is stored that would answer this");
        }
        if asked.contains_key(RANGE) {
            return self.pass(request, next, "fwd=partial").await;
        }
        if *request.method() == Method::HEAD {
            return self.head(&found, request, next).await;
        }
        // Until it is dropped, others wait for it.
        let (mut lead, before) = self.store.lead(&key);
        let mut collapsed = false;
        // One for whom the answer would be another's, or who asks for a new one, does not wait.
        let alone = matches!(found, Found::OtherVariants)
            || wanted.no_cache
            || asked.contains_key(http::header::AUTHORIZATION)
            || asked.contains_key(IF_NONE_MATCH)
            || asked.contains_key(IF_MODIFIED_SINCE)
            || self.coalesce.is_zero()
            || self.passes(&key);
        if let Some(mut other) = before.filter(|_| !alone) {
            drop(lead);
            // Ends with an error, when whoever fetches has done so.
            collapsed = timeout(self.coalesce, other.changed()).await.is_ok();
            found = self.store.find(&key, request.headers());
            if let Some(answer) = self.stored(&found, &request, next, true) {
                return answer;
            }
            (lead, _) = self.store.lead(&key);
        }
        let stale = match found {
            Found::Entry(entry) => Some(entry),
            Found::OtherVariants => {
                return self.fetch(request, next, (lead, None), "fwd=vary-miss").await;
            }
            Found::Nothing => None,
        };
        let how = match (&stale, collapsed) {
            (Some(_), _) => "fwd=stale",
            (None, true) => "fwd=uri-miss; collapsed=?0",
            (None, false) => "fwd=uri-miss",
        };
        self.fetch(request, next, (lead, stale), how).await
    }

    /// The stored answer, if it may be given; one that may be given only for now is renewed meanwhile. `collapsed` if somebody
    /// else has fetched it for this request too.
    fn stored(
        self: &Arc<Self>,
        found: &Found,
        request: &Request<RequestBody>,
        next: Next<'_>,
        collapsed: bool,
    ) -> Option<Response<ResponseBody>> {
        let Found::Entry(entry) = found else { return None };
        let resident = entry.resident();
        let ttl = entry.facts.ttl(resident);
        let how = if collapsed { "fwd=uri-miss; collapsed".to_owned() } else { format!("hit; ttl={ttl}") };
        match entry.facts.use_for(request.headers(), resident) {
            Use::Fresh => {
                let answer = give(entry, request.headers(), &how)?;
                self.count(next, if ttl > 0 { Outcome::Hit } else { Outcome::Stale });
                Some(answer)
            }
            Use::Meanwhile => {
                let answer = give(entry, request.headers(), &format!("{how}; detail=stale-while-revalidate"))?;
                self.count(next, Outcome::Stale);
                self.renew(entry, request, next.later());
                Some(answer)
            }
            Use::Validate => None,
        }
    }

    /// Fetches a newer answer in the background, unless somebody does so already.
    fn renew(self: &Arc<Self>, entry: &Arc<Entry>, request: &Request<RequestBody>, later: Later) {
        if self.renewals.available_permits() == 0 {
            return;
        }
        let (lead, before) = self.store.lead(&entry.key);
        if before.is_some() {
            return;
        }
        let mut again = Request::new(RequestBody::Empty);
        *again.uri_mut() = request.uri().clone();
        *again.version_mut() = request.version();
        again.headers_mut().clone_from(request.headers());
        *again.extensions_mut() = request.extensions().clone();
        for condition in [IF_NONE_MATCH, IF_MODIFIED_SINCE, RANGE] {
            again.headers_mut().remove(condition);
        }
        let (this, entry) = (self.clone(), entry.clone());
        tokio::spawn(async move {
            let Ok(_permit) = this.renewals.try_acquire() else { return };
            let response = this.fetch(again, later.next(), (lead, Some(entry)), "fwd=stale").await;
            let (mut body, limit) = (response.into_body(), this.limit.saturating_mul(2));
            let mut read = 0;
            // It is stored as it passes.
            while let Some(Ok(frame)) = http_body_util::BodyExt::frame(&mut body).await {
                read += frame.data_ref().map_or(0, bytes::Bytes::len);
                if read > limit {
                    return;
                }
            }
        });
    }

    /// Asks the service, and stores what it says if that may be.
    async fn fetch(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
        next: Next<'_>,
        (lead, stale): (Lead, Option<Arc<Entry>>),
        how: &str,
    ) -> Response<ResponseBody> {
        let (asked, key) = (request.headers().clone(), self.key(&request, next));
        let validates = |entry: &Entry| [ETAG, LAST_MODIFIED].iter().any(|field| entry.headers.contains_key(field));
        let conditional = stale.as_ref().filter(|stale| validates(stale));
        if let Some(stale) = conditional {
            policy::ask_whether_changed(request.headers_mut(), &stale.headers);
        }
        let began = Instant::now();
        let mut response = next.run(request).await;
        let (status, ours) = (response.status(), response.headers().contains_key(REJECTED));
        if let Some(stale) = conditional
            && status == StatusCode::NOT_MODIFIED
        {
            self.count(next, Outcome::Validated);
            let entry = self.freshen(stale, lead, &asked, response.headers(), began.elapsed());
            return give(&entry, &asked, &format!("{how}; fwd-status=304")).unwrap_or(response);
        }
        if let Some(stale) = &stale {
            let failed = [500, 502, 503, 504].contains(&status.as_u16());
            if failed && stale.facts.despite_failure(stale.resident()) {
                self.count(next, Outcome::Stale);
                let how = format!("{how}; fwd-status={}; detail=stale-if-error", status.as_u16());
                return give(stale, &asked, &how).unwrap_or(response);
            }
            if !failed && status != StatusCode::NOT_MODIFIED {
                self.store.remove(stale);
            }
        }
        self.count(next, Outcome::Miss);
        let facts = match ours {
            true => Err("not the service's answer"),
            false => Facts::of(
                (&Method::GET, &asked),
                (status, response.headers()),
                SystemTime::now(),
                began.elapsed(),
                self.extra,
            ),
        };
        let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let large = length.is_some_and(|length: u64| length > self.limit as u64);
        let facts = facts.and_then(|facts| if large { Err("too large") } else { Ok(facts) });
        match facts {
            Err(why) => {
                if !status.is_server_error() {
                    self.note_pass(&key);
                }
                tell(response.headers_mut(), &format!("{how}; detail=\"{why}\""));
                response
            }
            Ok(facts) => {
                let headers = policy::stored(response.headers(), SystemTime::now());
                tell(response.headers_mut(), &format!("{how}; stored"));
                let body = BytesMut::with_capacity(length.unwrap_or(0).min(FIRST) as usize);
                let limit = self.limit;
                let catch = Catch { lead, asked, key, status, headers, facts, limit, length, body };
                response.map(|body| ResponseBody::made(Capture::new(body, catch)))
            }
        }
    }

    /// What a 304 makes of a stored answer.
    fn freshen(
        &self,
        stale: &Arc<Entry>,
        lead: Lead,
        asked: &HeaderMap,
        new: &HeaderMap,
        delay: Duration,
    ) -> Arc<Entry> {
        let now = SystemTime::now();
        let headers = policy::freshened(&stale.headers, new, now);
        let mut judged = headers.clone();
        if let Some(age) = new.get(AGE) {
            judged.insert(AGE, age.clone());
        }
        let facts = Facts::of((&Method::GET, asked), (stale.status, &judged), now, delay, self.extra);
        match facts {
            Ok(facts) => {
                let answer = (stale.status, headers, stale.body.clone());
                lead.put(Entry::new(stale.key.clone(), asked, answer, facts), asked)
            }
            Err(_) => {
                self.store.remove(stale);
                let answer = (stale.status, headers, stale.body.clone());
                Arc::new(Entry::new(stale.key.clone(), asked, answer, stale.facts.clone().renewed()))
            }
        }
    }

    /// A HEAD for which there is nothing fresh: its answer may say that what is stored is no longer the one.
    async fn head(&self, found: &Found, request: Request<RequestBody>, next: Next<'_>) -> Response<ResponseBody> {
        let how = if matches!(found, Found::Entry(_)) { "fwd=stale" } else { "fwd=uri-miss" };
        let response = self.pass(request, next, how).await;
        if let Found::Entry(entry) = found
            && response.status() == StatusCode::OK
        {
            let differs = |field: &HeaderName| {
                response.headers().get(field).is_some_and(|new| entry.headers.get(field).is_some_and(|old| old != new))
            };
            if [ETAG, LAST_MODIFIED, CONTENT_LENGTH].iter().any(differs) {
                self.store.remove(entry);
            }
        }
        response
    }

    async fn pass(&self, request: Request<RequestBody>, next: Next<'_>, how: &str) -> Response<ResponseBody> {
        self.count(next, Outcome::Bypass);
        let mut response = next.run(request).await;
        tell(response.headers_mut(), how);
        response
    }

    /// Another method; if it changes something, what is stored of the same URL is no longer so.
    async fn pass_other(&self, key: &str, request: Request<RequestBody>, next: Next<'_>) -> Response<ResponseBody> {
        let (safe, uri) = (request.method().is_safe(), request.uri().clone());
        let host = host(request.uri(), request.headers());
        let response = self.pass(request, next, "fwd=method").await;
        let status = response.status();
        if !safe && (status.is_success() || status.is_redirection()) {
            let url = key.split('\0').next().unwrap_or(key);
            self.store.purge(&Purge::Url(url.to_owned()));
            for field in [LOCATION, CONTENT_LOCATION] {
                let place = response.headers().get(field).and_then(|place| place.to_str().ok());
                if let Some(url) = place.and_then(|place| same_host(&host, &uri, place)) {
                    self.store.purge(&Purge::Url(url));
                }
            }
        }
        response
    }

    /// The URL without its scheme, and what else tells answers apart: where the request goes, and what it was told to look at.
    fn key(&self, request: &Request<RequestBody>, next: Next<'_>) -> Arc<str> {
        let (uri, headers) = (request.uri(), request.headers());
        let mut key = host(uri, headers);
        key += uri.path_and_query().map_or("/", |path| path.as_str());
        let route = if self.place.is_empty() { next.route() } else { "" };
        let _ = write!(key, "\0{route}\0{}", next.service());
        for field in &self.by {
            let _ = write!(key, "\0{}", policy::normal(headers, field).unwrap_or_default());
        }
        key.into()
    }

    fn passes(&self, key: &str) -> bool {
        let passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
        passes.get(key).is_some_and(|since| since.elapsed() < PASS)
    }

    fn note_pass(&self, key: &Arc<str>) {
        let mut passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
        if passes.len() >= PASSES {
            passes.retain(|_, since| since.elapsed() < PASS);
        }
        if passes.len() < PASSES {
            passes.insert(key.clone(), Instant::now());
        }
    }

    fn count(&self, next: Next<'_>, outcome: Outcome) {
        let counters = self.counters.get_or_init(|| {
            Outcome::ALL.map(|(_, result)| {
                let help = "Requests that came to a cache, by what they found.";
                let labels = [("route", &*self.place), ("result", result)];
                next.counter("seawall_cache_requests_total", help, &labels)
            })
        });
        counters[outcome as usize].increment();
    }
}

fn host(uri: &Uri, headers: &HeaderMap) -> String {
    let given = uri.authority().map(|authority| authority.as_str());
    let given = given.or_else(|| headers.get(HOST).and_then(|host| host.to_str().ok()));
    given.unwrap_or_default().to_ascii_lowercase()
}

/// The URL, without its scheme, that an answer of `host` names; `None` if it is another's.
fn same_host(host: &str, base: &Uri, place: &str) -> Option<String> {
    if let Some(rest) = place.strip_prefix("http://").or_else(|| place.strip_prefix("https://")) {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let own = rest[..end].eq_ignore_ascii_case(host);
        return own.then(|| format!("{host}{}", rest[end..].split('#').next().unwrap_or_default()));
    }
    let place = place.split('#').next().unwrap_or_default();
    if place.starts_with("//") || place.split('/').next().is_some_and(|first| first.contains(':')) {
        return None;
    }
    if place.starts_with('/') {
        return Some(format!("{host}{place}"));
    }
    let path = base.path();
    let folder = &path[..=path.rfind('/')?];
    Some(if place.is_empty() { format!("{host}{base}") } else { format!("{host}{folder}{place}") })
}

/// The stored answer to a request; `None` if it asks for a part that cannot be given.
fn give(entry: &Entry, asked: &HeaderMap, how: &str) -> Option<Response<ResponseBody>> {
    let mut headers = entry.headers.clone();
    headers.insert(AGE, entry.facts.age(entry.resident()).as_secs().into());
    tell(&mut headers, how);
    let (mut status, mut body) = (entry.status, entry.body.clone());
    if status == StatusCode::OK && policy::client_has_it(asked, &entry.headers) {
        (status, body) = (StatusCode::NOT_MODIFIED, bytes::Bytes::new());
        headers.remove(CONTENT_LENGTH);
    } else if let Some(wanted) = asked.get(RANGE).filter(|_| status == StatusCode::OK) {
        let range = range::range(wanted.to_str().ok()?, body.len())?;
        let all = body.len();
        let place = format!("bytes {}-{}/{all}", range.start, range.end - 1);
        body = body.slice(range);
        status = StatusCode::PARTIAL_CONTENT;
        headers.insert(CONTENT_RANGE, HeaderValue::try_from(place).ok()?);
        headers.insert(CONTENT_LENGTH, body.len().into());
    }
    let mut response = Response::new(ResponseBody::whole(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Some(response)
}

/// `Cache-Status`, RFC 9211, behind what caches nearer to the service have said.
fn tell(headers: &mut HeaderMap, how: &str) {
    const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
    if let Ok(value) = HeaderValue::try_from(format!("seawall; {how}")) {
        headers.append(CACHE_STATUS, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_the_same_host_are_found() {
        let base: Uri = "/a/b?c".parse().expect("a URI");
        for (place, expect) in [
            ("/x?y#z", Some("h:1/x?y")),
            ("x", Some("h:1/a/x")),
            ("", Some("h:1/a/b?c")),
            ("http://H:1/x", Some("h:1/x")),
            ("https://h:1", Some("h:1")),
            ("http://other/x", None),
            ("//h:1/x", None),
            ("mailto:a@b", None),
        ] {
            assert_eq!(same_host("h:1", &base, place).as_deref(), expect, "{place}");
        }
    }
}
