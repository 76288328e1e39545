//! `stats`: what a cache counts.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::join_all;
use hedgerow::Cache;
use hedgerow::cache::Stats;

use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::{until, waiting};

const MINUTE: Duration = Duration::from_secs(60);

async fn loaded(cache: &Cache, key: &str) {
    let load = || async { Ok::<_, Infallible>("loaded".to_owned()) };
    cache.memoize(key, MINUTE, load).await.expect("loaded");
}

/// What `cache` has counted since `before`: hits, misses, loads, failed loads, shared loads,
/// refused commits, stores.
fn since(cache: &Cache, before: Stats) -> [u64; 7] {
    let now = cache.stats();
    [
        now.hits - before.hits,
        now.misses - before.misses,
        now.loads - before.loads,
        now.failed_loads - before.failed_loads,
        now.shared_loads - before.shared_loads,
        now.refused_commits - before.refused_commits,
        now.stores - before.stores,
    ]
}

#[tokio::test]
async fn each_call_is_counted_as_what_it_was() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c");
    assert_eq!(cache.stats(), Stats::default());

    let before = cache.stats();
    cache.get::<String>("a").await.expect("an answer");
    assert_eq!(
        since(&cache, before),
        [0, 1, 0, 0, 0, 0, 0],
        "get of nothing"
    );

    let before = cache.stats();
    loaded(&cache, "a").await;
    assert_eq!(since(&cache, before), [0, 1, 1, 0, 0, 0, 1], "a load");

    let before = cache.stats();
    loaded(&cache, "a").await;
    cache.get::<String>("a").await.expect("an answer");
    assert_eq!(since(&cache, before), [2, 0, 0, 0, 0, 0, 0], "hits");

    let before = cache.stats();
    let keys = ["a", "b", "a", "c"];
    cache.get_many::<String>(keys).await.expect("an answer");
    assert_eq!(since(&cache, before), [1, 2, 0, 0, 0, 0, 0], "get_many");

    let before = cache.stats();
    cache.set("d", "x", MINUTE).await.expect("stored");
    assert!(cache.add("e", "x", MINUTE).await.expect("an answer"));
    assert!(!cache.add("e", "x", MINUTE).await.expect("an answer"));
    let updated = cache.update_with("e", |text: &String| text.clone()).await;
    assert!(updated.expect("an answer").is_some());
    assert_eq!(since(&cache, before), [0, 0, 0, 0, 0, 0, 3], "stores");

    let before = cache.stats();
    let fails = || async { Err::<String, _>("no".to_owned()) };
    cache
        .memoize("f", MINUTE, fails)
        .await
        .expect_err("it fails");
    assert_eq!(
        since(&cache, before),
        [0, 1, 0, 1, 0, 0, 0],
        "a failed load"
    );

    // Another handle of the name, and other caches.
    assert_eq!(client.cache("c").stats(), cache.stats());
    assert_eq!(cache.clone().version(2).stats(), cache.stats());
    assert_eq!(client.cache("d").stats(), Stats::default());
}

#[tokio::test]
async fn calls_that_share_a_load_are_told_from_the_one_that_made_it() {
    const CALLS: u64 = 5;
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let load = gate.clone();
            let call = cache.memoize("a", MINUTE, move || load.load("x".to_owned()));
            tokio::spawn(call.into_future())
        })
        .collect();
    until("all have missed", async || {
        gate.loads() == 1 && cache.stats().misses == CALLS
    })
    .await;
    gate.open();
    for call in join_all(calls).await {
        call.expect("no panic").expect("loaded");
    }
    let expected = [0, CALLS, 1, 0, CALLS - 1, 0, 1];
    assert_eq!(since(&cache, Stats::default()), expected);
}

#[tokio::test]
async fn a_load_that_was_overtaken_is_a_refused_commit() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let load = gate.clone();
    let call = cache.memoize("a", MINUTE, move || load.load("x".to_owned()));
    let call = tokio::spawn(call.into_future());
    until("it loads", async || gate.loads() == 1).await;
    server
        .client()
        .await
        .cache("c")
        .remove("a")
        .await
        .expect("removed");
    gate.open();
    call.await.expect("no panic").expect("loaded");
    until("its commit was answered", async || {
        cache.stats().refused_commits == 1
    })
    .await;
    assert_eq!(since(&cache, Stats::default()), [0, 1, 1, 0, 0, 1, 0]);
}

#[tokio::test]
async fn a_call_that_waits_for_the_load_of_another_process_is_a_saved_load() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let load = gate.clone();
    let call = cache.memoize("a", MINUTE, move || load.load("x".to_owned()));
    let leads = tokio::spawn(call.into_future());
    gate.begun(1).await;
    // Another client stands for another process: they share no flight.
    let other = server.client().await.cache("c");
    let never = gate.clone();
    let call = other.memoize("a", MINUTE, move || never.load("y".to_owned()));
    let waits = tokio::spawn(call.into_future());
    waiting(&server, "hr:l:{c:a}", 1).await;
    gate.open();
    for call in [leads, waits] {
        assert_eq!(*call.await.expect("no panic").expect("loaded"), "x");
    }
    let counted = |stats: Stats| (stats.saved_loads, stats.shared_loads, stats.loads);
    assert_eq!(counted(cache.stats()), (0, 0, 1));
    assert_eq!(counted(other.stats()), (1, 0, 0));
    assert_eq!((other.stats().hits, other.stats().misses), (0, 1));
}

#[tokio::test]
async fn a_load_in_place_of_a_silent_leader_is_a_takeover() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    loaded(&cache, "a").await;
    assert_eq!(cache.stats().takeovers, 0);
    // The lease of a leader that has not been heard of since 1970.
    let lease = "token 0123456789abcdef fence 1 takeover 1";
    let mut set = vec!["HSET", "hr:l:{c:b}"];
    set.extend(lease.split(' '));
    let _: i64 = server.run(&set).await;
    loaded(&cache, "b").await;
    assert_eq!(cache.stats().takeovers, 1);
    assert_eq!(since(&cache, Stats::default())[2..4], [2, 0], "loads");
}

#[tokio::test]
async fn entries_that_cannot_be_read_are_counted_for_each_cache() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c");
    cache.set("a", "text", MINUTE).await.expect("stored");
    assert!(cache.get::<u64>("a").await.expect("an answer").is_none());
    assert_eq!((cache.stats().foreign, cache.stats().damaged), (1, 0));
    let _: i64 = server.run(&["SETRANGE", "hr:v:{c:a}", "30", "x"]).await;
    let found = cache.get::<String>("a").await;
    assert!(found.expect("an answer").is_none());
    assert_eq!((cache.stats().foreign, cache.stats().damaged), (1, 1));
    assert_eq!(client.cache("d").stats(), Stats::default());
}

#[tokio::test]
async fn the_bytes_of_values_are_counted_before_and_after_compression() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let bytes = || (cache.stats().encoded_bytes, cache.stats().compressed_bytes);
    // Too small to be compressed: a head of one byte and the text.
    cache.set("a", "text", MINUTE).await.expect("stored");
    assert_eq!(bytes(), (5, 5));
    let long = "text".repeat(10_000);
    cache.set("a", &long, MINUTE).await.expect("stored");
    let (encoded, compressed) = bytes();
    assert!(
        encoded > 40_000 && compressed < 1000,
        "{encoded} {compressed}"
    );
    let nothing = None::<String>;
    cache.set("a", &nothing, MINUTE).await.expect("stored");
    assert_eq!(bytes(), (encoded, compressed));
    let load = || async { Ok::<_, Infallible>("text".to_owned()) };
    cache.memoize("b", MINUTE, load).await.expect("loaded");
    let updated = cache.update_with("b", |text: &String| text.clone()).await;
    assert!(updated.expect("an answer").is_some());
    assert_eq!(bytes(), (encoded + 10, compressed + 10));
}

#[test]
fn every_count_stands_in_the_documentation() {
    let text = std::fs::read_to_string("docs/observability.md").expect("it is there");
    let shown = format!("{:?}", Stats::default());
    let fields = shown.split(['{', ',']).skip(1);
    let mut counts = 0;
    for field in fields {
        let name = field.split(':').next().unwrap_or_default().trim();
        assert!(text.contains(&format!("| `{name}` |")), "{name} is missing");
        counts += 1;
    }
    assert_eq!(counts, 20);
}
