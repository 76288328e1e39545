//! Leased topologies are as new.

use crate::support::topology::{Cluster, Lease, lease_cluster, lease_sentinels, lease_shards};

/// What a test may leave behind is gone when the same servers are lent again.
#[tokio::test]
async fn a_leased_cluster_is_as_new() {
    let cluster = lease_cluster().await;
    let ids = [0, 1, 2].map(|index| cluster.id(index).to_owned());
    let _: String = cluster.run(&["SET", "a", "1"]).await;
    for node in cluster.nodes() {
        let _: String = node.run(&["SCRIPT", "LOAD", "return 1"]).await;
        let _: String = node.run(&["CONFIG", "SET", "maxmemory", "100mb"]).await;
        let _: String = node.run(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
        let _: String = node.run(&["ACL", "SETUSER", "app", "on", "nopass"]).await;
        let _: String = node.run(&["ACL", "SETUSER", "default", "-get"]).await;
    }
    let mut client = crate::support::server::connection(&cluster.nodes()[0].url()).await;
    drop(cluster);

    let cluster = same(&ids).await;
    let stale: redis::RedisResult<String> = redis::cmd("PING").query_async(&mut client).await;
    assert!(stale.is_err(), "its clients are gone");
    for node in cluster.nodes() {
        assert_eq!(node.run::<usize>(&["DBSIZE"]).await, 0);
        let sha = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";
        let known: Vec<bool> = node.run(&["SCRIPT", "EXISTS", sha]).await;
        assert_eq!(known, [false]);
        let limit: (String, String) = node.run(&["CONFIG", "GET", "maxmemory"]).await;
        assert_eq!(limit.1, "0");
        let users: Vec<String> = node.run(&["ACL", "USERS"]).await;
        assert_eq!(users, ["default"]);
    }
    let none: Option<String> = cluster.run(&["GET", "a"]).await;
    assert_eq!(none, None);
}

#[tokio::test]
async fn a_cluster_whose_slots_have_moved_is_not_lent_again() {
    let cluster = lease_cluster().await;
    let id = cluster.id(0).to_owned();
    let from = cluster.owner_of(7).await;
    cluster.migrate(7, (from + 1) % 3).await.finish().await;
    drop(cluster);
    // Another test may be quicker, and then throw it away itself.
    let others = [lease_cluster().await, lease_cluster().await];
    assert!(others.iter().all(|other| other.id(0) != id));
}

#[tokio::test]
async fn nobody_has_a_lease_with_another() {
    let (one, two) = (lease_shards().await, lease_shards().await);
    assert_ne!(one.nodes()[0].pid(), two.nodes()[0].pid());
    let _: String = one.nodes()[0].run(&["SET", "a", "1"]).await;
    assert_eq!(two.nodes()[0].run::<usize>(&["DBSIZE"]).await, 0);
    let there: Option<String> = one.try_run(&["GET", "a"], |_| 1).await.expect("an answer");
    assert_eq!(there.as_deref(), Some("1"));
    let routed: String = one.try_run(&["SET", "b", "2"], |_| 1).await.expect("set");
    assert_eq!(routed, "OK");
    assert_eq!(one.nodes()[1].run::<usize>(&["DBSIZE"]).await, 1);
}

#[tokio::test]
async fn leased_sentinels_may_have_failed_over() {
    let sentinels = lease_sentinels().await;
    let _: String = sentinels.primary().await.run(&["SET", "a", "1"]).await;
    sentinels.failover().await;
    drop(sentinels);
    let sentinels = lease_sentinels().await;
    let primary = sentinels.primary().await;
    assert_eq!(primary.run::<usize>(&["DBSIZE"]).await, 0);
    let _: String = primary.run(&["SET", "a", "1"]).await;
}

/// Leases clusters until it is this one.
async fn same(ids: &[String; 3]) -> Lease<Cluster> {
    let mut others = Vec::new();
    loop {
        let cluster = lease_cluster().await;
        if cluster.id(0) == ids[0] {
            return cluster;
        }
        others.push(cluster);
        assert!(others.len() < 3, "it was thrown away");
    }
}
