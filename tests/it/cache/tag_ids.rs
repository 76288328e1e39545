//! Which tag is which: names that were chosen to be taken for each other are not.

use std::time::Duration;

use hedgerow::Cache;

use crate::support::server::Server;

const MINUTE: Duration = Duration::from_secs(60);

async fn is_there(cache: &Cache) -> bool {
    cache.get::<u8>("k").await.expect("an answer").is_some()
}

/// XXH3 of this name equals XXH3, with seed 1, of the cache's name: what can be inverted can be
/// chosen so. The tag was once taken for that of the whole cache, and invalidating it did nothing.
#[tokio::test]
async fn a_tag_that_was_named_to_collide_with_its_cache_is_invalidated_all_the_same() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c29060");
    let tag = "VHS)6k&3";
    let set = || cache.set("k", &1u8, MINUTE).tags([tag]);
    set().await.expect("stored");
    assert!(is_there(&cache).await);
    cache.invalidate_tags([tag]).await.expect("invalidated");
    assert!(!is_there(&cache).await);
    set().await.expect("stored");
    cache.clear().await.expect("cleared");
    assert!(!is_there(&cache).await);
}

/// The name of a cache is no secret, and neither is how ids are made.
#[tokio::test]
async fn a_tag_of_the_name_of_its_cache_is_another_tag() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    for tag in ["c", "cache:c", "(all of c)"] {
        let set = cache.set("k", &1u8, MINUTE).tags([tag]);
        set.await.expect("stored");
        let other = cache.set("other", &1u8, MINUTE);
        other.await.expect("stored");
        cache.invalidate_tags([tag]).await.expect("invalidated");
        assert!(!is_there(&cache).await, "{tag}");
        let other = cache.get::<u8>("other").await.expect("an answer");
        assert!(other.is_some(), "{tag} is not the whole cache");
    }
}

#[tokio::test]
async fn a_tag_shows_its_name_for_people_and_cuts_a_long_one_between_characters() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    // 199 bytes, then one character of three.
    let long = format!("{}\u{20ac}tail", "n".repeat(199));
    for (tag, shown) in [("FR", "FR".to_owned()), (&long, "n".repeat(199))] {
        let before = server.keys("hr:t:*").await;
        let set = cache.set("k", &1u8, MINUTE).tags([tag]);
        set.await.expect("stored");
        let mut names = Vec::new();
        for key in server.keys("hr:t:*").await {
            assert!(key.len() <= "hr:t:{}".len() + 32 + 5, "spelt by id: {key}");
            if !before.contains(&key) {
                let name: String = server.run(&["GETRANGE", &key, "15", "-1"]).await;
                names.push(name);
            }
        }
        assert!(names.contains(&shown), "{names:?}");
    }
}
