//! Several runtimes in one process, one of which is not driven: it harms no lock of the others.

use std::time::Duration;

use hedgerow::Client;
use tokio::runtime::{Builder, Runtime};

use crate::server::Server;
use crate::wait::{renewed, until};

/// Short enough to see it renewed several times.
const SHORT: Duration = Duration::from_millis(600);

/// Longer than any test takes.
const AGES: Duration = Duration::from_secs(600);

/// A server, a client whose connections live where they are driven, and a runtime that is not driven
/// any more, in which the client took its first lock.
fn halted(driven: &Runtime) -> (Server, Client, Runtime) {
    let (server, client) = driven.block_on(async {
        let server = Server::start().await;
        let client = server.client().await;
        client.ping().await.expect("an answer");
        (server, client)
    });
    let halted = Builder::new_current_thread().enable_all().build();
    let halted = halted.expect("a runtime");
    halted.block_on(async {
        let guard = client.lock("first").acquire().await.expect("free");
        guard.release().await.expect("held");
    });
    (server, client, halted)
}

#[test]
fn a_lock_is_renewed_though_the_first_was_taken_in_a_runtime_that_stands_still() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, _halted) = halted(&driven);
    driven.block_on(async {
        let guard = client.lock("a").lease(SHORT).acquire().await.expect("free");
        let key = &server.keys("hr:{*}:lock:a").await[0];
        renewed(&server, key, 4).await;
        assert!(guard.is_held());
    });
    let _inside = driven.enter();
    drop((client, server));
}

#[test]
fn a_dropped_guard_is_released_though_the_first_was_taken_in_a_runtime_that_stands_still() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, _halted) = halted(&driven);
    driven.block_on(async {
        drop(client.lock("a").lease(AGES).acquire().await.expect("free"));
        until("the lock is free", async || {
            server.keys("hr:{*}:lock:a").await.is_empty()
        })
        .await;
    });
    let _inside = driven.enter();
    drop((client, server));
}

#[test]
fn guards_of_a_runtime_that_stands_still_are_kept_by_the_others() {
    let driven = Runtime::new().expect("a runtime");
    let (server, client, halted) = halted(&driven);
    let lease = Duration::from_secs(2);
    let (kept, dropped) = halted.block_on(async {
        let kept = client
            .lock("kept")
            .lease(lease)
            .acquire()
            .await
            .expect("free");
        let dropped = client
            .lock("dropped")
            .lease(AGES)
            .acquire()
            .await
            .expect("free");
        (kept, dropped)
    });
    driven.block_on(async {
        let other = client.lock("other").acquire().await.expect("free");
        drop(dropped);
        until("the dropped one is free", async || {
            server.keys("hr:{*}:lock:dropped").await.is_empty()
        })
        .await;
        let key = &server.keys("hr:{*}:lock:kept").await[0];
        renewed(&server, key, 2).await;
        assert!(kept.is_held() && other.is_held());
    });
    let _inside = driven.enter();
    drop((kept, client, server));
}
