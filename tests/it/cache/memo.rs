//! `memo`: a cached function.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hedgerow::Cache;
use hedgerow::cache::Memo;

use crate::support::server::Server;

const MINUTE: Duration = Duration::from_secs(60);

type Loads = Arc<Mutex<Vec<Vec<u32>>>>;

fn squares(cache: &Cache, loads: &Loads) -> Memo<u32, u64> {
    let loads = loads.clone();
    let square = move |n: u32, _| {
        loads.lock().expect("no panic").push(vec![n]);
        async move { Ok::<_, Infallible>(u64::from(n).pow(2)) }
    };
    cache.memo(MINUTE, |n| format!("square:{n}"), square)
}

fn together(cache: &Cache, loads: &Loads) -> Memo<u32, u64> {
    let noted = loads.clone();
    squares(cache, loads).load_many(move |all: Vec<u32>| {
        noted.lock().expect("no panic").push(all.clone());
        async move {
            let squares = all.iter().map(|n| (*n, u64::from(*n).pow(2)));
            Ok::<_, Infallible>(squares.collect::<HashMap<_, _>>())
        }
    })
}

async fn found(memo: &Memo<u32, u64>, all: &[u32]) -> Vec<u64> {
    let values = memo.get_many(all).await.expect("an answer").into_iter();
    values
        .map(|value| *value.expect("loaded").expect("it has one"))
        .collect()
}

#[tokio::test]
async fn a_function_runs_once_for_each_argument_until_it_is_invalidated() {
    let server = Server::start().await;
    let (cache, loads) = (server.client().await.cache("c"), Loads::default());
    let memo = squares(&cache, &loads).tags(["squares"]);
    for _ in 0..2 {
        assert_eq!(*memo.get(&3).await.expect("computed"), 9);
        assert_eq!(*memo.clone().get(&4).await.expect("computed"), 16);
    }
    assert_eq!(*loads.lock().expect("no panic"), [[3], [4]]);
    assert_eq!(
        cache
            .get::<u64>("square:3")
            .await
            .expect("an answer")
            .as_deref(),
        Some(&9)
    );
    memo.invalidate(&3).await.expect("invalidated");
    assert_eq!(cache.get::<u64>("square:3").await.expect("an answer"), None);
    cache
        .invalidate_tags(["squares"])
        .await
        .expect("invalidated");
    assert_eq!(cache.get::<u64>("square:4").await.expect("an answer"), None);
    assert_eq!(*memo.get(&4).await.expect("computed"), 16);
    assert_eq!(loads.lock().expect("no panic").len(), 3);
}

#[tokio::test]
async fn several_arguments_are_computed_together_or_each_by_itself() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let loads = Loads::default();
    assert_eq!(found(&squares(&cache, &loads), &[1, 2]).await, [1, 4]);
    assert_eq!(loads.lock().expect("no panic").len(), 2);
    let memo = together(&cache, &loads);
    assert_eq!(found(&memo, &[5, 2, 6, 5]).await, [25, 4, 36, 25]);
    let mut last = loads
        .lock()
        .expect("no panic")
        .last()
        .cloned()
        .expect("one more");
    last.sort_unstable();
    assert_eq!(last, [5, 6]);
    assert_eq!(found(&memo, &[6, 5]).await, [36, 25]);
    assert_eq!(loads.lock().expect("no panic").len(), 3);
}
