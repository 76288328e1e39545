//! `LastSaves`: what the requests of this process have saved last.
//!
//! tower-sessions saves a session once more when its request ends, also if the handler has saved
//! it. What the record knows of the session then is what was loaded, since a save cannot change it.
//!
//! Invariant: a save that only repeats the last one of its own request has nothing new to store. So
//! it overwrites nothing that another request has saved in between, and is no conflict with it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// What was saved last, by the writer of the request.
#[derive(Debug, Default)]
pub(super) struct LastSaves(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    by_writer: HashMap<u64, LastSave>,
    /// The oldest first.
    order: VecDeque<u64>,
}

/// What a request has saved last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastSave {
    /// The digest of the data.
    pub(super) data: u64,
    /// To whom the session belongs since.
    pub(super) user: Option<String>,
}

impl LastSaves {
    /// Notes what `writer` has saved.
    pub(super) fn note(&self, writer: u64, save: LastSave) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.by_writer.insert(writer, save).is_some() {
            return;
        }
        recent.order.push_back(writer);
        if recent.order.len() > MOST_KNOWN
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.by_writer.remove(&oldest);
        }
    }

    /// What `writer` has saved last, as far as it is remembered.
    pub(super) fn of(&self, writer: u64) -> Option<LastSave> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.by_writer.get(&writer).cloned()
    }
}

/// How many requests are remembered. The last save of one that is forgotten counts as a change.
const MOST_KNOWN: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_last_is_remembered_for_so_many_requests() {
        let saves = LastSaves::default();
        assert_eq!(saves.of(7), None);
        let save = |data, user: Option<&str>| LastSave {
            data,
            user: user.map(str::to_owned),
        };
        saves.note(7, save(1, None));
        saves.note(7, save(2, Some("a")));
        assert_eq!(saves.of(7), Some(save(2, Some("a"))));
        for writer in 100..100 + MOST_KNOWN as u64 {
            saves.note(writer, save(0, None));
        }
        assert_eq!(saves.of(7), None);
        assert_eq!(
            saves.0.lock().expect("not poisoned").by_writer.len(),
            MOST_KNOWN
        );
    }
}
