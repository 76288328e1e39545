//! What the benchmarks have measured, as their JSON has it.

use serde::Deserialize;

/// A row of `benches/side_by_side`.
#[derive(Debug, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Operations a second, ours first.
    pub(crate) rates: Option<(f64, f64)>,
    pub(crate) target: Option<Target>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    /// How far `value` is on the good side of this: 1 is just reached.
    pub(crate) fn reached(self, value: f64) -> f64 {
        match self {
            Self::AtLeast(least) => value / least,
            Self::AtMost(most) => most / value.max(f64::MIN_POSITIVE),
        }
    }

    pub(crate) fn said(self) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {least}"),
            Self::AtMost(most) => format!("≤ {most}"),
        }
    }
}

/// A row of `benches/codecs`, or of `benches/peers/codecs.py`.
#[derive(Debug, Deserialize)]
pub(crate) struct CodecRow {
    pub(crate) payload: String,
    pub(crate) codec: String,
    pub(crate) compressor: String,
    pub(crate) level: Option<i32>,
    pub(crate) encoded_bytes: usize,
    pub(crate) compressed_bytes: usize,
    pub(crate) stored_bytes: usize,
    pub(crate) encode_mb_s: Spread,
    pub(crate) decode_mb_s: Spread,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl CodecRow {
    /// Which part of the encoded bytes the compressor saves, in percent.
    pub(crate) fn saved(&self) -> f64 {
        100.0 - 100.0 * self.compressed_bytes as f64 / self.encoded_bytes as f64
    }

    pub(crate) fn is(&self, payload: &str, codec: &str, compressor: &str) -> bool {
        self.payload == payload && self.codec == codec && self.compressor == compressor
    }
}

/// One of ours and one of theirs that do the same for their users, and how much faster ours must
/// be.
pub(crate) struct Pair {
    pub(crate) name: &'static str,
    /// The codec and the compressor.
    pub(crate) ours: (&'static str, &'static str),
    pub(crate) level: Option<i32>,
    pub(crate) theirs: (&'static str, &'static str),
    pub(crate) target: f64,
}

impl Pair {
    pub(crate) fn find<'r>(
        &self,
        payload: &str,
        ours: &'r [CodecRow],
        theirs: &'r [CodecRow],
    ) -> Option<(&'r CodecRow, &'r CodecRow)> {
        let (codec, compressor) = self.ours;
        let ours = ours
            .iter()
            .find(|row| row.is(payload, codec, compressor) && row.level == self.level)?;
        let (codec, compressor) = self.theirs;
        let theirs = theirs.iter().find(|row| row.is(payload, codec, compressor));
        Some((ours, theirs?))
    }
}

/// Serializers are interpreted in part there, and compressors are C on both sides.
pub(crate) const PAIRS: [Pair; 8] = [
    pair(
        "CBOR / pickle",
        ("cbor", "none"),
        None,
        ("pickle", "none"),
        3.0,
    ),
    pair(
        "Postcard / pickle",
        ("postcard", "none"),
        None,
        ("pickle", "none"),
        3.0,
    ),
    pair("JSON / JSON", ("json", "none"), None, ("json", "none"), 3.0),
    pair(
        "MessagePack / msgpack",
        ("msgpack", "none"),
        None,
        ("msgpack", "none"),
        3.0,
    ),
    pair("lz4 / lz4", ("raw", "lz4"), None, ("raw", "lz4"), 1.0),
    pair(
        "zstd / zstd, level 3",
        ("raw", "zstd"),
        None,
        ("raw", "zstd"),
        1.0,
    ),
    pair(
        "zlib / zlib, level 6",
        ("raw", "zlib"),
        None,
        ("raw", "zlib"),
        1.0,
    ),
    pair(
        "gzip / gzip, level 9",
        ("raw", "gzip"),
        Some(9),
        ("raw", "gzip"),
        1.0,
    ),
];

pub(crate) const PAYLOADS: [&str; 3] = ["1 KB", "100 KB", "10 MB"];

const fn pair(
    name: &'static str,
    ours: (&'static str, &'static str),
    level: Option<i32>,
    theirs: (&'static str, &'static str),
    target: f64,
) -> Pair {
    Pair {
        name,
        ours,
        level,
        theirs,
        target,
    }
}
