//! Calls while the slot of their keys moves, and all of these keys are still where they were.
//!
//! Where a script has removed a key, it must not use that key again: the server takes it for one
//! that has gone to the other server, and stops the script half way.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hedgerow::{Cache, Client, ErrorKind};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::gate::Gate;
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
    begun_of(cluster, "hr:v:{c:k}").await
}

async fn begun_of<'c>(cluster: &'c Cluster, key: &str) -> Migration<'c> {
    let slot = hedgerow::key::slot(key.as_bytes());
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

/// Begins a load of a key that has a value, in a task, and then moves its slot.
async fn loading<'c>(
    cluster: &'c Cluster,
    cache: &Cache,
    gate: &Gate,
) -> (Migration<'c>, JoinHandle<hedgerow::Result<Arc<u32>>>) {
    left_behind(cache).await;
    let (calls, loads) = (cache.clone(), gate.clone());
    let load = tokio::spawn(async move {
        let load = move || loads.load(7u32);
        calls.memoize("k", MINUTE, load).tags(["t"]).await
    });
    gate.begun(1).await;
    (begun(cluster).await, load)
}

/// Lets the move and then the load end, and returns what is there.
async fn in_the_end(
    (migration, load): (Migration<'_>, JoinHandle<hedgerow::Result<Arc<u32>>>),
    cache: &Cache,
    gate: &Gate,
) -> Option<u32> {
    migration.carry_all().await;
    migration.finish().await;
    gate.open();
    assert_eq!(*load.await.expect("no panic").expect("loaded"), 7);
    let found = cache.get::<u32>("k").await.expect("an answer");
    found.as_deref().copied()
}

#[tokio::test]
async fn a_key_that_is_stored_twice_by_one_call_ends_its_load_once() {
    let cluster = Cluster::start(2, 0).await;
    let (here, elsewhere, gate) = (cache(&cluster), cache(&cluster), Gate::closed());
    let moving = loading(&cluster, &elsewhere, &gate).await;
    let stored = here.set_many([("k", &1u32), ("k", &2u32)], MINUTE).await;
    for outcome in stored.expect("outcomes") {
        outcome.expect("stored");
    }
    assert_eq!(in_the_end(moving, &here, &gate).await, Some(2));
}

#[tokio::test]
async fn a_key_that_is_removed_twice_by_one_call_is_gone() {
    let cluster = Cluster::start(2, 0).await;
    let (here, elsewhere, gate) = (cache(&cluster), cache(&cluster), Gate::closed());
    let moving = loading(&cluster, &elsewhere, &gate).await;
    let removed = here.remove_many(["k", "k"]).await;
    for outcome in removed.expect("outcomes") {
        outcome.expect("removed");
    }
    assert_eq!(in_the_end(moving, &here, &gate).await, None);
}

/// Stores a value under a tag, and returns the key of the tag's index.
async fn indexed(cluster: &Cluster, cache: &Cache) -> String {
    let set = cache.set("old", &1u32, MINUTE).tags(["t"]);
    set.await.expect("stored");
    let indexes: Vec<Vec<String>> = cluster.run_all(&["KEYS", "hr:x:*"]).await;
    indexes.concat().concat()
}

#[tokio::test]
async fn an_index_whose_names_have_all_ended_takes_another() {
    let cluster = Cluster::start(2, 0).await;
    let cache = cache(&cluster).index_tags();
    let index = indexed(&cluster, &cache).await;
    let _: usize = cluster.run(&["ZADD", &index, "1", "old"]).await;
    let migration = begun_of(&cluster, &index).await;
    let set = cache.set("new", &1u32, MINUTE).tags(["t"]);
    set.await.expect("stored");
    let words = ["ZRANGE", &index, "0", "-1"];
    let names: Vec<String> = migration.source().run(&words).await;
    assert_eq!(names, ["new"]);
}

/// A listing forgets what it has found gone, perhaps after another has. The script is called here,
/// so that the other listing need not come in between.
#[tokio::test]
async fn an_index_whose_last_name_is_forgotten_is_not_asked_for_another() {
    let cluster = Cluster::start(2, 0).await;
    let cache = cache(&cluster).index_tags();
    let index = indexed(&cluster, &cache).await;
    let migration = begun_of(&cluster, &index).await;
    let score = ["ZSCORE", &index, "old"];
    let score: String = migration.source().run(&score).await;
    let forgotten = ["EVAL", FORGET, "1", &index, "old", &score, "other", "1"];
    let answer: Vec<String> = migration.source().run(&forgotten).await;
    assert_eq!(answer, ["OK"]);
    let left: Vec<String> = migration.source().run(&["KEYS", &index]).await;
    assert!(left.is_empty(), "{left:?}");
}

const FORGET: &str = include_str!("../../../src/cache/index/forget.lua");
