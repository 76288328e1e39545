//! Loads while the slot of their key moves, and all of its keys are still where they were.

use std::io;
use std::time::Duration;

use hedgerow::{Cache, Client, ErrorKind};
use tokio::sync::oneshot;

use crate::support::topology::{Cluster, Migration};
use crate::support::wait::patient;

const MINUTE: Duration = Duration::from_secs(60);

fn cache(cluster: &Cluster) -> Cache {
    let seeds = cluster.nodes().iter().map(|node| node.url());
    let client = patient(Client::builder().cluster(seeds)).open();
    client.expect("good seeds").cache("c").error_ttl(MINUTE)
}

/// Stores a value, and invalidates it: its key stays.
async fn left_behind(cache: &Cache) {
    let set = cache.set("k", &1u32, MINUTE).tags(["t"]);
    set.await.expect("stored");
    cache.invalidate_tags(["t"]).await.expect("invalidated");
}

async fn begun(cluster: &Cluster) -> Migration<'_> {
    let slot = hedgerow::key::slot(b"hr:v:{c:k}");
    let from = cluster.owner_of(slot).await;
    cluster.migrate(slot, 1 - from).await
}

async fn fails() -> io::Result<u32> {
    Err(io::Error::other("the database is away"))
}

#[tokio::test]
async fn a_load_follows_one_that_has_failed_and_was_invalidated() {
    let cluster = Cluster::start(2, 0).await;
    let cache = cache(&cluster);
    left_behind(&cache).await;
    let failed = cache.memoize("k", MINUTE, fails).tags(["t"]).await;
    assert_eq!(failed.expect_err("it fails").kind(), ErrorKind::Loader);
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    let migration = begun(&cluster).await;
    let load = || async { Ok::<_, io::Error>(2u32) };
    let loaded = cache.memoize("k", MINUTE, load).tags(["t"]).await;
    assert_eq!(*loaded.expect("loaded"), 2);
    let found = cache.get::<u32>("k").await.expect("an answer");
    assert_eq!(found.as_deref(), Some(&2));
    migration.carry_all().await;
    migration.finish().await;
    let found = cache.get::<u32>("k").await.expect("an answer");
    assert_eq!(found.as_deref(), Some(&2));
}

#[tokio::test]
async fn a_load_that_fails_is_recorded_for_others() {
    let cluster = Cluster::start(2, 0).await;
    let (here, elsewhere) = (cache(&cluster), cache(&cluster));
    left_behind(&here).await;
    let (began, begin) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let load = || async {
        began.send(()).expect("the test waits");
        ended.await.expect("the test goes on");
        fails().await
    };
    let loading = async {
        let failed = here.memoize("k", MINUTE, load).tags(["t"]).await;
        assert_eq!(failed.expect_err("it fails").kind(), ErrorKind::Loader);
    };
    let moving = async {
        begin.await.expect("it begins");
        let migration = begun(&cluster).await;
        end.send(()).expect("it waits");
        migration
    };
    let ((), _migration) = tokio::join!(loading, moving);
    let load = || async { Ok::<_, io::Error>(2u32) };
    let failed = elsewhere.memoize("k", MINUTE, load).tags(["t"]).await;
    assert_eq!(failed.expect_err("it has failed").kind(), ErrorKind::Loader);
}
