//! Servers that go, others that take over, and slots that move, while everything is in use.

use std::time::Duration;

use hedgerow::{Client, ClientBuilder};

use super::{Loss, Row, Traffic};
use crate::support::topology::{Cluster, Sentinels};
use crate::support::wait::until;

const CLUSTER: &str = "cluster 3+3";
const SENTINELS: &str = "3 sentinels, 1+2";

async fn client(cluster: &Cluster) -> Client {
    let seeds = cluster.primaries().iter().map(|node| node.url());
    hasty(Client::builder().cluster(seeds)).await
}

async fn watched(servers: &Sentinels) -> Client {
    let urls = servers.sentinels().iter().map(|node| node.url());
    hasty(Client::builder().sentinels(urls, Sentinels::NAME)).await
}

/// Gives up soon enough for a fault to be seen.
async fn hasty(builder: ClientBuilder) -> Client {
    let builder = builder.deadline(Duration::from_secs(2));
    builder.open().expect("good URLs")
}

/// The primary that serves the lock of the traffic.
async fn victim(cluster: &Cluster) -> usize {
    let fences: Vec<Vec<String>> = cluster.run_all(&["KEYS", "hr:*:fence"]).await;
    let fence = fences.concat().pop().expect("a lock was granted");
    cluster
        .owner_of(hedgerow::key::slot(fence.as_bytes()))
        .await
}

#[tokio::test]
async fn fault_19_a_primary_is_demoted_by_hand() {
    let cluster = Cluster::start(3, 1).await;
    let client = client(&cluster).await;
    let mut traffic = Traffic::start(&client, 12, Loss::None);
    traffic.flows(200).await;
    let victim = victim(&cluster).await;
    traffic.strike().await;
    cluster.failover(cluster.replica_of(victim, 0)).await;
    traffic.flows(200).await;
    traffic
        .settle(19, "a primary is demoted by hand", CLUSTER, "nothing lost")
        .await;
}

#[tokio::test]
async fn fault_19_sentinels_demote_a_primary_by_hand() {
    let servers = Sentinels::start().await;
    let client = watched(&servers).await;
    // What the old primary acknowledges until it is told of its demotion is lost with it.
    let mut traffic = Traffic::start(&client, 12, Loss::Data);
    traffic.flows(200).await;
    let old = servers.master_addr().await;
    traffic.strike().await;
    servers.failover().await;
    servers.moved_from(&old).await;
    traffic.flows(200).await;
    traffic
        .settle(19, "a primary is demoted by hand", SENTINELS, "recovers")
        .await;
}

#[tokio::test]
async fn fault_24_a_failover_loses_what_was_acknowledged() {
    let cluster = Cluster::start_hasty(3, 1).await;
    let client = client(&cluster).await;
    let name = "hr:c:{fence:1}";
    let node = cluster.owner_of(hedgerow::key::slot(name.as_bytes())).await;
    let (primary, replica) = (
        &cluster.nodes()[node],
        &cluster.nodes()[cluster.replica_of(node, 0)],
    );
    let counter = client.counter("fence:1");
    counter.add(1).await.expect("added");
    // A lock that is served by the same primary.
    let lock = (0..)
        .map(|number| format!("lock:{number}"))
        .find(|lock| {
            let slot = hedgerow::key::slot(bucket(lock).as_bytes());
            owner(&cluster, slot) == node
        })
        .expect("one of many");
    let lock = client.lock(&lock);
    let guard = lock.acquire().await.expect("free");
    let first = guard.fence();
    guard.release().await.expect("released");
    // And a value.
    let place = |city: &str| format!("{{catalogue:{city}}}");
    let city = (0..)
        .map(|number| format!("city:{number}"))
        .find(|city| owner(&cluster, hedgerow::key::slot(place(city).as_bytes())) == node)
        .expect("one of many");
    let cache = client.cache("catalogue");
    let ttl = Duration::from_secs(60);
    cache.set(&city, &"old", ttl).await.expect("stored");
    until("the replica is in step", async || {
        primary.info("replication", "master_repl_offset").await
            == replica.info("replication", "slave_repl_offset").await
    })
    .await;

    replica.stop();
    let _: usize = primary.run(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    for _ in 0..3 {
        counter.add(1).await.expect("acknowledged");
    }
    let guard = lock.acquire().await.expect("free");
    let second = guard.fence();
    assert!(second > first);
    cache.remove(&city).await.expect("acknowledged");
    let left = cache.get::<String>(&city).await.expect("read");
    assert_eq!(left, None, "removed");
    primary.kill().await;
    replica.resume();
    let _: redis::Value = replica.run(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
    cluster.is_primary(cluster.replica_of(node, 0)).await;

    until("the counter is served", async || {
        counter.get().await.is_ok()
    })
    .await;
    let value = counter.get().await.expect("read");
    assert_eq!(value, 1, "a prefix of what was acknowledged");
    // The grant is lost with the rest, so two guards are possible; their fences tell them apart.
    let next = crate::support::wait::bounded("the lock is granted", lock.acquire()).await;
    let third = next.expect("granted").fence();
    assert!(third > second, "{third} after {second}");
    // The removal is lost, too: what was removed is served for what is left of its TTL.
    let found = cache.get::<String>(&city).await.expect("read");
    assert_eq!(found.as_deref().map(String::as_str), Some("old"));
    let key = format!("hr:v:{}", place(&city));
    let rest: i64 = replica.run(&["PTTL", &key]).await;
    assert!(rest > 0, "{rest}");
    let jittered = ttl.as_millis() * 11 / 10;
    assert!(u128::from(rest.unsigned_abs()) <= jittered, "{rest}");
    for (primitive, outcome, lost) in [
        ("counter", "a prefix is kept", 3),
        ("lock", "two guards, fences rise", 1),
        ("load", "a removal is forgotten, the TTL stays", 1),
    ] {
        Row {
            fault: 24,
            name: "a failover loses acknowledged writes".into(),
            topology: CLUSTER.into(),
            primitive: primitive.into(),
            outcome: outcome.into(),
            before: 4,
            hit: 3,
            meanwhile: 0,
            refused: 0,
            unknown: 0,
            lost,
            recovery_ms: 0,
        }
        .record();
    }
}

#[tokio::test]
async fn fault_25_the_primary_of_sentinels_crashes() {
    let servers = Sentinels::start().await;
    let client = watched(&servers).await;
    let mut traffic = Traffic::start(&client, 12, Loss::Data);
    traffic.flows(200).await;
    let old = servers.master_addr().await;
    let primary = servers.primary().await;
    traffic.strike().await;
    primary.kill().await;
    servers.moved_from(&old).await;
    traffic.flows(200).await;
    traffic
        .settle(25, "the primary crashes", SENTINELS, "recovers")
        .await;
}

#[tokio::test]
async fn fault_25_the_primary_of_sentinels_freezes() {
    let servers = Sentinels::start().await;
    let client = watched(&servers).await;
    let mut traffic = Traffic::start(&client, 12, Loss::Data);
    traffic.flows(200).await;
    let old = servers.master_addr().await;
    let primary = servers.primary().await;
    traffic.strike().await;
    primary.stop();
    servers.moved_from(&old).await;
    traffic.flows(200).await;
    primary.resume();
    traffic
        .settle(25, "the primary freezes", SENTINELS, "is left behind")
        .await;
}

#[tokio::test]
async fn fault_26_a_clusters_primary_crashes() {
    let cluster = Cluster::start_hasty(3, 1).await;
    let client = client(&cluster).await;
    let mut traffic = Traffic::start(&client, 12, Loss::Data);
    traffic.flows(200).await;
    let victim = victim(&cluster).await;
    traffic.strike().await;
    cluster.nodes()[victim].kill().await;
    cluster.is_primary(cluster.replica_of(victim, 0)).await;
    traffic.flows(200).await;
    traffic
        .settle(26, "a primary crashes", CLUSTER, "recovers")
        .await;
}

#[tokio::test]
async fn fault_26_a_clusters_primary_freezes() {
    let cluster = Cluster::start_hasty(3, 1).await;
    let client = client(&cluster).await;
    let mut traffic = Traffic::start(&client, 12, Loss::Data);
    traffic.flows(200).await;
    let victim = victim(&cluster).await;
    traffic.strike().await;
    cluster.nodes()[victim].stop();
    cluster.is_primary(cluster.replica_of(victim, 0)).await;
    traffic.flows(200).await;
    cluster.nodes()[victim].resume();
    traffic
        .settle(26, "a primary freezes", CLUSTER, "is left behind")
        .await;
}

#[tokio::test]
async fn fault_27_slots_move_under_load() {
    let cluster = Cluster::start_hasty(3, 0).await;
    let client = client(&cluster).await;
    let mut traffic = Traffic::start(&client, 12, Loss::None);
    traffic.flows(200).await;
    traffic.strike().await;
    // Every slot that the traffic uses goes to another primary, with what is in it.
    let keys: Vec<Vec<String>> = cluster.run_all(&["KEYS", "hr:*"]).await;
    let mut slots: Vec<u16> = keys
        .concat()
        .iter()
        .map(|key| hedgerow::key::slot(key.as_bytes()))
        .collect();
    slots.sort_unstable();
    slots.dedup();
    for slot in slots {
        let from = cluster.owner_of(slot).await;
        let migration = cluster.migrate(slot, (from + 1) % 3).await;
        migration.carry_all().await;
        migration.finish().await;
    }
    traffic.flows(200).await;
    traffic
        .settle(27, "slots move", "cluster 3", "applied once")
        .await;
}

/// The hash tag of a lock's keys, as `docs/keys-and-scripts.md` tells it.
fn bucket(lock: &str) -> String {
    let bucket = xxhash_rust::xxh3::xxh3_64(lock.as_bytes()) & 0xff;
    format!("{{b{bucket:02x}}}")
}

/// Who serves a slot as long as nothing has moved.
fn owner(cluster: &Cluster, slot: u16) -> usize {
    let count = cluster.primaries().len();
    (0..count)
        .find(|number| usize::from(slot) < (number + 1) * 16384 / count)
        .expect("a slot")
}
