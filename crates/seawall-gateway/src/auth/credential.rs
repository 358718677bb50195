//! Where in a request a credential stands.

use std::borrow::Cow;

use http::Uri;
use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{FilterError, name};
use crate::matcher::cookies;

/// Where a credential is looked for, as it is written: `{ header: authorization }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialConfig {
    /// In this header; of `authorization` and `proxy-authorization`, what follows the scheme.
    Header(String),
    /// In this cookie.
    Cookie(String),
    /// In this parameter of the query.
    Query(String),
}

/// One place of a request.
#[derive(Clone, Debug)]
pub(crate) enum Credential {
    Header(HeaderName),
    Cookie(String),
    Query(String),
}

/// There are two in the same place, and which of them counts is anybody's guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ambiguous;

impl Credential {
    pub(crate) fn try_new(config: &CredentialConfig) -> Result<Self, FilterError> {
        let named = |text: &String| match text.is_empty() {
            true => Err(FilterError("the place of a credential needs a name".to_owned())),
            false => Ok(text.clone()),
        };
        Ok(match config {
            CredentialConfig::Header(text) => Self::Header(name(text)?),
            CredentialConfig::Cookie(text) => Self::Cookie(named(text)?),
            CredentialConfig::Query(text) => Self::Query(named(text)?),
        })
    }

    /// All the places, or `usual` where none is written.
    pub(crate) fn all(config: &[CredentialConfig], usual: CredentialConfig) -> Result<Vec<Self>, FilterError> {
        match config {
            [] => Ok(vec![Self::try_new(&usual)?]),
            some => some.iter().map(Self::try_new).collect(),
        }
    }

    /// What stands there, if anything does. Of the header of authorization only what is of `scheme`.
    ///
    /// # Errors
    /// [`Ambiguous`].
    pub(crate) fn find<'a>(
        &self,
        scheme: &str,
        headers: &'a HeaderMap,
        uri: &'a Uri,
    ) -> Result<Option<Cow<'a, str>>, Ambiguous> {
        match self {
            Self::Header(name) => {
                let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
                let values = values.filter_map(|value| match *name == AUTHORIZATION {
                    true => of_scheme(value, scheme),
                    // Elsewhere the scheme may be left out.
                    false => Some(of_scheme(value, scheme).unwrap_or(value)),
                });
                only(values.map(Cow::Borrowed))
            }
            Self::Cookie(name) => only(cookies(headers).filter(|(key, _)| key == name).map(|(_, value)| value.into())),
            Self::Query(name) => {
                let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
                only(pairs.filter(|(key, _)| *key == **name).map(|(_, value)| value))
            }
        }
    }

    /// Takes it out of the headers, so that the service does not see it. The query stays as it is.
    pub(crate) fn remove(&self, headers: &mut HeaderMap) {
        match self {
            Self::Header(name) => drop(headers.remove(name)),
            Self::Cookie(name) => remove_cookies(headers, |cookie| cookie == name),
            Self::Query(_) => {}
        }
    }
}

/// Takes cookies out and leaves the others as they are.
pub(crate) fn remove_cookies(headers: &mut HeaderMap, mut goes: impl FnMut(&str) -> bool) {
    if !cookies(headers).any(|(name, _)| goes(name)) {
        return;
    }
    let kept: Vec<_> = cookies(headers).filter(|(name, _)| !goes(name)).collect();
    let kept = kept.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ");
    headers.remove(COOKIE);
    if let Some(kept) = HeaderValue::try_from(kept).ok().filter(|kept| !kept.is_empty()) {
        headers.insert(COOKIE, kept);
    }
}

/// What follows the scheme; nothing if it is another one.
fn of_scheme<'a>(value: &'a str, scheme: &str) -> Option<&'a str> {
    let (given, rest) = value.trim().split_once(' ')?;
    given.eq_ignore_ascii_case(scheme).then(|| rest.trim_start())
}

fn only<'a>(mut values: impl Iterator<Item = Cow<'a, str>>) -> Result<Option<Cow<'a, str>>, Ambiguous> {
    let first = values.next();
    if values.next().is_some() { Err(Ambiguous) } else { Ok(first.filter(|value| !value.is_empty())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn credentials_are_found_where_they_are_said_to_be() {
        let config = |kind: &str, name: &str| serde_json::from_value(serde_json::json!({ kind: name })).unwrap();
        for (kind, name, given, uri, found) in [
            ("header", "authorization", &[("authorization", "Bearer a.b")][..], "/", Ok(Some("a.b"))),
            ("header", "authorization", &[("authorization", "bEARER  a.b")], "/", Ok(Some("a.b"))),
            ("header", "authorization", &[("authorization", "Basic a.b")], "/", Ok(None)),
            ("header", "authorization", &[("authorization", "a.b")], "/", Ok(None)),
            ("header", "authorization", &[("authorization", "Bearer ")], "/", Ok(None)),
            (
                "header",
                "authorization",
                &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
                "/",
                Err(Ambiguous),
            ),
            ("header", "x-token", &[("x-token", "a.b")], "/", Ok(Some("a.b"))),
            ("header", "x-token", &[("x-token", "Bearer a.b")], "/", Ok(Some("a.b"))),
            ("cookie", "t", &[("cookie", "a=1; t=a.b; b=2")], "/", Ok(Some("a.b"))),
            ("cookie", "t", &[("cookie", "t=1; t=2")], "/", Err(Ambiguous)),
            ("cookie", "t", &[("cookie", "tt=1")], "/", Ok(None)),
            ("query", "t", &[], "/x?a=1&t=a%2Eb", Ok(Some("a.b"))),
            ("query", "t", &[], "/x?t=1&t=2", Err(Ambiguous)),
        ] {
            let (headers, uri) = (headers(given), uri.parse().unwrap());
            let credential = Credential::try_new(&config(kind, name)).unwrap();
            assert_eq!(credential.find("bearer", &headers, &uri), found.map(|v| v.map(Cow::from)), "{given:?} {uri}");
        }
    }

    #[test]
    fn a_cookie_goes_and_the_others_stay() {
        let mut headers = headers(&[("cookie", "a=1; t=2"), ("cookie", "b=3")]);
        Credential::Cookie("x".into()).remove(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().count(), 2);
        Credential::Cookie("t".into()).remove(&mut headers);
        assert_eq!(headers[COOKIE], "a=1; b=3");
        remove_cookies(&mut headers, |_| true);
        assert!(!headers.contains_key(COOKIE));
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_sends_is_too_much(value in proptest::collection::vec(any::<u8>(), 0..80), query in "\\PC{0,40}") {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(COOKIE, value.clone());
                headers.insert(AUTHORIZATION, value);
            }
            let uri: Uri = format!("/?{query}").parse().unwrap_or_default();
            for place in [Credential::Header(AUTHORIZATION), Credential::Cookie("a".into()), Credential::Query("a".into())] {
                let _ = place.find("bearer", &headers, &uri);
                place.remove(&mut headers);
            }
        }
    }
}
