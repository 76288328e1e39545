//! `Trials`: which values may be larger than the server takes, and which call may find out.
//!
//! Invariant: a value is in doubt if the server refused it, or closed a connection on which it was
//! sent. It stays in doubt until the server takes a value that is at least as large. A value in
//! doubt is sent over a session that no other call uses, so that it can only make its own call
//! fail. Only one such value is sent at a time, so that there are not many such sessions. What
//! waits for its turn is bounded. A turn lapses, so a future that is kept and not polled blocks no
//! caller for long.
//!
//! [`Large`](super::large::Large) asks before it sends a value.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Keeps account of the sizes that are in doubt, and hands out turns.
#[derive(Debug)]
pub(crate) struct Trials {
    /// How many bytes of values may wait for their turn.
    most: usize,
    state: Mutex<State>,
}

/// The state machine. The clock is passed in.
#[derive(Debug, Default)]
struct State {
    doubt: Option<Doubt>,
    /// The smallest size that the server has refused lately, and when.
    refused: Option<(usize, Instant)>,
    /// The turn under way: its number, and when it lapses.
    turn: Option<(u64, Instant)>,
    /// The values that wait: the number of the wait, its deadline, and the size of the value.
    waiting: Vec<(u64, Instant, usize)>,
    /// How many turns and waits there have been. It numbers them.
    count: u64,
}

/// Values of `from` bytes and more may be too large. The largest that was lost has `to` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Doubt {
    from: usize,
    to: usize,
}

/// How a value is to be sent.
#[derive(Debug)]
pub(crate) enum Way<'t> {
    /// Over the connection that all large values share: as far as known, the server takes it.
    Shared,
    /// Over a session of its own.
    Alone(Turn<'t>),
    /// Not at all: the server refused a value that was not larger a moment ago.
    Refused,
    /// Not at all: other values had their turn until the deadline.
    Late,
    /// Not at all: this many calls, with this many bytes, wait for their turn already.
    Crowded(usize, usize),
}

/// The permit to send a value in doubt. Dropping this ends the turn.
#[derive(Debug)]
pub(crate) struct Turn<'t> {
    trials: &'t Trials,
    number: u64,
}

/// A wait for a turn. It counts against the bound until it is dropped, or until its deadline.
#[derive(Debug)]
struct Wait<'t> {
    trials: &'t Trials,
    number: u64,
}

impl Trials {
    /// No value is in doubt, and at most `most` bytes of values may wait for their turn.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
        }
    }

    /// How to send a value of this many bytes. Waits for its turn if the value is in doubt.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn way(&self, bytes: usize, deadline: Instant) -> Way<'_> {
        let mut wait = None;
        loop {
            let now = Instant::now();
            if let Some(way) = self.way_now(bytes, deadline, now) {
                return way;
            }
            if now >= deadline {
                return Way::Late;
            }
            if wait.is_none() {
                match self.state().wait(bytes, self.most, deadline, now) {
                    Ok(number) => {
                        wait = Some(Wait {
                            trials: self,
                            number,
                        });
                    }
                    Err((calls, bytes)) => return Way::Crowded(calls, bytes),
                }
            }
            // By timer: the turn of a caller that is kept and not polled lapses without a wake-up.
            sleep_until(deadline.min(now + LOOK)).await;
        }
    }

    /// How to send the value now; `None` while another value has its turn.
    fn way_now(&self, bytes: usize, deadline: Instant, now: Instant) -> Option<Way<'_>> {
        let mut state = self.state();
        if !state.doubts(bytes) {
            return Some(Way::Shared);
        }
        if state.has_refused(bytes, now) {
            return Some(Way::Refused);
        }
        let number = state.begin(deadline, now)?;
        Some(Way::Alone(Turn {
            trials: self,
            number,
        }))
    }

    /// Whether a value of this many bytes may be too large.
    pub(crate) fn doubt(&self, bytes: usize) -> bool {
        self.state().doubts(bytes)
    }

    /// Notes that a connection was lost while a value of this many bytes was sent on it.
    pub(crate) fn lost(&self, bytes: usize) {
        self.state().lost(bytes);
    }

    /// Notes that the server has refused a value of this many bytes.
    pub(crate) fn refused(&self, bytes: usize) {
        self.state().refused(bytes, Instant::now());
    }

    /// Notes that the server has taken a value of this many bytes.
    pub(crate) fn taken(&self, bytes: usize) {
        self.state().taken(bytes);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut state = self.trials.state();
        state.waiting.retain(|(number, ..)| *number != self.number);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.trials.state();
        state.turn.take_if(|(number, _)| *number == self.number);
    }
}

impl State {
    fn doubts(&self, bytes: usize) -> bool {
        self.doubt.is_some_and(|doubt| bytes >= doubt.from)
    }

    fn has_refused(&self, bytes: usize, now: Instant) -> bool {
        self.refused
            .is_some_and(|(least, at)| bytes >= least && now < at + LATELY)
    }

    /// Begins a turn and returns its number, unless another is under way.
    fn begin(&mut self, deadline: Instant, now: Instant) -> Option<u64> {
        if self.turn.is_some_and(|(_, lapses)| now < lapses) {
            return None;
        }
        self.count += 1;
        self.turn = Some((self.count, deadline.min(now + LONGEST_TURN)));
        Some(self.count)
    }

    /// Begins a wait and returns its number. If too much waits already, fails with how many values
    /// wait and with how many bytes. A value that waits alone is never too much.
    fn wait(
        &mut self,
        bytes: usize,
        most: usize,
        deadline: Instant,
        now: Instant,
    ) -> Result<u64, (usize, usize)> {
        // A caller that is not polled does not remove itself, so its deadline ends its wait.
        self.waiting.retain(|(_, until, _)| *until > now);
        let held: usize = self.waiting.iter().map(|(.., bytes)| bytes).sum();
        if !self.waiting.is_empty() && held.saturating_add(bytes) > most {
            return Err((self.waiting.len(), held));
        }
        self.count += 1;
        self.waiting.push((self.count, deadline, bytes));
        Ok(self.count)
    }

    fn lost(&mut self, bytes: usize) {
        let before = self.doubt.unwrap_or(Doubt {
            from: bytes,
            to: bytes,
        });
        self.doubt = Some(Doubt {
            from: before.from.min(bytes),
            to: before.to.max(bytes),
        });
    }

    fn refused(&mut self, bytes: usize, now: Instant) {
        self.lost(bytes);
        // The time of a refusal that stands is kept, or repeated calls would extend it for ever.
        if !self.has_refused(bytes, now) {
            self.refused = Some((bytes, now));
        }
    }

    fn taken(&mut self, bytes: usize) {
        self.refused.take_if(|(least, _)| bytes >= *least);
        if let Some(doubt) = &mut self.doubt {
            // Values between this one and the largest that was lost stay in doubt.
            doubt.from = doubt.from.max(bytes + 1);
        }
        self.doubt.take_if(|doubt| doubt.from > doubt.to);
    }
}

/// How long a refusal holds for other values, without a trial. Each trial costs a few connects.
// Without this, a caller that repeats its call would use up all connects that the client may make.
const LATELY: Duration = Duration::from_secs(1);

/// How long a turn lasts at most. A transfer that takes longer goes on beside the next one.
const LONGEST_TURN: Duration = Duration::from_secs(3);

/// How often a waiting caller checks whether it has a turn.
const LOOK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Lost(usize),
        Taken(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = 1..30_usize;
        prop_oneof![
            bytes.clone().prop_map(Step::Lost),
            bytes.prop_map(Step::Taken),
        ]
    }

    proptest! {
        #[test]
        fn a_size_that_was_lost_is_in_doubt_until_one_as_large_is_taken(
            steps in vec(step(), 0..40),
        ) {
            let mut state = State::default();
            // Sizes that were lost, while no value as large was taken since.
            let mut lost: Vec<usize> = Vec::new();
            for step in steps {
                match step {
                    Step::Lost(bytes) => {
                        state.lost(bytes);
                        lost.push(bytes);
                    }
                    Step::Taken(bytes) => {
                        state.taken(bytes);
                        lost.retain(|it| *it > bytes);
                        prop_assert!(!state.doubts(bytes), "it was just taken");
                    }
                }
                for bytes in 1..30 {
                    let as_large = lost.iter().any(|it| bytes >= *it);
                    prop_assert!(!as_large || state.doubts(bytes), "{bytes} of {lost:?}");
                }
                prop_assert_eq!(state.doubt.is_some(), !lost.is_empty());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn values_in_doubt_take_turns_and_a_turn_that_is_kept_lapses() {
        let trials = Trials::new(20);
        let deadline = Instant::now() + Duration::from_secs(60);
        let way = |bytes| trials.way(bytes, deadline);
        assert!(matches!(way(5).await, Way::Shared));
        trials.lost(5);
        assert!(matches!(way(4).await, Way::Shared));
        let Way::Alone(kept) = way(5).await else {
            panic!("it is nobody's turn");
        };
        let soon = Instant::now() + LONGEST_TURN / 2;
        assert!(matches!(trials.way(6, soon).await, Way::Late));
        let Way::Alone(next) = way(6).await else {
            panic!("the turn has lapsed");
        };
        drop(kept);
        let soon = Instant::now() + LONGEST_TURN / 2;
        assert!(
            matches!(trials.way(6, soon).await, Way::Late),
            "not its own"
        );
        drop(next);
        assert!(matches!(way(6).await, Way::Alone(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_its_turn_is_bounded() {
        let trials = Trials::new(20);
        let deadline = Instant::now() + LONGEST_TURN / 2;
        trials.lost(5);
        let turn = trials.way(5, deadline).await;
        let mut waiting: Vec<_> = [15, 5].map(|it| Box::pin(trials.way(it, deadline))).into();
        for wait in &mut waiting {
            assert!(futures::poll!(wait).is_pending());
        }
        assert!(matches!(trials.way(5, deadline).await, Way::Crowded(2, 20)));
        waiting.pop();
        let mut last = Box::pin(trials.way(5, deadline));
        assert!(futures::poll!(&mut last).is_pending(), "there is room");
        // They are kept and not polled; their time is over.
        tokio::time::advance(LONGEST_TURN).await;
        let deadline = Instant::now() + LONGEST_TURN;
        let Way::Alone(_next) = trials.way(5, deadline).await else {
            panic!("the turn has lapsed");
        };
        let mut alone = Box::pin(trials.way(30, deadline));
        assert!(futures::poll!(&mut alone).is_pending(), "it is alone");
        drop(turn);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_answers_for_others_for_a_moment() {
        let trials = Trials::new(20);
        let deadline = Instant::now() + Duration::from_secs(60);
        trials.refused(5);
        assert!(matches!(trials.way(6, deadline).await, Way::Refused));
        assert!(matches!(trials.way(4, deadline).await, Way::Shared));
        tokio::time::advance(LATELY).await;
        assert!(matches!(trials.way(6, deadline).await, Way::Alone(_)));
        trials.refused(5);
        trials.taken(7);
        assert!(matches!(trials.way(6, deadline).await, Way::Shared));
    }
}
