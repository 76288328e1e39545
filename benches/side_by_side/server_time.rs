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

/// The mean times of an acquire and of a release. Held for a moment only: a guard that was held
/// for longer is released by a script that looks for waiters, too.
async fn ours(client: &Client, driver: &mut MultiplexedConnection) -> Result<(f64, f64)> {
    let (mut acquires, mut releases) = (Scripts::default(), Scripts::default());
    for first in (0..CYCLES).step_by(AT_ONCE) {
        let before = scripts(driver).await?;
        let mut guards: Vec<Guard> = Vec::with_capacity(AT_ONCE);
        for name in first..first + AT_ONCE {
            let lock = client.lock(&format!("time:{name}"));
            guards.push(lock.lease(Duration::from_secs(60)).acquire().await?);
        }
        let between = scripts(driver).await?;
        for guard in guards {
            guard.release().await?;
        }
        let after = scripts(driver).await?;
        acquires.add(before, between);
        releases.add(between, after);
    }
    Ok((acquires.mean(), releases.mean()))
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
    let (mut acquires, mut releases) = (Scripts::default(), Scripts::default());
    acquires.add(before, between);
    releases.add(between, after);
    Ok((acquires.mean(), releases.mean()))
}

/// How often scripts have run by their hash, and how long in all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scripts {
    pub(crate) calls: f64,
    micros: f64,
}

impl Scripts {
    /// Adds the calls between two readings.
    fn add(&mut self, before: Self, after: Self) {
        self.calls += after.calls - before.calls;
        self.micros += after.micros - before.micros;
    }

    /// The mean microseconds of a call.
    fn mean(self) -> f64 {
        self.micros / self.calls
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

/// How many of them are held at once.
const AT_ONCE: usize = 10;
