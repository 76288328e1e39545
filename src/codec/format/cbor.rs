//! CBOR (RFC 8949), by ciborium.
//!
//! Invariant: a payload is one value with nothing behind it. Whatever length or nesting hostile
//! bytes claim, reading it costs no more memory or stack than the bytes themselves. The
//! [`Stack`](crate::codec::Stack) calls this module.

use std::any::type_name;

use ciborium::{de, ser};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::codec::budget::EXHAUSTED;
use crate::codec::checked::{REFUSED, Rules};
use crate::codec::option::Present;
use crate::codec::payload::{Payload, misfit, unencodable};
use crate::error::Result;

pub(in crate::codec) fn encode<V: Serialize + ?Sized>(
    value: &V,
    payload: Payload<'_>,
) -> Result<()> {
    let rules = Rules::new(DEEPEST, None, payload.built);
    ciborium::into_writer(&rules.check(value), payload).map_err(|cause| match cause {
        ser::Error::Io(_) => unencodable(NAME, "it could not be written"),
        // The error text of ciborium is left out, since it may quote the value.
        ser::Error::Value(_) => unencodable(NAME, rules.broken().unwrap_or(REFUSED)),
    })
}

pub(in crate::codec) fn decode<V: DeserializeOwned>(mut payload: &[u8]) -> Result<V> {
    let read = match is_small_and_flat(payload) {
        true => de::from_reader_with_buffer(&mut payload, &mut [0; SMALL]),
        false => de::from_reader_with_recursion_limit(&mut payload, DEEPEST),
    };
    let Present(value) = read.map_err(|cause| {
        let how = match cause {
            de::Error::Io(_) => "it ends within a value".to_owned(),
            de::Error::Syntax(at) => format!("malformed at byte {at}"),
            de::Error::Semantic(_, text) if text == EXHAUSTED => text,
            de::Error::Semantic(Some(at), _) => {
                format!("at byte {at} it does not fit `{}`", type_name::<V>())
            }
            de::Error::Semantic(None, _) => format!("it does not fit `{}`", type_name::<V>()),
            de::Error::RecursionLimitExceeded => format!("nested deeper than {DEEPEST}"),
        };
        misfit(NAME, &how)
    })?;
    // ciborium stops after one value.
    if !payload.is_empty() {
        let how = format!("{} bytes left over", payload.len());
        return Err(misfit(NAME, &how));
    }
    Ok(value)
}

/// Whether the reader with the small buffer, which has no depth limit of ours, reads `payload` like
/// the other reader. It does if the payload is too short to hold a name longer than the buffer, and
/// has too few lists, maps and tags to be nested too deep. The small buffer pays off: most of the
/// time that a small value takes is spent on clearing the 4 KiB buffer of the other reader.
fn is_small_and_flat(payload: &[u8]) -> bool {
    // So few bytes cannot open as many, and need no count.
    if payload.len() < DEEPEST - 1 {
        return true;
    }
    // A byte within a string may look like one. Then the other reader is used, which reads it, too.
    let opens = |byte: &u8| u16::from((LIST..AFTER_TAG).contains(byte));
    // In 16 bits: the compiler then counts many bytes at once.
    payload.len() <= SMALL && usize::from(payload.iter().map(opens).sum::<u16>()) < DEEPEST - 1
}

/// Whether `payload` is one well-formed value. A value that is nested too deep counts as one: the
/// rest of it is not looked at.
pub(in crate::codec) fn is_whole(mut payload: &[u8]) -> bool {
    match de::from_reader_with_recursion_limit::<IgnoredAny, _>(&mut payload, DEEPEST) {
        Ok(_) => payload.is_empty(),
        Err(cause) => matches!(cause, de::Error::RecursionLimitExceeded),
    }
}

const NAME: &str = "cbor";
/// The deepest nesting that is written and read. serde_json reads one level less.
const DEEPEST: usize = 128;

/// The most bytes of a small payload.
const SMALL: usize = 512;

/// A list, a map or a tag begins with a byte in `LIST..AFTER_TAG` (major types 4 to 6).
const LIST: u8 = 4 << 5;
const AFTER_TAG: u8 = 7 << 5;

#[cfg(test)]
mod tests {
    use ciborium::Value;

    use super::*;

    fn refusal<V: DeserializeOwned>(payload: &[u8]) -> String {
        match decode::<V>(payload) {
            Ok(_) => panic!("{payload:02x?} was read"),
            Err(error) => format!("{error} {error:?}"),
        }
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert_eq!(decode::<u8>(&[0x01]).expect("one"), 1);
        assert!(refusal::<u8>(&[0x01, 0x01]).contains("1 bytes left over"));
        assert!(refusal::<u8>(&[]).contains("ends within"));
    }

    #[test]
    fn one_well_formed_value_is_whole_whatever_its_type() {
        for whole in [
            &b"\x01"[..],
            b"\xd8\x20\x63url",
            b"\xc2\x41\x01",
            b"\x9f\x41a\xff",
        ] {
            assert!(is_whole(whole), "{whole:02x?}");
        }
        assert!(is_whole(&[&[0x81; 500][..], &[1]].concat()));
        for broken in [&b""[..], b"\x01\x01", b"\x82\x01", b"\xff", b"\x62\xff\xfe"] {
            assert!(!is_whole(broken), "{broken:02x?}");
        }
    }

    #[test]
    fn nesting_is_capped_in_every_kind_of_nest() {
        for nest in [
            &[0x81][..],
            &[0x9f],
            &[0xa1, 0x01],
            &[0xbf, 0x01],
            &[0xd8, 0x20],
        ] {
            let refused = refusal::<Value>(&nest.repeat(200_000));
            assert!(refused.contains("nested deeper"), "{nest:02x?}: {refused}");
        }
        let deep = |arrays| [vec![0x81; arrays], vec![0x01]].concat();
        decode::<Value>(&deep(128)).expect("as deep as allowed");
        assert!(refusal::<Value>(&deep(129)).contains("nested deeper"));
    }

    #[test]
    fn values_of_all_lengths_and_depths_around_what_is_small_are_read_alike() {
        for depth in [1, 125, 126, 127, 128, 129, 200] {
            for padding in [0, 100, SMALL, 4096, 5000] {
                // A map with a long name, within `depth - 1` lists.
                let name = "n".repeat(padding);
                let map = Value::Map(vec![(Value::Text(name), Value::Bool(true))]);
                let list = |value, _| Value::Array(vec![value]);
                let value = (0..depth - 1).fold(map, list);
                let mut payload = Vec::new();
                ciborium::into_writer(&value, &mut payload).expect("written");
                match depth {
                    ..=DEEPEST => assert_eq!(decode::<Value>(&payload).expect("read"), value),
                    _ => assert!(refusal::<Value>(&payload).contains("nested deeper")),
                }
            }
        }
    }

    #[test]
    fn claimed_lengths_cost_nothing() {
        for header in [0x5b, 0x7b, 0x9b, 0xbb] {
            for claimed in [u64::MAX, 1 << 40] {
                let mut forged = vec![header];
                forged.extend_from_slice(&claimed.to_be_bytes());
                forged.extend_from_slice(b"ab");
                refusal::<Value>(&forged);
                refusal::<Vec<u64>>(&forged);
                refusal::<String>(&forged);
            }
        }
    }

    #[test]
    fn errors_do_not_quote_the_value() {
        #[derive(serde::Deserialize)]
        enum Bird {
            Wren,
        }
        assert!(matches!(decode(b"\x64Wren"), Ok(Bird::Wren)));
        let refused = refusal::<Bird>(b"\x66canary");
        assert!(refused.contains("does not fit `hedgerow::"), "{refused}");
        assert!(!refused.contains("canary"), "{refused}");
    }
}
