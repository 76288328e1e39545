//! Sentinels: the primary is found, and left when they name another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow::{Client, ClientBuilder, ErrorKind, cache::ReadFrom, client::Credentials};

use super::replicas::read_until_asked;
use crate::support::topology::{Node, Sentinels, lease_sentinels};
use crate::support::wait::{bounded, queued, until};

fn builder(servers: &Sentinels) -> ClientBuilder {
    let sentinels = servers.sentinels().iter().map(Node::url);
    let builder = Client::builder().sentinels(sentinels, Sentinels::NAME);
    // A failover takes seconds, more of them on a busy machine.
    let minute = Duration::from_secs(60);
    builder.deadline(minute).cache_deadline(minute)
}

async fn client(servers: &Sentinels) -> Client {
    builder(servers).open().expect("good URLs")
}

/// The connections that clients of ours have to a node.
async fn connections(node: &Node) -> usize {
    let list: String = node.ask(&["CLIENT", "LIST"]).await;
    list.matches(" name=hedgerow").count()
}

#[tokio::test]
async fn the_primary_is_found_though_one_sentinel_is_dead_and_one_is_frozen() {
    let servers = lease_sentinels().await;
    let [frozen, .., alive] = servers.sentinels() else {
        panic!("there are three")
    };
    let dead = "redis://127.0.0.1:1".to_owned();
    frozen.stop();
    // A frozen sentinel must not use up the deadline.
    let urls = [dead, frozen.url(), alive.url()];
    let build = || {
        let builder = Client::builder().sentinels(urls.clone(), Sentinels::NAME);
        let builder = builder.deadline(Duration::from_secs(10));
        builder.connect_timeout(Duration::from_secs(60)).open()
    };
    let (one, two) = (build().expect("URLs"), build().expect("URLs"));
    let added = one.counter("views").add(1).await;
    frozen.resume();
    assert_eq!(added.expect("found").value, 1);

    // Pushes come from the same server.
    let guard = one.lock("invoice:7").acquire().await.expect("free");
    let waiter = two.lock("invoice:7").wait(Duration::from_secs(300));
    let waiting = tokio::spawn(async move { waiter.acquire().await.map(|it| it.fence()) });
    queued(&one.lock("invoice:7"), 1).await;
    let fence = guard.fence();
    guard.release().await.expect("released");
    let granted = bounded("the waiter is granted the lock", waiting).await;
    assert!(granted.expect("no panic").expect("granted") > fence);
    let primary = servers.primary().await;
    // The one that has not waited may still be making its connection for pushes.
    until("both connections of both", async || {
        connections(primary).await >= 4
    })
    .await;
    for replica in &servers.data().nodes()[1..] {
        assert_eq!(connections(replica).await, 0);
    }
}

#[tokio::test]
async fn sentinels_and_data_nodes_have_credentials_of_their_own() {
    let servers = Sentinels::start_with(Some("data-secret"), Some("sentinel-secret")).await;
    for sentinel in servers.sentinels() {
        let mut words = vec!["ACL", "SETUSER", "watcher", "on", ">one", "allchannels"];
        words.extend(["+hello", "+client|setname", "+ping", "+subscribe"]);
        words.extend(["+sentinel|master", "+sentinel|get-master-addr-by-name"]);
        let _: String = sentinel.run(&words).await;
    }
    for node in servers.data().nodes() {
        let words = [
            "ACL", "SETUSER", "app", "on", ">two", "~hr:*", "&hr:*", "+@all",
        ];
        let _: String = node.run(&words).await;
    }
    let build = |watcher: &str, user: &str, password: &str| {
        let url = |node: &Node| format!("redis://{watcher}@{}", node.address());
        let urls: Vec<String> = servers.sentinels().iter().map(url).collect();
        let builder = Client::builder().sentinels(urls, Sentinels::NAME);
        let credentials = match user {
            "" => Credentials::password(password),
            user => Credentials::user(user, password),
        };
        let builder = builder.credentials(credentials);
        async move { builder.open().expect("good URLs") }
    };
    let client = build("watcher:one", "app", "two").await;
    assert_eq!(
        client.counter("views").add(1).await.expect("added").value,
        1
    );
    let users: String = servers.primary().await.run(&["CLIENT", "LIST"]).await;
    assert!(users.contains("user=app"), "{users}");

    // The default users, too.
    let client = build(":sentinel-secret", "", "data-secret").await;
    assert_eq!(client.counter("views").get().await.expect("read"), 1);
    for (watcher, user, password) in [("watcher:two", "app", "two"), ("watcher:one", "app", "one")]
    {
        let client = build(watcher, user, password).await;
        let error = client.ping().await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        assert!(
            !error.is_retryable() && !error.is_indeterminate(),
            "{error}"
        );
        let told = format!("{error} {error:?} {client:?}");
        assert!(!told.contains("one\"") && !told.contains("two"), "{told}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_sentinels_is_told() {
    let servers = lease_sentinels().await;
    let url = servers.sentinels()[0].url();
    for (urls, service) in [
        (vec![], "s"),
        (vec![url.clone()], ""),
        (vec![url.clone()], "my master"),
        (vec![format!("{url}/3")], "s"),
        (vec!["nonsense".to_owned()], "s"),
    ] {
        let builder = Client::builder().sentinels(urls, service);
        let error = builder.open().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let ping = async |urls: Vec<String>, service: &str| {
        let builder = Client::builder().sentinels(urls, service);
        let builder = builder.deadline(Duration::from_secs(2));
        let client = builder.open().expect("good URLs");
        client.ping().await.expect_err("refused")
    };
    let urls = || {
        servers
            .sentinels()
            .iter()
            .map(Node::url)
            .collect::<Vec<_>>()
    };
    let error = ping(urls(), "another").await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(
        error.to_string().contains("no service \"another\""),
        "{error}"
    );

    let error = ping(vec![servers.primary().await.url()], Sentinels::NAME).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("is not a sentinel"), "{error}");

    let dead = || (1..3).map(|port| format!("redis://127.0.0.1:{port}"));
    let error = ping(dead().collect(), Sentinels::NAME).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.is_retryable(), "{error}");
    for part in [Sentinels::NAME, "127.0.0.1:1", "127.0.0.1:2"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn where_no_sentinel_answers_the_primary_before_is_not_named() {
    let servers = Sentinels::start().await;
    let client = builder(&servers).deadline(Duration::from_secs(2));
    let client = client.open().expect("good URLs");
    client.ping().await.expect("an answer");
    for sentinel in servers.sentinels() {
        sentinel.kill().await;
    }
    let primary = servers.data().primary();
    let _: usize = primary.run(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    let error = client.ping().await.expect_err("nobody says where it is");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    let text = error.to_string();
    assert!(text.contains("no sentinel says where"), "{text}");
    assert!(text.contains(&servers.sentinels()[0].address()), "{text}");
    assert!(!text.contains(&primary.address()), "{text}");
}

#[tokio::test]
async fn a_primary_that_has_become_a_replica_is_looked_up_again() {
    let servers = Sentinels::start().await;
    let client = client(&servers).await;
    let counter = client.counter("views");
    counter.add(1).await.expect("added");
    let node = servers.data().primary();
    let _: String = node.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let asked = async || node.info("commandstats", "cmdstat_role").await;
    let before = asked().await;
    let adding = {
        let counter = counter.clone();
        tokio::spawn(async move { counter.add(1).await })
    };
    until("its role is asked for", async || asked().await != before).await;
    assert!(!adding.is_finished(), "a replica has not answered");
    // It would answer a read, with what may be old.
    let hasty = builder(&servers).deadline(Duration::from_secs(1));
    let hasty = hasty.open().expect("good URLs");
    let error = hasty.counter("views").get().await.expect_err("no primary");
    assert!(error.is_retryable(), "{error}");
    let _: String = node.run(&["REPLICAOF", "NO", "ONE"]).await;
    let added = bounded("the primary is back", adding).await;
    assert_eq!(added.expect("no panic").expect("added").value, 2);
}

/// Adds to one counter until told to stop; tells how much was acknowledged, and how much may have
/// been added besides.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    adders: Vec<tokio::task::JoinHandle<(String, i64, i64)>>,
}

impl Load {
    fn start(client: &Client, counters: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged: Arc<AtomicUsize> = Arc::default();
        let adders = (0..counters).map(|number| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let acknowledged = Arc::clone(&acknowledged);
            tokio::spawn(async move {
                let name = format!("load:{number}");
                let (mut known, mut unknown) = (0, 0);
                while !stop.load(Ordering::SeqCst) {
                    match client.counter(&name).add(1).await {
                        Ok(_) => known += 1,
                        Err(error) if error.is_indeterminate() => unknown += 1,
                        Err(error) => panic!("an add is counted, or nobody knows: {error}"),
                    }
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                (name, known, unknown)
            })
        });
        Self {
            adders: adders.collect(),
            stop,
            acknowledged,
        }
    }

    async fn goes_on(&self, more: usize) {
        let from = self.acknowledged.load(Ordering::SeqCst);
        until("adds are acknowledged", async || {
            self.acknowledged.load(Ordering::SeqCst) >= from + more
        })
        .await;
    }

    /// Waits until nothing is acknowledged any more: every add is on its way.
    async fn hangs(&self) {
        until("no add is acknowledged", async || {
            let seen = self.acknowledged.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            seen == self.acknowledged.load(Ordering::SeqCst)
        })
        .await;
    }

    async fn stop(self) -> Vec<(String, i64, i64)> {
        self.stop.store(true, Ordering::SeqCst);
        let ended = futures::future::join_all(self.adders).await;
        ended.into_iter().map(|it| it.expect("no panic")).collect()
    }
}

/// Nothing is acknowledged by a server that does not count: each add that succeeds from here on is
/// found on `primary`.
async fn every_add_is_counted(client: &Client, primary: &Node) {
    let counter = client.counter("exact");
    let key = "hr:c:{exact}";
    let count = async || primary.run::<Option<i64>>(&["GET", key]).await.unwrap_or(0);
    let before = count().await;
    for _ in 0..300 {
        counter.add(1).await.expect("added");
    }
    assert_eq!(count().await, before + 300);
}

#[tokio::test]
async fn a_failover_by_hand_is_followed_and_the_old_primary_left_though_it_still_answers() {
    let servers = Sentinels::start().await;
    let client = client(&servers).await;
    let cache = client.cache("c").read_from(ReadFrom::PreferReplica);
    cache
        .set("k", &1_u64, Duration::from_secs(3600))
        .await
        .expect("set");
    // Replicas are found by the sentinels, too.
    read_until_asked(
        &cache,
        "k",
        &[servers.data().replica(0), servers.data().replica(1)],
    )
    .await;

    let guard = client.lock("invoice:7").acquire().await.expect("free");
    let fence = guard.fence();
    let load = Load::start(&client, 8);
    load.goes_on(500).await;
    let old = servers.data().primary();
    servers.failover().await;
    // Sentinels tell it so many seconds later; until then it acknowledges what will be lost.
    until("nobody is connected to the old primary", async || {
        connections(old).await == 0
    })
    .await;
    assert_eq!(
        old.info("replication", "role").await,
        "master",
        "it does not know"
    );
    let primary = servers.primary().await;
    assert_ne!(primary.port(), old.port());
    every_add_is_counted(&client, primary).await;
    load.goes_on(500).await;
    for (name, known, unknown) in load.stop().await {
        let value = client.counter(&name).get().await.expect("read");
        // What the old one acknowledged in between is lost; nothing is counted twice.
        assert!(
            value <= known + unknown,
            "{name}: {value} of {known} and {unknown}"
        );
        assert!(value > 0, "{name} goes on");
    }
    drop(guard);
    let lock = client.lock("invoice:7").wait(Duration::from_secs(300));
    let granted = bounded("the lock is granted again", lock.acquire()).await;
    let granted = granted.expect("granted");
    assert!(granted.fence() > fence);

    // The replica that has stayed one is asked on.
    let others = servers.data().nodes().iter();
    let mut others =
        others.filter(|node| node.port() != old.port() && node.port() != primary.port());
    read_until_asked(&cache, "k", &[others.next().expect("there are three")]).await;

    // A client that is gone leaves no connection behind.
    drop((client, cache, lock, granted));
    for node in servers.sentinels().iter().chain(servers.data().nodes()) {
        until("all connections are closed", async || {
            connections(node).await == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_crashed_primary_is_replaced_under_load() {
    let servers = Sentinels::start().await;
    let client = client(&servers).await;
    let fence = {
        let guard = client.lock("invoice:7").acquire().await.expect("free");
        let fence = guard.fence();
        guard.release().await.expect("released");
        fence
    };
    let load = Load::start(&client, 8);
    load.goes_on(500).await;
    let old = servers.master_addr().await;
    // Stopped first, so that it leaves adds unanswered.
    servers.data().primary().stop();
    load.hangs().await;
    servers.data().primary().kill().await;
    servers.moved_from(&old).await;
    load.goes_on(500).await;
    let ended = load.stop().await;
    let unknown: i64 = ended.iter().map(|(_, _, unknown)| unknown).sum();
    assert!(unknown > 0, "the crash has hit adds in flight");
    for (name, known, unknown) in ended {
        let value = client.counter(&name).get().await.expect("read");
        assert!(
            value <= known + unknown,
            "{name}: {value} of {known} and {unknown}"
        );
    }
    every_add_is_counted(&client, servers.primary().await).await;
    let guard = client.lock("invoice:7").acquire().await.expect("free");
    assert!(guard.fence() > fence);
}

#[tokio::test]
async fn a_frozen_primary_is_left_behind_and_acknowledges_nothing_when_it_wakes() {
    let servers = Sentinels::start().await;
    let client = client(&servers).await;
    let counter = client.counter("views");
    counter.add(1).await.expect("added");
    let guard = client.lock("invoice:7").acquire().await.expect("free");
    let fence = guard.fence();
    let old = servers.master_addr().await;
    servers.data().primary().stop();
    let waiting = {
        let counter = counter.clone();
        tokio::spawn(async move { counter.add(1).await })
    };
    servers.moved_from(&old).await;
    // In flight when it froze: nobody knows. It is not waited for until its deadline.
    let met = bounded("the call that met the freeze ends", waiting).await;
    let met = met.expect("no panic");
    assert!(met.is_err_and(|error| error.is_indeterminate()));
    let lock = client.lock("invoice:7").wait(Duration::from_secs(300));
    drop(guard);
    servers.data().primary().resume();
    // It takes itself for the primary, and has our commands in its sockets.
    every_add_is_counted(&client, servers.primary().await).await;
    assert_eq!(connections(servers.data().primary()).await, 0);
    let granted = bounded("the lock is granted by the new primary", lock.acquire()).await;
    assert!(granted.expect("granted").fence() > fence);
}
