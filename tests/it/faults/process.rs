//! Servers that stop, connections that are cut, scripts that are forgotten.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{Loss, Row, Traffic};
use crate::support::server::{Server, signal};
use crate::support::wait::bounded;

const ONE: &str = "one server";

#[tokio::test]
async fn fault_01_scripts_are_forgotten_again_and_again() {
    let server = Server::start_single().await;
    let mut traffic = Traffic::start(&server.client().await, 12, Loss::None);
    traffic.flows(100).await;
    traffic.strike().await;
    for _ in 0..100 {
        let _: String = server.run(&["SCRIPT", "FLUSH"]).await;
        traffic.flows(2).await;
    }
    traffic.flows(100).await;
    traffic
        .settle(1, "scripts are flushed", ONE, "no effect")
        .await;
}

#[tokio::test]
async fn fault_08_the_server_stands_still() {
    let server = Server::start_single().await;
    let builder = server.builder().deadline(Duration::from_secs(1));
    let client = builder.open().expect("a good URL");
    let mut traffic = Traffic::start(&client, 12, Loss::None);
    traffic.flows(100).await;
    let lock = client.lock("held").lease(Duration::from_secs(1));
    let guard = lock.acquire().await.expect("free");
    let fence = guard.fence();
    traffic.strike().await;
    let pid = server.pid().await;
    signal(pid, "STOP");
    // Longer than the lease: the holder has to give up by its own clock.
    bounded("the guard is told", guard.lost()).await;
    assert!(!guard.is_held());
    traffic.loads_go_on(100).await;
    signal(pid, "CONT");
    traffic.flows(100).await;
    let lock = lock.wait(Duration::from_secs(60));
    let next = bounded("it is granted again", lock.acquire());
    assert!(next.await.expect("granted").fence() > fence);
    traffic
        .settle(8, "the server stands still", ONE, "recovers")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_11_adds_are_dropped_while_they_are_under_way() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let mut random = StdRng::seed_from_u64(11);
    let (mut heard, mut dropped) = (0_usize, 0_usize);
    for _ in 0..100 {
        let mut adds = Vec::new();
        for _ in 0..50 {
            let counter = client.counter("dropped");
            adds.push(tokio::spawn(async move { counter.add(1).await }));
        }
        for add in adds {
            for _ in 0..random.random_range(0..3) {
                tokio::task::yield_now().await;
            }
            add.abort();
            match add.await {
                Ok(sum) => {
                    sum.expect("nothing else is wrong");
                    heard += 1;
                }
                Err(stopped) => {
                    assert!(stopped.is_cancelled());
                    dropped += 1;
                }
            }
        }
    }
    let counter = client.counter("dropped");
    let sum = usize::try_from(counter.get().await.expect("an answer")).expect("no less than 0");
    assert!(
        (heard..=heard + dropped).contains(&sum),
        "{heard} + {dropped}: {sum}"
    );
    // Some were dropped after they had been sent: nobody knows of them, and they count.
    assert!(sum > heard, "{heard} + {dropped}: {sum}");
    Row::shown(
        11,
        "futures are dropped",
        "counter",
        "each counts once or not",
        heard,
        sum - heard,
    );
}

#[tokio::test]
async fn fault_12_connections_are_killed_in_a_storm() {
    let server = Server::start_single().await;
    let mut traffic = Traffic::start(&server.client().await, 12, Loss::None);
    traffic.flows(100).await;
    traffic.strike().await;
    for _ in 0..50 {
        for kind in ["normal", "pubsub"] {
            let _: usize = server.run(&["CLIENT", "KILL", "TYPE", kind]).await;
        }
        traffic.flows(2).await;
    }
    traffic.flows(100).await;
    traffic
        .settle(12, "connections are killed", ONE, "recovers")
        .await;
}
