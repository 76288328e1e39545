//! `ErrorKind`: the class of an error. `Fate`: what became of the call.
//!
//! Invariant: a fate is `NotExecuted` only if that is proved. [`Error`](super::Error) has one of
//! each.

/// The class of an [`Error`](super::Error).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's input was refused before anything was sent.
    InvalidInput,
    /// No connection could be made: nothing was sent.
    Unreachable,
    /// The deadline passed. [`Error::is_indeterminate`](super::Error::is_indeterminate) says
    /// whether something may have been applied.
    Timeout,
    /// The connection was lost after the command was sent and before its reply came.
    Disconnected,
    /// The server is unavailable, and its circuit breaker refused the call: nothing was sent.
    CircuitOpen,
    /// Too many calls, or too many bytes, wait to be sent to the server
    /// ([`ClientBuilder::max_waiting`](crate::ClientBuilder::max_waiting)): nothing was sent. The
    /// call fails at once, and the crate does not retry it.
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
    /// TLS: the server's certificate was not accepted, or the server did not accept the client's.
    /// No call was sent.
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
    /// The call was executed on the primary, and fewer replicas than it asked for
    /// ([`Invalidate::durable`](crate::cache::Invalidate::durable)) have acknowledged it in time.
    NotReplicated,
    /// The server answered with an error or a reply that the crate does not know.
    Server,
    /// A counter would have passed the end of `i64`; it is unchanged.
    Overflow,
    /// A counter would have left its `within` range; it is unchanged.
    OutOfRange,
    /// The lock, or enough permits, were not free within the wait. Or the turn of a request at a
    /// rate limiter comes later than it waits. Or others changed a cached value
    /// each time until the deadline.
    Contended,
    /// The lock, or the permits, are no longer held.
    Lost,
    /// The value could not be encoded.
    Encode,
    /// The stored bytes could not be decoded.
    Decode,
    /// The value is larger than the limit.
    TooLarge,
    /// The loader returned an error. [`Error::loader_error`](super::Error::loader_error) returns it
    /// unchanged, and it is the [`source`](std::error::Error::source).
    Loader,
    /// The loader panicked.
    LoaderPanicked,
    /// The loader took longer than `max_load`, or could not start within it because too many loads
    /// ran without Redis. Or no load of another caller ended within `max_load` and the cache
    /// deadline.
    LoaderTimeout,
    /// The loader of a key called `memoize` for the same key.
    Reentrant,
    /// No server binary was found, or it did not start.
    Embedded,
}

impl ErrorKind {
    /// Returns whether Redis does not serve this client at present, whatever the call. The reason
    /// is an outage, missing rights, or a server that is full, misconfigured or too slow for the
    /// load. False for errors in the input, in stored data, and in the caller's own code.
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
            | Self::NotReplicated
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
    /// Proved not to have run. It may be sent again.
    NotExecuted,
    /// The server or the crate refused it. Sending it again changes nothing.
    Refused,
    /// Sent without a reply. It ran once or not at all.
    Unknown,
    /// Sent without a reply, but it only reads. Whether it ran makes no difference.
    Unanswered,
    /// It ran. What failed is what the caller asked for beyond that.
    Executed,
}

impl Fate {
    /// Returns the fate of a call that failed with `kind`, unless more is known.
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
            // The command was sent: otherwise the error is `Unreachable`.
            ErrorKind::Disconnected => Self::Unknown,
            ErrorKind::NotReplicated => Self::Executed,
            // A `Timeout` gets its fate where it is made: only there it is known whether the call
            // was sent.
            _ => Self::Refused,
        }
    }
}
