//! `tag_snapshot` and `is_current`: tags of values that are kept elsewhere.

use std::time::Duration;

use hedgerow::ErrorKind;
use hedgerow::cache::TagSnapshot;

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
