//! Spring's filters, under the names that they have here.

use serde_json::{Map, Value, json};

use super::{Converted, Part, Scope, Why, duration, size};

/// What a filter becomes.
pub(super) fn convert(part: &Part, scope: &mut Scope) -> Result<Converted, Why> {
    let args = &part.args;
    let need = |at, name: &str| args.get(at, name).ok_or_else(|| format!("its argument {name} is missing"));
    let pair = |ours: &str| -> Result<Value, Why> {
        let value = need(1, "value")?;
        plain(&value)?;
        Ok(json!({ ours: { need(0, "name")?: value } }))
    };
    let one = |filter: Value| Ok(Converted { filters: vec![filter], remark: None });
    let nothing =
        |remark: &str| Ok(Converted { filters: Vec::new(), remark: Some(format!("{}: {remark}", part.name)) });
    match part.name.as_str() {
        "AddRequestHeader" => one(pair("add_header")?),
        "SetRequestHeader" => one(pair("set_header")?),
        "AddResponseHeader" => match args.get(2, "override").as_deref() {
            Some("false") => {
                Err("without override it is set only where it is missing: let the service do so, or use set_response_header".to_owned())
            }
            _ => one(pair("add_response_header")?),
        },
        "SetResponseHeader" => one(pair("set_response_header")?),
        "AddRequestParameter" => one(pair("add_query")?),
        "AddRequestHeadersIfNotPresent" => {
            let mut headers = Map::new();
            for header in args.all("headers") {
                let (name, value) = header.split_once(':').ok_or_else(|| format!("{header} is no name:value"))?;
                plain(value)?;
                headers.insert(name.trim().to_owned(), value.trim().into());
            }
            one(json!({ "default_header": headers }))
        }
        "MapRequestHeader" => one(json!({ "copy_header": { need(0, "fromHeader")?: need(1, "toHeader")? } })),
        "RemoveRequestHeader" => one(json!({ "remove_header": [need(0, "name")?] })),
        "RemoveResponseHeader" => one(json!({ "remove_response_header": [need(0, "name")?] })),
        "RemoveRequestParameter" => one(json!({ "remove_query": [need(0, "name")?] })),
        "RewriteRequestParameter" => {
            let to = need(1, "replacement")?.replace('$', "$$");
            one(json!({ "rewrite_query": { "name": need(0, "name")?, "to": to } }))
        }
        "SetRequestHostHeader" => one(json!({ "set_host": need(0, "host")? })),
        "PreserveHostHeader" => one(json!({ "preserve_host": true })),
        "RequestHeaderSize" => {
            let headers = size(&need(0, "maxSize")?).ok_or("maxSize is no size such as 16KB")?;
            let filter = json!({ "request_size": { "headers": headers, "body": "1 TiB" } });
            let remark = "the size is that of all headers together, not of each";
            Ok(Converted { filters: vec![filter], remark: Some(format!("RequestHeaderSize: {remark}")) })
        }
        "RequestSize" => {
            let given = args.get(0, "maxSize").unwrap_or_else(|| "5MB".to_owned());
            let body = size(&given).ok_or_else(|| format!("{given} is no size such as 5MB"))?;
            one(json!({ "request_size": { "body": body } }))
        }
        "PrefixPath" => one(json!({ "prefix_path": need(0, "prefix")? })),
        "StripPrefix" => {
            let parts = args.get(0, "parts").unwrap_or_else(|| "1".to_owned());
            let parts: u8 = parts.parse().map_err(|_| format!("{parts} is no number of parts"))?;
            one(json!({ "strip_prefix": parts }))
        }
        "SetPath" => one(json!({ "set_path": need(0, "template")? })),
        "RewritePath" => {
            let (from, to) = rewriting(args.get(0, "regexp"), args.get(1, "replacement"))?;
            one(json!({ "rewrite_path": { "regex": from, "to": to } }))
        }
        "RewriteResponseHeader" => {
            let (from, to) = rewriting(args.get(1, "regexp"), args.get(2, "replacement"))?;
            one(json!({ "rewrite_response_header": { "name": need(0, "name")?, "regex": from, "to": to } }))
        }
        "DedupeResponseHeader" => {
            let names: Vec<String> = need(0, "name")?.split_whitespace().map(str::to_owned).collect();
            let strategy = args.get(1, "strategy").unwrap_or_else(|| "RETAIN_FIRST".to_owned());
            let keep = strategy.strip_prefix("RETAIN_").unwrap_or(&strategy).to_lowercase();
            one(json!({ "dedupe_response_header": { "names": names, "keep": keep } }))
        }
        "RewriteLocationResponseHeader" => {
            let mut location = Map::new();
            location.insert("from".into(), json!(["*"]));
            let strip = match args.get(0, "stripVersionMode").as_deref() {
                None | Some("" | "AS_IN_REQUEST") => "as_in_request",
                Some("NEVER_STRIP") => "never",
                Some("ALWAYS_STRIP") => "always",
                Some(other) => return Err(format!("{other} is no mode of stripping versions")),
            };
            location.insert("strip_version".into(), strip.into());
            for (at, theirs, ours) in [(1, "locationHeaderName", "header"), (2, "hostValue", "host")] {
                if let Some(value) = args.get(at, theirs).filter(|value| !value.is_empty()) {
                    location.insert(ours.into(), value.into());
                }
            }
            one(json!({ "rewrite_location": location }))
        }
        "SetStatus" => one(json!({ "set_status": status(&need(0, "status")?)? })),
        "RedirectTo" => {
            let to = need(1, "url")?;
            plain(&to)?;
            let query = args.get(2, "includeRequestParams").as_deref() == Some("true");
            let to = if query { format!("{to}{{query}}") } else { to };
            scope.answers = true;
            one(json!({ "redirect": { "to": to, "status": status(&need(0, "status")?)? } }))
        }
        "SecureHeaders" => Ok(Converted {
            filters: vec![json!({ "security_headers": {} })],
            remark: Some("SecureHeaders: the values are ours, which are stricter in places".to_owned()),
        }),
        "RemoveJsonAttributesResponseBody" => {
            let mut fields = args.all("fieldList");
            let deep = match fields.last().map(String::as_str) {
                Some("true") => fields.pop().is_some(),
                Some("false") => {
                    fields.pop();
                    false
                }
                _ => args.get(usize::MAX, "deleteRecursively").as_deref() == Some("true"),
            };
            let key = if deep { "remove_everywhere" } else { "remove" };
            one(json!({ "json": { "response": { key: fields } } }))
        }
        "CircuitBreaker" | "SpringCloudCircuitBreakerResilience4J" => match args.get(1, "fallbackUri") {
            Some(fallback) => Err(format!("{fallback} is a handler of the gateway's own program: write a `fallback` at the route")),
            None => nothing("every service has a breaker: its thresholds are the service's policy"),
        },
        "Retry" => retry(part, scope),
        "CacheRequestBody" => nothing("bodies are kept where they are needed"),
        "SaveSession" => nothing("there is no session to be saved"),
        "FallbackHeaders" => nothing("why Seawall answers instead of a service is in seawall-rejected"),
        "RequestRateLimiter" => Err("its limits are in Redis, by a bean that names the key: write a limit of the route, or `rate_limit` into the service's policy".to_owned()),
        "SetRequestUri" | "RequestHeaderToRequestUri" => {
            Err("what a client sends must not say where the gateway calls: `to_service` chooses among named services".to_owned())
        }
        "ModifyRequestBody" | "ModifyResponseBody" => Err("it is code: see whether the filter `json` does it".to_owned()),
        "LocalResponseCache" => Err("answers are not kept by a filter of this name".to_owned()),
        "TokenRelay" => Err("the token is one of a login at the gateway's own program".to_owned()),
        "JsonToGrpc" => Err("gRPC is passed on, and not made of JSON".to_owned()),
        _ => Err("it is none of Spring Cloud Gateway's own: a part of the program, most likely".to_owned()),
    }
}

/// Retries are the service's policy.
fn retry(part: &Part, scope: &mut Scope) -> Result<Converted, Why> {
    let args = &part.args;
    let number = |text: String| text.parse::<u32>().map_err(|_| format!("{text} is no number of retries"));
    let retries = args.get(0, "retries").map_or(Ok(3), number)?;
    let mut policy = Map::new();
    policy.insert("attempts".into(), (retries + 1).into());
    for (theirs, ours) in [("firstBackoff", "backoff"), ("maxBackoff", "max_backoff")] {
        let given = args.get(usize::MAX, theirs).or_else(|| args.get(usize::MAX, &format!("backoff.{theirs}")));
        if let Some(given) = given {
            policy.insert(ours.into(), duration(&given).ok_or_else(|| format!("{given} is no duration"))?.into());
        }
    }
    if let Some(factor) = args.get(usize::MAX, "backoff.factor").and_then(|factor| factor.parse::<u32>().ok()) {
        policy.insert("multiplier".into(), factor.into());
    }
    if scope.service.is_none() {
        return Err("retries are the policy of a service: write them there".to_owned());
    }
    scope.policies.push(("retry", Value::Object(policy)));
    let remark = "Retry: only what may be repeated is, whatever its methods and statuses say, and within a budget";
    Ok(Converted { filters: Vec::new(), remark: Some(remark.to_owned()) })
}

/// Of Java's replacements, ours: `$\` stands for `$` in YAML, and a group's name for what it can be.
fn rewriting(from: Option<String>, to: Option<String>) -> Result<(String, String), Why> {
    let (from, to) = (from.ok_or("its argument regexp is missing")?, to.ok_or("its argument replacement is missing")?);
    let from = regex(&from)?;
    let to = to.replace("$\\", "$");
    // A number behind `$` goes on for as long as it can here.
    let (mut made, mut rest) = (String::new(), to.as_str());
    while let Some((before, after)) = rest.split_once('$') {
        made += before;
        let digit = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digit > 0 {
            made += &format!("${{{}}}", &after[..digit]);
        } else {
            made.push('$');
        }
        rest = &after[digit..];
    }
    Ok((from, made + rest))
}

/// An expression of Java's as one of ours. Java's classes are those of ASCII.
pub(super) fn regex(text: &str) -> Result<String, Why> {
    if let Some(part) =
        ["(?=", "(?!", "(?<=", "(?<!", "(?>", "*+", "++", "?+"].iter().find(|part| text.contains(**part))
    {
        return Err(format!("the expression {text} looks around or holds on (`{part}`), which takes no bounded time"));
    }
    let (mut made, mut rest) = (String::new(), text.chars());
    while let Some(c) = rest.next() {
        match (c, if c == '\\' { rest.next() } else { None }) {
            ('\\', Some('d')) => made += "[0-9]",
            ('\\', Some('D')) => made += "[^0-9]",
            ('\\', Some('w')) => made += "[0-9A-Za-z_]",
            ('\\', Some('W')) => made += "[^0-9A-Za-z_]",
            ('\\', Some('s')) => made += r"[ \t\r\n\f\x0B]",
            ('\\', Some('S')) => made += r"[^ \t\r\n\f\x0B]",
            ('\\', Some('b')) => made += r"(?-u:\b)",
            ('\\', Some(digit)) if digit.is_ascii_digit() => {
                return Err(format!(
                    "the expression {text} refers to what it has found (`\\{digit}`), which takes no bounded time"
                ));
            }
            ('\\', Some(other)) => made.extend(['\\', other]),
            (c, _) => made.push(c),
        }
    }
    Ok(made)
}

/// A value in which nothing has to be put.
fn plain(value: &str) -> Result<(), Why> {
    match value.contains('{') {
        true => Err(format!("{value}: what a path has captured goes into paths and redirects only")),
        false => Ok(()),
    }
}

/// A number, or a name of Spring's.
fn status(text: &str) -> Result<u16, Why> {
    if let Ok(status) = text.parse() {
        return Ok(status);
    }
    let spaced = text.replace('_', " ").to_lowercase();
    let named = (100..600).filter_map(|code| http::StatusCode::from_u16(code).ok());
    let mut named =
        named.filter(|status| status.canonical_reason().is_some_and(|reason| reason.to_lowercase() == spaced));
    named.next().map(|status| status.as_u16()).ok_or_else(|| format!("{text} is no status"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacements_are_converted() {
        for (from, to, made) in [
            ("/red/?(?<segment>.*)", "/$\\{segment}", "/${segment}"),
            ("/(a)(.*)", "/$1s$2", "/${1}s${2}"),
            ("a", "b", "b"),
        ] {
            assert_eq!(rewriting(Some(from.into()), Some(to.into())).unwrap().1, made);
        }
        assert_eq!(regex(r"\d+[\w.]\.").unwrap(), r"[0-9]+[[0-9A-Za-z_].]\.");
        assert!(regex(r"(a)\1").is_err());
        assert!(rewriting(Some("(?=a)".into()), Some("b".into())).is_err());
        assert_eq!(
            (status("UNAUTHORIZED").unwrap(), status("302").unwrap(), status("FOUND").unwrap()),
            (401, 302, 302)
        );
        assert!(status("NOTHING").is_err());
    }
}
