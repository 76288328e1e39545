//! How long a hand-over takes: from the call of `release` to the return of the next holder's
//! `acquire`, with all contenders always in the queue.
//!
//! It is measured in round trips of a bare EVALSHA under the same load: one prober beside the
//! contenders, and the 99th percentile of both, so that a busy machine slows both sides alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hedgerow::Client;

use crate::lock::{BARE_RELEASE, load};
use crate::rivals::Distkit;
use crate::slices::{Length, Result, Runs, driver, median, p99};

/// What a run of hand-overs took, in nanoseconds.
struct Times {
    waits: Vec<f64>,
    trips: Vec<f64>,
}

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    let length = match runs.length {
        Length::Full => Duration::from_secs(4),
        Length::Quick => Duration::from_secs(2),
    };
    for contenders in [8, 64] {
        for (clients, place) in [(contenders, "processes"), (1, "one_process")] {
            let (ours, theirs) = ("handoff_p99/round_trip", "handoff_p99/distkit");
            if !runs.wants(ours) && !runs.wants(theirs) {
                continue;
            }
            let mut times = hedgerow(url, contenders, clients, length).await?;
            let wait = p99(&mut times.waits);
            let trip = p99(&mut times.trips);
            runs.report
                .add(&format!("{ours}@{contenders}_{place}"), wait / trip);
            eprintln!(
                "    {} hand-overs: p50 {:.0} us, p99 {:.0} us; a round trip: p50 {:.0} us, p99 {:.0} us",
                times.waits.len(),
                median(&mut times.waits) / 1e3,
                wait / 1e3,
                median(&mut times.trips) / 1e3,
                trip / 1e3
            );
            if place == "processes" && runs.wants(theirs) {
                let mut rival = distkit(url, contenders, length).await?;
                let rival = p99(&mut rival.waits);
                runs.report
                    .add(&format!("{theirs}@{contenders}"), wait / rival);
                eprintln!("    distkit: p99 {:.0} us", rival / 1e3);
            }
        }
    }
    Ok(())
}

async fn hedgerow(url: &str, contenders: usize, clients: usize, length: Duration) -> Result<Times> {
    let mut connected = Vec::new();
    for _ in 0..clients {
        connected.push(Client::connect(url).await?);
    }
    let name = format!("handoff:{contenders}:{clients}");
    contend(url, contenders, length, move |task, clock| {
        let client = &connected[task % connected.len()];
        let lock = client.lock(&name).wait(Duration::from_secs(30));
        async move {
            let mut waits = Vec::new();
            while clock.runs() {
                let guard = lock.acquire().await.expect("granted");
                waits.extend(clock.waited());
                clock.hold().await;
                guard.release().await.expect("held");
            }
            waits
        }
    })
    .await
}

/// A client of its own for each contender.
async fn distkit(url: &str, contenders: usize, length: Duration) -> Result<Times> {
    let mut connected = Vec::new();
    for _ in 0..contenders {
        connected.push(Distkit::connect(url).await?);
    }
    let name = format!("handoff:{contenders}");
    contend(url, contenders, length, move |task, clock| {
        let mutex = connected[task].mutex(&name);
        async move {
            let mut waits = Vec::new();
            while clock.runs() {
                let guard = mutex.lock().await.expect("granted");
                waits.extend(clock.waited());
                clock.hold().await;
                guard.release().await.expect("held");
            }
            waits
        }
    })
    .await
}

/// When the lock was released last, for all contenders of one run.
#[derive(Clone)]
struct Clock {
    base: Instant,
    until: Instant,
    released: Arc<AtomicU64>,
}

impl Clock {
    fn runs(&self) -> bool {
        Instant::now() < self.until
    }

    /// How long ago the former holder released; nothing for the first holder.
    fn waited(&self) -> Option<f64> {
        let now = self.base.elapsed().as_nanos() as u64;
        let since = self.released.swap(0, Ordering::SeqCst);
        (since != 0).then(|| (now - since) as f64)
    }

    /// Holds for a moment, so that those who released are back in the queue, and then starts the
    /// clock for the release that follows.
    async fn hold(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now = self.base.elapsed().as_nanos() as u64;
        self.released.store(now, Ordering::SeqCst);
    }
}

async fn contend<F>(
    url: &str,
    contenders: usize,
    length: Duration,
    contender: impl Fn(usize, Clock) -> F,
) -> Result<Times>
where
    F: Future<Output = Vec<f64>> + Send + 'static,
{
    let base = Instant::now();
    let clock = Clock {
        base,
        until: base + length,
        released: Arc::default(),
    };
    let tasks: Vec<_> = (0..contenders)
        .map(|task| tokio::spawn(contender(task, clock.clone())))
        .collect();
    let mut driver = driver(url).await?;
    let script = load(&driver, BARE_RELEASE).await?;
    let mut trips = Vec::new();
    while clock.runs() {
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
    Ok(Times { waits, trips })
}
