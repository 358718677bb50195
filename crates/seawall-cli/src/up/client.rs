//! `seawall status|stop|start|restart|reload`: asking a running `seawall up`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::supervisor::{Row, table};
use crate::{config, process};

#[derive(clap::Args)]
pub(crate) struct StatusArgs {
    /// The file that `seawall up` runs.
    #[arg(long, short, default_value = "seawall.yaml")]
    config: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct ServiceArgs {
    /// The service.
    service: String,
    /// The file that `seawall up` runs.
    #[arg(long, short, default_value = "seawall.yaml")]
    config: PathBuf,
    /// With `stop`: kill -9, without draining.
    #[arg(long)]
    kill: bool,
}

pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let answer = ask(&args.config, Method::GET, "/status")?;
    if args.json {
        println!("{answer}");
    } else {
        let rows: Vec<Row> = serde_json::from_str(&answer)?;
        println!("{}", table(&rows, false));
    }
    Ok(())
}

#[derive(clap::Args)]
pub(crate) struct ReloadArgs {
    /// The file that `seawall up` runs.
    #[arg(long, short, default_value = "seawall.yaml")]
    config: PathBuf,
}

/// The file is checked here first: with a mistake in it nobody is asked.
pub(crate) fn reload(args: &ReloadArgs) -> anyhow::Result<()> {
    config::load::load(&args.config)?;
    println!("{}", ask(&args.config, Method::POST, "/reload")?);
    Ok(())
}

/// Every part that can be asked about its policies: its name, and where.
pub(crate) fn admins(config: &std::path::Path) -> anyhow::Result<Vec<(String, SocketAddr)>> {
    let rows: Vec<Row> = serde_json::from_str(&ask(config, Method::GET, "/status")?)?;
    Ok(rows.into_iter().filter_map(|row| Some((row.name, row.admin?))).collect())
}

pub(crate) fn service(action: &str, args: &ServiceArgs) -> anyhow::Result<()> {
    let kill = if args.kill { "?kill=true" } else { "" };
    println!("{}", ask(&args.config, Method::POST, &format!("/services/{}/{action}{kill}", args.service))?);
    Ok(())
}

fn ask(file: &std::path::Path, method: Method, path: &str) -> anyhow::Result<String> {
    let socket = config::load::data(file)?.join("up.sock");
    process::runtime()?.block_on(async {
        let stream = UnixStream::connect(&socket).await;
        let stream = stream.with_context(|| format!("no `seawall up` is running on {}", file.display()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "up").body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await.context("`seawall up` went away")?;
        let status = response.status();
        let text = String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned();
        anyhow::ensure!(status.is_success(), "{text}");
        Ok(text)
    })
}
