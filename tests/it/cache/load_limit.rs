//! How many loaders of a cache run at once: who waits, who must not, and what waits meanwhile.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Cache, ErrorKind, Outage};
use tokio::task::JoinHandle;

use super::load_limit_batches::Shards;
use crate::support::gate::Gate;
use crate::support::monitor::Monitor;
use crate::support::server::Server;
use crate::support::wait::{bounded, until};

pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// A load of `key` that runs until the gate is opened.
pub(super) fn loading(cache: &Cache, key: &str, gate: &Gate) -> JoinHandle<hedgerow::Result<u8>> {
    let (cache, key, gate) = (cache.clone(), key.to_owned(), gate.clone());
    tokio::spawn(async move {
        let call = cache.memoize(&key, MINUTE, move || gate.load(1u8));
        call.await.map(|value| *value)
    })
}

/// Waits until so many calls have found that their key is missing.
pub(super) async fn missed(cache: &Cache, misses: u64) {
    until("keys are missed", async || cache.stats().misses >= misses).await;
}

pub(super) async fn value(load: JoinHandle<hedgerow::Result<u8>>) -> u8 {
    let value = bounded("it is loaded", load).await;
    value.expect("no panic").expect("a value")
}

/// Opens the gate for one load after the other, and sees that no more than `most` run at once.
pub(super) async fn one_by_one(
    gate: &Gate,
    calls: &[JoinHandle<hedgerow::Result<u8>>],
    most: usize,
) {
    for ended in 0..calls.len() {
        gate.begun((ended + most).min(calls.len())).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(gate.loads() <= ended + most, "{most} at a time");
        gate.open();
        until("one has ended", async || {
            calls.iter().filter(|call| call.is_finished()).count() > ended
        })
        .await;
    }
}

#[tokio::test]
async fn as_many_loaders_run_at_once_as_are_allowed_to_all_clones() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_loads(2);
    let gate = Gate::closed();
    let calls = (0..5).map(|at| loading(&cache.clone(), &format!("k{at}"), &gate));
    let calls: Vec<_> = calls.collect();
    missed(&cache, 5).await;
    one_by_one(&gate, &calls, 2).await;
    for call in calls {
        assert_eq!(value(call).await, 1);
    }
}

#[tokio::test]
async fn a_load_that_waits_for_its_turn_does_not_keep_other_processes_from_loading() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_loads(1);
    let gate = Gate::closed();
    let first = loading(&cache, "first", &gate);
    gate.begun(1).await;
    let second = loading(&cache, "second", &gate);
    missed(&cache, 2).await;
    let others = server.client().await.cache("c");
    let load = others.memoize("second", MINUTE, async || Ok::<_, Infallible>(2u8));
    let theirs = bounded("nobody has the lease", load.into_future()).await;
    assert_eq!(*theirs.expect("loaded"), 2);
    gate.open();
    assert_eq!(value(first).await, 1);
    assert_eq!(value(second).await, 2, "what the other process has loaded");
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_load_that_waits_for_another_process_leaves_its_permit_to_others() {
    let server = Server::start().await;
    let (ours, theirs) = (server.client().await, server.client().await);
    let (ours, theirs) = (ours.cache("c").max_loads(1), theirs.cache("c"));
    let gate = Gate::closed();
    let elsewhere = loading(&theirs, "k", &gate);
    gate.begun(1).await;
    let waiting = loading(&ours, "k", &gate);
    missed(&ours, 1).await;
    let load = ours.memoize("other", MINUTE, async || Ok::<_, Infallible>(2u8));
    let other = bounded("a permit is free", load.into_future()).await;
    assert_eq!(*other.expect("loaded"), 2);
    gate.open();
    assert_eq!((value(elsewhere).await, value(waiting).await), (1, 1));
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_load_within_a_load_needs_no_permit() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_loads(1);
    let inner = cache.clone();
    let load = move || async move {
        let load = inner.memoize("inner", MINUTE, async || Ok::<_, Infallible>(2u8));
        load.await.map(|value| *value)
    };
    let outer = cache.memoize("outer", MINUTE, load).into_future();
    let outer = bounded("none waits for the other", outer).await;
    assert_eq!(*outer.expect("loaded"), 2);
}

#[tokio::test]
async fn a_load_for_which_another_load_waits_is_let_in() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c").max_loads(1);
    let between = client.cache("between");
    let (gate, enter) = (Gate::closed(), Gate::closed());
    let outer = {
        let (cache, between, inner) = (cache.clone(), between.clone(), cache.clone());
        let enter = enter.clone();
        tokio::spawn(async move {
            let load = move || async move {
                let _ = enter.load(()).await;
                // By way of a cache without a limit.
                let load = move || async move {
                    let load = inner.memoize("last", MINUTE, async || Ok::<_, Infallible>(9u8));
                    load.await.map(|value| *value)
                };
                between.memoize("k", MINUTE, load).await.map(|value| *value)
            };
            cache
                .memoize("outer", MINUTE, load)
                .await
                .map(|value| *value)
        })
    };
    enter.begun(1).await;
    // It has no permit, and the one who has it is about to wait for it.
    let last = loading(&cache, "last", &gate);
    missed(&cache, 2).await;
    gate.open();
    enter.open();
    let (outer, last) = (value(outer).await, value(last).await);
    assert_eq!(outer, last, "one load served both");
}

#[tokio::test]
async fn a_call_whose_load_gets_no_permit_within_max_load_is_told() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_loads(1);
    let gate = Gate::closed();
    let first = loading(&cache, "first", &gate);
    gate.begun(1).await;
    let hasty = cache.clone().max_load(Duration::from_millis(50));
    let load = hasty.memoize("late", MINUTE, async || Ok::<_, Infallible>(2u8));
    let error = bounded("it is told", load.into_future()).await;
    let error = error.expect_err("no permit");
    assert_eq!(error.kind(), ErrorKind::LoaderTimeout, "{error}");
    assert!(error.to_string().contains("max_loads"), "{error}");
    assert_eq!(error.key(), Some("late"));
    assert!(error.is_retryable(), "nothing was loaded");
    gate.open();
    assert_eq!(value(first).await, 1);
    let load = cache.memoize("late", MINUTE, async || Ok::<_, Infallible>(2u8));
    assert_eq!(*load.await.expect("it is not remembered"), 2);
}

#[tokio::test]
async fn a_load_that_no_call_waits_for_any_more_is_not_begun() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_loads(1);
    let (full, left) = (Gate::closed(), Gate::closed());
    let first = loading(&cache, "first", &full);
    full.begun(1).await;
    let caller = loading(&cache, "left", &left);
    missed(&cache, 2).await;
    caller.abort();
    assert!(caller.await.expect_err("aborted").is_cancelled());
    let behind = loading(&cache, "behind", &full);
    missed(&cache, 3).await;
    full.open();
    full.open();
    left.open();
    assert_eq!((value(first).await, value(behind).await), (1, 1));
    assert_eq!(left.loads(), 0);
}

#[tokio::test]
async fn a_batch_takes_one_permit_for_one_call_of_its_loader() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_loads(1);
    let gate = Gate::closed();
    let first = loading(&cache, "first", &gate);
    gate.begun(1).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let keys: Vec<String> = (0..50).map(|at| format!("k{at}")).collect();
    let batch = {
        let (cache, calls, keys) = (cache.clone(), calls.clone(), keys.clone());
        tokio::spawn(async move {
            let load = move |keys: Vec<String>| {
                calls.fetch_add(1, Ordering::SeqCst);
                let loaded: HashMap<_, _> = keys.into_iter().map(|key| (key, 2u8)).collect();
                async move { Ok::<_, Infallible>(loaded) }
            };
            cache.memoize_many(keys, MINUTE, load).await
        })
    };
    missed(&cache, 51).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0, "the permit is taken");
    assert!(
        server.keys("hr:l:{c:k*").await.is_empty(),
        "no lease is held"
    );
    gate.open();
    assert_eq!(value(first).await, 1);
    let loaded = bounded("all are loaded", batch).await.expect("no panic");
    for outcome in loaded.expect("good keys") {
        assert_eq!(outcome.expect("loaded").as_deref(), Some(&2));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    // It was given back.
    gate.open();
    assert_eq!(value(loading(&cache, "next", &gate)).await, 1);
}

#[tokio::test]
async fn a_stale_value_is_served_at_once_and_loaded_anew_only_with_a_free_permit() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_loads(1);
    let stale = |value: u8| {
        let load = async move || Ok::<_, Infallible>(value);
        let call = cache.memoize("k", Duration::from_millis(1), load);
        call.stale(MINUTE).into_future()
    };
    assert_eq!(*stale(1).await.expect("loaded"), 1);
    until("it is stale", async || {
        let fresh = cache.get::<u8>("k").await.expect("an answer");
        fresh.is_none()
    })
    .await;
    let gate = Gate::closed();
    let first = loading(&cache, "first", &gate);
    gate.begun(1).await;
    let served = bounded("it need not wait", stale(2)).await;
    assert_eq!(*served.expect("the old one"), 1);
    until("the load behind it has ended", async || {
        cache.stats().refreshes == 1
    })
    .await;
    gate.open();
    assert_eq!(value(first).await, 1);
    // Had the load behind the value waited, it would have had its turn before this one.
    gate.open();
    assert_eq!(value(loading(&cache, "next", &gate)).await, 1);
    assert_eq!(cache.stats().loads, 3, "of `k` only once");
}

#[tokio::test]
async fn the_limit_holds_without_redis_too() {
    let server = Server::start_single().await;
    let soon = Duration::from_millis(300);
    let client = server.builder().cache_deadline(soon).open();
    let cache = client.expect("a good URL").cache("c").max_loads(2);
    let cache = cache.outage(Outage::Bypass);
    server.kill().await;
    let gate = Gate::closed();
    let calls = (0..5).map(|at| loading(&cache, &format!("k{at}"), &gate));
    let calls: Vec<_> = calls.collect();
    until("reads are bypassed", async || cache.bypassed().reads >= 5).await;
    one_by_one(&gate, &calls, 2).await;
    for call in join_all(calls).await {
        assert_eq!(call.expect("no panic").expect("loaded"), 1);
    }
}

#[tokio::test]
async fn a_permit_that_is_free_costs_no_command() {
    let server = Server::start_single().await;
    let monitor = Monitor::start(&server).await;
    let cache = server.client().await.cache("c");
    let sent = async |cache: &Cache, key: &str| {
        let before = monitor.commands(&server, "hr:").await.len();
        let load = cache.memoize(key, MINUTE, async || Ok::<_, Infallible>(1u8));
        assert_eq!(*load.await.expect("loaded"), 1);
        monitor.commands(&server, "hr:").await.len() - before
    };
    // The first load makes the tag of the cache.
    sent(&cache, "first").await;
    let without = sent(&cache, "without").await;
    let limited = cache.clone().max_loads(1);
    assert_eq!(sent(&limited, "with").await, without);
}

#[tokio::test]
async fn a_permit_is_given_back_before_the_value_is_stored() {
    let shards = Shards::start().await;
    let cache = shards.client.cache("c").max_loads(1);
    let [here, there] = shards.names(&cache).await;
    let gate = Gate::closed();
    let first = loading(&cache, &here[0], &gate);
    gate.begun(1).await;
    shards.stop(0);
    gate.open();
    let second = loading(&cache, &there[0], &gate);
    gate.begun(2).await;
    assert!(!first.is_finished(), "its value is not stored yet");
    shards.resume(0);
    gate.open();
    assert_eq!((value(first).await, value(second).await), (1, 1));
}

#[tokio::test]
async fn a_limit_of_zero_is_refused() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_loads(0);
    let refused = cache.get::<u8>("k").await.expect_err("it loads nothing");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
}
