//! Turns: a process that is always in want of a lock, and others that wait for it.

use std::time::Duration;

use hedgerow::Lock;

use crate::support::server::Server;
use crate::support::wait::{bounded, queued};

#[tokio::test]
async fn two_tasks_that_take_turns_do_not_keep_a_lock_from_other_processes() {
    let server = Server::start().await;
    let (pair, other) = (server.client().await, server.client().await);
    let wait = |lock: Lock| {
        let lock = lock.wait(AGES).lease(AGES);
        tokio::spawn(async move { lock.acquire().await.expect("granted") })
    };
    let mut guard = wait(pair.lock("a")).await.expect("free");
    let mut others = wait(other.lock("a"));
    queued(&pair.lock("a"), 1).await;
    let mut turns = 0;
    // One of the pair holds and one waits, so that the line is empty after each hand-over.
    let fence = loop {
        let mut next = wait(pair.lock("a"));
        queued(&pair.lock("a"), 2).await;
        guard.release().await.expect("held until now");
        turns += 1;
        let granted = async {
            tokio::select! {
                guard = &mut next => Ok(guard.expect("no panic")),
                guard = &mut others => Err(guard.expect("no panic")),
            }
        };
        match bounded("one of the waiters is granted the lock", granted).await {
            Ok(next) => guard = next,
            Err(others) => break others.fence(),
        }
        assert!(
            turns < 64,
            "the other process waits while the pair takes its 64th turn"
        );
    };
    assert!(
        turns > 1,
        "a process may keep it for a while, fence {fence}"
    );
}

/// Longer than any test takes.
const AGES: Duration = Duration::from_secs(600);
