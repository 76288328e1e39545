//! How long a call of `memoize` waits, whatever others do, and in how many loads it takes part.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use hedgerow::ErrorKind;
use tokio::runtime::{Builder, Runtime};

use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::bounded;

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_load_that_fails_is_one_load_for_all_who_waited_for_it_in_the_fleet() {
    let server = Server::start_single().await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let client = server.client().await;
        client.ping().await.expect("connected");
        clients.push(client);
    }
    let loads = Arc::new(AtomicUsize::new(0));
    let mut calls = tokio::task::JoinSet::new();
    let began = Instant::now();
    for client in clients {
        let (cache, loads) = (
            client.cache("c").max_load(Duration::from_secs(2)),
            loads.clone(),
        );
        calls.spawn(async move {
            let load = move || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1500)).await;
                Err::<u8, _>(io::Error::other("the database is down"))
            };
            cache.memoize("k", MINUTE, load).await
        });
    }
    let outcomes = calls.join_all().await;
    let took = began.elapsed();
    let mut own = 0;
    for outcome in outcomes {
        let error = outcome.expect_err("the load failed");
        assert_eq!(error.kind(), ErrorKind::Loader, "{error}");
        assert_eq!(error.key(), Some("k"));
        match error.loader_error::<io::Error>() {
            Some(cause) => {
                own += 1;
                assert_eq!(cause.to_string(), "the database is down");
            }
            None => assert!(
                error.to_string().contains("the database is down"),
                "{error}"
            ),
        }
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(
        own, 1,
        "the type of the error stays in the process that loaded"
    );
    assert!(
        took < Duration::from_secs(3),
        "max_load and the deadline: {took:?}"
    );
}

#[tokio::test]
async fn a_call_waits_no_longer_than_its_max_load_and_the_cache_deadline_for_a_load_elsewhere() {
    let server = Server::start_single().await;
    let gate = Gate::closed();
    let leader = server.client().await.cache("c");
    let load = gate.clone();
    let first =
        tokio::spawn(async move { leader.memoize("k", MINUTE, move || load.load(1u8)).await });
    gate.begun(1).await;
    let hasty = server.builder().cache_deadline(Duration::from_millis(500));
    let hasty = hasty.connect().await.expect("connected").cache("c");
    let hasty = hasty.max_load(Duration::from_millis(500));
    let began = Instant::now();
    let load = hasty.memoize("k", MINUTE, async || Ok::<_, Infallible>(2u8));
    let error = bounded("the call ends", async { load.await }).await;
    let error = error.expect_err("the load of the other goes on");
    assert_eq!(error.kind(), ErrorKind::LoaderTimeout, "{error}");
    assert_eq!(error.key(), Some("k"));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(!first.is_finished(), "the other still loads");
    gate.open();
    assert_eq!(*first.await.expect("no panic").expect("loaded"), 1);
}

#[tokio::test]
async fn a_call_with_a_deadline_of_its_own_waits_no_longer_than_that_and_its_max_load() {
    let server = Server::start_single().await;
    let gate = Gate::closed();
    let patient = || server.builder().cache_deadline(MINUTE).connect();
    let here = patient().await.expect("connected").cache("c");
    let elsewhere = patient().await.expect("connected").cache("c");
    let (leader, load) = (here.clone(), gate.clone());
    let first =
        tokio::spawn(async move { leader.memoize("k", MINUTE, move || load.load(1u8)).await });
    gate.begun(1).await;
    for cache in [here, elsewhere] {
        let hasty = cache.max_load(Duration::from_millis(500));
        let began = Instant::now();
        let load = hasty.memoize("k", MINUTE, async || Ok::<_, Infallible>(2u8));
        let load = load.deadline(Duration::from_millis(1500));
        let error = bounded("the call ends", async { load.await }).await;
        let error = error.expect_err("the load of the other goes on");
        assert_eq!(error.kind(), ErrorKind::LoaderTimeout, "{error}");
        assert!(began.elapsed() >= Duration::from_secs(2));
        assert!(!first.is_finished(), "the other still loads");
    }
    gate.open();
    assert_eq!(*first.await.expect("no panic").expect("loaded"), 1);
}

#[test]
fn a_call_waits_no_longer_than_its_max_load_and_the_cache_deadline_for_a_loader_that_blocks() {
    let driven = Runtime::new().expect("a runtime");
    let blocked = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let blocked = blocked.expect("a runtime");
    let server = driven.block_on(Server::start_single());
    let builder = server.builder().runtime(blocked.handle().clone());
    let client = builder.cache_deadline(Duration::from_secs(2)).open();
    let cache = client.expect("a good URL").cache("c");
    let cache = cache.max_load(Duration::from_millis(500));
    let (go, gone) = mpsc::channel::<()>();
    let outcome = driven.block_on(async {
        let load = async move || {
            let _ = gone.recv();
            Ok::<_, Infallible>(1u8)
        };
        let call = cache.memoize("k", MINUTE, load).into_future();
        bounded("the call ends", call).await
    });
    let error = outcome.expect_err("the loader blocks the thread of its task");
    assert_eq!(error.kind(), ErrorKind::LoaderTimeout, "{error}");
    assert_eq!(error.key(), Some("k"));
    drop(go);
    let _inside = driven.enter();
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_takes_part_in_more_than_four_loads_of_a_key_that_is_invalidated_all_the_time() {
    let server = Server::start_single().await;
    let over = Arc::new(AtomicBool::new(false));
    let mut others = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let cache = server.client().await.cache("hot").max_load(MINUTE);
        for _ in 0..4 {
            let (cache, over) = (cache.clone(), over.clone());
            others.spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let load = async || {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Ok::<_, Infallible>(1u8)
                    };
                    let call = cache.memoize("k", MINUTE, load).tags(["t"]);
                    assert_eq!(*call.await.expect("a value"), 1);
                }
            });
        }
    }
    let (cache, stop) = (server.client().await.cache("hot"), over.clone());
    others.spawn(async move {
        while !stop.load(Ordering::SeqCst) {
            cache.invalidate_tags(["t"]).await.expect("invalidated");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // A process of one caller: for each load of another that it waits for it asks for the lease.
    let proxy = Proxy::before(&server);
    let client = proxy.builder().cache_deadline(MINUTE).connect().await;
    let cache = client.expect("connected").cache("hot").max_load(MINUTE);
    let asked = proxy.on(
        Request::every().with("hr:l:{hot:k}"),
        Act::Delay(Duration::ZERO),
    );
    let mut most = 0;
    for _ in 0..20 {
        let (before, own) = (asked.hits(), Gate::closed());
        own.open();
        let load = own.clone();
        let call = cache
            .memoize("k", MINUTE, move || load.load(1u8))
            .tags(["t"]);
        let value = bounded("the call ends", async { call.await }).await;
        assert_eq!(*value.expect("a value"), 1);
        // The fourth is its own, by itself or with the lease, which ends with a commit.
        assert!(own.loads() <= 1);
        most = most.max(asked.hits() - before);
    }
    over.store(true, Ordering::SeqCst);
    while let Some(ended) = others.join_next().await {
        ended.expect("no panic");
    }
    assert!(most > 1, "the caller has to wait for others: {most}");
    assert!(
        most <= 5,
        "three loads of others, or its own after them: {most}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_one_process_who_load_alone_share_what_has_not_begun() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("hot").max_load(MINUTE);
    let other = server.client().await.cache("hot");
    let over = Arc::new(AtomicBool::new(false));
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (cache, over) = (cache.clone(), over.clone());
        let (now, most) = (now.clone(), most.clone());
        tasks.spawn(async move {
            for _ in 0..20 {
                let (now, most) = (now.clone(), most.clone());
                let load = move || async move {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, Infallible>(1u8)
                };
                let call = cache.memoize("k", MINUTE, load).tags(["t"]);
                assert_eq!(*call.await.expect("a value"), 1);
            }
            over.store(true, Ordering::SeqCst);
        });
    }
    while !over.load(Ordering::SeqCst) {
        other.invalidate_tags(["t"]).await.expect("invalidated");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tasks.join_all().await;
    let most = most.load(Ordering::SeqCst);
    assert!(most <= 2, "one with the lease, and one without: {most}");
}
