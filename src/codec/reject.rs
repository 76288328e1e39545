//! `refuse!`: writes the methods of a `Serializer` that refuse a kind of value.
//!
//! Invariant: each word names one kind of serde's data model, and refusing it costs nothing. The
//! serializers of this crate that accept only a few kinds of value call it.

/// Writes the methods of [`serde::Serializer`] for the named kinds. Each returns the error.
macro_rules! refuse {
    (@ bool $e:expr) => { refuse!(# $e; serialize_bool(bool)); };
    (@ u8 $e:expr) => { refuse!(# $e; serialize_u8(u8)); };
    (@ numbers $e:expr) => {
        refuse!(# $e; serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64)
            serialize_i128(i128) serialize_u16(u16) serialize_u32(u32) serialize_u64(u64)
            serialize_u128(u128) serialize_f32(f32) serialize_f64(f64));
    };
    (@ char $e:expr) => { refuse!(# $e; serialize_char(char)); };
    (@ str $e:expr) => {
        refuse!(# $e; serialize_str(&str));
        fn collect_str<T: std::fmt::Display + ?Sized>(
            self,
            _: &T,
        ) -> Result<Self::Ok, Self::Error> {
            Err($e)
        }
    };
    (@ bytes $e:expr) => { refuse!(# $e; serialize_bytes(&[u8])); };
    (@ none $e:expr) => { refuse!(# $e; serialize_none()); };
    (@ some $e:expr) => { refuse!(% $e; serialize_some()); };
    (@ unit $e:expr) => {
        refuse!(# $e; serialize_unit() serialize_unit_struct(&'static str)
            serialize_unit_variant(&'static str, u32, &'static str));
    };
    (@ newtype_struct $e:expr) => { refuse!(% $e; serialize_newtype_struct(&'static str)); };
    (@ variants $e:expr) => {
        refuse!(% $e; serialize_newtype_variant(&'static str, u32, &'static str));
        refuse!(! $e; SerializeTupleVariant
            serialize_tuple_variant(&'static str, u32, &'static str, usize));
        refuse!(! $e; SerializeStructVariant
            serialize_struct_variant(&'static str, u32, &'static str, usize));
    };
    (@ seq $e:expr) => { refuse!(! $e; SerializeSeq serialize_seq(Option<usize>)); };
    (@ tuple $e:expr) => { refuse!(! $e; SerializeTuple serialize_tuple(usize)); };
    (@ fields $e:expr) => {
        refuse!(! $e; SerializeTupleStruct serialize_tuple_struct(&'static str, usize));
        refuse!(! $e; SerializeMap serialize_map(Option<usize>));
        refuse!(! $e; SerializeStruct serialize_struct(&'static str, usize));
    };

    (# $e:expr; $($method:ident($($arg:ty),*))*) => {
        $(fn $method(self, $(_: $arg),*) -> Result<Self::Ok, Self::Error> { Err($e) })*
    };
    (% $e:expr; $method:ident($($arg:ty),*)) => {
        fn $method<T: serde::Serialize + ?Sized>(
            self,
            $(_: $arg,)*
            _: &T,
        ) -> Result<Self::Ok, Self::Error> {
            Err($e)
        }
    };
    (! $e:expr; $compound:ident $method:ident($($arg:ty),*)) => {
        type $compound = serde::ser::Impossible<Self::Ok, Self::Error>;
        fn $method(self, $(_: $arg),*) -> Result<Self::$compound, Self::Error> { Err($e) }
    };

    // This arm comes last: `#` and `!` would be read as the start of an expression.
    ($error:expr; $($kind:ident)*) => { $(refuse!(@ $kind $error);)* };
}

pub(super) use refuse;
