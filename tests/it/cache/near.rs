//! The near cache: what it serves, without a command, and what ends that.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hedgerow::cache::{NearCache, ReadFrom};
use hedgerow::{Cache, Client, ErrorKind};

use crate::support::aging::aged;
use crate::support::gate::Gate;
use crate::support::monitor::Monitor;
use crate::support::server::{Server, connection};
use crate::support::topology::Cluster;
use crate::support::wait::{patient, until};

const MINUTE: Duration = Duration::from_secs(60);

/// A near cache that only pushes keep right.
pub fn near(client: &Client) -> Cache {
    let hour = Duration::from_secs(3600);
    client.cache("c").near(NearCache::new().max_staleness(hour))
}

pub async fn set(cache: &Cache, key: &str, value: u64) {
    cache.set(key, &value, MINUTE).await.expect("stored");
}

pub async fn get(cache: &Cache, key: &str) -> Option<u64> {
    let value = cache.get::<u64>(key).await.expect("an answer");
    value.map(|value| *value)
}

/// Reads `key` once. Returns whether that needed no command.
pub async fn is_near(cache: &Cache, key: &str) -> bool {
    let before = cache.stats().near_hits;
    get(cache, key).await;
    cache.stats().near_hits > before
}

/// Reads `key` until it is held.
pub async fn warm(cache: &Cache, key: &str) {
    until("the value is held near", || is_near(cache, key)).await;
}

#[tokio::test]
async fn a_value_that_was_read_is_served_without_a_command_until_it_changes() {
    let server = Server::start().await;
    let (client, writer) = (server.client().await, server.client().await.cache("c"));
    let cache = near(&client);
    set(&writer, "k", 1).await;
    warm(&cache, "k").await;
    let monitor = Monitor::start(&server).await;
    for _ in 0..100 {
        assert_eq!(get(&cache, "k").await, Some(1));
    }
    assert_eq!(monitor.commands(&server, "{c:k}").await.len(), 0);
    set(&writer, "k", 2).await;
    until("the change is seen", async || {
        get(&cache, "k").await == Some(2)
    })
    .await;
    warm(&cache, "k").await;
    writer.remove("k").await.expect("removed");
    until("the removal is seen", async || {
        get(&cache, "k").await.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_miss_that_is_loaded_is_not_asked_for_its_life() {
    let server = Server::start_single().await;
    let cache = near(&server.client().await);
    warm(&cache, "first").await;
    let monitor = Monitor::start(&server).await;
    let load = || async { Ok::<_, Infallible>(1_u64) };
    let load_many = async |keys: Vec<String>| {
        let values = keys.into_iter().map(|key| (key, 1_u64));
        Ok::<_, Infallible>(values.collect::<HashMap<_, _>>())
    };
    let asked = async |key: &str| {
        let commands = monitor.commands(&server, key).await;
        let lives = commands.iter().filter(|line| line.contains("PTTL"));
        lives.count()
    };
    cache.memoize("k", MINUTE, load).await.expect("loaded");
    let stale = cache.memoize("s", MINUTE, load).stale(MINUTE);
    stale.await.expect("loaded");
    let many = cache.memoize_many(["m"], MINUTE, load_many).await;
    many.expect("an outcome").remove(0).expect("loaded");
    for key in ["{c:k}", "{c:s}", "{c:m}"] {
        assert_eq!(asked(key).await, 0, "{key}");
    }
    // A hit is kept near, and is.
    warm(&cache, "k").await;
    assert!(asked("{c:k}").await > 0);
}

#[tokio::test]
async fn all_callers_share_one_decoded_value() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    set(&cache, "k", 1).await;
    warm(&cache, "k").await;
    let one: Arc<u64> = cache.get("k").await.expect("an answer").expect("a value");
    let load = || async { Ok::<_, Infallible>(2_u64) };
    let other = cache.memoize("k", MINUTE, load).await.expect("a value");
    assert!(Arc::ptr_eq(&one, &other));
}

#[tokio::test]
async fn a_handle_that_reads_at_replicas_is_given_what_is_held_by_one_key_and_by_several() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = near(&client);
    set(&cache, "k", 1).await;
    warm(&cache, "k").await;
    let elsewhere = cache.clone().read_from(ReadFrom::PreferReplica);
    let before = cache.stats().near_hits;
    assert_eq!(get(&elsewhere, "k").await, Some(1));
    let values = elsewhere.get_many::<u64>(["k", "other"]).await;
    assert_eq!(values.expect("an answer"), [Some(Arc::new(1)), None]);
    assert_eq!(cache.stats().near_hits, before + 2);
    // What such a handle reads is not kept.
    assert!(!is_near(&elsewhere, "other").await);
}

#[tokio::test]
async fn keys_that_are_spelt_in_other_letters_are_held_apart() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    let keys = ["{k}", "%7bk%7d", "k", "k:k", "%"];
    for (key, value) in keys.iter().zip(1..) {
        set(&cache, key, value).await;
    }
    for key in keys {
        warm(&cache, key).await;
    }
    for (key, value) in keys.iter().zip(1..) {
        assert!(is_near(&cache, key).await, "{key}");
        assert_eq!(get(&cache, key).await, Some(value), "{key}");
    }
}

#[tokio::test]
async fn an_invalid_key_is_an_error_with_a_near_cache_too() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    let error = cache.get::<u64>("").await.expect_err("no key is empty");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_read_as_another_type_asks_redis() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    set(&cache, "k", 1).await;
    warm(&cache, "k").await;
    let text = cache.get::<String>("k").await.expect("an answer");
    assert_eq!(text, None);
    let narrow = cache.get::<u8>("k").await.expect("an answer");
    assert_eq!(narrow.as_deref(), Some(&1));
}

#[tokio::test]
async fn an_invalidation_of_a_tag_ends_every_value_that_carries_it() {
    let server = Server::start().await;
    let (client, writer) = (server.client().await, server.client().await.cache("c"));
    let cache = near(&client);
    for (key, tags) in [("a", vec!["t"]), ("b", vec!["u", "t"]), ("z", vec!["u"])] {
        let set = writer.set(key, &1_u64, MINUTE).tags(tags);
        set.await.expect("stored");
        warm(&cache, key).await;
    }
    writer.invalidate_tags(["t"]).await.expect("invalidated");
    for key in ["a", "b"] {
        until("the invalidation is seen", async || {
            get(&cache, key).await.is_none()
        })
        .await;
    }
    assert!(is_near(&cache, "z").await, "its tag was not invalidated");
    writer.clear().await.expect("cleared");
    until("the clear is seen", async || {
        get(&cache, "z").await.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_value_whose_tags_are_known_is_read_by_one_command() {
    let server = Server::start().await;
    let (client, writer) = (server.client().await, server.client().await.cache("c"));
    let cache = near(&client);
    for key in ["a", "b"] {
        let set = writer.set(key, &1_u64, MINUTE).tags(["t"]);
        set.await.expect("stored");
    }
    warm(&cache, "a").await;
    // In a cluster, the keys may be in different slot groups, which have a tag of the cache each.
    warm(&cache, "b").await;
    let set = writer.set("b", &2_u64, MINUTE).tags(["t"]);
    set.await.expect("stored");
    let monitor = Monitor::start(&server).await;
    until("the change is seen", async || {
        get(&cache, "b").await == Some(2)
    })
    .await;
    warm(&cache, "b").await;
    let tags = monitor.commands(&server, ":t:{").await;
    assert!(tags.is_empty(), "{tags:?}");
}

#[tokio::test]
async fn a_memoized_value_is_held_once_it_was_read() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    let memoize = async || {
        let load = || async { Ok::<_, Infallible>(7_u64) };
        let value = cache.memoize("k", MINUTE, load).tags(["t"]).await;
        assert_eq!(*value.expect("loaded"), 7);
    };
    until("the value is held near", async || {
        let before = cache.stats().near_hits;
        memoize().await;
        cache.stats().near_hits > before
    })
    .await;
    assert_eq!(cache.stats().loads, 1);
}

/// Makes a call until it is answered near.
async fn held(cache: &Cache, what: &str, call: impl AsyncFn() -> u64) {
    until(what, async || {
        let before = cache.stats().near_hits;
        assert_eq!(call().await, 7);
        cache.stats().near_hits > before
    })
    .await;
}

#[tokio::test]
async fn calls_that_may_be_served_stale_values_hold_fresh_ones_near() {
    let server = Server::start().await;
    let cache = near(&server.client().await).jitter(0.0);
    let load = || async { Ok::<_, Infallible>(7_u64) };
    let stale = || cache.memoize("stale", MINUTE, load).stale(MINUTE);
    held(&cache, "stale", async || *stale().await.expect("7")).await;
    let error = || cache.memoize("error", MINUTE, load).stale_if_error(MINUTE);
    held(&cache, "stale_if_error", async || {
        *error().await.expect("7")
    })
    .await;
    let early = || cache.memoize("early", MINUTE, load).refresh_early();
    held(&cache, "refresh_early", async || *early().await.expect("7")).await;
    let memo = cache.memo(
        MINUTE,
        |_: &u8| "memo".to_owned(),
        |_, _| async { Ok::<_, Infallible>(7_u64) },
    );
    let memo = memo.tags(["t"]).stale(MINUTE).refresh_early();
    held(&cache, "memo", async || *memo.get(&1).await.expect("7")).await;
    assert_eq!(cache.stats().loads, 4);
    assert_eq!(cache.stats().misses, 4);
}

#[tokio::test]
async fn a_value_is_not_served_near_as_fresh_once_it_is_stale() {
    let server = Server::start().await;
    let cache = near(&server.client().await).jitter(0.0);
    let strict = cache.clone().strict();
    let gate = Gate::closed();
    gate.open();
    let call = || {
        let gate = gate.clone();
        let call = cache.memoize("k", Duration::from_secs(2), move || gate.load(7_u64));
        call.stale(MINUTE)
    };
    held(&cache, "it is held", async || *call().await.expect("7")).await;
    // No push tells of the end: the entry stays for its stale window.
    until("it is stale", async || get(&strict, "k").await.is_none()).await;
    assert_eq!(get(&cache, "k").await, None);
    let before = cache.stats();
    assert_eq!(*call().await.expect("served stale"), 7);
    let now = cache.stats();
    assert_eq!(now.near_hits, before.near_hits);
    assert_eq!(now.stale_served - before.stale_served, 1);
    gate.open();
    until("it is loaded anew", async || {
        get(&strict, "k").await.is_some()
    })
    .await;
    held(&cache, "it is held again", async || {
        *call().await.expect("7")
    })
    .await;
}

#[tokio::test]
async fn a_soft_invalidation_ends_what_calls_that_may_be_served_stale_values_hold() {
    let server = Server::start().await;
    let (client, writer) = (server.client().await, server.client().await.cache("c"));
    let cache = near(&client);
    let gate = Gate::closed();
    gate.open();
    let call = || {
        let gate = gate.clone();
        let call = cache.memoize("k", MINUTE, move || gate.load(7_u64));
        call.tags(["t"]).stale(MINUTE)
    };
    held(&cache, "it is held", async || *call().await.expect("7")).await;
    let soft = writer.invalidate_tags(["t"]).soft();
    soft.await.expect("invalidated");
    until("a stale value is served", async || {
        call().await.expect("served");
        cache.stats().stale_served > 0
    })
    .await;
    gate.begun(2).await;
}

#[tokio::test]
async fn a_value_that_is_held_near_is_loaded_anew_before_its_end() {
    let server = Server::start().await;
    let cache = near(&server.client().await).jitter(0.0);
    let slow = || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, Infallible>(7_u64)
    };
    cache.memoize("k", MINUTE, slow).await.expect("loaded");
    // Eight seconds are left, and by the law of XFetch one call in three thousand loads.
    aged(&server, "hr:v:{c:k}", Duration::from_secs(52)).await;
    let gate = Gate::closed();
    let call = || {
        let gate = gate.clone();
        let call = cache.memoize("k", MINUTE, move || gate.load(8_u64));
        call.refresh_early()
    };
    held(&cache, "it is held", async || *call().await.expect("7")).await;
    until("an early refresh", async || {
        assert_eq!(*call().await.expect("served"), 7);
        cache.stats().refreshes > 0
    })
    .await;
    gate.begun(1).await;
    // While it is loaded, what is held is served to all calls.
    held(&cache, "it is held", async || *call().await.expect("7")).await;
    let before = cache.stats();
    for _ in 0..100 {
        assert_eq!(*call().await.expect("served"), 7);
    }
    assert_eq!(cache.stats().near_hits - before.near_hits, 100);
    gate.open();
    until("the new value is seen", async || {
        get(&cache, "k").await == Some(8)
    })
    .await;
    assert_eq!(gate.loads(), 1);
    assert_eq!(cache.stats().misses, 1, "nobody has waited for it");
}

#[tokio::test]
async fn the_values_of_a_batch_are_held_near() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    let keys: Vec<String> = (0..150).map(|number| format!("k{number}")).collect();
    let load = |keys: Vec<String>| async move {
        let values = keys.into_iter().map(|key| (key, 7_u64));
        // One that has no value is held, too.
        let values = values.filter(|(key, _)| key != "k3");
        Ok::<_, Infallible>(values.collect::<HashMap<_, _>>())
    };
    let many = async || {
        let call = cache.memoize_many(&keys, MINUTE, load).tags(["t"]);
        let outcomes = call.stale(MINUTE).await.expect("an answer");
        let outcomes = outcomes.into_iter().map(|it| it.expect("an outcome"));
        let values: Vec<Option<u64>> = outcomes.map(|it| it.map(|it| *it)).collect();
        for (key, value) in keys.iter().zip(&values) {
            assert_eq!(*value, (key != "k3").then_some(7), "{key}");
        }
    };
    until("all are held near", async || {
        let before = cache.stats().near_hits;
        many().await;
        cache.stats().near_hits - before == 150
    })
    .await;
    let before = cache.stats();
    assert_eq!((before.loads, before.misses), (150, 150));
    many().await;
    assert_eq!(cache.stats().hits - before.hits, 150);
    // The change of one of them ends that one.
    cache.remove("k7").await.expect("removed");
    let before = cache.stats();
    many().await;
    let now = cache.stats();
    assert_eq!(now.near_hits - before.near_hits, 149);
    assert_eq!(now.loads - before.loads, 1);
}

#[tokio::test]
async fn a_key_of_another_redis_type_is_not_remembered_as_missing() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    warm(&cache, "other").await;
    let _: usize = server.run(&["RPUSH", "hr:v:{c:k}", "theirs"]).await;
    // What was read is looked at in the background, and not kept.
    until("it was not kept", async || {
        assert_eq!(get(&cache, "k").await, None);
        cache.stats().near_refused >= 5
    })
    .await;
    assert!(!is_near(&cache, "k").await);
    let error = cache.take::<u64>("k").await.expect_err("another type");
    assert_eq!(error.kind(), ErrorKind::WrongType);
}

#[tokio::test]
async fn many_values_are_held_and_served_together() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
    for (key, value) in keys.iter().zip(0..) {
        set(&cache, key, value).await;
    }
    let many = async || {
        let values = cache.get_many::<u64>(&keys).await.expect("an answer");
        let values = values.into_iter().map(|value| *value.expect("a value"));
        assert!(values.eq(0..20));
    };
    until("all are held near", async || {
        let before = cache.stats().near_hits;
        many().await;
        cache.stats().near_hits - before == 20
    })
    .await;
}

#[tokio::test]
async fn a_missing_key_is_remembered_until_it_is_set() {
    let server = Server::start().await;
    let (client, writer) = (server.client().await, server.client().await.cache("c"));
    let cache = near(&client);
    assert_eq!(get(&cache, "k").await, None);
    warm(&cache, "k").await;
    assert_eq!(get(&cache, "k").await, None);
    set(&writer, "k", 1).await;
    until("the value is seen", async || {
        get(&cache, "k").await == Some(1)
    })
    .await;
}

#[tokio::test]
async fn a_strict_handle_asks_redis() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    set(&cache, "k", 1).await;
    warm(&cache, "k").await;
    let strict = cache.clone().strict();
    assert!(!is_near(&strict, "k").await);
    assert!(is_near(&cache, "k").await);
}

#[tokio::test]
async fn flushing_the_server_ends_all() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    for key in ["a", "b"] {
        set(&cache, key, 1).await;
        warm(&cache, key).await;
    }
    let _: () = server.run(&["FLUSHALL"]).await;
    for key in ["a", "b"] {
        until("the flush is seen", async || {
            get(&cache, key).await.is_none()
        })
        .await;
    }
}

#[tokio::test]
async fn a_value_larger_than_allowed_is_not_held() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c").near(NearCache::new().max_value(1000));
    let text = |length| "x".repeat(length);
    for (key, length) in [("small", 900), ("large", 5000)] {
        let value = text(length);
        cache.set(key, &value, MINUTE).await.expect("stored");
    }
    let read = async |key: &str| {
        let before = cache.stats().near_hits;
        cache.get::<String>(key).await.expect("an answer");
        cache.stats().near_hits > before
    };
    assert!(!read("large").await);
    until("the small one is held", async || read("small").await).await;
    assert!(!read("large").await);
}

#[tokio::test]
async fn settings_out_of_range_are_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    for near in [
        NearCache::new().max_ttl(Duration::ZERO),
        NearCache::new().max_staleness(Duration::from_millis(99)),
        NearCache::new().max_staleness(Duration::from_secs(3601)),
    ] {
        let cache = client.cache("c").near(near);
        let error = cache.get::<u64>("k").await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn a_slot_that_moves_leaves_no_value_behind() {
    let cluster = Cluster::start(2, 0).await;
    let seeds = || cluster.nodes().iter().map(|node| node.url());
    let client = || patient(Client::builder().cluster(seeds())).open();
    let client = || client().expect("good seeds");
    let (cache, writer) = (near(&client()), client().cache("c"));
    let key = "hr:v:{c:k}";
    set(&writer, "k", 1).await;
    warm(&cache, "k").await;
    let slot = hedgerow::key::slot(key.as_bytes());
    let from = cluster.owner_of(slot).await;
    let migration = cluster.migrate(slot, 1 - from).await;
    migration.carry_all().await;
    until("the value is seen to leave", async || {
        !is_near(&cache, "k").await
    })
    .await;
    // The reads are redirected to a server that does not tell this client of changes.
    for _ in 0..50 {
        assert_eq!(get(&cache, "k").await, Some(1));
    }
    let mut target = connection(&migration.target().url()).await;
    let mut removal = redis::pipe();
    removal.cmd("ASKING").ignore().cmd("DEL").arg(key);
    let removed: (u64,) = removal.query_async(&mut target).await.expect("removed");
    assert_eq!(removed, (1,));
    assert_eq!(get(&cache, "k").await, None);
    migration.finish().await;
    set(&writer, "k", 2).await;
    until("the value is held near", async || {
        is_near(&cache, "k").await && get(&cache, "k").await == Some(2)
    })
    .await;
    set(&writer, "k", 3).await;
    until("the change is seen", async || {
        get(&cache, "k").await == Some(3)
    })
    .await;
}

#[tokio::test]
async fn a_call_that_may_be_given_a_stale_value_keeps_what_it_reads() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    let call = |value: u64| {
        let load = move || async move { Ok::<_, Infallible>(value) };
        cache.memoize("k", MINUTE, load).stale(MINUTE).tags(["t"])
    };
    call(1).await.expect("loaded");
    until("the value is held near", async || {
        let before = cache.stats().near_hits;
        assert_eq!(*call(2).await.expect("a hit"), 1);
        cache.stats().near_hits > before
    })
    .await;
    let writer = server.client().await.cache("c");
    writer.invalidate_tags(["t"]).await.expect("invalidated");
    until("the invalidation is seen", async || {
        *call(3).await.expect("loaded") == 3
    })
    .await;
}
