//! Starting ZooKeeper.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// Where Debian keeps its libraries, and those that it needs. With all that are there it finds several loggers and dies.
const LIBRARIES: &str = "/usr/share/java";
const NEEDED: &[&str] = &[
    "zookeeper",
    "zookeeper-jute",
    "slf4j-api",
    "slf4j-nop",
    "netty-all",
    "netty-buffer",
    "netty-codec",
    "netty-common",
    "netty-handler",
    "netty-resolver",
    "netty-transport",
    "netty-transport-native-epoll",
    "netty-transport-native-unix-common",
    "snappy-java",
    "metrics-core",
    "commons-cli",
    "commons-io",
    "jackson-annotations",
    "jackson-core",
    "jackson-databind",
    "jetty9-server",
    "jetty9-servlet",
    "jetty9-util",
];
/// Its unit of time, in milliseconds: a session lives for 2 to 20 of them.
const TICK: u32 = 250;

/// How one of them is started.
#[derive(Clone, Debug)]
pub(crate) struct ZooKeeper {
    port: u16,
    /// Its number among the members; there is none for one alone.
    member: Option<usize>,
    /// The members, as it wants them.
    ensemble: String,
}

impl ZooKeeper {
    /// One alone.
    pub(crate) fn alone() -> Self {
        Self { port: super::free_ports(1)[0], member: None, ensemble: String::new() }
    }

    /// The members of an ensemble. One without a majority serves those who only read.
    pub(crate) fn ensemble(count: usize) -> Vec<Self> {
        let ports = super::free_ports(3 * count);
        let mut ensemble = "initLimit=40\nsyncLimit=8\n".to_owned();
        for (member, ports) in ports.chunks(3).enumerate() {
            let _ = writeln!(ensemble, "server.{}=127.0.0.1:{}:{}", member + 1, ports[1], ports[2]);
        }
        let member = |(member, ports): (usize, &[u16])| Self {
            port: ports[0],
            member: Some(member + 1),
            ensemble: ensemble.clone(),
        };
        ports.chunks(3).enumerate().map(member).collect()
    }

    fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// What it says about itself.
    fn status(&self) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.addr(), Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.write_all(b"srvr").ok()?;
        let mut status = String::new();
        stream.read_to_string(&mut status).ok()?;
        Some(status)
    }
}

impl super::Program for ZooKeeper {
    fn spawn(&self, dir: &Path, _addr: Option<SocketAddr>) -> Child {
        let data = dir.join("data");
        std::fs::create_dir_all(&data).expect("a directory can be made");
        let Self { port, ensemble, .. } = self;
        let config = format!(
            "tickTime={TICK}\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\n\
             4lw.commands.whitelist=srvr\nadmin.enableServer=false\n{ensemble}",
            data.display()
        );
        std::fs::write(dir.join("zoo.cfg"), config).expect("its configuration can be written");
        if let Some(member) = self.member {
            std::fs::write(data.join("myid"), member.to_string()).expect("its number can be written");
        }
        let path: Vec<_> = NEEDED.iter().map(|name| format!("{LIBRARIES}/{name}.jar")).collect();
        assert!(
            Path::new(&path[0]).exists(),
            "there is no {}; the Debian package is zookeeper, and `cargo xtask test` installs it",
            path[0]
        );
        let mut command = Command::new("java");
        command.args([
            "-Xmx128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dzookeeper.admin.enableServer=false",
        ]);
        command.args(["-Dreadonlymode.enabled=true", "-cp", &path.join(":")]);
        command.args(["org.apache.zookeeper.server.quorum.QuorumPeerMain"]).arg(dir.join("zoo.cfg")).current_dir(dir);
        super::spawn(&mut command, "zookeeper", dir)
    }

    fn ready(&self, child: &mut Child, dir: &Path) -> SocketAddr {
        // Written by one that serves; one that waits for a majority says that it does not.
        let serves = |status: &str| status.contains("Mode: ") && !status.contains("Mode: read-only");
        super::until(child, dir, |_| self.status().filter(|status| serves(status)).map(|_| self.addr()))
    }
}

#[cfg(test)]
mod tests {
    use crate::Server;

    #[test]
    fn it_starts_again_at_the_same_address() {
        let mut server = Server::zookeeper();
        let addr = server.addr();
        server.restart();
        assert_eq!(server.addr(), addr);
        server.kill9();
        assert!(!super::super::listens(addr));
    }

    #[test]
    fn a_member_of_an_ensemble_starts_again() {
        let mut ensemble = Server::zookeeper_ensemble(3);
        let addr = ensemble[1].addr();
        ensemble[1].restart();
        assert_eq!(ensemble[1].addr(), addr);
    }
}
