//! `memoize_with`: what a loader says of its value, and what becomes of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hedgerow::cache::Loading;
use hedgerow::{Cache, Error, ErrorKind, FOREVER, Fence, Result};

use crate::support::aging::{aged, old_tags};
use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::{until, waiting};

const MINUTE: Duration = Duration::from_secs(60);
const KEY: &str = "hr:v:{c:k}";

async fn cache(server: &Server) -> Cache {
    server.client().await.cache("c").jitter(0.0)
}

/// Loads `value`, and says what `say` says.
async fn loaded(
    cache: &Cache,
    value: u32,
    say: impl FnOnce(&Loading<u32>) + Send + 'static,
) -> Result<Arc<u32>> {
    let load = move |load: Loading<u32>| async move {
        say(&load);
        Ok::<_, Infallible>(value)
    };
    cache
        .memoize_with("k", MINUTE, load)
        .tags(["declared"])
        .await
}

async fn found(cache: &Cache) -> Option<u32> {
    cache.get("k").await.expect("an answer").map(|value| *value)
}

/// Makes `tag` known, long before any load of the test.
async fn known_tag(server: &Server, cache: &Cache, tag: &str) {
    cache
        .set("other", &1, 60 * MINUTE)
        .tags([tag])
        .await
        .expect("stored");
    old_tags(server).await;
}

#[tokio::test]
async fn a_tag_that_follows_from_the_value_labels_it() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    known_tag(&server, &cache, "late").await;
    for tag in ["late", "declared"] {
        loaded(&cache, 1, |load| load.tag("late"))
            .await
            .expect("loaded");
        assert_eq!(found(&cache).await, Some(1));
        cache.invalidate_tags([tag]).await.expect("invalidated");
        assert_eq!(found(&cache).await, None, "{tag}");
        old_tags(&server).await;
    }
}

#[tokio::test]
async fn a_value_whose_late_tag_may_be_younger_than_the_load_is_not_stored() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    // New: whether it was invalidated during the load, nobody knows.
    loaded(&cache, 1, |load| load.tag("late"))
        .await
        .expect("loaded");
    assert_eq!(found(&cache).await, None);
    // Invalidated just now.
    old_tags(&server).await;
    cache.invalidate_tags(["late"]).await.expect("invalidated");
    loaded(&cache, 2, |load| load.tag("late"))
        .await
        .expect("loaded");
    assert_eq!(found(&cache).await, None);
    old_tags(&server).await;
    loaded(&cache, 3, |load| load.tag("late"))
        .await
        .expect("loaded");
    assert_eq!(found(&cache).await, Some(3));
}

#[tokio::test]
async fn an_invalidation_of_a_late_tag_during_the_load_keeps_the_value_out() {
    let server = Server::start().await;
    let (cache, other) = (cache(&server).await, cache(&server).await);
    known_tag(&server, &cache, "late").await;
    let gate = Gate::closed();
    let (calls, waits) = (cache.clone(), gate.clone());
    let call = tokio::spawn(async move {
        let load = move |load: Loading<u32>| async move {
            let value = waits.load(1).await?;
            load.tag("late");
            Ok::<_, Infallible>(value)
        };
        calls.memoize_with("k", MINUTE, load).await
    });
    gate.begun(1).await;
    other.invalidate_tags(["late"]).await.expect("invalidated");
    gate.open();
    assert_eq!(*call.await.expect("no panic").expect("loaded"), 1);
    assert_eq!(found(&cache).await, None);
}

#[tokio::test]
async fn a_call_after_an_invalidation_of_a_late_tag_gets_nothing_of_the_load_before() {
    let server = Server::start().await;
    let (cache, other) = (cache(&server).await, cache(&server).await);
    for is_stored in [true, false] {
        known_tag(&server, &cache, "late").await;
        let gate = Gate::closed();
        let call = |value: u32, gate: Gate| {
            let cache = cache.clone();
            tokio::spawn(async move {
                let load = move |load: Loading<u32>| async move {
                    let value = gate.load(value).await?;
                    load.tag("late");
                    if !is_stored {
                        load.no_store();
                    }
                    Ok::<_, Infallible>(value)
                };
                cache.memoize_with("k", MINUTE, load).await
            })
        };
        let first = call(1, gate.clone());
        gate.begun(1).await;
        other.invalidate_tags(["late"]).await.expect("invalidated");
        let before = cache.stats().misses;
        let late = call(2, gate.clone());
        until("it has joined", async || cache.stats().misses > before).await;
        gate.open();
        gate.open();
        assert_eq!(*first.await.expect("no panic").expect("loaded"), 1);
        assert_eq!(
            *late.await.expect("no panic").expect("loaded"),
            2,
            "{is_stored}"
        );
    }
}

#[tokio::test]
async fn calls_that_wait_for_a_value_that_is_not_stored_get_it_together() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let gate = Gate::closed();
    let call = |gate: Gate| {
        let cache = cache.clone();
        tokio::spawn(async move {
            let load = move |load: Loading<u32>| async move {
                load.no_store();
                gate.load(1).await
            };
            cache.memoize_with("k", MINUTE, load).await
        })
    };
    let first = call(gate.clone());
    gate.begun(1).await;
    let before = cache.stats().misses;
    // They join while it runs, and get what it loads.
    let late: Vec<_> = (0..10).map(|_| call(gate.clone())).collect();
    until("all have joined", async || {
        cache.stats().misses >= before + 10
    })
    .await;
    gate.open();
    assert_eq!(*first.await.expect("no panic").expect("loaded"), 1);
    for call in late {
        assert_eq!(*call.await.expect("no panic").expect("loaded"), 1);
    }
    assert_eq!(gate.loads(), 1);
    assert_eq!(found(&cache).await, None);
    assert!(
        server.keys("hr:l:*").await.is_empty(),
        "the lease is given up"
    );
}

#[tokio::test]
async fn a_loader_sets_the_ttl_and_the_tags_live_as_long() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    for ttl in [MINUTE / 2, 600 * MINUTE] {
        loaded(&cache, 1, move |load| load.ttl(ttl))
            .await
            .expect("loaded");
        let left = cache
            .ttl("k")
            .await
            .expect("an answer")
            .expect("it is there");
        assert!(left <= ttl && left > ttl - MINUTE / 3, "{left:?}");
        for (key, left) in server.lives("hr:t:*").await {
            assert!(left as u128 >= ttl.as_millis(), "{key} ends in {left} ms");
        }
        cache.remove("k").await.expect("removed");
    }
}

#[tokio::test]
async fn what_a_loader_says_wrongly_is_the_error_of_the_call() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let mistakes: [fn(&Loading<u32>); 4] = [
        |load| load.tag(""),
        |load| load.ttl(Duration::ZERO),
        |load| load.tags((0..300).map(|tag| tag.to_string())),
        // With the declared one and that of the cache, one too many.
        |load| load.tags((0..254).map(|tag| tag.to_string())),
    ];
    for mistake in mistakes {
        let error = loaded(&cache, 1, mistake).await.expect_err("a mistake");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(found(&cache).await, None);
        assert!(
            server.keys("hr:l:*").await.is_empty(),
            "the lease is given up"
        );
    }
}

#[tokio::test]
async fn a_value_that_was_not_modified_lives_on_and_is_not_sent_again() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let old = async || Ok::<_, Infallible>("old".to_owned());
    let call = cache.memoize("k", MINUTE, old).tags(["t"]);
    call.stale_if_error(60 * MINUTE).await.expect("loaded");
    aged(&server, KEY, 2 * MINUTE).await;
    let revision: Vec<u8> = server.run(&["GETRANGE", KEY, "24", "31"]).await;
    let unchanged = |load: Loading<String>| async move {
        let old = load.stale().expect("it is there");
        assert_eq!(*old, "old");
        Ok::<_, Infallible>(load.not_modified(&old))
    };
    let call = cache.memoize_with("k", MINUTE, unchanged).tags(["t"]);
    let value = call.stale_if_error(60 * MINUTE).await.expect("loaded");
    assert_eq!(*value, "old");
    let after: Vec<u8> = server.run(&["GETRANGE", KEY, "24", "31"]).await;
    assert_eq!(after, revision, "the same entry");
    assert_eq!(
        *cache
            .get::<String>("k")
            .await
            .expect("an answer")
            .expect("fresh"),
        "old"
    );
    // After a soft invalidation its stamps are old, so it is written again.
    cache
        .invalidate_tags(["t"])
        .soft()
        .await
        .expect("invalidated");
    let call = cache.memoize_with("k", MINUTE, unchanged).tags(["t"]);
    call.stale_if_error(60 * MINUTE).await.expect("loaded");
    let after: Vec<u8> = server.run(&["GETRANGE", KEY, "24", "31"]).await;
    assert_ne!(after, revision);
    assert_eq!(
        *cache
            .get::<String>("k")
            .await
            .expect("an answer")
            .expect("fresh"),
        "old"
    );
}

#[tokio::test]
async fn a_value_that_was_removed_while_it_was_found_unchanged_does_not_come_back() {
    let server = Server::start().await;
    let (cache, other) = (cache(&server).await, cache(&server).await);
    for way in ["remove", "tag"] {
        let old = async || Ok::<_, Infallible>("old".to_owned());
        let call = cache.memoize("k", MINUTE, old).tags(["t"]);
        call.stale_if_error(60 * MINUTE).await.expect("loaded");
        aged(&server, KEY, 2 * MINUTE).await;
        let gate = Gate::closed();
        let (calls, waits) = (cache.clone(), gate.clone());
        let call = tokio::spawn(async move {
            let load = move |load: Loading<String>| async move {
                waits.load(()).await?;
                let old = load.stale().expect("it was there");
                Ok::<_, Infallible>(load.not_modified(&old))
            };
            let call = calls.memoize_with("k", MINUTE, load).tags(["t"]);
            call.stale_if_error(60 * MINUTE).await
        });
        gate.begun(1).await;
        match way {
            "remove" => other.remove("k").await.expect("removed"),
            _ => other.invalidate_tags(["t"]).await.expect("invalidated"),
        }
        gate.open();
        call.await.expect("no panic").expect("loaded");
        assert_eq!(
            cache.get::<String>("k").await.expect("an answer"),
            None,
            "{way}"
        );
        cache.remove("k").await.expect("removed");
    }
}

#[tokio::test]
async fn a_value_that_was_not_modified_keeps_the_tags_that_followed_from_it() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    for way in ["live on", "written again"] {
        known_tag(&server, &cache, "late").await;
        cache.remove("k").await.expect("removed");
        let load = |load: Loading<u32>| async move {
            load.tag("late");
            Ok::<_, Infallible>(1)
        };
        let call = cache.memoize_with("k", MINUTE, load).tags(["declared"]);
        call.stale_if_error(60 * MINUTE).await.expect("loaded");
        match way {
            "live on" => aged(&server, KEY, 2 * MINUTE).await,
            _ => cache
                .invalidate_tags(["declared"])
                .soft()
                .await
                .expect("invalidated"),
        }
        // As a source that answers "not modified", with nothing else.
        let unchanged = |load: Loading<u32>| async move {
            let old = load.stale().expect("it is there");
            Ok::<_, Infallible>(load.not_modified(&old))
        };
        let call = cache
            .memoize_with("k", 30 * MINUTE, unchanged)
            .tags(["declared"]);
        call.stale_if_error(60 * MINUTE).await.expect("loaded");
        assert_eq!(found(&cache).await, Some(1), "{way}");
        for (key, left) in server.lives("hr:t:*").await {
            assert!(
                left as u128 > (80 * MINUTE).as_millis(),
                "{key} ends in {left} ms"
            );
        }
        cache.invalidate_tags(["late"]).await.expect("invalidated");
        assert_eq!(found(&cache).await, None, "{way}");
    }
}

#[tokio::test]
async fn a_loader_is_not_given_what_was_removed_while_it_waited_for_its_turn() {
    let server = Server::start().await;
    let (cache, other) = (cache(&server).await, cache(&server).await);
    for way in ["remove", "tag", "nothing"] {
        cache.remove("k").await.expect("removed");
        let old = async || Ok::<_, Infallible>(7_u32);
        let call = cache.memoize("k", MINUTE, old).tags(["declared"]);
        call.stale_if_error(60 * MINUTE).await.expect("loaded");
        aged(&server, KEY, 2 * MINUTE).await;
        // Another process loads, and gives up.
        let gate = Gate::closed();
        let (calls, waits) = (other.clone(), gate.clone());
        let first = tokio::spawn(async move {
            let load = move |load: Loading<u32>| async move {
                load.no_store();
                waits.load(1).await
            };
            calls.memoize_with("k", MINUTE, load).await
        });
        gate.begun(1).await;
        let calls = cache.clone();
        let second = tokio::spawn(async move {
            let load = |load: Loading<u32>| async move {
                Ok::<_, Infallible>(load.stale().map_or(0, |old| *old))
            };
            let call = calls.memoize_with("k", MINUTE, load).tags(["declared"]);
            call.stale_if_error(60 * MINUTE).await
        });
        waiting(&server, "hr:l:{c:k}", 1).await;
        match way {
            "remove" => {
                // As an eviction would: the load under way is not ended.
                let _: i64 = server.run(&["DEL", KEY]).await;
            }
            "tag" => other
                .invalidate_tags(["declared"])
                .await
                .expect("invalidated"),
            _ => {}
        }
        gate.open();
        first.await.expect("no panic").expect("loaded");
        let told = *second.await.expect("no panic").expect("loaded");
        assert_eq!(told, if way == "nothing" { 7 } else { 0 }, "{way}");
    }
}

#[tokio::test]
async fn an_entry_that_is_gone_when_it_was_found_unchanged_is_not_made_up() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let old = async || Ok::<_, Infallible>(7_u32);
    let call = cache.memoize("k", MINUTE, old);
    call.stale_if_error(60 * MINUTE).await.expect("loaded");
    aged(&server, KEY, 2 * MINUTE).await;
    let gate = Gate::closed();
    let (calls, waits) = (cache.clone(), gate.clone());
    let call = tokio::spawn(async move {
        let load = move |load: Loading<u32>| async move {
            waits.load(()).await?;
            let old = load.stale().expect("it was there");
            Ok::<_, Infallible>(load.not_modified(&old))
        };
        calls
            .memoize_with("k", MINUTE, load)
            .stale_if_error(60 * MINUTE)
            .await
    });
    gate.begun(1).await;
    let _: i64 = server.run(&["DEL", KEY]).await;
    gate.open();
    assert_eq!(*call.await.expect("no panic").expect("loaded"), 7);
    assert!(
        server.keys("hr:[vl]:*").await.is_empty(),
        "no entry, and no lease"
    );
}

#[tokio::test]
async fn the_later_of_two_loads_has_the_greater_fence() {
    let server = Server::start().await;
    let (first, second) = (cache(&server).await, cache(&server).await);
    let mut last = None;
    for cache in [&first, &second, &first] {
        let (said, fence) = tokio::sync::oneshot::channel::<Option<Fence>>();
        let say = move |load: &Loading<u32>| {
            let _ = said.send(load.fence());
            load.no_store();
        };
        loaded(cache, 1, say).await.expect("loaded");
        let fence = fence.await.expect("said");
        assert!(fence.is_some() && fence > last, "{fence:?} after {last:?}");
        last = fence;
    }
}

#[tokio::test]
async fn loads_that_begin_during_a_hold_are_served_and_not_stored() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    // Also where no entry carries the tag yet.
    for _ in 0..2 {
        cache
            .invalidate_tags(["declared"])
            .hold(MINUTE)
            .await
            .expect("invalidated");
        for value in [1, 2] {
            let loaded = loaded(&cache, value, |_| {}).await.expect("loaded");
            assert_eq!(*loaded, value);
            assert_eq!(found(&cache).await, None);
        }
        // A later invalidation does not end the hold.
        cache
            .invalidate_tags(["declared"])
            .await
            .expect("invalidated");
        loaded(&cache, 3, |_| {}).await.expect("loaded");
        assert_eq!(found(&cache).await, None);
        // The hold is over.
        old_tags(&server).await;
        loaded(&cache, 4, |_| {}).await.expect("loaded");
        assert_eq!(found(&cache).await, Some(4));
    }
    let error = cache.invalidate_tags(["t"]).hold(2000 * MINUTE).await;
    assert_eq!(error.expect_err("too long").kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_loader_without_redis_has_no_fence_and_its_value_is_not_stored() {
    let server = Server::start_single().await;
    let cache = cache(&server).await.outage(hedgerow::Outage::Bypass);
    let _killed = server.kill().await;
    let load = |load: Loading<u32>| async move {
        assert_eq!(load.fence(), None);
        load.tag("t");
        Ok::<_, Error>(1)
    };
    let cache = cache.deadline(Duration::from_millis(200));
    assert_eq!(
        *cache.memoize_with("k", MINUTE, load).await.expect("loaded"),
        1
    );
}

#[tokio::test]
async fn a_loader_says_for_how_long_its_value_is_kept_stale() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let call = |value: u32, window: Option<Duration>| {
        let load = move |load: Loading<u32>| async move {
            if let Some(window) = window {
                load.keep_stale(window);
            }
            Ok::<_, Infallible>(value)
        };
        let call = cache.memoize_with("k", MINUTE, load).tags(["declared"]);
        call.stale(FOREVER).keep_stale(Duration::ZERO)
    };
    let refused = call(4, Some(FOREVER * 2)).await.expect_err("too long");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    assert_eq!(found(&cache).await, None);
    cache
        .remove("k")
        .await
        .expect("the record of the failure, too");
    call(1, None).await.expect("loaded");
    let lives = server.lives(KEY).await;
    assert!(lives[0].1 <= 60_000, "{lives:?}");
    cache.remove("k").await.expect("removed");
    call(2, Some(60 * MINUTE)).await.expect("loaded");
    let lives = server.lives(KEY).await;
    assert!(lives[0].1 > 3_600_000, "{lives:?}");
    // Its tags live as long, and those of a call with a long reach do not live for ever.
    for (tag, left) in server.lives("hr:t:*").await {
        assert!((3_600_000..24 * 3_600_000).contains(&left), "{tag}: {left}");
    }
    aged(&server, KEY, 2 * MINUTE).await;
    assert_eq!(*call(3, None).await.expect("served"), 2);
}
