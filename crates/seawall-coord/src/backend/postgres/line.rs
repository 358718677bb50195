//! Connections to a server: few, each for one statement at a time, none used again after an error of its own.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Row, Socket, tls::NoTlsStream};

use crate::backend::BackendError;
use crate::backend::home::Home;

/// How long one call may take, a new connection included.
pub(super) const CALL: Duration = Duration::from_secs(5);
/// How long one connection may take to be made.
const CONNECT: Duration = Duration::from_secs(3);

/// Where a server is, and how to say so without its password.
#[derive(Clone)]
pub(super) struct Place {
    config: Config,
    pub(super) name: String,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Place {
    /// Of an URL.
    pub(super) fn parse(url: &str) -> Result<Self, BackendError> {
        let refused = |why: String| BackendError::Refused { backend: "PostgreSQL".into(), why };
        let mut config: Config = url.parse().map_err(|error| {
            let error = std::error::Error::source(&error).map_or_else(|| format!("{error}"), ToString::to_string);
            refused(format!("the URL is none of its: {error}"))
        })?;
        let hosts: Vec<_> = config.get_hosts().iter().map(host).collect();
        let ports = config.get_ports();
        let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
        let hosts: Vec<_> = hosts.iter().enumerate().map(|(at, host)| format!("{host}:{}", port(at))).collect();
        if hosts.is_empty() {
            return Err(refused("the URL names no host".into()));
        }
        if config.get_ssl_mode() == SslMode::Require {
            return Err(refused("the URL requires TLS, which is not spoken here".into()));
        }
        let name = format!("PostgreSQL at {}", hosts.join(","));
        if hosts.len() > 1 {
            // Of several the one that writes.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        // A line that was cut without a word is found within seconds.
        config.connect_timeout(CONNECT).tcp_user_timeout(CALL);
        config
            .keepalives_idle(Duration::from_secs(1))
            .keepalives_interval(Duration::from_secs(1))
            .keepalives_retries(3);
        if config.get_application_name().is_none() {
            config.application_name("seawall");
        }
        Ok(Self { config, name })
    }

    pub(super) fn down(&self, why: impl fmt::Display) -> BackendError {
        BackendError::Down { backend: self.name.clone(), why: why.to_string() }
    }

    pub(super) fn refused(&self, why: impl fmt::Display) -> BackendError {
        BackendError::Refused { backend: self.name.clone(), why: why.to_string() }
    }

    pub(super) fn no_session(&self) -> BackendError {
        BackendError::NoSession { backend: self.name.clone() }
    }

    /// Makes a connection. On the runtime that is to serve it.
    pub(super) async fn connect(&self) -> Result<(Client, Connection<Socket, NoTlsStream>), BackendError> {
        match timeout(CONNECT, self.config.connect(NoTls)).await {
            Ok(Ok(connected)) => Ok(connected),
            // Nothing of ours was sent.
            Ok(Err(error)) => Err(self.error(&error, Doing::Read)),
            Err(_) => Err(self.down(format!("no connection within {CONNECT:?}"))),
        }
    }

    /// What an error means for a statement that was sent.
    pub(super) fn error(&self, error: &tokio_postgres::Error, doing: Doing) -> BackendError {
        let Some(answer) = error.as_db_error() else {
            let cause = std::error::Error::source(error);
            let why = cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
            return self.unanswered(doing, why);
        };
        let (code, text) = (answer.code(), answer.message());
        let said = format!("{text} ({})", code.code());
        match code {
            &SqlState::READ_ONLY_SQL_TRANSACTION => {
                self.down(format!("it only reads, as a standby does: {said}; name the primary"))
            }
            &SqlState::DISK_FULL => self.down(format!("its disk is full: {said}")),
            &SqlState::TOO_MANY_CONNECTIONS => self.down(format!("it has no connection to spare: {said}")),
            // It may be that it was committed here and only not by the standbys.
            &SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN => self.unanswered(doing, said),
            &SqlState::FOREIGN_KEY_VIOLATION => self.no_session(),
            // Refused before anything was done: resources, conflicts with others, operators.
            _ if ["53", "40", "55", "57", "58", "08"].contains(&&code.code()[..2]) => self.down(said),
            _ => self.refused(said),
        }
    }

    pub(super) fn unanswered(&self, doing: Doing, why: String) -> BackendError {
        match doing {
            Doing::Read => self.down(why),
            Doing::Write => BackendError::Unknown { backend: self.name.clone(), why },
        }
    }
}

fn host(host: &Host) -> String {
    match host {
        Host::Tcp(host) => host.clone(),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    }
}

/// What a statement does: one that only reads has done nothing when its answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Read,
    Write,
}

/// A statement's parameter.
#[derive(Clone, Debug)]
pub(super) enum Param {
    Text(String),
    Int(i64),
}

impl From<&str> for Param {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Param {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Param {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

/// Runs a statement without a name for it, so that a pooler between may do as it likes.
pub(super) async fn query(client: &Client, sql: &str, params: &[Param]) -> Result<Vec<Row>, tokio_postgres::Error> {
    let params: Vec<(&(dyn ToSql + Sync), Type)> = params
        .iter()
        .map(|param| match param {
            Param::Text(text) => (text as &(dyn ToSql + Sync), Type::TEXT),
            Param::Int(number) => (number as &(dyn ToSql + Sync), Type::INT8),
        })
        .collect();
    client.query_typed(sql, &params).await
}

/// An open connection; the socket is closed when it is dropped.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) client: Client,
    driver: AbortHandle,
    ended: watch::Receiver<()>,
}

/// Learns of a connection's end.
#[derive(Clone, Debug)]
pub(super) struct Ended(watch::Receiver<()>);

impl Ended {
    pub(super) async fn wait(&mut self) {
        // Nothing is ever sent; the sender goes with the connection.
        while self.0.changed().await.is_ok() {}
    }
}

impl Line {
    /// A connection whose messages are read by a task of the current runtime.
    pub(super) fn new(client: Client, mut connection: Connection<Socket, NoTlsStream>) -> Self {
        let (lives, ended) = watch::channel(());
        let driver = tokio::spawn(async move {
            let _lives = lives;
            while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message {
                    tracing::debug!(notice = notice.message(), "PostgreSQL says");
                }
            }
        });
        Self { client, driver: driver.abort_handle(), ended }
    }

    /// Closes the socket now, whoever still holds this.
    pub(super) fn end(&self) {
        self.driver.abort();
    }

    pub(super) fn ended(&self) -> Ended {
        Ended(self.ended.clone())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.end();
    }
}

/// A few connections that are made when they are needed.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    home: Home,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    place: Place,
    /// Run on every new connection.
    greeting: &'static str,
    free: Semaphore,
    idle: Mutex<Vec<Line>>,
}

impl Pool {
    /// At most `size` connections, each of which begins with `greeting`.
    pub(super) fn new(home: Home, place: Place, size: usize, greeting: &'static str) -> Self {
        let inner = Inner { place, greeting, free: Semaphore::new(size), idle: Mutex::default() };
        Self { home, inner: Arc::new(inner) }
    }

    pub(super) fn place(&self) -> &Place {
        &self.inner.place
    }

    /// One statement, by itself a transaction. Goes on when the future is dropped.
    pub(super) async fn query(
        &self,
        doing: Doing,
        sql: &'static str,
        params: Vec<Param>,
    ) -> Result<Vec<Row>, BackendError> {
        let inner = self.inner.clone();
        let running = self.home.spawn(async move { inner.query(doing, sql, &params).await });
        running.await.unwrap_or_else(|_| Err(self.inner.place.unanswered(doing, "its thread has ended".into())))
    }

    /// A write, and a statement that reads after it, in one go. The reading may fail by itself, as `None`.
    pub(super) async fn query_then(
        &self,
        write: (&'static str, Vec<Param>),
        read: (&'static str, Vec<Param>),
    ) -> Result<(Vec<Row>, Option<Vec<Row>>), BackendError> {
        let inner = self.inner.clone();
        let running = self.home.spawn(async move {
            inner
                .with_line(Doing::Write, async |client| {
                    // Sent in this order, and so done in it; each is a transaction by itself.
                    let (written, read) =
                        tokio::join!(query(client, write.0, &write.1), query(client, read.0, &read.1));
                    Ok((written?, read.ok()))
                })
                .await
        });
        running.await.unwrap_or_else(|_| Err(self.inner.place.unanswered(Doing::Write, "its thread has ended".into())))
    }

    /// Statements without parameters or answers, together one transaction.
    pub(super) async fn batch(&self, sql: &'static str) -> Result<(), BackendError> {
        let inner = self.inner.clone();
        let running = self.home.spawn(async move {
            let end = Instant::now() + CALL;
            let line = inner.line(end).await?;
            let done = timeout_at(end, line.client.batch_execute(sql)).await;
            let done = done.map_err(|_| inner.place.unanswered(Doing::Write, format!("no answer within {CALL:?}")))?;
            done.map_err(|error| inner.place.error(&error, Doing::Write))?;
            inner.put_back(line);
            Ok(())
        });
        running.await.unwrap_or_else(|_| Err(self.inner.place.unanswered(Doing::Write, "its thread has ended".into())))
    }
}

impl Inner {
    async fn query(&self, doing: Doing, sql: &str, params: &[Param]) -> Result<Vec<Row>, BackendError> {
        self.with_line(doing, async |client| query(client, sql, params).await).await
    }

    async fn with_line<T>(
        &self,
        doing: Doing,
        call: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, BackendError> {
        let end = Instant::now() + CALL;
        let Ok(permit) = timeout_at(end, self.free.acquire()).await else {
            return Err(self.place.down(format!("all connections were busy for {CALL:?}")));
        };
        let line = self.line(end).await?;
        let answer = match timeout_at(end, call(&line.client)).await {
            Ok(Ok(answer)) => Ok(answer),
            // An answer that says no is the server's; the connection is as good as before.
            Ok(Err(error)) if error.as_db_error().is_some() => Err(self.place.error(&error, doing)),
            Ok(Err(error)) => return Err(self.place.error(&error, doing)),
            Err(_) => return Err(self.place.unanswered(doing, format!("no answer within {CALL:?}"))),
        };
        self.put_back(line);
        drop(permit);
        answer
    }

    fn put_back(&self, line: Line) {
        if !line.client.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    }

    async fn line(&self, end: Instant) -> Result<Line, BackendError> {
        while let Some(line) = { self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() } {
            if !line.client.is_closed() {
                return Ok(line);
            }
        }
        let (client, connection) = self.place.connect().await?;
        let line = Line::new(client, connection);
        match timeout_at(end, line.client.batch_execute(self.greeting)).await {
            Ok(Ok(())) => Ok(line),
            Ok(Err(error)) => Err(self.place.error(&error, Doing::Read)),
            Err(_) => Err(self.place.down(format!("no answer within {CALL:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_without_its_password() {
        let place = Place::parse("postgres://me:secret@a:5433,b:5434/db").unwrap();
        assert_eq!(format!("{place:?}"), "PostgreSQL at a:5433,b:5434");
        for (bad, says) in [
            ("postgres://a:x/db", "none of its"),
            ("postgres:///db", "no host"),
            ("postgres://a/db?sslmode=require", "TLS"),
        ] {
            let error = Place::parse(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
