//! Many entries at once: read, stored, and removed by pattern.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hedgerow::embedded::Server;
use hedgerow::{Cache, Client};
use redis::aio::MultiplexedConnection;

use crate::slices::{Length, Result, Runs, driver, quartiles, spread};

const TTL: Duration = Duration::from_secs(3600);
const BATCH: usize = 100;

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    let driver = driver(url).await?;
    let cache = Client::connect(url).await?.cache("batch");
    let keys: Vec<String> = (0..BATCH).map(|key| format!("batch:{key}")).collect();
    let value = "x".repeat(100);
    for outcome in cache
        .set_many(keys.iter().map(|key| (key, &value)), TTL)
        .await?
    {
        outcome?;
    }
    let bare: Vec<String> = keys.iter().map(|key| format!("bare:{key}")).collect();
    set_bare(&driver, &bare, &value).await;
    for tasks in [1, 50] {
        if runs.wants("get_many_100/mget_100") {
            let ours = async |tasks, until| found(&cache, &keys, tasks, until).await;
            let theirs = async |tasks, until| found_bare(&driver, &bare, tasks, until).await;
            let row = format!("get_many_100/mget_100@{tasks}");
            runs.compare(&row, tasks, ours, theirs).await;
        }
        if runs.wants("set_many_100/pipelined_set_100") {
            let ours = async |tasks, until| stored(&cache, &keys, tasks, until).await;
            let theirs = async |tasks, until| stored_bare(&driver, &bare, tasks, until).await;
            let row = format!("set_many_100/pipelined_set_100@{tasks}");
            runs.compare(&row, tasks, ours, theirs).await;
        }
    }
    if runs.wants("remove_matching") {
        removals(runs).await?;
    }
    Ok(())
}

async fn found(cache: &Cache, keys: &[String], tasks: usize, until: Instant) -> u64 {
    spread(tasks, |_| {
        let (cache, keys) = (cache.clone(), keys.to_vec());
        async move {
            let mut done = 0;
            while Instant::now() < until {
                let found = cache.get_many::<String>(&keys).await.expect("an answer");
                assert!(found.iter().all(Option::is_some));
                done += 1;
            }
            done
        }
    })
    .await
}

async fn found_bare(
    driver: &MultiplexedConnection,
    keys: &[String],
    tasks: usize,
    until: Instant,
) -> u64 {
    spread(tasks, |_| {
        let (mut driver, keys) = (driver.clone(), keys.to_vec());
        async move {
            let mut done = 0;
            while Instant::now() < until {
                let mut mget = redis::cmd("MGET");
                let found = mget.arg(&keys).query_async(&mut driver).await;
                let found: Vec<Option<String>> = found.expect("an answer");
                assert!(found.iter().all(Option::is_some));
                done += 1;
            }
            done
        }
    })
    .await
}

async fn stored(cache: &Cache, keys: &[String], tasks: usize, until: Instant) -> u64 {
    spread(tasks, |_| {
        let (cache, keys, value) = (cache.clone(), keys.to_vec(), "x".repeat(100));
        async move {
            let mut done = 0;
            while Instant::now() < until {
                let items = keys.iter().map(|key| (key, &value));
                let outcomes = cache.set_many(items, TTL).await.expect("outcomes");
                assert!(outcomes.iter().all(std::result::Result::is_ok));
                done += 1;
            }
            done
        }
    })
    .await
}

async fn stored_bare(
    driver: &MultiplexedConnection,
    keys: &[String],
    tasks: usize,
    until: Instant,
) -> u64 {
    spread(tasks, |_| {
        let (driver, keys, value) = (driver.clone(), keys.to_vec(), "x".repeat(100));
        async move {
            let mut done = 0;
            while Instant::now() < until {
                set_bare(&driver, &keys, &value).await;
                done += 1;
            }
            done
        }
    })
    .await
}

async fn set_bare(driver: &MultiplexedConnection, keys: &[String], value: &str) {
    let mut pipe = redis::pipe();
    for key in keys {
        pipe.set_ex(key, value, TTL.as_secs()).ignore();
    }
    let done = pipe.exec_async(&mut driver.clone()).await;
    done.expect("stored");
}

/// Entries removed by pattern, against the driver that scans and unlinks what it finds, and against
/// `redis-cli --scan | xargs redis-cli unlink`; and the longest of all rounds that another client
/// waited for an answer meanwhile.
async fn removals(runs: &Runs) -> Result<()> {
    let (entries, rounds) = match runs.length {
        Length::Full => (1_000_000, 3),
        Length::Quick => (100_000, 3),
    };
    let server = Server::start().await?;
    let driver = driver(server.url()).await?;
    let cache = Client::connect(server.url()).await?.cache("many");
    let (mut ratios, mut of_shell, mut longest) = (Vec::new(), Vec::new(), 0.0_f64);
    for round in 0..rounds {
        let (mut ours, mut theirs, mut shell) = (Duration::ZERO, Duration::ZERO, None);
        // The order changes, so that no side always meets the memory that another has left.
        for side in 0..3 {
            filled(&driver, entries).await;
            let start = Instant::now();
            match (round + side) % 3 {
                0 => {
                    assert_eq!(unlinked(&driver).await, entries);
                    theirs = start.elapsed();
                }
                1 => {
                    let watched = tokio::spawn(longest_wait(self::driver(server.url()).await?));
                    let start = Instant::now();
                    assert_eq!(cache.remove_matching("user:*").await?, entries);
                    ours = start.elapsed();
                    watched.abort();
                    longest = longest.max(LONGEST.swap(0, Ordering::SeqCst) as f64 / 1e3);
                }
                _ => {
                    shell = unlinked_by_shell(server.url())
                        .await?
                        .then(|| start.elapsed())
                }
            }
        }
        ratios.push(theirs.as_secs_f64() / ours.as_secs_f64());
        of_shell.extend(shell.map(|shell| shell.as_secs_f64() / ours.as_secs_f64()));
        eprintln!("    {entries} entries: {ours:.1?} against {theirs:.1?}, {shell:.1?}");
    }
    let row = format!("remove_matching/scan_unlink@{entries}");
    runs.report.add_spread(&row, quartiles(&mut ratios));
    if !of_shell.is_empty() {
        let row = format!("remove_matching/redis_cli@{entries}");
        runs.report.add_spread(&row, quartiles(&mut of_shell));
    }
    runs.report.add("remove_matching_longest_pause_ms", longest);
    Ok(())
}

/// Removes the entries as an operator would, by `redis-cli` and `xargs`. Returns whether these are
/// there. Without `--count`, which `redis-cli` has since Redis 7.2.
async fn unlinked_by_shell(url: &str) -> Result<bool> {
    let socket = url.trim_start_matches("unix://");
    let line = format!(
        "redis-cli -s {socket} --scan --pattern 'hr:v:{{many:user:*}}' \
         | xargs -n 1000 redis-cli -s {socket} unlink >/dev/null"
    );
    let done = tokio::process::Command::new("sh")
        .args(["-c", &line])
        .status();
    let is_done = done.await.is_ok_and(|status| status.success());
    let mut driver = driver(url).await?;
    let left: u64 = redis::cmd("DBSIZE").query_async(&mut driver).await?;
    if left > 0 {
        let () = redis::cmd("FLUSHALL").query_async(&mut driver).await?;
    }
    Ok(is_done && left == 0)
}

/// Writes entries as strings under the keys of the cache: only their keys count here.
async fn filled(driver: &MultiplexedConnection, entries: u64) {
    for start in (0..entries).step_by(10_000) {
        let mut pipe = redis::pipe();
        for number in start..(start + 10_000).min(entries) {
            let key = format!("hr:v:{{many:user:{number}}}");
            pipe.set(key, "x".repeat(100)).ignore();
        }
        pipe.exec_async(&mut driver.clone()).await.expect("stored");
    }
}

async fn unlinked(driver: &MultiplexedConnection) -> u64 {
    let (mut driver, mut cursor, mut removed) = (driver.clone(), 0, 0);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor)
            .arg("MATCH")
            .arg("hr:v:{many:user:*}")
            .arg("COUNT")
            .arg(1000);
        let (next, keys): (u64, Vec<String>) =
            scan.query_async(&mut driver).await.expect("an answer");
        if !keys.is_empty() {
            let mut unlink = redis::cmd("UNLINK");
            let count: u64 = unlink
                .arg(keys)
                .query_async(&mut driver)
                .await
                .expect("an answer");
            removed += count;
        }
        if next == 0 {
            return removed;
        }
        cursor = next;
    }
}

/// Asks all the time, and notes the longest wait for an answer, in µs.
async fn longest_wait(mut driver: MultiplexedConnection) {
    loop {
        let start = Instant::now();
        let got: Option<String> = redis::cmd("GET")
            .arg("other")
            .query_async(&mut driver)
            .await
            .expect("an answer");
        assert!(got.is_none());
        let waited = start.elapsed().as_micros() as u64;
        LONGEST.fetch_max(waited, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

/// In µs.
static LONGEST: AtomicU64 = AtomicU64::new(0);
