//! What a herd on a cold key costs the server: commands, counted by the server itself.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::Barrier;

use crate::support::gate::Gate;
use crate::support::server::Server;
use crate::support::wait::{until, waiting};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_that_comes_on_two_threads_at_once_costs_at_most_four_commands_a_process() {
    const PROCESSES: usize = 8;
    const CALLERS: usize = 100;
    let server = Server::start_single().await;
    let mut caches = Vec::new();
    for _ in 0..PROCESSES {
        caches.push(server.client().await.cache("c"));
    }
    // Connections, subscriptions, scripts and the generation of the cache are made by the first.
    for (round, key) in ["warm", "herd"].into_iter().enumerate() {
        let _: Value = server.run(&["CONFIG", "RESETSTAT"]).await;
        let gate = Gate::closed();
        let start = Arc::new(Barrier::new(PROCESSES * CALLERS));
        let mut callers = tokio::task::JoinSet::new();
        for cache in &caches {
            for _ in 0..CALLERS {
                let (cache, gate, start) = (cache.clone(), gate.clone(), start.clone());
                callers.spawn(async move {
                    start.wait().await;
                    cache.memoize(key, MINUTE, move || gate.load(1u8)).await
                });
            }
        }
        gate.begun(1).await;
        let lease = format!("hr:l:{{c:{key}}}");
        waiting(&server, &lease, PROCESSES - 1).await;
        // One that comes after the load is a hit, which is a read of its own.
        until("all callers wait for the load", || async {
            let missed = caches.iter().map(|cache| cache.stats().misses);
            missed.sum::<u64>() == ((round + 1) * PROCESSES * CALLERS) as u64
        })
        .await;
        gate.open();
        for value in callers.join_all().await {
            assert_eq!(*value.expect("a value"), 1);
        }
        assert_eq!(gate.loads(), 1);
    }
    let stats: String = server.run(&["INFO", "commandstats"]).await;
    let calls = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name));
        let calls = line.and_then(|line| line.split(',').next());
        calls.map_or(0, |calls| calls.parse::<usize>().expect("a number"))
    };
    let sent = ["get", "mget", "evalsha", "eval", "ssubscribe"];
    let sent = sent.map(|name| (name, calls(&format!("cmdstat_{name}:calls="))));
    let commands: usize = sent.iter().map(|(_, calls)| calls).sum();
    assert!(commands <= 4 * PROCESSES, "{commands} commands: {sent:?}");
}
