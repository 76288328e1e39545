//! `Warnings`: what a layer warns of, at once and then at most once a minute.
//!
//! Invariant: every request is counted by one warning, so that an outage does not fill the log and
//! still shows how many it has met. Each status has warnings of its own, so that what clients do
//! hides no mistake of the service. The service asks here.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;

/// By the status that the requests are answered.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<HashMap<StatusCode, Warned>>);

#[derive(Debug, Default)]
struct Warned {
    last: Option<Instant>,
    since: u64,
}

impl Warnings {
    /// Counts a request that is answered `status`. Returns how many there were since the last
    /// warning, if another is due.
    pub(super) fn one_more(&self, status: StatusCode, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let warned = all.entry(status).or_default();
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

/// The least time from one warning of a layer to the next of the same status.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_warns_of_each_status_at_once_and_then_once_a_minute() {
        let (warnings, began) = (Warnings::default(), Instant::now());
        for status in [StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE] {
            let at = |seconds| warnings.one_more(status, began + Duration::from_secs(seconds));
            assert_eq!(
                [0, 1, 59, 60, 61].map(at),
                [Some(1), None, None, Some(3), None]
            );
        }
    }
}
