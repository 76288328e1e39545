//! What a guard claims is what the server has granted, on the terms that were asked for.

use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, listened, patient, queued, until};

#[tokio::test]
async fn a_waiter_does_not_hold_on_the_terms_of_one_that_has_left() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let holder = server.client().await;
    let client = patient(proxy.builder()).connect().await.expect("a server");
    // The client hears pushes from here on, and so leaves its place to those who come later.
    let listening = client.lock("a").lease(AGES).acquire().await.expect("free");
    listened(&server, 1).await;
    listening.release().await.expect("held until now");
    let held = holder.lock("a").lease(AGES).acquire().await.expect("free");

    // The first asks for a short lease and leaves when it has its place in the queue; the other
    // stands behind it and wants a long one.
    let short = client
        .lock("a")
        .lease(Duration::from_millis(100))
        .wait(AGES);
    let long = client.lock("a").lease(AGES).wait(AGES);
    let mut context = Context::from_waker(Waker::noop());
    let waiting = {
        let mut first = pin!(short.acquire());
        assert!(first.as_mut().poll(&mut context).is_pending());
        let second = tokio::spawn(async move { long.acquire().await });
        queued(&holder.lock("a"), 1).await;
        // Its answer may have to come through the proxy yet, ahead of this one; it is the poll that
        // hears it.
        client.ping().await.expect("an answer");
        assert!(first.as_mut().poll(&mut context).is_pending());
        second
    };
    let questions = proxy.on(Request::every().named("EVALSHA"), Act::Hold);
    // It is asked for again, on the terms of the other.
    questions.hit().await;
    held.release().await.expect("held until now");
    until("what was granted to the first has run out", async || {
        server.keys("hr:{*}:lock:a").await.is_empty()
    })
    .await;
    if waiting.is_finished() {
        let guard = waiting.await.expect("no panic").expect("granted");
        assert!(
            !guard.is_held(),
            "{guard:?}, and the server knows nothing of it"
        );
        return;
    }
    questions.deliver();
    proxy.clear();
    let guard = bounded("the other is granted the lock", waiting).await;
    let guard = guard.expect("no panic").expect("granted");
    assert!(guard.is_held());
}

#[tokio::test]
async fn a_lock_that_was_lost_in_an_outage_is_free_as_soon_as_the_server_is_back() {
    let server = Server::start_single().await;
    let (proxy, other) = (Proxy::before(&server), server.client().await);
    let client = patient(proxy.builder()).connect().await.expect("a server");
    // Nothing is heard for as long as a lease lasts, which the server renews again and again.
    let lease = Duration::from_secs(3);
    let guard = client.lock("a").lease(lease).acquire().await.expect("free");
    let silence = proxy.on_reply(Request::every().named("EVALSHA"), Act::Hold);
    let reason = bounded("the local deadline", guard.lost()).await;
    assert_eq!(reason, hedgerow::lock::LossReason::Expired);
    let key = &server.keys("hr:{*}:lock:a").await[0];
    // What is left of it is not what frees the lock.
    let _: () = server.run(&["PERSIST", key]).await;
    silence.deliver();
    proxy.clear();
    let lock = other.lock("a").wait(Duration::from_secs(60));
    let next = lock.acquire().await.expect("released");
    assert!(next.fence() > guard.fence());
    drop(guard);
    assert!(next.is_held());
}

/// Longer than any test takes.
const AGES: Duration = Duration::from_secs(600);
