//! Files of their own for parts of a gateway, one a team: what is in them becomes a part of the whole before anything is checked,
//! so that a conflict between two of them is a mistake like any other, with its place.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::load::{Mistake, Sources};
use super::tree::{self, Kind, Node, Place};

/// What such a file may hold.
const KEYS: [&str; 3] = ["routes", "services", "policies"];

/// Puts what is in the directories that the gateways name where it belongs.
pub(super) fn gather(tree: &mut Node, base: &Path, sources: &mut Sources, mistakes: &mut Vec<Mistake>) {
    let mut found: Vec<(String, PathBuf, Place)> = Vec::new();
    if let Some(Node { kind: Kind::Map(gateways), .. }) = tree.child("gateways") {
        for (gateway, node) in gateways {
            if let Some(from) = node.child("routes_from")
                && let Kind::Scalar(Value::String(directory)) = &from.kind
            {
                found.push((gateway.name.clone(), base.join(directory), from.place.clone()));
            }
        }
    }
    for (gateway, directory, place) in found {
        let files = match files(&directory) {
            Ok(files) => files,
            Err(error) => {
                mistakes.push(Mistake {
                    path: format!("gateways.{gateway}.routes_from"),
                    what: format!("cannot read the directory {}: {error}", directory.display()),
                    hint: Some("it is looked for beside this file".into()),
                    place,
                });
                continue;
            }
        };
        for file in files {
            add(tree, &gateway, &file, sources, mistakes);
        }
    }
}

/// The files of a directory that end in `.yaml` or `.yml`, by name.
pub(crate) fn files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    let files = entries.into_iter().map(|entry| entry.path());
    let mut files: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|end| end == "yaml" || end == "yml")).collect();
    files.sort();
    Ok(files)
}

fn add(tree: &mut Node, gateway: &str, file: &Path, sources: &mut Sources, mistakes: &mut Vec<Mistake>) {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file);
    let from = sources.add(name.clone(), text.as_ref().map(String::clone).unwrap_or_default());
    let shifted = |at: Range<usize>| Place::File(at.start + from..at.end + from);
    let mut mistake = |what: String, place: Place, hint: &str| {
        mistakes.push(Mistake { path: name.clone(), what, hint: Some(hint.to_owned()), place });
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            let hint = "may it be read, and is it text in UTF-8?";
            return mistake(format!("cannot be read: {error}"), shifted(0..0), hint);
        }
    };
    let (node, twice) = match tree::parse(&text) {
        Ok(parsed) => parsed,
        Err(error) => {
            let hint = "look at the indentation, quotes and brackets here and just above";
            return mistake(format!("not YAML: {}", error.what), shifted(error.at), hint);
        }
    };
    for twice in twice {
        mistake(twice.what, shifted(twice.at), "keep one of the two; here the first was looked at");
    }
    let node = node.shifted(from);
    let Kind::Map(entries) = node.kind else {
        return mistake("it has to be a block of keys".to_owned(), node.place, "such as `routes: [ ... ]`");
    };
    for (key, node) in entries {
        let known = KEYS.contains(&&*key.name);
        match node.kind {
            _ if !known => {
                let hint = "a file of routes holds `routes`, `services` and `policies`";
                mistake(format!("unknown key `{}`", key.name), key.place, hint);
            }
            Kind::Scalar(Value::Null) => {}
            Kind::Seq(items) if key.name == "routes" => {
                let gateway = tree.child_mut("gateways").and_then(|gateways| gateways.child_mut(gateway));
                let routes = gateway.and_then(|gateway| gateway.grow("routes", Kind::Seq(Vec::new())));
                if let Some(Node { kind: Kind::Seq(routes), .. }) = routes {
                    for (_, route) in items {
                        routes.push((routes.len(), route));
                    }
                }
            }
            Kind::Map(entries) if key.name != "routes" => {
                let whole = tree.grow(&key.name, Kind::Map(Vec::new()));
                let Some(Node { kind: Kind::Map(whole), .. }) = whole else { continue };
                for (own, node) in entries {
                    if whole.iter().any(|(other, _)| other.name == own.name) {
                        let what = format!("`{}.{}` is written in another file too", key.name, own.name);
                        mistake(what, own.place, "one of the two has to go");
                    } else {
                        whole.push((own, node));
                    }
                }
            }
            _ => {
                let what = if key.name == "routes" { "a list of routes" } else { "a block of keys" };
                mistake(format!("`{}` has to be {what}", key.name), key.place, "docs/configuration.md shows it");
            }
        }
    }
}
