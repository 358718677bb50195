//! What an operator can do to policies at work: look, order, and have the file read again.

use super::support::*;

const FILE: &str = "
control: { listen: CONTROL }
policies:
  pages: { timeout: 3s, breaker: { minimum_calls: 100 } }
gateways:
  public:
    listen: GATEWAY
    routes:
      - { id: pages, match: { path: /** }, to: pages, fallback: { status: 503, text: instead } }
services:
  pages: { run: 'python3 -m http.server ${PORT} --bind 127.0.0.1', health: { http: / }, drain: 2s }
";

#[test]
fn policies_are_looked_at_ordered_and_read_again() {
    let site = Site::new(FILE);
    let up = site.start(&["up", "seawall.yaml"]);
    until("it serves", || get(site.gateway, "/").status == 200);
    let text = |args: &[&str]| {
        let output = site.run(args);
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };

    let (_, table) = text(&["policies"]);
    let row =
        table.lines().find(|line| line.starts_with("gateway public") && line.contains(" pages ")).unwrap_or_default();
    assert!(row.contains("closed"), "{table}");
    let (code, said) = text(&["breaker", "pages", "forced-open"]);
    assert!(code == Some(0) && said.contains("gateway public: the breaker of `pages` is forced-open"), "{said}");
    let answer = get(site.gateway, "/");
    assert_eq!((answer.status, &*answer.body), (503, "instead"));
    assert_eq!(answer.header("seawall-rejected"), "breaker; instance=\"pages\"; sent=?0");
    assert!(text(&["policies", "pages"]).1.contains("forced-open"));
    assert_eq!(text(&["breaker", "pages", "closed"]).0, Some(0));
    assert_eq!(get(site.gateway, "/").status, 200);
    let (code, said) = text(&["breaker", "nobody", "closed"]);
    assert!(code == Some(1) && said.contains("no breaker of `nobody`"), "{said}");
    let (code, said) = text(&["breaker", "pages", "half-open"]);
    assert!(code == Some(2) && said.contains("forced-open"), "{said}");

    // An order survives a reload that does not speak of it.
    assert_eq!(text(&["breaker", "pages", "forced-open"]).0, Some(0));
    let file = site.dir.path().join("seawall.yaml");
    let good = std::fs::read_to_string(&file).unwrap();
    let chaos = good.replace("timeout: 3s,", "timeout: 2s, chaos: { fault: 100% },");
    std::fs::write(&file, &chaos).unwrap();
    let (code, said) = text(&["reload"]);
    assert!(code == Some(0) && said.contains("gateway public"), "{said}");
    until("the new policies are at work", || text(&["policies", "--json"]).1.contains("\"timeout_ms\": 2000"));
    assert!(get(site.gateway, "/").header("seawall-rejected").starts_with("breaker;"));
    assert_eq!(text(&["breaker", "pages", "closed"]).0, Some(0));
    assert!(get(site.gateway, "/").header("seawall-rejected").starts_with("chaos;"));

    // A mistake is shown with its place, and nobody is asked; who is asked all the same stays as it was.
    std::fs::write(&file, chaos.replace("fault: 100%", "fault: 120%")).unwrap();
    let (code, said) = text(&["reload"]);
    assert!(code == Some(2) && said.contains("policies.pages.chaos.fault"), "{said}");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text(&["status", "--json"]).1).unwrap_or_default();
    assert!(rows.is_empty(), "the status needs a good file, too");
    std::fs::write(&file, &chaos).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text(&["status", "--json"]).1).unwrap();
    let gateway = rows.iter().find(|row| row["name"] == "gateway public").unwrap()["pid"].as_u64().unwrap() as u32;
    std::fs::write(&file, chaos.replace("fault: 100%", "fault: 120%")).unwrap();
    signal(gateway, rustix::process::Signal::HUP);
    let log = site.dir.path().join("up.log");
    until("it is logged", || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("policies stay as they were")));
    assert!(get(site.gateway, "/").header("seawall-rejected").starts_with("chaos;"));

    std::fs::write(&file, good).unwrap();
    assert_eq!(text(&["reload"]).0, Some(0));
    until("all is well again", || get(site.gateway, "/").status == 200);
    assert!(up.stop().success());
}
