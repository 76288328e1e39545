//! Tests of [`budget`](super).

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::checked::Rules;
use super::*;

/// Two bytes in an entry, 256 bytes in memory.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fat {
    _padding: [u64; 32],
}

fn read<'de, T: Deserialize<'de>>(json: &'de str, bytes: usize) -> Result<T, String> {
    let budget = Budget::new(Limits { bytes, ..UNBOUNDED });
    let mut json = serde_json::Deserializer::from_str(json);
    T::deserialize(budget.around(&mut json, size_of::<T>())).map_err(|error| error.to_string())
}

fn exhausts<'de, T: Deserialize<'de> + fmt::Debug>(json: &'de str, bytes: usize) {
    let error = read::<T>(json, bytes).expect_err("too much");
    assert!(error.starts_with(EXHAUSTED), "{error}");
}

#[test]
fn items_count_by_what_they_become_and_not_by_how_they_are_written() {
    let many = format!("[{}{{}}]", "{},".repeat(99));
    assert!(read::<Vec<Fat>>(&many, 1 << 20).is_ok());
    exhausts::<Vec<Fat>>(&many, 100 * size_of::<Fat>() - 1);
    exhausts::<Vec<Box<Fat>>>(&many, 100 * size_of::<Fat>());
    exhausts::<Vec<Option<Box<Fat>>>>(&many, 100 * size_of::<Fat>());
    let none = format!("[{}null]", "null,".repeat(99));
    exhausts::<Vec<Box<Option<Fat>>>>(&none, 100 * size_of::<Option<Fat>>());
    exhausts::<Vec<BTreeMap<u8, u8>>>(&many, 100 * 24 - 1);
    exhausts::<serde_json::Value>(&many, 100 * 24);
    let map = r#"{"a": {}, "b": {}, "c": {}, "d": {}}"#;
    exhausts::<BTreeMap<String, Fat>>(map, 4 * (24 + size_of::<Fat>()) - 1);
}

/// The least budgets with which `value` can be written and read.
fn costs<T: Serialize + DeserializeOwned>(value: &T) -> [usize; 2] {
    let json = serde_json::to_string(value).expect("JSON");
    let write = |bytes: usize| {
        let rules = Rules::new(127, None, 2 * bytes);
        serde_json::to_string(&rules.check(value)).is_ok()
    };
    let read = |bytes: usize| read::<T>(&json, bytes).is_ok();
    let least = |fits: &dyn Fn(usize) -> bool| {
        let (mut low, mut high) = (0_usize, 1 << 30);
        while low < high {
            let middle = low.midpoint(high);
            match fits(middle) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        low
    };
    [least(&write), least(&read)]
}

/// The reader allows twice as much as the writer, and at least [`GROWTH`] times the payload's
/// length.
fn is_read_if_written<T: Serialize + DeserializeOwned>(value: &T) {
    let mut payload = Vec::new();
    ciborium::into_writer(value, &mut payload).expect("CBOR");
    let [write, read] = costs(value);
    let name = std::any::type_name::<T>();
    assert!(
        read <= (2 * write).max(GROWTH * payload.len()),
        "{name}: {read} to read, {write} to write"
    );
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct A {
    b: B,
    flag: bool,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct B {
    c: C,
    flags: [bool; 8],
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct C {
    d: [Option<u64>; 32],
    pair: (u8, u128),
}

#[expect(
    clippy::large_enum_variant,
    reason = "its smaller variants are as large"
)]
#[derive(Clone, Serialize, Deserialize)]
enum E {
    Unit,
    One(C),
    Two(u8, u64),
    Fields { x: u8, y: Option<Box<E>> },
}

#[derive(Clone, Serialize, Deserialize)]
struct Wrapped(B);

#[test]
fn what_lies_within_an_item_is_counted_once() {
    let counted = |[write, read]: [usize; 2], item: usize| {
        assert_eq!(read, 100 * item);
        assert!(
            write <= read + 24 && read <= 2 * write,
            "{write} to write, {read} to read"
        );
    };
    counted(costs(&vec![A::default(); 100]), size_of::<A>());
    counted(costs(&vec![Wrapped(B::default()); 100]), size_of::<B>());
    counted(
        costs(&vec![Some(A::default()); 100]),
        size_of::<Option<A>>(),
    );
    counted(
        costs(&vec![(1u64, [A::default()]); 100]),
        size_of::<(u64, [A; 1])>(),
    );
    counted(costs(&vec![E::One(C::default()); 100]), size_of::<E>());
    counted(
        costs(&vec![vec![0u64; 10]; 100]),
        size_of::<Vec<u64>>() + 80,
    );
    counted(costs(&vec![1u8; 100]), 1);
    counted(costs(&vec!["text".to_owned(); 100]), size_of::<String>());
    let map: BTreeMap<u32, A> = (0..100).map(|key| (key, A::default())).collect();
    counted(costs(&map), size_of::<u32>() + size_of::<A>());
}

#[test]
fn what_lies_behind_a_pointer_is_read_if_it_was_written() {
    is_read_if_written(&vec![Box::new(A::default()); 100]);
    is_read_if_written(&vec![Some(Box::new(B::default())); 100]);
    is_read_if_written(&vec![(Box::new(C::default()), 1u8); 100]);
    is_read_if_written(&vec![Box::new(Wrapped(B::default())); 100]);
    is_read_if_written(&vec![Box::new(E::One(C::default())); 100]);
    is_read_if_written(&vec![Box::new([[1u64; 4]; 4]); 100]);
    is_read_if_written(&vec![Box::new((1u8, 2u64, 3u8)); 100]);
    is_read_if_written(&vec![Box::new(1u128); 100]);
    is_read_if_written(&vec![Box::<str>::from("text"); 100]);
    is_read_if_written(&vec![serde_json::json!({"a": [1, 2, {"b": null}]}); 100]);
    is_read_if_written(&Box::new([A::default(), A::default()]));
}

#[test]
fn strings_cost_no_more_than_their_places() {
    let text = format!("[\"{}\"]", "x".repeat(9999));
    assert!(read::<Vec<String>>(&text, 99).is_ok());
}
