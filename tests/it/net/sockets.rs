//! How many sockets a client opens on each topology: the numbers of `docs/connections.md`, counted
//! by the servers themselves.

use std::time::Duration;

use hedgerow::{Client, cache::ReadFrom};
use redis::Value;

#[cfg(feature = "tls")]
use crate::support::topology::{Clients, TlsServer};
use crate::support::topology::{Cluster, Node, Recipe, Replicated, Sentinels};
use crate::support::wait::{bounded, queued, until};

const MINUTE: Duration = Duration::from_secs(60);

/// Short: a client that is dropped lives on as long as it owes the release of a lock.
const LEASE: Duration = Duration::from_secs(3);

/// How often connections are lost.
const LOSSES: usize = 30;

#[tokio::test]
async fn one_server_has_one_socket_and_a_second_for_who_waits() {
    let node = Recipe::new().start().await;
    let client = Client::open(&node.url()).expect("a good URL");
    client.ping().await.expect("up");
    client.counter("a").add(1).await.expect("counted");
    let set = client.cache("k").set("v", &1, MINUTE).await;
    set.expect("stored");
    assert_eq!(sockets(&[&node]).await, [1], "nobody waits");
    work(&client, 4).await;
    assert_eq!(sockets(&[&node]).await, [2]);
    for _ in 0..LOSSES {
        cut(&[&node]).await;
        work(&client, 4).await;
    }
    settled(&[&node], &[2]).await;
    drop(client);
    settled(&[&node], &[0]).await;
}

#[tokio::test]
async fn a_cluster_has_two_sockets_a_primary_and_none_on_replicas() {
    let cluster = Cluster::start(3, 1).await;
    let nodes: Vec<&Node> = cluster.nodes().iter().collect();
    let seeds = cluster.nodes().iter().map(Node::url);
    let client = Client::builder().cluster(seeds).open();
    let client = client.expect("good URLs");
    client.ping().await.expect("up");
    settled(&nodes, &[1, 1, 1, 0, 0, 0]).await;
    work(&client, 40).await;
    settled(&nodes, &[2, 2, 2, 0, 0, 0]).await;
    for _ in 0..LOSSES {
        cut(&nodes).await;
        work(&client, 40).await;
    }
    settled(&nodes, &[2, 2, 2, 0, 0, 0]).await;
    drop(client);
    settled(&nodes, &[0; 6]).await;
}

#[tokio::test]
async fn sentinels_have_one_socket_each_and_their_primary_two() {
    let sentinels = Sentinels::start().await;
    let data = sentinels.data().nodes().iter();
    let nodes: Vec<&Node> = data.chain(sentinels.sentinels()).collect();
    let urls = sentinels.sentinels().iter().map(Node::url);
    let client = Client::builder().sentinels(urls, Sentinels::NAME);
    let client = client.open().expect("good URLs");
    work(&client, 4).await;
    settled(&nodes, &[2, 0, 0, 1, 1, 1]).await;
    for _ in 0..LOSSES {
        cut(&nodes).await;
        work(&client, 4).await;
    }
    settled(&nodes, &[2, 0, 0, 1, 1, 1]).await;
    drop(client);
    settled(&nodes, &[0; 6]).await;
}

#[tokio::test]
async fn shards_have_two_sockets_each() {
    let (one, two) = (Recipe::new().start().await, Recipe::new().start().await);
    let nodes = [&one, &two];
    let shards = [("a", one.url(), 1), ("b", two.url(), 1)];
    let client = Client::builder().shards(shards).open();
    let client = client.expect("good URLs");
    work(&client, 40).await;
    settled(&nodes, &[2, 2]).await;
    for _ in 0..LOSSES {
        cut(&nodes).await;
        work(&client, 40).await;
    }
    settled(&nodes, &[2, 2]).await;
    drop(client);
    settled(&nodes, &[0, 0]).await;
}

#[tokio::test]
async fn replicas_have_one_socket_each_while_they_are_read() {
    let servers = Replicated::start(2).await;
    let nodes: Vec<&Node> = servers.nodes().iter().collect();
    let urls = [servers.replica(0).url(), servers.replica(1).url()];
    let client = Client::builder().replicas(&servers.primary().url(), urls);
    let client = client.open().expect("good URLs");
    work(&client, 4).await;
    settled(&nodes, &[2, 0, 0]).await;
    let cache = client.cache("k").read_from(ReadFrom::PreferReplica);
    for _ in 0..LOSSES {
        cut(&nodes).await;
        work(&client, 4).await;
        // What is under way on a lost connection is told.
        let _ = cache.get::<u64>("v").await;
    }
    until("replicas are read again", async || {
        cache.get::<u64>("v").await.expect("an answer");
        sockets(&nodes).await == [2, 1, 1]
    })
    .await;
    drop((client, cache));
    settled(&nodes, &[0; 3]).await;
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_takes_no_more_sockets() {
    let server = TlsServer::start(Clients::Anyone).await;
    let roots = server.certificates.authority.certificate.clone();
    let tls = hedgerow::client::Tls::new().roots_pem(roots);
    let client = Client::builder().url(&server.node.url()).tls(tls);
    let client = client.open().expect("good settings");
    let nodes = [&server.node];
    work(&client, 4).await;
    for _ in 0..LOSSES {
        cut(&nodes).await;
        work(&client, 4).await;
    }
    settled(&nodes, &[2]).await;
    drop(client);
    settled(&nodes, &[0]).await;
}

/// Makes calls of each primitive, on so many names, among them some that wait for pushes.
async fn work(client: &Client, names: usize) {
    for number in 0..names {
        let name = format!("name:{number}");
        // What was under way on a lost connection is told as such, and not what is looked at here.
        let _ = client.counter(&name).add(1).await;
        let cache = client.cache(&name);
        let load = || async { Ok::<_, std::io::Error>(1) };
        let _ = cache.memoize("v", MINUTE, load).tags(["t"]).await;
        let _ = cache.remove("v").await;
        let lock = client.lock(&name).lease(LEASE);
        if number % 4 == 0
            && let Ok(guard) = lock.acquire().await
        {
            let waiting = client.lock(&name).lease(LEASE).wait(MINUTE);
            let waiting = tokio::spawn(async move { waiting.acquire().await.map(drop) });
            queued(&lock, 1).await;
            let _ = guard.release().await;
            let _ = bounded("the next has it", waiting).await;
        }
    }
}

/// Cuts all connections of the crate's.
async fn cut(nodes: &[&Node]) {
    for node in nodes {
        for line in list(node).await {
            let id = line.split(' ').next().and_then(|id| id.strip_prefix("id="));
            let _ = node
                .try_run::<Value>(&["CLIENT", "KILL", "ID", id.unwrap_or_default()])
                .await;
        }
    }
}

/// How many connections of the crate's each server has.
async fn sockets(nodes: &[&Node]) -> Vec<usize> {
    let mut counts = Vec::new();
    for node in nodes {
        counts.push(list(node).await.len());
    }
    counts
}

async fn settled(nodes: &[&Node], expected: &[usize]) {
    let mut last = Vec::new();
    let wait = until("the sockets are as many as expected", async || {
        sockets(nodes).await == expected
    });
    if tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .is_err()
    {
        last = sockets(nodes).await;
    }
    assert!(last.is_empty(), "sockets {last:?}, not {expected:?}");
}

async fn list(node: &Node) -> Vec<String> {
    let list: String = node.run(&["CLIENT", "LIST"]).await;
    let lines = list.lines().filter(|line| line.contains(" name=hedgerow"));
    lines.map(str::to_owned).collect()
}
