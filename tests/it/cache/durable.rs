//! Invalidations that wait for replicas.

use std::future::IntoFuture as _;
use std::time::Duration;

use hedgerow::{Cache, Client, Error, ErrorKind};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::server::{Server, connection};
use crate::support::topology::{Cluster, Node, Replicated, Shards};
use crate::support::wait::{bounded, patient};

const MINUTE: Duration = Duration::from_secs(60);
/// For calls that wait for replicas in vain, until their end. Long enough to connect and to be
/// executed, also on a machine that has much to do.
const IN_VAIN: Duration = Duration::from_secs(5);

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
    let both = cache.invalidate_tags(["t"]).durable(2).deadline(IN_VAIN);
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
    let durable = cache.invalidate_tags(["t"]).durable(1).deadline(IN_VAIN);
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
        cache.invalidate_tags(["t"]).durable(1001),
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
    let two = cache.invalidate_tags(["t"]).durable(2).deadline(IN_VAIN);
    let error = two.await.expect_err("each has one");
    assert!(is_executed(&error), "{error:?}");
}

/// How often a node has run a command.
async fn calls(node: &Node, command: &str) -> usize {
    let field = format!("cmdstat_{command}");
    let stats = node.info("commandstats", &field).await;
    let calls = stats
        .strip_prefix("calls=")
        .and_then(|it| it.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

#[tokio::test]
async fn a_server_that_refuses_to_wait_executes_it_once_and_says_so() {
    let servers = Replicated::start(1).await;
    let primary = servers.primary();
    let cache = client(&servers).cache("c");
    set(&cache, "k", &["t"]).await;
    let durable = cache.invalidate_tags(["u"]).durable(1).await;
    durable.expect("acknowledged");
    for right in ["wait", "info"] {
        // Another client: this one has its proofs.
        let cache = client(&servers).cache("c");
        set(&cache, "k", &["t"]).await;
        let before = calls(primary, "set").await;
        let taken = format!("-{right}");
        let _: () = primary.run(&["ACL", "SETUSER", "default", &taken]).await;
        let error = cache.invalidate_tags(["t"]).durable(1).await;
        let error = error.expect_err("a right is missing");
        let given = format!("+{right}");
        let _: () = primary.run(&["ACL", "SETUSER", "default", &given]).await;
        assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
        assert!(!error.is_retryable() && !error.is_indeterminate());
        let text = error.to_string();
        assert!(text.contains("executed on the primary"), "{text}");
        assert!(text.contains("WAIT and INFO"), "{text}");
        assert_eq!(calls(primary, "set").await, before + 1, "{right}");
        assert_eq!(cache.undelivered().waiting, 0);
        assert!(!is_there(&cache, "k").await);
    }
}

#[tokio::test]
async fn many_tags_wait_together() {
    let servers = Replicated::start(1).await;
    let cache = client(&servers).cache("c");
    let names: Vec<String> = (0..200).map(|number| format!("t{number}")).collect();
    let durable = cache.invalidate_tags(&names).durable(1).await;
    durable.expect("acknowledged");
    let primary = servers.primary();
    let waits = calls(primary, "wait").await;
    assert!(waits < 20, "{waits}");
    assert_eq!(tags(servers.replica(0)).await, tags(primary).await);
    // A replica that hangs costs all of them one wait, and not each its own.
    servers.replica(0).stop();
    let short = cache.invalidate_tags(&names).durable(1).deadline(IN_VAIN);
    let error = short.await.expect_err("the replica hangs");
    assert!(is_executed(&error), "{error:?}");
    servers.replica(0).resume();
}

#[tokio::test]
async fn a_call_that_fails_goes_on_without_its_replicas_and_says_so() {
    let servers = Replicated::start(1).await;
    let cache = client(&servers).cache("c");
    set(&cache, "k", &["t"]).await;
    let primary = servers.primary();
    let _: () = primary
        .run(&["ACL", "SETUSER", "default", "resetkeys", "~other:*"])
        .await;
    let durable = cache.invalidate_tags(["t"]).durable(1).await;
    let error = durable.expect_err("forbidden");
    let text = error.to_string();
    assert!(
        text.contains("in the background, without waiting"),
        "{text}"
    );
    assert_eq!(cache.undelivered().waiting, 1);
}

#[tokio::test]
async fn a_shared_connection_that_leads_to_a_former_primary_is_given_up() {
    let (former, present) = tokio::join!(Replicated::start(1), Replicated::start(1));
    let (there, here) = (former.primary(), present.primary());
    // The first connection is the one for all calls.
    let (url, accepting) = balancer(&[there, here]).await;
    let client = patient(Client::builder().url(&url)).open();
    let cache = client.expect("a good URL").cache("c");
    set(&cache, "k", &["t"]).await;
    let durable = cache.invalidate_tags(["t"]).durable(1).await;
    durable.expect("acknowledged");
    assert_eq!(tags(here).await.len(), 1);
    assert_eq!(tags(present.replica(0)).await, tags(here).await);
    assert!(!is_there(&cache, "k").await);
    accepting.abort();
}

#[tokio::test]
async fn a_tag_whose_slot_is_being_moved_is_invalidated_where_it_goes() {
    let cluster = Cluster::start(3, 1).await;
    let seeds = cluster.primaries().iter().map(|node| node.url());
    let client = patient(Client::builder().cluster(seeds)).open();
    let cache = client.expect("good URLs").cache("c");
    set(&cache, "k", &["t"]).await;
    let mut tag = None;
    for (index, node) in cluster.primaries().iter().enumerate() {
        let named = tags(node)
            .await
            .into_iter()
            .find(|(_, it)| it.ends_with(b"t"));
        tag = tag.or(named.map(|(key, _)| (index, key)));
    }
    let (from, tag) = tag.expect("the tag");
    let node = &cluster.primaries()[from];
    let slot: u16 = node.run(&["CLUSTER", "KEYSLOT", &tag]).await;
    let migration = cluster.migrate(slot, (from + 1) % 3).await;
    migration.carry_all().await;
    let durable = cache.invalidate_tags(["t"]).durable(1).await;
    durable.expect("acknowledged");
    assert!(!is_there(&cache, "k").await);
}

#[tokio::test]
async fn an_error_names_the_shard() {
    let shards = Shards::start(2).await;
    let urls = shards.nodes().iter().map(|node| node.url());
    let named = ["a", "b"].into_iter().zip(urls);
    let client = Client::builder().shards(named.map(|(name, url)| (name, url, 1)));
    let cache = patient(client).open().expect("good URLs").cache("c");
    let durable = cache.clear().durable(1).deadline(IN_VAIN);
    let error = durable.await.expect_err("no shard has a replica");
    assert!(is_executed(&error), "{error:?}");
    assert!(error.to_string().contains("shard \"a\""), "{error}");
}

#[tokio::test]
async fn what_waits_for_a_turn_is_bounded() {
    let servers = Replicated::start(1).await;
    let cache = client(&servers).cache("c").deadline(MINUTE);
    let durable = cache.invalidate_tags(["t"]).durable(1).await;
    durable.expect("acknowledged");
    servers.primary().stop();
    let mut calls = JoinSet::new();
    for call in 0..30 {
        let names = (0..256).map(|number| format!("{call}:{number}"));
        calls.spawn(cache.invalidate_tags(names).durable(1).into_future());
    }
    let first = bounded("an end", calls.join_next()).await;
    let first = first.expect("a call").expect("no panic");
    let error = first.expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(error.is_retryable());
    servers.primary().resume();
}
