#!/usr/bin/env python3
"""Times the serializers and compressors of django-redis on the payloads that
`cargo bench --bench codecs` has written to target/bench/, and writes what it finds beside them.

Makes a virtual environment of its own under target/peers/ (from requirements.txt), and runs
itself there. Speeds are MB of the payload as JSON without blanks, as `benches/codecs` counts
them, so that two speeds for one payload compare two times.
"""

import json
import statistics
import sys
import time

import environment

ROOT = environment.ROOT
BENCH = ROOT / "target" / "bench"
PAYLOADS = ["1 KB", "100 KB", "10 MB"]

# As benches/codecs/measure.rs has them.
SLICE, LONG, LEAST = 0.002, 0.2, 5


def main():
    environment.enter()
    rows = []
    for payload in PAYLOADS:
        path = BENCH / f"payload-{payload.replace(' ', '')}.json"
        if not path.exists():
            sys.exit(f"{path} is missing: run `cargo bench --all-features --bench codecs` first")
        text = path.read_bytes()
        for name, serializer in serializers().items():
            value = json.loads(text)
            encoded = serializer.dumps(value)
            assert serializer.loads(encoded) == value, name
            rows.append(
                row(
                    payload, name, "none", text, encoded, encoded,
                    lambda: serializer.dumps(value), lambda: serializer.loads(encoded),
                )
            )
        for name, compressor in compressors().items():
            packed = compressor.compress(text)
            assert compressor.decompress(packed) == text, name
            rows.append(
                row(
                    payload, "raw", name, text, text, packed,
                    lambda: compressor.compress(text), lambda: compressor.decompress(packed),
                )
            )
    path = BENCH / "codecs-django-redis.json"
    path.write_text(json.dumps(rows, indent=1))
    print(f"written to {path.relative_to(ROOT)}")


def serializers():
    from django_redis.serializers.json import JSONSerializer
    from django_redis.serializers.msgpack import MSGPackSerializer
    from django_redis.serializers.pickle import PickleSerializer

    found = {"pickle": PickleSerializer, "json": JSONSerializer, "msgpack": MSGPackSerializer}
    return {name: made({}) for name, made in found.items()}


def compressors():
    from django_redis.compressors.gzip import GzipCompressor
    from django_redis.compressors.lz4 import Lz4Compressor
    from django_redis.compressors.lzma import LzmaCompressor
    from django_redis.compressors.zlib import ZlibCompressor
    from django_redis.compressors.zstd import ZStdCompressor

    found = {
        "lz4": Lz4Compressor,
        "zstd": ZStdCompressor,
        "gzip": GzipCompressor,
        "zlib": ZlibCompressor,
        "lzma": LzmaCompressor,
    }
    return {name: made({}) for name, made in found.items()}


def row(payload, codec, compressor, text, encoded, stored, encode, decode):
    encode, decode = timed(encode), timed(decode)
    print(
        f"{payload:>7} {codec:>8} {compressor:>4}: {len(stored):>9} bytes, "
        f"{len(text) / 1e6 / encode[1]:>7.1f} and {len(text) / 1e6 / decode[1]:>7.1f} MB/s",
        flush=True,
    )
    return {
        "payload": payload,
        "codec": codec,
        "compressor": compressor,
        "level": None,
        "json_bytes": len(text),
        "encoded_bytes": len(encoded),
        "compressed_bytes": len(stored),
        "stored_bytes": len(stored),
        "encode_mb_s": speed(text, encode),
        "decode_mb_s": speed(text, decode),
    }


def speed(text, times):
    low, middle, high = (len(text) / 1e6 / time for time in times)
    # The longest time is the lowest speed.
    return {"low": high, "median": middle, "high": low}


def timed(call):
    """Returns the lower quartile, the median and the upper quartile of the time of a call."""
    start = time.perf_counter()
    call()
    once = max(time.perf_counter() - start, 1e-7)
    calls = range(min(max(int(SLICE / once), 1), 100_000))
    times = []
    start = time.perf_counter()
    while len(times) < LEAST or time.perf_counter() - start < LONG:
        slice_start = time.perf_counter()
        for _ in calls:
            call()
        times.append((time.perf_counter() - slice_start) / len(calls))
    return statistics.quantiles(times, n=4)


if __name__ == "__main__":
    main()
