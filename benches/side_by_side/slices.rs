//! Measuring: slices of throughput, side by side.

use std::time::{Duration, Instant};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The bare driver, as a careful user sets it up: with a response timeout, as our calls have a
/// deadline; longer than its default of 500 ms, which would end the measurement on a busy machine.
pub(crate) async fn driver(url: &str) -> Result<redis::aio::MultiplexedConnection> {
    let config =
        redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
    let client = redis::Client::open(url)?;
    Ok(client
        .get_multiplexed_async_connection_with_config(&config)
        .await?)
}

/// How many tasks share a connection.
pub(crate) const TASKS: [usize; 3] = [1, 50, 500];

/// Which ratios the command line asks for, by parts of their names; all by default.
pub(crate) struct Runs(Vec<String>);

impl Runs {
    pub(crate) fn from_args() -> Self {
        let args = std::env::args().skip(1);
        Self(args.filter(|arg| !arg.starts_with("--")).collect())
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|part| name.contains(part.as_str()))
    }
}

/// One side of a comparison: runs with `tasks` tasks until the deadline and says how many
/// operations it did.
pub(crate) trait Side {
    fn slice(&self, tasks: usize, until: Instant) -> impl Future<Output = u64>;
}

impl<F: AsyncFn(usize, Instant) -> u64> Side for F {
    async fn slice(&self, tasks: usize, until: Instant) -> u64 {
        self(tasks, until).await
    }
}

/// Runs both sides alternately and prints the median ratio of ours to theirs.
pub(crate) async fn compare(name: &str, tasks: usize, ours: impl Side, theirs: impl Side) {
    for side in [0, 1] {
        let warm = Instant::now() + SLICE;
        match side {
            0 => ours.slice(tasks, warm).await,
            _ => theirs.slice(tasks, warm).await,
        };
    }
    let mut ratios = Vec::new();
    let mut rates = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut rate = [0.0; 2];
        for side in [round % 2, (round + 1) % 2] {
            let start = Instant::now();
            let done = match side {
                0 => ours.slice(tasks, start + SLICE).await,
                _ => theirs.slice(tasks, start + SLICE).await,
            };
            rate[side] = done as f64 / start.elapsed().as_secs_f64();
        }
        ratios.push(rate[0] / rate[1]);
        rates.0.push(rate[0]);
        rates.1.push(rate[1]);
    }
    println!("{name} {:.2}", median(&mut ratios));
    eprintln!(
        "    {tasks} tasks: {:.1} against {:.1} thousand a second",
        median(&mut rates.0) / 1e3,
        median(&mut rates.1) / 1e3
    );
}

/// Spawns `tasks` copies of a loop and adds up what they did.
pub(crate) async fn spread<L: Future<Output = u64> + Send + 'static>(
    tasks: usize,
    each: impl Fn(usize) -> L,
) -> u64 {
    let running: Vec<_> = (0..tasks).map(|task| tokio::spawn(each(task))).collect();
    let mut total = 0;
    for task in running {
        total += task.await.expect("no panic");
    }
    total
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) const SLICE: Duration = Duration::from_millis(150);
const ROUNDS: usize = 15;
