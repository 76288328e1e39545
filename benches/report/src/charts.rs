//! The charts: what is drawn, and which targets.

use std::path::Path;

use crate::Result;
use crate::bars::{Bar, Chart, Line, Scale, Side};
use crate::figures::{CodecRow, PAIRS, Ratio, Spread};

/// The payload that is drawn: tables have the others.
const PAYLOAD: &str = "100 KB";

/// Rows of different kinds in one chart, by how far each is from its target.
pub(crate) fn against_targets(path: &Path, title: &'static str, rows: &[Ratio]) -> Result<()> {
    let bars = rows.iter().filter_map(|row| {
        let target = row.target?;
        let (one, other) = (target.reached(row.low), target.reached(row.high));
        Some(Bar {
            label: row.name.clone(),
            side: Side::Ours,
            value: target.reached(row.value),
            spread: (one.min(other), one.max(other)),
            note: format!("{:.2} ({})", row.value, target.said()),
        })
    });
    Chart {
        title,
        axis: "measured / target, or target / measured where less is better (log scale)",
        scale: Scale::Log,
        lines: vec![Line::target(1.0)],
        bars: bars.collect(),
    }
    .draw(path)
}

pub(crate) fn against_rivals(path: &Path, rows: &[Ratio]) -> Result<()> {
    let bars = rows
        .iter()
        .filter(|row| row.target.is_some())
        .map(|row| Bar {
            label: row.name.clone(),
            side: Side::Ours,
            value: row.value,
            spread: (row.low, row.high),
            note: format!("{:.2}", row.value),
        });
    Chart {
        title: "hedgerow against other crates",
        axis: "speed of hedgerow / speed of the other crate (log scale)",
        scale: Scale::Log,
        lines: vec![Line::target(1.0)],
        bars: bars.collect(),
    }
    .draw(path)
}

/// Serializers, ours beside those of django-redis.
pub(crate) fn codecs(path: &Path, ours: &[CodecRow], theirs: &[CodecRow]) -> Result<()> {
    let mut bars = Vec::new();
    for (way, of) in WAYS {
        for row in ours.iter().filter(|row| is_serializer(row)) {
            let label = format!("{way} {}", row.codec);
            bars.push(speed(label, Side::Ours, of(row)));
        }
        for row in theirs.iter().filter(|row| is_serializer(row)) {
            let label = format!("{way} {}, django-redis", row.codec);
            bars.push(speed(label, Side::Theirs, of(row)));
        }
    }
    Chart {
        title: "Serializers: lists of places, 100 KB as JSON",
        axis: "MB of JSON a second",
        scale: Scale::Linear,
        lines: Vec::new(),
        bars,
    }
    .draw(path)
}

/// Compressors of one text, ours beside those of django-redis.
pub(crate) fn compressors(path: &Path, ours: &[CodecRow], theirs: &[CodecRow]) -> Result<()> {
    let mut bars = Vec::new();
    for (way, of) in WAYS {
        for pair in PAIRS.iter().filter(|pair| pair.ours.0 == "raw") {
            let Some((ours, theirs)) = pair.find(PAYLOAD, ours, theirs) else {
                continue;
            };
            let name = pair.theirs.1;
            bars.push(speed(format!("{way} {name}"), Side::Ours, of(ours)));
            let label = format!("{way} {name}, django-redis");
            bars.push(speed(label, Side::Theirs, of(theirs)));
        }
    }
    Chart {
        title: "Compressors: 100 KB of JSON, at the levels of django-redis",
        axis: "MB a second (log scale)",
        scale: Scale::Log,
        lines: Vec::new(),
        bars,
    }
    .draw(path)
}

/// What each compressor saves.
pub(crate) fn sizes(path: &Path, ours: &[CodecRow]) -> Result<()> {
    let drawn = |row: &&CodecRow| {
        row.payload == PAYLOAD
            && row.codec != "raw"
            && !["none", "gzip"].contains(&&*row.compressor)
    };
    let bars = ours.iter().filter(drawn).map(|row| Bar {
        label: format!("{} {}", row.compressor, row.codec),
        side: Side::Ours,
        value: row.saved(),
        spread: (row.saved(), row.saved()),
        note: format!("{:.0} %", row.saved()),
    });
    let line = |at, text: &str| Line {
        at,
        text: text.to_owned(),
    };
    Chart {
        title: "What compression saves: lists of places, 100 KB as JSON",
        axis: "percent of the encoded bytes",
        scale: Scale::Percent,
        lines: vec![line(55.0, "target of lz4"), line(70.0, "target of zstd")],
        bars: bars.collect(),
    }
    .draw(path)
}

/// Both ways of a codec.
type Way = (&'static str, fn(&CodecRow) -> Spread);

const WAYS: [Way; 2] = [
    ("encode", |row| row.encode_mb_s),
    ("decode", |row| row.decode_mb_s),
];

fn is_serializer(row: &CodecRow) -> bool {
    row.payload == PAYLOAD && row.compressor == "none" && row.codec != "raw"
}

fn speed(label: String, side: Side, spread: Spread) -> Bar {
    Bar {
        label,
        side,
        value: spread.median,
        spread: (spread.low, spread.high),
        note: format!("{:.0}", spread.median),
    }
}
