//! `add`, `if_absent`, `if_present`, `keep_ttl`, `update`, `take`: what is stored or taken only if
//! the entry is what was read.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Cache, Codec, ErrorKind, Outage};

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
    const EACH: usize = 100;
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

#[tokio::test]
async fn a_load_that_is_under_way_is_not_stored_over_a_change() {
    let server = Server::start().await;
    let (one, two) = (
        server.client().await.cache("c"),
        server.client().await.cache("c"),
    );
    let add = async |_: &Cache| assert!(one.add("a", "new", MINUTE).await.expect("an answer"));
    let take = async |cache: &Cache| {
        cache.set("a", "x", MINUTE).await.expect("stored");
        assert!(
            cache
                .take::<String>("a")
                .await
                .expect("an answer")
                .is_some()
        );
    };
    for (change, after) in [(0, some("new")), (1, None)] {
        one.remove("a").await.expect("removed");
        let gate = Gate::closed();
        let load = gate.clone();
        let load = two.memoize("a", MINUTE, move || load.load("old".to_owned()));
        let load = tokio::spawn(load.into_future());
        until("it loads", async || gate.loads() == 1).await;
        match change {
            0 => add(&one).await,
            _ => take(&one).await,
        }
        gate.open();
        bounded("it ends", load)
            .await
            .expect("no panic")
            .expect("loaded");
        assert_eq!(text(&two).await, after);
    }
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
    until("no upload is left", async || {
        server.keys("hr:v:*").await.is_empty()
    })
    .await;
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
