//! `Watch`: callers' futures on which others depend. The keeper looks at them.
//!
//! Invariant: a future that nobody polls keeps nothing that others depend on for longer than a few
//! looks take. Two such things exist. The first is a question that a caller asks by itself, which
//! makes an uncontended `acquire` fast. The others of the process wait for its answer, and the
//! server may have granted what it asks for. The second is a grant that was handed to a waiter.
//! Each is taken off either by its caller, who then has it, or by the keeper, which then releases
//! it. When such a caller is polled again, it joins the end of the local queue, and sends nothing
//! of its former question. All other work of callers runs in tasks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::hold::Hold;
use super::owner::{ByOwner, Owner};
use super::question::Question;
use crate::pulse::Beat;

#[derive(Debug, Default)]
pub(in crate::sync) struct Watch {
    asked: ByOwner<Watched<Question>>,
    offered: Vec<Watched<Hold>>,
}

#[derive(Debug)]
struct Watched<T> {
    it: Arc<T>,
    /// How far the caller's task had come at the last look. `None` before the first.
    beat: Option<Beat>,
    /// How many looks in a row have found that it was not polled.
    missed: u8,
}

/// What a look has found.
#[derive(Debug, Default)]
pub(in crate::sync) struct Found {
    /// Questions and offers whose callers are not polled.
    pub(in crate::sync) questions: Vec<Arc<Question>>,
    pub(in crate::sync) offers: Vec<Arc<Hold>>,
    /// Questions whose callers are woken. If they are polled before the next look, they are only
    /// slow.
    pub(in crate::sync) to_wake: Vec<Arc<Question>>,
}

impl Watch {
    pub(in crate::sync) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.offered.is_empty()
    }

    /// How many calls wait for an answer, or for the guard that was granted to them.
    pub(in crate::sync) fn len(&self) -> usize {
        self.asked.len() + self.offered.len()
    }

    /// Watches a question that a caller asks.
    pub(in crate::sync) fn ask(&mut self, question: Arc<Question>) {
        let watched = Watched {
            it: question,
            beat: None,
            missed: 0,
        };
        self.asked.insert(watched.it.owner, watched);
    }

    /// Takes a question off, because its caller has its answer or has left. `None` if the keeper
    /// has taken it.
    pub(in crate::sync) fn answered(&mut self, owner: Owner) -> Option<Arc<Question>> {
        self.asked.remove(&owner).map(|watched| watched.it)
    }

    /// Watches a grant that was handed to a waiter.
    pub(in crate::sync) fn offer(&mut self, hold: Arc<Hold>) {
        self.offered.push(Watched {
            it: hold,
            beat: None,
            missed: 0,
        });
    }

    /// Looks at all of them, and takes off those whose callers were not polled for some looks.
    pub(in crate::sync) fn look(&mut self) -> Found {
        for watched in self.asked.values_mut() {
            let beat = Some(watched.it.pulse.now());
            // The same count as at the last look: it was not polled since.
            let stood = std::mem::replace(&mut watched.beat, beat) == beat;
            watched.missed = if stood { watched.missed + 1 } else { 0 };
        }
        let left = |watched: &Watched<Question>| watched.missed >= MOST_MISSED;
        let questions = self.asked.extract_if(|_, watched| left(watched));
        let mut found = Found {
            questions: questions.map(|(_, watched)| watched.it).collect(),
            ..Found::default()
        };
        for question in &found.questions {
            // Set under the keeper's lock: from here on, the caller's `answered` finds nothing.
            question.taken_over.store(true, Ordering::SeqCst);
        }
        let asked = self.asked.values();
        found
            .to_wake
            .extend(asked.map(|watched| watched.it.clone()));
        self.offered.retain_mut(|watched| {
            // Taken, or ended. Nobody takes an offer off when it is taken, so the look does.
            if !watched.it.is_offered() {
                return false;
            }
            // A waiter takes its grant at its next poll, so an offer that is still open was not
            // polled. The first look may come right behind the offer, so there is one look more.
            watched.missed += 1;
            let left = watched.missed > MOST_MISSED;
            if left {
                found.offers.push(watched.it.clone());
            }
            !left
        });
        found
    }
}

/// How many looks a caller may miss. More than one, so that a process that was stopped, or is short
/// of time, has a chance to answer.
const MOST_MISSED: u8 = 3;

#[cfg(test)]
mod tests {
    use crate::sync::core::question::Stands;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use futures::FutureExt as _;
    use tokio::time::Instant;

    use super::*;
    use crate::client::Client;
    use crate::pulse::Pulse;
    use crate::sync::core::keys::Keys;
    use crate::sync::fence::Fence;
    use crate::sync::lock::LOCK;
    use crate::time::Ttl;

    fn lease() -> Ttl {
        Ttl::new("the lease", Duration::from_secs(6)).expect("in range")
    }

    fn keys() -> Arc<Keys> {
        let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
        let keys = Keys::of(&client, &LOCK, &client.name("a"));
        keys.expect("a good name").into()
    }

    fn question() -> Arc<Question> {
        Arc::new(Question {
            owner: Owner::random(),
            keys: keys(),
            pulse: Pulse::default(),
            asked: (Instant::now(), lease()),
            stands: Stands::InLine,
            taken_over: AtomicBool::new(false),
        })
    }

    #[tokio::test]
    async fn a_question_that_nobody_polls_is_found_after_a_few_looks() {
        let mut watch = Watch::default();
        let (polled, left) = (question(), question());
        watch.ask(polled.clone());
        watch.ask(left.clone());
        for look in 0..=MOST_MISSED {
            let polling = polled.pulse.of(async {}).now_or_never();
            polling.expect("it does not wait");
            let found = watch.look();
            let expected = usize::from(look == MOST_MISSED);
            assert_eq!(found.questions.len(), expected, "look {look}");
            assert_eq!(found.to_wake.len(), 2 - expected, "look {look}");
        }
        assert!(watch.answered(left.owner).is_none(), "it was taken over");
        assert!(watch.answered(polled.owner).is_some());
        assert!(watch.is_empty());
    }

    #[tokio::test]
    async fn an_offer_is_found_unless_it_is_taken() {
        let mut watch = Watch::default();
        let offer = || {
            let granted = (Instant::now(), lease());
            let owner = Owner::random();
            let hold = Hold::new(keys(), owner, Fence(1), lease(), None, granted, 0);
            hold.offer();
            hold
        };
        let (taken, left) = (offer(), offer());
        watch.offer(taken.clone());
        watch.offer(left.clone());
        assert!(taken.take());
        for _ in 0..MOST_MISSED {
            assert!(watch.look().offers.is_empty());
        }
        let found = watch.look().offers;
        assert!(found.len() == 1 && found[0].owner == left.owner);
        assert!(watch.is_empty());
    }
}
