//! `seawall route explain METHOD URL`: which route of the file takes a request, what its filters do to it, and why the others do not.

use std::net::IpAddr;

use anyhow::Context as _;
use http::{HeaderName, HeaderValue, Request, Uri};
use seawall_gateway::{FilterConfig, GatewayConfig, RouteConfig, RouteTable, Verdict};
use seawall_proxy::Asked;
use seawall_proxy::headers::Forwarding;

use crate::process;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Ask the file which route takes a request. Nothing has to run.
    Explain(Args),
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The method.
    method: http::Method,
    /// The path with its query, or a whole URL.
    url: Uri,
    /// A header: `name: value`. May be given several times.
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Whose request it is.
    #[arg(long, default_value = "127.0.0.1")]
    from: IpAddr,
    /// Which gateway of the file; needed only when there are several.
    #[arg(long)]
    gateway: Option<String>,
    /// The file.
    #[arg(long, short, default_value = "seawall.yaml")]
    config: std::path::PathBuf,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let Command::Explain(args) = command;
    let loaded = process::config(Some(&args.config))?;
    let (name, gateway) = loaded.gateway(args.gateway.as_deref())?;
    let takes = explain(args, name, gateway)?;
    if !takes {
        println!("  no route takes it: it is answered with 404");
        std::process::exit(1);
    }
    Ok(())
}

fn request(args: &Args) -> anyhow::Result<http::request::Parts> {
    let mut request = Request::builder().method(&args.method).uri(&args.url);
    for header in &args.headers {
        let (name, value) =
            header.split_once(':').with_context(|| format!("`{header}` is no header such as `x-beta: 1`"))?;
        let name =
            HeaderName::try_from(name.trim()).with_context(|| format!("`{name}` is not the name of a header"))?;
        let value = HeaderValue::try_from(value.trim()).with_context(|| format!("`{value}` is no header's value"))?;
        request = request.header(name, value);
    }
    Ok(request.body(()).context("this is no request")?.into_parts().0)
}

/// Whether any route takes it.
fn explain(args: &Args, name: &str, gateway: &GatewayConfig) -> anyhow::Result<bool> {
    let parts = request(args)?;
    let forwarding = Forwarding::new(args.from, gateway.trusted_hops, None);
    let asked = Asked::new(&parts, Some(&forwarding));
    let table = RouteTable::of(gateway);
    let table = table.map_err(|problems| anyhow::anyhow!("the routes of `{name}` are wrong: {}", problems[0]))?;
    println!("{} {} at the gateway `{name}`, from {}", parts.method, parts.uri, asked.client().unwrap_or(args.from));
    let verdicts = table.explain(&asked);
    for verdict in &verdicts {
        let route = &gateway.routes[verdict.at];
        match &verdict.why_not {
            Some(why) => println!("  no   {:<16} {why}", route.id),
            None => takes(&gateway.filters, route, verdict),
        }
    }
    let asked: Vec<usize> = verdicts.iter().map(|verdict| verdict.at).collect();
    let rest = gateway.routes.iter().enumerate().filter(|(at, _)| !asked.contains(at)).map(|(_, route)| &*route.id);
    let rest: Vec<_> = rest.collect();
    if !rest.is_empty() {
        println!("  not asked: {}", rest.join(", "));
    }
    Ok(verdicts.last().is_some_and(|last| last.why_not.is_none()))
}

fn takes(common: &[FilterConfig], route: &RouteConfig, verdict: &Verdict) {
    let to =
        route.to.as_ref().map_or_else(|| "answered here".to_owned(), |service| format!("to the service `{service}`"));
    println!("  YES  {:<16} {to}", route.id);
    for filter in common.iter().chain(&route.filters) {
        println!("         {}", effect(filter));
    }
    match &verdict.target {
        Ok(Some(target)) => println!("         the service sees {target}"),
        Ok(None) => {}
        Err(why) => println!("         it is answered with 400: {why}"),
    }
    if let Some(fallback) = &route.fallback {
        println!("         where the service cannot answer, {} is answered", fallback.status);
    }
}

fn effect(filter: &FilterConfig) -> String {
    match filter {
        FilterConfig::StripPrefix(segments) => format!("the path loses its first {segments} segments"),
        FilterConfig::PrefixPath(prefix) => format!("the path gets {prefix} in front"),
        FilterConfig::SetPath(path) => format!("the path becomes {path}"),
        FilterConfig::RewritePath(rewrite) => format!("in the path, {} becomes {}", rewrite.regex, rewrite.to),
        FilterConfig::SetQuery(map) => format!("the query's parameters become {}", pairs(map)),
        FilterConfig::AddQuery(map) => format!("the query gets the parameters {}", pairs(map)),
        FilterConfig::RemoveQuery(names) => format!("the query loses the parameters {}", names.join(", ")),
        FilterConfig::SetHeader(map) => format!("the request's headers become {}", pairs(map)),
        FilterConfig::AddHeader(map) => format!("the request gets the headers {} beside those it has", pairs(map)),
        FilterConfig::DefaultHeader(map) => {
            format!("the request gets the headers {} that it does not have", pairs(map))
        }
        FilterConfig::CopyHeader(map) => format!("the request's headers are copied, {}", pairs(map)),
        FilterConfig::RemoveHeader(names) => format!("the request loses the headers {}", names.join(", ")),
        FilterConfig::SetResponseHeader(map) => format!("the answer's headers become {}", pairs(map)),
        FilterConfig::AddResponseHeader(map) => {
            format!("the answer gets the headers {} beside those it has", pairs(map))
        }
        FilterConfig::RemoveResponseHeader(names) => format!("the answer loses the headers {}", names.join(", ")),
        FilterConfig::SecurityHeaders(_) => "the answer gets the headers that keep browsers from harm".to_owned(),
        FilterConfig::RewriteQuery(rewrite) => {
            format!("in the query's {}, {} becomes {}", rewrite.name, rewrite.regex, rewrite.to)
        }
        FilterConfig::SetHost(host) => format!("the service is called by the host {host}"),
        FilterConfig::PreserveHost(true) => "the service is called by the host that the client asked for".to_owned(),
        FilterConfig::PreserveHost(false) => "the service is called by its own name".to_owned(),
        FilterConfig::RewriteResponseHeader(rewrite) => {
            format!("in the answer's {}, {} becomes {}", rewrite.name, rewrite.regex, rewrite.to)
        }
        FilterConfig::DedupeResponseHeader(dedupe) => {
            format!("the answer's {} lose their doubles", dedupe.names.join(", "))
        }
        FilterConfig::RewriteLocation(_) => "where it sends the client to the service, it sends it here".to_owned(),
        FilterConfig::SetStatus(status) => format!("the answer's status becomes {status}"),
        FilterConfig::Cors(_) => "pages of other origins may read the answer, as far as they are allowed to".to_owned(),
        FilterConfig::Compress(_) => "the answer is compressed for clients that take it".to_owned(),
        FilterConfig::Decompress(_) => "the request's body is decompressed".to_owned(),
        FilterConfig::Validate(_) => "what is not as it has to be is answered with 400".to_owned(),
        FilterConfig::Json(_) => "bodies of JSON are changed".to_owned(),
        FilterConfig::Fault(fault) => {
            let delay = fault.delay.as_ref().map(|delay| format!("{} are held up by {}", delay.share, delay.by));
            let abort = fault.abort.as_ref().map(|abort| format!("{} are answered with {}", abort.share, abort.status));
            let header = fault.header.as_ref().map(|name| format!("what {name} orders is done"));
            [delay, abort, header].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        FilterConfig::Mirror(mirror) => format!("{} are copied to the service `{}`", mirror.share, mirror.to),
        FilterConfig::Affinity(_) => "the requests of a client go to the same endpoint".to_owned(),
        FilterConfig::RequestSize(size) => {
            format!("a body above {} and headers above {} are refused", size.body, size.headers)
        }
        FilterConfig::ToService(choice) => {
            let among: Vec<_> = choice.among.iter().map(seawall_types::ServiceName::as_str).collect();
            format!("the request says which of the services {} it goes to", among.join(", "))
        }
        FilterConfig::RequestId(id) => format!("the request is named in {}", id.header),
        FilterConfig::Jwt(jwt) if jwt.optional => "a token is verified, if there is one".to_owned(),
        FilterConfig::Jwt(_) => "a token is needed, and verified".to_owned(),
        FilterConfig::ApiKey(config) if config.optional => "a key is looked up, if there is one".to_owned(),
        FilterConfig::ApiKey(_) => "a key is needed".to_owned(),
        FilterConfig::Basic(config) if config.optional => "a password is verified, if there is one".to_owned(),
        FilterConfig::Basic(_) => "a name and its password are needed".to_owned(),
        FilterConfig::Hmac(_) => "the request has to be signed with a shared secret".to_owned(),
        FilterConfig::Ip(_) => "the client has to come from where it is allowed".to_owned(),
        FilterConfig::ExternalAuth(config) => format!("the service `{}` decides whether it passes", config.service),
        FilterConfig::Oidc(config) => format!("a browser logs in at {}, unless it has a session", config.issuer),
        FilterConfig::Authorize(rules) => {
            format!("the first of {} rules that applies decides, or nothing passes", rules.len())
        }
        FilterConfig::Redirect(redirect) => format!("the client is sent to {} with {}", redirect.to, redirect.status),
        FilterConfig::Respond(answer) => format!("{} is answered", answer.status),
    }
}

fn pairs(map: &std::collections::BTreeMap<String, String>) -> String {
    map.iter().map(|(name, value)| format!("`{name}: {value}`")).collect::<Vec<_>>().join(", ")
}
