//! Shards: independent servers, each key on one of them. Same calls, same answers; one that is down
//! harms nobody but its own keys.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Cache, Client, ClientBuilder, ErrorKind, Outage};

use crate::support::server::Server;
use crate::support::wait::{bounded, patient, queued, until, waiting};

const MINUTE: Duration = Duration::from_secs(60);
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

pub async fn start(count: usize) -> Vec<Server> {
    join_all((0..count).map(|_| Server::start_single())).await
}

/// The first is called a, the second b and so on, all of one weight.
pub fn over(servers: &[Server]) -> ClientBuilder {
    let urls = servers.iter().map(Server::url);
    let shards = NAMES.into_iter().zip(urls);
    Client::builder().shards(shards.map(|(name, url)| (name, url, 1)))
}

pub async fn client(servers: &[Server]) -> Client {
    let builder = patient(over(servers));
    builder.open().expect("good shards")
}

/// Where `key` is; it is somewhere, once.
async fn home(servers: &[Server], key: &str) -> usize {
    let mut homes = Vec::new();
    for (number, server) in servers.iter().enumerate() {
        if server.run(&["EXISTS", key]).await {
            homes.push(number);
        }
    }
    assert_eq!(homes.len(), 1, "{key} is on one shard");
    homes[0]
}

/// A counter of each shard, made by counting.
async fn counters(client: &Client, servers: &[Server]) -> Vec<String> {
    let mut names = vec![String::new(); servers.len()];
    for number in 0.. {
        let name = format!("views:{number}");
        client.counter(&name).add(1).await.expect("added");
        let home = home(servers, &format!("hr:c:{{{name}}}")).await;
        names[home] = name;
        if names.iter().all(|name| !name.is_empty()) {
            break;
        }
    }
    names
}

async fn memoize(cache: &Cache, number: usize, loads: &Arc<AtomicUsize>) {
    let loads = loads.clone();
    let load = move || async move {
        loads.fetch_add(1, Ordering::SeqCst);
        Ok::<_, Infallible>(number)
    };
    let call = cache.memoize(&format!("city:{number}"), MINUTE, load);
    let call = call.tags([format!("country:{}", number % 7), "all".into()]);
    assert_eq!(*call.await.expect("loaded"), number);
}

#[tokio::test]
async fn every_primitive_works_on_three_shards() {
    let servers = start(3).await;
    let (one, two) = (client(&servers).await, client(&servers).await);
    one.ping().await.expect("all shards answer");
    for number in 0..50 {
        let name = format!("views:{number}");
        one.counter(&name).add(2).await.expect("added");
        let once = || two.counter(&name).add(3).once("a", MINUTE);
        once().await.expect("added");
        once().await.expect("a repeat");
        assert_eq!(two.counter(&name).get().await.expect("read"), 5);
    }
    for server in &servers {
        assert!(server.run::<usize>(&["DBSIZE"]).await > 20, "all hold some");
    }

    // Values with tags, most of which are on another shard.
    let (here, there) = (one.cache("catalogue"), two.cache("catalogue"));
    let loads = Arc::new(AtomicUsize::new(0));
    for number in 0..50 {
        memoize(&here, number, &loads).await;
        memoize(&there, number, &loads).await;
    }
    assert_eq!(loads.load(Ordering::SeqCst), 50, "one load for each key");
    let tags = there.invalidate_tags(["country:3", "country:5"]);
    tags.await.expect("invalidated");
    for number in 0..50 {
        memoize(&here, number, &loads).await;
    }
    assert_eq!(loads.load(Ordering::SeqCst), 64, "the tagged were reloaded");
    here.clear().await.expect("cleared");
    for number in 0..50 {
        assert_eq!(
            there
                .get::<usize>(&format!("city:{number}"))
                .await
                .expect("read"),
            None
        );
    }

    for number in 0..20 {
        let name = format!("invoice:{number}");
        let guard = one.lock(&name).acquire().await.expect("free");
        let refused = two.lock(&name).try_acquire().await.expect("an answer");
        assert!(refused.is_none());
        let fence = guard.fence();
        guard.release().await.expect("released");
        let guard = two.lock(&name).acquire().await.expect("free again");
        assert!(guard.fence() > fence);
    }
}

#[tokio::test]
async fn waiters_for_locks_are_woken_by_push_on_every_shard() {
    let servers = start(3).await;
    let (one, two) = (client(&servers).await, client(&servers).await);
    for number in 0..12 {
        let name = format!("invoice:{number}");
        let lock = one.lock(&name).lease(Duration::from_secs(600));
        let guard = lock.acquire().await.expect("free");
        let waiter = two.lock(&name).wait(Duration::from_secs(300));
        let waiting = tokio::spawn(async move { waiter.acquire().await.map(|it| it.fence()) });
        queued(&one.lock(&name), 1).await;
        let fence = guard.fence();
        guard.release().await.expect("released");
        let granted = bounded("the waiter is granted the lock", waiting).await;
        assert!(granted.expect("no panic").expect("granted") > fence);
    }
    for server in &servers {
        let heard: Vec<String> = server
            .run(&["PUBSUB", "SHARDCHANNELS", "hr:*:wake:*"])
            .await;
        assert!(!heard.is_empty(), "each shard is listened to");
    }
}

#[tokio::test]
async fn whoever_waits_for_a_load_is_told_by_the_shard_of_its_key() {
    let servers = start(3).await;
    let (one, two) = (client(&servers).await, client(&servers).await);
    for number in 0..9 {
        let key = format!("city:{number}");
        let go = Arc::new(AtomicBool::new(false));
        let leader = tokio::spawn({
            let (cache, key, go) = (one.cache("c"), key.clone(), go.clone());
            async move {
                let load = move || async move {
                    until("the other waits", async || go.load(Ordering::SeqCst)).await;
                    Ok::<_, Infallible>("leader".to_owned())
                };
                cache.memoize(&key, MINUTE, load).await
            }
        });
        let lease = format!("hr:l:{{c:{key}}}");
        until("the leader has the lease", async || {
            let asked: Vec<usize> = join_all(
                servers
                    .iter()
                    .map(async |it| it.run(&["EXISTS", &lease]).await),
            )
            .await;
            asked.into_iter().sum::<usize>() == 1
        })
        .await;
        let server = &servers[home(&servers, &lease).await];
        let follower = tokio::spawn({
            let (cache, key) = (two.cache("c"), key.clone());
            async move {
                let load = || async { Ok::<_, Infallible>("follower".to_owned()) };
                cache.memoize(&key, MINUTE, load).await
            }
        });
        waiting(server, &lease, 1).await;
        let heard: Vec<String> = server.run(&["PUBSUB", "SHARDCHANNELS", "hr:{wake*"]).await;
        assert_eq!(heard.len(), 2, "both hear on the shard of the key");
        go.store(true, Ordering::SeqCst);
        for answer in [leader, follower] {
            let value = bounded("a value", answer).await.expect("no panic");
            assert_eq!(*value.expect("loaded"), "leader");
        }
    }
}

#[tokio::test]
async fn names_say_where_a_key_is_and_neither_order_nor_url_does() {
    let servers = start(3).await;
    let first = client(&servers).await;
    for number in 0..60 {
        let counter = first.counter(&format!("views:{number}"));
        counter.add(1).await.expect("added");
    }
    let url = |number: usize| format!("{}?db=0", servers[number].url());
    let shuffled = [("c", url(2), 1), ("a", url(0), 1), ("b", url(1), 1)];
    let second = Client::builder()
        .shards(shuffled)
        .open()
        .expect("good shards");
    for number in 0..60 {
        let counter = second.counter(&format!("views:{number}"));
        assert_eq!(counter.get().await.expect("read"), 1);
    }
}

#[tokio::test]
async fn shards_that_cannot_be_are_refused_before_anything_is_dialled() {
    let refused = async |shards: &[(&str, &str, u32)]| {
        let builder = Client::builder().shards(shards.iter().copied());
        let error = builder.open().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.to_string()
    };
    let good = "redis://127.0.0.1:1";
    assert!(refused(&[]).await.contains("at least one"));
    assert!(refused(&[("a", good, 0)]).await.contains("weight"));
    assert!(
        refused(&[("a", good, 1), ("a", good, 1)])
            .await
            .contains("two shards")
    );
    assert!(refused(&[("", good, 1)]).await.contains("empty"));
    let told = refused(&[("a", good, 1), ("b", "http://:secret@host", 1)]).await;
    assert!(
        told.contains("shard \"b\"") && !told.contains("secret"),
        "{told}"
    );
}

#[tokio::test]
async fn a_dead_shard_is_out_by_itself_and_its_keys_are_done_without_where_the_cache_says_so() {
    let servers = start(2).await;
    let client = client(&servers).await;
    // Of several caches: none of them lives on one shard.
    let cache = |number: usize| client.cache(&format!("c{}", number % 4));
    let key = |number: usize| format!("n{number}");
    let load = async |number: usize| {
        let cache = cache(number).outage(Outage::Bypass);
        let load = cache.memoize(&key(number), MINUTE, async || Ok::<_, Infallible>(7u8));
        *load.await.expect("a value")
    };
    for number in 0..40 {
        assert_eq!(load(number).await, 7);
    }
    servers[1].kill().await;
    let mut lost = Vec::new();
    for number in 0..40 {
        let value = format!("hr:v:*:{}}}", key(number));
        if servers[0].keys(&value).await.is_empty() {
            lost.push(number);
        }
    }
    until("the breaker of the dead one is open", async || {
        let read = cache(lost[0]).get::<u8>(&key(lost[0])).await;
        let error = read.expect_err("down");
        assert!(error.to_string().contains("shard \"b\""), "{error}");
        error.kind() == ErrorKind::CircuitOpen
    })
    .await;
    for number in 0..40 {
        assert_eq!(load(number).await, 7);
        let read = cache(number).get::<u8>(&key(number)).await;
        assert_eq!(read.is_ok(), !lost.contains(&number), "{number}");
    }
    assert_eq!(cache(0).bypassed().loads, lost.len() as u64);
}

#[tokio::test]
async fn clear_reaches_the_values_on_every_shard_that_is_up_and_names_the_one_that_is_not() {
    let servers = start(2).await;
    let short = over(&servers)
        .deadline(Duration::from_millis(300))
        .cache_deadline(Duration::from_millis(300));
    let (client, short) = (client(&servers).await, short.open());
    let (cache, other) = (client.cache("c"), client.cache("other"));
    let names: Vec<String> = (0..40).map(|number| format!("n{number}")).collect();
    let stored = async || {
        for name in &names {
            cache.set(name, &1u8, MINUTE).await.expect("stored");
            other.set(name, &1u8, MINUTE).await.expect("stored");
        }
    };
    stored().await;
    cache.clear().await.expect("cleared");
    let mut here = Vec::new();
    for name in &names {
        assert_eq!(cache.get::<u8>(name).await.expect("read"), None, "{name}");
        assert!(other.get::<u8>(name).await.expect("read").is_some());
        if home(&servers, &format!("hr:v:{{c:{name}}}")).await == 0 {
            here.push(name);
        }
    }
    assert!((1..names.len()).contains(&here.len()), "values on both");

    stored().await;
    servers[1].kill().await;
    let cleared = short.expect("good shards").cache("c").clear().await;
    let error = cleared.expect_err("one is down");
    assert!(error.to_string().contains("shard \"b\""), "{error}");
    for name in here {
        assert_eq!(cache.get::<u8>(name).await.expect("read"), None, "{name}");
    }
}

/// The first of `names` for which `store` leaves a tag on `server` that was not there.
async fn tagging<'n, F: Future<Output = ()>>(
    server: &Server,
    names: &'n [String],
    store: impl Fn(&'n str) -> F,
) -> &'n str {
    for name in names {
        let before = server.keys("hr:t:*").await.len();
        store(name).await;
        if server.keys("hr:t:*").await.len() > before {
            return name;
        }
    }
    panic!("none of {} tags is on this shard", names.len());
}

#[tokio::test]
async fn a_dead_shard_fails_its_own_keys_by_name_and_holds_up_no_other() {
    let servers = start(2).await;
    let client = over(&servers).deadline(MINUTE).open().expect("good shards");
    let short = over(&servers)
        .deadline(Duration::from_millis(300))
        .cache_deadline(Duration::from_millis(300));
    let short = short.open().expect("good shards");
    let (alive, dead) = (&servers[0], &servers[1]);
    let counters = counters(&client, &servers).await;
    // Values on both shards, and a tag on the second.
    let names: Vec<String> = (0..40).map(|number| format!("n{number}")).collect();
    let cache = short.cache("c");
    let mut homes = Vec::new();
    for key in &names {
        cache.set(key, &1u8, MINUTE).await.expect("stored");
        let here = alive.keys(&format!("hr:v:{{c:{key}}}")).await;
        homes.push((key, !here.is_empty()));
    }
    let key = homes
        .iter()
        .find(|(_, here)| *here)
        .expect("half of them")
        .0;
    let tag = tagging(dead, &names, async |tag: &str| {
        let stored = cache.set(key, &1u8, MINUTE).tags([tag]).await;
        stored.expect("stored");
    });
    let tag = tag.await;
    dead.kill().await;

    let stuck = tokio::spawn({
        let counter = client.counter(&counters[1]);
        // A read: it is sent again for as long as it may be.
        async move { counter.get().await }
    });
    let counter = client.counter(&counters[0]);
    let begun = counter.get().await.expect("read");
    for number in 1..200 {
        let added = counter.add(1).await.expect("added");
        assert_eq!(added.value, begun + number);
    }
    assert!(
        !stuck.is_finished(),
        "it tries until its deadline, and nobody waits for that"
    );
    stuck.abort();

    let named = |error: &hedgerow::Error| error.to_string().contains("shard \"b\"");
    let error = short.ping().await.expect_err("one is down");
    assert!(named(&error), "{error}");
    // The loss of the connection is known by now, so that nothing is sent any more.
    let error = short.counter(&counters[1]).add(1).await.expect_err("down");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.is_retryable() && named(&error), "{error}");
    for (name, here) in homes {
        match cache.get::<u8>(name).await {
            Ok(value) => assert!(here && value.is_some(), "{name}"),
            Err(error) => {
                assert!(!here || name == key, "{name}");
                assert_eq!(error.key(), Some(&**name));
                assert!(named(&error), "{error}");
            }
        }
    }
    // The value is on the living shard and one of its tags is not: it cannot be judged.
    let error = cache
        .get::<u8>(key)
        .await
        .expect_err("one tag is out of reach");
    assert!(named(&error), "{error}");
    let here = tagging(alive, &names, async |tag: &str| {
        // One that nobody carries is not written when it is invalidated.
        let _ = cache.set(key, &1u8, MINUTE).tags([tag]).await;
    })
    .await;
    let error = cache
        .invalidate_tags([tag, here])
        .await
        .expect_err("one is down");
    assert_eq!(error.key(), Some(tag));
    assert!(named(&error), "{error}");
}

#[tokio::test]
async fn an_invalidation_that_reached_one_server_of_two_is_not_told_as_never_made() {
    let servers = start(2).await;
    let soon = Duration::from_millis(300);
    let client = over(&servers).deadline(soon).cache_deadline(soon).open();
    let cache = client.expect("good shards").cache("c");
    cache.clear().await.expect("cleared");
    servers[0].kill().await;
    let error = cache.clear().await.expect_err("one is down");
    assert!(error.is_indeterminate(), "{error}");
    servers[1].kill().await;
    until("both are known to be down", async || {
        let error = cache.clear().await.expect_err("both are down");
        error.is_retryable()
    })
    .await;
}
