//! Invalidations that could not be delivered: the caller has its error, and the client goes on.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::time::Duration;

use hedgerow::cache::Undelivered;
use hedgerow::{Cache, Client, ClientBuilder, Error, ErrorKind};
use tokio::runtime::Builder;

use crate::support::listener::Listener;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::topology::{Cluster, Node, Shards};
use crate::support::wait::{bounded, calls, until};

const MINUTE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

async fn set(cache: &Cache, key: &str, tags: &[&str]) {
    let set = cache.set(key, &1u8, MINUTE).tags(tags);
    set.await.expect("stored");
}

async fn is_there(cache: &Cache, key: &str) -> bool {
    cache.get::<u8>(key).await.expect("an answer").is_some()
}

/// Takes the right to any key of hedgerow's from all clients.
async fn forbid(server: &Server) {
    let _: () = server
        .run(&["ACL", "SETUSER", "default", "resetkeys", "~other:*"])
        .await;
}

async fn allow(server: &Server) {
    let _: () = server.run(&["ACL", "SETUSER", "default", "allkeys"]).await;
}

async fn delivered(cache: &Cache) {
    until("nothing waits", async || cache.undelivered().waiting == 0).await;
}

fn goes_on(error: &Error) -> bool {
    error.to_string().contains("in the background")
}

#[tokio::test]
async fn an_invalidation_that_is_lost_on_the_way_is_delivered_once_the_server_answers() {
    for act in [Act::Vanish, Act::Reset] {
        let server = Server::start_single().await;
        let proxy = Proxy::before(&server);
        let there = server.client().await.cache("c");
        let client = proxy.builder().deadline(SHORT).cache_deadline(SHORT);
        let here = client.open().expect("a good URL").cache("c");
        set(&here, "k", &["t"]).await;
        set(&here, "other", &["u"]).await;

        proxy.on(Request::every().named("EVALSHA"), act);
        let error = here.invalidate_tags(["t"]).await.expect_err("lost");
        assert!(error.is_indeterminate() && goes_on(&error), "{error}");
        assert_eq!(here.undelivered().waiting, 1, "{act:?}");
        assert!(is_there(&there, "k").await, "it was not executed");

        proxy.clear();
        delivered(&here).await;
        assert!(!is_there(&there, "k").await, "{act:?}");
        assert!(is_there(&there, "other").await);
        let counted = here.undelivered();
        assert_eq!((counted.delivered, counted.refused), (1, 0));
    }
}

#[tokio::test]
async fn a_cache_that_could_not_be_cleared_is_cleared_later_on_all_servers() {
    let server = Server::start_on("cluster").await;
    let client = server.builder().open();
    let cache = client.expect("a good URL").cache("c");
    let keys: Vec<String> = (0..30).map(|number| format!("k{number}")).collect();
    for key in &keys {
        set(&cache, key, &[]).await;
    }
    let cache = cache.deadline(SHORT);
    forbid(&server).await;
    let error = cache.clear().await.expect_err("forbidden");
    assert_eq!(error.kind(), ErrorKind::Forbidden);
    assert!(goes_on(&error), "{error}");
    allow(&server).await;
    delivered(&cache).await;
    let cache = cache.deadline(MINUTE);
    for key in &keys {
        assert!(!is_there(&cache, key).await);
    }
}

#[tokio::test]
async fn a_soft_invalidation_is_delivered_softly_and_a_hold_holds() {
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(SHORT).open();
    let cache = client.expect("a good URL").cache("c");
    let load = || async { Ok::<_, Infallible>(1u8) };
    let memoized = async |key: &'static str, tag: &'static str| {
        let call = cache.memoize(key, MINUTE, load).tags([tag]).stale(MINUTE);
        call.await.expect("loaded");
    };
    memoized("soft", "s").await;
    memoized("held", "h").await;
    forbid(&server).await;
    let soft = cache.invalidate_tags(["s"]).soft().await;
    soft.expect_err("forbidden");
    let held = cache.invalidate_tags(["h"]).hold(MINUTE).await;
    held.expect_err("forbidden");
    assert_eq!(cache.undelivered().waiting, 2);
    allow(&server).await;
    delivered(&cache).await;
    let served = cache.stats().stale_served;
    memoized("soft", "s").await;
    assert_eq!(cache.stats().stale_served, served + 1);
    memoized("held", "h").await;
    assert_eq!(cache.stats().stale_served, served + 1, "that one was hard");
    assert!(!is_there(&cache, "held").await, "its load was held back");
}

#[tokio::test]
async fn a_later_call_that_succeeds_ends_the_wait() {
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(SHORT).open();
    let client = client.expect("a good URL");
    let cache = client.cache("c");
    forbid(&server).await;
    cache.invalidate_tags(["t"]).await.expect_err("forbidden");
    allow(&server).await;
    // In the same moment as the task may deliver it: either ends the wait.
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    assert_eq!(cache.undelivered().waiting, 0);
}

#[tokio::test]
async fn no_more_than_ten_thousand_tags_wait_and_the_error_says_what_was_refused() {
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(MINUTE).open();
    let cache = client.expect("a good URL").cache("c");
    forbid(&server).await;
    let many = (0..10_001).map(|number| number.to_string());
    let error = cache.invalidate_tags(many).await.expect_err("forbidden");
    assert!(error.to_string().contains("call again"), "{error}");
    let counted = cache.undelivered();
    assert_eq!((counted.waiting, counted.refused), (10_000, 1));
    // A tag that waits already takes no room.
    let again = cache.invalidate_tags(["7"]).await.expect_err("forbidden");
    assert!(goes_on(&again), "{again}");
    allow(&server).await;
    delivered(&cache).await;
    assert_eq!(cache.undelivered().delivered, 10_000);
}

#[tokio::test]
async fn what_will_never_succeed_does_not_wait() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set(&cache, "k", &["t"]).await;
    for key in server.keys("hr:t:*").await {
        let _: () = server.run(&["DEL", &key]).await;
        let _: () = server.run(&["LPUSH", &key, "x"]).await;
    }
    let error = cache.invalidate_tags(["t"]).await.expect_err("a list");
    assert_eq!(error.kind(), ErrorKind::WrongType);
    assert!(!error.to_string().contains("background"), "{error}");
    assert_eq!(cache.undelivered().waiting, 0);
}

#[tokio::test]
async fn a_call_that_is_dropped_is_delivered_all_the_same() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().cache_deadline(MINUTE).open();
    let cache = client.expect("a good URL").cache("c");
    set(&cache, "k", &["t"]).await;
    let lost = proxy.on(Request::every().named("EVALSHA"), Act::Vanish);
    tokio::select! {
        outcome = cache.invalidate_tags(["t"]).into_future() => panic!("{outcome:?}"),
        () = lost.hit() => {}
    }
    assert_eq!(cache.undelivered().waiting, 1);
    proxy.clear();
    delivered(&cache).await;
    assert!(!is_there(&cache, "k").await);
}

#[tokio::test]
async fn a_call_that_ends_in_time_leaves_nothing_behind() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set(&cache, "k", &["t"]).await;
    cache
        .invalidate_tags(["t", "u"])
        .await
        .expect("invalidated");
    cache.clear().await.expect("cleared");
    // Made and never awaited: nothing was asked for.
    drop(cache.invalidate_tags(["t"]).into_future());
    assert_eq!(cache.undelivered(), Undelivered::default());
}

fn of_shards(shards: &Shards) -> ClientBuilder {
    let urls = shards.nodes().iter().map(|node| node.url());
    let shards = ["a", "b"].into_iter().zip(urls);
    Client::builder().shards(shards.map(|(name, url)| (name, url, 1)))
}

async fn forbid_at(node: &Node) {
    let _: () = node
        .run(&["ACL", "SETUSER", "default", "resetkeys", "~other:*"])
        .await;
}

async fn allow_at(node: &Node) {
    let _: () = node.run(&["ACL", "SETUSER", "default", "allkeys"]).await;
}

/// How often a node has refused a command for a missing right.
async fn refusals(node: &Node) -> usize {
    let refused = node.info("errorstats", "errorstat_NOPERM").await;
    let count = refused.strip_prefix("count=").unwrap_or("0");
    count.parse().expect("a number")
}

/// The values of all tags on a node.
async fn tags(node: &Node) -> Vec<(String, Vec<u8>)> {
    let mut keys: Vec<String> = node.run(&["KEYS", "hr:t:*"]).await;
    keys.sort();
    let mut tags = Vec::new();
    for key in keys {
        let value = node.run(&["GET", &key]).await;
        tags.push((key, value));
    }
    tags
}

#[tokio::test]
async fn a_server_that_was_cleared_is_not_cleared_again_for_one_that_was_not() {
    let shards = Shards::start(2).await;
    let client = of_shards(&shards).cache_deadline(SHORT).open();
    let cache = client.expect("good URLs").cache("c");
    let patient = cache.clone().deadline(MINUTE);
    let keys: Vec<String> = (0..30).map(|number| format!("k{number}")).collect();
    for key in &keys {
        set(&patient, key, &[]).await;
    }
    let [well, out] = shards.nodes() else {
        panic!("two shards");
    };
    forbid_at(out).await;
    let error = cache.clear().await.expect_err("forbidden");
    assert!(goes_on(&error), "{error}");
    assert!(error.to_string().contains("shard \"b\""), "{error}");
    assert_eq!(cache.undelivered().waiting, 1, "that of one server");
    let cleared = tags(well).await;

    let before = refusals(out).await;
    until("it is tried", async || refusals(out).await > before + 2).await;
    assert_eq!(tags(well).await, cleared);
    allow_at(out).await;
    delivered(&cache).await;
    assert_eq!(tags(well).await, cleared);
    for key in &keys {
        assert!(!is_there(&patient, key).await);
    }
}

#[tokio::test]
async fn what_will_never_succeed_at_one_server_does_not_hide_what_may_at_another() {
    let shards = Shards::start(2).await;
    let client = of_shards(&shards).cache_deadline(SHORT).open();
    let cache = client.expect("good URLs").cache("c");
    let patient = cache.clone().deadline(MINUTE);
    for number in 0..30 {
        set(&patient, &format!("k{number}"), &[]).await;
    }
    let [broken, out] = shards.nodes() else {
        panic!("two shards");
    };
    let [(tag, _)] = &tags(broken).await[..] else {
        panic!("the tag of the whole cache");
    };
    let _: () = broken.run(&["DEL", tag]).await;
    let _: () = broken.run(&["LPUSH", tag, "x"]).await;
    let before = tags(out).await;
    forbid_at(out).await;
    let error = cache.clear().await.expect_err("a list, and forbidden");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    assert!(error.to_string().contains("a part of them"), "{error}");
    assert_eq!(cache.undelivered().waiting, 1);
    allow_at(out).await;
    delivered(&cache).await;
    assert_ne!(tags(out).await, before);
}

#[tokio::test]
async fn tags_of_slots_that_are_served_do_not_wait_for_those_that_are_not() {
    let cluster = Cluster::start(3, 0).await;
    let partial = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
    let _: Vec<String> = cluster.run_all(&partial).await;
    let seeds = cluster.primaries().iter().map(|node| node.url());
    let client = Client::builder().cluster(seeds).cache_deadline(SHORT);
    let cache = client.open().expect("good URLs").cache("c");
    let _ = cache.get::<u8>("k").await;
    // All slots of the first but one. A breaker does not open for that.
    for node in cluster.primaries() {
        until("the slots are nobody's", async || {
            let take = ["CLUSTER", "DELSLOTSRANGE", "0", "5459"];
            let _: Result<(), _> = node.try_run(&take).await;
            let info: String = node.run(&["CLUSTER", "INFO"]).await;
            info.contains("cluster_slots_assigned:10924")
        })
        .await;
    }
    let names: Vec<String> = (0..300).map(|number| format!("t{number}")).collect();
    let failed = cache.invalidate_tags(&names).await;
    failed.expect_err("some are on no server");
    let unserved = cache.undelivered().waiting;
    assert!((10..290).contains(&unserved), "{unserved}");
    for node in &cluster.primaries()[1..] {
        forbid_at(node).await;
    }
    let failed = cache.invalidate_tags(&names).await;
    failed.expect_err("the others are forbidden");
    assert_eq!(cache.undelivered().waiting, 300);
    for node in &cluster.primaries()[1..] {
        allow_at(node).await;
    }
    let left = async || cache.undelivered().waiting == unserved;
    until("all that are served are delivered", left).await;
}

#[tokio::test]
async fn a_server_that_executes_and_does_not_answer_is_only_asked() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().cache_deadline(SHORT).open();
    let cache = client.expect("a good URL").cache("c");
    let patient = cache.clone().deadline(MINUTE);
    set(&patient, "k", &["t"]).await;
    proxy.on_reply(Request::every().named("EVALSHA"), Act::Reset);
    let asked = proxy.on_reply(Request::every().named("PTTL"), Act::Reset);
    cache.invalidate_tags(["t"]).await.expect_err("no answer");
    let executed = calls(&server, &["evalsha"]).await;
    until("it is asked", async || asked.hits() >= 3).await;
    assert_eq!(calls(&server, &["evalsha"]).await, executed);
    proxy.clear();
    delivered(&cache).await;
    assert_eq!(calls(&server, &["evalsha"]).await, executed + 1);
}

#[tokio::test]
async fn a_late_delivery_does_not_move_the_end_of_a_hold() {
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(SHORT).open();
    let cache = client.expect("a good URL").cache("c");
    set(&cache, "k", &["t"]).await;
    forbid(&server).await;
    let held = cache.invalidate_tags(["t"]).hold(MINUTE).await;
    held.expect_err("forbidden");
    let (seconds, micros): (u64, u64) = server.run(&["TIME"]).await;
    let ends = seconds * 1000 + micros.div_ceil(1000) + MINUTE.as_millis() as u64;
    let _: () = server.run(&["DEBUG", "SLEEP", "0.01"]).await;
    allow(&server).await;
    delivered(&cache).await;
    let mut holds = 0;
    for key in server.keys("hr:t:*").await {
        let tag: Vec<u8> = server.run(&["GET", &key]).await;
        if tag[8] >= 128 {
            holds += 1;
            let until = tag[9..15]
                .iter()
                .fold(0, |all, &it| all << 8 | u64::from(it));
            assert!(until <= ends, "{} ms later", until - ends);
        }
    }
    assert_eq!(holds, 1);
}

#[tokio::test]
async fn what_turns_out_never_to_succeed_is_given_up_and_counted() {
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(SHORT).open();
    let cache = client.expect("a good URL").cache("c");
    set(&cache, "k", &["t"]).await;
    for key in server.keys("hr:t:*").await {
        let _: () = server.run(&["DEL", &key]).await;
        let _: () = server.run(&["LPUSH", &key, "x"]).await;
    }
    forbid(&server).await;
    cache.invalidate_tags(["t"]).await.expect_err("forbidden");
    allow(&server).await;
    delivered(&cache).await;
    let counted = cache.undelivered();
    assert_eq!((counted.delivered, counted.given_up), (0, 1));
}

#[tokio::test]
async fn any_call_goes_on_with_what_a_runtime_that_has_ended_has_left() {
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(SHORT).open();
    let cache = client.expect("a good URL").cache("c");
    set(&cache, "k", &["t"]).await;
    forbid(&server).await;
    let job = cache.clone();
    let job = tokio::task::spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        let failed = async { job.invalidate_tags(["t"]).await.expect_err("forbidden") };
        runtime.expect("a runtime").block_on(failed)
    });
    assert!(goes_on(&job.await.expect("no panic")));
    assert_eq!(cache.undelivered().waiting, 1);
    allow(&server).await;
    until("nothing waits", async || {
        let _ = cache.get::<u8>("k").await;
        cache.undelivered().waiting == 0
    })
    .await;
    assert!(!is_there(&cache.deadline(MINUTE), "k").await);
}

#[tokio::test]
async fn warned_of_is_the_first_that_waits_and_what_is_lost_with_the_client() {
    let server = Server::start_single().await;
    let listener = Listener::start();
    let client = server.builder().cache_deadline(SHORT).open();
    let client = client.expect("a good URL");
    let cache = client.cache("c");
    set(&cache, "k", &["t"]).await;
    for key in server.keys("hr:t:*").await {
        let _: () = server.run(&["DEL", &key]).await;
        let _: () = server.run(&["LPUSH", &key, "x"]).await;
    }
    cache.invalidate_tags(["t"]).await.expect_err("a list");
    assert!(!listener.told().contains("invalidations wait"));
    forbid(&server).await;
    cache.invalidate_tags(["u"]).await.expect_err("forbidden");
    assert!(listener.told().contains("invalidations wait"));
    drop((cache, client));
    let lost = "invalidations are lost with their client";
    until(lost, async || listener.told().contains(lost)).await;
}

#[tokio::test]
async fn an_invalidation_that_fails_fast_waits_for_no_server_that_is_out_and_is_delivered() {
    let mut server = Server::start_single().await;
    let client = server.builder().cache_deadline(5 * MINUTE);
    let cache = client.open().expect("a good URL").cache("c");
    set(&cache, "k", &["t"]).await;
    let killed = server.kill().await;
    until("the breaker is open", async || {
        let asked = cache.get::<u8>("k").deadline(SHORT).fail_fast().await;
        asked.is_err_and(|error| error.kind() == ErrorKind::CircuitOpen)
    })
    .await;
    // Nothing like the five minutes that it may take.
    let purged = cache.invalidate_tags(["t"]).fail_fast();
    let purged = bounded("it fails", purged.into_future()).await;
    let error = purged.expect_err("it is out");
    assert!(error.kind().is_outage() && goes_on(&error), "{error}");
    server.start_again(killed).await;
    delivered(&cache).await;
    let purged = cache.invalidate_tags(["t"]).fail_fast().await;
    purged.expect("it is there again");
}
