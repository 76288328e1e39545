//! A slot on its way from one primary to another, step by step.
//!
//! Between the steps a test sees what clients see then: `ASK` for keys that have gone, `TRYAGAIN`
//! for calls whose keys are in both places, `MOVED` afterwards.

use super::{Cluster, Node};

/// A migration that has begun. Dropped, it stays where it is.
#[derive(Debug)]
pub struct Migration<'a> {
    cluster: &'a Cluster,
    slot: u16,
    from: usize,
    to: usize,
}

impl<'a> Migration<'a> {
    pub(super) async fn begin(cluster: &'a Cluster, slot: u16, from: usize, to: usize) -> Self {
        assert_ne!(from, to, "the slot is there already");
        let migration = Self {
            cluster,
            slot,
            from,
            to,
        };
        let (source, target) = (cluster.id(from), cluster.id(to));
        migration
            .set_slot(migration.target(), &["IMPORTING", source])
            .await;
        migration
            .set_slot(migration.source(), &["MIGRATING", target])
            .await;
        migration
    }

    pub fn source(&self) -> &'a Node {
        &self.cluster.nodes()[self.from]
    }

    pub fn target(&self) -> &'a Node {
        &self.cluster.nodes()[self.to]
    }

    /// Moves one key.
    pub async fn carry(&self, key: &str) {
        let port = self.target().port().to_string();
        let words = ["MIGRATE", "127.0.0.1", &port, key, "0", "5000"];
        let _: String = self.source().run(&words).await;
    }

    /// Moves all keys that are still at the source; returns how many.
    pub async fn carry_all(&self) -> usize {
        let slot = self.slot.to_string();
        let mut carried = 0;
        loop {
            let words = ["CLUSTER", "GETKEYSINSLOT", &slot, "100"];
            let keys: Vec<String> = self.source().run(&words).await;
            if keys.is_empty() {
                return carried;
            }
            carried += keys.len();
            for key in keys {
                self.carry(&key).await;
            }
        }
    }

    /// Gives the slot to the target; all primaries are told.
    pub async fn finish(self) {
        let owner = self.cluster.id(self.to);
        self.set_slot(self.target(), &["NODE", owner]).await;
        self.set_slot(self.source(), &["NODE", owner]).await;
        for node in self.cluster.primaries_now().await {
            self.set_slot(node, &["NODE", owner]).await;
        }
        self.cluster.agrees().await;
    }

    /// The source says that the target serves the slot, which does not know that: each sends
    /// clients to the other.
    pub async fn leave(&self) {
        let owner = self.cluster.id(self.to);
        self.set_slot(self.source(), &["NODE", owner]).await;
    }

    /// Gives up: the slot stays with the source. Keys that have gone are not brought back.
    pub async fn abandon(self) {
        self.set_slot(self.target(), &["STABLE"]).await;
        self.set_slot(self.source(), &["STABLE"]).await;
    }

    async fn set_slot(&self, node: &Node, words: &[&str]) {
        let slot = self.slot.to_string();
        let mut all = vec!["CLUSTER", "SETSLOT", &slot];
        all.extend(words);
        let _: String = node.run(&all).await;
    }
}
