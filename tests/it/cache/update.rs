//! `update` with another end and more tags.

use std::time::{Duration, SystemTime};

use hedgerow::cache::Entry;
use hedgerow::{Cache, ErrorKind};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, calls, patient};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

async fn entry(cache: &Cache) -> Entry<u32> {
    let entry = cache.entry("a").await.expect("an answer");
    entry.expect("it is there")
}

async fn is_there(cache: &Cache) -> bool {
    cache.get::<u32>("a").await.expect("an answer").is_some()
}

async fn left(cache: &Cache) -> Duration {
    let left = cache.ttl("a").await.expect("an answer");
    left.expect("it is there")
}

/// How long the tag lives that lives shortest.
async fn tags_live(server: &Server) -> Duration {
    let lives = server.lives("hr:t:*").await;
    let soonest = lives.iter().map(|(_, left)| *left).min().expect("tags");
    Duration::from_millis(u64::try_from(soonest).expect("it has an end"))
}

#[tokio::test]
async fn an_update_may_give_an_entry_another_end_which_its_tags_outlive() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").jitter(0.0);
    let set = cache.set("a", &1u32, MINUTE).tags(["t"]);
    set.await.expect("stored");
    let update = cache.update(&entry(&cache).await, &2).await;
    assert!(update.expect("an answer"));
    assert!(left(&cache).await <= MINUTE);
    let (old, now) = (entry(&cache).await, SystemTime::now());
    let apart = old.ends_at().duration_since(now).expect("later");
    assert!(apart <= MINUTE && apart > Duration::from_secs(5));
    let update = cache.update(&old, &3).ttl(1000 * HOUR).tags(["u"]);
    assert!(update.await.expect("an answer"));
    for long in [left(&cache).await, tags_live(&server).await] {
        assert!(long > 999 * HOUR, "{long:?}");
    }
    let new = entry(&cache).await;
    let apart = new.ends_at().duration_since(now).expect("later");
    assert!(apart > 999 * HOUR && apart < 1001 * HOUR);
    assert_eq!(*new, 3);
    let update = cache.update(&new, &4).ttl(MINUTE);
    assert!(update.await.expect("an answer"));
    assert!(left(&cache).await <= MINUTE);
    // It is an update still: only over what was read.
    let again = cache.update(&new, &5).ttl(HOUR).tags(["u"]).await;
    assert!(!again.expect("an answer"));
    assert_eq!(*entry(&cache).await, 4);
}

/// The first store has made the tags live for twice as long as the entry.
#[tokio::test]
async fn tags_that_live_long_enough_cost_no_command() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c").jitter(0.0);
    cache.set("a", &1u32, HOUR).tags(["t"]).await.expect("set");
    let scripts = async |cache: &Cache| {
        let read = entry(cache).await;
        let before = calls(&server, &["evalsha", "eval"]).await;
        let update = cache.update(&read, &2).ttl(HOUR).await;
        assert!(update.expect("an answer"));
        assert!(cache.expire("a", HOUR).await.expect("an answer"));
        calls(&server, &["evalsha", "eval"]).await - before
    };
    // Another process does not know how long they live. Its first calls bring the scripts.
    let other = server.client().await.cache("c").jitter(0.0);
    scripts(&other).await;
    assert_eq!(scripts(&other).await, 6, "two calls, each with two tags");
    assert_eq!(scripts(&cache).await, 2);
}

#[tokio::test]
async fn a_tag_that_an_update_adds_invalidates_the_entry_as_those_that_it_had() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags();
    for invalidated in ["t", "u", "v"] {
        let set = cache.set("a", &1u32, 1000 * HOUR).tags(["t", "u"]);
        set.await.expect("stored");
        // Without another end, what is added lives as long as the entry does.
        let old = entry(&cache).await;
        let update = cache.update(&old, &2).tags(["u", "v"]);
        assert!(update.await.expect("an answer"));
        assert!(left(&cache).await > 800 * HOUR);
        assert!(tags_live(&server).await > 800 * HOUR);
        for tag in ["t", "u", "v"] {
            let mut keys = cache.keys_by_tag(tag);
            let listed = keys.next().await.expect("it is listed");
            assert_eq!(listed.expect("an answer"), "a");
        }
        assert!(is_there(&cache).await);
        let over = cache.invalidate_tags([invalidated]).await;
        over.expect("invalidated");
        assert!(!is_there(&cache).await, "{invalidated}");
    }
}

#[tokio::test]
async fn an_update_with_another_end_and_more_tags_revives_nothing() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    for invalidated in [Some("t"), None] {
        let set = cache.set("a", &1u32, MINUTE).tags(["t"]);
        set.await.expect("stored");
        let old = entry(&cache).await;
        let over = match invalidated {
            Some(tag) => cache.invalidate_tags([tag]).await,
            None => cache.clear().await,
        };
        over.expect("invalidated");
        for tags in [&["t", "u"][..], &["u"], &[]] {
            let update = cache.update(&old, &2).ttl(HOUR).tags(tags);
            let _ = update.await.expect("an answer");
            assert!(!is_there(&cache).await, "{invalidated:?} {tags:?}");
        }
        // What is removed, or has ended, stays so.
        cache.remove("a").await.expect("removed");
        for update in [
            cache.update(&old, &2).ttl(HOUR),
            cache.update(&old, &2).tags(["u"]),
        ] {
            assert!(!update.await.expect("an answer"));
        }
        assert!(!is_there(&cache).await);
    }
}

/// The generation of the added tag is read first, so the invalidation ends the entry.
#[tokio::test]
async fn an_added_tag_that_is_invalidated_before_the_store_invalidates_the_entry() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let (cache, other) = (client.cache("c"), server.client().await.cache("c"));
    // All scripts are known, so that one call of one is one request.
    for _ in 0..2 {
        cache.set("a", &1u32, MINUTE).await.expect("stored");
        let old = entry(&cache).await;
        let update = cache.update(&old, &2).ttl(MINUTE).tags(["t"]);
        assert!(update.await.expect("an answer"));
    }
    cache.set("a", &1u32, MINUTE).await.expect("stored");
    let old = entry(&cache).await;
    let script = Request::any().named("evalsha").with("hr:v:{c:a}");
    let held = proxy.on(script, Act::Hold);
    let stores = cache.clone();
    let stored = tokio::spawn(async move {
        let update = stores.update(&old, &2).ttl(MINUTE).tags(["t"]);
        update.await
    });
    held.hit().await;
    other.invalidate_tags(["t"]).await.expect("invalidated");
    held.deliver();
    let stored = bounded("it ends", stored).await.expect("no panic");
    assert!(stored.expect("an answer"));
    assert!(!is_there(&other).await);
}

#[tokio::test]
async fn an_update_is_refused_that_asks_for_too_much() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let names: Vec<String> = (0..255).map(|it| it.to_string()).collect();
    let set = cache.set("a", &1u32, MINUTE).tags(["t"]);
    set.await.expect("stored");
    let old = entry(&cache).await;
    let refused = [
        cache.update(&old, &2).tags(&names[..254]).await,
        cache.update(&old, &2).tags(&names).await,
        cache.update(&old, &2).tags([""]).await,
        cache.update(&old, &2).ttl(Duration::ZERO).await,
        cache.update(&old, &2).ttl(Duration::MAX).await,
    ];
    for answer in refused {
        let error = answer.expect_err("it is refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(*entry(&cache).await, 1);
    let most = cache.update(&old, &2).tags(&names[..253]).await;
    assert!(most.expect("an answer"));
    assert_eq!(*entry(&cache).await, 2);
}
