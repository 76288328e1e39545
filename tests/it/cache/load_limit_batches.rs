//! Batches under a limit of loads: one permit for one call of the loader, whatever becomes of it.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Cache, Client, Outage};
use tokio::task::JoinHandle;

use super::load_limit::{MINUTE, loading, missed, one_by_one, value};
use crate::support::gate::Gate;
use crate::support::server::{Server, signal};
use crate::support::wait::until;

/// Two servers, each with its own part of the keys.
pub(super) struct Shards {
    servers: Vec<Server>,
    /// Asked at the beginning: a server that is stopped does not say.
    pids: Vec<u32>,
    pub(super) client: Client,
}

impl Shards {
    pub(super) async fn start() -> Self {
        let servers = join_all((0..2).map(|_| Server::start_single())).await;
        let shards = ["a", "b"].into_iter().zip(&servers);
        let shards = shards.map(|(name, server)| (name, server.url(), 1));
        // Longer than any test: a server that is stopped is not out.
        let ages = Duration::from_secs(600);
        let builder = Client::builder().shards(shards).cache_deadline(ages);
        let client = builder.open().expect("good shards");
        let pids = join_all(servers.iter().map(Server::pid)).await;
        Self {
            servers,
            pids,
            client,
        }
    }

    /// Two names on each of the servers.
    pub(super) async fn names(&self, cache: &Cache) -> [Vec<String>; 2] {
        let mut names = [Vec::new(), Vec::new()];
        for number in 0.. {
            let name = format!("k{number}");
            cache.set(&name, &1u8, MINUTE).await.expect("stored");
            let key = format!("hr:v:{{c:{name}}}");
            let home: usize = self.servers[1].run(&["EXISTS", &key]).await;
            cache.remove(&name).await.expect("removed");
            names[home].push(name);
            if names.iter().all(|names| names.len() >= 2) {
                break;
            }
        }
        names
    }

    /// The server keeps its connections, and says nothing.
    pub(super) fn stop(&self, number: usize) {
        signal(self.pids[number], "STOP");
    }

    pub(super) fn resume(&self, number: usize) {
        signal(self.pids[number], "CONT");
    }
}

/// A batch of these keys, each call of whose loader runs until the gate is opened. Returns how many
/// values there are.
pub(super) fn batch(cache: &Cache, keys: &[&str], gate: &Gate) -> JoinHandle<hedgerow::Result<u8>> {
    let (cache, gate) = (cache.clone(), gate.clone());
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    tokio::spawn(async move {
        let load = move |keys: Vec<String>| {
            let loaded: HashMap<_, _> = keys.into_iter().map(|key| (key, 1u8)).collect();
            gate.clone().load(loaded)
        };
        let mut values = 0;
        for outcome in cache.memoize_many(keys, MINUTE, load).await? {
            values += *outcome?.expect("nothing is left out");
        }
        Ok(values)
    })
}

#[tokio::test]
async fn a_batch_waits_for_its_permit_without_redis_too() {
    let server = Server::start_single().await;
    let soon = Duration::from_millis(300);
    let client = server.builder().cache_deadline(soon).open();
    let cache = client.expect("a good URL").cache("c").max_loads(1);
    let cache = cache.outage(Outage::Bypass);
    server.kill().await;
    let gate = Gate::closed();
    let calls = (0..4).map(|at| {
        let keys = [format!("{at}a"), format!("{at}b")];
        batch(&cache, &[&keys[0], &keys[1]], &gate)
    });
    let calls: Vec<_> = calls.collect();
    until("reads are bypassed", async || cache.bypassed().reads >= 8).await;
    one_by_one(&gate, &calls, 1).await;
    for call in calls {
        assert_eq!(value(call).await, 2);
    }
    assert_eq!(gate.loads(), 4, "one call for each batch");
}

#[tokio::test]
async fn a_load_that_comes_too_late_for_its_batch_takes_a_permit_of_its_own() {
    let shards = Shards::start().await;
    let cache = shards.client.cache("c").max_loads(1);
    // A batch waits for its loads for a quarter of this.
    let cache = cache.max_load(Duration::from_secs(12));
    let [here, there] = shards.names(&cache).await;
    let gate = Gate::closed();
    let first = loading(&cache, &here[0], &gate);
    gate.begun(1).await;
    let batch = batch(&cache, &[&here[1], &there[0]], &gate);
    missed(&cache, 3).await;
    // Both keys are read, and wait for the permit.
    shards.stop(1);
    gate.open();
    // The batch goes on without the other key.
    gate.begun(2).await;
    shards.resume(1);
    until("the other has its lease", async || {
        !shards.servers[1].keys("hr:l:*").await.is_empty()
    })
    .await;
    for _ in 0..100 {
        // An answer that comes after that of the lease.
        let found = cache.get::<u8>(&there[1]).await.expect("an answer");
        assert_eq!(found, None);
    }
    assert_eq!(gate.loads(), 2, "the permit is taken");
    gate.open();
    gate.begun(3).await;
    gate.open();
    assert_eq!((value(first).await, value(batch).await), (1, 2));
}
