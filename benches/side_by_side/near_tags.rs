//! Hits with three tags whose generations the near cache knows, while the value is read from Redis:
//! one command, against the driver's own GET of as many bytes, on one server and on a cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hedgerow::cache::NearCache;
use hedgerow::embedded::Server;
use hedgerow::{Cache, Client, key};
use redis::aio::MultiplexedConnection;

use crate::near::hold;
use crate::slices::{Length, Result, Runs, driver, patient, spread};
use crate::topologies::servers::Cluster;

const KEYS: usize = 1000;
const TTL: Duration = Duration::from_secs(3600);
const TAGS: [&str; 3] = ["country:AD", "region:02", "kind:city"];

pub(crate) async fn run(runs: &Runs) -> Result<()> {
    if runs.wants("near_tags_3/raw_get") {
        let server = Server::start().await?;
        let urls = vec![server.url().to_owned()];
        let client = patient().url(server.url()).connect().await?;
        against("near_tags_3/raw_get", client, &urls, runs).await?;
    }
    if runs.length == Length::Full && runs.wants("cluster_near_tags_3/raw_get") {
        let cluster = Cluster::start(3, false).await?;
        let client = patient().cluster(cluster.seeds()).connect().await?;
        against(
            "cluster_near_tags_3/raw_get",
            client,
            &cluster.seeds(),
            runs,
        )
        .await?;
    }
    Ok(())
}

/// Compares hits of `client` with reads of the primaries at `urls`, which share the slots evenly.
async fn against(name: &str, client: Client, urls: &[String], runs: &Runs) -> Result<()> {
    let mut drivers = Vec::new();
    for url in urls {
        drivers.push(driver(url).await?);
    }
    // No value of 100 bytes is kept, and one byte is: it brings the generations of its tags along.
    let near = NearCache::new().max_value(50);
    let cache = client.cache("near-tags").near(near);
    let keys: Vec<String> = (0..KEYS).map(|key| format!("city:{key}")).collect();
    let small: Vec<String> = keys.iter().map(|key| format!("small:{key}")).collect();
    let mut bare = Vec::new();
    for (key, small) in keys.iter().zip(&small) {
        cache.set(key, &"x".repeat(100), TTL).tags(TAGS).await?;
        cache.set(small, "x", TTL).tags(TAGS).await?;
        let text = format!("bare:{key}");
        let at = usize::from(key::slot(text.as_bytes())) * urls.len() / 16_384;
        let mut set = redis::cmd("SET");
        let set = set.arg(&text).arg("x".repeat(100));
        set.exec_async(&mut drivers[at].clone()).await?;
        bare.push((text, at));
    }
    hold(&cache, &small).await?;
    let before = commands(&drivers).await?;
    for key in &keys {
        hit(&cache, key).await;
    }
    let each = (commands(&drivers).await? - before) as f64 / KEYS as f64;
    let count = name.replace("/raw_get", "_commands_a_hit");
    runs.report.add(&count, each);
    let (keys, bare) = (Arc::new(keys), Arc::new(bare));
    let ours = async |tasks, until| {
        spread(tasks, |task| {
            let (cache, keys) = (cache.clone(), keys.clone());
            async move {
                let mut done = 0;
                while Instant::now() < until {
                    hit(&cache, &keys[(task * 31 + done) % KEYS]).await;
                    done += 1;
                }
                done as u64
            }
        })
        .await
    };
    let theirs = async |tasks, until| {
        spread(tasks, |task| {
            let (mut drivers, bare) = (drivers.clone(), bare.clone());
            async move {
                let mut done = 0;
                while Instant::now() < until {
                    let (key, at) = &bare[(task * 31 + done) % KEYS];
                    let mut get = redis::cmd("GET");
                    let value = get.arg(key).query_async(&mut drivers[*at]).await;
                    let value: String = value.expect("found");
                    assert_eq!(value.len(), 100);
                    done += 1;
                }
                done as u64
            }
        })
        .await
    };
    for tasks in [1, 50] {
        let row = format!("{name}@{tasks}");
        runs.compare(&row, tasks, ours, theirs).await;
    }
    Ok(())
}

async fn hit(cache: &Cache, key: &str) {
    let load = || async { Err::<String, _>("a hit loads nothing") };
    let value = cache.memoize(key, TTL, load).tags(TAGS).await;
    assert_eq!(value.expect("a hit").len(), 100);
}

/// How many commands that read keys the servers have run.
async fn commands(drivers: &[MultiplexedConnection]) -> Result<u64> {
    let mut calls = 0;
    for driver in drivers {
        let mut info = redis::cmd("INFO");
        info.arg("commandstats");
        let info: String = info.query_async(&mut driver.clone()).await?;
        for line in info.lines() {
            let read = ["cmdstat_get:", "cmdstat_mget:", "cmdstat_pttl:"]
                .iter()
                .find_map(|start| line.strip_prefix(start)?.strip_prefix("calls="));
            let count = read.and_then(|rest| rest.split(',').next());
            calls += count.map_or(Ok(0), str::parse::<u64>)?;
        }
    }
    Ok(calls)
}
