//! `Backoff`: when a link may try to connect again.
//!
//! Invariant: attempts that fail one after the other come at ever longer distances, and those of many
//! clients not at the same time. A connection to a server that takes no writes is a failed attempt.

use std::time::Duration;

use tokio::time::Instant;

/// When the next attempt to connect may start: 10 ms doubling to 1 s, with full jitter above a
/// quarter.
#[derive(Debug)]
pub(super) struct Backoff {
    pause: Duration,
    pub(super) not_before: Option<Instant>,
    /// When the connection was made that followed one to a server that took no writes.
    remade: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            pause: SHORTEST,
            not_before: None,
            remade: None,
        }
    }
}

impl Backoff {
    pub(super) fn failed(&mut self) {
        self.wait(LONGEST);
    }

    /// The server that is connected to takes no writes. Reads it may serve, so that the pauses stay
    /// short enough for these.
    pub(super) fn demoted(&mut self) {
        if self.remade.is_some_and(|at| at.elapsed() >= SETTLED) {
            self.pause = SHORTEST;
        }
        self.wait(LONGEST_DEMOTED);
    }

    /// There is a connection; one that follows a demotion may lead to the same server again.
    pub(super) fn made(&mut self, after_demotion: bool) {
        *self = match after_demotion {
            true => Self {
                pause: self.pause,
                not_before: None,
                remade: Some(Instant::now()),
            },
            false => Self::default(),
        };
    }

    fn wait(&mut self, longest: Duration) {
        let pause = self.pause.min(longest);
        self.not_before = Some(Instant::now() + pause.mul_f64(rand::random_range(0.25..1.0)));
        self.pause = (self.pause * 2).min(LONGEST);
    }
}

const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);
const LONGEST_DEMOTED: Duration = Duration::from_millis(250);

/// A connection that was of use for so long was to a primary.
const SETTLED: Duration = Duration::from_secs(10);
