//! `seawall lock` and `seawall elect` on real servers of other projects.

use std::time::{Duration, Instant};

use seawall_servers::Server;

use super::locks::Holder;
use super::support::*;

const FILE: &str = "control: { listen: CONTROL }\n";

fn url(scheme: &str, servers: &[Server], rest: &str) -> String {
    let addrs: Vec<_> = servers.iter().map(|server| server.addr().to_string()).collect();
    format!("{scheme}{}{rest}", addrs.join(","))
}

/// Commands that append to a file when they begin and end never overlap; a holder that is killed is followed; a token is there
/// where the backend has any.
fn commands_take_turns(url: &str, need: &str, fenced: bool) {
    let site = Site::new(FILE);
    let work = "echo \"begin $SEAWALL_FENCING_TOKEN\" >> log; sleep 0.1; echo end >> log";
    let start = |out: &str, work: &str| {
        let args =
            ["lock", "x", "--backend", url, "--need", need, "--ttl", "2s", "--wait", "60s", "--", "sh", "-c", work];
        Holder::run(&site, out, &args)
    };
    let mut holders: Vec<_> = (0..4).map(|n| start(&format!("{n}.out"), work)).collect();
    for holder in &mut holders {
        assert_eq!(holder.ends(Duration::from_secs(60)), Some(0), "{url}: {}", holder.out());
    }
    let log = std::fs::read_to_string(site.dir.path().join("log")).unwrap();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 8, "{log}");
    assert!(lines.chunks(2).all(|pair| pair[0].starts_with("begin") && pair[1] == "end"), "{url}: they overlap: {log}");
    let tokens: Vec<u64> = lines.iter().filter_map(|line| line.strip_prefix("begin ")?.parse().ok()).collect();
    assert_eq!(tokens.len(), if fenced { 4 } else { 0 }, "{url}: {log}");
    assert!(tokens.is_sorted(), "{url}: {log}");
    // Killed with -9: the next one has it when its time is over.
    let mut dies = start("dies", "touch held; sleep 600");
    until("it is held", || site.dir.path().join("held").exists());
    dies.child.kill().unwrap();
    assert_eq!(start("next", "true").ends(Duration::from_secs(60)), Some(0), "{url}");
    let busy = start("keeps", "touch kept; sleep 600");
    until("it is held", || site.dir.path().join("kept").exists());
    let tried = site.run(&["lock", "x", "--backend", url, "--need", need, "--try", "--", "true"]);
    assert_eq!(tried.status.code(), Some(75), "{tried:?}");
    drop(busy);
    // Who leads runs its command.
    let led =
        ["elect", "e", "--backend", url, "--need", need, "--ttl", "2s", "--wait", "30s", "--", "sh", "-c", "exit 7"];
    assert_eq!(Holder::run(&site, "led", &led).ends(Duration::from_secs(60)), Some(7));
}

#[test]
fn locks_in_etcd() {
    let server = [Server::etcd()];
    commands_take_turns(&url("etcd://", &server, "/cli"), "fence", true);
}

#[test]
fn locks_in_postgres() {
    let server = [Server::postgres()];
    commands_take_turns(&url("postgres://postgres@", &server, "/postgres"), "fence", true);
}

#[test]
fn locks_in_zookeeper() {
    let server = [Server::zookeeper()];
    commands_take_turns(&url("zookeeper://", &server, "/cli"), "fence", true);
}

#[test]
fn locks_in_redis() {
    let server = [Server::redis_several(1, &["--appendonly", "yes", "--appendfsync", "always"]).remove(0)];
    commands_take_turns(&url("redis://", &server, ""), "lease", false);
}

#[test]
fn locks_in_five_redis() {
    let servers = Server::redis_several(5, &["--appendonly", "yes", "--appendfsync", "always"]);
    commands_take_turns(&url("redlock://", &servers, ""), "best", false);
}

#[test]
fn what_a_backend_cannot_give_is_refused_and_one_that_is_down_is_named() {
    let site = Site::new(FILE);
    let run = |args: &[&str]| {
        let from = Instant::now();
        let output = site.run(&[&["lock", "x"], args, &["--", "touch", "ran"]].concat());
        assert!(from.elapsed() < Duration::from_secs(30), "{args:?}");
        assert!(!site.dir.path().join("ran").exists(), "{args:?}");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let down = free_addr();
    for (args, code, says) in [
        (vec!["--backend", "redis://127.0.0.1:1"], 1, "cannot give a fencing token"),
        (vec!["--backend", "redis://127.0.0.1:1"], 1, "--need lease"),
        (vec!["--backend", "redlock://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", "--need", "lease"], 1, "may let two hold"),
        (vec!["--backend", "consul://127.0.0.1:1"], 2, "`consul` is not known"),
        (vec!["--backend", &format!("etcd://{down}")], 69, &down.to_string()),
        (vec!["--backend", &format!("redis://{down}"), "--need", "lease"], 69, &down.to_string()),
        (vec!["--backend", &format!("control://{down}")], 69, &down.to_string()),
        (vec!["--backend", &format!("postgres://postgres@{down}/postgres")], 69, &down.to_string()),
        (vec!["--backend", &format!("zookeeper://{down}/x")], 69, &down.to_string()),
    ] {
        let (ended, error) = run(&args);
        assert!(ended == Some(code) && error.contains(says), "{args:?}: {ended:?} {error}");
    }
    // What only control and stores have is refused by name.
    let redis = Server::redis_several(1, &["--appendonly", "yes", "--appendfsync", "always"]).remove(0);
    let (ended, error) = run(&["--backend", &format!("redis://{}", redis.addr()), "--need", "lease", "--read"]);
    assert!(ended == Some(1) && error.contains("neither readers and writers"), "{ended:?} {error}");
}
