//! Starting Redis.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};

/// What it writes when it serves.
const READY: &str = "Ready to accept connections";

/// How one of them is started.
#[derive(Clone, Debug)]
pub(crate) struct Redis {
    port: u16,
    more: Vec<String>,
}

impl Redis {
    /// Each at a port of its own, with more arguments.
    pub(crate) fn several(count: usize, more: &[&str]) -> Vec<Self> {
        let more: Vec<String> = more.iter().map(|&word| word.to_owned()).collect();
        super::free_ports(count).into_iter().map(|port| Self { port, more: more.clone() }).collect()
    }
}

impl super::Program for Redis {
    /// Forgets nothing that it has acknowledged, unless the arguments say otherwise.
    fn spawn(&self, dir: &Path, _: Option<SocketAddr>) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--dir"]).arg(dir);
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.args(&self.more).current_dir(dir);
        super::spawn(&mut command, "redis-server", dir)
    }

    fn ready(&self, child: &mut Child, dir: &Path) -> SocketAddr {
        super::until(child, dir, |log| log.contains(READY).then_some(()));
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }
}

#[cfg(test)]
mod tests {
    use crate::Server;

    #[test]
    fn it_starts_again_at_the_same_address() {
        let mut servers = Server::redis_several(2, &[]);
        assert_ne!(servers[0].addr(), servers[1].addr());
        for server in &mut servers {
            let addr = server.addr();
            server.restart();
            assert_eq!(server.addr(), addr);
            assert!(super::super::listens(addr));
        }
    }
}
