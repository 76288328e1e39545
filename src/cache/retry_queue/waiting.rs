//! `WaitingTags`: which copies of tags wait to be invalidated, how, and when each is tried.
//!
//! Invariant: a copy waits once, as the strongest of what was asked for, until it was invalidated
//! after it was last asked for, or until servers have refused it for some minutes. There are at
//! most 10,000, and one try of each at a time. A copy that is asked for again while it waits for
//! its turn at the server, or is tried, keeps its turn: it is not taken again before that try has
//! ended. Nothing here does I/O or knows a clock. The retry queue calls this.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Fate};
use crate::key::Key;
use crate::tags::{Invalidation, Tag, may_pass, needs_someone};
use crate::time::jittered;

/// The copies of tags that wait, by their keys.
#[derive(Debug, Default)]
pub(super) struct WaitingTags {
    waiting: HashMap<Key, Waiting>,
    /// The keys of the copies that are tried now. A copy that is asked for again meanwhile, or that
    /// does not wait any more, stays here until its try has ended.
    under_way: HashSet<Key>,
    /// Numbers what is kept and the calls that may make it superfluous, in their order.
    clock: u64,
}

/// A copy of a tag that waits.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) copy: Tag,
    pub(super) how: Invalidation,
    /// When it was last asked for.
    asked: u64,
    /// When it is tried next. `None` while it is tried, unless it was asked for again since.
    due: Option<Instant>,
    /// How often it was tried since it was last asked for.
    tries: u32,
    /// Since when each try was refused by a server for a reason that does not pass by itself.
    refused_since: Option<Instant>,
}

/// When a call began, in the order of the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Began(u64);

/// How many copies were kept, and how many found no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) kept: u64,
    pub(super) refused: u64,
}

/// What has become of a copy that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    Delivered,
    /// It is tried again.
    Waits,
    /// It never will be invalidated.
    GivenUp,
    /// It does not wait any more, or was asked for again meanwhile.
    Superseded,
}

impl WaitingTags {
    /// Notes that a call begins.
    pub(super) fn begins(&mut self) -> Began {
        self.clock += 1;
        Began(self.clock)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds `copies`, which are tried soon after `now`.
    pub(super) fn keep(
        &mut self,
        copies: impl Iterator<Item = Tag>,
        how: Invalidation,
        now: Instant,
    ) -> Kept {
        self.clock += 1;
        let mut count = Kept::default();
        for copy in copies {
            let known = self.waiting.get(&copy.key).map(|known| known.how);
            if known.is_none() && self.waiting.len() >= MOST_WAITING {
                count.refused += 1;
                continue;
            }
            count.kept += 1;
            let waiting = Waiting {
                how: known.map_or(how, |known| known.joined(how)),
                asked: self.clock,
                due: Some(now + FIRST_PAUSE),
                tries: 0,
                refused_since: None,
                copy,
            };
            self.waiting.insert(waiting.copy.key.clone(), waiting);
        }
        count
    }

    /// Forgets the copies at `keys` that the call which began at `began` has invalidated, if it did
    /// as much as they wait for.
    pub(super) fn done<'k>(
        &mut self,
        keys: impl Iterator<Item = &'k Key>,
        how: Invalidation,
        began: Began,
    ) {
        if self.waiting.is_empty() {
            return;
        }
        for key in keys {
            let covered = |known: &Waiting| known.asked < began.0 && how == how.joined(known.how);
            if self.waiting.get(key).is_some_and(covered) {
                self.waiting.remove(key);
            }
        }
    }

    /// Makes all copies due at `now`, because the task that tried some of them has ended.
    pub(super) fn all_due(&mut self, now: Instant) {
        self.under_way.clear();
        for waiting in self.waiting.values_mut() {
            waiting.due = Some(now);
        }
    }

    /// Returns the copies that are due by `until`. Each of them is under way until its try has
    /// ended, and is not due before.
    pub(super) fn take_due(&mut self, until: Instant) -> Vec<Key> {
        let mut taken = Vec::new();
        for (key, waiting) in &mut self.waiting {
            if self.under_way.len() >= MOST_WAITING {
                break;
            }
            let is_due = waiting.due.is_some_and(|due| due <= until);
            if is_due && self.under_way.insert(key.clone()) {
                waiting.due = None;
                taken.push(key.clone());
            }
        }
        taken
    }

    /// When the next copy is due that is not under way.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = self.waiting.iter();
        let idle = waiting.filter(|(key, _)| !self.under_way.contains(*key));
        idle.filter_map(|(_, waiting)| waiting.due).min()
    }

    /// Returns the copy at `key`, to be tried. `None` if it does not wait any more; then it is not
    /// under way, either.
    pub(super) fn begin(&mut self, key: &Key) -> Option<Waiting> {
        let waiting = self.waiting.get(key).cloned();
        if waiting.is_none() {
            self.under_way.remove(key);
        }
        waiting
    }

    /// Notes what a try has come to.
    pub(super) fn tried(
        &mut self,
        tried: &Waiting,
        outcome: Result<(), &Error>,
        now: Instant,
    ) -> Outlook {
        self.under_way.remove(&tried.copy.key);
        let known = self.waiting.get_mut(&tried.copy.key);
        // Asked for again since: that is tried by itself.
        let Some(known) = known.filter(|known| known.asked == tried.asked) else {
            return Outlook::Superseded;
        };
        match outcome {
            // Rights may be on their way, but are not waited for without end.
            Err(error) if may_pass(error) && !known.is_refused_for_long(error, now) => {
                known.due = Some(now + pause(known.tries, error.fate()));
                known.tries += 1;
                Outlook::Waits
            }
            outcome => {
                self.waiting.remove(&tried.copy.key);
                match outcome {
                    Ok(()) => Outlook::Delivered,
                    Err(_) => Outlook::GivenUp,
                }
            }
        }
    }
}

impl Waiting {
    /// Notes the error of a try. Returns whether servers have refused it for so long that it is
    /// given up. An outage refuses nothing, and what was refused before it may be allowed after it.
    /// A try that a circuit breaker has kept from a server that refuses changes nothing.
    fn is_refused_for_long(&mut self, error: &Error, now: Instant) -> bool {
        if needs_someone(error) && error.kind() == ErrorKind::CircuitOpen {
            return false;
        }
        if !needs_someone(error) || error.fate() != Fate::Refused {
            self.refused_since = None;
            return false;
        }
        let since = *self.refused_since.get_or_insert(now);
        now.saturating_duration_since(since) >= LONGEST_REFUSED
    }
}

/// How long a copy waits after so many tries, the last of which ended with this fate.
fn pause(tries: u32, fate: Fate) -> Duration {
    let longest = match fate {
        // To ask whether the server is back costs nothing.
        Fate::NotExecuted => LONGEST_PAUSE,
        // It may have been executed, and then the next try ends what was stored since. Or the
        // server answers and refuses, which costs it a command each time.
        _ => LONGEST_PAUSE_IF_HEARD,
    };
    let whole = FIRST_PAUSE.saturating_mul(1 << tries.min(16)).min(longest);
    jittered(whole, 0.5..1.0)
}

/// A copy is given up once servers have refused it for so long for a reason that does not pass by
/// itself.
const LONGEST_REFUSED: Duration = Duration::from_secs(300);

/// How many copies wait at most.
const MOST_WAITING: usize = 10_000;

/// The shortest and the longest pause between two tries of one copy.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The longest pause after a try that may have been executed, or was refused.
const LONGEST_PAUSE_IF_HEARD: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::tags::{Mode, RecentTags};

    fn tags(names: impl IntoIterator<Item = String>) -> Vec<Tag> {
        let client = Client::open("redis://127.0.0.1:6379").expect("a good URL");
        let recent = RecentTags::default();
        let tags = names.into_iter().map(|name| recent.named(&client, &name));
        tags.map(|tag| tag.expect("a good name")).collect()
    }

    fn one() -> Vec<Tag> {
        tags(["t".to_owned()])
    }

    fn how(mode: Mode, hold_until: Option<Instant>) -> Invalidation {
        Invalidation {
            mode,
            hold_until,
            keep: Duration::from_secs(60),
            replicas: 0,
        }
    }

    fn hard() -> Invalidation {
        how(Mode::Hard, None)
    }

    fn keep(state: &mut WaitingTags, tags: Vec<Tag>, how: Invalidation) -> (u64, u64) {
        let Kept { kept, refused } = state.keep(tags.into_iter(), how, Instant::now());
        (kept, refused)
    }

    fn done(state: &mut WaitingTags, how: Invalidation, began: Began) {
        state.done(one().iter().map(|tag| &tag.key), how, began);
    }

    fn only(state: &mut WaitingTags) -> Waiting {
        state.begin(&one()[0].key).expect("it waits")
    }

    #[test]
    fn a_tag_is_kept_once_and_as_its_strongest_invalidation() {
        let mut state = WaitingTags::default();
        let soon = Some(Instant::now());
        for how in [how(Mode::Soft, soon), hard(), how(Mode::Soft, None)] {
            assert_eq!(keep(&mut state, one(), how), (1, 0));
        }
        assert_eq!(state.len(), 1);
        assert_eq!(only(&mut state).how, how(Mode::Hard, soon));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_waits_stays() {
        let mut state = WaitingTags::default();
        let many = tags((0..MOST_WAITING + 3).map(|number| number.to_string()));
        let (most, few) = (MOST_WAITING as u64, many[..5].to_vec());
        assert_eq!(keep(&mut state, many, hard()), (most, 3));
        assert_eq!(keep(&mut state, few, hard()), (5, 0));
        assert_eq!(state.len(), MOST_WAITING);
    }

    #[test]
    fn a_later_call_that_does_as_much_makes_what_waits_superfluous_and_no_other() {
        let soft = how(Mode::Soft, None);
        let held = how(Mode::Hard, Some(Instant::now()));
        for (waits, does, is_done) in [
            (hard(), hard(), true),
            (soft, hard(), true),
            (hard(), soft, false),
            (held, hard(), false),
            (hard(), held, true),
        ] {
            let mut state = WaitingTags::default();
            let before = state.begins();
            keep(&mut state, one(), waits);
            done(&mut state, does, before);
            assert_eq!(state.len(), 1, "a call that began before");
            let after = state.begins();
            done(&mut state, does, after);
            assert_eq!(state.is_empty(), is_done, "{waits:?}, {does:?}");
        }
    }

    #[test]
    fn a_tag_that_is_asked_for_again_while_it_is_delivered_waits_on() {
        let (mut state, now) = (WaitingTags::default(), Instant::now());
        keep(&mut state, one(), hard());
        let tried = only(&mut state);
        keep(&mut state, one(), hard());
        assert_eq!(state.tried(&tried, Ok(()), now), Outlook::Superseded);
        assert_eq!(state.len(), 1);
        let tried = only(&mut state);
        assert_eq!(state.tried(&tried, Ok(()), now), Outlook::Delivered);
        assert!(state.is_empty());
    }

    #[test]
    fn a_tag_under_way_is_not_taken_again_unless_its_task_has_ended() {
        let (mut state, now) = (WaitingTags::default(), Instant::now());
        keep(&mut state, one(), hard());
        let soon = now + FIRST_PAUSE * 2;
        assert_eq!(state.take_due(now - FIRST_PAUSE), []);
        assert_eq!(state.take_due(soon).len(), 1);
        assert_eq!((state.take_due(soon), state.next_due()), (vec![], None));
        state.all_due(now);
        assert_eq!(state.take_due(now).len(), 1);
    }

    #[test]
    fn a_tag_that_is_asked_for_again_is_not_tried_again_before_its_try_has_ended() {
        let (mut state, now) = (WaitingTags::default(), Instant::now());
        let later = now + FIRST_PAUSE * 2;
        keep(&mut state, one(), hard());
        assert_eq!(state.take_due(later).len(), 1);
        let tried = only(&mut state);
        for _ in 0..3 {
            keep(&mut state, one(), hard());
            assert_eq!((state.take_due(later), state.next_due()), (vec![], None));
        }
        assert_eq!(state.tried(&tried, Ok(()), now), Outlook::Superseded);
        assert_eq!(state.take_due(later).len(), 1);
        // Nor is one that was done meanwhile, and then was asked for again.
        let began = state.begins();
        done(&mut state, hard(), began);
        keep(&mut state, one(), hard());
        assert_eq!(state.take_due(later), []);
        let tried = only(&mut state);
        assert_eq!(state.tried(&tried, Ok(()), now), Outlook::Delivered);
        assert_eq!((state.len(), state.under_way.len()), (0, 0));
    }

    #[test]
    fn a_tag_that_was_done_before_its_turn_came_can_be_tried_when_it_is_asked_for_again() {
        let (mut state, later) = (WaitingTags::default(), Instant::now() + FIRST_PAUSE * 2);
        keep(&mut state, one(), hard());
        assert_eq!(state.take_due(later).len(), 1);
        let began = state.begins();
        done(&mut state, hard(), began);
        assert!(state.begin(&one()[0].key).is_none());
        keep(&mut state, one(), hard());
        assert_eq!(state.take_due(later).len(), 1);
    }

    #[test]
    fn no_more_tries_are_under_way_than_tags_may_wait() {
        let (mut state, later) = (WaitingTags::default(), Instant::now() + LONGEST_REFUSED);
        let many = |from: usize| tags((from..from + MOST_WAITING).map(|it| it.to_string()));
        let first = many(0);
        keep(&mut state, first.clone(), hard());
        assert_eq!(state.take_due(later).len(), MOST_WAITING);
        // A call has done them all, and none has had its turn yet.
        let began = state.begins();
        state.done(first.iter().map(|tag| &tag.key), hard(), began);
        assert_eq!(
            keep(&mut state, many(MOST_WAITING), hard()).0,
            MOST_WAITING as u64
        );
        assert!(state.take_due(later).is_empty());
        assert!(state.begin(&first[0].key).is_none());
        assert_eq!(state.take_due(later).len(), 1);
    }

    #[test]
    fn what_may_have_been_executed_or_is_refused_is_tried_seldom() {
        for (fate, longest) in [
            (Fate::NotExecuted, LONGEST_PAUSE),
            (Fate::Unknown, LONGEST_PAUSE_IF_HEARD),
            (Fate::Refused, LONGEST_PAUSE_IF_HEARD),
        ] {
            let (mut state, now) = (WaitingTags::default(), Instant::now());
            keep(&mut state, one(), hard());
            let error = Error::new(ErrorKind::Timeout, "told by the test").with_fate(fate);
            let mut pauses = Vec::new();
            for _ in 0..20 {
                let tried = only(&mut state);
                let outlook = state.tried(&tried, Err(&error), now);
                assert_eq!(outlook, Outlook::Waits);
                pauses.push(state.next_due().expect("it waits") - now);
            }
            assert!(pauses[0] <= FIRST_PAUSE);
            let last = pauses[19];
            assert!(longest / 2 <= last && last <= longest, "{fate:?}: {last:?}");
        }
    }

    #[test]
    fn a_tag_that_is_refused_for_missing_rights_is_tried_for_some_minutes_and_not_for_ever() {
        let mut state = WaitingTags::default();
        keep(&mut state, one(), hard());
        let key = one()[0].key.clone();
        let forbidden = Error::new(ErrorKind::Forbidden, "no");
        // A provider of credentials that does not answer refuses nothing.
        let out = Error::new(ErrorKind::Unauthenticated, "no").with_fate(Fate::NotExecuted);
        let mut now = Instant::now();
        let mut refuse = |error: &Error| {
            let tried = state.begin(&key).expect("it waits");
            let at = now;
            let outlook = state.tried(&tried, Err(error), at);
            now = state.next_due().unwrap_or(at);
            (outlook, at)
        };
        for _ in 0..100 {
            assert_eq!(refuse(&out).0, Outlook::Waits);
        }
        // The breaker is open meanwhile, for the same reason, and lets a try through now and then.
        let open = Error::new(ErrorKind::CircuitOpen, "no").with_source(out);
        let (mut outlook, began) = refuse(&forbidden);
        let mut last = began;
        while outlook == Outlook::Waits {
            assert_eq!(refuse(&open).0, Outlook::Waits);
            (outlook, last) = refuse(&forbidden);
            assert!(last - began < LONGEST_REFUSED * 2, "it is given up by then");
        }
        assert_eq!(outlook, Outlook::GivenUp);
        let (least, most) = (
            LONGEST_REFUSED,
            LONGEST_REFUSED + 2 * LONGEST_PAUSE_IF_HEARD,
        );
        assert!((least..=most).contains(&(last - began)));
        assert!(state.is_empty());
    }

    #[test]
    fn what_never_will_succeed_is_given_up() {
        let mut state = WaitingTags::default();
        keep(&mut state, one(), hard());
        let error = Error::new(ErrorKind::WrongType, "told by the test");
        let tried = only(&mut state);
        let outlook = state.tried(&tried, Err(&error), Instant::now());
        assert_eq!((outlook, state.len()), (Outlook::GivenUp, 0));
    }
}
