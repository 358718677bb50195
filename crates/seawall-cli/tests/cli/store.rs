//! `seawall store`, on a real control node and a real etcd.

use std::path::Path;
use std::process::Output;

use seawall_coord::Token;
use seawall_servers::Server;
use seawall_store::{Embedded, Etcd, Store, Txn};
use serde_json::json;

use super::locks::open;
use super::support::*;

const FILE: &str = "control: { listen: CONTROL, ttl: 1m }\n";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs `seawall store ...`, which has to succeed.
fn store(site: &Site, args: &[&str]) -> String {
    let output = site.run(&[&["store"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    said(&output)
}

/// Runs `seawall store ...`, which has to be refused.
fn refused(site: &Site, args: &[&str]) -> String {
    let output = site.run(&[&["store"], args].concat());
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", said(&output));
    said(&output)
}

/// Takes a lock in a session of its own, and says with which fencing token.
fn fence(site: &Site, lock: &str, ttl: &str) -> u64 {
    let session = open(site.control, ttl, "test");
    let path = format!("/v1/locks/{lock}/claims/{}?wait=30s", Token::random());
    let answer = send(site.control, "PUT", &path, &[], &json!({ "session": session }).to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["fence"].as_u64().unwrap()
}

fn instances(site: &Site) -> Vec<String> {
    let answer = get(site.control, "/v1/services/order");
    let Some(instances) = answer.json()["instances"].as_array().cloned() else { return Vec::new() };
    instances.iter().map(|instance| instance["id"].as_str().unwrap().to_owned()).collect()
}

fn register(site: &Site, id: &str) {
    site.register("order", id, "127.0.0.1:9".parse().unwrap());
}

fn id(site: &Site) -> String {
    get(site.control, "/v1/store").json()["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_backup_of_a_running_control_is_restored() {
    let site = Site::new(FILE);
    let control = site.control();
    register(&site, "order-1");
    fence(&site, "a", "1m");
    let made = store(&site, &["backup", "first.db"]);
    assert!(made.contains("first.db: revision") && made.contains("from control at"), "{made}");
    let again = refused(&site, &["backup", "first.db"]);
    assert!(again.contains("first.db is there already"), "{again}");
    assert!(store(&site, &["check", "first.db"]).contains("no damage"));
    let first_id = id(&site);
    let shown = store(&site, &["status"]);
    assert!(shown.contains(&first_id) && shown.contains("2 GiB") && shown.contains("used by control"), "{shown}");

    // What comes after the backup is lost by a restore, and no fencing token comes twice all the same.
    register(&site, "order-2");
    let last = (0..20).map(|n| fence(&site, &format!("more-{n}"), "1m")).max().unwrap();
    for args in [&["restore", "first.db", "--force"][..], &["check"]] {
        let said = refused(&site, args);
        assert!(said.contains("in use by another process") && said.contains("store.db"), "{said}");
    }
    assert!(control.stop().success());
    let exists = refused(&site, &["restore", "first.db"]);
    assert!(exists.contains("--force") && exists.contains("is there already"), "{exists}");
    let restored = store(&site, &["restore", "first.db", "--force"]);
    assert!(restored.contains("store.db.before-"), "{restored}");
    assert!(store(&site, &["status"]).contains("no control node runs at"));

    let _control = site.control();
    assert_eq!(instances(&site), ["order-1"]);
    assert_ne!(id(&site), first_id, "who follows it must read everything anew");
    let holder = get(site.control, "/v1/locks/a").json()["holder"]["owner"].clone();
    assert_eq!(holder, "test", "its session has its whole time again");
    assert!(fence(&site, "b", "1m") > last);
}

#[test]
fn a_backup_is_taken_from_the_files_while_control_does_not_run_and_goes_anywhere() {
    let site = Site::new(FILE);
    let nothing = refused(&site, &["backup", "none.db"]);
    assert!(nothing.contains("store.db"), "{nothing}");
    assert!(!site.dir.path().join("none.db").exists());
    let control = site.control();
    register(&site, "order-1");
    let token = fence(&site, "a", "1s");
    control.kill();
    let made = store(&site, &["backup", "b.db"]);
    assert!(made.contains("while control does not run"), "{made}");
    assert!(store(&site, &["check"]).contains("no damage"));
    let elsewhere = refused(&site, &["backup", "c.db", "--control", &site.control.to_string()]);
    assert!(elsewhere.contains("no control node answers"), "{elsewhere}");

    let other = Site::new(FILE);
    let backup = site.dir.path().join("b.db");
    store(&other, &["restore", backup.to_str().unwrap()]);
    let _control = other.control();
    assert_eq!(instances(&other), ["order-1"]);
    assert!(fence(&other, "a", "1m") > token, "the lock is free when the time of its session is over");
}

#[test]
fn a_damaged_file_is_named_refused_and_replaced() {
    let site = Site::new(FILE);
    let control = site.control();
    register(&site, "order-1");
    let last = fence(&site, "a", "1m");
    store(&site, &["backup", "b.db"]);
    assert!(control.stop().success());
    let spoil = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let name = b"\"order-1\"";
        for at in 0..bytes.len() - name.len() {
            if bytes[at..].starts_with(name) {
                bytes[at + 1] = b'O';
            }
        }
        std::fs::write(path, bytes).unwrap();
    };
    // What is in the log beside it is written into the file.
    store(&site, &["check"]);
    spoil(&site.dir.path().join("seawall-data/store.db"));
    let output = site.run(&["control", "--config", "seawall.yaml"]);
    let why = said(&output);
    assert_eq!(output.status.code(), Some(1));
    for part in ["store.db is damaged", "key `registry/order/order-1`", "checksum", "seawall store restore"] {
        assert!(why.contains(part), "{why}");
    }
    assert!(refused(&site, &["check"]).contains("is damaged"));
    assert!(refused(&site, &["backup", "c.db"]).contains("is damaged"));
    assert!(refused(&site, &["restore", "b.db"]).contains("damaged"));
    store(&site, &["restore", "b.db", "--force"]);
    let control = site.control();
    assert_eq!(instances(&site), ["order-1"]);
    assert!(fence(&site, "b", "1m") > last);
    assert!(control.stop().success());
    // A backup is damaged as easily.
    spoil(&site.dir.path().join("b.db"));
    let why = refused(&site, &["restore", "b.db", "--force"]);
    assert!(why.contains("b.db is damaged"), "{why}");
    let _control = site.control();
    assert_eq!(instances(&site), ["order-1"], "nothing was done");
}

#[test]
fn a_store_moves_to_etcd_and_back() {
    let etcd = Server::etcd();
    let url = format!("etcd://{}/fleet", etcd.addr());
    let site = Site::new(FILE);
    let nothing = refused(&site, &["migrate", "--to", &url]);
    assert!(nothing.contains("there is no"), "{nothing}");
    let control = site.control();
    register(&site, "order-1");
    let token = fence(&site, "a", "1m");
    let running = refused(&site, &["migrate", "--to", &url]);
    assert!(running.contains("in use by another process"), "{running}");
    assert!(control.stop().success());
    assert!(store(&site, &["migrate", "--to", &url, "--dry-run"]).contains("nothing was changed"));
    let moved = store(&site, &["migrate", "--to", &url]);
    assert!(moved.contains(&format!("control.store: {url}")), "{moved}");
    assert!(store(&site, &["migrate", "--to", &url]).contains("have moved"), "the same again does no harm");

    // The old file is not used any more, and says where to go.
    let output = site.run(&["control", "--config", "seawall.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(&format!("has moved to {url}")), "{}", said(&output));
    let yaml = format!("control: {{ listen: {}, ttl: 1m, store: \"{url}\" }}\n", site.control);
    std::fs::write(site.dir.path().join("seawall.yaml"), yaml).unwrap();
    let control = site.control();
    assert_eq!(instances(&site), ["order-1"]);
    assert_eq!(get(site.control, "/v1/locks/a").json()["holder"]["owner"], "test", "nobody overtakes its holder");
    let next = fence(&site, "b", "5s");
    assert!(next > token);
    assert!(store(&site, &["status"]).contains(&url));

    // Where something is already, nothing is moved to.
    let second = Site::new(FILE);
    let running = second.control();
    register(&second, "order-9");
    assert!(running.stop().success());
    let taken = refused(&second, &["migrate", "--to", &url]);
    assert!(taken.contains("is not empty"), "{taken}");

    // And back, into a directory of its own: a backup from etcd is one like any other.
    store(&site, &["backup", "from-etcd.db"]);
    assert!(control.stop().success());
    let backup = site.dir.path().join("from-etcd.db");
    let third = Site::new(FILE);
    store(&third, &["restore", backup.to_str().unwrap()]);
    let _control = third.control();
    assert_eq!(instances(&third), ["order-1"]);
    assert!(fence(&third, "c", "5s") > next);
}

/// Whoever moved died right before the last step: the new store is whole, and says that it is not. Control finishes that, where
/// the old file says that it was to move there, and nowhere else.
#[test]
fn control_finishes_a_move_whose_last_step_is_missing() {
    let etcd = Server::etcd();
    let url = format!("etcd://{}/fleet", etcd.addr());
    let site = Site::new(FILE);
    let control = site.control();
    register(&site, "order-1");
    assert!(control.stop().success());
    store(&site, &["migrate", "--to", &url]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let there = async || Etcd::connect(&[etcd.addr().to_string()], "fleet").await;
    runtime.block_on(async {
        let file = Embedded::open(&site.dir.path().join("seawall-data/store.db")).unwrap();
        let mark = file.get("meta/migrated-to").await.unwrap().unwrap().value;
        there().await.unwrap().commit(Txn::put("meta/migrating", mark)).await.unwrap();
    });
    let yaml = |site: &Site| {
        let yaml = format!("control: {{ listen: {}, ttl: 1m, store: \"{url}\" }}\n", site.control);
        std::fs::write(site.dir.path().join("seawall.yaml"), yaml).unwrap();
    };
    let stranger = Site::new(FILE);
    yaml(&stranger);
    let output = stranger.run(&["control", "--config", "seawall.yaml"]);
    assert!(said(&output).contains("is being filled by a migration"), "{}", said(&output));
    yaml(&site);
    let _control = site.control();
    assert_eq!(instances(&site), ["order-1"]);
    let left = runtime.block_on(async { there().await.unwrap().get("meta/migrating").await.unwrap() });
    assert_eq!(left, None);
}

/// Killed at any moment, the move leaves the old store or the whole new one, and the same again finishes it.
#[test]
fn a_move_that_is_killed_leaves_one_store_that_is_whole() {
    let etcd = Server::etcd();
    for round in 0..6u32 {
        let url = format!("etcd://{}/round-{round}", etcd.addr());
        let site = Site::new(FILE);
        let control = site.control();
        for n in 0..40 {
            register(&site, &format!("order-{n}"));
        }
        let token = fence(&site, "a", "1m");
        let all = instances(&site);
        assert!(control.stop().success());
        let mut moving = site.start(&["store", "migrate", "--to", &url]);
        std::thread::sleep(std::time::Duration::from_millis(u64::from(15 * round * round)));
        let _ = moving.child.kill();
        drop(moving);
        // The old one, if it still may.
        let mut control = site.start(&["control", "--config", "seawall.yaml"]);
        let mut ended = false;
        until("control runs or refuses", || {
            ended = control.child.try_wait().unwrap().is_some();
            ended || get(site.control, "/readyz").status == 200
        });
        if ended {
            assert!(control.log().contains("has moved to"), "{}", control.log());
        } else {
            assert_eq!(instances(&site), all, "round {round}");
            assert!(control.stop().success());
        }
        let yaml = format!("control: {{ listen: {}, ttl: 1m, store: \"{url}\" }}\n", site.control);
        std::fs::write(site.dir.path().join("seawall.yaml"), yaml).unwrap();
        if !ended {
            store(&site, &["migrate", "--to", &url]);
        }
        // If it was marked, the new one is whole already.
        let _control = site.control();
        assert_eq!(instances(&site), all, "round {round}");
        assert!(fence(&site, "b", "1m") > token);
    }
}

/// With more than fits into the sockets on the way of a backup.
fn fill(file: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(file).unwrap();
        for n in 0..30 {
            store.commit(Txn::put(format!("test/{n}"), vec![b'x'; 1 << 20])).await.unwrap();
        }
    });
}

#[test]
fn one_backup_at_a_time_and_who_takes_none_of_it_does_not_hold_it_for_ever() {
    use std::io::{Read, Write};
    let site = Site::new(FILE);
    fill(&site.dir.path().join("seawall-data/store.db"));
    let _control = site.control();
    let mut stalled = std::net::TcpStream::connect(site.control).unwrap();
    stalled.write_all(b"GET /v1/store/snapshot HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    stalled.read_exact(&mut [0; 100]).unwrap();
    let busy = refused(&site, &["backup", "b.db"]);
    assert!(busy.contains("another backup is being taken"), "{busy}");
    assert!(!site.dir.path().join("b.db").exists() && !site.dir.path().join("b.db.part").exists());
    drop(stalled);
    until("the next one may", || site.run(&["store", "backup", "b.db"]).status.success());
    assert!(store(&site, &["check", "b.db"]).contains("no damage"));
    let left = std::fs::read_dir(site.dir.path().join("seawall-data")).unwrap();
    let left: Vec<_> = left.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.contains("backup")), "{left:?}");
}

#[test]
fn a_store_at_its_limit_says_so() {
    let site = Site::new("control: { listen: CONTROL, store_limit: 1 MiB }\n");
    let output = site.run(&["config", "check"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("`1 MiB` is too small: at least 16 MiB"), "{}", said(&output));
}
