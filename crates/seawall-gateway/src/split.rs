//! Splits: one name for several services, among which requests are divided. Blue and green, or a canary beside what is stable.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{HeaderMap, HeaderName};
use schemars::JsonSchema;
use seawall_types::{ServiceName, Shares};
use serde::{Deserialize, Serialize};

use crate::config::ValueConfig;
use crate::matcher::{Text, cookies};

/// A name that routes go to instead of a service, and the services that it stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitConfig {
    /// What each service gets, in proportion to the others. `seawall traffic shift` changes it at run time.
    pub among: Shares,
    /// Requests that go to one of the services whatever the shares: the first that fits counts.
    #[serde(default)]
    pub when: Vec<WhenConfig>,
    /// Whose requests go to the same service, for as long as the shares let them. Default: each is drawn by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<StickyConfig>,
}

/// Requests that go to one service: those that meet all that is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WhenConfig {
    /// Headers with these values; `*` is any, `{ regex: ... }` what fits it wholly.
    #[serde(default)]
    pub headers: BTreeMap<String, ValueConfig>,
    /// Cookies with such values.
    #[serde(default)]
    pub cookies: BTreeMap<String, ValueConfig>,
    /// The service.
    pub to: ServiceName,
}

/// By what requests of the same client are known. One that has neither is drawn by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StickyConfig {
    /// A header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// A cookie, asked for before the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
}

/// The splits of a gateway, by name. Clones are the same: a shift is seen by all workers at once.
#[derive(Clone, Debug, Default)]
pub struct Splits(Arc<BTreeMap<ServiceName, Arc<Split>>>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Split {
    services: Vec<ServiceName>,
    /// As the file says, in the order of the services.
    written: Arc<Vec<u32>>,
    now: ArcSwap<Vec<u32>>,
    when: Vec<When>,
    header: Option<HeaderName>,
    cookie: Option<String>,
    /// Of its name, so that a client is not drawn alike by all splits.
    seed: u64,
}

#[derive(Debug)]
struct When {
    headers: Vec<(HeaderName, Text)>,
    cookies: Vec<(String, Text)>,
    to: usize,
}

impl Splits {
    /// Checks and compiles what is written; says all that is wrong, with its place below `splits`.
    pub(crate) fn try_new(
        config: &BTreeMap<ServiceName, SplitConfig>,
        mut problem: impl FnMut(String, String),
    ) -> Self {
        let mut splits = BTreeMap::new();
        for (name, split) in config {
            for inner in split.among.keys().filter(|service| *service != name && config.contains_key(*service)) {
                problem(format!("{name}.among"), format!("`{inner}` is a split itself: name the services"));
            }
            let split = Split::try_new(name, split, &mut |field, what| problem(format!("{name}.{field}"), what));
            splits.insert(name.clone(), Arc::new(split));
        }
        Self(Arc::new(splits))
    }

    pub(crate) fn get(&self, name: &ServiceName) -> Option<&Arc<Split>> {
        if self.0.is_empty() { None } else { self.0.get(name) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How each is divided now.
    pub fn shares(&self) -> BTreeMap<ServiceName, Shares> {
        let shares = |split: &Split| split.services.iter().cloned().zip(split.now.load().iter().copied()).collect();
        self.0.iter().map(|(name, split)| (name.clone(), shares(split))).collect()
    }

    /// Divides splits as is said here, and all others as the file says. Splits of other gateways are passed over.
    ///
    /// # Errors
    /// What is said of a split but makes no sense there; that one is divided as the file says.
    pub fn apply(&self, shifted: &BTreeMap<ServiceName, Shares>) -> Result<(), String> {
        let mut wrong = Vec::new();
        for (name, split) in self.0.iter() {
            let shares = match shifted.get(name) {
                None => split.written.clone(),
                Some(shares) => split.read(shares).map(Arc::new).unwrap_or_else(|why| {
                    wrong.push(format!("the split `{name}` is divided as the file says: {why}"));
                    split.written.clone()
                }),
            };
            split.now.store(shares);
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}

impl Split {
    fn try_new(name: &ServiceName, config: &SplitConfig, problem: &mut impl FnMut(String, String)) -> Self {
        let services: Vec<ServiceName> = config.among.keys().cloned().collect();
        let written: Vec<u32> = config.among.values().copied().collect();
        if written.iter().all(|share| *share == 0) {
            problem("among".into(), "no service has a share above 0, so that requests would go nowhere".into());
        }
        let when = config.when.iter().enumerate().filter_map(|(at, when)| {
            let mut problem = |what: String| problem(format!("when.{at}"), what);
            let to = services.iter().position(|service| *service == when.to);
            if to.is_none() {
                problem(format!("`{}` is not among the services of the split", when.to));
            }
            if when.headers.is_empty() && when.cookies.is_empty() {
                problem("every request would fit: give `headers` or `cookies`".into());
            }
            let mut headers = Vec::new();
            for (field, value) in &when.headers {
                match (HeaderName::try_from(field.as_str()), Text::try_new(value)) {
                    (Ok(field), Ok(value)) => headers.push((field, value)),
                    (Err(_), _) => problem(format!("`{field}` is not the name of a header")),
                    (_, Err(why)) => problem(format!("{field}: {why}")),
                }
            }
            let mut cookies = Vec::new();
            for (field, value) in &when.cookies {
                match Text::try_new(value) {
                    Ok(value) => cookies.push((field.clone(), value)),
                    Err(why) => problem(format!("{field}: {why}")),
                }
            }
            Some(When { headers, cookies, to: to? })
        });
        let when = when.collect();
        let sticky = config.sticky.as_ref();
        if sticky.is_some_and(|sticky| sticky.header.is_none() && sticky.cookie.is_none()) {
            problem("sticky".into(), "by what? give a `header` or a `cookie`".into());
        }
        let header = sticky.and_then(|sticky| sticky.header.as_ref()).and_then(|field| {
            let header = HeaderName::try_from(field.as_str());
            header.map_err(|_| problem("sticky".into(), format!("`{field}` is not the name of a header"))).ok()
        });
        let written = Arc::new(written);
        Self {
            services,
            now: ArcSwap::new(written.clone()),
            written,
            when,
            header,
            cookie: sticky.and_then(|sticky| sticky.cookie.clone()),
            seed: hash(0, name.as_str().as_bytes()),
        }
    }

    /// Every service that is named has to be one of these; whoever is not named gets nothing.
    fn read(&self, shares: &Shares) -> Result<Vec<u32>, String> {
        if let Some(unknown) = shares.keys().find(|service| !self.services.contains(service)) {
            return Err(format!("`{unknown}` is none of its services"));
        }
        let all: Vec<u32> =
            self.services.iter().map(|service| shares.get(service).copied().unwrap_or_default()).collect();
        if all.iter().all(|share| *share == 0) { Err("no service has a share above 0".to_owned()) } else { Ok(all) }
    }

    /// The service that a request goes to. `chance` is drawn anew for each.
    pub(crate) fn choose(&self, headers: &HeaderMap, chance: impl FnOnce() -> u64) -> &ServiceName {
        if let Some(when) = self.when.iter().find(|when| when.fits(headers)) {
            return &self.services[when.to];
        }
        let known = self.known(headers).map(|value| hash(self.seed, value));
        let draw = known.unwrap_or_else(chance);
        let shares = self.now.load();
        let total: u64 = shares.iter().copied().map(u64::from).sum();
        // The same draw falls to the same place whatever the total is: whoever is at the service with the last name stays there
        // while its share grows.
        let mut point = ((u128::from(draw) * u128::from(total)) >> 64) as u64;
        for (service, share) in self.services.iter().zip(shares.iter()) {
            match point.checked_sub(u64::from(*share)) {
                None => return service,
                Some(rest) => point = rest,
            }
        }
        self.services.last().expect("a split has services")
    }

    fn known<'h>(&self, headers: &'h HeaderMap) -> Option<&'h [u8]> {
        let cookie = self.cookie.as_ref().and_then(|name| cookies(headers).find(|(own, _)| own == name));
        let header = || self.header.as_ref().and_then(|name| headers.get(name)).map(|value| value.as_bytes());
        cookie.map(|(_, value)| value.as_bytes()).or_else(header)
    }
}

impl When {
    fn fits(&self, headers: &HeaderMap) -> bool {
        self.headers.iter().all(|(name, value)| headers.get_all(name).iter().any(|given| value.is(given.as_bytes())))
            && self
                .cookies
                .iter()
                .all(|(name, value)| cookies(headers).any(|(given, text)| given == name && value.is(text.as_bytes())))
    }
}

/// FNV-1a, stirred by the end of SplitMix64: the same in every gateway, of whatever version.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let folded = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let z = (folded ^ (folded >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn splits(config: Value) -> Result<Splits, String> {
        let mut problems = Vec::new();
        let splits = Splits::try_new(&serde_json::from_value(config).unwrap(), |at, what| {
            problems.push(format!("{at}: {what}"))
        });
        if problems.is_empty() { Ok(splits) } else { Err(problems.join("; ")) }
    }

    fn name(text: &str) -> ServiceName {
        ServiceName::try_new(text).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn requests_are_divided_as_is_said() {
        let splits = splits(json!({ "s": {
            "among": { "a": 3, "b": 1 },
            "when": [{ "headers": { "x-canary": "1" }, "to": "b" }, { "cookies": { "beta": "*" }, "headers": { "x": "y" }, "to": "a" }],
            "sticky": { "header": "x-user", "cookie": "session" },
        } }))
        .unwrap();
        let split = splits.get(&name("s")).unwrap();
        let quarter = u64::MAX / 4;
        for (given, chance, service) in [
            (&[][..], 0, "a"),
            (&[], 3 * quarter - 9, "a"),
            (&[], 3 * quarter + 9, "b"),
            (&[], u64::MAX, "b"),
            (&[("x-canary", "1")], 0, "b"),
            (&[("x-canary", "2")], 0, "a"),
            (&[("cookie", "beta=1"), ("x", "y")], u64::MAX, "a"),
            (&[("cookie", "beta=1")], u64::MAX, "b"),
        ] {
            assert_eq!(split.choose(&headers(given), || chance).as_str(), service, "{given:?} {chance}");
        }
        assert!(splits.get(&name("a")).is_none());
    }

    #[test]
    fn whoever_is_known_stays_and_a_growing_share_moves_nobody_back() {
        let splits =
            splits(json!({ "s": { "among": { "a": 95, "b": 5 }, "sticky": { "cookie": "session" } } })).unwrap();
        let split = splits.get(&name("s")).unwrap();
        let of =
            |user: usize| split.choose(&headers(&[("cookie", &format!("session={user}"))]), || panic!("drawn")).clone();
        let mut at_b: Vec<usize> = Vec::new();
        for share in [5, 20, 50, 100] {
            splits.apply(&[(name("s"), [(name("a"), 100 - share), (name("b"), share)].into())].into()).unwrap();
            let now: Vec<usize> = (0..2000).filter(|user| of(*user).as_str() == "b").collect();
            assert!(at_b.iter().all(|user| now.contains(user)), "{share}");
            let wanted = 20 * share as usize;
            assert!(now.len().abs_diff(wanted) < 100, "{share}: {}", now.len());
            at_b = now;
        }
        // What makes no sense here leaves it as the file says.
        let wrong = splits.apply(&[(name("s"), [(name("c"), 1)].into())].into()).unwrap_err();
        assert!(wrong.contains("`c` is none of its services"), "{wrong}");
        assert_eq!(splits.shares()[&name("s")], [(name("a"), 95), (name("b"), 5)].into());
        assert!(splits.apply(&[(name("s"), [(name("a"), 0)].into())].into()).is_err());
        assert!(splits.apply(&[(name("other"), [(name("c"), 1)].into())].into()).is_ok());
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        for (config, says) in [
            (json!({ "s": { "among": {} } }), "s.among: no service has a share"),
            (json!({ "s": { "among": { "a": 0 } } }), "s.among: no service has a share"),
            (json!({ "s": { "among": { "t": 1 } }, "t": { "among": { "t": 1 } } }), "s.among: `t` is a split itself"),
            (json!({ "s": { "among": { "a": 1 }, "when": [{ "to": "a" }] } }), "s.when.0: every request would fit"),
            (
                json!({ "s": { "among": { "a": 1 }, "when": [{ "headers": { "x": "*" }, "to": "b" }] } }),
                "s.when.0: `b` is not among",
            ),
            (json!({ "s": { "among": { "a": 1 }, "sticky": {} } }), "s.sticky: by what?"),
            (json!({ "s": { "among": { "a": 1 }, "sticky": { "header": "a b" } } }), "s.sticky: `a b` is not"),
        ] {
            let error = splits(config.clone()).unwrap_err();
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
