//! The lock against two bare scripts and against rslock, and how long a hand-over takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hedgerow::Client;

use crate::slices::{Result, Runs, TASKS, compare, driver, median, spread};

/// What a careful engineer writes by hand: a fenced lock in two scripts.
const BARE_ACQUIRE: &str = "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then \
    return redis.call('INCR', KEYS[2]) end return false";
const BARE_RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    let driver = driver(url).await?;
    let acquire: String = load(&driver, BARE_ACQUIRE).await?;
    let release: String = load(&driver, BARE_RELEASE).await?;
    let client = Client::connect(url).await?;

    let ours = async |tasks: usize, until: Instant| {
        spread(tasks, |task| {
            let lock = client.lock(&format!("bench:{task}"));
            async move {
                let mut done = 0;
                while Instant::now() < until {
                    let guard = lock.acquire().await.expect("free");
                    guard.release().await.expect("held");
                    done += 1;
                }
                done
            }
        })
        .await
    };
    let bare = async |tasks: usize, until: Instant| {
        spread(tasks, |task| {
            let (mut driver, acquire, release) = (driver.clone(), acquire.clone(), release.clone());
            async move {
                let (key, fence) = (
                    format!("{{bare:{task}}}:lock"),
                    format!("{{bare:{task}}}:fence"),
                );
                let mut done = 0;
                while Instant::now() < until {
                    let owner = format!("{:032x}", rand::random::<u128>());
                    let mut command = redis::cmd("EVALSHA");
                    command
                        .arg(&acquire)
                        .arg(2)
                        .arg(&key)
                        .arg(&fence)
                        .arg(&owner)
                        .arg(30_000);
                    let _: i64 = command.query_async(&mut driver).await.expect("free");
                    let mut command = redis::cmd("EVALSHA");
                    command.arg(&release).arg(1).arg(&key).arg(&owner);
                    let _: i64 = command.query_async(&mut driver).await.expect("held");
                    done += 1;
                }
                done
            }
        })
        .await
    };
    let manager = Arc::new(rslock::LockManager::new(vec![url]));
    let rival = async |tasks: usize, until: Instant| {
        spread(tasks, |task| {
            let manager = manager.clone();
            async move {
                let name = format!("rival:{task}");
                let mut done = 0;
                while Instant::now() < until {
                    let lock = manager
                        .lock(name.as_bytes(), Duration::from_secs(30))
                        .await
                        .expect("free");
                    manager.unlock(&lock).await;
                    done += 1;
                }
                done
            }
        })
        .await
    };
    for tasks in TASKS {
        if runs.wants("lock_cycle/two_evalsha") {
            compare(
                &format!("lock_cycle/two_evalsha@{tasks}"),
                tasks,
                ours,
                bare,
            )
            .await;
        }
        if runs.wants("lock_cycle/rslock") {
            compare(&format!("lock_cycle/rslock@{tasks}"), tasks, ours, rival).await;
        }
    }
    if runs.wants("handoff_p99/round_trip") {
        for contenders in [8, 64] {
            handoff(url, contenders, contenders).await?;
            handoff(url, contenders, 1).await?;
        }
    }
    Ok(())
}

async fn load(
    driver: &redis::aio::MultiplexedConnection,
    script: &str,
) -> redis::RedisResult<String> {
    redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(script)
        .query_async(&mut driver.clone())
        .await
}

/// From the call of `release` to the return of the next holder's `acquire`, with all contenders
/// always in the queue, over `clients` clients; in round trips of a bare EVALSHA in the same run.
async fn handoff(url: &str, contenders: usize, clients: usize) -> Result<()> {
    let name = format!("handoff:{contenders}:{clients}");
    let base = Instant::now();
    let released = Arc::new(AtomicU64::new(0));
    let until = base + Duration::from_secs(4);
    let mut connected = Vec::new();
    for _ in 0..clients {
        connected.push(Client::connect(url).await?);
    }
    let tasks: Vec<_> = (0..contenders)
        .map(|task| {
            let client = connected[task % clients].clone();
            let (released, lock) = (
                released.clone(),
                client.lock(&name).wait(Duration::from_secs(30)),
            );
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while Instant::now() < until {
                    let guard = lock.acquire().await.expect("granted");
                    let now = base.elapsed().as_nanos() as u64;
                    let since = released.swap(0, Ordering::SeqCst);
                    if since != 0 {
                        waits.push((now - since) as f64);
                    }
                    // Hold for a moment, so that those who released are back in the queue.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    released.store(base.elapsed().as_nanos() as u64, Ordering::SeqCst);
                    guard.release().await.expect("held");
                }
                waits
            })
        })
        .collect();
    let mut driver = driver(url).await?;
    let script: String = load(&driver, BARE_RELEASE).await?;
    let mut trips = Vec::new();
    while Instant::now() < until {
        let start = Instant::now();
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script).arg(1).arg("{trip}:none").arg("nobody");
        let _: i64 = command.query_async(&mut driver).await?;
        trips.push(start.elapsed().as_nanos() as f64);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await?);
    }
    let trip = median(&mut trips);
    waits.sort_by(f64::total_cmp);
    let p99 = waits[waits.len() * 99 / 100];
    let place = if clients == 1 {
        "one_process"
    } else {
        "processes"
    };
    println!(
        "handoff_p99/round_trip@{contenders}_{place} {:.2}",
        p99 / trip
    );
    eprintln!(
        "    {} hand-overs: p50 {:.0} us, p99 {:.0} us; a round trip is {:.0} us",
        waits.len(),
        waits[waits.len() / 2] / 1e3,
        p99 / 1e3,
        trip / 1e3
    );
    Ok(())
}
