//! What travels in headers: the time that is left, the retries that are left, how much a request matters, and why it was
//! turned away.

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use seawall_types::header::{PRIORITY, REJECTED, RETRIES_LEFT, TIMEOUT};

use crate::{Chain, PolicyName, Priority, Rejected, deadline};

/// Tells the next hop what is ambient here: the time that is left of the [`deadline`], the retries that are left of the
/// [`Chain`], and how much it matters ([`Priority::current`]).
pub fn pass_on(headers: &mut HeaderMap) {
    if let Some(left) = deadline::current().and_then(|deadline| deadline.to_header().try_into().ok()) {
        headers.insert(TIMEOUT, left);
    }
    if let Some(chain) = Chain::current() {
        headers.insert(RETRIES_LEFT, chain.left().into());
    }
    if Priority::current() != Priority::default() {
        headers.insert(PRIORITY, HeaderValue::from_static(Priority::current().as_str()));
    }
}

/// How much a request matters, as its caller says; what is not understood matters as much as most.
pub fn priority(headers: &HeaderMap) -> Priority {
    let word = headers.get(PRIORITY).and_then(|value| value.to_str().ok());
    word.and_then(|word| Priority::ALL.into_iter().find(|known| known.as_str() == word.trim())).unwrap_or_default()
}

/// The chain that a request belongs to, as its caller says.
pub(crate) fn chain(headers: &HeaderMap) -> Option<Chain> {
    Chain::enter(headers.get(RETRIES_LEFT).and_then(|value| value.to_str().ok()), None)
}

/// The trace that a request belongs to (`traceparent`), zero if none.
pub(crate) fn trace(headers: &HeaderMap) -> u128 {
    let value = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let id = value.and_then(|value| value.split('-').nth(1)).filter(|id| id.len() == 32);
    id.and_then(|id| u128::from_str_radix(id, 16).ok()).unwrap_or_default()
}

/// The answer to a call that was turned away: 503, 429 over the rate, 504 out of time. Its headers say which policy it
/// was, when to try again, and whether the service named there may have seen the request: `sent` of `false` is a promise.
pub fn rejection<B: From<String>>(rejected: &Rejected, sent: bool) -> Response<B> {
    let mut text = format!("{rejected}\n");
    let mut mark = format!("{}; instance=\"{}\"", rejected.policy, rejected.instance);
    let after = rejected.retry_after.map(|after| after.as_secs() + u64::from(after.subsec_nanos() > 0));
    if let Some(seconds) = after {
        mark += &format!("; retry_after={seconds}");
        text = format!("{rejected}; try again in {seconds} s\n");
    }
    mark += if sent { "; sent=?1" } else { "; sent=?0" };
    let mut response = Response::new(B::from(text));
    *response.status_mut() = match rejected.policy {
        PolicyName::RateLimit => StatusCode::TOO_MANY_REQUESTS,
        PolicyName::Timeout => StatusCode::GATEWAY_TIMEOUT,
        PolicyName::Breaker | PolicyName::Bulkhead | PolicyName::Throttle | PolicyName::Chaos => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if let Some(seconds) = after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    // A name that no header can hold is not told.
    if let Ok(mark) = mark.try_into() {
        headers.insert(REJECTED, mark);
    }
    response
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Deadline, Reason};

    #[test]
    fn a_rejection_says_who_and_until_when() {
        let rejected = Rejected::new(PolicyName::Breaker, "payment".into(), Reason::Open);
        let response =
            rejection::<String>(&Rejected { retry_after: Some(Duration::from_millis(11_200)), ..rejected }, false);
        assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (503, "12"));
        assert_eq!(response.headers()[REJECTED], "breaker; instance=\"payment\"; retry_after=12; sent=?0");
        assert_eq!(response.body(), "breaker of `payment` rejects: open; try again in 12 s\n");
        for (policy, status) in [(PolicyName::RateLimit, 429), (PolicyName::Timeout, 504), (PolicyName::Chaos, 503)] {
            let response = rejection::<String>(&Rejected { policy, ..rejected }, true);
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[REJECTED], format!("{policy}; instance=\"payment\"; sent=?1"));
        }
        let odd = rejection::<String>(&Rejected { instance: "pay\nment".into(), ..rejected }, false);
        assert_eq!((odd.status().as_u16(), odd.headers().get(REJECTED)), (503, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_ambient_travels() {
        let mut headers = HeaderMap::new();
        pass_on(&mut headers);
        assert!(headers.is_empty());
        let pass = async {
            pass_on(&mut headers);
        };
        Chain::new(2).scope(deadline::scope(Deadline::after(Duration::from_millis(1500)), pass)).await;
        assert_eq!((&headers[TIMEOUT], &headers[RETRIES_LEFT]), (&"1500".parse().unwrap(), &"2".parse().unwrap()));
        assert_eq!(chain(&headers).unwrap().left(), 2);
        assert!(!headers.contains_key(PRIORITY));
        Priority::Critical.scope(async { pass_on(&mut headers) }).await;
        assert_eq!(priority(&headers), Priority::Critical);
    }

    #[test]
    fn what_is_told_is_read() {
        let headers = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            headers
        };
        for (word, expected) in [("critical", Priority::Critical), (" low ", Priority::Low), ("odd", Priority::Normal)]
        {
            assert_eq!(priority(&headers(PRIORITY, word)), expected);
        }
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(trace(&headers("traceparent", parent)), 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(trace(&headers("traceparent", "00-xyz")), 0);
    }
}
