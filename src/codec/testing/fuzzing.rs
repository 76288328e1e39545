//! Entry points for the fuzzers and for the replay of their corpora. Not part of the public API.
//!
//! Invariant: each function takes any bytes, and panics only if a promise of the stack is broken.
//! `fuzz/fuzz_targets/` and `tests/it/codec/corpora.rs` call them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::decode;
#[cfg(feature = "encrypt")]
use crate::codec::Stamp;
use crate::codec::format::{cbor, json, raw};
use crate::codec::{Codec, Compression, Envelope, Outcome, Stack};
use crate::codec::{compress, envelope as format};

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

/// A payload of MessagePack.
#[cfg(feature = "msgpack")]
pub fn msgpack(data: &[u8]) {
    use crate::codec::format::msgpack::decode;

    stable(Codec::MessagePack, decode::<Typed>(data).ok());
    stable(Codec::MessagePack, decode::<Nested>(data).ok());
    // The type of any value: it has no 128-bit integers, which MessagePack writes as bytes.
    let any = decode::<serde_json::Value>(data).ok();
    stable(Codec::MessagePack, any.filter(|value| !value.is_null()));
}

/// A payload of Postcard.
#[cfg(feature = "postcard")]
pub fn postcard(data: &[u8]) {
    use crate::codec::format::postcard::decode;

    stable(Codec::Postcard, decode::<Typed>(data).ok());
    stable(Codec::Postcard, decode::<Nested>(data).ok());
    stable(
        Codec::Postcard,
        decode::<Vec<Option<Option<()>>>>(data).ok(),
    );
    stable(Codec::Postcard, decode::<(char, String, i64)>(data).ok());
}

/// A payload of LZ4. The same bytes also serve as a payload to compress, as in the following two.
pub fn lz4(data: &[u8]) {
    compressed(Compression::Lz4, data);
}

/// A payload of Zstandard.
#[cfg(feature = "zstd")]
pub fn zstd(data: &[u8]) {
    compressed(Compression::Zstd, data);
}

/// A payload of gzip, or of zlib.
#[cfg(feature = "deflate")]
pub fn deflate(data: &[u8]) {
    compressed(Compression::Gzip, data);
    compressed(Compression::Zlib, data);
}

/// An entry that is sealed, and bytes to seal.
#[cfg(feature = "encrypt")]
pub fn encrypt(data: &[u8]) {
    const AT: &str = "hr:v:{c:k}";
    let keyring = crate::codec::Keyring::new(SEALED_BY, &[7; 32]).expect("an id");
    let stack = Stack {
        codec: Codec::Raw,
        keyring: Some(keyring),
        ..Stack::default()
    };
    let opened = |at: &str, entry: &[u8]| {
        let envelope = Envelope::parse(entry).ok()?;
        stack.decoder(at).decode::<Vec<u8>>(&envelope).ok()
    };
    // Anybody may have written it.
    let mut mended = data.to_vec();
    format::rewrite_checksum(&mut mended);
    opened(AT, data);
    opened(AT, &mended);

    let stamp = Stamp {
        tag: 3,
        generation: 4,
    };
    let sealed = stack.entry(AT, data, &[stamp], Duration::ZERO);
    let sealed = sealed.expect("bytes").0;
    assert_eq!(opened(AT, &sealed).as_deref(), Some(data));
    assert_eq!(opened("hr:v:{c:other}", &sealed), None, "it was moved");
    let sum = data
        .iter()
        .fold(0_usize, |sum, byte| sum * 31 % 65_521 + usize::from(*byte));
    let forged = |at: usize| {
        let mut forged = sealed.clone();
        forged[at] ^= 1 << (sum / sealed.len() % 8);
        format::rewrite_checksum(&mut forged);
        assert_eq!(opened(AT, &forged), None, "byte {at} was changed");
    };
    // The checksum is rewritten, and the deadlines are not sealed: the server fills them in.
    let unsealed = format::CHECKSUM.start..format::DEADLINES.end;
    let head = Envelope::parse(&sealed).expect("ours").head().len();
    let bound = sum % (head - unsealed.len());
    forged(match bound < unsealed.start {
        true => bound,
        false => bound + unsealed.len(),
    });
    forged(head + sum % (sealed.len() - head));
}

/// A type that nests in itself by options, lists and variants.
#[cfg(any(feature = "msgpack", feature = "postcard"))]
#[derive(Serialize, serde::Deserialize)]
enum Nested {
    Leaf,
    Maybe(Option<Box<Nested>>),
    List(Vec<Nested>),
    Named { inner: Box<Nested>, more: () },
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
    let Envelope {
        compression,
        outcome,
        key_id,
        ..
    } = envelope;
    format::describe(&mut again, compression, outcome, key_id);
    format::rewrite_checksum(&mut again);
    again[format::DEADLINES].copy_from_slice(&data[format::DEADLINES]);
    assert_eq!(again, data, "an entry has one spelling");

    let bytes = decode::<Option<Vec<u8>>>(&envelope, CAP);
    if let (Codec::Raw, Ok(Some(bytes))) = (envelope.codec, &bytes) {
        assert!(bytes.len() <= CAP, "over the cap");
    }
    // A custom codec that this stack does not have is foreign, whatever the outcome.
    let foreign = matches!(envelope.codec, Codec::Custom(_)) || envelope.key_id != 0;
    if envelope.outcome == Outcome::None && !foreign {
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
    let write = |value: &V| stack.frozen(0, value, &[], Duration::ZERO);
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

fn compressed(compressor: Compression, data: &[u8]) {
    let Ok(plain) = compress::decompress(compressor, data, CAP) else {
        return packed(compressor, data);
    };
    let plain = plain.expect("a compressor");
    // One byte more tells whether there is more.
    assert!(
        plain.len() <= CAP && plain.capacity() <= CAP + 1,
        "over the cap"
    );
    packed(compressor, &plain);
}

fn packed(compressor: Compression, plain: &[u8]) {
    if let Some(smaller) = compress::compress(&compressor.min_size(0), plain, 0) {
        assert!(smaller.len() < plain.len(), "kept although not smaller");
        let again = compress::decompress(compressor, &smaller, plain.len()).expect("ours");
        assert_eq!(again.expect("a compressor"), plain);
        let mut sealed = format::begin(Codec::Raw, &[], Duration::ZERO, 0, 0).expect("no tags");
        sealed.extend_from_slice(&smaller);
        format::seal(&mut sealed, compressor, Outcome::Value);
        entry(&sealed);
    }
}

/// The id of the key that the seeds of sealed entries name.
#[cfg(feature = "encrypt")]
pub(super) const SEALED_BY: u32 = 7;

/// The most bytes that any input here may decode to.
const CAP: usize = 1 << 20;
