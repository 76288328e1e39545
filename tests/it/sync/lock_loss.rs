//! What a holder is told whose lock was taken away between two renewals.

use std::time::Duration;

use futures::poll;
use hedgerow::ErrorKind;
use tokio::runtime::Runtime;

use crate::support::halted::{AGES, begun_release, contended, halted};
use crate::support::server::Server;
use crate::support::wait::{bounded, calls, renewed, until};

/// Deletes the lock "a".
async fn delete(server: &Server) {
    let key = server.keys("hr:{*}:lock:a").await.remove(0);
    let deleted: usize = server.run(&["DEL", &key]).await;
    assert_eq!(deleted, 1);
}

#[tokio::test]
async fn a_body_whose_lock_was_deleted_under_it_ends_with_the_loss() {
    let server = Server::start().await;
    let lock = server.client().await.lock("a").lease(AGES);
    let told = lock
        .with(|_| async {
            delete(&server).await;
            42
        })
        .await;
    assert_eq!(told.expect_err("lost").kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_body_whose_lock_was_held_to_its_end_ends_well_though_the_release_fails() {
    let server = Server::start_single().await;
    let lock = server.client().await.lock("a").lease(AGES);
    let told = lock
        .with(|_| async {
            let key = server.keys("hr:{*}:lock:a").await.remove(0);
            let foreign = format!("1795000000000000 3 {}", "0".repeat(32));
            let _: String = server.run(&["SET", &key, &foreign]).await;
            42
        })
        .await;
    assert_eq!(told.expect("not proved to be lost"), 42);
}

#[tokio::test]
async fn a_release_that_the_keeper_has_tried_too_tells_of_the_loss() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let lock = client.lock("a").lease(AGES);
    // From here on the server knows the scripts: one that it does not know is not sent again by
    // nobody.
    let first = lock.acquire().await.expect("free");
    first.release().await.expect("held until now");
    let guard = lock.acquire().await.expect("free");
    delete(&server).await;
    // Releases that find no fast path read all keys. The caller has asked only for the fast one.
    let releases = async || calls(&server, &["hmget"]).await;
    let before = releases().await;
    let mut release = Box::pin(guard.release());
    assert!(poll!(&mut release).is_pending());
    // It is polled no more until the keeper has done its work.
    until("the keeper has tried", async || releases().await > before).await;
    client.ping().await.expect("an answer");
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let error = release.await.expect_err("neither has released it");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
}

#[test]
fn a_release_that_was_to_pass_the_lock_on_tells_of_the_loss_though_the_keeper_has_tried_too() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, halted) = halted(&driven);
    let (held, waiter) = contended(&driven, &halted, &client);
    let release = begun_release(&halted, held);
    driven.block_on(async {
        delete(&server).await;
        let guard = bounded("the waiter has it", waiter).await;
        let guard = guard.expect("no panic").expect("granted");
        guard.release().await.expect("held until now");
    });
    let told = halted.block_on(bounded("the release is over", release));
    let error = told.expect_err("nobody has released it");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    let _inside = driven.enter();
    drop((client, server));
}

#[tokio::test]
async fn a_lock_that_something_of_another_type_stands_for_is_not_released_again_and_again() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let guard = client.lock("a").lease(AGES).acquire().await.expect("free");
    let key = server.keys("hr:{*}:lock:a").await.remove(0);
    delete(&server).await;
    let _: usize = server.run(&["LPUSH", &key, "foreign"]).await;
    // Only releases read part of a string here.
    let releases = async || calls(&server, &["getrange"]).await;
    let before = releases().await;
    drop(guard);
    until("the keeper has tried", async || releases().await > before).await;
    let lease = Duration::from_millis(900);
    let other = client.lock("b").lease(lease).acquire().await.expect("free");
    let key = server.keys("hr:{*}:lock:b").await.remove(0);
    renewed(&server, &key, 6).await;
    assert!(other.is_held());
    assert_eq!(releases().await - before, 1);
}
