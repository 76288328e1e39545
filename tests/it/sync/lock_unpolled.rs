//! Futures that are polled once and then kept unpolled, as `select!` in a loop does: they harm
//! nobody.

use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use hedgerow::{Client, Guard, Lock};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, connection};
use crate::support::wait::{bounded, calls, listened, patient, queued, until};

/// Longer than any test takes.
const AGES: Duration = Duration::from_secs(600);

fn lock(client: &Client) -> Lock {
    client.lock("a").lease(AGES).wait(AGES)
}

/// Polls a call once, which must not end by that.
fn poll<T>(
    mut call: Pin<Box<dyn Future<Output = T> + Send>>,
) -> Pin<Box<dyn Future<Output = T> + Send>> {
    let polled = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "it has to wait for an answer");
    call
}

async fn got(client: &Client) -> Guard {
    let lock = lock(client);
    bounded("the lock can be had", lock.acquire())
        .await
        .expect("granted")
}

#[tokio::test]
async fn an_acquire_that_nobody_polls_keeps_the_lock_from_nobody() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    got(&one).await.release().await.expect("held until now");
    // The server knows the script: one that it does not know is not sent again by nobody.
    got(&two).await.release().await.expect("held until now");
    let unpolled = lock(&one);
    let unpolled = poll(Box::pin(async move { unpolled.acquire().await }));
    // The server grants the lock, and the answer lies there.
    until("the lock is granted", async || {
        !server.keys("hr:{*}:lock:a").await.is_empty()
    })
    .await;
    // Another process, and another task of the same.
    got(&two).await.release().await.expect("held until now");
    got(&one).await.release().await.expect("held until now");
    // Once it is polled it goes on.
    let guard = bounded("it goes on", unpolled).await.expect("granted");
    assert!(guard.is_held());
    guard.release().await.expect("held until now");
}

#[tokio::test]
async fn a_try_that_nobody_polls_keeps_the_lock_from_nobody() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    got(&one).await.release().await.expect("held until now");
    got(&two).await.release().await.expect("held until now");
    let unpolled = lock(&one);
    let unpolled = poll(Box::pin(async move { unpolled.try_acquire().await }));
    until("the lock is granted", async || {
        !server.keys("hr:{*}:lock:a").await.is_empty()
    })
    .await;
    got(&two).await.release().await.expect("held until now");
    got(&one).await.release().await.expect("held until now");
    let guard = bounded("it goes on", unpolled).await.expect("an answer");
    assert!(guard.expect("free").is_held());
}

#[tokio::test]
async fn others_of_the_process_do_not_wait_for_an_acquire_that_nobody_polls() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    // The first call of a client asks something else before it asks for the lock.
    got(&one).await.release().await.expect("held until now");
    let held = got(&two).await;
    let unpolled = lock(&one);
    let unpolled = poll(Box::pin(async move { unpolled.acquire().await }));
    let waiting = tokio::spawn({
        let one = one.clone();
        async move { got(&one).await }
    });
    queued(&lock(&two), 1).await;
    held.release().await.expect("held until now");
    let guard = waiting.await.expect("no panic");
    guard.release().await.expect("held until now");
    drop(unpolled);
    got(&two).await.release().await.expect("held until now");
}

#[tokio::test]
async fn a_waiter_that_nobody_polls_is_passed_over() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let held = got(&two).await;
    // The first waiter is told that the lock is held, and then never looks again.
    let first = lock(&one);
    let mut first: Pin<Box<dyn Future<Output = _> + Send>> =
        Box::pin(async move { first.acquire().await });
    let watched = lock(&two);
    let stands = async {
        tokio::select! {
            _ = &mut first => unreachable!("the lock is held"),
            () = queued(&watched, 1) => {}
        }
        listened(&server, 1).await;
    };
    stands.await;
    held.release().await.expect("held until now");
    got(&two).await.release().await.expect("held until now");
    got(&one).await.release().await.expect("held until now");
    let guard = bounded("it goes on", first).await.expect("granted");
    assert!(guard.is_held());
}

#[tokio::test]
async fn a_release_that_nobody_polls_hands_the_lock_over() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    for successor in [&one, &two] {
        let guard = got(&one).await;
        let waiting = tokio::spawn({
            let successor = successor.clone();
            async move { got(&successor).await }
        });
        queued(&lock(&two), 1).await;
        let unpolled = poll(Box::pin(guard.release()));
        let guard = waiting.await.expect("no panic");
        guard.release().await.expect("held until now");
        bounded("it ends", unpolled).await.expect("held until now");
    }
}

#[tokio::test]
async fn a_release_that_nobody_polls_frees_the_lock_also_on_a_client_without_a_connection() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let guard = got(&one).await;
    server.kill_connections("hedgerow").await;
    let unpolled = poll(Box::pin(guard.release()));
    got(&two).await.release().await.expect("held until now");
    let _ = bounded("it ends", unpolled).await;
}

/// It would be granted to an owner of whom nobody knows, long after the keeper has asked for it.
#[tokio::test]
async fn a_question_that_was_given_up_is_not_sent_again() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let first = got(&client).await;
    let key = server.keys("hr:{*}:lock:a").await.remove(0);
    first.release().await.expect("held until now");
    // While a script runs, the server refuses all else, which is then sent again.
    let _: String = server
        .run(&["CONFIG", "SET", "busy-reply-threshold", "1"])
        .await;
    let (mut busy, mut free) = (
        connection(server.url()).await,
        connection(server.url()).await,
    );
    let endless = tokio::spawn(async move {
        let mut endless = redis::cmd("EVAL");
        endless.arg("while true do end").arg(0);
        endless.query_async::<()>(&mut busy).await
    });
    until("the server is busy", async || {
        let answer = redis::cmd("PING")
            .query_async::<String>(&mut free.clone())
            .await;
        answer.is_err()
    })
    .await;
    let unpolled = lock(&client);
    let mut unpolled: Pin<Box<dyn Future<Output = _> + Send>> =
        Box::pin(async move { unpolled.acquire().await });
    let asked = proxy.on_reply(Request::every().with(&key), Act::Delay(Duration::ZERO));
    tokio::select! {
        _ = &mut unpolled => unreachable!("it is refused"),
        () = until("it was refused", async || asked.hits() >= 2) => {}
    }
    proxy.clear();
    let killed: String = redis::cmd("SCRIPT")
        .arg("KILL")
        .query_async(&mut free)
        .await
        .expect("it runs");
    assert_eq!(killed, "OK");
    endless.await.expect("no panic").expect_err("it was killed");
    // The keeper asks several times, less and less often. It does not know the script at first.
    let asked = proxy.on(Request::every().with(&key), Act::Delay(Duration::ZERO));
    until("the keeper has asked", async || asked.hits() >= 5).await;
    // A grant writes the lock and the counter of fences.
    let before = calls(&server, &["set"]).await;
    let guard = bounded("it goes on", unpolled).await.expect("granted");
    assert!(guard.is_held());
    assert_eq!(calls(&server, &["set"]).await - before, 2, "granted once");
}
