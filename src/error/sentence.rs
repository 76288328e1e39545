//! The sentence that an [`Error`] is displayed as.
//!
//! Invariant: the parts have one order (what happened and where, why, what became of the call, what
//! to do, the key). The part that says what became of the call is never cut away. Errors that quote
//! another error use [`brief`](Error::brief).

use std::borrow::Cow;
use std::fmt;

use super::text::{cut, displayed, shortened};
use super::{Error, ErrorKind, Fate, LONGEST_CAUSE, LONGEST_TEXT, Source};

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, advice) = self.parts();
        let place = self.place();
        let mut head = match &place {
            Some(place) if what.contains(SERVER) => {
                what.replacen(SERVER, &format!("the server at {place}"), 1)
            }
            Some(place) if what.contains(ADDRESS) => what.replacen(ADDRESS, place, 1),
            Some(place) => format!("{what} ({place})"),
            None => what
                .replacen(SERVER, "the server", 1)
                .replacen(ADDRESS, "the server", 1),
        };
        match (self.why(), &self.0.source) {
            (Some(cause), _) => head = format!("{head}: {cause}"),
            (None, Some(Source::Loader(failure))) => {
                head = format!("{head}: {}", displayed(failure.error(), LONGEST_CAUSE));
            }
            _ => {}
        }
        let mut end = String::new();
        let outcome = self.outcome();
        let key = self.0.key.as_deref().map(shortened);
        let key = key.map_or_else(String::new, |key| format!(" (key \"{key}\")"));
        // The key is never cut here, since `shortened` has bounded it.
        let mut room = LONGEST_TEXT - key.len();
        if !outcome.is_empty() {
            end = format!("; {outcome}");
        }
        if let Some(advice) = advice {
            // Half of the room, so that long advice leaves space for what happened.
            end = cut(&format!("{end}; {advice}"), room / 2);
        }
        room -= end.len();
        write!(f, "{}{end}{key}", cut(&head, room))
    }
}

impl Error {
    /// Returns the cause in a few words, without address and advice.
    pub(crate) fn brief(&self) -> Cow<'_, str> {
        if let Some(cause) = self.why() {
            return cause;
        }
        match self.0.kind {
            ErrorKind::Unreachable => "no connection".into(),
            ErrorKind::Timeout => "no answer in time".into(),
            ErrorKind::Disconnected => "connection lost".into(),
            ErrorKind::MaxClients => "maxclients".into(),
            ErrorKind::Loading => "LOADING".into(),
            ErrorKind::Busy => "BUSY".into(),
            ErrorKind::MasterDown => "MASTERDOWN".into(),
            ErrorKind::ClusterDown => "CLUSTERDOWN".into(),
            _ => stand_ins(self.parts().0).into(),
        }
    }

    /// Returns the cause, if a few words can say it.
    pub(super) fn why(&self) -> Option<Cow<'_, str>> {
        let cause = self.0.cause.as_deref()?;
        Some(match &self.0.words {
            Some(words) => cut(&format!("{cause} {words}"), LONGEST_CAUSE).into(),
            None => cause.into(),
        })
    }

    /// Returns what happened, and what to do.
    fn parts(&self) -> (&str, Option<&str>) {
        match self.0.message.split_once("; ") {
            Some((what, advice)) => (what, Some(advice)),
            None => (&self.0.message, None),
        }
    }

    /// Returns the server: its name among shards and its address, as far as known.
    pub(super) fn place(&self) -> Option<String> {
        match (&self.0.shard, self.address()) {
            (None, None) => None,
            (None, Some(address)) => Some(shortened(address)),
            (Some(shard), None) => Some(format!("shard \"{}\"", shortened(shard))),
            (Some(shard), Some(address)) => Some(format!(
                "shard \"{}\" ({})",
                shortened(shard),
                shortened(address)
            )),
        }
    }

    /// Returns what became of the call.
    fn outcome(&self) -> &'static str {
        match (self.0.fate, self.0.kind) {
            (Fate::Unknown, _) => "sent, no reply: it was applied once or not at all",
            (Fate::Unanswered, _) => "it was a read: nothing was changed",
            (Fate::Executed, _) => "the call was executed on the primary",
            // Their messages begin with it.
            (Fate::NotExecuted, ErrorKind::CircuitOpen | ErrorKind::Overloaded) => "",
            (
                Fate::NotExecuted,
                ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::MaxClients,
            )
            | (_, ErrorKind::Tls) => "nothing was sent",
            (Fate::NotExecuted, _) => "the call was not executed",
            (
                Fate::Refused,
                ErrorKind::OutOfMemory
                | ErrorKind::Misconfigured
                | ErrorKind::Unauthenticated
                | ErrorKind::Forbidden
                | ErrorKind::WrongType
                | ErrorKind::CrossSlot
                | ErrorKind::NoReplicas
                | ErrorKind::Server,
            ) => "the call was refused",
            (Fate::Refused, _) => "",
        }
    }
}

/// Returns `what` for a server whose address is not known, or must not be shown.
fn stand_ins(what: &str) -> String {
    what.replace(SERVER, "the server")
        .replace(ADDRESS, "the server")
}

/// Stands for the server in a message.
// Placeholders, since the address is known only after the message was made.
const SERVER: &str = "{server}";

/// Stands for the address, in a sentence about something other than the server.
const ADDRESS: &str = "{address}";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name::HideKeys;

    fn fates() -> impl Strategy<Value = Fate> {
        prop_oneof![
            Just(Fate::NotExecuted),
            Just(Fate::Refused),
            Just(Fate::Unknown),
            Just(Fate::Unanswered),
            Just(Fate::Executed),
        ]
    }

    proptest! {
        #[test]
        fn a_text_is_bounded_whatever_it_is_made_from(
            message in any::<String>(),
            times in 1..40usize,
            key in any::<String>(),
            cause in proptest::option::of(any::<String>()),
            address in proptest::option::of(any::<String>()),
            shard in proptest::option::of(any::<String>()),
            fate in fates(),
        ) {
            let mut error = Error::new(ErrorKind::Server, message.repeat(times))
                .with_fate(fate)
                .with_key(HideKeys::off().show(&key.repeat(times)));
            if let Some(cause) = cause {
                error = error.because(cause.repeat(times));
            }
            if let Some(address) = address {
                error = error.at_address(&address.repeat(times).into());
            }
            if let Some(shard) = shard {
                error = error.at(&shard.repeat(times));
            }
            let text = error.to_string();
            prop_assert!(text.len() <= LONGEST_TEXT, "{} bytes: {text}", text.len());
            // What became of the call is never cut away.
            prop_assert!(text.contains(error.outcome()), "{text}");
            prop_assert!(text.ends_with("\")"), "{text}");
        }
    }

    #[test]
    fn a_name_is_cut_in_the_middle_to_64_characters() {
        for (name, shown) in [
            ("views:42".to_owned(), "views:42".to_owned()),
            ("é".repeat(64), "é".repeat(64)),
            ("a\"b\n".to_owned(), r#"a\"b\n"#.to_owned()),
            (
                format!("{}{}", "a".repeat(5_000_000), "b".repeat(5_000_000)),
                format!("{}..{}", "a".repeat(31), "b".repeat(31)),
            ),
        ] {
            assert_eq!(shortened(&name), shown);
        }
        let controls = shortened(&"\u{1}".repeat(1000));
        assert!(controls.chars().count() <= 64, "{controls}");
        assert!(
            !controls.contains("u{1..") && !controls.contains("..}"),
            "{controls}"
        );
    }

    #[test]
    fn the_parts_of_a_text_have_an_order() {
        let error = Error::new(
            ErrorKind::Unreachable,
            "cannot connect to {server}; check it",
        )
        .because("connection refused")
        .at_address(&"10.0.0.1:6379".into())
        .at("b")
        .with_key(HideKeys::off().show("views:42"));
        assert_eq!(
            error.to_string(),
            "cannot connect to the server at shard \"b\" (10.0.0.1:6379): connection refused; \
             nothing was sent; check it (key \"views:42\")"
        );
        let error = Error::new(ErrorKind::Timeout, "no reply").with_fate(Fate::Unknown);
        assert_eq!(
            error.to_string(),
            "no reply; sent, no reply: it was applied once or not at all"
        );
        assert!(error.is_indeterminate() && !error.is_retryable());
        let read = error.of_a_read();
        assert!(!read.is_indeterminate() && read.is_retryable());
        assert_eq!(
            read.to_string(),
            "no reply; it was a read: nothing was changed"
        );
    }
}
