//! JSON (RFC 8259), by serde_json.
//!
//! Invariant: a payload is one value, nested at most 127 deep, with nothing but white space behind
//! it. The [`Stack`](crate::codec::Stack) calls this module.

use std::any::type_name;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use crate::codec::budget::EXHAUSTED;
use crate::codec::checked::{REFUSED, Rules};
use crate::codec::option::Present;
use crate::codec::payload::{Payload, misfit, unencodable};
use crate::error::Result;

pub(in crate::codec) fn encode<V: Serialize + ?Sized>(
    value: &V,
    payload: Payload<'_>,
) -> Result<()> {
    let rules = Rules::new(
        DEEPEST,
        Some("it holds NaN or an infinity, which JSON has not"),
        payload.built,
    );
    serde_json::to_writer(payload, &rules.check(value)).map_err(|cause| {
        match (rules.broken(), cause.classify()) {
            (Some(how), _) => unencodable(NAME, how),
            (None, Category::Data) => unencodable(NAME, REFUSED),
            (None, _) => unencodable(NAME, &cause.to_string()),
        }
    })
}

pub(in crate::codec) fn decode<V: DeserializeOwned>(payload: &[u8]) -> Result<V> {
    match serde_json::from_slice(payload) {
        Ok(Present(value)) => Ok(value),
        // The text of a data error is left out, since it may quote the value. Whether the budget is
        // exhausted shows only in that text: serde_json has no other way to return it.
        Err(cause) if cause.is_data() && cause.to_string().starts_with(EXHAUSTED) => {
            Err(misfit(NAME, EXHAUSTED))
        }
        Err(cause) if cause.is_data() => {
            let (line, column) = (cause.line(), cause.column());
            let name = type_name::<V>();
            let how = format!("at line {line} column {column} it does not fit `{name}`");
            Err(misfit(NAME, &how))
        }
        Err(cause) => Err(misfit(NAME, &cause.to_string())),
    }
}

/// Whether `payload` is one well-formed value, at any depth: serde_json skips a value without
/// recursion.
pub(in crate::codec) fn is_whole(payload: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(payload).is_ok()
}

const NAME: &str = "json";
/// The deepest nesting that is written and read: serde_json refuses the 128th level.
const DEEPEST: usize = 127;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;
    use crate::codec::Codec;
    use crate::codec::Stack;

    fn refusal<V: DeserializeOwned>(payload: &[u8]) -> String {
        match decode::<V>(payload) {
            Ok(_) => panic!("{payload:02x?} was read"),
            Err(error) => format!("{error} {error:?}"),
        }
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert_eq!(decode::<u8>(b"1").expect("one"), 1);
        assert!(refusal::<u8>(b"1 2").contains("trailing"));
        assert!(refusal::<u8>(b"").contains("EOF"));
    }

    #[test]
    fn nesting_is_capped() {
        assert!(refusal::<Value>(&b"[".repeat(200_000)).contains("recursion limit"));
        assert!(refusal::<Value>(&b"{\"a\":".repeat(200_000)).contains("recursion limit"));
    }

    #[test]
    fn errors_do_not_quote_the_value() {
        let refused = refusal::<u8>(b"\"canary\"");
        assert!(refused.contains("does not fit `u8`"), "{refused}");
        assert!(!refused.contains("canary"), "{refused}");
    }

    #[test]
    fn a_key_that_json_cannot_spell_is_named() {
        let stack = Stack {
            codec: Codec::Json,
            ..Stack::default()
        };
        let map = BTreeMap::from([((1, 2), 3)]);
        let error = stack
            .encode(&map, &[], std::time::Duration::ZERO)
            .expect_err("a tuple is no key");
        assert!(
            error.to_string().contains("key must be a string"),
            "{error}"
        );
    }
}
