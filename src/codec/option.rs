//! An option at the top of a value: the envelope records whether it is `None`, not the codec.
//!
//! Invariant: a value is stored as "none" exactly if it serializes as `None`, directly or within
//! newtypes. So `Some(None)`, which CBOR and JSON write like `None`, is read back as `Some(None)`.
//! This distinguishes one level only. The levels below it belong to the codec, which would write
//! `Some(Some(None))` like `Some(None)`; [`Rules`](super::checked::Rules) refuses such a value. The
//! [`Stack`](super::Stack) and the codecs call this module.

use std::fmt;

use serde::Serialize;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use serde::ser::{self, Serializer};

use super::budget::Budget;
use super::reject::refuse;

/// What a codec calls itself. Types choose by this how they are written, so a change for one codec
/// would be a change of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Human-readable.
    Text,
    Binary,
}

/// Whether `value` serializes as `None`. The first call that `value` makes to its serializer
/// decides; the rest of the value is not visited.
pub(super) fn is_none<V: Serialize + ?Sized>(value: &V, form: Form) -> bool {
    value.serialize(Probe { form }).is_ok()
}

/// The `V` that means "no value", if the type has one.
pub(super) fn none<V: DeserializeOwned>(form: Form) -> Option<V> {
    V::deserialize(Absent { form }).ok()
}

/// A `V` from an entry that holds a value. An option at its top is therefore `Some`.
pub(super) struct Present<V>(pub(super) V);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Present<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let budget = Budget::allowed();
        // Room for the value itself is there before it is read: only what it points to counts.
        let within = budget.around(deserializer, size_of::<V>());
        V::deserialize(Top(within)).map(Present)
    }
}

/// A codec's deserializer, for a value whose option at the top is known to be `Some`.
struct Top<D>(D);

/// Forwards methods unchanged.
macro_rules! forward {
    ($($method:ident($($name:ident: $arg:ty),*))*) => {
        $(fn $method<V: Visitor<'de>>(
            self,
            $($name: $arg,)*
            visitor: V,
        ) -> Result<V::Value, D::Error> {
            self.0.$method($($name,)* visitor)
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Top<D> {
    type Error = D::Error;

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        visitor.visit_some(self.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        // serde_json marks its own types (`RawValue`) by such a name, and rmp-serde its extensions.
        // They must read these themselves.
        if name.starts_with('$') || name == "_ExtStruct" {
            return self.0.deserialize_newtype_struct(name, visitor);
        }
        // The content of a newtype is still at the top.
        visitor.visit_newtype_struct(self)
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }

    forward! {
        deserialize_any() deserialize_ignored_any() deserialize_identifier()
        deserialize_bool() deserialize_char() deserialize_unit()
        deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64() deserialize_i128()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_f64()
        deserialize_str() deserialize_string() deserialize_bytes() deserialize_byte_buf()
        deserialize_seq() deserialize_map() deserialize_tuple(len: usize)
        deserialize_unit_struct(name: &'static str)
        deserialize_tuple_struct(name: &'static str, len: usize)
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }
}

/// A deserializer that answers every request with `None`.
struct Absent {
    form: Form,
}

impl<'de> Deserializer<'de> for Absent {
    type Error = NoDetail;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NoDetail> {
        // A visitor without a `None` refuses this, and so the type has none.
        visitor.visit_none()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, NoDetail> {
        visitor.visit_newtype_struct(self)
    }

    fn is_human_readable(&self) -> bool {
        self.form == Form::Text
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// A serializer that accepts `None` only.
struct Probe {
    form: Form,
}

impl Serializer for Probe {
    type Ok = ();
    type Error = NoDetail;

    fn serialize_none(self) -> Result<(), NoDetail> {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), NoDetail> {
        value.serialize(self)
    }

    // Some types serialize otherwise in text formats. The probe must see what the codec will see.
    fn is_human_readable(&self) -> bool {
        self.form == Form::Text
    }

    refuse! { NoDetail; bool u8 numbers char str bytes some unit variants seq tuple fields }
}

/// An error that allocates nothing and quotes nothing. The messages of serde quote the value.
#[derive(Debug)]
struct NoDetail;

impl fmt::Display for NoDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value has another form")
    }
}

impl std::error::Error for NoDetail {}

impl ser::Error for NoDetail {
    // The text is not even formatted, since it may be as long as the value.
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl de::Error for NoDetail {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Wrapped(Option<Option<u8>>);

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    #[serde(untagged)]
    enum Either {
        Maybe(Option<u8>),
        Text(String),
    }

    #[test]
    fn only_none_is_none() {
        assert!(is_none(&None::<u8>, Form::Text));
        assert!(is_none(&Box::new(&None::<u8>), Form::Text));
        assert!(is_none(&Wrapped(None), Form::Text));
        assert!(is_none(&Either::Maybe(None), Form::Text));
        assert!(!is_none(&Some(None::<u8>), Form::Text));
        assert!(!is_none(&Wrapped(Some(None)), Form::Text));
        assert!(!is_none(&(), Form::Text));
        assert!(!is_none(&serde_json::Value::Null, Form::Text));
        assert!(!is_none(&[None::<u8>], Form::Text));
        assert!(!is_none("", Form::Text));
        assert!(!is_none(&format_args!("{}", 1), Form::Text));
    }

    #[test]
    fn none_is_built_where_the_type_has_one() {
        assert_eq!(none::<Option<u8>>(Form::Text), Some(None));
        assert_eq!(none::<Option<Option<u8>>>(Form::Text), Some(None));
        assert_eq!(none::<Wrapped>(Form::Text), Some(Wrapped(None)));
        assert_eq!(none::<Either>(Form::Text), Some(Either::Maybe(None)));
        assert_eq!(none::<u8>(Form::Text), None);
        assert_eq!(none::<()>(Form::Text), None);
        assert_eq!(none::<Vec<u8>>(Form::Text), None);
    }

    #[test]
    fn an_option_at_the_top_of_a_value_is_some() {
        fn read<V: DeserializeOwned>(json: &str) -> V {
            let Present(value) = serde_json::from_str(json).expect("valid");
            value
        }
        assert_eq!(read::<Option<Option<u8>>>("null"), Some(None));
        assert_eq!(read::<Option<()>>("null"), Some(()));
        assert_eq!(read::<Wrapped>("null"), Wrapped(Some(None)));
        assert_eq!(read::<Vec<Option<u8>>>("[null]"), [None]);
        assert_eq!(read::<Either>("3"), Either::Maybe(Some(3)));
        assert_eq!(read::<Box<RawValue>>("[1, 2]").get(), "[1, 2]");
    }

    #[test]
    fn probes_and_answers_keep_the_readability_of_the_codec() {
        struct Readable;
        impl Serialize for Readable {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match serializer.is_human_readable() {
                    true => serializer.serialize_none(),
                    false => serializer.serialize_unit(),
                }
            }
        }
        #[derive(Debug, PartialEq)]
        struct Seen(bool);
        impl<'de> Deserialize<'de> for Seen {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let seen = Seen(deserializer.is_human_readable());
                de::IgnoredAny::deserialize(deserializer).map(|_| seen)
            }
        }
        assert!(is_none(&Readable, Form::Text));
        assert!(!is_none(&Readable, Form::Binary));
        assert_eq!(none(Form::Binary), Some(Seen(false)));
        assert_eq!(none(Form::Text), Some(Seen(true)));
        let read: Present<Seen> = ciborium::from_reader(&[0x01][..]).expect("one");
        assert_eq!(read.0, Seen(false));
    }
}
