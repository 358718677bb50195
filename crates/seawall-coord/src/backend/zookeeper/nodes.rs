//! Where everything is: URLs, paths, and the order of a queue.

use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::backend::BackendError;
use crate::name::{LockName, Token};

/// Unless the URL says otherwise.
const PREFIX: &str = "/seawall";
/// What a path of ZooKeeper's may not hold, or means something here; and all that is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%').add(b'/');
/// As Curator names its nodes.
const BEGIN: &str = "_c_";
const MIDDLE: &str = "-lock-";

/// An ensemble, and where in it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// As the client wants them.
    pub(super) servers: String,
    pub(super) name: Arc<str>,
    prefix: Arc<str>,
}

impl Place {
    /// Of an URL.
    pub(super) fn parse(url: &str) -> Result<Self, BackendError> {
        let refused = |why: &str| BackendError::Refused {
            backend: "ZooKeeper".into(),
            why: format!("`{url}` is none of its URLs: {why}; one looks like `zookeeper://host:2181,host:2181/prefix`"),
        };
        let rest = url.strip_prefix("zookeeper://").ok_or_else(|| refused("it begins differently"))?;
        let (servers, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        for server in servers.split(',') {
            let (host, port) = server.rsplit_once(':').unwrap_or((server, "2181"));
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(refused("a server is a host and perhaps a port"));
            }
        }
        let prefix = prefix.trim_end_matches('/');
        let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.chars().any(char::is_control);
        if prefix.split('/').skip(1).any(bad) || prefix == "/zookeeper" || prefix.starts_with("/zookeeper/") {
            return Err(refused("its prefix is no path for others' nodes"));
        }
        let prefix = if prefix.is_empty() { PREFIX } else { prefix };
        Ok(Self { servers: servers.to_owned(), name: format!("ZooKeeper at {servers}").into(), prefix: prefix.into() })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The node below which those of a kind are: `lock` or `elect`.
    pub(super) fn directory(&self, kind: &str) -> String {
        format!("{}/{kind}", self.prefix)
    }

    /// The node of a lock, below which its queue is.
    pub(super) fn queue(&self, name: &LockName) -> String {
        let (kind, name) = match name.election() {
            Some(name) => ("elect", name),
            None => ("lock", name.as_str()),
        };
        let name = match name {
            // These two are no names for it.
            "." => "%2E".to_owned(),
            ".." => "%2E%2E".to_owned(),
            name => utf8_percent_encode(name, ENCODED).to_string(),
        };
        format!("{}/{name}", self.directory(kind))
    }

    pub(super) fn down(&self, why: impl fmt::Display) -> BackendError {
        BackendError::Down { backend: self.name.to_string(), why: why.to_string() }
    }

    pub(super) fn refused(&self, why: impl fmt::Display) -> BackendError {
        BackendError::Refused { backend: self.name.to_string(), why: why.to_string() }
    }
}

/// A place in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) path: String,
    /// The server numbers them in the order in which they are made.
    number: i64,
    /// Where its name begins.
    name: usize,
}

impl Node {
    /// Whether it was made with this token.
    pub(super) fn is_of(&self, token: &Token) -> bool {
        let rest = self.path[self.name..].strip_prefix(BEGIN);
        rest.and_then(|rest| rest.split_once(MIDDLE)).is_some_and(|(own, _)| own == token.to_string())
    }
}

/// The path of a claim, to which the server adds a number.
pub(super) fn prefix(dir: &str, token: &Token) -> String {
    format!("{dir}/{BEGIN}{token}{MIDDLE}")
}

/// The nodes of a queue in its order. What is no place in a queue, because somebody else put it there, is left out.
pub(super) fn sorted(dir: &str, children: &[String]) -> Vec<Node> {
    let node = |child: &String| {
        let (_, number) = child.rsplit_once(MIDDLE)?;
        Some(Node { path: format!("{dir}/{child}"), number: number.parse().ok()?, name: dir.len() + 1 })
    };
    let mut nodes: Vec<Node> = children.iter().filter_map(node).collect();
    // The server counts in 32 bits with a sign: after the largest comes the smallest.
    if nodes.iter().any(|node| node.number > i64::from(i32::MAX / 2)) {
        nodes.iter_mut().filter(|node| node.number < 0).for_each(|node| node.number += 1 << 32);
    }
    nodes.sort_by(|a, b| a.number.cmp(&b.number).then_with(|| a.path.cmp(&b.path)));
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked() {
        let place = Place::parse("zookeeper://a:2181,b/some/where/").unwrap();
        assert_eq!((&*place.servers, place.prefix()), ("a:2181,b", "/some/where"));
        assert_eq!(Place::parse("zookeeper://a").unwrap().prefix(), PREFIX);
        for bad in [
            "zk://a",
            "zookeeper://",
            "zookeeper://a,,b",
            "zookeeper://a:x",
            "zookeeper://a/b//c",
            "zookeeper://a/.",
            "zookeeper://a/zookeeper",
        ] {
            let error = Place::parse(bad).unwrap_err().to_string();
            assert!(error.contains("zookeeper://host:2181"), "{error}");
        }
    }

    #[test]
    fn every_name_is_a_path_of_its_own() {
        let place = Place::parse("zookeeper://a").unwrap();
        let path = |name: &str| place.queue(&LockName::try_new(name).unwrap());
        assert_eq!(path("payment-7"), "/seawall/lock/payment-7");
        assert_eq!(path("."), "/seawall/lock/%2E");
        assert_eq!(path(".."), "/seawall/lock/%2E%2E");
        assert_eq!(path("%2E"), "/seawall/lock/%252E");
        assert_eq!(path("ü\u{fff0}"), "/seawall/lock/%C3%BC%EF%BF%B0");
    }

    #[test]
    fn a_queue_is_in_the_order_of_its_numbers() {
        let token = Token::random();
        let own = format!("_c_{token}-lock-0000000002");
        let children = [own.as_str(), "x", "_c_a-lock-0000000010", "_c_b-lock-0000000001", "_c_-lock-x"];
        let nodes = sorted("/d", &children.map(str::to_owned));
        let paths: Vec<_> = nodes.iter().map(|node| &*node.path).collect();
        assert_eq!(paths, ["/d/_c_b-lock-0000000001", &format!("/d/{own}"), "/d/_c_a-lock-0000000010"]);
        assert_eq!(nodes.iter().map(|node| node.is_of(&token)).collect::<Vec<_>>(), [false, true, false]);
        let children = ["_c_b-lock--2147483648", "_c_a-lock-2147483647", "_c_c-lock--2147483647"];
        let nodes = sorted("/d", &children.map(str::to_owned));
        let names: Vec<_> = nodes.iter().map(|node| &node.path[6..7]).collect();
        assert_eq!(names, ["a", "b", "c"], "the count has gone round");
    }
}
