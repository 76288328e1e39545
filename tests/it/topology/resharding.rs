//! From one set of shards to another: caches are not emptied, and no read is stale while processes
//! of two steps run side by side.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow::{Cache, Client, ClientBuilder, ErrorKind};

use super::shards::start;
use crate::cache::freshness::{By, stale_reads};
use crate::support::server::Server;
use crate::support::wait::patient;

const MINUTE: Duration = Duration::from_secs(60);

type Set = Vec<(&'static str, String, u32)>;

/// Two sets of shards, and the processes of each step from one to the other.
struct Move {
    servers: Vec<Server>,
    old: Set,
    new: Set,
}

impl Move {
    /// Servers are called a, b, c ..; each set names those that belong to it.
    async fn between(count: usize, old: &str, new: &str) -> Self {
        let servers = start(count).await;
        let set = |names: &str| -> Set {
            let all = ["a", "b", "c", "d"].into_iter().zip(&servers);
            let own = all.filter(|(name, _)| names.contains(name));
            own.map(|(name, server)| (name, server.url().to_owned(), 1))
                .collect()
        };
        let (old, new) = (set(old), set(new));
        Self { servers, old, new }
    }

    /// One of two changes places, so that about two thirds of all keys move.
    async fn of_most() -> Self {
        Self::between(3, "ab", "bc").await
    }

    async fn client(&self, step: u8) -> Client {
        let builder = patient(self.builder(step));
        builder.open().expect("good shards")
    }

    fn builder(&self, step: u8) -> ClientBuilder {
        let builder = Client::builder();
        match step {
            0 => builder.shards(self.old.clone()),
            1 => builder
                .shards(self.old.clone())
                .migrate_to(self.new.clone()),
            2 => builder
                .shards(self.new.clone())
                .migrate_from(self.old.clone()),
            _ => builder.shards(self.new.clone()),
        }
    }

    async fn clients(&self, steps: [u8; 4]) -> Vec<Client> {
        let mut clients = Vec::new();
        for step in steps {
            clients.push(self.client(step).await);
        }
        clients
    }
}

/// Asks for each of `count` values, with a tag of its own and one of all; how many were loaded.
async fn loads(cache: &Cache, count: usize) -> usize {
    let loads = Arc::new(AtomicUsize::new(0));
    for number in 0..count {
        let counted = loads.clone();
        let load = move || async move {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Infallible>(number)
        };
        let call = cache.memoize(&format!("city:{number}"), MINUTE, load);
        let call = call.tags([format!("city:{number}"), "all".to_owned()]);
        assert_eq!(*call.await.expect("a value"), number);
    }
    loads.load(Ordering::SeqCst)
}

async fn version(cache: &Cache, key: &str) -> Option<u32> {
    cache
        .get::<u32>(key)
        .await
        .expect("an answer")
        .map(|it| *it)
}

async fn no_stale_read(steps: [u8; 4], by: By) {
    let moving = Move::of_most().await;
    assert_eq!(stale_reads(moving.clients(steps).await, by).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_stale_between_the_old_set_and_step_one() {
    no_stale_read([0, 0, 1, 1], By::Key).await;
    no_stale_read([0, 0, 1, 1], By::Tag).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_stale_between_steps_one_and_two_by_key() {
    no_stale_read([1, 1, 2, 2], By::Key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_stale_between_steps_one_and_two_by_tag() {
    no_stale_read([1, 1, 2, 2], By::Tag).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_stale_between_steps_two_and_three() {
    no_stale_read([2, 2, 3, 3], By::Key).await;
    no_stale_read([2, 2, 3, 3], By::Tag).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_left_out_is_seen_by_the_same_worlds() {
    for by in [By::Key, By::Tag] {
        let moving = Move::of_most().await;
        let clients = moving.clients([0, 0, 2, 2]).await;
        assert!(stale_reads(clients, by).await > 0, "{by:?}");
    }
}

#[tokio::test]
async fn the_last_step_without_its_wait_may_bring_back_what_was_removed() {
    let moving = Move::between(2, "a", "b").await;
    let first = moving.client(1).await.cache("c");
    first.set("k", &1u32, MINUTE).await.expect("stored");
    let third = moving.client(3).await.cache("c");
    third.remove("k").await.expect("removed");
    // What the documentation warns of: the old value had not expired.
    let second = moving.client(2).await.cache("c");
    assert_eq!(version(&second, "k").await, Some(1));
}

#[tokio::test]
async fn a_cache_is_not_emptied_by_one_more_shard() {
    let moving = Move::between(3, "ab", "abc").await;
    let before = moving.client(0).await.cache("catalogue");
    assert_eq!(loads(&before, 300).await, 300);
    let during = moving.client(2).await.cache("catalogue");
    assert_eq!(loads(&during, 300).await, 0, "all is found");
    // Nor by the steps back, if it comes to that.
    let back = moving.client(1).await.cache("catalogue");
    assert_eq!(loads(&back, 300).await, 0);
    // Without looking back, what has moved is gone: a third of the values, more with their tags.
    let after = moving.client(3).await.cache("catalogue");
    let lost = loads(&after, 300).await;
    assert!((70..=300).contains(&lost), "{lost} of 300 lost");
    assert_eq!(loads(&after, 300).await, 0);
}

#[tokio::test]
async fn what_one_step_does_to_a_value_the_next_step_sees_and_the_other_way_round() {
    let moving = Move::between(2, "a", "b").await;
    let (one, two) = (moving.client(1).await, moving.client(2).await);
    let (one, two) = (one.cache("c"), two.cache("c"));
    let there = async || (version(&one, "k").await, version(&two, "k").await);

    one.set("k", &1, MINUTE).tags(["t"]).await.expect("stored");
    assert_eq!(there().await, (Some(1), Some(1)), "read where it was");
    two.set("k", &2, MINUTE).tags(["t"]).await.expect("stored");
    assert_eq!(there().await, (None, Some(2)), "removed where it was");
    one.set("k", &3, MINUTE).tags(["t"]).await.expect("stored");
    assert_eq!(there().await, (Some(3), Some(3)), "removed where it goes");
    two.invalidate_tags(["t"]).await.expect("invalidated");
    assert_eq!(there().await, (None, None));

    two.set("k", &4, MINUTE).tags(["t"]).await.expect("stored");
    one.invalidate_tags(["t"]).await.expect("invalidated");
    assert_eq!(there().await, (None, None));
    two.set("k", &5, MINUTE).await.expect("stored");
    one.remove("k").await.expect("removed");
    assert_eq!(there().await, (None, None));
    one.set("k", &6, MINUTE).await.expect("stored");
    two.clear().await.expect("cleared");
    assert_eq!(there().await, (None, None));
    one.set("k", &7, MINUTE).await.expect("stored");
    two.remove("k").await.expect("removed");
    assert_eq!(there().await, (None, None));
}

#[tokio::test]
async fn an_invalidation_that_cannot_reach_both_places_is_an_error_that_names_it() {
    for (step, there) in [(1, 1), (2, 0)] {
        let moving = Move::between(2, "a", "b").await;
        let cache = moving.client(step).await.cache("c");
        cache.set("k", &1u32, MINUTE).await.expect("stored");
        moving.servers[there].kill().await;
        let hasty = moving.builder(step).cache_deadline(Duration::from_secs(1));
        let cache = hasty.open().expect("good shards").cache("c");
        let shard = ["shard \"a\"", "shard \"b\""][there];
        let error = cache.remove("k").await.expect_err("half of it");
        assert_eq!((error.key(), error.is_retryable()), (Some("k"), false));
        assert!(error.to_string().contains(shard), "{error}");
        let error = cache.invalidate_tags(["t"]).await.expect_err("half of it");
        assert_eq!(error.key(), Some("t"));
        assert!(error.to_string().contains(shard), "{error}");
        let error = cache.clear().await.expect_err("half of it");
        assert!(error.to_string().contains(shard), "{error}");
        let error = cache.set("k", &1u32, MINUTE).await.expect_err("half of it");
        assert!(
            !error.is_retryable() && error.to_string().contains(shard),
            "{error}"
        );
    }
}

#[tokio::test]
async fn counters_and_locks_stay_with_the_old_set_until_the_last_step() {
    let moving = Move::between(2, "a", "b").await;
    let steps = moving.clients([0, 1, 2, 1]).await;
    for (number, client) in steps.iter().enumerate() {
        let added = client.counter("views").add(1).await.expect("added");
        assert_eq!(added.value, number as i64 + 1);
    }
    let mut last = None;
    for holder in &steps {
        let guard = holder.lock("invoice").acquire().await.expect("free");
        assert!(last < Some(guard.fence()));
        last = Some(guard.fence());
        for other in &steps {
            let refused = other.lock("invoice").try_acquire().await;
            assert!(refused.expect("an answer").is_none());
        }
        guard.release().await.expect("released");
    }
    assert!(moving.servers[1].keys("*").await.is_empty());
}

#[tokio::test]
async fn moves_that_cannot_be_are_refused() {
    let url = |port: u16| format!("redis://127.0.0.1:{port}");
    let refused = async |builder: hedgerow::ClientBuilder| {
        let error = builder.open().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.to_string()
    };
    let shards = |port| [("a", url(port), 1)];
    let told = refused(Client::builder().url(&url(1)).migrate_to(shards(1))).await;
    assert!(told.contains("only shards move"), "{told}");
    let builder = Client::builder().shards(shards(1));
    let told = refused(builder.migrate_from(shards(2))).await;
    assert!(
        told.contains("shard \"a\"") && told.contains("two places"),
        "{told}"
    );
    let builder = Client::builder().shards(shards(1));
    let told = refused(builder.migrate_to([("a", url(1), 0)])).await;
    assert!(told.contains("weight"), "{told}");
}
