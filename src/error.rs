//! `Error`: what may go wrong, and what became of the call.
//!
//! Invariant: a transport error never looks like an answer. Every error says whether the call was
//! not executed, was refused, or may have been applied without anybody knowing. Texts are bounded:
//! [`Display`](fmt::Display) writes at most [`LONGEST_TEXT`] bytes, whatever a caller, a loader or a
//! server has said.

pub mod loader;
mod text;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use loader::{Captured, Failure};
pub(crate) use text::shortened;
use text::{cut, displayed};

/// A result whose error is an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// [`kind`](Error::kind) classifies it, and [`source`](StdError::source) gives the cause. The text is
/// one sentence of at most 512 bytes: what happened and at which server, the cause as far as it is
/// known, what became of the call, what to do, and the [`key`](Error::key), quoted. Cloning is
/// cheap: callers that shared one flight share its error.
///
/// ```text
/// cannot connect to the server at 10.0.0.1:6379: connection refused; nothing was sent; check that it runs and listens there (key "views:42")
/// ```
#[derive(Clone)]
pub struct Error(Arc<Repr>);

#[derive(Clone)]
struct Repr {
    kind: ErrorKind,
    fate: Fate,
    key: Option<Box<str>>,
    /// What happened, and behind the first `"; "` what to do. `{server}` stands for the server and
    /// its address, `{address}` for the address alone.
    message: Cow<'static, str>,
    /// Why it happened, where that is known in a few words.
    cause: Option<Cow<'static, str>>,
    /// Where the server is that it happened at.
    address: Option<Arc<str>>,
    /// The name of that server among shards.
    shard: Option<Arc<str>>,
    source: Option<Source>,
}

/// What an error was made from.
#[derive(Clone)]
enum Source {
    Error(Arc<dyn StdError + Send + Sync>),
    /// What a loader returned.
    Loader(Arc<dyn Failure>),
}

/// What became of the call on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Proved not to have run: may be sent again.
    NotExecuted,
    /// The server or the crate said no: sending it again changes nothing.
    Refused,
    /// Sent, no reply: it ran once or not at all.
    Unknown,
    /// Sent, no reply, but it only reads: whether it ran makes no difference.
    Unanswered,
}

/// The class of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's input was refused before anything was sent.
    InvalidInput,
    /// No connection could be made: nothing was sent.
    Unreachable,
    /// The deadline passed. [`Error::is_indeterminate`] tells whether something may have been
    /// applied.
    Timeout,
    /// The connection was lost after the command was sent and before its reply came.
    Disconnected,
    /// The server is out, and the circuit breaker did not let the call through: nothing was sent.
    CircuitOpen,
    /// Too much waits to be sent to the server already
    /// ([`ClientBuilder::max_waiting`](crate::ClientBuilder::max_waiting)): nothing was sent. The
    /// call is refused at once, and not tried again inside.
    Overloaded,
    /// `maxclients` is reached: the server takes no more connections.
    MaxClients,
    /// The server is out of memory (`maxmemory` with nothing to evict).
    OutOfMemory,
    /// The server is a read-only replica.
    ReadOnly,
    /// `MISCONF`: the server cannot persist and therefore refuses writes.
    Misconfigured,
    /// The server is loading its data set.
    Loading,
    /// The server is busy running somebody's script.
    Busy,
    /// `NOAUTH` or `WRONGPASS`: credentials are missing or wrong.
    Unauthenticated,
    /// TLS: the server could not prove who it is, or refused the proof of who we are; no call was
    /// sent.
    Tls,
    /// `NOPERM`: the ACL user may not run the command or touch the key.
    Forbidden,
    /// A key of ours holds a type that the primitive did not write.
    WrongType,
    /// A replica lost its primary and serves no stale data.
    MasterDown,
    /// The cluster does not serve this slot.
    ClusterDown,
    /// Keys of one command lie in several slots.
    CrossSlot,
    /// Fewer replicas are attached than `min-replicas-to-write` asks for.
    NoReplicas,
    /// The server answered in a way that the crate does not know.
    Server,
    /// A counter would have passed the end of `i64`; it is unchanged.
    Overflow,
    /// A counter would have left its `within` range; it is unchanged.
    OutOfRange,
    /// The lock was not free within the wait.
    Contended,
    /// The lock is no longer held by this guard.
    Lost,
    /// The value could not be encoded.
    Encode,
    /// The stored bytes could not be decoded.
    Decode,
    /// The value is larger than the limit.
    TooLarge,
    /// The loader returned an error: [`Error::loader_error`] gives it back as it is, and it is the
    /// [`source`](StdError::source).
    Loader,
    /// The loader panicked.
    LoaderPanicked,
    /// The loader took longer than `max_load`, or could not begin within it: while Redis is done
    /// without, loads run a few at a time.
    LoaderTimeout,
    /// The loader of a key asked for the same key.
    Reentrant,
    /// No server binary was found, or it did not start.
    Embedded,
}

impl ErrorKind {
    /// Whether it says that Redis does not serve us now, whatever was asked of it: an outage, a
    /// server that is full, misconfigured or too slow for what this client asks of it, or rights
    /// that were taken away. The opposite are faults
    /// of the input, of what is stored, and of the caller's own code.
    pub fn is_outage(self) -> bool {
        match self {
            Self::Unreachable
            | Self::Timeout
            | Self::Disconnected
            | Self::CircuitOpen
            | Self::Overloaded
            | Self::MaxClients
            | Self::OutOfMemory
            | Self::ReadOnly
            | Self::Misconfigured
            | Self::Loading
            | Self::Busy
            | Self::Unauthenticated
            | Self::Tls
            | Self::Forbidden
            | Self::MasterDown
            | Self::ClusterDown
            | Self::NoReplicas
            | Self::Server => true,
            Self::InvalidInput
            | Self::WrongType
            | Self::CrossSlot
            | Self::Overflow
            | Self::OutOfRange
            | Self::Contended
            | Self::Lost
            | Self::Encode
            | Self::Decode
            | Self::TooLarge
            | Self::Loader
            | Self::LoaderPanicked
            | Self::LoaderTimeout
            | Self::Reentrant
            | Self::Embedded => false,
        }
    }
}

impl Error {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later and has had no effect now: it is proved not to have
    /// run, or it only reads.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.fate, Fate::NotExecuted | Fate::Unanswered)
    }

    /// Whether the call was sent and its effect is unknown: it ran once or not at all. A call that
    /// only reads has no effect, so its errors are never indeterminate.
    pub fn is_indeterminate(&self) -> bool {
        self.0.fate == Fate::Unknown
    }

    /// The name that the call was about, as the caller spelt it; cut in the middle if it is longer
    /// than any name may be.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// The loader's own error, when it is one of type `E`: the value itself that the loader
    /// returned, be it an [`std::error::Error`] or an `anyhow::Error`.
    pub fn loader_error<E: 'static>(&self) -> Option<&E> {
        match &self.0.source {
            Some(Source::Loader(failure)) => failure.value().downcast_ref(),
            _ => None,
        }
    }

    /// An error of a fate that follows from its kind. `message` says what happened and, behind the
    /// first `"; "`, what to do; `{server}` in it stands for the server and its address.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        let fate = match kind {
            ErrorKind::Unreachable
            | ErrorKind::CircuitOpen
            | ErrorKind::Overloaded
            | ErrorKind::MaxClients
            | ErrorKind::ReadOnly
            | ErrorKind::Loading
            | ErrorKind::Busy
            | ErrorKind::MasterDown
            | ErrorKind::ClusterDown => Fate::NotExecuted,
            ErrorKind::Disconnected => Fate::Unknown,
            _ => Fate::Refused,
        };
        Self(Arc::new(Repr {
            kind,
            fate,
            key: None,
            message: bounded(message.into(), LONGEST_TEXT),
            cause: None,
            address: None,
            shard: None,
            source: None,
        }))
    }

    /// The error of a load whose loader has returned one.
    pub(crate) fn of_loader(cause: Captured) -> Self {
        let error = Self::new(ErrorKind::Loader, "the loader failed");
        error.changed(|repr| repr.source = Some(Source::Loader(cause.0)))
    }

    /// What the caller gave was refused before anything was sent.
    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn with_fate(self, fate: Fate) -> Self {
        self.changed(|repr| repr.fate = fate)
    }

    /// The error of a call that only reads: whether it was executed makes no difference.
    pub(crate) fn of_a_read(self) -> Self {
        match self.fate() {
            Fate::Unknown => self.with_fate(Fate::Unanswered),
            _ => self,
        }
    }

    pub(crate) fn with_key(self, key: &str) -> Self {
        let key = match key.len() <= LONGEST_KEY {
            true => key.into(),
            false => shortened(key).into(),
        };
        self.changed(|repr| repr.key = Some(key))
    }

    /// Says why, in a few words that stand in the text.
    pub(crate) fn because(self, cause: impl Into<Cow<'static, str>>) -> Self {
        let cause = bounded(cause.into(), LONGEST_CAUSE);
        self.changed(|repr| repr.cause = Some(cause))
    }

    /// Says at which address the server is, unless that is known.
    pub(crate) fn at_address(self, address: &Arc<str>) -> Self {
        match self.0.address {
            Some(_) => self,
            None => self.changed(|repr| repr.address = Some(address.clone())),
        }
    }

    /// Says at which of several servers it happened.
    pub(crate) fn at(self, shard: &str) -> Self {
        self.changed(|repr| repr.shard = Some(shard.into()))
    }

    pub(crate) fn with_source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = Arc::from(source.into());
        self.changed(|repr| repr.source = Some(Source::Error(source)))
    }

    /// What it says, without the key.
    pub(crate) fn text(&self) -> &str {
        &self.0.message
    }

    pub(crate) fn fate(&self) -> Fate {
        self.0.fate
    }

    /// Where the server is that it happened at, as far as known.
    pub(crate) fn address(&self) -> Option<&str> {
        self.0.address.as_deref()
    }

    /// Why, in a few words, without address and advice.
    pub(crate) fn brief(&self) -> Cow<'_, str> {
        if let Some(cause) = &self.0.cause {
            return cause.as_ref().into();
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

    fn changed(self, change: impl FnOnce(&mut Repr)) -> Self {
        let mut repr = Arc::unwrap_or_clone(self.0);
        change(&mut repr);
        Self(Arc::new(repr))
    }

    /// What happened, and what to do.
    fn parts(&self) -> (&str, Option<&str>) {
        match self.0.message.split_once("; ") {
            Some((what, advice)) => (what, Some(advice)),
            None => (&self.0.message, None),
        }
    }

    /// The server: its name among shards and its address, as far as known.
    fn place(&self) -> Option<String> {
        match (&self.0.shard, &self.0.address) {
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

    /// What became of the call.
    fn outcome(&self) -> &'static str {
        match (self.0.fate, self.0.kind) {
            (Fate::Unknown, _) => "sent, no reply: it was applied once or not at all",
            (Fate::Unanswered, _) => "it was a read: nothing was changed",
            // Their texts begin with that.
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
        match (&self.0.cause, &self.0.source) {
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
        let mut room = LONGEST_TEXT - key.len();
        if !outcome.is_empty() {
            end = format!("; {outcome}");
        }
        if let Some(advice) = advice {
            end = cut(&format!("{end}; {advice}"), room / 2);
        }
        room -= end.len();
        write!(f, "{}{end}{key}", cut(&head, room))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug
            .field("kind", &self.0.kind)
            .field("fate", &self.0.fate)
            .field("key", &self.0.key)
            .field("message", &self.0.message)
            .field("cause", &self.0.cause)
            .field("server", &self.place());
        match &self.0.source {
            None => debug.field("source", &None::<()>),
            Some(Source::Error(error)) => debug.field("source", error),
            Some(Source::Loader(failure)) => debug.field("source", failure),
        };
        debug.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.0.source.as_ref()? {
            Source::Error(error) => Some(&**error),
            Source::Loader(failure) => Some(failure.error()),
        }
    }
}

/// `what` for a server whose address is not known, or not to be said.
fn stand_ins(what: &str) -> String {
    what.replace(SERVER, "the server")
        .replace(ADDRESS, "the server")
}

/// `text`, cut if it is longer than `most` bytes.
fn bounded(text: Cow<'static, str>, most: usize) -> Cow<'static, str> {
    match text.len() <= most {
        true => text,
        false => cut(&text, most).into(),
    }
}

/// Stands for the server in a message.
const SERVER: &str = "{server}";

/// Stands for its address, where the sentence speaks of something else.
const ADDRESS: &str = "{address}";

/// The most bytes of a text.
const LONGEST_TEXT: usize = 512;

/// The most bytes of a cause that stands in a text.
const LONGEST_CAUSE: usize = 200;

/// The most bytes of a name that is kept whole; no valid name is longer.
const LONGEST_KEY: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fates() -> impl Strategy<Value = Fate> {
        prop_oneof![
            Just(Fate::NotExecuted),
            Just(Fate::Refused),
            Just(Fate::Unknown),
            Just(Fate::Unanswered),
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
                .with_key(&key.repeat(times));
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
            // What became of the call is never what is cut away.
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
        .with_key("views:42");
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
