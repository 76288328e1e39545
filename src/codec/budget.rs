//! The deserializer in front of the formats: it bounds the memory that hostile bytes can build.
//!
//! Invariant: whatever its bytes are, a value takes at most about [`MOST_BUILT`] bytes of memory,
//! or eight times the longest payload that the reader allows if that is more. Without this bound,
//! the one byte of an empty list becomes the 24 bytes of a `Vec`, or as many bytes as the type of
//! the items has.
//!
//! Each item of a list or map counts with its size. Parts that lie within an item, such as the
//! fields of a struct, are already counted with it. A value that is larger than the bytes counted
//! for its position lies behind a pointer, and counts in addition. Strings and bytes do not count:
//! they take as much memory as in the entry.
//!
//! CBOR and JSON bound the nesting themselves, and each of their items takes a byte. For the other
//! formats, [`bounded`] bounds the nesting and the number of items without a size.
//! [`Rules`](super::checked::Rules) counts the same way while a value is written.
//! [`Present`](super::option::Present) calls this module.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::payload::MAX_DECODED;

/// What may still be built.
pub(super) struct Budget {
    bytes: Cell<usize>,
    /// Levels of nesting.
    levels: Cell<usize>,
    /// Items without a size.
    empties: Cell<usize>,
}

/// The limits of a budget.
#[derive(Clone, Copy)]
struct Limits {
    bytes: usize,
    levels: usize,
    empties: usize,
}

/// A deserializer, a visitor, or an object that one passes to the other, within a budget.
pub(super) struct Within<'b, T> {
    inner: T,
    budget: &'b Budget,
    /// How many bytes of the value that follows are counted already.
    paid: usize,
}

/// The budget in bytes of a value whose payload has at most `max_decoded` bytes.
pub(super) fn most_built(max_decoded: usize) -> usize {
    max_decoded.saturating_mul(GROWTH).max(MOST_BUILT)
}

/// Runs `read` with `bytes` as the budget of the value that it reads. The budget travels in a
/// thread-local variable: the formats construct a type by themselves, and take no argument for it.
pub(super) fn allowing<R>(bytes: usize, read: impl FnOnce() -> R) -> R {
    within(Limits { bytes, ..UNBOUNDED }, read)
}

/// Runs `read` for a format that bounds neither the nesting, nor the number of items that take no
/// bytes. The nesting is at most `levels`, where each list, struct, variant and option is one, as
/// for [`Rules::bounded`](super::checked::Rules::bounded). Also returns which limit was exceeded,
/// since not each format hands on the error that says so.
pub(super) fn bounded<R>(levels: usize, read: impl FnOnce() -> R) -> (R, Option<&'static str>) {
    let bytes = LIMITS.get().bytes;
    let limits = Limits {
        bytes,
        levels,
        empties: MOST_EMPTIES,
    };
    within(limits, || {
        EXCEEDED.set(None);
        (read(), EXCEEDED.take())
    })
}

fn within<R>(limits: Limits, read: impl FnOnce() -> R) -> R {
    /// Restores the limits, even if a type panics while it is read.
    struct Before(Limits);
    impl Drop for Before {
        fn drop(&mut self) {
            LIMITS.set(self.0);
        }
    }
    let _before = Before(LIMITS.replace(limits));
    read()
}

thread_local! {
    static LIMITS: Cell<Limits> = const { Cell::new(UNBOUNDED) };
    /// The limit that was exceeded last.
    static EXCEEDED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

impl Budget {
    /// The budget of the value that is read now, as [`allowing`] and [`bounded`] have set it.
    pub(super) fn allowed() -> Self {
        Self::new(LIMITS.get())
    }

    fn new(limits: Limits) -> Self {
        Self {
            bytes: Cell::new(limits.bytes),
            levels: Cell::new(limits.levels),
            empties: Cell::new(limits.empties),
        }
    }

    /// Wraps the reader of a value whose position has `paid` bytes counted already.
    pub(super) fn around<T>(&self, inner: T, paid: usize) -> Within<'_, T> {
        Within {
            inner,
            budget: self,
            paid,
        }
    }

    /// Counts a value of type `T` at a position with `paid` bytes counted already. A larger value
    /// lies elsewhere, behind a pointer, and counts in full.
    fn charge_boxed<T, E: de::Error>(&self, paid: usize) -> Result<(), E> {
        match size_of::<T>() <= paid {
            true => Ok(()),
            false => self.charge(size_of::<T>(), &mut 0),
        }
    }

    /// Counts `bytes`, and uses up `paid` first.
    fn charge<E: de::Error>(&self, bytes: usize, paid: &mut usize) -> Result<(), E> {
        // A paid byte is free once: all parts of one value share its size.
        let free = bytes.min(*paid);
        *paid -= free;
        let left = self.bytes.get().checked_sub(bytes - free);
        self.bytes
            .set(left.ok_or_else(|| exceeded::<E>(EXHAUSTED))?);
        Ok(())
    }

    /// Counts an item of a list or map, of `bytes`.
    fn charge_item<E: de::Error>(&self, bytes: usize, paid: &mut usize) -> Result<(), E> {
        if bytes > 0 {
            return self.charge(bytes, paid);
        }
        let left = self.empties.get().checked_sub(1);
        self.empties
            .set(left.ok_or_else(|| exceeded::<E>(EXHAUSTED))?);
        Ok(())
    }

    /// Runs `visit` one level deeper.
    fn deeper<R, E: de::Error>(&self, visit: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        let left = self.levels.get().checked_sub(1);
        self.levels.set(left.ok_or_else(|| exceeded::<E>(NESTED))?);
        let visited = visit();
        // Also after an error, since the type may go on.
        self.levels.set(self.levels.get() + 1);
        visited
    }
}

#[cold]
fn exceeded<E: de::Error>(limit: &'static str) -> E {
    EXCEEDED.set(Some(limit));
    E::custom(limit)
}

/// Forwards a request for a plain value.
macro_rules! plain {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(self.budget.around(visitor, self.paid))
        })*
    };
}

/// Forwards a request for a value with parts, and counts the value. `$parts` says where its parts
/// lie.
macro_rules! counted {
    ($parts:expr; $($method:ident($($name:ident: $arg:ty),*))*) => {
        $(fn $method<V: Visitor<'de>>(
            self,
            $($name: $arg,)*
            visitor: V,
        ) -> Result<V::Value, D::Error> {
            self.budget.charge_boxed::<V::Value, D::Error>(self.paid)?;
            let parts: fn(usize) -> usize = $parts;
            self.inner.$method($($name,)* self.budget.around(visitor, parts(size_of::<V::Value>())))
        })*
    };
}

/// The parts lie within the value, which is counted already.
const WITHIN: fn(usize) -> usize = |size| size;
/// The parts lie elsewhere, so each of them counts.
const ELSEWHERE: fn(usize) -> usize = |_| 0;

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Within<'_, D> {
    type Error = D::Error;

    plain! {
        deserialize_bool deserialize_char deserialize_unit
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64
        deserialize_string deserialize_byte_buf deserialize_identifier
        deserialize_ignored_any
    }

    /// Asks for an owned string: ciborium refuses a borrowed one that is longer than its 4 KiB
    /// buffer. A visitor accepts either.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_string(visitor)
    }

    /// Asks for owned bytes, for the same reason.
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_byte_buf(visitor)
    }

    // Each of these may build a list or a map, whose items lie on the heap.
    counted! { ELSEWHERE; deserialize_any() deserialize_seq() deserialize_map() }

    // The parts of these are fields of the value itself.
    counted! {
        WITHIN;
        deserialize_option()
        deserialize_tuple(len: usize)
        deserialize_tuple_struct(name: &'static str, len: usize)
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.budget.around(visitor, self.paid);
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        // A newtype has the size of its content, so `paid` passes on to that.
        let visitor = self.budget.around(visitor, self.paid);
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.budget.charge_boxed::<V::Value, D::Error>(self.paid)?;
        // The names are read as items of the same map, and must not use up the room of the fields.
        let parts = size_of::<V::Value>() + names(fields);
        let visitor = self.budget.around(visitor, parts);
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// The bytes that the names of fields become while they are read. Each name is an item of the map,
/// and serde turns it into a number.
fn names(fields: &[&str]) -> usize {
    fields.len() * size_of::<u16>()
}

/// Forwards a plain value.
macro_rules! visit {
    ($($method:ident($value:ty))*) => {
        $(fn $method<E: de::Error>(self, value: $value) -> Result<V::Value, E> {
            self.inner.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Within<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit! {
        visit_bool(bool) visit_char(char)
        visit_i8(i8) visit_i16(i16) visit_i32(i32) visit_i64(i64) visit_i128(i128)
        visit_u8(u8) visit_u16(u16) visit_u32(u32) visit_u64(u64) visit_u128(u128)
        visit_f32(f32) visit_f64(f64)
        visit_str(&str) visit_borrowed_str(&'de str) visit_string(String)
        visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        // The content of an option lies within the option.
        let Self {
            inner: visitor,
            budget,
            paid,
        } = self;
        budget.deeper(|| visitor.visit_some(budget.around(inner, paid)))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner
            .visit_newtype_struct(self.budget.around(inner, self.paid))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        let Self {
            inner,
            budget,
            paid,
        } = self;
        budget.deeper(|| inner.visit_seq(budget.around(items, paid)))
    }

    fn visit_map<A: MapAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        let Self {
            inner,
            budget,
            paid,
        } = self;
        budget.deeper(|| inner.visit_map(budget.around(items, paid)))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        let Self {
            inner,
            budget,
            paid,
        } = self;
        budget.deeper(|| inner.visit_enum(budget.around(variant, paid)))
    }
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Within<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T::Value, D::Error> {
        self.inner.deserialize(self.budget.around(inner, self.paid))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        let size = size_of::<T::Value>();
        let item = self
            .inner
            .next_element_seed(self.budget.around(seed, size))?;
        // The end of a list is no item, so a list of exactly the budget is read.
        if item.is_some() {
            self.budget.charge_item::<A::Error>(size, &mut self.paid)?;
        }
        Ok(item)
    }

    fn size_hint(&self) -> Option<usize> {
        // What the bytes claim. A type may take memory for it before an item is counted.
        Some(self.inner.size_hint()?.min(MOST_CLAIMED))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        let size = size_of::<T::Value>();
        let key = self.inner.next_key_seed(self.budget.around(seed, size))?;
        if key.is_some() {
            self.budget.charge_item::<A::Error>(size, &mut self.paid)?;
        }
        Ok(key)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        let size = size_of::<T::Value>();
        let value = self.inner.next_value_seed(self.budget.around(seed, size))?;
        self.budget.charge::<A::Error>(size, &mut self.paid)?;
        Ok(value)
    }

    fn size_hint(&self) -> Option<usize> {
        // What the bytes claim. A type may take memory for it before an item is counted.
        Some(self.inner.size_hint()?.min(MOST_CLAIMED))
    }
}

impl<'de, 'b, A: EnumAccess<'de>> EnumAccess<'de> for Within<'b, A> {
    type Error = A::Error;
    type Variant = Within<'b, A::Variant>;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Self::Variant), A::Error> {
        // The name is read as an identifier, which counts nothing.
        let (name, variant) = self.inner.variant_seed(self.budget.around(seed, 0))?;
        Ok((name, self.budget.around(variant, self.paid)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        mut self,
        seed: T,
    ) -> Result<T::Value, A::Error> {
        // The content lies within the enum, which is counted: the charge uses up `paid` first.
        let size = size_of::<T::Value>();
        self.budget.charge::<A::Error>(size, &mut self.paid)?;
        self.inner
            .newtype_variant_seed(self.budget.around(seed, size))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let visitor = self.budget.around(visitor, self.paid);
        self.inner.tuple_variant(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.budget.around(visitor, self.paid + names(fields));
        self.inner.struct_variant(fields, visitor)
    }
}

/// How much a payload may grow in memory: a number of one byte becomes one of eight.
const GROWTH: usize = 8;

/// The least budget: 512 MiB.
pub(super) const MOST_BUILT: usize = GROWTH * MAX_DECODED;

/// The limits where the format has its own, except that of the memory.
const UNBOUNDED: Limits = Limits {
    bytes: MOST_BUILT,
    levels: usize::MAX,
    empties: usize::MAX,
};

/// The most items without a size. A format may write such items as no bytes at all, and a few bytes
/// then claim as many as there are numbers.
pub(super) const MOST_EMPTIES: usize = 1 << 22;

/// The text of the error for too deep a nesting.
pub(super) const NESTED: &str = "nested too deep";

/// The text of the error, in every format. The codecs recognise the error by it.
pub(super) const EXHAUSTED: &str = "the value would take too much memory";
/// The most items that a list or a map is believed to have before they are read.
const MOST_CLAIMED: usize = 4096;

#[cfg(test)]
mod tests;
