//! Faults that are ordered: delays, and answers that say that something went wrong. They are made where the filter is written: the
//! time is part of the call's, what comes before sees the fault, and the service's own policies, which come after, do not try
//! again. Faults of single attempts are the policy `chaos`.

use std::time::Duration;

use http::{HeaderName, Request, StatusCode};
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use seawall_types::{Period, Ratio};
use serde::{Deserialize, Serialize};

use super::{FilterError, name, refused};

/// Which requests are held up, and which are answered as if something had gone wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultConfig {
    /// Which are held up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<DelayConfig>,
    /// Which go to no service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<AbortConfig>,
    /// The header by which a request orders its own: `x-fault: delay=200ms, abort=503`. It then has that, and no share decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// Which requests are held up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DelayConfig {
    /// How long; nothing above 5m.
    pub by: Period,
    /// How many. Default all.
    #[serde(default = "all")]
    pub share: Ratio,
}

/// Which requests go to no service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AbortConfig {
    /// What they are answered with, from 400 to 599. Default 503.
    #[serde(default = "unavailable")]
    pub status: u16,
    /// How many. Default all.
    #[serde(default = "all")]
    pub share: Ratio,
}

const fn all() -> Ratio {
    Ratio::percent(100)
}

const fn unavailable() -> u16 {
    503
}

/// Nobody has to be held up longer to see what that does.
const LONGEST: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(crate) struct Fault {
    delay: Option<(Duration, Ratio)>,
    abort: Option<(StatusCode, Ratio)>,
    header: Option<HeaderName>,
}

/// What becomes of one request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ordered {
    delay: Option<Duration>,
    abort: Option<StatusCode>,
}

impl Fault {
    pub(crate) fn try_new(config: &FaultConfig) -> Result<Self, FilterError> {
        let delay = match &config.delay {
            Some(delay) if delay.by.get() > LONGEST => {
                return Err(FilterError(format!("a delay is at most 5m, {} is longer", delay.by)));
            }
            delay => delay.as_ref().map(|delay| (delay.by.get(), delay.share)),
        };
        let abort = config.abort.as_ref().map(|abort| {
            let wrong = || FilterError(format!("{} is no status of a fault: those are from 400 to 599", abort.status));
            failure(abort.status).ok_or_else(wrong).map(|status| (status, abort.share))
        });
        let header = config.header.as_ref().map(|text| name(text)).transpose()?;
        if delay.is_none() && abort.is_none() && header.is_none() {
            return Err(FilterError("say what happens: `delay`, `abort` or `header`".to_owned()));
        }
        Ok(Self { delay, abort: abort.transpose()?, header })
    }

    /// `draw` is from 0 to below 1.
    fn decide(&self, order: Option<&str>, mut draw: impl FnMut() -> f64) -> Ordered {
        if let Some(order) = order {
            return read(order);
        }
        let delay = self.delay.filter(|(_, share)| draw() < share.get()).map(|(by, _)| by);
        Ordered { delay, abort: self.abort.filter(|(_, share)| draw() < share.get()).map(|(status, _)| status) }
    }
}

fn failure(status: u16) -> Option<StatusCode> {
    StatusCode::from_u16(status).ok().filter(|status| (400..600).contains(&status.as_u16()))
}

/// What a request orders; what cannot be read is not done.
fn read(order: &str) -> Ordered {
    let mut ordered = Ordered::default();
    for part in order.split(',') {
        match part.trim().split_once('=') {
            Some(("delay", by)) => ordered.delay = by.parse::<Period>().ok().map(|by| by.get().min(LONGEST)),
            Some(("abort", status)) => ordered.abort = status.parse().ok().and_then(failure),
            _ => {}
        }
    }
    ordered
}

impl Filter for Fault {
    fn call<'a>(&'a self, mut request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let order = self.header.as_ref().and_then(|name| request.headers_mut().remove(name));
            let ordered = self.decide(order.as_ref().and_then(|order| order.to_str().ok()), fastrand::f64);
            let count = |kind| {
                let labels = [("route", next.route()), ("kind", kind)];
                next.counter("seawall_faults_total", "Faults that filters have made.", &labels).increment();
            };
            if let Some(delay) = ordered.delay {
                count("delay");
                // Who waits for longer than the call may take learns it when that is over.
                let over = next.arrived() + next.timeout();
                tokio::time::sleep_until((std::time::Instant::now() + delay).min(over).into()).await;
            }
            match ordered.abort {
                Some(status) => {
                    count("abort");
                    refused(status, "a fault that was ordered")
                }
                None => next.run(request).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_decides_or_the_request() {
        let fault = |json: &str| Fault::try_new(&serde_json::from_str(json).unwrap());
        let some = fault(
            r#"{"delay": {"by": "200ms", "share": "10%"}, "abort": {"status": 500, "share": "5%"}, "header": "x-fault"}"#,
        )
        .unwrap();
        let [delay, longest] = [Duration::from_millis(200), LONGEST].map(Some);
        for (order, draw, ordered) in [
            (None, 0.2, (None, None)),
            (None, 0.07, (delay, None)),
            (None, 0.0, (delay, Some(500))),
            (Some("abort=404"), 0.0, (None, Some(404))),
            (Some("delay=200ms, abort=503"), 0.9, (delay, Some(503))),
            (Some("delay=9h"), 0.9, (longest, None)),
            (Some("abort=200, delay=x, y"), 0.0, (None, None)),
        ] {
            let made = some.decide(order, || draw);
            assert_eq!((made.delay, made.abort.map(|status| status.as_u16())), ordered, "{order:?} {draw}");
        }
        for (json, says) in [
            ("{}", "say what happens"),
            (r#"{"delay": {"by": "1h"}}"#, "at most 5m"),
            (r#"{"abort": {"status": 200}}"#, "from 400 to 599"),
            (r#"{"header": "a b"}"#, "is not a header name"),
        ] {
            let error = fault(json).unwrap_err().to_string();
            assert!(error.contains(says), "{json}: {error}");
        }
    }
}
