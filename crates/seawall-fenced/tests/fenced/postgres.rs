//! PostgreSQL.

use std::time::Duration;

use seawall_fenced::{CheckError, PgFence};
use seawall_servers::Server;
use tokio_postgres::{Client, Error};

use super::{fence, is_stale};

const SOON: Duration = Duration::from_secs(60);

async fn open(server: &Server) -> Client {
    let url = format!("postgres://postgres@{}/postgres", server.addr());
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn write(client: &mut Client, token: u64, balance: i64) -> Result<(), CheckError<Error>> {
    let transaction = client.transaction().await.unwrap();
    PgFence::check(&transaction, "account", fence(token)).await?;
    transaction.execute("UPDATE account SET balance = $1", &[&balance]).await.unwrap();
    transaction.commit().await.unwrap();
    Ok(())
}

async fn balance(client: &Client) -> i64 {
    client.query_one("SELECT balance FROM account", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smaller_token_is_refused_also_after_a_restart() {
    let mut server = Server::postgres();
    let mut makers = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let client = open(&server).await;
        makers.spawn(async move { PgFence::create_table(&client).await });
    }
    while let Some(made) = makers.join_next().await {
        made.unwrap().unwrap();
    }
    let mut client = open(&server).await;
    client.batch_execute("CREATE TABLE account (balance bigint); INSERT INTO account VALUES (0)").await.unwrap();
    write(&mut client, 7, 70).await.unwrap();
    write(&mut client, 7, 71).await.unwrap();
    write(&mut client, 9, 90).await.unwrap();
    is_stale(write(&mut client, 8, 80).await, 9, 8);
    assert_eq!(balance(&client).await, 90);

    // What is rolled back leaves no token.
    let transaction = client.transaction().await.unwrap();
    PgFence::check(&transaction, "account", fence(20)).await.unwrap();
    transaction.rollback().await.unwrap();
    write(&mut client, 10, 100).await.unwrap();

    // One that comes while a later holder's transaction is open waits for it, and is judged by what it leaves.
    let mut other = open(&server).await;
    let transaction = client.transaction().await.unwrap();
    PgFence::check(&transaction, "account", fence(12)).await.unwrap();
    let late = tokio::spawn(async move { write(&mut other, 11, 110).await });
    let watcher = open(&server).await;
    tokio::time::timeout(SOON, async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        while watcher.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it waits for the row");
    transaction.execute("UPDATE account SET balance = 120", &[]).await.unwrap();
    transaction.commit().await.unwrap();
    is_stale(late.await.unwrap(), 12, 11);

    server.restart();
    let mut client = open(&server).await;
    is_stale(write(&mut client, 11, 110).await, 12, 11);
    assert_eq!(balance(&client).await, 120);
    let transaction = client.transaction().await.unwrap();
    for (resource, token) in [("", 1), ("a", u64::MAX)] {
        let error = PgFence::check(&transaction, resource, fence(token)).await.unwrap_err();
        assert!(matches!(error, CheckError::Invalid(_)), "{error}");
    }
}
