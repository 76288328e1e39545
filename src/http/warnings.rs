//! `Warnings`: what a layer warns of, at once and then at most once a minute.
//!
//! Invariant: all that is warned of is counted by one warning, so that an outage does not fill the
//! log and still shows how much it has met. The layers ask here.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The warnings of a layer about one thing.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<Warned>);

#[derive(Debug, Default)]
struct Warned {
    last: Option<Instant>,
    since: u64,
}

impl Warnings {
    /// Counts one more. Returns how many there were since the last warning, if another is due.
    pub(super) fn one_more(&self, now: Instant) -> Option<u64> {
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        warned.since += 1;
        if warned
            .last
            .is_some_and(|last| now < last + BETWEEN_WARNINGS)
        {
            return None;
        }
        warned.last = Some(now);
        Some(std::mem::take(&mut warned.since))
    }
}

/// The least time from one warning of a layer to the next.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_warns_at_once_and_then_once_a_minute() {
        let (warnings, began) = (Warnings::default(), Instant::now());
        let at = |seconds| warnings.one_more(began + Duration::from_secs(seconds));
        assert_eq!(
            [0, 1, 59, 60, 61].map(at),
            [Some(1), None, None, Some(3), None]
        );
    }
}
