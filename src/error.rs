//! The one error of the crate.
//!
//! Invariant: an error says which of three things happened to the call on the server ([`Fate`]):
//! it was not executed, it was refused, or nobody can tell. A transport error never looks like an
//! answer, and no message contains a cached value, a password or an owner token.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// What every fallible call of the crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// [`kind`](Error::kind) classifies it, the message says what to do, and
/// [`source`](StdError::source) gives the cause. Cloning is cheap: callers that shared one flight
/// share its error.
#[derive(Clone)]
pub struct Error(Arc<Repr>);

struct Repr {
    kind: ErrorKind,
    fate: Fate,
    key: Option<String>,
    message: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
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
}

/// The class of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's input was refused before anything was sent.
    InvalidInput,
    /// No connection could be made: nothing was sent.
    Unreachable,
    /// The deadline passed. [`Error::is_indeterminate`] tells whether anything had been sent.
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
    /// The loader returned an error; it is the [`source`](StdError::source).
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

    /// Whether the same call may succeed later and is proved not to have run now.
    pub fn is_retryable(&self) -> bool {
        self.0.fate == Fate::NotExecuted
    }

    /// Whether the call was sent and its effect is unknown: it ran once or not at all.
    pub fn is_indeterminate(&self) -> bool {
        self.0.fate == Fate::Unknown
    }

    /// The name that the call was about, as the caller spelt it.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// The loader's own error, when it is one of type `E`.
    pub fn loader_error<E: StdError + 'static>(&self) -> Option<&E> {
        self.0.source.as_deref()?.downcast_ref()
    }

    /// An error of a fate that follows from its kind.
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
            message: message.into(),
            source: None,
        }))
    }

    /// What the caller gave was refused before anything was sent.
    pub(crate) fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn with_fate(self, fate: Fate) -> Self {
        self.changed(|repr| repr.fate = fate)
    }

    pub(crate) fn with_key(self, key: &str) -> Self {
        self.changed(|repr| repr.key = Some(key.to_owned()))
    }

    /// Says at which of several servers it happened.
    pub(crate) fn at(self, shard: &str) -> Self {
        self.changed(|repr| repr.message = format!("shard {shard:?}: {}", repr.message).into())
    }

    pub(crate) fn with_source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let source = Arc::from(source.into());
        self.changed(|repr| repr.source = Some(source))
    }

    /// What it says, without the key.
    pub(crate) fn text(&self) -> &str {
        &self.0.message
    }

    pub(crate) fn fate(&self) -> Fate {
        self.0.fate
    }

    fn changed(self, change: impl FnOnce(&mut Repr)) -> Self {
        let mut repr = match Arc::try_unwrap(self.0) {
            Ok(repr) => repr,
            Err(shared) => Repr {
                kind: shared.kind,
                fate: shared.fate,
                key: shared.key.clone(),
                message: shared.message.clone(),
                source: shared.source.clone(),
            },
        };
        change(&mut repr);
        Self(Arc::new(repr))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.0.key {
            write!(f, "{key:?}: ")?;
        }
        f.write_str(&self.0.message)?;
        if self.is_indeterminate() {
            f.write_str(" (sent, no reply: it was applied once or not at all)")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("fate", &self.0.fate)
            .field("key", &self.0.key)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}
