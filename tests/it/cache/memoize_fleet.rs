//! `memoize` over several clients: one leads, the others wait, and hear or find out what became of
//! it.

use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow::Client;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::faults::Row;
use crate::support::gate::Gate;
use crate::support::monitor::Monitor;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, connection};
use crate::support::wait::{bounded, patient, until, waiting};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn eight_processes_with_fifty_callers_each_share_one_load() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let cache = server.client().await.cache("c");
        for _ in 0..50 {
            let (cache, gate) = (cache.clone(), gate.clone());
            callers.spawn(async move {
                cache
                    .memoize("k", MINUTE, move || gate.load("v".to_owned()))
                    .await
            });
        }
    }
    gate.begun(1).await;
    waiting(&server, "hr:l:{c:k}", 7).await;
    gate.open();
    for value in callers.join_all().await {
        assert_eq!(*value.expect("a value"), "v");
    }
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_herd_on_a_cold_key_costs_at_most_four_commands_a_process() {
    let server = Server::start().await;
    let mut caches = Vec::new();
    for number in 0..8 {
        let cache = server.client().await.cache("c");
        let warm = cache.memoize(&format!("warm-{number}"), MINUTE, async || {
            Ok::<_, Infallible>(0u8)
        });
        warm.await.expect("a value");
        caches.push(cache);
    }
    let monitor = Monitor::start(&server).await;
    let gate = Gate::closed();
    let mut callers = tokio::task::JoinSet::new();
    for cache in caches {
        for _ in 0..50 {
            let (cache, gate) = (cache.clone(), gate.clone());
            callers
                .spawn(async move { cache.memoize("herd", MINUTE, move || gate.load(1u8)).await });
        }
    }
    gate.begun(1).await;
    waiting(&server, "hr:l:{c:herd}", 7).await;
    gate.open();
    for value in callers.join_all().await {
        assert_eq!(*value.expect("a value"), 1);
    }
    let commands = monitor.commands(&server, "herd").await;
    assert!(
        commands.len() <= 4 * 8,
        "{} commands: {commands:#?}",
        commands.len()
    );
}

#[tokio::test]
async fn a_waiter_is_woken_by_push_and_asks_for_the_lease_once() {
    let server = Server::start_single().await;
    let (leader, waiter) = (server.client().await, server.client().await);
    for client in [&leader, &waiter] {
        let warm = client
            .cache("warm")
            .memoize(&format!("{:p}", client), MINUTE, async || {
                Ok::<_, Infallible>(0u8)
            });
        warm.await.expect("a value");
    }
    let monitor = Monitor::start(&server).await;
    let gate = Gate::closed();
    let call = |client: &Client| {
        let (cache, gate) = (client.cache("c"), gate.clone());
        tokio::spawn(async move { cache.memoize("k", MINUTE, move || gate.load(1u8)).await })
    };
    let first = call(&leader);
    gate.begun(1).await;
    let second = call(&waiter);
    waiting(&server, "hr:l:{c:k}", 1).await;
    gate.open();
    for caller in [first, second] {
        assert_eq!(*caller.await.expect("no panic").expect("a value"), 1);
    }
    let lines = monitor.commands(&server, "hr:l:{c:k}").await;
    assert_eq!(
        lines.len(),
        3,
        "lease and commit, and one lease: {lines:#?}"
    );
}

#[tokio::test]
async fn a_waiter_that_loses_its_push_connection_still_gets_the_value() {
    let server = Server::start().await;
    let (leader, waiter) = (server.client().await, server.client().await);
    let gate = Gate::closed();
    let call = |client: &Client| {
        let (cache, gate) = (client.cache("c"), gate.clone());
        tokio::spawn(async move { cache.memoize("k", MINUTE, move || gate.load(1u8)).await })
    };
    let first = call(&leader);
    gate.begun(1).await;
    let second = call(&waiter);
    waiting(&server, "hr:l:{c:k}", 1).await;
    assert!(server.kill_connections("-push").await > 0);
    gate.open();
    for caller in [first, second] {
        assert_eq!(*caller.await.expect("no panic").expect("a value"), 1);
    }
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_process_that_has_not_subscribed_again_yet_is_not_noted_for_a_wake_up() {
    let server = Server::start_single().await;
    let (gate, leader) = (Gate::closed(), server.client().await.cache("c"));
    let mut calls = tokio::task::JoinSet::new();
    for key in ["k1", "k2"] {
        let load = gate.clone();
        let call = leader.memoize(key, MINUTE, move || load.load(1u8));
        calls.spawn(call.into_future());
    }
    gate.begun(2).await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let cache = client.expect("connected").cache("c");
    let load = async || Ok::<_, Infallible>(2u8);
    calls.spawn(cache.memoize("k1", MINUTE, load).into_future());
    waiting(&server, "hr:l:{c:k1}", 1).await;
    let subscribing = proxy.on(Request::every().named("SSUBSCRIBE"), Act::Hold);
    let killed: i64 = server.run(&["CLIENT", "KILL", "TYPE", "PUBSUB"]).await;
    assert!(killed >= 1);
    subscribing.hit().await;
    // The next push connection is there, and hears nothing yet.
    let lease = Request::every().named("EVALSHA").with("hr:l:{c:k2}");
    let asked = proxy.on(lease, Act::Delay(Duration::ZERO));
    calls.spawn(cache.memoize("k2", MINUTE, load).into_future());
    until("it asks again, by timer", async || asked.hits() >= 2).await;
    let fields: Vec<String> = server.run(&["HKEYS", "hr:l:{c:k2}"]).await;
    let noted = fields.iter().any(|field| field.starts_with("w:"));
    assert!(!noted, "a wake-up would be lost: {fields:?}");
    subscribing.deliver();
    gate.open();
    gate.open();
    for value in bounded("all are served", calls.join_all()).await {
        assert_eq!(*value.expect("loaded"), 1);
    }
}

#[tokio::test]
async fn a_client_without_a_push_connection_waits_by_timer() {
    let server = Server::start_single().await;
    let leader = server.client().await;
    let waiter = Client::from_connection(connection(server.url()).await);
    let gate = Gate::closed();
    let call = |client: &Client| {
        let (cache, gate) = (client.cache("c"), gate.clone());
        tokio::spawn(async move { cache.memoize("k", MINUTE, move || gate.load(1u8)).await })
    };
    let first = call(&leader);
    gate.begun(1).await;
    let monitor = Monitor::start(&server).await;
    let second = call(&waiter);
    until("the waiter has asked twice", async || {
        monitor.commands(&server, "hr:l:{c:k}").await.len() >= 2
    })
    .await;
    gate.open();
    for caller in [first, second] {
        assert_eq!(*caller.await.expect("no panic").expect("a value"), 1);
    }
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn a_waiter_takes_over_when_the_leading_process_dies() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let takeover = Duration::from_millis(200);
    // A runtime of its own that is torn down in mid-load is as good as a process that dies.
    let process = tokio::runtime::Runtime::new().expect("a runtime");
    let leader = server.builder();
    let held = gate.clone();
    process.spawn(async move {
        let cache = leader
            .open()
            .expect("a good URL")
            .cache("c")
            .takeover(takeover);
        cache.memoize("k", MINUTE, move || held.load(1u8)).await
    });
    gate.begun(1).await;
    let cache = server.client().await.cache("c").takeover(takeover);
    let waiter = tokio::spawn({
        let gate = gate.clone();
        async move { cache.memoize("k", MINUTE, move || gate.load(2u8)).await }
    });
    waiting(&server, "hr:l:{c:k}", 1).await;
    process.shutdown_background();
    gate.begun(2).await;
    gate.open();
    gate.open();
    assert_eq!(*waiter.await.expect("no panic").expect("a value"), 2);
    assert_eq!(gate.loads(), 2);
}

#[tokio::test]
async fn a_leader_that_is_slow_but_alive_is_not_superseded() {
    let server = Server::start().await;
    // So long that a machine under test stands still for less.
    let takeover = Duration::from_secs(1);
    let gate = Gate::closed();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let cache = server.client().await.cache("c").takeover(takeover);
        let gate = gate.clone();
        callers.spawn(async move { cache.memoize("k", MINUTE, move || gate.load(1u8)).await });
    }
    gate.begun(1).await;
    let mut deadlines = std::collections::BTreeSet::new();
    bounded("the lease is renewed over several takeovers", async {
        while deadlines
            .last()
            .zip(deadlines.first())
            .is_none_or(|(last, first)| last - first < 3000)
        {
            let deadline: u64 = server.run(&["HGET", "hr:l:{c:k}", "takeover"]).await;
            deadlines.insert(deadline);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    gate.open();
    for value in callers.join_all().await {
        assert_eq!(*value.expect("a value"), 1);
    }
    assert_eq!(gate.loads(), 1);
}

/// Ten thousand callers over two clients and fifty keys, each dropped at a random point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_cancelled_at_random_lose_no_load_and_leave_no_lease() {
    let server = Server::start().await;
    let clients = [server.client().await, server.client().await];
    let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut random = StdRng::seed_from_u64(7);
    let mut cancelled = 0;
    for round in 0..200u32 {
        let mut callers = Vec::new();
        for _ in 0..50 {
            let cache = clients[random.random_range(0..2)].cache("c");
            let key = format!("k{}", random.random_range(0..50));
            let (begun, ended) = (begun.clone(), ended.clone());
            let (yields, millis) = (random.random_range(0..30), random.random_range(0..3));
            callers.push(tokio::spawn(async move {
                let load = move || async move {
                    begun.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    for _ in 0..yields {
                        tokio::task::yield_now().await;
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Infallible>(round)
                };
                cache.memoize(&key, MINUTE, load).await
            }));
        }
        for caller in callers {
            for _ in 0..random.random_range(0..3) {
                tokio::task::yield_now().await;
            }
            caller.abort();
            match caller.await {
                Ok(value) => drop(value.expect("a value")),
                Err(stopped) => {
                    assert!(stopped.is_cancelled());
                    cancelled += 1;
                }
            }
        }
        clients[0].cache("c").clear().await.expect("cleared");
    }
    assert!(cancelled > 5_000, "only {cancelled} were dropped in time");
    until("every load that began has ended", async || {
        begun.load(Ordering::SeqCst) == ended.load(Ordering::SeqCst)
    })
    .await;
    until("no lease is left, long before max_load", async || {
        server.keys("hr:l:*").await.is_empty()
    })
    .await;
    let begun = begun.load(Ordering::SeqCst);
    assert!(begun > 200, "loads did begin");
    Row::shown(
        11,
        "futures are dropped",
        "load",
        "no load is lost",
        begun,
        cancelled,
    );
}

/// Takes its time to be dropped, and then says so.
struct Slow(Arc<AtomicUsize>);

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(100));
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loader_that_was_not_needed_is_dropped_before_its_caller_has_the_value() {
    let server = Server::start().await;
    let gate = Gate::closed();
    let one = server.client().await.cache("c");
    let other = server.client().await.cache("c");
    let load = gate.clone();
    let leads = one.memoize("k", MINUTE, move || load.load(1u8));
    let leads = tokio::spawn(leads.into_future());
    gate.begun(1).await;
    let dropped = Arc::new(AtomicUsize::new(0));
    let slow = Slow(dropped.clone());
    // In the task of the test itself, which no worker of the runtime keeps from running.
    let waits = async {
        let load = move || async move {
            drop(slow);
            Ok::<_, Infallible>(2u8)
        };
        let value = other.memoize("k", MINUTE, load).await.expect("found");
        (*value, dropped.load(Ordering::SeqCst))
    };
    let opened = async {
        waiting(&server, "hr:l:{c:k}", 1).await;
        gate.open();
    };
    let (found, ()) = bounded("it has the value", async { futures::join!(waits, opened) }).await;
    assert_eq!(found, (1, 1));
    leads.await.expect("no panic").expect("loaded");
}
