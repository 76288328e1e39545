//! `Departures`: what the deletes of this process have found, for sessions that get another id.
//!
//! tower-sessions gives a session another id by a `delete` of the old one and a later `create` with
//! the same data. A logout is a `delete`, too. So a request that loaded the session before a logout
//! could bring it back under another id.
//!
//! Invariant: a session goes on under another id only if exactly one `delete` of its old id was
//! noted here, which found it valid. Of two requests that delete one session at the same time,
//! neither goes on: one of them may be a logout.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cache::TagSnapshot;

/// What the last deletes of this process have found.
#[derive(Debug, Default)]
pub(super) struct Departures(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    by_session: HashMap<String, Departure>,
    /// The oldest first.
    order: VecDeque<String>,
}

#[derive(Debug)]
struct Departure {
    at: Instant,
    times: u32,
    /// Of the tag of its user, taken before the session was last seen valid. `None` if the delete
    /// found no session.
    found: Option<TagSnapshot>,
}

impl Departures {
    /// Notes that a session was deleted, and what was found.
    pub(super) fn note(&self, session: &str, found: Option<TagSnapshot>) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = recent.by_session.get_mut(session) {
            known.times += 1;
            return;
        }
        if recent.order.len() >= MOST_KNOWN
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.by_session.remove(&oldest);
        }
        let departure = Departure {
            at: Instant::now(),
            times: 1,
            found,
        };
        recent.order.push_back(session.to_owned());
        recent.by_session.insert(session.to_owned(), departure);
    }

    /// Returns what shows whether the user of a session that was deleted may go on under another
    /// id. `None` if the session may not go on.
    pub(super) fn leave_of(&self, session: &str) -> Option<TagSnapshot> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let departure = recent.by_session.get(session)?;
        let is_sole = departure.times == 1 && departure.at.elapsed() < LONGEST_REQUEST;
        is_sole.then(|| departure.found.clone())?
    }
}

/// How many sessions are remembered. One that is forgotten does not go on.
const MOST_KNOWN: usize = 4_096;

/// How long after the delete a session may go on.
pub(super) const LONGEST_REQUEST: Duration = Duration::from_secs(600);
