//! Bodies that a filter has to read whole, within a size and a time.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use seawall_proxy::body::BodyError;
use std::time::Instant;
use tokio::time::timeout_at;

/// A body that could not be read whole.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It is larger than it may be.
    TooLarge,
    /// It was not whole in time.
    Late,
    /// It broke off.
    Broken(String),
}

/// All of a body; its trailers are dropped.
pub(crate) async fn whole(
    body: impl Body<Data = Bytes, Error = BodyError>,
    limit: u64,
    until: Instant,
) -> Result<Bytes, Unread> {
    if body.size_hint().lower() > limit {
        return Err(Unread::TooLarge);
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    match timeout_at(until.into(), Limited::new(body, limit).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Unread::TooLarge),
        Ok(Err(error)) => Err(Unread::Broken(error.to_string())),
        Err(_) => Err(Unread::Late),
    }
}

/// Whether the headers say that the body is JSON: `application/json`, or a kind that ends in `+json`.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind.ends_with("+json")
}
