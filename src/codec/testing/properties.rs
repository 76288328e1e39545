//! Properties of the stack over arbitrary values, and over arbitrary damage.
//!
//! Invariant: a value that is written is read back, and bytes of any kind are read or refused,
//! without a panic.

use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde::Deserialize;

use super::{decode, fuzzing};
use crate::codec::envelope::{DEADLINES, HEADER};
use crate::codec::*;

/// Serializes as bytes, not as a sequence.
#[derive(Debug, Clone, PartialEq)]
struct Blob(Vec<u8>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Shape {
    Unit,
    New(i64),
    Tuple(u8, String, char),
    Struct {
        at: (f32, f64),
        next: Option<Box<Shape>>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Nested {
    small: (i8, u8, i16, u16, i32, u32),
    large: (i64, u64, i128, u128),
    floats: Vec<f64>,
    text: String,
    blob: Blob,
    bytes: Vec<u8>,
    named: BTreeMap<String, Shape>,
    numbered: BTreeMap<i64, bool>,
    maybe: Option<String>,
    unit: (),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Title(String);

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        value in nested(),
        codec in structured(),
        compression in compression(),
        (stamps, cost) in (stamps(), any::<u32>()),
    ) {
        let stack = Stack { codec, compression: compression.into(), ..Stack::default() };
        let entry = encoded(&stack, &value, &stamps, cost);
        let envelope = Envelope::parse(&entry).expect("ours");
        prop_assert_eq!(envelope.stamps().collect::<Vec<_>>(), stamps);
        prop_assert_eq!(envelope.cost, Duration::from_micros(u64::from(cost)));
        prop_assert_eq!(&decode::<Nested>(&envelope, MAX_DECODED).expect("ours"), &value);
        round_trips(&stack, &Some(value));
        round_trips(&stack, &Some(None::<Nested>));
        round_trips(&stack, &None::<Nested>);
    }

    #[test]
    fn what_could_be_encoded_is_decoded(
        value in anything(), codec in structured().prop_filter("self-describing", describes_itself),
    ) {
        let stack = Stack { codec, ..Stack::default() };
        for value in [Some(value.clone()), Some(Anything::Maybe(Some(Box::new(value))))] {
            let Ok(entry) = stack.encode(&value, &[], Duration::ZERO) else { continue };
            let envelope = Envelope::parse(&entry).expect("ours");
            let read: Option<Anything> = decode(&envelope, MAX_DECODED).expect("ours");
            // Compares the text, since NaN does not equal itself.
            prop_assert_eq!(format!("{:?}", read), format!("{:?}", value));
        }
    }

    #[test]
    fn what_is_stored_raw_is_read_back(
        text in "\\PC{0,40}", bytes in long_bytes(), compression in compression(),
    ) {
        let stack = Stack { codec: Codec::Raw, compression: compression.into(), ..Stack::default() };
        round_trips(&stack, &Title(text.clone()));
        round_trips(&stack, &Some(text.clone()));
        round_trips(&stack, &text);
        round_trips(&stack, &Blob(bytes.clone()));
        round_trips(&stack, &bytes);
        round_trips(&stack, &None::<String>);
    }

    #[test]
    fn one_wrong_byte_is_noticed(
        entry in entry(), at in any::<prop::sample::Index>(), flip in 1..=255_u8,
    ) {
        let mut entry = entry;
        let at = at.index(entry.len());
        entry[at] ^= flip;
        prop_assert_eq!(Envelope::parse(&entry).is_ok(), DEADLINES.contains(&at));
    }

    #[test]
    fn a_missing_or_added_byte_is_noticed(
        entry in entry(), cut in any::<prop::sample::Index>(), more in vec(any::<u8>(), 1..40),
    ) {
        prop_assert!(Envelope::parse(&entry[..cut.index(entry.len())]).is_err());
        let longer = [entry, more].concat();
        prop_assert!(Envelope::parse(&longer).is_err());
    }

    #[test]
    fn bytes_of_any_kind_are_read_or_refused(data in vec(any::<u8>(), 0..400)) {
        everything(&data);
    }

    #[test]
    fn an_entry_forged_behind_a_right_checksum_is_read_or_refused(
        entry in entry(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut entry = entry;
        for (at, byte) in changes {
            let at = at.index(entry.len());
            entry[at] = byte;
        }
        everything(&entry);
        everything(&entry[HEADER..]);
    }
}

fn everything(data: &[u8]) {
    fuzzing::envelope(data);
    fuzzing::cbor(data);
    fuzzing::json(data);
    fuzzing::raw(data);
    fuzzing::lz4(data);
    #[cfg(feature = "msgpack")]
    fuzzing::msgpack(data);
    #[cfg(feature = "postcard")]
    fuzzing::postcard(data);
    #[cfg(feature = "zstd")]
    fuzzing::zstd(data);
    #[cfg(feature = "deflate")]
    fuzzing::deflate(data);
    #[cfg(feature = "encrypt")]
    fuzzing::encrypt(data);
}

fn encoded<V: Serialize>(stack: &Stack, value: &V, stamps: &[Stamp], cost: u32) -> Vec<u8> {
    let cost = Duration::from_micros(u64::from(cost));
    stack.encode(value, stamps, cost).expect("encodable")
}

fn round_trips<V: Serialize + DeserializeOwned + PartialEq + Debug>(stack: &Stack, value: &V) {
    let entry = encoded(stack, value, &[], 0);
    let envelope = Envelope::parse(&entry).expect("ours");
    let read: V = decode(&envelope, MAX_DECODED).expect("ours");
    assert_eq!(&read, value);
}

fn entry() -> impl Strategy<Value = Vec<u8>> {
    let stack = (structured(), compression()).prop_map(|(codec, compression)| Stack {
        codec,
        compression: compression.into(),
        ..Stack::default()
    });
    let text = prop_oneof![
        Just(None),
        "\\PC{0,20}".prop_map(Some),
        "[a-c]{1,9}".prop_map(|text| Some(text.repeat(1000))),
    ];
    (stack, text, stamps(), any::<u32>())
        .prop_map(|(stack, text, stamps, cost)| encoded(&stack, &text, &stamps, cost))
}

fn compression() -> impl Strategy<Value = Compression> {
    prop::sample::select(Compression::ALL)
}

/// The codecs that take more than strings and bytes.
fn structured() -> impl Strategy<Value = Codec> {
    prop::sample::select(Codec::ALL).prop_filter("takes all types", |codec| *codec != Codec::Raw)
}

fn describes_itself(codec: &Codec) -> bool {
    match codec {
        #[cfg(feature = "postcard")]
        Codec::Postcard => false,
        _ => true,
    }
}

/// Values that codecs cannot write, or write alike, in any combination.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Anything {
    Unit,
    Single(f32),
    Double(f64),
    Maybe(Option<Box<Anything>>),
    Bare(Option<Option<u8>>),
    Number(Option<f64>),
    Nothing(Option<()>),
    Pair(Box<Anything>, Option<Nowhere>),
    List(Vec<Anything>),
    Named {
        inner: Option<Box<Anything>>,
    },
    Keyed(BTreeMap<String, Option<Anything>>),
    #[serde(untagged)]
    Untagged(Vec<Option<bool>>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Nowhere;

fn anything() -> impl Strategy<Value = Anything> {
    let leaf = prop_oneof![
        Just(Anything::Unit),
        any::<f32>().prop_map(Anything::Single),
        any::<f64>().prop_map(Anything::Double),
        any::<Option<Option<u8>>>().prop_map(Anything::Bare),
        any::<Option<f64>>().prop_map(Anything::Number),
        prop_oneof![Just(f64::NAN), Just(f64::INFINITY)]
            .prop_map(|number| Anything::Number(Some(number))),
        any::<Option<()>>().prop_map(Anything::Nothing),
        Just(Anything::Maybe(None)),
        vec(any::<Option<bool>>(), 0..3).prop_map(Anything::Untagged),
    ];
    let tree = leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            inner
                .clone()
                .prop_map(|inner| Anything::Maybe(Some(Box::new(inner)))),
            (inner.clone(), any::<bool>())
                .prop_map(|(a, b)| Anything::Pair(Box::new(a), b.then_some(Nowhere))),
            vec(inner.clone(), 0..3).prop_map(Anything::List),
            prop::option::of(inner.clone()).prop_map(|inner| Anything::Named {
                inner: inner.map(Box::new)
            }),
            btree_map("[a-c]", prop::option::of(inner), 0..3).prop_map(Anything::Keyed),
        ]
    });
    // Depths around the limit of the readers.
    (tree, prop_oneof![Just(0), 30..140_usize]).prop_map(|(tree, depth)| {
        (0..depth).fold(tree, |tree, level| match level % 3 {
            0 => Anything::List([tree].into()),
            1 => Anything::Maybe(Some(Box::new(tree))),
            _ => Anything::Named {
                inner: Some(Box::new(tree)),
            },
        })
    })
}

fn stamps() -> impl Strategy<Value = Vec<Stamp>> {
    let stamp = any::<(u128, u64)>().prop_map(|(tag, generation)| Stamp { tag, generation });
    vec(stamp, 0..4)
}

fn long_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..50),
        (vec(any::<u8>(), 1..50), 1..500_usize).prop_map(|(bytes, times)| bytes.repeat(times)),
    ]
}

fn nested() -> impl Strategy<Value = Nested> {
    let numbers = (
        any::<(i8, u8, i16, u16, i32, u32)>(),
        (extreme_i64(), extreme_u64(), extreme_i128(), extreme_u128()),
        vec(float(), 0..6),
    );
    let texts = (
        prop_oneof![
            "\\PC{0,20}".boxed(),
            "[ab]{5}".prop_map(|t| t.repeat(1100)).boxed()
        ],
        long_bytes().prop_map(Blob),
        vec(any::<u8>(), 0..40),
    );
    let maps = (
        btree_map("\\PC{0,8}", shape(), 0..5),
        btree_map(extreme_i64(), any::<bool>(), 0..5),
        prop::option::of("\\PC{0,8}"),
    );
    (numbers, texts, maps).prop_map(
        |((small, large, floats), (text, blob, bytes), (named, numbered, maybe))| Nested {
            small,
            large,
            floats,
            text,
            blob,
            bytes,
            named,
            numbered,
            maybe,
            unit: (),
        },
    )
}

fn shape() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Unit),
        extreme_i64().prop_map(Shape::New),
        any::<(u8, String, char)>().prop_map(|(a, b, c)| Shape::Tuple(a, b, c)),
    ];
    leaf.prop_recursive(4, 8, 1, |inner| {
        let single = prop_oneof![
            Just(f32::MAX),
            Just(f32::MIN_POSITIVE),
            prop::num::f32::NORMAL
        ];
        (single, float(), prop::option::of(inner)).prop_map(|(a, b, next)| Shape::Struct {
            at: (a, b),
            next: next.map(Box::new),
        })
    })
}

/// Finite floats only, since JSON has no others.
fn float() -> impl Strategy<Value = f64> {
    use prop::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![
        Just(f64::MAX),
        Just(f64::MIN_POSITIVE),
        Just(f64::EPSILON),
        Just(-0.0),
        NORMAL | SUBNORMAL | ZERO | POSITIVE | NEGATIVE,
    ]
}

macro_rules! extreme {
    ($($name:ident $int:ident)*) => {
        $(fn $name() -> impl Strategy<Value = $int> {
            prop_oneof![Just($int::MIN), Just($int::MAX), Just(0), any::<$int>()]
        })*
    };
}

extreme! { extreme_i64 i64 extreme_u64 u64 extreme_i128 i128 extreme_u128 u128 }

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = bytes::Bytes::deserialize(deserializer)?;
        Ok(Blob(bytes.into()))
    }
}
