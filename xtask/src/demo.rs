//! The demonstration: the shop through Seawall, with a person or without.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::audit;
use crate::load::{self, Answer, Call, Http, percentile};
use crate::process::{self, Running};

pub(crate) fn run(once: bool) -> anyhow::Result<()> {
    process::run("cargo", &["build", "--release", "--package", "seawall-cli", "--package", "shop"])?;
    if once {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        return runtime.block_on(unattended());
    }
    println!(
        r#"
The shop is starting. Some things to try from another terminal:

  curl -s localhost:8080/api/products

  curl -i localhost:8080/api/orders -H 'content-type: application/json' -H 'idempotency-key: my-first' \
       -d '{{"sku": "lamp", "quantity": 2, "card": "plain", "city": "harbour"}}'

  curl -i localhost:8081/api/orders/my-first/details      # the same order for a browser, and for a telephone on 8082

  curl -s localhost:7400/v1/sagas | python3 -m json.tool | head -40

Then kill any process that `target/release/seawall status -c examples/shop/seawall.yaml` lists, and try again.
Ctrl-C stops everything, in order.
"#
    );
    let file = "examples/shop/seawall.yaml";
    let mut command = Command::new(process::root().join("target/release/seawall"));
    let mut up = command.args(["up", file]).current_dir(process::root()).spawn()?;
    // Ctrl-C reaches the child too, which stops in order; waiting for it is all there is to do.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _guard = runtime.enter();
    let _ignored = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let status = up.wait()?;
    ensure!(status.success(), "seawall up failed: {status}");
    Ok(())
}

/// One line of the table.
struct Row {
    what: &'static str,
    requests: usize,
    failed: usize,
    p50: Duration,
    p99: Duration,
    seen: String,
}

impl Row {
    fn new(what: &'static str, answers: &[Answer], seen: String) -> Self {
        Self {
            what,
            requests: answers.len(),
            failed: answers.iter().filter(|answer| answer.is_error()).count(),
            p50: percentile(answers, 0.5),
            p99: percentile(answers, 0.99),
            seen,
        }
    }
}

/// A running shop.
struct Shop {
    up: Running,
    dir: PathBuf,
    env: Vec<(String, String)>,
    gateway: Http,
    control: Http,
}

impl Shop {
    fn start() -> anyhow::Result<Self> {
        let dir = process::root().join("target/demo");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let [gateway, control, web, mobile, partner] = process::free_ports()?;
        let path = |name: &str| dir.join(name).display().to_string();
        let env = vec![
            ("SEAWALL__CONTROL__DATA".to_owned(), path("data")),
            ("SEAWALL__CONTROL__LISTEN".to_owned(), format!("127.0.0.1:{control}")),
            ("SEAWALL__GATEWAYS__PUBLIC__LISTEN".to_owned(), format!("127.0.0.1:{gateway}")),
            ("SEAWALL__GATEWAYS__WEB__LISTEN".to_owned(), format!("127.0.0.1:{web}")),
            ("SEAWALL__GATEWAYS__MOBILE__LISTEN".to_owned(), format!("127.0.0.1:{mobile}")),
            ("SEAWALL__GATEWAYS__PARTNER__LISTEN".to_owned(), format!("127.0.0.1:{partner}")),
            ("SHOP_DATA".to_owned(), path("shop")),
        ];
        let up = Self::up(&dir, &env)?;
        let http = |port| Http::new(format!("http://127.0.0.1:{port}"));
        Ok(Self { up, dir, env, gateway: http(gateway), control: http(control) })
    }

    fn up(dir: &Path, env: &[(String, String)]) -> anyhow::Result<Running> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("up.log"))?;
        let mut command = seawall(env);
        command.args(["up", FILE]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Running::spawn("seawall up", &mut command)
    }

    /// Runs the CLI against this shop.
    async fn seawall(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = seawall(&self.env);
        command.args(args).args(["--config", FILE]);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "seawall {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    async fn rows(&self) -> anyhow::Result<Vec<Value>> {
        Ok(serde_json::from_str(&self.seawall(&["status", "--json"]).await?)?)
    }

    async fn pid(&self, name: &str) -> anyhow::Result<u32> {
        let rows = self.rows().await?;
        let row = rows.iter().find(|row| row["name"] == name);
        let pid = row.and_then(|row| row["pid"].as_u64()).with_context(|| format!("`{name}` is not running"))?;
        Ok(u32::try_from(pid)?)
    }

    /// Waits until every process is as it should be.
    async fn healthy(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(rows) = self.rows().await {
                let well = |row: &Value| row["status"] == "healthy";
                if !rows.is_empty() && rows.iter().all(well) {
                    return Ok(());
                }
            }
            ensure!(!self.up.has_ended(), "`seawall up` has ended by itself");
            ensure!(Instant::now() < end, "the shop did not become healthy; see {}", self.log().display());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.join("up.log")
    }

    async fn gateway_admin(&self) -> anyhow::Result<Http> {
        let rows = self.rows().await?;
        let row = rows.iter().find(|row| row["name"] == "gateway public").context("no gateway in the status")?;
        Ok(Http::new(format!("http://{}", row["admin"].as_str().context("no admin address")?)))
    }

    async fn sagas(&self, status: &str) -> Option<usize> {
        let answer = self.control.get(&format!("/v1/sagas?status={status}&limit=1000")).await;
        answer.json().as_array().map(Vec::len)
    }

    /// Waits until no saga is under way.
    async fn settled(&self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            if self.sagas("running").await == Some(0) && self.sagas("undoing").await == Some(0) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "sagas did not end");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

const FILE: &str = "examples/shop/seawall.yaml";

fn seawall(env: &[(String, String)]) -> Command {
    let mut command = Command::new(process::root().join("target/release/seawall"));
    command.current_dir(process::root()).envs(env.iter().cloned());
    command
}

/// Orders as a shop sees them: most can be had; some ask for what is scarce, with a card that has little on it, or to a
/// place with few deliveries.
fn order(stage: &'static str) -> impl Fn(u32) -> Call {
    move |number| {
        let (mut sku, mut card, mut city) = (["lamp", "rope", "anchor"][number as usize % 3], "plain", "harbour");
        match number % 12 {
            3 => sku = "sextant",
            6 => card = "poor",
            9 => city = "island",
            _ => {}
        }
        Call {
            method: Method::POST,
            path: "/api/orders".into(),
            key: Some(format!("{stage}-{number}")),
            body: json!({ "sku": sku, "quantity": 1 + number % 3, "card": card, "city": city }),
        }
    }
}

/// Orders that nothing but a fault can stop.
fn plain_order(stage: &'static str) -> impl Fn(u32) -> Call {
    move |number| Call {
        method: Method::POST,
        path: "/api/orders".into(),
        key: Some(format!("{stage}-{number}")),
        body: json!({ "sku": "lamp", "quantity": 1, "card": "gold", "city": "hill" }),
    }
}

fn count(answers: &[Answer], status: &str, reason: &str) -> usize {
    let hit = |answer: &&Answer| {
        let body = answer.json();
        body["status"] == status && body["reason"].as_str().unwrap_or_default().contains(reason)
    };
    answers.iter().filter(hit).count()
}

fn no_errors(what: &str, answers: &[Answer]) -> anyhow::Result<()> {
    let errors: Vec<_> = answers.iter().filter(|answer| answer.is_error()).collect();
    let first = errors.first();
    ensure!(errors.is_empty(), "{what}: {} of {} requests failed, the first: {first:?}", errors.len(), answers.len());
    Ok(())
}

async fn unattended() -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut shop = Shop::start()?;
    let result = stages(&mut shop).await;
    if let Err(error) = &result {
        eprintln!("\nthe demo failed: {error:#}\nthe end of {}:", shop.log().display());
        let log = std::fs::read_to_string(shop.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    }
    let rows = result?;
    print_table(&rows);
    println!("\nEverything held, in {:.0} s. The log: {}", begun.elapsed().as_secs_f64(), shop.log().display());
    Ok(())
}

async fn stages(shop: &mut Shop) -> anyhow::Result<Vec<Row>> {
    say("starting the shop");
    shop.healthy().await?;
    let mut rows = Vec::new();

    say("1. 300 orders at 50/s");
    rows.push(ordinary(shop).await?);
    say("2. a payment replica is killed with -9 under traffic");
    rows.push(replica_killed(shop).await?);
    say("3. all payment replicas are stopped, and come back");
    rows.extend(payment_stopped(shop).await?);
    say("4. control is killed with -9 in the middle of running sagas");
    rows.extend(control_killed(shop).await?);
    say("5. a rolling restart of all order replicas under traffic");
    rows.extend(rolling_restart(shop).await?);

    say("6. everything is killed with -9 in the middle of running sagas, and started again after a while");
    rows.push(everything_killed(shop).await?);

    say("audit");
    shop.settled().await?;
    let counts: Vec<(&str, usize)> = {
        let mut counts = Vec::new();
        for status in ["completed", "undone", "parked"] {
            let metric = format!("seawall_sagas{{status=\"{status}\"}}");
            counts.push((status, metric_value(&shop.control.get("/metrics").await.body, &metric) as usize));
        }
        counts
    };
    ensure!(counts[2].1 == 0, "{} sagas are parked", counts[2].1);
    let pids: Vec<u64> = shop.rows().await?.iter().filter_map(|row| row["pid"].as_u64()).collect();
    let status = shop.up.stop(Duration::from_secs(60))?;
    ensure!(status.success(), "seawall up ended with {status}");
    for pid in pids {
        ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} outlived `seawall up`");
    }
    let audit = audit::audit(&shop.dir.join("shop"))?;
    ensure!(audit.problems.is_empty(), "the audit found:\n  {}", audit.problems.join("\n  "));
    let (completed, undone) = (counts[0].1, counts[1].1);
    ensure!(audit.confirmed == completed, "{} orders are confirmed, {completed} sagas completed", audit.confirmed);
    println!(
        "\n  sagas: {completed} completed, {undone} undone, 0 parked; orders: {} confirmed, each with one reservation, \
         one charge and one delivery; {} others, with none; stock, money and delivery slots add up",
        audit.confirmed, audit.others
    );
    Ok(rows)
}

async fn ordinary(shop: &Shop) -> anyhow::Result<Row> {
    let answers = load::run(&shop.gateway, 50, 300, order("ordinary")).await;
    no_errors("ordinary orders", &answers)?;
    let confirmed = count(&answers, "confirmed", "");
    let (stock, card, slot) = (
        count(&answers, "cancelled", "no stock"),
        count(&answers, "cancelled", "declined"),
        count(&answers, "cancelled", "no delivery slot"),
    );
    ensure!(confirmed >= 200, "only {confirmed} of 300 orders were confirmed");
    ensure!(stock > 0 && card > 0 && slot > 0, "no stock {stock}, declined {card}, no slot {slot}: each should happen");
    ensure!(confirmed + stock + card + slot == 300, "some orders ended otherwise");
    let seen = format!("{confirmed} confirmed, {stock} no stock, {card} declined, {slot} no delivery slot");
    Ok(Row::new("ordinary orders", &answers, seen))
}

async fn replica_killed(shop: &mut Shop) -> anyhow::Result<Row> {
    let victim = shop.pid("payment-1").await?;
    let kill = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        process::signal(victim, Signal::KILL)
    };
    let (answers, killed) = tokio::join!(load::run(&shop.gateway, 50, 200, plain_order("killed")), kill);
    killed?;
    no_errors("orders while a payment replica dies", &answers)?;
    let confirmed = count(&answers, "confirmed", "");
    ensure!(confirmed == 200, "{confirmed} of 200 orders were confirmed");
    shop.healthy().await?;
    let restarted = shop.pid("payment-1").await?;
    ensure!(restarted != victim, "payment-1 was not started again");
    Ok(Row::new("a payment replica killed", &answers, format!("{confirmed} confirmed; pid {victim} -> {restarted}")))
}

async fn payment_stopped(shop: &Shop) -> anyhow::Result<Vec<Row>> {
    let admin = shop.gateway_admin().await?;
    let state = || async {
        let status = admin.get("/status").await.json();
        let guards = status["guards"].as_array().cloned().unwrap_or_default();
        let payment = guards.iter().find(|guard| guard["service"] == "payment");
        payment.and_then(|guard| guard["breaker"]["state"].as_str().map(str::to_owned)).unwrap_or_default()
    };
    let wait_for = |wanted: &'static str, seconds: u64| {
        let state = &state;
        async move {
            let end = Instant::now() + Duration::from_secs(seconds);
            while state().await != wanted {
                ensure!(Instant::now() < end, "the gateway's breaker for payment did not become {wanted}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        }
    };
    let card = |_| Call::get("/api/cards/plain");

    // The breaker needs traffic: to open, to probe and to close.
    let (over, until_over) = tokio::sync::oneshot::channel::<()>();
    let orders = load::run(&shop.gateway, 5, 40, plain_order("stopped"));
    // Many at once, so that some charges are under way in the very moment.
    let crowd = load::run(&shop.gateway, 0, 150, plain_order("crowd"));
    let cards = load::until(&shop.gateway, 50, async { drop(until_over.await) }, card);
    let faults = async {
        let result = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let stopped = Instant::now();
            shop.seawall(&["stop", "payment", "--kill"]).await?;
            wait_for("open", 10).await?;
            let opened = stopped.elapsed();
            let open = load::run(&shop.gateway, 50, 100, card).await;
            // Long enough that some sagas lose their patience and are undone, and others wait.
            tokio::time::sleep(Duration::from_secs(5)).await;
            shop.seawall(&["start", "payment"]).await?;
            wait_for("closed", 20).await?;
            anyhow::Ok((opened, open))
        }
        .await;
        let _ = over.send(());
        result
    };
    let (mut orders, crowd, cards, faults) = tokio::join!(orders, crowd, cards, faults);
    orders.extend(crowd);
    let (opened, open) = faults?;
    let fallback = open.iter().filter(|a| a.body.contains("payment is unavailable") && a.rejected.is_some()).count();
    ensure!(fallback == open.len(), "{} of {} callers got the fallback", fallback, open.len());
    // Not the very last: on a shared machine one may lose its turn of the processor.
    let (p95, p99) = (percentile(&open, 0.95), percentile(&open, 0.99));
    ensure!(p95 < Duration::from_millis(50), "callers of an open breaker waited {p95:?}");
    no_errors("orders while payment is gone", &orders)?;
    let (confirmed, cancelled) = (count(&orders, "confirmed", ""), count(&orders, "cancelled", ""));
    let pending = count(&orders, "pending", "");
    let metrics = admin.get("/metrics").await.body;
    let to = |state: &str| {
        let name = format!("seawall_breaker_transitions_total{{service=\"payment\",to=\"{state}\"}}");
        metric_value(&metrics, &name)
    };
    ensure!(to("open") > 0.0 && to("half-open") > 0.0 && to("closed") > 0.0, "the breaker's transitions are missing");
    let transitions = format!(
        "breaker of the gateway: opened after {:.1} s; {}x open, {}x half-open, {}x closed",
        opened.as_secs_f64(),
        to("open"),
        to("half-open"),
        to("closed")
    );
    let mut open_row = Row::new("  callers while it is open", &open, format!("all got the fallback; p99 {p99:.1?}"));
    // Every one of them failed, as it should: at once, with the fallback.
    open_row.failed = 0;
    let mut cards = Row::new("payment stopped: cards", &cards, transitions);
    cards.seen += &format!("; {} fallbacks", cards.failed);
    cards.failed = 0;
    Ok(vec![
        cards,
        open_row,
        Row::new("  orders", &orders, format!("{confirmed} confirmed, {cancelled} undone, {pending} waiting")),
    ])
}

async fn control_killed(shop: &mut Shop) -> anyhow::Result<Vec<Row>> {
    let victim = shop.pid("control").await?;
    let before = recovered(&shop.log());
    let kill = async {
        tokio::time::sleep(Duration::from_millis(1_080)).await;
        process::signal(victim, Signal::KILL)
    };
    let burst = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        load::run(&shop.gateway, 0, 60, plain_order("burst")).await
    };
    let (orders, burst, products, killed) = tokio::join!(
        load::run(&shop.gateway, 20, 80, plain_order("control")),
        burst,
        load::run(&shop.gateway, 50, 200, |_| Call::get("/api/products")),
        kill,
    );
    killed?;
    shop.healthy().await?;
    shop.settled().await?;
    no_errors("the catalogue while control is gone", &products)?;
    no_errors("orders while control is gone", &orders)?;
    no_errors("a burst of orders while control is gone", &burst)?;
    let taken_up = recovered(&shop.log()) - before;
    ensure!(taken_up > 0, "no saga was under way when control was killed");
    let orders: Vec<Answer> = orders.into_iter().chain(burst).collect();
    let confirmed = count(&orders, "confirmed", "");
    Ok(vec![
        Row::new("control killed: catalogue", &products, String::new()),
        Row::new("  orders", &orders, format!("{confirmed} confirmed; {taken_up} sagas taken up by the next control")),
    ])
}

/// The machine loses power, as it were: nobody can tell anybody anything. Longer away than some steps have patience.
async fn everything_killed(shop: &mut Shop) -> anyhow::Result<Row> {
    let before = recovered(&shop.log());
    let pids: Vec<u32> = shop.rows().await?.iter().filter_map(|row| u32::try_from(row["pid"].as_u64()?).ok()).collect();
    let up = shop.up.id();
    let kill = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        process::signal(up, Signal::KILL)?;
        for pid in pids {
            // Some have ended with their supervisor already.
            let _ = process::signal(pid, Signal::KILL);
        }
        anyhow::Ok(())
    };
    let (orders, killed) = tokio::join!(load::run(&shop.gateway, 0, 150, plain_order("power")), kill);
    killed?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    shop.up = Shop::up(&shop.dir, &shop.env)?;
    shop.healthy().await?;
    shop.settled().await?;
    let taken_up = recovered(&shop.log()) - before;
    ensure!(taken_up > 0, "no saga was under way when everything was killed");
    // Who was cut off asks again, with the same key, and learns what became of the order.
    let again = load::run(&shop.gateway, 50, 150, plain_order("power")).await;
    no_errors("orders asked for again", &again)?;
    let (confirmed, cancelled) = (count(&again, "confirmed", ""), count(&again, "cancelled", ""));
    ensure!(confirmed + cancelled == 150, "{confirmed} confirmed and {cancelled} cancelled are not 150");
    let cut_off = orders.iter().filter(|answer| answer.is_error()).count();
    let seen = format!(
        "{cut_off} clients cut off; {taken_up} sagas taken up; asked again: {confirmed} confirmed, {cancelled} undone"
    );
    Ok(Row::new("everything killed: asked again", &again, seen))
}

/// How many sagas control has taken up, by its own word.
fn recovered(log: &Path) -> usize {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines = log.lines().filter(|line| line.contains("took up unfinished sagas"));
    lines.filter_map(|line| line.split("count=").nth(1)?.split_whitespace().next()?.parse::<usize>().ok()).sum()
}

async fn rolling_restart(shop: &Shop) -> anyhow::Result<Vec<Row>> {
    let before = (shop.pid("order-1").await?, shop.pid("order-2").await?);
    let (over, until_over) = tokio::sync::watch::channel(false);
    let stop = || {
        let mut over = until_over.clone();
        async move { drop(over.wait_for(|over| *over).await) }
    };
    let restart = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = Instant::now();
        let result = shop.seawall(&["restart", "order"]).await;
        let took = begun.elapsed();
        tokio::time::sleep(Duration::from_secs(1)).await;
        over.send_replace(true);
        result.map(|_| took)
    };
    let (orders, reads, restarted) = tokio::join!(
        load::until(&shop.gateway, 40, stop(), plain_order("rolling")),
        load::until(&shop.gateway, 100, stop(), |_| Call::get("/api/orders")),
        restart,
    );
    let took = restarted?;
    no_errors("orders during the rolling restart", &orders)?;
    no_errors("reads during the rolling restart", &reads)?;
    let after = (shop.pid("order-1").await?, shop.pid("order-2").await?);
    ensure!(before.0 != after.0 && before.1 != after.1, "not every replica was restarted");
    let seen = format!("both replicas replaced in {:.1} s", took.as_secs_f64());
    Ok(vec![Row::new("rolling restart: orders", &orders, seen), Row::new("  reads", &reads, String::new())])
}

fn metric_value(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

fn say(text: &str) {
    println!("  {text} ...");
}

fn print_table(rows: &[Row]) {
    println!("\n{:<30} {:>8} {:>7} {:>9} {:>9}  seen", "stage", "requests", "failed", "p50 ms", "p99 ms");
    for row in rows {
        let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
        println!(
            "{:<30} {:>8} {:>7} {:>9.1} {:>9.1}  {}",
            row.what,
            row.requests,
            row.failed,
            millis(row.p50),
            millis(row.p99),
            row.seen
        );
    }
}
