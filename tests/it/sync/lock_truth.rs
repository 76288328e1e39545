//! What waiters are told that give up: that the lock was held only if the server says so.

use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, Error, ErrorKind, Guard};

use crate::support::server::{Server, connection, signal};
use crate::support::wait::{bounded, queued, until};

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
        // The question that was not answered is that of none of them.
        assert!(!error.is_indeterminate(), "{error:?}");
    }
    drop(held);
}

#[tokio::test]
async fn a_try_behind_others_is_told_that_the_server_serves_nobody() {
    let (server, client, _held) = busy().await;
    let lock = client.lock("a");
    // At first nobody knows that it is out.
    let tried = async {
        loop {
            match lock.try_acquire().await {
                Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
                tried => return tried,
            }
        }
    };
    let tried = bounded("it is told", tried).await;
    go_on(&server).await;
    let error = tried.expect_err("nobody knows who holds it");
    assert!(error.kind().is_outage(), "{error:?}");
}

#[tokio::test]
async fn a_call_that_fails_fast_does_not_wait_behind_others_while_the_server_serves_nobody() {
    let (server, client, _held) = busy().await;
    let call = client.lock("a").wait(AGES).fail_fast();
    // While nobody knows that it is out, it queues as the others do.
    let told = async {
        loop {
            match tokio::time::timeout(Duration::from_secs(1), call.acquire()).await {
                Ok(told) => return told.expect_err("nobody answers"),
                Err(_) => continue,
            }
        }
    };
    let error = bounded("it fails", told).await;
    go_on(&server).await;
    assert!(error.kind().is_outage(), "{error:?}");
}

/// A server that refuses everything from here on, and a client whose tasks wait for a lock there.
/// Its connection lasts, and so nothing is asked but for the lock.
async fn busy() -> (Server, Client, Guard) {
    let server = Server::start_with(&["--busy-reply-threshold", "10"]).await;
    let deadline = Duration::from_secs(2);
    let client = server.builder().deadline(deadline).connect().await;
    let client = client.expect("connected");
    let lock = server.client().await.lock("a").lease(AGES);
    let held = lock.acquire().await.expect("free");
    waiters(&client, AGES);
    queued(&lock, 1).await;
    let mut other = connection(server.url()).await;
    tokio::spawn(async move {
        let mut script = redis::cmd("EVAL");
        script.arg("while true do end").arg(0);
        let _: redis::RedisResult<redis::Value> = script.query_async(&mut other).await;
    });
    until("a script holds it up", async || {
        let pong: redis::RedisResult<redis::Value> = server.try_run(&["PING"]).await;
        pong.is_err_and(|error| error.code() == Some("BUSY"))
    })
    .await;
    (server, client, held)
}

/// The script that holds the server up ends.
async fn go_on(server: &Server) {
    let _: redis::Value = server.run(&["SCRIPT", "KILL"]).await;
}

#[tokio::test]
async fn a_call_that_does_not_wait_for_the_server_does_not_wait_behind_those_who_do() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let lock = client.lock("a").wait(AGES);
    let held = lock.acquire().await.expect("free");
    let waiting = waiters(&client, AGES);
    queued(&lock, 1).await;
    let _killed = server.kill().await;
    let call = lock.clone().fail_fast();
    // While nobody knows that it is out, it queues as the others do.
    let told = async {
        loop {
            match tokio::time::timeout(Duration::from_secs(1), call.acquire()).await {
                Ok(told) => return told.expect_err("the server is gone"),
                Err(_) => continue,
            }
        }
    };
    let error = bounded("it fails", told).await;
    assert!(error.kind().is_outage(), "{error:?}");
    waiting.abort();
    drop(held);
}

#[tokio::test]
async fn those_who_wait_for_the_first_answer_of_a_server_that_is_out_are_told_that() {
    let server = Server::start_single().await;
    let client = server.client().await;
    // The first call of a client asks something else before it asks for the lock.
    let guard = client.lock("a").acquire().await.expect("free");
    guard.release().await.expect("held until now");
    let pid = server.pid().await;
    signal(pid, "STOP");
    let told = bounded("they give up", waiters(&client, Duration::from_secs(1))).await;
    signal(pid, "CONT");
    let told = told.expect("no panic");
    for error in &told {
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    }
    // Only one of them has asked.
    let unknown = told.iter().filter(|error| error.is_indeterminate()).count();
    assert!(unknown <= 1, "{told:?}");
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
