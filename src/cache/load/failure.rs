//! `Failure`: what the record of a failed load says to other processes.
//!
//! Invariant: a record holds the kind of the error and a text of at most 200 bytes, never its type.
//! It is stamped and judged as an entry is, so no caller gets a failure from before an
//! invalidation. Errors that say more of the caller than of the key are not recorded. The load of a
//! flight makes and reads records.

use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, ErrorKind, displayed};

/// How a load has failed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cache) struct Failure {
    kind: ErrorKind,
    text: String,
}

impl Failure {
    /// Returns what is recorded of `error`. `None` if another caller may well succeed: after a
    /// cycle, a call of the loader's own key, or a refusal because too many loads or calls were
    /// under way in this process.
    pub(in crate::cache) fn of(error: &Error) -> Option<Self> {
        // The text and the causes come from the loader's own error type, which may panic.
        let told = catch_unwind(AssertUnwindSafe(|| Self::told(error)));
        told.unwrap_or_else(|_panic| {
            Some(Self {
                kind: error.kind(),
                text: "its error cannot be displayed".to_owned(),
            })
        })
    }

    fn told(error: &Error) -> Option<Self> {
        let mut ours = causes(error).filter_map(|cause| cause.downcast_ref::<Error>());
        // At any depth: a loader that calls the cache wraps such an error in its own.
        if ours.any(is_of_the_caller) {
            return None;
        }
        let text = match error.kind() {
            ErrorKind::Loader => {
                let causes = causes(error).skip(1);
                let causes = causes.map(|cause| displayed(cause, LONGEST));
                causes.collect::<Vec<_>>().join(": ")
            }
            ErrorKind::Encode | ErrorKind::TooLarge => error.text().to_owned(),
            // For the other kinds, `error` has the text.
            _ => String::new(),
        };
        // An error of a kind without a code is not recorded.
        CODES.iter().find(|(_, kind)| *kind == error.kind())?;
        Some(Self {
            kind: error.kind(),
            text: cut(text),
        })
    }

    /// The error for callers that did not load.
    pub(in crate::cache) fn error(self) -> Error {
        let Self { kind, text } = self;
        let message = match kind {
            ErrorKind::LoaderPanicked => "the loader panicked, in another call".into(),
            ErrorKind::LoaderTimeout => "the loader took longer than max_load, in another call; \
                 raise max_load or make it faster"
                .into(),
            ErrorKind::Loader => {
                return Error::new(kind, "the loader failed, in another call").because(text);
            }
            _ => text,
        };
        Error::new(kind, message)
    }
}

/// `error`, then its cause, and so on. The number is limited, because an error may be its own
/// cause.
fn causes(error: &Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let mut next = Some(error as &(dyn StdError + 'static));
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
    .take(MOST_CAUSES)
}

/// Whether an error says more of the caller than of the key.
fn is_of_the_caller(error: &Error) -> bool {
    match error.kind() {
        // A process that makes too many calls at once says nothing of the key.
        ErrorKind::Reentrant | ErrorKind::Overloaded => true,
        // Retryable are loads without Redis that got no permit. A loader that was too slow has run.
        ErrorKind::LoaderTimeout => error.is_retryable(),
        _ => false,
    }
}

/// The first bytes of `text`, as many as are recorded.
fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST - 2)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push_str("..");
    }
    text
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let code = CODES.iter().find(|(_, kind)| *kind == self.kind);
        let code = code.map_or(0, |(code, _)| *code);
        (code, &self.text).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Failure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (number, text) = <(u8, String)>::deserialize(deserializer)?;
        let kind = CODES.iter().find(|(code, _)| *code == number);
        let (_, kind) = kind.ok_or_else(|| de::Error::custom("an unknown kind of failure"))?;
        Ok(Self {
            kind: *kind,
            text: cut(text),
        })
    }
}

/// The number that stands for each kind. Part of the format.
const CODES: [(u8, ErrorKind); 5] = [
    (1, ErrorKind::Loader),
    (2, ErrorKind::LoaderPanicked),
    (3, ErrorKind::LoaderTimeout),
    (4, ErrorKind::Encode),
    (5, ErrorKind::TooLarge),
];

/// How many causes are looked at.
const MOST_CAUSES: usize = 16;

/// The longest text of a record, in bytes.
const LONGEST: usize = 200;

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::error::Fate;

    fn loader(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::new(ErrorKind::Loader, "the loader failed").with_source(cause)
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let text = "ä".repeat(150);
        let failure = Failure::of(&loader(io::Error::other(text))).expect("recorded");
        assert!(failure.text.len() <= LONGEST, "{}", failure.text.len());
        assert!(failure.text.ends_with("ä.."));
    }

    #[test]
    fn what_concerns_the_caller_is_not_recorded_however_deep_it_is() {
        let cycle = Error::new(ErrorKind::Reentrant, "a cycle");
        assert_eq!(Failure::of(&loader(loader(cycle))), None);
        let refused = Error::new(ErrorKind::LoaderTimeout, "no place");
        let refused = refused.with_fate(Fate::NotExecuted);
        assert_eq!(Failure::of(&loader(refused)), None);
        let overload = Error::new(ErrorKind::Overloaded, "too much waits");
        assert_eq!(Failure::of(&loader(loader(overload))), None);
        let slow = Error::new(ErrorKind::LoaderTimeout, "too slow");
        assert!(Failure::of(&loader(slow)).is_some());
    }

    #[test]
    fn an_error_that_panics_or_never_ends_is_recorded_all_the_same() {
        #[derive(Debug)]
        enum Odd {
            Panics,
            IsItsOwnCause,
            IsHuge,
        }
        impl std::fmt::Display for Odd {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    Self::Panics => panic!("on purpose"),
                    Self::IsItsOwnCause => f.write_str("again"),
                    Self::IsHuge => (0..u64::MAX).try_for_each(|_| f.write_str("huge")),
                }
            }
        }
        impl StdError for Odd {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                matches!(self, Self::IsItsOwnCause).then_some(self)
            }
        }
        let text = |odd| Failure::of(&loader(odd)).expect("recorded").text;
        assert_eq!(text(Odd::Panics), "its error cannot be displayed");
        assert!(text(Odd::IsItsOwnCause).starts_with("again: again"));
        assert!(text(Odd::IsHuge).starts_with("hugehuge"));
    }

    #[test]
    fn every_cause_is_told() {
        let failure = Failure::of(&loader(loader("the table is locked"))).expect("recorded");
        assert_eq!(
            failure.error().to_string(),
            "the loader failed, in another call: the loader failed: the table is locked"
        );
    }
}
