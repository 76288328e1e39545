//! `memoize_many`: what is loaded together, by whom, and what each key gets.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use hedgerow::cache::MemoizeMany;
use hedgerow::{Cache, Client, Error, ErrorKind, Outage};
use tokio::sync::Barrier;

use crate::support::aging::aged;
use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::topology::Shards;
use crate::support::wait::{bounded, until};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The keys of each call of a loader.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<Vec<String>>>>);

impl Calls {
    fn note(&self, keys: &[String]) {
        self.0.lock().expect("no panic").push(keys.to_vec());
    }

    fn all(&self) -> Vec<Vec<String>> {
        self.0.lock().expect("no panic").clone()
    }

    /// All keys that were loaded, in order.
    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.all().into_iter().flatten().collect();
        keys.sort();
        keys
    }
}

/// What a key that begins with `no` does not have.
fn values(keys: Vec<String>) -> HashMap<String, String> {
    let there = keys.into_iter().filter(|key| !key.starts_with("no"));
    there
        .map(|key| (key.clone(), format!("value of {key}")))
        .collect()
}

fn many(cache: &Cache, keys: &[&str], calls: &Calls) -> MemoizeMany<String> {
    let calls = calls.clone();
    let load = move |keys: Vec<String>| {
        calls.note(&keys);
        async move { Ok::<_, Infallible>(values(keys)) }
    };
    cache.memoize_many(keys, MINUTE, load)
}

fn shown(outcomes: Vec<hedgerow::Result<Option<Arc<String>>>>) -> Vec<Option<String>> {
    let outcomes = outcomes.into_iter();
    let value = |outcome: hedgerow::Result<Option<Arc<String>>>| {
        outcome.expect("loaded").map(|value| value.to_string())
    };
    outcomes.map(value).collect()
}

fn value(key: &str) -> Option<String> {
    Some(format!("value of {key}"))
}

#[tokio::test]
async fn one_call_of_the_loader_loads_what_is_missing() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let calls = Calls::default();
    cache.set("b", "here", MINUTE).await.expect("stored");
    let keys = ["a", "b", "none", "c", "a"];
    let found = many(&cache, &keys, &calls).await.expect("an answer");
    let expected = [
        value("a"),
        Some("here".to_owned()),
        None,
        value("c"),
        value("a"),
    ];
    assert_eq!(shown(found), expected);
    let mut loaded = calls.all();
    assert_eq!(loaded.len(), 1);
    loaded[0].sort();
    assert_eq!(loaded[0], ["a", "c", "none"]);
    // That a key has no value is remembered, too.
    let found = many(&cache, &keys, &calls).await.expect("an answer");
    assert_eq!(shown(found), expected);
    assert_eq!(calls.all().len(), 1);
    // Single calls find the same.
    assert_eq!(
        cache
            .get::<String>("a")
            .await
            .expect("an answer")
            .as_deref(),
        value("a").as_ref()
    );
    let single = cache.memoize("c", MINUTE, async || {
        Ok::<_, Infallible>("other".to_owned())
    });
    assert_eq!(Some(single.await.expect("found").to_string()), value("c"));
    assert!(
        many(&cache, &[], &calls)
            .await
            .expect("an answer")
            .is_empty()
    );
}

#[tokio::test]
async fn more_keys_than_fit_in_one_call_are_loaded_by_several() {
    let server = Server::start().await;
    // The loads of a batch wait for each other as long as they have for their leases.
    let cache = server.client().await.cache("c").deadline(MINUTE);
    let calls = Calls::default();
    let keys: Vec<String> = (0..2500).map(|at| format!("k{at:04}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let found = many(&cache, &keys, &calls).await.expect("an answer");
    assert_eq!(
        shown(found),
        keys.iter().map(|key| value(key)).collect::<Vec<_>>()
    );
    let sizes: Vec<usize> = calls.all().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1000, 1000, 500]);
    assert!(server.keys("hr:l:*").await.is_empty());
}

#[tokio::test]
async fn each_key_is_loaded_once_however_many_batches_and_single_calls_want_it() {
    let server = Server::start().await;
    let keys: Vec<String> = (0..60).map(|at| format!("k{at:02}")).collect();
    let calls = Calls::default();
    let begun = Arc::new(Barrier::new(24));
    let mut tasks = Vec::new();
    for at in 0..8 {
        let cache = server.client().await.cache("c").max_load(HOUR);
        for step in [7, 11] {
            // Other keys, in another order, each time.
            let keys: Vec<String> = (0..40)
                .map(|n| keys[(at * 5 + n * step) % keys.len()].clone())
                .collect();
            let (cache, calls, begun) = (cache.clone(), calls.clone(), begun.clone());
            tasks.push(tokio::spawn(async move {
                begun.wait().await;
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                let found = many(&cache, &keys, &calls).await.expect("an answer");
                assert_eq!(
                    shown(found),
                    keys.iter().map(|key| value(key)).collect::<Vec<_>>()
                );
            }));
        }
        let (keys, calls, begun) = (keys.clone(), calls.clone(), begun.clone());
        tasks.push(tokio::spawn(async move {
            begun.wait().await;
            let singles = keys.iter().map(|key| {
                let (calls, own) = (calls.clone(), key.clone());
                cache.memoize(key, MINUTE, move || async move {
                    calls.note(std::slice::from_ref(&own));
                    Ok::<_, Infallible>(format!("value of {own}"))
                })
            });
            for single in join_all(singles.map(IntoFuture::into_future)).await {
                single.expect("loaded");
            }
        }));
    }
    for task in bounded("all batches end", join_all(tasks)).await {
        task.expect("no panic");
    }
    assert_eq!(calls.keys(), keys);
}

#[tokio::test]
async fn a_loader_that_fails_fails_for_its_keys_only() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").error_ttl(MINUTE);
    cache.set("b", "here", MINUTE).await.expect("stored");
    let fail = |_: Vec<String>| async {
        Err::<HashMap<String, String>, _>(io::Error::other("no such table"))
    };
    let found = cache
        .memoize_many(["a", "b", "c"], MINUTE, fail)
        .await
        .expect("an answer");
    assert_eq!(
        found[1]
            .as_ref()
            .expect("it was there")
            .as_deref()
            .map(String::as_str),
        Some("here")
    );
    for (at, key) in [(0, "a"), (2, "c")] {
        let error = found[at].as_ref().expect_err("not loaded");
        assert!(error.loader_error::<io::Error>().is_some(), "{error}");
        assert_eq!(error.key(), Some(key));
    }
    // The failure is remembered, for single calls, too.
    let single = cache.memoize("a", MINUTE, async || Ok::<_, Infallible>("x".to_owned()));
    assert_eq!(
        single.await.expect_err("it has failed").kind(),
        ErrorKind::Loader
    );
}

#[tokio::test]
async fn a_loader_that_panics_or_takes_too_long_fails_for_all_its_keys() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").error_ttl(Duration::ZERO);
    let cache = cache.max_load(Duration::from_millis(500));
    type Loaded = BoxFuture<'static, Result<HashMap<String, u8>, Infallible>>;
    let panics = |_: Vec<String>| -> Loaded { async { panic!("on purpose") }.boxed() };
    let hangs = |_: Vec<String>| -> Loaded { std::future::pending().boxed() };
    let found = cache
        .memoize_many(["a", "b"], MINUTE, panics)
        .await
        .expect("an answer");
    for outcome in found {
        assert_eq!(
            outcome.expect_err("a panic").kind(),
            ErrorKind::LoaderPanicked
        );
    }
    let found = cache
        .memoize_many(["a", "b"], MINUTE, hangs)
        .await
        .expect("an answer");
    for outcome in found {
        assert_eq!(
            outcome.expect_err("too long").kind(),
            ErrorKind::LoaderTimeout
        );
    }
    assert!(server.keys("hr:l:*").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_reaches_all_loads_of_a_batch_whoever_polls_it() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_load(HOUR);
    let cache = cache.error_ttl(Duration::ZERO);
    let keys: Vec<String> = (0..50).map(|at| at.to_string()).collect();
    type Panics = BoxFuture<'static, Result<HashMap<String, String>, Infallible>>;
    for pauses in [0, 5] {
        let calls = Calls::default();
        let noted = calls.clone();
        let panics = move |keys: Vec<String>| -> Panics {
            noted.note(&keys);
            assert!(pauses > 0, "before the first await");
            async move {
                for _ in 0..pauses {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                panic!("on purpose")
            }
            .boxed()
        };
        let call = cache.memoize_many(&keys, MINUTE, panics).into_future();
        let found = bounded("all are told", call).await.expect("an answer");
        for outcome in found {
            assert_eq!(
                outcome.expect_err("a panic").kind(),
                ErrorKind::LoaderPanicked
            );
        }
        assert_eq!(calls.all().len(), 1);
    }
}

#[tokio::test]
async fn a_batch_within_a_batch_ends() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_load(HOUR);
    let (inner, calls) = (cache.clone(), Calls::default());
    let noted = calls.clone();
    let load = move |keys: Vec<String>| {
        let (inner, noted) = (inner.clone(), noted.clone());
        async move {
            let below: Vec<String> = (0..300).map(|at| format!("group:{at}")).collect();
            let below: Vec<&str> = below.iter().map(String::as_str).collect();
            let groups = many(&inner, &below, &noted).await?;
            assert!(groups.iter().all(Result::is_ok));
            Ok::<_, Error>(values(keys))
        }
    };
    let keys: Vec<String> = (0..300).map(|at| format!("user:{at}")).collect();
    let call = cache.memoize_many(&keys, MINUTE, load).into_future();
    let found = bounded("both end", call).await.expect("an answer");
    assert!(found.iter().all(Result::is_ok));
    assert_eq!(calls.all().len(), 1);
}

#[tokio::test]
async fn on_a_full_server_the_keys_are_loaded_by_one_call_too() {
    let server = Server::start_single().await;
    let client = server
        .builder()
        .loads_without_redis(2)
        .open()
        .expect("a good URL");
    let cache = client.cache("c").outage(Outage::Bypass);
    cache.set("other", &1, MINUTE).await.expect("stored");
    let _: () = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let calls = Calls::default();
    let keys: Vec<String> = (0..100).map(|at| at.to_string()).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let found = many(&cache, &keys, &calls).await.expect("an answer");
    assert_eq!(
        shown(found),
        keys.iter().map(|key| value(key)).collect::<Vec<_>>()
    );
    assert_eq!(calls.all().len(), 1);
}

#[tokio::test]
async fn without_redis_a_batch_needs_one_permit_and_what_it_asks_for_none() {
    let server = Server::start_single().await;
    let client = server
        .builder()
        .loads_without_redis(1)
        .cache_deadline(Duration::from_millis(200));
    let cache = client
        .open()
        .expect("a good URL")
        .cache("c")
        .outage(Outage::Bypass);
    let cache = cache.max_load(HOUR);
    let _killed = server.kill().await;
    let (inner, calls) = (cache.clone(), Calls::default());
    let noted = calls.clone();
    let load = move |keys: Vec<String>| {
        let (inner, noted) = (inner.clone(), noted.clone());
        async move {
            let single = inner.memoize("single", MINUTE, async || Ok::<_, Infallible>(1u8));
            assert_eq!(*single.await?, 1);
            let groups = many(&inner, &["x", "y"], &noted).await?;
            assert!(groups.iter().all(Result::is_ok));
            Ok::<_, Error>(values(keys))
        }
    };
    let call = cache
        .memoize_many(["a", "b", "c"], MINUTE, load)
        .into_future();
    let found = bounded("it ends", call).await.expect("an answer");
    assert_eq!(shown(found), [value("a"), value("b"), value("c")]);
    assert_eq!(calls.all().len(), 1);
}

#[tokio::test]
async fn a_batch_whose_caller_is_dropped_is_loaded_and_stored() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let waits = gate.clone();
    let load = move |keys: Vec<String>| {
        let waits = waits.clone();
        async move {
            waits.load(()).await?;
            Ok::<_, Infallible>(values(keys))
        }
    };
    let calls = cache.clone();
    let caller = tokio::spawn(async move { calls.memoize_many(["a", "b"], MINUTE, load).await });
    gate.begun(1).await;
    caller.abort();
    gate.open();
    until("both are stored", async || {
        let found = cache
            .get_many::<String>(["a", "b"])
            .await
            .expect("an answer");
        found.iter().all(Option::is_some)
    })
    .await;
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_key_that_was_removed_during_the_load_of_a_batch_is_not_stored() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let gate = Gate::closed();
    let waits = gate.clone();
    let load = move |keys: Vec<String>| {
        let waits = waits.clone();
        async move {
            waits.load(()).await?;
            Ok::<_, Infallible>(values(keys))
        }
    };
    let calls = cache.clone();
    let call = async move {
        calls
            .memoize_many(["a", "b"], MINUTE, load)
            .tags(["t"])
            .await
    };
    let caller = tokio::spawn(call);
    gate.begun(1).await;
    cache.remove("a").await.expect("removed");
    gate.open();
    let found = caller.await.expect("no panic").expect("an answer");
    assert_eq!(shown(found), [value("a"), value("b")]);
    let found = cache
        .get_many::<String>(["a", "b"])
        .await
        .expect("an answer");
    assert!(found[0].is_none() && found[1].is_some());
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    assert_eq!(cache.get::<String>("b").await.expect("an answer"), None);
}

#[tokio::test]
async fn stale_values_of_a_batch_are_served_and_loaded_anew_together() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let calls = Calls::default();
    let keys = ["a", "b", "c"];
    many(&cache, &keys, &calls)
        .tags(["t"])
        .stale(HOUR)
        .await
        .expect("loaded");
    cache
        .invalidate_tags(["t"])
        .soft()
        .await
        .expect("invalidated");
    let found = many(&cache, &keys, &calls).tags(["t"]).stale(HOUR).await;
    assert_eq!(
        shown(found.expect("an answer")),
        [value("a"), value("b"), value("c")]
    );
    until("they are fresh again", async || {
        let found = cache.get_many::<String>(keys).await.expect("an answer");
        found.iter().all(Option::is_some)
    })
    .await;
    let mut loaded = calls.all();
    assert_eq!(loaded.len(), 2, "{loaded:?}");
    loaded[1].sort();
    assert_eq!(loaded[1], keys);
}

#[tokio::test]
async fn the_early_refresh_of_each_value_of_a_batch_is_drawn_for_itself() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").jitter(0.0);
    let keys: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    let slow = |keys: Vec<String>| async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok::<_, Infallible>(values(keys))
    };
    let many = || cache.memoize_many(&keys, MINUTE, slow).refresh_early();
    many().await.expect("loaded");
    // Four seconds are left: of those that took two, about one in seven is due.
    for key in &keys {
        let key = format!("hr:v:{{c:{key}}}");
        aged(&server, &key, Duration::from_secs(54)).await;
    }
    let before = cache.stats();
    many().await.expect("an answer");
    let due = cache.stats().refreshes - before.refreshes;
    assert!((1..100).contains(&due), "{due} are due");
}

#[tokio::test]
async fn a_server_that_is_out_costs_a_batch_only_the_keys_that_it_has() {
    let shards = Shards::start(2).await;
    let urls = shards.nodes().iter().map(|node| node.url());
    let named = ["a", "b"].into_iter().zip(urls);
    let client = Client::builder().shards(named.map(|(name, url)| (name, url, 1)));
    let client = client.cache_deadline(Duration::from_millis(500)).open();
    let cache = client.expect("good URLs").cache("c");
    let patient = cache.clone().deadline(MINUTE);
    let (calls, mut keys, mut here) = (Calls::default(), Vec::new(), Vec::new());
    for number in 0..40 {
        let key = number.to_string();
        patient.set(&key, &key, MINUTE).await.expect("stored");
        let redis_key = format!("hr:v:{{c:{key}}}");
        let is_here: bool = shards.nodes()[0].run(&["EXISTS", &redis_key]).await;
        here.push(is_here);
        keys.push(key);
    }
    shards.nodes()[1].kill().await;
    let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
    let outcomes = bounded("outcomes", many(&cache, &asked, &calls).into_future()).await;
    let outcomes = outcomes.expect("each has its own");
    for ((key, is_here), outcome) in keys.iter().zip(here).zip(outcomes) {
        match outcome {
            Ok(value) => assert_eq!((is_here, value.as_deref()), (true, Some(key)), "{key}"),
            Err(error) => assert!(!is_here && error.kind().is_outage(), "{key}: {error}"),
        }
    }
}

#[tokio::test]
async fn after_a_failure_that_is_no_longer_remembered_the_keys_are_loaded_together() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").error_ttl(HOUR);
    let fail = |_: Vec<String>| async {
        Err::<HashMap<String, String>, _>(io::Error::other("no such table"))
    };
    let keys = ["a", "b", "c"];
    let failed = cache.memoize_many(keys, MINUTE, fail).tags(["t"]).await;
    assert!(failed.expect("an answer").iter().all(Result::is_err));
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    let calls = Calls::default();
    let found = many(&cache, &keys, &calls)
        .tags(["t"])
        .await
        .expect("an answer");
    assert_eq!(shown(found), [value("a"), value("b"), value("c")]);
    assert_eq!(calls.all().len(), 1);
}

#[tokio::test]
async fn an_invalid_key_fails_the_call_and_nothing_is_loaded() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let calls = Calls::default();
    let error = many(&cache, &["a", ""], &calls).await.expect_err("a name");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(calls.all().is_empty());
}

#[tokio::test]
async fn a_loader_that_asks_for_a_key_of_its_batch_is_told_so_at_once() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").max_load(HOUR);
    let inner = cache.clone();
    let load = move |keys: Vec<String>| {
        let inner = inner.clone();
        async move {
            // Whichever of the loads polls this: the keys are all under way.
            for key in &keys {
                let again = async || Ok::<_, Infallible>("again".to_owned());
                let error = inner
                    .memoize(key, MINUTE, again)
                    .await
                    .expect_err("a cycle");
                assert_eq!(error.kind(), ErrorKind::Reentrant);
            }
            Ok::<_, Error>(values(keys))
        }
    };
    let call = cache.memoize_many(["a", "b"], MINUTE, load).into_future();
    let found = bounded("it is told", call).await.expect("an answer");
    assert_eq!(shown(found), [value("a"), value("b")]);
}

#[tokio::test]
async fn without_redis_the_keys_are_loaded_by_one_call_and_not_stored() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c").outage(Outage::Bypass);
    let _killed = server.kill().await;
    let cache = cache.deadline(Duration::from_millis(200));
    let calls = Calls::default();
    let found = many(&cache, &["a", "none", "b"], &calls)
        .await
        .expect("an answer");
    assert_eq!(shown(found), [value("a"), None, value("b")]);
    let mut loaded = calls.all();
    assert_eq!(loaded.len(), 1);
    loaded[0].sort();
    assert_eq!(loaded[0], ["a", "b", "none"]);
    let cache = cache.outage(Outage::Fail);
    let found = many(&cache, &["a"], &calls).await.expect("an answer");
    found[0].as_ref().expect_err("Redis is out");
}
