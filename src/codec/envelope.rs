//! The envelope: the bytes in Redis around an encoded value.
//!
//! Invariant: [`Envelope::parse`] accepts exactly what [`begin`] and [`seal`] write. One changed,
//! missing or added byte is an error, except in the two deadlines. The script that stores the entry
//! fills those in from the server's clock, so the checksum leaves them out. The
//! [`Stack`](super::Stack) calls this module, and the cache reads deadlines and stamps through it.
//!
//! Version 2, big-endian, 36 bytes + 24 per tag, then the payload:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version |
//! | 1 | codec (high nibble), compressor (low nibble) |
//! | 2 | outcome (high 2 bits), flags (low 6 bits, none defined) |
//! | 3 | number of tags |
//! | 4..8 | low 32 bits of XXH3-64 over the whole entry without bytes 4..20 |
//! | 8..14 | fresh until, server time in ms |
//! | 14..20 | stale until, server time in ms |
//! | 20..24 | duration of the load in µs, saturating |
//! | 24..32 | revision: random, drawn anew for each entry that is written |
//! | 32..36 | key id: the key that the payload is encrypted with; 0 if it is not encrypted |
//! | 24 each | tag id (16), generation (8) |
//!
//! An entry that cannot be read is either *damaged* or *foreign*. A damaged entry is one that no
//! writer has produced: its lengths do not fit, or its checksum does not match. A foreign entry is
//! whole, but this build cannot read it: it names another version, codec, compressor or key.
//! Another process can read it.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::compression::Compression;
use super::options::{ByFeature, Codec};
use crate::error::{Error, ErrorKind, Result};

/// An entry as read. Header fields are copied, the rest is borrowed.
#[derive(Clone, Copy)]
pub(crate) struct Envelope<'a> {
    pub(crate) codec: Codec,
    pub(crate) compression: Compression,
    pub(crate) outcome: Outcome,
    /// Server time in ms until which the entry is fresh.
    pub(crate) fresh_until: u64,
    /// Server time in ms until which the entry may be served stale.
    pub(crate) stale_until: u64,
    /// How long the load took, at most 71 minutes (2^32 µs).
    pub(crate) cost: Duration,
    /// Distinguishes this entry from every other one that was written at the same key.
    pub(crate) revision: u64,
    /// The key that the payload is encrypted with. 0 if it is not encrypted.
    pub(super) key_id: u32,
    /// Header and stamps, as they are in the entry.
    #[cfg(feature = "encrypt")]
    head: &'a [u8],
    stamps: &'a [u8],
    payload: &'a [u8],
}

/// The result of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A value, in the payload.
    Value,
    /// The load found nothing; the payload is empty.
    None,
    /// The load failed; the payload says how. Reserved: this build writes no such entry, and reads
    /// it as foreign.
    Failed,
}

/// Why an entry cannot be read.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// No build can read it: bytes were changed, lost or added.
    Damaged(Error),
    /// It is whole, but this build, or this type, cannot read it. Another can.
    Foreign(Error),
}

/// One tag of an entry, with the generation that the tag had before the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) tag: u128,
    pub(crate) generation: u64,
}

impl Unreadable {
    /// The same, for bytes that must not be removed.
    pub(super) fn into_foreign(self) -> Self {
        match self {
            Self::Damaged(error) | Self::Foreign(error) => Self::Foreign(error),
        }
    }
}

impl<'a> Envelope<'a> {
    /// The envelope that a bare value would have: it carries no tags, and is fresh for as long as
    /// its key lives.
    pub(super) fn around_bare(codec: Codec, payload: &'a [u8]) -> Self {
        Self {
            codec,
            compression: Compression::None,
            outcome: Outcome::Value,
            // Later than any moment of a server's clock.
            fresh_until: u64::MAX,
            stale_until: u64::MAX,
            cost: Duration::ZERO,
            revision: 0,
            key_id: 0,
            #[cfg(feature = "encrypt")]
            head: &[],
            stamps: &[],
            payload,
        }
    }

    /// Checks the whole entry. Only the form of the payload remains to be checked.
    pub(crate) fn parse(entry: &'a [u8]) -> Result<Self, Unreadable> {
        // The version comes first: another version may keep lengths and checksum elsewhere.
        match entry.first() {
            None => return Err(damaged("it is empty")),
            Some(&VERSION) => {}
            Some(&version) => return Err(unknown("version", version)),
        }
        let Some((header, rest)) = entry.split_first_chunk::<HEADER>() else {
            return Err(damaged("it is shorter than its header"));
        };
        let stamps = usize::from(header[TAGS_AT]) * STAMP;
        let Some((stamps, payload)) = rest.split_at_checked(stamps) else {
            return Err(damaged("it is shorter than its tags"));
        };
        // Before any other field is used: a damaged entry must not pass as foreign.
        if header[CHECKSUM] != checksum(entry) {
            return Err(damaged("its checksum does not match"));
        }
        let codec = Codec::from_id(header[FORMAT_AT] >> 4)
            .ok_or_else(|| missing("codec", header[FORMAT_AT] >> 4, ByFeature::codec))?;
        let compression = Compression::from_id(header[FORMAT_AT] & 0x0f).ok_or_else(|| {
            missing(
                "compressor",
                header[FORMAT_AT] & 0x0f,
                ByFeature::compressor,
            )
        })?;
        let [a, b, c, d] = header[KEY_ID] else {
            return Err(damaged("it is shorter than its header"));
        };
        let key_id = u32::from_be_bytes([a, b, c, d]);
        if key_id != 0 {
            encryption(key_id)?;
        }
        let outcome = match header[OUTCOME_AT] {
            OUTCOME_VALUE => Outcome::Value,
            // Nothing to compress: each entry has one spelling only.
            OUTCOME_NONE if compression != Compression::None => {
                return Err(damaged("it says no value and compresses one"));
            }
            // With a key, the payload is a seal.
            OUTCOME_NONE if key_id != 0 || payload.is_empty() => Outcome::None,
            OUTCOME_NONE => return Err(damaged("it says no value and carries one")),
            OUTCOME_FAILED => Outcome::Failed,
            other => return Err(unknown("outcome or flag", other)),
        };
        Ok(Self {
            codec,
            compression,
            outcome,
            fresh_until: number(&header[FRESH_UNTIL]),
            stale_until: number(&header[STALE_UNTIL]),
            cost: Duration::from_micros(number(&header[COST])),
            revision: number(&header[REVISION]),
            key_id,
            #[cfg(feature = "encrypt")]
            head: &entry[..entry.len() - payload.len()],
            stamps,
            payload,
        })
    }

    /// The stamps of the entry, in the order in which they were given.
    pub(crate) fn stamps(&self) -> impl ExactSizeIterator<Item = Stamp> + use<'a> {
        let (stamps, rest) = self.stamps.as_chunks::<STAMP>();
        debug_assert!(rest.is_empty(), "whole stamps");
        stamps.iter().map(|stamp| {
            let [tag @ .., _, _, _, _, _, _, _, _] = stamp;
            let [.., a, b, c, d, e, f, g, h] = stamp;
            Stamp {
                tag: u128::from_be_bytes(*tag),
                generation: u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
            }
        })
    }

    /// Header and stamps, as they are in the entry.
    #[cfg(feature = "encrypt")]
    pub(super) fn head(&self) -> &'a [u8] {
        self.head
    }

    /// The encoded, and perhaps compressed and encrypted, value.
    pub(crate) fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Shows the header only, since the payload is the user's.
impl fmt::Debug for Envelope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("codec", &self.codec)
            .field("compression", &self.compression)
            .field("outcome", &self.outcome)
            .field("fresh_until", &self.fresh_until)
            .field("stale_until", &self.stale_until)
            .field("cost", &self.cost)
            .field("revision", &format_args!("{:016x}", self.revision))
            .field("tags", &self.stamps().len())
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .finish()
    }
}

/// Starts an entry, with room for `payload` more bytes. Both deadlines are zero.
pub(super) fn begin(
    codec: Codec,
    stamps: &[Stamp],
    cost: Duration,
    revision: u64,
    payload: usize,
) -> Result<Vec<u8>> {
    let Ok(tags) = u8::try_from(stamps.len()) else {
        return Err(Error::invalid(format!(
            "{} tags on one entry; use at most {MOST_STAMPS}",
            stamps.len()
        )));
    };
    let mut entry = Vec::with_capacity(HEADER + stamps.len() * STAMP + payload);
    // The deadlines stay zero: the server fills them in.
    entry.resize(HEADER, 0);
    entry[VERSION_AT] = VERSION;
    entry[FORMAT_AT] = codec.id() << 4;
    entry[TAGS_AT] = tags;
    // A longer load counts as the longest: the cost is information, nothing is refused for it.
    let micros = u32::try_from(cost.as_micros()).unwrap_or(u32::MAX);
    entry[COST].copy_from_slice(&micros.to_be_bytes());
    entry[REVISION].copy_from_slice(&revision.to_be_bytes());
    for stamp in stamps {
        entry.extend_from_slice(&stamp.tag.to_be_bytes());
        entry.extend_from_slice(&stamp.generation.to_be_bytes());
    }
    Ok(entry)
}

/// Completes an entry that [`begin`] started. Its payload, which is not encrypted, follows the
/// stamps already.
pub(super) fn seal(entry: &mut [u8], compression: Compression, outcome: Outcome) {
    describe(entry, compression, outcome, 0);
    rewrite_checksum(entry);
}

/// Completes the header of an entry that [`begin`] started, except the checksum.
pub(super) fn describe(entry: &mut [u8], compression: Compression, outcome: Outcome, key_id: u32) {
    // `begin` has written the codec, before it was known whether compression pays.
    entry[FORMAT_AT] |= compression.id();
    entry[OUTCOME_AT] = match outcome {
        Outcome::Value => OUTCOME_VALUE,
        Outcome::None => OUTCOME_NONE,
        Outcome::Failed => OUTCOME_FAILED,
    };
    entry[KEY_ID].copy_from_slice(&key_id.to_be_bytes());
}

/// What an encrypted payload is bound to: all of the header and the stamps in `head` but the
/// checksum and the deadlines, and the Redis key.
#[cfg(feature = "encrypt")]
pub(super) fn bound(head: &[u8], at: &str) -> Vec<u8> {
    // Unambiguous: the number of stamps is in the header.
    let (start, rest) = (&head[..CHECKSUM.start], &head[COST.start..]);
    [start, rest, at.as_bytes()].concat()
}

/// Writes the right checksum into the entry. Does nothing if `entry` is shorter than a header.
pub(super) fn rewrite_checksum(entry: &mut [u8]) {
    if entry.len() < HEADER {
        return;
    }
    let sum = checksum(entry);
    entry[CHECKSUM].copy_from_slice(&sum);
}

/// The checksum of `entry`, which must hold at least a header. Deadlines do not count.
fn checksum(entry: &[u8]) -> [u8; 4] {
    let (head, tail) = (&entry[..CHECKSUM.start], &entry[COST.start..]);
    let len = head.len() + tail.len();
    // The streaming state takes over half a kilobyte to set up. For a small entry, a copy of its
    // bytes into one buffer is cheaper.
    let sum = if len <= SMALL {
        let mut joined = [0; SMALL];
        joined[..head.len()].copy_from_slice(head);
        joined[head.len()..len].copy_from_slice(tail);
        xxh3_64(&joined[..len])
    } else {
        let mut state = Xxh3::new();
        state.update(head);
        state.update(tail);
        state.digest()
    };
    let [.., a, b, c, d] = sum.to_be_bytes();
    [a, b, c, d]
}

/// A big-endian number of at most 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Whether this build can decrypt.
#[cfg(feature = "encrypt")]
fn encryption(_id: u32) -> Result<(), Unreadable> {
    Ok(())
}

/// A build without encryption has no keys, so an encrypted payload belongs to another build.
#[cfg(not(feature = "encrypt"))]
fn encryption(id: u32) -> Result<(), Unreadable> {
    Err(Unreadable::Foreign(Error::new(
        ErrorKind::Decode,
        format!(
            "the entry is encrypted with the encryption key {id}, which this build cannot use; \
             build it with the feature `encrypt`"
        ),
    )))
}

fn damaged(how: &str) -> Unreadable {
    Unreadable::Damaged(Error::new(
        ErrorKind::Decode,
        format!("the entry is damaged: {how}; remove the key and load the value again"),
    ))
}

/// A codec or a compressor that this build does not have.
fn missing(
    what: &str,
    found: u8,
    by_feature: impl Fn(u8) -> Option<&'static ByFeature>,
) -> Unreadable {
    let Some(ByFeature { name, feature, .. }) = by_feature(found) else {
        return unknown(what, found);
    };
    Unreadable::Foreign(Error::new(
        ErrorKind::Decode,
        format!(
            "the entry needs the {what} {name}, which this build has not; \
             build it with the feature `{feature}`"
        ),
    ))
}

pub(super) fn unknown(what: &str, found: impl Into<u64>) -> Unreadable {
    let found = found.into();
    Unreadable::Foreign(Error::new(
        ErrorKind::Decode,
        format!(
            "the entry has an unknown {what} ({found:#04x}): another build has written it; \
             update this process, or keep the two apart with `Cache::version`"
        ),
    ))
}

/// The positions of the fields, counted from 0. The Lua scripts count from 1.
pub(super) const CHECKSUM: Range<usize> = 4..8;
pub(crate) const FRESH_UNTIL: Range<usize> = 8..14;
pub(crate) const STALE_UNTIL: Range<usize> = 14..20;
/// Both deadlines, the only bytes that may change after an entry is encoded.
pub(crate) const DEADLINES: Range<usize> = FRESH_UNTIL.start..STALE_UNTIL.end;
const COST: Range<usize> = 20..24;
const REVISION: Range<usize> = 24..32;
const KEY_ID: Range<usize> = 32..36;
/// Bytes before the first stamp. These bytes and the length of an entry identify it: they hold the
/// revision and the checksum.
pub(crate) const HEADER: usize = 36;
/// Bytes of one stamp.
const STAMP: usize = TAG_ID + 8;
const TAG_ID: usize = 16;
/// The most stamps of one entry: their number is one byte.
pub(crate) const MOST_STAMPS: usize = u8::MAX as usize;

pub(crate) const VERSION: u8 = 2;
const VERSION_AT: usize = 0;
const FORMAT_AT: usize = 1;
const OUTCOME_AT: usize = 2;
const TAGS_AT: usize = 3;
// The low six bits are flags. None is defined, so an entry with one is foreign.
const OUTCOME_VALUE: u8 = 0 << 6;
const OUTCOME_NONE: u8 = 1 << 6;
const OUTCOME_FAILED: u8 = 2 << 6;
/// The most bytes that [`checksum`] copies instead of streaming.
const SMALL: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stamps: &[Stamp], payload: &[u8]) -> Vec<u8> {
        let mut entry = begin(
            Codec::Raw,
            stamps,
            Duration::from_micros(7),
            9,
            payload.len(),
        )
        .expect("few tags");
        entry.extend_from_slice(payload);
        seal(&mut entry, Compression::None, Outcome::Value);
        entry
    }

    fn with(mut entry: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
        entry[at] = byte;
        rewrite_checksum(&mut entry);
        entry
    }

    #[test]
    fn every_field_is_read_as_written() {
        let stamps = [
            Stamp {
                tag: 1,
                generation: u64::MAX,
            },
            Stamp {
                tag: u128::MAX - 1,
                generation: 0x0102_0304_0506_0708,
            },
        ];
        let mut bytes = entry(&stamps, b"payload");
        assert_eq!(bytes.len(), HEADER + 2 * STAMP + 7);
        assert_eq!(
            bytes[DEADLINES], [0; 12],
            "the server fills the deadlines in"
        );
        bytes[FRESH_UNTIL].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
        bytes[STALE_UNTIL].fill(0xff);
        let envelope = Envelope::parse(&bytes).expect("deadlines are outside the checksum");
        assert_eq!(envelope.fresh_until, 0x0102_0304_0506);
        assert_eq!(envelope.stale_until, (1 << 48) - 1);
        assert_eq!(envelope.cost, Duration::from_micros(7));
        assert_eq!(envelope.revision, 9);
        assert_eq!(envelope.stamps().collect::<Vec<_>>(), stamps);
        assert_eq!(envelope.payload(), b"payload");
    }

    #[test]
    fn cost_saturates() {
        let mut bytes = begin(Codec::Cbor, &[], Duration::MAX, 0, 0).expect("no tags");
        seal(&mut bytes, Compression::None, Outcome::Value);
        let envelope = Envelope::parse(&bytes).expect("sealed");
        assert_eq!(envelope.cost, Duration::from_micros(u64::from(u32::MAX)));
    }

    #[test]
    fn two_hundred_and_fifty_five_tags_fit_and_one_more_is_refused() {
        let stamps = vec![
            Stamp {
                tag: 3,
                generation: 4
            };
            256
        ];
        let bytes = entry(&stamps[..255], b"");
        let envelope = Envelope::parse(&bytes).expect("255 tags");
        assert_eq!(envelope.stamps().len(), 255);
        let refused = begin(Codec::Raw, &stamps, Duration::ZERO, 0, 0).expect_err("256 tags");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }

    fn foreign(bytes: &[u8]) -> String {
        match Envelope::parse(bytes) {
            Err(Unreadable::Foreign(error)) => error.to_string(),
            other => panic!("not foreign: {other:?}"),
        }
    }

    fn damage(bytes: &[u8]) -> String {
        match Envelope::parse(bytes) {
            Err(Unreadable::Damaged(error)) => error.to_string(),
            other => panic!("not damaged: {other:?}"),
        }
    }

    #[test]
    fn what_a_reader_does_not_know_is_foreign_by_name() {
        let entry = entry(&[], b"x");
        for (at, byte, name) in [
            (VERSION_AT, 0, "version"),
            (VERSION_AT, 1, "version"),
            (VERSION_AT, 3, "version"),
            (FORMAT_AT, 0x70, "codec"),
            (FORMAT_AT, 0x50, "codec"),
            (FORMAT_AT, 0x0e, "compressor"),
            (OUTCOME_AT, 0x01, "flag"),
            (OUTCOME_AT, 0x20, "flag"),
            (OUTCOME_AT, 0x41, "flag"),
            (OUTCOME_AT, 0xc0, "outcome"),
        ] {
            let refused = foreign(&with(entry.clone(), at, byte));
            assert!(refused.contains(name), "{at} {byte:#x}: {refused}");
        }
        #[cfg(not(feature = "encrypt"))]
        for at in [KEY_ID.start, KEY_ID.end - 1] {
            let refused = foreign(&with(entry.clone(), at, 1));
            assert!(refused.contains("`encrypt`"), "{refused}");
        }
        assert!(foreign(b"hello").contains("version"), "no entry at all");
        // The version says where the other fields are, so nothing else is looked at.
        assert!(foreign(&[VERSION + 1]).contains("version"));
    }

    #[test]
    fn what_no_writer_has_meant_is_damage() {
        assert!(damage(b"").contains("empty"));
        assert!(damage(&entry(&[], b"")[..HEADER - 1]).contains("header"));
        let mut flipped = entry(&[], b"x");
        // No such codec exists, but the checksum shows that no writer has named it.
        flipped[FORMAT_AT] = 0xf0;
        assert!(damage(&flipped).contains("checksum"));
    }

    #[test]
    fn no_value_with_a_payload_or_a_compressor_is_damage() {
        assert!(Envelope::parse(&with(entry(&[], b""), OUTCOME_AT, OUTCOME_NONE)).is_ok());
        damage(&with(entry(&[], b"x"), OUTCOME_AT, OUTCOME_NONE));
        let compressed = with(entry(&[], b""), FORMAT_AT, 0x21);
        damage(&with(compressed, OUTCOME_AT, OUTCOME_NONE));
    }

    #[test]
    fn more_tags_than_bytes_is_damage() {
        let refused = damage(&with(entry(&[], &[0; STAMP - 1]), TAGS_AT, 1));
        assert!(refused.contains("tags"), "{refused}");
    }

    #[test]
    fn the_checksum_is_the_same_on_both_sides_of_the_small_limit() {
        for len in SMALL - 40..SMALL + 40 {
            let bytes = entry(&[], &vec![0x5a; len]);
            let joined = [&bytes[..4], &bytes[20..]].concat();
            let low = xxh3_64(&joined) as u32;
            assert_eq!(bytes[CHECKSUM], low.to_be_bytes(), "{len}");
        }
    }

    #[test]
    fn debug_does_not_show_the_payload() {
        let bytes = entry(&[], b"canary");
        let shown = format!("{:?}", Envelope::parse(&bytes).expect("sealed"));
        assert!(
            !shown.contains("canary") && shown.contains("6 bytes"),
            "{shown}"
        );
    }
}
