//! Hits against the driver's own GET, and what a herd costs.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use hedgerow::{Cache, Client};
use redis::aio::MultiplexedConnection;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::slices::{Result, Runs, TASKS, driver, spread};

/// About 1 KB as CBOR.
#[derive(Clone, Serialize, Deserialize)]
struct Record {
    id: u64,
    name: String,
    region: String,
    lat: f64,
    lng: f64,
    tags: Vec<String>,
    history: Vec<(u32, f64)>,
    text: String,
}

impl Record {
    fn sample(id: u64) -> Self {
        Self {
            id,
            name: "Sant Julià de Lòria".to_owned(),
            region: "Andorra".to_owned(),
            lat: 42.463_72,
            lng: 1.491_29,
            tags: (0..8).map(|tag| format!("tag:{tag}")).collect(),
            history: (0..20)
                .map(|year| (2000 + year, f64::from(year) * 1.1))
                .collect(),
            text: "the river flows ".repeat(30),
        }
    }
}

const KEYS: usize = 1000;
const TTL: Duration = Duration::from_secs(3600);
const TAGS: [&str; 3] = ["country:AD", "region:02", "kind:city"];

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    let driver = driver(url).await?;
    let client = Client::connect(url).await?;
    let keys: Arc<Vec<String>> = Arc::new((0..KEYS).map(|key| format!("city:{key}")).collect());

    let small = "x".repeat(100);
    let plain = client.cache("plain");
    let tagged = client.cache("tagged");
    let large = client.cache("large");
    for (id, key) in keys.iter().enumerate() {
        plain.set(key, &small, TTL).await?;
        tagged.set(key, &small, TTL).tags(TAGS).await?;
        let record = Record::sample(id as u64);
        large.set(key, &record, TTL).await?;
        let mut bytes = Vec::new();
        ciborium::into_writer(&record, &mut bytes)?;
        let mut pipe = redis::pipe();
        pipe.set(format!("bare:{key}"), &small)
            .set(format!("bare1k:{key}"), bytes);
        pipe.exec_async(&mut driver.clone()).await?;
    }

    let raw = async |tasks: usize, until: Instant| {
        gets(&driver, &keys, "bare:", tasks, until, |bytes| {
            bytes.len() == 100
        })
        .await
    };
    let decoded = async |tasks: usize, until: Instant| {
        gets(&driver, &keys, "bare1k:", tasks, until, |bytes| {
            ciborium::from_reader::<Record, _>(bytes).is_ok_and(|record| record.tags.len() == 8)
        })
        .await
    };
    for tasks in TASKS {
        if runs.wants("memoize_hit/raw_get") {
            let ours = async |tasks, until| hits::<String>(&plain, &keys, &[], tasks, until).await;
            runs.compare(&format!("memoize_hit/raw_get@{tasks}"), tasks, ours, raw)
                .await;
        }
        if runs.wants("memoize_hit_1k/raw_get_decode") {
            let ours = async |tasks, until| hits::<Record>(&large, &keys, &[], tasks, until).await;
            runs.compare(
                &format!("memoize_hit_1k/raw_get_decode@{tasks}"),
                tasks,
                ours,
                decoded,
            )
            .await;
        }
        if runs.wants("memoize_hit_3tags/raw_get") {
            let ours =
                async |tasks, until| hits::<String>(&tagged, &keys, &TAGS, tasks, until).await;
            runs.compare(
                &format!("memoize_hit_3tags/raw_get@{tasks}"),
                tasks,
                ours,
                raw,
            )
            .await;
        }
    }
    if runs.wants("herd_commands_per_process") {
        herd(url, runs).await?;
    }
    Ok(())
}

async fn hits<V: Serialize + DeserializeOwned + Send + Sync + 'static>(
    cache: &Cache,
    keys: &Arc<Vec<String>>,
    tags: &'static [&'static str],
    tasks: usize,
    until: Instant,
) -> u64 {
    spread(tasks, |task| {
        let (cache, keys) = (cache.clone(), keys.clone());
        async move {
            let mut done = 0;
            while Instant::now() < until {
                let key = &keys[(task * 31 + done) % KEYS];
                let value: Arc<V> = cache
                    .memoize(key, TTL, || async { Err::<V, _>("a hit loads nothing") })
                    .tags(tags)
                    .await
                    .expect("a hit");
                std::hint::black_box(value);
                done += 1;
            }
            done as u64
        }
    })
    .await
}

async fn gets(
    driver: &MultiplexedConnection,
    keys: &Arc<Vec<String>>,
    prefix: &'static str,
    tasks: usize,
    until: Instant,
    good: impl Fn(&[u8]) -> bool + Copy + Send + 'static,
) -> u64 {
    spread(tasks, |task| {
        let (mut driver, keys) = (driver.clone(), keys.clone());
        async move {
            let mut done = 0;
            while Instant::now() < until {
                let key = format!("{prefix}{}", keys[(task * 31 + done) % KEYS]);
                let bytes: Vec<u8> = redis::cmd("GET")
                    .arg(key)
                    .query_async(&mut driver)
                    .await
                    .expect("found");
                assert!(good(&bytes));
                done += 1;
            }
            done as u64
        }
    })
    .await
}

/// 8 processes (clients of their own) with 100 callers each ask for one cold key: how many
/// commands each sends, as `MONITOR` shows; what scripts run inside the server does not count.
async fn herd(url: &str, runs: &Runs) -> Result<()> {
    const CLIENTS: usize = 8;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(url).await?);
    }
    // Connections, subscriptions and scripts are made by a first herd.
    stampede(&clients, "warm").await;
    let monitor = redis::Client::open(url)?.get_async_monitor().await?;
    let mut lines = monitor.into_on_message::<String>();
    let loads = stampede(&clients, "cold").await;
    driver(url)
        .await?
        .send_packed_command(redis::cmd("ECHO").arg("herd is over"))
        .await?;
    let mut commands = 0;
    while let Some(line) = lines.next().await {
        if line.contains("herd is over") {
            break;
        }
        // What a connection says to set itself up, and what runs inside of scripts, does not count.
        let aside = ["\"HELLO\"", "\"CLIENT\"", "\"PING\"", " lua]"];
        commands += usize::from(!aside.iter().any(|part| line.contains(part)));
    }
    let each = commands as f64 / CLIENTS as f64;
    runs.report.add("herd_commands_per_process", each);
    eprintln!("    {CLIENTS} processes, 100 callers each: {commands} commands, {loads} load");
    Ok(())
}

async fn stampede(clients: &[Client], key: &str) -> u64 {
    let start = Arc::new(tokio::sync::Barrier::new(clients.len() * 100));
    spread(clients.len() * 100, |caller| {
        let cache = clients[caller / 100].cache("herd");
        let (start, key) = (start.clone(), key.to_owned());
        async move {
            start.wait().await;
            let (loaded, did) = tokio::sync::oneshot::channel();
            cache
                .memoize(&key, TTL, move || async move {
                    let _ = loaded.send(());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok::<_, Infallible>("a page".to_owned())
                })
                .await
                .expect("loaded");
            u64::from(did.await.is_ok())
        }
    })
    .await
}
