//! A request in the making.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use seawall_proxy::headers::{self, strip_hop_by_hop};
use seawall_types::{ServiceName, header};
use serde::Serialize;

use super::target::Target;
use super::{Client, Error, Response};

/// A request in the making. A mistake on the way is reported by [`RequestBuilder::send`], which sends nothing then.
#[derive(Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct RequestBuilder {
    client: Client,
    draft: Result<Draft, Error>,
}

/// What is known of it.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) timeout: Option<Duration>,
    pub(crate) body_limit: Option<usize>,
}

impl Draft {
    pub(crate) fn new(method: Method, target: Target) -> Self {
        Self { method, target, headers: HeaderMap::new(), body: Bytes::new(), timeout: None, body_limit: None }
    }

    /// The service, and the request as the data plane wants it.
    pub(crate) fn finish(self) -> Result<(ServiceName, Request<Bytes>), Error> {
        let Self { method, target: Target { service, path }, mut headers, body, timeout, body_limit: _ } = self;
        if method == Method::CONNECT {
            let detail = "CONNECT is not supported".to_owned();
            return Err(Error::Request { target: service.to_string(), detail, sent: false });
        }
        // How the body travels is decided on the way, not by headers that were copied from another request.
        strip_hop_by_hop(&mut headers);
        headers.remove(CONTENT_LENGTH);
        if let Some(timeout) = timeout {
            // Whoever called us may be giving less.
            let left = headers::timeout(&headers).map_or(timeout, |given| given.min(timeout));
            headers::set_timeout(&mut headers, left);
        }
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.into();
        *request.headers_mut() = headers;
        Ok((service, request))
    }
}

#[cfg(feature = "fenced")]
impl seawall_fenced::header::FencedBy for RequestBuilder {
    fn fenced_by<B: seawall_coord::Backend<Class: seawall_coord::Fences>>(
        self,
        guard: &seawall_coord::Guard<B>,
    ) -> Self {
        use seawall_fenced::header::{NAME, value};
        self.header(NAME, value(guard.name(), guard.fence()))
    }
}

impl RequestBuilder {
    pub(crate) fn new(client: Client, method: Method, url: &str) -> Self {
        Self { client, draft: Target::parse(url).map(|target| Draft::new(method, target)) }
    }

    fn with(mut self, change: impl FnOnce(&mut Draft) -> Result<(), String>) -> Self {
        if let Ok(draft) = &mut self.draft
            && let Err(detail) = change(draft)
        {
            self.draft = Err(Error::Request { target: draft.target.service.to_string(), detail, sent: false });
        }
        self
    }

    /// Adds a header; one that is there already stays. `Host`, `Content-Length` and the headers of a single hop are the
    /// client's own.
    pub fn header<K, V>(self, name: K, value: V) -> Self
    where
        K: TryInto<HeaderName, Error: Display>,
        V: TryInto<HeaderValue, Error: Display>,
    {
        self.with(|draft| {
            let name = name.try_into().map_err(|error| format!("a header's name is not valid: {error}"))?;
            let value = value.try_into().map_err(|error| format!("the value of `{name}` is not valid: {error}"))?;
            draft.headers.append(name, value);
            Ok(())
        })
    }

    /// Sets headers; those of the same names are replaced.
    pub fn headers(self, headers: HeaderMap) -> Self {
        self.with(|draft| {
            draft.headers.extend(headers);
            Ok(())
        })
    }

    /// Appends `pairs` to the query, encoded as a form is: a struct, a map, or a list of pairs.
    pub fn query<T: Serialize + ?Sized>(self, pairs: &T) -> Self {
        self.with(|draft| {
            let pairs = serde_urlencoded::to_string(pairs).map_err(|error| format!("the query: {error}"))?;
            draft.target.add_query(&pairs)
        })
    }

    /// The body, as JSON; sets `Content-Type` unless it is set.
    pub fn json<T: Serialize + ?Sized>(self, body: &T) -> Self {
        self.with(|draft| {
            let body = serde_json::to_vec(body).map_err(|error| format!("the body is no JSON: {error}"))?;
            draft.content(body.into(), "application/json");
            Ok(())
        })
    }

    /// The body, as a form; sets `Content-Type` unless it is set.
    pub fn form<T: Serialize + ?Sized>(self, pairs: &T) -> Self {
        self.with(|draft| {
            let body = serde_urlencoded::to_string(pairs).map_err(|error| format!("the body is no form: {error}"))?;
            draft.content(body.into(), "application/x-www-form-urlencoded");
            Ok(())
        })
    }

    /// The body as it is.
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        self.with(|draft| {
            draft.body = body.into();
            Ok(())
        })
    }

    /// `Authorization: Bearer …`, which is kept out of logs.
    pub fn bearer_auth(self, token: impl Display) -> Self {
        self.with(|draft| {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|_| "the token is not valid in a header".to_owned())?;
            value.set_sensitive(true);
            draft.headers.insert(AUTHORIZATION, value);
            Ok(())
        })
    }

    /// Gives this call less time than the policy does; more it cannot give. It bounds all attempts and the reading of the
    /// whole answer, and travels to the service as `seawall-timeout-ms`, so that nobody works for a caller that has gone.
    /// Running into it does not count against the service.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|draft| {
            draft.timeout = Some(timeout);
            Ok(())
        })
    }

    /// The key by which the service recognises this request when it comes again; with it a `POST` or `PATCH` may be
    /// repeated although it may have arrived.
    pub fn idempotency_key(self, key: impl Display) -> Self {
        self.with(|draft| {
            let value = HeaderValue::try_from(key.to_string());
            let value = value.map_err(|_| format!("`{key}` cannot be an idempotency key: a header cannot hold it"))?;
            draft.headers.insert(header::IDEMPOTENCY_KEY, value);
            Ok(())
        })
    }

    /// Reads at most so many bytes of this answer as a whole; see [`ClientBuilder::body_limit`].
    ///
    /// [`ClientBuilder::body_limit`]: super::ClientBuilder::body_limit
    pub fn body_limit(self, bytes: usize) -> Self {
        self.with(|draft| {
            draft.body_limit = Some(bytes);
            Ok(())
        })
    }

    /// Makes the call, up to the head of the answer.
    ///
    /// Cancel safe: dropped at any point, it gives back its place in the bulkhead, its permit of the breaker and its
    /// connection. What the service makes of a request that was dropped so is unknown.
    ///
    /// # Errors
    /// [`Error`] when there is no answer of the service's own, or the request is not one.
    pub async fn send(self) -> Result<Response, Error> {
        self.client.send(self.draft?).await
    }
}

impl Draft {
    fn content(&mut self, body: Bytes, kind: &'static str) {
        self.body = body;
        self.headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(kind));
    }
}
