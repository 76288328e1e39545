//! Many clients on few locks while the ground shakes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, Error, ErrorKind, Fence};

use crate::support::server::Server;
use crate::support::wait::{bounded, figure, until};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// What a storm has shown.
#[derive(Debug, Default)]
struct Log {
    ended: AtomicBool,
    grants: AtomicUsize,
    /// By name: whether somebody is inside, and the last fence.
    rooms: Mutex<HashMap<&'static str, (bool, Option<Fence>)>>,
    errors: Mutex<Vec<Error>>,
}

impl Log {
    fn enter(&self, name: &'static str, fence: Fence) {
        let mut rooms = self.rooms.lock().expect("no panic");
        let room = rooms.entry(name).or_default();
        assert!(!room.0, "two are inside {name}");
        assert!(Some(fence) > room.1, "fences fell in {name}");
        *room = (true, Some(fence));
        self.grants.fetch_add(1, Ordering::SeqCst);
    }

    fn leave(&self, name: &'static str) {
        self.rooms
            .lock()
            .expect("no panic")
            .entry(name)
            .or_default()
            .0 = false;
    }

    fn errors(&self) -> Vec<Error> {
        self.errors.lock().expect("no panic").clone()
    }

    fn failed(&self, error: Error) {
        self.errors.lock().expect("no panic").push(error);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_flushed_all_the_time_are_not_noticed() {
    let server = Server::start().await;
    let log = storm(&server, 0, async || {
        let _: () = server.run(&["SCRIPT", "FLUSH"]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        1
    })
    .await;
    let errors = log.errors();
    assert!(errors.is_empty(), "{errors:?}");
    assert_all_free(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_connections_killed_in_a_storm_break_no_promise() {
    let server = Server::start().await;
    let log = storm(&server, 3, async || {
        let killed = server.kill_connections("hedgerow").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        killed
    })
    .await;
    for error in log.errors() {
        // A release that was sent and not answered says so. Nothing else need fail, but a try is
        // told what keeps the question of others from being answered, and has sent nothing itself.
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
        assert!(error.is_indeterminate() || error.is_retryable());
    }
    assert_all_free(&server).await;
}

/// Lets 4 clients with 4 tasks each take and release locks until there were enough grants, enough
/// of what `shake` counts, and `errors` errors.
async fn storm(server: &Server, errors: usize, shake: impl AsyncFn() -> usize) -> Arc<Log> {
    const GRANTS: usize = 300;
    const SHOCKS: usize = 60;
    let log = Arc::new(Log::default());
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let client = server.client().await;
        tasks.extend((0..4).map(|turn| tokio::spawn(work(client.clone(), log.clone(), turn))));
    }
    let mut felt = 0;
    bounded("the storm is over", async {
        while felt < SHOCKS
            || log.grants.load(Ordering::SeqCst) < GRANTS
            || log.errors().len() < errors
        {
            felt += shake().await;
        }
    })
    .await;
    log.ended.store(true, Ordering::SeqCst);
    for task in bounded("the tasks end", join_all(tasks)).await {
        task.expect("no panic");
    }
    log
}

async fn work(client: Client, log: Arc<Log>, mut turn: usize) {
    while !log.ended.load(Ordering::SeqCst) {
        turn += 1;
        let name = NAMES[turn % NAMES.len()];
        let lock = client
            .lock(name)
            .lease(Duration::from_secs(600))
            .wait(Duration::from_secs(60));
        let guard = if turn.is_multiple_of(5) {
            lock.try_acquire().await
        } else {
            lock.acquire().await.map(Some)
        };
        let guard = match guard {
            Ok(Some(guard)) => guard,
            Ok(None) => continue,
            Err(error) => {
                log.failed(error);
                continue;
            }
        };
        log.enter(name, guard.fence());
        tokio::task::yield_now().await;
        assert!(guard.is_held());
        log.leave(name);
        if turn.is_multiple_of(7) {
            drop(guard);
        } else if let Err(error) = guard.release().await {
            log.failed(error);
        }
    }
}

/// Nothing is left, and it was not the end of a lease that cleared it away.
async fn assert_all_free(server: &Server) {
    until("all locks are free and nobody queues", || async {
        let keys = server.keys("hr:*").await;
        keys.iter()
            .all(|key| key.ends_with("}:fence") || key.starts_with("hr:f:"))
    })
    .await;
    assert_eq!(figure(server, "stats", "expired_keys:").await, 0);
    let client = server.client().await;
    for name in NAMES {
        let guard = client.lock(name).try_acquire().await.expect("an answer");
        assert!(guard.is_some());
    }
}
