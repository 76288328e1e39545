//! The client: connecting, reconnecting, deadlines.

use std::time::Duration;

use hedgerow::{Client, ErrorKind};

use crate::server::Server;

#[tokio::test]
async fn ping_is_answered() {
    let server = Server::start().await;
    server.client().await.ping().await.expect("an answer");
}

#[tokio::test]
async fn a_client_starts_while_the_server_is_down() {
    let client = Client::builder()
        .url("redis://127.0.0.1:1")
        .deadline(Duration::from_millis(200))
        .connect()
        .await
        .expect("no I/O yet");
    let error = client.ping().await.expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.is_retryable());
    assert!(!error.is_indeterminate());
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let server = Server::start().await;
    let client = server.client().await;
    client.ping().await.expect("an answer");
    assert_eq!(server.kill_connections("hedgerow").await, 1);
    client
        .ping()
        .await
        .expect("an answer over a new connection");
}

#[tokio::test]
async fn a_handshake_that_is_refused_gives_no_password_away() {
    let server = hedgerow::embedded::Server::start_with(&["--rename-command", "HELLO", ""])
        .await
        .expect("a server starts");
    let url = format!("{}?user=app&pass=canary-81f3", server.url());
    let client = Client::connect(&url).await.expect("a good URL");
    let error = client.ping().await.expect_err("no HELLO, no RESP3");
    let told = format!("{error} {error:?} {client:?}");
    assert!(!told.contains("canary-81f3"), "{told}");
    assert!(told.contains("HELLO 3"), "{told}");
}

#[test]
fn a_guard_that_is_dropped_with_its_runtime_does_not_keep_the_client_alive() {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let socket = {
        let runtime = runtime();
        runtime.block_on(async {
            let server = hedgerow::embedded::Server::start().await;
            let url = server.as_ref().expect("a server starts").url().to_owned();
            drop(server);
            let client = Client::embedded().await.expect("a server starts");
            drop(client.lock("a").acquire().await.expect("free"));
            let shown = format!("{client:?}");
            let (_, path) = shown.split_once("address: \"").expect("an address");
            let path = path.split('"').next().expect("a path").to_owned();
            assert!(!url.ends_with(&path));
            path
        })
    };
    let gone = || !std::path::Path::new(&socket).exists();
    runtime().block_on(crate::wait::until("the server has ended", || async {
        gone()
    }));
}

#[test]
fn a_lock_that_was_waited_for_when_a_runtime_ended_can_be_had_in_the_next() {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let first = runtime();
    let (server, client) = first.block_on(async {
        let server = Server::start().await;
        let (holder, client) = (server.client().await, server.client().await);
        let guard = holder.lock("a").acquire().await.expect("free");
        let lock = client.lock("a");
        let waiter = tokio::spawn({
            let lock = lock.clone();
            async move { lock.wait(Duration::from_secs(600)).acquire().await }
        });
        crate::wait::queued(&lock, 1).await;
        std::mem::forget(waiter);
        guard.release().await.expect("held");
        (server, client)
    });
    drop(first);
    let second = runtime();
    second.block_on(async {
        let lock = client.lock("a").wait(Duration::from_secs(60));
        let guard = lock.acquire().await.expect("nobody holds it for long");
        assert!(guard.is_held());
        drop((guard, lock, client));
    });
    let _inside = second.enter();
    drop(server);
}
