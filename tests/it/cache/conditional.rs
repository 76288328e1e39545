//! `add`, `if_absent`, `if_present`, `keep_ttl`, `update`, `take`: what is stored or taken only if
//! the entry is what was read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use hedgerow::{Cache, Codec, Compression, ErrorKind, Outage};

use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, patient, until};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

async fn text(cache: &Cache) -> Option<String> {
    let found = cache.get::<String>("a").await.expect("an answer");
    found.map(|text| text.as_ref().clone())
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn a_value_is_added_only_where_there_is_none() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    assert!(cache.add("a", "first", MINUTE).await.expect("an answer"));
    assert!(!cache.add("a", "second", MINUTE).await.expect("an answer"));
    assert_eq!(text(&cache).await, some("first"));
    // An entry that was invalidated is none.
    cache.clear().await.expect("cleared");
    assert!(cache.add("a", "third", MINUTE).await.expect("an answer"));
    assert_eq!(text(&cache).await, some("third"));
    cache.remove("a").await.expect("removed");
    let absent = cache.set("a", "fourth", MINUTE).tags(["t"]).if_absent();
    assert!(absent.await.expect("an answer"));
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    assert_eq!(text(&cache).await, None);
}

#[tokio::test]
async fn a_value_is_replaced_only_where_there_is_one() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let replace = async |value: &str| {
        cache
            .set("a", value, MINUTE)
            .if_present()
            .await
            .expect("an answer")
    };
    assert!(!replace("first").await);
    assert_eq!(text(&cache).await, None);
    cache.set("a", "first", MINUTE).await.expect("stored");
    assert!(replace("second").await);
    assert_eq!(text(&cache).await, some("second"));
    cache.clear().await.expect("cleared");
    assert!(!replace("third").await);
    assert_eq!(text(&cache).await, None);
}

#[tokio::test]
async fn what_another_build_can_read_counts_as_there() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let other = "\u{7f}of another build";
    let _: () = server
        .run(&["SET", "hr:v:{c:a}", other, "PX", "100000"])
        .await;
    assert!(!cache.add("a", "mine", MINUTE).await.expect("an answer"));
    assert_eq!(server.run::<String>(&["GET", "hr:v:{c:a}"]).await, other);
    assert_eq!(cache.take::<String>("a").await.expect("an answer"), None);
    assert!(
        cache
            .entry::<String>("a")
            .await
            .expect("an answer")
            .is_none()
    );
    assert_eq!(server.run::<String>(&["GET", "hr:v:{c:a}"]).await, other);
    assert!(
        cache
            .set("a", "mine", MINUTE)
            .if_present()
            .await
            .expect("an answer")
    );
    assert_eq!(text(&cache).await, some("mine"));
}

#[tokio::test]
async fn a_value_may_keep_the_end_of_the_one_that_it_replaces() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").jitter(0.0);
    let left = async || {
        cache
            .ttl("a")
            .await
            .expect("an answer")
            .expect("there is an entry")
    };
    // Without an entry there is nothing to keep.
    cache
        .set("a", "first", MINUTE)
        .keep_ttl()
        .await
        .expect("stored");
    assert!(left().await <= MINUTE);
    assert!(cache.expire("a", 1000 * HOUR).await.expect("an answer"));
    cache
        .set("a", "second", MINUTE)
        .tags(["t"])
        .keep_ttl()
        .await
        .expect("stored");
    assert!(left().await > 999 * HOUR);
    assert_eq!(text(&cache).await, some("second"));
    let kept = cache
        .set("a", "third", MINUTE)
        .tags(["t"])
        .keep_ttl()
        .if_present();
    assert!(kept.await.expect("an answer"));
    assert!(left().await > 999 * HOUR);
    // Its tags live as long.
    let lives = server.lives("hr:t:*").await;
    let soonest = lives.iter().map(|(_, left)| *left).min().expect("tags");
    assert!(soonest > 999 * 3_600_000, "{lives:?}");
    cache.set("a", "fourth", MINUTE).await.expect("stored");
    assert!(left().await <= MINUTE);
}

#[tokio::test]
async fn of_many_that_add_or_take_one_does() {
    let server = Server::start().await;
    let clients = [server.client().await, server.client().await];
    let caches: Vec<Cache> = (0..32).map(|task| clients[task % 2].cache("c")).collect();
    for _ in 0..20 {
        let added = caches.iter().enumerate().map(async |(task, cache)| {
            cache
                .add("a", &task, MINUTE)
                .await
                .expect("an answer")
                .then_some(task)
        });
        let added: Vec<usize> = join_all(added).await.into_iter().flatten().collect();
        let [winner] = added[..] else {
            panic!("{added:?} have added")
        };
        let taken = caches
            .iter()
            .map(async |cache| cache.take::<usize>("a").await.expect("an answer"));
        let taken: Vec<Arc<usize>> = join_all(taken).await.into_iter().flatten().collect();
        assert_eq!(taken, [Arc::new(winner)]);
        assert!(!caches[0].contains("a").await.expect("an answer"));
    }
}

#[tokio::test]
async fn no_update_of_many_is_lost() {
    const TASKS: usize = 16;
    const EACH: usize = 500;
    let server = Server::start().await;
    let clients = [server.client().await, server.client().await];
    let cache = clients[0].cache("c");
    cache
        .set("a", &0_u64, HOUR)
        .tags(["t"])
        .await
        .expect("stored");
    let before = cache.ttl("a").await.expect("an answer").expect("an entry");
    let tasks = (0..TASKS).map(|task| {
        let cache = clients[task % 2].cache("c").deadline(MINUTE);
        tokio::spawn(async move {
            for _ in 0..EACH {
                let new = cache.update_with("a", |count: &u64| count + 1).await;
                assert!(new.expect("updated").is_some());
            }
        })
    });
    for task in join_all(tasks).await {
        task.expect("no panic");
    }
    let count = cache.get::<u64>("a").await.expect("an answer");
    assert_eq!(count.as_deref(), Some(&((TASKS * EACH) as u64)));
    // Neither its end nor its tags have changed.
    assert!(cache.ttl("a").await.expect("an answer").expect("an entry") <= before);
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    assert!(!cache.contains("a").await.expect("an answer"));
}

#[tokio::test]
async fn an_update_is_stored_only_over_the_entry_that_was_read() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    assert!(
        cache
            .entry::<String>("a")
            .await
            .expect("an answer")
            .is_none()
    );
    let none = cache
        .update_with("a", |text: &String| text.clone() + "!")
        .await;
    assert!(none.expect("an answer").is_none());
    cache.set("a", "one", MINUTE).await.expect("stored");
    let entry = cache
        .entry::<String>("a")
        .await
        .expect("an answer")
        .expect("an entry");
    assert_eq!(*entry, "one");
    let two = "two".to_owned();
    assert!(cache.update(&entry, &two).await.expect("an answer"));
    assert_eq!(text(&cache).await.as_ref(), Some(&two));
    // It is another entry by now, though it were equal.
    assert!(
        !cache
            .update(&entry, &"three".to_owned())
            .await
            .expect("an answer")
    );
    cache.set("a", "one", MINUTE).await.expect("stored");
    assert!(
        !cache
            .update(&entry, &"three".to_owned())
            .await
            .expect("an answer")
    );
    cache.remove("a").await.expect("removed");
    assert!(
        !cache
            .update(&entry, &"three".to_owned())
            .await
            .expect("an answer")
    );
    assert_eq!(text(&cache).await, None);
}

/// It may be stored, but with the old generations: nobody reads it.
#[tokio::test]
async fn an_update_does_not_revive_what_was_invalidated_meanwhile() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    cache
        .set("a", "old", MINUTE)
        .tags(["t"])
        .await
        .expect("stored");
    let entry = cache
        .entry::<String>("a")
        .await
        .expect("an answer")
        .expect("an entry");
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    let _ = cache
        .update(&entry, &"new".to_owned())
        .await
        .expect("an answer");
    assert_eq!(text(&cache).await, None);
    assert!(!cache.contains("a").await.expect("an answer"));
}

/// The load finds nothing that it can use, and begins before the change.
#[tokio::test]
async fn a_load_that_is_under_way_is_not_stored_over_a_change() {
    type Change = for<'c> fn(&'c Cache) -> futures::future::BoxFuture<'c, bool>;
    let changes: [(&str, Change, Option<u64>); 6] = [
        (
            "add",
            |cache| Box::pin(async { cache.add("a", &2_u64, MINUTE).await.expect("an answer") }),
            Some(2),
        ),
        (
            "if_present",
            |cache| {
                let set = cache.set("a", &2_u64, MINUTE).if_present();
                Box::pin(async { set.await.expect("an answer") })
            },
            Some(2),
        ),
        (
            "update",
            |cache| {
                let updated = cache.update_with("a", |value: &u64| value + 1);
                Box::pin(async { updated.await.expect("an answer").is_some() })
            },
            Some(2),
        ),
        (
            "keep_ttl",
            |cache| {
                let set = cache.set("a", &2_u64, MINUTE).keep_ttl();
                Box::pin(async { set.await.is_ok() })
            },
            Some(2),
        ),
        (
            "take",
            |cache| Box::pin(async { cache.take::<u64>("a").await.expect("an answer").is_some() }),
            None,
        ),
        (
            "expire_at",
            |cache| {
                let past = SystemTime::UNIX_EPOCH + HOUR;
                Box::pin(async move { cache.expire_at("a", past).await.expect("an answer") })
            },
            None,
        ),
    ];
    let server = Server::start().await;
    let (one, two) = (
        server.client().await.cache("c"),
        server.client().await.cache("c"),
    );
    for (verb, change, after) in changes {
        match verb {
            "add" => one.remove("a").await.expect("removed"),
            // No text: the load takes it for foreign, and would store over it.
            _ => one.set("a", &1_u64, MINUTE).await.expect("stored"),
        }
        let gate = Gate::closed();
        let load = gate.clone();
        let load = two.memoize("a", MINUTE, move || load.load("old".to_owned()));
        let load = tokio::spawn(load.into_future());
        until("it loads", async || gate.loads() == 1).await;
        assert!(change(&one).await, "{verb}");
        gate.open();
        let loaded = bounded("it ends", load).await.expect("no panic");
        loaded.expect("loaded");
        let kept = two.get::<u64>("a").await.expect("an answer");
        assert_eq!(kept.as_deref().copied(), after, "{verb}");
        assert_eq!(text(&two).await, None, "{verb}");
    }
}

/// The generations of its tags are read twice: to stamp it, and to judge what is there. Between the
/// two, or after both, comes an invalidation.
#[tokio::test]
async fn a_value_that_replaces_what_is_invalidated_meanwhile_is_invalid_too() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let (cache, other) = (client.cache("c"), server.client().await.cache("c"));
    for key in ["warm", "a"] {
        let set = cache.set(key, "old", MINUTE).tags(["t"]);
        set.await.expect("stored");
    }
    let warm = cache.set("warm", "new", MINUTE).tags(["t"]).if_present();
    assert!(warm.await.expect("an answer"));
    let mut tag = String::new();
    for key in server.keys("hr:t:*").await {
        let name: Vec<u8> = server.run(&["GETRANGE", &key, "15", "-1"]).await;
        if name == b"t" {
            tag = key;
        }
    }
    let second_read = Request::nth(2).with(&tag);
    let script = Request::any().named("evalsha").with("hr:v:{c:a}");
    for held in [second_read, script] {
        let set = other.set("a", "old", MINUTE).tags(["t"]);
        set.await.expect("stored");
        let held = proxy.on(held, Act::Hold);
        let stores = cache.clone();
        let stored = tokio::spawn(async move {
            let set = stores.set("a", "new", MINUTE).tags(["t"]).if_present();
            set.await
        });
        held.hit().await;
        other.invalidate_tags(["t"]).await.expect("invalidated");
        held.deliver();
        let stored = bounded("it ends", stored).await.expect("no panic");
        stored.expect("an answer");
        assert_eq!(text(&other).await, None);
    }
}

#[tokio::test]
async fn an_entry_is_updated_only_by_a_handle_of_its_cache_and_version() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c");
    cache.set("a", "old", MINUTE).await.expect("stored");
    let entry = cache.entry::<String>("a").await.expect("an answer");
    let (entry, new) = (entry.expect("an entry"), "new".to_owned());
    for other in [client.cache("d"), cache.clone().version(1)] {
        let error = other.update(&entry, &new).await.expect_err("not its own");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(error.key(), Some("a"));
    }
    assert_eq!(text(&cache).await, some("old"));
    // How values are written from now on is no part of what a handle is.
    let json = client.cache("c").codec(Codec::Json);
    assert!(json.update(&entry, &new).await.expect("an answer"));
    assert_eq!(text(&cache).await, some("new"));
}

#[tokio::test]
async fn what_is_damaged_is_no_entry() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    for verb in ["add", "if_present", "take", "update", "expire"] {
        cache.set("a", "x", MINUTE).await.expect("stored");
        let _: usize = server.run(&["SETRANGE", "hr:v:{c:a}", "5", "!"]).await;
        let answer = match verb {
            "add" => cache.add("a", "y", MINUTE).await,
            "if_present" => cache.set("a", "y", MINUTE).if_present().await,
            "take" => cache.take::<String>("a").await.map(|it| it.is_some()),
            "update" => {
                let updated = cache.update_with("a", |text: &String| text.clone());
                updated.await.map(|it| it.is_some())
            }
            _ => cache.expire("a", HOUR).await,
        };
        assert_eq!(answer.expect("an answer"), verb == "add", "{verb}");
    }
}

#[tokio::test]
async fn without_redis_only_a_plain_store_is_bypassed() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c").outage(Outage::Bypass);
    cache.set("a", "x", MINUTE).await.expect("stored");
    let entry = cache.entry::<String>("a").await.expect("an answer");
    let entry = entry.expect("an entry");
    let killed = server.kill().await;
    let kept = cache.set("a", "y", MINUTE).keep_ttl().await;
    kept.expect("bypassed");
    assert_eq!(cache.bypassed().writes, 1);
    for error in [
        cache.add("a", "y", MINUTE).await.map(|_| ()),
        cache.set("a", "y", MINUTE).if_present().await.map(|_| ()),
        cache.update(&entry, &"y".to_owned()).await.map(|_| ()),
        cache.entry::<String>("a").await.map(|_| ()),
        cache.take::<String>("a").await.map(|_| ()),
    ] {
        let error = error.expect_err("no server");
        assert!(error.kind().is_outage(), "{error}");
    }
    drop(killed);
}

/// Large values travel on another way.
#[tokio::test]
async fn large_values_obey_the_same_conditions() {
    let server = Server::start().await;
    let cache = server
        .client()
        .await
        .cache("c")
        .codec(Codec::Raw)
        .compression(Compression::None)
        .jitter(0.0);
    let large = |letter: u8| vec![letter; 300_000];
    let kept = async || {
        let value = cache.get::<Vec<u8>>("a").await.expect("an answer");
        value.map(|value| value.as_ref().clone())
    };
    let (a, b, c) = (large(b'a'), large(b'b'), large(b'c'));
    assert!(
        !cache
            .set("a", &a, MINUTE)
            .if_present()
            .await
            .expect("an answer")
    );
    assert!(cache.add("a", &a, HOUR).await.expect("an answer"));
    assert!(!cache.add("a", &b, MINUTE).await.expect("an answer"));
    assert_eq!(kept().await.as_ref(), Some(&a));
    let entry = cache
        .entry::<Vec<u8>>("a")
        .await
        .expect("an answer")
        .expect("an entry");
    assert!(cache.update(&entry, &b).await.expect("an answer"));
    assert!(!cache.update(&entry, &c).await.expect("an answer"));
    assert_eq!(kept().await.as_ref(), Some(&b));
    let left = cache.ttl("a").await.expect("an answer").expect("an entry");
    assert!(left > HOUR - MINUTE, "{left:?}");
    assert_eq!(
        cache
            .take::<Vec<u8>>("a")
            .await
            .expect("an answer")
            .as_deref(),
        Some(&b)
    );
    // The TTL of an entry may be gone: something else has taken it away.
    assert!(cache.add("a", &a, HOUR).await.expect("an answer"));
    let _: usize = server.run(&["PERSIST", "hr:v:{c:a}"]).await;
    let stored = cache.set("a", &b, MINUTE).keep_ttl().await;
    stored.expect("stored");
    assert_eq!(kept().await.as_ref(), Some(&b));
    let left = cache.ttl("a").await.expect("an answer").expect("an entry");
    assert!(left > 1000 * HOUR, "{left:?}");
}

/// Whether it was stored must never be guessed.
#[tokio::test]
async fn an_answer_that_is_lost_is_an_error_that_says_so() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    for outage in [Outage::Fail, Outage::Bypass] {
        let cache = client.cache("c").outage(outage);
        let verbs = BTreeSet::from(["add", "update", "take"]);
        for verb in verbs {
            server
                .client()
                .await
                .cache("c")
                .remove("a")
                .await
                .expect("removed");
            if verb != "add" {
                cache.set("a", "x", MINUTE).await.expect("stored");
            } else {
                cache.get::<String>("warm").await.expect("an answer");
            }
            let entry = cache.entry::<String>("a").await.expect("an answer");
            // The scripts are known, so that the next `EVALSHA` is the one that counts.
            let other = "y".to_owned();
            cache.add("warm", "x", MINUTE).await.expect("an answer");
            cache.take::<String>("warm").await.expect("an answer");
            let lost = proxy.on_reply(
                Request::any().named("evalsha").with("hr:v:{c:a}"),
                Act::Reset,
            );
            let error = match verb {
                "add" => cache.add("a", "y", MINUTE).await.map(|_| ()),
                "update" => cache
                    .update(entry.as_ref().expect("an entry"), &other)
                    .await
                    .map(|_| ()),
                _ => cache.take::<String>("a").await.map(|_| ()),
            };
            let error = error.expect_err("nobody knows");
            assert_eq!(lost.hits(), 1, "{verb}");
            assert!(error.is_indeterminate(), "{verb}: {error:?}");
            assert_eq!(error.key(), Some("a"), "{verb}");
            assert_ne!(error.kind(), ErrorKind::InvalidInput);
        }
    }
}
