//! Entry points for the fuzzers and for the replay of their corpora. Not part of the public API.
//!
//! Invariant: each function takes any bytes, and panics only if a promise of the stack is broken.
//! `fuzz/fuzz_targets/` and `tests/it/fuzz_corpora.rs` call them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::compress::lz4;
use crate::codec::format::{cbor, json, raw};
use crate::codec::{Codec, Compression, Envelope, Outcome, Stack};
use crate::codec::{decode, envelope as format};

/// Parses and decodes an entry as found in Redis, and writes it again byte for byte.
pub fn envelope(data: &[u8]) {
    entry(data);
    // Most inputs fail at the checksum. With a right one, the code behind it is reached as well.
    let mut mended = data.to_vec();
    format::rewrite_checksum(&mut mended);
    entry(&mended);
}

/// A payload of CBOR.
pub fn cbor(data: &[u8]) {
    stable(Codec::Cbor, cbor::decode::<ciborium::Value>(data).ok());
    stable(Codec::Cbor, cbor::decode::<Typed>(data).ok());
}

/// A payload of JSON.
pub fn json(data: &[u8]) {
    stable(Codec::Json, json::decode::<serde_json::Value>(data).ok());
    stable(Codec::Json, json::decode::<Typed>(data).ok());
}

/// A payload of raw bytes.
pub fn raw(data: &[u8]) {
    let bytes: Vec<u8> = raw::decode(data).expect("all bytes are bytes");
    assert_eq!(bytes, data);
    let text = raw::decode::<String>(data).ok();
    assert_eq!(text.as_deref(), std::str::from_utf8(data).ok());
    stable(Codec::Raw, text);
    stable(Codec::Raw, Some(bytes));
}

/// A compressed payload. The same bytes also serve as a payload to compress.
pub fn lz4(data: &[u8]) {
    let Some(plain) = lz4::decompress(data, CAP).ok() else {
        return packed(data);
    };
    assert!(
        plain.len() <= CAP && plain.capacity() <= CAP,
        "over the cap"
    );
    packed(&plain);
}

/// A type that has most kinds of serde's data model.
type Typed = BTreeMap<String, Vec<Option<(i128, f64, u8, String, Option<bool>)>>>;

fn entry(data: &[u8]) {
    let Ok(envelope) = Envelope::parse(data) else {
        return;
    };
    let stamps: Vec<_> = envelope.stamps().collect();
    let revision = envelope.revision;
    let mut again = format::begin(envelope.codec, &stamps, envelope.cost, revision, 0)
        .expect("as many tags as were read");
    again.extend_from_slice(envelope.payload());
    format::seal(&mut again, envelope.compression, envelope.outcome);
    again[format::DEADLINES].copy_from_slice(&data[format::DEADLINES]);
    assert_eq!(again, data, "an entry has one spelling");

    let bytes = decode::<Option<Vec<u8>>>(&envelope, CAP);
    if let (Codec::Raw, Ok(Some(bytes))) = (envelope.codec, &bytes) {
        assert!(bytes.len() <= CAP, "over the cap");
    }
    if envelope.outcome == Outcome::None {
        assert_eq!(bytes.expect("none fits an option"), None);
    }
    stable(
        envelope.codec,
        decode::<Option<String>>(&envelope, CAP).ok(),
    );
    stable(envelope.codec, decode::<Typed>(&envelope, CAP).ok());
}

/// Checks that a value that was read can be written and read again, and is then the same.
fn stable<V: Serialize + DeserializeOwned>(codec: Codec, value: Option<V>) {
    let Some(value) = value else { return };
    let stack = Stack {
        codec,
        ..Stack::default()
    };
    let write = |value: &V| stack.encode_as(0, value, &[], Duration::ZERO);
    let first = write(&value).expect("what was read can be written");
    let parsed = Envelope::parse(&first).expect("what was written can be parsed");
    let again: V = decode(&parsed, stack.max_decoded).expect("what was written can be read");
    // Compares bytes, not values, since NaN is not equal to itself.
    assert_eq!(
        write(&again).expect("as before"),
        first,
        "the value changed"
    );
}

fn packed(plain: &[u8]) {
    if let Some(smaller) = lz4::compress(plain, 0) {
        assert!(smaller.len() < plain.len(), "kept although not smaller");
        let again = lz4::decompress(&smaller, plain.len()).expect("ours");
        assert_eq!(again, plain);
        let mut sealed = format::begin(Codec::Raw, &[], Duration::ZERO, 0, 0).expect("no tags");
        sealed.extend_from_slice(&smaller);
        format::seal(&mut sealed, Compression::Lz4, Outcome::Value);
        entry(&sealed);
    }
}

/// The most bytes that any input here may decode to.
const CAP: usize = 1 << 20;
