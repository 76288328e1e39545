//! Large values where there is more than one server: each is read by a connection of its own, and
//! its tags, of other servers, in the same read.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use hedgerow::Compression;

use crate::support::server::Server;
use crate::support::wait::until;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn large_values_are_stored_and_read_on_a_cluster() {
    are_stored_and_read(Server::start_on("cluster").await, 2).await;
}

#[tokio::test]
async fn large_values_are_stored_and_read_over_shards() {
    are_stored_and_read(Server::start_on("shards").await, 2).await;
}

#[tokio::test]
async fn large_values_are_stored_and_read_with_sentinels() {
    are_stored_and_read(Server::start_on("sentinel").await, 1).await;
}

/// Where the values are on so many servers at least.
async fn are_stored_and_read(server: Server, servers: usize) {
    let client = server.client().await;
    let cache = client.cache("c").compression(Compression::None);
    let names: Vec<String> = (0..12).map(|number| format!("k{number}")).collect();
    let value = |number: usize| Bytes::from(vec![number as u8; 1 << 20]);
    let tags = |number: usize| [format!("parity {}", number % 2), "all".to_owned()];
    for (number, name) in names.iter().enumerate() {
        let value = value(number);
        let set = cache.set(name, &value, HOUR).tags(tags(number));
        set.await.expect("stored");
    }
    let found = async || {
        join_all(names.iter().map(async |name| {
            let found = cache.get::<Bytes>(name).await.expect("read");
            found.map(|found| Bytes::clone(&found))
        }))
        .await
    };
    let stored: Vec<_> = (0..12).map(|number| Some(value(number))).collect();
    // At first by the shared connections, on which it is seen that they are large.
    until("they are read on connections of their own", async || {
        assert!(found().await == stored);
        let list: String = server.run(&["CLIENT", "LIST"]).await;
        let own = list.lines().filter(|line| line.contains("-large "));
        let reads = |line: &&str| line.contains("cmd=get ") || line.contains("cmd=mget ");
        own.filter(reads).count() >= servers
    })
    .await;
    assert!(found().await == stored);
    let invalidate = cache.invalidate_tags(["parity 1"]);
    invalidate.await.expect("invalidated");
    for (number, found) in found().await.into_iter().enumerate() {
        assert_eq!(found.is_some(), number % 2 == 0, "{number}");
    }
    cache.clear().await.expect("cleared");
    assert!(found().await.iter().all(Option::is_none));
}
