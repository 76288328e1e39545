//! Calls of `memoize` for one key whose deadlines differ, as they do when each is what is left of a
//! request: they share reads and loads, and each still ends in its own time.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::io;
use std::time::{Duration, Instant};

use futures::poll;
use hedgerow::{ErrorKind, Outage};
use redis::Value;
use tokio::task::JoinSet;

use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request, Rule};
use crate::support::server::Server;
use crate::support::wait::{bounded, calls, patient, until};

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
const HURRY: Duration = Duration::from_millis(300);
const CALLERS: u64 = 200;

#[tokio::test]
async fn a_herd_of_different_deadlines_costs_what_a_herd_of_one_deadline_costs() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    let load = async || Ok::<_, Infallible>(0u8);
    cache.memoize("warm", MINUTE, load).await.expect("loaded");
    let _: Value = server.run(&["CONFIG", "RESETSTAT"]).await;
    let (gate, mut callers) = (Gate::closed(), JoinSet::new());
    for number in 0..CALLERS {
        let load = gate.clone();
        let call = cache.memoize("k", MINUTE, move || load.load(1u8));
        let deadline = Duration::from_secs(10) + Duration::from_micros(number);
        callers.spawn(call.deadline(deadline).into_future());
    }
    gate.begun(1).await;
    gate.open();
    for value in bounded("all are served", callers.join_all()).await {
        assert_eq!(*value.expect("loaded"), 1);
    }
    assert_eq!(gate.loads(), 1);
    let sent = ["get", "mget", "evalsha", "eval", "ssubscribe"];
    let commands = calls(&server, &sent).await;
    assert!(commands <= 6, "{commands} commands");
}

#[tokio::test]
async fn callers_of_different_deadlines_share_a_load_without_redis() {
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(HURRY).open();
    let cache = client.expect("a good URL").cache("c");
    let cache = cache.outage(Outage::Bypass);
    server.kill().await;
    let (gate, mut callers) = (Gate::closed(), JoinSet::new());
    let mut begun = Vec::new();
    for number in 0..CALLERS {
        let load = gate.clone();
        let call = cache.memoize("k", MINUTE, move || load.load(1u8));
        let deadline = HURRY + Duration::from_micros(number);
        // All have begun before the read of the first fails: each waits for that, and none finds
        // a load.
        let mut call = Box::pin(call.deadline(deadline).into_future());
        assert!(poll!(&mut call).is_pending());
        begun.push(call);
    }
    begun.into_iter().for_each(|call| {
        callers.spawn(call);
    });
    until("all have found that Redis is out", async || {
        cache.bypassed().reads >= CALLERS
    })
    .await;
    gate.begun(1).await;
    for _ in 0..CALLERS {
        gate.open();
    }
    for value in bounded("all are served", callers.join_all()).await {
        assert_eq!(*value.expect("loaded"), 1);
    }
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_call_in_a_hurry_does_without_a_server_that_another_call_waits_for() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let cache = client.expect("connected").cache("c");
    let cache = cache.outage(Outage::Bypass);
    cache.get::<u8>("k").await.expect("connected");
    let lease = Request::any().named("EVALSHA").with("hr:l:{c:k}");
    let asked = proxy.on(lease, Act::Hold);
    let load = async || Ok::<_, Infallible>(1u8);
    let first = tokio::spawn(cache.memoize("k", MINUTE, load).into_future());
    asked.hit().await;
    let (gate, mut callers) = (Gate::closed(), JoinSet::new());
    let began = Instant::now();
    for _ in 0..3 {
        let load = gate.clone();
        let call = cache.memoize("k", MINUTE, move || load.load(2u8));
        callers.spawn(call.deadline(HURRY).into_future());
    }
    until("all have waited long enough", async || {
        cache.bypassed().reads >= 3
    })
    .await;
    gate.begun(1).await;
    for _ in 0..3 {
        gate.open();
    }
    for value in bounded("all are served", callers.join_all()).await {
        assert_eq!(*value.expect("loaded"), 2);
    }
    // The first waits for 20 s.
    assert!(began.elapsed() < Duration::from_secs(15));
    assert!(!first.is_finished());
    assert_eq!(gate.loads(), 1);
    asked.deliver();
    let value = bounded("the first is served", first).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), 1);
}

#[tokio::test]
async fn a_call_in_a_hurry_takes_what_was_loaded_though_it_is_not_stored_yet() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let (cache, gate) = (client.expect("connected").cache("c"), Gate::closed());
    cache.get::<u8>("k").await.expect("connected");
    let lease = Request::nth(1).named("EVALSHA").with("hr:l:{c:k}");
    let asked = proxy.on(lease, Act::Hold);
    let commit = Request::nth(2).named("EVALSHA").with("hr:l:{c:k}");
    let stored = proxy.on(commit, Act::Hold);
    let load = gate.clone();
    let first = cache.memoize("k", MINUTE, move || load.load(1u8));
    let first = tokio::spawn(first.into_future());
    asked.hit().await;
    // It began before the load, and has less time than the call that opened the flight.
    let load = async || Ok::<_, Infallible>(2u8);
    let hasty = cache.memoize("k", MINUTE, load);
    // It ends before a connection that holds the commit back counts as silent.
    let mut hasty = Box::pin(hasty.deadline(Duration::from_millis(1500)).into_future());
    assert!(poll!(&mut hasty).is_pending());
    asked.deliver();
    gate.begun(1).await;
    gate.open();
    stored.hit().await;
    let began = Instant::now();
    let value = bounded("the other is served", hasty).await;
    assert_eq!(*value.expect("loaded"), 1);
    assert!(began.elapsed() < Duration::from_secs(15));
    assert!(!first.is_finished());
    stored.deliver();
    let value = bounded("the first is served", first).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), 1);
}

/// Loses the next script about the load of `k`, the one that ends it, and keeps the client from
/// connecting again until it is delivered.
fn lost_at_its_end(proxy: &Proxy) -> Rule {
    proxy.on(
        Request::any().named("EVALSHA").with("hr:l:{c:k}"),
        Act::Reset,
    );
    proxy.on(Request::every().named("HELLO"), Act::Hold)
}

#[tokio::test]
async fn what_a_call_in_a_hurry_has_loaded_is_stored_for_those_with_more_time() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let (cache, gate) = (client.expect("connected").cache("c"), Gate::closed());
    cache.get::<u8>("k").await.expect("connected");
    let load = gate.clone();
    let hasty = cache.memoize("k", MINUTE, move || load.load(1u8));
    let hasty = tokio::spawn(hasty.deadline(SECOND).into_future());
    gate.begun(1).await;
    // It began after the load, and so may have the value only if that is stored.
    let load = gate.clone();
    let late = cache.memoize("k", MINUTE, move || load.load(2u8));
    let mut late = Box::pin(late.into_future());
    assert!(poll!(&mut late).is_pending());
    let late = tokio::spawn(late);
    let connecting = lost_at_its_end(&proxy);
    gate.open();
    gate.open();
    connecting.hit().await;
    let value = bounded("the first waits no longer than it may", hasty).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), 1);
    assert!(!late.is_finished());
    connecting.deliver();
    let value = bounded("the other is served", late).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), 1);
    assert_eq!(gate.loads(), 1);
    let found = cache.get::<u8>("k").await.expect("an answer");
    assert_eq!(found.as_deref(), Some(&1));
}

#[tokio::test]
async fn the_failure_of_a_load_of_a_call_in_a_hurry_is_recorded_for_those_with_more_time() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let (cache, gate) = (client.expect("connected").cache("c"), Gate::closed());
    let cache = cache.error_ttl(MINUTE);
    cache.get::<u8>("k").await.expect("connected");
    let call = || {
        let load = gate.clone();
        cache.memoize("k", MINUTE, async move || {
            let _ = load.load(()).await;
            Err::<u8, _>(io::Error::other("no such row"))
        })
    };
    let hasty = tokio::spawn(call().deadline(SECOND).into_future());
    gate.begun(1).await;
    let mut late = Box::pin(call().into_future());
    assert!(poll!(&mut late).is_pending());
    let late = tokio::spawn(late);
    let connecting = lost_at_its_end(&proxy);
    gate.open();
    gate.open();
    connecting.hit().await;
    let error = bounded("the first waits no longer than it may", hasty).await;
    let error = error.expect("no panic").expect_err("no such row");
    assert_eq!(error.kind(), ErrorKind::Loader, "{error}");
    assert_eq!(error.key(), Some("k"));
    assert!(!late.is_finished());
    connecting.deliver();
    let error = bounded("the other is served", late).await;
    let error = error.expect("no panic").expect_err("no such row");
    assert_eq!(error.kind(), ErrorKind::Loader, "{error}");
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_call_that_can_do_without_the_server_has_a_value_though_its_runtime_stood_still() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let cache = client.expect("connected").cache("c");
    let cache = cache.outage(Outage::Bypass);
    cache.get::<u8>("k").await.expect("connected");
    let lease = Request::any().named("EVALSHA").with("hr:l:{c:k}");
    let asked = proxy.on(lease, Act::Hold);
    let load = async || Ok::<_, Infallible>(1u8);
    // No whole number of ms, as what is left of a request never is.
    let hurry = Duration::from_micros(300_400);
    let call = cache.memoize("k", MINUTE, load).deadline(hurry);
    let call = tokio::spawn(call.into_future());
    asked.hit().await;
    // When it goes on, the call and its flight are late at once.
    std::thread::sleep(hurry * 3);
    let value = bounded("the call is served", call).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), 1);
}

#[tokio::test]
async fn a_call_in_a_hurry_asks_by_itself_while_a_read_of_another_is_not_polled() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let cache = client.expect("connected").cache("c");
    cache.get::<u8>("k").await.expect("connected");
    let hurry = Duration::from_millis(80);
    // On a busy machine that may be too little to get anything sent, but not each time.
    for number in 0..20 {
        let key = format!("k{number}");
        let reads = Request::every().with(&format!("hr:v:{{c:{key}}}"));
        let asked = proxy.on(reads, Act::Delay(Duration::ZERO));
        let load = async || Ok::<_, Infallible>(1u8);
        let mut kept = Box::pin(cache.memoize(&key, MINUTE, load).into_future());
        assert!(poll!(&mut kept).is_pending());
        asked.hit().await;
        let hasty = cache.memoize(&key, MINUTE, load).deadline(hurry).await;
        if let Err(error) = &hasty {
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        }
        if asked.hits() > 1 {
            return;
        }
    }
    panic!("calls in a hurry wait to their end for a read that nobody polls");
}
