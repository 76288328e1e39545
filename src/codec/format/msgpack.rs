//! MessagePack, by rmp-serde.
//!
//! Invariant: a payload is one value with nothing behind it, nested at most [`DEEPEST`] deep.
//! rmp-serde counts the nesting of lists and maps only, so the [budget](crate::codec::budget)
//! counts it as well. The [`Stack`](crate::codec::Stack) calls this module.

use std::any::type_name;

use rmp_serde::decode::Error as ReadError;
use rmp_serde::encode::Error as WriteError;
use serde::de::{Deserialize, DeserializeOwned, IgnoredAny};
use serde::{Deserializer as _, Serialize};

use crate::codec::budget;
use crate::codec::checked::{REFUSED, Rules};
use crate::codec::option::Present;
use crate::codec::payload::{Payload, misfit, unencodable};
use crate::error::Result;

pub(in crate::codec) fn encode<V: Serialize + ?Sized>(
    value: &V,
    payload: Payload<'_>,
) -> Result<()> {
    let rules = Rules::new(DEEPEST, None, payload.built).bounded();
    // With the names of fields: a type may gain and lose fields, as with the other formats.
    let mut writer = rmp_serde::Serializer::new(payload).with_struct_map();
    rules.check(value).serialize(&mut writer).map_err(|cause| {
        // The text of the cause is left out, since it may quote the value.
        let how = match (rules.broken(), cause) {
            (Some(how), _) => how,
            (None, WriteError::InvalidValueWrite(_)) => "it could not be written",
            (None, _) => REFUSED,
        };
        unencodable(NAME, how)
    })
}

pub(in crate::codec) fn decode<V: DeserializeOwned>(payload: &[u8]) -> Result<V> {
    let mut reader = rmp_serde::Deserializer::from_read_ref(payload);
    let (read, exceeded) = budget::bounded(DEEPEST, || Present::deserialize(&mut reader));
    let Present(value) = read.map_err(|cause| match (exceeded, cause) {
        (Some(how), _) => misfit(NAME, how),
        (None, ReadError::InvalidMarkerRead(_) | ReadError::InvalidDataRead(_)) => {
            misfit(NAME, "it ends within a value")
        }
        (None, _) => misfit(NAME, &format!("it does not fit `{}`", type_name::<V>())),
    })?;
    if !is_at_end(&mut reader) {
        return Err(misfit(NAME, "bytes left over"));
    }
    Ok(value)
}

/// Whether `payload` is one well-formed value. A value that is nested too deep counts as one: the
/// rest of it is not looked at.
pub(in crate::codec) fn is_whole(payload: &[u8]) -> bool {
    let mut reader = rmp_serde::Deserializer::from_read_ref(payload);
    // One more, since rmp-serde refuses the level that reaches its limit.
    reader.set_max_depth(DEEPEST + 1);
    match IgnoredAny::deserialize(&mut reader) {
        Ok(_) => is_at_end(&mut reader),
        Err(cause) => matches!(cause, ReadError::DepthLimitExceeded),
    }
}

/// Whether nothing is left: rmp-serde does not say how much it has read, but a further value
/// needs a first byte.
fn is_at_end<'de>(reader: &mut rmp_serde::Deserializer<Slice<'de>>) -> bool {
    let next = reader.deserialize_bool(IgnoredAny);
    matches!(next, Err(ReadError::InvalidMarkerRead(_)))
}

type Slice<'de> = rmp_serde::decode::ReadRefReader<'de, [u8]>;

const NAME: &str = "msgpack";
/// The deepest nesting that is written and read.
const DEEPEST: usize = 128;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    enum Nest {
        Egg,
        Lined(Box<Nest>),
    }

    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    struct Chain(Option<Box<Chain>>);

    fn refusal<V: DeserializeOwned>(payload: &[u8]) -> String {
        match decode::<V>(payload) {
            Ok(_) => panic!("{payload:02x?} was read"),
            Err(error) => format!("{error} {error:?}"),
        }
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert_eq!(decode::<u8>(&[0x01]).expect("one"), 1);
        assert!(refusal::<u8>(&[0x01, 0x01]).contains("left over"));
        assert!(refusal::<u8>(&[]).contains("ends within"));
        assert!(refusal::<String>(&[0xd9, 0xff, b'a']).contains("ends within"));
    }

    #[test]
    fn one_well_formed_value_is_whole_whatever_its_type() {
        for whole in [
            &b"\x01"[..],
            b"\xc0",
            b"\xc4\x01a",
            b"\xd4\x05a",
            b"\x82\x01\x90\xa1a\xcb\0\0\0\0\0\0\0\0",
        ] {
            assert!(is_whole(whole), "{whole:02x?}");
        }
        assert!(is_whole(&[&[0x91; 500][..], &[1]].concat()));
        for broken in [&b""[..], b"\x01\x01", b"\x92\x01", b"\xc1", b"\xa2\xff"] {
            assert!(!is_whole(broken), "{broken:02x?}");
        }
    }

    #[test]
    fn nesting_is_capped_in_every_kind_of_nest() {
        for nest in [&[0x91][..], &[0x81, 0xa1, b'a'], &[0xdc, 0, 1]] {
            let refused = refusal::<Value>(&nest.repeat(100_000));
            assert!(
                refused.contains("nested too deep"),
                "{nest:02x?}: {refused}"
            );
        }
        let deep = |lists| [vec![0x91; lists], vec![0x01]].concat();
        decode::<Value>(&deep(DEEPEST)).expect("as deep as allowed");
        assert!(refusal::<Value>(&deep(DEEPEST + 1)).contains("nested too deep"));
        // rmp-serde alone overflows the stack on these two.
        let refused = refusal::<Nest>(&b"\x81\xa5Lined".repeat(100_000));
        assert!(refused.contains("nested too deep"), "{refused}");
        let refused = refusal::<Chain>(&[1]);
        assert!(refused.contains("nested too deep"), "{refused}");
    }

    #[test]
    fn claimed_lengths_cost_nothing() {
        for header in [0xc6, 0xdb, 0xdd, 0xdf, 0xc9] {
            let forged = [header, 0xff, 0xff, 0xff, 0xff, b'a', b'b'];
            refusal::<Value>(&forged);
            refusal::<Vec<u64>>(&forged);
            refusal::<String>(&forged);
            assert!(!is_whole(&forged), "{header:02x}");
        }
    }

    #[test]
    fn lists_and_bytes_are_read_as_each_other() {
        let bytes = bytes::Bytes::from_static(&[1, 200]);
        assert_eq!(
            decode::<Vec<u8>>(b"\xc4\x02\x01\xc8").expect("bytes"),
            bytes
        );
        assert_eq!(
            decode::<bytes::Bytes>(b"\x92\x01\xcc\xc8").expect("list"),
            bytes
        );
    }

    #[test]
    fn errors_do_not_quote_the_value() {
        let refused = refusal::<Nest>(b"\xa6canary");
        assert!(refused.contains("does not fit `hedgerow::"), "{refused}");
        assert!(!refused.contains("canary"), "{refused}");
    }
}
