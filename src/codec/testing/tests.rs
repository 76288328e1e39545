//! Tests of the stack as a whole: the promises that the cache relies on.

use std::collections::BTreeMap;

use super::decode;
use crate::codec::compress::lz4;
use crate::codec::envelope::{HEADER, VERSION};
use crate::codec::*;
use crate::error::Error;

fn encoded<V: Serialize + ?Sized>(codec: Codec, value: &V) -> Vec<u8> {
    let stack = Stack {
        codec,
        ..Stack::default()
    };
    let entry = stack.encode(value, &[], Duration::ZERO);
    entry.expect("encodable")
}

fn decoded<V: DeserializeOwned>(entry: &[u8]) -> Result<V, Unreadable> {
    decode(&Envelope::parse(entry)?, MAX_DECODED)
}

fn foreign<V: DeserializeOwned>(entry: &[u8], max_decoded: usize) -> Error {
    let envelope = Envelope::parse(entry).expect("whole");
    match decode::<V>(&envelope, max_decoded) {
        Err(Unreadable::Foreign(error)) => error,
        Err(Unreadable::Damaged(error)) => panic!("called damaged: {error}"),
        Ok(_) => panic!("was read"),
    }
}

#[test]
fn the_entry_names_how_it_is_read() {
    for &codec in Codec::ALL {
        for text in ["short".to_owned(), "long ".repeat(2000)] {
            let entry = encoded(codec, &text);
            let envelope = Envelope::parse(&entry).expect("ours");
            assert_eq!(envelope.codec, codec);
            assert_eq!(
                decode::<String>(&envelope, MAX_DECODED).expect("ours"),
                text
            );
        }
    }
}

#[test]
fn compression_is_tried_from_four_kibibytes_and_kept_when_smaller() {
    let compression = |codec, value: &[u8]| {
        let entry = encoded(codec, value);
        Envelope::parse(&entry).expect("ours").compression
    };
    assert_eq!(compression(Codec::Raw, &[7; 4095]), Compression::None);
    assert_eq!(compression(Codec::Raw, &[7; 4096]), Compression::Lz4);
    let noise: Vec<u8> = (0..4096_u64)
        .map(|n| xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()) as u8)
        .collect();
    assert_eq!(compression(Codec::Raw, &noise), Compression::None);
    let plain = Stack {
        compression: Compression::None.into(),
        ..Stack::default()
    };
    let entry = plain
        .encode(&"7".repeat(9999), &[], Duration::ZERO)
        .expect("encodable");
    let envelope = Envelope::parse(&entry).expect("ours");
    assert_eq!(envelope.compression, Compression::None);
}

#[test]
fn no_value_is_an_outcome_without_payload_in_every_codec() {
    for &codec in Codec::ALL {
        let entry = encoded(codec, &None::<String>);
        let envelope = Envelope::parse(&entry).expect("ours");
        assert_eq!(envelope.outcome, Outcome::None);
        assert_eq!(envelope.payload(), b"");
        assert_eq!(decode::<Option<String>>(&envelope, 0).expect("ours"), None);
        let error = foreign::<String>(&entry, 0);
        assert_eq!(error.kind(), ErrorKind::Decode);
    }
}

#[test]
fn some_of_none_is_not_none_at_the_top_and_refused_below() {
    for codec in [Codec::Cbor, Codec::Json] {
        let round = |value: Option<Option<Option<u8>>>| {
            decoded::<Option<Option<Option<u8>>>>(&encoded(codec, &value)).expect("ours")
        };
        assert_eq!(round(None), None);
        assert_eq!(round(Some(None)), Some(None));
        assert_eq!(round(Some(Some(Some(1)))), Some(Some(Some(1))));
        for how in [
            refused(codec, &Some(Some(None::<u8>))),
            refused(codec, &vec![Some(None::<u8>)]),
            refused(codec, &[Some(())]),
            refused(codec, &BTreeMap::from([(1, Some(serde_json::Value::Null))])),
        ] {
            assert!(how.contains("read back as none"), "{how}");
        }
        // These values hold no such option.
        encoded(codec, &(None::<u8>, (), Some([(); 1])));
    }
}

fn refused<V: Serialize>(codec: Codec, value: &V) -> String {
    let stack = Stack {
        codec,
        ..Stack::default()
    };
    let error = stack.encode(value, &[], Duration::ZERO);
    let error = error.expect_err("could not be read back");
    assert_eq!(error.kind(), ErrorKind::Encode);
    error.to_string()
}

#[test]
fn numbers_that_json_has_not_are_refused_by_it_and_kept_by_cbor() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for how in [
            refused(Codec::Json, &number),
            refused(Codec::Json, &(number as f32)),
            refused(Codec::Json, &[Some(number)]),
            refused(Codec::Json, &Some(Some(number))),
        ] {
            assert!(how.contains("NaN"), "{how}");
        }
        let read: [Option<f64>; 1] = decoded(&encoded(Codec::Cbor, &[Some(number)])).expect("ours");
        assert_eq!(read[0].map(f64::to_bits), Some(number.to_bits()));
    }
}

/// Nested variants, of one level (`Lined`) or of two (`Twig`).
#[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
enum Nest {
    Egg,
    Lined(Box<Nest>),
    Twig { inner: Box<Nest> },
}

#[test]
fn what_is_nested_too_deep_to_be_read_back_is_refused() {
    let lined = |depth| (1..depth).fold(Nest::Egg, |nest, _| Nest::Lined(Box::new(nest)));
    // Each twig counts as two levels: the variant, and its fields.
    let twigs = |number| {
        let twig = |nest, _| Nest::Twig {
            inner: Box::new(nest),
        };
        (0..number).fold(Nest::Egg, twig)
    };
    for (codec, deepest) in [
        (Codec::Cbor, 128),
        (Codec::Json, 127),
        #[cfg(feature = "msgpack")]
        (Codec::MessagePack, 128),
        #[cfg(feature = "postcard")]
        (Codec::Postcard, 128),
    ] {
        for nest in [lined(deepest), twigs((deepest - 1) / 2)] {
            let read = decoded::<Nest>(&encoded(codec, &nest));
            assert_eq!(read.expect("as deep as it goes"), nest, "{codec:?}");
        }
        for nest in [lined(deepest + 1), twigs(deepest / 2 + 1)] {
            assert!(refused(codec, &nest).contains("too deep"), "{codec:?}");
        }
    }
}

#[test]
fn long_strings_and_bytes_are_read_by_types_that_borrow_them() {
    #[derive(Debug, PartialEq)]
    struct Borrowed(usize);
    impl<'de> serde::Deserialize<'de> for Borrowed {
        fn deserialize<D: serde::Deserializer<'de>>(
            deserializer: D,
        ) -> std::result::Result<Self, D::Error> {
            deserializer.deserialize_str(Borrowed(0))
        }
    }
    impl serde::de::Visitor<'_> for Borrowed {
        type Value = Self;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string")
        }
        fn visit_str<E>(self, text: &str) -> std::result::Result<Self, E> {
            Ok(Borrowed(text.len()))
        }
    }
    for &codec in Codec::ALL {
        let entry = encoded(codec, &"x".repeat(5000));
        assert_eq!(decoded::<Borrowed>(&entry).expect("ours"), Borrowed(5000));
    }
    let list = [Some("x".repeat(5000))];
    let read = decoded::<[Option<Borrowed>; 1]>(&encoded(Codec::Cbor, &list));
    assert_eq!(read.expect("ours"), [Some(Borrowed(5000))]);
}

#[test]
fn tags_of_cbor_nest_as_deep_as_lists() {
    use ciborium::Value;
    let tagged = |depth| {
        let tag = |value, _| Value::Tag(32, Box::new(value));
        (0..depth).fold(Value::Bool(true), tag)
    };
    let read = decoded::<Value>(&encoded(Codec::Cbor, &tagged(128)));
    assert_eq!(read.expect("as deep as it goes"), tagged(128));
    assert!(refused(Codec::Cbor, &tagged(129)).contains("too deep"));
}

#[test]
fn an_entry_that_would_take_too_much_memory_is_foreign() {
    #[derive(serde::Deserialize)]
    struct Fat {
        #[serde(skip)]
        _padding: [u64; 32],
    }
    /// Drops the items that it reads, so that the test itself takes no memory for them.
    struct Sieve;
    impl<'de> serde::Deserialize<'de> for Sieve {
        fn deserialize<D: serde::Deserializer<'de>>(
            deserializer: D,
        ) -> std::result::Result<Self, D::Error> {
            deserializer.deserialize_seq(Sieve)
        }
    }
    impl<'de> serde::de::Visitor<'de> for Sieve {
        type Value = Self;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut items: A,
        ) -> std::result::Result<Self, A::Error> {
            while items.next_element::<Fat>()?.is_some() {}
            Ok(self)
        }
    }
    let most = budget::MOST_BUILT / size_of::<Fat>() + 1;
    let most = u32::try_from(most).expect("a few millions");
    let cbor = |items: u32| {
        let mut payload = vec![0x9a];
        payload.extend_from_slice(&items.to_be_bytes());
        payload.resize(5 + items as usize, 0xa0);
        payload
    };
    let json = |items: u32| format!("[{}{{}}]", "{},".repeat(items as usize - 1)).into_bytes();
    #[cfg(feature = "msgpack")]
    let msgpack = |items: u32| {
        let head = [&[0xdd][..], &items.to_be_bytes()].concat();
        [head, vec![0x80; items as usize]].concat()
    };
    for (codec, bomb, usual) in [
        (Codec::Cbor, cbor(most), cbor(9999)),
        (Codec::Json, json(most), json(9999)),
        #[cfg(feature = "msgpack")]
        (Codec::MessagePack, msgpack(most), msgpack(9999)),
    ] {
        let entry = |payload: &[u8]| {
            let mut entry = envelope::begin(codec, &[], Duration::ZERO, 0, 0).expect("no tags");
            let start = entry.len();
            entry.extend_from_slice(payload);
            let mut entry = lz4::compress(&entry, start).expect("compressible");
            envelope::seal(&mut entry, Compression::Lz4, Outcome::Value);
            entry
        };
        assert!(decoded::<Sieve>(&entry(&usual)).is_ok());
        let bomb = entry(&bomb);
        assert!(bomb.len() < 100 << 10, "{} bytes", bomb.len());
        let error = foreign::<Sieve>(&bomb, MAX_DECODED);
        assert!(error.to_string().contains("too much memory"), "{error}");
    }
    // With Postcard, such an item takes no byte at all.
    #[cfg(feature = "postcard")]
    for (claimed, is_read) in [
        (&[0xe7, 0x07][..], true),
        (&[0xff, 0xff, 0xff, 0x7f], false),
    ] {
        let codec = Codec::Postcard;
        let mut entry = envelope::begin(codec, &[], Duration::ZERO, 0, 0).expect("no tags");
        entry.extend_from_slice(claimed);
        envelope::seal(&mut entry, Compression::None, Outcome::Value);
        match is_read {
            true => drop(decoded::<Sieve>(&entry).expect("999 items")),
            false => {
                let error = foreign::<Sieve>(&entry, MAX_DECODED);
                assert!(error.to_string().contains("too much memory"), "{error}");
            }
        }
    }
}

#[test]
fn a_list_of_bytes_is_small_only_as_bytes() {
    let noise: Vec<u8> = (0..100_000_u64)
        .map(|n| xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()) as u8)
        .collect();
    let length = |entry: Vec<u8>| entry.len();
    assert!(length(encoded(Codec::Cbor, &noise)) > 180_000, "documented");
    let bytes = bytes::Bytes::from(noise.clone());
    assert!(length(encoded(Codec::Cbor, &bytes)) < 100_100);
    assert!(length(encoded(Codec::Raw, &noise)) < 100_100);
    // So a change of the type between the two needs no change of the version.
    let read: Vec<u8> = decoded(&encoded(Codec::Cbor, &bytes)).expect("a list of bytes");
    assert_eq!(read, noise);
    let read: bytes::Bytes = decoded(&encoded(Codec::Cbor, &noise)).expect("bytes");
    assert_eq!(read, bytes);
}

#[test]
fn a_type_that_became_optional_reads_its_old_entries() {
    for &codec in Codec::ALL {
        let read = decoded::<Option<String>>(&encoded(codec, "old"));
        assert_eq!(read.expect("ours"), Some("old".to_owned()));
    }
}

#[cfg(feature = "msgpack")]
#[test]
fn messagepack_keeps_what_cbor_keeps() {
    let codec = Codec::MessagePack;
    for number in [f64::NAN, f64::INFINITY, -0.0] {
        let read: [Option<f64>; 1] = decoded(&encoded(codec, &[Some(number)])).expect("ours");
        assert_eq!(read[0].map(f64::to_bits), Some(number.to_bits()));
    }
    for value in [None, Some(None), Some(Some(7_u8))] {
        let read = decoded::<Option<Option<u8>>>(&encoded(codec, &value));
        assert_eq!(read.expect("ours"), value);
    }
    for how in [
        refused(codec, &Some(Some(None::<u8>))),
        refused(codec, &[Some(())]),
        refused(codec, &vec![Some(serde_json::Value::Null)]),
    ] {
        assert!(how.contains("read back as none"), "{how}");
    }
    foreign::<u8>(&encoded(codec, "text"), MAX_DECODED);
    let mut entry = encoded(codec, &7_u8);
    entry.push(1);
    envelope::rewrite_checksum(&mut entry);
    let damaged = decoded::<u8>(&entry);
    assert!(matches!(damaged, Err(Unreadable::Damaged(_))));
}

#[cfg(feature = "postcard")]
#[test]
fn what_postcard_cannot_read_is_foreign_however_it_came_about() {
    let codec = Codec::Postcard;
    foreign::<u8>(&encoded(codec, "text"), MAX_DECODED);
    foreign::<serde_json::Value>(&encoded(codec, &7_u8), MAX_DECODED);
    let mut entry = encoded(codec, &7_u8);
    entry.push(1);
    envelope::rewrite_checksum(&mut entry);
    foreign::<u8>(&entry, MAX_DECODED);
    for value in [None, Some(None), Some(Some(None)), Some(Some(Some(7_u8)))] {
        let read = decoded::<Option<Option<Option<u8>>>>(&encoded(codec, &value));
        assert_eq!(read.expect("ours"), value);
    }
}

#[test]
fn an_entry_of_another_type_is_foreign_and_one_of_no_type_is_damaged() {
    for codec in [Codec::Cbor, Codec::Json] {
        // A tuple that has become shorter is foreign too, although bytes are left over then.
        foreign::<(u8, u8)>(&encoded(codec, &(1_u8, 2_u8, 3_u8)), MAX_DECODED);
        foreign::<u8>(&encoded(codec, "text"), MAX_DECODED);
        let mut entry = encoded(codec, &7_u8);
        entry.push(b'1');
        entry.push(b',');
        envelope::rewrite_checksum(&mut entry);
        let damaged = decoded::<u8>(&entry);
        assert!(matches!(damaged, Err(Unreadable::Damaged(_))), "{codec:?}");
    }
    foreign::<u64>(&encoded(Codec::Raw, "text"), MAX_DECODED);
    let mut cut = encoded(Codec::Raw, &"7".repeat(9999));
    cut.pop();
    envelope::rewrite_checksum(&mut cut);
    let damaged = decoded::<String>(&cut);
    assert!(matches!(damaged, Err(Unreadable::Damaged(_))), "lz4");
}

#[test]
fn each_flipped_bit_and_each_cut_of_an_entry_is_noticed_and_survived() {
    type Value = BTreeMap<String, Vec<Option<(i64, String)>>>;
    let value = |rows: i64| -> Value {
        let row = |n| (n % 3 > 0).then(|| (n * n, format!("row {n}")));
        BTreeMap::from([("rows".to_owned(), (0..rows).map(row).collect())])
    };
    let structured = |codec: &&Codec| **codec != Codec::Raw;
    for &codec in Codec::ALL.iter().filter(structured) {
        for &compressor in Compression::ALL {
            let stack = Stack {
                codec,
                compression: compressor.min_size(0).keep_always(),
                max_decoded: 1 << 16,
                ..Stack::default()
            };
            let entry = stack.encode(&value(12), &[], Duration::ZERO);
            let entry = entry.expect("encodable");
            for at in 0..entry.len() {
                assert!(decoded::<Value>(&entry[..at]).is_err(), "cut at {at}");
                let mut cut = entry[..at].to_vec();
                envelope::rewrite_checksum(&mut cut);
                drop(decoded::<Value>(&cut));
                for bit in 0..8 {
                    let mut flipped = entry.clone();
                    flipped[at] ^= 1 << bit;
                    let read = decoded::<Value>(&flipped).is_ok();
                    assert_eq!(read, envelope::DEADLINES.contains(&at), "{at}");
                    // What an attacker can do, who computes a right checksum.
                    envelope::rewrite_checksum(&mut flipped);
                    drop(decoded::<Value>(&flipped));
                    drop(decoded::<serde_json::Value>(&flipped));
                }
            }
        }
    }
}

#[test]
fn a_failure_is_foreign_until_a_build_reads_such() {
    let mut entry = encoded(Codec::Cbor, "text");
    envelope::seal(&mut entry, Compression::None, Outcome::Failed);
    foreign::<String>(&entry, MAX_DECODED);
    foreign::<Option<String>>(&entry, MAX_DECODED);
}

#[test]
fn an_entry_carries_at_most_forty_bytes_and_twenty_four_for_each_tag() {
    let stamp = Stamp {
        tag: 1,
        generation: 1,
    };
    for tags in [0, 1, 3] {
        let entry = Stack::default().encode(&None::<u8>, &vec![stamp; tags], Duration::ZERO);
        let length = entry.expect("encodable").len();
        assert!(length <= 40 + 24 * tags, "{length} bytes for {tags} tags");
    }
}

#[test]
fn two_entries_of_one_value_are_told_apart_by_their_headers() {
    let head = || encoded(Codec::Cbor, "text")[..HEADER].to_vec();
    assert_ne!(head(), head());
}

#[test]
fn a_value_over_the_limit_is_refused_while_it_is_written() {
    for &codec in Codec::ALL {
        let text = "7".repeat(1000);
        let payload = encoded(codec, &text).len() - HEADER;
        let limited = |max_decoded| Stack {
            codec,
            max_decoded,
            ..Stack::default()
        };
        assert!(limited(payload).encode(&text, &[], Duration::ZERO).is_ok());
        let stack = limited(payload - 1);
        let error = stack
            .encode(&text, &[], Duration::ZERO)
            .expect_err("one over");
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    }
}

#[test]
fn an_entry_over_the_limit_is_refused_compressed_or_not() {
    for value in [vec![7_u8; 4000], vec![7_u8; 5000]] {
        let entry = encoded(Codec::Raw, &value);
        let envelope = Envelope::parse(&entry).expect("ours");
        assert!(decode::<Vec<u8>>(&envelope, value.len()).is_ok());
        let error = foreign::<Vec<u8>>(&entry, value.len() - 1);
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    }
}

/// Runs in a separate process, since memory that other tests map would count as well.
#[cfg(target_os = "linux")]
#[test]
fn claimed_lengths_are_not_mapped() {
    let output = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "codec::testing::tests::claims_of_4_gib_are_not_mapped",
            "--ignored",
        ])
        .output()
        .expect("runs");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && report.contains("1 passed"),
        "{report}"
    );
}

/// No step of reading may allocate for a claim of 4 GiB in front of a few bytes.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "run alone, by the test above"]
fn claims_of_4_gib_are_not_mapped() {
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("linux");
        let line = status.lines().find(|line| line.starts_with("VmPeak:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.expect("VmPeak in kB").parse().expect("a number")
    }
    let hostile = |format: u8, payload: &[u8]| {
        let mut entry = vec![0; HEADER];
        (entry[0], entry[1]) = (VERSION, format);
        entry.extend_from_slice(payload);
        envelope::rewrite_checksum(&mut entry);
        entry
    };
    let before = peak();
    for entry in [
        hostile(0x01, &[0xff; 9]),
        hostile(0x21, &[0xff, 0xff, 0xff, 0xff, 0x1f, 0x61, 0x01, 0x00]),
        hostile(0x00, &[0x9b, 0, 0, 0, 1, 0, 0, 0, 0, 0x61]),
        hostile(0x00, &[0x7b, 0, 0, 0, 1, 0, 0, 0, 0, 0x61]),
        hostile(0x00, &[0x5b, 0, 0, 0, 1, 0, 0, 0, 0, 0x61]),
        // MessagePack, then Postcard, then zstd with a frame and a window of 4 GiB.
        #[cfg(feature = "msgpack")]
        hostile(0x30, &[0xdd, 0xff, 0xff, 0xff, 0xff, 0x61]),
        #[cfg(feature = "msgpack")]
        hostile(0x30, &[0xdb, 0xff, 0xff, 0xff, 0xff, 0x61]),
        #[cfg(feature = "msgpack")]
        hostile(0x30, &[0xc6, 0xff, 0xff, 0xff, 0xff, 0x61]),
        #[cfg(feature = "postcard")]
        hostile(0x40, &[0xff, 0xff, 0xff, 0xff, 0x0f, 0x61]),
        #[cfg(feature = "zstd")]
        hostile(
            0x22,
            b"\x28\xb5\x2f\xfd\xe0\0\0\0\0\x01\0\0\0\x23\x03\0\x07",
        ),
        #[cfg(feature = "zstd")]
        hostile(
            0x22,
            b"\x28\xb5\x2f\xfd\xc0\xb0\x64\0\0\0\0\0\0\0\x23\x03\0\x00",
        ),
    ] {
        let envelope = Envelope::parse(&entry).expect("well-formed envelope");
        assert!(decode::<Vec<u8>>(&envelope, MAX_DECODED).is_err());
        assert!(decode::<String>(&envelope, MAX_DECODED).is_err());
        assert!(decode::<ciborium::Value>(&envelope, MAX_DECODED).is_err());
    }
    let grown = peak() - before;
    assert!(grown < 1 << 20, "{grown} KiB were mapped");
}

#[test]
fn errors_of_encoding_do_not_quote_the_value() {
    struct Stubborn;
    impl Serialize for Stubborn {
        fn serialize<S: serde::Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("canary"))
        }
    }
    for &codec in Codec::ALL {
        let stack = Stack {
            codec,
            ..Stack::default()
        };
        let error = stack
            .encode(&Stubborn, &[], Duration::ZERO)
            .expect_err("stubborn");
        assert_eq!(error.kind(), ErrorKind::Encode);
        assert!(
            !format!("{error} {error:?}").contains("canary"),
            "{error:?}"
        );
    }
}
