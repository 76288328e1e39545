//! `AcquireReply`: what the server answers to an acquire request.
//!
//! Invariant: an answer that cannot be read is an error, and was perhaps a grant. `Acquirer` and
//! queue tasks read it. First tries, queue tasks and the keeper judge errors here.

use std::time::Duration;

use tokio::time::Instant;

use super::kind::Kind;
use super::owner::Seal;
use super::request::AcquireRequest;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::script::Reply;
use crate::sync::fence::Fence;

/// What the script that acquires answered.
pub(in crate::sync) enum AcquireReply {
    /// The fence, and a moment before the question was sent.
    Granted(Fence, Instant),
    Busy {
        /// How long until the first lease of a holder may end. `None` if there is no lease.
        remaining: Option<Duration>,
        /// The fence of the holder, or the last one of the bucket. Every later grant is above it.
        above: Option<Fence>,
        /// The seal of the owner that hands over to the caller. `None` if that is not known.
        after: Option<Seal>,
        /// The holders, as a text for people.
        holder: String,
        /// A moment before the question was sent. Claims count from it.
        sent: Instant,
    },
}

impl AcquireReply {
    pub(in crate::sync) fn read(reply: &Reply, kind: &Kind) -> Result<Self> {
        match reply.status()? {
            fence if fence.starts_with(|c: char| c.is_ascii_digit()) => {
                Ok(Self::Granted(Fence::parse(fence)?, reply.sent()))
            }
            "BUSY" => Ok(Self::Busy {
                // Negative if there is no lease.
                remaining: u64::try_from(reply.int(1)?).ok().map(Duration::from_millis),
                above: Fence::parse(reply.text(2)?).ok(),
                after: Seal::parse(reply.text(4)?),
                holder: (kind.held_by)(reply.text(2)?, reply.text(3)?),
                sent: reply.sent(),
            }),
            _ => Err(reply.unexpected()),
        }
    }
}

/// A position in the server's queue, as of the last "busy".
#[derive(Debug)]
pub(in crate::sync) struct LastBusy {
    /// A moment before the question was sent.
    pub(in crate::sync) sent: Instant,
    /// The fence that the answer named. A grant to this process has a greater one.
    pub(in crate::sync) above: Fence,
    /// The seal of the owner that is expected to hand over to this process. `None` if that is not
    /// known.
    pub(in crate::sync) after: Option<Seal>,
    /// How long it was until the first lease of a holder may end.
    pub(in crate::sync) remaining: Option<Duration>,
    /// What was asked for. Only a waiter on the same terms may have what is granted by push.
    pub(in crate::sync) asked: AcquireRequest,
}

/// Returns whether a call that ended with `error` has surely changed nothing on the server.
pub(in crate::sync) fn had_no_effect(error: &Error) -> bool {
    match error.fate() {
        Fate::NotExecuted => true,
        // The server itself has refused. An answer that cannot be read was perhaps a grant.
        Fate::Refused => error.kind() != ErrorKind::Server,
        _ => false,
    }
}
