//! Invalidations that wait for replicas.

use std::future::IntoFuture as _;
use std::time::Duration;

use hedgerow::{Cache, Client, Error, ErrorKind};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::server::{Server, connection};
use crate::support::topology::{Cluster, Node, Replicated};
use crate::support::wait::{bounded, patient};

const MINUTE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(500);

fn client(servers: &Replicated) -> Client {
    let replicas = servers.nodes()[1..].iter().map(|node| node.url());
    let builder = Client::builder().replicas(&servers.primary().url(), replicas);
    patient(builder).open().expect("good URLs")
}

async fn set(cache: &Cache, key: &str, tags: &[&str]) {
    let set = cache.set(key, &1u8, MINUTE).tags(tags);
    set.await.expect("stored");
}

async fn is_there(cache: &Cache, key: &str) -> bool {
    cache.get::<u8>(key).await.expect("an answer").is_some()
}

/// The values of all tags on a node.
async fn tags(node: &Node) -> Vec<(String, Vec<u8>)> {
    let mut keys: Vec<String> = node.run(&["KEYS", "hr:t:*"]).await;
    keys.sort();
    let mut tags = Vec::new();
    for key in keys {
        let value = node.run(&["GET", &key]).await;
        tags.push((key, value));
    }
    tags
}

/// It was executed, and no more than that.
fn is_executed(error: &Error) -> bool {
    error.kind() == ErrorKind::NotReplicated && !error.is_retryable() && !error.is_indeterminate()
}

#[tokio::test]
async fn when_it_returns_the_replicas_have_the_invalidation() {
    let servers = Replicated::start(2).await;
    let cache = client(&servers).cache("c");
    for round in 0..20 {
        set(&cache, "k", &["t"]).await;
        let durable = cache.invalidate_tags(["t"]).durable(2).await;
        durable.expect("acknowledged");
        let here = tags(servers.primary()).await;
        assert_eq!(here.len(), 2, "{round}");
        for replica in &servers.nodes()[1..] {
            assert_eq!(tags(replica).await, here, "{round}");
        }
        assert!(!is_there(&cache, "k").await);
    }
}

#[tokio::test]
async fn a_replica_that_hangs_is_reported_and_the_invalidation_holds() {
    let servers = Replicated::start(2).await;
    let cache = client(&servers).cache("c");
    set(&cache, "k", &["t"]).await;
    servers.replica(0).stop();
    let one = cache.invalidate_tags(["t"]).durable(1).await;
    one.expect("the other has acknowledged");
    set(&cache, "k", &["t"]).await;
    let both = cache.invalidate_tags(["t"]).durable(2).deadline(SHORT);
    let error = bounded("an error", both.into_future()).await;
    let error = error.expect_err("one hangs");
    assert!(is_executed(&error), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("1 of 2 replicas"), "{text}");
    assert!(text.contains("executed on the primary"), "{text}");
    assert!(!text.contains("background"), "{text}");
    assert_eq!(cache.undelivered().waiting, 0);
    assert!(!is_there(&cache, "k").await);
    servers.replica(0).resume();
    let both = cache.invalidate_tags(["t"]).durable(2).await;
    both.expect("both have acknowledged");
}

#[tokio::test]
async fn a_failover_does_not_undo_a_durable_invalidation() {
    let servers = Replicated::start(1).await;
    let cache = client(&servers).cache("c");
    set(&cache, "gone", &["t"]).await;
    set(&cache, "there", &["u"]).await;
    let durable = cache.invalidate_tags(["t"]).durable(1).await;
    durable.expect("acknowledged");
    servers.primary().kill().await;
    let replica = servers.replica(0);
    let _: () = replica.run(&["REPLICAOF", "NO", "ONE"]).await;
    let promoted = Client::builder().url(&replica.url());
    let cache = patient(promoted).open().expect("a good URL").cache("c");
    assert!(is_there(&cache, "there").await);
    assert!(!is_there(&cache, "gone").await);
}

#[tokio::test]
async fn a_tag_that_the_primary_has_lost_is_invalidated_on_the_replica_too() {
    let servers = Replicated::start(1).await;
    let cache = client(&servers).cache("c");
    set(&cache, "k", &["t"]).await;
    let before = tags(servers.primary()).await;
    for (key, _) in &before {
        let _: () = servers.primary().run(&["DEL", key]).await;
    }
    let durable = cache.invalidate_tags(["t"]).durable(1).await;
    durable.expect("acknowledged");
    let after = tags(servers.replica(0)).await;
    assert_eq!(after.len(), 1);
    assert!(!before.contains(&after[0]), "another generation");
}

#[tokio::test]
async fn other_calls_do_not_wait_for_the_replicas() {
    let servers = Replicated::start(1).await;
    let cache = client(&servers).cache("c");
    set(&cache, "k", &["t"]).await;
    servers.replica(0).stop();
    let waits = cache.invalidate_tags(["t"]).durable(1).deadline(MINUTE);
    let waits = tokio::spawn(waits.into_future());
    while is_there(&cache, "k").await {}
    for _ in 0..100 {
        set(&cache, "k", &["t"]).await;
        assert!(is_there(&cache, "k").await);
    }
    // Another that asks for too much does not keep this one from its turn.
    servers.replica(0).resume();
    let too_many = cache.invalidate_tags(["u"]).durable(5).deadline(MINUTE);
    let too_many = tokio::spawn(too_many.into_future());
    let one = bounded("an end", waits).await.expect("no panic");
    one.expect("acknowledged");
    let another = cache.invalidate_tags(["t"]).durable(1).await;
    another.expect("acknowledged");
    assert!(!too_many.is_finished());
    too_many.abort();
}

#[tokio::test]
async fn sentinels_lead_it_to_the_primary() {
    let server = Server::start_on("sentinel").await;
    let client = patient(server.builder()).open().expect("good URLs");
    let cache = client.cache("c");
    set(&cache, "k", &["t"]).await;
    let durable = cache.invalidate_tags(["t"]).durable(1).await;
    durable.expect("acknowledged");
    assert!(!is_there(&cache, "k").await);
}

/// Leads the n-th connection to the n-th of these nodes, and all after them to the last.
async fn balancer(nodes: &[&Node]) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await;
    let listener = listener.expect("a free port");
    let url = format!("redis://{}", listener.local_addr().expect("an address"));
    let ports: Vec<u16> = nodes.iter().map(|node| node.port()).collect();
    let accepting = tokio::spawn(async move {
        // Ends all connections when it is dropped with this future.
        let mut connections = JoinSet::new();
        for at in 0.. {
            let (mut client, _) = listener.accept().await.expect("a connection");
            let port = ports[at.min(ports.len() - 1)];
            connections.spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (url, accepting)
}

#[tokio::test]
async fn what_the_replicas_of_another_server_acknowledge_does_not_count() {
    let (one, other) = tokio::join!(Replicated::start(1), Replicated::start(1));
    let (here, there) = (one.primary(), other.primary());
    // The second connection is the one that waits for replicas.
    let (url, accepting) = balancer(&[here, there, here]).await;
    let client = patient(Client::builder().url(&url)).open();
    let cache = client.expect("a good URL").cache("c");
    set(&cache, "k", &["t"]).await;
    let durable = cache.invalidate_tags(["t"]).durable(1).await;
    durable.expect("acknowledged");
    assert_eq!(tags(there).await.len(), 1, "it went there first");
    assert!(!is_there(&cache, "k").await);
    assert_eq!(tags(one.replica(0)).await, tags(here).await);
    accepting.abort();
}

#[tokio::test]
async fn without_replicas_it_is_executed_and_an_error() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set(&cache, "k", &["t"]).await;
    let durable = cache.invalidate_tags(["t"]).durable(1).deadline(SHORT);
    let error = durable.await.expect_err("there is none");
    assert!(is_executed(&error), "{error:?}");
    assert!(!is_there(&cache, "k").await);
}

#[tokio::test]
async fn what_cannot_wait_is_refused_before_anything_is_sent() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    set(&cache, "k", &["t"]).await;
    let brought = Client::builder().connection(connection(server.url()).await);
    let brought = brought.open().expect("a client").cache("c");
    for durable in [
        cache.invalidate_tags(["t"]).durable(0),
        brought.invalidate_tags(["t"]).durable(1),
    ] {
        let error = durable.await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert!(is_there(&cache, "k").await);
}

#[tokio::test]
async fn in_a_cluster_each_primary_waits_for_its_own_replicas() {
    let cluster = Cluster::start(3, 1).await;
    let seeds = cluster.primaries().iter().map(|node| node.url());
    let client = patient(Client::builder().cluster(seeds)).open();
    let cache = client.expect("good URLs").cache("c");
    let keys: Vec<String> = (0..30).map(|number| format!("k{number}")).collect();
    for key in &keys {
        set(&cache, key, &["t"]).await;
    }
    let tagged = cache.invalidate_tags(["t", "u", "v"]).durable(1).await;
    tagged.expect("acknowledged");
    for key in &keys {
        assert!(!is_there(&cache, key).await);
        set(&cache, key, &[]).await;
    }
    cache.clear().durable(1).await.expect("acknowledged");
    for key in &keys {
        assert!(!is_there(&cache, key).await);
    }
    let two = cache.invalidate_tags(["t"]).durable(2).deadline(SHORT);
    let error = two.await.expect_err("each has one");
    assert!(is_executed(&error), "{error:?}");
}
