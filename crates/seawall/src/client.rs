//! Calling services by name, as an HTTP client does.
//!
//! [`Client`] is the gateway's and the sidecar's data plane without a listener in front of it: it knows the instances of a
//! service from the registry, or from a list that it is given, chooses one for each attempt, and keeps to the policies of
//! the service: timeout, retry with its budget, breaker, bulkhead. What may be repeated, and what is counted as what, is
//! said in `docs/resilience.md`; how to use the client in `docs/client.md`.
//!
//! # Examples
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use seawall::Client;
//! use seawall::client::Error;
//!
//! let client = Client::builder()
//!     .service("payment", ["127.0.0.1:9".parse()?])
//!     .policies_from(serde_json::json!({
//!         "default": { "timeout": "2s" },
//!         "payment": { "breaker": { "failure_rate": "30%", "open_for": "5s" }, "bulkhead": { "concurrent": 20 } },
//!     }))
//!     .build()
//!     .await?;
//! let sent = client
//!     .post("http://payment/charges")
//!     .idempotency_key("order-7/pay") // so that a lost answer may be asked for again
//!     .json(&serde_json::json!({ "amount": 1200 }))
//!     .send()
//!     .await;
//! match sent {
//!     Ok(response) => println!("{}", response.error_for_status()?.text().await?),
//!     Err(Error::Rejected(rejected)) => println!("{} says no, until {:?}", rejected.policy, rejected.retry_after),
//!     Err(error) if error.is_unsent() => println!("payment knows nothing of it: {error}"),
//!     Err(error) => println!("it may have been charged: {error}"),
//! }
//! # Ok(())
//! # }
//! ```

mod builder;
mod error;
mod request;
mod response;
mod service;
mod target;

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use seawall_drain::Trigger;

pub use builder::{BuildError, ClientBuilder};
pub use error::{Error, Rejected};
pub use request::RequestBuilder;
pub use response::{Body, Response};
pub use service::ResponseFuture;

use request::Draft;
use target::Target;

/// Calls services by name, under their policies. Cheap to clone: all clones share connections and the state of the
/// policies. When the last one is dropped it stops following the registry and closes its idle connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    calls: seawall_proxy::Client,
    /// The largest answer that is read whole.
    body_limit: usize,
    /// Ends the task that follows the registry when it is dropped.
    _following: Option<Trigger>,
}

impl Client {
    /// What a client is made of.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// `GET`; see [`Client::request`].
    pub fn get(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// `POST`; see [`Client::request`]. Repeated only with an [idempotency key](RequestBuilder::idempotency_key), or when
    /// it was provably not sent.
    pub fn post(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::POST, url)
    }

    /// `PUT`; see [`Client::request`].
    pub fn put(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::PUT, url)
    }

    /// `PATCH`; see [`Client::request`]. Repeated only with an [idempotency key](RequestBuilder::idempotency_key), or when
    /// it was provably not sent.
    pub fn patch(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::PATCH, url)
    }

    /// `DELETE`; see [`Client::request`].
    pub fn delete(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::DELETE, url)
    }

    /// `HEAD`; see [`Client::request`].
    pub fn head(&self, url: impl AsRef<str>) -> RequestBuilder {
        self.request(Method::HEAD, url)
    }

    /// A request to `http://<service>/<path>`; `<service>/<path>` is the same. In the place of the host stands the name of
    /// a service: an address or a port is refused when the request is sent, and so is a path with a `.` or `..` segment.
    /// Characters that a URL may not hold are percent-encoded.
    pub fn request(&self, method: Method, url: impl AsRef<str>) -> RequestBuilder {
        RequestBuilder::new(self.clone(), method, url.as_ref())
    }

    /// Sends a request that was made elsewhere; its URI is that of [`Client::request`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn execute(&self, request: http::Request<impl Into<Bytes>>) -> Result<Response, Error> {
        let (parts, body) = request.into_parts();
        let target = Target::parse(&parts.uri.to_string())?;
        let mut draft = Draft::new(parts.method, target);
        draft.headers = parts.headers;
        draft.body = body.into();
        self.send(draft).await
    }

    async fn send(&self, draft: Draft) -> Result<Response, Error> {
        let body_limit = draft.body_limit.unwrap_or(self.inner.body_limit);
        let (service, request) = draft.finish()?;
        match self.inner.calls.send(&service, request).await {
            Ok(answer) => Ok(Response::new(service, answer, body_limit)),
            Err(error) => Err(error.into()),
        }
    }
}
