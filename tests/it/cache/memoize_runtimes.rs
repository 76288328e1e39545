//! Loads of a runtime that stands still, seen from another: nobody waits for them.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures::poll;
use hedgerow::{Cache, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::bounded;

const MINUTE: Duration = Duration::from_secs(60);
const MAX_LOAD: Duration = Duration::from_secs(2);

/// By default.
const CACHE_DEADLINE: Duration = Duration::from_secs(1);

/// A server, and a cache whose connections are those of the runtime that this is called in.
async fn stage() -> (Server, Cache) {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c").max_load(MAX_LOAD);
    let warm = cache.memoize("warm", MINUTE, async || Ok::<_, Infallible>(0u8));
    warm.await.expect("a value");
    (server, cache)
}

/// Calls for the key of a load that stands still; how long that took, and what came of it.
fn call(driven: &Runtime, cache: &Cache) -> (Duration, Result<Arc<u8>>) {
    driven.block_on(async {
        let began = Instant::now();
        let load = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(2u8));
        let outcome = load.await;
        (began.elapsed(), outcome)
    })
}

#[tokio::test]
async fn a_call_that_is_polled_once_while_it_reads_keeps_no_other() {
    let (_server, cache) = stage().await;
    let kept = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(1u8));
    let mut kept = pin!(kept.into_future());
    assert!(poll!(&mut kept).is_pending(), "it reads");
    let other = cache.memoize("k", MINUTE, async || Ok::<_, Infallible>(2u8));
    let other = bounded("the other has a value", other.into_future()).await;
    assert_eq!(*other.expect("its own load"), 2);
}

#[test]
fn a_load_whose_runtime_is_not_driven_keeps_no_caller_of_another_runtime() {
    let driven = Runtime::new().expect("a runtime");
    let (server, cache) = driven.block_on(stage());
    let still = Builder::new_current_thread().enable_all().build();
    let still = still.expect("a runtime");
    let gate = Gate::closed();
    let (load, leader) = (gate.clone(), cache.clone());
    still.block_on(async {
        tokio::spawn(async move { leader.memoize("k", MINUTE, move || load.load(1u8)).await });
        gate.begun(1).await;
    });
    // From here on nobody drives it.
    let (took, outcome) = call(&driven, &cache);
    assert_eq!(*outcome.expect("its own load"), 2);
    assert!(took <= MAX_LOAD + CACHE_DEADLINE, "{took:?}");
    drop(still);
    let _inside = driven.enter();
    drop(server);
}

#[test]
fn a_loader_that_blocks_its_thread_keeps_no_caller_of_another_runtime() {
    let driven = Runtime::new().expect("a runtime");
    let (server, cache) = driven.block_on(stage());
    let blocked = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let blocked = blocked.expect("a runtime");
    let (go, gone) = mpsc::channel::<()>();
    let (begun, loading) = oneshot::channel();
    let leader = cache.clone();
    let first = blocked.spawn(async move {
        let load = move || async move {
            let _ = begun.send(());
            let _ = gone.recv();
            Ok::<_, Infallible>(1u8)
        };
        leader.memoize("k", MINUTE, load).await
    });
    driven.block_on(loading).expect("the load begins");
    let (took, outcome) = call(&driven, &cache);
    assert_eq!(*outcome.expect("its own load"), 2);
    assert!(took <= MAX_LOAD + CACHE_DEADLINE, "{took:?}");
    drop(go);
    let first = driven.block_on(first).expect("no panic");
    assert!(first.is_ok(), "its own load, however late: {first:?}");
    let _inside = driven.enter();
    drop(server);
}
