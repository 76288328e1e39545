//! Locks of a process with two runtimes, one of which is not driven any more or ends: what tests of
//! such locks begin with.

use std::pin::Pin;
use std::time::Duration;

use futures::poll;
use hedgerow::{Client, Guard, Lock, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::support::proxy::{Act, Proxy, Request, Rule};
use crate::support::server::Server;
use crate::support::wait::{patient, queued};

/// Longer than any test takes.
pub const AGES: Duration = Duration::from_secs(600);

/// A server, a client whose connections live where they are driven, and a runtime that is not
/// driven any more, in which the client took its first lock.
pub fn halted(driven: &Runtime) -> (Server, Client, Runtime) {
    let (server, client) = driven.block_on(async {
        let server = Server::start().await;
        let client = server.client().await;
        client.ping().await.expect("an answer");
        (server, client)
    });
    let halted = single(&client);
    (server, client, halted)
}

/// A runtime that is not driven any more, in which the client has taken a lock.
pub fn single(client: &Client) -> Runtime {
    let halted = Builder::new_current_thread().enable_all().build();
    let halted = halted.expect("a runtime");
    halted.block_on(async {
        let guard = client.lock("first").acquire().await.expect("free");
        guard.release().await.expect("held");
    });
    halted
}

/// The lock "a" is held in the runtime that is not driven, and a task of the other waits for it.
pub fn contended(
    driven: &Runtime,
    halted: &Runtime,
    client: &Client,
) -> (Guard, JoinHandle<Result<Guard>>) {
    let lock = client.lock("a").wait(AGES).lease(AGES);
    let held = halted.block_on(lock.acquire()).expect("free");
    let waits = lock.clone();
    let waiter = driven.spawn(async move { waits.acquire().await });
    driven.block_on(queued(&lock, 1));
    (held, waiter)
}

/// Begins to release a lock. What does so is spawned in the runtime that is not driven, and so is
/// not polled.
pub fn begun_release(halted: &Runtime, held: Guard) -> Pin<Box<dyn Future<Output = Result<()>>>> {
    let mut release: Pin<Box<dyn Future<Output = Result<()>>>> = Box::pin(held.release());
    halted.block_on(async { assert!(poll!(&mut release).is_pending()) });
    release
}

/// The lock "a" is held, and a client whose way to the server is bad queues for it in a runtime
/// that is about to end.
pub struct Ending {
    pub server: Server,
    pub proxy: Proxy,
    /// The lock as another process sees it.
    pub lock: Lock,
    pub held: Guard,
    pub ending: Runtime,
    /// Gives the other runtime something to keep.
    pub kept: Guard,
}

impl Ending {
    pub fn set(driven: &Runtime) -> Self {
        let (server, other, proxy) = driven.block_on(async {
            let server = Server::start_single().await;
            let other = server.client().await;
            let proxy = Proxy::before(&server);
            (server, other, proxy)
        });
        let lock = other.lock("a").lease(AGES);
        let held = driven.block_on(lock.acquire()).expect("free");
        let ending = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let ending = ending.expect("a runtime");
        let client = patient(proxy.builder()).open().expect("a good URL");
        ending.block_on(client.ping()).expect("an answer");
        let kept = driven.block_on(client.lock("kept").lease(AGES).acquire());
        let waits = client.lock("a").wait(AGES).lease(AGES);
        ending.spawn(async move { waits.acquire().await });
        driven.block_on(queued(&lock, 1));
        Self {
            server,
            proxy,
            lock,
            held,
            ending,
            kept: kept.expect("free"),
        }
    }

    /// The next question of the campaign is on its way, for as long as the test wants.
    pub async fn question(&self) -> (String, Rule) {
        let key = self.server.keys("hr:{*}:lock:a").await.remove(0);
        let question = Request::every().named("EVALSHA").with(&key);
        let question = self.proxy.on(question, Act::Hold);
        question.hit().await;
        (key, question)
    }
}

/// Ends a runtime, with all that is spawned on it.
pub async fn end(runtime: Runtime) {
    let ended = tokio::task::spawn_blocking(move || drop(runtime));
    ended.await.expect("no panic");
}
