//! What the servers of an ensemble say about themselves, for the message when none has opened a session.

use std::io::{Error, ErrorKind};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long each may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most that is read.
const MOST: usize = 4096;

/// A sentence about each, asked one after the other.
pub(super) async fn of(servers: &str) -> String {
    let mut said = Vec::new();
    for server in servers.split(',') {
        let addr = if server.contains(':') { server.to_owned() } else { format!("{server}:2181") };
        let what = match timeout(PATIENCE, ask(&addr)).await {
            Ok(Ok(answer)) => judge(&answer).to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "does not answer".to_owned(),
        };
        said.push(format!("{server}: {what}"));
    }
    said.join("; ")
}

/// The only one of its four-letter words that is allowed everywhere.
async fn ask(addr: &str) -> Result<String, Error> {
    let stream = TcpStream::connect(addr).await?;
    stream.writable().await?;
    stream.try_write(b"srvr")?;
    let mut answer = Vec::new();
    while answer.len() < MOST {
        stream.readable().await?;
        let mut buffer = [0; 512];
        match stream.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn judge(answer: &str) -> &'static str {
    if answer.contains("Mode: read-only") {
        "only reads, as it has lost the majority of its ensemble"
    } else if answer.contains("not currently serving") {
        "does not serve, as it has no majority of its ensemble"
    } else if answer.contains("Mode: ") || answer.contains("whitelist") {
        "runs"
    } else {
        "answers as no ZooKeeper does"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        for (answer, says) in [
            ("READ-ONLY mode; ...\nMode: read-only\n", "only reads"),
            ("This ZooKeeper instance is not currently serving requests\n", "majority"),
            ("Zxid: 0x0\nMode: standalone\n", "runs"),
            ("srvr is not executed because it is not in the whitelist.\n", "runs"),
            ("HTTP/1.1 400 Bad Request\r\n", "no ZooKeeper"),
            ("", "no ZooKeeper"),
        ] {
            assert!(judge(answer).contains(says), "{answer}");
        }
    }
}
