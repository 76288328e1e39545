//! `Backoff`: when a link may try to connect again.
//!
//! Invariant: attempts that fail one after the other come at ever longer distances, up to a second,
//! and those of many clients not at the same time.

use std::time::Duration;

use tokio::time::Instant;

/// When the next attempt to connect may start: 10 ms doubling to 1 s, with full jitter above a
/// quarter.
#[derive(Debug)]
pub(super) struct Backoff {
    pause: Duration,
    pub(super) not_before: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            pause: Duration::from_millis(10),
            not_before: None,
        }
    }
}

impl Backoff {
    pub(super) fn failed(&mut self) {
        self.not_before = Some(Instant::now() + self.pause.mul_f64(rand::random_range(0.25..1.0)));
        self.pause = (self.pause * 2).min(Duration::from_secs(1));
    }
}
