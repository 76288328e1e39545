//! Caches that read from replicas: what reaches those, what never does, and that nobody is told
//! older things than it has written itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hedgerow::{Cache, Client, ErrorKind, cache::ReadFrom};
use rand::RngExt as _;

use crate::faults::Row;
use crate::support::topology::{Node, Replicated};
use crate::support::wait::{patient, until};

const HOUR: Duration = Duration::from_secs(3600);

async fn client(servers: &Replicated) -> Client {
    let replicas = servers.nodes()[1..].iter().map(|node| node.url());
    let builder = Client::builder().replicas(&servers.primary().url(), replicas);
    patient(builder).open().expect("good URLs")
}

fn near(client: &Client) -> Cache {
    client.cache("c").read_from(ReadFrom::PreferReplica)
}

/// How many reads of entries a node has answered. Replication never reads.
pub async fn reads(node: &Node) -> usize {
    let figures = node.info("commandstats", "cmdstat_mget").await;
    let calls = figures.strip_prefix("calls=");
    let calls = calls.and_then(|rest| rest.split(',').next()?.parse().ok());
    calls.unwrap_or(0)
}

/// Reads `key` until each of `nodes` has answered once more.
pub async fn read_until_asked(cache: &Cache, key: &str, nodes: &[&Node]) {
    for node in nodes {
        let before = reads(node).await;
        until("the replica is asked", async || {
            for _ in 0..20 {
                cache.get::<u64>(key).await.expect("an answer");
            }
            reads(node).await > before
        })
        .await;
    }
}

#[tokio::test]
async fn hits_are_read_from_replicas_and_everything_else_from_the_primary() {
    let servers = Replicated::start(2).await;
    // Whatever else were sent there would be refused, and told.
    for node in &servers.nodes()[1..] {
        let mut words = vec!["ACL", "SETUSER", "reader", "on", ">secret", "~hr:*"];
        words.extend([
            "+hello",
            "+client|setname",
            "+info",
            "+ping",
            "+get",
            "+mget",
        ]);
        let _: String = node.run(&words).await;
    }
    let replica = |node: &Node| format!("redis://reader:secret@{}", node.address());
    let replicas = servers.nodes()[1..].iter().map(replica);
    let client = Client::builder().replicas(&servers.primary().url(), replicas);
    let client = client.open().expect("good URLs");
    let cache = near(&client);

    let loads = Arc::new(AtomicUsize::new(0));
    let memoize = |key: String| {
        let loads = loads.clone();
        let load = move || async move {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::io::Error>(7_u64)
        };
        cache.memoize(&key, HOUR, load).tags(["t"])
    };
    for number in 0..20 {
        for _ in 0..5 {
            assert_eq!(*memoize(format!("k{number}")).await.expect("loaded"), 7);
        }
    }
    assert_eq!(loads.load(Ordering::SeqCst), 20, "one load for each key");
    let both: Vec<&Node> = servers.nodes()[1..].iter().collect();
    read_until_asked(&cache, "k0", &both).await;

    // With replicas in use, the rest does what it always does.
    cache.set("k0", &8_u64, HOUR).await.expect("set");
    assert_eq!(
        cache.get::<u64>("k0").await.expect("read").as_deref(),
        Some(&8)
    );
    cache.remove("k0").await.expect("removed");
    assert!(cache.get::<u64>("k0").await.expect("read").is_none());
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    memoize("k1".into()).await.expect("loaded again");
    assert_eq!(loads.load(Ordering::SeqCst), 21);
    cache.clear().await.expect("cleared");
    assert!(cache.get::<u64>("k1").await.expect("read").is_none());
    for number in 0..20 {
        let counter = client.counter(&format!("n{number}"));
        counter.add(1).within(0..=5).await.expect("added");
        assert_eq!(counter.get().await.expect("read"), 1);
        let lock = client.lock(&format!("l{number}"));
        let guard = lock.acquire().await.expect("free");
        lock.inspect().await.expect("an answer");
        guard.release().await.expect("released");
    }
    client.ping().await.expect("the primary answers");
    for node in both {
        let log: Vec<redis::Value> = node.run(&["ACL", "LOG"]).await;
        assert!(log.is_empty(), "{log:?}");
    }
    // Who does not ask for it is served by the primary.
    let before = reads(servers.replica(0)).await + reads(servers.replica(1)).await;
    let cautious = client.cache("c");
    for _ in 0..200 {
        cautious.get::<u64>("k2").await.expect("an answer");
    }
    let after = reads(servers.replica(0)).await + reads(servers.replica(1)).await;
    assert_eq!(after, before);
}

/// A replica that is stopped and goes on is behind for a moment: whichever it reads first, our
/// question or what its primary has sent meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_older_things_than_it_has_written() {
    const KEYS: usize = 1_000;
    let servers = Arc::new(Replicated::start(1).await);
    let client = client(&servers).await;
    let cache = near(&client);
    let done = Arc::new(AtomicBool::new(false));
    let stops = Arc::new(AtomicUsize::new(0));
    let nemesis = {
        let (servers, done, stops) = (servers.clone(), done.clone(), stops.clone());
        tokio::spawn(async move {
            while !done.load(Ordering::SeqCst) {
                servers.replica(0).stop();
                let pause = rand::rng().random_range(5..60);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                servers.replica(0).resume();
                stops.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        })
    };
    let mut written = vec![0_u64; KEYS];
    let mut tags = vec![0_u64; 100];
    for step in 1..=10_000_u64 {
        let key = rand::rng().random_range(0..KEYS);
        cache
            .set(&format!("k{key}"), &step, HOUR)
            .await
            .expect("set");
        written[key] = step;
        for key in [key, rand::rng().random_range(0..KEYS)] {
            let found = cache.get::<u64>(&format!("k{key}")).await.expect("read");
            let found = found.map_or(0, |found| *found);
            assert_eq!(found, written[key], "k{key} in step {step}");
        }
        if step % 10 == 0 {
            let tag = rand::rng().random_range(0..tags.len());
            tags[tag] = step;
            cache
                .invalidate_tags([format!("t{tag}")])
                .await
                .expect("invalidated");
            for tag in [tag, rand::rng().random_range(0..tags.len())] {
                let now = tags[tag];
                let load = move || async move { Ok::<_, std::io::Error>(now) };
                let memoize = cache.memoize(&format!("m{tag}"), HOUR, load);
                let value = memoize.tags([format!("t{tag}")]).await.expect("loaded");
                assert_eq!(*value, now, "t{tag} in step {step}");
            }
        }
    }
    done.store(true, Ordering::SeqCst);
    nemesis.await.expect("no panic");
    assert!(stops.load(Ordering::SeqCst) > 3, "the replica was stopped");
    let asked = reads(servers.replica(0)).await;
    assert!(asked > 500, "the replica was asked {asked} times only");
}

/// A replica that has just lost touch has a proof that still counts, for what was written before.
#[tokio::test]
async fn own_writes_of_every_kind_are_found_though_the_replica_has_not_received_them() {
    let servers = Replicated::start(1).await;
    let client = client(&servers).await;
    let (cache, replica) = (near(&client), servers.replica(0));
    let port = servers.primary().port().to_string();
    let mut asked_after = 0;
    for round in 1..=5_u64 {
        let load = |value: u64| move || async move { Ok::<_, std::io::Error>(value) };
        for key in ["set", "remove", "tag", "clear", "quiet"] {
            let memoize = cache.memoize(key, HOUR, load(0));
            memoize.tags(["t"]).await.expect("loaded");
            read_until_asked(&cache, key, &[replica]).await;
        }
        let _: String = replica.run(&["REPLICAOF", "127.0.0.1", "1"]).await;
        let before = reads(replica).await;
        let get = async |key: &str| {
            let found = cache.get::<u64>(key).await.expect("an answer");
            found.map(|found| *found)
        };
        assert_eq!(get("quiet").await, Some(0));
        asked_after += reads(replica).await - before;
        cache.set("set", &round, HOUR).await.expect("set");
        assert_eq!(get("set").await, Some(round));
        cache.remove("remove").await.expect("removed");
        assert_eq!(get("remove").await, None);
        cache.invalidate_tags(["t"]).await.expect("invalidated");
        let memoize = cache.memoize("tag", HOUR, load(round)).tags(["t"]);
        assert_eq!(*memoize.await.expect("loaded"), round);
        assert_eq!(get("tag").await, Some(round), "what was loaded, too");
        cache.clear().await.expect("cleared");
        assert_eq!(get("clear").await, None);
        let _: String = replica.run(&["REPLICAOF", "127.0.0.1", &port]).await;
    }
    assert!(asked_after > 0, "the replica would have answered");
}

#[tokio::test]
async fn a_dead_replica_is_skipped_and_asked_again_when_it_is_back() {
    let servers = Replicated::start(2).await;
    let client = client(&servers).await;
    let cache = near(&client);
    cache.set("k", &1_u64, HOUR).await.expect("set");
    read_until_asked(&cache, "k", &[servers.replica(0), servers.replica(1)]).await;

    servers.replica(0).kill().await;
    for _ in 0..200 {
        let found = cache.get::<u64>("k").await.expect("somebody answers");
        assert_eq!(found.as_deref(), Some(&1));
    }
    read_until_asked(&cache, "k", &[servers.replica(1)]).await;
    // It must not use up the deadline, which is shorter than what a silent connection is given.
    let urls = [servers.replica(1).url()];
    let hasty = Client::builder().replicas(&servers.primary().url(), urls);
    let hasty = hasty.cache_deadline(Duration::from_millis(1500));
    let hasty = near(&hasty.open().expect("good URLs"));
    read_until_asked(&hasty, "k", &[servers.replica(1)]).await;
    servers.replica(1).stop();
    let found = hasty.get::<u64>("k").await.expect("the primary answers");
    assert_eq!(found.as_deref(), Some(&1));
    for _ in 0..200 {
        let found = cache.get::<u64>("k").await.expect("the primary answers");
        assert_eq!(found.as_deref(), Some(&1));
    }
    servers.replica(1).resume();
    servers.replica(0).start_again().await;
    read_until_asked(&cache, "k", &[servers.replica(0), servers.replica(1)]).await;
}

#[tokio::test]
async fn a_replica_that_has_lost_its_primary_is_not_asked() {
    let servers = Replicated::start(1).await;
    let (one, two) = (client(&servers).await, client(&servers).await);
    let (cache, other) = (near(&one), two.cache("c"));
    other.set("k", &1_u64, HOUR).await.expect("set");
    read_until_asked(&cache, "k", &[servers.replica(0)]).await;

    let _: String = servers
        .replica(0)
        .run(&["REPLICAOF", "127.0.0.1", "1"])
        .await;
    other.set("k", &2_u64, HOUR).await.expect("set");
    // What others write may be seen late, but it is seen.
    until("the new value is found", async || {
        cache.get::<u64>("k").await.expect("an answer").as_deref() == Some(&2)
    })
    .await;
    let before = reads(servers.replica(0)).await;
    for _ in 0..200 {
        let found = cache.get::<u64>("k").await.expect("the primary answers");
        assert_eq!(found.as_deref(), Some(&2));
    }
    assert_eq!(reads(servers.replica(0)).await, before);

    // Nor one that has become a primary of its own.
    let _: String = servers.replica(0).run(&["REPLICAOF", "NO", "ONE"]).await;
    let rounds = servers
        .replica(0)
        .info("commandstats", "cmdstat_info")
        .await;
    until("it was asked who it is", async || {
        cache.get::<u64>("k").await.expect("an answer");
        servers
            .replica(0)
            .info("commandstats", "cmdstat_info")
            .await
            != rounds
    })
    .await;
    assert_eq!(reads(servers.replica(0)).await, before);

    let port = servers.primary().port().to_string();
    let _: String = servers
        .replica(0)
        .run(&["REPLICAOF", "127.0.0.1", &port])
        .await;
    read_until_asked(&cache, "k", &[servers.replica(0)]).await;
    Row {
        topology: "1 primary, 1 replica".into(),
        ..Row::outside(
            20,
            "a replica has lost its primary",
            "load",
            "is not asked",
            1,
            200,
        )
    }
    .record();
}

#[tokio::test]
async fn urls_of_replicas_are_checked_before_a_client_exists() {
    for (primary, replica) in [("redis://h:1", "h"), ("nonsense", "redis://h:1")] {
        let builder = Client::builder().replicas(primary, [replica]);
        let error = builder.open().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}
