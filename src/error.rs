//! `Error`: why a call failed, and what became of it.
//!
//! Invariant: a transport error never looks like an answer. Every error says whether the call was
//! not executed, was refused, was executed, or may have been. Texts are bounded:
//! [`Display`](fmt::Display) writes at most 512 bytes, whatever a caller, a loader or
//! a server has said. An error whose key is hidden repeats no name, neither in its text nor in its
//! `Debug` nor in its sources.
//!
//! Every module makes these errors. The methods here add what the caller of a module knows: key,
//! address, shard.

mod kind;
pub mod loader;
mod sentence;
mod text;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

pub use kind::ErrorKind;
pub(crate) use kind::Fate;
use loader::{Captured, Failure};
use text::cut;
pub(crate) use text::{displayed, shortened};

use crate::name::Shown;

/// A result whose error is an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// [`kind`](Error::kind) classifies it, and [`source`](StdError::source) gives the cause. The text
/// is one sentence of at most 512 bytes: what happened and at which server, the cause if it is
/// known, what became of the call, what to do, and the [`key`](Error::key), quoted. Cloning is
/// cheap: callers that shared one flight share its error.
///
/// ```text
/// cannot connect to the server at 10.0.0.1:6379: connection refused; nothing was sent; check that it runs and listens there (key "views:42")
/// ```
#[derive(Clone)]
// One pointer, so that every `Result` stays small and the followers of a flight share the error.
pub struct Error(Arc<Repr>);

#[derive(Clone)]
struct Repr {
    kind: ErrorKind,
    fate: Fate,
    /// The name that the call was about, as it may be shown.
    key: Option<Box<str>>,
    /// Names are hidden, and with them everything that may quote one.
    hidden: bool,
    /// The client goes on with all that the call has not done.
    goes_on: bool,
    /// What happened and, behind the first `"; "`, what to do. `{server}` stands for the server and
    /// its address, `{address}` for the address alone.
    message: Cow<'static, str>,
    /// The cause, if a few words can say it.
    cause: Option<Cow<'static, str>>,
    /// The text of the server behind its error code, which is in `cause`. It may quote a name.
    words: Option<Box<str>>,
    place: Place,
    /// The name of the server among shards.
    shard: Option<Arc<str>>,
    source: Option<Source>,
}

/// The server that an error is about.
#[derive(Clone)]
enum Place {
    /// Not known here. A caller may add it.
    Unknown,
    /// The server at this address.
    At(Arc<str>),
    /// No server that holds data. An address would mislead.
    Nowhere,
}

/// The error that another was made from.
#[derive(Clone)]
enum Source {
    Error(Arc<dyn StdError + Send + Sync>),
    /// An error of the driver, which may quote what was sent or answered.
    Quoting(Arc<dyn StdError + Send + Sync>),
    /// The error that a loader returned.
    Loader(Arc<dyn Failure>),
}

impl Error {
    /// Returns the class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns whether the same call may succeed later and has had no effect: either it provably
    /// did not run, or it only reads.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.fate, Fate::NotExecuted | Fate::Unanswered)
    }

    /// Returns whether the call was sent and its effect is unknown: it ran once or not at all. A
    /// call that only reads has no effect, so its errors are never indeterminate.
    pub fn is_indeterminate(&self) -> bool {
        self.0.fate == Fate::Unknown
    }

    /// Returns whether the client goes on in the background with all of an
    /// [invalidation](crate::Cache::invalidate_tags) that this error says has failed. It goes on
    /// until the servers have it or the client ends, but gives up what they refuse for missing
    /// rights or credentials for about five minutes.
    ///
    /// It does not go on with the rest of the call: `durable` waits for no replicas then, and
    /// `purge_tag` removes no values.
    ///
    /// `false` if it goes on with a part at most: there was no room for all of it, or a key holds
    /// another type. `false` also if nothing is left to deliver, as after
    /// [`NotReplicated`](ErrorKind::NotReplicated), and for all other calls.
    pub fn goes_on(&self) -> bool {
        self.0.goes_on
    }

    /// Returns the name that the call was about, as the caller spelt it. It is cut in the middle if
    /// it is longer than any valid name. If names are hidden
    /// ([`ClientBuilder::hide_keys`](crate::ClientBuilder::hide_keys)), returns their digits.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// Returns the loader's own error if it has the type `E`: the value that the loader returned,
    /// for example an [`std::error::Error`] or an `anyhow::Error`.
    pub fn loader_error<E: 'static>(&self) -> Option<&E> {
        match &self.0.source {
            Some(Source::Loader(failure)) => failure.value().downcast_ref(),
            _ => None,
        }
    }

    /// Makes an error whose fate follows from its kind. `message` says what happened and, behind
    /// the first `"; "`, what to do. `{server}` in it stands for the server and its address.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Repr {
            kind,
            fate: Fate::of(kind),
            key: None,
            hidden: false,
            goes_on: false,
            message: bounded(message.into(), LONGEST_TEXT),
            cause: None,
            words: None,
            place: Place::Unknown,
            shard: None,
            source: None,
        }))
    }

    /// Makes the error of a load whose loader failed.
    pub(crate) fn of_loader(cause: Captured) -> Self {
        let error = Self::new(ErrorKind::Loader, "the loader failed");
        error.changed(|repr| repr.source = Some(Source::Loader(cause.0)))
    }

    /// Makes the error for input that was refused before anything was sent.
    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn with_fate(self, fate: Fate) -> Self {
        self.changed(|repr| repr.fate = fate)
    }

    /// The error of one of several commands. Another of them may have been executed.
    pub(crate) fn in_part(self) -> Self {
        match self.is_retryable() {
            true => self.with_fate(Fate::Unknown),
            false => self,
        }
    }

    /// The error of one of several commands, of which another was executed for certain.
    pub(crate) fn after_a_part(self) -> Self {
        self.with_fate(Fate::Unknown)
    }

    /// The error of a call that only reads: it makes no difference whether it was executed.
    pub(crate) fn of_a_read(self) -> Self {
        match self.fate() {
            Fate::Unknown => self.with_fate(Fate::Unanswered),
            _ => self,
        }
    }

    /// The error of a query that the crate sent before a call. Whatever became of the query, the
    /// call was not sent. A refusal stays a refusal.
    pub(crate) fn of_own_question(self) -> Self {
        match self.fate() {
            Fate::Refused => self,
            Fate::NotExecuted | Fate::Unknown | Fate::Unanswered | Fate::Executed => {
                self.with_fate(Fate::NotExecuted)
            }
        }
    }

    /// Adds the name that the call was about. If it is hidden, removes everything that may quote
    /// it.
    pub(crate) fn with_key<'n>(self, key: impl Into<Shown<'n>>) -> Self {
        let key = key.into();
        let error = match key.is_hidden() {
            true => self.without_quotes(),
            false => self,
        };
        let text = key.as_str();
        // A name that was refused as too long may have any length.
        let text = match text.len() <= LONGEST_KEY {
            true => text.into(),
            false => shortened(text).into(),
        };
        error.changed(|repr| repr.key = Some(text))
    }

    /// As [`with_key`](Self::with_key), unless the error names something already, such as a tag. A
    /// hidden name replaces one that is shown: the error is of a flight that several callers share,
    /// and was made for one of them.
    pub(crate) fn about<'n>(self, key: impl Into<Shown<'n>>) -> Self {
        let key = key.into();
        match self.0.key {
            Some(_) if self.0.hidden || !key.is_hidden() => self,
            _ => self.with_key(key),
        }
    }

    pub(crate) fn without_key(self) -> Self {
        self.changed(|repr| repr.key = None)
    }

    /// Removes everything that may quote a name: the texts of the server and of the driver.
    pub(crate) fn without_quotes(self) -> Self {
        if self.0.hidden {
            return self;
        }
        self.changed(|repr| {
            repr.hidden = true;
            if repr.words.take().is_some() {
                let code = repr.cause.take().unwrap_or_default();
                repr.cause = Some(format!("{code} (the rest is hidden)").into());
            }
            repr.source = repr.source.take().and_then(Source::without_quotes);
        })
    }

    /// Adds the cause, in a few words that become part of the text.
    pub(crate) fn because(self, cause: impl Into<Cow<'static, str>>) -> Self {
        let cause = bounded(cause.into(), LONGEST_CAUSE);
        self.changed(|repr| repr.cause = Some(cause))
    }

    /// Adds the cause in the words of the server: its error code, and the text behind it.
    pub(crate) fn because_server_says(self, code: &str, words: &str) -> Self {
        // Apart from the code, so that the text can be hidden while the code stays.
        let words = cut(words, LONGEST_CAUSE).into();
        let error = self.because(code.to_owned());
        error.changed(|repr| repr.words = Some(words))
    }

    /// Adds the address of the server, unless the error has one or is about no server.
    pub(crate) fn at_address(self, address: &Arc<str>) -> Self {
        match self.0.place {
            Place::At(_) | Place::Nowhere => self,
            Place::Unknown => self.changed(|repr| repr.place = Place::At(address.clone())),
        }
    }

    /// Marks the error as about no server, so that no address is added later. It is not known which
    /// server is responsible.
    pub(crate) fn at_no_address(self) -> Self {
        self.changed(|repr| repr.place = Place::Nowhere)
    }

    /// Adds the name of the shard.
    pub(crate) fn at(self, shard: &str) -> Self {
        self.changed(|repr| repr.shard = Some(shard.into()))
    }

    pub(crate) fn with_source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = Arc::from(source.into());
        self.changed(|repr| repr.source = Some(Source::Error(source)))
    }

    /// As [`with_source`](Self::with_source), for a source that may quote what was sent or
    /// answered.
    pub(crate) fn with_quoting_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.changed(|repr| repr.source = Some(Source::Quoting(Arc::new(source))))
    }

    /// Adds a clause in front of what the text says to do. It comes first because long advice is
    /// cut at its end.
    pub(crate) fn advising(self, clause: &str) -> Self {
        let message = match self.0.message.split_once("; ") {
            Some((what, advice)) => format!("{what}; {clause}; {advice}"),
            None => format!("{}; {clause}", self.0.message),
        };
        let message = bounded(message.into(), LONGEST_TEXT);
        self.changed(|repr| repr.message = message)
    }

    /// Notes that the client goes on in the background with all that the call has not done.
    pub(crate) fn going_on(self) -> Self {
        self.changed(|repr| repr.goes_on = true)
    }

    /// Returns what happened and what to do, without the key.
    pub(crate) fn text(&self) -> &str {
        &self.0.message
    }

    /// Returns the kind that decides whether the caller may do without the server. An open circuit
    /// breaker speaks for what was learnt of the server last.
    pub(crate) fn reason(&self) -> ErrorKind {
        let cause = match self.kind() {
            ErrorKind::CircuitOpen => self.source().and_then(|cause| cause.downcast_ref()),
            _ => None,
        };
        cause.map_or(self.kind(), Self::kind)
    }

    pub(crate) fn fate(&self) -> Fate {
        self.0.fate
    }

    /// Returns the address of the server, if it is known.
    pub(crate) fn address(&self) -> Option<&str> {
        match &self.0.place {
            Place::At(address) => Some(address),
            Place::Unknown | Place::Nowhere => None,
        }
    }

    fn changed(self, change: impl FnOnce(&mut Repr)) -> Self {
        // Clones only if the error is shared, for example by the followers of a flight.
        let mut repr = Arc::unwrap_or_clone(self.0);
        change(&mut repr);
        Self(Arc::new(repr))
    }
}

impl Source {
    /// Returns what may be kept of the source when names are hidden. The text of a loader's error
    /// is left alone: its author decides what it says.
    fn without_quotes(self) -> Option<Self> {
        match self {
            Self::Quoting(_) => None,
            // An error of this crate may quote a name as well.
            Self::Error(source) => Some(match source.downcast_ref::<Error>() {
                Some(error) => Self::Error(Arc::new(error.clone().without_quotes())),
                None => Self::Error(source),
            }),
            Self::Loader(failure) => Some(Self::Loader(failure)),
        }
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
            .field("cause", &self.why())
            .field("server", &self.place());
        match &self.0.source {
            None => debug.field("source", &None::<()>),
            Some(Source::Error(error) | Source::Quoting(error)) => debug.field("source", error),
            Some(Source::Loader(failure)) => debug.field("source", failure),
        };
        debug.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.0.source.as_ref()? {
            Source::Error(error) | Source::Quoting(error) => Some(&**error),
            Source::Loader(failure) => Some(failure.error()),
        }
    }
}

/// Returns `text`, cut if it is longer than `most` bytes.
fn bounded(text: Cow<'static, str>, most: usize) -> Cow<'static, str> {
    match text.len() <= most {
        true => text,
        false => cut(&text, most).into(),
    }
}

/// The most bytes of the text of an error.
const LONGEST_TEXT: usize = 512;

/// The most bytes of a cause within a text.
const LONGEST_CAUSE: usize = 200;

/// The most bytes of a key that is kept whole; no valid name is longer.
const LONGEST_KEY: usize = 1024;
