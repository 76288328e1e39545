//! Invalidations that could not be delivered: the caller has its error, and the client goes on.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::time::Duration;

use hedgerow::{Cache, Error, ErrorKind};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::until;

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
async fn a_soft_invalidation_is_delivered_softly_and_a_hold_begins_then() {
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
async fn a_call_that_is_dropped_leaves_nothing_behind() {
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
    assert_eq!(cache.undelivered().waiting, 0);
}
