//! Replays the fuzzers' corpora, so that every input that ever mattered is tried on every run.

use std::fs;
use std::path::Path;

use hedgerow::fuzzing;

#[test]
fn envelope_corpus_breaks_no_promise() {
    replay("envelope", fuzzing::envelope);
}

#[test]
fn cbor_corpus_breaks_no_promise() {
    replay("cbor", fuzzing::cbor);
}

#[test]
fn json_corpus_breaks_no_promise() {
    replay("json", fuzzing::json);
}

#[test]
fn raw_corpus_breaks_no_promise() {
    replay("raw", fuzzing::raw);
}

#[test]
fn lz4_corpus_breaks_no_promise() {
    replay("lz4", fuzzing::lz4);
}

#[cfg(feature = "msgpack")]
#[test]
fn msgpack_corpus_breaks_no_promise() {
    replay("msgpack", fuzzing::msgpack);
}

#[cfg(feature = "postcard")]
#[test]
fn postcard_corpus_breaks_no_promise() {
    replay("postcard", fuzzing::postcard);
}

#[cfg(feature = "zstd")]
#[test]
fn zstd_corpus_breaks_no_promise() {
    replay("zstd", fuzzing::zstd);
}

#[cfg(feature = "deflate")]
#[test]
fn deflate_corpus_breaks_no_promise() {
    replay("deflate", fuzzing::deflate);
}

#[cfg(feature = "encrypt")]
#[test]
fn encrypt_corpus_breaks_no_promise() {
    replay("encrypt", fuzzing::encrypt);
}

fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for file in fs::read_dir(&corpus).expect("a corpus for each target") {
        let path = file.expect("readable").path();
        let data = fs::read(&path).expect("readable");
        // Captured, and shown with the panic of the input that fails.
        println!("{}", path.display());
        check(&data);
        inputs += 1;
    }
    assert!(inputs >= 5, "{inputs} inputs in {}", corpus.display());
}
