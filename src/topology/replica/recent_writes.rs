//! `RecentWrites`: the recent writes of this client, so that a replica does not answer it with
//! older values.
//!
//! Invariant: after a write of `key` ends at time T, [`RecentWrites::latest`] of the key is at
//! least T, for as long as a replica with a proof older than the write could be read. A write with
//! an unknown outcome counts as written, and may still be applied for up to [`LATE`]. `Replicated`
//! records the writes, and `Replicas` reads them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Fate, Result};
use crate::key::Key;

#[derive(Debug, Default)]
pub(crate) struct RecentWrites(Mutex<Marks>);

/// The times of the last writes, by key. The floor stands for all keys that are not listed.
#[derive(Debug, Default)]
struct Marks {
    marks: HashMap<Key, Instant>,
    /// Any key may have been written as late as this.
    floor: Option<Instant>,
}

/// A write that is running. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct PendingWrite {
    writes: Arc<RecentWrites>,
    key: Key,
    /// How long after its end the write may still be applied.
    late: Duration,
}

impl RecentWrites {
    /// Starts a write of `key`.
    pub(crate) fn begin(self: &Arc<Self>, key: &Key) -> PendingWrite {
        PendingWrite {
            writes: self.clone(),
            key: key.clone(),
            // Until the outcome is known: a call that is dropped may still be applied.
            late: LATE,
        }
    }

    /// Returns when the last write of any of `keys` ended. A replica may be read only with a proof
    /// of a later moment.
    pub(in crate::topology) fn latest(&self, keys: &[Key]) -> Option<Instant> {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let written = keys.iter().filter_map(|key| marks.marks.get(key)).max();
        written.copied().max(marks.floor)
    }

    fn mark(&self, key: &Key, at: Instant) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.marks.len() >= MOST_MARKS && !marks.marks.contains_key(key) {
            marks.shrink();
        }
        let mark = marks.marks.entry(key.clone()).or_insert(at);
        *mark = at.max(*mark);
    }
}

impl Marks {
    /// Drops the marks that no replica must prove any more. If that is not enough, the floor
    /// replaces all marks.
    fn shrink(&mut self) {
        let now = Instant::now();
        // No replica is read with an older proof, so older marks change nothing.
        self.marks.retain(|_, mark| *mark + MOST_LAG > now);
        // Half, so that the marks are not gone through again for each of the next writes.
        if self.marks.len() >= MOST_MARKS / 2 {
            self.floor = self.marks.values().max().copied().max(self.floor);
            self.marks.clear();
        }
    }
}

impl PendingWrite {
    /// Ends the write with a known outcome.
    pub(crate) fn ended<T>(mut self, outcome: &Result<T>) {
        let unknown = matches!(outcome, Err(error) if error.fate() == Fate::Unknown);
        if !unknown {
            self.late = Duration::ZERO;
        }
    }
}

impl Drop for PendingWrite {
    fn drop(&mut self) {
        // Also if the call was dropped, since it may have been sent.
        self.writes.mark(&self.key, Instant::now() + self.late);
    }
}

/// How long a command without an answer may still be on its way.
const LATE: Duration = Duration::from_secs(10);

/// How many keys have a mark of their own.
const MOST_MARKS: usize = 16_384;

/// The greatest age of what a replica answers.
pub(in crate::topology) const MOST_LAG: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::key::Namespace;

    fn key(name: &str) -> Key {
        let namespace = Namespace::new("hr").expect("a namespace");
        let cache = namespace.cache("c", 0).expect("a cache");
        cache.value(name).expect("a key")
    }

    #[test]
    fn a_write_is_marked_when_it_ends() {
        let writes = Arc::new(RecentWrites::default());
        let begun = Instant::now();
        let writing = writes.begin(&key("a"));
        assert_eq!(writes.latest(&[key("a")]), None);
        writing.ended(&Ok(()));
        let mark = writes.latest(&[key("b"), key("a")]).expect("a mark");
        assert!(mark >= begun && mark <= Instant::now());
        assert_eq!(writes.latest(&[key("b")]), None);
    }

    #[test]
    fn a_write_without_an_answer_may_come_late() {
        let writes = Arc::new(RecentWrites::default());
        drop(writes.begin(&key("dropped")));
        let unknown = Err::<(), _>(Error::new(ErrorKind::Disconnected, "gone"));
        writes.begin(&key("unknown")).ended(&unknown);
        let refused = Err::<(), _>(Error::new(ErrorKind::ReadOnly, "no"));
        writes.begin(&key("refused")).ended(&refused);
        let later = |name| writes.latest(&[key(name)]).expect("a mark") > Instant::now();
        assert!(later("dropped") && later("unknown") && !later("refused"));
        // A later write does not bring the end of this one forward.
        writes.begin(&key("unknown")).ended(&Ok(()));
        assert!(later("unknown"));
    }

    #[test]
    fn what_does_not_fit_counts_for_every_key() {
        let writes = Arc::new(RecentWrites::default());
        for number in 0..=MOST_MARKS {
            writes.begin(&key(&number.to_string())).ended(&Ok(()));
        }
        let floor = writes.latest(&[key("never written")]).expect("a floor");
        let marks = writes.0.lock().expect("no panic");
        assert!(marks.marks.len() < MOST_MARKS);
        assert!(marks.marks.values().all(|mark| *mark >= floor));
    }
}
