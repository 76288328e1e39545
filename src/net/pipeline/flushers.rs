//! `Flushers`: which tasks send what waits in a lane.
//!
//! Invariant: a carrier that stands still with its runtime does not count, so that callers on other
//! runtimes start another in its place. What it has taken is not taken again.

use std::sync::Arc;

use crate::background::{Spawner, Task};
use crate::pulse::Pulse;

/// The carriers of one lane.
#[derive(Debug, Default)]
pub(crate) struct Flushers {
    at_work: Vec<KnownFlusher>,
    /// Those that stand still. Should they go on, they find nothing to do and end.
    dismissed: Vec<KnownFlusher>,
    /// The number of the next.
    next: u64,
}

#[derive(Debug)]
struct KnownFlusher {
    number: u64,
    /// None while it is being spawned.
    pulse: Option<Arc<Pulse>>,
}

impl Flushers {
    pub(crate) fn len(&self) -> usize {
        self.at_work.len()
    }

    /// Counts one more, and tells its number.
    pub(crate) fn add(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        let pulse = None;
        self.at_work.push(KnownFlusher { number, pulse });
        number
    }

    /// It was spawned, as `task`. It may be over already.
    pub(crate) fn spawned(&mut self, number: u64, task: &Task) {
        let all = self.at_work.iter_mut().chain(&mut self.dismissed);
        if let Some(carrier) = all.into_iter().find(|it| it.number == number) {
            carrier.pulse = Some(task.pulse().clone());
        }
    }

    pub(crate) fn remove(&mut self, number: u64) {
        self.at_work.retain(|it| it.number != number);
        self.dismissed.retain(|it| it.number != number);
    }

    /// Dismisses those that stand still; `spawner` learns where they lived.
    pub(crate) fn dismiss(&mut self, spawner: &Spawner) {
        let is_still = |it: &mut KnownFlusher| {
            let pulse = it.pulse.as_ref();
            pulse.is_some_and(|pulse| pulse.stands_still_when_asked())
        };
        // Knock on dismissed carriers as well; one may have resumed.
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

    /// Whether this one, which has taken a command, stands still for so long that its callers
    /// leave; any, where it is not known which has.
    pub(crate) fn has_left(&self, number: Option<u64>) -> bool {
        let mut asked = self
            .dismissed
            .iter()
            .filter(|it| number.is_none_or(|number| it.number == number));
        asked.any(|it| it.pulse.as_ref().is_some_and(|pulse| pulse.is_given_up()))
    }
}
