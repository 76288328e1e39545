//! What caches do while Redis is out: who is told, who is served all the same, and what it costs.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use hedgerow::client::Credentials;
use hedgerow::{Cache, Client, ErrorKind, Outage};
use redis::Value;
use tokio::net::{UnixListener, UnixStream};

use crate::support::gate::Gate;
use crate::support::listener::Listener;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, signal};
use crate::support::topology::{Port, Recipe};
use crate::support::wait::{bounded, until, waiting};

const MINUTE: Duration = Duration::from_secs(60);

/// As long as a server that is there may need to answer.
const SECOND: Duration = Duration::from_secs(1);

/// Does not wait for long.
async fn hasty(server: &Server) -> Client {
    giving_up(server, Duration::from_millis(300)).await
}

/// One that gives up late enough for calls to be served, on a slow machine too.
async fn waits(server: &Server) -> Client {
    giving_up(server, Duration::from_secs(5)).await
}

async fn giving_up(server: &Server, after: Duration) -> Client {
    let builder = server.builder().deadline(after).cache_deadline(after);
    builder.open().expect("a good URL")
}

async fn loaded(cache: &Cache, key: &str, value: &'static str) -> hedgerow::Result<String> {
    let load = move || async move { Ok::<_, Infallible>(value.to_owned()) };
    let outcome = cache.memoize(key, MINUTE, load).await;
    outcome.map(|value| value.as_str().to_owned())
}

/// Asks until the breaker says that the server is out.
async fn open_breaker(cache: &Cache) {
    until("the breaker opens", async || {
        let error = cache
            .get::<String>("k")
            .await
            .expect_err("the server is out");
        error.kind() == ErrorKind::CircuitOpen
    })
    .await;
}

#[tokio::test]
async fn a_cache_that_bypasses_an_outage_loads_and_stores_again_when_it_is_over() {
    let mut server = Server::start_single().await;
    let client = hasty(&server).await;
    let (strict, cache) = (client.cache("c"), client.cache("c").outage(Outage::Bypass));
    assert_eq!(
        loaded(&cache, "k", "before").await.expect("loaded"),
        "before"
    );
    let killed = server.kill().await;

    assert_eq!(
        loaded(&cache, "k", "during").await.expect("loaded"),
        "during"
    );
    assert!(cache.get::<String>("k").await.expect("bypassed").is_none());
    cache.set("k", &"set", MINUTE).await.expect("bypassed");
    let counted = cache.bypassed();
    assert_eq!((counted.reads, counted.writes, counted.loads), (2, 1, 1));
    assert_eq!(cache.stats().bypassed, 4);
    assert_eq!(client.cache("d").stats().bypassed, 0);
    // What would leave a stale value behind is told, whatever the policy.
    for error in [
        cache.remove("k").await.expect_err("told"),
        cache.clear().await.expect_err("told"),
        cache.invalidate_tags(["t"]).await.expect_err("told"),
    ] {
        assert!(error.kind().is_outage(), "{error}");
    }
    // So is everything to who asks for it.
    for error in [
        loaded(&strict, "k", "during").await.expect_err("told"),
        strict.get::<String>("k").await.expect_err("told"),
        strict.set("k", &"set", MINUTE).await.expect_err("told"),
    ] {
        assert!(error.kind().is_outage(), "{error}");
    }
    // The loader's own errors are nobody's outage.
    let load = || async { Err::<String, _>(std::io::Error::other("no such city")) };
    let error = cache.memoize("k", MINUTE, load).await.expect_err("told");
    assert_eq!(error.kind(), ErrorKind::Loader);

    server.start_again(killed).await;
    until("values are stored again", async || {
        loaded(&cache, "k", "after").await.expect("loaded");
        cache.get::<String>("k").await.expect("an answer").is_some()
    })
    .await;
    assert_eq!(loaded(&strict, "k", "again").await.expect("a hit"), "after");
}

#[tokio::test]
async fn a_thousand_callers_of_one_key_share_a_load_during_an_outage() {
    let server = Server::start_single().await;
    let client = hasty(&server).await;
    let cache = client.cache("c").outage(Outage::Bypass);
    server.kill().await;
    let gate = Gate::closed();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let (cache, gate) = (cache.clone(), gate.clone());
        callers.spawn(async move { cache.memoize("k", MINUTE, move || gate.load(7u8)).await });
    }
    gate.begun(1).await;
    until("all have found that Redis is out", async || {
        cache.bypassed().reads == 1_000
    })
    .await;
    gate.open();
    for value in callers.join_all().await {
        assert_eq!(*value.expect("loaded"), 7);
    }
    assert_eq!(gate.loads(), 1);
}

#[tokio::test]
async fn loads_during_an_outage_run_a_few_at_a_time() {
    let server = Server::start_single().await;
    let client = hasty(&server).await;
    let cache = client.cache("c").outage(Outage::Bypass);
    server.kill().await;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let calls = (0..500).map(|number| {
        let (cache, now, most) = (cache.clone(), now.clone(), most.clone());
        async move {
            let load = move || async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Infallible>(number)
            };
            cache.memoize(&format!("k{number}"), MINUTE, load).await
        }
    });
    for (number, value) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(*value.expect("loaded"), number);
    }
    assert_eq!(
        most.load(Ordering::SeqCst),
        64,
        "as many as are let in, and no more"
    );
}

#[tokio::test]
async fn while_the_breaker_is_open_a_frozen_server_costs_next_to_nothing() {
    let server = Server::start_single().await;
    let client = hasty(&server).await;
    let (strict, cache) = (client.cache("c"), client.cache("c").outage(Outage::Bypass));
    assert_eq!(
        loaded(&cache, "k", "before").await.expect("loaded"),
        "before"
    );
    let pid = server.pid().await;
    signal(pid, "STOP");
    let first = Instant::now();
    strict.get::<String>("k").await.expect_err("no answer");
    let first = first.elapsed();
    open_breaker(&strict).await;

    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..101 {
        let start = Instant::now();
        assert_eq!(
            loaded(&cache, "k", "during").await.expect("loaded"),
            "during"
        );
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[50] * 20 < first, "{:?} against {first:?}", times[50]);
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..11 {
        let start = Instant::now();
        cache.set("k2", &"set", MINUTE).await.expect("bypassed");
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[5] * 20 < first, "{:?} against {first:?}", times[5]);

    // Locks and counters are never refused on account of others: they find out for themselves.
    let error = client.counter("views").add(1).await.expect_err("no answer");
    assert_ne!(error.kind(), ErrorKind::CircuitOpen, "{error}");
    signal(pid, "CONT");
    until("a probe finds the server", async || {
        strict.get::<String>("k").await.is_ok()
    })
    .await;
    assert_eq!(
        loaded(&strict, "k", "after").await.expect("a hit"),
        "before"
    );
}

#[tokio::test]
async fn an_answer_to_a_counter_closes_the_breaker() {
    let mut server = Server::start_single().await;
    let client = hasty(&server).await;
    let cache = client.cache("c");
    let killed = server.kill().await;
    open_breaker(&cache).await;
    server.start_again(killed).await;
    until("the counter is served", async || {
        client.counter("views").add(1).await.is_ok()
    })
    .await;
    cache.get::<String>("k").await.expect("served at once");
}

#[tokio::test]
async fn a_server_that_refuses_is_bypassed_too_and_opens_no_breaker() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let (strict, cache) = (client.cache("c"), client.cache("c").outage(Outage::Bypass));
    for (setting, wrong, right, kind) in [
        ("maxmemory", "1", "0", ErrorKind::OutOfMemory),
        ("min-replicas-to-write", "1", "0", ErrorKind::NoReplicas),
    ] {
        cache.set("old", &"old", MINUTE).await.expect("stored");
        let _: Value = server.run(&["CONFIG", "SET", setting, wrong]).await;
        for round in 0..5 {
            let key = format!("{setting}{round}");
            assert_eq!(loaded(&cache, &key, "v").await.expect("loaded"), "v");
            let error = loaded(&strict, &key, "v").await.expect_err("told");
            assert_eq!(error.kind(), kind, "{setting}");
        }
        cache.set("old", &"new", MINUTE).await.expect("bypassed");
        let _: Value = server.run(&["CONFIG", "SET", setting, right]).await;
        let old = strict.get::<String>("old").await.expect("an answer");
        // A full server can at least remove what is older than what it could not store.
        let removed = kind == ErrorKind::OutOfMemory;
        assert_eq!(old.is_none(), removed, "{setting}");
    }
}

#[tokio::test]
async fn missing_rights_are_told_and_never_bypassed() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let cache = client.cache("c").outage(Outage::Bypass);
    let load = || async { Ok::<_, Infallible>("v".to_owned()) };
    let stale = |key| cache.memoize(key, MINUTE, load).stale_if_error(MINUTE);
    stale("old").await.expect("loaded");
    // Reads are allowed or not, and writes are not.
    for rights in [&["-@all", "+acl"][..], &["+@read", "-evalsha", "-eval"][..]] {
        let rights = [&["ACL", "SETUSER", "default"][..], rights].concat();
        let _: Value = server.run(&rights).await;
        for _ in 0..5 {
            let error = loaded(&cache, "new", "v").await.expect_err("told");
            assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
            let error = stale("new").await.expect_err("told");
            assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
            let error = cache.set("old", "new", MINUTE).await.expect_err("told");
            assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
        }
    }
    let error = cache.invalidate_tags(["t"]).await.expect_err("told");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    assert!(error.to_string().contains("five minutes"), "{error}");
    assert_eq!(cache.bypassed(), Default::default());
}

#[tokio::test]
async fn wrong_credentials_are_told_and_never_bypassed() {
    let server = Server::start_single().await;
    let _: Value = server
        .run(&["ACL", "SETUSER", "app", "on", ">right", "~*", "&*", "+@all"])
        .await;
    let client = server
        .builder()
        .credentials(Credentials::user("app", "wrong"));
    let cache = client.open().expect("a good URL").cache("c");
    let cache = cache.outage(Outage::Bypass);
    for _ in 0..5 {
        let error = cache.get::<String>("k").await.expect_err("told");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        loaded(&cache, "k", "v").await.expect_err("told");
    }
}

/// The kind of the error, or of the reason of the breaker.
fn reason(error: &hedgerow::Error) -> ErrorKind {
    let source = error.source().and_then(|it| it.downcast_ref());
    match (error.kind(), source) {
        (ErrorKind::CircuitOpen, Some(cause)) => hedgerow::Error::kind(cause),
        (kind, _) => kind,
    }
}

fn of_credentials(error: &hedgerow::Error) {
    assert_eq!(reason(error), ErrorKind::Unauthenticated, "{error}");
}

/// Waits until the server is known to be back, and then for a call that the breaker refuses. From
/// then on, no call is bypassed.
async fn are_told_while_the_breaker_is_open(cache: &Cache) {
    let before = cache.bypassed();
    until("the credentials are refused", async || {
        let error = cache.get::<String>("k").await.expect_err("no answer");
        error.kind() == ErrorKind::Unauthenticated
    })
    .await;
    // A probe of a slow machine may come too late to be refused.
    until("a call finds the breaker open", async || {
        let reads = join_all((0..20).map(|_| cache.get::<String>("k"))).await;
        let errors = reads.into_iter().map(|read| read.expect_err("told"));
        let errors: Vec<_> = errors.collect();
        let refused = |it| reason(it) == ErrorKind::Unauthenticated;
        let open = errors.iter().any(|it| it.kind() == ErrorKind::CircuitOpen);
        open && errors.iter().all(refused)
    })
    .await;
    let cache = cache.clone().outage(Outage::Bypass);
    of_credentials(&cache.get::<String>("k").await.expect_err("told"));
    of_credentials(&loaded(&cache, "k", "v").await.expect_err("told"));
    of_credentials(&cache.set("k", "v", MINUTE).await.expect_err("told"));
    assert_eq!(cache.bypassed(), before);
}

/// The breaker has opened for a server that was gone, and the server is back with other passwords.
#[tokio::test]
async fn credentials_that_are_refused_while_the_breaker_is_open_are_never_bypassed() {
    let mut server = Server::start_single().await;
    let user = ["ACL", "SETUSER", "app", "on", "~*", "&*", "+@all"];
    let _: Value = server.run(&[&user[..], &[">right"]].concat()).await;
    let builder = server.builder().cache_deadline(SECOND);
    let client = builder.credentials(Credentials::user("app", "right"));
    let client = client.open().expect("a good URL");
    let cache = client.cache("c");
    cache.set("k", "v", MINUTE).await.expect("stored");
    let killed = server.kill().await;
    open_breaker(&cache).await;
    // The user is not there any more.
    server.start_again(killed).await;
    are_told_while_the_breaker_is_open(&cache).await;
    let _: Value = server.run(&[&user[..], &[">right"]].concat()).await;
    until("the breaker is closed", async || {
        cache.get::<String>("k").await.is_ok()
    })
    .await;
}

/// No primary of the cluster was ever reached, so the breaker is that of the queries for slots.
#[tokio::test]
async fn credentials_that_a_cluster_refuses_while_the_breaker_is_open_are_never_bypassed() {
    let port = Port::free();
    let cache = of_cluster([seed(&port)]);
    open_breaker(&cache).await;
    let _node = Recipe::new().on(port).start().await;
    are_told_while_the_breaker_is_open(&cache).await;
}

/// A cache on a cluster that was never reached. Its servers do not know the user.
fn of_cluster(seeds: impl IntoIterator<Item = String>) -> Cache {
    let builder = Client::builder().cluster(seeds).cache_deadline(SECOND);
    let builder = builder.credentials(Credentials::user("app", "right"));
    builder.open().expect("good seeds").cache("c")
}

fn seed(port: &Port) -> String {
    format!("redis://127.0.0.1:{}", port.number())
}

/// One of the seeds is back with other passwords.
#[tokio::test]
async fn a_seed_that_refuses_does_not_end_the_bypass_while_the_others_are_out() {
    let ports = [Port::free(), Port::free(), Port::free()];
    let cache = of_cluster(ports.each_ref().map(seed));
    open_breaker(&cache).await;
    let cache = cache.outage(Outage::Bypass);
    let [back, _out, _also_out] = ports;
    let node = Recipe::new().on(back).start().await;
    // Each query is refused once, so the first of them has ended.
    until("it has refused in two queries", async || {
        let read = cache.get::<String>("k").await;
        assert!(read.expect("bypassed").is_none());
        let refused = node.info("errorstats", "errorstat_WRONGPASS").await;
        !["", "count=1"].contains(&refused.as_str())
    })
    .await;
}

/// The only seed refuses, then falls silent, and then refuses again.
#[tokio::test]
async fn credentials_that_were_refused_do_not_speak_for_a_seed_that_falls_silent() {
    let node = Recipe::new().on(Port::free()).start().await;
    let proxy = Proxy::before_node(&node).await;
    let strict = of_cluster([proxy.url().to_owned()]);
    let cache = strict.clone().outage(Outage::Bypass);
    of_credentials(&cache.get::<String>("k").await.expect_err("told"));
    let _silent = proxy.on(Request::every().named("HELLO"), Act::Vanish);
    until("calls are bypassed", async || {
        cache.get::<String>("k").await.is_ok()
    })
    .await;
    open_breaker(&strict).await;
    for _ in 0..20 {
        let read = cache.get::<String>("k").await;
        assert!(read.expect("bypassed").is_none());
    }
    proxy.clear();
    are_told_while_the_breaker_is_open(&strict).await;
}

/// The seed greets, and never says which slots there are.
#[tokio::test]
async fn queries_for_slots_that_are_not_answered_open_the_breaker() {
    let node = Recipe::new().on(Port::free()).start().await;
    let proxy = Proxy::before_node(&node).await;
    let _silent = proxy.on(Request::every().named("CLUSTER"), Act::Vanish);
    let builder = Client::builder().cluster([proxy.url().to_owned()]);
    let client = builder.cache_deadline(2 * SECOND).open();
    open_breaker(&client.expect("a good seed").cache("c")).await;
}

#[tokio::test(start_paused = true)]
async fn each_cache_that_does_without_redis_is_warned_of() {
    let listener = Listener::start();
    let nobody = Client::builder().url("redis://127.0.0.1:1");
    let nobody = nobody.cache_deadline(Duration::from_millis(100));
    let client = nobody.open().expect("a good URL");
    for name in ["cities", "prices"] {
        for _ in 0..3 {
            let cache = client.cache(name).outage(Outage::Bypass);
            cache.get::<String>("42").await.expect("bypassed");
        }
    }
    let told = listener.told();
    for name in ["cities", "prices"] {
        let warning = format!("cache=\"{name}\" kind=Unreachable count=1");
        assert_eq!(told.matches(&warning).count(), 1, "{told}");
    }
}

#[tokio::test]
async fn a_server_without_room_or_that_cannot_save_is_bypassed() {
    let server = Server::start_with(&["--enable-protected-configs", "yes"]).await;
    let client = hasty(&server).await;
    let (strict, cache) = (client.cache("c"), client.cache("c").outage(Outage::Bypass));
    let _: Value = server.run(&["CONFIG", "SET", "maxclients", "1"]).await;
    assert_eq!(loaded(&cache, "full", "v").await.expect("loaded"), "v");
    let error = loaded(&strict, "full", "v").await.expect_err("told");
    assert_eq!(error.kind(), ErrorKind::MaxClients);
    let _: Value = server.run(&["CONFIG", "SET", "maxclients", "100"]).await;
    until("there is a connection", async || {
        client.ping().await.is_ok()
    })
    .await;

    server.cannot_save().await;
    assert_eq!(loaded(&cache, "unsaved", "v").await.expect("loaded"), "v");
    let error = loaded(&strict, "unsaved", "v").await.expect_err("told");
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
}

#[tokio::test]
async fn a_server_that_holds_writes_back_is_bypassed() {
    let server = Server::start_single().await;
    let client = hasty(&server).await;
    let cache = client.cache("c").outage(Outage::Bypass);
    assert_eq!(loaded(&cache, "old", "old").await.expect("loaded"), "old");
    let _: Value = server.run(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    // Reads are served until a write that is held back stands before them.
    assert_eq!(loaded(&cache, "old", "new").await.expect("a hit"), "old");
    let new = loaded(&cache, "new", "during").await;
    assert_eq!(new.expect("loaded"), "during");
    let counted = cache.bypassed();
    assert_eq!((counted.reads, counted.loads), (0, 1));
    let _: Value = server.run(&["CLIENT", "UNPAUSE"]).await;
    until("values are stored again", async || {
        loaded(&cache, "new", "after").await.expect("loaded");
        cache
            .get::<String>("new")
            .await
            .expect("an answer")
            .is_some()
    })
    .await;
}

#[tokio::test]
async fn while_the_breaker_is_open_nothing_reaches_the_socket() {
    let server = Server::start_single().await;
    let client = hasty(&server).await;
    let (strict, cache) = (client.cache("c"), client.cache("c").outage(Outage::Bypass));
    server.kill().await;
    let socket = server.url().trim_start_matches("unix://").to_owned();
    std::fs::remove_file(&socket).expect("left by the server");
    // Somebody who takes every connection and says nothing.
    let listener = UnixListener::bind(&socket).expect("the name is free");
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    // Connections are accepted in their order: what was made before this one has been counted.
    let counted = async || {
        let before = accepted.load(Ordering::SeqCst);
        let _mark = UnixStream::connect(&socket).await.expect("accepted");
        until("it is counted", async || {
            accepted.load(Ordering::SeqCst) > before
        })
        .await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        accepted.load(Ordering::SeqCst)
    };
    open_breaker(&strict).await;
    until("a hundred calls are refused in a row", async || {
        let before = counted().await;
        let mut refused = 0;
        for _ in 0..100 {
            let error = strict.get::<String>("k").await.expect_err("out");
            refused += usize::from(error.kind() == ErrorKind::CircuitOpen);
            cache.set("k", &"set", MINUTE).await.expect("bypassed");
        }
        let after = counted().await;
        if refused == 100 {
            assert_eq!(after, before + 1, "one of them is our own");
        }
        refused == 100
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_slow_to_greet_is_found_again() {
    let mut server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let patience = Duration::from_secs(5);
    let client = proxy.builder().cache_deadline(patience).open();
    let cache = client.expect("a good URL").cache("c");
    cache.get::<String>("k").await.expect("an answer");
    let killed = server.kill().await;
    open_breaker(&cache).await;
    // Connecting alone takes two of these.
    let slow = Act::Delay(Duration::from_millis(400));
    let _slow = proxy.on_reply(Request::every(), slow);
    server.start_again(killed).await;
    until("a probe finds the server", async || {
        cache.get::<String>("k").await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn when_the_server_dies_waiters_load_or_are_told_and_the_leader_returns_its_value() {
    let server = Server::start_single().await;
    let gate = Gate::closed();
    let (leader, strict, bypassing) = (
        waits(&server).await.cache("c").outage(Outage::Bypass),
        waits(&server).await.cache("c"),
        waits(&server).await.cache("c").outage(Outage::Bypass),
    );
    let load = gate.clone();
    let leading = tokio::spawn(
        leader
            .memoize("k", MINUTE, move || load.load("leader".to_owned()))
            .into_future(),
    );
    gate.begun(1).await;
    let waiting_for = |cache: &Cache, value: &'static str| {
        let cache = cache.clone();
        tokio::spawn(async move { loaded(&cache, "k", value).await })
    };
    let told = waiting_for(&strict, "never");
    let served = waiting_for(&bypassing, "waiter");
    waiting(&server, "hr:l:{c:k}", 2).await;
    server.kill().await;
    let served = bounded("the waiter loads", served).await;
    assert_eq!(served.expect("no panic").expect("loaded"), "waiter");
    let told = bounded("the waiter is told", told).await;
    let error = told.expect("no panic").expect_err("told");
    assert!(error.kind().is_outage(), "{error}");
    assert!(!leading.is_finished(), "it goes on loading");
    gate.open();
    let value = bounded("the leader returns", leading).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), "leader");
}

#[tokio::test]
async fn nobody_waits_for_a_load_whose_end_the_server_was_not_told() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let hurry = Duration::from_millis(300);
    let far = proxy.builder().deadline(hurry).cache_deadline(hurry);
    let cache = far.open().expect("a good URL").cache("c");
    let hour = Duration::from_secs(3600);
    let gate = Gate::closed();
    let load = gate.clone();
    let loading = cache
        .takeover(hour)
        .max_load(hour)
        .memoize("k", MINUTE, move || load.load("far".to_owned()));
    let loading = tokio::spawn(loading.into_future());
    gate.begun(1).await;
    let lost = proxy.on(Request::every().with("hr:l:{c:k}"), Act::Reset);
    gate.open();
    let value = bounded("it is loaded all the same", loading).await;
    assert_eq!(*value.expect("no panic").expect("loaded"), "far");
    assert!(lost.hits() > 0, "the server does not know");
    assert_eq!(server.keys("hr:l:*").await.len(), 1);

    proxy.clear();
    let near = waits(&server).await.cache("c");
    let value = bounded("the lease is given up", loaded(&near, "k", "near")).await;
    assert_eq!(value.expect("loaded"), "near");
}

#[tokio::test]
async fn an_entry_whose_generations_cannot_be_read_is_no_hit() {
    let server = Server::start_single().await;
    let writer = server.client().await.cache("c");
    writer.set("plain", &"v", MINUTE).await.expect("stored");
    let whole = server.keys("hr:t:*").await;
    let tagged = writer.set("tagged", &"v", MINUTE).tags(["t"]);
    tagged.await.expect("stored");
    let user = async |keys: &[&str]| {
        let user = [
            "ACL",
            "SETUSER",
            "reader",
            "on",
            ">pass",
            "+@all",
            "resetkeys",
        ];
        let _: Value = server.run(&[&user[..], keys].concat()).await;
        let url = format!("{}?user=reader&pass=pass", server.url());
        let client = Client::open(&url).expect("a good URL");
        client.cache("c").outage(Outage::Bypass)
    };
    // The generation of a tag that the entry names, read after it.
    let cache = user(&["~hr:v:*", &format!("~{}", whole[0])]).await;
    let plain = cache.get::<String>("plain").await.expect("an answer");
    assert_eq!(plain.as_deref().map(String::as_str), Some("v"));
    let error = cache.get::<String>("tagged").await.expect_err("told");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    // That of the whole cache, read with it.
    let cache = user(&["~hr:v:*"]).await;
    let error = cache.get::<String>("plain").await.expect_err("told");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
}

#[tokio::test]
async fn a_set_that_is_bypassed_takes_one_cache_deadline_in_all() {
    let server = Server::start_single().await;
    let deadline = Duration::from_secs(2);
    let cache = giving_up(&server, deadline).await.cache("c");
    let cache = cache.outage(Outage::Bypass);
    cache.set("k", &"before", MINUTE).await.expect("stored");
    let pid = server.pid().await;
    signal(pid, "STOP");
    let began = Instant::now();
    cache.set("k", &"set", MINUTE).await.expect("bypassed");
    let took = began.elapsed();
    signal(pid, "CONT");
    assert_eq!(cache.bypassed().writes, 1);
    // A second deadline would double it.
    assert!(took < deadline * 3 / 2, "{took:?}");
}

#[tokio::test]
async fn a_read_that_was_not_answered_has_applied_nothing_and_may_be_made_again() {
    let server = Server::start_single().await;
    let client = hasty(&server).await;
    let cache = client.cache("c");
    cache.get::<String>("k").await.expect("connected");
    client.counter("views").add(1).await.expect("connected");
    let pid = server.pid().await;
    signal(pid, "STOP");
    for error in [
        cache.get::<String>("k").await.expect_err("no answer"),
        client.counter("views").get().await.expect_err("no answer"),
        client.ping().await.expect_err("no answer"),
    ] {
        assert!(!error.is_indeterminate(), "{error}");
        assert!(error.is_retryable(), "{error}");
        assert!(!error.to_string().contains("applied"), "{error}");
    }
    let error = client.counter("views").add(1).await.expect_err("no answer");
    assert!(error.is_indeterminate(), "{error}");
    signal(pid, "CONT");
}

#[tokio::test(start_paused = true)]
async fn bypassed_calls_are_warned_of_at_once_and_then_once_a_minute_with_their_number() {
    let listener = Listener::start();
    let nobody = Client::builder().url("redis://127.0.0.1:1");
    let nobody = nobody.cache_deadline(Duration::from_millis(100));
    let cache = nobody.open().expect("a good URL").cache("cities");
    let cache = cache.outage(Outage::Bypass);
    let warnings = || {
        let told = listener.told();
        let lines = told.lines().map(str::to_owned);
        let warnings = lines.filter(|line| line.contains("caches do without Redis"));
        warnings.collect::<Vec<_>>()
    };
    for _ in 0..3 {
        let found = cache.get::<String>("42").await.expect("bypassed");
        assert_eq!(found, None);
    }
    let set = cache.set("42", "Aix", MINUTE).await;
    set.expect("bypassed");
    loaded(&cache, "42", "Aix").await.expect("loaded");
    let [first] = &warnings()[..] else {
        panic!("one warning in the first minute: {:?}", warnings());
    };
    for part in [
        "operation=\"get\" cache=\"cities\" kind=Unreachable count=1",
        "reads=1 writes=0 loads=0",
        "connection refused",
    ] {
        assert!(first.contains(part), "{part} was told: {first}");
    }
    tokio::time::advance(MINUTE).await;
    cache.get::<String>("42").await.expect("bypassed");
    let [_, second] = &warnings()[..] else {
        panic!("another in the next: {:?}", warnings());
    };
    // Two reads, the read of the load, and the one that is warned of.
    let counted = second.contains("count=6 reads=4 writes=1 loads=1");
    assert!(counted, "all that came since is counted: {second}");
    let all = cache.bypassed();
    assert_eq!((all.reads, all.writes, all.loads), (5, 1, 1));
}
