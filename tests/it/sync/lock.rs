//! Locks: exclusion, order, renewal, loss.

use std::time::Duration;

use hedgerow::{ErrorKind, lock::LossReason};

use crate::support::server::Server;

#[tokio::test]
async fn a_lock_excludes_and_its_fences_rise() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.lock("invoice:7").acquire().await.expect("free");
    assert!(first.is_held());
    assert!(
        two.lock("invoice:7")
            .try_acquire()
            .await
            .expect("an answer")
            .is_none()
    );
    let other = two
        .lock("invoice:8")
        .try_acquire()
        .await
        .expect("an answer");
    assert!(other.is_some(), "another name is another lock");
    let fence = first.fence();
    first.release().await.expect("held until now");
    let second = two
        .lock("invoice:7")
        .try_acquire()
        .await
        .expect("an answer")
        .expect("free");
    assert!(second.fence() > fence);
}

#[tokio::test]
async fn a_release_hands_over_to_a_waiter_of_another_process() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let guard = one.lock("a").acquire().await.expect("free");
    let fence = guard.fence();
    let waiter =
        tokio::spawn(async move { two.lock("a").wait(Duration::from_secs(20)).acquire().await });
    let lock = one.lock("a");
    while lock.inspect().await.expect("an answer").queue.is_empty() {
        tokio::task::yield_now().await;
    }
    guard.release().await.expect("held");
    let next = waiter.await.expect("no panic").expect("granted");
    assert!(next.fence() > fence);
    assert!(next.is_held());
}

#[tokio::test]
async fn waiters_of_one_process_get_the_lock_one_after_another() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut tasks = Vec::new();
    let inside = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    for _ in 0..40 {
        let (client, inside) = (client.clone(), inside.clone());
        tasks.push(tokio::spawn(async move {
            let guard = client
                .lock("a")
                .wait(Duration::from_secs(20))
                .acquire()
                .await
                .expect("granted");
            assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
            tokio::task::yield_now().await;
            inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            let fence = guard.fence();
            guard.release().await.expect("held");
            fence
        }));
    }
    let mut fences = Vec::new();
    for task in tasks {
        fences.push(task.await.expect("no panic"));
    }
    fences.sort_unstable();
    fences.dedup();
    assert_eq!(fences.len(), 40, "each grant has a fence of its own");
}

#[tokio::test]
async fn a_waiter_that_gives_up_is_told_who_holds() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let _guard = one
        .lock("a")
        .metadata("worker 1")
        .acquire()
        .await
        .expect("free");
    let error = two
        .lock("a")
        .wait(Duration::from_millis(50))
        .acquire()
        .await
        .expect_err("held");
    assert_eq!(error.kind(), ErrorKind::Contended);
    assert!(error.to_string().contains("worker 1"), "{error}");
}

#[tokio::test]
async fn break_lock_tells_the_holder_and_frees_the_name() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let guard = one.lock("a").acquire().await.expect("free");
    assert!(two.lock("a").break_lock().await.expect("an answer"));
    // By push if the holder listened already, else with its first renewal soon after.
    let reason = guard.lost().await;
    assert!(
        matches!(reason, LossReason::Broken | LossReason::Taken),
        "{reason:?}"
    );
    assert!(!guard.is_held());
    assert!(
        two.lock("a")
            .try_acquire()
            .await
            .expect("an answer")
            .is_some()
    );
    assert!(!two.lock("b").break_lock().await.expect("an answer"));
}

#[tokio::test]
async fn a_dropped_guard_is_released_in_the_background() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    drop(one.lock("a").acquire().await.expect("free"));
    let guard = two
        .lock("a")
        .wait(Duration::from_secs(20))
        .acquire()
        .await
        .expect("released");
    assert!(guard.is_held());
}
