//! What a shift comes to: the shares of each step, and whether the new service does worse than the others. Pure.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use seawall_types::{Period, Ratio, ServiceName, Shares};

/// Shares are counted in these parts of all.
const WHOLE: u32 = 10_000;

/// `order-canary=20%`
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) service: ServiceName,
    pub(crate) share: Ratio,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, share) =
            text.split_once('=').ok_or_else(|| format!("`{text}` is not a share such as `order-canary=20%`"))?;
        let service = ServiceName::try_new(service).map_err(|error| error.to_string())?;
        Ok(Self { service, share: share.parse()? })
    }
}

/// `10%,30s`
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    pub(crate) step: f64,
    pub(crate) every: Duration,
}

impl FromStr for Pace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("`{text}` is not a step and a time such as `10%,30s`");
        let (step, every) = text.split_once(',').ok_or_else(wanted)?;
        let step = step.parse::<Ratio>()?.get();
        let every = every.trim().parse::<Period>().map_err(|error| format!("{}: {error}", wanted()))?.get();
        if step <= 0.0 || every.is_zero() {
            return Err(format!("{}, both above 0", wanted()));
        }
        Ok(Self { step, every })
    }
}

/// What share of all each service has, from 0 to 1.
fn parts(shares: &Shares) -> BTreeMap<ServiceName, f64> {
    let total: f64 = shares.values().map(|share| f64::from(*share)).sum();
    shares.iter().map(|(service, share)| (service.clone(), f64::from(*share) / total.max(1.0))).collect()
}

/// The shares of each step from `now` to what is wanted, the last of which is that; the others divide what is left as they
/// do now.
///
/// # Errors
/// What is wanted makes no sense.
pub(crate) fn steps(now: &Shares, wanted: &[Wanted], pace: Option<Pace>) -> Result<Vec<Shares>, String> {
    let all = now.keys().map(|service| format!("`{service}`")).collect::<Vec<_>>().join(", ");
    for (at, Wanted { service, .. }) in wanted.iter().enumerate() {
        if !now.contains_key(service) {
            return Err(format!("`{service}` is none of the services of the split; there is {all}"));
        }
        if wanted[..at].iter().any(|other| other.service == *service) {
            return Err(format!("`{service}` is named twice"));
        }
    }
    let total: f64 = wanted.iter().map(|wanted| wanted.share.get()).sum();
    if total > 1.0 + 1e-9 {
        return Err(format!("the shares come to {:.0}%, which is more than all", total * 100.0));
    }
    let named = |service: &ServiceName| wanted.iter().any(|wanted| wanted.service == *service);
    if now.keys().all(named) && total < 1.0 - 1e-9 {
        return Err(format!("every service is named, and the shares come to {:.0}% and not 100%", total * 100.0));
    }
    let begin = parts(now);
    let farthest = wanted.iter().map(|wanted| (wanted.share.get() - begin[&wanted.service]).abs()).fold(0.0, f64::max);
    let count = pace.map_or(1, |pace| ((farthest / pace.step - 1e-9).ceil() as usize).max(1));
    let step = |number: usize| {
        let reached = |wanted: &Wanted| {
            let from = begin[&wanted.service];
            match pace {
                Some(pace) if number < count => {
                    let far = (wanted.share.get() - from).abs().min(pace.step * number as f64);
                    from + far.copysign(wanted.share.get() - from)
                }
                _ => wanted.share.get(),
            }
        };
        let at: BTreeMap<&ServiceName, f64> = wanted.iter().map(|wanted| (&wanted.service, reached(wanted))).collect();
        divide(now, &at)
    };
    Ok((1..=count).map(step).collect())
}

/// Whole parts that come to all of them; what is lost by rounding goes to the largest of those that are not named.
fn divide(now: &Shares, named: &BTreeMap<&ServiceName, f64>) -> Shares {
    let others: Vec<&ServiceName> = now.keys().filter(|service| !named.contains_key(service)).collect();
    let before: f64 = others.iter().map(|service| f64::from(now[*service])).sum();
    let whole = |part: f64| (part * f64::from(WHOLE)).round() as u32;
    let mut shares: Shares = named.iter().map(|(service, part)| ((*service).clone(), whole(*part))).collect();
    let left = f64::from(WHOLE.saturating_sub(shares.values().sum()));
    for service in &others {
        let part = if before > 0.0 { f64::from(now[*service]) / before } else { 1.0 / others.len() as f64 };
        shares.insert((*service).clone(), (left * part).floor() as u32);
    }
    let lost = WHOLE.saturating_sub(shares.values().sum());
    if let Some(largest) = others.iter().max_by_key(|service| now[**service])
        && let Some(share) = shares.get_mut(*largest)
    {
        *share += lost;
    }
    shares
}

/// `order 80%, order-canary 20%`
pub(crate) fn shown(shares: &Shares) -> String {
    let percent = |part: f64| format!("{}", (part * 10_000.0).round() / 100.0);
    let shown = parts(shares).into_iter().map(|(service, part)| format!("{service} {}%", percent(part)));
    shown.collect::<Vec<_>>().join(", ")
}

/// How the calls of a service have gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    pub(crate) all: u64,
    /// Answered with a 5xx, or not by the service itself.
    pub(crate) failed: u64,
}

impl Calls {
    fn rate(self) -> f64 {
        if self.all == 0 { 0.0 } else { self.failed as f64 / self.all as f64 }
    }
}

/// The calls of each service since the process of the page has begun.
pub(crate) fn calls(page: &str) -> BTreeMap<String, Calls> {
    /// Rejections that say nothing about the service.
    const CALLERS: [&str; 3] = ["bad-request", "slow-client", "no-route"];
    let mut all: BTreeMap<String, Calls> = BTreeMap::new();
    let label = |line: &str, name: &str| -> Option<String> {
        let (_, rest) = line.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    for line in page.lines() {
        let answered = line.starts_with("seawall_responses_total{");
        if !answered && !line.starts_with("seawall_rejections_total{") {
            continue;
        }
        let count = line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok());
        let (Some(service), Some(count)) = (label(line, "service"), count) else { continue };
        let failed = match answered {
            true => label(line, "class").as_deref() == Some("5xx"),
            false if label(line, "reason").is_some_and(|reason| CALLERS.contains(&&*reason)) => continue,
            false => true,
        };
        let calls = all.entry(service).or_default();
        calls.all += count;
        calls.failed += if failed { count } else { 0 };
    }
    all
}

/// What has happened between two looks.
pub(crate) fn since(before: &BTreeMap<String, Calls>, now: &BTreeMap<String, Calls>) -> BTreeMap<String, Calls> {
    let grown = |(service, now): (&String, &Calls)| {
        let before = before.get(service).copied().unwrap_or_default();
        // A process that has begun anew counts from nothing.
        let before = if now.all < before.all { Calls::default() } else { before };
        let failed = now.failed.saturating_sub(before.failed);
        (service.clone(), Calls { all: now.all - before.all, failed })
    };
    now.iter().map(grown).collect()
}

/// Whether the new services do worse than the others by more than `worse`; what was seen, in words.
///
/// # Errors
/// They do.
pub(crate) fn judge(
    calls: &BTreeMap<String, Calls>,
    services: impl Iterator<Item = ServiceName>,
    new: &[ServiceName],
    worse: Ratio,
    least: u64,
) -> Result<String, String> {
    let (mut canary, mut stable) = (Calls::default(), Calls::default());
    for service in services {
        let seen = calls.get(service.as_str()).copied().unwrap_or_default();
        let sum = if new.contains(&service) { &mut canary } else { &mut stable };
        sum.all += seen.all;
        sum.failed += seen.failed;
    }
    let percent = |calls: Calls| format!("{:.2}% of {}", calls.rate() * 100.0, calls.all);
    let seen = format!("failed: {} calls of the new, {} of the others", percent(canary), percent(stable));
    if canary.all < least {
        return Ok(format!("{seen}; fewer than {least}, which says nothing"));
    }
    if canary.rate() > stable.rate() + worse.get() { Err(seen) } else { Ok(seen) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(list: &[(&str, u32)]) -> Shares {
        list.iter().map(|(name, share)| (ServiceName::try_new(name).unwrap(), *share)).collect()
    }

    fn wanted(list: &[&str]) -> Vec<Wanted> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn shares_come_to_all_and_the_others_divide_what_is_left() {
        for (now, want, pace, reached) in [
            (&[("a", 95), ("b", 5)][..], &["b=20%"][..], None, &["a 80%, b 20%"][..]),
            (&[("a", 1), ("b", 0)], &["b=100%"], None, &["a 0%, b 100%"]),
            (&[("a", 1), ("b", 2), ("c", 1)], &["b=40%"], None, &["a 30%, b 40%, c 30%"]),
            (&[("a", 0), ("b", 1), ("c", 0)], &["b=33%"], None, &["a 33.5%, b 33%, c 33.5%"]),
            (&[("a", 1), ("b", 0)], &["a=50%", "b=50%"], None, &["a 50%, b 50%"]),
            (&[("a", 9), ("b", 1)], &["b=35%"], Some("10%,1s"), &["a 80%, b 20%", "a 70%, b 30%", "a 65%, b 35%"]),
            (&[("a", 1), ("b", 1)], &["b=0%"], Some("25%,1s"), &["a 75%, b 25%", "a 100%, b 0%"]),
            (&[("a", 1), ("b", 1)], &["b=50%"], Some("25%,1s"), &["a 50%, b 50%"]),
        ] {
            let pace = pace.map(|pace| pace.parse().unwrap());
            let steps = steps(&shares(now), &wanted(want), pace).unwrap();
            assert_eq!(steps.iter().map(shown).collect::<Vec<_>>(), reached, "{now:?} {want:?}");
            assert!(steps.iter().all(|step| step.values().sum::<u32>() == WHOLE), "{steps:?}");
        }
        for (want, says) in [
            (&["c=5%"][..], "none of the services of the split; there is `a`, `b`"),
            (&["a=5%", "a=6%"], "named twice"),
            (&["a=60%", "b=50%"], "come to 110%"),
            (&["a=60%", "b=30%"], "come to 90% and not 100%"),
        ] {
            let error = steps(&shares(&[("a", 1), ("b", 1)]), &wanted(want), None).unwrap_err();
            assert!(error.contains(says), "{want:?}: {error}");
        }
        for text in ["a", "a=x", "A b=5%", "a=120%"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
        for text in ["10%", "0%,1s", "10%,0s", "x,1s", "10%,soon"] {
            assert!(text.parse::<Pace>().is_err(), "{text}");
        }
    }

    #[test]
    fn whoever_does_worse_is_found() {
        let page = "# HELP seawall_responses_total x\n\
            seawall_responses_total{service=\"a\",class=\"2xx\"} 990\nseawall_responses_total{service=\"a\",class=\"5xx\"} 5\n\
            seawall_rejections_total{service=\"a\",reason=\"breaker\"} 5\nseawall_rejections_total{service=\"a\",reason=\"bad-request\"} 900\n\
            seawall_responses_total{service=\"b\",class=\"2xx\"} 95\nseawall_responses_total{service=\"b\",class=\"5xx\"} 5\n";
        let now = calls(page);
        assert_eq!(now["a"], Calls { all: 1000, failed: 10 });
        assert_eq!(now["b"], Calls { all: 100, failed: 5 });
        let all = || shares(&[("a", 1), ("b", 1)]).into_keys();
        let new = [ServiceName::try_new("b").unwrap()];
        let judged = |worse: u8, least| judge(&now, all(), &new, Ratio::percent(worse), least);
        assert!(judged(1, 20).unwrap_err().contains("5.00% of 100 calls of the new, 1.00% of 1000"));
        assert!(judged(4, 20).is_ok());
        assert!(judged(1, 101).unwrap().contains("says nothing"));
        let before =
            [("a".to_owned(), Calls { all: 500, failed: 10 }), ("b".to_owned(), Calls { all: 400, failed: 9 })];
        let grown = since(&before.into(), &now);
        assert_eq!((grown["a"], grown["b"]), (Calls { all: 500, failed: 0 }, Calls { all: 100, failed: 5 }));
    }
}
