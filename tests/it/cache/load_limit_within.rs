//! Loads that wait for each other under a limit: the permit of the first counts for all of them.

use std::sync::Arc;

use hedgerow::Cache;
use tokio::task::JoinHandle;

use super::load_limit::{MINUTE, loading, missed, value};
use super::load_limit_batches::batch;
use crate::support::gate::Gate;
use crate::support::server::Server;

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
            let own = async || Ok::<_, std::convert::Infallible>(9u8);
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
