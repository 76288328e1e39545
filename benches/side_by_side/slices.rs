//! Measuring: slices of throughput, side by side.

use std::path::Path;
use std::time::{Duration, Instant};

use hedgerow::{Client, ClientBuilder};

use crate::report::Report;

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

/// A client whose calls have deadlines as long as those of [`driver`].
pub(crate) fn patient() -> ClientBuilder {
    let builder = Client::builder().deadline(Duration::from_secs(30));
    builder.cache_deadline(Duration::from_secs(30))
}

/// How many tasks share a connection.
pub(crate) const TASKS: [usize; 3] = [1, 50, 500];

/// Which rows the command line asks for, and how long each is measured.
pub(crate) struct Runs {
    /// Parts of their names; all by default.
    names: Vec<String>,
    pub(crate) length: Length,
    /// `--json=NAME`: the rows are written to `target/bench/NAME.json`, where `benches/report`
    /// finds them.
    file: String,
    pub(crate) report: Report,
}

/// How long a row is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Full,
    /// `--quick`: fewer and shorter slices, one server only.
    Quick,
}

impl Runs {
    pub(crate) fn from_args() -> Self {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let file = args.iter().find_map(|arg| arg.strip_prefix("--json="));
        let file = file.unwrap_or("side_by_side").to_owned();
        let quick = args.iter().any(|arg| arg == "--quick");
        Self {
            names: args
                .into_iter()
                .filter(|arg| !arg.starts_with("--"))
                .collect(),
            length: if quick { Length::Quick } else { Length::Full },
            file,
            report: Report::default(),
        }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str()))
    }

    /// Prints the rows and writes them below `root`, the folder of the crate.
    pub(crate) fn finish(self, root: &str) -> Result<()> {
        let path = Path::new(root).join("target/bench").join(self.file);
        self.report.finish(&path.with_extension("json"))
    }

    /// Runs both sides alternately and reports the median ratio of ours to theirs.
    pub(crate) async fn compare(
        &self,
        name: &str,
        tasks: usize,
        ours: impl Side,
        theirs: impl Side,
    ) {
        let slice = self.length.slice();
        ours.slice(tasks, Instant::now() + slice).await;
        theirs.slice(tasks, Instant::now() + slice).await;
        let mut ratios = Vec::new();
        let mut rates = (Vec::new(), Vec::new());
        for round in 0..self.length.rounds() {
            let mut rate = [0.0; 2];
            for side in [round % 2, (round + 1) % 2] {
                let start = Instant::now();
                let done = match side {
                    0 => ours.slice(tasks, start + slice).await,
                    _ => theirs.slice(tasks, start + slice).await,
                };
                rate[side] = done as f64 / start.elapsed().as_secs_f64();
            }
            ratios.push(rate[0] / rate[1]);
            rates.0.push(rate[0]);
            rates.1.push(rate[1]);
        }
        let rates = (median(&mut rates.0), median(&mut rates.1));
        self.report
            .add_compared(name, quartiles(&mut ratios), rates);
        let (ours, theirs) = (rates.0 / 1e3, rates.1 / 1e3);
        eprintln!("    {tasks} tasks: {ours:.1} against {theirs:.1} thousand a second");
    }
}

impl Length {
    pub(crate) fn slice(self) -> Duration {
        match self {
            Self::Full => Duration::from_millis(150),
            Self::Quick => Duration::from_millis(40),
        }
    }

    fn rounds(self) -> usize {
        match self {
            Self::Full => 15,
            Self::Quick => 7,
        }
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

/// The lower quartile, the median and the upper quartile.
pub(crate) fn quartiles(values: &mut [f64]) -> (f64, f64, f64) {
    let middle = median(values);
    (
        values[values.len() / 4],
        middle,
        values[values.len() * 3 / 4],
    )
}

/// The value below which 99 % of `values` are.
pub(crate) fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() * 99 / 100]
}
