//! The filter `oidc` against npm's oidc-provider: a login through its own pages, tokens, their renewal, and the logout.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::Row;
use crate::process::Running;
use crate::{machine, process};

/// The version that is asked for; the latest that was looked at.
const PROVIDER: &str = "oidc-provider@9.13.3";

pub(super) fn run() -> anyhow::Result<Row> {
    machine::install(&[("node", "nodejs"), ("npm", "npm")])?;
    process::run("cargo", &["build", "--package", "seawall-cli"])?;
    let dir = tempfile::tempdir()?;
    for file in ["provider.mjs", "browser.mjs"] {
        std::fs::copy(process::root().join("xtask/oidc").join(file), dir.path().join(file))?;
    }
    println!("installing {PROVIDER} for this run");
    let words = ["install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error", PROVIDER];
    let status = Command::new("npm").args(words).current_dir(dir.path()).status().context("cannot run npm")?;
    ensure!(status.success(), "npm could not install {PROVIDER}");

    let [control, gateway, provider] = [free()?, free()?, free()?];
    let yaml = format!(
        "control: {{ listen: '{control}', ttl: 5m }}
gateways:
  public:
    listen: '{gateway}'
    routes:
      - id: all
        match: {{ path: /** }}
        filters:
          - oidc:
              issuer: 'http://{provider}'
              client_id: shop
              client_secret: the secret of the shop, long enough
              url: 'http://{gateway}'
              cookie_secrets: [ only-for-this-run-and-no-longer-than-it ]
              forward: {{ x-user: sub }}
        to: pages
services: {{ pages: {{}} }}
"
    );
    std::fs::write(dir.path().join("seawall.yaml"), yaml)?;
    let _provider = node(
        dir.path(),
        &[
            "provider.mjs",
            &provider.port().to_string(),
            &format!("http://{gateway}/oauth2/callback"),
            &format!("http://{gateway}/"),
        ],
    )?;
    let seawall = |name: &str| {
        let mut command = Command::new(process::root().join("target/debug/seawall"));
        let command = command.arg(name).current_dir(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        Running::spawn(name, command)
    };
    let _running = [seawall("control")?, seawall("gateway")?];
    let words = [gateway, provider, control].map(|addr| addr.to_string());
    let browser = Command::new("node").arg("browser.mjs").args(words).current_dir(dir.path()).status()?;
    let ok = Some(browser.success());
    let result = if browser.success() { "holds" } else { "does not hold" }.to_owned();
    let compared = format!("{PROVIDER} (npm): login, renewal, logout");
    Ok(Row { compared, required: "holds".to_owned(), result, ok })
}

/// Starts a script and waits for its first line.
fn node(dir: &std::path::Path, words: &[&str]) -> anyhow::Result<Running> {
    let mut command = Command::new("node");
    let mut child =
        command.args(words).current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("node")?;
    let out = child.stdout.take().context("its output")?;
    let running = Running::from(child, words[0]);
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "{} does not start: {line}", words[0]);
    Ok(running)
}

fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
