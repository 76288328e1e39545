//! What the release of a lock asks the server, and what it tells of it.

use std::time::Duration;

use futures::poll;

use crate::support::listener::Listener;
use crate::support::monitor::Monitor;
use crate::support::server::Server;
use crate::support::wait::{bounded, queued, until};

/// How often a test tries to release a lock soon after it was granted: later a release is another.
const TRIES: usize = 50;

#[tokio::test]
async fn a_release_behind_which_nobody_queues_names_the_lock_and_nothing_else() {
    let server = Server::start().await;
    let monitor = Monitor::start(&server).await;
    let lock = server.client().await.lock("a");
    for _ in 0..TRIES {
        let guard = bounded("the lock", lock.acquire()).await.expect("free");
        guard.release().await.expect("held until now");
        assert!(server.keys("hr:{*}:lock:a").await.is_empty(), "it is free");
        if short_releases(&monitor, &server).await > 0 {
            return;
        }
    }
    panic!("each release has named other keys, too");
}

#[tokio::test]
async fn whoever_comes_to_queue_behind_a_fresh_holder_is_handed_the_lock() {
    let server = Server::start().await;
    let monitor = Monitor::start(&server).await;
    let (one, two) = (server.client().await, server.client().await);
    for _ in 0..TRIES {
        let guard = bounded("the lock", one.lock("a").acquire()).await;
        let guard = guard.expect("free");
        let (fence, waiting) = (guard.fence(), two.lock("a"));
        let waiter = tokio::spawn(async move { waiting.acquire().await });
        queued(&one.lock("a"), 1).await;
        guard.release().await.expect("held until now");
        let next = bounded("the hand-over", waiter).await.expect("no panic");
        let next = next.expect("it was handed over");
        assert!(next.fence() > fence);
        next.release().await.expect("held until now");
        // The short script was asked first, and has said that it is not enough.
        if short_releases(&monitor, &server).await > 0 {
            return;
        }
    }
    panic!("no release has come soon enough");
}

/// A caller that has left learns of it nowhere else.
#[tokio::test]
async fn a_release_whose_caller_has_left_tells_when_the_lock_is_released() {
    let told = Listener::start();
    let server = Server::start().await;
    let client = server.client().await;
    let lock = client.lock("a").lease(Duration::from_secs(600));
    let in_the_background = || {
        let told = told.told();
        let lines = told.lines();
        let mut lines = lines.filter(|line| line.contains("message=released in the background"));
        lines.any(|line| line.contains("name=\"a\""))
    };
    let guard = lock.acquire().await.expect("free");
    // From here on there is no connection over which it could be sent before its caller leaves.
    server.kill_connections("hedgerow").await;
    let mut release = Box::pin(guard.release());
    assert!(poll!(&mut release).is_pending());
    assert!(!in_the_background());
    drop(release);
    until("it is told", async || in_the_background()).await;
    assert!(server.keys("hr:{*}:lock:a").await.is_empty(), "it is free");
}

/// How often the script with one key was asked: its only argument ends in a blank.
async fn short_releases(monitor: &Monitor, server: &Server) -> usize {
    let commands = monitor.commands(server, ":lock:a").await;
    let short = |line: &&String| line.contains("\" \"1\" \"hr:{") && line.ends_with(" \"");
    commands.iter().filter(short).count()
}
