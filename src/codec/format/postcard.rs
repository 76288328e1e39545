//! Postcard.
//!
//! Invariant: a payload is one value with nothing behind it, nested at most [`DEEPEST`] deep.
//! postcard has no limit of its own, so the [budget](crate::codec::budget) limits the nesting, and
//! the number of items that take no bytes. The [`Stack`](crate::codec::Stack) calls this module.
//!
//! The format states no types. So nobody can tell a payload of another type from a damaged one, and
//! there is no `is_whole`: a payload that cannot be read is of another type.

use std::any::type_name;
use std::io::Write as _;

use postcard::{Deserializer, Error, Serializer, ser_flavors};
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned};

use crate::codec::budget;
use crate::codec::checked::{REFUSED, Rules};
use crate::codec::option::Present;
use crate::codec::payload::{Payload, misfit, unencodable};
use crate::error::Result;

pub(in crate::codec) fn encode<V: Serialize + ?Sized>(
    value: &V,
    payload: Payload<'_>,
) -> Result<()> {
    let rules = Rules::new(DEEPEST, None, payload.built);
    let rules = rules.bounded().positional();
    let mut writer = Serializer {
        output: Output(payload),
    };
    rules.check(value).serialize(&mut writer).map_err(|cause| {
        let how = match (rules.broken(), cause) {
            (Some(how), _) => how,
            (None, Error::SerializeSeqLengthUnknown) => LENGTH_UNKNOWN,
            (None, Error::SerializeBufferFull) => "it could not be written",
            (None, _) => REFUSED,
        };
        unencodable(NAME, how)
    })
}

pub(in crate::codec) fn decode<V: DeserializeOwned>(payload: &[u8]) -> Result<V> {
    let mut reader = Deserializer::from_bytes(payload);
    let (read, exceeded) = budget::bounded(DEEPEST, || Present::deserialize(&mut reader));
    let Present(value) = read.map_err(|cause| match (exceeded, cause) {
        (Some(how), _) => misfit(NAME, how),
        (None, Error::DeserializeUnexpectedEnd) => misfit(NAME, "it ends within a value"),
        (None, Error::WontImplement) => {
            let how = format!("`{}` asks it for its type", type_name::<V>());
            misfit(NAME, &how)
        }
        (None, _) => misfit(NAME, &format!("it does not fit `{}`", type_name::<V>())),
    })?;
    match reader.finalize() {
        Ok([]) => Ok(value),
        Ok(rest) => Err(misfit(NAME, &format!("{} bytes left over", rest.len()))),
        Err(_) => Err(misfit(NAME, "it ends within a value")),
    }
}

/// A payload that postcard writes to.
struct Output<'a>(Payload<'a>);

impl ser_flavors::Flavor for Output<'_> {
    type Output = ();

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        let written = self.0.write_all(bytes);
        written.map_err(|_| Error::SerializeBufferFull)
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

const NAME: &str = "postcard";
/// The deepest nesting that is written and read.
const DEEPEST: usize = 128;
const LENGTH_UNKNOWN: &str =
    "a list or a map does not know its length, as with `flatten`, which postcard cannot read";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::codec::{Codec, Stack};
    use crate::error::ErrorKind;

    #[derive(Debug, serde::Serialize, serde::Deserialize)]
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

    fn refused<V: Serialize>(value: &V) -> String {
        let stack = Stack {
            codec: Codec::Postcard,
            ..Stack::default()
        };
        let error = stack.encode(value, &[], Duration::ZERO);
        let error = error.expect_err("could not be read back");
        assert_eq!(error.kind(), ErrorKind::Encode);
        error.to_string()
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert_eq!(decode::<u8>(&[0x01]).expect("one"), 1);
        assert!(refusal::<u8>(&[0x01, 0x01]).contains("1 bytes left over"));
        assert!(refusal::<u8>(&[]).contains("ends within"));
        assert!(refusal::<String>(&[0x7f, b'a']).contains("ends within"));
    }

    #[test]
    fn nesting_is_capped_in_every_kind_of_nest() {
        let refused = refusal::<Nest>(&[1; 100_000]);
        assert!(refused.contains("nested too deep"), "{refused}");
        let refused = refusal::<Chain>(&[1; 100_000]);
        assert!(refused.contains("nested too deep"), "{refused}");
        let nest = |depth| [vec![1; depth - 1], vec![0]].concat();
        decode::<Nest>(&nest(DEEPEST)).expect("as deep as allowed");
        assert!(refusal::<Nest>(&nest(DEEPEST + 1)).contains("nested too deep"));
    }

    #[test]
    fn items_that_take_no_bytes_are_bounded() {
        let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert!(refusal::<Vec<()>>(&most).contains("too much memory"));
        assert!(refusal::<Vec<[(); 3]>>(&most).contains("too much memory"));
        assert_eq!(decode::<Vec<()>>(&[3]).expect("three"), [(); 3]);
        let many = vec![(); budget::MOST_EMPTIES];
        let stack = Stack {
            codec: Codec::Postcard,
            ..Stack::default()
        };
        assert!(stack.encode(&many, &[], Duration::ZERO).is_ok());
        let more = vec![(); budget::MOST_EMPTIES + 1];
        assert!(refused(&more).contains("take no bytes"));
    }

    #[test]
    fn claimed_lengths_cost_nothing() {
        let forged = [0xff, 0xff, 0xff, 0xff, 0x7f, b'a', b'b'];
        refusal::<Vec<u64>>(&forged);
        refusal::<String>(&forged);
        refusal::<BTreeMap<u8, u8>>(&forged);
    }

    #[test]
    fn what_shows_that_it_cannot_be_read_is_not_written() {
        #[derive(Serialize)]
        struct Sparse {
            #[serde(skip_serializing_if = "Option::is_none")]
            first: Option<u8>,
            second: u8,
        }
        #[derive(Serialize)]
        struct Flat {
            #[serde(flatten)]
            inner: BTreeMap<String, u8>,
        }
        let sparse = |first| Sparse { first, second: 1 };
        assert!(refused(&sparse(None)).contains("leaves a field out"));
        let flat = Flat {
            inner: BTreeMap::new(),
        };
        assert!(refused(&flat).contains("flatten"));
        assert!(refusal::<serde_json::Value>(&[1]).contains("asks it for its type"));
    }

    #[test]
    fn options_are_told_apart_at_every_level() {
        type Options = Vec<Option<Option<()>>>;
        let value: Options = vec![None, Some(None), Some(Some(()))];
        let stack = Stack {
            codec: Codec::Postcard,
            ..Stack::default()
        };
        let entry = stack.encode(&value, &[], Duration::ZERO).expect("written");
        let payload = &entry[crate::codec::HEADER..];
        assert_eq!(payload, [3, 0, 1, 0, 1, 1]);
        assert_eq!(decode::<Options>(payload).expect("ours"), value);
    }
}
