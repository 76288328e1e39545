//! `tag_snapshot`, `tag_snapshot_of` and `is_current`: tags of values that are kept elsewhere.

use std::time::Duration;

use hedgerow::cache::{Entry, TagSnapshot};
use hedgerow::{Cache, ErrorKind};

use crate::support::server::Server;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn a_snapshot_is_current_until_one_of_its_tags_or_the_cache_is_invalidated() {
    let server = Server::start().await;
    let (first, second) = (server.client().await, server.client().await);
    let (cache, other) = (first.cache("c"), second.cache("c"));
    for way in ["a", "b", "softly", "clear", "evicted"] {
        let snapshot = cache.tag_snapshot(["a", "b"], DAY).await.expect("taken");
        // It may travel in any form.
        let text = serde_json::to_string(&snapshot).expect("written");
        let snapshot: TagSnapshot = serde_json::from_str(&text).expect("read");
        assert!(other.is_current(&snapshot).await.expect("an answer"));
        other
            .invalidate_tags(["another"])
            .await
            .expect("invalidated");
        assert!(other.is_current(&snapshot).await.expect("an answer"));
        match way {
            "softly" => other
                .invalidate_tags(["a"])
                .soft()
                .await
                .expect("invalidated"),
            "clear" => other.clear().await.expect("cleared"),
            "evicted" => {
                for key in server.keys("hr:t:*").await {
                    let _: i64 = server.run(&["DEL", &key]).await;
                }
            }
            tag => other.invalidate_tags([tag]).await.expect("invalidated"),
        }
        assert!(
            !cache.is_current(&snapshot).await.expect("an answer"),
            "{way}"
        );
    }
}

#[tokio::test]
async fn the_tags_of_a_snapshot_live_as_long_as_what_it_labels() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    cache.tag_snapshot(["a"], DAY).await.expect("taken");
    let lives = server.lives("hr:t:*").await;
    // Only one copy of the tag of the whole cache is needed.
    assert_eq!(lives.len(), 2, "{lives:?}");
    for (key, left) in lives {
        assert!(left as u128 >= DAY.as_millis() - 60_000, "{key}: {left}");
    }
    let error = cache
        .tag_snapshot(["a"], Duration::ZERO)
        .await
        .expect_err("no time");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_snapshot_of_another_cache_or_of_nothing_is_not_current() {
    let server = Server::start().await;
    let client = server.client().await;
    let snapshot = client
        .cache("c")
        .tag_snapshot(["a"], DAY)
        .await
        .expect("taken");
    let other = client.cache("other").is_current(&snapshot).await;
    assert!(!other.expect("an answer"));
    let nothing: TagSnapshot = serde_json::from_str(r#"{"generations":[]}"#).expect("read");
    let nothing = client.cache("c").is_current(&nothing).await;
    assert!(!nothing.expect("an answer"));
}

async fn entry(cache: &Cache, key: &str) -> Entry<u8> {
    let entry = cache.entry(key).await.expect("an answer");
    entry.expect("it is there")
}

/// Keys of many slots, so that the entries carry several copies of the tag of the whole cache.
#[tokio::test]
async fn the_snapshot_of_an_entry_is_current_until_a_tag_of_the_entry_or_the_cache_is_invalidated()
{
    let server = Server::start().await;
    let (first, second) = (server.client().await, server.client().await);
    let (cache, other) = (first.cache("c"), second.cache("c"));
    for way in ["a", "b", "softly", "clear"] {
        let mut snapshots = Vec::new();
        for key in (0..20).map(|at| format!("{way}:{at}")) {
            let set = cache.set(&key, &1u8, DAY).tags(["a"]);
            set.await.expect("stored");
            // It gets a tag.
            let old = entry(&cache, &key).await;
            let update = cache.update(&old, &2).tags(["b"]);
            assert!(update.await.expect("an answer"));
            let entry = entry(&cache, &key).await;
            let snapshot = cache.tag_snapshot_of(&entry, DAY).await.expect("taken");
            assert!(other.is_current(&snapshot).await.expect("an answer"));
            snapshots.push((entry, snapshot));
        }
        match way {
            "softly" => {
                let softly = other.invalidate_tags(["a"]).soft();
                softly.await.expect("invalidated");
            }
            "clear" => other.clear().await.expect("cleared"),
            tag => other.invalidate_tags([tag]).await.expect("invalidated"),
        }
        for (entry, snapshot) in snapshots {
            let current = cache.is_current(&snapshot).await.expect("an answer");
            assert!(!current, "{way}");
            // It is that of the entry as it was read.
            let snapshot = cache.tag_snapshot_of(&entry, DAY).await.expect("taken");
            let current = cache.is_current(&snapshot).await.expect("an answer");
            assert!(!current, "{way}");
        }
    }
}

#[tokio::test]
async fn the_tags_of_the_snapshot_of_an_entry_live_as_long_as_what_it_labels() {
    let server = Server::start().await;
    let (cache, other) = (
        server.client().await.cache("c"),
        server.client().await.cache("c"),
    );
    let set = cache.set("k", &1u8, Duration::from_secs(60)).tags(["a"]);
    set.await.expect("stored");
    for cache in [&cache, &other] {
        let entry = entry(cache, "k").await;
        cache.tag_snapshot_of(&entry, DAY).await.expect("taken");
        let lives = server.lives("hr:t:*").await;
        assert_eq!(lives.len(), 2, "{lives:?}");
        for (key, left) in lives {
            assert!(left as u128 >= DAY.as_millis() - 60_000, "{key}: {left}");
        }
    }
    let theirs = entry(&cache, "k").await;
    let foreign = server.client().await.cache("other");
    for refused in [
        foreign.tag_snapshot_of(&theirs, DAY).await,
        cache.tag_snapshot_of(&theirs, Duration::ZERO).await,
    ] {
        let error = refused.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}
