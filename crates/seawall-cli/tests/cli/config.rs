//! Files that are wrong, files to begin with, and the files in the documents.

use std::path::Path;

use super::support::*;

const BROKEN: &str = "\
gateways:
  public:
    listen: GATEWAY
    routs: []
    routes:
      - { id: a, match: { path: /a/** }, to: helo }
      - { id: b, match: { path: /a/b }, to: hello }
control: { listen: GATEWAY }
policies: { hello: { timeout: 5 } }
services:
  hello: { run: 'touch started' }
";

#[test]
fn every_mistake_is_reported_at_once_and_nothing_is_started() {
    let site = Site::new(BROKEN);
    for args in [
        &["config", "check", "seawall.yaml"][..],
        &["up", "seawall.yaml"],
        &["gateway", "public"],
        &["control", "--config", "seawall.yaml"],
    ] {
        let output = site.run(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        for part in [
            "seawall.yaml:4:5",
            "unknown key `routs`",
            "did you mean `routes`?",
            "seawall.yaml:6:",
            "unknown service `helo`",
            "seawall.yaml:7:",
            "is never reached",
            "seawall.yaml:3:13",
            "used twice",
            "seawall.yaml:9:",
            "duration with its unit",
            "5 mistakes",
        ] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
    }
    assert!(!site.dir.path().join("started").exists() && !site.dir.path().join("seawall-data").exists());
}

#[test]
fn a_file_that_is_not_there_or_not_yaml_is_said_so() {
    let site = Site::new("a: [");
    let output = site.run(&["config", "check", "nope.yaml"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && text.contains("nope.yaml") && text.contains("seawall init"), "{text}");
    let output = site.run(&["config", "check"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("not YAML"));
}

#[test]
fn init_writes_a_valid_file_and_never_overwrites() {
    let site = Site::new("");
    let output = site.run(&["init", "new.yaml"]);
    assert!(output.status.success());
    assert!(site.run(&["config", "check", "new.yaml"]).status.success());
    let again = site.run(&["init", "new.yaml"]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("never overwritten"));
}

#[test]
fn the_schema_knows_every_key() {
    let site = Site::new("");
    let schema: serde_json::Value = serde_json::from_slice(&site.run(&["config", "schema"]).stdout).unwrap();
    for key in ["control", "policies", "gateways", "services", "sagas", "cron"] {
        assert!(schema["properties"].get(key).is_some(), "{key}");
    }
    assert_eq!(schema["additionalProperties"], false);
}

/// Those that the examples name.
fn certificates(dir: &Path) {
    let certs = dir.join("certs");
    std::fs::create_dir(&certs).unwrap();
    for file in ["shop", "partner", "clients"] {
        super::tls::certificate(&certs, file, "shop.example");
    }
}

/// Every YAML block of the documents is a file that `seawall config check` accepts.
#[test]
fn examples_in_the_documents_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = vec![root.join("README.md")];
    files.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut checked = 0;
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(file).unwrap();
        for block in text.split("```yaml\n").skip(1) {
            let yaml = block.split("\n```").next().unwrap();
            let site = Site::new(yaml);
            if yaml.contains("certs/") {
                certificates(site.dir.path());
            }
            if yaml.contains("routes_from: routes.d") {
                std::fs::create_dir(site.dir.path().join("routes.d")).unwrap();
            }
            let output = site.run(&["config", "check"]);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}:\n{yaml}\n{errors}", file.display());
            checked += 1;
        }
    }
    assert!(checked >= 5, "only {checked} examples were found");
}
