//! What is done to an answer's head beside setting and removing: rewriting, doubles, the status.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use regex::Regex;
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use serde::{Deserialize, Serialize};

use super::{FilterError, name};

/// What becomes of a response header's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewriteHeaderConfig {
    /// The header.
    pub name: String,
    /// What is looked for, everywhere in each value.
    pub regex: String,
    /// What stands there instead: `$1` and `${name}` are its groups.
    pub to: String,
}

/// Which of several values of a response header stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DedupeConfig {
    /// The headers.
    pub names: Vec<String>,
    /// `first`, `last`, or `unique`: each of them once, in their order. Default first.
    #[serde(default)]
    pub keep: Keep,
}

/// Which of several values stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The first.
    #[default]
    First,
    /// The last.
    Last,
    /// Each of them once.
    Unique,
}

#[derive(Debug)]
pub(crate) enum Head {
    Rewrite(HeaderName, Regex, String),
    Dedupe(Vec<HeaderName>, Keep),
    Status(StatusCode),
}

impl Head {
    pub(crate) fn rewrite(config: &RewriteHeaderConfig) -> Result<Self, FilterError> {
        let regex = crate::target::replacing(&config.regex, &config.to)?;
        Ok(Self::Rewrite(name(&config.name)?, regex, config.to.clone()))
    }

    pub(crate) fn dedupe(config: &DedupeConfig) -> Result<Self, FilterError> {
        let names = config.names.iter().map(|text| name(text)).collect::<Result<_, _>>()?;
        Ok(Self::Dedupe(names, config.keep))
    }

    pub(crate) fn status(status: u16) -> Result<Self, FilterError> {
        let status = StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
        status.map(Self::Status).ok_or_else(|| FilterError("an answer's status is from 200 to 599".to_owned()))
    }

    fn apply(&self, status: &mut StatusCode, headers: &mut HeaderMap) {
        match self {
            Self::Status(own) => *status = *own,
            Self::Rewrite(name, regex, to) => {
                if let http::header::Entry::Occupied(mut field) = headers.entry(name) {
                    for value in field.iter_mut() {
                        let made = value.to_str().ok().map(|text| regex.replace_all(text, to.as_str()).into_owned());
                        // What is made of it is no header's value: it stays.
                        if let Some(made) = made.and_then(|text| HeaderValue::try_from(text).ok()) {
                            *value = made;
                        }
                    }
                }
            }
            Self::Dedupe(names, keep) => {
                for name in names {
                    let all: Vec<_> = headers.get_all(name).iter().cloned().collect();
                    let kept: Vec<_> = match keep {
                        _ if all.len() < 2 => continue,
                        Keep::First => all.into_iter().take(1).collect(),
                        Keep::Last => all.into_iter().next_back().into_iter().collect(),
                        Keep::Unique => {
                            let mut kept: Vec<HeaderValue> = Vec::new();
                            for value in all {
                                if !kept.contains(&value) {
                                    kept.push(value);
                                }
                            }
                            kept
                        }
                    };
                    headers.remove(name);
                    for value in kept {
                        headers.append(name, value);
                    }
                }
            }
        }
    }
}

impl Filter for Head {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let (mut parts, body) = next.run(request).await.into_parts();
            self.apply(&mut parts.status, &mut parts.headers);
            http::Response::from_parts(parts, body)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rewritten_and_doubles_removed() {
        let dedupe = |keep| Head::dedupe(&DedupeConfig { names: vec!["x-a".into()], keep }).unwrap();
        let rewrite = |regex: &str, to: &str| {
            Head::rewrite(&RewriteHeaderConfig { name: "x-a".into(), regex: regex.into(), to: to.into() })
        };
        for (head, given, made) in [
            (dedupe(Keep::First), &["1", "2", "1"][..], &["1"][..]),
            (dedupe(Keep::Last), &["1", "2"], &["2"]),
            (dedupe(Keep::Unique), &["1", "2", "1"], &["1", "2"]),
            (dedupe(Keep::Last), &[], &[]),
            (
                rewrite("password=[^&]+", "password=***").unwrap(),
                &["/x?password=a&b", "c"],
                &["/x?password=***&b", "c"],
            ),
            (rewrite("^(.)(.)$", "${2}$1").unwrap(), &["ab"], &["ba"]),
            (rewrite("a", "\n").unwrap(), &["ab"], &["ab"]),
        ] {
            let (mut headers, mut status) = (HeaderMap::new(), StatusCode::OK);
            for value in given {
                headers.append("x-a", value.parse().unwrap());
            }
            head.apply(&mut status, &mut headers);
            assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), made, "{head:?}");
        }
        assert!(rewrite("a", "$1").is_err() && rewrite("(", "").is_err() && Head::status(99).is_err());
    }
}
