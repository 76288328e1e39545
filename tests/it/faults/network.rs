//! What a network does: replies and requests that are lost, cut, slow, or late.
//!
//! The same calls go to one server and to a cluster of one, each behind a proxy, since routing adds
//! ways to send a command twice.

use std::convert::Infallible;
use std::time::Duration;

use hedgerow::{Cache, Client, ClientBuilder, Outage};
use redis::FromRedisValue;

use super::Row;
use crate::support::proxy::{Act, Proxy, Request, Rule};
use crate::support::server::Server;
use crate::support::topology::{Cluster, Port};
use crate::support::wait::{bounded, queued, until};

/// Servers behind a proxy, and a client that comes through it.
struct Scene {
    topology: &'static str,
    servers: Servers,
    proxy: Proxy,
    client: Client,
}

enum Servers {
    One(Server),
    Cluster(Cluster),
}

impl Scene {
    /// Every topology that a proxy can stand before.
    async fn all() -> [Self; 2] {
        [Self::one().await, Self::cluster().await]
    }

    async fn one() -> Self {
        let server = Server::start_single().await;
        let proxy = Proxy::before(&server);
        Self {
            topology: "one server, proxy",
            client: hasty(proxy.builder()).await,
            servers: Servers::One(server),
            proxy,
        }
    }

    async fn cluster() -> Self {
        let port = Port::free();
        let cluster = Cluster::start_announcing(&[port.number()]).await;
        let proxy = Proxy::on_port(port, cluster.nodes()[0].port()).await;
        Self {
            topology: "cluster of 1, proxy",
            client: hasty(Client::builder().cluster([proxy.url()])).await,
            servers: Servers::Cluster(cluster),
            proxy,
        }
    }

    async fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        match &self.servers {
            Servers::One(server) => server.run(words).await,
            Servers::Cluster(cluster) => cluster.nodes()[0].run(words).await,
        }
    }

    /// Has every connection made and every script known, by calls that succeed.
    async fn warmed(self) -> Self {
        let counter = self.client.counter("views");
        for _ in 0..WARM {
            counter.add(1).await.expect("added");
        }
        let guard = self.client.lock("warm").acquire().await.expect("free");
        guard.release().await.expect("released");
        // One behind which another process queues is released by another script.
        let guard = self.client.lock("warm").acquire().await.expect("free");
        let other = self.builder().open().expect("a good URL");
        let waits = other.lock("warm").wait(Duration::from_secs(60));
        let waiter = tokio::spawn(async move { waits.acquire().await });
        queued(&self.client.lock("warm"), 1).await;
        guard.release().await.expect("released");
        let next = bounded("it is handed over", waiter).await;
        let released = next.expect("no panic").expect("granted").release().await;
        released.expect("held until now");
        assert_eq!(load(&self.cache(), "warm", "warm").await, "warm");
        self
    }

    fn builder(&self) -> ClientBuilder {
        match &self.servers {
            Servers::One(_) => self.proxy.builder(),
            Servers::Cluster(_) => Client::builder().cluster([self.proxy.url()]),
        }
    }

    fn cache(&self) -> Cache {
        self.client.cache("c").outage(Outage::Bypass)
    }

    fn record(&self, fault: u8, name: &str, primitive: &str, outcome: &str, rule: &Rule) {
        Row {
            fault,
            name: name.into(),
            topology: self.topology.into(),
            primitive: primitive.into(),
            outcome: outcome.into(),
            before: WARM + 2,
            hit: rule.hits(),
            meanwhile: 0,
            refused: 0,
            unknown: usize::from(outcome.starts_with("unknown")),
            lost: 0,
            recovery_ms: 0,
        }
        .record();
    }
}

async fn hasty(builder: ClientBuilder) -> Client {
    let soon = Duration::from_millis(500);
    let builder = builder.deadline(soon).cache_deadline(soon);
    builder.open().expect("a good URL")
}

async fn load(cache: &Cache, key: &str, value: &'static str) -> String {
    let load = move || async move { Ok::<_, Infallible>(value.to_owned()) };
    let value = cache.memoize(key, Duration::from_secs(60), load).await;
    value
        .expect("loaded, whatever Redis does")
        .as_str()
        .to_owned()
}

const WARM: usize = 3;
const MINUTE: Duration = Duration::from_secs(60);
const COUNTER: &str = "hr:c:{views}";

#[tokio::test]
async fn fault_02_a_reply_is_lost_after_execution() {
    let name = "a reply is lost";
    for scene in Scene::all().await {
        let scene = scene.warmed().await;
        let rule = scene
            .proxy
            .on_reply(Request::nth(1).named("INCRBY"), Act::Reset);
        let error = scene.client.counter("views").add(1).await;
        let error = error.expect_err("nobody can tell");
        assert!(error.is_indeterminate(), "{error}");
        let value: usize = scene.run(&["GET", COUNTER]).await;
        assert_eq!(value, WARM + 1, "{}: applied exactly once", scene.topology);
        scene.record(2, name, "counter", "unknown, applied once", &rule);

        // The grant of an acquire that was not answered is given up, and the lock asked for anew.
        let rule = scene
            .proxy
            .on_reply(Request::nth(1).named("EVALSHA"), Act::Reset);
        let lock = scene.client.lock("l").wait(Duration::from_secs(60));
        let guard = bounded("granted all the same", lock.acquire()).await;
        let guard = guard.expect("granted");
        scene.record(2, name, "lock", "acquire is granted", &rule);
        let rule = scene
            .proxy
            .on_reply(Request::nth(1).named("EVALSHA"), Act::Reset);
        let fence = guard.fence();
        if let Err(error) = guard.release().await {
            assert!(error.is_indeterminate(), "{error}");
        }
        let again = bounded("granted to the next", lock.acquire()).await;
        assert!(again.expect("granted").fence() > fence);
        scene.record(2, name, "lock release", "unknown, and released", &rule);

        let rule = scene
            .proxy
            .on_reply(Request::nth(1).named("EVALSHA"), Act::Reset);
        assert_eq!(load(&scene.cache(), "k", "loaded").await, "loaded");
        scene.record(2, name, "load", "loaded", &rule);
    }
}

#[tokio::test]
async fn fault_03_a_request_is_lost_before_execution() {
    let name = "a request is lost";
    for scene in Scene::all().await {
        let scene = scene.warmed().await;
        let before: String = scene.run(&["DEBUG", "DIGEST"]).await;
        let rule = scene.proxy.on(Request::nth(1).named("INCRBY"), Act::Reset);
        let error = scene.client.counter("views").add(1).await;
        let error = error.expect_err("nobody can tell");
        assert!(error.is_indeterminate(), "{error}");
        let after: String = scene.run(&["DEBUG", "DIGEST"]).await;
        assert_eq!(before, after, "{}: applied not at all", scene.topology);
        scene.record(3, name, "counter", "unknown, not applied", &rule);

        let rule = scene.proxy.on(Request::nth(1).named("EVALSHA"), Act::Reset);
        let lock = scene.client.lock("l").wait(Duration::from_secs(60));
        let guard = bounded("granted all the same", lock.acquire()).await;
        guard.expect("granted").release().await.expect("released");
        scene.record(3, name, "lock", "acquire is granted", &rule);

        let rule = scene.proxy.on(Request::nth(1).named("EVALSHA"), Act::Reset);
        assert_eq!(load(&scene.cache(), "k", "loaded").await, "loaded");
        scene.record(3, name, "load", "loaded", &rule);
    }
}

#[tokio::test]
async fn fault_04_a_reply_is_cut_in_the_middle() {
    let value = "x".repeat(100_000);
    for scene in Scene::all().await {
        let scene = scene.warmed().await;
        let cache = scene.cache();
        cache
            .set("big", &value, Duration::from_secs(60))
            .await
            .expect("stored");
        let request = Request::nth(1).with("hr:v:{c:big}");
        for act in [Act::Truncate(50), Act::Reset] {
            let rule = scene.proxy.on_reply(request.clone(), act);
            // Whole, or not at all; a read is repeated.
            let read = cache.get::<String>("big").await.expect("read");
            assert!(read.is_none_or(|read| *read == value), "never torn");
            scene.record(4, "a reply is cut", "load", "whole or nothing", &rule);
        }
        let rule = scene
            .proxy
            .on_reply(Request::nth(1).named("INCRBY"), Act::Truncate(1));
        let error = scene.client.counter("views").add(1).await;
        assert!(error.expect_err("nobody can tell").is_indeterminate());
        let value: usize = scene.run(&["GET", COUNTER]).await;
        assert_eq!(value, WARM + 1);
        scene.record(
            4,
            "a reply is cut",
            "counter",
            "unknown, applied once",
            &rule,
        );
    }
}

#[tokio::test]
async fn fault_05_everything_comes_byte_by_byte() {
    for scene in Scene::all().await {
        let scene = scene.warmed().await;
        let jitter = Duration::from_micros(50);
        let rule = scene.proxy.on(Request::every(), Act::Slice(1, jitter));
        let said = scene
            .proxy
            .on_reply(Request::every(), Act::Slice(2, jitter));
        // A byte takes a millisecond, whatever the pause.
        let builder = scene.builder().deadline(MINUTE).cache_deadline(MINUTE);
        let client = builder.open().expect("a good URL");
        client.counter("views").add(1).await.expect("added");
        assert_eq!(load(&client.cache("c"), "k", "loaded").await, "loaded");
        let guard = client.lock("l").acquire().await.expect("free");
        assert!(guard.is_held());
        guard.release().await.expect("released");
        for primitive in ["counter", "lock", "load"] {
            let name = "byte by byte";
            scene.record(5, name, primitive, "no effect", &rule);
        }
        assert!(said.hits() > 0);
    }
}

#[tokio::test]
async fn fault_06_the_network_swallows_everything() {
    let name = "a black hole";
    for scene in Scene::all().await {
        let scene = scene.warmed().await;
        let lock = scene.client.lock("l").lease(Duration::from_secs(1));
        let guard = lock.acquire().await.expect("free");
        let rule = scene.proxy.on(Request::every(), Act::Vanish);
        let error = scene.client.counter("views").add(1).await;
        let error = error.expect_err("no answer by the deadline");
        assert!(error.is_indeterminate(), "{error}");
        scene.record(6, name, "counter", "unknown by the deadline", &rule);
        bounded("the guard is told", guard.lost()).await;
        assert!(!guard.is_held());
        scene.record(6, name, "lock", "lost is told", &rule);
        assert_eq!(load(&scene.cache(), "k", "loaded").await, "loaded");
        scene.record(6, name, "load", "loaded", &rule);
        scene.proxy.clear();
        let value: usize = scene.run(&["GET", COUNTER]).await;
        assert_eq!(value, WARM, "what was swallowed never came");
    }
}

#[tokio::test]
async fn fault_07_a_request_comes_after_its_caller_has_given_up() {
    let name = "late delivery";
    for scene in Scene::all().await {
        let scene = scene.warmed().await;
        let rule = scene.proxy.on(Request::nth(1).named("INCRBY"), Act::Hold);
        let error = scene.client.counter("views").add(1).await;
        let error = error.expect_err("no answer by the deadline");
        assert!(error.is_indeterminate(), "{error}");
        rule.deliver();
        until("the late add comes", async || {
            scene.run::<usize>(&["GET", COUNTER]).await > WARM
        })
        .await;
        assert_eq!(scene.run::<usize>(&["GET", COUNTER]).await, WARM + 1);
        scene.record(7, name, "counter", "unknown, applied once", &rule);
    }
}

#[tokio::test]
async fn fault_07_a_late_acquire_a_late_release_and_a_late_store_harm_nobody() {
    let name = "late delivery";
    let scene = Scene::one().await.warmed().await;
    let Servers::One(server) = &scene.servers else {
        unreachable!("it was asked for")
    };
    let other = server.client().await;
    let lease = Duration::from_secs(1);
    let lock = |client: &Client| client.lock("l").lease(lease).wait(Duration::from_secs(60));

    let rule = scene.proxy.on(Request::nth(1).named("EVALSHA"), Act::Hold);
    let refused = scene.client.lock("l").try_acquire().await;
    assert!(refused.is_err(), "no answer by the deadline");
    let guard = lock(&other).acquire().await.expect("free");
    rule.deliver();
    scene.client.ping().await.expect("the way is free");
    assert!(guard.is_held());
    let held = other.lock("l").inspect().await.expect("an answer").holder;
    assert_eq!(held.expect("it is held").fence, guard.fence());
    let fence = guard.fence();
    guard.release().await.expect("released");
    let next = bounded("granted to the next", lock(&other).acquire()).await;
    let next = next.expect("granted");
    assert!(next.fence() > fence);
    next.release().await.expect("released");
    scene.record(7, name, "lock acquire", "harms nobody", &rule);

    let guard = lock(&scene.client).acquire().await.expect("free");
    let rule = scene.proxy.on(Request::every().named("EVALSHA"), Act::Hold);
    guard
        .release()
        .await
        .expect_err("no answer by the deadline");
    // The lease runs out, and somebody else is granted the lock before the release comes.
    let next = bounded("granted to the next", lock(&other).acquire()).await;
    let next = next.expect("granted");
    rule.deliver();
    scene.proxy.clear();
    until("the way is free", async || {
        scene.client.ping().await.is_ok()
    })
    .await;
    let held = other.lock("l").inspect().await.expect("an answer").holder;
    assert_eq!(held.expect("it is held").fence, next.fence());
    assert!(next.is_held());
    next.release().await.expect("released");
    scene.record(7, name, "lock release", "harms nobody", &rule);

    let rule = scene.proxy.on(
        Request::nth(2).named("EVALSHA").with("hr:v:{c:late}"),
        Act::Hold,
    );
    assert_eq!(load(&scene.cache(), "late", "old").await, "old");
    other.cache("c").remove("late").await.expect("removed");
    rule.deliver();
    until("the way is free", async || {
        scene.client.ping().await.is_ok()
    })
    .await;
    let stored: usize = scene.run(&["EXISTS", "hr:v:{c:late}"]).await;
    assert_eq!(stored, 0, "what was removed is not stored again");
    scene.record(7, name, "load", "the late store is refused", &rule);
}
