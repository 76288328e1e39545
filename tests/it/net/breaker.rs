//! The circuit breaker on servers that are well for some callers and not for others.

use std::future::IntoFuture as _;
use std::time::Duration;

use futures::poll;
use hedgerow::{Client, ErrorKind};

use crate::support::server::{Server, signal};
use crate::support::topology::Cluster;
use crate::support::wait::{bounded, until};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_server_that_says_try_again_is_not_out() {
    let cluster = Cluster::start(2, 0).await;
    let seeds = cluster.primaries().iter().map(|node| node.url());
    let builder = Client::builder().cluster(seeds);
    // Three calls in a row are told to try again until their deadlines.
    let builder = builder.deadline(Duration::from_millis(400));
    let client = builder.connect().await.expect("good seeds");
    let slot = hedgerow::key::slot(b"hr:c:{views}");
    let target = 1 - cluster.owner_of(slot).await;
    let migration = cluster.migrate(slot, target).await;

    let cache = client.cache("c");
    let mut served = Vec::new();
    for number in 0..64 {
        let key = format!("k{number}");
        if cluster
            .owner_of(hedgerow::key::slot(format!("{{c:{key}}}").as_bytes()))
            .await
            == target
        {
            served.push(key);
        }
    }
    // All parts of what the cache needs are there before the calls in question.
    for key in &served {
        cache.set(key, &7, MINUTE).await.expect("stored");
    }
    for round in 0..5 {
        let counter = client.counter("views");
        let add = counter.add(1).once(&format!("event {round}"), MINUTE);
        let error = add.await.expect_err("the slot is on its way");
        assert_eq!(error.kind(), ErrorKind::ClusterDown, "{error}");
        assert!(error.is_retryable(), "{error}");
    }
    let told = migration
        .target()
        .info("errorstats", "errorstat_TRYAGAIN")
        .await;
    assert!(!told.is_empty(), "the target says so");
    for key in &served {
        let found = cache
            .get::<i32>(key)
            .await
            .expect("served by a healthy server");
        assert_eq!(found.as_deref(), Some(&7));
    }
    migration.finish().await;
    client.counter("views").add(1).await.expect("moved");
}

#[tokio::test]
async fn a_probe_that_is_kept_and_not_polled_stands_in_nobodys_way() {
    let server = Server::start_single().await;
    let builder = server.builder().cache_deadline(Duration::from_millis(300));
    let client = builder.open().expect("a good URL");
    let cache = client.cache("c");
    cache.set("k", &7, MINUTE).await.expect("stored");
    let pid = server.pid().await;
    signal(pid, "STOP");
    let asked = async || cache.get::<i32>("k").await.map_err(|error| error.kind());
    until("the breaker opens", async || {
        asked().await == Err(ErrorKind::CircuitOpen)
    })
    .await;
    let mut probe = cache.get::<i32>("k").into_future();
    bounded("one is let through", async {
        while poll!(&mut probe).is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            probe = cache.get::<i32>("k").into_future();
        }
    })
    .await;
    assert_eq!(asked().await, Err(ErrorKind::CircuitOpen), "one at a time");
    signal(pid, "CONT");
    until("another is let through", async || asked().await.is_ok()).await;
    drop(probe);
}
