//! `CustomCodec`: a format that the user brings.
//!
//! Invariant: whatever a custom codec does, the cache stays whole. What it writes is bounded, what
//! it reads is bounded, its panics are errors, and an entry that it cannot read is foreign. The
//! [`Stack`](super::Stack) calls it.

use std::any::type_name;
use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::{fmt, io};

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer};
use serde::{Serialize, Serializer};

use super::budget;
use super::checked::Rules;
use super::option::Present;
use super::payload::{Payload, misfit, unencodable};
use crate::error::{Error, Result};

/// A format of your own, for [`Cache::custom_codec`](crate::Cache::custom_codec).
///
/// This one writes JSON with line breaks, by a serializer and a deserializer of serde:
///
/// ```
/// use std::{error::Error, io, time::Duration};
///
/// use hedgerow::{Codec, CustomCodec, ValueIn, ValueOut};
///
/// #[derive(Debug)]
/// struct Pretty;
///
/// impl CustomCodec for Pretty {
///     fn encode(
///         &self,
///         value: ValueIn<'_>,
///         payload: &mut dyn io::Write,
///     ) -> Result<(), Box<dyn Error + Send + Sync>> {
///         Ok(serde_json::to_writer_pretty(payload, &value)?)
///     }
///
///     fn decode(
///         &self,
///         payload: &[u8],
///         value: ValueOut<'_>,
///     ) -> Result<(), Box<dyn Error + Send + Sync>> {
///         let mut json = serde_json::Deserializer::from_slice(payload);
///         value.read_from(&mut json)?;
///         // A payload with something behind its value is not one of ours.
///         Ok(json.end()?)
///     }
/// }
///
/// # #[cfg(feature = "embedded")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> hedgerow::Result<()> {
/// # let client = hedgerow::Client::embedded().await?;
/// let cache = client.cache("c").custom_codec(8, Pretty).codec(Codec::Custom(8));
/// cache.set("k", &vec![1, 2, 3], Duration::from_secs(60)).await?;
/// let found = cache.get::<Vec<i32>>("k").await?.expect("it was stored");
/// assert_eq!(*found, [1, 2, 3]);
///
/// // A cache without the codec leaves the entry alone.
/// assert_eq!(client.cache("c").get::<Vec<i32>>("k").await?, None);
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "embedded"))]
/// # fn main() {}
/// ```
///
/// The cache does the rest: compression, the envelope, and the limits of size, memory and nesting.
/// The nesting is at most 128 levels, where options count, too. Within a value, an option that
/// holds something like no value (`Some(None)`) is refused, since many formats write it as `None`.
///
/// If a method returns an error or panics, the call of the cache fails with `Encode`, or finds a
/// foreign entry. The text of the error is shown nowhere, since it may quote the value.
pub trait CustomCodec: fmt::Debug + Send + Sync + 'static {
    /// Writes `value` to `payload`, which takes at most
    /// [`max_value_size`](crate::ClientBuilder::max_value_size) bytes.
    ///
    /// # Errors
    ///
    /// Any, if the value cannot be written such that [`decode`](Self::decode) reads it.
    fn encode(
        &self,
        value: ValueIn<'_>,
        payload: &mut dyn io::Write,
    ) -> Result<(), Box<dyn StdError + Send + Sync>>;

    /// Reads the value of `payload` into `value`. Nothing is known of the bytes: whoever may write
    /// to Redis may have changed them.
    ///
    /// # Errors
    ///
    /// Any, if `payload` is not exactly one value. The entry is then foreign.
    fn decode(
        &self,
        payload: &[u8],
        value: ValueOut<'_>,
    ) -> Result<(), Box<dyn StdError + Send + Sync>>;

    /// Whether its serializer and its deserializer call themselves human-readable, which is what
    /// serde does by default.
    fn is_human_readable(&self) -> bool {
        true
    }
}

/// The value that a [`CustomCodec`] writes. It is a [`Serialize`].
pub struct ValueIn<'a>(&'a dyn erased_serde::Serialize);

/// The place for the value that a [`CustomCodec`] reads.
pub struct ValueOut<'a>(&'a mut Read<'a>);

/// Reads a value of a type that a custom codec does not know, and puts it aside.
type Read<'a> =
    dyn FnMut(&mut dyn erased_serde::Deserializer<'_>) -> Result<(), erased_serde::Error> + 'a;

impl Serialize for ValueIn<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        erased_serde::serialize(self.0, serializer)
    }
}

impl fmt::Debug for ValueIn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueIn").finish_non_exhaustive()
    }
}

impl ValueOut<'_> {
    /// Reads the value from `deserializer`.
    ///
    /// # Errors
    ///
    /// That of the deserializer, or of the type that it does not fit.
    pub fn read_from<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let mut deserializer = <dyn erased_serde::Deserializer<'_>>::erase(deserializer);
        (self.0)(&mut deserializer).map_err(de::Error::custom)
    }
}

impl fmt::Debug for ValueOut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueOut").finish_non_exhaustive()
    }
}

/// The custom codecs of one cache, by their numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct CustomCodecs(Option<Arc<Slots>>);

type Slots = [Option<Arc<dyn CustomCodec>>; (MOST - LEAST + 1) as usize];

impl CustomCodecs {
    /// These, and `codec` under `number`.
    pub(crate) fn with(&self, number: u8, codec: impl CustomCodec) -> Result<Self> {
        let mut slots = self.0.as_deref().cloned().unwrap_or_default();
        let Some(slot) = slot(number).and_then(|slot| slots.get_mut(slot)) else {
            return Err(Error::invalid(format!(
                "{number} is not a number of a custom codec; give one from {LEAST} to {MOST}"
            )));
        };
        *slot = Some(Arc::new(codec));
        Ok(Self(Some(Arc::new(slots))))
    }

    pub(super) fn of(&self, number: u8) -> Option<&dyn CustomCodec> {
        let slots = self.0.as_deref()?;
        slots.get(slot(number)?)?.as_deref()
    }

    /// Tells these apart from all others that exist at the same time.
    pub(super) fn identity(&self) -> usize {
        self.0.as_ref().map_or(0, |slots| Arc::as_ptr(slots).addr())
    }
}

fn slot(number: u8) -> Option<usize> {
    number.checked_sub(LEAST).map(usize::from)
}

pub(super) fn encode<V: Serialize + ?Sized>(
    codec: &dyn CustomCodec,
    value: &V,
    mut payload: Payload<'_>,
) -> Result<()> {
    let rules = Rules::new(DEEPEST, None, payload.built).bounded();
    let checked = rules.check(value);
    let written = AssertUnwindSafe(|| codec.encode(ValueIn(&checked), &mut payload));
    let written = catch_unwind(written);
    // Also if the codec has passed over an error: what it wrote is not the value.
    if let Some(how) = rules.broken() {
        return Err(unencodable(NAME, how));
    }
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(unencodable(NAME, "it returned an error")),
        Err(_panic) => Err(unencodable(NAME, PANICKED)),
    }
}

pub(super) fn decode<V: DeserializeOwned>(codec: &dyn CustomCodec, payload: &[u8]) -> Result<V> {
    let mut value = None;
    let mut read = |deserializer: &mut dyn erased_serde::Deserializer<'_>| {
        let (read, exceeded) = budget::bounded(DEEPEST, || Present::deserialize(deserializer));
        let Present(read) = read.map_err(|error| match exceeded {
            Some(how) => de::Error::custom(how),
            None => error,
        })?;
        value = Some(read);
        Ok(())
    };
    let decoded = AssertUnwindSafe(|| codec.decode(payload, ValueOut(&mut read)));
    match (catch_unwind(decoded), value) {
        (Ok(Ok(())), Some(value)) => Ok(value),
        (Ok(Ok(())), None) => Err(misfit(NAME, "it returned no value")),
        (Ok(Err(_)), _) => {
            let name = type_name::<V>();
            Err(misfit(NAME, &format!("it could not read a `{name}`")))
        }
        (Err(_panic), _) => Err(misfit(NAME, PANICKED)),
    }
}

pub(super) fn unknown(number: u8) -> Error {
    Error::invalid(format!(
        "the cache has no custom codec {number}; add it with `Cache::custom_codec`"
    ))
}

pub(super) fn unreadable(number: u8) -> Error {
    let how = format!("this cache has no codec {number}, which `Cache::custom_codec` adds");
    misfit(NAME, &how)
}

const NAME: &str = "a custom codec";
const PANICKED: &str = "it panicked; the panic hook has reported where";
/// The numbers that entries name custom codecs by.
pub(super) const LEAST: u8 = 8;
pub(super) const MOST: u8 = 15;
/// The deepest nesting that is written and read.
const DEEPEST: usize = 128;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::codec::{Codec, Envelope, Stack, Unreadable};
    use crate::error::ErrorKind;

    /// CBOR, but for one thing.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Odd {
        Honest,
        WritesTooMuch,
        SwallowsErrors,
        FailsToWrite,
        PanicsInWriting,
        FailsToRead,
        PanicsInReading,
        ReadsNothing,
    }

    impl CustomCodec for Odd {
        fn encode(
            &self,
            value: ValueIn<'_>,
            payload: &mut dyn io::Write,
        ) -> Result<(), Box<dyn StdError + Send + Sync>> {
            match self {
                Self::WritesTooMuch => while payload.write_all(&[7; 4096]).is_ok() {},
                Self::SwallowsErrors => drop(ciborium::into_writer(&value, payload)),
                Self::FailsToWrite => return Err("canary".into()),
                Self::PanicsInWriting => panic!("on purpose"),
                _ => ciborium::into_writer(&value, payload)?,
            }
            Ok(())
        }

        fn decode(
            &self,
            payload: &[u8],
            value: ValueOut<'_>,
        ) -> Result<(), Box<dyn StdError + Send + Sync>> {
            match self {
                Self::FailsToRead => return Err("canary".into()),
                Self::PanicsInReading => panic!("on purpose"),
                Self::ReadsNothing => return Ok(()),
                _ => {}
            }
            let any: ciborium::Value = ciborium::from_reader(payload)?;
            Ok(value.read_from(&any.deserialized::<Content>()?.0)?)
        }
    }

    /// A `ciborium::Value` is a deserializer only within ciborium, so it goes by way of JSON.
    struct Content(serde_json::Value);

    impl<'de> Deserialize<'de> for Content {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            serde_json::Value::deserialize(deserializer).map(Self)
        }
    }

    fn stack(odd: Odd) -> Stack {
        Stack {
            codec: Codec::Custom(9),
            custom: CustomCodecs::default().with(9, odd).expect("a number"),
            max_decoded: 1 << 16,
            ..Stack::default()
        }
    }

    fn written<V: Serialize>(odd: Odd, value: &V) -> Result<Vec<u8>> {
        stack(odd).encode(value, &[], Duration::ZERO)
    }

    fn read<V: DeserializeOwned>(odd: Odd, entry: &[u8]) -> Result<V, Unreadable> {
        stack(odd).decoder("").decode(&Envelope::parse(entry)?)
    }

    #[test]
    fn values_go_through_it_in_both_directions() {
        let entry = written(Odd::Honest, &vec![Some("a"), None]).expect("written");
        assert_eq!(entry[1] >> 4, 9, "the entry names it");
        let list = read::<Vec<Option<String>>>(Odd::Honest, &entry).expect("read");
        assert_eq!(list, [Some("a".to_owned()), None]);
        for value in [None, Some(None), Some(Some(7))] {
            let entry = written(Odd::Honest, &value).expect("written");
            let read = read::<Option<Option<u8>>>(Odd::Honest, &entry);
            assert_eq!(read.expect("read"), value);
        }
    }

    #[test]
    fn without_it_its_entries_are_foreign_and_it_cannot_be_written_with() {
        let entry = written(Odd::Honest, &7).expect("written");
        let parsed = Envelope::parse(&entry).expect("whole");
        let other = CustomCodecs::default().with(8, Odd::Honest);
        for custom in [CustomCodecs::default(), other.expect("a number")] {
            let stack = Stack {
                custom,
                codec: Codec::Custom(9),
                ..Stack::default()
            };
            let read = stack.decoder("").decode::<u8>(&parsed);
            assert!(matches!(read, Err(Unreadable::Foreign(_))), "{read:?}");
            let refused = stack.encode(&7, &[], Duration::ZERO).expect_err("no codec");
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);
            let refused = stack.check().expect_err("before anything is sent");
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        }
        for number in [0, 7, 16, 255] {
            let refused = CustomCodecs::default().with(number, Odd::Honest);
            let refused = refused.expect_err("not a number of users");
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn one_that_fails_panics_or_lies_is_an_error_and_nothing_more() {
        for odd in [Odd::FailsToWrite, Odd::PanicsInWriting] {
            let error = written(odd, &7).expect_err("not written");
            assert_eq!(error.kind(), ErrorKind::Encode, "{odd:?}");
            assert!(!format!("{error} {error:?}").contains("canary"));
        }
        let error = written(Odd::WritesTooMuch, &7).expect_err("too much");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        let error = written(Odd::SwallowsErrors, &[Some(())]).expect_err("not the value");
        assert_eq!(error.kind(), ErrorKind::Encode);

        let entry = written(Odd::Honest, &7).expect("written");
        for odd in [Odd::FailsToRead, Odd::PanicsInReading, Odd::ReadsNothing] {
            match read::<u8>(odd, &entry) {
                Err(Unreadable::Foreign(error)) => {
                    assert!(!format!("{error} {error:?}").contains("canary"));
                }
                other => panic!("{odd:?}: {other:?}"),
            }
        }
    }
}
