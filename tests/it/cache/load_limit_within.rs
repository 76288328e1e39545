//! Loads that wait for each other under a limit: the permit of the first counts for all of them.

use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use hedgerow::Cache;
use tokio::task::JoinHandle;

use super::load_limit::{MINUTE, loading, missed, value};
use super::load_limit_batches::batch;
use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::until;

/// A load of `key` that asks for `inner` of another cache once the gate is opened.
fn asking(
    (cache, key): (&Cache, &str),
    enter: &Gate,
    (other, inner): (&Cache, &str),
) -> JoinHandle<hedgerow::Result<u8>> {
    let (cache, key, enter) = (cache.clone(), key.to_owned(), enter.clone());
    let (other, inner): (_, Arc<str>) = (other.clone(), inner.into());
    tokio::spawn(async move {
        let load = move || async move {
            let _ = enter.load(()).await;
            let own = async || Ok::<_, Infallible>(9u8);
            other.memoize(&inner, MINUTE, own).await.map(|value| *value)
        };
        cache.memoize(&key, MINUTE, load).await.map(|value| *value)
    })
}

#[tokio::test]
async fn a_batch_is_let_in_as_a_whole_when_a_load_waits_for_one_of_its_keys() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_loads(1);
    let (enter, gate) = (Gate::closed(), Gate::closed());
    let outer = asking((&cache, "outer"), &enter, (&cache, "a"));
    enter.begun(1).await;
    let batch = batch(&cache, &["a", "b"], &gate);
    missed(&cache, 3).await;
    enter.open();
    gate.begun(1).await;
    gate.open();
    assert_eq!((value(outer).await, value(batch).await), (1, 2));
    assert_eq!(gate.loads(), 1, "one call for both keys");
}

#[tokio::test]
async fn a_load_is_let_in_also_when_a_load_waits_for_it_by_way_of_another_client() {
    let server = Server::start().await;
    let limited = server.client().await.cache("c").max_loads(1);
    let between = server.client().await.cache("between");
    let (first, second, gate) = (Gate::closed(), Gate::closed(), Gate::closed());
    let outer = asking((&limited, "outer"), &first, (&between, "k"));
    let middle = asking((&between, "k"), &second, (&limited, "last"));
    first.begun(1).await;
    second.begun(1).await;
    let last = loading(&limited, "last", &gate);
    missed(&limited, 2).await;
    first.open();
    // The load that has the permit waits for the one between.
    missed(&between, 2).await;
    second.open();
    gate.open();
    assert_eq!(value(last).await, 1);
    assert_eq!((value(middle).await, value(outer).await), (1, 1));
}

/// Has three loads of `k`, one after the other, that are of no use to the call that `begin` makes:
/// their values are of another type. After them, the call loads alone.
async fn of_no_use<T>(cache: &Cache, begin: impl FnOnce() -> T) -> T {
    cache.remove("k").await.expect("removed");
    let mut gate = Gate::closed();
    let mut load = loading(cache, "k", &gate);
    gate.begun(1).await;
    let misses = cache.stats().misses;
    let call = begin();
    missed(cache, misses + 1).await;
    for _ in 0..2 {
        // The next one is under way before the call looks for it.
        cache.remove("k").await.expect("removed");
        let next = Gate::closed();
        let following = loading(cache, "k", &next);
        next.begun(1).await;
        gate.open();
        assert_eq!(value(mem::replace(&mut load, following)).await, 1);
        yields().await;
        gate = next;
    }
    let foreign = cache.foreign();
    gate.open();
    assert_eq!(value(load).await, 1);
    until("the call has read", async || cache.foreign() > foreign).await;
    yields().await;
    call
}

/// Lets the tasks go on that have been woken.
async fn yields() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_load_that_is_shared_by_one_that_another_load_waits_for_is_let_in() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    // A call that loads alone begins without a permit after half of this.
    let cache = cache.max_load(Duration::from_secs(600));
    let limited = cache.clone().max_loads(1);
    let text = async || Ok::<_, Infallible>("v".to_owned());
    let enter = Gate::closed();
    let outer = {
        let (limited, inner, enter) = (limited.clone(), limited.clone(), enter.clone());
        tokio::spawn(async move {
            let load = move || async move {
                let _ = enter.load(()).await;
                let found = inner.memoize("k", MINUTE, text).await;
                found.map(|text| u8::from(!text.is_empty()))
            };
            let found = limited.memoize("outer", MINUTE, load).await;
            found.map(|value| *value)
        })
    };
    enter.begun(1).await;
    let alone = of_no_use(&cache, || {
        tokio::spawn(async move {
            let found = limited.memoize("k", MINUTE, text).await;
            found.map(|text| u8::from(!text.is_empty()))
        })
    })
    .await;
    assert!(!alone.is_finished(), "the permit is taken");
    // Its load alone is the next one also for the load that has the permit.
    of_no_use(&cache, || enter.open()).await;
    assert_eq!((value(outer).await, value(alone).await), (1, 1));
}
