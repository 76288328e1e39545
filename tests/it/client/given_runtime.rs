//! A client that was given a runtime which has ended, or stands still: it works on those of its
//! calls.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use hedgerow::Client;
use tokio::runtime::{Builder, Runtime};

use crate::support::server::{Server, connection};
use crate::support::wait::{bounded, patient, queued, renewed};

const MINUTE: Duration = Duration::from_secs(60);

/// Longer than any test takes.
const AGES: Duration = Duration::from_secs(600);

fn stage() -> (Runtime, Server) {
    let driven = Runtime::new().expect("a runtime");
    let server = driven.block_on(Server::start_single());
    (driven, server)
}

fn client_of(server: &Server, given: &Runtime) -> Client {
    let builder = patient(server.builder()).runtime(given.handle().clone());
    builder.open().expect("a good URL")
}

#[test]
fn the_first_call_of_any_kind_is_served_though_the_given_runtime_has_ended() {
    let (driven, server) = stage();
    let ended = || {
        let given = single();
        client_of(&server, &given)
    };
    let (loads, locks) = (ended(), ended());
    driven.block_on(async {
        let load = loads
            .cache("c")
            .memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
        assert_eq!(*load.await.expect("loaded"), 1);
        let lock = locks.lock("a").lease(Duration::from_millis(600));
        let guard = lock.acquire().await.expect("free");
        let key = &server.keys("hr:{*}:lock:a").await[0];
        renewed(&server, key, 3).await;
        assert!(guard.is_held());
    });
    let _inside = driven.enter();
    drop((loads, locks, server));
}

#[test]
fn a_load_that_the_given_runtime_does_not_begin_is_begun_by_the_caller() {
    let (driven, server) = stage();
    let still = single();
    // The connection does not live on the given runtime, which is driven until it is in use: the
    // load is the first that it does not begin.
    let brought = driven.block_on(connection(server.url()));
    let client = Client::builder().connection(brought);
    let client = patient(client).runtime(still.handle().clone());
    let client = client.open().expect("good settings");
    still.block_on(client.ping()).expect("an answer");
    let cache = client.cache("c").max_load(MINUTE);
    driven.block_on(async {
        let began = Instant::now();
        let load = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
        assert_eq!(*load.await.expect("loaded"), 1);
        assert!(
            began.elapsed() < MINUTE,
            "it has not waited for the load to end"
        );
    });
    let _inside = driven.enter();
    drop((client, cache, server));
}

#[test]
fn a_lock_is_passed_on_though_the_given_runtime_stands_still() {
    let (driven, server) = stage();
    let still = single();
    let client = client_of(&server, &still);
    let lock = client.lock("a").lease(AGES).wait(AGES);
    let held = still.block_on(lock.acquire()).expect("free");
    let waits = lock.clone();
    let waiter = driven.spawn(async move { waits.acquire().await });
    still.block_on(queued(&lock, 1));
    // From here on nobody drives it.
    driven.block_on(async {
        // It may not know what came of it.
        let _ = bounded("the release ends", held.release()).await;
        let guard = bounded("the waiter has the lock", waiter).await;
        let guard = guard.expect("no panic").expect("granted");
        assert!(guard.is_held());
    });
    let _inside = driven.enter();
    drop((lock, client, server));
}

fn single() -> Runtime {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime")
}
