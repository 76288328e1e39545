//! Writes the fuzzers' first inputs: `cargo test --lib write_seeds -- --ignored`.
//!
//! Invariant: the same sources write the same files, and the name of a seed says what it holds. To
//! add a seed, extend this file, run it, and commit both it and `fuzz/corpus`.

use std::fs;
use std::path::Path;

use super::golden;
use crate::codec::compress::lz4;
use crate::codec::envelope::HEADER;
use crate::codec::*;

#[test]
#[ignore = "writes to fuzz/corpus"]
fn write_seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let payloads = [
        ("cbor", cbor()),
        ("json", json()),
        ("raw", raw()),
        ("lz4", lz4()),
        #[cfg(feature = "msgpack")]
        ("msgpack", msgpack()),
        #[cfg(feature = "postcard")]
        ("postcard", postcard()),
        #[cfg(feature = "zstd")]
        ("zstd", zstd()),
        #[cfg(feature = "deflate")]
        ("deflate", deflate()),
        #[cfg(feature = "encrypt")]
        ("encrypt", encrypt()),
    ];
    for (target, seeds) in [("envelope", envelopes())].into_iter().chain(payloads) {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder).expect("writable");
        for (name, bytes) in seeds {
            fs::write(folder.join(name), bytes).expect("writable");
        }
    }
}

type Seeds = Vec<(String, Vec<u8>)>;

fn envelopes() -> Seeds {
    let mut seeds: Seeds = golden::entries()
        .into_iter()
        .map(|(name, entry)| (name.replace([' ', '='], "-"), entry))
        .collect();
    let entry = seeds[0].1.clone();
    let forged = |name: &str, at: usize, byte: u8| {
        let mut entry = entry.clone();
        entry[at] = byte;
        envelope::rewrite_checksum(&mut entry);
        (name.to_owned(), entry)
    };
    seeds.extend([
        forged("version-1", 0, 1),
        forged("version-3", 0, 3),
        forged("unknown-key", 35, 1),
        forged("unknown-codec", 1, 0xf0),
        forged("unknown-compressor", 1, 0x0f),
        forged("plain-named-lz4", 1, 0x01),
        forged("cbor-named-raw", 1, 0x20),
        forged("outcome-failed", 2, 0x80),
        forged("none-with-payload", 2, 0x40),
        forged("unknown-flag", 2, 0x01),
        forged("more-tags-than-bytes", 3, 0xff),
        forged("deadlines", 9, 0xff),
        ("header-only".to_owned(), entry[..HEADER].to_vec()),
        ("short-header".to_owned(), entry[..HEADER - 1].to_vec()),
        ("wrong-checksum".to_owned(), vec![2; HEADER]),
        ("empty".to_owned(), Vec::new()),
    ]);
    let mut bomb = entry[..HEADER].to_vec();
    bomb[1] = 0x01;
    bomb.extend_from_slice(&[0xff; 9]);
    envelope::rewrite_checksum(&mut bomb);
    seeds.push(("lz4-claims-4-gib".to_owned(), bomb));
    let mut none = entry[..HEADER].to_vec();
    (none[1], none[2]) = (0xa0, 0x40);
    envelope::rewrite_checksum(&mut none);
    seeds.push(("none-of-a-custom-codec".to_owned(), none));
    seeds
}

#[cfg(feature = "encrypt")]
fn encrypt() -> Seeds {
    let mut head = golden::entries().remove(0).1;
    head.truncate(HEADER);
    // In the raw codec, not compressed, with the id of the key that the fuzzer has.
    head[1] = 0x20;
    head[35] = super::fuzzing::SEALED_BY as u8;
    let of = |name: &str, payload: usize| {
        let mut entry = [&head[..], &vec![0; payload]].concat();
        envelope::rewrite_checksum(&mut entry);
        (name.to_owned(), entry)
    };
    vec![
        ("nothing".to_owned(), Vec::new()),
        ("text".to_owned(), b"as it is".to_vec()),
        of("no-nonce", 0),
        of("half-a-nonce", 12),
        of("no-tag", 24),
        of("half-a-tag", 32),
        of("sealed-nothing", 40),
        of("sealed-text", 100),
    ]
}

fn cbor() -> Seeds {
    named(&[
        ("map", b"\xa1\x61a\x81\x85\x20\xf9\x3e\x00\x18\xff\x61z\xf5"),
        ("some-none", b"\xa1\x61a\x81\xf6"),
        (
            "bignum",
            b"\xc2\x50\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ),
        (
            "negative-bignum",
            b"\xc3\x50\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
        ("nan", b"\xfb\x7f\xf8\0\0\0\0\0\x01"),
        (
            "indefinite",
            b"\x9f\x7f\x61a\x61b\xff\x5f\x41\x01\xff\xbf\xff\xff",
        ),
        ("tagged", b"\xd8\x20\x63url"),
        ("trailing-byte", b"\x01\x01"),
        ("lone-break", b"\xff"),
        ("array-of-2-64", b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        ("text-of-1-tib", b"\x7b\0\0\x01\0\0\0\0\0abc"),
        ("bytes-of-1-tib", b"\x5b\0\0\x01\0\0\0\0\0abc"),
        ("not-utf-8", b"\x62\xff\xfe"),
        ("deep-arrays", &[0x81; 1000]),
        ("deep-tags", &[0xc6; 1000]),
        ("deep-maps", &b"\xa1\x01".repeat(500)),
        (
            "arrays-as-deep-as-allowed",
            &[&[0x81; 128][..], &[1]].concat(),
        ),
        (
            "tags-as-deep-as-allowed",
            &[&[0xd8, 0x20].repeat(128)[..], &[1]].concat(),
        ),
        ("one-array-too-deep", &[&[0x81; 129][..], &[1]].concat()),
        ("empty-lists", &[&[0x98, 0xff][..], &[0x80; 255]].concat()),
        (
            "empty-maps-of-lists",
            &[&[0xa1, 0x61, b'a', 0x98, 0xff][..], &[0xf6; 255]].concat(),
        ),
    ])
}

fn json() -> Seeds {
    named(&[
        (
            "map",
            br#"{"a":[[-1,1.5,255,"z",true],[0,5e-324,0,"\ud83c\udf3f",null],null]}"#,
        ),
        (
            "numbers",
            b"[18446744073709551615,-9223372036854775808,1.7976931348623157e308,-0.0]",
        ),
        (
            "huge-number",
            b"123456789012345678901234567890123456789012345678901234567890",
        ),
        ("huge-exponent", b"1e99999"),
        ("white-space", b" \t\r\n{} \n"),
        ("trailing-value", b"1 2"),
        ("lone-surrogate", br#""\ud800""#),
        ("not-utf-8", b"\"\xff\xfe\""),
        ("same-key-twice", br#"{"a":[],"a":[null]}"#),
        ("unclosed", b"[\"a"),
        ("deep-arrays", &b"[".repeat(1000)),
        (
            "arrays-as-deep-as-allowed",
            &[b"[".repeat(127), b"]".repeat(127)].concat(),
        ),
        ("deep-maps", &b"{\"a\":".repeat(300)),
    ])
}

fn raw() -> Seeds {
    named(&[
        ("empty", b""),
        ("text", "hedge row \u{1f33f}".as_bytes()),
        ("not-utf-8", b"abc\xff"),
        ("cut-utf-8", b"abc\xf0\x9f\x8c"),
        ("zeros", &[0; 40]),
        ("compressible", &b"hedge ".repeat(100)),
    ])
}

fn lz4() -> Seeds {
    let packed = lz4::compress(&b"hedge ".repeat(200), 0).expect("compressible");
    let mut short = packed.clone();
    short[3] -= 1;
    let mut long = packed.clone();
    long[3] += 1;
    named(&[
        ("packed", &packed),
        ("claims-one-less", &short),
        ("claims-one-more", &long),
        ("cut", &packed[..packed.len() - 1]),
        ("claims-4-gib", &[0xff; 9]),
        ("claims-the-cap", b"\0\x10\0\0\x1fa\x01\0"),
        ("offset-zero", b"\0\0\0\x20\x1fa\0\0\x05"),
        ("offset-before-start", b"\0\0\0\x20\x1fa\xff\xff\x05"),
        (
            "endless-literals",
            &[&b"\0\0\x0f\xff\xf0"[..], &[0xff; 30]].concat(),
        ),
        ("empty-block", b"\0\0\0\0\0"),
        ("length-only", b"\0\0\0\x01"),
        ("plain", &b"hedge ".repeat(100)),
    ])
}

#[cfg(feature = "msgpack")]
fn msgpack() -> Seeds {
    named(&[
        (
            "map",
            b"\x81\xa1a\x91\x95\x20\xcb\x3f\xf8\0\0\0\0\0\0\xcc\xff\xa1z\xc3",
        ),
        (
            "bytes-as-a-number",
            &[&b"\xc4\x10"[..], &[0xff; 16]].concat(),
        ),
        ("extension", b"\xd4\x05a"),
        ("reserved", b"\xc1"),
        ("trailing-byte", b"\x01\x01"),
        ("array-of-2-32", b"\xdd\xff\xff\xff\xff\x01"),
        ("map-of-2-32", b"\xdf\xff\xff\xff\xff\x01\x01"),
        ("text-of-4-gib", b"\xdb\xff\xff\xff\xffabc"),
        ("bytes-of-4-gib", b"\xc6\xff\xff\xff\xffabc"),
        ("not-utf-8", b"\xa2\xff\xfe"),
        ("nan", b"\xcb\x7f\xf8\0\0\0\0\0\x01"),
        ("deep-arrays", &[0x91; 1000]),
        (
            "arrays-as-deep-as-allowed",
            &[&[0x91; 128][..], &[1]].concat(),
        ),
        ("deep-variants", &b"\x81\xa5Maybe".repeat(300)),
        ("list-of-leaves", b"\x81\xa4List\x92\xa4Leaf\xa4Leaf"),
    ])
}

#[cfg(feature = "postcard")]
fn postcard() -> Seeds {
    named(&[
        (
            "map",
            b"\x01\x01a\x01\x01\x02\0\0\0\0\0\0\xf8\x3f\xff\x01z\x01\x01",
        ),
        ("empty", b""),
        ("trailing-byte", b"\0\0"),
        ("list-of-2-63", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x01"),
        ("endless-varint", &[0xff; 12]),
        ("options", b"\x03\0\x01\0\x01\x01"),
        ("deep-options", &[1; 1000]),
        ("deep-lists", &[2, 1].repeat(500)),
        ("named", b"\x03\x03\0"),
        ("char", b"\x04\xf0\x9f\x8c\xbf\x01a\x7f"),
        ("not-utf-8", b"\x01a\x02\xff\xfe"),
    ])
}

#[cfg(feature = "zstd")]
fn zstd() -> Seeds {
    let frame = |claimed: u64| {
        let mut frame = b"\x28\xb5\x2f\xfd\xe0".to_vec();
        frame.extend_from_slice(&claimed.to_le_bytes());
        frame.extend_from_slice(&[0x23, 0x03, 0, 7]);
        frame
    };
    packed(
        Compression::Zstd,
        &[
            ("run-of-100", &frame(100)),
            ("claims-one-less", &frame(99)),
            ("claims-one-more", &frame(101)),
            ("claims-the-cap", &frame(1 << 20)),
            ("claims-2-63", &frame(1 << 63)),
            ("no-length", b"\x28\xb5\x2f\xfd\0\x58\x23\x03\0\x07"),
            ("two-frames", &frame(100).repeat(2)),
            ("skippable", b"\x50\x2a\x4d\x18\x01\0\0\0a"),
        ],
    )
}

#[cfg(feature = "deflate")]
fn deflate() -> Seeds {
    let gzip = packed(
        Compression::Gzip,
        &[("gzip-with-a-name", b"\x1f\x8b\x08\x08\0\0\0\0\0\xffname")],
    );
    let zlib = packed(
        Compression::Zlib,
        &[("zlib-with-a-dictionary", b"\x78\xbb\0\0\0\x01")],
    );
    let of = |name: &'static str| {
        move |(seed, bytes): (String, Vec<u8>)| (format!("{name}-{seed}"), bytes)
    };
    let gzip = gzip.into_iter().map(of("gzip"));
    gzip.chain(zlib.into_iter().map(of("zlib"))).collect()
}

/// A payload of `compressor`, some damaged ones, and `more`.
#[cfg(any(feature = "zstd", feature = "deflate"))]
fn packed(compressor: Compression, more: &[(&str, &[u8])]) -> Seeds {
    let pack = |plain: &[u8]| {
        let options = compressor.min_size(0).keep_always();
        compress::compress(&options, plain, 0).expect("compressed")
    };
    let usual = pack(&b"hedge ".repeat(200));
    let mut seeds = named(&[
        ("packed", &usual),
        ("packed-nothing", &pack(b"")),
        ("cut", &usual[..usual.len() - 1]),
        ("trailing-byte", &[&usual[..], &[0]].concat()),
        ("bomb", &pack(&vec![0; (1 << 20) + 1])),
        ("plain", &b"hedge ".repeat(100)),
    ]);
    seeds.extend(named(more));
    seeds
}

fn named(seeds: &[(&str, &[u8])]) -> Seeds {
    seeds
        .iter()
        .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
        .collect()
}
