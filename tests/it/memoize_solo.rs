//! Loads of callers whom the loads of others were of no use: how many there are, and that nobody
//! but the data makes them necessary.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::poll;
use hedgerow::OnOutage;

use crate::gate::Gate;
use crate::proxy::{Act, Proxy, Request};
use crate::server::Server;
use crate::wait::{bounded, patient, until, waiting};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_invalidation_during_a_slow_load_costs_a_few_loads_however_many_calls_there_are() {
    let server = Server::start_single().await;
    let max_load = Duration::from_secs(4);
    let cache = server.client().await.cache("c").max_load(max_load);
    let loads = Arc::new(AtomicUsize::new(0));
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200 {
        // Two of these take longer than a call waits before it loads alone.
        let (count, taking) = (loads.clone(), max_load * 3 / 10);
        let load = move || async move {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(taking).await;
            Ok::<_, Infallible>(1u8)
        };
        calls.spawn(cache.memoize("k", MINUTE, load).tags(["t"]).into_future());
        if number == 0 {
            let begun = async || loads.load(Ordering::SeqCst) > 0;
            until("the load begins", begun).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    for value in bounded("all are served", calls.join_all()).await {
        assert_eq!(*value.expect("loaded"), 1);
    }
    let loads = loads.load(Ordering::SeqCst);
    // The one that was invalidated, the next, and one for those who could not wait for its end.
    assert!((3..=5).contains(&loads), "{loads} loads");
}

#[tokio::test]
async fn a_wake_up_that_anybody_may_publish_makes_nobody_load() {
    let server = Server::start_single().await;
    let (gate, own) = (Gate::closed(), Gate::closed());
    own.open();
    let leader = server.client().await.cache("c");
    let load = gate.clone();
    let first = leader.memoize("k", MINUTE, move || load.load(1u8));
    let first = tokio::spawn(first.into_future());
    gate.begun(1).await;
    let proxy = Proxy::before(&server);
    let cache = proxy
        .builder()
        .connect()
        .await
        .expect("connected")
        .cache("c");
    let scripts = Request::every().named("EVALSHA").with("hr:l:{c:k}");
    let asked = proxy.on(scripts, Act::Delay(Duration::ZERO));
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let load = own.clone();
        let call = cache.memoize("k", MINUTE, move || load.load(2u8));
        waiters.spawn(call.into_future());
    }
    waiting(&server, "hr:l:{c:k}", 1).await;
    for _ in 0..8 {
        let before = asked.hits();
        let fields: Vec<String> = server.run(&["HKEYS", "hr:l:{c:k}"]).await;
        for channel in fields.iter().filter_map(|field| field.strip_prefix("w:")) {
            let _: i64 = server.run(&["SPUBLISH", channel, "+hr:v:{c:k}"]).await;
        }
        until("the waiters look", async || asked.hits() > before).await;
    }
    assert_eq!(own.loads(), 0, "the load of the other goes on");
    gate.open();
    assert_eq!(*first.await.expect("no panic").expect("loaded"), 1);
    for value in bounded("all are served", waiters.join_all()).await {
        assert_eq!(*value.expect("loaded"), 1);
    }
    assert_eq!(own.loads(), 0);
}

/// The load that is waited for elsewhere ends without a value, and another one begins.
async fn superseded(server: &Server, lease: &str) {
    let fence: i64 = server.run(&["HINCRBY", lease, "fence", "1"]).await;
    assert!(fence > 1, "somebody leads");
}

#[tokio::test]
async fn a_solo_load_that_runs_is_not_shared_with_calls_that_began_after_it() {
    let server = Server::start_single().await;
    let max_load = Duration::from_secs(6);
    let leading = Gate::closed();
    let load = leading.clone();
    let leader = server.client().await.cache("c");
    let leader = tokio::spawn(
        leader
            .memoize("k", MINUTE, move || load.load(0u8))
            .into_future(),
    );
    leading.begun(1).await;
    let client = patient(server.builder()).connect().await;
    let cache = client.expect("connected").cache("c").max_load(max_load);
    // Two flights of one key: their callers want something else of an outage.
    let (one, other) = (
        cache.clone().on_outage(OnOutage::FailFast),
        cache.on_outage(OnOutage::KeepTrying),
    );
    let (old, new) = (Gate::closed(), Gate::closed());
    let load = old.clone();
    let first = one.memoize("k", MINUTE, move || load.load(1u8)).tags(["t"]);
    let first = tokio::spawn(first.into_future());
    waiting(&server, "hr:l:{c:k}", 1).await;
    tokio::time::sleep(max_load / 4).await;
    let load = new.clone();
    let opener = other
        .memoize("k", MINUTE, move || load.load(2u8))
        .tags(["t"]);
    let opener = tokio::spawn(opener.into_future());
    // Twice, since the other may not have asked before the first time.
    for pause in [max_load / 60, max_load / 6] {
        tokio::time::sleep(pause).await;
        superseded(&server, "hr:l:{c:k}").await;
    }
    old.begun(1).await;
    // Here the row changes.
    other.invalidate_tags(["t"]).await.expect("invalidated");
    let load = new.clone();
    let late = other
        .memoize("k", MINUTE, move || load.load(2u8))
        .tags(["t"]);
    let mut late = Box::pin(late.into_future());
    assert!(poll!(&mut late).is_pending());
    assert_eq!(new.loads(), 0, "it waits with the other");
    let late = tokio::spawn(late);
    // By then the other loads alone.
    tokio::time::sleep(max_load / 2).await;
    old.open();
    new.open();
    new.open();
    let value = bounded("the late one is served", late).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), 2);
    for (call, value) in [(first, 1), (opener, 2)] {
        let loaded = bounded("all are served", call).await;
        assert_eq!(*loaded.expect("no panic").expect("loaded"), value);
    }
    leading.open();
    assert_eq!(*leader.await.expect("no panic").expect("loaded"), 0);
}
