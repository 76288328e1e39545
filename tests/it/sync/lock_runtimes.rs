//! Several runtimes in one process, one of which is not driven: it harms no lock of the others.

use std::task::Poll;
use std::time::Duration;

use futures::poll;
use hedgerow::ErrorKind;
use tokio::runtime::Runtime;

use crate::support::halted::{AGES, Ending, begun_release, contended, end, halted, single};
use crate::support::monitor::Monitor;
use crate::support::wait::{bounded, calls, queued, renewed, until};

/// Short enough to see it renewed several times.
const SHORT: Duration = Duration::from_millis(900);

#[test]
fn a_lock_is_renewed_though_the_first_was_taken_in_a_runtime_that_stands_still() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, _halted) = halted(&driven);
    driven.block_on(async {
        let guard = client.lock("a").lease(SHORT).acquire().await.expect("free");
        let key = &server.keys("hr:{*}:lock:a").await[0];
        renewed(&server, key, 4).await;
        assert!(guard.is_held());
    });
    let _inside = driven.enter();
    drop((client, server));
}

#[test]
fn a_dropped_guard_is_released_though_the_first_was_taken_in_a_runtime_that_stands_still() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, _halted) = halted(&driven);
    driven.block_on(async {
        drop(client.lock("a").lease(AGES).acquire().await.expect("free"));
        until("the lock is free", async || {
            server.keys("hr:{*}:lock:a").await.is_empty()
        })
        .await;
    });
    let _inside = driven.enter();
    drop((client, server));
}

#[test]
fn guards_of_a_runtime_that_stands_still_are_kept_by_the_others() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, halted) = halted(&driven);
    let lease = Duration::from_secs(2);
    let (kept, dropped) = halted.block_on(async {
        let kept = client
            .lock("kept")
            .lease(lease)
            .acquire()
            .await
            .expect("free");
        let dropped = client
            .lock("dropped")
            .lease(AGES)
            .acquire()
            .await
            .expect("free");
        (kept, dropped)
    });
    driven.block_on(async {
        let other = client.lock("other").acquire().await.expect("free");
        drop(dropped);
        until("the dropped one is free", async || {
            server.keys("hr:{*}:lock:dropped").await.is_empty()
        })
        .await;
        let key = &server.keys("hr:{*}:lock:kept").await[0];
        renewed(&server, key, 2).await;
        assert!(kept.is_held() && other.is_held());
    });
    let _inside = driven.enter();
    drop((kept, client, server));
}

#[test]
fn a_waiter_is_queued_for_though_the_first_waited_in_a_runtime_that_stands_still() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, halted) = halted(&driven);
    let other = driven.block_on(server.client());
    let lock = other.lock("a").lease(AGES);
    let held = driven.block_on(lock.acquire()).expect("free");
    let waits = client.lock("a").wait(AGES).lease(AGES);
    // Whoever came first queues for both, in a task of this runtime.
    let first = halted.spawn({
        let waits = waits.clone();
        async move { waits.acquire().await }
    });
    halted.block_on(queued(&lock, 1));
    driven.block_on(async {
        let second = tokio::spawn(async move { waits.acquire().await });
        tokio::task::yield_now().await;
        held.release().await.expect("held until now");
        let second = bounded("the other waiter has it", second).await;
        let guard = second.expect("no panic").expect("granted");
        assert!(guard.is_held());
    });
    let _inside = driven.enter();
    drop((first, client, other, server));
}

#[test]
fn a_waiter_gets_what_is_released_in_a_runtime_that_stands_still() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, halted) = halted(&driven);
    let (held, waiter) = contended(&driven, &halted, &client);
    let release = begun_release(&halted, held);
    driven.block_on(async {
        let guard = bounded("the waiter has it", waiter).await;
        let guard = guard.expect("no panic").expect("granted");
        let key = &server.keys("hr:{*}:lock:a").await[0];
        let value: String = server.run(&["GET", key]).await;
        assert!(value.starts_with(&guard.fence().to_string()), "{value}");
        guard.release().await.expect("held until now");
    });
    // Should the runtime go on, it finds nothing to do.
    let again = halted.block_on(bounded("the release is over", release));
    again.expect("it was released");
    let _inside = driven.enter();
    drop((client, server));
}

/// Both owners were given up by the keeper, which was told that neither had the lock.
#[test]
fn a_release_that_stood_still_tells_of_the_loss_that_was_proved_meanwhile() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, halted) = halted(&driven);
    let (held, waiter) = contended(&driven, &halted, &client);
    let monitor = driven.block_on(Monitor::start(&server));
    let release = begun_release(&halted, held);
    let guard = driven.block_on(async {
        let key = server.keys("hr:{*}:lock:a").await.remove(0);
        let deleted: usize = server.run(&["DEL", &key]).await;
        assert_eq!(deleted, 1);
        let guard = bounded("the waiter has it", waiter).await;
        // The owner of the waiter is asked about again, at ever longer pauses.
        until("both owners were given up", async || {
            let lines = monitor.commands(&server, ":lock:a\"").await;
            let releases = lines.iter();
            let releases =
                releases.filter(|line| line.contains("\"EVALSHA\"") && line.contains("\"2 "));
            releases.count() >= 4
        })
        .await;
        guard.expect("no panic").expect("granted")
    });
    let told = halted.block_on(bounded("the release is over", release));
    assert_eq!(told.expect_err("it was deleted").kind(), ErrorKind::Lost);
    assert!(guard.is_held());
    let _inside = driven.enter();
    drop((guard, client, server, monitor));
}

#[test]
fn a_waiter_looks_after_the_question_of_a_runtime_that_stands_still() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, halted) = halted(&driven);
    let lock = client.lock("a").wait(AGES).lease(AGES);
    // Its server is asked for the format of the locks before the first question.
    driven.block_on(async {
        let guard = lock.acquire().await.expect("free");
        guard.release().await.expect("held until now");
    });
    // One that is answered within its first poll is not what this is about.
    let asked = loop {
        let mut asked = Box::pin(lock.acquire());
        match halted.block_on(async { poll!(&mut asked) }) {
            Poll::Pending => break asked,
            Poll::Ready(guard) => driven.block_on(guard.expect("free").release()),
        }
        .expect("held until now");
    };
    driven.block_on(async {
        until("the lock is granted, unheard", async || {
            !server.keys("hr:{*}:lock:a").await.is_empty()
        })
        .await;
        // It is the first call in this runtime, and is polled no more.
        let mut waiter = Box::pin(lock.acquire());
        assert!(poll!(&mut waiter).is_pending());
        let other = server.client().await;
        let other = other.lock("a").wait(AGES).lease(AGES);
        let guard = bounded("another process has it", other.acquire()).await;
        let released = guard.expect("granted").release().await;
        released.expect("held until now");
        let guard = bounded("the waiter goes on", waiter).await;
        let released = guard.expect("granted").release().await;
        released.expect("held until now");
    });
    let _inside = driven.enter();
    drop((asked, server));
    drop((lock, client));
}

#[test]
fn a_waiter_is_queued_for_when_the_runtime_that_queued_for_it_has_ended() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, ending) = halted(&driven);
    let other = driven.block_on(server.client());
    let lock = other.lock("a").lease(AGES);
    let held = driven.block_on(lock.acquire()).expect("free");
    let waits = client.lock("a").wait(AGES).lease(AGES);
    let first = waits.clone().metadata("first");
    ending.spawn(async move { first.acquire().await });
    ending.block_on(queued(&lock, 1));
    // It stands behind the first, and is polled no more.
    let second = waits.metadata("second");
    let mut waiter = Box::pin(second.acquire());
    driven.block_on(async { assert!(poll!(&mut waiter).is_pending()) });
    drop(ending);
    driven.block_on(async {
        until("it stands in the queue", async || {
            let queue = lock.inspect().await.expect("an answer").queue;
            queue.iter().any(|waiter| waiter.metadata == "second")
        })
        .await;
        held.release().await.expect("held until now");
        let guard = bounded("the waiter has it", waiter).await;
        let released = guard.expect("granted").release().await;
        released.expect("held until now");
    });
    let _inside = driven.enter();
    drop((second, client, server));
}

/// The question is on its way while the keeper of another runtime gives its owner up.
#[test]
fn a_question_of_a_campaign_whose_runtime_has_ended_leaves_no_lease() {
    let driven = Runtime::new().expect("a runtime");
    let stage = Ending::set(&driven);
    let rest = driven.block_on(async {
        let (_, question) = stage.question().await;
        end(stage.ending).await;
        stage.proxy.clear();
        queued(&stage.lock, 0).await;
        stage.held.release().await.expect("held until now");
        question.deliver();
        // It is granted to nobody, and released.
        until("the lock was granted", async || {
            let guard = stage.lock.try_acquire().await.expect("an answer");
            guard.is_none()
        })
        .await;
        let next = stage.lock.clone().wait(AGES);
        let guard = bounded("it is released", next.acquire()).await;
        let released = guard.expect("granted").release().await;
        released.expect("held until now");
        (stage.kept, stage.lock, stage.server, stage.proxy)
    });
    let _inside = driven.enter();
    drop(rest);
}

/// It is handed the lock while its last question is on its way: the keeper releases the one, and
/// then the other comes.
#[test]
fn a_question_of_a_campaign_that_was_handed_the_lock_already_leaves_no_lease() {
    let driven = Runtime::new().expect("a runtime");
    let stage = Ending::set(&driven);
    let rest = driven.block_on(async {
        let (key, question) = stage.question().await;
        let server = &stage.server;
        stage.held.release().await.expect("held until now");
        let value: String = server.run(&["GET", &key]).await;
        assert!(!value.is_empty(), "it was handed over");
        end(stage.ending).await;
        stage.proxy.clear();
        until("the lock is released", async || {
            server.keys("hr:{*}:lock:a").await.is_empty()
        })
        .await;
        // A grant writes the lock and the counter of fences.
        let before = calls(server, &["set"]).await;
        question.deliver();
        until("the question is granted", async || {
            calls(server, &["set"]).await > before
        })
        .await;
        let next = stage.lock.clone().wait(AGES);
        let guard = bounded("it is released", next.acquire()).await;
        let released = guard.expect("granted").release().await;
        released.expect("held until now");
        (stage.kept, stage.lock, stage.server, stage.proxy)
    });
    let _inside = driven.enter();
    drop(rest);
}

#[test]
fn a_short_lease_is_renewed_in_time_however_many_runtimes_stand_still() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, halted) = halted(&driven);
    let mut still = vec![halted];
    for _ in 0..40 {
        still.push(single(&client));
    }
    driven.block_on(async {
        let lease = Duration::from_millis(500);
        let guard = client.lock("a").lease(lease).acquire().await.expect("free");
        let key = &server.keys("hr:{*}:lock:a").await[0];
        renewed(&server, key, 4).await;
        assert!(guard.is_held());
    });
    let _inside = driven.enter();
    drop((client, server));
}
