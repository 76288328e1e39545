//! Golden vectors: entries of version 2 as they were when that version was frozen.
//!
//! Invariant: every build reads these entries, and writes all but the compressed ones byte for
//! byte. A change of a vector is a change of the format: it needs a new version byte, not new
//! vectors. The fuzzers' [seeds](super::seeds) start from the same entries.

use std::collections::BTreeMap;

use super::decode;
use crate::codec::*;

#[test]
fn entries_are_written_and_read_as_they_always_were() {
    let lines = include_str!("golden.txt").lines();
    let lines = lines.filter_map(|line| line.rsplit_once(' '));
    let mut vectors: BTreeMap<&str, &str> = lines.collect();
    vectors.retain(|name, _| !name.starts_with('#'));
    for (name, written) in entries() {
        let frozen = vectors.remove(&*name).expect("a vector for each entry");
        // A compressor may choose another block for the same bytes, as long as it can be read.
        if name.contains("compressor=none") {
            assert_eq!(hex(&written), frozen, "{name}");
        }
        let frozen = unhex(frozen);
        let envelope = Envelope::parse(&frozen).expect(&name);
        let ours = Envelope::parse(&written).expect(&name);
        assert_eq!(envelope.codec, ours.codec, "{name}");
        assert_eq!(envelope.compression, ours.compression, "{name}");
        assert_eq!(envelope.outcome, ours.outcome, "{name}");
        assert_eq!(envelope.cost, ours.cost, "{name}");
        assert_eq!(envelope.revision, REVISION, "{name}");
        assert!(envelope.stamps().eq(ours.stamps()), "{name}");
        let read: Option<String> = decode(&envelope, MAX_DECODED).expect(&name);
        assert_eq!(read, decode(&ours, MAX_DECODED).expect(&name), "{name}");
    }
    // Builds without a feature do not write all of them.
    let rest: Vec<_> = vectors.into_keys().collect();
    let all = Codec::ALL.len() == 5 && Compression::ALL.len() == 5;
    assert!(!all || rest.is_empty(), "nothing writes {rest:?}");
}

#[test]
fn a_frozen_entry_that_needs_a_feature_is_foreign_without_it_and_says_which() {
    let lines = include_str!("golden.txt").lines();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let (name, frozen) = line.rsplit_once(' ').expect("a name and an entry");
        let feature = [
            ("codec=messagepack", cfg!(feature = "msgpack"), "`msgpack`"),
            ("codec=postcard", cfg!(feature = "postcard"), "`postcard`"),
            ("compressor=zstd", cfg!(feature = "zstd"), "`zstd`"),
            ("compressor=gzip", cfg!(feature = "deflate"), "`deflate`"),
            ("compressor=zlib", cfg!(feature = "deflate"), "`deflate`"),
        ];
        let missing = |(what, built, _): &(&str, bool, &str)| name.contains(what) && !built;
        let missing = feature.into_iter().find(missing);
        match (Envelope::parse(&unhex(frozen)), missing) {
            (Ok(_), None) => {}
            (Err(Unreadable::Foreign(error)), Some((_, _, feature))) => {
                assert!(error.to_string().contains(feature), "{error}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Run after a change of the format: `cargo test --lib write_golden -- --ignored`.
#[test]
#[ignore = "writes golden.txt"]
fn write_golden() {
    let mut text = "# One entry a line: name, hex. Frozen; see golden.rs.\n".to_owned();
    for (name, entry) in entries() {
        text.push_str(&format!("{name} {}\n", hex(&entry)));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/codec/testing/golden.txt");
    std::fs::write(path, text).expect("writable");
}

/// One entry for each codec, compressor, outcome and number of tags.
pub(in crate::codec) fn entries() -> Vec<(String, Vec<u8>)> {
    let short = Some("hedge row \u{1f33f}".to_owned());
    let long = Some("hedge ".repeat(1000));
    let stamps = [
        Stamp {
            tag: 0x0011_2233_4455_6677_0123_4567_89ab_cdef,
            generation: 1,
        },
        Stamp {
            tag: u128::MAX,
            generation: 0xfedc_ba98_7654_3210,
        },
    ];
    let mut entries = Vec::new();
    for &codec in Codec::ALL {
        let values = Compression::ALL.iter().map(|&compressor| match compressor {
            Compression::None => (compressor, "value", &short),
            _ => (compressor, "value", &long),
        });
        for (compressor, outcome, value) in values.chain([(Compression::None, "none", &None)]) {
            for tags in [0, 2] {
                let stack = Stack {
                    codec,
                    compression: compressor.into(),
                    ..Stack::default()
                };
                let kind = format!("compressor={compressor:?} outcome={outcome}");
                let cost = Duration::from_micros(if tags == 0 { 0 } else { 1_234_567 });
                let entry = stack.frozen(REVISION, value, &stamps[..tags], cost);
                let name = format!("codec={codec:?} {kind} tags={tags}").to_lowercase();
                entries.push((name, entry.expect("encodable")));
            }
        }
    }
    entries
}

const REVISION: u64 = 0x0f1e_2d3c_4b5a_6978;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
    (0..text.len()).step_by(2).map(byte).collect()
}
