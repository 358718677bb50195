//! `seawall import`: routes that were written for others.
//!
//! What is read becomes `seawall.yaml` on standard output. Whatever cannot become part of it is named on standard error, with its
//! place and the reason. A route of which a condition is missing is left out, since it would take more than it did; one of which a
//! filter is missing answers 501, since it would protect its service less.

mod gateway_api;
mod openapi;
mod spring;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::config::tree::{self, Kind, Node, Place};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// The routes of a Spring Cloud Gateway, out of its application.yml.
    SpringGateway {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// The HTTPRoutes of Kubernetes' Gateway API, out of their manifests.
    GatewayApi {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// A route for each operation of an OpenAPI document, YAML or JSON, which lets pass what the document allows.
    Openapi {
        /// The file.
        file: PathBuf,
        /// The service that all requests go to; by default it is named after the document.
        #[arg(long)]
        service: Option<String>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args)]
pub(crate) struct Common {
    /// The name of the gateway that has the routes.
    #[arg(long, default_value = "public")]
    gateway: String,
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Let routes go without the filters that cannot be converted, instead of answering 501. Without a condition none is kept.
    #[arg(long)]
    partial: bool,
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let (common, mut import) = match command {
        Command::SpringGateway { file, common } => (common, spring::import(&read(file)?, common.partial)),
        Command::GatewayApi { files, common } => {
            let documents = files.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
            (common, gateway_api::import(&documents.concat(), common.partial))
        }
        Command::Openapi { file, service, common } => (common, openapi::import(&read(file)?, service.as_deref())?),
    };
    let text = yaml::write(&import.file(common));
    // What comes out is held to the same rules as what people write.
    if let Err(mistakes) = crate::config::load::text("the converted file", &text) {
        for mistake in &mistakes.mistakes {
            import.notes.push(format!("{}: {}", mistake.path, mistake.what));
        }
    }
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the file")?;
    for remark in &import.remarks {
        eprintln!("note: {remark}");
    }
    for note in &import.notes {
        eprintln!("not converted: {note}");
    }
    anyhow::ensure!(import.notes.is_empty(), "{} parts were not converted", import.notes.len());
    Ok(())
}

/// One YAML document of a file.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    file: String,
    text: String,
    /// The line of the file on which it begins, from 0.
    line: usize,
    root: Node,
}

impl Document {
    /// Where a node stands: `application.yml:12`.
    pub(crate) fn place(&self, node: &Node) -> String {
        let Place::File(range) = &node.place else { return self.file.clone() };
        let before = self.text.chars().take(range.start).filter(|c| *c == '\n').count();
        format!("{}:{}", self.file, self.line + before + 1)
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<Document>> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    parse(&name, &text)
}

/// The documents of a file, each with its first line.
fn parse(name: &str, text: &str) -> anyhow::Result<Vec<Document>> {
    let mut parts: Vec<(usize, String)> = vec![(0, String::new())];
    for (line, content) in text.lines().enumerate() {
        if content == "---" || content.starts_with("--- ") || content == "..." {
            parts.push((line + 1, String::new()));
        } else if let Some((_, part)) = parts.last_mut() {
            part.push_str(content);
            part.push('\n');
        }
    }
    let mut documents = Vec::new();
    for (line, text) in parts {
        let (root, twice) = tree::parse(&text).map_err(|error| {
            let before = text.chars().take(error.at.start).filter(|c| *c == '\n').count();
            anyhow::anyhow!("{name}:{}: this is not YAML: {}", line + before + 1, error.what)
        })?;
        let document = Document { file: name.to_owned(), text, line, root };
        if let Some(twice) = twice.first() {
            let before = document.text.chars().take(twice.at.start).filter(|c| *c == '\n').count();
            anyhow::bail!("{name}:{}: {}", line + before + 1, twice.what);
        }
        if !matches!(&document.root.kind, Kind::Map(entries) if entries.is_empty()) {
            documents.push(document);
        }
    }
    Ok(documents)
}

/// What has been read so far.
#[derive(Debug, Default)]
pub(crate) struct Import {
    specific: bool,
    filters: Vec<Value>,
    routes: Vec<Value>,
    services: BTreeSet<String>,
    policies: BTreeMap<String, Map<String, Value>>,
    /// What could not be converted, where and why.
    notes: Vec<String>,
    /// What was, and has to be known.
    remarks: Vec<String>,
}

impl Import {
    /// Says once what has to be known.
    fn remark(&mut self, text: String) {
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }

    /// Sets what a service's policy says; the first counts.
    fn policy(&mut self, place: &str, service: &str, key: &str, value: Value) {
        let policy = self.policies.entry(service.to_owned()).or_default();
        match policy.get(key) {
            Some(given) if *given != value => self.notes.push(format!(
                "{place}: {key} {value} of the service `{service}`: a service has one policy, and another route says {given}"
            )),
            Some(_) => {}
            None => drop(policy.insert(key.to_owned(), value)),
        }
    }

    /// A name of a service out of one of theirs.
    fn service(&mut self, name: &str) -> String {
        let name = slug(name);
        self.services.insert(name.clone());
        name
    }

    /// `seawall.yaml`.
    fn file(&self, common: &Common) -> Value {
        let mut gateway = Map::new();
        gateway.insert("listen".into(), common.listen.to_string().into());
        if self.specific {
            gateway.insert("precedence".into(), "specific".into());
        }
        if !self.filters.is_empty() {
            gateway.insert("filters".into(), self.filters.clone().into());
        }
        gateway.insert("routes".into(), self.routes.clone().into());
        let mut file = Map::new();
        if !self.policies.is_empty() {
            let policies = self.policies.iter().map(|(name, policy)| (name.clone(), Value::Object(policy.clone())));
            file.insert("policies".into(), Value::Object(policies.collect()));
        }
        file.insert("gateways".into(), json!({ common.gateway.clone(): gateway }));
        let services = self.services.iter().map(|name| (name.clone(), json!({})));
        file.insert("services".into(), Value::Object(services.collect()));
        Value::Object(file)
    }
}

/// Small letters, digits and `-`, as the names of services have them.
fn slug(text: &str) -> String {
    let mut made = String::new();
    for c in text.chars() {
        match c {
            c if c.is_ascii_alphanumeric() => made.push(c.to_ascii_lowercase()),
            _ if made.is_empty() || made.ends_with('-') => {}
            _ => made.push('-'),
        }
    }
    let made: String = made.trim_end_matches('-').chars().take(60).collect();
    let made = made.trim_end_matches('-').to_owned();
    match made.chars().next() {
        None => "service".to_owned(),
        Some(first) if first.is_ascii_digit() => format!("s-{made}"),
        Some(_) => made,
    }
}

/// The text of a scalar, whatever its kind.
fn text(node: &Node) -> Option<String> {
    match &node.kind {
        Kind::Scalar(Value::String(text)) => Some(text.clone()),
        Kind::Scalar(Value::Null) => None,
        Kind::Scalar(other) => Some(other.to_string()),
        Kind::Seq(_) | Kind::Map(_) => None,
    }
}

/// The items of a list; a scalar is a list of one.
fn items(node: &Node) -> Vec<&Node> {
    match &node.kind {
        Kind::Seq(items) => items.iter().map(|(_, item)| item).collect(),
        Kind::Scalar(Value::Null) => Vec::new(),
        _ => vec![node],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_lines() {
        let documents = parse("f", "# first\na: 1\n---\nb:\n  c: 2\n---\n").unwrap();
        assert_eq!(documents.len(), 2);
        let c = documents[1].root.child("b").unwrap().child("c").unwrap();
        assert_eq!(documents[1].place(c), "f:5");
        let error = parse("f", "a: 1\n---\nb: [\n").unwrap_err().to_string();
        assert!(error.starts_with("f:") && error.contains("not YAML"), "{error}");
    }

    #[test]
    fn names_are_those_of_services() {
        for (given, made) in
            [("Order Service", "order-service"), ("ORDER_v2", "order-v2"), ("--", "service"), ("7", "s-7")]
        {
            assert_eq!(slug(given), made);
            seawall_types::ServiceName::try_new(made).unwrap();
        }
    }
}
