//! Benchmarks beside the peers: in turns, in one run; medians with minimum and maximum.
//!
//! The measure of the proxies, real processes all, is the processor time that one spends on a request: on a small, shared
//! machine it is steadier than requests per second, which also measure the load generator. That of the policies is the
//! time of a call, from samples that nothing disturbed. A figure from another run or machine compares to nothing.

mod coord;
mod noise;
mod proxy;
mod resilience;
pub(crate) mod table;

use std::io::Write as _;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The benchmarks that there are.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Name {
    /// The gateway beside nginx and HAProxy, as a plain HTTP/1.1 proxy.
    Proxy,
    /// The policies beside tower's layers, tower-resilience, recloser and failsafe, in one process.
    Resilience,
    /// Locks and durable writes beside etcd, Redis and ZooKeeper, by one client program.
    Coord,
}

pub(crate) fn run(name: Name, rounds: usize, seconds: u64) -> anyhow::Result<()> {
    match name {
        Name::Proxy => proxy::run(rounds.max(1), seconds.max(1)),
        Name::Resilience => resilience::run(rounds.max(1)),
        Name::Coord => coord::run(rounds.max(1), seconds.max(1)),
    }
}

/// A server that costs as little as can be: every request, whatever it asks, gets the same kilobyte.
pub(crate) fn upstream() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(answer(stream));
        }
    })
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let body = format!("{{\"filler\":\"{}\"}}", "x".repeat(1024 - 13));
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    let response = [head.as_bytes(), body.as_bytes()].concat();
    let mut buffer = vec![0; 8192];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        // The generator sends no bodies: a request ends with an empty line.
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            stream.write_all(&response).await?;
        } else if filled == buffer.len() {
            return Ok(());
        }
    }
}
