//! What is left of a load that has failed: who is told, for how long, and what ends it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow::{Cache, ErrorKind, Result};

use crate::support::server::Server;
use crate::support::wait::{bounded, until};

const MINUTE: Duration = Duration::from_secs(60);

/// Calls with a loader that fails with `text`, and counts.
async fn failing(cache: &Cache, loads: &Arc<AtomicUsize>, text: &str) -> Result<Arc<u8>> {
    let (loads, text) = (loads.clone(), text.to_owned());
    let load = move || async move {
        loads.fetch_add(1, Ordering::SeqCst);
        Err::<u8, _>(io::Error::other(text))
    };
    cache.memoize("k", MINUTE, load).tags(["t"]).await
}

async fn working(cache: &Cache) -> Result<Arc<u8>> {
    let load = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
    load.await
}

#[tokio::test]
async fn calls_that_come_soon_after_a_failed_load_fail_with_its_text_and_later_ones_load() {
    let server = Server::start().await;
    let (first, second) = (server.client().await, server.client().await);
    // Longer than the calls below take.
    let remembered = Duration::from_secs(20);
    let (first, second) = (first.cache("c"), second.cache("c"));
    let first = first.error_ttl(remembered);
    let loads = Arc::new(AtomicUsize::new(0));
    let text = format!("no such city: {}", "x".repeat(1000));
    failing(&first, &loads, &text).await.expect_err("it fails");
    for cache in [&first, &second] {
        let error = working(cache).await.expect_err("it has just failed");
        assert_eq!(error.kind(), ErrorKind::Loader);
        assert_eq!(error.key(), Some("k"));
        let shown = error.to_string();
        assert!(shown.contains("no such city: xx"), "{shown}");
        assert!(shown.len() < 512, "{} bytes", shown.len());
        assert!(error.loader_error::<io::Error>().is_none());
    }
    let lives = server.lives("hr:l:*").await;
    let (key, left) = &lives[0];
    assert!((1..=22_000).contains(left), "{key}: {left}");
    let _: bool = server.run(&["PEXPIRE", key, "1"]).await;
    until("the record has expired", async || {
        server.keys("hr:l:*").await.is_empty()
    })
    .await;
    assert_eq!(*working(&second).await.expect("loaded"), 1);
}

#[tokio::test]
async fn a_removal_a_set_and_an_invalidation_end_what_is_remembered_of_a_failure() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").error_ttl(MINUTE);
    let other = server.client().await.cache("c");
    let loads = Arc::new(AtomicUsize::new(0));
    for way in ["remove", "set", "tag", "clear"] {
        failing(&cache, &loads, "no such row")
            .await
            .expect_err("it fails");
        working(&other).await.expect_err("it has just failed");
        match way {
            "remove" => other.remove("k").await.expect("removed"),
            "set" => other.set("k", &1u8, MINUTE).await.expect("stored"),
            "tag" => other.invalidate_tags(["t"]).await.expect("invalidated"),
            _ => other.clear().await.expect("cleared"),
        }
        let value = working(&other).await;
        assert_eq!(*value.expect(way), 1);
        other.remove("k").await.expect("removed");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn who_joined_late_is_told_of_the_failure_unless_an_invalidation_came_between() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let other = server.client().await.cache("c");
    for invalidated in [false, true] {
        let (begun, loading) = tokio::sync::oneshot::channel();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let call = cache.memoize("k", MINUTE, move || async move {
            let _ = begun.send(());
            let _ = gone.await;
            Err::<u8, _>(io::Error::other("no such row"))
        });
        let first = tokio::spawn(async move { call.tags(["t"]).await });
        loading.await.expect("the load begins");
        if invalidated {
            other.invalidate_tags(["t"]).await.expect("invalidated");
        }
        let late = cache.clone();
        let late = tokio::spawn(async move { working(&late).await });
        tokio::task::yield_now().await;
        go.send(()).expect("it waits");
        let error = first.await.expect("no panic").expect_err("it failed");
        assert_eq!(error.kind(), ErrorKind::Loader);
        let late = bounded("the late call ends", late).await.expect("no panic");
        match invalidated {
            true => assert_eq!(*late.expect("loaded again"), 1),
            false => {
                let error = late.expect_err("it failed");
                assert!(error.loader_error::<io::Error>().is_some(), "{error}");
            }
        }
        other.remove("k").await.expect("removed");
    }
}

#[tokio::test]
async fn with_error_ttl_zero_nothing_of_a_failure_is_kept() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").error_ttl(Duration::ZERO);
    let loads = Arc::new(AtomicUsize::new(0));
    failing(&cache, &loads, "sesame")
        .await
        .expect_err("it fails");
    assert!(server.keys("hr:[vl]:*").await.is_empty());
    assert_eq!(*working(&cache).await.expect("loaded"), 1);
}

#[tokio::test]
async fn a_panic_and_a_timeout_are_remembered_and_a_cycle_is_not() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").error_ttl(MINUTE);
    let other = server.client().await.cache("c");
    async fn panicking() -> std::result::Result<u8, Infallible> {
        panic!("on purpose")
    }
    let error = cache
        .memoize("k", MINUTE, panicking)
        .await
        .expect_err("a panic");
    assert_eq!(error.kind(), ErrorKind::LoaderPanicked);
    let error = working(&other).await.expect_err("it has just panicked");
    assert_eq!(error.kind(), ErrorKind::LoaderPanicked);
    other.remove("k").await.expect("removed");

    let hasty = cache.clone().max_load(Duration::from_millis(50));
    let slow = hasty.memoize(
        "k",
        MINUTE,
        std::future::pending::<std::result::Result<u8, Infallible>>,
    );
    let error = slow.await.expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::LoaderTimeout);
    let error = working(&other).await.expect_err("it was too slow");
    assert_eq!(error.kind(), ErrorKind::LoaderTimeout);
    other.remove("k").await.expect("removed");

    let inner = cache.clone();
    let cycle = cache.memoize("k", MINUTE, move || async move {
        let again = inner.memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
        again.await.map(|value| *value)
    });
    let error = cycle.await.expect_err("a cycle");
    let cause = error.loader_error::<hedgerow::Error>().expect("our own");
    assert_eq!(cause.kind(), ErrorKind::Reentrant);
    assert_eq!(*working(&other).await.expect("nobody else has a cycle"), 1);
}
