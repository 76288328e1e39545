//! Semaphores whose replies are lost, and on a server that loses data, hangs, is full or holds what
//! is not ours.

use std::time::Duration;

use hedgerow::{ErrorKind, Semaphore, lock::LossReason};

use crate::support::permits::{
    AGES, Kept, all_back, expire, granted, key, queue_key, queued, wait, warm,
};
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, signal};
use crate::support::wait::{bounded, calls, patient, renewed, until};

const SHORT: Duration = Duration::from_millis(900);

#[tokio::test]
async fn an_acquire_whose_reply_is_lost_leaves_no_permits_behind() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = warm(patient(proxy.builder()).open().expect("a good URL")).await;
    let semaphore = client.semaphore("a", 3).weight(2).lease(AGES).wait(AGES);
    for tries in [false, true] {
        let lost = proxy.on_reply(Request::any().with(&key("a")), Act::Reset);
        let got = match tries {
            true => semaphore.try_acquire().await,
            false => semaphore.acquire().await.map(Some),
        };
        assert_eq!(lost.hits(), 1);
        match got {
            // It has asked once more, and is granted once.
            Ok(permits) => {
                let permits = permits.expect("nobody else holds");
                until("it is held once", async || {
                    Kept::of(&server, "a").await.weights() == [2]
                })
                .await;
                permits.release().await.expect("held until now");
            }
            Err(error) => assert!(error.is_indeterminate(), "{error:?}"),
        }
        all_back(&server, "a").await;
    }
}

#[tokio::test]
async fn a_waiter_whose_replies_are_lost_is_granted_once() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let one = server.client().await;
    let two = warm(patient(proxy.builder()).open().expect("a good URL")).await;
    let holder = one.semaphore("a", 3).weight(3).lease(AGES);
    let holder = holder.acquire().await.expect("free");
    let waiter = wait(two.semaphore("a", 3).weight(2).metadata("waiter"));
    let lost = proxy.on_reply(Request::any().with(&key("a")), Act::Reset);
    lost.hit().await;
    queued(&server, "a", &["waiter"]).await;
    holder.release().await.expect("held until now");
    let permits = granted(waiter).await;
    assert_eq!(Kept::of(&server, "a").await.weights(), [2]);
    permits.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_release_whose_reply_is_lost_gives_the_permits_back_once() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let one = server.client().await;
    let two = warm(patient(proxy.builder()).open().expect("a good URL")).await;
    let other = one.semaphore("a", 3).metadata("other").lease(AGES);
    let other = other.acquire().await.expect("free");
    for act in [Act::Reset, Act::Truncate(1)] {
        let permits = two.semaphore("a", 3).weight(2).lease(AGES);
        let permits = permits.acquire().await.expect("free");
        let waiter = wait(one.semaphore("a", 3).metadata("waiter"));
        queued(&server, "a", &["waiter"]).await;
        let lost = proxy.on_reply(Request::any().with(&key("a")), act);
        let released = permits.release().await;
        assert_eq!(lost.hits(), 1);
        if let Err(error) = released {
            assert!(error.is_indeterminate(), "{error:?}");
        }
        let waiter = granted(waiter).await;
        until("two hold one each", async || {
            Kept::of(&server, "a").await.held_by() == ["other", "waiter"]
        })
        .await;
        waiter.release().await.expect("held until now");
    }
    other.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_grant_that_is_answered_after_the_wait_is_given_back() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = warm(patient(proxy.builder()).open().expect("a good URL")).await;
    let semaphore = client.semaphore("a", 2).lease(AGES);
    let answer = proxy.on_reply(Request::any().with(&key("a")), Act::Hold);
    let late = semaphore.wait(Duration::from_millis(200)).acquire().await;
    let late = late.expect_err("no answer");
    assert_eq!(late.kind(), ErrorKind::Timeout, "{late:?}");
    assert!(late.is_indeterminate());
    assert_eq!(answer.hits(), 1);
    answer.deliver();
    all_back(&server, "a").await;
}

#[tokio::test]
async fn permits_that_are_granted_after_their_lease_are_not_held() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = warm(patient(proxy.builder()).open().expect("a good URL")).await;
    let semaphore = client.semaphore("a", 1).lease(Duration::from_millis(300));
    let answer = proxy.on_reply(Request::any().with(&key("a")), Act::Hold);
    let late = tokio::spawn(async move { semaphore.wait(AGES).acquire().await });
    answer.hit().await;
    all_back(&server, "a").await;
    answer.deliver();
    let late = bounded("the answer", late).await.expect("no panic");
    let late = late.expect("it was granted");
    assert!(!late.is_held());
    assert_eq!(late.loss(), Some(LossReason::Expired));
    let other = granted(wait(server.client().await.semaphore("a", 1))).await;
    let error = late.release().await.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(other.is_held());
}

#[tokio::test]
async fn a_flush_is_learnt_by_all_holders_and_renewals_make_nothing_anew() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.semaphore("a", 5).weight(3).lease(SHORT);
    let first = first.acquire().await.expect("free");
    let second = two.semaphore("a", 5).weight(2).lease(SHORT);
    let second = second.acquire().await.expect("free");
    let _: () = server.run(&["FLUSHALL"]).await;
    for permits in [&first, &second] {
        let reason = bounded("the holder learns it", permits.lost()).await;
        assert_eq!(reason, LossReason::Taken);
        assert!(!permits.is_held());
    }
    assert!(server.keys("*").await.is_empty());
    let all = one.semaphore("a", 5).weight(5).try_acquire().await;
    let all = all.expect("an answer").expect("free");
    let error = first.release().await.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
    drop(second);
    assert_eq!(Kept::of(&server, "a").await.weights(), [5]);
    all.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn permits_whose_lease_has_ended_are_not_renewed() {
    let server = Server::start().await;
    let client = server.client().await;
    let permits = client.semaphore("a", 2).lease(SHORT);
    let permits = permits.acquire().await.expect("free");
    let id = Kept::of(&server, "a").await.holders[0].id.clone();
    expire(&server, "a", &id).await;
    let reason = bounded("a renewal tells it", permits.lost()).await;
    assert_eq!(reason, LossReason::Taken);
    let all = client.semaphore("a", 2).weight(2).try_acquire().await;
    let all = all.expect("an answer").expect("both are free");
    all.release().await.expect("held until now");
    all_back(&server, "a").await;
}

/// As after a step of the server's clock back to the present.
#[tokio::test]
async fn a_renewal_corrects_when_the_next_lease_may_end() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let permits = one.semaphore("a", 2).lease(SHORT);
    let permits = permits.acquire().await.expect("free");
    let far = "99999999999999";
    let _: usize = server.run(&["HSET", &key("a"), "next", far]).await;
    renewed(&server, &key("a"), 1).await;
    let next: u64 = server.run(&["HGET", &key("a"), "next"]).await;
    assert!(next < 9_999_999_999_999, "{next}");
    let other = two.semaphore("a", 2).acquire().await.expect("one is free");
    for permits in [permits, other] {
        permits.release().await.expect("held until now");
    }
    all_back(&server, "a").await;
}

#[tokio::test]
async fn forged_pushes_grant_nothing_and_take_nothing_away() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let permits = one.semaphore("a", 1).lease(AGES);
    let permits = permits.acquire().await.expect("free");
    let waiter = wait(two.semaphore("a", 1).metadata("waiter"));
    until("the waiter listens", async || {
        let kept = Kept::of(&server, "a").await;
        kept.queue.len() == 1 && kept.queue[0].process.starts_with('2')
    })
    .await;
    let kept = Kept::of(&server, "a").await;
    let (holder, waits) = (&kept.holders[0], &kept.queue[0]);
    let channel = key("a").replace("semaphore:a", "wake:") + &waits.process[1..];
    let before = calls(&server, &["evalsha"]).await;
    for message in [
        format!("grant {} {} -", waits.id, holder.fence + 1),
        format!("broken {}", waits.id),
        format!("broken {}", holder.id),
    ] {
        let listeners: usize = server.run(&["SPUBLISH", &channel, &message]).await;
        assert_eq!(listeners, 1);
    }
    until("the waiter has asked again", async || {
        calls(&server, &["evalsha"]).await > before
    })
    .await;
    assert!(!waiter.is_finished() && permits.is_held());
    assert_eq!(Kept::of(&server, "a").await.held_by(), [""]);
    permits.release().await.expect("held until now");
    granted(waiter)
        .await
        .release()
        .await
        .expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn no_more_than_ten_thousand_calls_hold_permits() {
    let server = Server::start().await;
    let client = server.client().await;
    let semaphore = client.semaphore("a", 20_000).lease(AGES);
    let first = semaphore.acquire().await.expect("free");
    let _: usize = server.run(&["EVAL", OTHERS, "1", &key("a"), "9998"]).await;
    let last = semaphore.try_acquire().await.expect("an answer");
    let last = last.expect("it is number 10,000");
    assert!(semaphore.try_acquire().await.expect("an answer").is_none());
    first.release().await.expect("held until now");
    let next = semaphore.try_acquire().await.expect("an answer");
    for permits in [last, next.expect("one has left")] {
        permits.release().await.expect("held until now");
    }
    assert_eq!(Kept::of(&server, "a").await.holders.len(), 9998);
}

#[tokio::test]
async fn after_a_flush_the_permits_go_to_those_who_wait() {
    let server = Server::start().await;
    let (one, two, three) = (
        server.client().await,
        server.client().await,
        server.client().await,
    );
    let lost = one.semaphore("a", 2).weight(2).lease(AGES);
    let lost = lost.acquire().await.expect("free");
    let first = wait(two.semaphore("a", 2).metadata("first"));
    queued(&server, "a", &["first"]).await;
    let second = wait(three.semaphore("a", 2).metadata("second"));
    queued(&server, "a", &["first", "second"]).await;
    let _: () = server.run(&["FLUSHALL"]).await;
    // Long before the lease would have ended.
    let (first, second) = (granted(first).await, granted(second).await);
    let error = lost.release().await.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert_eq!(Kept::of(&server, "a").await.weights(), [1, 1]);
    drop((first, second));
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_holder_of_permits_on_a_hung_server_learns_its_loss_although_no_answer_comes() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let pid = server.pid().await;
    let permits = one.semaphore("a", 1).lease(SHORT);
    let permits = permits.acquire().await.expect("free");
    signal(pid, "STOP");
    let reason = bounded("the local deadline", permits.lost()).await;
    assert_eq!(reason, LossReason::Expired);
    assert_eq!(permits.remaining(), Duration::ZERO);
    signal(pid, "CONT");
    let next = granted(wait(two.semaphore("a", 1))).await;
    assert!(next.is_held() && !permits.is_held());
}

#[tokio::test]
async fn a_full_server_grants_nothing_and_lets_holders_renew_and_release() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let permits = one.semaphore("a", 3).weight(2).lease(SHORT);
    let permits = permits.acquire().await.expect("free");
    let waiter = wait(two.semaphore("a", 3).weight(3).metadata("waiter"));
    queued(&server, "a", &["waiter"]).await;
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let other = one.semaphore("b", 1);
    for error in [
        other.acquire().await.expect_err("out of memory"),
        other.try_acquire().await.expect_err("out of memory"),
    ] {
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(!error.is_indeterminate());
    }
    renewed(&server, &key("a"), 5).await;
    assert!(permits.is_held());
    permits.release().await.expect("held until now");
    // A release frees memory, and grants to those who wait.
    let waiter = bounded("the waiter has its answer", waiter).await;
    match waiter.expect("no panic") {
        Ok(permits) => permits.release().await.expect("held until now"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::OutOfMemory),
    }
    all_back(&server, "a").await;
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    drop(other.acquire().await.expect("free"));
}

#[tokio::test]
async fn a_foreign_type_at_any_key_of_a_semaphore_is_refused_and_left_alone() {
    let server = Server::start().await;
    let client = warm(server.client().await).await;
    let semaphore = client.semaphore("a", 2).lease(AGES);
    let fence = key("a").replace(":semaphore:a", ":fence");
    let foreign = [
        (key("a"), ["RPUSH", "x"]),
        (key("a"), ["SET", "x"]),
        (fence.clone(), ["RPUSH", "x"]),
        (fence, ["SET", "no number"]),
        (queue_key("a"), ["SET", "x"]),
        (queue_key("a"), ["RPUSH", "x"]),
    ];
    for (spoilt, [command, value]) in foreign {
        let _: () = server.run(&["FLUSHALL"]).await;
        // A holder, unless it is its own key that is spoilt.
        let permits = semaphore.acquire().await.expect("free");
        let _: usize = server.run(&["DEL", &spoilt]).await;
        let _: redis::Value = server.run(&[command, &spoilt, value]).await;
        let before = server.digest().await;
        for kind in refusals(&semaphore).await {
            assert_eq!(kind, ErrorKind::WrongType, "{command} {spoilt}");
        }
        assert_eq!(server.digest().await, before, "{command} {spoilt}");
        let released = permits.release().await.map_err(|error| error.kind());
        if spoilt == key("a") {
            assert_eq!(released, Err(ErrorKind::WrongType), "{command} {spoilt}");
            assert_eq!(server.digest().await, before, "{command} {spoilt}");
        } else {
            let kind: String = server.run(&["TYPE", &spoilt]).await;
            let expected = if command == "SET" { "string" } else { "list" };
            assert_eq!(kind, expected, "{spoilt} is left alone");
        }
    }
}

#[tokio::test]
async fn where_another_format_of_semaphores_is_written_no_permits_are_granted() {
    const SEMAPHORES: &str = "hr:f:{semaphore}";
    let server = Server::start_single().await;
    let client = server.client().await;
    let _: () = server.run(&["SET", SEMAPHORES, "7"]).await;
    let before = server.digest().await;
    let semaphore = client.semaphore("a", 2);
    for error in [
        semaphore.acquire().await.expect_err("refused"),
        semaphore.try_acquire().await.expect_err("refused"),
    ] {
        assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
        assert!(!error.is_indeterminate() && !error.is_retryable());
        let text = error.to_string();
        assert!(text.contains("\"7\"") && text.contains("\"1\""), "{text}");
        assert!(text.contains("semaphore"), "{text}");
    }
    assert_eq!(server.digest().await, before, "nothing was written");
    // Locks have a format of their own.
    drop(client.lock("a").acquire().await.expect("free"));
}

#[tokio::test]
async fn the_client_that_first_acquires_permits_writes_their_format() {
    const SEMAPHORES: &str = "hr:f:{semaphore}";
    let server = Server::start_single().await;
    warm(server.client().await).await;
    assert_eq!(server.run::<String>(&["GET", SEMAPHORES]).await, "1");
    assert_eq!(server.run::<i64>(&["PTTL", SEMAPHORES]).await, -1);
    assert!(server.keys("hr:f:{lock}").await.is_empty());
}

/// What the calls of a semaphore fail with.
async fn refusals(semaphore: &Semaphore) -> [ErrorKind; 2] {
    [
        semaphore.acquire().await.expect_err("refused").kind(),
        semaphore.try_acquire().await.expect_err("refused").kind(),
    ]
}

/// Adds holders of one permit each, as they stand in the hash.
const OTHERS: &str = r"
for number = 1, ARGV[1] do
  redis.call('HSET', KEYS[1], string.format('%032x', number), '99999999999999 1 2a 1 20000 ')
end
return redis.call('HINCRBY', KEYS[1], 'used', ARGV[1])";
