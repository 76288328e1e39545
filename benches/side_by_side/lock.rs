//! The lock against two bare scripts, against rslock and against distkit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hedgerow::Client;

use crate::rivals::Distkit;
use crate::slices::{Result, Runs, TASKS, driver, spread};

/// What a careful engineer writes by hand: a fenced lock in two scripts.
pub(crate) const BARE_ACQUIRE: &str = "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then \
    return redis.call('INCR', KEYS[2]) end return false";
pub(crate) const BARE_RELEASE: &str =
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
    let distkit = Distkit::connect(url).await?;
    let other = async |tasks: usize, until: Instant| distkit.lock_cycles(tasks, until).await;
    for tasks in TASKS {
        if runs.wants("lock_cycle/two_evalsha") {
            let name = format!("lock_cycle/two_evalsha@{tasks}");
            runs.compare(&name, tasks, ours, bare).await;
        }
        if runs.wants("lock_cycle/rslock") {
            let name = format!("lock_cycle/rslock@{tasks}");
            runs.compare(&name, tasks, ours, rival).await;
        }
        if runs.wants("lock_cycle/distkit") {
            let name = format!("lock_cycle/distkit@{tasks}");
            runs.compare(&name, tasks, ours, other).await;
        }
    }
    Ok(())
}

pub(crate) async fn load(
    driver: &redis::aio::MultiplexedConnection,
    script: &str,
) -> redis::RedisResult<String> {
    redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(script)
        .query_async(&mut driver.clone())
        .await
}
