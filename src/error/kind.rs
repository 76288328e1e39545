//! `ErrorKind`: the class of an error; `Fate`: what became of the call.
//!
//! Invariant: a fate says `NotExecuted` only where that is proved. Used by [`Error`](super::Error),
//! which has one of each.

/// The class of an [`Error`](super::Error).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's input was refused before anything was sent.
    InvalidInput,
    /// No connection could be made: nothing was sent.
    Unreachable,
    /// The deadline passed. [`Error::is_indeterminate`](super::Error::is_indeterminate) tells
    /// whether something may have been applied.
    Timeout,
    /// The connection was lost after the command was sent and before its reply came.
    Disconnected,
    /// The server is out, and the circuit breaker did not let the call through: nothing was sent.
    CircuitOpen,
    /// Too much waits to be sent to the server already
    /// ([`ClientBuilder::max_waiting`](crate::ClientBuilder::max_waiting)): nothing was sent. The
    /// call fails at once and is not retried inside.
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
    /// The server is busy running a script.
    Busy,
    /// `NOAUTH` or `WRONGPASS`: credentials are missing or wrong.
    Unauthenticated,
    /// TLS: the server's certificate was not accepted, or the server did not accept the client's;
    /// no call was sent.
    Tls,
    /// `NOPERM`: the ACL user may not run the command or touch the key.
    Forbidden,
    /// A key holds a type that the primitive did not write.
    WrongType,
    /// A replica lost its primary and serves no stale data.
    MasterDown,
    /// The cluster does not serve this slot.
    ClusterDown,
    /// Keys of one command lie in several slots.
    CrossSlot,
    /// Fewer replicas are attached than `min-replicas-to-write` asks for.
    NoReplicas,
    /// The server answered with an error or a reply that the crate does not know.
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
    /// The loader returned an error: [`Error::loader_error`](super::Error::loader_error) gives it
    /// back as it is, and it is the [`source`](std::error::Error::source).
    Loader,
    /// The loader panicked.
    LoaderPanicked,
    /// The loader took longer than `max_load`, or could not begin within it because too many loads
    /// ran without Redis; or no load of another ended within `max_load` and the cache deadline.
    LoaderTimeout,
    /// The loader of a key called `memoize` for the same key.
    Reentrant,
    /// No server binary was found, or it did not start.
    Embedded,
}

impl ErrorKind {
    /// Whether Redis does not serve this client at present, whatever the call: an outage, a server
    /// that is full, misconfigured or too slow for the load, or missing rights. It is false for
    /// faults of the input, of what is stored, and of the caller's own code.
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

impl Fate {
    /// What became of a call that failed with `kind`, unless more is known of it.
    pub(super) fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Unreachable
            | ErrorKind::CircuitOpen
            | ErrorKind::Overloaded
            | ErrorKind::MaxClients
            | ErrorKind::ReadOnly
            | ErrorKind::Loading
            | ErrorKind::Busy
            | ErrorKind::MasterDown
            | ErrorKind::ClusterDown => Self::NotExecuted,
            ErrorKind::Disconnected => Self::Unknown,
            _ => Self::Refused,
        }
    }
}
