//! `Departures`: what the deletes of this process have found, for sessions that get another id.
//!
//! tower-sessions gives a session another id by a `delete` of the old one and a later `create` with
//! the same data. A logout is a `delete`, too. So a request that loaded the session before a logout
//! could bring it back under another id.
//!
//! Invariant: a session of a user goes on under another id only if exactly one `delete` of its old
//! id was noted here, which found it valid, and a session of the user that its request has loaded
//! or saved last. Of two requests that delete one session at the same time, neither goes on: one of
//! them may be a logout.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::base::Base;
use crate::cache::TagSnapshot;

/// What the last deletes of this process have found.
#[derive(Debug, Default)]
pub(super) struct Departures(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    by_session: HashMap<String, Departure>,
    /// The oldest first.
    order: VecDeque<String>,
    /// Those of them that found nothing. They go first: anybody may make up ids.
    nothings: VecDeque<String>,
}

#[derive(Debug)]
struct Departure {
    at: Instant,
    times: u32,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Found(Found),
    /// There was no session.
    Nothing,
    /// The delete has failed. The session is there or not.
    Failed,
}

/// A session as a delete has found it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// To whom it belonged.
    pub(super) user: Option<String>,
    /// Of its tags, which are those of all users that it has belonged to. `None` if the store knows
    /// of none, or the session went to another user meanwhile.
    pub(super) leave: Option<TagSnapshot>,
    pub(super) version: u64,
    pub(super) writer: u64,
    /// The digest of its data.
    pub(super) data: u64,
}

/// Whether a session of a user may go on under another id.
#[derive(Debug)]
pub(super) enum Leave {
    /// If its user was not logged out since this was taken.
    Given(TagSnapshot),
    /// It has ended.
    Refused,
    /// Its delete has failed, so nobody knows.
    Unknown,
}

impl Departures {
    /// Notes that a session was deleted, and what was found.
    pub(super) fn note(&self, session: &str, found: Option<Found>) {
        self.noted(session, found.map_or(Outcome::Nothing, Outcome::Found));
    }

    /// Notes that a delete has failed.
    pub(super) fn note_failed(&self, session: &str) {
        self.noted(session, Outcome::Failed);
    }

    fn noted(&self, session: &str, outcome: Outcome) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = recent.by_session.get_mut(session) {
            match (&known.outcome, &outcome) {
                // A delete that has failed is no logout, and what came of one counts no more when
                // another has an answer.
                (_, Outcome::Failed) => {}
                (Outcome::Failed, _) => (known.at, known.outcome) = (Instant::now(), outcome),
                _ => known.times += 1,
            }
            return;
        }
        if recent.by_session.len() >= MOST_KNOWN
            && let Some(oldest) = recent.oldest()
        {
            recent.by_session.remove(&oldest);
        }
        match outcome {
            Outcome::Nothing => recent.nothings.push_back(session.to_owned()),
            Outcome::Found(_) | Outcome::Failed => recent.order.push_back(session.to_owned()),
        }
        let departure = Departure {
            at: Instant::now(),
            times: 1,
            outcome,
        };
        recent.by_session.insert(session.to_owned(), departure);
    }

    /// Returns whether the session of a user that a request has loaded may go on under another id.
    pub(super) fn leave_of(&self, base: &Base) -> Leave {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let departure = recent.by_session.get(&base.session);
        let departure = departure.filter(|departure| departure.at.elapsed() < LONGEST_REQUEST);
        match departure {
            Some(Departure {
                outcome: Outcome::Failed,
                ..
            }) => Leave::Unknown,
            Some(Departure {
                times: 1,
                outcome: Outcome::Found(found),
                ..
            }) if found.user == base.user => match &found.leave {
                Some(leave) => Leave::Given(leave.clone()),
                None => Leave::Refused,
            },
            _ => Leave::Refused,
        }
    }

    /// Returns the session as the first delete of it has found it, if that is known.
    pub(super) fn found(&self, session: &str) -> Option<Found> {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &recent.by_session.get(session)?.outcome {
            Outcome::Found(found) => Some(found.clone()),
            Outcome::Nothing | Outcome::Failed => None,
        }
    }
}

impl Recent {
    /// Takes out the name that is to be forgotten first.
    fn oldest(&mut self) -> Option<String> {
        self.nothings.pop_front().or_else(|| self.order.pop_front())
    }
}

impl Found {
    /// Whether another request has changed the session since `base` was loaded, or was last saved.
    pub(super) fn was_changed_since(&self, base: &Base) -> bool {
        let is_as_loaded = (self.version, self.writer) == (base.version, base.written_by);
        self.writer != base.writer && !is_as_loaded && self.data != base.data
    }
}

/// How many sessions are remembered. One that is forgotten does not go on.
const MOST_KNOWN: usize = 4_096;

/// How long after the delete a session may go on.
pub(super) const LONGEST_REQUEST: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let leave = serde_json::from_str(r#"{"generations":[]}"#).expect("a snapshot");
        Found {
            user: Some("7".to_owned()),
            leave: Some(leave),
            version: 1,
            writer: 1,
            data: 1,
        }
    }

    /// What a request knows that has loaded it.
    fn base(session: &str) -> Base {
        Base {
            session: session.to_owned(),
            version: 1,
            written_by: 1,
            writer: 2,
            data: 1,
            user: Some("7".to_owned()),
            had_user: true,
        }
    }

    #[test]
    fn ids_that_are_made_up_push_no_session_out() {
        let departures = Departures::default();
        departures.note("a", Some(found()));
        for at in 0..2 * MOST_KNOWN {
            departures.note(&format!("made up {at}"), None);
        }
        assert!(matches!(departures.leave_of(&base("a")), Leave::Given(_)));
        for at in 0..MOST_KNOWN {
            departures.note(&format!("b{at}"), Some(found()));
        }
        assert!(matches!(departures.leave_of(&base("a")), Leave::Refused));
        assert!(matches!(departures.leave_of(&base("b1")), Leave::Given(_)));
        let recent = departures.0.lock().expect("not poisoned");
        let (known, named) = (recent.by_session.len(), recent.order.len());
        assert_eq!((known, named + recent.nothings.len()), (MOST_KNOWN, known));
    }

    #[test]
    fn another_content_of_the_same_version_is_a_change_since() {
        let base = base("a");
        assert!(!found().was_changed_since(&base));
        let other = Found {
            writer: 3,
            data: 2,
            ..found()
        };
        assert!(other.was_changed_since(&base));
    }
}
