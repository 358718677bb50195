//! What would otherwise rot: the walls between the crates, and what the documents name.

use std::collections::{BTreeMap, BTreeSet};

use crate::process::root;

/// The level of each crate; a dependency points to a lower one.
const LEVELS: &[(&str, u8)] = &[
    ("seawall-types", 0),
    ("seawall-drain", 0),
    ("seawall-servers", 0),
    ("seawall-histories", 0),
    ("seawall-store", 1),
    ("seawall-resilience", 1),
    ("seawall-telemetry", 1),
    ("seawall-discovery", 1),
    ("seawall-coord", 2),
    ("seawall-simulation", 3),
    ("seawall-chaos", 3),
    ("seawall-proxy", 2),
    ("seawall-gateway", 3),
    ("seawall-sidecar", 3),
    ("seawall-fenced", 3),
    ("seawall-peers", 3),
    ("seawall-registry", 3),
    ("seawall-saga", 3),
    ("seawall-schedule", 3),
    ("seawall-control", 4),
    ("seawall-cli", 5),
    ("seawall", 5),
];

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root()).no_deps().exec().unwrap();
    let normal = |package: &cargo_metadata::Package| {
        let dependencies = package.dependencies.iter();
        let ours = dependencies.filter(|d| d.kind == cargo_metadata::DependencyKind::Normal && d.path.is_some());
        ours.map(|dependency| dependency.name.clone()).collect()
    };
    metadata.packages.iter().map(|package| (package.name.to_string(), normal(package))).collect()
}

#[test]
fn dependencies_point_down() {
    let levels: BTreeMap<&str, u8> = LEVELS.iter().copied().collect();
    for (name, dependencies) in dependencies() {
        if name == "shop" || name == "xtask" {
            assert!(dependencies.is_empty(), "{name} shows that no crate of ours is needed, yet uses {dependencies:?}");
            continue;
        }
        let level = levels.get(&*name).unwrap_or_else(|| panic!("give the crate {name} a level"));
        for dependency in dependencies {
            assert!(levels[&*dependency] < *level, "{name} depends on {dependency}, which is not below it");
        }
    }
}

#[test]
fn the_data_plane_is_walled_off() {
    let dependencies = dependencies();
    for start in ["seawall-proxy", "seawall-gateway", "seawall-sidecar"] {
        let mut reached = BTreeSet::new();
        let mut next = vec![start.to_owned()];
        while let Some(name) = next.pop() {
            if reached.insert(name.clone()) {
                next.extend(dependencies[&name].iter().cloned());
            }
        }
        for forbidden in ["seawall-store", "seawall-coord", "seawall-registry", "seawall-saga"] {
            assert!(!reached.contains(forbidden), "{start} reaches {forbidden}");
        }
    }
}

/// Every `path/like/this.rs` in a document exists.
#[test]
fn documents_name_what_exists() {
    let mut documents: Vec<_> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "GLOSSARY.md", "CHANGELOG.md"]
        .map(|name| root().join(name))
        .into();
    documents.extend(std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mutants = std::fs::read_to_string(root().join("crates/seawall-simulation/tests/simulation/main.rs")).unwrap();
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap_or_else(|_| panic!("{} is missing", document.display()));
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path = quoted.contains('/')
                && ["crates/", "xtask/", "examples/", "benches/", "docs/", ".ci/"]
                    .iter()
                    .any(|front| quoted.starts_with(front))
                && !quoted.contains([' ', '*', '<', '{']);
            if is_path {
                let path = quoted.split('#').next().unwrap_or(quoted);
                assert!(root().join(path).exists(), "{}: `{quoted}` does not exist", document.display());
            }
            if quoted.starts_with("mutant_that_") {
                assert!(mutants.contains(&format!("fn {quoted}()")), "{}: no test `{quoted}`", document.display());
            }
        }
    }
}

/// Every `seawall_...` word of a text that is no crate's name.
fn metrics(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
    let words = text.split(|c: char| !is_word(c)).filter(|word| word.starts_with("seawall_"));
    let crates: Vec<String> = LEVELS.iter().map(|(name, _)| name.replace('-', "_")).collect();
    words.filter(|word| !crates.iter().any(|name| name == word)).map(str::to_owned).collect()
}

/// What the code counts and what docs/api.md says that it counts are the same; no other document names anything else.
#[test]
fn metrics_are_documented() {
    let mut counted = BTreeSet::new();
    let mut next = vec![root().join("crates")];
    while let Some(dir) = next.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                next.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && path.components().any(|c| c.as_os_str() == "src") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("\nmod tests {").next().unwrap_or_default();
                // A family is a string of its own; documentation and log filters are not.
                counted.extend(code.split('"').filter(|part| metrics(part).contains(*part)).map(str::to_owned));
            }
        }
    }
    assert!(counted.len() > 20, "{counted:?}");
    let document = |name: &str| metrics(&std::fs::read_to_string(root().join("docs").join(name)).unwrap());
    let documented = document("api.md");
    let missing: Vec<_> = counted.difference(&documented).collect();
    let made_up: Vec<_> = documented.difference(&counted).collect();
    assert!(missing.is_empty() && made_up.is_empty(), "docs/api.md: missing {missing:?}, made up {made_up:?}");
    let elsewhere = document("resilience.md");
    let made_up: Vec<_> = elsewhere.difference(&counted).collect();
    assert!(elsewhere.len() > 10 && made_up.is_empty(), "docs/resilience.md: made up {made_up:?}");
}

/// Every crate inherits the lints and opens with what it is.
#[test]
fn crates_are_uniform() {
    for (name, _) in LEVELS {
        let dir = root().join("crates").join(name);
        let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} does not inherit the lints");
    }
    let mut next = vec![root().join("crates"), root().join("xtask"), root().join("examples"), root().join("benches")];
    while let Some(dir) = next.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                next.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(text.starts_with("//!"), "{} does not say what it is", path.display());
            }
        }
    }
}
