//! TLS and HTTP/2 at the gateway, asked by curl with certificates of openssl.

use std::path::Path;
use std::process::Command;

use super::support::*;

const FILE: &str = "
control: { listen: CONTROL }
gateways:
  public:
    listen: GATEWAY
    tls:
      certificates: [ { chain: shop.pem, key: shop.key }, { chain: other.pem, key: other.key } ]
    routes: [ { id: all, match: { path: /** }, to: pages } ]
services: { pages: {} }
";

pub(super) fn certificate(dir: &Path, file: &str, host: &str) {
    certificate_with(dir, file, host, "basicConstraints=critical,CA:TRUE");
}

pub(super) fn certificate_with(dir: &Path, file: &str, host: &str, extension: &str) {
    let (chain, key) = (format!("{file}.pem"), format!("{file}.key"));
    let alternative = format!("subjectAltName=DNS:{host}");
    let subject = format!("/CN={host}");
    let openssl = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3"])
        .args(["-out", &chain, "-keyout", &key, "-subj", &subject, "-addext", &alternative, "-addext", extension])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(openssl.status.success(), "{openssl:?}");
}

/// What curl says of `https://host/path`: body, status, version of HTTP.
fn curl(site: &Site, host: &str, authority: &str, more: &[&str]) -> String {
    let (port, url) = (site.gateway.port(), format!("https://{host}:{}/x", site.gateway.port()));
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--cacert", authority, "-w", " %{http_code} %{http_version}", &url])
        .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
        .args(more)
        .current_dir(site.dir.path())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_gateway_speaks_tls_and_both_versions() {
    let site = Site::new(FILE);
    certificate(site.dir.path(), "shop", "shop.example");
    certificate(site.dir.path(), "other", "other.example");
    let pages = Participant::start(|seen| (200, seen.header("forwarded").to_owned()));
    let _control = site.control();
    site.register("pages", "one", pages.addr);
    let gateway = site.start(&["gateway"]);
    until("the gateway serves", || curl(&site, "shop.example", "shop.pem", &[]).contains(" 200 "));
    let host = |name: &str| format!("for=127.0.0.1;proto=https;host=\"{name}:{}\"", site.gateway.port());
    for (name, authority, version, said) in [
        ("shop.example", "shop.pem", "--http2", "2"),
        ("other.example", "other.pem", "--http2", "2"),
        ("shop.example", "shop.pem", "--http1.1", "1.1"),
    ] {
        let answer = curl(&site, name, authority, &[version]);
        assert_eq!(answer, format!("{} 200 {said}", host(name)), "{}", gateway.log());
    }
    assert!(curl(&site, "other.example", "shop.pem", &[]).contains("certificate"));
    let misdirected = curl(&site, "shop.example", "shop.pem", &["-H", "host: third.example"]);
    assert!(misdirected.contains(" 421 "), "{misdirected}");
    // A new certificate needs no restart.
    certificate(site.dir.path(), "other", "new.example");
    until("the new certificate is served", || curl(&site, "new.example", "other.pem", &[]).contains(" 200 "));
}

#[test]
fn clear_text_begins_with_either_version() {
    let site = Site::new(
        "control: { listen: CONTROL }
gateways: { public: { listen: GATEWAY, routes: [ { id: all, match: {}, to: pages } ] } }
services: { pages: {} }
",
    );
    let pages = Participant::start(|seen| (200, seen.method.clone()));
    let _control = site.control();
    site.register("pages", "one", pages.addr);
    let _gateway = site.start(&["gateway"]);
    until("the gateway serves", || get(site.gateway, "/").status == 200);
    for (version, said) in [("--http2-prior-knowledge", "2"), ("--http2", "1.1"), ("--http1.0", "1")] {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", version, "-w", " %{http_code} %{http_version}"])
            .arg(format!("http://{}/x", site.gateway))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("GET 200 {said}"), "{version} {output:?}");
    }
}

#[test]
fn mistakes_in_tls_are_named() {
    for (tls, says) in [
        ("{ certificates: [ { chain: none.pem, key: shop.key } ] }", "none.pem"),
        ("{ certificates: [ { chain: shop.pem, key: other.key } ] }", "other.key: does not go with"),
        ("{ certificates: [] }", "at least one"),
        ("{ certificates: [ { chain: shop.pem, key: shop.key } ], min_version: '1.0' }", "there is 1.2 and 1.3"),
        ("{ certificates: [ { chain: shop.pem, key: shop.key } ], clients: { authorities: shop.key } }", "shop.key"),
        ("{ certificates: [ { cert: shop.pem, key: shop.key } ] }", "unknown key `cert`"),
    ] {
        let site = Site::new(&format!("gateways: {{ public: {{ listen: GATEWAY, tls: {tls}, routes: [] }} }}\n"));
        certificate(site.dir.path(), "shop", "shop.example");
        certificate(site.dir.path(), "other", "other.example");
        let output = site.run(&["config", "check"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && text.contains(says) && text.contains("gateways.public.tls"),
            "{tls}: {text}"
        );
    }
}
