//! `Error`: what went wrong, and what became of the call.
//!
//! Invariant: a transport error never looks like an answer. Every error says whether the call was
//! not executed, was refused, or may have been applied. Texts are bounded:
//! [`Display`](fmt::Display) writes at most [`LONGEST_TEXT`] bytes, whatever a caller, a loader or
//! a server has said. An error whose key is hidden repeats no name: not in its text, its `Debug` or
//! its sources.

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
/// is one sentence of at most 512 bytes: what happened and at which server, the cause as far as it
/// is known, what became of the call, what to do, and the [`key`](Error::key), quoted. Cloning is
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
    /// The name that the call was about, as it is shown.
    key: Option<Box<str>>,
    /// Names are hidden: so is all that may quote one.
    hidden: bool,
    /// What happened, and behind the first `"; "` what to do. `{server}` stands for the server and
    /// its address, `{address}` for the address alone.
    message: Cow<'static, str>,
    /// Why it happened, where that is known in a few words.
    cause: Option<Cow<'static, str>>,
    /// What the server said behind the code that is the cause. It may quote a name.
    words: Option<Box<str>>,
    place: Place,
    /// The name of that server among shards.
    shard: Option<Arc<str>>,
    source: Option<Source>,
}

/// Where it happened.
#[derive(Clone)]
enum Place {
    /// Somebody may say yet.
    Unknown,
    /// At the server with this address.
    At(Arc<str>),
    /// At no server of the data: the address of one would mislead.
    Nowhere,
}

/// What an error was made from.
#[derive(Clone)]
enum Source {
    Error(Arc<dyn StdError + Send + Sync>),
    /// The driver's, which may quote what was sent or answered.
    Quoting(Arc<dyn StdError + Send + Sync>),
    /// What a loader returned.
    Loader(Arc<dyn Failure>),
}

impl Error {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later and has had no effect: it provably did not run, or
    /// it only reads.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.fate, Fate::NotExecuted | Fate::Unanswered)
    }

    /// Whether the call was sent and its effect is unknown: it ran once or not at all. A call that
    /// only reads has no effect, so its errors are never indeterminate.
    pub fn is_indeterminate(&self) -> bool {
        self.0.fate == Fate::Unknown
    }

    /// The name that the call was about, as the caller spelt it; cut in the middle if it is longer
    /// than any name may be. Where names are hidden
    /// ([`ClientBuilder::hide_keys`](crate::ClientBuilder::hide_keys)), their digits.
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
        Self(Arc::new(Repr {
            kind,
            fate: Fate::of(kind),
            key: None,
            hidden: false,
            message: bounded(message.into(), LONGEST_TEXT),
            cause: None,
            words: None,
            place: Place::Unknown,
            shard: None,
            source: None,
        }))
    }

    /// The error of a load whose loader failed.
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

    /// The error of one of several commands: that it was not executed is not true of all.
    pub(crate) fn in_part(self) -> Self {
        match self.is_retryable() {
            true => self.with_fate(Fate::Unknown),
            false => self,
        }
    }

    /// The error of a call that only reads: whether it was executed makes no difference.
    pub(crate) fn of_a_read(self) -> Self {
        match self.fate() {
            Fate::Unknown => self.with_fate(Fate::Unanswered),
            _ => self,
        }
    }

    /// The error of a question that the crate asked ahead of a call: whatever became of the
    /// question, the call was not sent. A refusal stays one.
    pub(crate) fn of_own_question(self) -> Self {
        match self.fate() {
            Fate::Refused => self,
            Fate::NotExecuted | Fate::Unknown | Fate::Unanswered => {
                self.with_fate(Fate::NotExecuted)
            }
        }
    }

    /// Says which name the call was about. Where that is hidden, so is all that may quote it.
    pub(crate) fn with_key<'n>(self, key: impl Into<Shown<'n>>) -> Self {
        let key = key.into();
        let error = match key.is_hidden() {
            true => self.without_quotes(),
            false => self,
        };
        let text = key.as_str();
        let text = match text.len() <= LONGEST_KEY {
            true => text.into(),
            false => shortened(text).into(),
        };
        error.changed(|repr| repr.key = Some(text))
    }

    /// As [`with_key`](Self::with_key), unless the error names something already, such as a tag. A
    /// name that is shown gives way to one that is hidden: the error comes from a call that others
    /// share, and was made for one of them.
    pub(crate) fn about<'n>(self, key: impl Into<Shown<'n>>) -> Self {
        let key = key.into();
        match self.0.key {
            Some(_) if self.0.hidden || !key.is_hidden() => self,
            _ => self.with_key(key),
        }
    }

    /// The same error without what may quote a name: the words of the server and of the driver.
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

    /// Says why, in a few words that stand in the text.
    pub(crate) fn because(self, cause: impl Into<Cow<'static, str>>) -> Self {
        let cause = bounded(cause.into(), LONGEST_CAUSE);
        self.changed(|repr| repr.cause = Some(cause))
    }

    /// Says why, in the words of the server: its code, and what follows that.
    pub(crate) fn because_server_says(self, code: &str, words: &str) -> Self {
        let words = cut(words, LONGEST_CAUSE).into();
        let error = self.because(code.to_owned());
        error.changed(|repr| repr.words = Some(words))
    }

    /// Says at which address the server is, unless that is known.
    pub(crate) fn at_address(self, address: &Arc<str>) -> Self {
        match self.0.place {
            Place::At(_) | Place::Nowhere => self,
            Place::Unknown => self.changed(|repr| repr.place = Place::At(address.clone())),
        }
    }

    /// Says that no server has to do with it: nobody knows which is the one, so that the address of
    /// the one before is not added.
    pub(crate) fn at_no_address(self) -> Self {
        self.changed(|repr| repr.place = Place::Nowhere)
    }

    /// Says at which of several servers it happened.
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

    /// What it says, without the key.
    pub(crate) fn text(&self) -> &str {
        &self.0.message
    }

    pub(crate) fn fate(&self) -> Fate {
        self.0.fate
    }

    /// Where the server is that it happened at, as far as known.
    pub(crate) fn address(&self) -> Option<&str> {
        match &self.0.place {
            Place::At(address) => Some(address),
            Place::Unknown | Place::Nowhere => None,
        }
    }

    fn changed(self, change: impl FnOnce(&mut Repr)) -> Self {
        let mut repr = Arc::unwrap_or_clone(self.0);
        change(&mut repr);
        Self(Arc::new(repr))
    }
}

impl Source {
    /// What is left of it where names are hidden. What a loader says is its author's business.
    fn without_quotes(self) -> Option<Self> {
        match self {
            Self::Quoting(_) => None,
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

/// `text`, cut if it is longer than `most` bytes.
fn bounded(text: Cow<'static, str>, most: usize) -> Cow<'static, str> {
    match text.len() <= most {
        true => text,
        false => cut(&text, most).into(),
    }
}

/// The most bytes of a text.
const LONGEST_TEXT: usize = 512;

/// The most bytes of a cause that stands in a text.
const LONGEST_CAUSE: usize = 200;

/// The most bytes of a name that is kept whole; no valid name is longer.
const LONGEST_KEY: usize = 1024;
