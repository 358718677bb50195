//! Backends by their address.

use seawall_coord::{AnyLocks, LocksUrl, Need, Session};
use seawall_servers::Server;

use crate::{SOON, config, name};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_and_zookeeper_are_found_by_their_addresses() {
    let (postgres, zookeeper) = (Server::postgres(), Server::zookeeper());
    let rows = crate::postgres::url(postgres.addr());
    let advisory = rows.replace("postgres://", "postgres+advisory://");
    for (url, need, fenced) in [
        (rows, Need::Fence, true),
        (advisory, Need::Lease, false),
        (crate::zookeeper::url(zookeeper.addr()), Need::Fence, true),
    ] {
        let url: LocksUrl = url.parse().unwrap();
        let backend = AnyLocks::open(&url, need).await.unwrap();
        let session = Session::open(backend, config("a", 5_000)).await.unwrap();
        let guard = session.lock(name("x")).acquire_within(SOON).await.unwrap();
        assert_eq!(guard.token().is_some(), fenced, "{url}");
        assert!(session.lock(name("x")).try_acquire().await.unwrap().is_none());
        guard.release().await.unwrap();
        session.close().await.unwrap();
    }
}
