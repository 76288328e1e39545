//! The private server for examples and tests.

use std::path::Path;

use hedgerow::embedded::Server;

use crate::support::server::{connection, state};

#[tokio::test]
async fn nothing_is_left_of_a_server_that_was_dropped() {
    let server = Server::start().await.expect("a server");
    let mut admin = connection(server.url()).await;
    // The operating system takes a while to end a process that has much memory.
    let mut large = redis::cmd("SETRANGE");
    large.arg("a").arg(256_000_000).arg("1");
    let _: usize = large.query_async(&mut admin).await.expect("stored");
    let info = redis::cmd("INFO").query_async(&mut admin).await;
    let info: String = info.expect("an answer");
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("process_id:"))
        .and_then(|pid| pid.parse().ok())
        .expect("INFO names the process");
    let socket = server.url().trim_start_matches("unix://").to_owned();
    let directory = Path::new(&socket).parent().expect("a directory");
    assert!(directory.exists());
    drop(server);
    assert_eq!(state(pid), "", "it has ended");
    assert!(!directory.exists());
}
