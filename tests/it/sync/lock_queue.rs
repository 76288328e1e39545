//! The queue of a lock: who comes next.

use std::time::Duration;

use hedgerow::{Client, Guard, Lock};
use tokio::task::JoinHandle;

use crate::support::server::Server;
use crate::support::wait::{bounded, queued, until};

#[tokio::test]
async fn processes_get_the_lock_in_the_order_of_their_arrival() {
    let server = Server::start().await;
    let holder = server.client().await;
    let first = held(&holder).await;
    let mut waiters = Vec::new();
    for place in 0..5 {
        let client = server.client().await;
        waiters.push(wait(client.lock("a").metadata(&place.to_string())));
        queued(&holder.lock("a"), place + 1).await;
    }
    let info = holder.lock("a").inspect().await.expect("an answer");
    let order = info.queue.iter().map(|waiter| waiter.metadata.as_str());
    assert_eq!(order.collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    assert!(
        info.queue
            .is_sorted_by(|one, next| one.waiting >= next.waiting)
    );

    let mut last = first.fence();
    first.release().await.expect("held until now");
    for (place, waiter) in waiters.into_iter().enumerate() {
        let guard = granted(waiter).await;
        assert!(guard.fence() > last);
        last = guard.fence();
        let info = holder.lock("a").inspect().await.expect("an answer");
        let now = info.holder.expect("held");
        assert_eq!((now.fence, now.metadata), (last, place.to_string()));
        assert_eq!(info.queue.len(), 4 - place);
        guard.release().await.expect("held until now");
    }
}

#[tokio::test]
async fn nobody_overtakes_the_queue_of_a_lock_that_has_become_free() {
    let server = Server::start().await;
    let (one, two, three) = (
        server.client().await,
        server.client().await,
        server.client().await,
    );
    let first = held(&one).await;
    let waiter = wait(two.lock("a"));
    queued(&one.lock("a"), 1).await;
    assert!(tried(&three).await.is_none());
    // The lock becomes free without a word to anybody: the next who asks finds it so.
    let deleted: usize = server
        .run(&["DEL", &server.keys("hr:{*}:lock:a").await[0]])
        .await;
    assert_eq!(deleted, 1);
    assert!(tried(&three).await.is_none(), "overtook the queue");
    let second = granted(waiter).await;
    assert!(second.fence() > first.fence());
    assert!(tried(&three).await.is_none());
    second.release().await.expect("held until now");
    assert!(tried(&three).await.is_some());
}

#[tokio::test]
async fn a_process_with_many_waiters_does_not_keep_the_lock_from_others() {
    let server = Server::start().await;
    let (crowd, other) = (server.client().await, server.client().await);
    let first = held(&crowd).await;
    let crowd: Vec<_> = (0..100).map(|_| wait(crowd.lock("a"))).collect();
    let waiter = wait(other.lock("a"));
    queued(&other.lock("a"), 2).await;
    first.release().await.expect("held until now");
    let mut before = 0;
    let fence = {
        let crowd = async {
            for waiter in crowd {
                granted(waiter)
                    .await
                    .release()
                    .await
                    .expect("held until now");
                before += 1;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = crowd => unreachable!("it never ends"),
            guard = granted(waiter) => guard.fence(),
        }
    };
    // The crowd passed it on among themselves for a bounded while.
    assert!(
        before < 60,
        "{before} of the crowd came first, fence {fence}"
    );
}

#[tokio::test]
async fn a_waiter_that_has_left_is_passed_over_at_once() {
    let server = Server::start().await;
    let (one, two, three) = (
        server.client().await,
        server.client().await,
        server.client().await,
    );
    let first = held(&one).await;
    let leaver = wait(two.lock("a"));
    queued(&one.lock("a"), 1).await;
    let waiter = wait(three.lock("a"));
    queued(&one.lock("a"), 2).await;
    leaver.abort();
    queued(&one.lock("a"), 1).await;
    let fields: usize = server
        .run(&["HLEN", &server.keys("hr:{*}:queue:a").await[0]])
        .await;
    assert_eq!(
        fields, 6,
        "one place by number and by id, and four of the queue"
    );
    first.release().await.expect("held until now");
    granted(waiter)
        .await
        .release()
        .await
        .expect("held until now");
    assert!(server.keys("hr:{*}:*:a").await.is_empty());
}

#[tokio::test]
async fn a_lock_is_not_handed_to_a_process_that_is_gone() {
    let server = Server::start_single().await;
    let (one, three) = (server.client().await, server.client().await);
    let first = held(&one).await;
    let dead = crate::support::process::Child::start("hold", &[server.url(), "a", "600000"]);
    queued(&one.lock("a"), 1).await;
    let waiter = wait(three.lock("a"));
    queued(&one.lock("a"), 2).await;
    // Its place in the queue is still there; nobody listens any more.
    dead.kill().await;
    until("the server has noticed", || async {
        !server
            .run::<String>(&["CLIENT", "LIST"])
            .await
            .contains("name=child")
    })
    .await;
    first.release().await.expect("held until now");
    let info = one.lock("a").inspect().await.expect("an answer");
    let second = granted(waiter).await;
    assert_eq!(info.holder.expect("handed over").fence, second.fence());
}

#[tokio::test]
async fn a_broken_lock_goes_to_the_head_of_the_queue() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = held(&one).await;
    let waiter = wait(two.lock("a"));
    queued(&one.lock("a"), 1).await;
    assert!(one.lock("a").break_lock().await.expect("an answer"));
    let second = granted(waiter).await;
    assert!(second.fence() > first.fence());
    bounded("the holder is told", first.lost()).await;
    drop(first);
    assert!(second.is_held());
    second.release().await.expect("held until now");
}

#[tokio::test]
async fn the_late_release_of_a_lost_lock_costs_nobody_their_place() {
    let server = Server::start().await;
    let (one, two, three) = (
        server.client().await,
        server.client().await,
        server.client().await,
    );
    let lost = held(&one).await;
    let _: usize = server
        .run(&["DEL", &server.keys("hr:{*}:lock:a").await[0]])
        .await;
    let guard = held(&two).await;
    let first = wait(one.lock("a").metadata("first"));
    queued(&two.lock("a"), 1).await;
    let second = wait(three.lock("a"));
    queued(&two.lock("a"), 2).await;
    // The process does not know yet that it has nothing to pass on to its own waiter.
    let error = lost.release().await.expect_err("deleted");
    assert_eq!(error.kind(), hedgerow::ErrorKind::Lost);
    guard.release().await.expect("held until now");
    let info = two.lock("a").inspect().await.expect("an answer");
    assert_eq!(info.holder.expect("handed over").metadata, "first");
    drop(granted(first).await);
    drop(granted(second).await);
}

/// Holds the lock for longer than any test runs.
async fn held(client: &Client) -> Guard {
    let lock = client.lock("a").lease(Duration::from_secs(600));
    lock.acquire().await.expect("free")
}

async fn tried(client: &Client) -> Option<Guard> {
    client.lock("a").try_acquire().await.expect("an answer")
}

fn wait(lock: Lock) -> JoinHandle<hedgerow::Result<Guard>> {
    let lock = lock
        .wait(Duration::from_secs(60))
        .lease(Duration::from_secs(600));
    tokio::spawn(async move { lock.acquire().await })
}

async fn granted(waiter: JoinHandle<hedgerow::Result<Guard>>) -> Guard {
    waiter.await.expect("no panic").expect("granted")
}
