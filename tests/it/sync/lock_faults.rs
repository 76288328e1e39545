//! Locks on a server that loses data, hangs, is full or holds what is not ours.

use std::time::Duration;

use hedgerow::{ErrorKind, Lock, lock::LossReason};

use crate::faults::Row;
use crate::support::server::{Server, signal};
use crate::support::wait::{bounded, queued, renewed};

/// Short enough to see it renewed many times, long enough for a busy machine to do so.
const SHORT: Duration = Duration::from_millis(900);

#[tokio::test]
async fn a_flush_is_told_to_the_holder_and_fences_still_rise() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let guard = one.lock("a").lease(SHORT).acquire().await.expect("free");
    let _: () = server.run(&["FLUSHALL"]).await;
    let reason = bounded("the holder is told", guard.lost()).await;
    assert_eq!(reason, LossReason::Taken);
    assert!(!guard.is_held());
    assert!(
        server.keys("*").await.is_empty(),
        "a renewal makes no lease"
    );
    let next = two.lock("a").acquire().await.expect("free");
    assert!(next.fence() > guard.fence());
}

#[tokio::test]
async fn a_flush_while_others_wait_gives_the_lock_to_one_of_them() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let lock = two.lock("a").wait(Duration::from_secs(60));
    let held = one.lock("a").lease(Duration::from_secs(600));
    let guard = held.acquire().await.expect("free");
    let waiter = tokio::spawn(async move { lock.acquire().await });
    queued(&one.lock("a"), 1).await;
    let _: () = server.run(&["FLUSHALL"]).await;
    // Long before the lease would have ended.
    let next = bounded("the waiter asks again", waiter).await;
    let next = next.expect("no panic").expect("granted");
    assert!(next.fence() > guard.fence());
}

#[tokio::test]
async fn fences_rise_though_their_counter_is_lost() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let mut last = 0;
    for client in [&one, &two, &one, &two] {
        let guard = client.lock("a").acquire().await.expect("free");
        assert!(guard.fence().get() > last);
        last = guard.fence().get();
        guard.release().await.expect("held until now");
        let counters = server.keys("hr:{*}:fence").await;
        assert_eq!(server.run::<usize>(&["DEL", &counters[0]]).await, 1);
    }
}

#[tokio::test]
async fn fences_rise_though_the_clock_stands_behind_the_last_one() {
    let server = Server::start().await;
    let client = server.client().await;
    let lock = client.lock("a");
    let guard = lock.acquire().await.expect("free");
    // As if the server's clock had been an hour ahead until now.
    let ahead = guard.fence().get() + 3_600_000_000;
    guard.release().await.expect("held until now");
    let counters = server.keys("hr:{*}:fence").await;
    let _: () = server.run(&["SET", &counters[0], &ahead.to_string()]).await;
    for step in 1..=3 {
        let guard = lock.acquire().await.expect("free");
        assert_eq!(guard.fence().get(), ahead + step);
        guard.release().await.expect("held until now");
    }
}

#[tokio::test]
async fn a_holder_on_a_hung_server_is_told_although_no_answer_comes() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let pid = server.pid().await;
    let guard = one.lock("a").lease(SHORT).acquire().await.expect("free");
    signal(pid, "STOP");
    let reason = bounded("the local deadline", guard.lost()).await;
    assert_eq!(reason, LossReason::Expired);
    assert!(!guard.is_held());
    assert_eq!(guard.remaining(), Duration::ZERO);
    signal(pid, "CONT");
    let lock = two.lock("a").wait(Duration::from_secs(60));
    let next = lock.acquire().await.expect("the lease has ended");
    assert!(next.fence() > guard.fence());
}

#[tokio::test]
async fn the_longest_hold_ends_in_time_although_the_server_hangs() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let pid = server.pid().await;
    let lock = client.lock("a").lease(Duration::from_secs(600));
    let guard = lock.max_hold(SHORT).acquire().await.expect("free");
    signal(pid, "STOP");
    // Whoever trusts `remaining` must not be promised more than the longest hold.
    assert!(guard.remaining() <= SHORT);
    let reason = tokio::select! {
        reason = guard.lost() => reason,
        // Hangs as long as the server does: until the client's deadline of 5 s.
        answer = client.ping() => panic!("{answer:?} came before the loss"),
    };
    assert_eq!(reason, LossReason::MaxHold);
    signal(pid, "CONT");
}

#[tokio::test]
async fn a_full_server_refuses_new_locks_but_lets_holders_renew_and_release() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let guard = one.lock("a").lease(SHORT).acquire().await.expect("free");
    let held = server.keys("hr:{*}:lock:a").await;
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let before = server.digest().await;

    let error = two.lock("b").acquire().await.expect_err("out of memory");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(!error.is_indeterminate());
    let error = two
        .lock("b")
        .try_acquire()
        .await
        .expect_err("out of memory");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    renewed(&server, &held[0], 5).await;
    assert!(guard.is_held());
    assert_eq!(server.digest().await, before);

    guard.release().await.expect("held until now");
    assert!(server.keys("hr:{*}:lock:*").await.is_empty());
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    drop(two.lock("b").acquire().await.expect("free"));
}

#[tokio::test]
async fn renewals_do_not_wait_for_a_push_connection_that_is_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    client.ping().await.expect("an answer");
    // Room for the administrator and for commands, and for nothing else.
    let _: () = server.run(&["CONFIG", "SET", "maxclients", "2"]).await;
    let guard = client.lock("a").lease(SHORT).acquire().await.expect("free");
    let held = server.keys("hr:{*}:lock:a").await;
    renewed(&server, &held[0], 15).await;
    assert!(guard.is_held());
}

#[tokio::test]
async fn a_foreign_type_at_any_key_of_a_lock_is_told_and_left_alone() {
    let server = Server::start().await;
    let client = server.client().await;
    let lock = client.lock("a").lease(Duration::from_secs(600));
    lock.acquire()
        .await
        .expect("free")
        .release()
        .await
        .expect("held");
    let bucket = server.keys("hr:{*}:fence").await[0].replace(":fence", "");
    let foreign = [
        ("lock:a", ["RPUSH", "x"]),
        ("fence", ["RPUSH", "x"]),
        ("fence", ["SET", "no number"]),
        ("fence", ["SET", "1e3"]),
        ("fence", ["SET", "9007199254740991"]),
        ("queue:a", ["SET", "x"]),
        ("queue:a", ["RPUSH", "x"]),
    ];
    for (part, [command, value]) in foreign {
        let key = format!("{bucket}:{part}");
        let _: () = server.run(&["FLUSHALL"]).await;
        // A holder, unless it is its own key that is spoilt.
        let guard = lock.acquire().await.expect("free");
        let _: () = server.run(&["DEL", &key]).await;
        let _: redis::Value = server.run(&[command, &key, value]).await;
        let before = server.digest().await;
        for (call, error) in refusals(&lock).await {
            assert_eq!(error, ErrorKind::WrongType, "{call} with a foreign {part}");
        }
        assert_eq!(server.digest().await, before, "a foreign {part}");
        let released = guard.release().await.map_err(|error| error.kind());
        if part == "lock:a" {
            assert_eq!(
                released,
                Err(ErrorKind::WrongType),
                "release with a foreign {part}"
            );
            assert_eq!(server.digest().await, before, "a foreign {part}");
        } else {
            // Nobody waits, so a release looks at neither the counter nor the queue.
            assert_eq!(released, Ok(()), "release with a foreign {part}");
            let kind: String = server.run(&["TYPE", &key]).await;
            let expected = if command == "SET" { "string" } else { "list" };
            assert_eq!(kind, expected, "the foreign {part} is left alone");
        }
    }
    let hit = foreign.len();
    Row::shown(
        30,
        "something else in our place",
        "lock",
        "refused and kept",
        hit,
        hit,
    );
}

/// What the calls on a lock are refused with.
async fn refusals(lock: &Lock) -> [(&'static str, ErrorKind); 4] {
    [
        ("acquire", lock.acquire().await.expect_err("refused").kind()),
        (
            "try_acquire",
            lock.try_acquire().await.expect_err("refused").kind(),
        ),
        ("inspect", lock.inspect().await.expect_err("refused").kind()),
        (
            "break_lock",
            lock.break_lock().await.expect_err("refused").kind(),
        ),
    ]
}
