//! `Client::close`: it returns once nothing is under way, or says what is left.

use std::future::IntoFuture as _;
use std::time::Duration;

use hedgerow::{ErrorKind, Result};

use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{patient, until};

const MINUTE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

/// What a close that fails says.
fn left(closed: Result<()>) -> String {
    let error = closed.expect_err("something is left");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    error.to_string()
}

#[tokio::test]
async fn a_client_that_did_nothing_is_closed_at_once_and_sends_nothing() {
    let client = hedgerow::Client::open("redis://127.0.0.1:1").expect("a good URL");
    client.close(Duration::ZERO).await.expect("nothing is left");
}

#[tokio::test]
async fn a_lock_that_was_dropped_is_free_once_its_client_is_closed() {
    let server = Server::start().await;
    let (client, other) = (server.client().await, server.client().await);
    let guard = client.lock("l").acquire().await.expect("free");
    let text = left(client.close(SHORT).await);
    assert!(text.contains("1 locks or permits"), "{text}");
    drop(guard);
    client.close(MINUTE).await.expect("closed");
    let taken = other.lock("l").try_acquire().await.expect("an answer");
    assert!(taken.is_some(), "it was released");
}

#[tokio::test]
async fn a_load_whose_caller_has_left_is_stored_before_its_client_is_closed() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c");
    let gate = Gate::closed();
    let load = gate.clone();
    let call = cache.memoize("k", MINUTE, move || load.load(7u8));
    let caller = tokio::spawn(call.into_future());
    gate.begun(1).await;
    caller.abort();
    let text = left(client.close(SHORT).await);
    assert!(text.contains("1 loads"), "{text}");
    gate.open();
    client.close(MINUTE).await.expect("closed");
    let there = server.client().await.cache("c").get::<u8>("k").await;
    assert_eq!(there.expect("an answer").as_deref(), Some(&7));
}

#[tokio::test]
async fn an_invalidation_that_is_not_delivered_is_waited_for() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().deadline(SHORT).cache_deadline(SHORT);
    let client = client.open().expect("a good URL");
    let cache = client.cache("c");
    cache
        .set("k", &1u8, MINUTE)
        .tags(["t"])
        .deadline(MINUTE)
        .await
        .expect("stored");
    proxy.on(Request::every().named("EVALSHA"), Act::Reset);
    cache.invalidate_tags(["t"]).await.expect_err("lost");
    let text = left(client.close(SHORT).await);
    assert!(text.contains("1 tags"), "{text}");
    proxy.clear();
    client.close(MINUTE).await.expect("closed");
    assert_eq!(cache.undelivered().waiting, 0);
    let there = server.client().await.cache("c").get::<u8>("k").await;
    assert!(there.expect("an answer").is_none(), "it was invalidated");
}

#[tokio::test]
async fn a_client_that_was_closed_goes_on_if_it_is_called() {
    let server = Server::start().await;
    let client = server.client().await;
    client.close(MINUTE).await.expect("closed");
    let guard = client.lock("l").acquire().await.expect("free");
    guard.release().await.expect("released");
    until("its notes are gone", async || {
        client.close(Duration::ZERO).await.is_ok()
    })
    .await;
}

#[cfg(feature = "limit")]
#[tokio::test]
async fn a_turn_that_was_dropped_is_given_back_before_its_client_is_closed() {
    use hedgerow::limit::Quota;

    let hour = 60 * MINUTE;
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let quota = Quota::new(1, hour);
    let limiter = client.rate_limiter("api", quota);
    let direct = server.client().await.rate_limiter("api", quota);
    let reserved = async || direct.peek("a").await.expect("answered").reset_after > hour;
    // The script is known from here on, so that one call of it is one request.
    limiter.refund("other", 1).await.expect("given back");
    limiter.until_ready("a").await.expect("the first turn");
    client.close(MINUTE).await.expect("a turn that was used");
    let mut wait = limiter.until_ready("a").wait(hour).into_future();
    assert!(futures::poll!(&mut wait).is_pending());
    until("the turn is reserved", reserved).await;
    let refund = Request::any().named("evalsha").with("hr:r:{api:a}");
    let held = proxy.on(refund, Act::Hold);
    drop(wait);
    let text = left(client.close(SHORT).await);
    assert!(text.contains("1 turns of limits"), "{text}");
    held.hit().await;
    held.deliver();
    client.close(MINUTE).await.expect("closed");
    assert!(!reserved().await, "it was given back");
}
