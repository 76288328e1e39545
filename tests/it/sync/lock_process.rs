//! Locks between real processes: stopped and killed holders.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use hedgerow::Lock;
use tokio::task::JoinHandle;

use crate::faults::Row;
use crate::support::process::{Child, fenced_write};
use crate::support::server::{Server, connection};
use crate::support::wait::{queued, until};

#[tokio::test]
async fn a_stopped_holder_learns_on_resume_that_it_lost_and_its_write_is_refused() {
    let server = Server::start_single().await;
    let mut resource = connection(server.url()).await;
    let mut first = Child::start("hold", &[server.url(), "a", "300"]);
    let first_fence = fence(&first.says().await);
    assert_eq!(first.ask("write one").await, "written");
    assert_eq!(first.ask("state").await, "held");

    first.signal("STOP");
    // Not before its lease has ended: the first does not give the lock up.
    let client = server.client().await;
    let lock = client.lock("a").wait(Duration::from_secs(60));
    let second = lock.acquire().await.expect("the lease of the first ends");
    assert!(second.fence().get() > first_fence);
    assert!(fenced_write(&mut resource, second.fence().get(), "two").await);

    first.signal("CONT");
    let state = first.ask("state").await;
    assert!(state.starts_with("lost "), "{state}");
    assert_eq!(first.ask("write three").await, "refused");
    assert_eq!(first.ask("release").await, "not released Lost");

    assert!(second.is_held(), "the late release touched nobody else");
    let written: String = server.run(&["HGET", "resource", "value"]).await;
    assert_eq!(written, "two");
    second.release().await.expect("held until now");
    Row::shown(
        9,
        "a holder stands still",
        "lock",
        "its late write is refused",
        1,
        1,
    );
}

#[tokio::test]
async fn a_released_lock_passes_from_process_to_process() {
    let server = Server::start_single().await;
    let mut first = Child::start("hold", &[server.url(), "a", "60000"]);
    let first_fence = fence(&first.says().await);
    let mut second = Child::start("hold", &[server.url(), "a", "60000"]);
    queued(&server.client().await.lock("a"), 1).await;
    assert_eq!(first.ask("release").await, "released");
    assert!(fence(&second.says().await) > first_fence);
    assert_eq!(second.ask("release").await, "released");
    assert!(server.keys("hr:{*}:lock:a").await.is_empty());
}

#[tokio::test]
async fn a_killed_holder_blocks_its_successor_for_no_more_than_its_lease() {
    let server = Server::start_single().await;
    for _ in 0..3 {
        assert_taken_over_in_time(&server).await;
    }
    Row::shown(10, "a holder is killed", "lock", "followed in time", 1, 1);
}

#[tokio::test]
async fn a_killed_holder_is_followed_in_time_though_the_server_expires_keys_late() {
    let server = Server::start_single().await;
    let fill =
        "for key = 1, 20000 do redis.call('SET', 'other:' .. key, '', 'PX', 600000 + key) end";
    let _: () = server.run(&["EVAL", fill, "0"]).await;
    for _ in 0..3 {
        assert_taken_over_in_time(&server).await;
    }
}

/// Kills a holder for whose lock another client waits. Both ends of the gap are read off the
/// server's clock: when the lease ended, and the fence, which is the time of the grant.
async fn assert_taken_over_in_time(server: &Server) {
    let client = server.client().await;
    let lock = client.lock("a").wait(Duration::from_secs(60));
    let mut holder = Child::start("hold", &[server.url(), "a", "600"]);
    let held_since = fence(&holder.says().await);
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire().await }
    });
    queued(&lock, 1).await;

    holder.kill().await;
    // What it sent last is done once the server has closed its connections.
    until("the server has noticed", || async {
        !server
            .run::<String>(&["CLIENT", "LIST"])
            .await
            .contains("name=child ")
    })
    .await;
    let ends_ms = lease_end(server, &lock).await;

    let yardstick = Yardstick::start(server).await;
    let guard = waiter.await.expect("no panic").expect("granted");
    let slowest = yardstick.slowest();
    let granted_us = guard.fence().get();
    assert!(granted_us > held_since);
    let gap = i64::try_from(granted_us).expect("a time") - ends_ms * 1000;
    assert!(gap >= 0, "granted {} us before the lease ended", -gap);
    // Soon, as far as this machine does anything soon.
    let soon = 50_000 + 3 * slowest;
    assert!(
        gap <= soon,
        "granted {gap} us after the lease had ended, {slowest} us slow"
    );
    guard.release().await.expect("held until now");
}

/// How slow the machine is: the longest that a moment of sleep and a question to the server have
/// taken.
struct Yardstick {
    slowest: Arc<AtomicI64>,
    measuring: JoinHandle<()>,
}

impl Yardstick {
    async fn start(server: &Server) -> Self {
        let mut server = connection(server.url()).await;
        let slowest = Arc::new(AtomicI64::new(0));
        let measured = slowest.clone();
        let measuring = tokio::spawn(async move {
            loop {
                let begun = Instant::now();
                tokio::time::sleep(Duration::from_millis(1)).await;
                let _: redis::RedisResult<()> = redis::cmd("PING").query_async(&mut server).await;
                let took = begun.elapsed().as_micros().try_into().expect("short");
                measured.fetch_max(took, Ordering::Relaxed);
            }
        });
        Self { slowest, measuring }
    }

    /// In microseconds.
    fn slowest(self) -> i64 {
        self.measuring.abort();
        self.slowest.load(Ordering::Relaxed)
    }
}

/// When the lease of the present holder ends, in milliseconds of the server's clock.
async fn lease_end(server: &Server, lock: &Lock) -> i64 {
    let info = lock.inspect().await.expect("an answer");
    assert!(info.holder.is_some(), "the dead still hold");
    let keys = server.keys("hr:{*}:lock:a").await;
    server.run(&["PEXPIRETIME", &keys[0]]).await
}

fn fence(said: &str) -> u64 {
    let fence = said
        .strip_prefix("held ")
        .and_then(|fence| fence.parse().ok());
    fence.unwrap_or_else(|| panic!("the child said {said:?}"))
}
