//! Holding permits: renewal, shares, the longest hold, limits that differ, and what may be asked
//! for at all.

use std::time::Duration;

use hedgerow::{ErrorKind, Permits, Semaphore, lock::LossReason};

use crate::support::permits::{AGES, Kept, all_back, granted, key, queued, wait};
use crate::support::server::Server;
use crate::support::wait::{bounded, renewed, until};

/// Short enough to see it renewed many times, long enough for a busy machine to do so.
const SHORT: Duration = Duration::from_millis(900);

#[tokio::test]
async fn permits_with_a_short_lease_are_kept_over_many_of_its_lengths() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let semaphore = one.semaphore("a", 5).lease(SHORT);
    let first = semaphore.clone().weight(2).acquire().await.expect("free");
    let second = semaphore.acquire().await.expect("free");
    // A renewal is due after a third of the lease.
    renewed(&server, &key("a"), 12).await;
    for permits in [&first, &second] {
        assert!(permits.is_held() && permits.remaining() > Duration::ZERO);
        assert_eq!(permits.loss(), None);
    }
    let kept = Kept::of(&server, "a").await;
    assert_eq!(kept.weights(), [1, 2]);
    let three = two.semaphore("a", 5).weight(3);
    assert!(three.try_acquire().await.expect("an answer").is_none());
    first.release().await.expect("held until now");
    second.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn the_leases_of_two_holders_end_on_their_own() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let long = one.semaphore("a", 3).lease(AGES).metadata("long");
    let long = long.acquire().await.expect("free");
    let short = two.semaphore("a", 3).lease(SHORT).weight(2);
    let short = short.max_hold(SHORT / 3).acquire().await.expect("free");
    let reason = bounded("the longest hold ends", short.lost()).await;
    assert_eq!(reason, LossReason::MaxHold);
    until("its permits are back", async || {
        Kept::of(&server, "a").await.held_by() == ["long"]
    })
    .await;
    let error = short.release().await.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(long.is_held());
    assert_eq!(Kept::of(&server, "a").await.held_by(), ["long"]);
    long.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn the_longest_hold_ends_a_hold_and_those_who_wait_get_the_permits() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let hung = one.semaphore("a", 2).weight(2).lease(AGES);
    let hung = hung.max_hold(Duration::from_millis(200));
    let hung = hung.acquire().await.expect("free");
    let share = hung.share();
    let waiter = wait(two.semaphore("a", 2).weight(2).metadata("next"));
    let reason = bounded("the longest hold ends", hung.lost()).await;
    assert_eq!(reason, LossReason::MaxHold);
    assert!(!hung.is_held() && !share.is_held());
    assert_eq!(
        (share.remaining(), share.loss()),
        (Duration::ZERO, Some(LossReason::MaxHold))
    );
    // The lease would have lasted ten minutes.
    let next = granted(waiter).await;
    drop(share);
    let error = hung.release().await.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(next.is_held());
    assert_eq!(Kept::of(&server, "a").await.held_by(), ["next"]);
}

#[tokio::test]
async fn shared_permits_are_given_back_when_the_last_holder_ends() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.semaphore("a", 2).weight(2).lease(AGES);
    let first = first.acquire().await.expect("free");
    let id = Kept::of(&server, "a").await.holders[0].id.clone();
    let shares: Vec<Permits> = (0..4).map(|_| first.share()).collect();
    let of_share = shares[0].share();
    assert_eq!(of_share.weight(), 2);
    let kept = Kept::of(&server, "a").await;
    assert_eq!(kept.weights(), [2], "one lease");
    assert_eq!(kept.holders[0].id, id);
    // In whatever order, and by release or drop: also the one from which all the others come.
    first.release().await.expect("held until now");
    for (index, share) in shares.into_iter().enumerate() {
        assert!(share.is_held());
        match index % 2 {
            0 => drop(share),
            _ => share.release().await.expect("held until now"),
        }
    }
    let waiter = wait(two.semaphore("a", 2).metadata("waiter"));
    queued(&server, "a", &["waiter"]).await;
    assert!(of_share.is_held());
    assert_eq!(Kept::of(&server, "a").await.holders[0].id, id);
    let other_task = tokio::spawn(async move { drop(of_share) });
    other_task.await.expect("no panic");
    granted(waiter)
        .await
        .release()
        .await
        .expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn shared_permits_are_renewed_until_the_last_holder_ends() {
    let server = Server::start().await;
    let client = server.client().await;
    let first = client.semaphore("a", 1).lease(SHORT);
    let first = first.acquire().await.expect("free");
    let share = first.share();
    first.release().await.expect("held until now");
    renewed(&server, &key("a"), 8).await;
    assert!(share.is_held());
    drop(share);
    all_back(&server, "a").await;
}

#[tokio::test]
async fn shared_permits_are_lost_together() {
    let server = Server::start().await;
    let client = server.client().await;
    let first = client.semaphore("a", 1).lease(SHORT);
    let first = first.acquire().await.expect("free");
    let (second, third) = (first.share(), first.share());
    let _: () = server.run(&["FLUSHALL"]).await;
    for share in [&first, &second, &third] {
        let reason = bounded("it learns of its loss", share.lost()).await;
        assert_eq!(reason, LossReason::Taken);
        assert!(!share.is_held());
        assert_eq!(share.remaining(), Duration::ZERO);
    }
    drop(second);
    let share = first.share();
    assert!(!share.is_held(), "what was lost stays so");
    drop((first, share));
    let error = third.release().await.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn each_call_is_granted_by_its_own_number_of_permits() {
    let server = Server::start().await;
    let (old, new) = (server.client().await, server.client().await);
    let (old, new) = (
        old.semaphore("a", 2).lease(AGES),
        new.semaphore("a", 4).lease(AGES),
    );
    let tried = async |semaphore: &Semaphore, weight: u32| {
        let tried = semaphore.clone().weight(weight).try_acquire().await;
        tried.expect("an answer")
    };
    let one = tried(&old, 2).await.expect("two of two");
    assert!(tried(&old, 1).await.is_none());
    assert!(tried(&new, 3).await.is_none());
    let two = tried(&new, 2).await.expect("four of four");
    assert!(tried(&new, 1).await.is_none());
    // Two are free of four; none of two.
    one.release().await.expect("held until now");
    assert!(tried(&old, 1).await.is_none());
    let three = tried(&new, 1).await.expect("three of four");
    // One of those that say two waits until no more than one is held.
    let waiter = wait(old.clone().metadata("old"));
    queued(&server, "a", &["old"]).await;
    three.release().await.expect("held until now");
    let kept = Kept::of(&server, "a").await;
    assert_eq!((kept.weights(), kept.awaited_by()), (vec![2], vec!["old"]));
    assert!(tried(&new, 1).await.is_none(), "others wait");
    two.release().await.expect("held until now");
    granted(waiter)
        .await
        .release()
        .await
        .expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_lock_and_a_semaphore_of_one_name_are_independent() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let guard = one.lock("a").lease(AGES).acquire().await.expect("free");
    let permits = two.semaphore("a", 1).lease(AGES).acquire().await;
    let permits = permits.expect("free");
    let waiter = wait(one.semaphore("a", 1).metadata("waiter"));
    queued(&server, "a", &["waiter"]).await;
    // Who waits for the semaphore does not wait for the lock.
    let lock = two.lock("a").try_acquire().await.expect("an answer");
    assert!(lock.is_none());
    guard.release().await.expect("held until now");
    let guard = two.lock("a").try_acquire().await.expect("an answer");
    let guard = guard.expect("free");
    assert!(!waiter.is_finished());
    permits.release().await.expect("held until now");
    let permits = granted(waiter).await;
    assert!(guard.is_held() && permits.is_held());
    guard.release().await.expect("held until now");
    assert_eq!(Kept::of(&server, "a").await.weights(), [1]);
    permits.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn names_and_metadata_of_semaphores_are_taken_up_to_their_limits() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let long = "n".repeat(1024);
    let names = [
        "a", "a ", "a:lock", "å", "A", "%41", "{a}", "}{", "%7Ba%7D", "\0", "\n", "\r\n", "*",
        &long,
    ];
    let metadata = ["", "\0\r\n", "{\"host\":\"ü\"}", " 1 2 ", &"m".repeat(1024)];
    let mut held = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        let text = metadata[index % metadata.len()];
        let permits = one.semaphore(name, u32::MAX).weight(u32::MAX);
        let permits = permits.metadata(text).lease(AGES).try_acquire().await;
        let permits = permits.expect("an answer");
        held.push(permits.unwrap_or_else(|| panic!("{name:?} is another one than the others")));
        assert_eq!(held[index].weight(), u32::MAX);
        let other = two.semaphore(name, u32::MAX).try_acquire().await;
        assert!(other.expect("an answer").is_none());
    }
    for (name, text) in names.into_iter().zip(metadata) {
        let kept = Kept::of(&server, name).await;
        assert_eq!(
            (kept.weights(), kept.held_by()),
            (vec![u32::MAX], vec![text])
        );
    }
    for permits in held {
        permits.release().await.expect("held until now");
    }
    assert!(server.keys("hr:{*}:semaphore*").await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_a_semaphore_is_refused_before_anything_is_sent() {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    let server = Server::start().await;
    let client = server.client().await;
    let semaphore = client.semaphore("a", 3);
    let beyond = CENTURY + Duration::from_nanos(1);
    let bad = [
        client.semaphore("", 3),
        client.semaphore(&"n".repeat(1025), 3),
        client.semaphore("a", 0),
        client.semaphore("a", 0).weight(0),
        semaphore.clone().weight(0),
        semaphore.clone().weight(4),
        semaphore.clone().weight(u32::MAX),
        semaphore.clone().metadata(&"m".repeat(1025)),
        semaphore.clone().lease(Duration::ZERO),
        semaphore.clone().lease(Duration::from_millis(9)),
        semaphore.clone().lease(beyond),
        semaphore.clone().max_hold(Duration::ZERO),
        semaphore.clone().max_hold(beyond),
    ];
    let before = server.digest().await;
    for bad in &bad {
        for error in [
            bad.acquire().await.expect_err("refused"),
            bad.try_acquire().await.expect_err("refused"),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
            assert!(!error.is_retryable() && !error.is_indeterminate());
        }
    }
    for wait in [Duration::ZERO, beyond] {
        let error = semaphore.clone().wait(wait).acquire().await;
        assert_eq!(error.expect_err("refused").kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(server.digest().await, before);
    let clients: String = server.run(&["CLIENT", "LIST"]).await;
    assert!(!clients.contains(" name=hedgerow"), "connected: {clients}");

    // The ends of the ranges are good.
    for lease in [Duration::from_millis(10), CENTURY] {
        let longest = semaphore.clone().weight(3).lease(lease);
        let longest = longest.max_hold(CENTURY).wait(CENTURY);
        drop(longest.acquire().await.expect("good"));
    }
}

#[tokio::test]
async fn owner_tokens_of_permits_are_never_shown() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let semaphore = one.semaphore("a", 1).metadata("worker 1");
    let permits = semaphore.acquire().await.expect("free");
    let waiter = wait(two.semaphore("a", 1).metadata("worker 2"));
    queued(&server, "a", &["worker 2"]).await;
    let kept = Kept::of(&server, "a").await;
    let late = one.semaphore("a", 1).wait(Duration::from_secs(2));
    let error = late.acquire().await.expect_err("held");
    assert_eq!(error.kind(), ErrorKind::Contended);
    let shown =
        format!("{permits:?} {permits:#?} {semaphore:?} {one:#?} {two:#?} {error} {error:?}");
    for entry in kept.holders.iter().chain(&kept.queue) {
        assert_eq!(entry.id.len(), 32, "128 bits");
        assert!(!shown.contains(&entry.id), "{shown}");
    }
    permits.release().await.expect("held until now");
    drop(granted(waiter).await);
}

/// The types can go where tasks go.
#[test]
fn permits_and_semaphores_are_send_and_sync() {
    fn checked<T: Send + Sync + 'static>() {}
    checked::<Permits>();
    checked::<Semaphore>();
}
