//! Loads of callers whom the loads of others were of no use: how many there are, and that nobody
//! but the data makes them necessary.

use std::future::IntoFuture as _;
use std::time::Duration;

use futures::poll;
use hedgerow::OnOutage;

use crate::support::gate::Gate;
use crate::support::listener::Listener;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, patient, until, waiting};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn one_invalidation_during_a_slow_load_costs_two_loads_however_many_calls_there_are() {
    const CALLS: usize = 200;
    let listener = Listener::start();
    let server = Server::start_single().await;
    let client = patient(server.builder()).connect().await;
    let client = client.expect("connected");
    let cache = client.cache("c").max_load(Duration::from_secs(10));
    let (gate, mut calls) = (Gate::closed(), tokio::task::JoinSet::new());
    let call = || {
        let load = gate.clone();
        let call = cache.memoize("k", MINUTE, move || load.load(1u8));
        call.tags(["t"]).into_future()
    };
    calls.spawn(call());
    gate.begun(1).await;
    // They come to the load while it runs.
    for _ in 1..CALLS {
        let mut call = Box::pin(call());
        assert!(poll!(&mut call).is_pending());
        calls.spawn(call);
    }
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    gate.open();
    // The first has its value, which is of no use to the others: one of these loads anew, and takes
    // longer than they wait before they load alone.
    gate.begun(3).await;
    let alone = |line: &&str| line.contains("message=miss") && line.contains("round=2");
    until("all but the two who lead load alone", async || {
        listener.told().lines().filter(alone).count() == CALLS - 2
    })
    .await;
    // Their tasks, all of them spawned by now, are polled before the answer is.
    client.ping().await.expect("an answer");
    for _ in 0..CALLS {
        gate.open();
    }
    for value in bounded("all are served", calls.join_all()).await {
        assert_eq!(*value.expect("loaded"), 1);
    }
    // The one that was invalidated, the next, and one for all who did not wait for the end of that.
    assert_eq!(gate.loads(), 3);
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

/// The load that is waited for elsewhere ends without a value, and another one begins: those who
/// wait are told, and are to be noted anew.
async fn superseded(server: &Server) {
    let script = "redis.call('HINCRBY', KEYS[1], 'fence', 1)
        for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
          if string.sub(field, 1, 2) == 'w:' then
            redis.call('HDEL', KEYS[1], field)
            redis.call('SPUBLISH', string.sub(field, 3), '-' .. KEYS[2])
          end
        end";
    let _: () = server
        .run(&["EVAL", script, "2", "hr:l:{c:k}", "hr:v:{c:k}"])
        .await;
}

#[tokio::test]
async fn a_solo_load_that_runs_is_not_shared_with_calls_that_began_after_it() {
    let server = Server::start_single().await;
    let leading = Gate::closed();
    let load = leading.clone();
    let leader = server.client().await.cache("c");
    let leader = leader.max_load(MINUTE).takeover(MINUTE);
    let leader = leader.memoize("k", MINUTE, move || load.load(0u8));
    let leader = tokio::spawn(leader.into_future());
    leading.begun(1).await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).connect().await;
    let cache = client.expect("connected").cache("c");
    let cache = cache.max_load(Duration::from_secs(10));
    // Two flights of one key: their callers want something else of an outage. What the second asks
    // is told by its takeover.
    let one = cache.clone().on_outage(OnOutage::FailFast);
    let other = cache.on_outage(OnOutage::KeepTrying);
    let other = other.takeover(Duration::from_millis(8_999));
    let asked = Request::every().named("EVALSHA").with("hr:l:{c:k}");
    let answered = proxy.on_reply(asked.with("8999"), Act::Delay(Duration::ZERO));
    let (old, new) = (Gate::closed(), Gate::closed());
    let load = old.clone();
    let first = one.memoize("k", MINUTE, move || load.load(1u8)).tags(["t"]);
    let first = tokio::spawn(first.into_future());
    for _ in 0..2 {
        waiting(&server, "hr:l:{c:k}", 1).await;
        superseded(&server).await;
    }
    waiting(&server, "hr:l:{c:k}", 1).await;
    let load = new.clone();
    let opener = other
        .memoize("k", MINUTE, move || load.load(2u8))
        .tags(["t"]);
    let opener = tokio::spawn(opener.into_future());
    answered.hit().await;
    // The third load that was of no use to the first call, and the first to the other: that one
    // waits for 5 s in all before it loads alone.
    let before = answered.hits();
    superseded(&server).await;
    old.begun(1).await;
    until("the other asks again", async || answered.hits() > before).await;
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
    // Beside the load that runs.
    new.begun(1).await;
    old.open();
    new.open();
    new.open();
    let value = bounded("the late one is served", late).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), 2);
    for (call, value) in [(first, 1), (opener, 2)] {
        let loaded = bounded("all are served", call).await;
        assert_eq!(*loaded.expect("no panic").expect("loaded"), value);
    }
    assert_eq!(new.loads(), 1);
    leading.open();
    assert_eq!(*leader.await.expect("no panic").expect("loaded"), 0);
}
