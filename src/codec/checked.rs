//! The serializer in front of CBOR and JSON: refuses what could not be read back.
//!
//! Invariant: what it lets through reads back as it was written. The formats themselves would write
//! more: JSON makes `null` of NaN, both make `null` of `Some(None)`, and neither minds a nesting
//! that its reader refuses. Called by the codecs.

use std::cell::Cell;
use std::fmt;

use serde::Serialize;
use serde::ser::{
    self, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::budget::MOST_BUILT;

/// What a format cannot spell.
pub(super) struct Rules {
    /// As deep as its reader goes.
    pub(super) deepest: usize,
    /// What it says of NaN and infinities, if it has none.
    pub(super) not_finite: Option<&'static str>,
    left: Cell<usize>,
    broken: Cell<Option<&'static str>>,
}

/// Where a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the top: the envelope tells an option there from what it holds.
    Top,
    Within,
    /// In an option, where `null` would be read as no value.
    Some,
}

/// A value that is serialized by these rules.
pub(super) struct Checked<'r, T: ?Sized> {
    value: &'r T,
    rules: &'r Rules,
    depth: usize,
    place: Place,
}

/// A format's serializer, and its parts, by these rules.
struct Checking<'r, S> {
    inner: S,
    rules: &'r Rules,
    depth: usize,
    place: Place,
}

impl Rules {
    pub(super) fn new(deepest: usize, not_finite: Option<&'static str>) -> Self {
        Self {
            deepest,
            not_finite,
            // The reader allows twice as much: it also counts what is boxed.
            left: Cell::new(MOST_BUILT / 2),
            broken: Cell::new(None),
        }
    }

    pub(super) fn check<'r, T: ?Sized>(&'r self, value: &'r T) -> Checked<'r, T> {
        Checked {
            value,
            rules: self,
            depth: 0,
            place: Place::Top,
        }
    }

    /// Which rule the value has broken.
    pub(super) fn broken(&self) -> Option<&'static str> {
        self.broken.get()
    }

    fn refuse<E: ser::Error>(&self, how: &'static str) -> E {
        self.broken.set(Some(how));
        E::custom(how)
    }
}

impl<T: Serialize + ?Sized> Serialize for Checked<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(Checking {
            inner: serializer,
            rules: self.rules,
            depth: self.depth,
            place: self.place,
        })
    }
}

impl<'r, S> Checking<'r, S> {
    fn within<'v, T: ?Sized>(&self, value: &'v T, place: Place) -> Checked<'v, T>
    where
        'r: 'v,
    {
        Checked {
            value,
            rules: self.rules,
            depth: self.depth,
            place,
        }
    }

    /// One value in a sequence or a map.
    fn item<'v, T: ?Sized, E: ser::Error>(&self, value: &'v T) -> Result<Checked<'v, T>, E>
    where
        'r: 'v,
    {
        let left = self.rules.left.get().checked_sub(size_of_val(value));
        let Some(left) = left else {
            return Err(self.rules.refuse(TOO_MUCH));
        };
        self.rules.left.set(left);
        Ok(self.within(value, Place::Within))
    }

    /// Steps into a nest of `levels`.
    fn nest<I, E: ser::Error>(
        self,
        levels: usize,
        open: impl FnOnce(S) -> Result<I, E>,
    ) -> Result<Checking<'r, I>, E> {
        let depth = self.depth + levels;
        if depth > self.rules.deepest {
            return Err(self.rules.refuse("it is nested too deep to be read back"));
        }
        Ok(Checking {
            inner: open(self.inner)?,
            rules: self.rules,
            depth,
            place: Place::Within,
        })
    }

    /// Writes what the formats spell `null`.
    fn null<R, E: ser::Error>(self, write: impl FnOnce(S) -> Result<R, E>) -> Result<R, E> {
        match self.place {
            Place::Some => Err(self.rules.refuse(
                "an option holds a value that is written like none, and would be read back as none",
            )),
            Place::Top | Place::Within => write(self.inner),
        }
    }

    fn number<R, E: ser::Error>(
        self,
        is_finite: bool,
        write: impl FnOnce(S) -> Result<R, E>,
    ) -> Result<R, E> {
        match self.rules.not_finite {
            Some(how) if !is_finite => Err(self.rules.refuse(how)),
            _ => write(self.inner),
        }
    }
}

/// Hands plain values on.
macro_rules! forward {
    ($($method:ident($value:ty))*) => {
        $(fn $method(self, value: $value) -> Result<S::Ok, S::Error> {
            self.inner.$method(value)
        })*
    };
}

impl<'r, S: Serializer> Serializer for Checking<'r, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Checking<'r, S::SerializeSeq>;
    type SerializeTuple = Checking<'r, S::SerializeTuple>;
    type SerializeTupleStruct = Checking<'r, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Checking<'r, S::SerializeTupleVariant>;
    type SerializeMap = Checking<'r, S::SerializeMap>;
    type SerializeStruct = Checking<'r, S::SerializeStruct>;
    type SerializeStructVariant = Checking<'r, S::SerializeStructVariant>;

    forward! {
        serialize_bool(bool) serialize_char(char) serialize_str(&str) serialize_bytes(&[u8])
        serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64)
        serialize_i128(i128) serialize_u8(u8) serialize_u16(u16) serialize_u32(u32)
        serialize_u64(u64) serialize_u128(u128)
    }

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        self.number(value.is_finite(), |inner| inner.serialize_f32(value))
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        self.number(value.is_finite(), |inner| inner.serialize_f64(value))
    }

    fn collect_str<T: fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.null(S::serialize_none)
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.null(S::serialize_unit)
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        self.null(|inner| inner.serialize_unit_struct(name))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        let place = match self.place {
            Place::Top => Place::Within,
            Place::Within | Place::Some => Place::Some,
        };
        let value = self.within(value, place);
        self.inner.serialize_some(&value)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let value = self.within(value, self.place);
        self.inner.serialize_newtype_struct(name, &value)
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        let nest = self.nest(1, Ok::<_, S::Error>)?;
        nest.inner.serialize_unit_variant(name, index, variant)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let nest = self.nest(1, Ok::<_, S::Error>)?;
        let value = nest.within(value, Place::Within);
        let inner = nest.inner;
        inner.serialize_newtype_variant(name, index, variant, &value)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.nest(1, |inner| inner.serialize_seq(len))
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.nest(1, |inner| inner.serialize_tuple(len))
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.nest(1, |inner| inner.serialize_tuple_struct(name, len))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        // ciborium writes a tag of CBOR as such a variant, which is one nest.
        let levels = if name == "@@TAG@@" { 1 } else { 2 };
        self.nest(levels, |inner| {
            inner.serialize_tuple_variant(name, index, variant, len)
        })
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.nest(1, |inner| inner.serialize_map(len))
    }

    fn serialize_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        self.nest(1, |inner| inner.serialize_struct(name, len))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.nest(2, |inner| {
            inner.serialize_struct_variant(name, index, variant, len)
        })
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// The parts of what has items without names.
macro_rules! items {
    ($($compound:ident::$method:ident)*) => {
        $(impl<S: $compound> $compound for Checking<'_, S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                let value = self.item(value)?;
                self.inner.$method(&value)
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        })*
    };
}

items! {
    SerializeSeq::serialize_element SerializeTuple::serialize_element
    SerializeTupleStruct::serialize_field SerializeTupleVariant::serialize_field
}

/// The parts of what has items with names of ours.
macro_rules! fields {
    ($($compound:ident)*) => {
        $(impl<S: $compound> $compound for Checking<'_, S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), S::Error> {
                let value = self.within(value, Place::Within);
                self.inner.serialize_field(name, &value)
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), S::Error> {
                self.inner.skip_field(name)
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        })*
    };
}

fields! { SerializeStruct SerializeStructVariant }

impl<S: SerializeMap> SerializeMap for Checking<'_, S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        let key = self.item(key)?;
        self.inner.serialize_key(&key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        let value = self.item(value)?;
        self.inner.serialize_value(&value)
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.inner.end()
    }
}

const TOO_MUCH: &str = "it would take too much memory when it is read";
/// What is said of a value that refuses by itself.
pub(super) const REFUSED: &str = "its `Serialize` refused";
