//! Judging: whether an entry is a hit, decided from its bytes and the generations that are known.
//!
//! Invariant: an entry is a hit only if each generation stamped on it equals the present one, and
//! it is fresh. It is old, and never a hit, if it has a stale window and either its time is over or
//! a tag of it was invalidated softly. This is a pure function: it reads nothing. If it needs more
//! generations, it names their tags. `fetch` calls it.
//!
//! The time is the server's. A key lives until its entry may no longer be served stale. So how long
//! it still lives (`PTTL`) says what time it is, and no clock of a client is used.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::early::{Draws, is_due};
use crate::codec::{Decoder, Envelope, Stamp, Unreadable};
use crate::key::TagId;
use crate::tags::{Generation, TagValue};

/// What a read takes from a valid entry.
pub(in crate::cache) trait Taken: Sized {
    /// Takes it from `entry`, whose envelope is parsed.
    fn of(entry: &[u8], envelope: &Envelope<'_>, decoder: &Decoder<'_>)
    -> Result<Self, Unreadable>;
}

impl<V: DeserializeOwned> Taken for Arc<V> {
    fn of(_: &[u8], envelope: &Envelope<'_>, decoder: &Decoder<'_>) -> Result<Self, Unreadable> {
        decoder.decode(envelope).map(Self::new)
    }
}

/// What an entry comes to.
#[derive(Debug)]
pub(in crate::cache) enum Judged<T> {
    Hit(T),
    /// Only if the read wants it: an entry that is to be loaded anew.
    Old(Old<T>),
    Miss(Why),
    /// The entry is valid if these tags have the generations stamped on it.
    Needs(Vec<TagId>),
    /// How long the key still lives decides.
    NeedsTime,
}

/// An entry that is to be loaded anew, and may be served until then.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Old<T> {
    pub(in crate::cache) taken: T,
    pub(in crate::cache) stamps: Vec<Stamp>,
    pub(in crate::cache) age: Age,
}

/// Why an old entry is to be loaded anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Age {
    /// It is valid and fresh, and its early refresh is due.
    Due,
    /// It has been stale for so long.
    Stale(Duration),
}

/// Why an entry is no hit.
#[derive(Debug)]
pub(in crate::cache) enum Why {
    Absent,
    Invalidated,
    /// It is stale, and the read wants no stale entries.
    Expired,
    Unreadable(Unreadable),
}

/// Which entries a read wants, beside hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Want {
    Fresh,
    /// Also those that are stale, and, if any are drawn, those whose early refresh is due.
    Old {
        early: Option<Draws>,
    },
}

impl Want {
    /// Also those that are stale, without an early refresh.
    pub(in crate::cache) const STALE: Self = Self::Old { early: None };

    /// The numbers by which early refreshes are decided, if there are any.
    pub(in crate::cache) fn early(self) -> Option<Draws> {
        match self {
            Self::Fresh => None,
            Self::Old { early } => early,
        }
    }
}

/// How long a key still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) enum Left {
    /// It was not asked for.
    Unread,
    /// It has no end.
    Long,
    Millis(u64),
}

/// By what an entry is judged, beside the generations of its tags.
#[derive(Debug, Clone, Copy)]
pub(in crate::cache) struct Rules {
    /// An entry that does not carry this tag of its cache could not be cleared, so it is no hit.
    /// `None` for bare values, which carry no tags.
    pub(in crate::cache) whole: Option<TagId>,
    pub(in crate::cache) want: Want,
    /// What was drawn for the entry, if it may be refreshed early.
    pub(in crate::cache) draw: Option<f32>,
    pub(in crate::cache) left: Left,
}

/// Judges `entry`. `known` returns what a tag holds at present, or `None` if that was not read.
pub(in crate::cache) fn judge<'v, T: Taken>(
    entry: Option<&[u8]>,
    rules: Rules,
    known: impl Fn(TagId) -> Option<Option<TagValue<'v>>>,
    decoder: &Decoder<'_>,
) -> Judged<T> {
    let Some(entry) = entry else {
        return Judged::Miss(Why::Absent);
    };
    let envelope = match decoder.parse(entry) {
        Ok(envelope) => envelope,
        Err(error) => return Judged::Miss(Why::Unreadable(error)),
    };
    let mut unknown = Vec::new();
    let (mut clearable, mut replaced) = (rules.whole.is_none(), None);
    for stamp in envelope.stamps() {
        let (tag, stamped) = (TagId(stamp.tag), Generation::from_stamp(stamp.generation));
        let Some(present) = known(tag) else {
            unknown.push(tag);
            continue;
        };
        clearable |= rules.whole == Some(tag);
        if present.is_some_and(|present| present.generation() == stamped) {
            continue;
        }
        match present.and_then(|present| present.replaced_softly(stamped)) {
            Some(at) => replaced = Some(replaced.map_or(at, |first: u64| first.min(at))),
            // One stamp that differs decides, whatever the others are: no further read is needed.
            None => return Judged::Miss(Why::Invalidated),
        }
    }
    let has_window = envelope.stale_until > envelope.fresh_until;
    if replaced.is_some() && !has_window {
        return Judged::Miss(Why::Invalidated);
    }
    if !unknown.is_empty() {
        return Judged::Needs(unknown);
    }
    if !clearable {
        return Judged::Miss(Why::Invalidated);
    }
    if replaced.is_some() && rules.want == Want::Fresh {
        return Judged::Miss(Why::Expired);
    }
    if has_window && rules.left == Left::Unread {
        return Judged::NeedsTime;
    }
    let age = age(&envelope, replaced, rules);
    if matches!(age, Some(Age::Stale(_))) && rules.want == Want::Fresh {
        return Judged::Miss(Why::Expired);
    }
    // Decoded last: an entry that is not valid need not be decoded.
    let taken = match T::of(entry, &envelope, decoder) {
        Ok(taken) => taken,
        Err(error) => return Judged::Miss(Why::Unreadable(error)),
    };
    match age {
        None => Judged::Hit(taken),
        Some(age) => Judged::Old(Old {
            taken,
            stamps: envelope.stamps().collect(),
            age,
        }),
    }
}

/// As [`judge`], for a reader that knows generations and no more of the tags.
#[cfg(feature = "near")]
pub(in crate::cache) fn judge_by<T: Taken>(
    entry: Option<&[u8]>,
    rules: Rules,
    known: impl Fn(TagId) -> Option<Generation>,
    decoder: &Decoder<'_>,
) -> Judged<T> {
    let known = |tag| known(tag).map(|generation| Some(TagValue::with(generation)));
    judge(entry, rules, known, decoder)
}

/// Returns why the entry is to be loaded anew, if it is. A tag of it was `replaced` softly at that
/// moment.
fn age(envelope: &Envelope<'_>, replaced: Option<u64>, rules: Rules) -> Option<Age> {
    let left = match rules.left {
        Left::Millis(left) => left,
        // Its time does not matter.
        Left::Unread | Left::Long => {
            return replaced.map(|_| Age::Stale(Duration::ZERO));
        }
    };
    let now = envelope.stale_until.saturating_sub(left);
    let fresh_until = replaced.map_or(envelope.fresh_until, |at| at.min(envelope.fresh_until));
    // A tag may be on another server, whose clock is ahead: what was replaced is never fresh.
    if replaced.is_some() || now >= fresh_until {
        let age = now.saturating_sub(fresh_until);
        return Some(Age::Stale(Duration::from_millis(age)));
    }
    let left = Duration::from_millis(fresh_until - now);
    let is_due = |draw| is_due(envelope.cost, draw, left);
    rules.draw.is_some_and(is_due).then_some(Age::Due)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::codec::{DEADLINES, Stack};

    const WHOLE: TagId = TagId(1);
    const ONE: TagId = TagId(2);
    const OTHER: TagId = TagId(3);

    fn entry(stamps: &[(TagId, u64)]) -> Vec<u8> {
        let stamps = stamps.iter().map(|(tag, generation)| Stamp {
            tag: tag.0,
            generation: *generation,
        });
        let stamps: Vec<Stamp> = stamps.collect();
        let entry = Stack::default().encode(&7_u8, &stamps, Duration::ZERO);
        entry.expect("it can be written")
    }

    const RULES: Rules = Rules {
        whole: Some(WHOLE),
        want: Want::Fresh,
        draw: None,
        left: Left::Unread,
    };

    fn judged(entry: &[u8], known: &[(TagId, Option<u64>)]) -> Judged<Arc<u8>> {
        judged_by(entry, RULES, known)
    }

    fn judged_by(entry: &[u8], rules: Rules, known: &[(TagId, Option<u64>)]) -> Judged<Arc<u8>> {
        let values = known.iter().map(|(tag, generation)| {
            let value = generation.map(|it| Bytes::copy_from_slice(&it.to_be_bytes()));
            (*tag, value)
        });
        let values: Vec<(TagId, Option<Bytes>)> = values.collect();
        let known = |tag| {
            let mut known = values.iter().filter(|(id, _)| *id == tag);
            known.next().map(|(_, value)| TagValue::of(value.as_ref()))
        };
        judge(Some(entry), rules, known, &Stack::default().decoder(""))
    }

    #[test]
    fn an_entry_is_a_hit_if_all_its_stamps_are_the_present_generations() {
        let both = entry(&[(WHOLE, 10), (ONE, 20)]);
        let known = [(WHOLE, Some(10)), (ONE, Some(20)), (OTHER, Some(9))];
        assert!(matches!(judged(&both, &known), Judged::Hit(value) if *value == 7));
        for present in [Some(21), None] {
            let known = [(WHOLE, Some(10)), (ONE, present)];
            let judged = judged(&both, &known);
            assert!(
                matches!(judged, Judged::Miss(Why::Invalidated)),
                "{judged:?}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_asked_for_unless_the_rest_decides() {
        let three = entry(&[(WHOLE, 10), (ONE, 20), (OTHER, 30)]);
        let judged = |known: &[(TagId, Option<u64>)]| judged(&three, known);
        let needs = judged(&[(WHOLE, Some(10))]);
        assert!(matches!(needs, Judged::Needs(tags) if tags == [ONE, OTHER]));
        let needs = judged(&[(WHOLE, Some(10)), (OTHER, Some(30))]);
        assert!(matches!(needs, Judged::Needs(tags) if tags == [ONE]));
        let over = judged(&[(WHOLE, Some(10)), (OTHER, Some(31))]);
        assert!(matches!(over, Judged::Miss(Why::Invalidated)));
    }

    #[test]
    fn an_entry_that_could_not_be_cleared_is_no_hit() {
        let entry = entry(&[(ONE, 20)]);
        let judged = judged(&entry, &[(WHOLE, Some(10)), (ONE, Some(20))]);
        assert!(matches!(judged, Judged::Miss(Why::Invalidated)));
    }

    #[test]
    fn what_cannot_be_read_is_a_miss_that_says_why() {
        let nothing: Judged<Arc<u8>> = judge(None, RULES, |_| None, &Stack::default().decoder(""));
        assert!(matches!(nothing, Judged::Miss(Why::Absent)));
        let mut damaged = entry(&[(WHOLE, 10)]);
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        let known = [(WHOLE, Some(10))];
        let why = judged(&damaged, &known);
        assert!(matches!(
            why,
            Judged::Miss(Why::Unreadable(Unreadable::Damaged(_)))
        ));
        let whole = Bytes::copy_from_slice(&10_u64.to_be_bytes());
        let text: Judged<Arc<String>> = judge(
            Some(&entry(&[(WHOLE, 10)])),
            RULES,
            |_| Some(TagValue::of(Some(&whole))),
            &Stack::default().decoder(""),
        );
        assert!(matches!(
            text,
            Judged::Miss(Why::Unreadable(Unreadable::Foreign(_)))
        ));
    }

    /// An entry that is fresh until 1,000 and may be served stale until 1,500.
    fn with_window() -> Vec<u8> {
        let mut entry = entry(&[(WHOLE, 10), (ONE, 20)]);
        let ends = [1000_u64.to_be_bytes(), 1500_u64.to_be_bytes()];
        let ends: Vec<u8> = ends.iter().flat_map(|end| &end[2..]).copied().collect();
        entry[DEADLINES].copy_from_slice(&ends);
        entry
    }

    fn at(now: u64, want: Want) -> Rules {
        let left = Left::Millis(1500 - now);
        Rules {
            want,
            left,
            ..RULES
        }
    }

    const OLD: Want = Want::STALE;

    #[test]
    fn an_entry_with_a_stale_window_is_judged_by_the_time_of_the_server() {
        let (entry, known) = (with_window(), [(WHOLE, Some(10)), (ONE, Some(20))]);
        let judged = |rules| judged_by(&entry, rules, &known);
        assert!(matches!(judged(RULES), Judged::NeedsTime));
        assert!(matches!(judged(at(999, Want::Fresh)), Judged::Hit(_)));
        assert!(matches!(judged(at(999, OLD)), Judged::Hit(_)));
        let expired = judged(at(1000, Want::Fresh));
        assert!(matches!(expired, Judged::Miss(Why::Expired)));
        let Judged::Old(old) = judged(at(1300, OLD)) else {
            panic!("it is stale");
        };
        assert_eq!(old.age, Age::Stale(Duration::from_millis(300)));
        assert_eq!(old.stamps.len(), 2);
    }

    #[test]
    fn an_entry_is_stale_since_a_tag_of_it_was_replaced_softly() {
        let entry = with_window();
        let mut value = 21_u64.to_be_bytes().to_vec();
        value.extend([1, 0, 0, 0, 0, 3, 132]);
        value.extend(20_u64.to_be_bytes());
        value.extend(&900_u64.to_be_bytes()[2..]);
        let (one, whole) = (
            Bytes::from(value),
            Bytes::copy_from_slice(&10_u64.to_be_bytes()),
        );
        let known = |tag| {
            let value = if tag == ONE { &one } else { &whole };
            Some(TagValue::of(Some(value)))
        };
        let stack = Stack::default();
        let judged = |rules| judge::<Arc<u8>>(Some(&entry), rules, known, &stack.decoder(""));
        let expired = judged(at(950, Want::Fresh));
        assert!(matches!(expired, Judged::Miss(Why::Expired)));
        let Judged::Old(old) = judged(at(950, OLD)) else {
            panic!("it may be served");
        };
        assert_eq!(old.age, Age::Stale(Duration::from_millis(50)));
        // The clock of the tag's server is ahead of that of the value's server.
        let Judged::Old(old) = judged(at(850, OLD)) else {
            panic!("it was invalidated, whatever the clocks say");
        };
        assert_eq!(old.age, Age::Stale(Duration::ZERO));
        let mut without = entry.clone();
        without.copy_within(8..14, 14);
        let decoder = stack.decoder("");
        let judged: Judged<Arc<u8>> = judge(Some(&without), at(950, OLD), known, &decoder);
        assert!(
            matches!(judged, Judged::Miss(Why::Invalidated)),
            "it has no window"
        );
    }

    #[test]
    fn an_early_refresh_is_due_when_the_load_may_take_longer_than_is_left() {
        let stamps = [(WHOLE, 10)].map(|(tag, generation)| Stamp {
            tag: tag.0,
            generation,
        });
        let cost = Duration::from_millis(100);
        let entry = Stack::default().encode(&7_u8, &stamps, cost);
        let mut entry = entry.expect("it can be written");
        let end = 1500_u64.to_be_bytes();
        entry[DEADLINES].copy_from_slice(&[&end[2..], &end[2..]].concat());
        let judged = |now, draw| {
            let draw = Some(draw);
            let rules = Rules {
                draw,
                ..at(now, OLD)
            };
            judged_by(&entry, rules, &[(WHOLE, Some(10))])
        };
        assert!(matches!(judged(1299, 2.0), Judged::Hit(_)));
        assert!(matches!(
            judged(1300, 2.0),
            Judged::Old(Old { age: Age::Due, .. })
        ));
        assert!(matches!(judged(1499, 0.0), Judged::Hit(_)));
    }
}
