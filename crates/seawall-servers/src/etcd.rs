//! Starting etcd.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};

/// What it writes when it serves; the address follows.
const READY: &str = "serving insecure client requests on ";

/// How one of them is started.
#[derive(Clone, Debug)]
pub(crate) struct Etcd {
    name: String,
    /// Where the other members reach it.
    peer: String,
    /// All members, as etcd wants them.
    cluster: String,
    more: Vec<String>,
}

impl Etcd {
    /// A cluster of one.
    pub(crate) fn alone(more: &[&str]) -> Self {
        let peer = "http://127.0.0.1:0".to_owned();
        Self { name: "m0".into(), cluster: format!("m0={peer}"), peer, more: owned(more) }
    }

    /// The members of a cluster.
    pub(crate) fn cluster(count: usize) -> Vec<Self> {
        let named = |(at, port)| (format!("m{at}"), format!("http://127.0.0.1:{port}"));
        let members: Vec<_> = super::free_ports(count).into_iter().enumerate().map(named).collect();
        let cluster: Vec<_> = members.iter().map(|(name, peer)| format!("{name}={peer}")).collect();
        let cluster = cluster.join(",");
        members
            .into_iter()
            .map(|(name, peer)| Self { name, peer, cluster: cluster.clone(), more: Vec::new() })
            .collect()
    }
}

impl super::Program for Etcd {
    /// It chooses a port for its clients itself the first time, so that nobody else can take it in between.
    fn spawn(&self, dir: &Path, addr: Option<SocketAddr>) -> Child {
        let clients = format!("http://127.0.0.1:{}", addr.map_or(0, |addr| addr.port()));
        let mut command = Command::new("etcd");
        command.args(["--name", &self.name, "--data-dir"]).arg(dir.join("data"));
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &self.peer, "--initial-advertise-peer-urls", &self.peer]);
        command.args(["--initial-cluster", &self.cluster]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command.args(&self.more).current_dir(dir);
        super::spawn(&mut command, "etcd-server", dir)
    }

    fn ready(&self, child: &mut Child, dir: &Path) -> SocketAddr {
        super::until(child, dir, |log| {
            let rest = log.split(READY).nth(1)?;
            let addr: SocketAddr = rest.split([',', '\n', ' ']).next()?.parse().ok()?;
            super::listens(addr).then_some(addr)
        })
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
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

    #[test]
    fn a_member_of_a_cluster_starts_again() {
        let mut cluster = Server::etcd_cluster(3);
        let addr = cluster[1].addr();
        cluster[1].restart();
        assert_eq!(cluster[1].addr(), addr);
    }
}
