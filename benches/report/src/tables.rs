//! The tables, as Markdown.

use std::fmt::Write as _;

use crate::figures::{CodecRow, PAIRS, PAYLOADS, Ratio, Target};

/// One line for each row, beside its target.
pub(crate) fn ratios(rows: &[Ratio]) -> String {
    let mut text = String::from(
        "| row | measured | quartiles | target | | ours, thousand/s | theirs, thousand/s |\n\
         |---|---:|---:|---:|---|---:|---:|\n",
    );
    for row in rows {
        let (said, verdict) = match row.target {
            Some(target) => (target.said(), verdict(target, row.value)),
            None => (String::new(), ""),
        };
        let rate = |of: fn((f64, f64)) -> f64| match row.rates {
            Some(rates) => figure(of(rates) / 1e3),
            None => String::new(),
        };
        let _ = writeln!(
            text,
            "| `{}` | {} | {} - {} | {said} | {verdict} | {} | {} |",
            row.name,
            figure(row.value),
            figure(row.low),
            figure(row.high),
            rate(|(ours, _)| ours),
            rate(|(_, theirs)| theirs),
        );
    }
    text
}

/// Each codec with each compressor.
pub(crate) fn codecs(rows: &[CodecRow]) -> String {
    let mut text = String::from(
        "| payload | codec | compressor | encode, MB/s | decode, MB/s | stored bytes | saved |\n\
         |---|---|---|---:|---:|---:|---:|\n",
    );
    for row in rows.iter().filter(|row| row.codec != "raw") {
        let wanted = |least| verdict(Target::AtLeast(least), row.saved());
        let saved = match row.compressor.as_str() {
            "none" => String::new(),
            "lz4" => format!("{:.1} % (≥ 55: {})", row.saved(), wanted(55.0)),
            "zstd" => format!("{:.1} % (≥ 70: {})", row.saved(), wanted(70.0)),
            _ => format!("{:.1} %", row.saved()),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {saved} |",
            row.payload,
            row.codec,
            row.compressor,
            figure(row.encode_mb_s.median),
            figure(row.decode_mb_s.median),
            row.stored_bytes,
        );
    }
    text
}

/// How much faster than those of django-redis each is.
pub(crate) fn peers(ours: &[CodecRow], theirs: &[CodecRow]) -> String {
    let mut text = String::from(
        "| ours / theirs | payload | encode | decode | target | | stored bytes, ours / theirs |\n\
         |---|---|---:|---:|---:|---|---:|\n",
    );
    for pair in &PAIRS {
        for payload in PAYLOADS {
            let Some((ours, theirs)) = pair.find(payload, ours, theirs) else {
                continue;
            };
            let encode = ours.encode_mb_s.median / theirs.encode_mb_s.median;
            let decode = ours.decode_mb_s.median / theirs.decode_mb_s.median;
            let target = Target::AtLeast(pair.target);
            let _ = writeln!(
                text,
                "| {} | {payload} | {} | {} | {} | {} | {:.2} |",
                pair.name,
                figure(encode),
                figure(decode),
                target.said(),
                verdict(target, encode.min(decode)),
                ours.stored_bytes as f64 / theirs.stored_bytes as f64,
            );
        }
    }
    text
}

fn verdict(target: Target, value: f64) -> &'static str {
    match target.reached(value) >= 1.0 {
        true => "ok",
        false => "**short**",
    }
}

/// With about three digits.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
