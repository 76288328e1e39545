//! What each codec and each compressor takes, in time and in bytes, for lists of real records: the
//! crate's own stack from a value to the entry in Redis and back, without Redis.
//!
//! Invariant: speeds are given in MB of the same records as JSON, whatever the codec makes of them.
//! So two speeds for one payload compare two times, also with those of other programs that read the
//! payloads which this one writes to `target/bench/payload-*.json` (`benches/peers/codecs.py`).

mod measure;
mod records;

use std::path::PathBuf;

use bytes::Bytes;
use hedgerow::{Codec, Compression, CompressionOptions, measuring};
use serde::Serialize;

use measure::{Spread, timed};
use records::{City, PAYLOADS, cities};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One codec with one compressor, on one payload.
#[derive(Serialize)]
struct Row {
    payload: &'static str,
    codec: &'static str,
    compressor: &'static str,
    level: Option<i32>,
    /// The payload as JSON, without blanks.
    json_bytes: usize,
    /// The payload in this codec.
    encoded_bytes: usize,
    /// The same after compression.
    compressed_bytes: usize,
    /// The entry in Redis: that with its header.
    stored_bytes: usize,
    /// Of JSON, in MB (10^6 bytes) a second.
    encode_mb_s: Spread,
    decode_mb_s: Spread,
}

const CODECS: [(&str, Codec); 4] = [
    ("cbor", Codec::Cbor),
    ("json", Codec::Json),
    ("msgpack", Codec::MessagePack),
    ("postcard", Codec::Postcard),
];

/// Levels are the defaults, which are those of django-redis, except for gzip.
const COMPRESSORS: [(&str, Compression, Option<i32>); 6] = [
    ("none", Compression::None, None),
    ("lz4", Compression::Lz4, None),
    ("zstd", Compression::Zstd, None),
    ("gzip", Compression::Gzip, None),
    ("gzip", Compression::Gzip, Some(9)),
    ("zlib", Compression::Zlib, None),
];

fn main() -> Result<()> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&folder)?;
    let mut rows = Vec::new();
    for payload in PAYLOADS {
        let cities = cities(payload.bytes)?;
        let json = serde_json::to_vec(&cities)?;
        std::fs::write(folder.join(payload.file_name()), &json)?;
        for (compressor, compression, level) in COMPRESSORS {
            let options = options(compression, level);
            let mut push = |codec, measured: Measured| {
                let row = Row {
                    payload: payload.name,
                    codec,
                    compressor,
                    level,
                    json_bytes: json.len(),
                    encoded_bytes: measured.encoded,
                    compressed_bytes: measured.compressed,
                    stored_bytes: measured.stored,
                    encode_mb_s: measured.encode.map(|time| speed(json.len(), time)),
                    decode_mb_s: measured.decode.map(|time| speed(json.len(), time)),
                };
                println!(
                    "{:>7} {codec:>8} {compressor:>4}: {:>9} bytes, {:>7.1} and {:>7.1} MB/s",
                    row.payload, row.stored_bytes, row.encode_mb_s.median, row.decode_mb_s.median
                );
                rows.push(row);
            };
            // One level is enough to show what a level does.
            if level.is_none() {
                for (name, codec) in CODECS {
                    push(name, measured::<Vec<City>>(codec, options, &cities)?);
                }
            }
            // The compressor alone: bytes that need no codec.
            let text = Bytes::from(json.clone());
            push("raw", measured::<Bytes>(Codec::Raw, options, &text)?);
        }
    }
    let path = folder.join("codecs.json");
    std::fs::write(&path, serde_json::to_string_pretty(&rows)?)?;
    println!("written to target/bench/codecs.json");
    Ok(())
}

/// Small values are compressed, too, which a cache does not do by default.
fn options(compression: Compression, level: Option<i32>) -> CompressionOptions {
    let options = compression.min_size(0);
    match level {
        Some(level) => options.level(level),
        None => options,
    }
}

struct Measured {
    encoded: usize,
    compressed: usize,
    stored: usize,
    /// In seconds.
    encode: Spread,
    decode: Spread,
}

fn measured<V>(codec: Codec, compression: CompressionOptions, value: &V) -> Result<Measured>
where
    V: Serialize + serde::de::DeserializeOwned + PartialEq,
{
    let plain = measuring::encode(codec, options(Compression::None, None), value)?;
    let entry = measuring::encode(codec, compression, value)?;
    if measuring::decode::<V>(&entry)? != *value {
        return Err(format!("{codec:?} with {compression:?} changed the value").into());
    }
    // Nothing is left of no bytes but the header.
    let header = measuring::encode(Codec::Raw, compression, &Bytes::new())?.len();
    Ok(Measured {
        encoded: plain.len() - header,
        compressed: entry.len() - header,
        stored: entry.len(),
        encode: timed(|| measuring::encode(codec, compression, value)),
        decode: timed(|| measuring::decode::<V>(&entry)),
    })
}

fn speed(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / 1e6 / seconds
}
