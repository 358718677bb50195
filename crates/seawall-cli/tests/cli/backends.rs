//! `seawall lock` and `seawall elect` on real servers of other projects.

use std::time::{Duration, Instant};

use seawall_servers::Server;

use super::locks::{Holder, complains_of};
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
    let work = "echo \"begin $SEAWALL_LOCK $SEAWALL_FENCING_TOKEN\" >> log; sleep 0.1; echo end >> log";
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
    let begun = lines.iter().filter_map(|line| line.strip_prefix("begin x "));
    if fenced {
        let tokens: Vec<u64> = begun.map(|token| token.parse().unwrap()).collect();
        assert!(tokens.len() == 4 && tokens.is_sorted_by(|a, b| a < b), "{url}: {log}");
    } else {
        assert_eq!(begun.collect::<Vec<_>>(), [""; 4], "{url}: {log}");
    }
    // Killed with -9: its command ends, and then the next one has it when its time is over.
    let mut dies = start("dies", "echo pid=$$; exec sleep 600");
    let pid = dies.number("pid");
    looked_at_and_taken_away(&site, url, need, fenced);
    let mut dies_again = start("dies-again", "echo pid=$$; exec sleep 600");
    let killed = if url.contains("advisory") { pid } else { dies_again.number("pid") };
    dies.child.kill().unwrap();
    dies_again.child.kill().unwrap();
    let mut next = start("next", &complains_of(killed));
    next.ends(Duration::from_secs(60));
    assert!(!next.out().contains("overlap"), "{url}: {}", next.out());
    let busy = start("keeps", "touch kept; sleep 600");
    until("it is held", || site.dir.path().join("kept").exists());
    let tried = site.run(&["lock", "x", "--backend", url, "--need", need, "--try", "--", "true"]);
    assert_eq!(tried.status.code(), Some(75), "{tried:?}");
    drop(busy);
    // Who leads runs its command, and is seen where leaders are.
    let work =
        "test \"$SEAWALL_TERM\" = \"$SEAWALL_FENCING_TOKEN\" || exit 1; until test -e seen; do sleep 0.1; done; exit 7";
    let led = ["elect", "e", "--backend", url, "--need", need, "--ttl", "2s", "--wait", "30s", "--", "sh", "-c", work];
    let mut leads = Holder::run(&site, "led", &led);
    let elections = |args: &[&str]| {
        let output = site.run(&[&["elections"], args, &["--backend", url]].concat());
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    if url.contains("advisory") {
        until("it says what it cannot", || elections(&["e"]).contains("postgres://"));
    } else {
        until("it leads", || elections(&["e"]).contains("is led by"));
        if !url.starts_with("red") {
            assert!(elections(&[]).lines().nth(1).is_some_and(|line| line.starts_with("e ")), "{url}");
        }
    }
    std::fs::write(site.dir.path().join("seen"), "").unwrap();
    assert_eq!(leads.ends(Duration::from_secs(60)), Some(7), "{url}: {}", leads.out());
}

/// What `seawall locks` says of `x`, which is held; then it is taken away by force, where that is possible.
fn looked_at_and_taken_away(site: &Site, url: &str, need: &str, fenced: bool) {
    let locks = |args: &[&str]| {
        let output = site.run(&[&["locks"], args, &["--backend", url]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let mut waits = Holder::run(
        site,
        "waits",
        &[
            "lock",
            "x",
            "--backend",
            url,
            "--need",
            need,
            "--ttl",
            "2s",
            "--wait",
            "60s",
            "--owner",
            "late",
            "--",
            "true",
        ],
    );
    until("it is held", || locks(&["x"]).1.contains("held by"));
    let (_, shown) = locks(&["x"]);
    // Redlock's are minted by the store beside it, and known to their holders alone.
    assert_eq!(shown.contains("token"), fenced && !url.starts_with("redlock"), "{url}: {shown}");
    assert!(shown.contains("exec sleep 600"), "{url}: its command is shown: {shown}");
    if shown.contains("written down nowhere") {
        assert!(!fenced || url.contains("redlock"), "{url}");
    } else {
        until("the other waits", || locks(&["x"]).1.contains("waits: late"));
    }
    let (listed, all) = locks(&[]);
    if url.starts_with("redis") || url.starts_with("redlock") {
        assert!(!listed && all.contains("name one"), "{url}: {all}");
    } else {
        assert!(listed && all.lines().nth(1).is_some_and(|line| line.starts_with("x ")), "{url}: {all}");
    }
    let (explained, why) = locks(&["explain", "x"]);
    assert!(!explained && why.contains("keeps no account"), "{url}: {why}");
    let (nobody, says) = locks(&["nobody", "--force", "--why", "to see"]);
    assert!(!nobody && says.contains("nobody holds"), "{url}: {says}");
    let (forced, says) = locks(&["x", "--force", "--why", "it hangs"]);
    if url.contains("advisory") {
        assert!(!forced && says.contains("pg_terminate_backend("), "{url}: {says}");
        waits.child.kill().unwrap();
    } else {
        assert!(forced && says.contains("taken away from"), "{url}: {says}");
        assert_eq!(waits.ends(Duration::from_secs(60)), Some(0), "{url}: {}", waits.out());
    }
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
fn locks_in_five_redis_with_tokens_of_etcd() {
    let servers = Server::redis_several(5, &["--appendonly", "yes", "--appendfsync", "always"]);
    let etcd = [Server::etcd()];
    let fences = url("?fences=etcd://", &etcd, "/fences");
    commands_take_turns(&url("redlock://", &servers, &fences), "fence", true);
}

#[test]
fn advisory_locks_in_postgres() {
    let server = [Server::postgres()];
    commands_take_turns(&url("postgres+advisory://postgres@", &server, "/postgres"), "lease", false);
}

/// A line for each change, with the lock and with what became of it.
#[test]
fn locks_elsewhere_are_watched() {
    let site = Site::new(FILE);
    let server = [Server::etcd()];
    let url = url("etcd://", &server, "/watched");
    let watch = Holder::run(&site, "watch", &["locks", "--watch", "--backend", &url]);
    let leaders = Holder::run(&site, "leaders", &["elections", "e", "--watch", "--backend", &url]);
    until("nobody leads", || leaders.out().contains("led by nobody"));
    let mut holder = Holder::run(&site, "out", &["lock", "x", "--backend", &url, "--", "sleep", "3"]);
    until("it is held", || watch.out().contains("held by"));
    assert_eq!(holder.ends(Duration::from_secs(60)), Some(0));
    until("it is free", || watch.out().contains("free"));
    let lines = watch.out().lines().count();
    let mut led = Holder::run(&site, "out", &["elect", "e", "--backend", &url, "--", "sleep", "3"]);
    assert_eq!(led.ends(Duration::from_secs(60)), Some(0));
    until("somebody has led, and does no more", || {
        let out = leaders.out();
        out.lines().filter(|line| line.contains("led by nobody")).count() == 2 && out.lines().count() == 3
    });
    assert_eq!(watch.out().lines().count(), lines, "an election is no lock");
}

#[test]
fn the_file_says_where_locks_are() {
    let servers = Server::redis_several(1, &["--appendonly", "yes", "--appendfsync", "always"]);
    let redis = url("redis://", &servers, "");
    let site = Site::new(&format!("{FILE}coordination: {{ backend: {redis}, need: lease }}\n"));
    let held = site.run(&["lock", "x", "--", "sh", "-c", "echo \"token $SEAWALL_FENCING_TOKEN.\""]);
    assert_eq!(String::from_utf8_lossy(&held.stdout), "token .\n", "{held:?}");
    let shown = site.run(&["locks", "x"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("x is free"), "{shown:?}");
    // What is said on the line goes before.
    let stricter = site.run(&["lock", "x", "--need", "fence", "--", "true"]);
    assert_eq!(stricter.status.code(), Some(1), "{stricter:?}");
    let control = site.run(&["lock", "x", "--control", &free_addr().to_string(), "--", "true"]);
    assert_eq!(control.status.code(), Some(69), "{control:?}");
    for (wrong, says) in [
        (format!("{{ backend: {redis} }}"), "cannot give a fencing token"),
        (format!("{{ backend: {redis}, need: lease, ned: best }}"), "unknown key `ned`"),
        ("{ backend: 'consul://me:secret@10.0.0.1' }".to_owned(), "`consul` is not known"),
        ("{ need: fences }".to_owned(), "`fence`"),
    ] {
        let site = Site::new(&format!("{FILE}coordination: {wrong}\n"));
        let checked = site.run(&["config", "check"]);
        let error = String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
        assert!(!checked.status.success() && error.contains(says), "{wrong}: {error}");
        assert!(error.contains("coordination"), "{error}");
        let refused = site.run(&["lock", "x", "--", "touch", "ran"]);
        assert!(!refused.status.success() && !site.dir.path().join("ran").exists(), "{wrong}: {refused:?}");
    }
}

/// Takes connections and says nothing.
#[test]
fn a_backend_that_does_not_answer_is_named_in_time() {
    let site = Site::new(FILE);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    std::thread::scope(|scope| {
        for url in [
            format!("control://{at}"),
            format!("etcd://{at}"),
            format!("redis://me:secret@{at}"),
            format!("redlock://{at},127.0.0.1:1,127.0.0.1:2"),
            format!("postgres://me:secret@{at}/postgres"),
            format!("postgres+advisory://me:secret@{at}/postgres"),
            format!("zookeeper://{at}/x"),
        ] {
            let site = &site;
            scope.spawn(move || {
                let from = Instant::now();
                let output = site.run(&["lock", "x", "--backend", &url, "--need", "best", "--", "touch", "ran"]);
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(from.elapsed() < Duration::from_secs(40), "{url} {:?}", from.elapsed());
                assert_eq!(output.status.code(), Some(69), "{url}: {error}");
                assert!(error.contains(&at.to_string()) && !error.contains("secret"), "{url}: {error}");
            });
        }
    });
    assert!(!site.dir.path().join("ran").exists());
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
        (vec!["--backend", "consul://me:secret@127.0.0.1:1"], 1, "`consul` is not known"),
        (vec!["--backend", "redis://me:secret@127.0.0.1:1/x/y", "--need", "lease"], 1, "Invalid database number"),
        (vec!["--backend", "control://me:secret@nowhere"], 1, "after control:// come addresses"),
        // Before anybody is asked.
        (vec!["--backend", "redis://127.0.0.1:1", "--need", "lease", "--read"], 1, "neither readers and writers"),
        (vec!["--backend", "zookeeper://127.0.0.1:1", "--permits", "3"], 1, "neither readers and writers"),
        (vec!["--backend", "postgres://127.0.0.1:1/x", "--delay", "1s"], 1, "neither readers and writers"),
        (vec!["--backend", &format!("etcd://{down}")], 69, &down.to_string()),
        (vec!["--backend", &format!("redis://{down}"), "--need", "lease"], 69, &down.to_string()),
        (vec!["--backend", &format!("control://{down}")], 69, &down.to_string()),
        (vec!["--backend", &format!("postgres://postgres@{down}/postgres")], 69, &down.to_string()),
        (vec!["--backend", &format!("zookeeper://{down}/x")], 69, &down.to_string()),
    ] {
        let (ended, error) = run(&args);
        assert!(ended == Some(code) && error.contains(says), "{args:?}: {ended:?} {error}");
        assert!(!error.contains("secret"), "{args:?}: {error}");
    }
}
