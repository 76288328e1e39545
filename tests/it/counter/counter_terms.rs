//! What an addition says of itself: whether it is a repeat, and how long its counter lives.

use std::time::Duration;

use hedgerow::ErrorKind;

use crate::support::proxy::Proxy;
use crate::support::server::Server;
use crate::support::wait::until;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_repeat_says_that_it_is_one() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.counter("views").add(5).once("request 1", HOUR).await;
    let first = first.expect("added");
    assert_eq!((first.value, first.applied, first.repeated), (5, 5, false));
    one.counter("views").add(1).await.expect("added");
    for client in [&one, &two] {
        let repeat = client.counter("views").add(5).once("request 1", HOUR).await;
        let repeat = repeat.expect("answered");
        assert_eq!(
            (repeat.value, repeat.applied, repeat.repeated),
            (5, 5, true)
        );
    }
    let other = two.counter("views").add(1).once("request 2", HOUR).await;
    assert!(!other.expect("added").repeated);
    assert!(!two.counter("views").add(1).await.expect("added").repeated);
    assert_eq!(one.counter("views").get().await.expect("read"), 8);
}

#[tokio::test]
async fn a_call_that_is_sent_again_does_not_take_itself_for_a_repeat() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().open().expect("a good URL");
    let counter = client.counter("views");
    counter.add(1).once("request 1", HOUR).await.expect("added");
    proxy.lose_next_reply();
    let added = counter.add(1).once("request 2", HOUR).await;
    let added = added.expect("sent again, since that is harmless");
    assert_eq!((added.value, added.repeated), (2, false));
    assert!(
        counter
            .add(1)
            .once("request 2", HOUR)
            .await
            .expect("answered")
            .repeated
    );
}

#[tokio::test]
async fn a_limit_over_a_counter_that_was_set_ends() {
    let server = Server::start().await;
    let counter = server.client().await.counter("calls");
    let window = Duration::from_secs(1);
    counter.set(3).await.expect("set");
    let call = || counter.add(1).within(0..=3).expire(window);
    let refused = call().await.expect_err("the limit is reached");
    assert_eq!(refused.kind(), ErrorKind::OutOfRange);
    assert_eq!(counter.get().await.expect("read"), 3, "it is unchanged");
    until("the window ends", async || call().await.is_ok()).await;
    assert_eq!(counter.get().await.expect("read"), 1);
}

#[tokio::test]
async fn a_counter_without_a_ttl_gets_one_and_keeps_it() {
    let server = Server::start().await;
    let counter = server.client().await.counter("calls");
    counter.add(1).await.expect("added");
    let first = counter.add(1).expire(HOUR).await.expect("added");
    let left = first.expires_in.expect("it has a TTL");
    assert!(left <= HOUR, "{left:?}");
    let second = counter.add(1).expire(2 * HOUR).await.expect("added");
    assert!(second.expires_in.is_some_and(|left| left <= HOUR));
    // A saturated add that changes nothing gives it, too.
    counter.take().await.expect("taken");
    counter.set(9).await.expect("set");
    let full = counter.add(1).within(0..=9).saturating().expire(HOUR).await;
    let full = full.expect("answered");
    assert_eq!((full.value, full.applied), (9, 0));
    assert!(full.expires_in.is_some());
}
