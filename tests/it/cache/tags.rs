//! Tags: what an invalidation reaches, and what tags cost.

use std::convert::Infallible;
use std::time::Duration;

use hedgerow::{Cache, ErrorKind};

use crate::support::gate::Gate;
use crate::support::monitor::Monitor;
use crate::support::server::Server;
use crate::support::wait::calls;

const MINUTE: Duration = Duration::from_secs(60);

async fn set(cache: &Cache, key: &str, tags: &[&str]) {
    cache
        .set(key, &1u8, MINUTE)
        .tags(tags)
        .await
        .expect("stored");
}

async fn is_there(cache: &Cache, key: &str) -> bool {
    cache.get::<u8>(key).await.expect("an answer").is_some()
}

#[tokio::test]
async fn an_invalidation_reaches_every_value_that_carries_the_tag_and_no_other() {
    let server = Server::start().await;
    let (writer, other) = (server.client().await, server.client().await);
    let (cities, people) = (writer.cache("cities"), writer.cache("people"));
    set(&cities, "lyon", &["FR", "big"]).await;
    set(&cities, "bonn", &["DE"]).await;
    set(&people, "marie", &["FR"]).await;
    set(&people, "kim", &[]).await;
    other
        .cache("any")
        .invalidate_tags(["FR"])
        .await
        .expect("invalidated");
    assert!(!is_there(&cities, "lyon").await);
    assert!(is_there(&cities, "bonn").await);
    assert!(!is_there(&people, "marie").await);
    assert!(is_there(&people, "kim").await);
    cities.clear().await.expect("cleared");
    assert!(!is_there(&cities, "bonn").await);
    assert!(is_there(&people, "kim").await);
}

#[tokio::test]
async fn nothing_is_a_hit_once_all_tag_keys_are_deleted_by_hand() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    set(&cache, "tagged", &["t"]).await;
    set(&cache, "plain", &[]).await;
    for key in server.keys("hr:t:*").await {
        let _: () = server.run(&["DEL", &key]).await;
    }
    assert!(!is_there(&cache, "tagged").await);
    assert!(!is_there(&cache, "plain").await);
    // A load brings the tags back, with generations that no old entry carries.
    let load = cache.memoize("plain", MINUTE, async || Ok::<_, Infallible>(2u8));
    assert_eq!(*load.await.expect("loaded"), 2);
    assert!(!is_there(&cache, "tagged").await);
    assert!(is_there(&cache, "plain").await);
}

#[tokio::test]
async fn one_tag_deleted_by_hand_takes_its_values_along() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    set(&cache, "whole", &[]).await;
    let whole = server.keys("hr:t:*").await;
    set(&cache, "tagged", &["t"]).await;
    for key in server.keys("hr:t:*").await {
        if !whole.contains(&key) {
            let _: () = server.run(&["DEL", &key]).await;
        }
    }
    assert!(!is_there(&cache, "tagged").await);
    assert!(is_there(&cache, "whole").await);
}

#[tokio::test]
async fn a_tag_outlives_what_carries_it_and_its_ttl_is_only_extended() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let hour = Duration::from_secs(3600);
    let long = cache.set("k", &1u8, hour).tags(["t"]);
    long.await.expect("stored");
    set(&cache, "k", &["t"]).await;
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    set(&server.client().await.cache("c"), "k", &["t"]).await;
    let lives = server.lives("hr:t:*").await;
    assert_eq!(lives.len(), 2, "the whole cache and the tag");
    for (key, left) in lives {
        assert!(left > 3_960_000, "{key} has {left} ms left");
    }
}

#[tokio::test]
async fn a_tag_is_prolonged_only_where_it_could_end_before_an_entry() {
    let server = Server::start_single().await;
    // Each client asks for what it does not know yet.
    let stored_by_many = async || {
        for _ in 0..4 {
            set(&server.client().await.cache("c"), "k", &["t"]).await;
        }
        calls(&server, &["pexpire"]).await
    };
    assert_eq!(stored_by_many().await, 0, "a new tag lives for long enough");
    // An entry may live for 66 s, and its load for 30 s before that. It may be stored 20 s later.
    for (seconds, prolonged) in [("120", 0), ("90", 2)] {
        for key in server.keys("hr:t:*").await {
            let _: () = server.run(&["EXPIRE", &key, seconds]).await;
        }
        let so_far = stored_by_many().await;
        assert_eq!(so_far, prolonged, "two tags that live for {seconds} s");
    }
}

#[tokio::test]
async fn touching_an_entry_often_prolongs_its_tags_seldom() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set(&cache, "k", &["t"]).await;
    for key in server.keys("hr:t:*").await {
        let _: () = server.run(&["EXPIRE", &key, "90"]).await;
    }
    let hour = Duration::from_secs(3600);
    for _ in 0..10 {
        assert!(cache.touch("k", hour).await.expect("touched"));
        assert!(cache.expire("k", hour).await.expect("given an end"));
    }
    // Each of the two tags once, and the entry each time.
    let prolonged = calls(&server, &["pexpire"]).await;
    assert!(prolonged <= 22, "{prolonged}");
    for (key, left) in server.lives("hr:t:*").await {
        assert!(left > 7_200_000, "{key} has {left} ms left");
    }
}

#[tokio::test]
async fn a_tag_that_another_client_has_made_again_is_prolonged_where_it_must_be() {
    let server = Server::start().await;
    let (one, other) = (server.client().await, server.client().await);
    let (one, other) = (one.cache("c"), other.cache("c"));
    let hour = Duration::from_secs(3600);
    let long = async || {
        let set = one.set("k", &1u8, hour).tags(["t"]);
        set.await.expect("stored");
    };
    long().await;
    for key in server.keys("hr:t:*").await {
        let _: () = server.run(&["DEL", &key]).await;
    }
    set(&other, "k", &["t"]).await;
    long().await;
    for (key, left) in server.lives("hr:t:*").await {
        assert!(left > 3_960_000, "{key} has {left} ms left");
    }
}

#[tokio::test]
async fn a_tag_outlives_an_entry_that_is_stored_as_late_as_the_deadline() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    set(&cache.deadline(30 * MINUTE), "k", &["t"]).await;
    for (key, left) in server.lives("hr:t:*").await {
        assert!(left > 1_860_000, "{key} has {left} ms left");
    }
}

/// `used_memory` of the server.
async fn memory(server: &Server) -> u64 {
    let info: String = server.run(&["INFO", "memory"]).await;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    line.expect("a server says so").parse().expect("bytes")
}

#[tokio::test]
async fn invalidating_tags_that_nobody_uses_leaves_nothing_on_the_server() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set(&cache, "k", &["used"]).await;
    cache
        .invalidate_tags(["unused"])
        .await
        .expect("known script");
    let (before, keys) = (memory(&server).await, server.keys("*").await.len());
    for round in 0..63 {
        let made_up = (0..1000).map(|number| format!("made up {round}/{number}"));
        let invalidated = cache.invalidate_tags(made_up).await;
        invalidated.expect("any number can be invalidated at once");
    }
    assert_eq!(server.keys("*").await.len(), keys);
    // Keys of that number take 7 MB; what is left are the buffers of the connections.
    let grown = memory(&server).await.saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes for tags that nobody uses");
    assert!(is_there(&cache, "k").await);
}

#[tokio::test]
async fn a_value_whose_tag_was_evicted_and_invalidated_is_no_hit_then_or_later() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    set(&cache, "whole", &[]).await;
    let whole = server.keys("hr:t:*").await;
    let gate = Gate::closed();
    let load = {
        let gate = gate.clone();
        let load = cache.memoize("loaded", MINUTE, move || gate.load(1u8));
        tokio::spawn(load.tags(["t"]).into_future())
    };
    gate.begun(1).await;
    set(&cache, "set", &["t"]).await;
    for key in server.keys("hr:t:*").await {
        if !whole.contains(&key) {
            let _: () = server.run(&["DEL", &key]).await;
        }
    }
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    gate.open();
    load.await.expect("no panic").expect("loaded");
    assert!(!is_there(&cache, "set").await);
    assert!(!is_there(&cache, "loaded").await);
    // The tag comes back with the next value, and what was stamped before does not.
    set(&cache, "new", &["t"]).await;
    assert!(is_there(&cache, "new").await);
    assert!(!is_there(&cache, "set").await);
    assert!(!is_there(&cache, "loaded").await);
}

#[tokio::test]
async fn in_the_steady_state_tags_cost_no_command_of_their_own() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let monitor = Monitor::start(&server).await;
    for number in 0..20 {
        let key = format!("k{number}");
        let load = cache.memoize(&key, MINUTE, async || Ok::<_, Infallible>(1u8));
        load.tags(["t"]).await.expect("loaded");
    }
    let about_tags = monitor.commands(&server, "hr:t:").await;
    let scripts = about_tags.iter().filter(|line| line.contains("EVAL"));
    let ensured = scripts.filter(|line| !line.contains("\"EVAL\"")).count();
    // The tag, and the whole cache wherever a value needs it.
    let tags = server.lives("hr:t:*").await.len();
    assert_eq!(ensured, tags, "each once: {about_tags:#?}");
}

#[tokio::test]
async fn an_invalidation_that_fails_in_part_names_the_tags_that_failed() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    set(&cache, "good", &["good"]).await;
    let known = server.keys("hr:t:*").await;
    set(&cache, "bad", &["bad"]).await;
    for key in server.keys("hr:t:*").await {
        if !known.contains(&key) {
            let _: () = server.run(&["DEL", &key]).await;
            let _: () = server.run(&["RPUSH", &key, "theirs"]).await;
        }
    }
    let error = cache
        .invalidate_tags(["bad", "good"])
        .await
        .expect_err("a foreign key");
    assert_eq!(error.kind(), ErrorKind::WrongType);
    assert_eq!(error.key(), Some("bad"));
    assert!(!is_there(&cache, "good").await, "the other is invalidated");
    // Nor can a value carry such a tag.
    let load = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
    let error = load.tags(["bad"]).await.expect_err("a foreign key");
    assert_eq!(
        (error.kind(), error.key()),
        (ErrorKind::WrongType, Some("bad"))
    );
    assert!(server.keys("hr:l:*").await.is_empty());
}

#[tokio::test]
async fn tags_that_a_reader_does_not_declare_count_all_the_same() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    set(&cache, "k", &["a", "b"]).await;
    let call = |tags: &'static [&'static str]| {
        cache
            .memoize("k", MINUTE, async || Ok::<_, Infallible>(2u8))
            .tags(tags)
    };
    assert_eq!(*call(&[]).await.expect("a hit"), 1);
    assert_eq!(*call(&["a"]).await.expect("a hit"), 1);
    assert_eq!(*call(&["other"]).await.expect("a hit"), 1);
    cache.invalidate_tags(["b"]).await.expect("invalidated");
    assert_eq!(*call(&["a"]).await.expect("loaded"), 2);
}

#[tokio::test]
async fn more_tags_than_an_entry_can_carry_are_refused_before_anything_is_loaded_or_written() {
    let server = Server::start().await;
    let cache = server.client().await.cache("cities");
    let many: Vec<String> = (0..255).map(|tag| format!("tag {tag}")).collect();
    let load = || async { panic!("nothing is loaded") as Result<u8, Infallible> };
    let load = cache.memoize("lyon", MINUTE, load).tags(&many).await;
    let set = cache.set("lyon", &1u8, MINUTE).tags(&many).await;
    for error in [load.map(drop), set].map(|refused| refused.expect_err("too many")) {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains("255 tags"), "{error}");
    }
    assert_eq!(server.keys("*").await, [""; 0]);

    // As many as there is room for; one that is named twice counts once.
    let most = many[..254].iter().chain(&many[..9]);
    let set = cache.set("lyon", &1u8, MINUTE).tags(most).await;
    set.expect("stored");
    assert!(is_there(&cache, "lyon").await);
    let invalidated = cache.invalidate_tags(&many).await;
    invalidated.expect("any number can be invalidated at once");
    assert!(!is_there(&cache, "lyon").await);
}

#[tokio::test]
async fn any_number_of_tags_holds_nobody_up() {
    let server = Server::start_single().await;
    let patience = Duration::from_secs(60);
    let client = server.builder().cache_deadline(patience).connect().await;
    let client = client.expect("connected");
    let cache = client.cache("c");
    let many: Vec<String> = (0..30_000).map(|tag| format!("tag {tag}")).collect();
    // In the one thread of this runtime: its keeper must be let through.
    let lock = client.lock("l").lease(Duration::from_secs(3));
    let guard = lock.acquire().await.expect("free");
    let load = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
    let error = load.tags(&many).await.expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().len() < 512, "{error}");
    let few = many[..2].iter().cycle();
    let error = cache.set("k", &1u8, MINUTE).tags(few).await;
    let error = error.expect_err("they have no end");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let invalidated = cache.invalidate_tags(&many).await;
    invalidated.expect("any number can be invalidated at once");
    tokio::task::yield_now().await;
    assert!(guard.is_held(), "{:?}", guard.loss());
}

#[tokio::test]
async fn an_invalidation_of_many_tags_that_fails_names_some_of_them_and_says_how_many_more() {
    let server = Server::start_single().await;
    let soon = Duration::from_millis(100);
    let builder = server.builder().cache_deadline(soon);
    let cache = builder.connect().await.expect("connected").cache("c");
    server.kill().await;
    let many: Vec<String> = (0..1000).map(|tag| format!("tag {tag}")).collect();
    let error = cache.invalidate_tags(&many).await.expect_err("it is gone");
    let named = error.key().expect("tags");
    assert!(named.starts_with("tag 0, tag 1, "), "{named}");
    assert!(named.ends_with(" more"), "{named}");
    assert!(error.to_string().len() <= 512, "{error}");
}
