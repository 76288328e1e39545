//! Cycles of loads over several tasks: one call of the cycle is refused at once.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hedgerow::{Cache, Error, ErrorKind};
use tokio::sync::Barrier;
use tokio::task::JoinHandle;

use crate::support::server::Server;
use crate::support::wait::bounded;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Loads `key` in a task of its own. Once all loads have begun, its loader asks for `next`.
fn asks(
    cache: &Cache,
    key: &'static str,
    next: &'static str,
    begun: &Arc<Barrier>,
) -> JoinHandle<Result<Arc<String>, Error>> {
    let (cache, begun) = (cache.clone(), begun.clone());
    tokio::spawn(async move {
        let inner = cache.clone();
        let load = move || async move {
            begun.wait().await;
            let simple = move || async move { Ok::<_, Infallible>(next.to_owned()) };
            let next = inner.memoize(next, MINUTE, simple).await?;
            Ok::<_, Error>(format!("{key} of {next}"))
        };
        cache.memoize(key, MINUTE, load).await
    })
}

fn is_refused(outcome: &Result<Arc<String>, Error>) -> bool {
    let Err(error) = outcome else { return false };
    let cause = error.loader_error::<Error>();
    let cause = cause.unwrap_or_else(|| panic!("not that of the loader: {error}"));
    assert_eq!(cause.kind(), ErrorKind::Reentrant, "{error}");
    true
}

#[tokio::test]
async fn loads_of_several_tasks_that_would_wait_for_each_other_end_at_once() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_load(HOUR);
    for keys in [&["a", "b"][..], &["c", "d", "e"][..]] {
        let begun = Arc::new(Barrier::new(keys.len()));
        let nexts = keys.iter().cycle().skip(1);
        let calls = keys.iter().zip(nexts);
        let calls: Vec<_> = calls
            .map(|(key, next)| asks(&cache, key, next, &begun))
            .collect();
        let mut refused = 0;
        for call in calls {
            let outcome = bounded("the cycle ends", call).await.expect("no panic");
            refused += usize::from(is_refused(&outcome));
        }
        assert_eq!(refused, 1, "{keys:?}");
    }
}

#[tokio::test]
async fn loads_that_wait_for_one_other_are_no_cycle() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_load(HOUR);
    let begun = Arc::new(Barrier::new(3));
    let calls = [
        asks(&cache, "a", "c", &begun),
        asks(&cache, "b", "c", &begun),
        asks(&cache, "c", "d", &begun),
    ];
    for call in calls {
        let value = bounded("it ends", call).await.expect("no panic");
        assert!(value.expect("loaded").ends_with("of d"));
    }
    // Nothing is left of the waits.
    let begun = Arc::new(Barrier::new(1));
    for key in ["a", "c"] {
        cache.remove(key).await.expect("removed");
    }
    let value = asks(&cache, "c", "a", &begun).await.expect("no panic");
    assert_eq!(*value.expect("loaded"), "c of a");
}
