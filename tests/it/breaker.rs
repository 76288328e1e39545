//! The circuit breaker on servers that are well for some callers and not for others.

use std::time::Duration;

use hedgerow::{Client, ErrorKind};

use crate::topology::Cluster;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_server_that_says_try_again_is_not_out() {
    let cluster = Cluster::start(2, 0).await;
    let seeds = cluster.primaries().iter().map(|node| node.url());
    let builder = Client::builder().cluster(seeds);
    // Three calls in a row are told to try again until their deadlines.
    let builder = builder.deadline(Duration::from_millis(400));
    let client = builder.connect().await.expect("good seeds");
    let slot = hedgerow::slot(b"hr:c:{views}");
    let target = 1 - cluster.owner_of(slot).await;
    let migration = cluster.migrate(slot, target).await;

    let cache = client.cache("c");
    let mut served = Vec::new();
    for number in 0..64 {
        let key = format!("k{number}");
        if cluster
            .owner_of(hedgerow::slot(format!("{{c:{key}}}").as_bytes()))
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
