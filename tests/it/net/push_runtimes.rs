//! Pushes where the connection for them, and the task that keeps its channels, live on the runtimes
//! of others: whoever listens hears again, or knows that it does not.

use std::time::Duration;

use hedgerow::{Client, Guard, lock::LossReason};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, listened, patient, queued, until};

/// Longer than any test takes: a renewal tells nothing meanwhile.
const AGES: Duration = Duration::from_secs(600);

#[test]
fn a_holder_is_told_though_the_push_connection_has_ended_with_a_runtime_of_others() {
    let driven = Runtime::new().expect("a runtime");
    let (server, proxy) = driven.block_on(async {
        let server = Server::start_single().await;
        let proxy = Proxy::before(&server);
        (server, proxy)
    });
    let client = patient(proxy.builder()).open().expect("a good URL");
    driven.block_on(client.ping()).expect("an answer");

    // The listener, with the task that keeps the channels, is here. Its attempt to connect hangs,
    // and stands still, so that the next to listen makes one of its own.
    let here = single();
    let hello = Request::any().named("CLIENT").with("hedgerow-push");
    let held_up = proxy.on(hello, Act::Hold);
    let guard = here.block_on(async {
        let guard = acquired(&client, "here").await;
        held_up.hit().await;
        guard
    });
    let ends = Runtime::new().expect("a runtime");
    let other = client.clone();
    let other = ends.spawn(async move {
        let _guard = acquired(&other, "there").await;
        std::future::pending::<()>().await;
    });
    driven.block_on(listened(&server, 1));
    let driving = Driving::start(here);
    driven.block_on(listened(&server, 2));

    let before = driven.block_on(push_connections(&server));
    drop((other, ends));
    driven.block_on(async {
        listens_anew(&server, &before, 2).await;
        is_told_of_a_break(&server, "here", &guard).await;
    });
    driving.end();
    let _inside = driven.enter();
    drop((guard, client, proxy, server));
}

#[test]
fn a_holder_is_told_though_the_channels_are_kept_by_a_runtime_that_stands_still() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client) = driven.block_on(async {
        let server = Server::start_single().await;
        let client = server.client().await;
        client.ping().await.expect("an answer");
        (server, client)
    });
    // The connection for pushes and the task that keeps the channels are made here.
    let still = single();
    let first = still.block_on(async {
        let first = acquired(&client, "there").await;
        listened(&server, 1).await;
        first
    });
    let guard = driven.block_on(acquired(&client, "here"));
    still.block_on(listened(&server, 2));
    let before = driven.block_on(push_connections(&server));
    // From here on nobody drives it. A waiter finds out, and listens at another connection.
    driven.block_on(async {
        let holder = server.client().await;
        let lock = holder.lock("awaited").lease(AGES);
        let _held = lock.acquire().await.expect("free");
        let waits = client.lock("awaited").wait(AGES);
        let waiter = tokio::spawn(async move { waits.acquire().await });
        queued(&lock, 1).await;
        listens_anew(&server, &before, 3).await;
        is_told_of_a_break(&server, "here", &guard).await;
        waiter.abort();
    });
    let _inside = driven.enter();
    drop((first, guard, client, server));
}

async fn acquired(client: &Client, name: &str) -> Guard {
    let lock = client.lock(name).lease(AGES);
    lock.acquire().await.expect("free")
}

/// The connections for pushes, as the server lists them.
async fn push_connections(server: &Server) -> Vec<String> {
    let list: String = server.run(&["CLIENT", "LIST"]).await;
    let lines = list.lines();
    let lines = lines.filter(|line| line.contains("name=hedgerow-push"));
    lines.map(str::to_owned).collect()
}

/// Waits until another connection than those `before` has subscribed so many channels.
async fn listens_anew(server: &Server, before: &[String], channels: usize) {
    let id = |line: &str| line.split(' ').next().map(str::to_owned);
    let old: Vec<_> = before.iter().map(|line| id(line)).collect();
    until("another connection listens", async || {
        let now = push_connections(server).await;
        let mut new = now.iter().filter(|line| !old.contains(&id(line)));
        new.any(|line| line.contains(&format!(" ssub={channels} ")))
    })
    .await;
}

/// Another process breaks the lock, which the holder hears long before it renews.
async fn is_told_of_a_break(server: &Server, name: &str, guard: &Guard) {
    let other = server.client().await;
    assert!(other.lock(name).break_lock().await.expect("an answer"));
    let reason = bounded("the holder is told", guard.lost()).await;
    assert_eq!(reason, LossReason::Broken);
}

/// A runtime of one thread that is driven until the end.
struct Driving {
    ends: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Driving {
    fn start(runtime: Runtime) -> Self {
        let (ends, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(ended);
        });
        Self { ends, thread }
    }

    fn end(self) {
        drop(self.ends);
        self.thread.join().expect("no panic");
    }
}

fn single() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}
