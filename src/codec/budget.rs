//! The deserializer in front of CBOR and JSON: bounds what hostile bytes may build.
//!
//! Invariant: a value takes at most about [`MOST_BUILT`] bytes of memory, whatever its bytes say.
//! Without that one byte of an empty list becomes the 24 bytes of a `Vec`, or as many as the type
//! of the items has. What is counted is the size of each item of a list or map, and that of each
//! value with parts: that of an item twice where it has parts. Strings and bytes are not counted:
//! they take what they take in the entry. Called by [`Present`](super::absent::Present).

use std::cell::Cell;
use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// How many bytes may still be built.
pub(super) struct Budget(Cell<usize>);

/// A deserializer, a visitor, or what either hands to the other, within a budget.
pub(super) struct Within<'b, T> {
    inner: T,
    budget: &'b Budget,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Cell::new(bytes))
    }

    pub(super) fn around<T>(&self, inner: T) -> Within<'_, T> {
        Within {
            inner,
            budget: self,
        }
    }

    fn charge<T, E: de::Error>(&self) -> Result<(), E> {
        let left = self.0.get().checked_sub(size_of::<T>());
        self.0.set(left.ok_or_else(|| E::custom(EXHAUSTED))?);
        Ok(())
    }
}

/// Hands a request for a plain value on.
macro_rules! plain {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(self.budget.around(visitor))
        })*
    };
}

/// Hands a request for a value with parts on, and counts it.
macro_rules! counted {
    ($($method:ident($($name:ident: $arg:ty),*))*) => {
        $(fn $method<V: Visitor<'de>>(
            self,
            $($name: $arg,)*
            visitor: V,
        ) -> Result<V::Value, D::Error> {
            self.budget.charge::<V::Value, D::Error>()?;
            self.inner.$method($($name,)* self.budget.around(visitor))
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Within<'_, D> {
    type Error = D::Error;

    plain! {
        deserialize_bool deserialize_char deserialize_unit deserialize_option
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64
        deserialize_string deserialize_byte_buf deserialize_identifier
        deserialize_ignored_any
    }

    /// For a visitor the two are the same, but ciborium has 4 KiB for what is borrowed.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_string(visitor)
    }

    /// As for strings.
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_byte_buf(visitor)
    }

    counted! {
        deserialize_any() deserialize_seq() deserialize_map() deserialize_tuple(len: usize)
        deserialize_tuple_struct(name: &'static str, len: usize)
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.budget.around(visitor);
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = self.budget.around(visitor);
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Hands a plain value on.
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
        self.inner.visit_some(self.budget.around(inner))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(self.budget.around(inner))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(self.budget.around(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(self.budget.around(items))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(self.budget.around(variant))
    }
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Within<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T::Value, D::Error> {
        self.inner.deserialize(self.budget.around(inner))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        self.budget.charge::<T::Value, A::Error>()?;
        self.inner.next_element_seed(self.budget.around(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        self.budget.charge::<T::Value, A::Error>()?;
        self.inner.next_key_seed(self.budget.around(seed))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.budget.charge::<T::Value, A::Error>()?;
        self.inner.next_value_seed(self.budget.around(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, 'b, A: EnumAccess<'de>> EnumAccess<'de> for Within<'b, A> {
    type Error = A::Error;
    type Variant = Within<'b, A::Variant>;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Self::Variant), A::Error> {
        let (name, variant) = self.inner.variant_seed(self.budget.around(seed))?;
        Ok((name, self.budget.around(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.newtype_variant_seed(self.budget.around(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let visitor = self.budget.around(visitor);
        self.inner.tuple_variant(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let visitor = self.budget.around(visitor);
        self.inner.struct_variant(fields, visitor)
    }
}

/// 512 MiB: eight times the longest payload, since a small number of one byte becomes one of eight.
pub(super) const MOST_BUILT: usize = 8 * super::MAX_DECODED;

/// The text of the error, of whatever format.
pub(super) const EXHAUSTED: &str = "the value would take too much memory";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    /// 256 bytes, out of two.
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Fat {
        _padding: [u64; 32],
    }

    fn read<'de, T: Deserialize<'de>>(json: &'de str, bytes: usize) -> Result<T, String> {
        let budget = Budget::new(bytes);
        let mut json = serde_json::Deserializer::from_str(json);
        T::deserialize(budget.around(&mut json)).map_err(|error| error.to_string())
    }

    fn exhausts<'de, T: Deserialize<'de> + fmt::Debug>(json: &'de str, bytes: usize) {
        let error = read::<T>(json, bytes).expect_err("too much");
        assert!(error.starts_with(EXHAUSTED), "{error}");
    }

    #[test]
    fn items_count_by_what_they_become_and_not_by_how_they_are_written() {
        let many = format!("[{}{{}}]", "{},".repeat(99));
        assert!(read::<Vec<Fat>>(&many, 1 << 20).is_ok());
        exhausts::<Vec<Fat>>(&many, 100 * size_of::<Fat>());
        exhausts::<Vec<Box<Fat>>>(&many, 100 * size_of::<Fat>());
        exhausts::<Vec<Option<Box<Fat>>>>(&many, 100 * size_of::<Fat>());
        exhausts::<Vec<BTreeMap<u8, u8>>>(&many, 100 * 24);
        exhausts::<serde_json::Value>(&many, 100 * 24);
        let map = r#"{"a": {}, "b": {}, "c": {}, "d": {}}"#;
        exhausts::<BTreeMap<String, Fat>>(map, 4 * size_of::<Fat>());
    }

    #[test]
    fn strings_cost_no_more_than_their_places() {
        let text = format!("[\"{}\"]", "x".repeat(9999));
        assert!(read::<Vec<String>>(&text, 99).is_ok());
    }
}
