//! One client on several runtimes: one that ends harms no call of another.

use std::time::Duration;

use futures::future::join_all;
use hedgerow::Client;
use tokio::runtime::{Builder, Runtime};

use crate::server::{Server, signal};
use crate::wait::{bounded, patient};

#[test]
fn calls_that_wait_for_the_pipelines_of_a_runtime_that_ends_are_served() {
    let (here, other) = (threaded(), threaded());
    let (server, client) = here.block_on(served());
    // The connection is made here: it outlives the other runtime.
    let pid = here.block_on(async {
        client.ping().await.expect("an answer");
        server.pid().await
    });
    signal(pid, "STOP");
    // The first goes by itself, the next are carried by tasks of this runtime.
    other.block_on(async {
        for _ in 0..50 {
            let counter = client.counter("there");
            tokio::spawn(async move { counter.add(1).await });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    });
    here.block_on(async {
        let waiting = (0..20).map(|number| {
            let counter = client.counter(&format!("here {number}"));
            tokio::spawn(async move { counter.add(1).await })
        });
        let waiting: Vec<_> = waiting.collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        other.shutdown_background();
        signal(pid, "CONT");
        for added in bounded("they are served", join_all(waiting)).await {
            let added = added.expect("no panic").expect("nothing of it was sent");
            assert_eq!(added.value, 1);
        }
        drop(client);
        drop(server);
    });
}

#[test]
fn the_first_call_after_a_runtime_has_ended_is_served() {
    let here = threaded();
    let (server, client) = here.block_on(served());
    for round in 1..=20 {
        let other = if round % 2 == 0 { threaded() } else { single() };
        let added = other.block_on(client.counter("views").add(1).into_future());
        assert_eq!(added.expect("a call of a new runtime").value, round);
        drop(other);
    }
    here.block_on(async { drop((client, server)) });
}

/// A server and a client that is not connected yet.
async fn served() -> (Server, Client) {
    let server = Server::start_single().await;
    let client = patient(server.builder()).open().expect("a good URL");
    (server, client)
}

fn threaded() -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

fn single() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}
