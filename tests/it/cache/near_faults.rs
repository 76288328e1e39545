//! The near cache, when reads and writes race, and when pushes are lost.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::pin::pin;
use std::time::Duration;

use futures::future::join_all;
use hedgerow::cache::NearCache;
use hedgerow::{Cache, Client, ErrorKind};

use super::near::{get, is_near, near, set, warm};
use crate::support::proxy::{Act, Proxy, Request, Rule};
use crate::support::server::{Server, signal};
use crate::support::topology::{Node, Shards};
use crate::support::wait::{patient, until};

const MINUTE: Duration = Duration::from_secs(60);

/// Waits until all pushes about earlier changes have come: those of one server come in order.
async fn quiet(cache: &Cache, writer: &Cache) {
    set(writer, "mark", 0).await;
    warm(cache, "mark").await;
    set(writer, "mark", 1).await;
    until("the mark is seen", async || {
        get(cache, "mark").await == Some(1)
    })
    .await;
}

/// Lets `readers` reads race one write of the same key in each of many rounds, each with a key of
/// its own. The write comes `gap` after the reads, or, without one, when they are over. Afterwards
/// no key may be stale.
async fn race(readers: usize, gap: Option<Duration>) {
    let server = Server::start_single().await;
    let cache = near(&server.client().await);
    let writer = server.client().await.cache("c");
    warm(&cache, "first").await;
    let keys: Vec<String> = (0..ROUNDS).map(|number| format!("k{number}")).collect();
    for key in &keys {
        set(&writer, key, 1).await;
    }
    for key in &keys {
        let reads = join_all((0..readers).map(|_| get(&cache, key)));
        match gap {
            None => {
                reads.await;
                set(&writer, key, 2).await;
            }
            Some(gap) => {
                let write = async {
                    if !gap.is_zero() {
                        tokio::time::sleep(gap).await;
                    }
                    set(&writer, key, 2).await;
                };
                tokio::join!(reads, write);
            }
        }
    }
    quiet(&cache, &writer).await;
    // Twice: what the first reads have put in is read by the second.
    for _ in 0..2 {
        for key in &keys {
            assert_eq!(get(&cache, key).await, Some(2), "{key}");
        }
    }
    let held = async |key: &String| is_near(&cache, key).await;
    until("most keys are held", async || {
        let mut near = 0;
        for key in &keys {
            near += usize::from(held(key).await);
        }
        near > ROUNDS / 2
    })
    .await;
    for key in &keys {
        assert_eq!(get(&cache, key).await, Some(2), "{key}");
    }
}

const ROUNDS: usize = 2000;

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_stale_after_one_read_has_raced_one_write() {
    for gap in [
        Some(Duration::ZERO),
        Some(Duration::from_micros(50)),
        Some(Duration::from_millis(1)),
        None,
    ] {
        race(1, gap).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_stale_after_three_reads_have_raced_one_write() {
    for gap in [
        Some(Duration::ZERO),
        Some(Duration::from_micros(50)),
        Some(Duration::from_millis(1)),
        None,
    ] {
        race(3, gap).await;
    }
}

#[tokio::test]
async fn a_lost_push_connection_ends_what_it_has_told_of() {
    let server = Server::start().await;
    let cache = near(&server.client().await);
    let writer = server.client().await.cache("c");
    for number in 1..=5 {
        set(&writer, "k", number).await;
        warm(&cache, "k").await;
        server.kill_connections("-push").await;
        set(&writer, "k", number + 100).await;
        until("the change is seen", async || {
            get(&cache, "k").await == Some(number + 100)
        })
        .await;
    }
    warm(&cache, "k").await;
}

#[tokio::test]
async fn values_are_verified_again_after_the_connection_for_commands_was_lost() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = near(&client);
    set(&cache, "k", 1).await;
    warm(&cache, "k").await;
    server.kill_connections("hedgerow").await;
    // The connection may lead to another server from now on.
    until("the loss is seen", async || !is_near(&cache, "k").await).await;
    warm(&cache, "k").await;
    let writer = server.client().await.cache("c");
    set(&writer, "k", 2).await;
    until("the change is seen", async || {
        get(&cache, "k").await == Some(2)
    })
    .await;
}

#[tokio::test]
async fn pushes_that_vanish_are_missed_within_the_bound() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let bound = NearCache::new().max_staleness(Duration::from_millis(200));
    let cache = client.cache("c").near(bound);
    let writer = server.client().await.cache("c");
    set(&writer, "k", 1).await;
    warm(&cache, "k").await;
    let lost = proxy.on_push(Request::every().named("invalidate"), Act::Vanish);
    set(&writer, "k", 2).await;
    until("the push has vanished", async || lost.hits() > 0).await;
    assert_eq!(get(&cache.clone().strict(), "k").await, Some(2));
    until("the change is seen", async || {
        get(&cache, "k").await == Some(2)
    })
    .await;
}

#[tokio::test]
async fn what_this_client_changes_is_seen_before_the_push_comes() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    // Another handle, without the near cache, changes what the near cache holds.
    let (cache, plain) = (near(&client), client.cache("c"));
    set(&plain, "k", 0).await;
    warm(&cache, "k").await;
    let held = proxy.on_push(Request::every().named("invalidate"), Act::Hold);
    for number in 1..30 {
        let set = plain.set("k", &number, MINUTE).tags(["t"]);
        set.await.expect("stored");
        assert_eq!(get(&cache, "k").await, Some(number));
        warm(&cache, "k").await;
        match number % 3 {
            0 => plain.remove("k").await.expect("removed"),
            1 => plain.invalidate_tags(["t"]).await.expect("invalidated"),
            _ => plain.clear().await.expect("cleared"),
        }
        assert_eq!(get(&cache, "k").await, None, "round {number}");
    }
    assert!(held.hits() > 0, "pushes are held");
}

#[tokio::test]
async fn a_value_ends_with_its_entry_although_no_push_comes() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = near(&client);
    let life = Duration::from_secs(2);
    let writer = server.client().await.cache("c").jitter(0.0);
    writer.set("k", &1_u64, life).await.expect("stored");
    warm(&cache, "k").await;
    let _lost = proxy.on_push(Request::every().named("invalidate"), Act::Vanish);
    let strict = writer.clone();
    until("the entry has expired", async || {
        get(&strict, "k").await.is_none()
    })
    .await;
    assert_eq!(get(&cache, "k").await, None);
}

#[tokio::test]
async fn nothing_is_served_once_a_server_has_stood_still_for_the_bound() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let bound = NearCache::new().max_staleness(Duration::from_millis(400));
    let cache = client.cache("c").near(bound);
    set(&cache, "k", 1).await;
    warm(&cache, "k").await;
    let pid = server.pid().await;
    signal(pid, "STOP");
    let read = || cache.get::<u64>("k").deadline(Duration::from_millis(50));
    until("nothing is served", async || read().await.is_err()).await;
    // Verified again by nothing but the server's own answer.
    for _ in 0..20 {
        assert!(read().await.is_err());
    }
    signal(pid, "CONT");
    until("the server answers", async || read().await.is_ok()).await;
    warm(&cache, "k").await;
}

/// A near cache with this grace, and the client that it belongs to. Its server is looked at often.
fn with_grace(server: &Server, grace: Duration) -> (Client, Cache) {
    let soon = Duration::from_millis(300);
    let builder = server.builder().deadline(soon).cache_deadline(soon);
    let client = builder.open().expect("a good URL");
    let bound = Duration::from_millis(200);
    let near = NearCache::new().max_staleness(bound).outage_grace(grace);
    let cache = client.cache("c").near(near);
    (client, cache)
}

/// Whether a read fails as it must without a grace.
async fn fails(cache: &Cache, key: &str) -> bool {
    match cache.get::<u64>(key).await {
        Ok(_) => false,
        Err(error) if error.kind().is_outage() => true,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn an_outage_is_bridged_by_what_was_valid_before_it() {
    let mut server = Server::start_single().await;
    let (client, cache) = with_grace(&server, MINUTE);
    let writer = server.client().await.cache("c");
    for (key, value) in [("a", 1), ("b", 2), ("pushed", 3)] {
        set(&writer, key, value).await;
        warm(&cache, key).await;
    }
    warm(&cache, "nothing").await;
    writer.remove("pushed").await.expect("removed");
    until("the removal is seen", async || {
        get(&cache, "pushed").await.is_none()
    })
    .await;
    let before = cache.stats();
    let killed = server.kill().await;
    until("the loss is seen", async || {
        get(&cache, "a").await;
        cache.stats().near_grace > 0
    })
    .await;
    let served = cache.stats().near_grace;
    assert_eq!(get(&cache, "a").await, Some(1));
    let never = || async { Ok::<u64, Infallible>(99) };
    let value = cache.memoize("b", MINUTE, never).await.expect("held");
    assert_eq!(*value, 2);
    let found = cache.get_many::<u64>(["a", "nothing", "b"]).await;
    let found = found.expect("all of them are held");
    assert_eq!(found, [Some(1.into()), None, Some(2.into())]);
    let counted = cache.stats();
    assert_eq!(counted.near_grace, served + 4);
    assert!(counted.hits >= before.hits + 4, "each is a hit");
    // What is not held, and what was removed before.
    assert!(fails(&cache, "other").await);
    assert!(fails(&cache, "pushed").await || get(&cache, "pushed").await.is_none());
    assert!(cache.get_many::<u64>(["a", "other"]).await.is_err());
    // Other handles have no grace.
    assert!(fails(&client.cache("c"), "a").await);
    assert!(fails(&cache.clone().strict(), "a").await);
    assert!(
        cache
            .clone()
            .strict()
            .memoize("b", MINUTE, never)
            .await
            .is_err()
    );

    // The new server is empty, and that is what is read from then on.
    server.start_again(killed).await;
    until("the server is read", async || {
        get(&cache, "a").await.is_none()
    })
    .await;
    let served = cache.stats().near_grace;
    for key in ["a", "b", "nothing"] {
        assert_eq!(get(&cache, key).await, None);
    }
    assert_eq!(cache.stats().near_grace, served);
}

#[tokio::test]
async fn a_server_that_hangs_is_bridged_until_it_answers() {
    let server = Server::start_single().await;
    let (_client, cache) = with_grace(&server, MINUTE);
    set(&cache, "k", 1).await;
    warm(&cache, "k").await;
    let pid = server.pid().await;
    signal(pid, "STOP");
    until("the grace is used", async || {
        assert_eq!(get(&cache, "k").await, Some(1));
        cache.stats().near_grace > 0
    })
    .await;
    let never = || async { Ok::<u64, Infallible>(99) };
    let value = cache.memoize("k", MINUTE, never).await.expect("held");
    assert_eq!(*value, 1);
    signal(pid, "CONT");
    set(&server.client().await.cache("c"), "k", 2).await;
    until("the change is seen", async || {
        get(&cache, "k").await == Some(2)
    })
    .await;
    let served = cache.stats().near_grace;
    warm(&cache, "k").await;
    assert_eq!(cache.stats().near_grace, served);
}

#[tokio::test]
async fn what_is_changed_here_during_an_outage_is_not_served_any_more() {
    let server = Server::start_single().await;
    let (client, cache) = with_grace(&server, MINUTE);
    let keys = ["removed", "set", "tagged", "cleared", "dropped"];
    for key in keys {
        let set = cache.set(key, &1_u64, MINUTE).tags([key]);
        set.await.expect("stored");
        warm(&cache, key).await;
    }
    let _killed = server.kill().await;
    until("the loss is seen", async || {
        get(&cache, "cleared").await;
        cache.stats().near_grace > 0
    })
    .await;
    // Another handle, without the near cache.
    let plain = client.cache("c");
    let gone = async |key: &str| {
        assert_eq!(get(&cache, "cleared").await, Some(1), "the others stay");
        fails(&cache, key).await
    };
    plain.remove("removed").await.expect_err("it is out");
    assert!(gone("removed").await);
    plain
        .set("set", &2_u64, MINUTE)
        .await
        .expect_err("it is out");
    assert!(gone("set").await);
    let tag = plain.invalidate_tags(["tagged"]);
    tag.await.expect_err("it is out");
    assert!(gone("tagged").await);
    {
        // Polled once, and given up before it fails.
        let mut remove = pin!(plain.remove("dropped").into_future());
        assert!(futures::poll!(&mut remove).is_pending());
    }
    assert!(gone("dropped").await);
    plain.clear().await.expect_err("it is out");
    for key in keys {
        assert!(fails(&cache, key).await, "{key}");
    }
}

#[tokio::test]
async fn the_grace_ends_and_none_is_the_default() {
    let server = Server::start_single().await;
    let (client, brief) = with_grace(&server, Duration::from_millis(800));
    let none = client.cache("c").near(NearCache::new());
    set(&brief, "k", 1).await;
    for cache in [&brief, &none] {
        warm(cache, "k").await;
    }
    let _killed = server.kill().await;
    until("the loss is seen", async || fails(&none, "k").await).await;
    until("the grace is over", async || fails(&brief, "k").await).await;
    for cache in [&brief, &none] {
        for _ in 0..3 {
            assert!(fails(cache, "k").await);
        }
    }
    assert!(brief.stats().near_grace > 0);
    let long = NearCache::new().outage_grace(Duration::from_secs(24 * 60 * 60 + 1));
    let error = client.cache("c").near(long).get::<u64>("k").await;
    assert_eq!(error.expect_err("too long").kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_server_that_works_is_asked_whatever_the_grace() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = client
        .cache("c")
        .near(NearCache::new().outage_grace(MINUTE));
    let writer = server.client().await.cache("c");
    set(&writer, "k", 1).await;
    warm(&cache, "k").await;
    // The epoch is lost, and none begins. Nothing tells of changes, but reads are answered.
    let held = proxy.on(Request::every().named("CLIENT").with("TRACKING"), Act::Hold);
    server.kill_connections("-push").await;
    until("no epoch begins", async || {
        get(&cache, "k").await;
        held.hits() > 0
    })
    .await;
    set(&writer, "k", 2).await;
    assert_eq!(get(&cache, "k").await, Some(2));
    let never = || async { Ok::<u64, Infallible>(99) };
    let found = cache.get_many::<u64>(["k", "other"]).await;
    assert_eq!(found.expect("an answer"), [Some(2.into()), None]);
    set(&writer, "k", 3).await;
    let value = cache.memoize("k", MINUTE, never).await.expect("an answer");
    assert_eq!(*value, 3);
    assert_eq!(cache.stats().near_grace, 0);
    held.deliver();
    warm(&cache, "k").await;
    assert_eq!(get(&cache, "k").await, Some(3));
}

#[tokio::test]
async fn the_grace_does_not_bring_back_what_a_later_read_has_replaced() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let cache = client
        .cache("c")
        .near(NearCache::new().outage_grace(MINUTE));
    let writer = server.client().await.cache("c");
    for key in ["k", "m", "n"] {
        set(&writer, key, 1).await;
        warm(&cache, key).await;
    }
    // The pushes are lost before the server is, and other processes write meanwhile.
    let held = proxy.on(Request::every().named("CLIENT").with("TRACKING"), Act::Hold);
    server.kill_connections("-push").await;
    until("no epoch begins", async || {
        get(&cache, "other").await;
        held.hits() > 0
    })
    .await;
    for key in ["k", "m", "n"] {
        set(&writer, key, 2).await;
    }
    assert_eq!(get(&cache, "k").await, Some(2));
    let never = || async { Ok::<u64, Infallible>(99) };
    let value = cache.memoize("m", MINUTE, never).await.expect("an answer");
    assert_eq!(*value, 2);
    let found = cache.get_many::<u64>(["n"]).await.expect("an answer");
    assert_eq!(found, [Some(2.into())]);
    let _killed = server.kill().await;
    for key in ["k", "m", "n"] {
        assert!(fails(&cache, key).await, "{key} was replaced");
    }
}

/// A client with a grace, behind a proxy. Its second look at the life of `k` is held, with all
/// behind it, when another read of the same has put the value into the near cache.
async fn second_fill(server: &Server) -> (Proxy, Cache, Rule) {
    let proxy = Proxy::before(server);
    let soon = Duration::from_secs(1);
    let builder = proxy.builder().deadline(soon).cache_deadline(soon);
    let near = NearCache::new().outage_grace(MINUTE);
    let client = builder.open().expect("a good URL");
    let cache = client.cache("c").near(near);
    set(&server.client().await.cache("c"), "k", 1).await;
    warm(&cache, "other").await;
    let second = proxy.on(Request::nth(2).named("PTTL").with("hr:v:{c:k}"), Act::Hold);
    tokio::join!(get(&cache, "k"), get(&cache, "k"));
    second.hit().await;
    // A read that comes too early is held, too, and ends by itself.
    let hasty = cache.clone().deadline(Duration::from_millis(20));
    until("the value is held near", async || {
        let before = cache.stats().near_hits;
        hasty.get::<u64>("k").await.is_ok() && cache.stats().near_hits > before
    })
    .await;
    (proxy, cache, second)
}

#[tokio::test]
async fn a_read_that_an_outage_has_ended_leaves_what_is_held_to_the_grace() {
    let server = Server::start_single().await;
    let (_proxy, cache, _held) = second_fill(&server).await;
    // Its deadline is a later one.
    assert!(fails(&cache, "third").await);
    let _killed = server.kill().await;
    assert_eq!(get(&cache, "k").await, Some(1));
}

#[tokio::test]
async fn a_read_that_outlives_its_epoch_leaves_what_is_held_to_the_grace() {
    let server = Server::start_single().await;
    let (proxy, cache, second) = second_fill(&server).await;
    let held = proxy.on(Request::every().named("CLIENT").with("TRACKING"), Act::Hold);
    server.kill_connections("-push").await;
    second.deliver();
    until("no epoch begins", async || {
        get(&cache, "third").await;
        held.hits() > 0
    })
    .await;
    // Without an epoch nothing is kept, but this is what is held.
    assert_eq!(get(&cache, "k").await, Some(1));
    let _killed = server.kill().await;
    assert_eq!(get(&cache, "k").await, Some(1));
    assert!(cache.stats().near_grace > 0);
}

/// Kills the connections of near caches for pushes at this node.
async fn kill_pushes(node: &Node) {
    let list: String = node.run(&["CLIENT", "LIST"]).await;
    for line in list.lines().filter(|line| line.contains("-push")) {
        let id = line.split(' ').find_map(|word| word.strip_prefix("id="));
        let kill = ["CLIENT", "KILL", "ID", id.expect("an id")];
        let _: usize = node.run(&kill).await;
    }
}

/// The value is on one server, and its tag on another one, whose pushes are lost.
#[tokio::test]
async fn the_grace_does_not_bring_back_what_a_read_has_found_invalid() {
    let shards = Shards::start(2).await;
    let [of_values, of_tags] = shards.nodes() else {
        panic!("two shards");
    };
    let proxy = Proxy::before_node(of_tags).await;
    let client = |of_tags: &str| {
        let named = [("a", of_values.url(), 1), ("b", of_tags.to_owned(), 1)];
        Client::builder().shards(named)
    };
    let writer = patient(client(&of_tags.url())).open().expect("good URLs");
    let writer = writer.cache("c");
    let soon = Duration::from_secs(2);
    let client = client(proxy.url()).deadline(soon).cache_deadline(soon);
    let near = NearCache::new().outage_grace(MINUTE);
    let cache = client.open().expect("good URLs").cache("c").near(near);
    let cache = cache.error_ttl(Duration::ZERO);
    let mut keys = Vec::new();
    for number in 0..100 {
        let key = format!("k{number}");
        set(&writer, &key, 1).await;
        let redis_key = format!("hr:v:{{c:{key}}}");
        if of_values.run(&["EXISTS", &redis_key]).await {
            keys.push(key);
        }
    }
    let tags = async || of_tags.run::<Vec<String>>(&["KEYS", "hr:t:*"]).await.len();
    let (before, mut tag) = (tags().await, String::new());
    for number in 0..100 {
        tag = format!("t{number}");
        let probe = writer.set("probe", &1_u64, MINUTE).tags([&tag]);
        probe.await.expect("stored");
        if tags().await > before {
            break;
        }
    }
    let fail = || async { Err::<u64, _>(std::io::Error::other("no such row")) };
    let fail_many = |_| async { Err::<HashMap<_, u64>, _>(std::io::Error::other("no such row")) };
    // Each reads its own key.
    let (a, b, c, d, e) = (&keys[0], &keys[1], &keys[2], &keys[3], &keys[4]);
    let stale = async || cache.memoize(d, MINUTE, fail).stale(MINUTE).await;
    let many = async || {
        let call = cache.memoize_many([e], MINUTE, fail_many).stale(MINUTE);
        let outcomes = call.await.expect("an outcome");
        outcomes.into_iter().next().expect("of the key")
    };
    for key in [a, b, c, d, e] {
        let set = writer.set(key, &1_u64, MINUTE).tags([&tag]);
        set.await.expect("stored");
        until("the value is held near", async || {
            let before = cache.stats().near_hits;
            match key {
                _ if key == d => drop(stale().await.expect("it is there")),
                _ if key == e => drop(many().await.expect("it is there")),
                _ => drop(get(&cache, key).await),
            }
            cache.stats().near_hits > before
        })
        .await;
    }
    let held = proxy.on(Request::every().named("CLIENT").with("TRACKING"), Act::Hold);
    kill_pushes(of_tags).await;
    until("no epoch begins", async || {
        get(&cache, a).await;
        held.hits() > 0
    })
    .await;
    writer.invalidate_tags([&tag]).await.expect("invalidated");
    assert_eq!(get(&cache, a).await, None);
    let found = cache.get_many::<u64>([b]).await;
    assert_eq!(found.expect("an answer"), [None]);
    assert!(!cache.contains(c).await.expect("an answer"));
    stale().await.expect_err("it is invalid");
    many().await.expect_err("it is invalid");
    for node in shards.nodes() {
        node.kill().await;
    }
    for key in [a, b, c] {
        assert!(fails(&cache, key).await, "{key} was invalid");
    }
    stale().await.expect_err("it was invalid");
    many().await.expect_err("it was invalid");
    assert_eq!(cache.stats().near_grace, 0);
}
