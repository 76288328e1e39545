//! A primary and its replicas.

use super::{Node, Port, Recipe};
use crate::support::wait::until;

/// A primary with replicas that follow it, ready from the start. Roles move with the test.
#[derive(Debug)]
pub struct Replicated {
    nodes: Vec<Node>,
}

impl Replicated {
    /// A primary and `replicas`, all in step.
    pub async fn start(replicas: usize) -> Self {
        Self::start_with(replicas, None).await
    }

    /// As [`start`](Self::start), with a password for all nodes.
    pub async fn start_with(replicas: usize, password: Option<&str>) -> Self {
        let recipe = || {
            let recipe = Recipe::new().on(Port::free()).with(&SWIFT);
            match password {
                Some(password) => recipe.password(password).with(&["--masterauth", password]),
                None => recipe,
            }
        };
        let primary = recipe().start().await;
        let port = primary.port().to_string();
        let followers =
            (0..replicas).map(|_| recipe().with(&["--replicaof", "127.0.0.1", &port]).start());
        let followers = futures::future::join_all(followers).await;
        let mut nodes = vec![primary];
        nodes.extend(followers);
        let replicated = Self { nodes };
        replicated.in_step(0).await;
        replicated
    }

    /// All nodes; the first was the primary at the start.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node that was the primary at the start.
    pub fn primary(&self) -> &Node {
        &self.nodes[0]
    }

    /// A node that was a replica at the start.
    pub fn replica(&self, index: usize) -> &Node {
        &self.nodes[1 + index]
    }

    /// Waits until all others follow the node with this index.
    pub async fn in_step(&self, primary: usize) {
        let port = self.nodes[primary].port().to_string();
        for (index, node) in self.nodes.iter().enumerate() {
            until("the replicas follow", async || {
                index == primary
                    || node.info("replication", "master_link_status").await == "up"
                        && node.info("replication", "master_port").await == port
            })
            .await;
        }
        let count = (self.nodes.len() - 1).to_string();
        until("the primary knows its replicas", async || {
            let info: String = self.nodes[primary].run(&["INFO", "replication"]).await;
            info.matches("state=online").count().to_string() == count
        })
        .await;
    }

    /// Hands the primary's role over to a replica in the servers' own, lossless way.
    pub async fn failover(&self, from: usize, to: usize) {
        let port = self.nodes[to].port().to_string();
        let _: String = self.nodes[from]
            .run(&["FAILOVER", "TO", "127.0.0.1", &port])
            .await;
        until("the replica is promoted", async || {
            self.nodes[to].info("replication", "role").await == "master"
                && self.nodes[from].info("replication", "role").await == "slave"
        })
        .await;
    }
}

/// Replicas are online in a fraction of a second.
const SWIFT: [&str; 4] = [
    "--repl-diskless-sync-delay",
    "0",
    "--repl-ping-replica-period",
    "1",
];
