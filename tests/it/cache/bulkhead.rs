//! Loads that run without Redis: how many at once, who waits for a place, and who must not.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::join_all;
use futures::poll;
use hedgerow::{Cache, ErrorKind, Outage};
use redis::Value;
use tokio::sync::Barrier;

use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, until};

const MINUTE: Duration = Duration::from_secs(60);

/// How many loads run at once.
const PLACES: usize = 64;

/// A cache that bypasses an outage, on a server that is gone.
async fn without_redis() -> Cache {
    let server = Server::start_single().await;
    let soon = Duration::from_millis(300);
    let client = server.builder().cache_deadline(soon).open();
    let cache = client.expect("a good URL").cache("c");
    server.kill().await;
    cache.outage(Outage::Bypass)
}

/// Waits until so many reads have found that Redis is out.
async fn read(cache: &Cache, reads: u64) {
    until("reads are bypassed", async || {
        cache.bypassed().reads >= reads
    })
    .await;
}

/// Takes every place, until `gate` is opened.
async fn fill(cache: &Cache, gate: &Gate) -> Vec<tokio::task::JoinHandle<u8>> {
    let calls: Vec<_> = (0..PLACES)
        .map(|number| {
            let (cache, gate) = (cache.clone(), gate.clone());
            tokio::spawn(async move {
                let key = format!("k{number}");
                let load = cache.memoize(&key, MINUTE, move || gate.load(1u8));
                *load.await.expect("loaded")
            })
        })
        .collect();
    gate.begun(PLACES).await;
    calls
}

#[tokio::test]
async fn a_load_within_a_load_needs_no_place_of_its_own() {
    let cache = without_redis().await;
    // None asks for its inner value before all places are taken.
    let all = Arc::new(Barrier::new(PLACES));
    let calls = (0..PLACES).map(|number| {
        let (cache, inner, all) = (cache.clone(), cache.clone(), all.clone());
        async move {
            let load = move || async move {
                all.wait().await;
                let key = format!("inner {number}");
                let load = async move || Ok::<_, Infallible>(number);
                inner.memoize(&key, MINUTE, load).await.map(|value| *value)
            };
            let key = format!("outer {number}");
            cache.memoize(&key, MINUTE, load).await
        }
    });
    let values = bounded("all are loaded", join_all(calls)).await;
    for (number, value) in values.into_iter().enumerate() {
        assert_eq!(*value.expect("loaded"), number);
    }
}

#[tokio::test]
async fn a_load_that_others_with_places_wait_for_gets_in_at_once() {
    let cache = without_redis().await;
    let all = Arc::new(Barrier::new(PLACES + 1));
    let outer: Vec<_> = (0..PLACES)
        .map(|number| {
            let (cache, inner, all) = (cache.clone(), cache.clone(), all.clone());
            let load = move || async move {
                all.wait().await;
                all.wait().await;
                let load = async move || Ok::<_, Infallible>(2u8);
                let settings = inner.memoize("settings", MINUTE, load).await;
                settings.map(|value| *value)
            };
            let key = format!("outer {number}");
            tokio::spawn(async move { cache.memoize(&key, MINUTE, load).await })
        })
        .collect();
    all.wait().await;
    // Somebody who is in no load asked for it before them, and has to wait for a place.
    let load = async move || Ok::<_, Infallible>(1u8);
    let outsider = tokio::spawn(cache.memoize("settings", MINUTE, load).into_future());
    read(&cache, PLACES as u64 + 1).await;
    all.wait().await;
    for value in bounded("all are loaded", join_all(outer)).await {
        assert_eq!(*value.expect("no panic").expect("loaded"), 1);
    }
    assert_eq!(*outsider.await.expect("no panic").expect("loaded"), 1);
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_any_more_takes_no_place() {
    let cache = without_redis().await;
    let (full, left, last) = (Gate::closed(), Gate::closed(), Gate::closed());
    let calls = fill(&cache, &full).await;
    left.open();
    last.open();
    let caller = {
        let left = left.clone();
        tokio::spawn(
            cache
                .memoize("left", MINUTE, move || left.load(2u8))
                .into_future(),
        )
    };
    read(&cache, PLACES as u64 + 1).await;
    // Places are given in the order of the calls, so this one comes after the one that is left.
    let behind = {
        let last = last.clone();
        tokio::spawn(
            cache
                .memoize("last", MINUTE, move || last.load(3u8))
                .into_future(),
        )
    };
    read(&cache, PLACES as u64 + 2).await;
    caller.abort();
    assert!(caller.await.expect_err("aborted").is_cancelled());
    for _ in 0..PLACES {
        full.open();
    }
    for value in join_all(calls).await {
        assert_eq!(value.expect("no panic"), 1);
    }
    assert_eq!(*behind.await.expect("no panic").expect("loaded"), 3);
    assert_eq!((left.loads(), last.loads()), (0, 1));
    assert_eq!(cache.bypassed().loads, PLACES as u64 + 1);
}

#[tokio::test]
async fn who_finds_no_place_within_max_load_is_told() {
    let cache = without_redis().await;
    let gate = Gate::closed();
    let calls = fill(&cache, &gate).await;
    // The call itself has more time than the load, on a slow machine too.
    let hasty = cache.clone().max_load(Duration::from_millis(50));
    let hasty = hasty.deadline(Duration::from_secs(3));
    let load = async move || Ok::<_, Infallible>(2u8);
    let error = hasty.memoize("late", MINUTE, load).await;
    let error = error.expect_err("no place");
    assert_eq!(error.kind(), ErrorKind::LoaderTimeout, "{error}");
    assert!(error.to_string().contains("without"), "{error}");
    assert_eq!(error.key(), Some("late"));
    for _ in 0..PLACES {
        gate.open();
    }
    for value in join_all(calls).await {
        assert_eq!(value.expect("no panic"), 1);
    }
}

#[tokio::test]
async fn who_bypasses_an_outage_is_not_failed_by_one_who_does_not() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().open().expect("a good URL");
    let (strict, cache) = (client.cache("c"), client.cache("c").outage(Outage::Bypass));
    cache.get::<u8>("k").await.expect("connected");
    let _: Value = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let lease = Request::any().named("EVALSHA").with("hr:l:{c:k}");
    let asked = proxy.on(lease, Act::Hold);
    let load = async move || Ok::<_, Infallible>(1u8);
    let first = tokio::spawn(strict.memoize("k", MINUTE, load).into_future());
    asked.hit().await;
    // It joins the flight of the first.
    let load = async move || Ok::<_, Infallible>(2u8);
    let mut second = cache.memoize("k", MINUTE, load).into_future();
    assert!(matches!(poll!(&mut second), Poll::Pending));
    asked.deliver();
    let error = first.await.expect("no panic").expect_err("told");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert_eq!(*second.await.expect("loaded"), 2);
}

#[tokio::test]
async fn as_many_loads_run_without_redis_as_are_allowed() {
    let server = Server::start_single().await;
    let soon = Duration::from_millis(300);
    let builder = server.builder().cache_deadline(soon);
    let client = builder.loads_without_redis(2).open();
    let cache = client.expect("good settings").cache("c");
    let cache = cache.outage(Outage::Bypass);
    server.kill().await;
    let gate = Gate::closed();
    let calls: Vec<_> = (0..5)
        .map(|number| {
            let (cache, gate) = (cache.clone(), gate.clone());
            tokio::spawn(async move {
                let key = format!("k{number}");
                cache.memoize(&key, MINUTE, move || gate.load(1u8)).await
            })
        })
        .collect();
    read(&cache, 5).await;
    for ended in 0..5 {
        gate.begun((ended + 2).min(5)).await;
        tokio::task::yield_now().await;
        assert!(gate.loads() <= ended + 2, "two at a time");
        gate.open();
        until("one has ended", async || {
            calls.iter().filter(|call| call.is_finished()).count() > ended
        })
        .await;
    }
    for call in calls {
        assert_eq!(*call.await.expect("no panic").expect("loaded"), 1);
    }

    let none = server.builder().loads_without_redis(0).open();
    let error = none.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_load_that_waits_for_a_permit_is_told_of_by_its_key() {
    let server = Server::start_single().await;
    let soon = Duration::from_millis(300);
    let builder = server.builder().cache_deadline(soon);
    let client = builder.loads_without_redis(1).open();
    let cache = client.expect("good settings").cache("c");
    let cache = cache.outage(Outage::Bypass);
    server.kill().await;
    let gate = Gate::closed();
    let load = |key| {
        let gate = gate.clone();
        let call = cache.memoize(key, MINUTE, move || gate.load(1u8));
        tokio::spawn(call.into_future())
    };
    let runs = load("runs");
    gate.begun(1).await;
    let waits = load("waits");
    until("it waits", async || cache.waits_without_redis("waits")).await;
    assert!(!cache.waits_without_redis("runs"));
    assert!(!cache.waits_without_redis(""), "this is no key");
    gate.open();
    gate.begun(2).await;
    assert!(!cache.waits_without_redis("waits"), "it runs");
    // It waits no more if no call does.
    let left = load("left");
    until("it waits", async || cache.waits_without_redis("left")).await;
    left.abort();
    until("it has ended", async || !cache.waits_without_redis("left")).await;
    gate.open();
    for call in [runs, waits] {
        call.await.expect("no panic").expect("loaded");
    }
}
