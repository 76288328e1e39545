//! The same calls on one server, on a cluster of three primaries, on two shards, and on one server
//! over several connections: throughput, and the client's own CPU time for each operation.
//!
//! `cluster_hit/one@50` is a ratio of throughputs, higher is better; `cpu_cluster_hit/one@50` a
//! ratio of CPU times an operation, lower is better. All servers share the machine with the client.

#[allow(dead_code, reason = "nothing is killed here")]
#[path = "../../examples/servers/cluster.rs"]
pub(crate) mod servers;

use std::time::{Duration, Instant};

use hedgerow::Client;
use hedgerow::embedded::Server;

use crate::slices::{Length, Result, Runs, quartiles, spread};
use servers::Cluster;

/// What a task does over and over.
#[derive(Debug, Clone, Copy)]
enum Work {
    Hit,
    HitThreeTags,
    /// Of 100 KB.
    HitLarge,
    Add,
    LockCycle,
}

const WORK: [(Work, &str); 5] = [
    (Work::Hit, "hit"),
    (Work::HitThreeTags, "hit_3tags"),
    (Work::HitLarge, "hit_100kb"),
    (Work::Add, "counter_add"),
    (Work::LockCycle, "lock_cycle"),
];

pub(crate) async fn run(runs: &Runs) -> Result<()> {
    let wanted = |other: &str| {
        WORK.iter()
            .any(|(_, name)| runs.wants(&format!("{other}_{name}/one")))
    };
    if wanted("cluster") {
        // By TCP, as the others are reached.
        let port = servers::free_ports(1)?[0].to_string();
        let server = Server::start_with(&["--port", &port]).await?;
        let one = Client::connect(&format!("redis://127.0.0.1:{port}")).await?;
        let cluster = Cluster::start(3, false).await?;
        let client = Client::builder().cluster(cluster.seeds()).connect().await?;
        against("cluster", &[client], &one, runs).await?;
        drop(server);
    }
    if wanted("shards") {
        // By Unix sockets, all of them.
        let servers = [
            Server::start().await?,
            Server::start().await?,
            Server::start().await?,
        ];
        let [server, first, second] = &servers;
        let one = Client::connect(server.url()).await?;
        let shards = [("a", first.url(), 1), ("b", second.url(), 1)];
        let client = Client::builder().shards(shards).connect().await?;
        against("shards", &[client], &one, runs).await?;
    }
    if wanted("connections_2") || wanted("connections_4") {
        let server = Server::start().await?;
        let one = Client::connect(server.url()).await?;
        let mut clients = Vec::new();
        for count in [2, 4] {
            while clients.len() < count {
                clients.push(Client::connect(server.url()).await?);
            }
            against(&format!("connections_{count}"), &clients, &one, runs).await?;
        }
    }
    Ok(())
}

/// Compares `clients`, over which tasks are spread, with `one`, both with the same work.
async fn against(other: &str, clients: &[Client], one: &Client, runs: &Runs) -> Result<()> {
    for (work, name) in WORK {
        let name = format!("{other}_{name}/one");
        if !runs.wants(&name) {
            continue;
        }
        for tasks in [50, 500] {
            let (mut rates, mut costs) = (Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                // The first round warms up.
                let mut seen = [(0.0, 0.0); 2];
                for side in [round % 2, (round + 1) % 2] {
                    let clients = [clients, std::slice::from_ref(one)][side];
                    seen[side] = slice(clients, work, tasks).await?;
                }
                if round > 0 {
                    rates.push(seen[0].0 / seen[1].0);
                    costs.push(seen[0].1 / seen[1].1);
                }
            }
            let report = &runs.report;
            report.add_spread(&format!("{name}@{tasks}"), quartiles(&mut rates));
            report.add_spread(&format!("cpu_{name}@{tasks}"), quartiles(&mut costs));
        }
    }
    Ok(())
}

/// Operations a second, and CPU time of this process for each.
async fn slice(clients: &[Client], work: Work, tasks: usize) -> Result<(f64, f64)> {
    let (start, cpu) = (Instant::now(), cpu_time()?);
    let until = start + Length::Full.slice();
    let done = spread(tasks, |task| {
        let client = clients[task % clients.len()].clone();
        async move {
            let cache = client.cache("bench");
            let (counter, lock) = (
                client.counter(&format!("bench:{task}")),
                client.lock(&format!("bench:{task}")),
            );
            let key = format!("key:{}", task % 64);
            let load = || async { Ok::<_, std::io::Error>(7u64) };
            let large = || async { Ok::<_, std::io::Error>("x".repeat(100_000)) };
            let mut done = 0;
            while Instant::now() < until {
                match work {
                    Work::Hit => {
                        let hit = cache.memoize(&key, Duration::from_secs(600), load);
                        hit.await.expect("a hit");
                    }
                    Work::HitThreeTags => {
                        let hit = cache.memoize(&key, Duration::from_secs(600), load);
                        hit.tags(["a", "b", "c"]).await.expect("a hit");
                    }
                    Work::HitLarge => {
                        let key = format!("large:{}", task % 64);
                        let hit = cache.memoize(&key, Duration::from_secs(600), large);
                        hit.await.expect("a hit");
                    }
                    Work::Add => drop(counter.add(1).await.expect("added")),
                    Work::LockCycle => {
                        let guard = lock.acquire().await.expect("free");
                        guard.release().await.expect("released");
                    }
                }
                done += 1;
            }
            done
        }
    })
    .await as f64;
    let took = start.elapsed().as_secs_f64();
    Ok((done / took, (cpu_time()? - cpu) / done))
}

/// The CPU time of the threads of this process so far, in nanoseconds. (Linux tells it so finely.)
fn cpu_time() -> Result<f64> {
    let mut ticks = 0.0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let stat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let nanoseconds = stat.split(' ').next().unwrap_or("0").parse::<f64>()?;
        ticks += nanoseconds;
    }
    Ok(ticks)
}

const ROUNDS: usize = 12;
