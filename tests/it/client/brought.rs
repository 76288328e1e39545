//! Connections that the caller brings: theirs to judge and to time.

use std::time::Duration;

use hedgerow::{Client, ErrorKind};

use crate::support::server::{Server, connection, signal};

#[tokio::test]
async fn a_brought_connection_outlives_an_answer_that_comes_too_late() {
    let server = Server::start_single().await;
    let pid = server.pid().await;
    // The driver's own response timeout is half a second.
    let client = Client::from_connection(connection(server.url()).await);
    let counter = client.counter("views");
    assert_eq!(counter.add(1).await.expect("added").value, 1);
    signal(pid, "STOP");
    let error = counter.add(1).await.expect_err("nobody answers");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.is_indeterminate(), "{error}");
    signal(pid, "CONT");
    assert_eq!(counter.add(1).await.expect("it answers again").value, 3);
}

#[tokio::test]
async fn a_brought_connection_is_not_given_up_for_silence() {
    let server = Server::start_single().await;
    let pid = server.pid().await;
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let driver = redis::Client::open(server.url()).expect("a good URL");
    let brought = driver
        .get_multiplexed_async_connection_with_config(&config)
        .await;
    let client = Client::from_connection(brought.expect("it connects"));
    let counter = client.counter("views");
    assert_eq!(counter.add(1).await.expect("added").value, 1);
    signal(pid, "STOP");
    // Longer than a connection of the client's own may be silent.
    let silence = tokio::time::sleep(Duration::from_secs(3));
    let added = tokio::spawn(counter.add(1).into_future());
    silence.await;
    signal(pid, "CONT");
    assert_eq!(added.await.expect("no panic").expect("added").value, 2);
}
