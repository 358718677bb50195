//! Starting etcd.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};

/// What it writes when it serves; the address follows.
const READY: &str = "serving insecure client requests on ";

pub(crate) fn start(dir: &Path, addr: Option<SocketAddr>, args: &[String]) -> (Child, SocketAddr) {
    // It chooses a port itself the first time, so that nobody else can take it in between.
    let clients = format!("http://127.0.0.1:{}", addr.map_or(0, |addr| addr.port()));
    let peers = "http://127.0.0.1:0";
    let mut command = Command::new("etcd");
    command.args(["--name", "t", "--data-dir"]).arg(dir.join("data"));
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]);
    command.args(["--initial-cluster", &format!("t={peers}")]);
    command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
    command.args(args).current_dir(dir);
    let mut child = super::spawn(&mut command, "etcd-server", dir);
    let addr = super::until(&mut child, dir, |log| {
        let rest = log.split(READY).nth(1)?;
        let addr: SocketAddr = rest.split([',', '\n', ' ']).next()?.parse().ok()?;
        super::listens(addr).then_some(addr)
    });
    (child, addr)
}

#[cfg(test)]
mod tests {
    use crate::Server;

    #[test]
    fn it_starts_again_at_the_same_address() {
        let mut server = Server::etcd();
        let addr = server.addr();
        server.restart();
        assert_eq!(server.addr(), addr);
        assert!(super::super::listens(addr));
        server.kill9();
        assert!(!super::super::listens(addr));
    }
}
