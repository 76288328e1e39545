//! Holding a lock: renewal, the longest hold, bodies, and what may be asked for at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hedgerow::{ErrorKind, Lock, lock::LossReason};
use tokio::sync::Notify;

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, patient, queued, renewed, until};

#[tokio::test]
async fn a_short_lease_is_kept_alive_over_many_of_its_lengths() {
    let server = Server::start().await;
    let client = server.client().await;
    let lock = client.lock("a").lease(Duration::from_millis(900));
    let guard = lock.acquire().await.expect("free");
    let key = &server.keys("hr:{*}:lock:a").await[0];
    // A renewal is due after a third of the lease.
    renewed(&server, key, 12).await;
    assert!(guard.is_held());
    assert!(guard.remaining() > Duration::ZERO);
    assert_eq!(guard.loss(), None);
    let stored: String = server.run(&["GET", key]).await;
    let fence = stored.split(' ').next().map(str::to_owned);
    assert_eq!(
        fence,
        Some(guard.fence().to_string()),
        "fence, format, id, seal, process, metadata"
    );
    guard.release().await.expect("held until now");
    assert!(server.keys("hr:{*}:lock:a").await.is_empty());
}

#[tokio::test]
async fn many_leases_are_all_renewed() {
    let server = Server::start().await;
    let client = server.client().await;
    // More than one call renews, and more names than there are buckets.
    let mut guards = Vec::new();
    for name in 0..600 {
        let lock = client.lock(&format!("{name}"));
        let lock = lock.lease(Duration::from_secs(6));
        guards.push(lock.acquire().await.expect("free"));
    }
    let keys = server.keys("hr:{*}:lock:*").await;
    assert_eq!(keys.len(), 600);
    for key in [&keys[0], &keys[599]] {
        renewed(&server, key, 2).await;
    }
    assert!(guards.iter().all(hedgerow::Guard::is_held));
    assert_eq!(server.keys("hr:{*}:lock:*").await.len(), 600);
}

/// The guard comes with its loss, and what was granted stands in nobody's way.
#[tokio::test]
async fn a_grant_that_is_answered_after_its_lease_is_not_held() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let lock = client.lock("a").lease(Duration::from_millis(300));
    // From here on the server knows the scripts, and a question is one request.
    let first = lock.acquire().await.expect("free");
    let (fence, key) = (first.fence(), server.keys("hr:{*}:lock:a").await.remove(0));
    first.release().await.expect("held until now");
    let answer = proxy.on_reply(Request::any().with(&key), Act::Hold);
    let late = tokio::spawn(async move { lock.acquire().await });
    answer.hit().await;
    until("the lease is over", async || {
        server.keys("hr:{*}:lock:a").await.is_empty()
    })
    .await;
    answer.deliver();
    let guard = bounded("the answer", late).await.expect("no panic");
    let guard = guard.expect("it was granted");
    assert!(guard.fence() > fence);
    assert!(!guard.is_held());
    assert_eq!(guard.remaining(), Duration::ZERO);
    assert_eq!(guard.loss(), Some(LossReason::Expired));
    let other = server.client().await.lock("a");
    let other = bounded("it is free", other.acquire()).await.expect("free");
    let error = guard.release().await.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(other.is_held());
}

#[tokio::test]
async fn the_longest_hold_ends_a_hold_and_frees_the_name() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let lock = one.lock("a").lease(Duration::from_secs(600));
    let lock = lock.max_hold(Duration::from_millis(200));
    let guard = lock.acquire().await.expect("free");
    let reason = bounded("the longest hold ends", guard.lost()).await;
    assert_eq!(reason, LossReason::MaxHold);
    assert!(!guard.is_held());
    // The lease would have lasted ten minutes.
    let lock = two.lock("a").wait(Duration::from_secs(60));
    let next = lock.acquire().await.expect("released");
    assert!(next.fence() > guard.fence());
    let error = guard.release().await.expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(next.is_held());
}

#[tokio::test]
async fn a_body_is_dropped_in_mid_flight_when_the_lock_is_lost() {
    struct Noted(Arc<AtomicBool>);
    impl Drop for Noted {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let (dropped, inside) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let task = tokio::spawn({
        let (noted, inside) = (Noted(dropped.clone()), inside.clone());
        async move {
            let body = |_| async move {
                let _noted = noted;
                inside.notify_one();
                std::future::pending::<()>().await;
            };
            one.lock("a")
                .lease(Duration::from_millis(900))
                .with(body)
                .await
        }
    });
    bounded("the body runs", inside.notified()).await;
    assert!(!dropped.load(Ordering::SeqCst));
    assert!(two.lock("a").break_lock().await.expect("an answer"));
    let outcome = bounded("the body is cancelled", task)
        .await
        .expect("no panic");
    assert_eq!(outcome.expect_err("lost").kind(), ErrorKind::Lost);
    assert!(dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_body_runs_under_its_fence_and_the_lock_is_free_after_it() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let info = one
        .lock("a")
        .with(|fence| async move { (fence, two.lock("a").inspect().await) })
        .await;
    let (fence, info) = info.expect("held throughout");
    assert_eq!(info.expect("an answer").holder.expect("held").fence, fence);
    assert_eq!(
        one.lock("a").inspect().await.expect("an answer").holder,
        None
    );
}

#[tokio::test]
async fn names_and_metadata_are_taken_up_to_their_limits() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let long = "n".repeat(1024);
    let names = [
        "a", "a ", "a:lock", "A", "%41", "{a}", "}{", "%7Ba%7D", "\0", "\n", "\r\n", "*", "å",
        &long,
    ];
    let metadata = ["", "\0\r\n", "{\"host\":\"ü\"}", &"m".repeat(1024)];
    let mut guards = Vec::new();
    for (index, name) in names.into_iter().enumerate() {
        let text = metadata[index % metadata.len()];
        let guard = one.lock(name).metadata(text).try_acquire().await;
        let guard = guard.expect("an answer");
        guards.push(guard.unwrap_or_else(|| panic!("{name:?} is another lock than the others")));
        let info = two.lock(name).inspect().await.expect("an answer");
        let holder = info.holder.expect("held");
        assert_eq!(holder.metadata, text);
        assert_eq!(holder.fence, guards[index].fence());
        assert!(
            two.lock(name)
                .try_acquire()
                .await
                .expect("an answer")
                .is_none()
        );
    }
    for guard in guards {
        guard.release().await.expect("held until now");
    }
    assert!(server.keys("hr:{*}:lock:*").await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_a_lock_is_refused_before_anything_is_written() {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    let server = Server::start().await;
    let client = server.client().await;
    let lock = client.lock("a");
    let beyond = CENTURY + Duration::from_nanos(1);
    let bad = [
        client.lock(""),
        client.lock(&"n".repeat(1025)),
        lock.clone().metadata(&"m".repeat(1025)),
        lock.clone().lease(Duration::ZERO),
        lock.clone().lease(Duration::from_millis(9)),
        lock.clone().lease(beyond),
        lock.clone().max_hold(Duration::ZERO),
        lock.clone().max_hold(beyond),
    ];
    let before = server.digest().await;
    for bad in &bad {
        for error in [
            bad.acquire().await.expect_err("refused"),
            bad.try_acquire().await.expect_err("refused"),
            bad.with(async |_| ()).await.expect_err("refused"),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
            assert!(!error.is_retryable() && !error.is_indeterminate());
        }
    }
    for wait in [Duration::ZERO, beyond] {
        let error = lock
            .clone()
            .wait(wait)
            .acquire()
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(server.digest().await, before);
    let clients: String = server.run(&["CLIENT", "LIST"]).await;
    assert!(!clients.contains(" name=hedgerow"), "connected: {clients}");

    // The ends of the ranges are good.
    for lease in [Duration::from_millis(10), CENTURY] {
        let longest = lock.clone().lease(lease).max_hold(CENTURY).wait(CENTURY);
        drop(longest.acquire().await.expect("good"));
    }
}

#[tokio::test]
async fn owner_tokens_are_never_shown() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let lock = one.lock("a").metadata("worker 1");
    let guard = lock.acquire().await.expect("free");
    let waiter = tokio::spawn({
        let lock = two.lock("a").wait(Duration::from_secs(60));
        async move { lock.acquire().await }
    });
    queued(&lock, 1).await;
    let stored: String = server
        .run(&["GET", &server.keys("hr:{*}:lock:a").await[0]])
        .await;
    let holder = stored.split([' ', '+']).nth(2).expect("an id").to_owned();
    assert_eq!(holder.len(), 32);
    let fields: Vec<String> = server
        .run(&["HKEYS", &server.keys("hr:{*}:queue:a").await[0]])
        .await;
    let waiting: Vec<String> = fields.into_iter().filter(|it| it.len() == 32).collect();
    assert_eq!(waiting.len(), 1);
    let error = one
        .lock("a")
        .wait(Duration::from_millis(20))
        .acquire()
        .await
        .expect_err("held");
    assert_eq!(error.kind(), ErrorKind::Contended);
    let shown = format!(
        "{guard:?} {guard:#?} {lock:?} {one:#?} {two:#?} {error} {error:?} {:?}",
        lock.inspect().await
    );
    assert!(shown.contains("worker 1"), "{shown}");
    for token in waiting.iter().chain([&holder]) {
        assert_eq!(token.len(), 32, "128 bits");
        assert!(!shown.contains(token.as_str()), "{shown}");
    }
    assert_ne!(waiting[0], holder);
    guard.release().await.expect("held until now");
    drop(waiter.await.expect("no panic").expect("granted"));
}

/// The lock types can go where tasks go.
#[test]
fn guards_and_locks_are_send_and_sync() {
    fn checked<T: Send + Sync + 'static>() {}
    checked::<hedgerow::Guard>();
    checked::<Lock>();
}
