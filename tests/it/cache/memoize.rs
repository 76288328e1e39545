//! `memoize` in one process: one load for all who ask, whatever becomes of them and of it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hedgerow::{Cache, Codec, ErrorKind};
use tokio::sync::Notify;

use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::until;

const MINUTE: Duration = Duration::from_secs(60);

/// The value of a key that must be there.
async fn present(cache: &Cache, key: &str) -> String {
    let value = cache.get::<String>(key).await.expect("an answer");
    value.expect("a value").as_ref().clone()
}

#[tokio::test]
async fn a_miss_loads_and_the_next_call_hits() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    for codec in [Codec::Cbor, Codec::Json, Codec::Raw] {
        let (cache, key) = (cache.clone().codec(codec), format!("{codec:?}"));
        for (text, expected) in [("first", "first"), ("second", "first")] {
            let load = async move || Ok::<_, Infallible>(text.to_owned());
            let value: Arc<String> = cache.memoize(&key, MINUTE, load).await.expect("a value");
            assert_eq!(*value, expected);
        }
        assert_eq!(present(&cache, &key).await, "first");
    }
}

#[tokio::test]
async fn one_hundred_callers_in_one_process_share_one_load() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (cache, gate) = (cache.clone(), gate.clone());
        callers.spawn(async move { cache.memoize("k", MINUTE, move || gate.load(7u64)).await });
    }
    gate.begun(1).await;
    gate.open();
    for value in callers.join_all().await {
        assert_eq!(*value.expect("a value"), 7);
    }
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_load_is_completed_and_stored_when_its_caller_is_dropped() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let caller = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            cache
                .memoize("k", MINUTE, move || gate.load("v".to_owned()))
                .await
        }
    });
    gate.begun(1).await;
    caller.abort();
    assert!(caller.await.expect_err("aborted").is_cancelled());
    gate.open();
    until("it is stored", async || {
        cache.get::<String>("k").await.expect("an answer").is_some()
    })
    .await;
    assert!(server.keys("hr:l:*").await.is_empty());
}

#[tokio::test]
async fn callers_who_wait_outlive_the_caller_who_came_first() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let call = |gate: &Gate| {
        let (cache, gate) = (cache.clone(), gate.clone());
        tokio::spawn(async move { cache.memoize("k", MINUTE, move || gate.load(1u8)).await })
    };
    let first = call(&gate);
    gate.begun(1).await;
    let second = call(&gate);
    tokio::task::yield_now().await;
    first.abort();
    gate.open();
    assert_eq!(*second.await.expect("no panic").expect("a value"), 1);
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn the_loaders_error_reaches_all_who_wait_and_is_not_kept_with_error_ttl_zero() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").error_ttl(Duration::ZERO);
    let gate = Arc::new(Notify::new());
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (cache, gate) = (cache.clone(), gate.clone());
        callers.spawn(async move {
            let load = move || async move {
                gate.notified().await;
                Err::<String, _>(io::Error::other("the database is down"))
            };
            cache.memoize("k", MINUTE, load).await
        });
    }
    until("a load begins", async || {
        !server.keys("hr:l:*").await.is_empty()
    })
    .await;
    // Whoever was late loads once more.
    let opener = tokio::spawn(async move {
        loop {
            gate.notify_waiters();
            tokio::task::yield_now().await;
        }
    });
    for outcome in callers.join_all().await {
        let error = outcome.expect_err("the loader fails");
        assert_eq!(error.kind(), ErrorKind::Loader);
        assert_eq!(error.key(), Some("k"));
        let cause = error.loader_error::<io::Error>().expect("its own error");
        assert_eq!(cause.to_string(), "the database is down");
    }
    opener.abort();
    assert!(server.keys("*k*").await.is_empty(), "no value, no lease");
    let value = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
    assert_eq!(*value.await.expect("a value"), 1);
}

#[tokio::test]
async fn a_panic_of_the_loader_is_an_error_and_poisons_nothing() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").error_ttl(Duration::ZERO);
    async fn panicking() -> Result<u8, Infallible> {
        panic!("on purpose")
    }
    let error = cache
        .memoize("k", MINUTE, panicking)
        .await
        .expect_err("a panic");
    assert_eq!(error.kind(), ErrorKind::LoaderPanicked);
    let value = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
    assert_eq!(*value.await.expect("a value"), 1);
}

#[tokio::test]
async fn a_loader_that_takes_longer_than_max_load_is_dropped_and_leaves_no_lease() {
    let server = Server::start().await;
    let cache = server
        .client()
        .await
        .cache("c")
        .max_load(Duration::from_millis(50))
        .error_ttl(Duration::ZERO);
    let dropped = Arc::new(());
    let held = dropped.clone();
    let load = move || async move {
        std::future::pending::<()>().await;
        drop(held);
        Ok::<_, Infallible>(1u8)
    };
    let error = cache
        .memoize("k", MINUTE, load)
        .await
        .expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::LoaderTimeout);
    assert_eq!(Arc::strong_count(&dropped), 1);
    assert!(server.keys("hr:l:*").await.is_empty());
}

#[tokio::test]
async fn a_loader_that_asks_for_its_own_key_is_told_so() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let inner = cache.clone();
    let outer = cache.memoize("a", MINUTE, move || async move {
        let innermost = inner.clone();
        let through = inner.memoize("b", MINUTE, move || async move {
            let again = innermost.memoize("a", MINUTE, async || Ok::<_, Infallible>(1u8));
            again.await.map(|value| *value)
        });
        through.await.map(|value| *value)
    });
    let error = outer.await.expect_err("a cycle");
    assert_eq!(error.kind(), ErrorKind::Loader);
    let through = error.loader_error::<hedgerow::Error>().expect("that of b");
    let cycle = through
        .loader_error::<hedgerow::Error>()
        .expect("that of a");
    assert_eq!(cycle.kind(), ErrorKind::Reentrant);
    assert_eq!(cycle.key(), Some("a"));
    let nested = cache.clone();
    let value = cache.memoize("c", MINUTE, move || async move {
        let other = nested.memoize("d", MINUTE, async || Ok::<_, Infallible>(2u8));
        other.await.map(|value| *value + 1)
    });
    assert_eq!(*value.await.expect("another key is no cycle"), 3);
}

#[tokio::test]
async fn a_caller_of_another_type_does_not_get_the_flights_value() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let number = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move { cache.memoize("k", MINUTE, move || gate.load(1u8)).await }
    });
    gate.begun(1).await;
    let text = tokio::spawn(async move {
        cache
            .memoize("k", MINUTE, async || Ok::<_, Infallible>("one".to_owned()))
            .await
    });
    tokio::task::yield_now().await;
    gate.open();
    assert_eq!(*number.await.expect("no panic").expect("a value"), 1);
    assert_eq!(*text.await.expect("no panic").expect("a value"), "one");
}
