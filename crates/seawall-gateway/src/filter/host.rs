//! The `Host` that the service is called by: its own name unless a filter says otherwise.

use http::Request;
use http::header::{HOST, HeaderValue};
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, CalledBy, Filter, Next};

use super::FilterError;

#[derive(Debug)]
pub(crate) enum Host {
    /// This one.
    Set(HeaderValue),
    /// The one that the client asked for.
    Keep,
    /// The service's name, whatever a filter before has said.
    Service,
}

impl Host {
    pub(crate) fn set(text: &str) -> Result<Self, FilterError> {
        let authority: Result<http::uri::Authority, _> = text.parse();
        match authority {
            Ok(authority) if !text.contains('@') => {
                Ok(Self::Set(HeaderValue::try_from(authority.as_str()).expect("an authority is a valid header value")))
            }
            _ => Err(FilterError(format!("`{text}` is no host such as shop.example or shop.example:8443"))),
        }
    }

    pub(crate) const fn keep(keep: bool) -> Self {
        if keep { Self::Keep } else { Self::Service }
    }
}

impl Filter for Host {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        let host = match self {
            Self::Set(host) => Some(host.clone()),
            Self::Keep => asked(&request),
            Self::Service => None,
        };
        match host {
            Some(host) => drop(request.extensions_mut().insert(CalledBy(host))),
            None => drop(request.extensions_mut().remove::<CalledBy>()),
        }
        Box::pin(next.run(request))
    }
}

/// The host that the client asked for.
pub(crate) fn asked(request: &Request<RequestBody>) -> Option<HeaderValue> {
    let authority = request.uri().authority().and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
    authority.or_else(|| request.headers().get(HOST).cloned())
}
