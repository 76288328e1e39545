//! What the server itself spends on a lock, by `INFO commandstats`: the mean of many acquires, and
//! of as many releases, beside the bare pair. Unlike throughput it hardly depends on the machine's
//! load.

use std::time::Duration;

use hedgerow::embedded::Server;
use hedgerow::{Client, Guard};
use redis::aio::MultiplexedConnection;

use crate::lock::{BARE_ACQUIRE, BARE_RELEASE, load};
use crate::slices::{Result, Runs, driver, quartiles};

pub(crate) async fn run(runs: &Runs) -> Result<()> {
    if !runs.wants("lock_acquire_server_us") && !runs.wants("lock_release_server_us") {
        return Ok(());
    }
    let server = Server::start().await?;
    let mut driver = driver(server.url()).await?;
    let client = Client::connect(server.url()).await?;
    let bare = [
        load(&driver, BARE_ACQUIRE).await?,
        load(&driver, BARE_RELEASE).await?,
    ];
    let mut means: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS + 1 {
        let ours = ours(&client, &mut driver).await?;
        let theirs = theirs(&bare, &mut driver).await?;
        // The first round warms up.
        if round > 0 {
            for (means, mean) in means.iter_mut().zip([ours.0, ours.1, theirs.0, theirs.1]) {
                means.push(mean);
            }
        }
    }
    let names = [
        "lock_acquire_server_us",
        "lock_release_server_us",
        "bare_acquire_server_us",
        "bare_release_server_us",
    ];
    for (name, mut means) in names.into_iter().zip(means) {
        runs.report.add_spread(name, quartiles(&mut means));
    }
    Ok(())
}

/// The mean times of an acquire and of a release.
async fn ours(client: &Client, driver: &mut MultiplexedConnection) -> Result<(f64, f64)> {
    let before = scripts(driver).await?;
    let mut guards: Vec<Guard> = Vec::with_capacity(CYCLES);
    for name in 0..CYCLES {
        let lock = client.lock(&format!("time:{name}"));
        guards.push(lock.lease(Duration::from_secs(60)).acquire().await?);
    }
    let between = scripts(driver).await?;
    for guard in guards {
        guard.release().await?;
    }
    let after = scripts(driver).await?;
    Ok((before.until(between), between.until(after)))
}

async fn theirs(
    [acquire, release]: &[String; 2],
    driver: &mut MultiplexedConnection,
) -> Result<(f64, f64)> {
    let before = scripts(driver).await?;
    for name in 0..CYCLES {
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(acquire)
            .arg(2)
            .arg(format!("{{bare:{name}}}:lock"))
            .arg(format!("{{bare:{name}}}:fence"))
            .arg("00112233445566778899aabbccddeeff")
            .arg(60_000);
        let _: i64 = command.query_async(driver).await?;
    }
    let between = scripts(driver).await?;
    for name in 0..CYCLES {
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(release)
            .arg(1)
            .arg(format!("{{bare:{name}}}:lock"))
            .arg("00112233445566778899aabbccddeeff");
        let _: i64 = command.query_async(driver).await?;
    }
    let after = scripts(driver).await?;
    Ok((before.until(between), between.until(after)))
}

/// How often scripts have run by their hash, and how long in all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scripts {
    pub(crate) calls: f64,
    micros: f64,
}

impl Scripts {
    /// The mean microseconds of the calls between two readings.
    fn until(self, later: Self) -> f64 {
        (later.micros - self.micros) / (later.calls - self.calls)
    }
}

pub(crate) async fn scripts(driver: &mut MultiplexedConnection) -> Result<Scripts> {
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(driver)
        .await?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_evalsha:"));
    let mut found = Scripts::default();
    for field in line.unwrap_or_default().split(',') {
        match field.split_once('=') {
            Some(("calls", calls)) => found.calls = calls.parse()?,
            Some(("usec", micros)) => found.micros = micros.parse()?,
            _ => {}
        }
    }
    Ok(found)
}

const ROUNDS: usize = 5;

/// How many locks are taken and released in a round.
const CYCLES: usize = 2000;
