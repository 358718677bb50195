//! What no lock can do, and a resource can: a holder that is stopped with its guard, goes on after somebody else has had the
//! lock, and writes late. Each kind of resource refuses it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, State};
use axum::routing::post;
use rustix::process::Signal;
use seawall_fenced::{Fence, FenceToken, FencedFile, Fences, PgFence, Resource, SqliteFence};
use seawall_servers::Server;

use super::locks::{Holder, waiting};
use super::support::*;

const SOON: Duration = Duration::from_secs(60);
/// Says to this very program that it is the command of a holder: its name, and how often it writes.
const WRITER: &str = "FENCED_WRITER";
const RESOURCES: [&str; 4] = ["sqlite", "postgres", "file", "http"];

/// No test: the command that runs under the lock, in the test's directory. Before each write it waits for its word.
#[test]
fn writer() {
    let Ok(order) = std::env::var(WRITER) else { return };
    let (name, rounds) = order.split_once('|').unwrap();
    let token = std::env::var("SEAWALL_FENCING_TOKEN").unwrap().parse().unwrap();
    println!("\ntoken={token}");
    for round in 1..=rounds.parse().unwrap() {
        until("the word to write", || Path::new(&format!("go-{name}-{round}")).exists());
        for resource in RESOURCES {
            println!("\n{resource}{round}={}", u8::from(write(resource, Fence::new(token))));
        }
    }
}

/// Writes the token itself; false when it is stale.
fn write(resource: &str, token: Fence) -> bool {
    let text = token.to_string();
    match resource {
        "sqlite" => {
            let mut connection = rusqlite::Connection::open("account.db").unwrap();
            connection.busy_timeout(SOON).unwrap();
            let transaction = connection.transaction().unwrap();
            if let Err(error) = SqliteFence::check(&transaction, "x", token) {
                error.stale().expect("it can be written");
                return false;
            }
            transaction.execute("UPDATE account SET content = ?1", (&text,)).unwrap();
            transaction.commit().unwrap();
        }
        "postgres" => {
            return runtime().block_on(async {
                let mut client = postgres().await;
                let transaction = client.transaction().await.unwrap();
                if let Err(error) = PgFence::check(&transaction, "x", token).await {
                    error.stale().expect("it is there");
                    return false;
                }
                transaction.execute("UPDATE account SET content = $1", &[&text]).await.unwrap();
                transaction.commit().await.unwrap();
                true
            });
        }
        "file" => {
            if let Err(error) = FencedFile::new("account.txt").write(token, text.as_bytes()) {
                error.stale().expect("it can be written");
                return false;
            }
        }
        _ => {
            let at = std::fs::read_to_string("http").unwrap().parse().unwrap();
            let answer = send(at, "POST", "/account", &[&format!("seawall-fence: x={token}")], "");
            if answer.status == 409 {
                assert_eq!(answer.json()["code"], "stale", "{answer:?}");
                return false;
            }
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
    true
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn postgres() -> tokio_postgres::Client {
    let url = std::fs::read_to_string("postgres").unwrap();
    connect(&url).await
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

struct Account;

impl Resource for Account {
    const LOCK: &'static str = "x";
}

#[derive(Clone)]
struct App {
    fences: Fences,
    content: Arc<AtomicU64>,
}

impl FromRef<App> for Fences {
    fn from_ref(app: &App) -> Self {
        app.fences.clone()
    }
}

/// A service that keeps what it was given last; it remembers tokens in a file.
fn serve(dir: &Path, content: &Arc<AtomicU64>) -> tokio::runtime::Runtime {
    let app = App { fences: Fences::sqlite(dir.join("fences.db")).unwrap(), content: content.clone() };
    let write = |State(app): State<App>, token: FenceToken<Account>| async move {
        app.content.store(token.fence().get(), Ordering::SeqCst);
    };
    let router = Router::new().route("/account", post(write)).with_state(app);
    let runtime = runtime();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, router).await });
    std::fs::write(dir.join("http"), at.to_string()).unwrap();
    runtime
}

/// Processes that are stopped, and killed when this is dropped.
struct Stopped(Vec<u32>);

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let pid = rustix::process::Pid::from_raw(*pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

fn child_of(pid: u32) -> u32 {
    // A child belongs to the thread that has started it.
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let all = tasks.flat_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")));
    let all: String = all.collect();
    all.split_whitespace().next().unwrap_or_else(|| panic!("{pid} has no child")).parse().unwrap()
}

#[test]
fn a_holder_that_was_stopped_writes_late_and_each_resource_refuses_it() {
    let site = Site::new("control: { listen: CONTROL }\n");
    let _control = site.control();
    let dir = site.dir.path();
    let mut server = Server::postgres();
    let url = format!("postgres://postgres@{}/postgres", server.addr());
    std::fs::write(dir.join("postgres"), &url).unwrap();
    let tables = "CREATE TABLE account (content text); INSERT INTO account VALUES ('')";
    runtime().block_on(async {
        let client = connect(&url).await;
        PgFence::create_table(&client).await.unwrap();
        client.batch_execute(tables).await.unwrap();
    });
    let sqlite = rusqlite::Connection::open(dir.join("account.db")).unwrap();
    SqliteFence::create_table(&sqlite).unwrap();
    sqlite.execute_batch(tables).unwrap();
    let content = Arc::<AtomicU64>::default();
    let http = serve(dir, &content);

    let holder = |name: &str, rounds: u8| {
        let (program, order) = (std::env::current_exe().unwrap(), format!("{WRITER}={name}|{rounds}"));
        let lock = ["lock", "x", "--ttl", "2s", "--wait", "60s", "--", "env"];
        let command = [&*order, program.to_str().unwrap(), "--exact", "fenced::writer", "--nocapture"];
        Holder::run(&site, name, &[&lock[..], &command].concat())
    };
    let go = |name: &str| std::fs::write(dir.join(format!("go-{name}")), "").unwrap();

    go("first-1");
    let first = holder("first", 2);
    let early = first.number("token");
    assert_eq!(RESOURCES.map(|resource| first.number(&format!("{resource}1"))), [1; 4], "{}", first.out());

    let mut second = holder("second", 1);
    until("the second waits", || waiting(site.control, "x") == 1);
    // The guard would end the command in time. So it is stopped as well, as if the whole machine were.
    let guard = child_of(first.child.id());
    let command = child_of(guard);
    let stopped = Stopped(vec![guard, first.child.id(), command]);
    stopped.0.iter().for_each(|pid| signal(*pid, Signal::STOP));
    go("second-1");
    let later = second.number("token");
    assert!(later > early);
    assert_eq!(RESOURCES.map(|resource| second.number(&format!("{resource}1"))), [1; 4], "{}", second.out());
    assert_eq!(second.ends(SOON), Some(0), "{}", second.out());

    // They remember.
    server.restart();
    drop(http);
    let _http = serve(dir, &content);
    go("first-2");
    signal(command, Signal::CONT);
    assert_eq!(RESOURCES.map(|resource| first.number(&format!("{resource}2"))), [0; 4], "{}", first.out());

    let text = later.to_string();
    assert_eq!(sqlite.query_row("SELECT content FROM account", (), |row| row.get::<_, String>(0)).unwrap(), text);
    let in_postgres = runtime().block_on(async {
        connect(&url).await.query_one("SELECT content FROM account", &[]).await.unwrap().get::<_, String>(0)
    });
    assert_eq!(in_postgres, text);
    assert_eq!(std::fs::read_to_string(dir.join("account.txt")).unwrap(), text);
    assert_eq!(content.load(Ordering::SeqCst), later);
}
