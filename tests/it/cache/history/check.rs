//! The pure checker: a history goes in, the reads that break the promise come out.
//!
//! Invariant: a history is in one total order, and all of its times are of one clock, that of the
//! process which wrote it down. An event of another process is written down before that process
//! begins a read, and after an invalidation has returned to it. So a read is never held to an
//! invalidation that it overlapped.

use std::collections::HashMap;
use std::time::Duration;

/// The number of a key of a world.
pub type KeyNumber = usize;

/// What happened, and when it was written down.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub at: Duration,
    pub event: Event,
}

#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// A read is about to begin.
    Asked {
        read: u64,
        client: u32,
        key: KeyNumber,
        rule: Rule,
    },
    /// It was given this version. A read that was dropped or has failed has no answer.
    Answered { read: u64, version: u64 },
    /// The truth of a key is this version from now on.
    Raised { key: KeyNumber, version: u64 },
    /// What makes everything older than this version invalid has returned to this client.
    Invalidated {
        client: u32,
        key: KeyNumber,
        version: u64,
        how: How,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Hard,
    /// Values may still be served stale, where a read allows it.
    Soft,
}

/// How old an answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Of a handle with a near cache: for how long it may miss the changes of other clients.
    pub near: Option<Duration>,
    /// For how long the read takes stale values.
    pub window: Duration,
    /// The longest that a value may have been out of date, whether invalidated or not.
    pub most: Option<Duration>,
}

/// A read that was given something too old, or something that has never been true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub read: u64,
    pub key: KeyNumber,
    pub version: u64,
    pub fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// An invalidation of this version had returned in time.
    Invalidated { floor: u64, how: How },
    /// It was out of date for so long.
    Outdated(Duration),
    /// The truth has never been that.
    Invented,
}

/// What a history shows.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Reads that were answered.
    pub reads: usize,
    /// Of these, reads of handles with a near cache.
    pub near: usize,
    /// Reads that were given less than the newest version whose invalidation had returned, as they
    /// may where a rule allows it.
    pub behind: usize,
    pub violations: Vec<Violation>,
}

/// An invalidation of a key that has returned.
struct Returned {
    at: Duration,
    client: u32,
    version: u64,
    how: How,
}

/// A read under way: what it may be given.
struct Held {
    key: KeyNumber,
    rule: Rule,
    asked: Duration,
    hard: u64,
    soft: u64,
    newest: u64,
}

#[derive(Default)]
struct Truth {
    /// When each version, from 1, became true. Version 0 is true from the start.
    raised: Vec<Duration>,
    returned: Vec<Returned>,
}

/// Holds each answered read of `history` to its own rule.
pub fn judge(history: &[Entry]) -> Verdict {
    let mut truths: HashMap<KeyNumber, Truth> = HashMap::new();
    let mut held: HashMap<u64, Held> = HashMap::new();
    let mut verdict = Verdict::default();
    for Entry { at, event } in history {
        match *event {
            Event::Raised { key, version } => {
                let truth = truths.entry(key).or_default();
                truth.raised.push(*at);
                assert_eq!(truth.raised.len() as u64, version, "versions rise by one");
            }
            Event::Invalidated {
                client,
                key,
                version,
                how,
            } => truths.entry(key).or_default().returned.push(Returned {
                at: *at,
                client,
                version,
                how,
            }),
            Event::Asked {
                read,
                client,
                key,
                rule,
            } => {
                let truth = truths.entry(key).or_default();
                held.insert(read, truth.hold(key, client, rule, *at));
            }
            Event::Answered { read, version } => {
                let held = held.remove(&read).expect("it was asked once");
                let truth = truths.entry(held.key).or_default();
                verdict.reads += 1;
                verdict.near += usize::from(held.rule.near.is_some());
                verdict.behind += usize::from(version < held.newest);
                verdict
                    .violations
                    .extend(truth.fault(&held, version).map(|fault| Violation {
                        read,
                        key: held.key,
                        version,
                        fault,
                    }));
            }
        }
    }
    verdict
}

impl Truth {
    /// What a read that begins now must not be older than.
    fn hold(&self, key: KeyNumber, client: u32, rule: Rule, now: Duration) -> Held {
        let newest = |counts: &dyn Fn(&Returned) -> bool| {
            let counted = self.returned.iter().filter(|it| counts(it));
            counted.map(|it| it.version).max().unwrap_or(0)
        };
        // A client sees its own changes at once, whatever it keeps near.
        let late = |it: &Returned| rule.near.filter(|_| it.client != client);
        let over = |it: &Returned, grace: Duration| it.at + grace < now || grace.is_zero();
        Held {
            key,
            rule,
            asked: now,
            hard: newest(&|it| it.how == How::Hard && over(it, late(it).unwrap_or_default())),
            soft: newest(&|it| {
                // What is near is never stale, and what is stale is never near: one of the two.
                it.how == How::Soft && over(it, late(it).unwrap_or_default().max(rule.window))
            }),
            newest: newest(&|_| true),
        }
    }

    fn fault(&self, held: &Held, version: u64) -> Option<Fault> {
        if version > self.raised.len() as u64 {
            return Some(Fault::Invented);
        }
        for (floor, how) in [(held.hard, How::Hard), (held.soft, How::Soft)] {
            if version < floor {
                return Some(Fault::Invalidated { floor, how });
            }
        }
        // The next version became true at this moment. Nothing older was loaded later.
        let outdated = self.raised.get(usize::try_from(version).ok()?)?;
        let age = held.asked.checked_sub(*outdated)?;
        (age > held.rule.most?).then_some(Fault::Outdated(age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Rule = Rule {
        near: None,
        window: Duration::ZERO,
        most: None,
    };

    fn near() -> Rule {
        let near = Some(Duration::from_millis(100));
        Rule { near, ..STRICT }
    }

    fn stale() -> Rule {
        let window = Duration::from_millis(50);
        Rule { window, ..STRICT }
    }

    fn raised(version: u64) -> Event {
        Event::Raised { key: 0, version }
    }

    fn invalidated(client: u32, version: u64, how: How) -> Event {
        Event::Invalidated {
            client,
            key: 0,
            version,
            how,
        }
    }

    fn asked(client: u32, rule: Rule) -> Event {
        Event::Asked {
            read: 1,
            client,
            key: 0,
            rule,
        }
    }

    fn answered(version: u64) -> Event {
        Event::Answered { read: 1, version }
    }

    /// What is wrong with the one read of a history, whose events come at these ms.
    fn fault(events: &[(u64, Event)]) -> Option<Fault> {
        let history: Vec<Entry> = events
            .iter()
            .map(|(at, event)| Entry {
                at: Duration::from_millis(*at),
                event: *event,
            })
            .collect();
        let verdict = judge(&history);
        assert!(verdict.violations.len() <= 1);
        verdict.violations.into_iter().next().map(|it| it.fault)
    }

    fn below(floor: u64, how: How) -> Option<Fault> {
        Some(Fault::Invalidated { floor, how })
    }

    #[test]
    fn a_read_after_an_invalidation_is_given_no_less() {
        let read = |version| {
            fault(&[
                (0, raised(1)),
                (1, raised(2)),
                (2, invalidated(7, 2, How::Hard)),
                (2, asked(1, STRICT)),
                (3, answered(version)),
            ])
        };
        assert_eq!(read(2), None);
        assert_eq!(read(1), below(2, How::Hard));
        assert_eq!(read(0), below(2, How::Hard));
        assert_eq!(read(3), Some(Fault::Invented));
    }

    #[test]
    fn a_read_that_overlaps_an_invalidation_may_have_either() {
        for version in [0, 1] {
            let history = [
                (0, asked(1, STRICT)),
                (1, raised(1)),
                (2, invalidated(7, 1, How::Hard)),
                (3, answered(version)),
            ];
            assert_eq!(fault(&history), None);
        }
    }

    #[test]
    fn what_was_raised_and_not_invalidated_may_be_unknown() {
        let history = [(0, raised(1)), (999, asked(1, STRICT)), (999, answered(0))];
        assert_eq!(fault(&history), None);
    }

    #[test]
    fn invalidations_that_return_out_of_order_count_by_their_version() {
        let history = [
            (0, raised(1)),
            (0, raised(2)),
            (1, invalidated(7, 2, How::Hard)),
            (2, invalidated(8, 1, How::Hard)),
            (3, asked(1, STRICT)),
            (3, answered(1)),
        ];
        assert_eq!(fault(&history), below(2, How::Hard));
    }

    #[test]
    fn a_near_read_is_late_by_its_bound_at_most() {
        let read = |at, rule| {
            fault(&[
                (0, raised(1)),
                (1, invalidated(7, 1, How::Hard)),
                (at, asked(1, rule)),
                (at, answered(0)),
            ])
        };
        assert_eq!(read(101, near()), None);
        assert_eq!(read(102, near()), below(1, How::Hard));
        assert_eq!(read(2, STRICT), below(1, How::Hard));
    }

    #[test]
    fn a_near_read_sees_what_its_own_client_has_changed() {
        for how in [How::Hard, How::Soft] {
            let history = [
                (0, raised(1)),
                (1, invalidated(7, 1, how)),
                (1, asked(7, near())),
                (1, answered(0)),
            ];
            assert_eq!(fault(&history), below(1, how));
        }
    }

    #[test]
    fn a_stale_value_ends_with_the_window_of_the_read() {
        let read = |at, rule| {
            fault(&[
                (0, raised(1)),
                (1, invalidated(7, 1, How::Soft)),
                (at, asked(1, rule)),
                (at, answered(0)),
            ])
        };
        assert_eq!(read(51, stale()), None);
        assert_eq!(read(52, stale()), below(1, How::Soft));
        assert_eq!(read(1, STRICT), below(1, How::Soft));
    }

    #[test]
    fn a_window_takes_nothing_that_was_invalidated_hard() {
        let history = [
            (0, raised(1)),
            (1, invalidated(7, 1, How::Hard)),
            (1, asked(1, stale())),
            (1, answered(0)),
        ];
        assert_eq!(fault(&history), below(1, How::Hard));
    }

    #[test]
    fn a_read_that_is_near_and_stale_has_the_longer_of_both() {
        let both = Rule {
            near: near().near,
            ..stale()
        };
        let read = |at, how| {
            fault(&[
                (0, raised(1)),
                (1, invalidated(7, 1, how)),
                (at, asked(1, both)),
                (at, answered(0)),
            ])
        };
        for how in [How::Hard, How::Soft] {
            assert_eq!(read(101, how), None);
            assert_eq!(read(102, how), below(1, how));
        }
    }

    #[test]
    fn nothing_outlives_its_ttl_and_window() {
        let most = Some(Duration::from_millis(80));
        let read = |at| {
            fault(&[
                (10, raised(1)),
                (at, asked(1, Rule { most, ..STRICT })),
                (at, answered(0)),
            ])
        };
        assert_eq!(read(90), None);
        assert_eq!(read(91), Some(Fault::Outdated(Duration::from_millis(81))));
    }

    #[test]
    fn a_read_without_an_answer_is_no_read() {
        let history = [Entry {
            at: Duration::ZERO,
            event: asked(1, STRICT),
        }];
        assert_eq!(judge(&history).reads, 0);
    }
}
