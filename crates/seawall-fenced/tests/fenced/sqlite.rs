//! SQLite.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use seawall_fenced::{CheckError, MAX_FENCE, SqliteFence};

use super::{fence, is_stale};

fn open(path: &std::path::Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    SqliteFence::create_table(&connection).unwrap();
    connection.execute("CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, balance INTEGER)", ()).unwrap();
    connection
}

fn write(connection: &mut Connection, token: u64, balance: i64) -> Result<(), CheckError<rusqlite::Error>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    SqliteFence::check(&transaction, "account", fence(token))?;
    transaction.execute("INSERT OR REPLACE INTO account VALUES (1, ?1)", (balance,)).unwrap();
    transaction.commit().unwrap();
    Ok(())
}

fn balance(connection: &Connection) -> i64 {
    connection.query_row("SELECT balance FROM account", (), |row| row.get(0)).unwrap()
}

#[test]
fn a_smaller_token_is_refused_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bank.db");
    let mut connection = open(&path);
    assert_eq!(SqliteFence::highest(&connection, "account").unwrap(), None);
    write(&mut connection, 7, 70).unwrap();
    write(&mut connection, 7, 71).unwrap();
    write(&mut connection, 9, 90).unwrap();
    is_stale(write(&mut connection, 8, 80), 9, 8);
    drop(connection);
    let mut connection = open(&path);
    is_stale(write(&mut connection, 8, 80), 9, 8);
    write(&mut connection, 9, 91).unwrap();
    assert_eq!((balance(&connection), SqliteFence::highest(&connection, "account").unwrap()), (91, Some(fence(9))));
    // Another resource knows nothing of it.
    SqliteFence::check(&connection.transaction().unwrap(), "other", fence(1)).unwrap();
}

#[test]
fn a_transaction_that_is_rolled_back_leaves_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(&dir.path().join("bank.db"));
    SqliteFence::check(&connection.transaction().unwrap(), "account", fence(9)).unwrap();
    write(&mut connection, 8, 80).unwrap();
}

#[test]
fn what_is_no_token_or_resource_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut connection = open(&dir.path().join("bank.db"));
    let transaction = connection.transaction().unwrap();
    for (resource, token) in [("", 1), (&*"x".repeat(513), 1), ("a\0", 1), ("a", MAX_FENCE.get() + 1), ("a", u64::MAX)]
    {
        let error = SqliteFence::check(&transaction, resource, fence(token)).unwrap_err();
        assert!(matches!(error, CheckError::Invalid(_)), "{error}");
    }
    let rows: i64 = transaction.query_row("SELECT count(*) FROM seawall_fence", (), |row| row.get(0)).unwrap();
    assert_eq!(rows, 0);
}

#[test]
fn of_many_writers_at_once_the_largest_token_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bank.db");
    drop(open(&path));
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut connection = open(path);
                for turn in 0..25 {
                    let token = turn * 4 + writer + 1;
                    match write(&mut connection, token, token as i64) {
                        Ok(()) => {}
                        Err(error) => assert!(error.stale().unwrap().seen > fence(token)),
                    }
                }
            });
        }
    });
    let connection = open(&path);
    assert_eq!((balance(&connection), SqliteFence::highest(&connection, "account").unwrap()), (100, Some(fence(100))));
}
