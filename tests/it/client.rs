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
