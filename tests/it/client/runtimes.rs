//! One client on several runtimes: one that ends harms no call of another.

use std::pin::{Pin, pin};
use std::time::Duration;

use futures::future::join_all;
use futures::{FutureExt as _, poll};
use hedgerow::{Client, OnOutage};
use tokio::runtime::{Builder, Runtime};

use crate::support::server::{Server, signal};
use crate::support::wait::{bounded, patient};

#[test]
fn calls_that_wait_for_the_pipelines_of_a_runtime_that_ends_are_served() {
    served_beside(threaded(), |other| {
        other.shutdown_background();
        None
    });
}

#[test]
fn calls_that_wait_for_the_pipelines_of_a_runtime_that_stands_still_are_served() {
    served_beside(single(), Some);
}

#[test]
fn a_call_with_little_time_is_served_though_the_runtime_that_was_to_carry_it_ends() {
    // Of one thread: no answer comes within a poll.
    let here = single();
    let (server, client) = here.block_on(served());
    let cache = client.cache("c").on_outage(OnOutage::KeepTrying);
    // On a busy machine that may be too little, but not each time. With more, a call in the queue
    // sees by itself that nobody carries it.
    let hasty = cache.clone().deadline(Duration::from_millis(150));
    for _ in 0..20 {
        let outcome = here.block_on(async {
            let (_first, other) = (begun(cache.get::<u8>("first")), single());
            // The first goes by itself. Behind it the other runtime carries, by as many tasks as
            // there may be.
            let _carried = {
                let _inside = other.enter();
                [begun(cache.get::<u8>("a")), begun(cache.get::<u8>("b"))]
            };
            let mut call = pin!(hasty.get::<u8>("c"));
            assert!(poll!(&mut call).is_pending());
            other.shutdown_background();
            call.await
        });
        if outcome.is_ok() {
            let _inside = here.enter();
            drop(server);
            return;
        }
    }
    panic!("a call waits to its end for a task that has ended");
}

/// `call`, polled once.
fn begun<F: Future>(call: F) -> Pin<Box<F>> {
    let mut call = Box::pin(call);
    assert!(call.as_mut().now_or_never().is_none());
    call
}

/// Calls that wait for pipelines of the runtime `other` are served, though `leave` leaves it.
fn served_beside(other: Runtime, leave: impl FnOnce(Runtime) -> Option<Runtime>) {
    let here = threaded();
    let (server, client) = here.block_on(served());
    // The connection is made here: it outlives the other runtime.
    let pid = here.block_on(async {
        client.ping().await.expect("an answer");
        server.pid().await
    });
    signal(pid, "STOP");
    // The first goes by itself. What comes with it and what comes later is carried by two tasks of
    // this runtime, which are as many as there may be.
    other.block_on(async {
        for _ in 0..2 {
            for _ in 0..20 {
                let counter = client.counter("there");
                tokio::spawn(async move { counter.add(1).await });
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    here.block_on(async {
        let waiting = (0..20).map(|number| {
            let counter = client.counter(&format!("here {number}"));
            tokio::spawn(async move { counter.add(1).await })
        });
        let waiting: Vec<_> = waiting.collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let _kept = leave(other).map(std::mem::ManuallyDrop::new);
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

#[test]
fn a_connection_whose_runtime_is_not_driven_any_more_holds_nobody_up() {
    let (here, idle) = (threaded(), single());
    let (server, client) = here.block_on(served());
    let counter = client.counter("views");
    let added = idle.block_on(counter.add(1).into_future());
    assert_eq!(added.expect("a call of its runtime").value, 1);
    here.block_on(async {
        // All at once: some by themselves, some carried. None was sent over the first connection.
        let adders = (0..20).map(|_| tokio::spawn(counter.add(1).into_future()));
        for added in join_all(adders.collect::<Vec<_>>()).await {
            added
                .expect("no panic")
                .expect("added over another connection");
        }
        assert_eq!(counter.get().await.expect("read"), 21);
    });
    // What was not sent there is not sent later.
    let value = idle.block_on(async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        counter.get().await
    });
    assert_eq!(value.expect("read"), 21);
    here.block_on(async { drop((client, server)) });
}

#[test]
fn an_attempt_to_connect_whose_runtime_is_not_driven_holds_nobody_up() {
    let (here, idle) = (threaded(), single());
    let (server, client) = here.block_on(served());
    let counter = client.counter("views");
    idle.block_on(async {
        let mut add = pin!(counter.add(1).into_future());
        assert!(poll!(&mut add).is_pending(), "it has to connect first");
    });
    here.block_on(async {
        let added = counter.add(1).await.expect("added over another connection");
        assert_eq!(added.value, 1);
        drop((client, server));
    });
}

#[test]
fn the_tasks_of_a_client_live_on_the_runtime_that_it_was_given() {
    let given = threaded();
    let server = given.block_on(Server::start_single());
    let builder = patient(server.builder()).runtime(given.handle().clone());
    let client = builder.open().expect("a good URL");
    for round in 1..=5 {
        let other = single();
        let added = other.block_on(client.counter("views").add(1).into_future());
        assert_eq!(added.expect("added").value, round);
    }
    given.block_on(async {
        let list: String = server.run(&["CLIENT", "LIST"]).await;
        let ids = list.lines().filter(|line| line.contains("name=hedgerow "));
        let ids: Vec<_> = ids.map(|line| line.split(' ').next()).collect();
        assert_eq!(ids.len(), 1, "one connection serves all: {list}");
    });

    // One that has ended is done without.
    let ended = single();
    let builder = patient(server.builder()).runtime(ended.handle().clone());
    let client = builder.open().expect("a good URL");
    drop(ended);
    let counter = client.counter("views");
    let calls = (0..20).map(|_| counter.add(1).into_future());
    for added in given.block_on(join_all(calls)) {
        added.expect("added");
    }
    given.block_on(async { drop((client, counter, server)) });
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
