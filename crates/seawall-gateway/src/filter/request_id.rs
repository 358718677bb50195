//! A name for each request, by which it is found again in the logs of all who had to do with it.

use http::Request;
use http::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use serde::{Deserialize, Serialize};

use super::FilterError;

/// How requests are named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestIdConfig {
    /// In which header. Default x-request-id.
    #[serde(default = "header")]
    pub header: String,
    /// Whether the name that a client gives is kept, of at most 128 visible characters. Default false.
    #[serde(default)]
    pub keep: bool,
}

fn header() -> String {
    "x-request-id".to_owned()
}

/// The longest name of a client's that is kept.
const LONGEST: usize = 128;

#[derive(Debug)]
pub(crate) struct RequestId {
    header: HeaderName,
    keep: bool,
}

impl RequestId {
    pub(crate) fn try_new(config: &RequestIdConfig) -> Result<Self, FilterError> {
        Ok(Self { header: super::name(&config.header)?, keep: config.keep })
    }
}

impl Filter for RequestId {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let given = request.headers().get(&self.header).filter(|given| {
                self.keep && given.len() <= LONGEST && given.as_bytes().iter().all(u8::is_ascii_graphic)
            });
            let id = given.cloned().unwrap_or_else(|| {
                let id = format!("{:032x}", fastrand::u128(..));
                HeaderValue::try_from(id).expect("hexadecimal is a valid header value")
            });
            request.headers_mut().insert(&self.header, id.clone());
            let mut response = next.run(request).await;
            response.headers_mut().insert(&self.header, id);
            response
        })
    }
}
