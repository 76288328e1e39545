//! Calls of `memoize` for one key that have different deadlines: what each waits for, and whom a
//! slow server, or a slow load, concerns.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::time::{Duration, Instant};

use hedgerow::ErrorKind;

use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, signal};
use crate::support::wait::{bounded, patient, until};

const MINUTE: Duration = Duration::from_secs(60);
const HURRY: Duration = Duration::from_millis(300);

/// The n-th script about the load of `k`: the first asks for the lease, the second ends the load.
fn about_the_load(n: usize) -> Request {
    Request::nth(n).named("EVALSHA").with("hr:l:{c:k}")
}

#[tokio::test]
async fn a_cache_with_more_time_than_its_client_waits_until_a_slow_server_has_stored_the_value() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().cache_deadline(HURRY).connect().await;
    let cache = client.expect("connected").cache("c").deadline(MINUTE);
    let slow = proxy.on(about_the_load(2), Act::Delay(HURRY * 3));
    let load = async || Ok::<_, Infallible>(1u8);
    let value = cache.memoize("k", MINUTE, load).await;
    assert_eq!(*value.expect("loaded"), 1);
    assert_eq!(slow.hits(), 1);
    let found = server.client().await.cache("c").get::<u8>("k").await;
    assert_eq!(found.expect("an answer").as_deref(), Some(&1));
}

#[tokio::test]
async fn a_call_with_less_time_than_its_client_is_not_held_by_a_server_that_does_not_store() {
    let server = Server::start_single().await;
    let client = patient(server.builder()).connect().await;
    let (cache, gate) = (client.expect("connected").cache("c"), Gate::closed());
    let load = gate.clone();
    let call = cache.memoize("k", MINUTE, move || load.load(1u8));
    let call = tokio::spawn(call.deadline(HURRY).into_future());
    gate.begun(1).await;
    let pid = server.pid().await;
    signal(pid, "STOP");
    let frozen = Instant::now();
    gate.open();
    let value = bounded("the value is there", call).await;
    let took = frozen.elapsed();
    signal(pid, "CONT");
    assert_eq!(*value.expect("no panic").expect("loaded"), 1);
    // The client would wait for 20 s.
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn a_call_with_time_is_not_failed_by_one_in_a_hurry_that_asked_before_it() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let cache = client.expect("connected").cache("c");
    cache.get::<u8>("k").await.expect("connected");
    let asked = proxy.on(about_the_load(1), Act::Hold);
    let load = async || Ok::<_, Infallible>(1u8);
    let hasty = cache.memoize("k", MINUTE, load).deadline(HURRY);
    let hasty = tokio::spawn(hasty.into_future());
    asked.hit().await;
    let load = async || Ok::<_, Infallible>(2u8);
    let mut other = Box::pin(cache.memoize("k", MINUTE, load).into_future());
    assert!(futures::poll!(&mut other).is_pending());
    let error = hasty.await.expect("no panic").expect_err("no answer");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    // Its loader has not begun: whoever calls again does nothing twice.
    assert!(!error.is_indeterminate() && error.is_retryable(), "{error}");
    asked.deliver();
    let value = bounded("the other is served", other).await;
    assert_eq!(*value.expect("loaded"), 2);
}

#[tokio::test]
async fn a_call_in_a_hurry_does_not_wait_for_one_with_time_that_asked_before_it() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let cache = client.expect("connected").cache("c");
    cache.get::<u8>("k").await.expect("connected");
    let asked = proxy.on(about_the_load(1), Act::Hold);
    let load = async || Ok::<_, Infallible>(1u8);
    let first = tokio::spawn(cache.memoize("k", MINUTE, load).into_future());
    asked.hit().await;
    let began = Instant::now();
    let load = async || Ok::<_, Infallible>(2u8);
    let hasty = cache.memoize("k", MINUTE, load).deadline(HURRY).await;
    let error = hasty.expect_err("no answer");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    // The other waits for 20 s, and a load for 30 s.
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!first.is_finished());
    asked.deliver();
    assert_eq!(*first.await.expect("no panic").expect("loaded"), 1);
}

#[tokio::test]
async fn a_loader_has_its_whole_time_however_slow_the_server_was_before_it() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let max_load = Duration::from_secs(2);
    let cache = client.expect("connected").cache("c").max_load(max_load);
    let slow = proxy.on_reply(about_the_load(1), Act::Delay(max_load * 3 / 4));
    let load = async move || {
        tokio::time::sleep(max_load / 2).await;
        Ok::<_, Infallible>(1u8)
    };
    let value = cache.memoize("k", MINUTE, load).await;
    assert_eq!(*value.expect("loaded in time"), 1);
    assert_eq!(slow.hits(), 1);
    let found = cache.get::<u8>("k").await;
    assert_eq!(found.expect("an answer").as_deref(), Some(&1));
}

#[tokio::test]
async fn a_flight_whose_opener_has_given_up_does_not_ask_again_and_again() {
    let server = Server::start_single().await;
    let gate = Gate::closed();
    let leader = server.client().await.cache("c");
    let load = gate.clone();
    let first = leader.memoize("k", MINUTE, move || load.load(1u8));
    let first = tokio::spawn(first.into_future());
    gate.begun(1).await;
    let proxy = Proxy::before(&server);
    let builder = proxy.builder().cache_deadline(Duration::from_secs(2));
    let client = builder.connect().await.expect("connected");
    let cache = client.cache("c");
    let scripts = Request::every().named("EVALSHA").with("hr:l:{c:k}");
    let asked = proxy.on(scripts, Act::Delay(Duration::ZERO));
    let hasty = cache.clone().max_load(HURRY);
    let load = async || Ok::<_, Infallible>(2u8);
    let opener = tokio::spawn(hasty.memoize("k", MINUTE, load).into_future());
    until("the opener waits", async || asked.hits() > 0).await;
    let load = async || Ok::<_, Infallible>(3u8);
    let mut joiner = Box::pin(cache.memoize("k", MINUTE, load).into_future());
    assert!(futures::poll!(&mut joiner).is_pending());
    let joiner = tokio::spawn(joiner);
    let error = opener.await.expect("no panic").expect_err("out of time");
    assert_eq!(error.kind(), ErrorKind::LoaderTimeout, "{error}");
    let before = asked.hits();
    // Time enough to ask about as often.
    for _ in 0..100 {
        client.ping().await.expect("an answer");
    }
    let again = asked.hits() - before;
    // The joiner asks by itself now, and is promised a wake-up.
    assert!(again <= 3, "asked {again} times");
    gate.open();
    assert_eq!(*first.await.expect("no panic").expect("loaded"), 1);
    let value = bounded("the joiner is served", joiner).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), 1);
}
