//! Times of calls that are repeated until they are long enough to be measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;

/// A median and its quartiles.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// The spread of something that falls as this rises.
    pub(crate) fn map(self, with: impl Fn(f64) -> f64) -> Self {
        Self {
            low: with(self.high),
            median: with(self.median),
            high: with(self.low),
        }
    }
}

/// Returns the time of a call, in seconds: the median of slices of many calls.
pub(crate) fn timed<T>(call: impl Fn() -> T) -> Spread {
    let start = Instant::now();
    black_box(call());
    let once = start.elapsed().max(Duration::from_nanos(100));
    let calls = (SLICE.as_nanos() / once.as_nanos()).clamp(1, 100_000) as usize;
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < LEAST || start.elapsed() < LONG {
        let slice = Instant::now();
        for _ in 0..calls {
            black_box(call());
        }
        times.push(slice.elapsed().as_secs_f64() / calls as f64);
    }
    times.sort_by(f64::total_cmp);
    Spread {
        low: times[times.len() / 4],
        median: times[times.len() / 2],
        high: times[times.len() * 3 / 4],
    }
}

const SLICE: Duration = Duration::from_millis(2);
const LONG: Duration = Duration::from_millis(200);
const LEAST: usize = 5;
