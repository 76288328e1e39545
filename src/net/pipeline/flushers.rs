//! `Flushers`: which tasks send what waits in the queue of a pipeliner.
//!
//! Invariant: a flusher that stands still with its runtime does not count, so callers on other
//! runtimes start another instead. What the stalled one has taken is not taken again.
//!
//! It is part of the locked state of a [`Pipeliner`](super::pipeliner::Pipeliner).

use std::sync::Arc;

use crate::background::{Spawner, Task};
use crate::pulse::Pulse;

/// The flushers of one pipeliner.
#[derive(Debug, Default)]
pub(crate) struct Flushers {
    at_work: Vec<KnownFlusher>,
    /// Those that stand still. If one resumes, it goes on like any other and ends when nothing
    /// waits.
    dismissed: Vec<KnownFlusher>,
    /// The number of the next flusher.
    next: u64,
}

/// One flusher.
#[derive(Debug)]
struct KnownFlusher {
    number: u64,
    /// `None` while it is being spawned.
    // The number is needed before the task exists, because the task itself removes it.
    pulse: Option<Arc<Pulse>>,
}

impl Flushers {
    /// How many flushers are at work. Those that stand still do not count.
    pub(crate) fn len(&self) -> usize {
        self.at_work.len()
    }

    /// Counts one more flusher, and returns its number.
    pub(crate) fn add(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        let pulse = None;
        self.at_work.push(KnownFlusher { number, pulse });
        number
    }

    /// Notes that the flusher of this number was spawned as `task`. It may have ended already.
    pub(crate) fn spawned(&mut self, number: u64, task: &Task) {
        let all = self.at_work.iter_mut().chain(&mut self.dismissed);
        if let Some(flusher) = all.into_iter().find(|it| it.number == number) {
            flusher.pulse = Some(task.pulse().clone());
        }
    }

    /// Removes a flusher that ends.
    pub(crate) fn remove(&mut self, number: u64) {
        self.at_work.retain(|it| it.number != number);
        self.dismissed.retain(|it| it.number != number);
    }

    /// Dismisses the flushers that stand still, and reports their runtimes to `spawner`.
    pub(crate) fn dismiss(&mut self, spawner: &Spawner) {
        let is_still = |it: &mut KnownFlusher| {
            let pulse = it.pulse.as_ref();
            pulse.is_some_and(|pulse| pulse.stands_still_when_asked())
        };
        // Wake the dismissed ones as well: `has_left` needs to know whether they are still stalled.
        self.dismissed.iter_mut().for_each(|it| {
            is_still(it);
        });
        let before = self.dismissed.len();
        let still = self.at_work.extract_if(.., is_still);
        self.dismissed.extend(still);
        for it in &self.dismissed[before..] {
            spawner.distrust(it.pulse.as_ref().and_then(|pulse| pulse.runtime()));
        }
    }

    /// Whether the flusher of this number, which has taken a command, has stood still for so long
    /// that its callers leave. Without a number it is not known which one has; then any counts.
    pub(crate) fn has_left(&self, number: Option<u64>) -> bool {
        let mut asked = self
            .dismissed
            .iter()
            .filter(|it| number.is_none_or(|number| it.number == number));
        asked.any(|it| it.pulse.as_ref().is_some_and(|pulse| pulse.is_given_up()))
    }
}
