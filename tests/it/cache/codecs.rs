//! Codecs, compressors and their options, over a real server: what is written with one setting is
//! read with any other.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use hedgerow::{Cache, Codec, Compression, CustomCodec, ErrorKind, ValueIn, ValueOut};
use redis::Value;

use crate::support::server::Server;

const MINUTE: Duration = Duration::from_secs(60);
const KEY: &str = "hr:v:{c:k}";

type Rows = BTreeMap<String, Vec<Option<(u32, f64, String)>>>;

fn rows(number: u32) -> Rows {
    let row = |n: u32| (n % 7 != 3).then(|| (n, f64::from(n) / 3.0, format!("row {n}")));
    let rows = (0..number).map(row).collect();
    BTreeMap::from([("rows".to_owned(), rows)])
}

fn codecs() -> Vec<Codec> {
    vec![
        Codec::Cbor,
        Codec::Json,
        #[cfg(feature = "msgpack")]
        Codec::MessagePack,
        #[cfg(feature = "postcard")]
        Codec::Postcard,
    ]
}

fn compressors() -> Vec<Compression> {
    vec![
        Compression::None,
        Compression::Lz4,
        #[cfg(feature = "zstd")]
        Compression::Zstd,
        #[cfg(feature = "deflate")]
        Compression::Gzip,
        #[cfg(feature = "deflate")]
        Compression::Zlib,
    ]
}

async fn stored(server: &Server) -> Vec<u8> {
    server.run(&["GET", KEY]).await
}

#[tokio::test]
async fn every_codec_and_compressor_is_read_by_a_cache_with_other_settings() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    for codec in codecs() {
        for compressor in compressors() {
            let writer = cache.clone().codec(codec).compression(compressor);
            for value in [rows(3), rows(1000)] {
                writer.set("k", &value, MINUTE).await.expect("stored");
                let found = cache.get::<Rows>("k").await.expect("an answer");
                assert_eq!(*found.expect("a hit"), value, "{codec:?} {compressor:?}");
            }
            cache.remove("k").await.expect("removed");
            let load = writer.memoize("k", MINUTE, async || Ok::<_, Infallible>(None::<Rows>));
            assert_eq!(*load.await.expect("loaded"), None);
            let found = cache.get::<Option<Rows>>("k").await.expect("an answer");
            assert_eq!(found.as_deref(), Some(&None), "{codec:?} {compressor:?}");
        }
    }
}

#[tokio::test]
async fn a_batch_and_a_single_call_read_what_the_other_has_stored_in_every_codec() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    for codec in codecs() {
        let cache = cache.clone().codec(codec);
        let load = async |keys: Vec<String>| {
            let values = keys.into_iter().map(|key| (key, rows(3)));
            Ok::<_, Infallible>(values.collect::<HashMap<_, _>>())
        };
        let never = async || Err::<Rows, _>(io::Error::other("it is there"));
        let batch = cache.memoize_many(["many"], MINUTE, load).await;
        batch.expect("an outcome").remove(0).expect("loaded");
        let found = cache.get::<Rows>("many").await.expect("an answer");
        assert_eq!(found.as_deref(), Some(&rows(3)), "{codec:?}");
        let found = cache.memoize("many", MINUTE, never).await;
        assert_eq!(*found.expect("a hit"), rows(3), "{codec:?}");

        cache.set("one", &rows(4), MINUTE).await.expect("stored");
        let batch = cache.memoize_many(["one"], MINUTE, load).await;
        let found = batch.expect("an outcome").remove(0).expect("a hit");
        assert_eq!(found.as_deref(), Some(&rows(4)), "{codec:?}");
        cache.clear().await.expect("cleared");
    }
}

#[tokio::test]
async fn damage_of_any_entry_is_a_miss_and_never_a_panic() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    for codec in codecs() {
        for compressor in compressors() {
            let writer = cache.clone().codec(codec).compression(compressor);
            writer.set("k", &rows(200), MINUTE).await.expect("stored");
            let entry = stored(&server).await;
            for at in [0, 1, 20, 36, 60, entry.len() / 2, entry.len() - 1] {
                let mut changed = entry.clone();
                changed[at] ^= 0x10;
                for bytes in [&changed[..], &entry[..at]] {
                    let mut set = redis::cmd("SET");
                    set.arg(KEY).arg(bytes);
                    let mut connection = crate::support::server::connection(server.url()).await;
                    let _: Value = set.query_async(&mut connection).await.expect("stored");
                    let found = cache.get::<Rows>("k").await.expect("an answer");
                    assert_eq!(found, None, "{codec:?} {compressor:?} {at}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_value_is_compressed_from_the_size_that_was_set() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c").codec(Codec::Raw);
    let text = "7".repeat(1000);
    let length = async |cache: Cache| {
        cache.set("k", &text, MINUTE).await.expect("stored");
        stored(&server).await.len()
    };
    for compressor in compressors().into_iter().skip(1) {
        let plain = length(cache.clone().compression(compressor)).await;
        assert!(plain > 1000, "below the usual threshold");
        let packed = compressor.min_size(1000);
        assert!(length(cache.clone().compression(packed)).await < 200);
        let just_below = compressor.min_size(1001);
        assert_eq!(length(cache.clone().compression(just_below)).await, plain);
    }
}

#[tokio::test]
async fn what_compression_makes_larger_is_kept_only_if_asked_for() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c").codec(Codec::Raw);
    for compressor in compressors().into_iter().skip(1) {
        let small = compressor.min_size(0);
        for (options, named) in [(small, 0x20), (small.keep_always(), 0x21)] {
            let cache = cache.clone().compression(options);
            cache.set("k", "x", MINUTE).await.expect("stored");
            let format = stored(&server).await[1];
            assert_eq!(format > 0x20, named > 0x20, "{options:?}: {format:#x}");
            let found = cache.get::<String>("k").await.expect("an answer");
            assert_eq!(found.expect("a hit").as_str(), "x");
        }
    }
}

#[tokio::test]
async fn a_level_that_does_not_exist_is_refused_before_anything_is_sent() {
    let server = Server::start_single().await;
    let cache = server.client().await.cache("c");
    for compressor in compressors() {
        for level in [i32::MIN, 0, 23] {
            let cache = cache.clone().compression(compressor.level(level));
            let refused = cache
                .set("k", "x", MINUTE)
                .await
                .expect_err("no such level");
            assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{compressor:?}");
            let refused = cache.get::<String>("k").await.expect_err("no such level");
            assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{compressor:?}");
        }
    }
    assert_eq!(server.keys("*").await.len(), 0);
}

/// JSON, unless it was told to fail.
#[derive(Debug, Clone, Copy)]
enum Own {
    Json,
    Panics,
}

impl CustomCodec for Own {
    fn encode(
        &self,
        value: ValueIn<'_>,
        payload: &mut dyn io::Write,
    ) -> Result<(), Box<dyn StdError + Send + Sync>> {
        match self {
            Self::Json => Ok(serde_json::to_writer(payload, &value)?),
            Self::Panics => panic!("on purpose"),
        }
    }

    fn decode(
        &self,
        payload: &[u8],
        value: ValueOut<'_>,
    ) -> Result<(), Box<dyn StdError + Send + Sync>> {
        match self {
            Self::Json => {
                let mut json = serde_json::Deserializer::from_slice(payload);
                value.read_from(&mut json)?;
                Ok(json.end()?)
            }
            Self::Panics => panic!("on purpose"),
        }
    }
}

#[tokio::test]
async fn a_custom_codec_is_read_where_it_was_added_and_left_alone_elsewhere() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let reader = cache.clone().custom_codec(9, Own::Json);
    let writer = reader.clone().codec(Codec::Custom(9));
    let value = rows(1000);
    let load = writer.memoize("k", MINUTE, async || Ok::<_, Infallible>(rows(1000)));
    assert_eq!(*load.await.expect("loaded"), value);
    let found = reader.get::<Rows>("k").await.expect("an answer");
    assert_eq!(*found.expect("a hit"), value);
    let other = cache.clone().custom_codec(10, Own::Json);
    for without in [&cache, &other] {
        assert_eq!(without.get::<Rows>("k").await.expect("an answer"), None);
        assert_eq!(without.ttl("k").await.expect("an answer"), None);
    }
    let found = reader.get::<Rows>("k").await.expect("an answer");
    assert_eq!(*found.expect("still there"), value);
    for wrong in [
        cache.clone().codec(Codec::Custom(9)),
        cache.clone().custom_codec(7, Own::Json),
        cache.clone().custom_codec(16, Own::Json),
    ] {
        let refused = wrong.get::<Rows>("k").await.expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn a_custom_codec_that_panics_breaks_its_own_call_only() {
    let server = Server::start().await;
    let client = server.client().await;
    let broken = client.cache("c").custom_codec(9, Own::Panics);
    let broken = broken.codec(Codec::Custom(9)).error_ttl(Duration::ZERO);
    let sound = client.cache("c").custom_codec(9, Own::Json);
    let sound = sound.codec(Codec::Custom(9));
    let error = broken.set("k", "x", MINUTE).await.expect_err("not written");
    assert_eq!(error.kind(), ErrorKind::Encode);
    let load = async || Ok::<_, Infallible>("x".to_owned());
    let error = broken.memoize("k", MINUTE, load).await;
    assert_eq!(error.expect_err("not written").kind(), ErrorKind::Encode);
    let loaded = sound
        .memoize("k", MINUTE, load)
        .await
        .expect("no lease is left");
    assert_eq!(*loaded, "x");
    assert_eq!(broken.get::<String>("k").await.expect("a miss"), None);
    let found = sound.get::<String>("k").await.expect("an answer");
    assert_eq!(found.expect("left alone").as_str(), "x");
}
