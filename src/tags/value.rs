//! `TagValue`: what the key of a tag holds, and what a snapshot keeps of it.
//!
//! Invariant: any value of at least eight bytes has a generation. The rest only tells more about
//! it, and a value that ends early tells less. The scripts in this folder write it; the cache reads
//! it.
//!
//! Big-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | generation |
//! | 8 | mode: 128 if loads are held back, plus the number of generations that follow, at most 8 |
//! | 9..15 | since when the generation counts, server time in ms; with 128, until when loads are held back |
//! | 14 each | generation that was replaced softly (8), when, server time in ms (6) |
//! | the rest | readable name |

use std::fmt;

use bytes::Bytes;

/// The value of a tag that an invalidation replaces. It is compared, never ordered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u64);

/// What the key of a tag holds.
#[derive(Clone, Copy)]
pub(crate) struct TagValue<'v> {
    generation: Generation,
    rest: &'v [u8],
}

/// What a snapshot keeps of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TagState {
    pub(crate) generation: Generation,
    /// The server's time in ms. A load that began earlier may not have seen what the generation
    /// invalidated. Zero if that is not known.
    pub(crate) since: u64,
    pub(crate) holds: Holds,
}

/// Whether two moments are told by one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clocks {
    Same,
    Different,
}

/// Whether a tag holds loads back that begin before its `since`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Nothing,
    Loads,
}

impl Generation {
    pub(crate) fn from_stamp(stamped: u64) -> Self {
        Self(stamped)
    }

    pub(crate) fn stamp(self) -> u64 {
        self.0
    }
}

/// Shows the number: it is random, but no secret.
impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl<'v> TagValue<'v> {
    /// Reads the value of a tag. A value that no tag has gives none.
    pub(crate) fn of(value: Option<&'v Bytes>) -> Option<Self> {
        let (generation, rest) = value?.split_first_chunk::<8>()?;
        Some(Self {
            generation: Generation(u64::from_be_bytes(*generation)),
            rest,
        })
    }

    /// A value of which no more than its generation is known.
    #[cfg(feature = "near")]
    pub(crate) fn with(generation: Generation) -> Self {
        Self {
            generation,
            rest: &[],
        }
    }

    pub(crate) fn generation(self) -> Generation {
        self.generation
    }

    /// Returns when `generation` was replaced softly, in ms of the server's time. `None` if it was
    /// not, or if a hard invalidation or too many soft ones followed.
    pub(crate) fn replaced_softly(self, generation: Generation) -> Option<u64> {
        let mode = usize::from(*self.rest.first()?);
        let replaced = self.rest.get(MODE + SINCE..)?;
        let mut replaced = replaced.chunks_exact(REPLACED).take(mode % COUNTED);
        replaced.find_map(|one| {
            let (old, at) = one.split_first_chunk::<8>()?;
            let is_it = u64::from_be_bytes(*old) == generation.0;
            is_it.then(|| moment(at))
        })
    }

    /// The name for human readers.
    pub(crate) fn name(self) -> &'v [u8] {
        let mode = self.rest.first().copied().unwrap_or_default();
        let before = MODE + SINCE + usize::from(mode) % COUNTED * REPLACED;
        self.rest.get(before..).unwrap_or_default()
    }

    pub(crate) fn state(self) -> TagState {
        let mode = self.rest.first().copied().unwrap_or_default();
        let since = self.rest.get(MODE..MODE + SINCE);
        TagState {
            generation: self.generation,
            since: since.map_or(0, moment),
            holds: match mode & HOLDS != 0 {
                true => Holds::Loads,
                false => Holds::Nothing,
            },
        }
    }
}

impl TagState {
    /// Whether a load that began at `began`, in ms of the server's time, may be stored with this
    /// tag. The tag was read before the load. `clocks` says whether the server of the tag is that
    /// of the value.
    pub(crate) fn lets_store(self, began: u64, clocks: Clocks) -> bool {
        let room = match clocks {
            Clocks::Same => 0,
            Clocks::Different => SKEW,
        };
        self.holds == Holds::Nothing || began >= self.since + room
    }

    /// The same for a tag that was read after the load: whether the generation is certainly older
    /// than the load.
    pub(crate) fn is_older_than(self, began: u64) -> bool {
        self.since != 0 && self.since + SKEW < began
    }
}

fn moment(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter();
    bytes.fold(0, |moment, byte| moment << 8 | u64::from(*byte))
}

/// The bytes of the mode.
const MODE: usize = 1;

/// The bytes of a moment.
const SINCE: usize = 6;

/// The bytes of a generation that was replaced softly.
const REPLACED: usize = 8 + SINCE;

/// The bit of the mode that says that loads are held back.
const HOLDS: u8 = 128;

/// The low bits of the mode, below this, are a number.
const COUNTED: usize = 16;

/// By how much the clocks of two servers may differ, in ms. A tag that is younger than a load by
/// one clock, or older by less than this, may be younger by another.
const SKEW: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn value(mode: u8, since: u64, replaced: &[(u64, u64)]) -> Bytes {
        let mut value = 7_u64.to_be_bytes().to_vec();
        value.push(mode);
        value.extend(&since.to_be_bytes()[2..]);
        for (generation, at) in replaced {
            value.extend(generation.to_be_bytes());
            value.extend(&at.to_be_bytes()[2..]);
        }
        value.extend(b"country:FR");
        value.into()
    }

    fn parsed(value: &Bytes) -> TagValue<'_> {
        TagValue::of(Some(value)).expect("eight bytes and more")
    }

    #[test]
    fn a_generation_that_was_replaced_softly_is_found_with_its_moment() {
        let value = value(2, 900, &[(5, 800), (6, 900)]);
        let value = parsed(&value);
        assert_eq!(value.generation(), Generation(7));
        assert_eq!(value.replaced_softly(Generation(5)), Some(800));
        assert_eq!(value.replaced_softly(Generation(6)), Some(900));
        assert_eq!(value.replaced_softly(Generation(4)), None);
        assert_eq!(value.name(), b"country:FR");
    }

    #[test]
    fn the_name_of_a_tag_is_never_taken_for_a_generation() {
        let name = u64::from_be_bytes(*b"country:");
        assert_eq!(
            parsed(&value(0, 900, &[])).replaced_softly(Generation(name)),
            None
        );
    }

    #[test]
    fn a_value_that_ends_early_has_its_generation_and_no_more() {
        let whole = value(128 + 1, 900, &[(6, 900)]);
        for length in 0..whole.len() {
            let part = whole.slice(..length);
            let parsed = TagValue::of(Some(&part));
            assert_eq!(parsed.is_some(), length >= 8, "{length}");
            let Some(parsed) = parsed else { continue };
            assert_eq!(parsed.generation(), Generation(7));
            assert_eq!(
                parsed.replaced_softly(Generation(6)).is_some(),
                length >= 29
            );
            assert_eq!(parsed.state().since, if length >= 15 { 900 } else { 0 });
        }
    }

    #[test]
    fn a_tag_holds_back_loads_that_began_too_early_and_no_others() {
        let held = parsed(&value(128, 900, &[])).state();
        assert!(!held.lets_store(899, Clocks::Same));
        assert!(held.lets_store(900, Clocks::Same));
        // The clock of the value's server may be ahead.
        assert!(!held.lets_store(899 + SKEW, Clocks::Different));
        assert!(held.lets_store(900 + SKEW, Clocks::Different));
        let free = parsed(&value(0, 900, &[])).state();
        assert!(free.lets_store(899, Clocks::Same) && free.lets_store(899, Clocks::Different));
    }

    #[test]
    fn a_tag_is_older_than_a_load_only_beyond_the_difference_of_clocks() {
        let state = parsed(&value(0, 900, &[])).state();
        assert!(!state.is_older_than(900 + SKEW));
        assert!(state.is_older_than(901 + SKEW));
        let unknown = parsed(&value(0, 0, &[])).state();
        assert!(!unknown.is_older_than(u64::MAX));
    }
}
