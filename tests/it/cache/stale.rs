//! Stale values: when a call is served one, who loads anew meanwhile, and what is never served.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use hedgerow::cache::{Memoize, Plain};
use hedgerow::{Cache, Codec, Compression, ErrorKind};

use crate::support::aging::aged;
use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{calls, patient, until};

const MINUTE: Duration = Duration::from_secs(60);
const KEY: &str = "hr:v:{c:k}";

async fn cache(server: &Server) -> Cache {
    server.client().await.cache("c").jitter(0.0)
}

/// A value that is fresh for a minute, and then kept for an hour.
async fn stored(cache: &Cache, value: &'static str) {
    cache.remove("k").await.expect("removed");
    let load = move || async move { Ok::<_, Infallible>(value.to_owned()) };
    let call = cache.memoize("k", MINUTE, load).tags(["t"]);
    call.stale(60 * MINUTE).await.expect("loaded");
}

/// The same, and a minute and a half ago.
async fn stale(server: &Server, cache: &Cache) {
    stored(cache, "old").await;
    aged(server, KEY, MINUTE + MINUTE / 2).await;
}

type Loaded = BoxFuture<'static, Result<String, Infallible>>;

fn gated(cache: &Cache, gate: &Gate) -> Memoize<Plain<impl FnOnce() -> Loaded + use<>>> {
    let gate = gate.clone();
    let load = move || -> Loaded { Box::pin(gate.load("new".to_owned())) };
    cache.memoize("k", MINUTE, load)
}

async fn fresh(cache: &Cache) -> Option<Arc<String>> {
    cache.get("k").await.expect("an answer")
}

async fn failing(cache: &Cache, loads: &Arc<AtomicUsize>) -> hedgerow::Result<Arc<String>> {
    let loads = loads.clone();
    let load = move || async move {
        loads.fetch_add(1, Ordering::SeqCst);
        Err::<String, _>(io::Error::other("no such row"))
    };
    cache
        .memoize("k", MINUTE, load)
        .stale_if_error(10 * MINUTE)
        .await
}

#[tokio::test]
async fn a_stale_value_is_served_at_once_and_loaded_anew_meanwhile() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    stale(&server, &cache).await;
    let (gate, before) = (Gate::closed(), cache.stats());
    let served = gated(&cache, &gate).stale(MINUTE).await;
    assert_eq!(*served.expect("served"), "old");
    let now = cache.stats();
    assert_eq!(now.stale_served - before.stale_served, 1);
    assert_eq!(now.refreshes - before.refreshes, 1);
    assert_eq!(now.misses, before.misses);
    gate.begun(1).await;
    gate.open();
    until("the new value is stored", async || {
        fresh(&cache).await.is_some()
    })
    .await;
    assert_eq!(*fresh(&cache).await.expect("stored"), "new");
}

#[tokio::test]
async fn a_stale_value_is_loaded_once_however_many_calls_of_the_fleet_are_served() {
    let server = Server::start().await;
    let (first, second) = (cache(&server).await, cache(&server).await);
    stale(&server, &first).await;
    let gate = Gate::closed();
    let calls = (0..100).map(|at| {
        let cache = if at % 2 == 0 { &first } else { &second };
        gated(cache, &gate).stale(MINUTE).into_future()
    });
    for served in join_all(calls).await {
        assert_eq!(*served.expect("served"), "old");
    }
    gate.begun(1).await;
    gate.open();
    until("the new value is stored", async || {
        fresh(&first).await.is_some()
    })
    .await;
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_value_that_is_staler_than_a_call_allows_is_loaded_first() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    stale(&server, &cache).await;
    for window in [Duration::ZERO, MINUTE / 4] {
        let gate = Gate::closed();
        gate.open();
        let value = gated(&cache, &gate).stale(window).await;
        assert_eq!(*value.expect("loaded"), "new", "{window:?}");
        stale(&server, &cache).await;
    }
}

#[tokio::test]
async fn no_other_verb_finds_a_stale_value() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    stale(&server, &cache).await;
    assert_eq!(fresh(&cache).await, None);
    assert_eq!(
        cache.get_many::<String>(["k"]).await.expect("an answer"),
        [None]
    );
    assert!(!cache.contains("k").await.expect("an answer"));
    assert_eq!(cache.ttl("k").await.expect("an answer"), None);
    assert!(!cache.touch("k", MINUTE).await.expect("an answer"));
    assert_eq!(cache.take::<String>("k").await.expect("an answer"), None);
    assert!(
        !cache
            .set("k", "x", MINUTE)
            .if_present()
            .await
            .expect("an answer")
    );
    assert!(cache.add("k", "added", MINUTE).await.expect("an answer"));
    assert_eq!(*fresh(&cache).await.expect("added"), "added");
}

#[tokio::test]
async fn an_entry_keeps_its_stale_window_behind_a_new_end() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    stored(&cache, "old").await;
    let left = cache
        .ttl("k")
        .await
        .expect("an answer")
        .expect("it is there");
    assert!(left <= MINUTE, "{left:?}");
    assert!(cache.expire("k", 10 * MINUTE).await.expect("an answer"));
    let left = cache
        .ttl("k")
        .await
        .expect("an answer")
        .expect("it is there");
    assert!((9 * MINUTE..=10 * MINUTE).contains(&left), "{left:?}");
    assert!(cache.touch("k", 5 * MINUTE).await.expect("an answer"));
    let left = cache
        .ttl("k")
        .await
        .expect("an answer")
        .expect("it is there");
    assert!((9 * MINUTE..=10 * MINUTE).contains(&left), "{left:?}");
    aged(&server, KEY, 20 * MINUTE).await;
    let gate = Gate::closed();
    let served = gated(&cache, &gate).stale(60 * MINUTE).await;
    assert_eq!(*served.expect("served"), "old");
}

#[tokio::test]
async fn nothing_stale_is_served_after_a_removal_or_a_hard_invalidation() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    for way in ["remove", "set", "tag", "clear", "soft, then hard"] {
        stale(&server, &cache).await;
        match way {
            "remove" => cache.remove("k").await.expect("removed"),
            "set" => cache.set("k", "set", MINUTE).await.expect("stored"),
            "tag" => cache.invalidate_tags(["t"]).await.expect("invalidated"),
            "clear" => cache.clear().await.expect("cleared"),
            _ => {
                cache
                    .invalidate_tags(["t"])
                    .soft()
                    .await
                    .expect("invalidated");
                cache.invalidate_tags(["t"]).await.expect("invalidated");
            }
        }
        let gate = Gate::closed();
        gate.open();
        let value = gated(&cache, &gate).stale(60 * MINUTE).await.expect(way);
        let expected = if way == "set" { "set" } else { "new" };
        assert_eq!(*value, expected, "{way}");
        cache.remove("k").await.expect("removed");
    }
}

#[tokio::test]
async fn a_soft_invalidation_makes_a_value_stale_and_no_fresh_read_finds_it() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    for times in [1, 8] {
        stored(&cache, "old").await;
        for _ in 0..times {
            cache
                .invalidate_tags(["t"])
                .soft()
                .await
                .expect("invalidated");
        }
        assert_eq!(fresh(&cache).await, None);
        let gate = Gate::closed();
        let served = gated(&cache, &gate).stale(MINUTE).await;
        assert_eq!(*served.expect("served"), "old", "{times}");
        gate.begun(1).await;
        gate.open();
        until("the new value is stored", async || {
            fresh(&cache).await.is_some()
        })
        .await;
        cache.remove("k").await.expect("removed");
    }
}

#[tokio::test]
async fn clear_can_be_soft_too() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    stored(&cache, "old").await;
    cache.clear().soft().await.expect("cleared");
    assert_eq!(fresh(&cache).await, None);
    let served = gated(&cache, &Gate::closed()).stale(MINUTE).await;
    assert_eq!(*served.expect("served"), "old");
}

#[tokio::test]
async fn a_soft_invalidation_of_a_value_without_a_window_is_hard() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    cache
        .set("k", "old", MINUTE)
        .tags(["t"])
        .await
        .expect("stored");
    cache
        .invalidate_tags(["t"])
        .soft()
        .await
        .expect("invalidated");
    assert_eq!(fresh(&cache).await, None);
    let gate = Gate::closed();
    gate.open();
    let value = gated(&cache, &gate).stale(MINUTE).await;
    assert_eq!(*value.expect("loaded"), "new");
}

#[tokio::test]
async fn more_than_eight_soft_invalidations_are_as_a_hard_one() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    stored(&cache, "old").await;
    for _ in 0..9 {
        cache
            .invalidate_tags(["t"])
            .soft()
            .await
            .expect("invalidated");
    }
    let gate = Gate::closed();
    gate.open();
    let value = gated(&cache, &gate).stale(60 * MINUTE).await;
    assert_eq!(*value.expect("loaded"), "new");
}

#[tokio::test]
async fn a_refresh_that_an_invalidation_overtakes_is_not_stored() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    for way in ["remove", "tag", "soft"] {
        stale(&server, &cache).await;
        let (gate, before) = (Gate::closed(), cache.stats());
        let served = gated(&cache, &gate).tags(["t"]).stale(MINUTE).await;
        assert_eq!(*served.expect("served"), "old");
        gate.begun(1).await;
        match way {
            "remove" => cache.remove("k").await.expect("removed"),
            "tag" => cache.invalidate_tags(["t"]).await.expect("invalidated"),
            _ => cache
                .invalidate_tags(["t"])
                .soft()
                .await
                .expect("invalidated"),
        }
        gate.open();
        until("the refresh has ended", async || {
            let now = cache.stats();
            now.loads > before.loads && server.keys("hr:l:*").await.is_empty()
        })
        .await;
        assert_eq!(fresh(&cache).await, None, "{way}");
        cache.remove("k").await.expect("removed");
    }
}

/// Asks for a value by a call that may be given a stale one. Returns it, and whether it was stale.
async fn seen(cache: &Cache, windows: [Duration; 2]) -> (String, bool) {
    let seen = Arc::new(AtomicBool::new(false));
    let load = async || Err::<String, _>(io::Error::other("no such row"));
    let [stale, stale_if_error] = windows;
    let call = cache.memoize("k", MINUTE, load).tags(["t"]);
    let call = call.stale(stale).stale_if_error(stale_if_error);
    let value = call.stale_seen(seen.clone()).await.expect("served");
    ((*value).clone(), seen.load(Ordering::Relaxed))
}

#[tokio::test]
async fn each_call_says_whether_its_value_is_stale() {
    let server = Server::start().await;
    let hour = 60 * MINUTE;
    let [at_once, if_it_fails] = [[hour, Duration::ZERO], [Duration::ZERO, hour]];
    for way in ["old", "soft"] {
        // The first failed load is remembered by Redis, and by no other process.
        let caches = [cache(&server).await, cache(&server).await];
        let caches = caches.map(|cache| cache.error_ttl(hour));
        stored(&caches[0], "old").await;
        for windows in [at_once, if_it_fails] {
            let fresh = ("old".to_owned(), false);
            assert_eq!(seen(&caches[0], windows).await, fresh, "{way}");
        }
        match way {
            "old" => aged(&server, KEY, MINUTE + MINUTE / 2).await,
            _ => {
                let purge = caches[0].invalidate_tags(["t"]).soft();
                purge.await.expect("invalidated");
            }
        }
        for (windows, cache) in [(at_once, &caches[0]), (if_it_fails, &caches[1])] {
            let all = join_all((0..20).map(|_| seen(cache, windows))).await;
            for found in all {
                assert_eq!(found, ("old".to_owned(), true), "{way} {windows:?}");
            }
            until("the load has failed", async || {
                caches[0].stats().failed_loads == 1
            })
            .await;
        }
        assert_eq!(caches[1].stats().failed_loads, 0);
    }
}

#[tokio::test]
async fn a_failed_load_is_passed_over_and_not_repeated_at_once() {
    let server = Server::start().await;
    let cache = cache(&server).await.error_ttl(MINUTE);
    stale(&server, &cache).await;
    let loads = Arc::new(AtomicUsize::new(0));
    for _ in 0..3 {
        let served = failing(&cache, &loads).await;
        assert_eq!(*served.expect("served"), "old");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(cache.stats().stale_served, 3);
    // A call that allows no stale value learns of the failure.
    let plain = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>("new".to_owned()));
    let error = plain.await.expect_err("it has just failed");
    assert_eq!(error.kind(), ErrorKind::Loader);
}

#[tokio::test]
async fn a_failed_load_is_an_error_where_no_stale_value_is_allowed() {
    let server = Server::start().await;
    let cache = cache(&server).await.error_ttl(Duration::ZERO);
    let loads = Arc::new(AtomicUsize::new(0));
    failing(&cache, &loads).await.expect_err("nothing is there");
    stale(&server, &cache).await;
    aged(&server, KEY, 20 * MINUTE).await;
    let error = failing(&cache, &loads).await.expect_err("it is too old");
    assert!(error.loader_error::<io::Error>().is_some(), "{error}");
    stored(&cache, "old").await;
    aged(&server, KEY, 2 * MINUTE).await;
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    failing(&cache, &loads)
        .await
        .expect_err("it was invalidated");
}

#[tokio::test]
async fn all_calls_that_wait_for_a_load_that_fails_are_served() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    stale(&server, &cache).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let calls = (0..50).map(|_| failing(&cache, &loads));
    for served in join_all(calls).await {
        assert_eq!(*served.expect("served"), "old");
    }
}

#[tokio::test]
async fn a_slow_load_is_not_waited_for_where_a_stale_value_is_allowed() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    stale(&server, &cache).await;
    let gate = Gate::closed();
    let call = gated(&cache, &gate).stale_if_error(10 * MINUTE);
    let served = call.soft_timeout(Duration::from_millis(20)).await;
    assert_eq!(*served.expect("served"), "old");
    gate.begun(1).await;
    gate.open();
    until("the load goes on", async || fresh(&cache).await.is_some()).await;
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_hard_timeout_ends_the_wait_and_not_the_load() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let gate = Gate::closed();
    let call = gated(&cache, &gate).hard_timeout(Duration::from_millis(20));
    let error = call.await.expect_err("it takes longer");
    assert_eq!(error.kind(), ErrorKind::LoaderTimeout);
    assert_eq!(error.key(), Some("k"));
    gate.begun(1).await;
    gate.open();
    until("the load goes on", async || fresh(&cache).await.is_some()).await;
}

#[tokio::test]
async fn a_soft_timeout_with_nothing_to_serve_is_refused() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let call = gated(&cache, &Gate::closed()).soft_timeout(MINUTE);
    let error = call.await.expect_err("it has no effect");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_value_that_is_asked_for_is_loaded_anew_before_its_end() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let slow = || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, Infallible>("old".to_owned())
    };
    cache.memoize("k", MINUTE, slow).await.expect("loaded");
    // Seven seconds are left, and by the law of XFetch a read loads with a chance of one in a
    // thousand, then more and more often.
    aged(&server, KEY, Duration::from_secs(53)).await;
    let (gate, before) = (Gate::closed(), cache.stats());
    until("an early refresh", async || {
        let value = gated(&cache, &gate).refresh_early().await;
        assert_eq!(*value.expect("served"), "old");
        cache.stats().refreshes > before.refreshes
    })
    .await;
    gate.begun(1).await;
    // It is served as long as it lives, also to calls that know nothing of this.
    let call = cache.memoize("k", MINUTE, async || {
        Ok::<_, Infallible>("other".to_owned())
    });
    assert_eq!(*call.await.expect("served"), "old");
    gate.open();
    until("the new value is stored", async || {
        fresh(&cache).await.is_some_and(|value| *value == "new")
    })
    .await;
    assert_eq!(gate.loads(), 1);
    assert_eq!(cache.stats().misses, before.misses);
}

#[tokio::test]
async fn a_refresh_is_part_of_no_other_load() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    stale(&server, &cache).await;
    // The loader of "outer" is served the stale "k", whose refresh asks for "outer".
    let inner = cache.clone();
    let outer = cache.memoize("outer", MINUTE, move || async move {
        let asks = inner.clone();
        let refresh = move || async move {
            let outer = async || Ok::<_, Infallible>("from k".to_owned());
            let outer = asks.memoize("outer", MINUTE, outer).await?;
            Ok::<_, hedgerow::Error>(format!("with {outer}"))
        };
        inner
            .memoize("k", MINUTE, refresh)
            .stale(10 * MINUTE)
            .await
            .map(|it| it.to_string())
    });
    assert_eq!(*outer.await.expect("loaded"), "old");
    until("the refresh has ended", async || {
        fresh(&cache)
            .await
            .is_some_and(|value| *value == "with old")
    })
    .await;
}

#[tokio::test]
async fn values_that_are_none_have_a_ttl_of_their_own() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    for (key, value) in [("some", Some(1)), ("none", None)] {
        let load = move || async move { Ok::<_, Infallible>(value) };
        let call = cache.memoize(key, 60 * MINUTE, load).none_ttl(MINUTE);
        call.await.expect("loaded");
    }
    let left = async |key| {
        cache
            .ttl(key)
            .await
            .expect("an answer")
            .expect("it is there")
    };
    assert!(left("none").await <= MINUTE);
    assert!(left("some").await > 59 * MINUTE);
}

#[tokio::test]
async fn an_error_is_remembered_for_as_long_as_its_class_says() {
    let server = Server::start().await;
    let cache = cache(&server).await.error_ttl(MINUTE);
    let loads = Arc::new(AtomicUsize::new(0));
    let fail = async |kind: io::ErrorKind| {
        let loads = loads.clone();
        let load = move || async move {
            loads.fetch_add(1, Ordering::SeqCst);
            Err::<u8, _>(io::Error::from(kind))
        };
        let call = cache.memoize("k", MINUTE, load).error_ttl_by(|error| {
            match error.loader_error::<io::Error>()?.kind() {
                io::ErrorKind::NotFound => Some(Duration::ZERO),
                _ => None,
            }
        });
        call.await.expect_err("it fails");
    };
    fail(io::ErrorKind::NotFound).await;
    fail(io::ErrorKind::NotFound).await;
    assert_eq!(loads.load(Ordering::SeqCst), 2, "not remembered");
    fail(io::ErrorKind::TimedOut).await;
    fail(io::ErrorKind::TimedOut).await;
    assert_eq!(loads.load(Ordering::SeqCst), 3, "remembered");
}

#[tokio::test]
async fn the_time_that_is_left_is_that_of_the_entry_that_was_read() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let raw = |cache: Cache| cache.codec(Codec::Raw).compression(Compression::None);
    let reads = raw(client.cache("c"));
    let writes = raw(cache(&server).await);
    let stored = async |letter: u8| {
        // Large values are read over a connection of their own.
        let load = move || async move { Ok::<_, Infallible>(vec![letter; 200_000]) };
        writes.remove("k").await.expect("removed");
        let call = writes.memoize("k", MINUTE, load).stale(60 * MINUTE);
        call.await.expect("loaded");
    };
    let read = async || {
        let value = reads.get::<Vec<u8>>("k").await.expect("an answer");
        value.map(|value| value[0])
    };
    stored(b'a').await;
    until("it is read over its own connection", async || {
        let before = calls(&server, &["mget"]).await;
        assert_eq!(read().await, Some(b'a'));
        let list: String = server.run(&["CLIENT", "LIST"]).await;
        let mut large = list.lines().filter(|line| line.contains("-large"));
        calls(&server, &["mget"]).await > before && large.any(|line| line.contains("cmd=mget"))
    })
    .await;
    aged(&server, KEY, MINUTE + MINUTE / 2).await;
    assert_eq!(read().await, None, "it is stale");
    // The old entry is read, then another is stored, and then the server says how long the key
    // still lives.
    let held = proxy.on(Request::any().named("PTTL"), Act::Hold);
    let replies = proxy.on_reply(Request::any().named("MGET"), Act::Delay(Duration::ZERO));
    let found = tokio::join!(read(), async {
        held.hit().await;
        replies.hit().await;
        stored(b'b').await;
        stored(b'b').await;
        held.deliver();
    });
    assert_eq!(found.0, Some(b'b'));
}
