//! The serializer in front of the formats: it refuses values that could not be read back.
//!
//! Invariant: a value that passes reads back as it was written. The formats alone write more: JSON
//! writes NaN as `null`, most write `Some(None)` as `null`, postcard writes structs with fields
//! left out, and all write deeper nesting than their readers accept. The codecs call this module.

use std::cell::Cell;
use std::fmt;

use serde::Serialize;
use serde::ser::{
    self, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::budget::MOST_EMPTIES;

/// The limits of one format, and what one value has used of them.
pub(super) struct Rules {
    /// The deepest nesting that the format's reader accepts.
    pub(super) deepest: usize,
    /// The error text for NaN and infinities, if the format cannot write them.
    pub(super) not_finite: Option<&'static str>,
    /// Whether an option counts as a level of nesting.
    options: Options,
    form: Form,
    /// How many bytes of memory the value may still take.
    left: Cell<usize>,
    /// How many values without any size it may still hold.
    empties: Cell<usize>,
    /// The rule that was broken. It is kept here, since the formats return the text within their
    /// own error, where it looks like a text that quotes the value.
    broken: Cell<Option<&'static str>>,
}

/// Whether an option counts as a level of nesting. It does where the reader counts it, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Options {
    Free,
    Level,
}

/// How a format writes options and structs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `None` is a null, and fields have names.
    Named,
    /// Each option has a mark of its own, and fields are told apart by their positions.
    Positional,
}

/// The position of a value, which decides how an option there is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the top, where the envelope records whether an option is `None`.
    Top,
    /// Below the top, and not directly in an option.
    Within,
    /// Directly in an option, where `null` would be read back as `None`.
    Some,
}

/// A value that is serialized under these rules.
pub(super) struct Checked<'r, T: ?Sized> {
    value: &'r T,
    rules: &'r Rules,
    depth: usize,
    place: Place,
    /// How many bytes of the value that follows are counted already.
    paid: usize,
}

/// A format's serializer, or one of its parts, under these rules.
struct Checking<'r, S> {
    inner: S,
    rules: &'r Rules,
    depth: usize,
    place: Place,
    /// How many bytes of the value that follows are counted already.
    paid: usize,
}

impl Rules {
    /// `built` is the memory that the reader allows the value, in bytes.
    pub(super) fn new(deepest: usize, not_finite: Option<&'static str>, built: usize) -> Self {
        Self {
            deepest,
            not_finite,
            options: Options::Free,
            form: Form::Named,
            empties: Cell::new(usize::MAX),
            // Half of it: the reader also counts padding in boxed values, and owns what the writer
            // has borrowed.
            left: Cell::new(built / 2),
            broken: Cell::new(None),
        }
    }

    /// For a reader that [`budget::bounded`](super::budget::bounded) limits.
    pub(super) fn bounded(self) -> Self {
        Self {
            options: Options::Level,
            empties: Cell::new(MOST_EMPTIES),
            ..self
        }
    }

    /// For a format that marks each option, and tells fields apart by their positions.
    #[cfg_attr(
        not(feature = "postcard"),
        expect(dead_code, reason = "only Postcard is such a format")
    )]
    pub(super) fn positional(self) -> Self {
        Self {
            form: Form::Positional,
            ..self
        }
    }

    pub(super) fn check<'r, T: ?Sized>(&'r self, value: &'r T) -> Checked<'r, T> {
        Checked {
            value,
            rules: self,
            depth: 0,
            place: Place::Top,
            paid: 0,
        }
    }

    /// The rule that the value has broken, if any.
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
            paid: self.paid,
        })
    }
}

impl<'r, S> Checking<'r, S> {
    /// A value at the same depth, with the same bytes counted.
    fn within<'v, T: ?Sized>(&self, value: &'v T, place: Place) -> Checked<'v, T>
    where
        'r: 'v,
    {
        Checked {
            value,
            rules: self.rules,
            depth: self.depth,
            place,
            paid: self.paid,
        }
    }

    /// Counts `bytes`, and uses up `paid` first.
    fn charge<E: ser::Error>(&mut self, bytes: usize) -> Result<(), E> {
        let free = bytes.min(self.paid);
        self.paid -= free;
        let left = self.rules.left.get().checked_sub(bytes - free);
        let Some(left) = left else {
            return Err(self.rules.refuse(TOO_MUCH));
        };
        self.rules.left.set(left);
        Ok(())
    }

    /// One part of this value. Its size is known, so it is counted here.
    fn part<'v, T: ?Sized, E: ser::Error>(
        &mut self,
        value: &'v T,
        place: Place,
    ) -> Result<Checked<'v, T>, E>
    where
        'r: 'v,
    {
        let paid = size_of_val(value);
        self.charge(paid)?;
        let part = self.within(value, place);
        Ok(Checked { paid, ..part })
    }

    /// One part of this value that may be a reference. Its own size says little, so its contents
    /// are counted as they are serialized.
    fn seen<'v, T>(&self, value: &'v T) -> Checked<'v, T>
    where
        'r: 'v,
    {
        let part = self.within(value, Place::Within);
        Checked { paid: 0, ..part }
    }

    /// Steps `levels` deeper, into parts that lie within the value.
    fn nest<I, E: ser::Error>(
        self,
        levels: usize,
        open: impl FnOnce(S) -> Result<I, E>,
    ) -> Result<Checking<'r, I>, E> {
        let depth = self.depth + levels;
        // The formats have no limit of their own when they write.
        if depth > self.rules.deepest {
            return Err(self.rules.refuse("it is nested too deep to be read back"));
        }
        Ok(Checking {
            inner: open(self.inner)?,
            rules: self.rules,
            depth,
            place: Place::Within,
            paid: self.paid,
        })
    }

    /// Steps into a list or a map, whose parts lie elsewhere in memory.
    fn nest_elsewhere<I, E: ser::Error>(
        mut self,
        open: impl FnOnce(S) -> Result<I, E>,
    ) -> Result<Checking<'r, I>, E> {
        self.charge(OWNER)?;
        let nest = self.nest(1, open)?;
        Ok(Checking { paid: 0, ..nest })
    }

    /// Counts a value without any size: a format may write it as no byte at all.
    fn empty<E: ser::Error>(&self) -> Result<(), E> {
        let left = self.rules.empties.get().checked_sub(1);
        let left = left.ok_or_else(|| self.rules.refuse(TOO_MANY))?;
        self.rules.empties.set(left);
        Ok(())
    }

    /// Writes a value that most formats write as `null`.
    fn null<R, E: ser::Error>(self, write: impl FnOnce(S) -> Result<R, E>) -> Result<R, E> {
        match self.place {
            Place::Some if self.rules.form == Form::Named => Err(self.rules.refuse(
                "an option holds a value that is written like none, and would be read back as none",
            )),
            // At the top, the envelope records whether the value is none.
            Place::Top | Place::Within | Place::Some => write(self.inner),
        }
    }

    fn number<R, E: ser::Error>(
        self,
        value: f64,
        write: impl FnOnce(S) -> Result<R, E>,
    ) -> Result<R, E> {
        match self.rules.not_finite {
            Some(how) if !value.is_finite() => Err(self.rules.refuse(how)),
            _ => write(self.inner),
        }
    }
}

/// Counts and forwards plain values.
macro_rules! forward {
    ($($method:ident($value:ty))*) => {
        $(fn $method(mut self, value: $value) -> Result<S::Ok, S::Error> {
            // Free where it was counted as a part. An item that serde shows by reference was not.
            self.charge(size_of::<$value>())?;
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
        serialize_bool(bool) serialize_char(char)
        serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64)
        serialize_i128(i128) serialize_u8(u8) serialize_u16(u16) serialize_u32(u32)
        serialize_u64(u64) serialize_u128(u128)
    }

    fn serialize_str(mut self, text: &str) -> Result<S::Ok, S::Error> {
        // The reader owns the string, also where the writer has borrowed it.
        self.charge(OWNER)?;
        self.inner.serialize_str(text)
    }

    fn serialize_bytes(mut self, bytes: &[u8]) -> Result<S::Ok, S::Error> {
        self.charge(OWNER)?;
        self.inner.serialize_bytes(bytes)
    }

    fn serialize_f32(mut self, value: f32) -> Result<S::Ok, S::Error> {
        self.charge(size_of::<f32>())?;
        self.number(value.into(), |inner| inner.serialize_f32(value))
    }

    fn serialize_f64(mut self, value: f64) -> Result<S::Ok, S::Error> {
        self.charge(size_of::<f64>())?;
        self.number(value, |inner| inner.serialize_f64(value))
    }

    fn collect_str<T: fmt::Display + ?Sized>(mut self, value: &T) -> Result<S::Ok, S::Error> {
        self.charge(OWNER)?;
        // Forwarded, since serde's default would build a `String` first.
        self.inner.collect_str(value)
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.null(S::serialize_none)
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.empty()?;
        self.null(S::serialize_unit)
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        self.empty()?;
        self.null(|inner| inner.serialize_unit_struct(name))
    }

    fn serialize_some<T: Serialize + ?Sized>(mut self, value: &T) -> Result<S::Ok, S::Error> {
        // The envelope has recorded `Some` for an option at the top, so it counts as no level.
        let place = match self.place {
            Place::Top => Place::Within,
            Place::Within | Place::Some => Place::Some,
        };
        let value = self.part(value, place)?;
        // Not written: a value at the top whose type has become optional is read as before.
        if self.place == Place::Top {
            return value.serialize(self.inner);
        }
        let levels = match self.rules.options {
            Options::Free => 0,
            Options::Level => 1,
        };
        let nest = self.nest(levels, Ok::<_, S::Error>)?;
        let depth = nest.depth;
        nest.inner.serialize_some(&Checked { depth, ..value })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        mut self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let value = self.part(value, self.place)?;
        self.inner.serialize_newtype_struct(name, &value)
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        // The readers count a variant as one level, even if it holds nothing.
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
        let mut nest = self.nest(1, Ok::<_, S::Error>)?;
        let value = nest.part(value, Place::Within)?;
        let inner = nest.inner;
        inner.serialize_newtype_variant(name, index, variant, &value)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.nest_elsewhere(|inner| inner.serialize_seq(len))
    }

    fn collect_seq<I: IntoIterator<Item: Serialize>>(self, items: I) -> Result<S::Ok, S::Error> {
        // serde's default shows each item as a reference, which would count as a pointer.
        let mut items = items.into_iter();
        let mut list = self.serialize_seq(length(&items))?;
        items.try_for_each(|item| {
            let item = list.seen(&item);
            list.inner.serialize_element(&item)
        })?;
        list.inner.end()
    }

    fn collect_map<K, V, I>(self, entries: I) -> Result<S::Ok, S::Error>
    where
        K: Serialize,
        V: Serialize,
        I: IntoIterator<Item = (K, V)>,
    {
        let mut entries = entries.into_iter();
        let mut map = self.serialize_map(length(&entries))?;
        entries.try_for_each(|(key, value)| {
            let (key, value) = (map.seen(&key), map.seen(&value));
            map.inner.serialize_entry(&key, &value)
        })?;
        map.inner.end()
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        if len == 0 {
            self.empty()?;
        }
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
        // ciborium uses this name to write a CBOR tag, which is one level of nesting.
        let levels = if name == "@@TAG@@" { 1 } else { 2 };
        self.nest(levels, |inner| {
            inner.serialize_tuple_variant(name, index, variant, len)
        })
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.nest_elsewhere(|inner| inner.serialize_map(len))
    }

    fn serialize_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        if len == 0 {
            self.empty()?;
        }
        self.nest(1, |inner| inner.serialize_struct(name, len))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        // Two levels: the variant, and its fields.
        self.nest(2, |inner| {
            inner.serialize_struct_variant(name, index, variant, len)
        })
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// The parts of a compound without field names.
macro_rules! items {
    ($($compound:ident::$method:ident)*) => {
        $(impl<S: $compound> $compound for Checking<'_, S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                let value = self.part(value, Place::Within)?;
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

/// The parts of a compound with static field names.
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
                let value = self.part(value, Place::Within)?;
                self.inner.serialize_field(name, &value)
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), S::Error> {
                if self.rules.form == Form::Positional {
                    return Err(self.rules.refuse(SKIPPED));
                }
                // A skipped field is not seen here, so it is not counted.
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
        let key = self.part(key, Place::Within)?;
        self.inner.serialize_key(&key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        let value = self.part(value, Place::Within)?;
        self.inner.serialize_value(&value)
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.inner.end()
    }
}

/// The number of items, if the iterator knows it exactly.
fn length(items: &impl Iterator) -> Option<usize> {
    match items.size_hint() {
        (least, Some(most)) if least == most => Some(least),
        _ => None,
    }
}

const TOO_MUCH: &str =
    "it would take too much memory when it is read; raise ClientBuilder::max_value_size";

const TOO_MANY: &str = "it holds too many values that take no bytes";

const SKIPPED: &str =
    "it leaves a field out (`skip_serializing_if`), and fields are told apart by their positions";

/// Bytes that a string or a list takes at its own position when it is read, without its contents.
const OWNER: usize = size_of::<Vec<u8>>();
/// The error text for a value whose own `Serialize` refuses.
pub(super) const REFUSED: &str = "its `Serialize` refused";
