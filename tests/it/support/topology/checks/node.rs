//! Single servers and pairs.

use crate::support::process::Child;
use crate::support::server::state;
use crate::support::topology::{Node, Port, Recipe, Replicated};
use crate::support::wait::until;

#[tokio::test]
async fn a_node_is_stopped_killed_and_started_again_on_its_port() {
    let node = Recipe::new().on(Port::free()).start().await;
    let empty = node.digest().await;
    let _: String = node.run(&["SET", "a", "1"]).await;
    assert_ne!(node.digest().await, empty);
    let (port, pid) = (node.port(), node.pid());
    node.stop();
    let stopped = state(pid);
    assert!(stopped.starts_with('T'), "it is stopped: {stopped}");
    node.resume();
    let _: String = node.run(&["PING"]).await;
    node.kill().await;
    assert!(
        tokio::net::TcpStream::connect(node.address())
            .await
            .is_err()
    );
    node.start_again().await;
    assert_eq!(node.port(), port);
    assert_ne!(node.pid(), pid);
    let count: usize = node.run(&["DBSIZE"]).await;
    assert_eq!(count, 0, "it came back empty");
    // The operating system takes a while to end a process that has much memory.
    let _: usize = node.run(&["SETRANGE", "a", "256000000", "1"]).await;
    let (pid, directory) = (node.pid(), node.directory().to_owned());
    drop(node);
    assert_eq!(state(pid), "", "it ended with its value");
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_at_once() {
    let port = Port::free();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port.number()));
    let taken = taken.expect("a free port");
    let said = Recipe::new().on(port).try_start().await;
    assert!(said.is_err_and(|said| said.contains("Failed listening")));
    drop(taken);
}

#[tokio::test]
async fn servers_end_when_the_process_that_holds_them_is_killed() {
    let mut owner = Child::start("own a topology", &[]);
    let said = owner.says().await;
    let pids: Vec<u32> = said
        .split(' ')
        .map(|pid| pid.parse().expect("a pid"))
        .collect();
    assert_eq!(pids.len(), 3);
    for &pid in &pids {
        assert_ne!(state(pid), "", "it runs");
    }
    owner.kill().await;
    for pid in pids {
        until("the server ends", async || state(pid).is_empty()).await;
    }
}

#[tokio::test]
async fn replicas_follow_and_take_over() {
    let pair = Replicated::start_with(1, Some("secret")).await;
    let [first, second] = [&pair.nodes()[0], &pair.nodes()[1]];
    let _: String = first.run(&["SET", "a", "1"]).await;
    let acknowledged: usize = first.run(&["WAIT", "1", "10000"]).await;
    assert_eq!(acknowledged, 1);
    assert_eq!(first.digest().await, second.digest().await);
    let refused = second.try_run::<()>(&["SET", "a", "2"]).await;
    assert_eq!(refused.expect_err("a replica").code(), Some("READONLY"));
    pair.failover(0, 1).await;
    let _: String = second.run(&["SET", "a", "2"]).await;
    pair.in_step(1).await;
    let refused = first.try_run::<()>(&["SET", "a", "3"]).await;
    assert_eq!(refused.expect_err("a replica").code(), Some("READONLY"));
}

/// The failover that loses what was acknowledged, without a proxy: the replica sleeps meanwhile.
#[tokio::test]
async fn a_replica_that_slept_is_promoted_without_the_last_writes() {
    let pair = Replicated::start(1).await;
    let (primary, replica) = (pair.primary(), pair.replica(0));
    let _: i64 = primary.run(&["INCR", "count"]).await;
    let _: usize = primary.run(&["WAIT", "1", "10000"]).await;
    replica.stop();
    let _: usize = primary.run(&["CLIENT", "KILL", "TYPE", "replica"]).await;
    for _ in 0..2 {
        let _: i64 = primary.run(&["INCR", "count"]).await;
    }
    primary.kill().await;
    replica.resume();
    let _: String = replica.run(&["REPLICAOF", "NO", "ONE"]).await;
    let count: i64 = replica.run(&["GET", "count"]).await;
    assert_eq!(count, 1);
}

/// The owner of the test above: holds a node, a pair's primary and replica.
pub async fn own() -> (Node, Replicated) {
    (
        Recipe::new().on(Port::free()).start().await,
        Replicated::start(1).await,
    )
}
