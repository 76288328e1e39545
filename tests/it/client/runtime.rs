//! A client may outlive the runtime that its calls were made on: what is left then is released in
//! the next one, and keeps nothing alive by itself.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use hedgerow::Client;
use tokio::runtime::{Builder, Runtime};

use crate::support::server::Server;
use crate::support::wait::{queued, until};

#[test]
fn a_guard_that_is_dropped_with_its_runtime_does_not_keep_the_client_alive() {
    let socket = runtime().block_on(async {
        let (client, socket) = owner().await;
        drop(client.lock("a").acquire().await.expect("free"));
        socket
    });
    assert_ends(&socket);
}

#[test]
fn guards_that_tasks_hold_when_their_runtime_ends_do_not_keep_the_client_alive() {
    let runtime = runtime();
    let socket = runtime.block_on(async {
        let (client, socket) = owner().await;
        hold(&client).await;
        socket
    });
    drop(runtime);
    assert_ends(&socket);
}

#[test]
fn waiters_whose_runtime_ends_do_not_keep_the_client_alive() {
    let runtime = runtime();
    let socket = runtime.block_on(async {
        let (client, socket) = owner().await;
        hold(&client).await;
        for name in NAMES.iter().flat_map(|name| [name; 3]) {
            let lock = client.lock(name).wait(AGES);
            tokio::spawn(async move { lock.acquire().await });
        }
        for name in NAMES {
            queued(&client.lock(name), 1).await;
        }
        socket
    });
    drop(runtime);
    assert_ends(&socket);
}

#[test]
fn a_call_whose_runtime_ends_before_any_task_of_it_has_run_does_not_keep_the_client_alive() {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let socket = runtime.block_on(async {
        let (client, socket) = owner().await;
        let lock = client.lock("a");
        let mut call = pin!(lock.acquire());
        let polled = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "it has to ask first");
        socket
    });
    drop(runtime);
    assert_ends(&socket);
}

#[test]
fn locks_that_tasks_held_when_their_runtime_ended_can_be_had_in_the_next() {
    let first = runtime();
    let (server, client) = first.block_on(async {
        let server = Server::start().await;
        let client = server.client().await;
        hold(&client).await;
        (server, client)
    });
    drop(first);
    let second = runtime();
    second.block_on(async {
        for name in NAMES {
            let lock = client.lock(name).wait(Duration::from_secs(60));
            drop(lock.acquire().await.expect("nobody holds it any more"));
        }
        drop(client);
    });
    let _inside = second.enter();
    drop(server);
}

#[test]
fn a_guard_that_outlives_the_runtime_of_its_keeper_is_renewed_in_the_next() {
    let first = runtime();
    let (server, client, guard) = first.block_on(async {
        let server = Server::start().await;
        let client = server.client().await;
        let lock = client.lock("a").lease(Duration::from_secs(6));
        let guard = lock.acquire().await.expect("free");
        (server, client, guard)
    });
    drop(first);
    let second = runtime();
    second.block_on(async {
        // Any call of a lock brings a keeper along, which looks when the lease is due.
        let other = client.lock("b").acquire().await.expect("free");
        let before = Cell::new(guard.remaining());
        until("the lease is renewed", || async {
            let now = guard.remaining();
            now > before.replace(now)
        })
        .await;
        drop((guard, other, client));
    });
    let _inside = second.enter();
    drop(server);
}

#[test]
fn a_lock_that_was_waited_for_when_a_runtime_ended_can_be_had_in_the_next() {
    let first = runtime();
    let (server, client) = first.block_on(async {
        let server = Server::start().await;
        let (holder, client) = (server.client().await, server.client().await);
        let guard = holder.lock("a").acquire().await.expect("free");
        let lock = client.lock("a").lease(AGES).wait(AGES);
        let waiting = lock.clone();
        tokio::spawn(async move { waiting.acquire().await });
        queued(&lock, 1).await;
        guard.release().await.expect("held");
        (server, client)
    });
    drop(first);
    let second = runtime();
    second.block_on(async {
        let lock = client.lock("a").wait(Duration::from_secs(60));
        let guard = lock.acquire().await.expect("nobody holds it for long");
        assert!(guard.is_held());
        drop((guard, lock, client));
    });
    let _inside = second.enter();
    drop(server);
}

fn runtime() -> Runtime {
    Runtime::new().expect("a runtime")
}

/// A client that owns its server, and the socket that is there as long as the client is.
async fn owner() -> (Client, PathBuf) {
    let client = Client::embedded().await.expect("a server starts");
    let shown = format!("{client:?}");
    let (_, path) = shown.split_once("address: \"").expect("an address");
    let path = path.split('"').next().expect("a path");
    assert!(Path::new(path).exists(), "{path} is where its server is");
    (client, path.into())
}

fn assert_ends(socket: &Path) {
    runtime().block_on(until("the server has ended", || async { !socket.exists() }));
}

/// Takes locks and leaves them to tasks, which hold them as long as the runtime lives.
async fn hold(client: &Client) {
    for name in NAMES {
        let lock = client.lock(name).lease(AGES);
        let guard = lock.acquire().await.expect("free");
        tokio::spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
    }
}

/// More than one: a runtime drops its tasks in no order that could be relied on.
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// Longer than any test takes.
const AGES: Duration = Duration::from_secs(3600);
