//! Judging: whether an entry is a hit, decided from its bytes and the generations that are known.
//!
//! Invariant: an entry is a hit only if each generation stamped on it equals the present one. This
//! is a pure function: it reads nothing. If it needs more generations, it names their tags. `fetch`
//! calls it.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::codec::{Decoder, Envelope, Unreadable};
use crate::key::TagId;
use crate::tags::Generation;

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
    Miss(Why),
    /// The entry is valid if these tags have the generations stamped on it.
    Needs(Vec<TagId>),
}

/// Why an entry is no hit.
#[derive(Debug)]
pub(in crate::cache) enum Why {
    Absent,
    Invalidated,
    Unreadable(Unreadable),
}

/// Judges `entry`. `known` returns the present generation of a tag, or `None` if that was not read.
///
/// An entry that does not carry the tag `whole` of its cache could not be cleared, so it is never a
/// hit.
pub(in crate::cache) fn judge<T: Taken>(
    entry: Option<&[u8]>,
    whole: TagId,
    known: impl Fn(TagId) -> Option<Option<Generation>>,
    decoder: &Decoder<'_>,
) -> Judged<T> {
    let Some(entry) = entry else {
        return Judged::Miss(Why::Absent);
    };
    let envelope = match Envelope::parse(entry) {
        Ok(envelope) => envelope,
        Err(error) => return Judged::Miss(Why::Unreadable(error)),
    };
    let mut unknown = Vec::new();
    let mut clearable = false;
    for stamp in envelope.stamps() {
        let tag = TagId(stamp.tag);
        match known(tag) {
            None => unknown.push(tag),
            // One stamp that differs decides, whatever the others are: no further read is needed.
            Some(present) if present != Some(Generation::from_stamp(stamp.generation)) => {
                return Judged::Miss(Why::Invalidated);
            }
            Some(_) => clearable |= tag == whole,
        }
    }
    if !clearable {
        return Judged::Miss(Why::Invalidated);
    }
    if !unknown.is_empty() {
        return Judged::Needs(unknown);
    }
    // Decoded last: an entry that is not valid need not be decoded.
    match T::of(entry, &envelope, decoder) {
        Ok(taken) => Judged::Hit(taken),
        Err(error) => Judged::Miss(Why::Unreadable(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::codec::{Stack, Stamp};

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

    fn judged(entry: &[u8], known: &[(TagId, Option<u64>)]) -> Judged<Arc<u8>> {
        let known = |tag: TagId| {
            let mut known = known.iter().filter(|(id, _)| *id == tag);
            known.next().map(|(_, it)| it.map(Generation::from_stamp))
        };
        judge(Some(entry), WHOLE, known, &Stack::default().decoder(""))
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
        let judged_by = |known: &[(TagId, Option<u64>)]| judged(&three, known);
        let needs = judged_by(&[(WHOLE, Some(10))]);
        assert!(matches!(needs, Judged::Needs(tags) if tags == [ONE, OTHER]));
        let needs = judged_by(&[(WHOLE, Some(10)), (OTHER, Some(30))]);
        assert!(matches!(needs, Judged::Needs(tags) if tags == [ONE]));
        let over = judged_by(&[(WHOLE, Some(10)), (OTHER, Some(31))]);
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
        let nothing: Judged<Arc<u8>> = judge(None, WHOLE, |_| None, &Stack::default().decoder(""));
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
        let text: Judged<Arc<String>> = judge(
            Some(&entry(&[(WHOLE, 10)])),
            WHOLE,
            |_| Some(Some(Generation::from_stamp(10))),
            &Stack::default().decoder(""),
        );
        assert!(matches!(
            text,
            Judged::Miss(Why::Unreadable(Unreadable::Foreign(_)))
        ));
    }
}
