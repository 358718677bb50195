//! Queues of jobs on a real control node: over HTTP, and by commands whose workers are killed and stopped.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::support::*;

const FILE: &str = "control: { listen: CONTROL }\n";

fn call(site: &Site, method: &str, path: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    send(site.control, method, &format!("/v1/queues/{path}"), &[], &body)
}

fn claim(site: &Site, ttl: &str, wait: &str) -> Answer {
    call(site, "POST", &format!("mail/claim?wait={wait}"), &json!({ "worker": "test", "ttl": ttl }))
}

fn state(site: &Site, id: &str) -> String {
    let answer = call(site, "GET", &format!("mail/jobs/{id}"), &Value::Null);
    if answer.status == 200 { answer.json()["state"].as_str().unwrap().to_owned() } else { answer.status.to_string() }
}

#[test]
fn a_job_goes_its_way_over_http() {
    let site = Site::new(FILE);
    let control = site.control();
    assert_eq!(claim(&site, "30s", "0s").status, 204);
    let put = |data: i32| call(&site, "PUT", "mail/jobs/a", &json!({ "data": data, "max_attempts": 2 })).status;
    assert_eq!((put(1), put(1), put(2)), (201, 200, 422));
    let first = claim(&site, "1s", "0s").json();
    assert_eq!((&first["id"], &first["data"], &first["attempt"]), (&json!("a"), &json!(1), &json!(1)));
    // Its time is over: it is pending again, and whoever had it is too late.
    let second = claim(&site, "30s", "20s").json();
    assert_eq!((&second["id"], &second["attempt"]), (&json!("a"), &json!(2)));
    assert!(second["fence"].as_u64() > first["fence"].as_u64());
    let told = |verb: &str, claim: &Value| {
        call(&site, "POST", &format!("mail/jobs/a/{verb}"), &json!({ "claim": claim["claim"] }))
    };
    assert_eq!(told("keep-alive", &first).status, 410);
    assert_eq!(told("complete", &first).status, 410);
    assert_eq!(told("keep-alive", &second).json()["ttl_ms"], 30_000);
    // A restart of control changes nothing.
    control.kill();
    let _control = site.control();
    assert_eq!(told("complete", &second).status, 204);
    assert_eq!(told("complete", &second).status, 204, "can be repeated");
    assert_eq!((put(1), &*state(&site, "a")), (200, "done"));

    let waits = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| claim(&site, "30s", "20s"));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(call(&site, "PUT", "mail/jobs/b", &json!({ "data": null })).status, 201);
        waiter.join().unwrap().json()
    });
    let failed = call(
        &site,
        "POST",
        "mail/jobs/b/fail",
        &json!({ "claim": waits["claim"], "error": "no such address", "retry": false }),
    );
    assert_eq!((failed.json()["retried"].as_bool(), &*state(&site, "b")), (Some(false), "parked"));
    let listed = call(&site, "GET", "mail/jobs?state=parked", &Value::Null);
    assert_eq!(listed.json()[0]["error"], "no such address");
    assert!(!listed.body.contains(waits["claim"].as_str().unwrap()), "no secret is shown");
    let totals = get(site.control, "/v1/queues").json();
    assert_eq!(totals, json!([{ "name": "mail", "pending": 0, "running": 0, "done": 1, "parked": 1 }]));
    let metrics = get(site.control, "/metrics").body;
    assert!(metrics.contains("seawall_queue_jobs{queue=\"mail\",state=\"parked\"} 1"), "{metrics}");
    assert_eq!(call(&site, "POST", "mail/jobs/b/retry", &Value::Null).status, 204);
    assert_eq!(state(&site, "b"), "pending");

    for (method, path, body, status) in [
        ("PUT", "mail/jobs/a%2Fb", json!({ "data": 1 }), 400),
        ("PUT", "MAIL/jobs/a", json!({ "data": 1 }), 400),
        ("PUT", "mail/jobs/c", json!({ "data": 1, "max_attempts": 0 }), 400),
        ("PUT", "mail/jobs/c", json!({ "date": 1 }), 422),
        ("POST", "mail/claim", json!({ "worker": "w", "ttl": "0s" }), 400),
        ("POST", "mail/claim", json!({ "worker": "w", "ttl": "300d" }), 422),
        ("POST", "mail/claim", json!({ "worker": "", "ttl": "5s" }), 422),
        ("POST", "mail/jobs/a/complete", json!({ "claim": "x" }), 400),
        ("GET", "mail/jobs/c", Value::Null, 404),
        ("DELETE", "mail/jobs/c", Value::Null, 404),
        ("GET", "mail/jobs?state=lost", Value::Null, 400),
    ] {
        let answer = call(&site, method, path, &body);
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
    }
    assert_eq!(state(&site, "c"), "404");
}

fn worker(site: &Site, args: &[&str]) -> Child {
    let mut command = Command::new(SEAWALL);
    command.args(["queue", "work", "mail"]).args(args).current_dir(site.dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_command_does_jobs_and_its_exit_code_says_what_becomes_of_them() {
    let site = Site::new(FILE);
    let _control = site.control();
    for (key, data) in [("good", r#"{"to":"ann"}"#), ("bad", "65"), ("weak", "1")] {
        let put = site.run(&["queue", "put", "mail", key, "--data", data, "--max-attempts", "1"]);
        assert!(put.status.success(), "{put:?}");
    }
    let script = r#"
        echo "$SEAWALL_QUEUE $SEAWALL_JOB $SEAWALL_JOB_DATA $SEAWALL_JOB_ATTEMPT" >> done.txt
        test "$SEAWALL_FENCING_TOKEN" -gt 0 || exit 9
        case "$SEAWALL_JOB" in good) exit 0;; *) exit "$SEAWALL_JOB_DATA";; esac"#;
    let worked = site.run(&["queue", "work", "mail", "--until-empty", "--", "sh", "-c", script]);
    assert!(worked.status.success(), "{worked:?}");
    let said = String::from_utf8(worked.stdout).unwrap();
    assert_eq!(said, "good done\nbad failed (65)\nweak failed (1)\n");
    let done = std::fs::read_to_string(site.dir.path().join("done.txt")).unwrap();
    assert!(done.starts_with("mail good {\"to\":\"ann\"} 1\n"), "{done}");
    assert_eq!([state(&site, "good"), state(&site, "bad"), state(&site, "weak")], ["done", "parked", "parked"]);
    let listed = String::from_utf8(site.run(&["queue", "list"]).stdout).unwrap();
    assert!(listed.contains("mail") && listed.contains("PARKED"), "{listed}");
    let listed = String::from_utf8(site.run(&["queue", "list", "mail", "--state", "parked"]).stdout).unwrap();
    assert!(listed.contains("weak") && listed.contains("the command has ended with 1"), "{listed}");
    assert!(site.run(&["queue", "retry", "mail", "weak"]).status.success());
    assert!(site.run(&["queue", "discard", "mail", "bad"]).status.success());
    assert_eq!([state(&site, "bad"), state(&site, "weak")], ["404", "pending"]);
    assert!(!site.run(&["queue", "retry", "mail", "bad"]).status.success());
    assert!(!site.run(&["queue", "put", "mail", "x", "--data", "{"]).status.success());
}

#[test]
fn workers_that_are_killed_or_stopped_lose_their_job_and_their_command() {
    let site = Site::new(FILE);
    let _control = site.control();
    for signal_sent in [Signal::KILL, Signal::STOP] {
        let key = format!("job-{}", signal_sent.as_raw());
        let put = call(&site, "PUT", &format!("mail/jobs/{key}"), &json!({ "data": 1 }));
        assert_eq!(put.status, 201);
        let file = site.dir.path().join(&key);
        // For longer than its time to live, so that it has to be kept alive.
        let mut first = worker(&site, &["--ttl", "2s", "--", "sh", "-c", "echo $$ > $SEAWALL_JOB; exec sleep 60"]);
        until("the command runs", || std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
        let pid: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        std::thread::sleep(Duration::from_secs(4));
        assert!(alive(pid) && state(&site, &key) == "running");
        signal(first.id(), signal_sent);
        let second = claim(&site, "30s", "20s").json();
        assert_eq!((&second["id"], &second["attempt"]), (&json!(key), &json!(2)));
        assert!(!alive(pid), "its command is dead before somebody else has the job");
        let done = json!({ "claim": second["claim"] });
        assert_eq!(call(&site, "POST", &format!("mail/jobs/{key}/complete"), &done).status, 204);
        first.kill().unwrap();
        first.wait().unwrap();
    }
}

#[test]
fn a_backlog_is_worked_off_once_each_while_everything_is_killed() {
    let site = Site::new(FILE);
    let mut control = site.control();
    let jobs = 40;
    for n in 0..jobs {
        let put = call(&site, "PUT", &format!("mail/jobs/{n}"), &json!({ "data": n, "max_attempts": 50 }));
        assert_eq!(put.status, 201);
    }
    let work = || worker(&site, &["--ttl", "2s", "--", "sh", "-c", "sleep 0.1; echo $SEAWALL_JOB >> done.txt"]);
    let mut workers: Vec<Child> = (0..3).map(|_| work()).collect();
    for n in 0..4 {
        std::thread::sleep(Duration::from_millis(600));
        let mut killed = std::mem::replace(&mut workers[n % 3], work());
        killed.kill().unwrap();
        killed.wait().unwrap();
        if n == 2 {
            control.kill();
            control = site.control();
        }
    }
    until("all are done", || {
        let totals = get(site.control, "/v1/queues").json();
        totals[0]["done"] == jobs && totals[0]["pending"] == 0 && totals[0]["running"] == 0
    });
    for mut worker in workers {
        signal(worker.id(), Signal::TERM);
        worker.wait().unwrap();
    }
    let done = std::fs::read_to_string(site.dir.path().join("done.txt")).unwrap();
    let mut lines: Vec<u32> = done.lines().map(|line| line.parse().unwrap()).collect();
    lines.sort_unstable();
    let twice = lines.windows(2).filter(|pair| pair[0] == pair[1]).count();
    lines.dedup();
    assert_eq!(lines, (0..jobs).collect::<Vec<u32>>());
    // Only a worker, or a control node, that was killed between the work and its completion makes it be done again.
    assert!(twice <= 4 + 3, "{twice}");
    drop(control);
}
