//! What waiters are told that give up: that the lock was held only if the server says so.

use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, Error, ErrorKind};

use crate::server::{Server, signal};
use crate::wait::{bounded, queued};

const AGES: Duration = Duration::from_secs(600);

/// How many of one process wait.
const WAITERS: usize = 5;

/// Starts waiters of one process; answers what each is told.
fn waiters(client: &Client, wait: Duration) -> tokio::task::JoinHandle<Vec<Error>> {
    let calls = (0..WAITERS).map(|_| {
        let lock = client.lock("a").wait(wait);
        async move { lock.acquire().await.expect_err("it is held") }
    });
    tokio::spawn(join_all(calls))
}

#[tokio::test]
async fn waiters_that_give_up_on_a_server_that_says_nothing_are_told_that() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let pid = server.pid().await;
    let held = two.lock("a").lease(AGES).acquire().await.expect("free");
    let waiting = waiters(&one, Duration::from_secs(4));
    queued(&two.lock("a"), 1).await;
    signal(pid, "STOP");
    let told = bounded("they give up", waiting).await;
    signal(pid, "CONT");
    for error in told.expect("no panic") {
        // A connection that is silent is given up after a while.
        let expected = [ErrorKind::Timeout, ErrorKind::Disconnected];
        assert!(expected.contains(&error.kind()), "{error:?}");
    }
    drop(held);
}

#[tokio::test]
async fn those_who_wait_for_the_first_answer_of_a_server_that_is_out_are_told_that() {
    let server = Server::start_single().await;
    let client = server.client().await;
    client.ping().await.expect("an answer");
    let pid = server.pid().await;
    signal(pid, "STOP");
    let told = bounded("they give up", waiters(&client, Duration::from_secs(1))).await;
    signal(pid, "CONT");
    for error in told.expect("no panic") {
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    }
}

#[tokio::test]
async fn waiters_that_give_up_on_a_server_that_is_gone_are_told_that() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let held = two.lock("a").lease(AGES).acquire().await.expect("free");
    let waiting = waiters(&one, Duration::from_secs(3));
    queued(&two.lock("a"), 1).await;
    let _killed = server.kill().await;
    for error in bounded("they give up", waiting).await.expect("no panic") {
        let expected = [ErrorKind::Unreachable, ErrorKind::Disconnected];
        assert!(expected.contains(&error.kind()), "{error:?}");
    }
    drop(held);
}

#[tokio::test]
async fn waiters_that_give_up_on_a_held_lock_are_told_who_holds_it() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let held = two.lock("a").lease(AGES).acquire().await.expect("free");
    let fence = held.fence().to_string();
    let told = waiters(&one, Duration::from_millis(300)).await;
    for error in told.expect("no panic") {
        assert_eq!(error.kind(), ErrorKind::Contended, "{error:?}");
        assert!(error.to_string().contains(&fence), "{error}");
    }
}
