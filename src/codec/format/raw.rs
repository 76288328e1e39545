//! Raw strings and bytes, so that other programs can read them.
//!
//! Invariant: the payload is the string or the bytes, with nothing added. A type that asks for
//! anything else is refused. The [`Stack`](crate::codec::Stack) calls this module.

use std::fmt;
use std::io::Write as _;

use serde::Serialize;
use serde::de::{self, DeserializeOwned, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, Serializer};

use crate::codec::option::Present;
use crate::codec::payload::{Payload, misfit, unencodable};
use crate::codec::reject::refuse;
use crate::error::Result;

pub(in crate::codec) fn encode<V: Serialize + ?Sized>(
    value: &V,
    payload: Payload<'_>,
) -> Result<()> {
    value
        .serialize(Verbatim(payload))
        .map_err(|cause| unencodable(NAME, &cause.to_string()))
}

pub(in crate::codec) fn decode<V: DeserializeOwned>(payload: &[u8]) -> Result<V> {
    match de::Deserialize::deserialize(Bytes(payload)) {
        Ok(Present(value)) => Ok(value),
        Err(RawError(how)) => Err(misfit(NAME, how)),
    }
}

/// A serializer that accepts one string or one run of bytes.
struct Verbatim<'a>(Payload<'a>);

impl<'a> Serializer for Verbatim<'a> {
    type Ok = ();
    type Error = RawError;
    type SerializeSeq = Self;
    type SerializeTuple = Self;

    fn serialize_str(self, text: &str) -> Result<(), RawError> {
        self.serialize_bytes(text.as_bytes())
    }

    fn serialize_bytes(mut self, bytes: &[u8]) -> Result<(), RawError> {
        self.0.write_all(bytes).map_err(|_| FULL)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), RawError> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), RawError> {
        value.serialize(self)
    }

    // serde writes `Vec<u8>` as a list of numbers, and `[u8; N]` as a tuple of them.
    fn serialize_seq(self, _len: Option<usize>) -> Result<Self, RawError> {
        Ok(self)
    }

    fn serialize_tuple(self, _len: usize) -> Result<Self, RawError> {
        Ok(self)
    }

    refuse! { OTHER; bool u8 numbers char none unit variants fields }
}

impl ser::SerializeSeq for Verbatim<'_> {
    type Ok = ();
    type Error = RawError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), RawError> {
        let byte = value.serialize(Byte)?;
        self.0.write_all(&[byte]).map_err(|_| FULL)
    }

    fn end(self) -> Result<(), RawError> {
        Ok(())
    }
}

impl ser::SerializeTuple for Verbatim<'_> {
    type Ok = ();
    type Error = RawError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), RawError> {
        ser::SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<(), RawError> {
        Ok(())
    }
}

/// A serializer that accepts one byte, an element of a run.
struct Byte;

impl Serializer for Byte {
    type Ok = u8;
    type Error = RawError;

    fn serialize_u8(self, byte: u8) -> Result<u8, RawError> {
        Ok(byte)
    }

    refuse! {
        OTHER;
        bool numbers char str bytes none some unit newtype_struct variants seq tuple fields
    }
}

/// A deserializer that returns the payload as a string or as bytes, as the type asks.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn text(&self) -> Result<&'a str, RawError> {
        std::str::from_utf8(self.0).map_err(|_| RawError("it is not UTF-8"))
    }
}

impl<'de> Deserializer<'de> for Bytes<'_> {
    type Error = RawError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        // The payload does not record which of the two it was.
        match self.text() {
            Ok(text) => visitor.visit_str(text),
            Err(_) => visitor.visit_bytes(self.0),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        visitor.visit_bytes(self.0)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        let mut run = Run(self.0);
        let value = visitor.visit_seq(&mut run)?;
        // A `[u8; N]` stops after N bytes: a longer payload is of another type.
        if !run.0.is_empty() {
            return Err(RawError("bytes left over"));
        }
        Ok(value)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, RawError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        // Raw bytes cannot say none. The envelope has said that there is a value.
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, RawError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, RawError> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char
        unit unit_struct tuple_struct map struct enum identifier
    }
}

/// The bytes that are not read yet.
struct Run<'a>(&'a [u8]);

impl<'de> SeqAccess<'de> for &mut Run<'_> {
    type Error = RawError;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, RawError> {
        let Some((byte, rest)) = self.0.split_first() else {
            return Ok(None);
        };
        self.0 = rest;
        seed.deserialize(de::value::U8Deserializer::new(*byte))
            .map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

/// An error with a fixed text. The texts of serde are dropped, since they may quote the value.
#[derive(Debug)]
struct RawError(&'static str);

impl fmt::Display for RawError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for RawError {}

impl ser::Error for RawError {
    fn custom<T: fmt::Display>(_: T) -> Self {
        RawError("its `Serialize` refused")
    }
}

impl de::Error for RawError {
    fn custom<T: fmt::Display>(_: T) -> Self {
        RawError("its type is neither string nor bytes, or refused them")
    }
}

const NAME: &str = "raw";
const OTHER: RawError = RawError("raw stores only strings and bytes");
/// The payload refused to grow. The stack then reports the limit instead of this.
const FULL: RawError = RawError("it could not be written");

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::codec::{Codec, Envelope, Stack};
    use crate::error::ErrorKind;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Name(String);

    fn stored<V: Serialize + ?Sized>(value: &V) -> Result<Vec<u8>> {
        let stack = Stack {
            codec: Codec::Raw,
            ..Stack::default()
        };
        let entry = stack.encode(value, &[], Duration::ZERO)?;
        Ok(Envelope::parse(&entry).expect("ours").payload().to_vec())
    }

    #[test]
    fn strings_and_bytes_are_stored_as_they_are() {
        let pound = "\u{a3}1";
        assert_eq!(stored(pound).expect("str"), pound.as_bytes());
        assert_eq!(
            stored(&Name(pound.into())).expect("newtype"),
            pound.as_bytes()
        );
        assert_eq!(stored(&Some(pound)).expect("some"), pound.as_bytes());
        assert_eq!(stored(&vec![0_u8, 255]).expect("vec"), [0, 255]);
        assert_eq!(stored(&[7_u8, 8]).expect("array"), [7, 8]);
        assert_eq!(stored("").expect("empty"), b"");
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        fn refused<V: Serialize>(value: V) {
            let error = stored(&value).expect_err("not a string");
            assert_eq!(error.kind(), ErrorKind::Encode);
            assert!(
                error
                    .to_string()
                    .contains("raw stores only strings and bytes"),
                "{error}"
            );
        }
        refused(1_u8);
        refused(1_i64);
        refused(1.5);
        refused(true);
        refused('c');
        refused(());
        refused(vec!["a"]);
        refused(vec![300_u16]);
        refused(BTreeMap::from([("a", "b")]));
        refused(Some(None::<&str>));
    }

    #[test]
    fn strings_bytes_and_what_wraps_them_are_read() {
        assert_eq!(decode::<String>(b"abc").expect("string"), "abc");
        assert_eq!(decode::<Name>(b"abc").expect("newtype"), Name("abc".into()));
        assert_eq!(*decode::<Box<str>>(b"abc").expect("box"), *"abc");
        assert_eq!(decode::<Vec<u8>>(&[0, 255]).expect("vec"), [0, 255]);
        assert_eq!(decode::<[u8; 2]>(&[0, 255]).expect("array"), [0, 255]);
        assert_eq!(
            decode::<Option<String>>(b"").expect("option"),
            Some(String::new())
        );
        let named = decode::<Option<Name>>(b"abc").expect("newtype in an option");
        assert_eq!(named, Some(Name("abc".into())));
        let twice = decode::<Option<Option<String>>>(b"abc").expect("options");
        assert_eq!(twice, Some(Some("abc".into())));
        let any = decode::<serde_json::Value>(b"abc").expect("any");
        assert_eq!(any, serde_json::Value::from("abc"));
    }

    #[test]
    fn what_does_not_fit_is_refused_without_quoting_it() {
        assert!(
            decode::<String>(&[0xff])
                .expect_err("no UTF-8")
                .to_string()
                .contains("UTF-8")
        );
        for error in [
            decode::<u64>(b"canary").expect_err("a number"),
            decode::<[u8; 2]>(b"canary").expect_err("too long"),
            decode::<[u8; 9]>(b"canary").expect_err("too short"),
            decode::<Vec<String>>(b"canary").expect_err("no bytes"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Decode);
            assert!(
                !format!("{error} {error:?}").contains("canary"),
                "{error:?}"
            );
        }
    }
}
