//! The records: places of the world, from `examples/data/cities.csv`.
//!
//! Invariant: a payload is the same in each run. The file has 10,776 records, which is about 1 MB
//! as JSON. A payload that needs more goes through them again, each time with the letters of the
//! names moved on by one and the coordinates by some part of a degree: other records of the same
//! kind, in which a compressor finds nothing of the round before.

use serde::{Deserialize, Serialize};

use crate::Result;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct City {
    country: String,
    region: String,
    name: String,
    lat: f64,
    lng: f64,
}

/// As many records as have about this many bytes as JSON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payload {
    pub(crate) name: &'static str,
    pub(crate) bytes: usize,
}

pub(crate) const PAYLOADS: [Payload; 3] = [
    Payload {
        name: "1 KB",
        bytes: 1 << 10,
    },
    Payload {
        name: "100 KB",
        bytes: 100 << 10,
    },
    Payload {
        name: "10 MB",
        bytes: 10 << 20,
    },
];

impl Payload {
    pub(crate) fn file_name(&self) -> String {
        format!("payload-{}.json", self.name.replace(' ', ""))
    }
}

/// Returns the first records that have `bytes` as JSON.
pub(crate) fn cities(bytes: usize) -> Result<Vec<City>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/cities.csv");
    let all: Vec<City> = csv::Reader::from_path(path)?
        .deserialize()
        .collect::<std::result::Result<_, _>>()?;
    let (mut taken, mut length) = (Vec::new(), 0);
    for round in 0.. {
        for (number, city) in all.iter().enumerate() {
            if length >= bytes {
                return Ok(taken);
            }
            let city = city.again(round, number);
            length += serde_json::to_vec(&city)?.len() + 1;
            taken.push(city);
        }
    }
    Ok(taken)
}

impl City {
    fn again(&self, round: u8, number: usize) -> Self {
        let moved = |text: &str| text.chars().map(|letter| shifted(letter, round)).collect();
        // From 0 to 9,999, and another one for each record and round.
        let part =
            (number * 7_919 + usize::from(round) * 104_729) % 10_000 * usize::from(round > 0);
        // As written: five digits after the point.
        let near = |degrees: f64| ((degrees * 1e5).round() + part as f64) / 1e5;
        Self {
            country: moved(&self.country),
            region: moved(&self.region),
            name: moved(&self.name),
            lat: near(self.lat),
            lng: near(self.lng),
        }
    }
}

/// The letter that comes `by` letters later in the alphabet, which begins again after its end.
fn shifted(letter: char, by: u8) -> char {
    let turn = |first: u8| char::from(first + (letter as u8 - first + by % 26) % 26);
    match letter {
        'a'..='z' => turn(b'a'),
        'A'..='Z' => turn(b'A'),
        _ => letter,
    }
}
