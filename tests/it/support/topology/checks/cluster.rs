//! Clusters: they start, serve, move slots and fail over.

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::topology::{Cluster, Port};
use crate::support::wait::until;

#[tokio::test]
async fn keyed_commands_find_their_node_and_the_rest_goes_to_all() {
    let cluster = Cluster::start(3, 0).await;
    for key in ["a", "b", "c", "d", "e"] {
        let _: String = cluster.run(&["SET", key, "1"]).await;
        let there: bool = cluster.node_of(key).await.run(&["EXISTS", key]).await;
        assert!(there);
    }
    let sizes: Vec<usize> = cluster.run_all(&["DBSIZE"]).await;
    assert_eq!(sizes.iter().sum::<usize>(), 5);
    assert!(sizes.iter().all(|&size| size > 0), "spread: {sizes:?}");
    let _: Vec<String> = cluster.run_all(&["FLUSHALL"]).await;
    let sizes: Vec<usize> = cluster.run_all(&["DBSIZE"]).await;
    assert_eq!(sizes, [0, 0, 0]);
}

#[tokio::test]
async fn a_slot_is_moved_and_every_step_shows() {
    let cluster = Cluster::start(2, 0).await;
    let slot = hedgerow::key::slot(b"t");
    let from = cluster.owner_of(slot).await;
    let set: String = cluster.run(&["MSET", "{t}1", "a", "{t}2", "b"]).await;
    assert_eq!(set, "OK");
    let moving = cluster.migrate(slot, 1 - from).await;
    let (source, target) = (moving.source(), moving.target());

    let both = ["MGET", "{t}1", "{t}2"];
    let _: Vec<String> = source.run(&both).await;
    moving.carry("{t}1").await;
    let gone = source.try_run::<String>(&["GET", "{t}1"]).await;
    assert_eq!(gone.expect_err("it has gone").code(), Some("ASK"));
    let torn = source.try_run::<Vec<String>>(&both).await;
    assert_eq!(torn.expect_err("in two places").code(), Some("TRYAGAIN"));
    let torn = target.try_ask::<Vec<String>>(&both).await;
    assert_eq!(torn.expect_err("in two places").code(), Some("TRYAGAIN"));
    let early = target.try_run::<String>(&["GET", "{t}1"]).await;
    assert_eq!(early.expect_err("not yet").code(), Some("MOVED"));
    let asked: String = target.try_ask(&["GET", "{t}1"]).await.expect("it is there");
    assert_eq!(asked, "a");
    let followed: String = cluster.run(&["GET", "{t}1"]).await;
    assert_eq!(followed, "a");

    assert_eq!(moving.carry_all().await, 1);
    moving.finish().await;
    let moved = source.try_run::<String>(&["GET", "{t}1"]).await;
    assert_eq!(moved.expect_err("it has moved").code(), Some("MOVED"));
    let values: Vec<String> = target.run(&both).await;
    assert_eq!(values, ["a", "b"]);
    assert_eq!(cluster.owner_of(slot).await, 1 - from);

    let back = cluster.migrate(slot, from).await;
    back.abandon().await;
    assert_eq!(cluster.owner_of(slot).await, 1 - from);
    let values: Vec<String> = cluster.run(&both).await;
    assert_eq!(values, ["a", "b"]);
}

#[tokio::test]
async fn replicas_take_over_when_asked_and_when_a_primary_dies() {
    let cluster = Cluster::start_hasty(3, 1).await;
    let key = "a";
    let _: String = cluster.run(&["SET", key, "1"]).await;
    let old = cluster.owner_of(hedgerow::key::slot(key.as_bytes())).await;
    let replica = cluster.replica_of(old, 0);
    let _: usize = cluster.nodes()[old].run(&["WAIT", "1", "10000"]).await;
    cluster.failover(replica).await;
    assert_eq!(
        cluster.owner_of(hedgerow::key::slot(key.as_bytes())).await,
        replica
    );
    let value: String = cluster.run(&["GET", key]).await;
    assert_eq!(value, "1");

    cluster.nodes()[replica].kill().await;
    cluster.is_primary(old).await;
    cluster.agrees().await;
    let value: String = cluster.run(&["GET", key]).await;
    assert_eq!(value, "1");
    cluster.nodes()[replica].start_again().await;
    until("it comes back as a replica", async || {
        let node = &cluster.nodes()[replica];
        node.info("replication", "role").await == "slave"
    })
    .await;
    cluster.agrees().await;
}

#[tokio::test]
async fn a_cluster_sends_its_clients_to_the_proxies_before_it() {
    let ports = [Port::free(), Port::free()];
    let cluster = Cluster::start_announcing(&ports.each_ref().map(Port::number)).await;
    let mut proxies = Vec::new();
    for (port, node) in ports.into_iter().zip(cluster.nodes()) {
        proxies.push(Proxy::on_port(port, node.port()).await);
    }
    let (key, other) = ("a", 1 - cluster.owner_of(hedgerow::key::slot(b"a")).await);
    let mut connection = crate::support::server::connection(proxies[other].url()).await;
    let moved: redis::RedisResult<()> = redis::cmd("GET")
        .arg(key)
        .query_async(&mut connection)
        .await;
    let moved = moved.expect_err("another node's");
    let (address, _) = moved.redirect_node().expect("an address");
    let proxy = &proxies[1 - other];
    assert_eq!(format!("redis://{address}"), proxy.url());
    let rule = proxy.on(Request::any().named("GET"), Act::Reset);
    let mut connection = crate::support::server::connection(proxy.url()).await;
    let lost: redis::RedisResult<()> = redis::cmd("GET")
        .arg(key)
        .query_async(&mut connection)
        .await;
    assert!(lost.is_err());
    assert_eq!(rule.hits(), 1);
    let none: Option<String> = cluster.run(&["GET", key]).await;
    assert_eq!(none, None);
}
