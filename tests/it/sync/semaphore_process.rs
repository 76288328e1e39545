//! Semaphores between real processes: killed and stopped holders, and a killed waiter.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::support::permits::{AGES, Kept, all_back, granted, queued, wait};
use crate::support::process::Child;
use crate::support::server::Server;
use crate::support::wait::until;

#[tokio::test]
async fn the_permits_of_a_killed_holder_come_back_when_its_lease_has_ended_and_not_before() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let survivor = client.semaphore("a", 4).metadata("survivor").lease(AGES);
    let survivor = survivor.acquire().await.expect("free");
    let mut dead = holder(&server, "3", "600", "dead");
    assert_eq!(dead.says().await, "held");
    let mut second = holder(&server, "2", "60000", "second");
    queued(&server, "a", &["second"]).await;
    let third = wait(client.semaphore("a", 4).metadata("third"));
    queued(&server, "a", &["second", "third"]).await;

    dead.kill().await;
    let ends_ms = AtomicI64::new(0);
    until("others hold its permits", async || {
        let kept = Kept::of(&server, "a").await;
        if let Some(dead) = kept.holders.iter().find(|it| it.metadata == "dead") {
            ends_ms.store(dead.deadline, Ordering::SeqCst);
        }
        kept.held_by() == ["second", "survivor", "third"]
    })
    .await;
    assert_eq!(second.says().await, "held");
    let third = granted(third).await;
    let kept = Kept::of(&server, "a").await;
    let ends_ms = ends_ms.into_inner();
    let after = |name: &str| {
        let holder = kept.holders.iter().find(|it| it.metadata == name);
        // A fence is the time of the grant in us.
        let fence = holder.expect("it holds").fence;
        i64::try_from(fence).expect("a time") - ends_ms * 1000
    };
    assert!(ends_ms > 0 && after("second") >= 0 && after("third") >= 0);
    assert_eq!(second.ask("release").await, "released");
    third.release().await.expect("held until now");
    assert!(survivor.is_held());
    survivor.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_stopped_holder_learns_on_resume_that_it_lost_its_permits() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let mut first = holder(&server, "3", "900", "first");
    assert_eq!(first.says().await, "held");
    assert_eq!(first.ask("state").await, "held");
    first.signal("STOP");
    // Not before its lease has ended: the first does not give them back.
    let second = granted(wait(client.semaphore("a", 4).weight(4).metadata("second"))).await;
    assert_eq!(Kept::of(&server, "a").await.held_by(), ["second"]);
    first.signal("CONT");
    let state = first.ask("state").await;
    assert!(state.starts_with("lost "), "{state}");
    assert_eq!(first.ask("release").await, "not released Lost");
    let kept = Kept::of(&server, "a").await;
    assert_eq!((kept.held_by(), kept.weights()), (vec!["second"], vec![4]));
    assert!(second.is_held());
    second.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_stopped_holder_whose_permits_nobody_wanted_has_lost_them_too() {
    let server = Server::start_single().await;
    let mut first = holder(&server, "2", "900", "first");
    assert_eq!(first.says().await, "held");
    first.signal("STOP");
    // The key lives as long as the longest lease.
    all_back(&server, "a").await;
    first.signal("CONT");
    let state = first.ask("state").await;
    assert!(state.starts_with("lost "), "{state}");
    assert_eq!(first.ask("release").await, "not released Lost");
    assert!(server.keys("hr:{*}:semaphore*:a").await.is_empty());
}

#[tokio::test]
async fn a_killed_head_of_the_queue_does_not_hold_up_those_behind_it_for_ever() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let held = client.semaphore("a", 4).weight(2).metadata("held");
    let held = held.lease(AGES).acquire().await.expect("free");
    let dead = holder(&server, "4", "60000", "dead");
    queued(&server, "a", &["dead"]).await;
    let behind = wait(server.client().await.semaphore("a", 4).metadata("behind"));
    queued(&server, "a", &["dead", "behind"]).await;
    dead.kill().await;
    // Nobody gives anything back.
    let behind = granted(behind).await;
    let kept = Kept::of(&server, "a").await;
    assert_eq!(
        (kept.held_by(), kept.queue.len()),
        (vec!["behind", "held"], 0)
    );
    behind.release().await.expect("held until now");
    held.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_killed_head_of_the_queue_does_not_hold_up_those_that_only_try() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let held = client.semaphore("a", 4).weight(2).lease(AGES);
    let held = held.acquire().await.expect("free");
    let dead = holder(&server, "4", "60000", "dead");
    queued(&server, "a", &["dead"]).await;
    dead.kill().await;
    until("its position has lapsed", async || {
        let tried = client.semaphore("a", 4).try_acquire().await;
        tried.expect("an answer").is_some()
    })
    .await;
    held.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn permits_are_not_granted_to_a_process_that_is_gone() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let held = client.semaphore("a", 2).weight(2).lease(AGES);
    let held = held.acquire().await.expect("free");
    let dead = Child::start("permits", &[server.url(), "a", "2", "2", "60000", "dead"]);
    until("it waits for a push", async || {
        let kept = Kept::of(&server, "a").await;
        kept.queue.len() == 1 && kept.queue[0].process.starts_with('2')
    })
    .await;
    let behind = server.client().await.semaphore("a", 2).weight(2);
    let behind = wait(behind.metadata("behind"));
    queued(&server, "a", &["dead", "behind"]).await;
    dead.kill().await;
    until("the server has noticed", async || {
        let list: String = server.run(&["CLIENT", "LIST"]).await;
        !list.contains("name=child")
    })
    .await;
    held.release().await.expect("held until now");
    assert_eq!(Kept::of(&server, "a").await.held_by(), ["behind"]);
    drop(granted(behind).await);
    all_back(&server, "a").await;
}

/// Another process that acquires this many of four permits.
fn holder(server: &Server, weight: &str, lease: &str, name: &str) -> Child {
    Child::start("permits", &[server.url(), "a", "4", weight, lease, name])
}
