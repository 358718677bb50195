//! Filters: what stands between a route and its service. A request passes a route's steps from the first to the last, its
//! answer from the last to the first.
//!
//! Most steps change a header and cost nothing else. Whatever waits, answers by itself, or looks into bodies is a [`Filter`]
//! around all that comes after it.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode};
pub use seawall_telemetry::metrics::Counter;

use crate::body::{RequestBody, ResponseBody};
use crate::client::Client;
use crate::pipeline::{Matched, Pipeline};

/// Something around all steps that come after it: it may pass the request on, change it before and the answer after, answer
/// by itself, or ask elsewhere first. One value serves all requests of its route, on all workers.
///
/// ```
/// use http::{Request, Response};
/// use seawall_proxy::filter::{Answering, Filter, Next};
/// use seawall_proxy::{RequestBody, ResponseBody};
///
/// #[derive(Debug)]
/// struct Stamp;
///
/// impl Filter for Stamp {
///     fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
///         Box::pin(async move {
///             let mut response = next.run(request).await;
///             response.headers_mut().insert("x-stamp", "1".parse().expect("a value"));
///             response
///         })
///     }
/// }
/// ```
pub trait Filter: fmt::Debug + Send + Sync + 'static {
    /// The answer to a request. What comes after is [`Next::run`]. The future is dropped when the client has gone.
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a>;

    /// What kind it is, for metrics. Default: the name of its type.
    fn name(&self) -> &'static str {
        let name = std::any::type_name::<Self>();
        name.rsplit("::").next().unwrap_or(name)
    }
}

/// An answer on its way.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Response<ResponseBody>> + Send + 'a>>;

/// One step of a route.
#[derive(Clone, Debug)]
pub enum Step {
    /// Changes the request's headers.
    Request(HeaderOp),
    /// Changes the answer's headers.
    Response(HeaderOp),
    /// Everything else.
    Around(Arc<dyn Filter>),
}

/// One change of headers.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderOp {
    /// Replaces what is there.
    Set(HeaderName, HeaderValue),
    /// Stands beside what is there.
    Add(HeaderName, HeaderValue),
    /// Takes it away.
    Remove(HeaderName),
    /// Only if it is not there.
    Default(HeaderName, HeaderValue),
    /// Gives the second the values of the first, if that is there.
    Copy(HeaderName, HeaderName),
}

impl HeaderOp {
    /// Makes it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Self::Set(name, value) => drop(headers.insert(name.clone(), value.clone())),
            Self::Add(name, value) => drop(headers.append(name.clone(), value.clone())),
            Self::Remove(name) => drop(headers.remove(name)),
            Self::Default(name, value) => drop(headers.entry(name).or_insert_with(|| value.clone())),
            Self::Copy(from, to) => {
                let values: Vec<_> = headers.get_all(from).iter().cloned().collect();
                if !values.is_empty() {
                    headers.remove(to);
                    for value in values {
                        headers.append(to, value);
                    }
                }
            }
        }
    }
}

/// As a request's extension: the `Host` that the service is called by, instead of its own name.
#[derive(Clone, Debug)]
pub struct CalledBy(pub HeaderValue);

/// As a request's extension: which endpoint it had rather go to. The answer then says by [`AnsweredBy`] where it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// This one, while it is up and has not failed this call.
    pub endpoint: Option<SocketAddr>,
    /// Otherwise the one that this number falls to: the same among the same endpoints, and for most numbers still the same when
    /// one comes or goes.
    pub key: u64,
}

/// As an answer's extension: the endpoint that gave it, where [`Affinity`] was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnsweredBy(pub SocketAddr);

/// What is known of a request that has found its route.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) matched: Matched,
    pub(crate) arrived: Instant,
    pub(crate) client: Option<IpAddr>,
    /// What has just been spent after a filter, in nanoseconds.
    pub(crate) after: AtomicU64,
}

/// The steps that are still to come, and the service after them.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    pub(crate) pipeline: &'a Arc<Pipeline>,
    pub(crate) exchange: &'a Exchange,
    pub(crate) steps: &'a [Step],
    /// Whether it is a filter that goes on.
    pub(crate) filtered: bool,
}

impl<'a> Next<'a> {
    /// The answer of what comes after. May be asked more than once.
    pub async fn run(self, mut request: Request<RequestBody>) -> Response<ResponseBody> {
        let begun = self.filtered.then(Instant::now);
        for (at, step) in self.steps.iter().enumerate() {
            match step {
                Step::Request(op) => op.apply(request.headers_mut()),
                Step::Response(_) => {}
                Step::Around(filter) => {
                    let next = Self { steps: &self.steps[at + 1..], filtered: true, ..self };
                    let begun = Instant::now();
                    let mut response = filter.call(request, next).await;
                    let (took, after) = (begun.elapsed(), self.exchange.after.swap(0, Ordering::Relaxed));
                    self.pipeline.filtered(filter.name(), took.saturating_sub(Duration::from_nanos(after)));
                    on_response(&self.steps[..at], response.headers_mut());
                    self.spent(Some(begun));
                    return response;
                }
            }
        }
        let mut response = self.pipeline.end(self.exchange, request).await;
        on_response(self.steps, response.headers_mut());
        self.spent(begun);
        response
    }

    fn spent(&self, begun: Option<Instant>) {
        if let Some(begun) = begun.filter(|_| self.filtered) {
            let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.exchange.after.store(nanos, Ordering::Relaxed);
        }
    }

    /// Whose request it is, at the edge; see [`Asked::client`](crate::Asked::client).
    pub fn client(&self) -> Option<IpAddr> {
        self.exchange.client
    }

    /// The route's name.
    pub fn route(&self) -> &'a str {
        &self.exchange.matched.route.id
    }

    /// The service that the request goes to.
    pub fn service(&self) -> &'a str {
        self.exchange.matched.service.as_str()
    }

    /// When the request came.
    pub fn arrived(&self) -> Instant {
        self.exchange.arrived
    }

    /// The path and query that the service sees, where the route changes them.
    pub fn target(&self) -> Option<&'a PathAndQuery> {
        self.exchange.matched.path.as_ref()
    }

    /// How long the service's policy gives a whole call; for waits that nothing else bounds.
    pub fn timeout(&self) -> Duration {
        let timeout = self.pipeline.timeout_of(&self.exchange.matched.service);
        if timeout.is_zero() { Duration::from_secs(10) } else { timeout }
    }

    /// Where the service's instances are that are up.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        self.pipeline.endpoints_of(&self.exchange.matched.service)
    }

    /// A counter on the page of metrics, the same for the same family and labels; to be kept, for finding it takes a lock.
    pub fn counter(&self, family: &'static str, help: &'static str, labels: &[(&'static str, &str)]) -> Arc<Counter> {
        self.pipeline.counter(family, help, labels)
    }

    /// The same, to be asked when the request is over: for what is done in the background. What it is asked then arrives then.
    pub fn later(&self) -> Later {
        let Exchange { matched, client, .. } = self.exchange;
        let at = matched.route.steps.len() - self.steps.len();
        let arrived = Instant::now();
        let exchange = Exchange { matched: matched.clone(), arrived, client: *client, after: AtomicU64::new(0) };
        Later { pipeline: self.pipeline.clone(), exchange, at }
    }

    /// For calls to other services, under their policies; may outlive the request.
    pub fn caller(&self) -> Client {
        Client::of(self.pipeline.clone())
    }
}

/// The steps that are still to come for a request that is over.
#[derive(Debug)]
pub struct Later {
    pipeline: Arc<Pipeline>,
    exchange: Exchange,
    /// The first of them among those of the route.
    at: usize,
}

impl Later {
    /// What comes after.
    pub fn next(&self) -> Next<'_> {
        let steps = &self.exchange.matched.route.steps[self.at..];
        Next { pipeline: &self.pipeline, exchange: &self.exchange, steps, filtered: false }
    }
}

fn on_response(steps: &[Step], headers: &mut HeaderMap) {
    for step in steps.iter().rev() {
        if let Step::Response(op) = step {
            op.apply(headers);
        }
    }
}

/// An answer that is always the same.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Fixed {
    /// The answer.
    pub fn response(&self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::whole(self.body.clone()));
        *response.status_mut() = self.status;
        response.headers_mut().clone_from(&self.headers);
        response
    }
}
