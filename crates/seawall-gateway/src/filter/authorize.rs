//! Who may do what: rules, of which the first that applies decides. Where none does, nobody may.

use std::collections::BTreeMap;

use http::{Method, Request};
use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use seawall_proxy::RequestBody;
use seawall_proxy::filter::{Answering, Filter, Next};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::FilterError;
use crate::auth::claims::{ClaimConfig, Claims};
use crate::auth::denied::Denied;
use crate::auth::identity::Identity;
use crate::path::Pattern;

/// A rule, as it is written: `- allow: { path: /admin/**, claims: { roles: admin } }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleConfig {
    /// Lets a request pass to which all of this applies.
    Allow(ConditionConfig),
    /// Answers it with 403.
    Deny(ConditionConfig),
}

/// What a rule applies to; nothing is everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConditionConfig {
    /// The methods. Default: all.
    pub method: Vec<String>,
    /// A path pattern, as of a route. Default: every path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What the claims of the caller have to be. A caller who is not known has none. Default: anything.
    pub claims: BTreeMap<String, ClaimConfig>,
}

#[derive(Debug)]
pub(crate) struct Authorize {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    allows: bool,
    methods: Vec<Method>,
    path: Option<Pattern>,
    claims: Claims,
}

impl Authorize {
    pub(crate) fn try_new(config: &[RuleConfig]) -> Result<Self, FilterError> {
        let rules: Vec<Rule> = config
            .iter()
            .enumerate()
            .map(|(at, rule)| {
                Rule::try_new(rule).map_err(|FilterError(why)| FilterError(format!("authorize: rule {at}: {why}")))
            })
            .collect::<Result<_, _>>()?;
        match rules.iter().any(|rule| rule.allows) {
            true => Ok(Self { rules }),
            false => Err(FilterError("authorize: no rule allows anything, so that nobody would pass".to_owned())),
        }
    }

    fn allows(&self, method: &Method, path: &Paths<'_>, claims: &Value) -> bool {
        let first = self.rules.iter().find(|rule| rule.applies(method, path, claims));
        first.is_some_and(|rule| rule.allows)
    }
}

impl Rule {
    fn try_new(config: &RuleConfig) -> Result<Self, FilterError> {
        let (allows, condition) = match config {
            RuleConfig::Allow(condition) => (true, condition),
            RuleConfig::Deny(condition) => (false, condition),
        };
        let method = |text: &String| match Method::from_bytes(text.as_bytes()) {
            Ok(method) if text.bytes().all(|b| b.is_ascii_uppercase()) => Ok(method),
            _ => Err(FilterError(format!("`{text}` is not a method such as GET"))),
        };
        let methods = condition.method.iter().map(method).collect::<Result<_, _>>()?;
        let path = condition.path.as_deref().map(Pattern::try_new).transpose();
        let path = path.map_err(|error| FilterError(error.to_string()))?;
        Ok(Self { allows, methods, path, claims: Claims::try_new(&condition.claims)? })
    }

    fn applies(&self, method: &Method, paths: &Paths<'_>, claims: &Value) -> bool {
        let path = self.path.as_ref().is_none_or(|pattern| paths.fit(pattern, self.allows));
        path && (self.methods.is_empty() || self.methods.contains(method)) && self.claims.missing(claims).is_none()
    }
}

/// A path as it came, and as a service may read it: decoded, without what follows a `;`, and without doubled slashes.
///
/// Services differ in this. So a rule that denies applies if either reading fits it, and one that allows only if the path has the
/// same segments in both, or both fit.
#[derive(Debug)]
struct Paths<'a> {
    written: &'a str,
    read: String,
}

impl<'a> Paths<'a> {
    fn new(written: &'a str) -> Self {
        let decoded = percent_decode_str(written).decode_utf8_lossy().replace('\\', "/");
        let segments = decoded.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
        let read =
            segments.filter(|segment| !segment.is_empty()).fold(String::new(), |path, segment| path + "/" + segment);
        Self { written, read: if read.is_empty() { "/".to_owned() } else { read } }
    }

    fn fit(&self, pattern: &Pattern, allows: bool) -> bool {
        let (written, read) = (pattern.matches(self.written), pattern.matches(&self.read));
        if allows { written && (read || !self.is_ambiguous()) } else { written || read }
    }

    fn is_ambiguous(&self) -> bool {
        let written = self.written.strip_suffix('/').unwrap_or(self.written);
        let odd = |segment: &str| segment.is_empty() || segment.contains(';');
        written.split('/').count() != self.read.split('/').count() && !self.written.is_empty() && self.written != "/"
            || written.split('/').skip(1).any(odd)
    }
}

impl Filter for Authorize {
    fn call<'a>(&'a self, request: Request<RequestBody>, next: Next<'a>) -> Answering<'a> {
        Box::pin(async move {
            let identity = Identity::of(request.extensions());
            let claims = identity.map_or(&Value::Null, |identity| &*identity.claims);
            if self.allows(request.method(), &Paths::new(request.uri().path()), claims) {
                return next.run(request).await;
            }
            Denied::forbidden("this is not allowed").response("authorize", next.route())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn authorize(rules: Value) -> Result<Authorize, FilterError> {
        Authorize::try_new(&serde_json::from_value::<Vec<RuleConfig>>(rules).unwrap())
    }

    #[test]
    fn the_first_rule_that_applies_decides() {
        let filter = authorize(json!([
            { "allow": { "path": "/admin/**", "claims": { "roles": "admin" } } },
            { "deny": { "path": "/admin/**" } },
            { "deny": { "claims": { "sub": "mallory" } } },
            { "allow": { "method": ["GET", "HEAD"], "path": "/public/**" } },
            { "allow": { "path": "/files/a%20b" } },
            { "allow": { "path": "/orders/{id}", "claims": { "sub": "*" } } },
        ]))
        .unwrap();
        let (ann, admin) = (json!({ "sub": "ann" }), json!({ "sub": "bob", "roles": ["user", "admin"] }));
        let mallory = json!({ "sub": "mallory" });
        for (method, path, claims, allowed) in [
            ("GET", "/admin/x", &admin, true),
            ("GET", "/admin/x", &ann, false),
            ("GET", "/admin", &ann, false),
            ("GET", "/public/x", &Value::Null, true),
            ("POST", "/public/x", &Value::Null, false),
            ("GET", "/public/x", &mallory, false),
            ("GET", "/orders/7", &ann, true),
            ("GET", "/orders/7", &Value::Null, false),
            ("GET", "/orders/7/", &ann, false),
            ("GET", "/elsewhere", &ann, false),
            ("GET", "/files/a%20b", &ann, true),
            // What a service may take for another path.
            ("GET", "/%61dmin/x", &ann, false),
            ("GET", "//admin/x", &ann, false),
            ("GET", "/admin;v=1/x", &ann, false),
            ("GET", "/public/%2e%2e%2fadmin", &Value::Null, true),
            ("GET", "/orders/7%2Fcancel", &ann, false),
            ("GET", "/orders/7%5Ccancel", &ann, false),
            ("GET", "/orders//7", &ann, false),
        ] {
            let method = method.parse().unwrap();
            assert_eq!(filter.allows(&method, &Paths::new(path), claims), allowed, "{method} {path} {claims}");
        }
        // Whoever is admin only by a path that is read otherwise is none.
        assert!(!filter.allows(&Method::GET, &Paths::new("/admin%2f..%2fx"), &ann));
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused() {
        for (rules, says) in [
            (json!([]), "nobody would pass"),
            (json!([{ "deny": {} }]), "nobody would pass"),
            (json!([{ "allow": {} }, { "deny": { "method": ["get"] } }]), "rule 1: `get` is not a method"),
            (json!([{ "allow": { "path": "x" } }]), "rule 0: `x` is not a path pattern"),
            (json!([{ "allow": { "claims": { "a": { "regex": "(" } } } }]), "rule 0: the claim a: `(`"),
        ] {
            let error = authorize(rules).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic_and_none_slips_by(path in "/[a-z%0-9;/\\\\]{0,20}", front in prop_oneof![Just("/"), Just("//"), Just("/./"), Just("/%2f"), Just("/;a/")]) {
            let filter = authorize(json!([{ "deny": { "path": "/admin/**" } }, { "allow": {} }])).unwrap();
            let allowed = |path: &str| filter.allows(&Method::GET, &Paths::new(path), &Value::Null);
            let _ = allowed(&path);
            if front != "/./" {
                let slips = allowed(&format!("{front}admin{path}"));
                prop_assert!(!slips);
            }
        }
    }
}
