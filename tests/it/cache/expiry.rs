//! `contains`, `ttl`, `expire`, `expire_at`, `persist`, `touch`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hedgerow::{Cache, ErrorKind, FOREVER, Outage};

use crate::support::server::Server;
use crate::support::wait::calls;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const KEY: &str = "hr:v:{c:a}";

async fn cache(server: &Server) -> Cache {
    server.client().await.cache("c").jitter(0.0)
}

async fn left(cache: &Cache) -> Duration {
    let left = cache.ttl("a").await.expect("an answer");
    left.expect("there is an entry")
}

/// Whether `left` is what a TTL has left soon after it was set.
fn nearly(left: Duration, ttl: Duration) -> bool {
    left <= ttl && left + MINUTE > ttl
}

#[tokio::test]
async fn only_a_valid_entry_is_there_and_has_a_ttl() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    assert!(!cache.contains("a").await.expect("an answer"));
    assert_eq!(cache.ttl("a").await.expect("an answer"), None);
    cache.set("a", "x", HOUR).tags(["t"]).await.expect("stored");
    assert!(cache.contains("a").await.expect("an answer"));
    assert!(nearly(left(&cache).await, HOUR));
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    // The bytes are still there.
    assert_eq!(
        server
            .keys(KEY.replace(['{', '}'], "?").as_str())
            .await
            .len(),
        1
    );
    assert!(!cache.contains("a").await.expect("an answer"));
    assert_eq!(cache.ttl("a").await.expect("an answer"), None);
    for changed in [
        cache.expire("a", HOUR).await,
        cache.touch("a", HOUR).await,
        cache.persist("a").await,
        cache.expire_at("a", SystemTime::now() + HOUR).await,
    ] {
        assert!(!changed.expect("an answer"));
    }
    assert_eq!(cache.get::<String>("a").await.expect("an answer"), None);
}

#[tokio::test]
async fn an_entry_of_an_unknown_format_is_there_and_keeps_its_ttl() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let _: () = server
        .run(&["SET", KEY, "\u{7f}of another build", "PX", "100000"])
        .await;
    assert!(cache.contains("a").await.expect("an answer"));
    assert_eq!(cache.ttl("a").await.expect("an answer"), None);
    assert!(!cache.expire("a", HOUR).await.expect("an answer"));
    assert!(server.run::<i64>(&["PTTL", KEY]).await <= 100_000);
}

#[tokio::test]
async fn an_entry_lives_for_the_ttl_that_it_is_given() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    cache.set("a", "x", 2 * MINUTE).await.expect("stored");
    assert!(cache.expire("a", HOUR).await.expect("an answer"));
    assert!(nearly(left(&cache).await, HOUR));
    // Touching only extends.
    assert!(cache.touch("a", 2 * MINUTE).await.expect("an answer"));
    assert!(nearly(left(&cache).await, HOUR));
    assert!(cache.touch("a", 2 * HOUR).await.expect("an answer"));
    assert!(nearly(left(&cache).await, 2 * HOUR));
    assert!(cache.expire("a", MINUTE).await.expect("an answer"));
    assert!(left(&cache).await <= MINUTE);
    assert!(cache.persist("a").await.expect("an answer"));
    assert!(nearly(left(&cache).await, FOREVER));
    let value = cache.get::<String>("a").await.expect("an answer");
    assert_eq!(value.as_deref().map(String::as_str), Some("x"));
}

#[tokio::test]
async fn an_entry_ends_at_the_moment_that_it_is_given() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    cache.set("a", "x", 2 * MINUTE).await.expect("stored");
    let now: Vec<u64> = server
        .run::<Vec<String>>(&["TIME"])
        .await
        .iter()
        .map(|it| it.parse().expect("a number"))
        .collect();
    let at = UNIX_EPOCH + Duration::from_secs(now[0]) + HOUR;
    assert!(cache.expire_at("a", at).await.expect("an answer"));
    assert!(nearly(left(&cache).await, HOUR));
    for refused in [UNIX_EPOCH - MINUTE, UNIX_EPOCH + 4 * FOREVER] {
        let error = cache
            .expire_at("a", refused)
            .await
            .expect_err("out of range");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let past = UNIX_EPOCH + Duration::from_secs(now[0]) - HOUR;
    assert!(cache.expire_at("a", past).await.expect("an answer"));
    assert!(!cache.contains("a").await.expect("an answer"));
    assert_eq!(server.run::<usize>(&["EXISTS", KEY]).await, 0);
}

#[tokio::test]
async fn an_entry_can_end_sooner_on_a_full_server() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    cache.set("a", "x", HOUR).await.expect("stored");
    assert!(cache.expire("a", HOUR).await.expect("the script is known"));
    cache.set("b", "x", HOUR).await.expect("stored");
    cache
        .take::<String>("b")
        .await
        .expect("the script is known");
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert!(cache.expire("a", MINUTE).await.expect("an answer"));
    assert!(left(&cache).await <= MINUTE);
    let past = UNIX_EPOCH + HOUR;
    assert!(cache.expire_at("a", past).await.expect("an answer"));
    assert_eq!(server.run::<usize>(&["EXISTS", KEY]).await, 0);
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
}

#[tokio::test]
async fn a_touch_does_not_shorten_an_entry_whose_ttl_was_taken_away() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    cache.set("a", "x", MINUTE).await.expect("stored");
    let _: usize = server.run(&["PERSIST", KEY]).await;
    assert_eq!(left(&cache).await, FOREVER);
    assert!(cache.touch("a", HOUR).await.expect("an answer"));
    assert_eq!(left(&cache).await, FOREVER);
}

/// What invalidates an entry must live as long as the entry: with its tags gone it would be dead.
#[tokio::test]
async fn the_tags_of_an_entry_outlive_its_new_end() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    let long = 1000 * HOUR;
    let lives = async || -> i64 {
        let lives = server.lives("hr:t:*").await;
        lives.into_iter().map(|(_, left)| left).min().expect("tags")
    };
    type Change = fn(&Cache) -> hedgerow::client::Request<'_, bool>;
    let changes: [(Change, Duration); 4] = [
        (
            |cache| cache.expire("a", Duration::from_secs(3_600_000)),
            long,
        ),
        (
            |cache| cache.touch("a", Duration::from_secs(3_600_000)),
            long,
        ),
        (|cache| cache.persist("a"), FOREVER),
        (
            |cache| cache.expire_at("a", SystemTime::now() + Duration::from_secs(3_600_000)),
            long,
        ),
    ];
    for (change, end) in changes {
        let _: () = server.run(&["FLUSHALL"]).await;
        let fresh = server.client().await.cache("c").jitter(0.0);
        fresh
            .set("a", "x", MINUTE)
            .tags(["t", "u"])
            .await
            .expect("stored");
        assert!(
            lives().await < 10 * 3_600_000,
            "they live about as long as they must"
        );
        assert!(change(&fresh).await.expect("an answer"));
        assert!(nearly(left(&fresh).await, end));
        let entry = i64::try_from(left(&fresh).await.as_millis()).expect("small");
        assert!(lives().await >= entry, "{} {entry}", lives().await);
        fresh.invalidate_tags(["u"]).await.expect("invalidated");
        assert!(!fresh.contains("a").await.expect("an answer"));
    }
    drop(cache);
}

/// The deadlines in the entry are those of the key, so that later features read no old ones.
#[tokio::test]
async fn the_deadlines_in_an_entry_move_with_its_ttl() {
    let server = Server::start().await;
    let cache = cache(&server).await;
    cache.set("a", "x", MINUTE).await.expect("stored");
    let deadlines = async || -> Vec<u8> {
        let bytes: Vec<u8> = server.run(&["GETRANGE", KEY, "8", "19"]).await;
        bytes
    };
    let before = deadlines().await;
    assert!(cache.expire("a", HOUR).await.expect("an answer"));
    let after = deadlines().await;
    assert!(after > before, "big-endian times in order");
    assert_eq!(after[..6], after[6..]);
    // A touch that changes nothing writes nothing.
    let digest = server.digest().await;
    assert!(cache.touch("a", MINUTE).await.expect("an answer"));
    assert_eq!(server.digest().await, digest);
}

#[tokio::test]
async fn bad_input_is_refused_before_anything_is_sent() {
    let server = Server::start_single().await;
    let cache = cache(&server).await;
    let before = calls(&server, &["get", "mget", "evalsha"]).await;
    for error in [
        cache.contains("").await.expect_err("a bad key"),
        cache.ttl("").await.expect_err("a bad key"),
        cache.expire("", MINUTE).await.expect_err("a bad key"),
        cache
            .expire("a", Duration::ZERO)
            .await
            .expect_err("a bad TTL"),
        cache.touch("a", 2 * FOREVER).await.expect_err("a bad TTL"),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(calls(&server, &["get", "mget", "evalsha"]).await, before);
}

/// Whether it was changed is an answer of the server, never of an outage.
#[tokio::test]
async fn without_redis_reads_find_nothing_and_changes_fail() {
    let server = Server::start_single().await;
    let cache = cache(&server).await.outage(Outage::Bypass);
    let killed = server.kill().await;
    assert!(!cache.contains("a").await.expect("bypassed"));
    assert_eq!(cache.ttl("a").await.expect("bypassed"), None);
    assert_eq!(cache.bypassed().reads, 2);
    for error in [
        cache.expire("a", MINUTE).await.expect_err("no server"),
        cache.touch("a", MINUTE).await.expect_err("no server"),
        cache.persist("a").await.expect_err("no server"),
        cache
            .expire_at("a", SystemTime::now() + MINUTE)
            .await
            .expect_err("no server"),
    ] {
        assert!(error.kind().is_outage(), "{error}");
    }
    drop(killed);
}
